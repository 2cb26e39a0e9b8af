/* SPDX-License-Identifier: MIT */
/*
 * valid.c - phys_is_valid: one pass over mem_map, one over every list, and a comparison.
 *
 * The pass over mem_map finds every frame in exactly one state: part of a free block, on a CPU's
 * list, set aside by kzerod, part of an allocated block, or reserved; it counts heads. The
 * pass over the lists checks that each entry is such a head and lies where its flags say. As
 * both count the same number and a list cannot hold a frame twice (its links agree in both
 * directions), each head is on its list. Sections never initialised are counted, not read.
 */
#include "base/log.h"
#include "daemon/phys/internal.h"

#define CHECK(ok, ...)                                 \
	do {                                           \
		if (!(ok)) {                           \
			log_err("phys: " __VA_ARGS__); \
			return false;                  \
		}                                      \
	} while (0)

struct tally {
	uint64_t blocks[NR_ORDERS][NR_MIGRATETYPES], isolated[NR_ORDERS][NR_MIGRATETYPES];
	uint64_t pcp, present, managed, free, deferred, unowned;
	uint64_t pageblocks[NR_MIGRATETYPES];
};

static bool check_interior(const struct phys *p, pfn_t head, unsigned order)
{
	for (pfn_t pfn = head + 1; pfn < head + (1u << order); pfn++) {
		const struct page *page = &p->mem_map[pfn];

		CHECK(!page->refcount && !(page->flags & ~PG_PLACE),
		      "frame %u inside block %u order %u looks like a head: flags %#x", pfn, head,
		      order, page->flags);
	}
	return true;
}

/* Two free buddies that should be one block. */
static bool check_merged(struct phys *p, pfn_t pfn, unsigned order)
{
	pfn_t buddy = pfn ^ 1u << order;
	const struct page *other;
	bool apart;

	if (order == MAX_ORDER || buddy >= p->nr_frames)
		return true;
	other = &p->mem_map[buddy];
	if (!(other->flags & PG_BUDDY) || page_order(other) != order)
		return true;
	apart = order >= PAGEBLOCK_ORDER &&
		(block_owner(p, pfn) != block_owner(p, buddy) ||
		 page_place(other) != page_place(&p->mem_map[pfn]) ||
		 block_content(p, pfn) != block_content(p, buddy) ||
		 pfn_block(p, pfn)->migratetype != pfn_block(p, buddy)->migratetype);
	CHECK(apart, "free buddies %u and %u of order %u are not merged", pfn, buddy, order);
	return true;
}

static bool check_allocated(struct phys *p, pfn_t pfn, unsigned order)
{
	const struct page *page = &p->mem_map[pfn];
	uint32_t owner = page->flags & PG_OWNER;
	struct domain *d = block_owner(p, pfn);

	CHECK(d != p->domains[0], "allocated block %u is nobody's", pfn);
	CHECK(owner && !(owner & (owner - 1)) &&
		      !(page->flags & (PG_BUDDY | PG_PCP | PG_ISOLATED | PG_ZEROED | PG_RESERVED)),
	      "allocated block %u has flags %#x", pfn, page->flags);
	CHECK(page->mapcount <= page->refcount && page->private_ <= page->refcount &&
		      (!page->private_ || page->flags & PG_LIMBO),
	      "allocated block %u: %u references, %u entries, %u in limbo, flags %#x", pfn,
	      page->refcount, page->mapcount, page->private_, page->flags);
	for (pfn_t b = pfn; b < pfn + (1u << order); b += PAGEBLOCK_PAGES)
		CHECK(block_owner(p, b) == d && pfn_block(p, b)->flags & PB_BACKED,
		      "allocated block %u: owner or flags of the pageblock at %u", pfn, b);
	d->check_used += UINT64_C(1) << order;
	return true;
}

static bool check_free(struct phys *p, pfn_t pfn, unsigned order, struct tally *t)
{
	const struct page *page = &p->mem_map[pfn];
	struct domain *d = block_owner(p, pfn);
	unsigned type = pfn_block(p, pfn)->migratetype;
	enum content c = block_content(p, pfn);

	t->free += UINT64_C(1) << order;
	CHECK(!(page->flags & (PG_OWNER | PG_LIMBO | PG_HOLE)), "free block %u has flags %#x", pfn,
	      page->flags);
	if (d == p->domains[0]) {
		CHECK(page->flags & PG_BUDDY && order >= PAGEBLOCK_ORDER && c == CONTENT_HOLE,
		      "block %u of nobody: order %u flags %#x", pfn, order, page->flags);
		t->unowned += UINT64_C(1) << order;
	}
	CHECK(c != CONTENT_HOLE || order >= PAGEBLOCK_ORDER, "hole %u of order %u", pfn, order);
	if (page->flags & PG_BUDDY)
		t->blocks[order][type]++;
	else if (page->flags & PG_PCP)
		t->pcp++;
	else
		t->isolated[order][type]++;
	for (pfn_t b = pfn; b < pfn + (1u << order); b += PAGEBLOCK_PAGES) {
		CHECK(block_owner(p, b) == d && pfn_block(p, b)->migratetype == type,
		      "free block %u spans owners or types", pfn);
		CHECK(!(pfn_block(p, b)->flags & PB_BACKED) == (c == CONTENT_HOLE) ||
			      page->flags & PG_ISOLATED,
		      "free block %u is partly a hole", pfn);
	}
	return !(page->flags & PG_BUDDY) || check_merged(p, pfn, order);
}

static bool check_block_at(struct phys *p, const struct zone *z, pfn_t pfn, struct tally *t,
			   pfn_t *next)
{
	const struct page *page = &p->mem_map[pfn];
	uint32_t place = (uint32_t)z->node << PG_NODE_SHIFT | z->type;
	unsigned order = page_order(page);
	uint32_t state = page->flags & (PG_BUDDY | PG_PCP | PG_ISOLATED);

	CHECK(page_place(page) == place, "frame %u: flags %#x", pfn, page->flags);
	if (page->flags & PG_RESERVED) {
		CHECK(!page->refcount && !state, "reserved frame %u in use", pfn);
		*next = pfn + 1;
		t->present++;
		return true;
	}
	CHECK(page->refcount || state, "frame %u is nowhere", pfn);
	CHECK(!(state & (state - 1)), "frame %u is on two lists: %#x", pfn, page->flags);
	CHECK(order <= MAX_ORDER && IS_ALIGNED(pfn, 1u << order) && pfn + (1u << order) <= z->end,
	      "block %u order %u", pfn, order);
	*next = pfn + (1u << order);
	t->present += UINT64_C(1) << order;
	t->managed += UINT64_C(1) << order;
	if (!check_interior(p, pfn, order))
		return false;
	return page->refcount ? check_allocated(p, pfn, order) : check_free(p, pfn, order, t);
}

static bool check_pageblock(struct phys *p, pfn_t pfn, struct tally *t)
{
	const struct pageblock *pb = pfn_block(p, pfn);
	struct domain *d = block_owner(p, pfn);

	CHECK(d && d->id == pb->domain, "pageblock at %u: owner %u", pfn, pb->domain);
	CHECK(pb->migratetype < NR_MIGRATETYPES, "pageblock at %u: type %u", pfn, pb->migratetype);
	if (d == p->domains[0])
		CHECK(!pb->flags && pb->migratetype == MIGRATE_MOVABLE,
		      "pageblock at %u is nobody's: flags %u type %u", pfn, pb->flags,
		      pb->migratetype);
	if (!(p->mem_map[pfn].flags & PG_RESERVED))
		t->pageblocks[pb->migratetype]++;
	d->check_blocks++;
	return true;
}

static bool walk_zone(struct phys *p, const struct zone *z, struct tally *t)
{
	pfn_t pfn = z->start, next_block = z->start;

	while (pfn < z->end) {
		unsigned s = pfn_section(p, pfn);
		const struct section_record *rec = &p->state->sections[s];
		uint64_t section_end = (s + UINT64_C(1)) * p->section_pages;
		pfn_t end = (pfn_t)MIN(section_end, (uint64_t)z->end);

		if (rec->state == SECTION_ONLINE && pfn >= z->deferred &&
		    pfn < p->zp[z->index].deferred_end) {
			CHECK(!rec->initialised, "deferred section %u is initialised", s);
			t->present += end - pfn;
			t->deferred += end - pfn - reserved_pages(p, pfn, end);
		} else if (rec->state == SECTION_ONLINE) {
			CHECK(rec->initialised, "section %u is not initialised", s);
			for (; next_block < end; next_block += PAGEBLOCK_PAGES)
				if (!check_pageblock(p, next_block, t))
					return false;
			/* A block of order 10 may reach into the next section. */
			while (pfn < end)
				if (!check_block_at(p, z, pfn, t, &pfn))
					return false;
			continue;
		}
		pfn = next_block = end;
	}
	for (; next_block < z->end; next_block += PAGEBLOCK_PAGES)
		if (!check_pageblock(p, next_block, t))
			return false;
	t->managed += t->deferred;
	t->free += t->deferred;
	t->unowned += t->deferred;
	t->pageblocks[MIGRATE_MOVABLE] += t->deferred >> PAGEBLOCK_ORDER;
	return true;
}

static bool check_list(struct phys *p, const struct free_list *l, uint32_t flag,
		       const struct zone *z, const struct domain *d)
{
	pfn_t prev = PFN_NONE, pfn = l->count ? l->head : PFN_NONE;
	uint32_t n = 0;

	for (; pfn != PFN_NONE; prev = pfn, pfn = p->mem_map[pfn].lru_next) {
		const struct page *page;

		CHECK(pfn < p->nr_frames && n < l->count, "a list of domain %u runs wild", d->id);
		page = &p->mem_map[pfn];
		CHECK(page->lru_prev == prev, "list links of frame %u", pfn);
		CHECK(page->flags & flag && !page->refcount, "frame %u on a list: flags %#x", pfn,
		      page->flags);
		CHECK(block_owner(p, pfn) == d && page_zone(p, page) == z,
		      "frame %u on a list of domain %u", pfn, d->id);
		n++;
	}
	CHECK(n == l->count && (!n || l->tail == prev), "list of domain %u: %u of %u entries",
	      d->id, n, l->count);
	return true;
}

static bool check_entries(struct phys *p, const struct free_list *l, unsigned order, unsigned type,
			  enum content c)
{
	pfn_t pfn = l->count ? l->head : PFN_NONE;

	for (; pfn != PFN_NONE; pfn = p->mem_map[pfn].lru_next)
		CHECK(page_order(&p->mem_map[pfn]) == order && block_content(p, pfn) == c &&
			      (type == NR_MIGRATETYPES || pfn_block(p, pfn)->migratetype == type),
		      "block %u lies on a wrong list", pfn);
	return true;
}

/* Sums over a domain's lists. */
struct sums {
	uint64_t zeroed, block_pages, zeroed_blocks;
};

static bool check_lists(struct phys *p, const struct zone *z, struct domain *d, struct tally *t,
			struct sums *sums)
{
	const struct domain_zone *dz = d->zone[z->index];

	for (unsigned o = 0; o < NR_ORDERS; o++) {
		for (unsigned type = 0; type < NR_MIGRATETYPES; type++) {
			for (unsigned c = 0; c < NR_CONTENTS; c++) {
				const struct free_list *l = &dz->list[o][type][c];
				uint64_t pages = (uint64_t)l->count << o;

				if (!check_list(p, l, PG_BUDDY, z, d) ||
				    !check_entries(p, l, o, type, c))
					return false;
				t->blocks[o][type] -= l->count;
				sums->zeroed += c == CONTENT_ZEROED ? pages : 0;
				if (o < PAGEBLOCK_ORDER)
					continue;
				sums->block_pages += pages;
				sums->zeroed_blocks += c == CONTENT_ZEROED ? pages : 0;
			}
		}
	}
	for (unsigned cpu = 0; cpu < p->nr_cpus; cpu++) {
		const struct pcp *pcp = dz->pcp[cpu];
		uint32_t n = 0;

		for (unsigned i = 0; pcp && i < NR_PCP_TYPES * NR_PCP_CONTENTS; i++) {
			const struct free_list *l =
				&pcp->list[i / NR_PCP_CONTENTS][i % NR_PCP_CONTENTS];

			if (!check_list(p, l, PG_PCP, z, d) ||
			    !check_entries(p, l, 0, NR_MIGRATETYPES, i % NR_PCP_CONTENTS))
				return false;
			n += l->count;
			sums->zeroed += i % NR_PCP_CONTENTS == CONTENT_ZEROED ? l->count : 0;
		}
		CHECK(!pcp || pcp->count == n, "cpu %u: %u pages on lists", cpu, n);
		t->pcp -= n;
	}
	return true;
}

static bool check_zone(struct phys *p, struct zone *z)
{
	const struct zone_private *zp = zone_private(z);
	struct tally t = {0};
	struct sums sums = {0};
	uint64_t pcp = 0;
	struct domain *d;

	if (!walk_zone(p, z, &t))
		return false;
	CHECK(t.present == z->present && t.managed == z->managed,
	      "zone %u: present %llu managed %llu", z->index, (unsigned long long)t.present,
	      (unsigned long long)t.managed);
	CHECK(t.free == z->nr_free && z->stat[NR_FREE_PAGES] == z->nr_free,
	      "zone %u: %llu pages free, counted %llu", z->index, (unsigned long long)t.free,
	      (unsigned long long)z->nr_free);
	CHECK(t.pcp == z->nr_pcp && t.deferred == zp->deferred_pages, "zone %u: pcp or deferred",
	      z->index);
	CHECK(z->nr_highatomic == t.pageblocks[MIGRATE_HIGHATOMIC] * PAGEBLOCK_PAGES,
	      "zone %u: nr_highatomic", z->index);
	for (unsigned type = 0; type < NR_MIGRATETYPES; type++) {
		CHECK(zp->pageblocks[type] == t.pageblocks[type], "zone %u: pageblocks of type %u",
		      z->index, type);
		pcp += type < NR_PCP_TYPES ? zp->pcp_pages[type] : 0;
		for (unsigned o = 0; o < NR_ORDERS; o++)
			CHECK(zp->free_blocks[o][type] == t.blocks[o][type] &&
				      zp->isolated_blocks[o][type] == t.isolated[o][type],
			      "zone %u: blocks of order %u type %u", z->index, o, type);
	}
	CHECK(pcp == z->nr_pcp, "zone %u: pcp by type", z->index);
	if (!check_lists(p, z, p->domains[0], &t, &sums))
		return false;
	TAILQ_FOREACH(d, &p->live, link)
		if (d->zone[z->index] && !check_lists(p, z, d, &t, &sums))
			return false;
	for (unsigned o = 0; o < NR_ORDERS; o++)
		for (unsigned type = 0; type < NR_MIGRATETYPES; type++)
			CHECK(!t.blocks[o][type], "zone %u: a block of order %u is on no list",
			      z->index, o);
	CHECK(!t.pcp, "zone %u: a page is on no CPU's list", z->index);
	return true;
}

static bool check_domain(struct phys *p, struct domain *d, uint64_t *zeroed)
{
	uint64_t isolated = 0;
	struct sums sums = {0};

	for (unsigned i = 0; i < KZ_BATCHES; i++)
		for (unsigned k = 0; p->kz.batch[i].domain == d && k < p->kz.batch[i].nr; k++)
			if (load_relaxed(&p->kz.batch[i].block[k].state) != KZ_DROPPED)
				isolated += UINT64_C(1) << p->kz.batch[i].block[k].order;
	for (unsigned i = 0; i < p->nr_zones; i++) {
		struct tally unused = {0};
		struct zone *z = &p->node[i / NR_ZONE_TYPES].zone[i % NR_ZONE_TYPES];

		if (d->zone[i] && !check_lists(p, z, d, &unused, &sums))
			return false;
	}
	*zeroed += sums.zeroed;
	CHECK(d->nr_zeroed == sums.zeroed && d->free_block_pages == sums.block_pages &&
		      d->zeroed_block_pages == sums.zeroed_blocks && d->nr_isolated == isolated,
	      "domain %u: zeroed, whole or isolated pages", d->id);
	CHECK(d->nr_used == d->check_used && d->nr_blocks == d->check_blocks,
	      "domain %u: %llu pages used, counted %llu; %llu blocks, counted %llu", d->id,
	      (unsigned long long)d->check_used, (unsigned long long)d->nr_used,
	      (unsigned long long)d->check_blocks, (unsigned long long)d->nr_blocks);
	CHECK(p->state->domains[d->slot].kind == d->kind && p->state->domains[d->slot].id == d->id,
	      "domain %u: record", d->id);
	return true;
}

bool phys_is_valid(struct phys *p)
{
	uint64_t zeroed = 0, managed = 0, unowned = 0, cached = 0, cached_domains = 0;
	struct domain *d;

	CHECK(!p->recovery, "recovery is not finished");
	CHECK(state_is_valid(p->state), "state header, geometry or tables");
	CHECK(memblock_is_valid(&p->memblock), "memblock");
	TAILQ_FOREACH(d, &p->live, link)
		d->check_used = d->check_blocks = 0;
	for (unsigned i = 0; i < p->nr_zones; i++) {
		struct zone *z = &p->node[i / NR_ZONE_TYPES].zone[i % NR_ZONE_TYPES];

		if (!check_zone(p, z))
			return false;
		managed += z->managed;
		cached += p->zp[i].cached_pages;
		unowned += p->zp[i].deferred_pages;
		for (unsigned o = PAGEBLOCK_ORDER; o < NR_ORDERS; o++)
			unowned += (uint64_t)p->domains[0]
					   ->zone[i]
					   ->list[o][MIGRATE_MOVABLE][CONTENT_HOLE]
					   .count
				   << o;
	}
	TAILQ_FOREACH(d, &p->live, link) {
		if (!check_domain(p, d, &zeroed))
			return false;
		cached_domains += d->free_block_pages;
	}
	CHECK(zeroed == p->nr_zeroed, "zeroed pages");
	CHECK(managed == p->managed && unowned == p->nr_unowned && cached == cached_domains,
	      "managed, unowned or cached pages");
	return true;
}
