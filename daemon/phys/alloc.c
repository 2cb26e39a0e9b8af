/* SPDX-License-Identifier: MIT */
/*
 * alloc.c - alloc_pages: which zone, which block, what is in it, and what to try when none is.
 *
 * In one zone, in this order:
 *   1. the domain's free blocks of the type asked for (order 0: the CPU's list first),
 *   2. its wholly free blocks of another type,
 *   3. a pageblock that is nobody's,
 *   4. its dirty blocks, where a hole would do (punching costs more than 3, but is constant),
 *   5. a wholly free block that another domain caches,
 *   6. part of a pageblock of another type.
 * Zones: the zonelist of the caller's node, or of the one that its policy prefers, without the nodes that
 * it does not allow, each checked against its low watermark. If all
 * refuse: free what the rooms above can free at once, go down to min, undo what keeps
 * memory in the wrong place, wait for kzerod, give up the atomic reserve, fail.
 */
#include <string.h>

#include "base/faultpoint.h"
#include "base/os.h"
#include "daemon/phys/internal.h"
#include "daemon/sync/lock.h"

static const struct preference prefer_zeroed = {3, {CONTENT_ZEROED, CONTENT_DIRTY, CONTENT_HOLE}};
static const struct preference prefer_dirty = {3, {CONTENT_DIRTY, CONTENT_ZEROED, CONTENT_HOLE}};
static const struct preference zeroed_or_hole = {2, {CONTENT_ZEROED, CONTENT_HOLE}};
static const struct preference zeroed_only = {1, {CONTENT_ZEROED}};
static const struct preference dirty_only = {1, {CONTENT_DIRTY}};
static const struct preference nothing = {0};

static void choose_contents(struct alloc_context *ac)
{
	bool no_zero = ac->rq->gfp & GFP_NO_ZERO;

	ac->second = nothing;
	if (ac->ready_only) {
		ac->pref = ac->hole_ok ? zeroed_or_hole : zeroed_only;
	} else if (ac->hole_ok && !no_zero) {
		ac->pref = zeroed_or_hole;
		ac->second = dirty_only;
	} else {
		ac->pref = no_zero ? prefer_dirty : prefer_zeroed;
	}
}

static enum migratetype gfp_migratetype(unsigned gfp)
{
	if (gfp & ARENA_GFP_MOVABLE)
		return MIGRATE_MOVABLE;
	return gfp & ARENA_GFP_RECLAIMABLE ? MIGRATE_RECLAIMABLE : MIGRATE_UNMOVABLE;
}

static enum zone_type gfp_zone(unsigned gfp)
{
	if (gfp & ARENA_GFP_DMA)
		return ZONE_DMA;
	return gfp & ARENA_GFP_HIGHMEM ? ZONE_HIGHMEM : ZONE_NORMAL;
}

/* A hole can only be given as one, or backed as a whole; "ready" means neither is needed. */
static bool may_claim(const struct alloc_context *ac)
{
	return !ac->ready_only || ac->hole_ok;
}

static pfn_t rmqueue_buddy(struct alloc_context *ac, struct zone *z, enum content *c)
{
	struct domain_zone *dz = domain_zone(ac->d, z);
	unsigned order = ac->rq->order;
	struct phys *p = ac->p;
	pfn_t pfn = PFN_NONE;

	if (!dz)
		return PFN_NONE;
	if (ac->flags & ALLOC_HARDER && order)
		pfn = rmqueue_smallest(p, dz, order, MIGRATE_HIGHATOMIC, &ac->pref, c);
	if (pfn == PFN_NONE)
		pfn = rmqueue_smallest(p, dz, order, ac->type, &ac->pref, c);
	if (pfn != PFN_NONE)
		return pfn;
	if (steal_whole_block(p, dz, order, ac->type, &ac->pref) ||
	    (may_claim(ac) && block_claim(p, ac->d, z, order, ac->type, PFN_NONE)))
		return rmqueue_smallest(p, dz, order, ac->type, &ac->pref, c);
	if (ac->second.nr) {
		pfn = rmqueue_smallest(p, dz, order, ac->type, &ac->second, c);
		if (pfn == PFN_NONE && steal_whole_block(p, dz, order, ac->type, &ac->second))
			pfn = rmqueue_smallest(p, dz, order, ac->type, &ac->second, c);
		if (pfn != PFN_NONE)
			return pfn;
	}
	if (ac->ready_only)
		return PFN_NONE;
	if (block_uncache(p, z, ac->d) && block_claim(p, ac->d, z, order, ac->type, PFN_NONE))
		return rmqueue_smallest(p, dz, order, ac->type, &ac->pref, c);
	pfn = steal_fallback(p, dz, order, ac->type, &ac->pref, c);
	if (pfn == PFN_NONE && ac->flags & ALLOC_HARDER && !order)
		pfn = rmqueue_smallest(p, dz, order, MIGRATE_HIGHATOMIC, &ac->pref, c);
	return pfn;
}

/* A reserve is not to be hoarded: under ALLOC_HARDER one page is enough. */
static void pcp_fill(struct alloc_context *ac, struct zone *z, struct pcp *pcp)
{
	unsigned n = ac->flags & ALLOC_HARDER ? 1 : zone_private(z)->pcp_batch;
	enum content c;

	while (n--) {
		pfn_t pfn = rmqueue_buddy(ac, z, &c);

		if (pfn == PFN_NONE)
			return;
		pcp_push(ac->p, z, pcp, ac->rq->cpu, pfn, ac->type, c, true);
	}
}

static pfn_t rmqueue(struct alloc_context *ac, struct zone *z, enum content *c)
{
	struct domain_zone *dz;
	struct pcp *pcp;
	pfn_t pfn;

	if (ac->rq->order)
		return rmqueue_buddy(ac, z, c);
	dz = domain_zone(ac->d, z);
	pcp = dz ? pcp_get(ac->p, dz, ac->rq->cpu) : NULL;
	if (!pcp)
		return rmqueue_buddy(ac, z, c);
	pfn = pcp_pop(ac->p, pcp, ac->type, &ac->pref, c);
	if (pfn != PFN_NONE)
		return pfn;
	if (ac->ready_only)
		return rmqueue_buddy(ac, z, c);
	pcp_fill(ac, z, pcp);
	return pcp_pop(ac->p, pcp, ac->type, &ac->pref, c);
}

static bool zone_allowed(const struct alloc_context *ac, const struct zone *z)
{
	if ((enum zone_type)z->type > ac->highest || !z->managed)
		return false;
	return ac->nodes >> z->node & 1;
}

static pfn_t get_page_from_freelist(struct alloc_context *ac, struct zone **zone, enum content *c)
{
	unsigned order = ac->rq->order;

	for (struct zone **at = ac->p->node[ac->preferred].zonelist; *at; at++) {
		struct zone *z = *at;
		pfn_t pfn;

		if (!zone_allowed(ac, z) ||
		    !zone_pages_ok(z, order, z->watermark[ac->flags & ALLOC_WMARK_MASK],
				   ac->highest, ac->flags))
			continue;
		pfn = rmqueue(ac, z, c);
		if (pfn != PFN_NONE) {
			*zone = z;
			return pfn;
		}
	}
	return PFN_NONE;
}

static bool relieve(struct alloc_context *ac)
{
	struct phys *p = ac->p;
	uint64_t freed = 0;

	if (!p->ops || !p->ops->relieve || p->relieving)
		return false;
	p->relieving = true;
	for (struct zone **at = p->node[ac->preferred].zonelist; *at && !freed; at++)
		if (zone_allowed(ac, *at))
			freed = p->ops->relieve(p->ops_ctx, *at, ac->rq->order);
	p->relieving = false;
	return freed;
}

/* Atomic requests may use the reserve as it is. */
static bool unreserve(struct alloc_context *ac)
{
	bool any = false;

	if (ac->flags & ALLOC_HARDER)
		return false;
	for (struct zone **at = ac->p->node[ac->preferred].zonelist; *at; at++)
		if (zone_allowed(ac, *at))
			any |= highatomic_unreserve(ac->p, *at, ac->d, ac->type);
	return any;
}

static pfn_t alloc_slow(struct alloc_context *ac, struct zone **zone, enum content *c)
{
	struct phys *p = ac->p;
	pfn_t pfn;

	state_event(p->state, EV_ALLOCSTALL_DMA + ac->highest, 1);
	if (relieve(ac)) {
		pfn = get_page_from_freelist(ac, zone, c);
		if (pfn != PFN_NONE)
			return pfn;
	}
	ac->flags = ALLOC_WMARK_MIN;
	if (ac->rq->gfp & ARENA_GFP_ATOMIC)
		ac->flags |= ALLOC_HARDER | ALLOC_HIGH;
	pfn = get_page_from_freelist(ac, zone, c);
	if (pfn != PFN_NONE)
		return pfn;
	kzerod_drop(p);
	drain_pages(p, NULL);
	if (ac->rq->order > PAGEBLOCK_ORDER)
		phys_reclaim_blocks(p, NULL, 0);
	pfn = get_page_from_freelist(ac, zone, c);
	if (pfn != PFN_NONE)
		return pfn;
	kzerod_wait(p);
	if (ac->rq->order > PAGEBLOCK_ORDER)
		phys_reclaim_blocks(p, NULL, 0);
	do
		pfn = get_page_from_freelist(ac, zone, c);
	while (pfn == PFN_NONE && unreserve(ac));
	return pfn;
}

/* Bring a block that is on no list into the state the caller asked for. */
static int prep_content(struct alloc_context *ac, pfn_t pfn, enum content c, bool *hole)
{
	struct phys *p = ac->p;
	unsigned order = ac->rq->order;
	uint64_t size = (UINT64_C(1) << order) << ARENA_PAGE_SHIFT;

	*hole = false;
	if (c == CONTENT_ZEROED) {
		state_event(p->state, EV_ARENA_ZEROED_READY, UINT64_C(1) << order);
		return 0;
	}
	if (c == CONTENT_DIRTY && ac->rq->gfp & GFP_NO_ZERO)
		return 0;
	if (c == CONTENT_DIRTY && ac->hole_ok &&
	    os_punch_hole(ac->d->fd, (uint64_t)pfn << ARENA_PAGE_SHIFT, size) >= 0)
		c = CONTENT_HOLE;
	if (c == CONTENT_HOLE && ac->hole_ok) {
		block_mark(p, pfn, order, PB_BACKED);
		state_event(p->state, EV_ARENA_HOLE_LEAF, UINT64_C(1) << (order - PAGEBLOCK_ORDER));
		*hole = true;
		return 0;
	}
	state_event(p->state, EV_ARENA_ZEROED_INLINE, UINT64_C(1) << order);
	if (c == CONTENT_HOLE)
		return block_back(p, pfn, order) ? 0 : ARENA_E_NO_MEMORY;
	memset(domain_address(ac->d, pfn), 0, size);
	return 0;
}

static void count_numa(struct alloc_context *ac, const struct zone *z)
{
	struct node *node = &ac->p->node[z->node], *preferred = &ac->p->node[ac->preferred];

	if (node == preferred) {
		node->numa_stat[NUMA_HIT]++;
	} else {
		node->numa_stat[NUMA_MISS]++;
		preferred->numa_stat[NUMA_FOREIGN]++;
	}
	node->numa_stat[node->id == ac->local ? NUMA_LOCAL : NUMA_OTHER]++;
}

static void claim_frame(struct alloc_context *ac, pfn_t pfn, bool hole)
{
	const struct alloc_request *rq = ac->rq;
	struct page *page = &ac->p->mem_map[pfn];

	page->lru_next = page->lru_prev = PFN_NONE;
	truth_store(&page->mapping, rq->mapping);
	truth_store(&page->index, rq->index);
	page->private_ = 0;
	if (unlikely(page->mapcount))
		truth_store(&page->mapcount, 0u);
	truth_store(&page->flags, page_place(page) | (rq->owner & PG_OWNER) | (hole ? PG_HOLE : 0) |
					  rq->order << PG_ORDER_SHIFT);
	truth_store(&page->refcount, 1u);
}

static int finish(struct alloc_context *ac, struct zone *z, pfn_t pfn, enum content c,
		  struct alloc_result *out)
{
	struct phys *p = ac->p;
	unsigned order = ac->rq->order;
	int r = prep_content(ac, pfn, c, &out->hole);

	if (unlikely(r)) {
		buddy_free(p, pfn, order, block_content(p, pfn));
		return r;
	}
	zone_add_free(z, -(INT64_C(1) << order));
	ac->d->nr_used += UINT64_C(1) << order;
	ac->d->last_cpu = ac->rq->cpu;
	ac->d->nodes |= UINT64_C(1) << ac->preferred;
	if (unlikely(!ac->d->active) && ac->d->refs) {
		ac->d->active = true;
		p->nr_active++;
	}
	claim_frame(ac, pfn, out->hole);
	out->pfn = pfn;
	state_event(p->state, EV_PGALLOC_DMA + z->type, UINT64_C(1) << order);
	count_numa(ac, z);
	return 0;
}

static void choose_nodes(struct alloc_context *ac)
{
	const struct alloc_request *rq = ac->rq;
	struct phys *p = ac->p;

	ac->local = ac->preferred = p->cpu_node[rq->cpu % NUMA_MAX_CPUS];
	ac->nodes = UINT64_MAX;
	if (rq->gfp & ARENA_GFP_THISNODE) {
		ac->nodes = UINT64_C(1) << ac->local;
	} else if (rq->nodes) {
		struct zone **at = p->node[ac->local].zonelist;

		ac->nodes = rq->nodes;
		while (*at && !(ac->nodes >> (*at)->node & 1))
			at++;
		if (*at)
			ac->preferred = (*at)->node;
	} else if (rq->prefer && rq->prefer <= p->nr_nodes) {
		ac->preferred = rq->prefer - 1;
	}
}

int alloc_pages(struct phys *p, const struct alloc_request *rq, struct alloc_result *out)
{
	struct alloc_context ac = {
		.p = p,
		.rq = rq,
		.d = rq->domain,
		.type = gfp_migratetype(rq->gfp),
		.highest = gfp_zone(rq->gfp),
		.ready_only = rq->gfp & GFP_READY_ONLY,
		.hole_ok = rq->gfp & GFP_HOLE_OK && rq->order >= PAGEBLOCK_ORDER,
	};
	bool slow = false;
	struct zone *z;
	enum content c;
	pfn_t pfn;
	int r;

	CONTROL_THREAD();
	if (rq->order > MAX_ORDER || !rq->domain || rq->domain == p->domains[0])
		return ARENA_E_INVALID;
	if (faultpoint("phys.page"))
		return ARENA_E_NO_MEMORY;
	choose_nodes(&ac);
	choose_contents(&ac);
	ac.flags = ac.ready_only ? ALLOC_WMARK_HIGH : ALLOC_WMARK_LOW;
	pfn = alloc_at_hint(&ac, &z, &c);
	if (pfn == PFN_NONE)
		pfn = get_page_from_freelist(&ac, &z, &c);
	if (unlikely(pfn == PFN_NONE) && !ac.ready_only) {
		slow = true;
		pfn = alloc_slow(&ac, &z, &c);
	}
	if (unlikely(pfn == PFN_NONE)) {
		if (!ac.ready_only)
			alloc_report(&ac);
		return ARENA_E_NO_MEMORY;
	}
	r = finish(&ac, z, pfn, c, out);
	if (!r && slow && rq->order && rq->gfp & ARENA_GFP_ATOMIC)
		highatomic_reserve(p, pfn, rq->order);
	return r;
}

void phys_set_pressure_ops(struct phys *p, const struct phys_pressure_ops *ops, void *ctx)
{
	p->ops = ops;
	p->ops_ctx = ctx;
}
