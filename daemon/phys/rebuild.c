/* SPDX-License-Identifier: MIT */
/*
 * rebuild.c - the second half of recovery: counts, free lists and counters from what recover.c read
 * and the rooms above counted.
 *
 * Memory is taken in units of the largest block, so that all free blocks that could merge are
 * gathered (and their stale flags gone) before the first of them is on a list:
 *
 *	unit      |------------ order 10 ------------|
 *	pageblock |...used...|free.......|...........|    -> pieces: pfn, order, zeroed
 *
 * A piece keeps its content only where the head of a free block said it was zeroed; a pageblock
 * without a frame in use that is not PB_BACKED is a hole; all else is dirty.
 */
#include <stdlib.h>

#include "base/log.h"
#include "daemon/phys/recovery.h"
#include "daemon/sync/lock.h"

#define UNIT_PAGES (1u << MAX_ORDER)

struct piece {
	pfn_t pfn;
	uint8_t order;
	bool zeroed;
};

struct rebuild {
	struct phys *p;
	const struct phys_recover_ops *ops;
	void *ctx;
	struct phys_recover_stats *stats;
	pfn_t done;  /* frames before this one were gathered with the block before */
	bool used;   /* the pageblock has a frame in use */
	bool zeroed; /* what reaches over from the block before is a zeroed free block */
	unsigned nr;
	struct piece piece[UNIT_PAGES];
};

static void piece_add(struct rebuild *r, pfn_t pfn, unsigned order, bool zeroed)
{
	r->piece[r->nr++] = (struct piece){.pfn = pfn, .order = (uint8_t)order, .zeroed = zeroed};
}

/* ---- blocks in use -------------------------------------------------------------------- */

/* References from limbo that live clients get because they may still have it mapped. */
static unsigned ask_limbo(const struct rebuild *r, pfn_t head)
{
	if (!(r->p->mem_map[head].flags & PG_LIMBO) || !r->ops)
		return 0;
	return r->ops->limbo(r->ctx, head, block_owner(r->p, head));
}

static void free_unreferenced(struct page *page)
{
	truth_store(&page->refcount, 0u);
	if (page->mapcount)
		truth_store(&page->mapcount, 0u);
	page_set_free_flags(page, 0, 0);
}

/* Settle the counts of a block in use. False: nothing refers to it, and it is free now. */
static bool settle(struct rebuild *r, pfn_t head)
{
	struct phys *p = r->p;
	struct page *page = &p->mem_map[head];
	uint64_t pages = UINT64_C(1) << page_order(page);
	uint32_t refs = page->lru_next, maps = page->lru_prev;
	unsigned limbo = ask_limbo(r, head);

	page->lru_next = page->lru_prev = PFN_NONE;
	page->flags &= ~(PG_MLOCKED | PG_PINNED); /* virt counts those again */
	if (!refs && !limbo) {
		free_unreferenced(page);
		r->stats->freed_pages += pages;
		return false;
	}
	if (page->refcount != refs + limbo) {
		truth_store(&page->refcount, refs + limbo);
		r->stats->refcounts++;
	}
	if (page->mapcount != maps) {
		truth_store(&page->mapcount, maps);
		r->stats->mapcounts++;
	}
	if (page->flags & PG_LIMBO && !limbo)
		truth_store(&page->flags, page->flags & ~PG_LIMBO);
	page->private_ = limbo;
	zone_add_free(page_zone(p, page), -(int64_t)pages);
	block_owner(p, head)->nr_used += pages;
	r->stats->used_pages += pages;
	r->stats->limbo_pages += refs ? 0 : pages;
	return true;
}

/* ---- gathering -------------------------------------------------------------------------- */

/* What begins at pfn, up to the end of its pageblock or of itself; where the next begins. */
static pfn_t gather_at(struct rebuild *r, pfn_t pfn)
{
	struct page *page = &r->p->mem_map[pfn];
	unsigned order = page_order(page);
	uint32_t flags = page->flags;

	if (page->refcount) {
		if (settle(r, pfn))
			r->used = true;
		else
			piece_add(r, pfn, MIN(order, PAGEBLOCK_ORDER), false);
		r->zeroed = false;
	} else {
		r->zeroed = flags & PG_ZEROED;
		piece_add(r, pfn, MIN(order, PAGEBLOCK_ORDER), r->zeroed);
		page_set_free_flags(page, 0, 0);
	}
	return pfn + (1u << order);
}

static void gather_block(struct rebuild *r, pfn_t b)
{
	struct phys *p = r->p;
	struct pageblock *pb = pfn_block(p, b);
	pfn_t end = b + PAGEBLOCK_PAGES, pfn = MAX(b, r->done);
	unsigned before = r->nr;

	/* The second half of an order-10 block is what the first was. */
	if (pfn >= end && !r->used)
		piece_add(r, b, PAGEBLOCK_ORDER, r->zeroed);
	else if (pfn < end)
		r->used = false;
	while (pfn < end)
		pfn = gather_at(r, pfn);
	r->done = pfn;
	if (!pb->domain || (!(pb->flags & PB_BACKED) && !r->used)) {
		r->nr = before;
		piece_add(r, b, PAGEBLOCK_ORDER, false);
	} else if (!(pb->flags & PB_BACKED)) {
		recovery_damage(p, "pageblock at %u is in use and a hole", b);
		truth_store(&pb->flags, (uint8_t)PB_BACKED);
	}
}

static void put_pieces(struct rebuild *r)
{
	struct phys *p = r->p;

	for (unsigned i = 0; i < r->nr; i++) {
		const struct piece *at = &r->piece[i];
		bool backed = pfn_block(p, at->pfn)->flags & PB_BACKED;
		enum content c = !backed      ? CONTENT_HOLE
				 : at->zeroed ? CONTENT_ZEROED
					      : CONTENT_DIRTY;

		buddy_free(p, at->pfn, at->order, c);
	}
	r->nr = 0;
}

static bool block_in_lists(const struct phys *p, pfn_t b)
{
	const struct section_record *rec = &p->state->sections[pfn_section(p, b)];

	return rec->state == SECTION_ONLINE && rec->initialised &&
	       !(p->mem_map[b].flags & PG_RESERVED);
}

static void rebuild_lists(struct rebuild *r)
{
	struct phys *p = r->p;

	for (uint64_t unit = 0; unit < p->nr_frames; unit += UNIT_PAGES) {
		uint64_t end = MIN(unit + UNIT_PAGES, p->nr_frames);

		for (pfn_t b = (pfn_t)unit; b < end; b += PAGEBLOCK_PAGES)
			if (block_in_lists(p, b))
				gather_block(r, b);
		put_pieces(r);
	}
}

/* ---- counters --------------------------------------------------------------------------- */

/* count_sections() took every pageblock for a movable one. */
static void count_types(struct phys *p)
{
	for (uint64_t b = 0; b < p->nr_frames; b += PAGEBLOCK_PAGES) {
		struct zone *z;
		unsigned type;

		if (!block_in_lists(p, (pfn_t)b))
			continue;
		type = pfn_block(p, (pfn_t)b)->migratetype;
		z = page_zone(p, &p->mem_map[b]);
		zone_private(z)->pageblocks[MIGRATE_MOVABLE]--;
		zone_private(z)->pageblocks[type]++;
		if (type == MIGRATE_HIGHATOMIC)
			z->nr_highatomic += PAGEBLOCK_PAGES;
	}
}

static void activate_domains(struct phys *p)
{
	struct domain *d;

	TAILQ_FOREACH(d, &p->live, link) {
		d->active = d->refs && d->nr_used;
		p->nr_active += d->active;
	}
}

int phys_recover_finish(struct phys *p, const struct phys_recover_ops *ops, void *ctx,
			struct phys_recover_stats *stats)
{
	struct rebuild r = {.p = p, .ops = ops, .ctx = ctx, .stats = &p->recovery->stats};

	CONTROL_THREAD();
	/* Types first: buddy_free() changes them as blocks merge, and counts. */
	count_types(p);
	rebuild_lists(&r);
	phys_setup_watermarks(p);
	activate_domains(p);
	*stats = p->recovery->stats;
	free(p->recovery);
	p->recovery = NULL;
	ASSERT_VALID(phys_is_valid(p));
	return 0;
}
