/* SPDX-License-Identifier: MIT */
/*
 * pcp.c - per-CPU lists of single pages in front of the buddy.
 *
 * Per domain and zone, because free memory below a pageblock never leaves its domain. The list of
 * an allocation is that of the caller's CPU; a freed page goes to the list of the CPU on which
 * its domain allocated last, most recently freed first. `high` bounds a list, `batch` pages move
 * at a time. Refills append, so that pages split from one block come out in ascending order.
 *
 * A page on a list keeps in private_ which list that is: cpu << 8 | type << 4 | content.
 */
#include "base/mem.h"
#include "daemon/phys/internal.h"
#include "daemon/sync/lock.h"

struct pcp *pcp_get(struct phys *p, struct domain_zone *dz, unsigned cpu)
{
	struct pcp **slot = &dz->pcp[cpu % p->nr_cpus];

	if (unlikely(!*slot))
		*slot = mem_alloc(sizeof(**slot));
	return *slot;
}

static void account(struct phys *p, struct zone *z, pfn_t pfn, enum migratetype t, enum content c,
		    int64_t sign)
{
	zone_private(z)->pcp_pages[t] += (uint64_t)sign;
	z->nr_pcp += (uint64_t)sign;
	if (c == CONTENT_ZEROED) {
		block_owner(p, pfn)->nr_zeroed += (uint64_t)sign;
		p->nr_zeroed += (uint64_t)sign;
	}
}

void pcp_push(struct phys *p, struct zone *z, struct pcp *pcp, unsigned cpu, pfn_t pfn,
	      enum migratetype t, enum content c, bool at_tail)
{
	struct page *page = &p->mem_map[pfn];

	page_set_free_flags(page, PG_PCP | (c == CONTENT_ZEROED ? PG_ZEROED : 0), 0);
	page->private_ = cpu % p->nr_cpus << 8 | (unsigned)t << 4 | (unsigned)c;
	if (at_tail)
		list_push_tail(p, &pcp->list[t][c], pfn);
	else
		list_push_head(p, &pcp->list[t][c], pfn);
	pcp->count++;
	account(p, z, pfn, t, c, 1);
}

void pcp_unlink(struct phys *p, pfn_t pfn)
{
	struct page *page = &p->mem_map[pfn];
	struct zone *z = page_zone(p, page);
	struct pcp *pcp = block_owner(p, pfn)->zone[z->index]->pcp[page->private_ >> 8];
	enum migratetype t = page->private_ >> 4 & 0xf;
	enum content c = page->private_ & 0xf;

	list_unlink(p, &pcp->list[t][c], pfn);
	pcp->count--;
	account(p, z, pfn, t, c, -1);
	page_set_free_flags(page, 0, 0);
}

pfn_t pcp_pop(struct phys *p, struct pcp *pcp, enum migratetype t, const struct preference *pref,
	      enum content *c)
{
	for (unsigned i = 0; i < pref->nr; i++) {
		pfn_t pfn;

		*c = pref->content[i];
		if (*c == CONTENT_HOLE || !pcp->list[t][*c].count)
			continue;
		pfn = pcp->list[t][*c].head;
		pcp_unlink(p, pfn);
		return pfn;
	}
	return PFN_NONE;
}

static void page_to_buddy(struct phys *p, struct domain *d, pfn_t pfn, enum content c)
{
	block_trim(p, d, buddy_free(p, pfn, 0, c));
}

/* Give `n` pages back, those that were not used for longest first. */
static void pcp_shrink(struct phys *p, struct domain *d, struct pcp *pcp, unsigned n)
{
	for (unsigned t = 0; t < NR_PCP_TYPES; t++) {
		for (unsigned c = NR_PCP_CONTENTS; c-- > 0;) {
			struct free_list *l = &pcp->list[t][c];

			for (; n && l->count; n--) {
				pfn_t pfn = l->tail;

				pcp_unlink(p, pfn);
				page_to_buddy(p, d, pfn, c);
			}
		}
	}
}

void pcp_free(struct phys *p, struct domain *d, pfn_t pfn)
{
	struct zone *z = page_zone(p, &p->mem_map[pfn]);
	const struct zone_private *zp = zone_private(z);
	enum migratetype t = pfn_block(p, pfn)->migratetype;
	struct pcp *pcp = NULL;

	if (t < NR_PCP_TYPES)
		pcp = pcp_get(p, d->zone[z->index], d->last_cpu);
	if (!pcp) {
		page_to_buddy(p, d, pfn, CONTENT_DIRTY);
		return;
	}
	pcp_push(p, z, pcp, d->last_cpu, pfn, t, CONTENT_DIRTY, false);
	if (pcp->count > zp->pcp_high)
		pcp_shrink(p, d, pcp, zp->pcp_batch);
}

static void drain_domain(struct phys *p, struct domain *d)
{
	for (unsigned i = 0; i < p->nr_zones; i++) {
		if (!d->zone[i])
			continue;
		for (unsigned cpu = 0; cpu < p->nr_cpus; cpu++) {
			struct pcp *pcp = d->zone[i]->pcp[cpu];

			if (pcp)
				pcp_shrink(p, d, pcp, pcp->count);
		}
	}
}

void drain_pages(struct phys *p, struct domain *d)
{
	CONTROL_THREAD();
	if (d) {
		drain_domain(p, d);
		return;
	}
	TAILQ_FOREACH(d, &p->live, link)
		drain_domain(p, d);
}

/* The CPUs that call a node their own share what may lie on lists. */
static unsigned zone_cpus(const struct zone *z)
{
	const struct phys *p = z->phys;
	unsigned n = 0;

	for (unsigned cpu = 0; cpu < p->nr_cpus; cpu++)
		n += p->cpu_node[cpu] == z->node;
	return MAX(n, 1u);
}

void pcp_setup(struct zone *z)
{
	struct zone_private *zp = zone_private(z);
	uint64_t fraction = state_tunable(z->phys->state, TUNABLE_PERCPU_PAGELIST_HIGH_FRACTION);
	uint64_t batch = MIN(z->managed / 1024, UINT64_C(256)) / 4;
	uint64_t pages = fraction ? z->managed / fraction : z->watermark[WMARK_LOW];
	unsigned power = 1;

	/* One less than a power of two: batches then do not all end on the same boundary. */
	while (power * 2 <= batch + batch / 2)
		power *= 2;
	zp->pcp_batch = MAX(power - 1, 1u);
	zp->pcp_high = (unsigned)MAX(pages / zone_cpus(z), zp->pcp_batch * UINT64_C(4));
}

void zone_pcp_info(const struct zone *z, unsigned cpu, struct pcp_info *out)
{
	const struct zone_private *zp = zone_private(z);
	const struct phys *p = z->phys;
	const struct domain *d;

	*out = (struct pcp_info){.high = zp->pcp_high, .batch = zp->pcp_batch};
	TAILQ_FOREACH(d, &p->live, link)
		if (d->zone[z->index] && d->zone[z->index]->pcp[cpu % p->nr_cpus])
			out->count += d->zone[z->index]->pcp[cpu % p->nr_cpus]->count;
}
