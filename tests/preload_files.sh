#!/bin/bash
# SPDX-License-Identifier: MIT
#
# preload_files.sh - mapped files of programs that know nothing of arenad: coherent with what they and others read and write
# by system calls, on both traps, and with workers that die.
set -u

cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash

program=$ARENA_BUILD/tests/preload_files

cached() {
	"$bin/arenactl" get proc/meminfo | awk '/^Cached:/ { print $2 }'
}

cd "$work" || exit
expect 0 "$program"
cd "$here" || exit
start_arena

# ---- not asked for: the kernel's -------------------------------------------------------------------

(cd "$work" && on_arena -- "$program") || fail "not asked for"
[ "$(sum_of preload_files files)" -eq 0 ] || fail "not asked for, and served: $(<"$report")"
: >"$report"

# ---- asked for ----------------------------------------------------------------------------------------

(cd "$work" && on_arena --files --trap userfaultfd -- "$program") || fail "by userfaultfd"
served preload_files 10000000 100
[ "$(sum_of preload_files files)" -gt 5000000 ] || fail "no files: $(<"$report")"
[ "$(cached)" -eq 0 ] || fail "$(cached) kB are cached still"
: >"$report"
# System calls write to memory that is there.
(cd "$work" && on_arena --files --trap signal -- "$program" writes mappings sizes ends) ||
	fail "by signals"
[ "$(sum_of preload_files files)" -gt 1000000 ] || fail "no files by signals: $(<"$report")"
: >"$report"

# ---- workers die ----------------------------------------------------------------------------------------

cd "$work" || exit
"${arena_run[@]}" --files -- "$program" &
kill_workers "$!" 100
cd "$here" || exit
[ "$(sum_of preload_files files)" -gt 5000000 ] || fail "no files: $(<"$report")"

arena_is_whole
stop_daemon
echo "all right"
