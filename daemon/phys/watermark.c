/* SPDX-License-Identifier: MIT */
/*
 * watermark.c - how much of a zone may be given to whom.
 *
 *   free pages
 *     high  -------  kswapd stops; memory given ahead of need stays above
 *     low   -------  an allocation goes on without further ado
 *     min   -------  ordinary allocations stop; ATOMIC ones go below, to a part of it
 *
 * min shares min_free_kbytes out by zone size; low and high are min plus one and two times the
 * larger of min/4 and watermark_scale_factor/10000 of the zone. A request that could have used
 * a higher zone leaves lowmem_reserve of that zone untouched besides: the managed pages of
 * the zones above it on the node, up to the one it asked for, divided by the zone's ratio.
 */
#include "daemon/phys/internal.h"
#include "daemon/sync/lock.h"

static const unsigned lowmem_reserve_ratio[NR_ZONE_TYPES] = {
	[ZONE_DMA] = 256,
	[ZONE_NORMAL] = 32,
	[ZONE_HIGHMEM] = 0,
};

#define MIN_FREE_KBYTES_LEAST UINT64_C(64)
#define MIN_FREE_KBYTES_MOST UINT64_C(262144)

static uint64_t square_root(uint64_t x)
{
	uint64_t root = 0;

	for (uint64_t bit = UINT64_C(1) << 31; bit; bit >>= 1)
		if ((root | bit) * (root | bit) <= x)
			root |= bit;
	return root;
}

static uint64_t default_min_free_kbytes(const struct phys *p)
{
	uint64_t kbytes = p->managed << (ARENA_PAGE_SHIFT - 10);
	uint64_t value = MIN(square_root(kbytes * 16), kbytes / 64);

	return MAX(MIN(value, MIN_FREE_KBYTES_MOST), MIN_FREE_KBYTES_LEAST);
}

static void setup_lowmem_reserve(struct node *n)
{
	for (unsigned i = 0; i < NR_ZONE_TYPES; i++) {
		uint64_t above = 0;

		for (unsigned j = 0; j < NR_ZONE_TYPES; j++) {
			if (j > i)
				above += n->zone[j].managed;
			n->zone[i].lowmem_reserve[j] = j > i && lowmem_reserve_ratio[i]
							       ? above / lowmem_reserve_ratio[i]
							       : 0;
		}
	}
}

static void setup_zone(struct phys *p, struct zone *z, uint64_t pages_min)
{
	uint64_t scale = state_tunable(p->state, TUNABLE_WATERMARK_SCALE_FACTOR);
	uint64_t min = p->managed ? pages_min * z->managed / p->managed : 0;
	uint64_t gap = MAX(min / 4, z->managed * scale / 10000);

	z->watermark[WMARK_MIN] = min;
	z->watermark[WMARK_LOW] = min + gap;
	z->watermark[WMARK_HIGH] = min + 2 * gap;
	pcp_setup(z);
}

void phys_setup_watermarks(struct phys *p)
{
	uint64_t *min_free = &p->state->tunables[TUNABLE_MIN_FREE_KBYTES];

	CONTROL_THREAD();
	if (!*min_free)
		truth_store(min_free, default_min_free_kbytes(p));
	for (unsigned n = 0; n < p->nr_nodes; n++) {
		setup_lowmem_reserve(&p->node[n]);
		for (unsigned t = 0; t < NR_ZONE_TYPES; t++)
			setup_zone(p, &p->node[n].zone[t], *min_free / 4);
	}
}

bool zone_pages_ok(const struct zone *z, unsigned order, uint64_t mark, enum zone_type highest,
		   unsigned alloc_flags)
{
	uint64_t unusable = (UINT64_C(1) << order) - 1;
	uint64_t min = mark;

	if (alloc_flags & ALLOC_NO_WATERMARKS)
		return true;
	if (alloc_flags & ALLOC_HIGH)
		min -= min / 2;
	if (alloc_flags & ALLOC_OOM)
		min -= min / 2;
	else if (alloc_flags & ALLOC_HARDER)
		min -= min / 4;
	if (!(alloc_flags & (ALLOC_HARDER | ALLOC_OOM)))
		unusable += z->nr_highatomic;
	if (!(alloc_flags & ALLOC_CMA))
		unusable += z->stat[NR_FREE_CMA];
	return z->nr_free > unusable + min + z->lowmem_reserve[highest];
}

bool zone_watermark_ok(const struct zone *z, unsigned order, uint64_t mark, enum zone_type highest,
		       unsigned alloc_flags)
{
	const struct zone_private *zp = zone_private(z);

	if (!zone_pages_ok(z, order, mark, highest, alloc_flags))
		return false;
	if (!order || zp->deferred_pages)
		return true;
	for (unsigned o = order; o < NR_ORDERS; o++) {
		for (unsigned t = 0; t < NR_PCP_TYPES; t++)
			if (zp->free_blocks[o][t] + zp->isolated_blocks[o][t])
				return true;
		if (alloc_flags & (ALLOC_HARDER | ALLOC_OOM) &&
		    zp->free_blocks[o][MIGRATE_HIGHATOMIC])
			return true;
		if (alloc_flags & ALLOC_CMA && zp->free_blocks[o][MIGRATE_CMA])
			return true;
	}
	return false;
}
