#!/bin/bash
# SPDX-License-Identifier: MIT
#
# install.sh - make install into a directory; the README's program, as printed there, compiles against
# what was installed and runs; the header is fit for C++; make uninstall leaves nothing.
set -u

: "${ARENA_BUILD:?is set by make}"
dir=$(mktemp -d "${TMPDIR:-/tmp}/install-test.XXXXXX")
daemon=

cleanup() {
	test -z "$daemon" || { kill "$daemon" && wait "$daemon"; } 2>/dev/null
	rm -rf "$dir"
}
trap cleanup EXIT

fail() {
	echo "FAIL: $*"
	exit 1
}

# A sanitizer's runtime would have to be linked into the program too.
case $ARENA_BUILD in
*san-*)
	echo "installed files are tested without sanitizers"
	exit 77
	;;
esac

build=${ARENA_BUILD#"$PWD"/}
unset MAKEFLAGS MAKELEVEL MFLAGS
make -s install B="$build" DESTDIR="$dir/root" PREFIX=/opt/arena >"$dir/log" 2>&1 ||
	fail "make install: $(cat "$dir/log")"
lib=$dir/root/opt/arena/lib
export PKG_CONFIG_PATH=$lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$dir/root
flags=$(pkg-config --cflags --libs libarena) || fail "pkg-config"

# ---- the library's name and what it shows ----
version=$(sed -n 's/^VERSION := //p' Makefile)
[ "$(pkg-config --modversion libarena)" = "$version" ] || fail "libarena.pc is not of version $version"
readelf -d "$lib/libarena.so" | grep -q 'SONAME.*\[libarena.so.0\]' || fail "soname"
[ "$(readlink "$lib/libarena.so")" = libarena.so.0 ] && [ "$(readlink "$lib/libarena.so.0")" = "libarena.so.$version" ] ||
	fail "links of the library"
nm -D --defined-only "$lib/libarena.so" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort >"$dir/shown"
sed -n '/^global:/,/^}/ s/^[[:space:]]\([a-z0-9_]*\);$/\1/p' libclient/arena.map | sort >"$dir/mapped"
sed -n 's/^[a-z].*[ *]\(arena_[a-z0-9_]*\)(.*/\1/p' include/arena/arena.h | sort >"$dir/declared"
diff "$dir/mapped" "$dir/shown" || fail "the library shows something else than libclient/arena.map"
diff "$dir/declared" <(grep '^arena_' "$dir/shown") || fail "the library shows something else than arena.h declares"

# shellcheck disable=SC2016 # backquotes
sed -n '/^```c$/,/^```$/p' README.md | sed '1d;$d' >"$dir/readme.c"
cmp -s <(tail -n +3 examples/hello.c) "$dir/readme.c" || fail "the README's program is not examples/hello.c"
# shellcheck disable=SC2086 # flags are a list
cc -Wall -Wextra -Werror "$dir/readme.c" $flags -Wl,-rpath,"$lib" -o "$dir/readme" || fail "README's program"
echo '#include <arena/arena.h>
int main() { return arena_open(nullptr, nullptr) == 0; }' >"$dir/plus.cc"
if command -v c++ >/dev/null; then
	# shellcheck disable=SC2086
	c++ -Wall -Wextra -Werror -pedantic "$dir/plus.cc" $flags -Wl,-rpath,"$lib" -o "$dir/plus" || fail "C++"
	"$dir/plus" || fail "arena_open(NULL, NULL) succeeds"
fi
# shellcheck disable=SC2086
cc -Wall -Werror "$dir/readme.c" -I"$dir/root/opt/arena/include" "$lib/libarena.a" \
	-lprotobuf-c -lpthread -o "$dir/static" || fail "the README's program against libarena.a"

export ARENAD_SOCKET=$dir/socket
mkfifo "$dir/ready"
"$dir/root/opt/arena/bin/arenad" --arena-size 64M 2>"$dir/ready" &
daemon=$!
exec 3<"$dir/ready"
while read -r line <&3; do
	case $line in *"ready at"*) break ;; esac
done
for program in readme static; do
	out=$("$dir/$program") || fail "$program: status $?"
	case $out in
	"hello from the arena: address 0x"*", frame "[0-9]*) ;;
	*) fail "$program: $out" ;;
	esac
done
"$dir/root/opt/arena/bin/arenactl" status >/dev/null || fail "installed arenactl"
"$dir/root/opt/arena/bin/arenactl" run --strict -v --trap signal -- /bin/true 2>"$dir/run" || fail "arenactl run: $(cat "$dir/run")"
grep -q '^arena: true.* faults=[1-9]' "$dir/run" || fail "a program was not served: $(cat "$dir/run")"
kill "$daemon"
wait "$daemon" || fail "arenad ended with $?"
daemon=

make -s uninstall B="$build" DESTDIR="$dir/root" PREFIX=/opt/arena >"$dir/log" 2>&1 || fail "make uninstall"
left=$(find "$dir/root" ! -type d)
test -z "$left" || fail "left behind: $left"
echo "installed, used, uninstalled"
