#!/bin/bash
# SPDX-License-Identifier: MIT
#
# run_memtester.sh - memtester's patterns find nothing wrong with memory of the arena.
set -u
cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash
need memtester
start_arena
on_arena -- memtester 8M 1 >"$work/out" 2>&1 || fail "memtester: $(tail -n 5 "$work/out")"
grep -q FAILURE "$work/out" && fail "$(grep FAILURE "$work/out")"
served memtester 8388608 4
arena_is_whole
stop_daemon
