#!/bin/bash
# SPDX-License-Identifier: MIT
#
# service_files.sh - what make install lays down for the service: paths follow PREFIX, systemd finds no
# mistake in the units, the unit is as hardened as it was, its numbers fit the daemon's limits; users and
# directories are made; a configuration that was changed survives; nothing else is left.
set -u

: "${ARENA_BUILD:?is set by make}"
dir=$(mktemp -d "${TMPDIR:-/tmp}/service-files.XXXXXX")
trap 'rm -rf "$dir"' EXIT

fail() {
	echo "FAIL: $*"
	exit 1
}

case $ARENA_BUILD in
*san-*)
	echo "installed files are tested without sanitizers"
	exit 77
	;;
esac
build=${ARENA_BUILD#"$PWD"/}
unset MAKEFLAGS MAKELEVEL MFLAGS

into() { # install|uninstall DESTDIR PREFIX
	make -s "$1" B="$build" DESTDIR="$2" PREFIX="$3" >"$dir/log" 2>&1 || fail "make $1: $(cat "$dir/log")"
}

line() { # FILE LINE
	grep -Fxq -- "$2" "$1" || fail "no line '$2' in $1"
}

number() { # KEY: its number in the unit
	sed -n "s/^$1=\\([0-9]*\\)\$/\\1/p" systemd/arenad.service | tail -n 1
}

define() { # FILE NAME
	sed -n "s/^#define $2 \\([0-9]*\\)u*.*/\\1/p" "$1"
}

# ---- paths ----
into install "$dir/root" /usr
into install "$dir/root" /opt/arena
usr=$dir/root/usr opt=$dir/root/opt/arena
line "$usr/lib/systemd/system/arenad.service" \
	'ExecStart=/usr/bin/arenad --no-supervisor --config /etc/arenad/arenad.conf'
line "$opt/lib/systemd/system/arenad.service" \
	'ExecStart=/opt/arena/bin/arenad --no-supervisor --config /opt/arena/etc/arenad/arenad.conf'
for file in etc/arenad/arenad.conf usr/lib/systemd/system/arenad.socket usr/lib/sysusers.d/arenad.conf \
	usr/lib/tmpfiles.d/arenad.conf usr/lib/sysctl.d/60-arenad.conf usr/lib/udev/rules.d/60-arenad.rules \
	usr/share/man/man8/arenad.8 usr/share/man/man1/arenactl.1 usr/share/man/man5/arenad.conf.5 \
	opt/arena/etc/arenad/arenad.conf opt/arena/lib/pkgconfig/libarena.pc; do
	test -s "$dir/root/$file" || fail "$file is missing"
done
if grep -rl '@[A-Z]*@' "$usr/share/man" "$usr/lib/systemd"; then
	fail "placeholders"
fi
"$opt/bin/arenactl" --version >/dev/null || fail "the installed arenactl does not find its library"

# ---- what is read by others than systemd ----
grep -q '^[^#]' "$usr/lib/sysctl.d/60-arenad.conf" && fail "a sysctl would be set"
line "$usr/lib/tmpfiles.d/arenad.conf" 'w /sys/kernel/mm/transparent_hugepage/shmem_enabled - - - - advise'
grep -q '^SUBSYSTEM=="misc", KERNEL=="userfaultfd",.*GROUP="arena", MODE="0660"$' \
	"$usr/lib/udev/rules.d/60-arenad.rules" || fail "udev rule"

# ---- limits: descriptors kept for each client, one for each domain, the state, the listener ----
peers=$(define daemon/service/internal.h SERVICE_MAX_PEERS)
domains=$(define daemon/phys/state.h STATE_MAX_DOMAINS)
needed=$((6 * peers + domains + 2))
test "$needed" -gt 16386 || fail "limits not found: '$peers', '$domains'"
test "$(number FileDescriptorStoreMax)" -ge "$needed" || fail "FileDescriptorStoreMax below $needed"
test "$(number LimitNOFILE)" -ge $((2 * needed)) || fail "LimitNOFILE below $((2 * needed))"

# ---- every directive has its reason: a comment above it or above its group ----
awk '/^\[/ { said = 0 } /^#/ { said = 1 } /^$/ { said = 0 } /^[A-Z]/ && !said && section == "[Service]" { print; bad = 1 }
	/^\[/ { section = $0 } END { exit bad }' systemd/arenad.service || fail "no reason is given"

# ---- systemd's own opinion ----
if command -v systemd-analyze >/dev/null; then
	into install / "$dir/here"
	units=$dir/here/lib/systemd/system
	out=$(SYSTEMD_UNIT_PATH=$units: MANPATH=$dir/here/share/man \
		systemd-analyze verify "$units/arenad.service" "$units/arenad.socket" 2>&1) ||
		fail "systemd-analyze verify: $out"
	test -z "$out" || fail "systemd-analyze verify: $out"
	for unit in systemd/arenad.service "$units/arenad.service"; do
		out=$(systemd-analyze security --offline=true --threshold=13 "$unit" 2>&1) ||
			fail "systemd-analyze security $unit: $out"
	done
	grep Overall <<<"$out"
	into uninstall / "$dir/here"
	left=$(find "$dir/here" ! -type d -o -path '*arena*' ! -path "$dir/here")
	test -z "$left" || fail "left behind: $left"
fi

# ---- user, group, directory ----
if command -v systemd-sysusers >/dev/null && command -v systemd-tmpfiles >/dev/null; then
	mkdir -p "$dir/root/etc" "$dir/root/run"
	systemd-sysusers --root="$dir/root" >"$dir/log" 2>&1 || fail "systemd-sysusers: $(cat "$dir/log")"
	gid=$(sed -n 's/^arena:[^:]*:\([0-9]*\):.*/\1/p' "$dir/root/etc/group")
	grep -Eq "^arenad:[^:]*:[0-9]+:$gid:.*:/usr/sbin/nologin\$" "$dir/root/etc/passwd" ||
		fail "arenad's user: $(cat "$dir/root/etc/passwd" "$dir/root/etc/group")"
	if [ "$(id -u)" -eq 0 ]; then
		systemd-tmpfiles --root="$dir/root" --create --prefix=/run >"$dir/log" 2>&1 ||
			fail "systemd-tmpfiles: $(cat "$dir/log")"
		found=$(stat -c '%a %g' "$dir/root/run/arenad")
		test "$found" = "755 $gid" || fail "/run/arenad: $found"
	fi
	rm -rf "$dir"/root/{etc/passwd,etc/group,etc/shadow,etc/gshadow,etc/.pwd.lock,run} "$dir"/root/etc/*-
fi

# ---- a changed configuration stays, one as it was shipped goes ----
echo 'nodes = 3' >>"$dir/root/etc/arenad/arenad.conf"
into install "$dir/root" /usr
into uninstall "$dir/root" /usr
grep -q '^nodes = 3$' "$dir/root/etc/arenad/arenad.conf" || fail "a changed configuration is gone"
rm -r "$dir/root/etc/arenad"
into uninstall "$dir/root" /opt/arena
left=$(find "$dir/root" -mindepth 1 ! -path "$dir/root/etc")
test -z "$left" || fail "left behind: $left"
echo "installed for two prefixes, looked at, uninstalled"
