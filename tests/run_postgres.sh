#!/bin/bash
# SPDX-License-Identifier: MIT
#
# run_postgres.sh [full] - postgres keeps pgbench's sums, with its buffers in shared memory of the arena and
# a process of its own for each client.
set -u
cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash
PATH=$PATH:$(printf '%s:' /usr/lib/postgresql/*/bin)
need postgres pgbench initdb psql pg_isready
transactions=200
[ "${1:-}" = full ] && transactions=20000
start_arena

mkdir "$work/pg"
[ "$(id -u)" -ne 0 ] || chown nobody "$work/pg"
cd "$work/pg" || exit
"${as_user[@]}" initdb -D data -A trust -N -U arena >"$work/out" 2>&1 || fail "initdb: $(tail -n 5 "$work/out")"
"${as_user[@]}" "${arena_run[@]}" -- postgres -D data -k "$work/pg" -h '' -p 7432 \
	-c fsync=off -c shared_buffers=64MB -c max_connections=20 >"$work/postgres.log" 2>&1 &
server=$!
export PGHOST=$work/pg PGPORT=7432 PGUSER=arena PGDATABASE=postgres
for _ in $(seq 600); do
	pg_isready -q && break
	kill -0 "$server" 2>/dev/null || break
	sleep 0.1
done
pg_isready -q || fail "postgres is not ready: $(tail -n 5 "$work/postgres.log")"
pgbench -i -s 1 -q >"$work/out" 2>&1 || fail "pgbench -i: $(tail -n 5 "$work/out" "$work/postgres.log")"
pgbench -c 4 -t "$transactions" >"$work/out" 2>&1 ||
	fail "pgbench: $(tail -n 5 "$work/out" "$work/postgres.log")"
sums=$(psql -At -F ' ' -c "SELECT (SELECT sum(abalance) FROM pgbench_accounts),
	(SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches),
	(SELECT sum(delta) FROM pgbench_history), (SELECT count(*) FROM pgbench_history)")
echo "sums: $sums"
read -r accounts tellers branches history count <<<"$sums"
[ "$count" -eq $((4 * transactions)) ] || fail "$count transactions"
if [ "$accounts" != "$tellers" ] || [ "$accounts" != "$branches" ] || [ "$accounts" != "$history" ]; then
	fail "the sums differ: $sums"
fi
kill -INT "$server"
wait "$server" || fail "postgres: status $?: $(tail -n 5 "$work/postgres.log")"
grep -E 'PANIC|ERROR|terminated by signal' "$work/postgres.log" && fail "postgres' log"
served postgres $((64 << 20)) 200
[ "$(grep -c ' postgres\[' "$report")" -gt 5 ] || fail "few processes: $(<"$report")"
cd "$here" || exit
arena_is_whole
stop_daemon
