/* SPDX-License-Identifier: MIT */
/*
 * gather.c - what to do about too many kernel mappings: where the next misses are, have the daemon move
 * the pages together (daemon/virt/gather.c), so that one mapping serves 2 MiB.
 *
 * Eviction gives all mappings up and makes nothing better. So for a number of misses after it, each looks
 * whether the table around it is scattered, and asks. What was refused is remembered for a while.
 */
#include <errno.h>

#include "base/util.h"
#include "libclient/internal.h"

#define SCATTERED 32u /* mappings less that are worth a copy of 2 MiB */
#define TRIES 4

static uint64_t *refused_at(struct arena *a, uint64_t leaf)
{
	return &a->refused[leaf / ARENA_LEAF_SIZE % ARRAY_SIZE(a->refused)];
}

/* Its time is taken from the miss's; it matters to nobody whether it succeeds. */
static int ask(struct arena *a, uint64_t leaf)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Madvise call = ARENA__MADVISE__INIT;
	struct mail_reply m;
	int r, tries = TRIES;

	call.address = leaf;
	call.length = ARENA_LEAF_SIZE;
	call.advice = ARENA_MADV_GATHER;
	request.call_case = ARENA__REQUEST__CALL_MADVISE;
	request.madvise = &call;
	do
		r = mailbox_call(a, &request, &m, true);
	while (r == -EAGAIN && --tries > 0);
	return r;
}

void client_gather(struct arena *a, uint64_t addr)
{
	uint64_t leaf = ALIGN_DOWN(addr, ARENA_LEAF_SIZE);
	uint32_t left = load_relaxed(&a->tlb.crowded);
	bool scattered;
	int r;

	if (!left || load_relaxed(refused_at(a, leaf)) == leaf)
		return;
	tlb_lock(&a->tlb, true);
	scattered = tlb_count_breaks(&a->tlb, addr) >= SCATTERED;
	tlb_unlock(&a->tlb, 0, true);
	if (!scattered)
		return;
	/* Others count, too; what gets lost between is of no account. */
	store_relaxed(&a->tlb.crowded, left - 1);
	r = ask(a, leaf);
	/* No room: look at few more until the next eviction. A hole somewhere in the 2 MiB is no refusal. */
	if (r == -EBUSY)
		store_relaxed(&a->tlb.crowded, left / 2);
	else if (r < 0 && r != -EAGAIN && r != -ENOMEM)
		store_relaxed(refused_at(a, leaf), leaf);
}
