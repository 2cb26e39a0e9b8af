/* SPDX-License-Identifier: MIT */
/*
 * internal.h - what the files of this room share and nobody else sees.
 *
 * Every free block lies on exactly one list, chosen by its pageblock's owner, its zone, order,
 * migratetype and content; all of these can be told from the frame, so that a block is taken
 * off its list without knowing how it came there:
 *
 *   domain -> zone[index] -> list[order][migratetype][content]      PG_BUDDY
 *                         -> pcp[cpu] -> list[migratetype][content] PG_PCP, order 0
 *   kzerod's batches                                                PG_ISOLATED, order >= 9
 *
 * Invariants:
 * - A hole is at least a pageblock. All parts of a free block have the same content, type and
 *   owner. Below PAGEBLOCK_ORDER every free block is backed.
 * - Domain 0's lists hold holes of MIGRATE_MOVABLE, order 9 and 10, and nothing else.
 * - zone.nr_free is changed where frames become used or unused, never by moving them between
 *   lists, owners or kzerod.
 * - The list links, private_ and PG_BUDDY, PG_PCP, PG_ZEROED, PG_ISOLATED are indexes, written with
 *   plain stores, the flags in program order; everything else in struct page and struct pageblock
 *   goes through base/truth.h.
 * - Frames inside a block, free or allocated, have no flags but their place and no refcount.
 */
#ifndef PHYS_INTERNAL_H
#define PHYS_INTERNAL_H

#include <bsd/sys/queue.h>

#include "arena/abi.h"
#include "arena/arena.h"
#include "base/truth.h"
#include "base/util.h"
#include "daemon/phys/phys.h"
#include "daemon/sync/workqueue.h"

#define PAGEBLOCK_SHIFT (PAGEBLOCK_ORDER + ARENA_PAGE_SHIFT)
#define PAGEBLOCK_SIZE (UINT64_C(1) << PAGEBLOCK_SHIFT)
#define NR_PCP_TYPES 3 /* UNMOVABLE, MOVABLE, RECLAIMABLE */

enum content { CONTENT_ZEROED, CONTENT_DIRTY, CONTENT_HOLE, NR_CONTENTS };
#define NR_PCP_CONTENTS 2 /* a hole is never that small */

/* Linked through lru_next and lru_prev; head and tail mean nothing while count is 0. */
struct free_list {
	pfn_t head, tail;
	uint32_t count;
};

struct pcp {
	uint32_t count;
	struct free_list list[NR_PCP_TYPES][NR_PCP_CONTENTS];
};

struct domain_zone {
	struct free_list list[NR_ORDERS][NR_MIGRATETYPES][NR_CONTENTS];
	uint64_t zeroed_pages;   /* known zero, in blocks of order >= 9 */
	uint64_t isolated_pages; /* set aside by kzerod */
	pfn_t next_claim;        /* the block that would continue the last one claimed */
	struct pcp *pcp[];       /* by CPU, NULL until used */
};

TAILQ_HEAD(domain_list, domain);

struct domain {
	struct phys *phys;
	uint32_t id, kind, owner;
	uint32_t slot; /* index in the state's table and in phys.domains */
	uint32_t refs;
	int fd;
	char *map;
	uint64_t nr_blocks;          /* pageblocks owned */
	uint64_t nr_used;            /* pages allocated */
	uint64_t nr_zeroed;          /* free pages known zero */
	uint64_t free_block_pages;   /* free pages in blocks of order >= 9 */
	uint64_t zeroed_block_pages; /* of them known zero */
	uint64_t nr_isolated;        /* pages set aside by kzerod */
	unsigned last_cpu;           /* of the last allocation; frees go to its list */
	uint64_t nodes;              /* a bit per node that was allocated from the near side of */
	bool active;                 /* has allocated, and is referenced */
	bool kz_queued;
	TAILQ_ENTRY(domain) link;          /* phys.live */
	TAILQ_ENTRY(domain) kz_link;       /* phys.kz.candidates */
	uint64_t check_used, check_blocks; /* scratch of phys_is_valid */
	struct domain_zone *zone[];        /* by zone index, NULL until used */
};

struct zone_private {
	uint64_t free_blocks[NR_ORDERS][NR_MIGRATETYPES]; /* on lists */
	uint64_t isolated_blocks[NR_ORDERS][NR_MIGRATETYPES];
	uint64_t pcp_pages[NR_PCP_TYPES];
	uint64_t pageblocks[NR_MIGRATETYPES]; /* managed ones */
	uint64_t cached_pages;   /* free blocks of order >= 9 in domains other than 0 */
	uint64_t deferred_pages; /* managed pages in [zone.deferred, deferred_end) */
	pfn_t deferred_end;
	unsigned pcp_high, pcp_batch;
};

#define KZ_BATCH_BLOCKS 16
#define KZ_BATCHES 2

enum kz_state { KZ_WAITS, KZ_TAKEN, KZ_DROPPED };

struct kz_block {
	pfn_t pfn;
	uint8_t order;
	bool hole;
	bool failed;   /* worker: the host had no memory for a hole */
	bool undone;   /* worker: it was told to hurry */
	uint8_t state; /* atomic: the worker takes it, or the control thread has put it back */
};

struct kz_batch {
	struct work work;
	struct domain *domain; /* NULL: none of its blocks is left */
	char *map;             /* of the domain, for the worker */
	unsigned nr;           /* 0: not in use */
	bool hurry;            /* atomic: the control thread waits for it */
	struct kz_block block[KZ_BATCH_BLOCKS];
};

struct kzerod {
	struct workqueue *queue;       /* NULL: not started */
	struct domain_list candidates; /* domains whose pools changed since the last look */
	struct kz_batch batch[KZ_BATCHES];
	uint64_t populate_after; /* the host refused memory: leave holes alone until then */
};

struct phys {
	struct state *state;
	struct page *mem_map;         /* of the state */
	struct pageblock *pageblocks; /* of the state */
	const struct numa_topology *topology;
	uint64_t nr_frames;
	uint64_t section_pages;
	unsigned section_order;
	unsigned nr_sections;
	unsigned nr_nodes, nr_zones, nr_cpus;
	bool hugepages;
	uint64_t managed;
	uint64_t nr_unowned; /* free pages of domain 0, deferred ones included */
	uint64_t nr_zeroed;
	unsigned nr_active;          /* domains */
	uint16_t *block_slot;        /* by pageblock: slot of its owner */
	struct domain_list live;     /* without domain 0 */
	struct domain *uncache_next; /* where the next search for a cached block begins */
	const struct phys_pressure_ops *ops;
	void *ops_ctx;
	bool relieving;
	uint64_t last_report;
	bool created;              /* by this worker, not recovered */
	bool retired;              /* phys_retire() */
	struct recovery *recovery; /* NULL: normal life */
	struct kzerod kz;
	struct memblock memblock;
	uint8_t cpu_node[NUMA_MAX_CPUS];
	struct domain *domains[STATE_MAX_DOMAINS]; /* by slot */
	struct zone_private zp[NUMA_MAX_NODES * NR_ZONE_TYPES];
	struct node node[NUMA_MAX_NODES];
};

/* ---- small helpers ---- */

static inline struct zone *page_zone(struct phys *p, const struct page *page)
{
	return &p->node[(page->flags >> PG_NODE_SHIFT) & PG_NODE_MASK]
			.zone[page->flags & PG_ZONE_MASK];
}

static inline struct zone_private *zone_private(const struct zone *z)
{
	return &z->phys->zp[z->index];
}

static inline struct pageblock *pfn_block(const struct phys *p, pfn_t pfn)
{
	return &p->pageblocks[pfn >> PAGEBLOCK_ORDER];
}

/* Domain 0 for a block that is nobody's. */
static inline struct domain *block_owner(const struct phys *p, pfn_t pfn)
{
	return p->domains[p->block_slot[pfn >> PAGEBLOCK_ORDER]];
}

#define PG_PLACE (PG_ZONE_MASK | PG_NODE_MASK << PG_NODE_SHIFT)

static inline uint32_t page_place(const struct page *page)
{
	return page->flags & PG_PLACE;
}

/* In program order, so that after a crash no two heads of free blocks overlap (recover.c). */
static inline void page_set_free_flags(struct page *page, uint32_t bits, unsigned order)
{
	truth_barrier();
	page->flags = page_place(page) | bits | order << PG_ORDER_SHIFT;
	truth_barrier();
}

static inline enum content block_content(const struct phys *p, pfn_t pfn)
{
	if (p->mem_map[pfn].flags & PG_ZEROED)
		return CONTENT_ZEROED;
	return pfn_block(p, pfn)->flags & PB_BACKED ? CONTENT_DIRTY : CONTENT_HOLE;
}

static inline void zone_add_free(struct zone *z, int64_t pages)
{
	z->nr_free += (uint64_t)pages;
	z->stat[NR_FREE_PAGES] = z->nr_free;
}

static inline unsigned pfn_section(const struct phys *p, pfn_t pfn)
{
	return pfn >> p->section_order;
}

static inline void list_push_head(struct phys *p, struct free_list *l, pfn_t pfn)
{
	struct page *page = &p->mem_map[pfn];

	page->lru_prev = PFN_NONE;
	page->lru_next = l->count ? l->head : PFN_NONE;
	if (l->count++)
		p->mem_map[l->head].lru_prev = pfn;
	else
		l->tail = pfn;
	l->head = pfn;
}

static inline void list_push_tail(struct phys *p, struct free_list *l, pfn_t pfn)
{
	struct page *page = &p->mem_map[pfn];

	page->lru_next = PFN_NONE;
	page->lru_prev = l->count ? l->tail : PFN_NONE;
	if (l->count++)
		p->mem_map[l->tail].lru_next = pfn;
	else
		l->head = pfn;
	l->tail = pfn;
}

static inline void list_unlink(struct phys *p, struct free_list *l, pfn_t pfn)
{
	struct page *page = &p->mem_map[pfn];

	if (page->lru_prev != PFN_NONE)
		p->mem_map[page->lru_prev].lru_next = page->lru_next;
	else
		l->head = page->lru_next;
	if (page->lru_next != PFN_NONE)
		p->mem_map[page->lru_next].lru_prev = page->lru_prev;
	else
		l->tail = page->lru_prev;
	l->count--;
}

/* ---- buddy.c ---- */

/* The order in which contents are tried; those not listed are left alone. */
struct preference {
	uint8_t nr;
	uint8_t content[NR_CONTENTS];
};

struct free_block {
	pfn_t pfn;
	unsigned order;
};

/* The owner must have lists for the zone: domain_zone() was called before the block came. */
void buddy_add(struct phys *p, pfn_t pfn, unsigned order, enum content c, bool at_tail);
enum content buddy_del(struct phys *p, pfn_t pfn);
/* Put a block on its list, merged with its buddies. Returns what it became part of. */
struct free_block buddy_free(struct phys *p, pfn_t pfn, unsigned order, enum content c);
/*
 * Take 2^order frames at `target` out of the free block at `head`; the rest goes back on
 * lists. A hole that is broken below PAGEBLOCK_ORDER is backed as a whole first. PFN_NONE: the
 * host has no memory; all is as before. The frames are on no list and have no flags then.
 */
pfn_t buddy_take(struct phys *p, pfn_t head, pfn_t target, unsigned order, enum content *c);
pfn_t rmqueue_smallest(struct phys *p, struct domain_zone *dz, unsigned order, enum migratetype t,
		       const struct preference *pref, enum content *c);
/* The head of the free block on a list that covers pfn, or PFN_NONE; searched from order `from`. */
pfn_t free_head(const struct phys *p, pfn_t pfn, unsigned from);

/* ---- migratetype.c ---- */

extern const uint8_t migrate_fallback[NR_PCP_TYPES][2];
void pageblock_set_type(struct phys *p, pfn_t pfn, enum migratetype t);
/* Change the type of the pageblock (both, if they are one free block) and move its free pages. */
void pageblock_retype(struct phys *p, pfn_t pfn, enum migratetype t);
/* A wholly free block of another type becomes one of type t. */
bool steal_whole_block(struct phys *p, struct domain_zone *dz, unsigned order, enum migratetype t,
		       const struct preference *pref);
/* Frames from a partly used pageblock of another type, or PFN_NONE. */
pfn_t steal_fallback(struct phys *p, struct domain_zone *dz, unsigned order, enum migratetype t,
		     const struct preference *pref, enum content *c);
void highatomic_reserve(struct phys *p, pfn_t pfn, unsigned order);
/* Give a reserved pageblock of the zone back for requests of type t. */
bool highatomic_unreserve(struct phys *p, struct zone *z, struct domain *d, enum migratetype t);

/* ---- block.c ---- */

/* Move a free block of order 9 or 10 from domain 0 to d; `at` names the one wanted or PFN_NONE.
 * False: there is none (or not that one). */
bool block_claim(struct phys *p, struct domain *d, struct zone *z, unsigned order,
		 enum migratetype t, pfn_t at);
/* Move a block that is on no list to domain 0. False: the host would not take its memory back. */
bool block_give_back(struct phys *p, pfn_t pfn, unsigned order, enum content c);
/* Store the flags of a block's pageblocks. */
void block_mark(struct phys *p, pfn_t pfn, unsigned order, uint8_t flags);
/* Have the host back a hole that is on no list; on failure it is a hole again, or at worst dirty. */
bool block_back(struct phys *p, pfn_t pfn, unsigned order);
void block_unback(struct phys *p, pfn_t pfn, unsigned order);
/* One wholly free block cached in a domain other than d goes to domain 0. */
bool block_uncache(struct phys *p, struct zone *z, const struct domain *d);
/* A block was freed: give it back if its domain caches far too many. */
void block_trim(struct phys *p, struct domain *d, struct free_block b);

/* ---- domain.c ---- */

/* The lists of a domain in a zone, made on first use; NULL: no memory. */
struct domain_zone *domain_zone(struct domain *d, const struct zone *z);
int domain_init_daemon(struct phys *p);
/* End it if nothing refers to it, uses its frames or writes to them. */
void domain_try_end(struct domain *d);
/* Let go of all, in memory; `unkeep`: and in the store. */
void domain_destroy_all(struct phys *p, bool unkeep);
/* A domain from its record and the file the store kept for it. ARENA_E_INVALID: it is lost, see log. */
int domain_recover(struct phys *p, const struct domain_record *rec, uint32_t slot);

/* ---- pcp.c ---- */

struct pcp *pcp_get(struct phys *p, struct domain_zone *dz, unsigned cpu);
void pcp_push(struct phys *p, struct zone *z, struct pcp *pcp, unsigned cpu, pfn_t pfn,
	      enum migratetype t, enum content c, bool at_tail);
/* Take a page of a known list off it. */
void pcp_unlink(struct phys *p, pfn_t pfn);
/* Free one page: to the CPU's list, or the buddy. */
void pcp_free(struct phys *p, struct domain *d, pfn_t pfn);
pfn_t pcp_pop(struct phys *p, struct pcp *pcp, enum migratetype t, const struct preference *pref,
	      enum content *c);
/* batch and high of a zone, after its size or watermarks changed */
void pcp_setup(struct zone *z);

/* ---- alloc.c, hint.c ---- */

struct alloc_context {
	struct phys *p;
	const struct alloc_request *rq;
	struct domain *d;
	struct preference pref, second; /* second: what is left when domain 0 has nothing */
	enum migratetype type;
	enum zone_type highest;
	unsigned local;     /* the CPU's node */
	unsigned preferred; /* the node whose zonelist is gone through */
	uint64_t nodes;     /* no others */
	unsigned flags;     /* ALLOC_* */
	bool ready_only, hole_ok;
};

/* The requested block at rq->hint, or PFN_NONE. */
pfn_t alloc_at_hint(struct alloc_context *ac, struct zone **zone, enum content *c);
void alloc_report(struct alloc_context *ac);

/* ---- zone.c ---- */

struct phys *phys_new(const struct phys_config *config, uint64_t section_pages);
void phys_setup_node(struct phys *p, unsigned n, pfn_t start, const uint32_t end[NR_ZONE_TYPES]);
int phys_setup_memblock(struct phys *p, const struct phys_range *reserved, unsigned nr_reserved);
/* Point into the state, and make domain 0. */
int phys_use_state(struct phys *p, struct state *s);
void phys_setup_zonelists(struct phys *p);
/* The sections of a zone that wait until they are needed; false: none do. */
bool zone_deferrable(const struct zone *z, pfn_t *first, pfn_t *end);

/* ---- section.c ---- */

/* Fill in a section's mem_map and give its frames to the buddy. */
void section_init(struct phys *p, unsigned section);
/* Initialise the next deferred section of a zone; false: there is none. */
bool zone_grow(struct zone *z);
/* Managed frames that are lost to reserved ranges, in whole pageblocks. */
uint64_t reserved_pages(const struct phys *p, pfn_t start, pfn_t end);
struct zone *zone_of_pfn(struct phys *p, pfn_t pfn);
pfn_t section_start(const struct phys *p, unsigned section);
pfn_t section_end(const struct phys *p, unsigned section);
/* Write a section's mem_map. */
void section_fill(struct phys *p, unsigned section);
/* An online section's frames enter the counters of their zones, as free frames of nobody. */
void section_count(struct phys *p, unsigned section);
bool block_reserved(const struct phys *p, pfn_t pfn);

/* ---- watermark.c ---- */

/* The part of zone_watermark_ok that counts pages. */
bool zone_pages_ok(const struct zone *z, unsigned order, uint64_t mark, enum zone_type highest,
		   unsigned alloc_flags);

/* ---- kzerod.c ---- */

void kzerod_note(struct domain *d); /* its lists of order >= 9 changed */
void kzerod_forget(struct domain *d);
/* Put back what is done, and what the worker has not begun: it may be out of its CPU for long. Starts no more. */
void kzerod_drop(struct phys *p);
/* The same, and wait for the rest. */
void kzerod_wait(struct phys *p);

#endif
