/* SPDX-License-Identifier: MIT */
/*
 * state.h - the `state` file: what the daemon must not forget.
 *
 *     0          +--------------------------------+
 *                | struct state_header            |  region table, ids, epoch
 *     region[0]  +--------------------------------+
 *                | geometry  struct state_geometry|  nodes, zones, distances, reserved ranges
 *                | tables    struct state_tables  |  twice: counters and tunables with their names
 *                | domains        struct domain_record
 *                | objects        struct object_record
 *                | mms            struct mm_record|
 *                | sections       struct section_record
 *                | pageblocks     struct pageblock|
 *                | mem_map        struct page     |  32 bytes a frame, sparse
 *                | journal    struct call_journal |  the call in progress
 *                | spare                          |  room for regions of later minors
 *                +--------------------------------+
 *
 * The file is sparse: a section that was never used has no mem_map memory behind it, but for
 * what shares a hugepage with one that was. mem_map begins on a hugepage. All writes go through
 * base/truth.h. All fields belong to the control thread.
 *
 * A worker takes over a file of its own major, whatever the minor (state_adopt.c), in place:
 * - a region the file has not is cut from the spare room, zeroed; one it has too many stays unused;
 * - counters and tunables are matched by name into the copy of the tables that is not in use, and
 *   one store switches to it: new counters begin at 0, new tunables at their defaults;
 * - a field added to a record in place of a reserved one is 0 in what an older minor wrote. An
 *   older worker does not keep what it does not know: after it the file is of its minor.
 * So within a major no record grows, and no region moves.
 */
#ifndef PHYS_STATE_H
#define PHYS_STATE_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stddef.h>
#include <stdint.h>

typedef uint32_t pfn_t;
#define PFN_NONE UINT32_MAX

#define STATE_MAGIC UINT64_C(0x317473616e657261) /* "arenast1" */
#define STATE_MAJOR 1u
#define STATE_MINOR 0u
#define STATE_NAME_SIZE 64

enum state_region {
	STATE_GEOMETRY,
	STATE_TABLES,
	STATE_DOMAINS,
	STATE_OBJECTS,
	STATE_MMS,
	STATE_SECTIONS,
	STATE_PAGEBLOCKS,
	STATE_MEM_MAP,
	/* A file without one of these has it empty. New regions come last. */
	STATE_JOURNAL,
	NR_STATE_REGIONS
};
#define STATE_NEEDED_REGIONS (STATE_MEM_MAP + 1)

#define STATE_MAX_REGIONS 32
#define STATE_SPARE (UINT64_C(16) << 20)

struct state_header {
	uint64_t magic;
	uint32_t major, minor;
	uint32_t nr_nodes, nr_regions;
	uint64_t nr_frames; /* pfns are below this */
	uint64_t section_pages;
	uint64_t checksum; /* of nr_nodes, nr_frames, section_pages and the geometry */
	struct {
		uint64_t offset, size;
	} region[STATE_MAX_REGIONS];
	uint32_t tables; /* which copy of the tables is in use: 0 or 1 */
	uint32_t epoch;  /* workers that served this state before this one: 0, 1, ... */
	uint32_t next_domain, next_object, next_mm, next_peer; /* ids are never used twice */
	/*
	 * Whose call is being served, so that a call that ends every worker which serves it ends
	 * its client instead after a few: peer << 8 | mailbox, or 0; and how many workers died in it.
	 */
	uint64_t serving;
	uint64_t serving_id;
	uint32_t serving_deaths;
	uint32_t reserved;
};
static_assert(sizeof(struct state_header) <= 4096, "state header");

/* What configuration said when the state was made: a new worker goes by this. */
struct state_geometry {
	uint32_t nr_nodes, nr_cpus;
	uint32_t simulated, nr_reserved;
	struct {
		uint64_t base, size; /* bytes */
	} reserved[16];
	struct {
		uint32_t start, zone_end[3]; /* pfns */
	} node[64];
	uint8_t distance[64][64];
	uint8_t cpu_node[1024];
};

/* What is matched by name when a worker of another minor takes over. */
#define STATE_MAX_COUNTERS 512
#define STATE_MAX_TUNABLES 256
#define STATE_MAX_NUMA_ITEMS 32
struct state_tables {
	uint32_t nr_counters, nr_tunables, nr_numa_items, reserved;
	char counter_name[STATE_MAX_COUNTERS][STATE_NAME_SIZE];
	char tunable_name[STATE_MAX_TUNABLES][STATE_NAME_SIZE];
	char numa_name[STATE_MAX_NUMA_ITEMS][STATE_NAME_SIZE];
	uint64_t counter[STATE_MAX_COUNTERS];
	uint64_t tunable[STATE_MAX_TUNABLES];
	uint64_t numa[64][STATE_MAX_NUMA_ITEMS]; /* by node */
};

/*
 * The call being served, if its outcome cannot be told from the truth alone or may not come about
 * twice (mmap, shm_open, alloc_pages, ...). One record: the control thread serves one call at a
 * time and answers it before it takes the next.
 *
 *	NONE -> BEGUN      who calls; nothing of the call has been done
 *	BEGUN -> PREPARED  what the call will do (arg[]) is decided; from here on it may be half done
 *	-> DONE            the reply is here; it may have been delivered or not
 *	-> NONE            delivered
 *
 * A new worker that finds BEGUN serves the call from the start; PREPARED: the method decides by
 * arg[] and the rebuilt indexes whether it was done (then it answers) or not (then undo, serve
 * again); DONE: it delivers the reply again where it may not have been.
 */
enum journal_phase { JOURNAL_NONE, JOURNAL_BEGUN, JOURNAL_PREPARED, JOURNAL_DONE };
#define JOURNAL_ARGS 6
#define JOURNAL_REPLY_MAX 1008u

struct call_journal {
	uint32_t phase; /* enum journal_phase, stored last */
	uint32_t peer;
	uint32_t mailbox; /* UINT32_MAX: the socket */
	uint32_t method;  /* case of the request */
	uint64_t request_id;
	uint64_t arg[JOURNAL_ARGS];
	uint32_t reply_len;
	uint32_t reserved;
	uint8_t reply[JOURNAL_REPLY_MAX];
};

/* ---- struct page: the truth about one frame ------------------------------------------- */

enum zone_type { ZONE_DMA, ZONE_NORMAL, ZONE_HIGHMEM, NR_ZONE_TYPES };

/*
 *  31                    12 11   8 7      2 1    0
 * +------------------------+------+--------+------+
 * |        PG_* bits       |order |  node  | zone |
 * +------------------------+------+--------+------+
 */
#define PG_ZONE_MASK 0x3u
#define PG_NODE_SHIFT 2
#define PG_NODE_MASK 0x3fu
#define PG_ORDER_SHIFT 8
#define PG_ORDER_MASK 0xfu
#define PG_BUDDY (1u << 12)    /* head of a free block on a free list; index */
#define PG_PCP (1u << 13)      /* on a per-CPU list; index */
#define PG_ZEROED (1u << 14)   /* free, and known to hold zeros; index */
#define PG_RESERVED (1u << 15) /* never given to the buddy */
#define PG_ANON (1u << 16)     /* mapping: anon family; index: vma_anon_index() */
#define PG_OBJECT (1u << 17)   /* mapping: object id; index: page of the object */
#define PG_KERNEL (1u << 18)   /* arena_alloc_pages(); mapping: mm id */
#define PG_LIMBO (1u << 19)    /* taken from an entry; a client may still have it mapped */
#define PG_HOLE (1u << 20)     /* handed out unbacked: the host zeroes it at the first touch */
#define PG_ISOLATED (1u << 21) /* set aside by kzerod or offlining; index */
#define PG_MLOCKED (1u << 22)  /* entries of VM_LOCKED VMAs point here: mlock_count; index */
#define PG_PINNED (1u << 23)   /* arena_pin(): pin_count; index */
#define PG_DIRTY (1u << 24) /* of a file: differs from it, or may; the truth of what is unwritten */
#define PG_WRITEBACK (1u << 25) /* PG_DIRTY, and being written; index */
#define PG_REDIRTY (1u << 26)   /* PG_WRITEBACK, and made writable meanwhile; index */
#define PG_FROZEN \
	(1u << 27) /* of an object: snapshots may hold it, so ask before a right to write */
#define PG_OWNER (PG_ANON | PG_OBJECT | PG_KERNEL)

/*
 * A frame with refcount 0 is free, or inside a block whose head says what it is: only the head
 * of an allocated or free block is written, so taking a 2 MiB block touches one struct page.
 */
struct page {
	uint32_t flags;
	uint32_t refcount; /* written last when a block is claimed, first when it is freed */
	uint32_t mapcount; /* entries that point here */
	uint32_t mapping;
	uint32_t index;
	/* List links as pfns; index. What is mlocked or pinned is on no list. */
	union {
		uint32_t lru_next;
		uint32_t mlock_count; /* PG_MLOCKED */
	};
	union {
		uint32_t lru_prev;
		uint32_t pin_count; /* PG_PINNED */
	};
	uint32_t private_; /* allocated: references from limbo; index */
};
static_assert(sizeof(struct page) == 32, "struct page");

enum migratetype {
	MIGRATE_UNMOVABLE,
	MIGRATE_MOVABLE,
	MIGRATE_RECLAIMABLE,
	MIGRATE_HIGHATOMIC,
	MIGRATE_CMA,
	MIGRATE_ISOLATE,
	NR_MIGRATETYPES
};

#define PAGEBLOCK_ORDER 9
#define PAGEBLOCK_PAGES (1u << PAGEBLOCK_ORDER)
#define MAX_ORDER 10
#define NR_ORDERS (MAX_ORDER + 1)

#define PB_BACKED (1u << 0) /* the host may have memory behind this block in its domain's file */

struct pageblock {
	uint32_t domain; /* owner; 0: nobody's, not in any client's file */
	uint8_t migratetype;
	uint8_t flags;
	uint16_t reserved;
};
static_assert(sizeof(struct pageblock) == 8, "pageblock");

enum section_state { SECTION_ABSENT, SECTION_OFFLINE, SECTION_ONLINE };

struct section_record {
	uint8_t state;       /* enum section_state */
	uint8_t initialised; /* its mem_map entries are filled in */
	uint8_t node, reserved;
};

enum domain_kind { DOMAIN_FREE, DOMAIN_DAEMON, DOMAIN_UID, DOMAIN_SEGMENT, DOMAIN_PROCESS };

struct domain_record {
	uint32_t id;
	uint32_t kind;     /* enum domain_kind; the record's truth */
	uint32_t owner;    /* uid, or mm id */
	uint32_t checksum; /* of the others */
};

#define STATE_MAX_DOMAINS 16384u
#define STATE_MAX_OBJECTS 65536u
#define STATE_MAX_MMS 16384u

/* A segment, shared anonymous memory or the cached pages of a file, whose name is for showing. */
struct object_record {
	uint32_t id;
	uint32_t kind; /* 0: free; enum object_kind of daemon/virt; the record's truth */
	uint32_t domain;
	uint32_t uid, gid, mode;
	uint32_t unlinked;
	uint32_t
		checksum; /* of id, domain, uid, gid, mode, name or path, a file's dev and ino: object_checksum() */
	uint64_t size; /* bytes */
	union {
		uint64_t address; /* common address in all clients */
		uint64_t dev;     /* of a file: st_dev */
	};
	union {
		uint64_t span; /* bytes of address space set aside at `address` */
		uint64_t ino;  /* of a file: st_ino */
	};
	union {
		char name[256];
		struct {
			char path[248]; /* of a file, for people */
			/* Whose write(2) holds its write-back: mm id << 32 | thread; 0: nobody's (file_hold.c). */
			uint64_t writer;
		};
	};
};
static_assert(offsetof(struct object_record, writer) == offsetof(struct object_record, name) + 248,
	      "a file's writer");

/* FORKED: live, but not yet its process's, of which the record says nothing then. */
enum mm_state { MM_FREE = 0, MM_LIVE = 1, MM_FORKED = 2 };
struct mm_record {
	/* One 64-bit store makes a record live, or a forked one its process's. */
	uint32_t state;    /* enum mm_state */
	uint32_t checksum; /* of what does not change in this state: mm_checksum() of daemon/virt */
	uint32_t id;
	uint32_t peer; /* id of its connection (client-PEER in the store) */
	uint32_t pid, uid, gid;
	uint32_t domain;
	uint64_t start_time; /* of the process, /proc/PID/stat's field 22: pids are used again */
	char comm[32];
};
static_assert(offsetof(struct mm_record, state) == 0 && offsetof(struct mm_record, checksum) == 4,
	      "state and checksum are one store");

struct state {
	int fd;
	void *base;
	uint64_t size;
	bool huge; /* mem_map is a mapping of its own, with hugepages */
	struct state_header *header;
	struct page *mem_map;
	struct pageblock *pageblocks;
	struct section_record *sections;
	struct domain_record *domains;
	struct object_record *objects;
	struct mm_record *mms;
	struct state_geometry *geometry;
	struct call_journal *journal;
	struct state_tables *tables;
	uint64_t *counters; /* enum event_item; of the tables */
	uint64_t *tunables; /* enum tunable; of the tables */
	bool resuming;      /* journal_set_resuming(); no truth */
};

struct state_params {
	uint64_t nr_frames;
	uint64_t section_pages;
	const struct state_geometry *geometry;
};

/* A new state file with defaults in its tunables; not in the store yet. 0, -errno. */
int state_create(const struct state_params *params, struct state *s);
/*
 * Take over a stored state file, and the descriptor with it on success. A file of another minor is
 * migrated: tables are matched by name. ARENA_E_INVALID: not a state file of our major, or damaged,
 * and err says which; -errno.
 */
int state_adopt(int fd, struct state *s, char *err, size_t err_size);
/*
 * Map a mem_map worth it with hugepages: a worker that takes over touches all of it that is in use,
 * and a page fault for each 128 frames would be most of what recovery takes.
 */
void state_use_hugepages(struct state *s);
/* Unmap and close; what the store keeps stays there. */
void state_close(struct state *s);
bool state_is_valid(const struct state *s);

/*
 * The records of a region that may hold something, in order; where nothing was ever written the
 * file has no memory, and looking there would give it some, a page fault each.
 *
 *	struct state_scan scan = {.state = s, .region = STATE_OBJECTS, .size = sizeof(*s->objects)};
 *	for (uint32_t n; state_scan_next(&scan, &n);)
 */
struct state_scan {
	const struct state *state;
	enum state_region region;
	uint64_t size; /* of a record */
	uint64_t next, data_end;
};
bool state_scan_next(struct state_scan *scan, uint32_t *n);

enum zone_item {
#define ZONE_ITEM(name, text) name,
#include "arena/counters.def"
	NR_ZONE_ITEMS
};
enum numa_item {
#define NUMA_ITEM(name, text) name,
#include "arena/counters.def"
	NR_NUMA_ITEMS
};
enum node_item {
#define NODE_ITEM(name, text) name,
#include "arena/counters.def"
	NR_NODE_ITEMS
};
enum event_item {
#define EVENT(name, text) EV_##name,
#define PER_ZONE_EVENT(name, text) EV_##name##_DMA, EV_##name##_NORMAL, EV_##name##_HIGHMEM,
#define ARENA_EVENT(name, text) EV_##name,
#include "arena/counters.def"
	NR_EVENTS
};
enum tunable {
#define TUNABLE(name, path, def, min, max, text) TUNABLE_##name,
#include "arena/tunables.def"
#undef TUNABLE
	NR_TUNABLES
};

static inline void state_event(struct state *s, enum event_item item, uint64_t n)
{
	s->counters[item] += n;
}

static inline uint64_t state_tunable(const struct state *s, enum tunable t)
{
	return s->tunables[t];
}

#endif
