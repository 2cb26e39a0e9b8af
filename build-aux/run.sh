#!/bin/sh
# SPDX-License-Identifier: MIT
#
# What `make run` does: start a daemon of its own (no root, a private socket), count words in
# shared memory with several processes, show what the daemon saw, stop it.
#
# From the environment: ARENA_BUILD the build's directory; FILES the files to count, else the
# system's documentation; ARENA_SIZE the arena's size, else by free memory; ARENA_NODES simulated
# nodes (2); ARENA_WORKERS processes.
set -eu

cd "$(dirname "$0")/.."
build=${ARENA_BUILD:-${B:-build}}
arenad=$build/bin/arenad
arenactl=$build/bin/arenactl
wordcount=$build/bin/examples/wordcount
nodes=${ARENA_NODES:-2}

for program in "$arenad" "$arenactl" "$wordcount"; do
	if ! test -x "$program"; then
		echo "run: $program is missing; run make first" >&2
		exit 1
	fi
done

dir=$(mktemp -d "${TMPDIR:-/tmp}/arenad-run.XXXXXX")
socket=$dir/socket
log=$dir/log
daemon=

cleanup() {
	status=$?
	trap - EXIT
	if test -n "$daemon"; then
		kill -TERM "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
	fi
	if test "$status" -ne 0 && test -s "$log"; then
		echo "run: the daemon's log:" >&2
		cat "$log" >&2
	fi
	rm -rf "$dir"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

"$arenad" --socket "$socket" --nodes "$nodes" --mount none \
	${ARENA_SIZE:+--arena-size "$ARENA_SIZE"} 2>"$log" &
daemon=$!

# Ready is when it answers: at most ten seconds, and not longer than it lives.
tries=100
until "$arenactl" --socket "$socket" status >/dev/null 2>&1; do
	tries=$((tries - 1))
	if ! kill -0 "$daemon" 2>/dev/null || test "$tries" -eq 0; then
		echo "run: the daemon did not come up" >&2
		exit 1
	fi
	sleep 0.1
done
echo "A daemon with $nodes nodes listens on $socket (pid $daemon)."
echo

echo "wordcount: processes share one structure with pointers in a named segment"
# shellcheck disable=SC2086 # FILES is a list
"$wordcount" --socket "$socket" --fallback README.md \
	${ARENA_WORKERS:+--jobs "$ARENA_WORKERS"} -- ${FILES:-}
echo

echo "arenactl status:"
"$arenactl" --socket "$socket" status
echo
if test "$("$arenactl" --socket "$socket" get sys/kernel/mm/arena/status |
	sed -n 's/^hugepages //p')" = off; then
	echo "Hugepages are off: every 4 KiB page is a fault of the host's own, so this was slower"
	echo "than it can be. One command turns them on for memory that asks for them:"
	echo "    sudo ${arenactl#"$PWD"/} host-setup"
	echo
fi

kill -TERM "$daemon"
status=0
wait "$daemon" || status=$?
daemon=
if test "$status" -ne 0; then
	echo "run: the daemon ended with status $status" >&2
	exit 1
fi
echo "The daemon ended in order. All went well."
