#!/bin/bash
# SPDX-License-Identifier: MIT
#
# run_redis.sh [full] - redis-server saves in the background while every key is overwritten: what it
# saved is what was there at fork(), by DEBUG DIGEST. This is copy-on-write on both sides.
#
# The digest and the save are one packet of one client, so no other command is between them. The saving
# child is slowed down until all is overwritten.
set -u
cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash
need redis-server redis-cli
keys=20000 arena=512M
[ "${1:-}" = full ] && keys=400000 arena=4G
start_arena --arena-size "$arena"

port=$((20000 + RANDOM % 10000))
cli() {
	redis-cli -p "$port" "$@"
}

server=
start_server() {
	"$@" --port "$port" --bind 127.0.0.1 --save '' --dir "$work" --enable-debug-command yes \
		--rdb-key-save-delay 100 >"$work/redis.log" 2>&1 &
	server=$!
	for _ in $(seq 600); do
		[ "$(cli ping 2>/dev/null)" = PONG ] && return
		kill -0 "$server" 2>/dev/null || break
		sleep 0.1
	done
	fail "redis-server does not answer: $(tail -n 5 "$work/redis.log")"
}

stop_server() {
	cli shutdown nosave
	wait "$server" || fail "redis-server: status $?: $(tail -n 20 "$work/redis.log")"
}

# fill LENGTH FACTOR: all keys
fill() {
	seq "$keys" | awk -v len="$1" -v by="$2" \
		'{ printf "SET key:%d %0" len "d\r\n", $1, $1 * by }' | cli --pipe >"$work/pipe" 2>&1 ||
		fail "filling: $(<"$work/pipe")"
	grep -q "errors: 0, replies: $keys" "$work/pipe" || fail "filling: $(<"$work/pipe")"
}

field() {
	cli info "$1" | tr -d '\r' | sed -n "s/^$2://p"
}

start_server on_arena -- redis-server
fill 800 1
exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'DEBUG DIGEST\r\nBGSAVE\r\n' >&3
read -r digest <&3
read -r answer <&3
exec 3>&-
case $answer in +Background*) ;; *) fail "BGSAVE: $answer" ;; esac
digest=${digest#+} digest=${digest%$'\r'}
fill 900 7
[ "$(field persistence rdb_bgsave_in_progress)" = 1 ] || fail "saved before all was overwritten"
later=$(cli debug digest)
[ "$later" != "$digest" ] || fail "nothing was overwritten"
while [ "$(field persistence rdb_bgsave_in_progress)" = 1 ]; do
	sleep 0.1
done
[ "$(field persistence rdb_last_bgsave_status)" = ok ] || fail "BGSAVE: $(tail -n 5 "$work/redis.log")"
[ "$(cli debug digest)" = "$later" ] || fail "the parent's memory changed"
stop_server
served redis-server $((keys * 900)) 100
[ "$(grep -c ' redis-server\[' "$report")" -ge 2 ] || fail "no child in the report: $(<"$report")"

# On the kernel's memory, to be sure of the witness.
start_server redis-server
loaded=$(cli debug digest)
[ "$(cli dbsize)" = "$keys" ] || fail "$(cli dbsize) keys"
[ "$loaded" = "$digest" ] || fail "saved $loaded, at fork() it was $digest"
stop_server
arena_is_whole
stop_daemon
