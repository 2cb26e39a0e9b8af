/* SPDX-License-Identifier: MIT */
/*
 * migratetype.c - pageblocks by what may be done to the pages in them, and what happens when a
 * type runs out.
 *
 * A free block lies on the list of its pageblock's type, always. A request whose own lists are
 * empty takes, from the largest block down, (1) a wholly free pageblock of another type, which
 * changes its type; (2) a part of a used one. Then the whole pageblock changes its type, with
 * what is free in it, if that keeps types apart in the long run: the free block found is large,
 * or the request is of a kind that cannot be moved away again, or at least half of the block is
 * free or of the same kind. Else only the frames asked for are taken.
 *
 * HIGHATOMIC pageblocks are set aside after an atomic allocation of high order that met
 * pressure: at most one hundredth of the zone, at least one, and given back before an
 * allocation fails.
 */
#include "daemon/phys/internal.h"

const uint8_t migrate_fallback[NR_PCP_TYPES][2] = {
	[MIGRATE_UNMOVABLE] = {MIGRATE_RECLAIMABLE, MIGRATE_MOVABLE},
	[MIGRATE_MOVABLE] = {MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE},
	[MIGRATE_RECLAIMABLE] = {MIGRATE_UNMOVABLE, MIGRATE_MOVABLE},
};

void pageblock_set_type(struct phys *p, pfn_t pfn, enum migratetype t)
{
	struct zone *z = page_zone(p, &p->mem_map[pfn]);
	struct zone_private *zp = zone_private(z);
	struct pageblock *pb = pfn_block(p, pfn);

	if (pb->migratetype == t)
		return;
	zp->pageblocks[pb->migratetype]--;
	zp->pageblocks[t]++;
	if (pb->migratetype == MIGRATE_HIGHATOMIC)
		z->nr_highatomic -= PAGEBLOCK_PAGES;
	if (t == MIGRATE_HIGHATOMIC)
		z->nr_highatomic += PAGEBLOCK_PAGES;
	truth_store(&pb->migratetype, (uint8_t)t);
}

/* Pages of what begins at pfn inside a pageblock that is not one free block. */
static unsigned step(const struct page *page)
{
	bool whole = page->refcount || page->flags & PG_BUDDY;

	return whole ? 1u << MIN(page_order(page), PAGEBLOCK_ORDER) : 1;
}

/* One free block of order 9 or 10: take it off, change it, put it back. */
static void retype_whole(struct phys *p, pfn_t head, enum migratetype t)
{
	unsigned order = page_order(&p->mem_map[head]);
	enum content c = buddy_del(p, head);

	for (unsigned i = 0; i < 1u << order; i += PAGEBLOCK_PAGES)
		pageblock_set_type(p, head + i, t);
	buddy_free(p, head, order, c);
}

void pageblock_retype(struct phys *p, pfn_t pfn, enum migratetype t)
{
	pfn_t start = ALIGN_DOWN(pfn, PAGEBLOCK_PAGES), end = start + PAGEBLOCK_PAGES;
	pfn_t whole = free_head(p, start, PAGEBLOCK_ORDER);
	pfn_t moved = PFN_NONE;

	if (whole != PFN_NONE) {
		retype_whole(p, whole, t);
		return;
	}
	/* The list is told by the type: collect all, linked by private_, before it changes. */
	for (pfn_t at = start; at < end; at += step(&p->mem_map[at])) {
		struct page *page = &p->mem_map[at];
		unsigned order = page_order(page);
		enum content c;

		if (page->refcount || !(page->flags & PG_BUDDY))
			continue;
		c = buddy_del(p, at);
		page_set_free_flags(page, PG_BUDDY | (c == CONTENT_ZEROED ? PG_ZEROED : 0), order);
		page->private_ = moved;
		moved = at;
	}
	pageblock_set_type(p, start, t);
	while (moved != PFN_NONE) {
		struct page *page = &p->mem_map[moved];
		pfn_t next = page->private_;

		buddy_add(p, moved, page_order(page),
			  page->flags & PG_ZEROED ? CONTENT_ZEROED : CONTENT_DIRTY, false);
		moved = next;
	}
}

bool steal_whole_block(struct phys *p, struct domain_zone *dz, unsigned order, enum migratetype t,
		       const struct preference *pref)
{
	for (unsigned i = 0; i < pref->nr; i++) {
		for (unsigned o = MAX_ORDER; o >= MAX(order, PAGEBLOCK_ORDER); o--) {
			for (unsigned f = 0; f < 2; f++) {
				struct free_list *l =
					&dz->list[o][migrate_fallback[t][f]][pref->content[i]];

				if (!l->count)
					continue;
				pageblock_retype(p, l->head, t);
				state_event(p->state, EV_ARENA_PAGEBLOCK_STEAL, 1);
				return true;
			}
		}
	}
	return false;
}

/* What the owner of an allocated block says about moving it. */
static bool compatible(const struct page *page, enum migratetype t)
{
	bool movable = page->flags & (PG_ANON | PG_OBJECT);

	return t == MIGRATE_MOVABLE ? movable : !movable;
}

static bool mostly_ours(const struct phys *p, pfn_t pfn, enum migratetype t)
{
	pfn_t start = ALIGN_DOWN(pfn, PAGEBLOCK_PAGES), end = start + PAGEBLOCK_PAGES;
	unsigned n = 0;

	for (pfn_t at = start; at < end; at += step(&p->mem_map[at])) {
		const struct page *page = &p->mem_map[at];

		if (!page->refcount || compatible(page, t))
			n += step(page);
	}
	return n >= PAGEBLOCK_PAGES / 2;
}

pfn_t steal_fallback(struct phys *p, struct domain_zone *dz, unsigned order, enum migratetype t,
		     const struct preference *pref, enum content *c)
{
	for (unsigned o = PAGEBLOCK_ORDER; o-- > order;) {
		for (unsigned f = 0; f < 2; f++) {
			for (unsigned i = 0; i < pref->nr; i++) {
				struct free_list *l =
					&dz->list[o][migrate_fallback[t][f]][pref->content[i]];
				pfn_t pfn = l->head;

				if (!l->count)
					continue;
				if (o >= PAGEBLOCK_ORDER / 2 || t != MIGRATE_MOVABLE ||
				    mostly_ours(p, pfn, t)) {
					pageblock_retype(p, pfn, t);
					state_event(p->state, EV_ARENA_PAGEBLOCK_STEAL, 1);
				}
				return buddy_take(p, pfn, pfn, order, c);
			}
		}
	}
	return PFN_NONE;
}

void highatomic_reserve(struct phys *p, pfn_t pfn, unsigned order)
{
	struct zone *z = page_zone(p, &p->mem_map[pfn]);
	uint64_t most = MAX(z->managed / 100, PAGEBLOCK_PAGES);

	if (order > PAGEBLOCK_ORDER || z->nr_highatomic + PAGEBLOCK_PAGES > most)
		return;
	if (pfn_block(p, pfn)->migratetype < NR_PCP_TYPES)
		pageblock_retype(p, pfn, MIGRATE_HIGHATOMIC);
}

static bool unreserve_in(struct phys *p, struct domain_zone *dz, enum migratetype t,
			 unsigned from_order)
{
	for (unsigned o = MAX_ORDER + 1; o-- > from_order;) {
		for (unsigned c = 0; c < NR_CONTENTS; c++) {
			struct free_list *l = &dz->list[o][MIGRATE_HIGHATOMIC][c];

			if (!l->count)
				continue;
			pageblock_retype(p, l->head, t);
			return true;
		}
	}
	return false;
}

/* Of other domains only wholly free blocks are of use: they can be claimed. */
bool highatomic_unreserve(struct phys *p, struct zone *z, struct domain *d, enum migratetype t)
{
	struct domain *other;

	if (!z->nr_highatomic)
		return false;
	if (d->zone[z->index] && unreserve_in(p, d->zone[z->index], t, 0))
		return true;
	TAILQ_FOREACH(other, &p->live, link)
		if (other != d && other->zone[z->index] &&
		    unreserve_in(p, other->zone[z->index], MIGRATE_MOVABLE, PAGEBLOCK_ORDER))
			return true;
	return false;
}
