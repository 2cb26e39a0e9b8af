#!/bin/bash
# SPDX-License-Identifier: MIT
#
# run_sqlite.sh - sqlite3 builds a database, changes it, and finds it sound, with mmap_size set. What it
# says is what it says on the kernel's memory.
set -u
cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash
need sqlite3
start_arena

cat >"$work/job.sql" <<-'END'
	PRAGMA mmap_size = 268435456;
	PRAGMA cache_size = -65536;
	PRAGMA journal_mode = wal;
	CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b INTEGER);
	WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 100000)
		INSERT INTO t SELECT x, printf('%0100d', x), x * 7 % 1000 FROM c;
	CREATE INDEX by_b ON t (b);
	UPDATE t SET a = a || 'x' WHERE b % 3 = 0;
	DELETE FROM t WHERE id % 5 = 0;
	VACUUM;
	SELECT count(*), sum(b), sum(length(a)) FROM t;
	SELECT b, count(*) FROM t GROUP BY b ORDER BY 2 DESC, 1 LIMIT 5;
	PRAGMA integrity_check;
END
sqlite3 "$work/kernel.db" <"$work/job.sql" >"$work/kernel" || fail "sqlite3 on the kernel's memory"
on_arena -- sqlite3 "$work/arena.db" <"$work/job.sql" >"$work/arena" || fail "sqlite3: $(<"$work/arena")"
cmp "$work/kernel" "$work/arena" || fail "$(diff "$work/kernel" "$work/arena")"
[ "$(tail -n 1 "$work/arena")" = ok ] || fail "integrity_check: $(<"$work/arena")"
[ "$(sqlite3 "$work/arena.db" 'PRAGMA integrity_check')" = ok ] || fail "the file is not sound"
served sqlite3 10000000 20
arena_is_whole
stop_daemon
