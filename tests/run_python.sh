#!/bin/bash
# SPDX-License-Identifier: MIT
#
# run_python.sh - python's own tests of mmap, and a job of several processes over shared memory.
set -u
cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash
need python3
# The system's, not one that stands before it.
python=/usr/bin/python3
"$python" -c 'import test.test_mmap' 2>/dev/null || {
	"$here/build-aux/setup.sh" programs >"$work/setup.log" 2>&1
	"$python" -c 'import test.test_mmap' 2>/dev/null || skip "python's tests are not installed"
}
start_arena
(cd "$work" && on_arena --min-size 4K -- "$python" -m unittest test.test_mmap) >"$work/out" 2>&1 ||
	fail "test_mmap: $(tail -n 30 "$work/out")"
served python3 20000000 50
: >"$report"
# With the files that they map; those are short.
(cd "$work" && on_arena --files --min-size 4K -- "$python" -m unittest test.test_mmap) >"$work/out" 2>&1 ||
	fail "test_mmap, files: $(tail -n 30 "$work/out")"
[ "$(sum_of python3 files)" -gt 100000 ] || fail "no files were mapped: $(<"$report")"
: >"$report"
(cd "$work" && on_arena --files --min-size 4K -- "$python" -m unittest test.test_mmap) >"$work/out" 2>&1 &
kill_workers "$!" 50
: >"$report"
on_arena -- "$python" "$here/tests/run_python_job.py" >"$work/out" 2>&1 ||
	fail "the job: $(tail -n 30 "$work/out")"
[ "$(tail -n 1 "$work/out")" = "all right" ] || fail "the job: $(<"$work/out")"
served python3 50000000 200
arena_is_whole
stop_daemon
