#!/bin/sh
# SPDX-License-Identifier: MIT
#
# What `make bench` does: measure, print a table, keep the results as JSON. Arguments go to
# arena_bench (--quick, --only touch,null, --runs N; see docs/bench.md).
#
# From the environment: ARENA_BUILD the build's directory; BENCH_ARGS more arguments, for
# `make bench BENCH_ARGS=--quick`.
set -eu

cd "$(dirname "$0")/.."
build=${ARENA_BUILD:-${B:-build}}
bench=$build/bench/arena_bench

for program in "$bench" "$build/bin/arenad"; do
	if ! test -x "$program"; then
		echo "bench: $program is missing; run make bench" >&2
		exit 1
	fi
done
if test -r /proc/loadavg; then
	read -r load _ </proc/loadavg
	case $load in
	0.*) ;;
	*) echo "bench: the machine is busy (load $load): only the ratios mean something" >&2 ;;
	esac
fi
# shellcheck disable=SC2086 # BENCH_ARGS is a list
exec "$bench" --build "$build" --json "$build/bench/results.json" ${BENCH_ARGS:-} "$@"
