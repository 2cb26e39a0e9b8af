#!/bin/bash
# SPDX-License-Identifier: MIT
# arenactl against a daemon: the files that it gets and sets, JSON, exit statuses (see arenactl.sh, too).
set -u
# shellcheck source=tests/lib_daemon.bash
. "$(dirname "$0")/lib_daemon.bash"

export ARENAD_SOCKET=$socket
ctl=$bin/arenactl

# No daemon yet.
expect 1 "$ctl" ps
has "$err" "no daemon at $socket"
[ "$(wc -l <"$work/err")" -eq 1 ] || fail "more than one line: $err"
expect 1 "$ctl" --socket "$work" status

# Wrong usage.
expect 2 "$ctl"
expect 2 "$ctl" no-such-verb
expect 2 "$ctl" get
expect 2 "$ctl" get a b
expect 2 "$ctl" set proc/sys/vm/min_free_kbytes
expect 2 "$ctl" ps --json
expect 2 "$ctl" --no-such-option
expect 0 "$ctl" --help
has "$out" "host-setup"
expect 0 "$ctl" --version
has "$out" "^arenactl [0-9]+\.[0-9]+\.[0-9]+$"

start_daemon --nodes 2

# Some client was there.
"$bin/examples/hello" >"$work/hello" 2>&1 || fail "hello: $(cat "$work/hello")"

expect 0 "$ctl" status
for word in arena zone hugepages faults refills flushes; do
	grep -qi "$word" <<<"$out" || fail "status says nothing of $word: $out"
done
expect 0 "$ctl" status --json
if command -v python3 >/dev/null; then
	python3 -m json.tool <"$work/out" >/dev/null || fail "status --json: $out"
	python3 - "$work/out" <<-'END' || fail "status --json: $out"
		import json, sys
		def find(o, key):
		    if isinstance(o, dict):
		        return o.get(key) if key in o else next((v for v in (find(x, key) for x in o.values()) if v is not None), None)
		    if isinstance(o, list):
		        return next((v for v in (find(x, key) for x in o) if v is not None), None)
		s = json.load(open(sys.argv[1]))
		assert isinstance(s, dict)
		assert find(s, "arena_bytes") == 128 << 20
		assert 0 < find(s, "free_bytes") <= 128 << 20
	END
else
	[[ $out == \{*\} ]] || fail "status --json: $out"
fi

expect 0 "$ctl" get proc/meminfo
has "$out" '^MemTotal: +[0-9]+ kB$'
has "$out" '^MemFree: +[0-9]+ kB$'
[ "$(sed -n 1p <<<"$out" | cut -d: -f1)" = MemTotal ] || fail "the first line of meminfo"
expect 0 "$ctl" get /proc/meminfo
expect 0 "$ctl" get proc/buddyinfo
has "$out" '^Node 0, zone +(DMA|Normal|HighMem)( +[0-9]+){11} *$'
expect 0 "$ctl" get proc/zoneinfo
has "$out" '^Node 1, zone +HighMem$'
expect 0 "$ctl" get proc/pagetypeinfo
has "$out" 'Movable'
expect 0 "$ctl" get proc/vmstat
has "$out" '^nr_free_pages [0-9]+$'
expect 0 "$ctl" get sys/devices/system/node/node1/meminfo
has "$out" '^Node 1 MemTotal: +[0-9]+ kB$'
expect 0 "$ctl" get sys/kernel/debug/memblock/memory
has "$out" '^ +0: 0x[0-9a-f]{16}\.\.0x[0-9a-f]{16}'
expect 0 "$ctl" get sys/kernel/debug/memblock/reserved
expect 0 "$ctl" get sys/devices/system/node
has "$out" '^node0/?$'
has "$out" '^online$'
expect 1 "$ctl" get proc/nothing
has "$err" '^arenactl: proc/nothing: '
expect 1 "$ctl" get ../etc/passwd

expect 0 "$ctl" get proc/sys/vm/watermark_scale_factor
before=$out
expect 0 "$ctl" set proc/sys/vm/watermark_scale_factor 77
expect 0 "$ctl" get proc/sys/vm/watermark_scale_factor
[ "$out" = 77 ] || fail "set: $out"
expect 1 "$ctl" set proc/sys/vm/watermark_scale_factor 0
expect 1 "$ctl" set proc/sys/vm/watermark_scale_factor many
has "$err" 'many'
expect 1 "$ctl" set proc/meminfo 1
expect 0 "$ctl" get proc/sys/vm/watermark_scale_factor
[ "$out" = 77 ] || fail "a refused set changed it: $out"
expect 0 "$ctl" set proc/sys/vm/watermark_scale_factor "$before"

expect 0 "$ctl" ps
has "$out" 'PID|pid'
expect 0 "$ctl" segments
expect 1 "$ctl" maps 1
expect 1 "$ctl" maps no-number
expect 0 "$ctl" get sys/kernel/mm/arena/check
[ "$out" = ok ] || fail "check: $out"

# host-setup changes nothing with --check, and only below --root.
expect 0 "$ctl" host-setup --check
file=sys/kernel/mm/transparent_hugepage/shmem_enabled
mkdir -p "$work/root/$(dirname "$file")"
echo "always within_size advise [never] deny force" >"$work/root/$file"
expect 0 "$ctl" host-setup --check --root "$work/root"
has "$out" 'never'
grep -q '\[never\]' "$work/root/$file" || fail "--check changed something"
expect 0 "$ctl" host-setup --root "$work/root"
[ "$(cat "$work/root/$file")" = advise ] || fail "host-setup: $(cat "$work/root/$file")"
expect 1 "$ctl" host-setup --root "$work/nowhere"

stop_daemon
expect 1 "$ctl" ps
