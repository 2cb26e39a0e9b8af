#!/bin/bash
# SPDX-License-Identifier: MIT
#
# arenactl.sh - every verb, its exit status and what it says when refused, against a daemon of its own;
# host-setup on a made-up system.
set -u

: "${ARENA_BUILD:?is set by make}"
arenad=$ARENA_BUILD/bin/arenad
arenactl=$ARENA_BUILD/bin/arenactl
dir=$(mktemp -d "${TMPDIR:-/tmp}/arenactl-test.XXXXXX")
socket=$dir/socket
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

# expect STATUS ARGUMENT...: what it prints is in $out and $err
expect() {
	local want=$1 got
	shift
	"$arenactl" "$@" >"$dir/out" 2>"$dir/err" </dev/null
	got=$?
	out=$(cat "$dir/out")
	err=$(cat "$dir/err")
	test "$got" -eq "$want" || fail "arenactl $*: status $got, not $want: $err"
	case $want in
	0) test -z "$err" || fail "arenactl $*: $err" ;;
	1) test "$(wc -l <"$dir/err")" -eq 1 || fail "arenactl $*: not one line: $err" ;;
	esac
}

says() { # TEXT PATTERN
	# shellcheck disable=SC2254 # a pattern on purpose
	case $1 in
	*$2*) ;;
	*) fail "no '$2' in: $1" ;;
	esac
}

# ---- usage, no daemon ----

expect 0 --version
says "$out" "arenactl "
expect 0 --help
for verb in status get set ps maps segments check run upgrade host-setup; do
	says "$out" "  $verb "
done
expect 2
expect 2 no-such-verb
says "$err" "no-such-verb"
expect 2 get
expect 2 get a b
expect 2 set a
expect 2 --no-such-option status
expect 2 ps --json
expect 2 maps 1 2 3 4 5 6
expect 1 --socket "$socket" status
says "$err" "$socket"
says "$err" "arenad --socket"
expect 1 --socket "" status
ARENAD_SOCKET=$dir/other expect 1 status
says "$err" "$dir/other"

# ---- a daemon ----

"$arenad" --socket "$socket" --nodes 2 --arena-size 64M --mount none 2>"$dir/log" &
daemon=$!
for _ in $(seq 100); do
	"$arenactl" --socket "$socket" status >/dev/null 2>&1 && break
	kill -0 "$daemon" 2>/dev/null || break
	sleep 0.1
done
export ARENAD_SOCKET=$socket

expect 0 status
says "$out" "arena                    64 MiB"
says "$out" "HighMem"
expect 0 status --json
if command -v python3 >/dev/null; then
	python3 - "$dir/out" <<-END || fail "status --json: $out"
		import json, sys
		text = open(sys.argv[1]).read()
		status = json.loads(text)
		assert text.count("\n") == 1
		assert status["arena_bytes"] == 64 << 20
		assert status["pid"] == $daemon
		assert status["supervisor_pid"] == $daemon
		assert status["worker_pid"] not in (0, $daemon)
		assert status["epoch"] == 0
		assert status["hugepages"] in ("on", "off")
		assert [n["id"] for n in status["node"]] == [0, 1]
		for node in status["node"]:
		    assert [z["name"] for z in node["zone"]] == ["DMA", "Normal", "HighMem"]
		    assert sum(z["total_bytes"] for z in node["zone"]) == node["total_bytes"]
		assert sum(n["total_bytes"] for n in status["node"]) == status["total_bytes"]
	END
fi
expect 0 get proc/meminfo
says "$out" "MemTotal:          65536 kB"
expect 0 get /proc/sys/vm/watermark_scale_factor
test "$out" = 10 || fail "watermark_scale_factor: $out"
expect 0 get sys/devices/system/node
says "$out" "node1/"
expect 1 get proc/nonsense
says "$err" "proc/nonsense: No such file"
expect 0 set proc/sys/vm/watermark_scale_factor 20
expect 0 get proc/sys/vm/watermark_scale_factor
test "$out" = 20 || fail "watermark_scale_factor: $out"
expect 1 set proc/sys/vm/watermark_scale_factor 0
says "$err" "Invalid argument"
expect 1 set proc/meminfo 1
says "$err" "Permission denied"
expect 0 --socket "$socket" ps
test "$(echo "$out" | wc -l)" -eq 1 || fail "ps: arenactl itself is no client: $out"
expect 0 segments
says "$out" "name"
expect 1 maps 999999999
expect 1 maps x
says "$err" "not a process id"
expect 0 check
test "$out" = ok || fail "check: $out"
expect 2 check --binary /bin/true
if test -w /dev/full; then
	"$arenactl" status >/dev/full 2>"$dir/err"
	test $? -eq 1 || fail "a full disk is no success"
	says "$(cat "$dir/err")" "cannot write"
fi
kill "$daemon"
wait "$daemon" || fail "the daemon ended with status $?"
daemon=

# ---- host-setup ----

thp=$dir/root/sys/kernel/mm/transparent_hugepage
mkdir -p "$thp" "$dir/root/proc/sys/vm"
echo 65530 >"$dir/root/proc/sys/vm/max_map_count"
for now in never deny; do
	echo "always within_size advise [$now] force" >"$thp/shmem_enabled"
	expect 0 host-setup --root "$dir/root" --check
	says "$out" "shmem_enabled is $now"
	says "$out" "sudo $arenactl host-setup"
	grep -q "\[$now\]" "$thp/shmem_enabled" || fail "--check changed it"
	expect 0 host-setup --root "$dir/root"
	says "$out" "was $now, is now advise"
	says "$out" "65530"
	test "$(cat "$thp/shmem_enabled")" = advise || fail "not set: $(cat "$thp/shmem_enabled")"
done
for now in always within_size advise force; do
	echo "x [$now] y" >"$thp/shmem_enabled"
	expect 0 host-setup --root "$dir/root"
	says "$out" "is $now"
	test "$(cat "$thp/shmem_enabled")" = "x [$now] y" || fail "$now was changed"
done
expect 1 host-setup --root "$dir/nowhere"
if test "$(id -u)" -ne 0; then
	expect 1 host-setup
	says "$err" "sudo $arenactl host-setup"
fi

test "$failures" -eq 0 && echo "all right"
