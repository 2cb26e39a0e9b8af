#!/bin/bash
# SPDX-License-Identifier: MIT
#
# lib_systemd_boot.bash system|user WORK - becomes a systemd; lib_systemd.bash runs it in
# namespaces of its own, so that what is mounted here goes with it.
set -eu
mode=$1 work=$2

# The host's files, above them what was installed, in memory as all that is written.
make_root() {
	local r=$work/root/merged node
	mount -t tmpfs -o mode=755 tmpfs "$work/root"
	mkdir "$work"/root/{upper,work,merged}
	cp -a "$work/install/." "$work/root/upper"
	mount -t overlay overlay \
		-o "lowerdir=/,upperdir=$work/root/upper,workdir=$work/root/work" "$r"
	mount -t proc proc "$r/proc"
	mount -t sysfs -o ro sysfs "$r/sys"
	mount -t cgroup2 cgroup2 "$r/sys/fs/cgroup"
	mount -t tmpfs -o mode=755 tmpfs "$r/run"
	mount -t tmpfs -o mode=755 tmpfs "$r/dev"
	for node in null zero full random urandom tty userfaultfd; do
		[ ! -e "/dev/$node" ] || cp -a "/dev/$node" "$r/dev/$node"
	done
	mkdir "$r/dev/pts" "$r/dev/shm"
	mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$r/dev/pts"
	mount -t tmpfs -o mode=1777 tmpfs "$r/dev/shm"
	ln -s pts/ptmx "$r/dev/ptmx"
	ln -s /proc/self/fd "$r/dev/fd"
	mkdir -p "$r$work"
	mount --bind "$work" "$r$work"
	cd "$r"
	mkdir -p "$work/root/merged/.host"
	pivot_root . .host
	cd /
	umount -l /.host
}

case $mode in
system)
	make_root
	systemd-sysusers
	systemd-tmpfiles --create --prefix=/run
	# As udev's rule has it.
	if [ -e /dev/userfaultfd ] && getent group arena >/dev/null; then
		chgrp arena /dev/userfaultfd
		chmod 0660 /dev/userfaultfd
	fi
	exec env -i container=arenad-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		/lib/systemd/systemd --system --unit=arenad-test.target --show-status=no --log-target=null
	;;
user)
	# It starts where systemd is the init system, and looks here to know.
	if [ ! -d /run/systemd/system ]; then
		mount -t tmpfs -o mode=755 tmpfs /run
		mkdir -p /run/systemd/system
	fi
	echo $$ >"$work/pid"
	unset DBUS_SESSION_BUS_ADDRESS NOTIFY_SOCKET LISTEN_FDS LISTEN_PID
	export XDG_RUNTIME_DIR=$work/run XDG_CONFIG_HOME=$work/config XDG_DATA_HOME=$work/data
	exec /usr/lib/systemd/systemd --user --unit=arenad-test.target --log-target=console
	;;
esac
