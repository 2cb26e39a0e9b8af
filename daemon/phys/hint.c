/* SPDX-License-Identifier: MIT */
/*
 * hint.c - allocation at an exact place, and the report of one that found none.
 *
 * A hint continues a run of frames, so that a client maps it with one mapping. It is taken if
 * that very block is free in the domain or nobody's, its zone is one the request may use and
 * above its watermark, on the caller's node, and of the right type and content. Everything
 * else is left to the ordinary way.
 */
#include "base/clock.h"
#include "base/log.h"
#include "daemon/phys/internal.h"

static bool content_wanted(const struct alloc_context *ac, enum content c)
{
	return !ac->ready_only || c == CONTENT_ZEROED || (c == CONTENT_HOLE && ac->hole_ok);
}

static struct zone *hint_zone(struct alloc_context *ac)
{
	const struct alloc_request *rq = ac->rq;
	struct zone *z = pfn_zone(ac->p, rq->hint);

	if (!z || !pfn_to_page(ac->p, rq->hint) || z->node != ac->preferred ||
	    (enum zone_type)z->type > ac->highest)
		return NULL;
	if (!zone_pages_ok(z, rq->order, z->watermark[ac->flags & ALLOC_WMARK_MASK], ac->highest,
			   ac->flags))
		return NULL;
	/* Only the next deferred section is initialised for a hint. */
	if (rq->hint >= z->deferred && rq->hint < zone_private(z)->deferred_end &&
	    (rq->hint - z->deferred >= ac->p->section_pages || !zone_grow(z)))
		return NULL;
	return z;
}

/* Does the domain have zeroed leaves in the zone, for a leaf that has to be zeroed? */
static bool zeroed_leaves(const struct alloc_context *ac, const struct zone *z)
{
	const struct domain_zone *dz = ac->d->zone[z->index];

	return ac->rq->order >= PAGEBLOCK_ORDER && !(ac->rq->gfp & GFP_NO_ZERO) && dz &&
	       dz->zeroed_pages >= UINT64_C(1) << ac->rq->order;
}

/* The free block that covers the hint, made one of the domain and of the type asked for. */
static pfn_t hint_block(struct alloc_context *ac, struct zone *z)
{
	const struct alloc_request *rq = ac->rq;
	struct phys *p = ac->p;
	pfn_t head = free_head(p, rq->hint, rq->order);
	struct domain *owner;

	if (head == PFN_NONE)
		return PFN_NONE;
	owner = block_owner(p, head);
	if (owner == p->domains[0]) {
		/* What is zeroed already beats what would be contiguous. */
		if (!content_wanted(ac, CONTENT_HOLE) || zeroed_leaves(ac, z) ||
		    !block_claim(p, ac->d, z, rq->order, ac->type,
				 ALIGN_DOWN(rq->hint, PAGEBLOCK_PAGES)))
			return PFN_NONE;
		return free_head(p, rq->hint, rq->order);
	}
	if (owner != ac->d || !content_wanted(ac, block_content(p, head)) ||
	    (block_content(p, head) != CONTENT_ZEROED && zeroed_leaves(ac, z)))
		return PFN_NONE;
	if (pfn_block(p, head)->migratetype == ac->type)
		return head;
	if (pfn_block(p, head)->migratetype >= NR_PCP_TYPES ||
	    page_order(&p->mem_map[head]) < PAGEBLOCK_ORDER)
		return PFN_NONE;
	pageblock_retype(p, head, ac->type);
	return free_head(p, rq->hint, rq->order);
}

pfn_t alloc_at_hint(struct alloc_context *ac, struct zone **zone, enum content *c)
{
	const struct alloc_request *rq = ac->rq;
	struct phys *p = ac->p;
	const struct page *page;
	pfn_t head;

	if (rq->hint >= p->nr_frames || (rq->order && rq->order < PAGEBLOCK_ORDER) ||
	    !IS_ALIGNED(rq->hint, 1u << rq->order))
		return PFN_NONE;
	*zone = hint_zone(ac);
	if (!*zone)
		return PFN_NONE;
	page = &p->mem_map[rq->hint];
	if (page->flags & PG_PCP && !rq->order) {
		*c = block_content(p, rq->hint);
		if (block_owner(p, rq->hint) != ac->d || !content_wanted(ac, *c) ||
		    pfn_block(p, rq->hint)->migratetype != ac->type)
			return PFN_NONE;
		pcp_unlink(p, rq->hint);
		return rq->hint;
	}
	head = hint_block(ac, *zone);
	return head == PFN_NONE ? PFN_NONE : buddy_take(p, head, rq->hint, rq->order, c);
}

static void report_zone(const struct zone *z)
{
	log_warning("  node %u %s: free %llukB min %llukB low %llukB high %llukB managed %llukB "
		    "pcp %llukB highatomic %llukB",
		    z->node, zone_type_name(z->type), (unsigned long long)z->nr_free * 4,
		    (unsigned long long)z->watermark[WMARK_MIN] * 4,
		    (unsigned long long)z->watermark[WMARK_LOW] * 4,
		    (unsigned long long)z->watermark[WMARK_HIGH] * 4,
		    (unsigned long long)z->managed * 4, (unsigned long long)z->nr_pcp * 4,
		    (unsigned long long)z->nr_highatomic * 4);
}

void alloc_report(struct alloc_context *ac)
{
	const struct alloc_request *rq = ac->rq;
	struct phys *p = ac->p;
	uint64_t now = clock_now();

	if (rq->gfp & ARENA_GFP_NOWARN)
		return;
	if (p->last_report && now - p->last_report < NSEC_PER_SEC)
		return;
	p->last_report = now;
	log_warning("page allocation failure: order:%u, gfp:0x%x, migratetype:%s, cpu:%u, "
		    "domain:%u (used %llukB, %llu blocks)",
		    rq->order, rq->gfp, migratetype_name(ac->type), rq->cpu, ac->d->id,
		    (unsigned long long)ac->d->nr_used * 4, (unsigned long long)ac->d->nr_blocks);
	for (unsigned n = 0; n < p->nr_nodes; n++)
		for (unsigned t = 0; t < NR_ZONE_TYPES; t++)
			if (p->node[n].zone[t].present)
				report_zone(&p->node[n].zone[t]);
}
