#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Clients of the other tests have the trap that is permitted, which is userfaultfd for root. Here those that
# depend on the trap run once more with signals.
set -eu

: "${ARENA_BUILD:?is set by make}"
for test in fault mmap fork random segment death invariants; do
	echo "== daemon_$test"
	ARENA_TEST_TRAP=signal "$ARENA_BUILD/tests/daemon_$test" || exit $?
done
