#!/bin/bash
# SPDX-License-Identifier: MIT
#
# upgrade.sh - arenactl upgrade: to the program that is installed now, to another, to one that cannot
# go on, to one that does not start; and by whom it may be asked for.
set -u
# shellcheck source=tests/lib_daemon.bash
. "$(dirname "$0")/lib_daemon.bash"
PATH=$PATH:/usr/sbin:/sbin

worker() {
	"$bin/arenactl" --socket "$socket" status --json | sed -E 's/.*"worker_pid":([0-9]+).*/\1/'
}

# refused PATH PATTERN: no, and the worker that was asked still serves
refused() {
	local before after
	before=$(worker)
	expect 1 "$bin/arenactl" --socket "$socket" upgrade --binary "$1"
	has "$err" "$2"
	[ "$(wc -l <"$work/err")" -eq 1 ] || fail "not one line: $err"
	after=$(worker)
	[ "$before" = "$after" ] || fail "$1: worker $before was replaced by $after"
}

accepted() { # OPTION...
	local before after
	before=$(worker)
	expect 0 "$bin/arenactl" --socket "$socket" upgrade "$@"
	after=$(worker)
	[ "$before" != "$after" ] || fail "upgrade $*: still worker $after"
	has "$out" "^arenad [0-9.]+ \\(worker $before\\) was followed by arenad [0-9.]+ \\(worker $after\\) within [0-9.]+ ms$"
	[ "$(readlink "/proc/$after/exe")" = "$program" ] ||
		fail "upgrade $*: $(readlink "/proc/$after/exe") instead of $program"
}

fake() { # what --print-abi prints, with \n
	printf '#!/bin/sh\nprintf "%s"\n' "$1" >"$work/fake"
	chmod +x "$work/fake"
}

expect 0 "$bin/arenad" --print-abi
has "$out" '^abi 1\.[0-9]+$'
has "$out" '^state 1\.[0-9]+$'
has "$out" "^version $("$bin/arenad" --version | sed 's/arenad //')\$"

# An installation of its own, which can be replaced.
mkdir "$work/bin"
program=$work/bin/arenad
cp "$bin/arenad" "$program"
arenactl=$bin/arenactl
start_daemon_at() {
	local real=$bin
	bin=$work/bin
	start_daemon
	bin=$real
}
start_daemon_at

accepted
# As a package does it: another file in its place.
cp "$bin/arenad" "$work/bin/arenad.new"
mv "$work/bin/arenad.new" "$program"
accepted
other=$work/bin/other
cp "$bin/arenad" "$other"
program=$other
accepted --binary "$other"
# From here on it is the one that is meant, also after a death.
before=$(worker)
kill -KILL "$before"
[ "$(readlink "/proc/$(worker)/exe")" = "$other" ] || fail "another program after a death"
accepted

fake 'abi 2.0\nstate 1.0\nversion 9\n'
refused "$work/fake" 'version 2 of the protocol'
fake 'abi 1.0\nstate 2.0\nversion 9\n'
refused "$work/fake" 'states of version 2'
fake 'hello\n'
refused "$work/fake" 'no arenad'
printf '#!/bin/sh\nexit 3\n' >"$work/fake"
refused "$work/fake" 'status 3'
printf '#!/bin/sh\nexec sleep 60\n' >"$work/fake"
refused "$work/fake" 'within'
echo text >"$work/text"
refused "$work/text" 'Permission denied'
refused "$work/nothing" 'No such file'

# It says the right thing and then does not start: the old one goes on.
fake 'abi 1.0\nstate 1.0\nversion 9\n'
before=$(worker)
expect 1 "$arenactl" --socket "$socket" upgrade --binary "$work/fake"
has "$err" "did not get ready"
[ "$(readlink "/proc/$(worker)/exe")" = "$other" ] || fail "went on with another program"

# Nobody else may.
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
	chmod 755 "$work"
	before=$(worker)
	expect 1 setpriv --reuid 54321 --regid 54321 --clear-groups \
		"$arenactl" --socket "$socket" upgrade
	has "$err" 'Permission denied'
	[ "$before" = "$(worker)" ] || fail "replaced for a stranger"
fi

grep -E 'BUG|Sanitizer|runtime error' "$log" && fail "the daemon's log"
kill -TERM "$daemon"
wait "$daemon" || fail "the daemon ended with $?"
daemon=

# Without anybody who would start it again there is no upgrade.
start_daemon --no-supervisor
refused "$bin/arenad" 'neither a supervisor nor systemd'
kill -TERM "$daemon"
wait "$daemon" || fail "the daemon ended with $?"
daemon=
