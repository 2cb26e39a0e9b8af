# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# lib_preload.bash - for tests of unmodified programs: a daemon, programs on its memory, and whether it
# was really its memory.
#
#   need PROGRAM...                 else this test is skipped; root has them installed
#   start_arena [OPTION...]         a daemon of 512 MiB whose clients have the userfaultfd trap
#   on_arena [RUN-OPTION...] -- COMMAND...   what it was served is appended to $report; in the background
#                                   "${arena_run[@]}", for its pid
#   kill_workers PID MOST           the daemon's workers die, about every 50 ms, while PID runs; then it ended well
#   served NAME BYTES FAULTS        processes of that name were, at least so much in all
#   "${as_user[@]}" COMMAND...      as somebody who is not root
: "${ARENA_BUILD:=build}"
here=$PWD
ARENA_BUILD=$(cd "$ARENA_BUILD" && pwd)
. tests/lib_daemon.bash
report=$work/report
export ARENAD_SOCKET=$socket

skip() {
	echo "$*"
	exit 77
}

case $ARENA_BUILD in
*san-*) skip "the preload library is not for sanitizers" ;;
esac

need() {
	local program missing=
	for program in "$@"; do
		command -v "$program" >/dev/null || missing="$missing $program"
	done
	[ -n "$missing" ] || return 0
	"$here/build-aux/setup.sh" programs >"$work/setup.log" 2>&1
	for program in "$@"; do
		command -v "$program" >/dev/null ||
			skip "no $program here, see build-aux/setup.sh programs: $(tail -n 1 "$work/setup.log")"
	done
}

start_arena() {
	chmod 755 "$work"
	# Who drops its privileges reports, too.
	: >"$report"
	chmod 666 "$report"
	start_daemon --arena-size 512M --userfaultfd-group "$(id -g nobody)" "$@"
	"$bin/arenactl" run --strict --trap userfaultfd -- true 2>"$work/err" ||
		skip "no userfaultfd: $(<"$work/err")"
}

arena_run=("$bin/arenactl" run --strict --report "$report")
on_arena() {
	"${arena_run[@]}" "$@"
}

# One number of all lines of a name: sum_of NAME FIELD
sum_of() {
	awk -v name="$1[" -v key="$2=" 'index($2, name) == 1 {
		for (i = 3; i <= NF; i++)
			if (index($i, key) == 1)
				sum += substr($i, length(key) + 1)
	} END { printf "%.0f", sum }' "$report"
}

served() {
	local bytes faults
	[ -s "$report" ] || fail "no report of what was served"
	bytes=$(sum_of "$1" peak) faults=$(sum_of "$1" faults)
	if [ "$bytes" -lt "$2" ] || [ "$faults" -lt "$3" ]; then
		fail "$1: $bytes bytes and $faults faults served, not $2 and $3: $(<"$report")"
	fi
	! grep 'no arena' "$report" || fail "a process has no arena"
	echo "$1: $bytes bytes, $faults faults served in $(grep -c " $1\[" "$report") processes"
}

kill_workers() {
	local kills=0 worker
	while kill -0 "$1" 2>/dev/null && [ "$kills" -lt "$2" ]; do
		worker=$("$bin/arenactl" get sys/kernel/mm/arena/status | sed -n 's/^worker_pid //p')
		[ "${worker:-0}" -gt 1 ] && kill -KILL "$worker" && kills=$((kills + 1))
		sleep 0.05
	done 2>/dev/null
	wait "$1" || fail "with $kills deaths of workers"
	[ "$kills" -gt 3 ] || fail "$kills deaths"
	echo "$kills deaths"
}

# shellcheck disable=SC2034 # for who sources this
as_user=(env)
# shellcheck disable=SC2034
[ "$(id -u)" -ne 0 ] || as_user=(setpriv --reuid nobody --regid "$(id -g nobody)" --clear-groups)

# The daemon knows everything still, and has it all back.
arena_is_whole() {
	expect 0 "$bin/arenactl" check
	[ "$out" = ok ] || fail "arenactl check: $out"
	expect 0 "$bin/arenactl" ps
	[ "$(wc -l <<<"$out")" -eq 1 ] || fail "a client is left: $out"
	expect 0 "$bin/arenactl" get sys/kernel/mm/arena/status
	has "$out" '^anon_bytes 0$'
}
