/* SPDX-License-Identifier: MIT */
/*
 * page.c - references to allocated blocks, and how they end.
 *
 * Freeing stores refcount 0 first: from then on the frame is free, whatever else is still written
 * in it. Only heads have a refcount; an interior frame's is 0 while its block lives.
 *
 * A head's private_ counts those of its references that are somebody's limbo. It is an index: recovery
 * sets it to what it finds clients may still have mapped.
 */
#include "daemon/phys/internal.h"
#include "daemon/sync/lock.h"

static void free_block(struct phys *p, pfn_t head)
{
	struct page *page = &p->mem_map[head];
	struct zone *z = page_zone(p, page);
	struct domain *d = block_owner(p, head);
	unsigned order = page_order(page);

	ASSERT(!page->private_);
	truth_store(&page->refcount, 0u);
	if (page->mapcount)
		truth_store(&page->mapcount, 0u);
	page_set_free_flags(page, 0, 0);
	zone_add_free(z, INT64_C(1) << order);
	d->nr_used -= UINT64_C(1) << order;
	state_event(p->state, EV_PGFREE, UINT64_C(1) << order);
	if (order)
		block_trim(p, d, buddy_free(p, head, order, CONTENT_DIRTY));
	else
		pcp_free(p, d, head);
	if (unlikely(!d->refs))
		domain_try_end(d);
}

void put_page(struct phys *p, pfn_t head)
{
	struct page *page = &p->mem_map[head];

	CONTROL_THREAD();
	BUG_ON(!page->refcount);
	if (page->refcount > 1)
		truth_store(&page->refcount, page->refcount - 1);
	else
		free_block(p, head);
}

void get_page(struct phys *p, pfn_t head)
{
	struct page *page = &p->mem_map[head];

	BUG_ON(!page->refcount || page->refcount == UINT32_MAX);
	truth_store(&page->refcount, page->refcount + 1);
}

void page_enter_limbo(struct phys *p, pfn_t head)
{
	struct page *page = &p->mem_map[head];

	BUG_ON(!page->refcount);
	if (!(page->flags & PG_LIMBO))
		truth_store(&page->flags, page->flags | PG_LIMBO);
	page->private_++;
}

void page_leave_limbo(struct phys *p, pfn_t head)
{
	struct page *page = &p->mem_map[head];

	BUG_ON(!page->private_);
	/* Unless the block ends, and its flags with it. */
	if (!--page->private_ && page->refcount > 1)
		truth_store(&page->flags, page->flags & ~PG_LIMBO);
	put_page(p, head);
}

void split_page(struct phys *p, pfn_t head)
{
	struct page *page = &p->mem_map[head];
	unsigned order = page_order(page);
	uint32_t flags = page->flags & ~(PG_ORDER_MASK << PG_ORDER_SHIFT);

	BUG_ON(!page->refcount || page->private_);
	for (pfn_t i = 1; i < 1u << order; i++) {
		struct page *tail = page + i;

		tail->lru_next = tail->lru_prev = PFN_NONE;
		tail->private_ = 0;
		truth_store(&tail->mapping, page->mapping);
		truth_store(&tail->index, page->index + i);
		truth_store(&tail->mapcount, page->mapcount);
		truth_store(&tail->flags, flags);
		truth_store(&tail->refcount, page->refcount);
	}
	truth_store(&page->flags, flags);
}

pfn_t compound_head(const struct phys *p, pfn_t pfn)
{
	if (pfn >= p->nr_frames)
		return PFN_NONE;
	for (unsigned o = 0; o < NR_ORDERS; o++) {
		pfn_t head = pfn & ~((1u << o) - 1);
		const struct page *page = &p->mem_map[head];

		if (page->refcount)
			return page_order(page) >= o ? head : PFN_NONE;
	}
	return PFN_NONE;
}
