#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Clients of the other tests have the trap that is permitted, which is userfaultfd for root. Here those that
# depend on the trap run once more with signals: first, two at a time, those that measure nothing.
set -eu

: "${ARENA_BUILD:?is set by make}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run() {
	for test in "$@"; do
		echo "== daemon_$test"
		ARENA_TEST_TRAP=signal "$ARENA_BUILD/tests/daemon_$test" || return $?
	done
}

run fault mmap >"$work/first" 2>&1 &
code=0
run fork random segment || code=$?
wait $! || code=$?
cat "$work/first"
[ "$code" -eq 0 ] || exit "$code"
run death invariants
