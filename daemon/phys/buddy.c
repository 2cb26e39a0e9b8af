/* SPDX-License-Identifier: MIT */
/*
 * buddy.c - free lists, merging and splitting.
 *
 *   order 10  |...............H...............|   H: head, PG_BUDDY and order; others unwritten
 *   order 9   |.......H.......|.......H.......|   buddies: pfns that differ in bit `order`
 *
 * Below PAGEBLOCK_ORDER a merged block is zeroed only if both halves are; at PAGEBLOCK_ORDER only
 * blocks of one content merge, so that 2 MiB that were zeroed, or are a hole, stay so when a
 * dirty neighbour is freed. Nothing is lost by that: order 10 is still found by giving both
 * back to domain 0, where all are holes.
 *
 * Each content has a list of its own, so "zeroed at the head, dirty at the tail" is a choice of
 * list. Order 9 and 10 are queues, because kzerod and section_init() fill them by ascending
 * pfn and contiguous leaves cost a client one mapping; smaller orders are stacks.
 */
#include "daemon/phys/internal.h"

static struct free_list *block_list(struct phys *p, const struct page *page, pfn_t pfn,
				    unsigned order, enum content c)
{
	struct domain *d = block_owner(p, pfn);
	unsigned type = pfn_block(p, pfn)->migratetype;

	return &d->zone[page_zone(p, page)->index]->list[order][type][c];
}

static void account(struct phys *p, const struct page *page, pfn_t pfn, unsigned order,
		    enum content c, int64_t sign)
{
	struct domain *d = block_owner(p, pfn);
	struct zone_private *zp = zone_private(page_zone(p, page));
	uint64_t pages = (uint64_t)(sign * (INT64_C(1) << order));

	zp->free_blocks[order][pfn_block(p, pfn)->migratetype] += (uint64_t)sign;
	if (c == CONTENT_ZEROED) {
		d->nr_zeroed += pages;
		p->nr_zeroed += pages;
	}
	if (order < PAGEBLOCK_ORDER || d == p->domains[0])
		return;
	d->free_block_pages += pages;
	zp->cached_pages += pages;
	if (c == CONTENT_ZEROED) {
		d->zeroed_block_pages += pages;
		d->zone[page_zone(p, page)->index]->zeroed_pages += pages;
	}
	kzerod_note(d);
}

void buddy_add(struct phys *p, pfn_t pfn, unsigned order, enum content c, bool at_tail)
{
	struct page *page = &p->mem_map[pfn];
	struct free_list *l = block_list(p, page, pfn, order, c);

	page_set_free_flags(page, PG_BUDDY | (c == CONTENT_ZEROED ? PG_ZEROED : 0), order);
	if (at_tail)
		list_push_tail(p, l, pfn);
	else
		list_push_head(p, l, pfn);
	account(p, page, pfn, order, c, 1);
}

enum content buddy_del(struct phys *p, pfn_t pfn)
{
	struct page *page = &p->mem_map[pfn];
	unsigned order = page_order(page);
	enum content c = block_content(p, pfn);

	list_unlink(p, block_list(p, page, pfn, order, c), pfn);
	account(p, page, pfn, order, c, -1);
	page_set_free_flags(page, 0, 0);
	return c;
}

/* Above a pageblock: one owner, one content, and no type that means more than a preference. */
static bool blocks_merge(struct phys *p, pfn_t pfn, pfn_t buddy, enum content c)
{
	const struct pageblock *a = pfn_block(p, pfn), *b = pfn_block(p, buddy);

	if (p->block_slot[pfn >> PAGEBLOCK_ORDER] != p->block_slot[buddy >> PAGEBLOCK_ORDER])
		return false;
	if (page_place(&p->mem_map[pfn]) != page_place(&p->mem_map[buddy]))
		return false;
	if (a->migratetype != b->migratetype &&
	    (a->migratetype >= NR_PCP_TYPES || b->migratetype >= NR_PCP_TYPES))
		return false;
	return block_content(p, buddy) == c;
}

struct free_block buddy_free(struct phys *p, pfn_t pfn, unsigned order, enum content c)
{
	for (; order < MAX_ORDER; order++) {
		pfn_t buddy = pfn ^ 1u << order;
		enum content bc;

		if (buddy >= p->nr_frames)
			break;
		if (!(p->mem_map[buddy].flags & PG_BUDDY) ||
		    page_order(&p->mem_map[buddy]) != order)
			break;
		if (order >= PAGEBLOCK_ORDER && !blocks_merge(p, pfn, buddy, c))
			break;
		bc = buddy_del(p, buddy);
		if (bc != c)
			c = CONTENT_DIRTY;
		if (order >= PAGEBLOCK_ORDER &&
		    pfn_block(p, pfn)->migratetype != pfn_block(p, buddy)->migratetype)
			pageblock_set_type(p, buddy, pfn_block(p, pfn)->migratetype);
		pfn &= ~(1u << order);
	}
	buddy_add(p, pfn, order, c, order >= PAGEBLOCK_ORDER);
	return (struct free_block){pfn, order};
}

static pfn_t split_to(struct phys *p, pfn_t pfn, unsigned from, pfn_t target, unsigned order,
		      enum content c)
{
	while (from > order) {
		pfn_t half = pfn + (1u << --from);

		if (target >= half) {
			buddy_add(p, pfn, from, c, false);
			pfn = half;
		} else {
			buddy_add(p, half, from, c, false);
		}
	}
	return pfn;
}

pfn_t buddy_take(struct phys *p, pfn_t head, pfn_t target, unsigned order, enum content *c)
{
	unsigned from = page_order(&p->mem_map[head]);
	pfn_t pfn = head;

	*c = buddy_del(p, head);
	if (*c == CONTENT_HOLE && order < PAGEBLOCK_ORDER) {
		pfn = split_to(p, pfn, from, target, PAGEBLOCK_ORDER, CONTENT_HOLE);
		from = PAGEBLOCK_ORDER;
		if (!block_back(p, pfn, PAGEBLOCK_ORDER)) {
			buddy_free(p, pfn, PAGEBLOCK_ORDER, block_content(p, pfn));
			return PFN_NONE;
		}
		*c = CONTENT_ZEROED;
	}
	return split_to(p, pfn, from, target, order, *c);
}

pfn_t rmqueue_smallest(struct phys *p, struct domain_zone *dz, unsigned order, enum migratetype t,
		       const struct preference *pref, enum content *c)
{
	const struct free_list *l;

	for (unsigned o = order; o < PAGEBLOCK_ORDER; o++) {
		for (unsigned i = 0; i < pref->nr; i++) {
			l = &dz->list[o][t][pref->content[i]];
			if (l->count)
				return buddy_take(p, l->head, l->head, order, c);
		}
	}
	for (unsigned i = 0; i < pref->nr; i++) {
		for (unsigned o = MAX(order, PAGEBLOCK_ORDER); o < NR_ORDERS; o++) {
			l = &dz->list[o][t][pref->content[i]];
			if (l->count)
				return buddy_take(p, l->head, l->head, order, c);
		}
	}
	return PFN_NONE;
}

pfn_t free_head(const struct phys *p, pfn_t pfn, unsigned from)
{
	for (unsigned o = from; o < NR_ORDERS; o++) {
		pfn_t head = pfn & ~((1u << o) - 1);
		const struct page *page = &p->mem_map[head];

		if (page->flags & PG_BUDDY && page_order(page) >= o)
			return head;
	}
	return PFN_NONE;
}
