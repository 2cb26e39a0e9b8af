#!/bin/bash
# SPDX-License-Identifier: MIT
#
# preload.sh - unmodified programs: one that expects what Linux promises, on both traps; options of
# arenactl run; no daemon; a daemon whose worker dies.
set -u

cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash

program=$ARENA_BUILD/tests/preload_program
run="$bin/arenactl run"

# ---- no daemon: one warning in all, or nothing is run ------------------------------------------------

expect 0 $run -- sh -c 'sh -c "echo in"; echo out'
[ "$out" = "in
out" ] || fail "without a daemon: $out"
[ "$(wc -l <<<"$err")" -eq 1 ] || fail "not one warning: $err"
has "$err" 'no arena'
expect 1 $run --strict -- echo hello
[ -z "$out" ] || fail "strict, and it ran: $out"
has "$err" '^arenactl: no arena'
# The same, by the library alone.
preload=$ARENA_BUILD/lib/libarena-preload.so
expect 0 env LD_PRELOAD="$preload" sh -c '/bin/echo in; /bin/echo out'
[ "$(grep -c 'no arena' <<<"$err")" -eq 1 ] || fail "not one warning: $err"
expect 1 env LD_PRELOAD="$preload" ARENA_PRELOAD_STRICT=1 /bin/echo hello
[ -z "$out" ] || fail "strict, and it ran: $out"

# ---- usage -----------------------------------------------------------------------------------------

expect 2 $run
expect 2 $run --trap nonsense -- true
expect 2 $run --min-size nonsense -- true
expect 2 $run --node all -- true
expect 0 $run --help
for option in trap min-size files shared mergeable node strict verbose report socket; do
	has "$out" "--$option"
done

start_arena

expect 127 $run -- "$work/missing"
expect 126 $run -- "$work"
expect 3 $run -- sh -c 'exit 3'
expect 0 $run -v -- /bin/echo --help -- "a b"
[ "$out" = "--help -- a b" ] || fail "arguments: $out"
has "$err" '^arena: echo\[[0-9]+\]: mapped=[1-9][0-9]* .* faults=[1-9][0-9]* .* trap=userfaultfd$'
expect 0 $run -v --trap signal -- /bin/true
has "$err" 'trap=signal$'
expect 0 env LD_PRELOAD=/nonexistent.so $run -v -- /bin/true
has "$err" '^arena: true'
# A relative socket, and a program that goes elsewhere.
(cd "$work" && ARENAD_SOCKET=socket expect 0 $run -v -- sh -c 'cd / && exec /bin/true') || exit 1
has "$(<"$work/err")" '^arena: true'

# ---- what is served ----------------------------------------------------------------------------------

expect 0 "$program" calls malloc mmap mremap file calls syscall threads setuid
on_arena --min-size 4K --trap userfaultfd -- "$program" calls || fail "the program, by userfaultfd"
on_arena --min-size 4K --trap signal -- "$program" plain || fail "the program, by signals"
served preload_program 100000000 500
kernel=$(sum_of preload_program kernel) mapped=$(sum_of preload_program mapped)
[ "$kernel" -lt "$mapped" ] || fail "$kernel bytes from the kernel, $mapped from the arena"
: >"$report"
on_arena --min-size 16T -- "$program" calls mmap || fail "all of it the kernel's"
[ "$(sum_of preload_program peak)" -eq 0 ] || fail "served all the same: $(<"$report")"
[ "$(sum_of preload_program kernel)" -gt 8000000 ] || fail "not counted: $(<"$report")"
: >"$report"

# ---- from one node ----------------------------------------------------------------------------------

node_free() {
	"$bin/arenactl" get "sys/devices/system/node/node$1/meminfo" | awk '/MemFree:/ { print $4 }'
}
expect 1 $run --node 2 -- true
has "$err" 'no such node'
free0=$(node_free 0) free1=$(node_free 1)
# shellcheck disable=SC2016 # the inner shell's
expect 0 $run --strict --node 1 -- sh -c '"$1" get sys/devices/system/node/node0/meminfo
	"$1" get sys/devices/system/node/node1/meminfo' - "$bin/arenactl"
[ "$(awk '/Node 0 MemFree:/ { print $4 }' <<<"$out")" -eq "$free0" ] || fail "node 0 had $free0: $out"
[ "$(awk '/Node 1 MemFree:/ { print $4 }' <<<"$out")" -lt $((free1 - 8192)) ] ||
	fail "node 1 had $free1: $out"

# ---- offered for merging -----------------------------------------------------------------------------

on_arena --mergeable -- "$program" calls mmap || fail "the program, mergeable"
served preload_program 8000000 20
: >"$report"

# ---- the worker dies under it ----------------------------------------------------------------------

on_arena --min-size 4K -- "$program" calls malloc mmap fork signals begin mmap malloc &
kill_workers "$!" 200
served preload_program 50000000 100

arena_is_whole
stop_daemon
echo "all right"
