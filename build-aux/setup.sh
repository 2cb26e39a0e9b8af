#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Is what the build needs installed? As root, installs what is missing; else prints the command
# that does. Usage: setup.sh [lint] [fuzz] [debian] [programs]. Called before every build, so it looks at tools and
# files only and is quick when all is there.
set -eu

missing=

tool() { # COMMAND PACKAGE
	command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

header() { # FILE PACKAGE
	test -e "/usr/include/$1" || missing="$missing $2"
}

library() { # PKG-CONFIG-NAME PACKAGE
	pkg-config --exists "$1" 2>/dev/null || missing="$missing $2"
}

tool gcc gcc
tool make make
tool pkg-config pkg-config
tool protoc-c protobuf-c-compiler
header stdio.h libc6-dev
header uthash.h uthash-dev
header jemalloc/jemalloc.h libjemalloc-dev
if ! pkg-config --exists libevent libprotobuf-c numa cmocka libbsd inih 2>/dev/null; then
	library libevent libevent-dev
	library libprotobuf-c libprotobuf-c-dev
	library numa libnuma-dev
	library cmocka libcmocka-dev
	library libbsd libbsd-dev
	library inih libinih-dev
fi

for extra in "$@"; do
	case $extra in
	lint)
		tool clang-format clang-format
		tool cppcheck cppcheck
		tool shellcheck shellcheck
		;;
	fuzz)
		tool clang clang
		set -- /usr/lib/llvm-14/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a
		test -e "$1" || missing="$missing libclang-rt-14-dev"
		;;
	debian)
		tool dpkg-buildpackage dpkg-dev
		tool dh debhelper
		;;
	programs)
		PATH=$PATH:/usr/sbin:$(echo /usr/lib/postgresql/*/bin)
		tool memtester memtester
		tool python3 python3
		tool sqlite3 sqlite3
		tool git git
		tool redis-server redis-server
		tool memcached memcached
		tool stress-ng stress-ng
		tool initdb postgresql
		test -e /usr/lib/python3.11/test/test_mmap.py || missing="$missing libpython3.11-testsuite"
		;;
	*)
		echo "usage: setup.sh [lint] [fuzz] [debian] [programs]" >&2
		exit 2
		;;
	esac
done

test -n "$missing" || exit 0

missing=${missing# }
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
	echo "setup: installing $missing"
	export DEBIAN_FRONTEND=noninteractive
	# Tests that run side by side may each want something.
	exec 9>"${TMPDIR:-/tmp}/arenad-setup.lock"
	flock 9
	apt-get -qq update 9>&-
	# shellcheck disable=SC2086 # a list of packages
	apt-get -qq install -y --no-install-recommends $missing 9>&-
else
	echo "setup: missing packages; install them with" >&2
	echo "    sudo apt-get install $missing" >&2
	exit 1
fi
