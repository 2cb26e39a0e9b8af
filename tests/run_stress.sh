#!/bin/bash
# SPDX-License-Identifier: MIT
#
# run_stress.sh [full] - stress-ng's memory stressors verify what they wrote. Each is served.
set -u
cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash
need stress-ng
start_arena
times=1
[ "${1:-}" = full ] && times=50

# stress BYTES FAULTS OPTION...: served at least so much
stress() {
	local bytes=$1 faults=$2
	shift 2
	: >"$report"
	(cd "$work" && on_arena --shared --min-size 4K -- timeout 200 stress-ng --verify --timeout 120 "$@") \
		>"$work/out" 2>&1 || fail "stress-ng $*: $(grep -v debug "$work/out" | tail -n 20)"
	# A child that died and was begun anew is no failure to stress-ng.
	grep -E 'fail:|died|killed' "$work/out" && fail "stress-ng $*"
	echo "stress-ng $*"
	served stress-ng "$bytes" "$faults"
}

stress 64000000 20 --vm 1 --vm-bytes 32m --vm-method all --vm-ops $((times * 300))
stress 16000000 20 --mmap 1 --mmap-bytes 8m --mmap-ops $((times * 2))
stress 10000000 20 --madvise 1 --madvise-ops "$times"
stress 10000000 20 --mlock 1 --mlock-ops $((times * 20))
stress 10000000 20 --brk 1 --brk-ops $((times * 1000))
stress 100000000 50 --bigheap 1 --bigheap-growth 64k --bigheap-ops $((times * 600))
stress 10000000 20 --shm 1 --shm-bytes 8m --shm-objs 8 --shm-ops $((times * 4))
# Who attaches them is killed and says nothing; the children that it has forked meanwhile have them, too.
has "$(<"$report")" ' peak=[4-9][0-9]{7} '
stress 10000000 20 --shm-sysv 1 --shm-sysv-bytes 8m --shm-sysv-segs 4 --shm-sysv-ops $((times * 4))
[ "$(sum_of stress-ng shared)" -gt 30000000 ] || fail "not shared: $(<"$report")"
stress 200000000 200 --fork 1 --fork-ops $((times * 20))
stress 16000000 20 --mremap 1 --mremap-bytes 8m --mremap-ops $((times * 10))
arena_is_whole
stop_daemon
