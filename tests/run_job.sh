#!/bin/bash
# SPDX-License-Identifier: MIT
# The main job, as `make run` does it, on files of our own: its total is that of wc -w.
set -u
: "${ARENA_BUILD:=build}"
export ARENA_BUILD
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/arena-test.XXXXXX")
trap 'rm -rf "$work"' EXIT

fail() {
	echo "failed: $*"
	exit 1
}

# run NAME FILE...: the job over these files; its words are left in $words, wc's in $wc.
run() {
	local name=$1
	shift
	FILES=$* ARENA_SIZE=256M ARENA_WORKERS=3 TMPDIR=$work timeout 100 \
		"$here/build-aux/run.sh" >"$work/out" 2>"$work/err" ||
		fail "$name: status $?: $(cat "$work/out" "$work/err")"
	words=$(sed -n 's/^ *words  *\([0-9][0-9]*\) .*/\1/p' "$work/out")
	wc=$(cat -- "$@" | LC_ALL=C wc -w)
	[ "$words" = "$((wc))" ] || fail "$name: $words words, wc says $wc: $(cat "$work/out")"
	grep -q "^ *wc -w  *$words .*the same" "$work/out" || fail "$name: no comparison"
	grep -q '^arena  *256 MiB' "$work/out" || fail "$name: no status"
	grep -q '^segments  *0' "$work/out" || fail "$name: a segment is left"
	grep -q '^clients  *0' "$work/out" || fail "$name: a client is left"
	[ "$(find "$work" -name 'arenad-run.*' | wc -l)" -eq 0 ] || fail "$name: files are left"
}

# Each file ends with white space, so that cat makes no word of two.
printf 'one two  three\n' >"$work/small"
: >"$work/empty"
printf ' \t\r\n\f\v \n' >"$work/blank"
seq 1 200000 >"$work/numbers"
head -c 300000 /dev/zero | tr '\0' x >"$work/long_word"
echo >>"$work/long_word"
head -c 2000000 /dev/urandom >"$work/random"
echo >>"$work/random"

run small "$work/small"
[ "$words" -eq 3 ] || fail "three words, not $words"
run empty "$work/small" "$work/empty" "$work/blank"
run numbers "$work/numbers"
[ "$words" -eq 200000 ] || fail "200000 words, not $words"
run all "$work/small" "$work/empty" "$work/blank" "$work/numbers" "$work/long_word" "$work/random"

# A job that fails says so, and leaves nothing behind, either.
if FILES=$work/missing TMPDIR=$work timeout 60 "$here/build-aux/run.sh" >"$work/out" 2>&1; then
	fail "a missing file is no failure: $(cat "$work/out")"
fi
grep -q missing "$work/out" || fail "nothing about the missing file: $(cat "$work/out")"
[ "$(find "$work" -name 'arenad-run.*' | wc -l)" -eq 0 ] || fail "files are left"
