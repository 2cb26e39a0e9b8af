#!/bin/bash
# SPDX-License-Identifier: MIT
#
# debian.sh [full] - builds the Debian packages and uses them: unpacked into a directory, the example
# compiles against them and runs; installed where a systemd is process 1, the service works and is
# upgraded and purged under a client.
#
# Without `full` the packages hold what make built already; with it (make soak) everything is compiled as
# Debian compiles it, the unit tests run, and lintian looks at the packages, if it is installed.
set -u
cd "$(dirname "$0")/.." || exit

. tests/lib_systemd.bash
. tests/lib_systemd_scenario.bash

command -v dpkg-deb >/dev/null || skip "no dpkg here"
build-aux/setup.sh debian >"$work/setup.log" 2>&1 || skip "no debhelper: $(tail -n 1 "$work/setup.log")"

# ---- building ----------------------------------------------------------------------------------

src=$work/deb/src
mkdir -p "$src"
if ! git ls-files -z --cached --others --exclude-standard >"$work/files" 2>/dev/null; then
	find . -path ./build -prune -o -path ./.git -prune -o -type f -print0 >"$work/files"
fi
tar -c --null -T "$work/files" --ignore-failed-read 2>/dev/null | tar -x -C "$src"
version=$(sed -n 's/^VERSION := //p' Makefile)
[ "$(dpkg-parsechangelog -l debian/changelog -S Version)" = "$version" ] ||
	fail "debian/changelog is not about version $version"

# What a build needs is in both lists; a compiler and make are there in any build of Debian's.
needed=$(sed -n '/^for extra/q; s/^[[:space:]]*\(tool\|header\|library\) [^ ]* \([a-z0-9-]*\)$/\2/p' build-aux/setup.sh |
	grep -vx 'gcc\|make\|libc6-dev' | sort)
given=$(sed -n '/^Build-Depends/,/^[A-Z]/ s/^ \([a-z0-9-]*\).*/\1/p' debian/control | grep -v '^dh-' | sort)
[ "$needed" = "$given" ] || fail "debian/control does not build-depend on what build-aux/setup.sh installs:
$(diff <(echo "$needed") <(echo "$given"))"

unset MAKEFLAGS MAKELEVEL MFLAGS
if [ "${1:-}" = full ]; then
	profile=()
	export DEB_BUILD_OPTIONS="parallel=2"
else
	ln -s "$PWD/build" "$src/build"
	profile=(-Ppkg.arenad.prebuilt -nc)
	export ARENA_PREBUILT=${ARENA_BUILD#"$PWD"/} DEB_BUILD_OPTIONS="nocheck noautodbgsym nostrip"
fi
(cd "$src" && dpkg-buildpackage -us -uc -b "${profile[@]}") >"$work/deb/log" 2>&1 ||
	fail "dpkg-buildpackage: $(tail -n 40 "$work/deb/log")"
if grep 'dpkg-gensymbols: warning\|dh_missing: warning' "$work/deb/log"; then
	fail "warnings"
fi
packages=()
for name in arenad libarena0 libarena-dev; do
	packages+=("$work/deb/${name}_${version}_$(dpkg --print-architecture).deb")
done
ls -l "${packages[@]}" || fail "packages are missing"
if [ "${1:-}" = full ] && command -v lintian >/dev/null; then
	lintian --allow-root --fail-on error "${packages[@]}" || fail "lintian"
fi

# ---- unpacked ----------------------------------------------------------------------------------

root=$work/unpacked
for package in "${packages[@]}"; do
	dpkg -x "$package" "$root"
done
lib=$root/usr/lib/$(dpkg-architecture -q DEB_HOST_MULTIARCH)
readelf -d "$root/usr/bin/arenactl" | grep -E 'RPATH|RUNPATH' && fail "arenactl has a path of its own"
export PKG_CONFIG_LIBDIR=$lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root
flags=$(pkg-config --cflags --libs libarena) || fail "pkg-config"
# shellcheck disable=SC2086 # flags are a list
cc -Wall -Wextra -Werror examples/hello.c $flags -o "$work/hello" || fail "hello.c"

mkfifo "$work/log"
exec 3<>"$work/log"
export ARENAD_SOCKET=$work/socket LD_LIBRARY_PATH=$lib
"$root/usr/bin/arenad" --config "$root/etc/arenad/arenad.conf" --arena-size 64M 2>"$work/log" &
daemon=$!
while read -r -t 30 -u 3 line; do
	case $line in *'ready at'*) break ;; esac
done
"$work/hello" || fail "hello from the unpacked package"
"$root/usr/bin/arenactl" status >/dev/null || fail "arenactl status"
"$root/usr/bin/arenactl" run --strict -v --trap signal -- /bin/true 2>"$work/run" || fail "arenactl run: $(<"$work/run")"
grep -q '^arena: true.* faults=[1-9]' "$work/run" || fail "a program was not served: $(<"$work/run")"
kill "$daemon"
wait "$daemon" || fail "arenad ended with $?"
unset ARENAD_SOCKET LD_LIBRARY_PATH

# ---- installed ---------------------------------------------------------------------------------

if [ "$(id -u)" -ne 0 ]; then
	echo "packages were built and used; as root they would be installed below a systemd too"
	exit 0
fi
prepare_system
boot_system
# A host may have said that packages start nothing; this is about what they start.
inside rm -f /usr/sbin/policy-rc.d
inside env DEBIAN_FRONTEND=noninteractive dpkg --install --no-triggers "${packages[@]}" >"$work/dpkg.log" 2>&1 ||
	fail "dpkg --install: $(<"$work/dpkg.log")"
[ "$(ctl is-enabled arenad.socket)" = enabled ] || fail "arenad.socket is not enabled"
[ "$(ctl is-active arenad.socket)" = active ] || fail "arenad.socket is not active"
client_start setpriv --reuid=nobody --regid=arena --clear-groups "$keep_client"
ask check "ok 1"

worker=$(prop MainPID)
inside env DEBIAN_FRONTEND=noninteractive dpkg --install --no-triggers "${packages[@]}" >"$work/dpkg.log" 2>&1 ||
	fail "dpkg --install once more: $(<"$work/dpkg.log")"
await_other_worker "an upgrade"
ask check "ok 2"
client_end

inside dpkg --purge --no-triggers arenad libarena-dev libarena0 >"$work/dpkg.log" 2>&1 ||
	fail "dpkg --purge: $(<"$work/dpkg.log")"
[ "$(ctl is-active arenad.socket)" != active ] || fail "the socket outlives its package"
left=$(inside find /etc/arenad /etc/systemd/system /lib/systemd/system -name 'arenad.*' ! -name '*.d' 2>/dev/null)
[ -z "$left" ] || fail "left after purge: $left"
echo "packages built, unpacked, installed, upgraded, purged"
