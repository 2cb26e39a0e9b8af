#!/bin/bash
# SPDX-License-Identifier: MIT
#
# examples.sh - make run's script with files that are hard to count, and the smallest program.
set -u

: "${ARENA_BUILD:?is set by make}"
dir=$(mktemp -d "${TMPDIR:-/tmp}/examples-test.XXXXXX")
daemon=
failures=0

cleanup() {
	test -z "$daemon" || { kill "$daemon" && wait "$daemon"; } 2>/dev/null
	rm -rf "$dir"
}
trap cleanup EXIT

fail() {
	echo "FAIL: $*"
	failures=$((failures + 1))
}

# Bytes of all kinds, nothing, no newline at the end, one word longer than several pieces, words
# of unprintable bytes only.
head -c 3000000 /dev/urandom >"$dir/random"
: >"$dir/empty"
printf 'one two' >"$dir/short"
head -c 900000 /dev/zero | tr '\0' x >"$dir/long"
printf 'a\001\002 \001 \200 \302\240 b\vc\rd\fe' >"$dir/odd"
files="$dir/random $dir/empty $dir/short $dir/long $dir/odd"
# shellcheck disable=SC2086 # a list
words=$(LC_ALL=C wc -w $files | sed -n 's/ *\([0-9]*\) total/\1/p')

out=$(FILES=$files ARENA_SIZE=256M ARENA_WORKERS=5 build-aux/run.sh 2>&1) || fail "run.sh: $out"
echo "$out" | grep -q "^  words  *$words " || fail "not $words words: $out"
echo "$out" | grep -q "^  wc -w  *$words " || fail "not $words words by wc: $out"
echo "$out" | grep -q "^  workers  *5 " || fail "not 5 workers: $out"
echo "$out" | grep -q "All went well" || fail "no happy end: $out"

if FILES=$dir/none ARENA_SIZE=64M build-aux/run.sh >/dev/null 2>"$dir/err"; then
	fail "run.sh succeeds with a file that is not there"
fi
grep -q "wordcount: $dir/none: No such file" "$dir/err" || fail "$(cat "$dir/err")"

export ARENAD_SOCKET=$dir/socket
"$ARENA_BUILD/bin/arenad" --nodes 1 --arena-size 64M --mount none 2>"$dir/log" &
daemon=$!
for _ in $(seq 100); do
	"$ARENA_BUILD/bin/arenactl" status >/dev/null 2>&1 && break
	kill -0 "$daemon" 2>/dev/null || break
	sleep 0.1
done
out=$("$ARENA_BUILD/bin/examples/hello") || fail "hello: status $?"
case $out in
"hello from the arena: address 0x"*", frame "[0-9]*) ;;
*) fail "hello: $out" ;;
esac
# What does not fit is refused, and nothing is left behind.
head -c 80000000 /dev/zero | tr '\0' '\n' >"$dir/large"
"$ARENA_BUILD/bin/examples/wordcount" "$dir/large" >/dev/null 2>"$dir/err" &&
	fail "80 MB in an arena of 64 MiB"
test "$("$ARENA_BUILD/bin/arenactl" segments | wc -l)" -eq 1 || fail "a segment is left"
kill "$daemon"
wait "$daemon" || fail "the daemon ended with status $?"
daemon=

test "$failures" -eq 0 && echo "all right"
