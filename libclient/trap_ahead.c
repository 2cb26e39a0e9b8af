/* SPDX-License-Identifier: MIT */
/*
 * trap_ahead.c - the fault thread works ahead of a program that walks through memory.
 *
 * When the program goes on, the fault thread has nothing to do; so it maps what comes next, and asks the
 * daemon for more before the program needs it. How far the program has come it learns at trips, leaves
 * that are left out on purpose:
 *
 *	 mapped        T  mapped             T'  still to be mapped
 *	|-------------|--|------------------|--|--------------------|
 *	         ^ program                      ^ next              ^ end
 *
 * An access at T, or at the place where the last mapping ended, makes the place where the work ends the
 * next trip, and moves the end by `depth` leaves, twice as many each time. The daemon is asked only after
 * an access at a trip: then the program is less than `depth` leaves from what is not there, and has
 * used as much. What it fills ahead is bounded by its own rules.
 *
 * A mapping is touched before it is registered: from then on, an access of this thread's own that
 * found nothing would wait for itself. Where a hypervisor shadows page tables, each leaf's first
 * access costs a fault of the hypervisor's, which is now beside the program and not in its way.
 */
#include "base/util.h"
#include "libclient/trap_userfaultfd.h"

#define DEPTH_MIN 4u
#define DEPTH_MAX 64u
#define PIECE 8u       /* leaves that are mapped in one go, with the lock held */
#define PIECE_HOLES 2u /* of those that the host has to zero */

unsigned userfault_ahead_limit(const struct userfault_trap *u, uint64_t addr, uint64_t pte,
			       unsigned otherwise)
{
	const struct ahead *w = &u->ahead;
	unsigned piece = pte & ARENA_PTE_HOLE ? PIECE_HOLES : PIECE;
	uint64_t to_end = (w->end - ALIGN_DOWN(addr, ARENA_LEAF_SIZE)) / ARENA_LEAF_SIZE;

	if (w->working)
		return MIN(MIN(piece, otherwise), (unsigned)to_end);
	return w->walking ? MIN(piece, otherwise) : otherwise;
}

static void stop(struct arena *a)
{
	a->trap.ahead = (struct ahead){.expect = a->trap.ahead.expect};
	a->tlb.left_out = 0;
}

void userfault_ahead_begin(struct arena *a, uint64_t addr)
{
	struct ahead *w = &a->trap.ahead;
	uint64_t leaf = ALIGN_DOWN(addr, ARENA_LEAF_SIZE);

	w->walking = w->expect && (leaf == w->expect || leaf == w->trip);
}

void userfault_ahead_note(struct arena *a, uint64_t addr, unsigned access)
{
	const struct userfault_trap *u = &a->trap;
	struct ahead *w = &a->trap.ahead;
	uint64_t leaf = ALIGN_DOWN(addr, ARENA_LEAF_SIZE), from;
	bool whole = u->mapped_start <= leaf && u->mapped_end >= leaf + ARENA_LEAF_SIZE;

	if (!w->walking || !whole) {
		if (whole)
			w->expect = u->mapped_end;
		w->walking = false;
		return;
	}
	w->walking = false;
	w->tripped = leaf == w->trip;
	w->depth = w->tripped ? MIN(2 * w->depth, DEPTH_MAX) : DEPTH_MIN;
	from = w->tripped ? w->end : u->mapped_end;
	if (!w->tripped)
		w->next = from;
	w->expect = u->mapped_end;
	w->trip = from;
	w->end = from + (1 + w->depth) * ARENA_LEAF_SIZE;
	w->access = access;
	a->tlb.left_out = w->trip;
}

/* What the entry of `next` lets us do. Under the lock. */
enum find { FOUND_NOTHING, FOUND_MAPPED, FOUND_ENTRY, FOUND_STRANGE };

static enum find look_at(struct tlb *t, const struct ahead *w)
{
	struct tlb_walk walk;

	if (!tlb_walk(t, w->next, &walk))
		return walk.level ? FOUND_NOTHING : FOUND_STRANGE;
	if (walk.level != 1 || !tlb_permits(walk.pte, w->access))
		return FOUND_STRANGE;
	if (tlb_note_covers(t, page_of(t, w->next), ARENA_LEAF_PAGES, walk.pte))
		return FOUND_MAPPED;
	return FOUND_ENTRY;
}

/* Does the daemon fill ahead here? Then the leaf before was. */
static bool was_filled_ahead(struct tlb *t, uint64_t leaf)
{
	struct tlb_walk walk;

	return tlb_walk(t, leaf - ARENA_LEAF_SIZE, &walk) && walk.level == 1 &&
	       (walk.pte & ARENA_PTE_AHEAD) &&
	       userfault_one_vma(t, leaf - ARENA_LEAF_SIZE, leaf + ARENA_LEAF_SIZE);
}

static bool map_piece(struct arena *a)
{
	struct ahead *w = &a->trap.ahead;
	int r;

	w->working = true;
	r = tlb_refill(&a->tlb, w->next, w->access, NULL);
	w->working = false;
	if (r != TLB_DONE)
		return false;
	w->next = MAX(a->trap.mapped_end, w->next + ARENA_LEAF_SIZE);
	return true;
}

bool userfault_ahead_step(struct arena *a)
{
	struct ahead *w = &a->trap.ahead;
	struct fault_signal refused;
	bool ask = false, go_on = true;

	if (!w->trip || w->next >= w->end)
		return false;
	tlb_lock(&a->tlb, true);
	switch (look_at(&a->tlb, w)) {
	case FOUND_NOTHING:
		ask = go_on = w->tripped && was_filled_ahead(&a->tlb, w->next);
		break;
	case FOUND_ENTRY:
		if (w->next != w->trip) {
			go_on = map_piece(a);
			break;
		}
		/* fall through */
	case FOUND_MAPPED:
		w->next += ARENA_LEAF_SIZE;
		break;
	case FOUND_STRANGE:
		go_on = false;
		break;
	}
	/* Once for each trip. */
	w->tripped &= !ask;
	tlb_unlock(&a->tlb, 0, true);
	if (ask)
		go_on = client_ask_daemon(a, w->next, w->access, &refused) == 0;
	if (!go_on) {
		tlb_lock(&a->tlb, true);
		stop(a);
		tlb_unlock(&a->tlb, 0, true);
	}
	return go_on;
}
