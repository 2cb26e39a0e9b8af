#!/bin/bash
# SPDX-License-Identifier: MIT
#
# The benchmark runs from one end to the other, small, and its JSON is complete: every series with
# its runs and min <= median <= max, every goal with its ratio. No figure is judged.
set -eu

cd "$(dirname "$0")/.."
: "${ARENA_BUILD:?is set by make}"
bench=$ARENA_BUILD/bench/arena_bench
dir=$(mktemp -d "${TMPDIR:-/tmp}/bench-quick.XXXXXX")
trap 'rm -rf "$dir"' EXIT

if ! test -x "$bench"; then
	echo "$bench is not built (sanitizer builds leave it out)"
	exit 77
fi

fail() {
	echo "$*" >&2
	exit 1
}

TMPDIR=$dir "$bench" --build "$ARENA_BUILD" --quick --json "$dir/results.json" >"$dir/table"
cat "$dir/table"

for name in arena_ready arena_fresh arena_recycled kernel_thp kernel_4k zeroing_cpu \
	refill fault floor floor_populate cold_same futex_same \
	order0_1 order0_2 kernel0_1 order9_1 order9_2 kernel9_2 \
	daemon_cpu daemon_wakeups alone stopped busy garbage returning \
	snapshot snapshot_write_p50 snapshot_write_p99 client_fork fork_thp fork_4k fork_4k_write_p99 \
	arena_64k kernel_64k arena_64k_touched kernel_4m_touched; do
	grep -q "\"name\": \"$name\"" "$dir/results.json" || fail "no series $name"
done
if test "$(nproc)" -ge 2; then
	for name in cold_other futex_other hot spin; do
		grep -q "\"name\": \"$name\"" "$dir/results.json" || fail "no series $name"
	done
fi
if command -v redis-server >/dev/null && command -v redis-benchmark >/dev/null; then
	for name in plain_set arena_set plain_get arena_get plain_set_16 arena_get_16; do
		grep -q "\"name\": \"$name\"" "$dir/results.json" || fail "no series $name"
	done
fi
grep -q '"sense": ' "$dir/results.json" || fail "no goals"
grep -Eqi '[: [](nan|inf|-inf|-nan)[],}]' "$dir/results.json" && fail "a value that is no number"

# One series a line: min <= median <= max, and the runs are two numbers.
awk '
/"name": / {
	match($0, /"median": [^,]*/); median = substr($0, RSTART + 10, RLENGTH - 10) + 0
	match($0, /"min": [^,]*/); min = substr($0, RSTART + 7, RLENGTH - 7) + 0
	match($0, /"max": [^,]*/); max = substr($0, RSTART + 7, RLENGTH - 7) + 0
	match($0, /"runs": \[[^]]*\]/); n = split(substr($0, RSTART + 9, RLENGTH - 10), runs, ",")
	if (!(min <= median && median <= max) || min < 0 || n < 2) {
		print "odd: " $0
		bad = 1
	}
	series++
}
END { exit bad || series < 25 }' "$dir/results.json" || fail "the series are not as they should be"

if command -v python3 >/dev/null; then
	python3 -m json.tool "$dir/results.json" >/dev/null || fail "not JSON"
fi
test -z "$(find "$dir" -name 'arena-bench.*')" || fail "a daemon's directory was left"
