#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Checks the house rule that a room includes only rooms before it:
#
#     include, base, proto, numa, sync, store, phys, virt, machine, service, files, the daemon's main
#
# libclient and its tests see include, base, proto and numa; tools and examples see
# include/arena/arena.h, and tools base/ besides. Prints each line that breaks it; 1 if any does.
set -u
cd "$(dirname "$0")/.." || exit 2

declare -A rank=([base]=1 [proto]=2 [numa]=3 [daemon/sync]=4 [daemon/store]=5 [daemon/phys]=6
	[daemon/virt]=7 [daemon/machine]=8 [daemon/service]=9 [daemon/files]=10)

# The rank of the room that a path lies in; 0 for include/ and for what is no room's.
rank_of() {
	local room=${1%/*}
	if [ "$room" = daemon ]; then
		echo 11
	else
		echo "${rank[$room]:-0}"
	fi
}

broken=0
complain() { # FILE INCLUDED WHY
	echo "$1: includes \"$2\": $3"
	broken=1
}

check() { # FILE INCLUDED
	local file=$1 included=$2 theirs
	theirs=$(rank_of "$included")
	case $file in
	include/*)
		case $included in
		arena/*) ;;
		*) complain "$file" "$included" "include/ stands alone" ;;
		esac
		;;
	libclient/*)
		case $included in
		arena/* | base/* | proto/* | numa/* | libclient/*) ;;
		*) complain "$file" "$included" "libclient sees include, base, proto, numa" ;;
		esac
		;;
	tools/*)
		case $included in
		arena/arena.h | base/* | tools/*) ;;
		*) complain "$file" "$included" "tools see arena.h and base" ;;
		esac
		;;
	examples/*)
		case $included in
		examples/*) ;;
		*) complain "$file" "$included" "examples include <arena/arena.h> and their own" ;;
		esac
		;;
	base/* | proto/* | numa/* | daemon/*)
		case $included in
		libclient/* | tools/* | tests/*)
			complain "$file" "$included" "the daemon's rooms do not see it"
			;;
		esac
		if [ "$theirs" -gt "$(rank_of "$file")" ]; then
			complain "$file" "$included" "a room above"
		fi
		;;
	esac
}

while IFS=: read -r file included; do
	check "$file" "$included"
done < <(grep -rHoE '^#[[:space:]]*include "[^"]+"' --include='*.[ch]' --include='*.def' \
	include base proto numa libclient daemon tools examples 2>/dev/null |
	sed -E 's/^([^:]+):.*"([^"]+)"$/\1:\2/')
exit "$broken"
