# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# lib_systemd.bash - for shell tests: a real systemd that runs what make install installs.
#
#   start_system    systemd as the first process of a PID namespace, above a copy-on-write view of
#                   the host's files; the service as it is packaged. Needs root.
#                   prepare_system, boot_system: the same in two steps, without the installation.
#   start_user      systemd --user, in a mount namespace; the service without what only the
#                   system's systemd can do.
#   inside CMD...   run it beside that systemd;    ctl ARG...   its systemctl
#   prop NAME       a property of arenad.service
#   client_start CMD...   run keep_client by CMD;  ask LINE ANSWER   have it do something
#   $keep_client    its path inside
#   fail TEXT...    end this test;                 skip TEXT...
#
# systemd and all it started end with the test. Nothing of the host is changed, but for a cgroup
# that is there while the test runs.
: "${ARENA_BUILD:?is set by make}"
work=$(mktemp -d "${TMPDIR:-/tmp}/arena-systemd.XXXXXX")
mode=
manager= # a subshell that ends when systemd has
inner=   # systemd
cgroup=
daemon_log=$work/daemon.log

cleanup() {
	local tries
	[ -z "${CLIENT_PID:-}" ] || kill -KILL "$CLIENT_PID" 2>/dev/null
	if [ -n "$inner" ]; then
		# Process 1 takes its namespace with it; a user's systemd is asked, to end its services.
		if [ "$mode" = system ]; then kill -KILL "$inner"; else kill -TERM "$inner"; fi 2>/dev/null
	fi
	[ -z "$manager" ] || wait "$manager" 2>/dev/null
	# Processes that somebody else waits for leave a cgroup when he has done so.
	for ((tries = 100; tries > 0; tries--)); do
		[ -d "$cgroup" ] || break
		find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null
		[ ! -d "$cgroup" ] || sleep 0.05
	done
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

show_logs() {
	local file
	if [ -n "$inner" ]; then
		ctl show arenad.service arenad.socket -p Id -p ActiveState -p SubState -p Result \
			-p NRestarts -p ExecMainStatus -p MainPID -p NFileDescriptorStore -p StatusText
	fi
	for file in "$work/manager.log" "$daemon_log"; do
		[ -s "$file" ] || continue
		echo "---- $(basename "$file")"
		tail -n 60 "$file"
	done
} 2>&1

fail() {
	echo "failed: $*"
	show_logs
	exit 1
}

skip() {
	show_logs
	echo "$*"
	exit 77
}

case $ARENA_BUILD in
*san-*) skip "what is installed is tested without sanitizers" ;;
esac

# ---- what is installed -------------------------------------------------------------------------

install_into() { # DESTDIR PREFIX
	(
		unset MAKEFLAGS MAKELEVEL MFLAGS
		make -s install B="${ARENA_BUILD#"$PWD"/}" DESTDIR="$1" PREFIX="$2"
	) >"$work/install.log" 2>&1 || fail "make install: $(cat "$work/install.log")"
}

# A target to boot into that waits for nothing of the host and says when it is reached; and for the
# service: nothing of the host's boot, a log that can be read, a watchdog that bites soon.
write_test_units() { # DIRECTORY
	mkdir -p "$1/arenad.service.d" "$1/arenad.socket.d"
	cat >"$1/arenad-test.target" <<-END
		[Unit]
		DefaultDependencies=no
		AllowIsolate=yes
		Wants=arenad-test-ready.service
	END
	cat >"$1/arenad-test-ready.service" <<-END
		[Unit]
		DefaultDependencies=no
		[Service]
		Type=oneshot
		ExecStart=/bin/sh -c 'echo ready >$work/ready'
	END
	cat >"$1/arenad.service.d/test.conf" <<-END
		[Unit]
		DefaultDependencies=no
		[Service]
		StandardError=append:$daemon_log
		WatchdogSec=3
	END
	printf '[Unit]\nDefaultDependencies=no\n' >"$1/arenad.socket.d/test.conf"
}

# ---- starting it -------------------------------------------------------------------------------

make_cgroup() {
	local base
	base=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
	[ -n "$base" ] || skip "no cgroup2 is mounted"
	base=${base%/}$(sed -n 's/^0:://p' /proc/self/cgroup)
	cgroup=${base%/}/arenad-test-$$
	mkdir "$cgroup" 2>/dev/null || cgroup=
	[ -n "$cgroup" ] || skip "no cgroup can be made below $base"
}

# boot UNSHARE-OPTION...
boot() {
	local word=
	command -v unshare >/dev/null || skip "no unshare"
	[ -x /usr/lib/systemd/systemd ] || skip "no systemd is installed"
	make_cgroup
	mkfifo "$work/ready"
	# For both ends, so that nobody waits for the other to open it.
	exec 8<>"$work/ready"
	{
		echo 0 >"$cgroup/cgroup.procs" &&
			unshare --mount --propagation private "$@" \
				tests/lib_systemd_boot.bash "$mode" "$work" 8>&-
		echo "ended" >&8
	} >"$work/manager.log" 2>&1 &
	manager=$!
	read -r -t 60 -u 8 word
	exec 8>&-
	[ "$word" = ready ] || skip "systemd does not start here: ${word:-nothing heard in 60 s}"
}

children() {
	cat "/proc/$1/task/$1/children"
}

# What is laid into $work/install before boot_system is part of the system's files.
prepare_system() {
	mode=system
	[ "$(id -u)" -eq 0 ] || skip "needs root, to run systemd as the system's"
	mkdir "$work/root" "$work/install"
	keep_client=/usr/lib/arenad-test/keep_client
	install -D "$ARENA_BUILD/tests/keep_client" "$work/install$keep_client"
	write_test_units "$work/install/etc/systemd/system"
}

boot_system() {
	boot --pid --fork --cgroup
	# The subshell's child is unshare, whose child is process 1.
	inner=$(children "$(children "$manager" | cut -d' ' -f1)" | cut -d' ' -f1)
}

start_system() {
	prepare_system
	install_into "$work/install" /usr
	boot_system
}

# The unit up to what it may do: a user's systemd has no privilege to take any away.
start_user() {
	local units=$work/config/systemd/user
	mode=user
	mkdir -p "$work/data" "$units" && mkdir -m 700 "$work/run"
	install_into / "$work/prefix"
	write_test_units "$units"
	sed -e '/^# ---- what it may do/,/^\[Install\]/ { /^\[Install\]/!d }' \
		-e '/^User=/d' -e '/^Group=/d' -e '/^OOMScoreAdjust=/d' \
		"$work/prefix/lib/systemd/system/arenad.service" >"$units/arenad.service"
	sed -e 's|=/run/arenad/|=%t/arenad/|' -e '/^SocketUser=/d' -e '/^SocketGroup=/d' \
		"$work/prefix/lib/systemd/system/arenad.socket" >"$units/arenad.socket"
	if [ "$(id -u)" -eq 0 ]; then boot; else boot --user --map-root-user; fi
	inner=$(<"$work/pid")
	# shellcheck disable=SC2034 # the tests' to use
	keep_client=$ARENA_BUILD/tests/keep_client
}

inside() {
	if [ "$mode" = system ]; then
		nsenter -t "$inner" --mount --pid --cgroup --wd=/ env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
	else
		XDG_RUNTIME_DIR=$work/run PATH=$work/prefix/bin:$PATH "$@"
	fi
}

ctl() {
	if [ "$mode" = system ]; then inside systemctl "$@"; else inside systemctl --user "$@"; fi
}

prop() {
	ctl show arenad.service -p "$1" --value
}

# ---- a client ----------------------------------------------------------------------------------

client_start() { # COMMAND... that runs it
	local line=
	coproc CLIENT { inside "$@" 2>&1; }
	exec 5<&"${CLIENT[0]}" 6>&"${CLIENT[1]}"
	read -r -t 60 -u 5 line
	[ "$line" = open ] || fail "the client does not open: ${line:-nothing heard in 60 s}"
}

ask() { # LINE ANSWER
	local line=
	echo "$1" >&6
	read -r -t 60 -u 5 line
	[ "$line" = "$2" ] || fail "the client, asked to $1: ${line:-nothing heard in 60 s}"
}

client_end() {
	local status=0 pid=$CLIENT_PID
	echo quit >&6
	exec 5<&- 6>&-
	wait "$pid" || status=$?
	[ "$status" -eq 0 ] || fail "the client ended with $status"
}
