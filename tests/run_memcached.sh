#!/bin/bash
# SPDX-License-Identifier: MIT
#
# run_memcached.sh - memcached keeps what it is told, under a load that fills and evicts.
set -u
cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash
need memcached python3
start_arena
port=$((20000 + RANDOM % 10000))
"${arena_run[@]}" -- memcached -u nobody -l 127.0.0.1 -p "$port" -U 0 -m 64 -t 2 >"$work/memcached.log" 2>&1 &
server=$!
python3 "$here/tests/run_memcached_load.py" "$port" >"$work/out" 2>&1 ||
	fail "the load: $(tail -n 10 "$work/out") $(<"$work/memcached.log")"
cat "$work/out"
kill -TERM "$server"
wait "$server" || fail "memcached: status $?: $(<"$work/memcached.log")"
served memcached 60000000 20
arena_is_whole
stop_daemon
