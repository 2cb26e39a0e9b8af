# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# lib_systemd_scenario.bash - what a service goes through while a client keeps its memory; for the
# tests that have started a systemd by lib_systemd.bash.
KILLS=5

# The worker is another process than $worker; leaves which.
await_other_worker() {
	local tries now=
	for ((tries = 200; tries > 0; tries--)); do
		now=$(prop MainPID)
		if [ "${now:-0}" -ne 0 ] && [ "$now" -ne "$worker" ]; then
			worker=$now
			return
		fi
		sleep 0.05
	done
	fail "$1: no other worker than $worker"
}

# Descriptors of clients that have ended leave the store when the worker notices.
await_stored() {
	local tries now=
	for ((tries = 200; tries > 0; tries--)); do
		now=$(prop NFileDescriptorStore)
		[ "$now" -ne "$1" ] || return 0
		sleep 0.05
	done
	fail "$now descriptors are kept instead of $1"
}

scenario() { # COMMAND... that runs keep_client
	local i stored worker n=0

	echo "socket activation"
	ctl start arenad.socket || fail "arenad.socket does not start"
	[ "$(prop ActiveState)" = inactive ] || fail "active before anybody came"
	client_start "$@"
	[ "$(prop ActiveState)" = active ] || fail "a client was served, and the service is not active"
	worker=$(prop MainPID)
	ask check "ok $((++n))"

	echo "descriptors of a client come and go"
	stored=$(prop NFileDescriptorStore)
	[ "$stored" -ge 7 ] || fail "only $stored descriptors are kept for one client"
	inside timeout 60 "$@" </dev/null >/dev/null || fail "a second client"
	await_stored "$stored"

	for ((i = 1; i <= KILLS; i++)); do
		echo "kill -9, $i of $KILLS"
		ctl kill -s KILL arenad.service
		ask check "ok $((++n))"
		await_other_worker "kill -9"
		ask check "ok $((++n))"
	done
	await_stored "$stored"

	echo "a worker that hangs"
	ctl kill -s STOP arenad.service
	ask check "ok $((++n))"
	await_other_worker "watchdog"

	echo "systemctl restart"
	ctl restart arenad.service || fail "restart"
	await_other_worker "restart"
	ask check "ok $((++n))"

	if inside arenactl --help | grep -q '^  upgrade'; then
		echo "arenactl upgrade"
		inside timeout 60 arenactl upgrade || fail "arenactl upgrade"
		ask check "ok $((++n))"
		await_other_worker "upgrade"
		ask check "ok $((++n))"
	fi

	echo "no descriptor of the client stays behind it, and none is kept over a stop"
	client_end
	client_start "$@"
	ask check "ok 1"
	await_stored "$stored"
	ctl stop arenad.socket arenad.service || fail "stop"
	[ "$(prop Result)" = success ] || fail "a stop is a $(prop Result)"
	ask hold held
	[ "$(prop NFileDescriptorStore)" -eq 0 ] || fail "kept over a stop: $(prop NFileDescriptorStore)"

	echo "and from the beginning"
	ctl start arenad.socket || fail "arenad.socket does not start again"
	inside timeout 60 "$@" </dev/null >/dev/null || fail "a client after the stop"
	# shellcheck disable=SC2154 # lib_systemd.bash's
	if grep -E '^<[0-3]>|BUG|damaged' "$daemon_log"; then
		fail "the daemon's log"
	fi
}
