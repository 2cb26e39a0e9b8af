#!/bin/bash
# SPDX-License-Identifier: MIT
#
# systemd_system.sh - the service exactly as it is installed, under systemd as process 1: who may connect,
# what the worker may, and that all its hardening leaves it working; then killed, hung, restarted, stopped,
# with a client keeping its memory.
set -u
cd "$(dirname "$0")/.." || exit

. tests/lib_systemd.bash
. tests/lib_systemd_scenario.bash

member=(setpriv --reuid=nobody --regid=arena --clear-groups)
stranger=(setpriv --reuid=nobody --regid=nogroup --clear-groups)

# The worker's line of /proc/PID/status
status_is() { # KEY VALUE
	local found
	found=$(inside sed -n "s/^$1:[[:space:]]*//p" "/proc/$(prop MainPID)/status")
	[ "$found" = "$2" ] || fail "the worker's $1 is $found instead of $2"
}

start_system
ctl start arenad.socket || fail "arenad.socket does not start"
found=$(inside stat -c '%A %U:%G' /run/arenad/socket)
[ "$found" = "srw-rw---- root:arena" ] || fail "the socket is $found"
! inside "${stranger[@]}" timeout 60 arenactl status >"$work/out" 2>&1 || fail "a stranger may connect"
[ "$(prop ActiveState)" = inactive ] || fail "a stranger woke the service"
inside "${member[@]}" timeout 60 arenactl status >"$work/out" 2>&1 || fail "arenactl status: $(<"$work/out")"

uid=$(inside id -u arenad) gid=$(inside getent group arena | cut -d: -f3)
status_is Uid "$uid	$uid	$uid	$uid"
status_is Gid "$gid	$gid	$gid	$gid"
for set in CapInh CapPrm CapEff CapBnd CapAmb; do
	status_is "$set" 0000000000000000
done
status_is NoNewPrivs 1
status_is Seccomp 2
ctl stop arenad.socket arenad.service || fail "stop"

scenario "${member[@]}" "$keep_client"
echo "all of it under systemd as process 1"
