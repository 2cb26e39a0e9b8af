#!/bin/bash
# SPDX-License-Identifier: MIT
#
# run.sh [FILE...] [--alone FILE...]
#
# Runs tests, one line each, and ends with "N passed, N failed, N skipped". Two run at a time; those that measure
# time have the machine for themselves, after the others. What a test prints goes to
# $ARENA_BUILD/tests/log/NAME.log and is shown if it fails. Exit code 77 of a test: skipped, its last line is the
# reason.
#
# TEST_TIMEOUT (300): seconds a test may take. TEST_JOBS (2): tests at a time. TESTS: a shell pattern; only tests
# whose names match run.
set -u

: "${ARENA_BUILD:?is set by make}"
export ARENA_BUILD
timeout=${TEST_TIMEOUT:-300}
jobs=${TEST_JOBS:-2}
pattern=${TESTS:-*}
log=$ARENA_BUILD/tests/log
mkdir -p "$log"

export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1}

shared=() alone=()
list=shared
for arg in "$@"; do
	case $arg in
	--alone) list=alone ;;
	*)
		# shellcheck disable=SC2254 # a pattern on purpose
		case $(basename -- "$arg" .sh) in
		$pattern) declare -n chosen=$list && chosen+=("$arg") ;;
		esac
		;;
	esac
done

# Runs one test; its verdict is left in $log/NAME.verdict.
run_one() {
	local file=$1 name started seconds code verdict
	name=$(basename "$file" .sh)
	rm -f "$log/$name.verdict"
	started=$EPOCHREALTIME
	timeout -k 5 "$timeout" "$file" >"$log/$name.log" 2>&1 </dev/null
	code=$?
	seconds=$(((${EPOCHREALTIME/./} - ${started/./}) / 10000))
	seconds=$((seconds / 100)).$(printf %02d $((seconds % 100)))
	case $code in
	0)
		verdict=passed
		echo "ok    $name ($seconds s)"
		;;
	77)
		verdict=skipped
		echo "skip  $name: $(tail -n 1 "$log/$name.log")"
		;;
	*)
		verdict=failed
		case $code in
		124 | 137) echo "FAIL  $name: more than $timeout s" ;;
		*) echo "FAIL  $name (exit code $code)" ;;
		esac
		sed 's/^/      | /' "$log/$name.log"
		;;
	esac
	echo "$verdict" >"$log/$name.verdict"
}

running=0
for test in "${shared[@]}"; do
	if [ "$running" -ge "$jobs" ]; then
		wait -n
		running=$((running - 1))
	fi
	run_one "$test" &
	running=$((running + 1))
done
wait
for test in "${alone[@]}"; do
	run_one "$test"
done

if [ $((${#shared[@]} + ${#alone[@]})) -eq 0 ]; then
	echo "no test has a name like '$pattern'"
	exit 1
fi

passed=0 failed=0 skipped=0
for test in "${shared[@]}" "${alone[@]}"; do
	case $(cat "$log/$(basename "$test" .sh).verdict" 2>/dev/null) in
	passed) passed=$((passed + 1)) ;;
	skipped) skipped=$((skipped + 1)) ;;
	*) failed=$((failed + 1)) ;;
	esac
done
echo "$passed passed, $failed failed, $skipped skipped"
test "$failed" -eq 0
