# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# lib_daemon.bash - for shell tests: a daemon on a socket of its own, ended on exit.
#
#   start_daemon [OPTION...]   returns when it is ready; $socket, $daemon (pid), $log (a file)
#   stop_daemon                SIGTERM; it must end with 0
#   fail TEXT...               end this test
#   expect STATUS COMMAND...   run it; its output is left in $out, $err
: "${ARENA_BUILD:=build}"
bin=$ARENA_BUILD/bin
work=$(mktemp -d "${TMPDIR:-/tmp}/arena-test.XXXXXX")
socket=$work/socket
log=$work/log
daemon=

# Not KILL: a worker outlives its supervisor.
cleanup() {
	if [ -n "$daemon" ]; then
		kill -TERM "$daemon" 2>/dev/null
		wait "$daemon" 2>/dev/null
	fi
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

fail() {
	echo "failed: $*"
	if [ -s "$log" ]; then
		echo "---- log of the daemon"
		cat "$log"
	fi
	exit 1
}

# The log is a fifo to `tee`, so that the line that says ready can be waited for.
start_daemon() {
	local line
	rm -f "$work/fifo" "$work/lines"
	mkfifo "$work/fifo" "$work/lines"
	tee "$log" <"$work/fifo" >"$work/lines" 2>/dev/null &
	"$bin/arenad" --socket "$socket" --arena-size 128M "$@" 2>"$work/fifo" >/dev/null &
	daemon=$!
	exec 9<"$work/lines"
	while IFS= read -r -t 30 -u 9 line; do
		case $line in
		*'>ready at '*)
			# Nobody reads on: tee's other half is the file.
			cat <&9 >/dev/null &
			exec 9<&-
			return 0
			;;
		esac
	done
	fail "the daemon does not get ready"
}

stop_daemon() {
	local status=0
	kill -TERM "$daemon"
	wait "$daemon" || status=$?
	daemon=
	[ "$status" -eq 0 ] || fail "the daemon ended with $status"
	if grep -E '^<[0-3]>|BUG|damaged|Sanitizer|runtime error' "$log"; then
		fail "the daemon's log"
	fi
}

expect() {
	local wanted=$1 status=0
	shift
	"$@" >"$work/out" 2>"$work/err" </dev/null || status=$?
	out=$(<"$work/out") err=$(<"$work/err")
	[ "$status" -eq "$wanted" ] || fail "$*: status $status instead of $wanted: $out $err"
}

# has TEXT PATTERN: an extended regular expression that one of its lines matches
has() {
	grep -Eq -- "$2" <<<"$1" || fail "no line like '$2' in: $1"
}
