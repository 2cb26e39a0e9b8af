/* SPDX-License-Identifier: MIT */
/*
 * section.c - the arena in sections: initialised when first needed, taken offline and back.
 *
 * A section that was never initialised has no mem_map memory behind it, so a sparse arena of any
 * size boots at once. Deferred are only whole sections inside one zone:
 *
 *   zone  |start ...... initialised ......|deferred ...... |deferred_end .. initialised ..|end
 *
 * They are initialised in ascending order as domain 0 runs dry. An offline section among them is
 * passed over, and initialised if it comes online later.
 *
 * Offline: only a section all of whose frames are free. The store of its state commits; its frames
 * are on no list and in no counter then.
 */
#include "daemon/phys/internal.h"
#include "daemon/sync/lock.h"

uint64_t reserved_pages(const struct phys *p, pfn_t start, pfn_t end)
{
	const struct memblock_type *t = &p->memblock.reserved;
	uint64_t pages = 0, done = start;

	for (unsigned i = 0; i < t->nr; i++) {
		uint64_t lo = t->region[i].base >> PAGEBLOCK_SHIFT << PAGEBLOCK_ORDER;
		uint64_t last = t->region[i].base + t->region[i].size - 1;
		uint64_t hi = ((last >> PAGEBLOCK_SHIFT) + 1) << PAGEBLOCK_ORDER;

		lo = MAX(lo, done);
		hi = MIN(hi, (uint64_t)end);
		if (lo >= hi)
			continue;
		pages += hi - lo;
		done = hi;
	}
	return pages;
}

bool block_reserved(const struct phys *p, pfn_t pfn)
{
	return memblock_is_region_reserved(&p->memblock, (uint64_t)pfn << ARENA_PAGE_SHIFT,
					   PAGEBLOCK_SIZE);
}

struct zone *zone_of_pfn(struct phys *p, pfn_t pfn)
{
	for (unsigned n = 0; n < p->nr_nodes; n++) {
		struct node *node = &p->node[n];

		if (pfn >= node->end)
			continue;
		for (unsigned t = 0; t < NR_ZONE_TYPES; t++)
			if (pfn >= node->zone[t].start && pfn < node->zone[t].end)
				return &node->zone[t];
	}
	return NULL;
}

pfn_t section_start(const struct phys *p, unsigned section)
{
	return (pfn_t)section << p->section_order;
}

pfn_t section_end(const struct phys *p, unsigned section)
{
	return (pfn_t)MIN(section_start(p, section) + p->section_pages, p->nr_frames);
}

/* Everything before the store of `initialised` is invisible, so these are plain stores. */
void section_fill(struct phys *p, unsigned section)
{
	pfn_t end = section_end(p, section);

	for (pfn_t b = section_start(p, section); b < end; b += PAGEBLOCK_PAGES) {
		const struct zone *z = zone_of_pfn(p, b);
		uint32_t flags = (uint32_t)z->node << PG_NODE_SHIFT | z->type;

		if (block_reserved(p, b))
			flags |= PG_RESERVED;
		*pfn_block(p, b) = (struct pageblock){.migratetype = MIGRATE_MOVABLE};
		for (pfn_t pfn = b; pfn < b + PAGEBLOCK_PAGES; pfn++)
			p->mem_map[pfn] = (struct page){.flags = flags};
	}
	truth_store(&p->state->sections[section].initialised, (uint8_t)1);
}

static void free_all_blocks(struct phys *p, unsigned section)
{
	pfn_t end = section_end(p, section);

	for (pfn_t b = section_start(p, section); b < end; b += PAGEBLOCK_PAGES)
		if (!(p->mem_map[b].flags & PG_RESERVED))
			buddy_free(p, b, PAGEBLOCK_ORDER, CONTENT_HOLE);
}

void section_init(struct phys *p, unsigned section)
{
	section_fill(p, section);
	free_all_blocks(p, section);
}

bool zone_grow(struct zone *z)
{
	struct zone_private *zp = zone_private(z);
	struct phys *p = z->phys;
	bool grown = false;

	while (z->deferred < zp->deferred_end && !grown) {
		unsigned section = pfn_section(p, z->deferred);

		if (p->state->sections[section].state == SECTION_ONLINE) {
			zp->deferred_pages -=
				p->section_pages - reserved_pages(p, section_start(p, section),
								  section_end(p, section));
			section_init(p, section);
			grown = true;
		}
		z->deferred = section_end(p, section);
	}
	if (z->deferred >= zp->deferred_end)
		z->deferred = zp->deferred_end = z->end;
	return grown;
}

static bool section_is_deferred(const struct phys *p, unsigned section, const struct zone *z)
{
	pfn_t start = section_start(p, section);

	return start >= z->deferred && start < p->zp[z->index].deferred_end;
}

/* A section's frames enter (sign 1) or leave (-1) the counters of a zone. */
static void count_pages(struct zone *z, uint64_t present, uint64_t managed, int64_t sign)
{
	struct phys *p = z->phys;
	int64_t pages = sign * (int64_t)managed;

	/* Unsigned counters take a negative change modulo 2^64. */
	z->present += (uint64_t)(sign * (int64_t)present);
	z->managed += (uint64_t)pages;
	p->managed += (uint64_t)pages;
	p->nr_unowned += (uint64_t)pages;
	zone_private(z)->pageblocks[MIGRATE_MOVABLE] +=
		(uint64_t)(sign * (int64_t)(managed >> PAGEBLOCK_ORDER));
	zone_add_free(z, pages);
}

static void count_deferred(struct phys *p, unsigned section, struct zone *z, int64_t sign)
{
	uint64_t managed = p->section_pages -
			   reserved_pages(p, section_start(p, section), section_end(p, section));

	count_pages(z, p->section_pages, managed, sign);
	zone_private(z)->deferred_pages += (uint64_t)sign * managed;
}

/* The first frames of every pageblock, one by one, enter or leave. */
static void count_blocks(struct phys *p, unsigned section, int64_t sign)
{
	pfn_t end = section_end(p, section);

	for (pfn_t b = section_start(p, section); b < end; b += PAGEBLOCK_PAGES)
		count_pages(page_zone(p, &p->mem_map[b]), PAGEBLOCK_PAGES,
			    p->mem_map[b].flags & PG_RESERVED ? 0 : PAGEBLOCK_PAGES, sign);
}

void section_count(struct phys *p, unsigned section)
{
	struct zone *z = zone_of_pfn(p, section_start(p, section));

	if (section_is_deferred(p, section, z))
		count_deferred(p, section, z, 1);
	else
		count_blocks(p, section, 1);
}

/* Make every pageblock of a section a free one of domain 0, or find that it cannot be. */
static int empty_section(struct phys *p, unsigned section)
{
	pfn_t start = section_start(p, section), end = section_end(p, section);

	kzerod_wait(p);
	drain_pages(p, NULL);
	for (pfn_t b = start; b < end; b += PAGEBLOCK_PAGES)
		if (free_head(p, b, PAGEBLOCK_ORDER) == PFN_NONE)
			return ARENA_E_BUSY;
	for (pfn_t b = start; b < end; b += PAGEBLOCK_PAGES) {
		struct domain *d = block_owner(p, b);
		enum content c;

		if (d == p->domains[0])
			continue;
		buddy_take(p, free_head(p, b, PAGEBLOCK_ORDER), b, PAGEBLOCK_ORDER, &c);
		if (!block_give_back(p, b, PAGEBLOCK_ORDER, c)) {
			buddy_free(p, b, PAGEBLOCK_ORDER, CONTENT_DIRTY);
			return ARENA_E_BUSY;
		}
	}
	return 0;
}

int section_offline(struct phys *p, unsigned section)
{
	struct section_record *rec;
	struct zone *z;
	int r;

	CONTROL_THREAD();
	if (section >= p->nr_sections)
		return ARENA_E_INVALID;
	rec = &p->state->sections[section];
	if (rec->state != SECTION_ONLINE)
		return ARENA_E_INVALID;
	z = zone_of_pfn(p, section_start(p, section));
	if (section_is_deferred(p, section, z)) {
		if (reserved_pages(p, section_start(p, section), section_end(p, section)))
			return ARENA_E_BUSY;
		truth_store(&rec->state, (uint8_t)SECTION_OFFLINE);
		count_deferred(p, section, z, -1);
		phys_setup_watermarks(p);
		return 0;
	}
	r = empty_section(p, section);
	if (r)
		return r;
	truth_store(&rec->state, (uint8_t)SECTION_OFFLINE);
	for (pfn_t b = section_start(p, section); b < section_end(p, section);
	     b += PAGEBLOCK_PAGES) {
		enum content c;

		buddy_take(p, free_head(p, b, PAGEBLOCK_ORDER), b, PAGEBLOCK_ORDER, &c);
	}
	count_blocks(p, section, -1);
	phys_setup_watermarks(p);
	return 0;
}

int section_online(struct phys *p, unsigned section)
{
	struct section_record *rec;
	struct zone *z;

	CONTROL_THREAD();
	if (section >= p->nr_sections)
		return ARENA_E_INVALID;
	rec = &p->state->sections[section];
	if (rec->state != SECTION_OFFLINE)
		return ARENA_E_INVALID;
	z = zone_of_pfn(p, section_start(p, section));
	truth_store(&rec->state, (uint8_t)SECTION_ONLINE);
	if (section_is_deferred(p, section, z)) {
		count_deferred(p, section, z, 1);
		phys_setup_watermarks(p);
		return 0;
	}
	if (!rec->initialised)
		section_fill(p, section);
	count_blocks(p, section, 1);
	free_all_blocks(p, section);
	phys_setup_watermarks(p);
	return 0;
}

unsigned phys_nr_sections(const struct phys *p)
{
	return p->nr_sections;
}

uint64_t phys_section_pages(const struct phys *p)
{
	return p->section_pages;
}

enum section_state section_state(const struct phys *p, unsigned section)
{
	return section < p->nr_sections ? p->state->sections[section].state : SECTION_ABSENT;
}

struct page *pfn_to_page(const struct phys *p, pfn_t pfn)
{
	if (pfn >= p->nr_frames || p->state->sections[pfn_section(p, pfn)].state != SECTION_ONLINE)
		return NULL;
	return &p->mem_map[pfn];
}

pfn_t page_to_pfn(const struct phys *p, const struct page *page)
{
	return (pfn_t)(page - p->mem_map);
}

struct zone *pfn_zone(struct phys *p, pfn_t pfn)
{
	if (pfn >= p->nr_frames)
		return NULL;
	if (p->state->sections[pfn_section(p, pfn)].initialised)
		return page_zone(p, &p->mem_map[pfn]);
	return zone_of_pfn(p, pfn);
}
