#!/bin/bash
# SPDX-License-Identifier: MIT
#
# run_git.sh - git over packs that it maps: what it packs is what it finds, checks and clones.
set -u
cd "$(dirname "$0")/.." || exit
. tests/lib_preload.bash
need git
start_arena

export HOME=$work GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a
export GIT_COMMITTER_EMAIL=a@b
git=(git -c gc.auto=0 -c core.preloadIndex=false -c pack.threads=1)

repository() { # COMMAND...
	local i
	rm -rf "$work/repo" "$work/clone"
	"$@" "${git[@]}" init -q "$work/repo" || return
	cd "$work/repo" || return
	for i in 1 2 3 4 5; do
		seq "$i" $((30000 + i * 1000)) >numbers
		head -c 300000 /dev/urandom >"random$i"
		"$@" "${git[@]}" add . && "$@" "${git[@]}" commit -q -m "$i" || return
	done
	"$@" "${git[@]}" gc -q || return
	"$@" "${git[@]}" fsck --full --strict || return
	"$@" "${git[@]}" clone -q --no-local . "$work/clone" || return
	"$@" "${git[@]}" -C "$work/clone" fsck --full || return
	cd "$here" || return
}

repository on_arena --files --min-size 4K -- || fail "git"
# And git without arenad finds all of it.
git -C "$work/repo" fsck --full || fail "what it wrote"
git -C "$work/clone" diff --quiet HEAD~4 -- missing || fail "the clone"
cmp "$work/repo/random5" "$work/clone/random5" || fail "the clone's files"
served git 50000000 100
[ "$(sum_of git files)" -gt 2000000 ] || fail "packs were not mapped: $(<"$report")"

: >"$report"
repository on_arena --files --min-size 4K -- &
kill_workers "$!" 60
git -C "$work/repo" fsck --full || fail "what it wrote while workers died"
[ "$(sum_of git files)" -gt 2000000 ] || fail "packs were not mapped: $(<"$report")"

arena_is_whole
stop_daemon
