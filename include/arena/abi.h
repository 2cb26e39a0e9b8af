/* SPDX-License-Identifier: MIT */
/*
 * abi.h - the layouts that daemon and client share through memory.
 *
 * Two files per client carry the protocol:
 *
 *   mm:<id>        written by the daemon, mapped read-only by the client
 *
 *     0        +-----------------------------+
 *              | struct arena_mm_header      |  4 KiB
 *     4 KiB    +-----------------------------+
 *              | struct arena_vma_record [N] |  ARENA_MM_MAX_VMAS * 64 bytes
 *     5 MiB    +-----------------------------+
 *              | struct arena_handle_record[]|  ARENA_MM_MAX_HANDLES * 16 bytes
 *     6 MiB    +-----------------------------+
 *              | struct arena_slot_record [] |  ARENA_MAX_SLOTS * 8 bytes
 *     7 MiB    +-----------------------------+
 *              | struct arena_pin_record []  |  ARENA_MM_MAX_PINS * 16 bytes
 *     8 MiB    +-----------------------------+
 *              | table 0: the root (PGD)     |  4 KiB, 512 entries
 *              | table 1 ...                 |
 *              | up to ARENA_MM_MAX_TABLES   |
 *              +-----------------------------+
 *
 *   channel:<id>   written by both; to the daemon every byte of it is hostile
 *
 *     0        +-----------------------------+
 *              | struct arena_channel_header |  4 KiB
 *     4 KiB    +-----------------------------+
 *              | struct arena_mailbox [64]   |  64 KiB
 *     68 KiB   +-----------------------------+
 *              | struct arena_flush_entry [] |  32 KiB
 *     1 MiB    +-----------------------------+
 *              | struct arena_table_bits []  |  128 bytes beside each table
 *              +-----------------------------+
 *
 * Numbers are in host byte order: both ends run on one machine. Nothing here is a
 * pointer. A layout that changes takes a new ARENA_ABI_MAJOR.
 */
#ifndef ARENA_ABI_H
#define ARENA_ABI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define ARENA_ABI_MAJOR 1u
#define ARENA_ABI_MINOR 0u

#define ARENA_PAGE_SHIFT 12
#define ARENA_PAGE_SIZE (UINT64_C(1) << ARENA_PAGE_SHIFT)
#define ARENA_PAGE_MASK (~(ARENA_PAGE_SIZE - 1))
#define ARENA_LEAF_SHIFT 21 /* a leaf at the PMD level: 2 MiB, order 9 */
#define ARENA_LEAF_SIZE (UINT64_C(1) << ARENA_LEAF_SHIFT)
#define ARENA_LEAF_MASK (~(ARENA_LEAF_SIZE - 1))
#define ARENA_LEAF_ORDER (ARENA_LEAF_SHIFT - ARENA_PAGE_SHIFT)
#define ARENA_LEAF_PAGES (1u << ARENA_LEAF_ORDER)

/* ---- page table entries -------------------------------------------------
 *
 *   63        52 51                      12 11      6  5   4   3  2  1  0
 *  +------------+--------------------------+---------+---+---+---+--+--+--+
 *  | file slot  | pfn, or table index      |    0    | HO| AH| HU| X| W| R|P ...
 *  +------------+--------------------------+---------+---+---+---+--+--+--+
 *
 * P present. R W X what the entry permits. HU a 2 MiB leaf (PMD level only). AH the
 * daemon installed it ahead of any access. HO the frame is still a hole in the arena
 * file: it reads as zeros and the host kernel backs it at the first touch, so a client
 * maps it without MAP_POPULATE. The file slot says which of the client's arena
 * descriptors the frame is mapped from. An entry that is not present keeps a type in
 * bits 1..5 and its data from bit 12 up.
 */
#define ARENA_PTE_PRESENT (UINT64_C(1) << 0)
#define ARENA_PTE_READ (UINT64_C(1) << 1)
#define ARENA_PTE_WRITE (UINT64_C(1) << 2)
#define ARENA_PTE_EXEC (UINT64_C(1) << 3)
#define ARENA_PTE_HUGE (UINT64_C(1) << 4)
#define ARENA_PTE_AHEAD (UINT64_C(1) << 5)
#define ARENA_PTE_HOLE (UINT64_C(1) << 6)
#define ARENA_PTE_PERM (ARENA_PTE_READ | ARENA_PTE_WRITE | ARENA_PTE_EXEC)
#define ARENA_PTE_PFN_SHIFT 12
#define ARENA_PTE_PFN_MASK (((UINT64_C(1) << 40) - 1) << ARENA_PTE_PFN_SHIFT)
#define ARENA_PTE_SLOT_SHIFT 52
#define ARENA_MAX_SLOTS 4096u
/*
 * The last slot is no domain's: its file is of zeros, and read-only. Entries of it map the block of 2 MiB
 * that is numbered right behind the arena's last frame (arena_frames), and never permit writing.
 */
#define ARENA_SLOT_ZERO (ARENA_MAX_SLOTS - 1)

#define ARENA_PTRS_PER_TABLE 512u
#define ARENA_TABLE_LEVELS 4

static inline uint64_t arena_pte_pfn(uint64_t pte)
{
	return (pte & ARENA_PTE_PFN_MASK) >> ARENA_PTE_PFN_SHIFT;
}

static inline unsigned arena_pte_slot(uint64_t pte)
{
	return (unsigned)(pte >> ARENA_PTE_SLOT_SHIFT);
}

/* Index of `addr` in a table of `level` (0 = last level, 4 KiB entries; 3 = root). */
static inline unsigned arena_table_index(uint64_t addr, unsigned level)
{
	return (unsigned)(addr >> (ARENA_PAGE_SHIFT + 9 * level)) & (ARENA_PTRS_PER_TABLE - 1);
}

/* ---- files ------------------------------------------------------------------
 *
 * A client that reads or writes files by system calls has to tell the daemon where they are cached in
 * its domain (docs/protocol.md, "Files"). A bit per file, by device and inode, in the header below says where that can be.
 */
#define ARENA_FILE_BITS 512u
#define ARENA_FILE_WORDS (ARENA_FILE_BITS / 64)

static inline unsigned arena_file_bit(uint64_t dev, uint64_t ino)
{
	uint64_t h = (dev * UINT64_C(0x9e3779b97f4a7c15) ^ ino) * UINT64_C(0xff51afd7ed558ccd);

	return (unsigned)(h >> 55);
}

/* ---- the mm file ---------------------------------------------------------- */

#define ARENA_MM_MAGIC UINT64_C(0x316d6d616e657261)      /* "arenamm1" */
#define ARENA_CHANNEL_MAGIC UINT64_C(0x316863616e657261) /* "arenach1" */

#define ARENA_MM_MAX_VMAS 65536u    /* vm.max_map_count, and those that replace others */
#define ARENA_MM_MAX_TABLES 262144u /* 1 GiB of tables: 512 GiB in 4 KiB entries */
#define ARENA_MM_MAX_HANDLES 65536u
#define ARENA_MM_MAX_PINS 65536u
#define ARENA_MM_VMAS_OFFSET UINT64_C(4096)
#define ARENA_MM_HANDLES_OFFSET (UINT64_C(5) << 20)
#define ARENA_MM_SLOTS_OFFSET (UINT64_C(6) << 20)
#define ARENA_MM_PINS_OFFSET (UINT64_C(7) << 20)
#define ARENA_MM_TABLES_OFFSET (UINT64_C(8) << 20)
#define ARENA_MM_FILE_SIZE (ARENA_MM_TABLES_OFFSET + ARENA_MM_MAX_TABLES * UINT64_C(4096))

/*
 * One change of the VMA records: the slots in kill[] end, the slots in born[] begin.
 * All of it takes effect with the store of `armed`; recovery replays an armed one.
 */
#define ARENA_VMA_TXN_MAX 4
struct arena_vma_txn {
	uint32_t armed;
	uint32_t nr_kill, nr_born;
	uint32_t kill[ARENA_VMA_TXN_MAX];
	uint32_t born[ARENA_VMA_TXN_MAX];
	uint32_t reserved[5];
};
static_assert(sizeof(struct arena_vma_txn) == 64, "vma txn");

struct arena_mm_header {
	uint64_t magic;
	uint32_t abi_major, abi_minor;
	uint32_t mm_id;
	uint32_t nr_tables;   /* tables ever used: a high-water mark */
	uint64_t window_base; /* the client's reservation of address space */
	uint64_t window_size;
	uint64_t segment_base; /* common area of named segments, bottom-up */
	uint64_t segment_end;
	uint64_t start_brk; /* heap area, bottom-up */
	uint64_t brk_limit;
	uint64_t direct_base;  /* page_address(pfn) = direct_base + (pfn << 12); 0: none */
	uint64_t mmap_base;    /* private mappings, top-down from here ... */
	uint64_t mmap_floor;   /* ... to here */
	uint64_t arena_frames; /* pfns are below this */
	uint64_t brk;          /* current program break */
	uint8_t token[16];     /* secret of this address space, for reconnection */
	uint64_t next_seq;     /* flush sequence last posted */
	uint32_t anon_family;  /* whose anonymous frames entries may point to: the mm's own id */
	uint32_t record;       /* index of the daemon's record of this address space */
	uint64_t def_flags;    /* VM_* that new mappings get: mlockall(MCL_FUTURE) */
	uint32_t uses_zero;    /* the client asked for ARENA_SLOT_ZERO: entries may have it */
	uint32_t policy_mode;  /* MPOL_* of linux/mempolicy.h */
	uint64_t policy_nodes; /* of policy_mode, bit by bit: daemon/virt/policy.c */
	/* Hints, kept by the daemon: a file with that bit is cached; has dirty pages. */
	uint64_t files_cached[ARENA_FILE_WORDS];
	uint64_t files_dirty[ARENA_FILE_WORDS];
	uint64_t reserved[27];
	struct arena_vma_txn txn;
	uint8_t pad[4096 - 576];
};
static_assert(offsetof(struct arena_mm_header, txn) == 512, "mm header txn");
static_assert(sizeof(struct arena_mm_header) == 4096, "mm header");

enum arena_vma_state { ARENA_VMA_FREE = 0, ARENA_VMA_LIVE = 1, ARENA_VMA_BORN = 2 };

struct arena_vma_record {
	uint64_t start, end; /* [start, end), page aligned */
	uint32_t flags;      /* VM_* of daemon/virt */
	uint32_t prot;       /* PROT_* */
	uint64_t pgoff;      /* first page's index in its object, or address >> 12 */
	uint32_t object;     /* object id, 0: private anonymous */
	uint32_t policy;     /* index of a memory policy, 0: default */
	uint32_t state;      /* enum arena_vma_state: the record's truth */
	uint32_t slot;       /* arena descriptor slot of the object */
	uint64_t reserved[2];
};
static_assert(sizeof(struct arena_vma_record) == 64, "vma record");
static_assert(ARENA_MM_VMAS_OFFSET + ARENA_MM_MAX_VMAS * sizeof(struct arena_vma_record) <=
		      ARENA_MM_HANDLES_OFFSET,
	      "vma records end before the handles");

/* An open segment of the client; its handle is the record's index + 1. */
struct arena_handle_record {
	uint32_t object; /* object id, stored last; 0: free. The record's truth */
	uint32_t slot;
	uint32_t writable;
	uint32_t reserved;
};
static_assert(sizeof(struct arena_handle_record) == 16, "handle record");

/* What entries with this slot are mapped from. Slot 0 is the client's own domain for ever. */
struct arena_slot_record {
	uint32_t domain; /* domain id, stored last; 0: free. The record's truth */
	uint32_t readonly;
};
static_assert(sizeof(struct arena_slot_record) == 8, "slot record");
/* A run of pinned pages and their frames, see daemon/virt/pin.c. */
struct arena_pin_record {
	uint64_t address;
	uint32_t pfn;
	uint32_t pages; /* stored last; 0: free. The record's truth */
};
#define ARENA_PIN_FROM_SHIFT 48   /* in address: of a part of a run, the run's record */
#define ARENA_PIN_BORN (1u << 31) /* in pages: the run it was cut from is not shortened yet */
static_assert(sizeof(struct arena_pin_record) == 16, "pin record");
static_assert(ARENA_MM_SLOTS_OFFSET + ARENA_MAX_SLOTS * sizeof(struct arena_slot_record) <=
		      ARENA_MM_PINS_OFFSET,
	      "slots end before the pins");
static_assert(ARENA_MM_PINS_OFFSET + ARENA_MM_MAX_PINS * sizeof(struct arena_pin_record) <=
		      ARENA_MM_TABLES_OFFSET,
	      "pins end before the tables");
static_assert(ARENA_MM_HANDLES_OFFSET + ARENA_MM_MAX_HANDLES * sizeof(struct arena_handle_record) <=
		      ARENA_MM_SLOTS_OFFSET,
	      "handles end before the slots");

/* ---- the channel file ------------------------------------------------------- */

#define ARENA_NR_MAILBOXES 64u
#define ARENA_MAILBOX_SIZE 1024u
#define ARENA_MAILBOX_PAYLOAD (ARENA_MAILBOX_SIZE - 16u)
#define ARENA_FLUSH_ENTRIES 1024u
#define ARENA_CHANNEL_MAILBOXES UINT64_C(4096)
#define ARENA_CHANNEL_FLUSH (ARENA_CHANNEL_MAILBOXES + ARENA_NR_MAILBOXES * ARENA_MAILBOX_SIZE)
#define ARENA_CHANNEL_BITS (UINT64_C(1) << 20)
#define ARENA_CHANNEL_SIZE (ARENA_CHANNEL_BITS + ARENA_MM_MAX_TABLES * UINT64_C(128))

/*
 * A mailbox's life. The client owns it in FREE and REPLY, the daemon in REQUEST and
 * REQUEST_WAIT. The client moves FREE -> REQUEST, sets its bit in `pending` and rings the
 * doorbell unless `daemon_poll` is set; when it gives up spinning it moves REQUEST ->
 * REQUEST_WAIT and sleeps on the word. The daemon moves either to REPLY and wakes the
 * sleeper only if it found REQUEST_WAIT.
 */
enum arena_mailbox_state {
	ARENA_MAILBOX_FREE = 0,
	ARENA_MAILBOX_REQUEST = 1,
	ARENA_MAILBOX_REQUEST_WAIT = 2,
	ARENA_MAILBOX_REPLY = 3,
};

struct arena_mailbox {
	uint32_t state;      /* futex word, enum arena_mailbox_state */
	uint32_t len;        /* bytes of payload */
	uint64_t request_id; /* the client's number for this call; the reply repeats it */
	uint8_t payload[ARENA_MAILBOX_PAYLOAD];
};
static_assert(sizeof(struct arena_mailbox) == ARENA_MAILBOX_SIZE, "mailbox");

enum arena_flush_op {
	ARENA_FLUSH_UNMAP = 1,     /* drop the mappings of [start, end) */
	ARENA_FLUSH_WRPROTECT = 2, /* take the write right from [start, end) */
	ARENA_FLUSH_ALL = 3,       /* drop every mapping of the window */
};

/*
 * Entry of flush number `seq` lives at index seq % ARENA_FLUSH_ENTRIES. The daemon never
 * waits for room: a client that finds an entry's seq overtaken flushes everything.
 */
struct arena_flush_entry {
	uint64_t seq; /* stored last */
	uint64_t start, end;
	uint32_t op;
	uint32_t reserved;
};
static_assert(sizeof(struct arena_flush_entry) == 32, "flush entry");

/* Hints, set by the client as it maps (accessed) and maps writable (dirty). */
struct arena_table_bits {
	uint64_t accessed[8];
	uint64_t dirty[8];
};
static_assert(sizeof(struct arena_table_bits) == 128, "table bits");

/*
 * Stored by the daemon when no more answers will come by this channel, so that nobody waits for
 * them: it ends in order, or wants nothing more to do with this client.
 */
enum arena_daemon_state {
	ARENA_DAEMON_SERVES = 0,
	ARENA_DAEMON_STOPPED = 1,
	ARENA_DAEMON_REFUSES = 2,
};

struct arena_channel_header {
	uint64_t magic;
	uint32_t abi_major, abi_minor;
	uint8_t pad0[48];
	/* 64: client to daemon, a cache line of its own */
	uint64_t pending; /* a bit per mailbox with a request in it */
	uint8_t pad1[56];
	/* 128: daemon to client */
	uint32_t daemon_poll;  /* 1: the daemon looks at `pending` by itself */
	uint32_t daemon_state; /* enum arena_daemon_state */
	uint32_t daemon_epoch; /* which worker of the daemon's state serves: 0, 1, ... */
	uint32_t restarts;     /* how often another worker took this channel over */
	uint8_t pad2[48];
	/* 192: flushes, daemon to client */
	uint32_t flush_word; /* futex: low half of the last posted seq */
	uint32_t flush_kick; /* 1: ring the doorbell after the next ack */
	uint64_t flush_head; /* last posted seq */
	uint8_t pad3[48];
	/* 256: flushes, client to daemon */
	uint64_t flush_ack; /* every flush up to here is done */
	uint8_t pad4[56];
	/* 320: the client's own counts, shown, never trusted */
	uint64_t refills;    /* misses served from the page table alone */
	uint64_t ahead_hits; /* leaves or pages mapped that were filled ahead */
	uint64_t faults;     /* misses that needed the daemon */
	uint64_t flushes;    /* flush entries applied */
	uint64_t evictions;  /* whole-window flushes to stay under vm.max_map_count */
	uint64_t reconnects; /* connections made anew */
	uint8_t pad5[16];
	uint8_t pad6[4096 - 384];
};
static_assert(offsetof(struct arena_channel_header, pending) == 64, "channel pending");
static_assert(offsetof(struct arena_channel_header, daemon_poll) == 128, "channel poll");
static_assert(offsetof(struct arena_channel_header, restarts) == 140, "channel restarts");
static_assert(offsetof(struct arena_channel_header, flush_word) == 192, "channel flush");
static_assert(offsetof(struct arena_channel_header, flush_ack) == 256, "channel ack");
static_assert(offsetof(struct arena_channel_header, refills) == 320, "channel counts");
static_assert(sizeof(struct arena_channel_header) == 4096, "channel header");

/* ---- the socket ---------------------------------------------------------------- */

/* SOCK_SEQPACKET, one packed message a packet. Larger packets are refused. */
#define ARENA_SOCKET_MAX_MESSAGE 65536u
#define ARENA_SOCKET_MAX_FDS 8u

/* ---- the window ------------------------------------------------------------------ */

#define ARENA_WINDOW_SIZE_DEFAULT (UINT64_C(16) << 40)
#define ARENA_WINDOW_SIZE_MIN (UINT64_C(1) << 30)
#define ARENA_WINDOW_ALIGN (UINT64_C(1) << 30)
#if defined(__SANITIZE_THREAD__)
#define ARENA_WINDOW_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define ARENA_WINDOW_TSAN 1
#endif
#endif
#ifdef ARENA_WINDOW_TSAN
/* ThreadSanitizer keeps most of the address space for itself. */
#define ARENA_WINDOW_BASE UINT64_C(0x7e8000000000)
#define ARENA_WINDOW_SIZE_DEFAULT_HERE (UINT64_C(256) << 30)
#else
#define ARENA_WINDOW_BASE UINT64_C(0x200000000000)
#define ARENA_WINDOW_SIZE_DEFAULT_HERE ARENA_WINDOW_SIZE_DEFAULT
#endif

#endif
