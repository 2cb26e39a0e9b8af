#!/bin/bash
# SPDX-License-Identifier: MIT
#
# What `make soak` runs: random calls and random deaths, again and again, each time from another
# seed, until something breaks or the time is up. The seed of a failure is in its last lines.
#
# SOAK_MINUTES (30): how long; 0: until something breaks. SOAK_SEED: the first seed, else by time.
# SOAK_STEPS (20000): calls of each client of a model. SOAK_ROUNDS (300): deaths in one run.
# SOAK_KILLS (1000): of workers in one run.
set -u
cd "$(dirname "$0")/.." || exit
: "${ARENA_BUILD:=$PWD/build}"
export ARENA_BUILD
minutes=${SOAK_MINUTES:-30}
seed=${SOAK_SEED:-$(date +%s)}
export SOAK_STEPS=${SOAK_STEPS:-20000} SOAK_ROUNDS=${SOAK_ROUNDS:-300} SOAK_KILLS=${SOAK_KILLS:-1000}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1}
end=$((SECONDS + minutes * 60))

tests=()
for name in daemon_random daemon_death daemon_invariants daemon_fault daemon_restart_load; do
	tests+=("$ARENA_BUILD/tests/$name")
done
make -s B="$ARENA_BUILD" ${SAN:+SAN="$SAN"} all "${tests[@]}" "$ARENA_BUILD/tests/keep_client" || exit 1
mkdir -p "$ARENA_BUILD/tests/log"

# Debian's packages, compiled as Debian compiles: once, for it takes minutes and knows no seed.
tests/debian.sh full >"$ARENA_BUILD/tests/log/debian-full.log" 2>&1
case $? in
0 | 77) echo "debian packages: $(tail -n 1 "$ARENA_BUILD/tests/log/debian-full.log")" ;;
*)
	echo "FAIL  debian packages"
	cat "$ARENA_BUILD/tests/log/debian-full.log"
	exit 1
	;;
esac

# Unmodified programs, each for longer than make test does: once, too.
make -s B="$ARENA_BUILD" ${SAN:+SAN="$SAN"} "$ARENA_BUILD/tests/preload_program" || exit 1
for name in redis stress postgres gcc; do
	tests/run_$name.sh full >"$ARENA_BUILD/tests/log/run_$name-full.log" 2>&1
	case $? in
	0 | 77) echo "$name: $(tail -n 1 "$ARENA_BUILD/tests/log/run_$name-full.log")" ;;
	*)
		echo "FAIL  $name"
		cat "$ARENA_BUILD/tests/log/run_$name-full.log"
		exit 1
		;;
	esac
done

log=$(mktemp "${TMPDIR:-/tmp}/arena-soak.XXXXXX")
trap 'rm -f "$log"' EXIT
round=0
while [ "$minutes" -eq 0 ] || [ "$SECONDS" -lt "$end" ]; do
	round=$((round + 1))
	for test in "${tests[@]}"; do
		SOAK_SEED=$seed ARENA_TEST_SEED=$seed timeout -k 5 3600 "$test" >"$log" 2>&1
		code=$?
		if [ "$code" -ne 0 ]; then
			echo "FAIL  $(basename "$test"), round $round, SOAK_SEED=$seed (exit code $code)"
			cat "$log"
			exit 1
		fi
	done
	echo "round $round, SOAK_SEED=$seed: ok ($SECONDS s)"
	seed=$((seed + 1000))
done
