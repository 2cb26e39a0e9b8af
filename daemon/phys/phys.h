/* SPDX-License-Identifier: MIT */
/*
 * phys.h - physical memory: domains, memblock, sections, zones, buddy, per-CPU lists, kzerod.
 *
 * A frame belongs to one domain at a time and ownership moves by pageblock (2 MiB). So each
 * zone has one set of free lists per domain: those of domain 0 hold blocks that are nobody's
 * (orders 9 and 10, and nothing else once reserved memory is cut out), those of another domain
 * hold its free memory of every order. An allocation takes from its domain's lists, then
 * claims a pageblock from domain 0, then takes back a wholly free block from another
 * domain. Zone counters and watermarks are over all domains.
 *
 * Contents of free memory, by block head: PG_ZEROED known zero and backed; a block whose
 * pageblock is not PB_BACKED is a hole, which reads as zeros; else dirty.
 *
 * Everything here belongs to the control thread. The only other thread is kzerod's worker,
 * which writes bytes of blocks set aside for it (PG_ISOLATED).
 */
#ifndef PHYS_PHYS_H
#define PHYS_PHYS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "daemon/phys/state.h"
#include "numa/topology.h"

struct phys;
struct domain;

/* ---- boot ---------------------------------------------------------------------------- */

struct phys_range {
	uint64_t base, size; /* bytes */
};
#define PHYS_MAX_RANGES 16

enum phys_isolation { PHYS_ISOLATION_UID, PHYS_ISOLATION_PROCESS };

struct phys_config {
	uint64_t arena_size;                  /* bytes; rounded down to whole pageblocks */
	const struct numa_topology *topology; /* must outlive phys */
	uint64_t node_size[NUMA_MAX_NODES];   /* bytes; all 0: equal shares */
	uint64_t zone_dma;     /* bytes per node; 0: default, 1/64 of the node, 2..64 MiB */
	uint64_t zone_normal;  /* bytes per node; 0: default, 1/4 of the node */
	uint64_t section_size; /* bytes, power of two >= 2 MiB; 0: 128 MiB */
	struct phys_range reserved[PHYS_MAX_RANGES]; /* kept from the buddy */
	unsigned nr_reserved;
	bool hugepages; /* MADV_HUGEPAGE on the daemon's mappings */
};

/* ARENA_E_INVALID (sizes that do not fit), -errno. *s must be empty; phys fills it, and has the
 * store keep it. */
int phys_create(const struct phys_config *config, struct state *s, struct phys **out);
/*
 * Also closes the state. What the store keeps of it goes too if the arena ends here: after
 * phys_retire(), and where phys_create() made it. A recovered arena that is not retired is only
 * let go of, for the next worker to take over.
 */
struct phys *phys_destroy(struct phys *p);
/* The arena's end is near: nothing will be given out any more, no domain ends, and what is freed keeps
 * its contents, because clients outlive the daemon and go on reading what they have mapped. */
void phys_retire(struct phys *p);
struct state *phys_state(struct phys *p);
const struct numa_topology *phys_topology(const struct phys *p);
/* Every list, counter and flag agrees with mem_map. Slow. Prints the first disagreement. */
bool phys_is_valid(struct phys *p);

/* ---- recovery: a phys over the state that another worker left behind (recover.c) ------- */

/*
 * The order for the rooms above:
 *
 *	state_adopt()  ->  phys_recover_topology()  ->  phys_recover()
 *	->  domain_by_id() and domain_get() for who holds a domain, phys_recover_ref() for each
 *	    reference of a frame                    ->  phys_recover_finish()
 *	->  normal life                             ->  domain_end_unused()
 *
 * Until phys_recover_finish() nothing is on a free list: nothing may be allocated, got or put, and a
 * domain whose last reference goes stays. pfn_to_page(), pfn_zone(), pfn_domain(), compound_head() and
 * domain_address() tell the truth: what a crash left half done in mem_map has been cleared.
 */

/* The topology the state was made with; config->topology of phys_recover(). */
void phys_recover_topology(const struct state *s, struct numa_topology *t);
/*
 * A phys over an adopted state: geometry, sections and pageblock owners from the file (of config only
 * topology and hugepages count), domains from their records and the store's "arena-ID". A domain
 * whose file is not there, or is not its own, is lost: a log line says so, domain_by_id() does not
 * know it, its blocks are nobody's. On failure the state is closed and the store keeps everything.
 */
int phys_recover(const struct phys_config *config, struct state *s, struct phys **out);
/*
 * One entry (maps true) or another holder (an object; maps false) refers to the allocated block with
 * this head. Call for each reference found. False: pfn is no head of a block in use.
 */
bool phys_recover_ref(struct phys *p, pfn_t head, bool maps);
/* Take one back: its holder turned out to be damaged and is dropped. */
void phys_recover_unref(struct phys *p, pfn_t head, bool maps);

/* Has anything called phys_recover_ref() for the block in use with this head? */
bool phys_recover_referenced(struct phys *p, pfn_t head);

struct phys_recover_ops {
	/* Which live clients may still have a PG_LIMBO block mapped: each gets a reference of it in
	 * its limbo, to be dropped with page_leave_limbo(). The number of these references. It may
	 * ask what may be asked during recovery, and change nothing here. */
	unsigned (*limbo)(void *ctx, pfn_t head, struct domain *d);
};
struct phys_recover_stats {
	uint64_t used_pages;           /* in use from here on, in limbo or not */
	uint64_t limbo_pages;          /* of them in use only until clients have flushed */
	uint64_t freed_pages;          /* were claimed, and nothing referred to them */
	uint64_t refcounts, mapcounts; /* blocks whose count was not what was counted */
	uint64_t damaged; /* frames, pageblocks, records repaired that no crash explains */
	unsigned domains, lost_domains;
};
/*
 * All references are counted. Each block in use gets the counts that were found; one that is PG_LIMBO
 * asks ops->limbo() too; one with no reference is freed and counts as dirty. Then the free lists,
 * zone counters and kzerod's accounting are built, and normal life begins. ops NULL: no clients.
 */
int phys_recover_finish(struct phys *p, const struct phys_recover_ops *ops, void *ctx,
			struct phys_recover_stats *stats);
/* End the domains nobody holds a reference of (each as soon as no frame of it is in use). */
void domain_end_unused(struct phys *p);

/* ---- zones, read-only for rooms above ---------------------------------------------------- */

enum watermark { WMARK_MIN, WMARK_LOW, WMARK_HIGH, NR_WMARKS };

struct zone {
	struct phys *phys;
	uint8_t node, type;        /* enum zone_type */
	uint8_t index;             /* node * NR_ZONE_TYPES + type */
	pfn_t start, end;          /* spanned: [start, end) */
	uint64_t present, managed; /* pages */
	uint64_t watermark[NR_WMARKS];
	uint64_t lowmem_reserve[NR_ZONE_TYPES];
	uint64_t nr_free;       /* all domains, buddy + per-CPU lists + set aside by kzerod */
	uint64_t nr_pcp;        /* of them on per-CPU lists */
	uint64_t nr_highatomic; /* pages in HIGHATOMIC pageblocks */
	pfn_t deferred;         /* frames from here to end were never initialised: free, domain 0 */
	uint64_t stat[NR_ZONE_ITEMS]; /* NR_FREE_PAGES is kept equal to nr_free */
};

struct node {
	uint8_t id;
	struct zone zone[NR_ZONE_TYPES];
	pfn_t start, end;
	uint64_t
		*numa_stat; /* by enum numa_item; of the state, so that a crash does not reset it */
	uint64_t stat[NR_NODE_ITEMS];
	struct zone
		*zonelist[NUMA_MAX_NODES * NR_ZONE_TYPES + 1]; /* from HIGHMEM down, NULL ended */
};

unsigned phys_nr_nodes(const struct phys *p);
struct node *phys_node(struct phys *p, unsigned nid);
const char *zone_type_name(enum zone_type t);     /* "DMA" "Normal" "HighMem" */
const char *migratetype_name(enum migratetype t); /* "Unmovable" ... "Isolate" */
uint64_t phys_nr_frames(const struct phys *p);
uint64_t phys_total_pages(const struct phys *p); /* managed */
uint64_t phys_free_pages(const struct phys *p);
uint64_t phys_metadata_bytes(struct phys *p); /* resident bytes of the state file */
uint64_t phys_backed_bytes(struct phys *p);   /* host memory behind all arena files */
uint64_t phys_zeroed_pages(const struct phys *p, const struct domain *d); /* d NULL: all */
/* Free blocks of an order and type in a zone, all domains, per-CPU lists as order 0. */
uint64_t zone_free_blocks(const struct zone *z, unsigned order, enum migratetype t);
/* Pageblocks of a type in a zone. */
uint64_t zone_pageblocks(const struct zone *z, enum migratetype t);
struct pcp_info {
	unsigned count, high, batch;
};
void zone_pcp_info(const struct zone *z, unsigned cpu, struct pcp_info *out);

struct page *pfn_to_page(const struct phys *p, pfn_t pfn); /* NULL: absent or offline section */
pfn_t page_to_pfn(const struct phys *p, const struct page *page);
struct zone *pfn_zone(struct phys *p, pfn_t pfn);

static inline unsigned page_order(const struct page *page)
{
	return (page->flags >> PG_ORDER_SHIFT) & PG_ORDER_MASK;
}

static inline void phys_node_stat_add(struct node *n, enum node_item item, int64_t delta)
{
	n->stat[item] += (uint64_t)delta;
}

/* ---- memblock ------------------------------------------------------------------------------ */

enum memblock_flags {
	MEMBLOCK_NONE = 0,
	MEMBLOCK_HOTPLUG = 1,
	MEMBLOCK_MIRROR = 2,
	MEMBLOCK_NOMAP = 4,
};
#define MEMBLOCK_MAX_REGIONS 256
#define MEMBLOCK_ANY_NODE UINT32_MAX

struct memblock_region {
	uint64_t base, size;
	uint32_t flags;
	uint32_t nid;
};

struct memblock_type {
	const char *name;
	unsigned nr;
	struct memblock_region region[MEMBLOCK_MAX_REGIONS]; /* sorted, disjoint, merged */
};

struct memblock {
	bool bottom_up;
	uint64_t current_limit;
	struct memblock_type memory, reserved;
};

void memblock_init(struct memblock *mb);
/* ARENA_E_INVALID: empty or wrapping range; ARENA_E_NO_MEMORY: more than MEMBLOCK_MAX_REGIONS. */
int memblock_add_node(struct memblock *mb, uint64_t base, uint64_t size, uint32_t nid,
		      uint32_t flags);
int memblock_add(struct memblock *mb, uint64_t base, uint64_t size);
int memblock_remove(struct memblock *mb, uint64_t base, uint64_t size);
int memblock_reserve(struct memblock *mb, uint64_t base, uint64_t size);
int memblock_free(struct memblock *mb, uint64_t base, uint64_t size);
int memblock_set_node(struct memblock *mb, uint64_t base, uint64_t size, uint32_t nid);
int memblock_mark(struct memblock *mb, uint64_t base, uint64_t size, uint32_t flag);
int memblock_clear(struct memblock *mb, uint64_t base, uint64_t size, uint32_t flag);
int memblock_trim_memory(struct memblock *mb, uint64_t align);
int memblock_enforce_limit(struct memblock *mb, uint64_t limit); /* drop memory past limit bytes */
void memblock_set_current_limit(struct memblock *mb, uint64_t limit);
/* Reserve and return a free range; 0 on failure, as the kernel's. end 0: the current limit. */
uint64_t memblock_alloc_range(struct memblock *mb, uint64_t size, uint64_t align, uint64_t start,
			      uint64_t end, uint32_t nid);
uint64_t memblock_alloc(struct memblock *mb, uint64_t size, uint64_t align);
bool memblock_is_memory(const struct memblock *mb, uint64_t addr);
bool memblock_is_map_memory(const struct memblock *mb, uint64_t addr);
bool memblock_is_reserved(const struct memblock *mb, uint64_t addr);
bool memblock_is_region_memory(const struct memblock *mb, uint64_t base, uint64_t size);
bool memblock_is_region_reserved(const struct memblock *mb, uint64_t base, uint64_t size);
bool memblock_overlaps_region(const struct memblock_type *t, uint64_t base, uint64_t size);
uint64_t memblock_phys_mem_size(const struct memblock *mb);
uint64_t memblock_reserved_size(const struct memblock *mb);
uint64_t memblock_start(const struct memblock *mb);
uint64_t memblock_end(const struct memblock *mb);
/* Next memory that is not reserved and not NOMAP, from *cursor (start with 0) on. */
bool memblock_next_free(const struct memblock *mb, uint64_t *cursor, struct memblock_region *out);
bool memblock_is_valid(const struct memblock *mb);
/* As the kernel's debugfs file: "   0: 0x0000000000000000..0x000000003fffffff    0 NONE" */
void memblock_print(const struct memblock_type *t, FILE *out);
const struct memblock *phys_memblock(const struct phys *p);

/* ---- sections ---------------------------------------------------------------------------- */

unsigned phys_nr_sections(const struct phys *p);
uint64_t phys_section_pages(const struct phys *p);
enum section_state section_state(const struct phys *p, unsigned section);
/* ARENA_E_BUSY: frames in use; ARENA_E_INVALID: no such section, or the state already. */
int section_offline(struct phys *p, unsigned section);
int section_online(struct phys *p, unsigned section);

/* ---- domains ------------------------------------------------------------------------------- */

/* A reference for the caller. ARENA_E_NO_MEMORY, -errno. */
int domain_create(struct phys *p, enum domain_kind kind, uint32_t owner, struct domain **out);
/* The live domain of that kind and owner with a new reference, or NULL. */
struct domain *domain_find(struct phys *p, enum domain_kind kind, uint32_t owner);
struct domain *domain_get(struct domain *d);
/* Drop a reference; after the last one the domain ends as soon as no frame of it is in use: its
 * free blocks go back to domain 0. Returns NULL. */
struct domain *domain_put(struct domain *d);
uint32_t domain_id(const struct domain *d);
enum domain_kind domain_kind(const struct domain *d);
uint32_t domain_owner(const struct domain *d);            /* uid, mm id or object id */
struct domain *domain_by_id(struct phys *p, uint32_t id); /* no reference taken */
int domain_fd(const struct domain *d);                    /* borrowed, read-write */
void *domain_address(const struct domain *d, pfn_t pfn);  /* the daemon's view of the frame */
uint64_t domain_used_pages(const struct domain *d);
uint64_t domain_owned_blocks(const struct domain *d);
struct domain *pfn_domain(struct phys *p, pfn_t pfn); /* NULL: nobody's */

/* ---- allocation ------------------------------------------------------------------------------ */

/* gfp flags are those of arena.h (enum arena_gfp) and, inside the daemon, these. */
#define GFP_HOLE_OK (1u << 28)    /* a hole will do where zeroed memory was asked for */
#define GFP_NO_ZERO (1u << 29)    /* the caller overwrites every byte */
#define GFP_READY_ONLY (1u << 30) /* only memory that costs nothing to give: zeroed, or a hole */
#define GFP_USER_MOVABLE (ARENA_GFP_HIGHMEM | ARENA_GFP_MOVABLE)

#define ALLOC_WMARK_MIN WMARK_MIN
#define ALLOC_WMARK_LOW WMARK_LOW
#define ALLOC_WMARK_HIGH WMARK_HIGH
#define ALLOC_WMARK_MASK 3u
#define ALLOC_NO_WATERMARKS 4u
#define ALLOC_HARDER 8u
#define ALLOC_HIGH 16u
#define ALLOC_OOM 32u
#define ALLOC_CMA 64u

struct alloc_request {
	struct domain *domain;
	unsigned gfp;
	unsigned order;
	unsigned cpu; /* of the caller: gives the preferred node and the per-CPU list */
	/* A policy of whoever asks; ARENA_GFP_THISNODE overrides it. */
	uint64_t nodes;  /* only these, from the CPU's node by distance; 0: all */
	unsigned prefer; /* this node plus one instead of the CPU's; 0: the CPU's */
	pfn_t hint; /* take exactly this block if it is free (order >= 9 or order 0); PFN_NONE */
	uint32_t owner;          /* one of PG_OWNER */
	uint32_t mapping, index; /* stored before the claim */
};

struct alloc_result {
	pfn_t pfn;
	bool hole; /* unbacked: map it with ARENA_PTE_HOLE */
};

/*
 * Claim 2^order frames: the head's refcount is 1, mapcount 0, owner as asked. Memory is zeroed
 * unless GFP_NO_ZERO, whether GFP_ZERO is set or not: what a frame held before is nobody
 * else's to see. ARENA_E_NO_MEMORY after the slow path failed (with a report in the log
 * that says which zone had what, unless NOWARN, at most one a second).
 */
int alloc_pages(struct phys *p, const struct alloc_request *rq, struct alloc_result *out);
/* Drop one reference of a block's head; the last frees it. */
void put_page(struct phys *p, pfn_t head);
void get_page(struct phys *p, pfn_t head);
/*
 * A client may still have mapped what an entry that goes away maps: mark the block before the entry
 * changes (the entry's reference becomes the limbo's), and drop that reference when the client has
 * flushed. The mark ends with the last such reference, or with the block.
 */
void page_enter_limbo(struct phys *p, pfn_t head);
void page_leave_limbo(struct phys *p, pfn_t head);
/*
 * Make 2^order single frames of an allocated block; each gets the head's refcount, mapcount and
 * owner, with index counted up. After a crash in its middle the block is whole: the head's order is
 * stored last. So whatever points to the single frames is stored before (512 entries that refer
 * to one whole block are right, an entry for the whole of 512 single frames is not).
 */
void split_page(struct phys *p, pfn_t head);
/* The head of the allocated block that holds pfn, or PFN_NONE. */
pfn_t compound_head(const struct phys *p, pfn_t pfn);
/* Give per-CPU lists back to the buddy; d NULL: of all domains. */
void drain_pages(struct phys *p, struct domain *d);
/* Give wholly free pageblocks of a domain (d NULL: of all) back to domain 0, keeping `keep`. */
uint64_t phys_reclaim_blocks(struct phys *p, struct domain *d, uint64_t keep);

bool zone_watermark_ok(const struct zone *z, unsigned order, uint64_t mark, enum zone_type highest,
		       unsigned alloc_flags);
/* After min_free_kbytes or watermark_scale_factor changed. */
void phys_setup_watermarks(struct phys *p);

/* What allocation does under pressure; installed by the rooms above. */
struct phys_pressure_ops {
	/* Free what needs no waiting (acknowledged limbo, fill-ahead never touched). Pages freed. */
	uint64_t (*relieve)(void *ctx, struct zone *z, unsigned order);
};
void phys_set_pressure_ops(struct phys *p, const struct phys_pressure_ops *ops, void *ctx);

/* ---- kzerod ------------------------------------------------------------------------------------ */

/* Start and stop the background thread. Without it nothing is zeroed ahead. */
int kzerod_start(struct phys *p);
void kzerod_stop(struct phys *p);
/* Readable when finished blocks wait for kzerod_collect(). */
int kzerod_eventfd(const struct phys *p);
/* Put finished blocks back on the free lists and set the next ones aside. Call when the eventfd is
 * readable, and after allocation or freeing changed the pools (cheap when there is nothing to do). */
void kzerod_collect(struct phys *p);
/* Only the first half of it: start nothing. */
void kzerod_take_back(struct phys *p);
/*
 * Should kzerod_collect() be called to start something? While programs fault, better later: the
 * thread runs at the lowest priority, but on the CPU where it was woken it can still be given a
 * tick before the program that waits there, and its writes take memory's bandwidth.
 */
enum kzerod_need {
	KZEROD_NONE,  /* there is nothing, or all batches are under way */
	KZEROD_LATER, /* when it suits */
	KZEROD_NOW,   /* a pool is down to a quarter */
};
enum kzerod_need kzerod_need(const struct phys *p);
/* Nothing under way and every pool full. */
bool kzerod_idle(struct phys *p);
uint64_t kzerod_cpu_time(struct phys *p); /* ns */

#endif
