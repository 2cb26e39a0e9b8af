#!/bin/bash
# SPDX-License-Identifier: MIT
#
# systemd_user.sh - the service and its socket as units of a user's systemd, a real one: killed, hung,
# restarted, stopped, with a client keeping its memory.
set -u
cd "$(dirname "$0")/.." || exit

. tests/lib_systemd.bash
. tests/lib_systemd_scenario.bash

start_user
scenario env ARENAD_SOCKET="$work/run/arenad/socket" "$keep_client"
echo "all of it under systemd --user"
