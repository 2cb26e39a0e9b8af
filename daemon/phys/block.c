/* SPDX-License-Identifier: MIT */
/*
 * block.c - pageblocks move between domain 0 and the others.
 *
 * In: type and flags are stored while the block is still nobody's, then the store of the owner
 * commits. Out: the host takes the memory back (the old file reads zeros there from then on), the
 * block is marked unbacked, then the store of owner 0 commits. A crash between any two of
 * these leaves a free block that is described truly.
 *
 * A block that became wholly free stays with its domain, where it is part of the pool that kzerod
 * fills, until another domain needs it or the domain caches far too many.
 */
#include "base/log.h"
#include "base/os.h"
#include "daemon/phys/internal.h"
#include "daemon/sync/lock.h"

static void block_change_owner(struct phys *p, pfn_t pfn, struct domain *d)
{
	truth_store(&pfn_block(p, pfn)->domain, d->id);
	p->block_slot[pfn >> PAGEBLOCK_ORDER] = (uint16_t)d->slot;
}

/* A block of domain 0 of at least `order`, exactly at `at` unless that is PFN_NONE. */
static pfn_t unowned_find(struct phys *p, struct zone *z, unsigned order, pfn_t at)
{
	struct domain_zone *dz = p->domains[0]->zone[z->index];
	pfn_t head;

	if (at == PFN_NONE) {
		for (unsigned o = order; o < NR_ORDERS; o++) {
			struct free_list *l = &dz->list[o][MIGRATE_MOVABLE][CONTENT_HOLE];

			if (l->count)
				return l->head;
		}
		return PFN_NONE;
	}
	if (at < z->start || at >= z->end || p->block_slot[at >> PAGEBLOCK_ORDER])
		return PFN_NONE;
	head = free_head(p, at, PAGEBLOCK_ORDER);
	if (head == PFN_NONE || page_order(&p->mem_map[head]) < order)
		return PFN_NONE;
	return head;
}

bool block_claim(struct phys *p, struct domain *d, struct zone *z, unsigned order,
		 enum migratetype t, pfn_t at)
{
	struct domain_zone *dz = domain_zone(d, z);
	pfn_t head = PFN_NONE, pfn;
	enum content c;

	if (!dz)
		return false;
	order = MAX(order, PAGEBLOCK_ORDER);
	if (at == PFN_NONE && dz->next_claim != PFN_NONE && order == PAGEBLOCK_ORDER) {
		at = dz->next_claim;
		head = unowned_find(p, z, order, at);
		if (head == PFN_NONE)
			at = PFN_NONE;
	}
	while (head == PFN_NONE) {
		head = unowned_find(p, z, order, at);
		if (head == PFN_NONE && (at != PFN_NONE || !zone_grow(z)))
			return false;
	}
	pfn = buddy_take(p, head, at == PFN_NONE ? head : at, order, &c);
	for (pfn_t b = pfn; b < pfn + (1u << order); b += PAGEBLOCK_PAGES) {
		pageblock_set_type(p, b, t);
		block_change_owner(p, b, d);
	}
	p->nr_unowned -= UINT64_C(1) << order;
	d->nr_blocks += 1u << (order - PAGEBLOCK_ORDER);
	dz->next_claim = pfn + (1u << order);
	state_event(p->state, EV_ARENA_BLOCK_IN, 1u << (order - PAGEBLOCK_ORDER));
	buddy_free(p, pfn, order, CONTENT_HOLE);
	return true;
}

static bool host_take_back(struct domain *d, pfn_t pfn, unsigned order)
{
	int r;

	r = os_punch_hole(d->fd, (uint64_t)pfn << ARENA_PAGE_SHIFT,
			  (UINT64_C(1) << order) << ARENA_PAGE_SHIFT);
	if (r < 0)
		log_warning("domain %u: punching block %u: %s", d->id, pfn, error_text(r));
	return r >= 0;
}

void block_mark(struct phys *p, pfn_t pfn, unsigned order, uint8_t flags)
{
	for (pfn_t b = pfn; b < pfn + (1u << order); b += PAGEBLOCK_PAGES)
		truth_store(&pfn_block(p, b)->flags, flags);
}

void block_unback(struct phys *p, pfn_t pfn, unsigned order)
{
	if (host_take_back(block_owner(p, pfn), pfn, order))
		block_mark(p, pfn, order, 0);
}

bool block_back(struct phys *p, pfn_t pfn, unsigned order)
{
	struct domain *d = block_owner(p, pfn);
	int r;

	block_mark(p, pfn, order, PB_BACKED);
	r = os_populate(domain_address(d, pfn), (UINT64_C(1) << order) << ARENA_PAGE_SHIFT);
	if (r >= 0)
		return true;
	log_warning("domain %u: the host has no memory for block %u: %s", d->id, pfn,
		    error_text(r));
	block_unback(p, pfn, order);
	return false;
}

bool block_give_back(struct phys *p, pfn_t pfn, unsigned order, enum content c)
{
	struct domain *d = block_owner(p, pfn);

	if (p->retired || (c != CONTENT_HOLE && !host_take_back(d, pfn, order)))
		return false;
	block_mark(p, pfn, order, 0);
	for (pfn_t b = pfn; b < pfn + (1u << order); b += PAGEBLOCK_PAGES) {
		pageblock_set_type(p, b, MIGRATE_MOVABLE);
		block_change_owner(p, b, p->domains[0]);
	}
	p->nr_unowned += UINT64_C(1) << order;
	d->nr_blocks -= 1u << (order - PAGEBLOCK_ORDER);
	state_event(p->state, EV_ARENA_BLOCK_OUT, 1u << (order - PAGEBLOCK_ORDER));
	buddy_free(p, pfn, order, CONTENT_HOLE);
	return true;
}

/* Give back one free block of at most `most`, the least useful first. */
static bool give_back_one(struct phys *p, struct domain_zone *dz, unsigned nr_types, unsigned most)
{
	static const uint8_t rank[] = {CONTENT_DIRTY, CONTENT_HOLE, CONTENT_ZEROED};

	for (unsigned i = 0; i < ARRAY_SIZE(rank); i++) {
		for (unsigned o = PAGEBLOCK_ORDER; o < NR_ORDERS; o++) {
			for (unsigned t = 0; t < nr_types; t++) {
				const struct free_list *l = &dz->list[o][t][rank[i]];
				unsigned order = MIN(o, most);
				enum content c;
				pfn_t pfn;

				if (!l->count)
					continue;
				pfn = buddy_take(p, l->tail, l->tail, order, &c);
				if (block_give_back(p, pfn, order, c))
					return true;
				buddy_free(p, pfn, order, CONTENT_DIRTY);
				return false;
			}
		}
	}
	return false;
}

bool block_uncache(struct phys *p, struct zone *z, const struct domain *d)
{
	struct domain *first = p->uncache_next ? p->uncache_next : TAILQ_FIRST(&p->live);
	struct domain *other = first;

	if (!zone_private(z)->cached_pages || !first)
		return false;
	do {
		struct domain *next = TAILQ_NEXT(other, link);

		if (!next)
			next = TAILQ_FIRST(&p->live);
		if (other != d && other->zone[z->index] && other->free_block_pages &&
		    give_back_one(p, other->zone[z->index], NR_PCP_TYPES, MAX_ORDER)) {
			p->uncache_next = next;
			return true;
		}
		other = next;
	} while (other != first);
	return false;
}

static bool caches_too_much(const struct domain *d)
{
	uint64_t pool = state_tunable(d->phys->state, TUNABLE_ZERO_POOL_KBYTES) / 4;

	return d->free_block_pages > 2 * pool &&
	       d->free_block_pages > d->nr_blocks * PAGEBLOCK_PAGES / 2;
}

/* Two go for each that comes, so that the cache shrinks while the domain does. */
void block_trim(struct phys *p, struct domain *d, struct free_block b)
{
	const struct zone *z = page_zone(p, &p->mem_map[b.pfn]);

	if (b.order < PAGEBLOCK_ORDER || p->retired)
		return;
	for (unsigned i = 0; i < 2 && caches_too_much(d); i++)
		if (!give_back_one(p, d->zone[z->index], NR_PCP_TYPES, MAX_ORDER))
			return;
}

static uint64_t reclaim_domain(struct phys *p, struct domain *d, uint64_t keep)
{
	uint64_t before = d->nr_blocks;

	for (unsigned i = 0; i < p->nr_zones; i++) {
		while (d->zone[i] && d->free_block_pages / PAGEBLOCK_PAGES > keep) {
			uint64_t excess = d->free_block_pages / PAGEBLOCK_PAGES - keep;

			if (!give_back_one(p, d->zone[i], NR_MIGRATETYPES,
					   excess > 1 ? MAX_ORDER : PAGEBLOCK_ORDER))
				break;
		}
	}
	return before - d->nr_blocks;
}

uint64_t phys_reclaim_blocks(struct phys *p, struct domain *d, uint64_t keep)
{
	uint64_t n = 0;

	CONTROL_THREAD();
	if (d)
		return reclaim_domain(p, d, keep);
	TAILQ_FOREACH(d, &p->live, link)
		n += reclaim_domain(p, d, keep);
	return n;
}
