#!/bin/bash
# SPDX-License-Identifier: MIT
#
# run_gcc.sh [full] - gcc and make compile this project, with the same result as on the kernel's memory.
set -u
cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash
need gcc make
target=lib/room-proto.a
[ "${1:-}" = full ] && target=bin/arenad
start_arena
cd "$here" || exit
unset MAKEFLAGS MAKELEVEL MFLAGS
# One directory after the other, for its name is in the objects. No cache may answer.
build() {
	rm -rf "$work/build"
	CCACHE_DISABLE=1 "$@" make -s -j2 B="$work/build" CC=gcc "$work/build/$target" >"$work/out" 2>&1 ||
		fail "make: $(tail -n 20 "$work/out")"
	find "$work/build/obj" -name '*.o' -exec cksum {} + | sort >"$work/$1.sums"
}
build env
mv "$work/env.sums" "$work/kernel"
build on_arena --
mv "$work/on_arena.sums" "$work/arena"
[ -s "$work/kernel" ] || fail "nothing was compiled"
cmp "$work/kernel" "$work/arena" || fail "$(diff "$work/kernel" "$work/arena")"
served cc1 40000000 20
served make 4000000 2
arena_is_whole
stop_daemon
