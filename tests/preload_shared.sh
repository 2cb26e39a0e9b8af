#!/bin/bash
# SPDX-License-Identifier: MIT
#
# preload_shared.sh - shared memory by name, POSIX and System V, of programs that know nothing of arenad: on both traps, between
# unrelated processes, python's, and with workers that die.
set -u

cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash

program=$ARENA_BUILD/tests/preload_shared
python=/usr/bin/python3

nothing_is_left() {
	expect 0 "$bin/arenactl" segments
	[ "$(wc -l <<<"$out")" -eq 1 ] || fail "a segment is left: $out"
	! compgen -G "/dev/shm/*$1*" || fail "left in /dev/shm"
}

expect 0 "$program"
start_arena

# ---- not asked for: the kernel's -------------------------------------------------------------------

on_arena -- "$program" mappings sysv || fail "not asked for"
[ "$(sum_of preload_shared shared)" -eq 0 ] || fail "not asked for, and served: $(<"$report")"
: >"$report"

# ---- asked for -----------------------------------------------------------------------------------------

on_arena --shared --trap userfaultfd -- "$program" || fail "by userfaultfd"
served preload_shared 100000000 500
# 60 objects of 4 MiB, 4 mappings of 4 MiB, ...
[ "$(sum_of preload_shared shared)" -gt 270000000 ] || fail "not shared: $(<"$report")"
nothing_is_left 'preload-shared'
: >"$report"
on_arena --shared --trap signal -- "$program" || fail "by signals"
[ "$(sum_of preload_shared shared)" -gt 270000000 ] || fail "not shared: $(<"$report")"
nothing_is_left 'preload-shared'
: >"$report"

# Who is not served does not find what is: neither's memory is taken for the other's.
if [ -x "$python" ]; then
	cat >"$work/make.py" <<-'END'
		import os, sys
		from multiprocessing import shared_memory
		s = shared_memory.SharedMemory(create=True, size=8 << 20)
		s.buf[:5] = b"hello"
		s.buf[-1] = 7
		print(s.name, flush=True)
		sys.stdin.readline()
		assert bytes(s.buf[:5]) == b"HELLO"
		s.close()
		s.unlink()
	END
	cat >"$work/use.py" <<-'END'
		import sys
		from multiprocessing import resource_tracker, shared_memory
		t = shared_memory.SharedMemory(name=sys.argv[1])
		resource_tracker.unregister(t._name, "shared_memory")
		assert bytes(t.buf[:5]) == b"hello" and t.buf[-1] == 7
		t.buf[:5] = b"HELLO"
		t.close()
	END
	coproc maker { "${arena_run[@]}" --shared -- "$python" "$work/make.py"; }
	pid=${maker_PID:?}
	# The descriptors' variables go with the process.
	exec 5<&"${maker[0]}" 6>&"${maker[1]}"
	read -r name <&5
	! "$python" "$work/use.py" "$name" 2>"$work/err" || fail "found without arenad"
	has "$(<"$work/err")" 'FileNotFoundError'
	on_arena --shared -- "$python" "$work/use.py" "$name" || fail "another process"
	[ "$(sum_of python3 shared)" -eq $((8 << 20)) ] || fail "the other's: $(<"$report")"
	echo >&6
	wait "$pid" || fail "the maker's memory was not changed"
	[ "$(sum_of python3 shared)" -eq $((16 << 20)) ] || fail "the maker's: $(<"$report")"
	nothing_is_left "$name"
	: >"$report"
fi

# ---- workers die ---------------------------------------------------------------------------------------

on_arena --shared -- "$program" &
kill_workers "$!" 100
nothing_is_left 'preload-shared'

arena_is_whole
stop_daemon
echo "all right"
