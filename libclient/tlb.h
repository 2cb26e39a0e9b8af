/* SPDX-License-Identifier: MIT */
/*
 * tlb.h - the software TLB: the page table's walk, and the kernel mappings made from it.
 *
 * The window is one reservation, which traps every access. A refill replaces a run of it by a shared
 * mapping of an arena file, a flush makes it trap again: how, is the trap's business (tlb_ops).
 * What is mapped is noted here, by address and in private memory, four bits a page:
 *
 *     window   |  res  | VMA 1 | VMA 2 |     res     | VMA 3 |
 *     mapped    0 0 0 0 1 1 1 1 1 1 1 1 0 0 0 0 0 0 0 1 1 1 1
 *     starts    . . . . 1 . . . 1 . . . . . . . . . . 1 . . .
 *
 * Why by address, when the accessed bits beside the tables say nearly the same: the daemon may
 * take a table out of the tree and put another in its place before this client has applied the
 * flush between the two; the new table's bits know nothing of what was mapped through the old
 * one. The accessed bits are kept too, for the daemon: hints.
 *
 * Invariants, all under `lock`:
 * - A page with a clear `mapped` bit traps; with a set one it maps what a present entry said at
 *   some time after the last flush of that page.
 * - The entry is read and the mapping made under one hold, so no mapping outlives its flush.
 * - starts + pieces + stale + 1 is the number of kernel mappings in the window, as good as it can
 *   be told without asking; never held across an RPC; nothing of the window is touched inside.
 */
#ifndef LIBCLIENT_TLB_H
#define LIBCLIENT_TLB_H

#include <stdbool.h>
#include <stdint.h>

#include <sys/types.h>

#include "arena/abi.h"
#include "libclient/lock.h"

#define WINDOW_SIZE_MAX (UINT64_C(64) << 40)

/* Notes of 64 pages. */
struct tlb_note {
	uint64_t mapped;
	uint64_t starts;     /* a kernel mapping begins here (estimate) */
	uint64_t writable;   /* mapped with PROT_WRITE */
	uint64_t executable; /* mapped with PROT_EXEC */
};

/* Notes get memory by chunks: 128 KiB for 1 GiB of window. */
#define NOTE_CHUNK_SHIFT 30
#define NOTE_CHUNK_NOTES ((UINT64_C(1) << NOTE_CHUNK_SHIFT) / ARENA_PAGE_SIZE / 64)
#define NOTE_CHUNKS_MAX (WINDOW_SIZE_MAX >> NOTE_CHUNK_SHIFT)
#define NOTES_PER_PAGE_LEAVES 16 /* leaves whose notes fill a page */

#define SLOTS_PER_CHUNK 64u

struct tlb;
struct tlb_run;

/* What the two traps do differently. All under the lock; 0 or -errno. */
struct tlb_ops {
	/* Replace the run by a mapping of fd as `flags` (of os.h) and the run's entry say. */
	int (*map)(struct tlb *t, const struct tlb_run *run, int fd, unsigned flags);
	/* [start, end) traps again. */
	int (*unmap)(struct tlb *t, uint64_t start, uint64_t end);
	/* The same after map() failed: nothing is known of the range. */
	int (*restore)(struct tlb *t, uint64_t start, uint64_t end);
	/* The whole window traps again; `evict` also gives its kernel mappings back. */
	int (*drop)(struct tlb *t);
	int (*evict)(struct tlb *t);
	/* How many leaves like `pte`, which is that of `addr`, one run may have. */
	unsigned (*max_leaves)(const struct tlb *t, uint64_t addr, uint64_t pte);
	bool wrprotects; /* mprotect(2) takes rights away without harm; else such ranges are unmapped */
};
extern const struct tlb_ops tlb_reservation_ops; /* the signal trap's */

/* The descriptor of an arena file. Its number may have become another file's: the program closes. */
struct tlb_slot {
	int number; /* plus one; read without a lock */
	ino_t ino;  /* the lock */
};

/* Addresses; empty: start == end. */
struct tlb_span {
	uint64_t start, end;
};

struct tlb {
	const struct tlb_ops *ops; /* NULL: tlb_reservation_ops */
	uint64_t base, size;       /* the window */
	/* the mm file */
	const struct arena_mm_header *header;
	const uint64_t *tables; /* nr_tables * ARENA_PTRS_PER_TABLE */
	uint32_t nr_tables;     /* as many as are mapped here */
	/* the channel */
	struct arena_channel_header *channel;
	struct arena_flush_entry *ring;
	struct arena_table_bits *bits;
	struct tlb_slot *slots[ARENA_MAX_SLOTS / SLOTS_PER_CHUNK]; /* grows in chunks */

	struct small_lock lock;
	struct tlb_note *notes;
	uint64_t nr_starts, nr_pieces;
	/* kernel mappings that the trap left where nothing is mapped, at most: see stale.c */
	uint64_t nr_stale, *stale;
	uint64_t stale_ready[NOTE_CHUNKS_MAX / 64];
	struct tlb_span readonly; /* nothing here is mapped with PROT_WRITE, as was found last */
	uint64_t left_out;        /* a leaf that no run of others takes along; 0: none */
	uint32_t crowded;         /* misses that shall still have pages gathered; without a lock */
	uint64_t max_maps;        /* drop everything above this estimate */
	uint64_t applied;         /* flushes done; read without the lock, too */
	uint64_t ready[NOTE_CHUNKS_MAX / 64]; /* chunks of notes that have memory */
};

static inline const struct tlb_ops *tlb_ops(const struct tlb *t)
{
	return t->ops ? t->ops : &tlb_reservation_ops;
}

/* ---- walk.c ---- */

struct tlb_walk {
	uint64_t pte;   /* 0: nothing present */
	unsigned level; /* where the walk ended: 0, 1 (a leaf), or where it found nothing */
	uint32_t table; /* the table that holds pte */
	unsigned index;
};

struct tlb_run {
	uint64_t start, end; /* addresses */
	uint64_t pte;        /* the entry of `start` */
	unsigned level;      /* 0 or 1 */
	uint32_t table;
	unsigned index, nr;           /* entries of the table */
	unsigned nr_ahead;            /* of them, filled ahead */
	bool joins_left, joins_right; /* the kernel will merge it with its neighbour */
};

#define TLB_LEAF_RUN 256u
/*
 * Of leaves that the host still has to back, so many: they are brought in with one call after the
 * lock is let go, instead of with a fault of the host's for each, which costs much more where
 * page tables are shadowed by a hypervisor. The host zeroes 2 MiB for each, so not too many.
 */
#define TLB_HOLE_RUN 16u

static inline bool tlb_is_writable_hole(uint64_t pte)
{
	return (pte & (ARENA_PTE_HOLE | ARENA_PTE_WRITE)) == (ARENA_PTE_HOLE | ARENA_PTE_WRITE);
}

/* The entry of `addr`, which lies in the window. True if a mappable entry is present. */
bool tlb_walk(const struct tlb *t, uint64_t addr, struct tlb_walk *w);
bool tlb_permits(uint64_t pte, unsigned prot);
/* How many pages in the table of addr have a neighbour there that lies elsewhere in the arena? */
unsigned tlb_count_breaks(const struct tlb *t, uint64_t addr);
/* The largest run around w's entry that one mmap can map. */
void tlb_find_run(const struct tlb *t, uint64_t addr, const struct tlb_walk *w,
		  struct tlb_run *run);

/* ---- notes.c; pages are numbered from the window's base ---- */

int tlb_notes_init(struct tlb *t); /* after base and size are set */
void tlb_notes_exit(struct tlb *t);
void tlb_notes_forget(struct tlb *t);
int tlb_note_prepare(struct tlb *t, uint64_t page); /* memory for the notes of its GiB */
/* The notes of these pages will be written soon: bring them in with one call. Only a hint. */
void tlb_notes_expect(const struct tlb *t, uint64_t first, uint64_t n);
/* [first, first + n) lies in one prepared GiB. `prot`: PROT_WRITE, PROT_EXEC count. */
void tlb_note_mapped(struct tlb *t, uint64_t first, uint64_t n, unsigned prot, bool joins_left,
		     bool joins_right);
void tlb_note_unmapped(struct tlb *t, uint64_t first, uint64_t n);
void tlb_note_wrprotected(struct tlb *t, uint64_t first, uint64_t n);
bool tlb_note_is_mapped(const struct tlb *t, uint64_t page);
/* Is every page of the range mapped with the rights that `pte` gives? */
bool tlb_note_covers(const struct tlb *t, uint64_t first, uint64_t n, uint64_t pte);
/* First mapped (mapped and writable) page of [first, end), `end` if none; and the last, plus 1. */
uint64_t tlb_note_next(const struct tlb *t, uint64_t first, uint64_t end, bool writable);
uint64_t tlb_note_last(const struct tlb *t, uint64_t first, uint64_t end);
/* End of the run of writable pages from `first` on with the same executable bit. */
uint64_t tlb_note_writable_end(const struct tlb *t, uint64_t first, uint64_t end);
bool tlb_note_executable(const struct tlb *t, uint64_t page);

static inline uint64_t tlb_nr_maps(const struct tlb *t)
{
	return t->nr_starts + t->nr_pieces + t->nr_stale + 1;
}

/* The notes of the 64 pages from `page`: which of them begin a kernel mapping. */
uint64_t tlb_note_starts(const struct tlb *t, uint64_t page);

/* ---- stale.c; for traps that leave mappings behind ---- */

int stale_init(struct tlb *t); /* after base and size are set */
void stale_exit(struct tlb *t);
/* Before they are noted unmapped: the mappings of [first, end) stay; those of the whole window. */
void stale_add(struct tlb *t, uint64_t first, uint64_t end);
void stale_add_all(struct tlb *t);
/* They are gone: something is mapped over them; all. */
void stale_replaced(struct tlb *t, uint64_t first, uint64_t end);
void stale_forget(struct tlb *t);

/* ---- tlb.c ---- */

/*
 * Take and leave `lock`. `blocked`: all signals are blocked already (traps, the flush thread);
 * else tlb_lock blocks them and returns the mask that tlb_unlock puts back.
 */
uint64_t tlb_lock(struct tlb *t, bool blocked);
void tlb_unlock(struct tlb *t, uint64_t mask, bool blocked);

enum tlb_result {
	TLB_DONE = 0,
	TLB_AGAIN = 2, /* inside tlb.c: a flush comes first */
	TLB_MISS = 1,  /* the entry is absent or forbids it: the daemon's business */
};

/*
 * Under the lock: map what `addr` needs. enum tlb_result, or -errno if it cannot be mapped.
 * *holes (may be NULL): leaves that the host does not back yet, from addr's on; see tlb_back_holes().
 */
int tlb_refill(struct tlb *t, uint64_t addr, unsigned access, struct tlb_span *holes);
/*
 * Without the lock, for threads may fill different holes at once: have the host back them. By now
 * they may be unmapped, which fails, or map something else, which it does no harm.
 */
void tlb_back_holes(struct tlb_span holes);
/* Takes the lock by itself: map all of the range that is present and permits `access`. */
void tlb_refill_range(struct tlb *t, uint64_t start, uint64_t end, unsigned access);
/* Under the lock: unmap the window. */
void tlb_drop(struct tlb *t);
/* Under the lock: unmap what is mapped of the range. */
void tlb_unmap(struct tlb *t, uint64_t start, uint64_t end);
/* Takes the lock: apply the ring up to its head and return that number. */
uint64_t tlb_flush(struct tlb *t, bool blocked);
/*
 * Takes the lock: whole pages of the window lose the right to write that their entries may still give. That
 * is always allowed: who writes there has them mapped again.
 */
void tlb_take_writing(struct tlb *t, uint64_t start, uint64_t end);
/* Every flush up to `seq` is done: tell the daemon. True: it wants to hear the doorbell. */
bool tlb_ack(struct tlb *t, uint64_t seq);
/* Descriptor of a slot, -1 if there is none. */
int tlb_slot_fd(const struct tlb *t, unsigned slot);
/* The descriptor becomes the tlb's, in place of what the slot had: the daemon uses numbers again.
 * One caller at a time. -EBADF, -ENOMEM: still yours. */
int tlb_slot_set(struct tlb *t, unsigned slot, int fd);
/*
 * The same file once more, for a slot that has one, because the program may have closed ours. Where it
 * has, the number we had is the program's: `fd` takes its place. The descriptor that is left over,
 * the caller's to close: `fd`, or -1.
 */
int tlb_slot_replace(struct tlb *t, unsigned slot, int fd);
void tlb_slots_close(struct tlb *t);
void tlb_slots_forget(struct tlb *t); /* they are the program's now */
/* In the child of fork(), whose descriptors they are not: slots are known, and have none. */
void tlb_slots_lose(struct tlb *t);
/* Its descriptor is yet to be had: as one that was lost. */
int tlb_slot_expect(struct tlb *t, unsigned slot);
bool tlb_slot_is_known(const struct tlb *t, unsigned slot);
void tlb_slot_is_gone(struct tlb *t, unsigned slot); /* one that was lost is not in use any more */

#endif
