#!/bin/bash
# SPDX-License-Identifier: MIT
#
# run_sqlite_files.sh - sqlite3 with mmap_size set, whose mappings of the database and of the write-ahead log's index are the
# arena's: it writes the file by pwrite(2) and reads what it wrote by the mapping. One process, and several at once;
# and with workers that die.
set -u
cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash
need sqlite3
start_arena

job() { # MODE
	cat <<-END
		PRAGMA mmap_size = 268435456;
		PRAGMA cache_size = 50;
		PRAGMA journal_mode = $1;
		CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b INTEGER);
		WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 20000)
			INSERT INTO t SELECT x, printf('%0100d', x), x * 7 % 1000 FROM c;
		CREATE INDEX by_b ON t (b);
		UPDATE t SET a = a || 'x' WHERE b % 3 = 0;
		DELETE FROM t WHERE id % 5 = 0;
		SELECT count(*), sum(b), sum(length(a)) FROM t;
		VACUUM;
		UPDATE t SET a = 'y' || a WHERE b % 7 = 0;
		SELECT b, count(*), sum(length(a)) FROM t GROUP BY b ORDER BY 2 DESC, 1 LIMIT 5;
		PRAGMA integrity_check;
	END
}

sound() { # DATABASE
	[ "$(sqlite3 "$1" 'PRAGMA integrity_check')" = ok ] || fail "$1 is not sound"
}

for mode in delete truncate wal; do
	job "$mode" >"$work/job.sql"
	sqlite3 "$work/kernel.$mode.db" <"$work/job.sql" >"$work/kernel" || fail "on the kernel's memory"
	: >"$report"
	on_arena --files -- sqlite3 "$work/arena.$mode.db" <"$work/job.sql" >"$work/arena" ||
		fail "$mode: $(<"$work/arena")"
	cmp "$work/kernel" "$work/arena" || fail "$mode: $(diff "$work/kernel" "$work/arena")"
	[ "$(tail -n 1 "$work/arena")" = ok ] || fail "integrity_check: $(<"$work/arena")"
	sound "$work/arena.$mode.db"
	served sqlite3 10000000 20
	[ "$(sum_of sqlite3 files)" -gt 4000000 ] || fail "$mode: the file was not mapped: $(<"$report")"
done

# ---- several at once ------------------------------------------------------------------------------

# Each transaction moves something and leaves the sum as it was.
setup() { # DATABASE
	rm -f "$1" "$1"-*
	sqlite3 "$1" >/dev/null <<-'END'
		PRAGMA journal_mode = wal;
		CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, pad TEXT);
		WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 2000)
			INSERT INTO t SELECT x, 100, printf('%0200d', x) FROM c;
		CREATE TABLE done (who INTEGER, step INTEGER);
	END
}

writer() { # WHO STEPS
	echo "PRAGMA mmap_size = 268435456; PRAGMA cache_size = 20; PRAGMA wal_autocheckpoint = 20;"
	echo "PRAGMA synchronous = normal;"
	echo ".timeout 60000"
	for ((i = 1; i <= $2; i++)); do
		cat <<-END
			BEGIN IMMEDIATE;
			UPDATE t SET n = n - $i, pad = pad || '$1' WHERE id = ($1 * 613 + $i * 37) % 2000 + 1;
			UPDATE t SET n = n + $i WHERE id = ($1 * 191 + $i * 53) % 2000 + 1;
			INSERT INTO done VALUES ($1, $i);
			COMMIT;
			SELECT 'wrong', sum(n) FROM t HAVING sum(n) <> 200000;
		END
	done
	echo "PRAGMA integrity_check;"
}

together() { # STEPS COMMAND...
	local steps=$1 pids=() who
	shift
	setup "$work/shared.db"
	for who in 1 2 3; do
		writer "$who" "$steps" >"$work/job$who.sql"
		"$@" sqlite3 "$work/shared.db" <"$work/job$who.sql" >"$work/out$who" 2>&1 &
		pids+=("$!")
	done
	for who in 1 2 3; do
		wait "${pids[who - 1]}" || fail "writer $who: $(tail -n 5 "$work/out$who")"
		[ "$(tail -n 1 "$work/out$who")" = ok ] || fail "writer $who: $(tail -n 5 "$work/out$who")"
		! grep -E 'wrong|rror' "$work/out$who" || fail "writer $who"
	done
	sound "$work/shared.db"
	[ "$(sqlite3 "$work/shared.db" 'SELECT count(*) FROM done')" -eq $((3 * steps)) ] ||
		fail "transactions are lost"
}

: >"$report"
together 200 on_arena --files --
[ "$(sum_of sqlite3 files)" -gt 1000000 ] || fail "several: not mapped: $(<"$report")"
served sqlite3 20000000 30

# ---- workers die -------------------------------------------------------------------------------------

: >"$report"
together 300 on_arena --files -- &
kill_workers "$!" 60
[ "$(sum_of sqlite3 files)" -gt 1000000 ] || fail "dying: not mapped: $(<"$report")"

arena_is_whole
stop_daemon
