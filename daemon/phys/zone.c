/* SPDX-License-Identifier: MIT */
/*
 * zone.c - boot: the arena's layout in nodes and zones, and what others may ask about them.
 *
 *   pfn 0                                                            nr_frames
 *   | node 0: DMA | NORMAL | HIGHMEM        | node 1: DMA | NORMAL | HIGHMEM ...|
 *
 * Boundaries lie on pageblocks; nodes begin on order-10 boundaries where they are that large.
 * Reserved ranges are rounded out to pageblocks for the buddy, because a pageblock belongs to
 * one domain as a whole.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "daemon/phys/internal.h"
#include "daemon/store/store.h"
#include "daemon/sync/lock.h"

#define SECTION_SIZE_DEFAULT (UINT64_C(128) << 20)
#define ZONE_DMA_LEAST (UINT64_C(2) << 20)
#define ZONE_DMA_MOST (UINT64_C(64) << 20)
/* An arena up to here is initialised wholly at boot: 8 MiB of mem_map. */
#define DEFER_ABOVE_FRAMES (UINT64_C(1) << 18)
#define NODE_ALIGN (PAGEBLOCK_SIZE << (MAX_ORDER - PAGEBLOCK_ORDER))

static uint64_t round_node(uint64_t size)
{
	return ALIGN_DOWN(size, size >= NODE_ALIGN ? NODE_ALIGN : PAGEBLOCK_SIZE);
}

/* Sizes in bytes of all nodes; what is left over by equal shares goes to the last. */
static int node_sizes(const struct phys_config *config, uint64_t size[NUMA_MAX_NODES])
{
	uint64_t arena = ALIGN_DOWN(config->arena_size, PAGEBLOCK_SIZE);
	unsigned nr = config->topology->nr_nodes;
	uint64_t sum = 0;

	for (unsigned n = 0; n < nr; n++) {
		size[n] = round_node(config->node_size[n]);
		if (sum + size[n] < sum)
			return ARENA_E_INVALID;
		sum += size[n];
	}
	if (!sum) {
		for (unsigned n = 0; n < nr; n++) {
			size[n] = n == nr - 1 ? arena - sum : round_node(arena / nr);
			sum += size[n];
		}
	}
	if (sum > arena || sum >> ARENA_PAGE_SHIFT >= PFN_NONE)
		return ARENA_E_INVALID;
	for (unsigned n = 0; n < nr; n++)
		if (!size[n])
			return ARENA_E_INVALID;
	return 0;
}

static int zone_sizes(const struct phys_config *config, uint64_t node, uint64_t out[NR_ZONE_TYPES])
{
	uint64_t dma = config->zone_dma, normal = config->zone_normal;

	if (!dma)
		dma = MIN(MAX(node / 64, ZONE_DMA_LEAST), ZONE_DMA_MOST);
	dma = ALIGN_UP(dma, PAGEBLOCK_SIZE);
	if (dma < config->zone_dma || dma > node)
		return ARENA_E_INVALID;
	if (!normal)
		normal = MIN(node / 4, node - dma);
	normal = ALIGN_UP(normal, PAGEBLOCK_SIZE);
	if (normal < config->zone_normal || normal > node - dma)
		return ARENA_E_INVALID;
	out[ZONE_DMA] = dma;
	out[ZONE_NORMAL] = normal;
	out[ZONE_HIGHMEM] = node - dma - normal;
	return 0;
}

void phys_setup_node(struct phys *p, unsigned n, pfn_t start, const uint32_t end[NR_ZONE_TYPES])
{
	struct node *node = &p->node[n];
	pfn_t at = start;

	node->id = (uint8_t)n;
	node->start = start;
	for (unsigned t = 0; t < NR_ZONE_TYPES; t++) {
		struct zone *z = &node->zone[t];

		z->phys = p;
		z->node = (uint8_t)n;
		z->type = (uint8_t)t;
		z->index = (uint8_t)(n * NR_ZONE_TYPES + t);
		z->start = at;
		z->end = z->deferred = at = end[t];
		zone_private(z)->deferred_end = at;
	}
	node->end = at;
}

static int layout(struct phys *p, const struct phys_config *config)
{
	uint64_t size[NUMA_MAX_NODES], zone[NR_ZONE_TYPES];
	pfn_t at = 0;
	int r = node_sizes(config, size);

	if (r)
		return r;
	for (unsigned n = 0; n < p->nr_nodes; n++) {
		uint32_t end[NR_ZONE_TYPES];
		pfn_t start = at;

		r = zone_sizes(config, size[n], zone);
		if (r)
			return r;
		for (unsigned t = 0; t < NR_ZONE_TYPES; t++)
			end[t] = at += (pfn_t)(zone[t] >> ARENA_PAGE_SHIFT);
		phys_setup_node(p, n, start, end);
	}
	p->nr_frames = at;
	return 0;
}

int phys_setup_memblock(struct phys *p, const struct phys_range *reserved, unsigned nr_reserved)
{
	uint64_t end = p->nr_frames << ARENA_PAGE_SHIFT;

	memblock_init(&p->memblock);
	memblock_set_current_limit(&p->memblock, end);
	for (unsigned n = 0; n < p->nr_nodes; n++) {
		const struct node *node = &p->node[n];
		int r = memblock_add_node(&p->memblock, (uint64_t)node->start << ARENA_PAGE_SHIFT,
					  (uint64_t)(node->end - node->start) << ARENA_PAGE_SHIFT,
					  n, MEMBLOCK_NONE);
		if (r)
			return r;
	}
	for (unsigned i = 0; i < nr_reserved; i++) {
		const struct phys_range *range = &reserved[i];
		int r;

		if (range->base >= end || range->size > end - range->base)
			return ARENA_E_INVALID;
		r = memblock_reserve(&p->memblock, range->base, range->size);
		if (r)
			return r;
	}
	return 0;
}

void phys_setup_zonelists(struct phys *p)
{
	uint8_t order[NUMA_MAX_NODES];

	for (unsigned n = 0; n < p->nr_nodes; n++) {
		struct zone **next = p->node[n].zonelist;

		numa_fallback_order(p->topology, n, order);
		for (unsigned i = 0; i < p->nr_nodes; i++)
			for (unsigned t = NR_ZONE_TYPES; t-- > 0;)
				if (p->node[order[i]].zone[t].present)
					*next++ = &p->node[order[i]].zone[t];
		*next = NULL;
	}
}

static void setup_sections(struct phys *p)
{
	for (unsigned s = 0; s < p->nr_sections; s++) {
		struct section_record *rec = &p->state->sections[s];

		truth_store(&rec->node, zone_of_pfn(p, (pfn_t)(s * p->section_pages))->node);
		truth_store(&rec->state, (uint8_t)SECTION_ONLINE);
	}
}

bool zone_deferrable(const struct zone *z, pfn_t *first, pfn_t *end)
{
	const struct phys *p = z->phys;
	uint64_t lo = ALIGN_UP((uint64_t)z->start, p->section_pages) + p->section_pages;
	uint64_t hi = ALIGN_DOWN((uint64_t)z->end, p->section_pages);

	if (p->nr_frames <= DEFER_ABOVE_FRAMES || lo >= hi)
		return false;
	*first = (pfn_t)lo;
	*end = (pfn_t)hi;
	return true;
}

static void setup_zone(struct phys *p, struct zone *z)
{
	struct zone_private *zp = zone_private(z);

	z->present = z->end - z->start;
	z->managed = z->present - reserved_pages(p, z->start, z->end);
	zp->pageblocks[MIGRATE_MOVABLE] = z->managed >> PAGEBLOCK_ORDER;
	zone_add_free(z, (int64_t)z->managed);
	p->managed += z->managed;
	p->nr_unowned += z->managed;
	if (!zone_deferrable(z, &z->deferred, &zp->deferred_end))
		return;
	zp->deferred_pages =
		zp->deferred_end - z->deferred - reserved_pages(p, z->deferred, zp->deferred_end);
}

static void init_sections(struct phys *p)
{
	for (unsigned s = 0; s < p->nr_sections; s++) {
		pfn_t start = (pfn_t)(s * p->section_pages);
		const struct zone *z = zone_of_pfn(p, start);

		if (start >= z->deferred && start < zone_private(z)->deferred_end)
			continue;
		section_init(p, s);
	}
}

static void fill_geometry(const struct phys *p, const struct phys_config *config,
			  struct state_geometry *g)
{
	const struct numa_topology *t = p->topology;

	static_assert(sizeof(g->distance) == sizeof(t->distance) &&
			      sizeof(g->cpu_node) == sizeof(t->cpu_node) &&
			      sizeof(g->node[0].zone_end) == NR_ZONE_TYPES * sizeof(pfn_t) &&
			      sizeof(g->reserved[0]) == sizeof(config->reserved[0]) &&
			      ARRAY_SIZE(g->reserved) == PHYS_MAX_RANGES,
		      "the geometry holds what the topology and configuration do");
	memset(g, 0, sizeof(*g));
	g->nr_nodes = p->nr_nodes;
	g->nr_cpus = p->nr_cpus;
	g->simulated = t->simulated;
	g->nr_reserved = config->nr_reserved;
	memcpy(g->reserved, config->reserved, sizeof(g->reserved));
	memcpy(g->distance, t->distance, sizeof(g->distance));
	memcpy(g->cpu_node, t->cpu_node, sizeof(g->cpu_node));
	for (unsigned n = 0; n < p->nr_nodes; n++) {
		g->node[n].start = p->node[n].start;
		for (unsigned z = 0; z < NR_ZONE_TYPES; z++)
			g->node[n].zone_end[z] = p->node[n].zone[z].end;
	}
}

int phys_use_state(struct phys *p, struct state *s)
{
	if (p->hugepages)
		state_use_hugepages(s);
	p->state = s;
	p->mem_map = s->mem_map;
	p->pageblocks = s->pageblocks;
	p->nr_sections = (unsigned)((p->nr_frames + p->section_pages - 1) / p->section_pages);
	for (unsigned n = 0; n < p->nr_nodes; n++)
		p->node[n].numa_stat = s->tables->numa[n];
	p->block_slot = mem_array(p->nr_frames >> PAGEBLOCK_ORDER, sizeof(p->block_slot[0]));
	return p->block_slot ? domain_init_daemon(p) : ARENA_E_NO_MEMORY;
}

static int boot(struct phys *p, const struct phys_config *config, struct state *s)
{
	struct state_geometry geometry;
	struct state_params params;
	int r;

	r = layout(p, config);
	if (!r)
		r = phys_setup_memblock(p, config->reserved, config->nr_reserved);
	if (r)
		return r;
	fill_geometry(p, config, &geometry);
	params = (struct state_params){.nr_frames = p->nr_frames,
				       .section_pages = p->section_pages,
				       .geometry = &geometry};
	r = state_create(&params, s);
	if (r)
		return r;
	r = phys_use_state(p, s);
	if (r)
		return r;
	setup_sections(p);
	for (unsigned i = 0; i < p->nr_zones; i++)
		setup_zone(p, &p->node[i / NR_ZONE_TYPES].zone[i % NR_ZONE_TYPES]);
	phys_setup_zonelists(p);
	init_sections(p);
	phys_setup_watermarks(p);
	/* Complete: from here on another worker can go on with it. */
	return store_add("state", s->fd);
}

struct phys *phys_new(const struct phys_config *config, uint64_t section_pages)
{
	struct phys *p = mem_alloc(sizeof(*p));

	if (!p)
		return NULL;
	p->topology = config->topology;
	p->nr_nodes = config->topology->nr_nodes;
	p->nr_zones = p->nr_nodes * NR_ZONE_TYPES;
	p->nr_cpus = MAX(config->topology->nr_cpus, 1u);
	p->section_pages = section_pages;
	p->section_order = (unsigned)__builtin_ctzll(p->section_pages);
	p->hugepages = config->hugepages;
	TAILQ_INIT(&p->live);
	TAILQ_INIT(&p->kz.candidates);
	for (unsigned cpu = 0; cpu < NUMA_MAX_CPUS; cpu++)
		p->cpu_node[cpu] = (uint8_t)numa_cpu_to_node(p->topology, cpu);
	return p;
}

int phys_create(const struct phys_config *config, struct state *s, struct phys **out)
{
	uint64_t section = config->section_size ? config->section_size : SECTION_SIZE_DEFAULT;
	struct phys *p;
	int r;

	CONTROL_THREAD();
	*s = (struct state){.fd = -1};
	if (section < PAGEBLOCK_SIZE || section & (section - 1) || section > UINT64_C(1) << 40 ||
	    config->nr_reserved > PHYS_MAX_RANGES)
		return ARENA_E_INVALID;
	p = phys_new(config, section >> ARENA_PAGE_SHIFT);
	if (!p)
		return ARENA_E_NO_MEMORY;
	r = boot(p, config, s);
	if (r) {
		phys_destroy(p);
		return r;
	}
	p->created = true;
	*out = p;
	return 0;
}

void phys_retire(struct phys *p)
{
	kzerod_stop(p);
	p->retired = true;
}

struct phys *phys_destroy(struct phys *p)
{
	bool unkeep;

	if (!p)
		return NULL;
	kzerod_stop(p);
	/* The state first: without it the rest is left over, without the rest it would be damaged. */
	unkeep = p->created || p->retired;
	if (unkeep)
		store_remove("state");
	domain_destroy_all(p, unkeep);
	free(p->block_slot);
	free(p->recovery);
	state_close(p->state);
	free(p);
	return NULL;
}

struct state *phys_state(struct phys *p)
{
	return p->state;
}

const struct numa_topology *phys_topology(const struct phys *p)
{
	return p->topology;
}

unsigned phys_nr_nodes(const struct phys *p)
{
	return p->nr_nodes;
}

struct node *phys_node(struct phys *p, unsigned nid)
{
	return nid < p->nr_nodes ? &p->node[nid] : NULL;
}

const char *zone_type_name(enum zone_type t)
{
	static const char *const names[NR_ZONE_TYPES] = {"DMA", "Normal", "HighMem"};

	return names[t];
}

const char *migratetype_name(enum migratetype t)
{
	static const char *const names[NR_MIGRATETYPES] = {
		"Unmovable", "Movable", "Reclaimable", "HighAtomic", "CMA", "Isolate",
	};

	return names[t];
}

uint64_t phys_nr_frames(const struct phys *p)
{
	return p->nr_frames;
}

uint64_t phys_total_pages(const struct phys *p)
{
	return p->managed;
}

uint64_t phys_free_pages(const struct phys *p)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < p->nr_zones; i++)
		n += p->node[i / NR_ZONE_TYPES].zone[i % NR_ZONE_TYPES].nr_free;
	return n;
}

static uint64_t file_backed(int fd)
{
	uint64_t bytes;

	return os_file_backed(fd, &bytes) < 0 ? 0 : bytes;
}

uint64_t phys_metadata_bytes(struct phys *p)
{
	return file_backed(p->state->fd);
}

uint64_t phys_backed_bytes(struct phys *p)
{
	struct domain *d;
	uint64_t n = 0;

	TAILQ_FOREACH(d, &p->live, link)
		n += file_backed(d->fd);
	return n;
}

uint64_t phys_zeroed_pages(const struct phys *p, const struct domain *d)
{
	return d ? d->nr_zeroed : p->nr_zeroed;
}

/* Deferred frames count as the largest blocks they make, as if no reserved range lay in them. */
uint64_t zone_free_blocks(const struct zone *z, unsigned order, enum migratetype t)
{
	const struct zone_private *zp = zone_private(z);
	uint64_t n;

	if (order >= NR_ORDERS || (unsigned)t >= NR_MIGRATETYPES)
		return 0;
	n = zp->free_blocks[order][t] + zp->isolated_blocks[order][t];
	if (order == 0 && t < NR_PCP_TYPES)
		n += zp->pcp_pages[t];
	if (t == MIGRATE_MOVABLE && order == MAX_ORDER)
		n += zp->deferred_pages >> MAX_ORDER;
	if (t == MIGRATE_MOVABLE && order == PAGEBLOCK_ORDER)
		n += zp->deferred_pages >> PAGEBLOCK_ORDER & 1;
	return n;
}

uint64_t zone_pageblocks(const struct zone *z, enum migratetype t)
{
	return (unsigned)t < NR_MIGRATETYPES ? zone_private(z)->pageblocks[t] : 0;
}
