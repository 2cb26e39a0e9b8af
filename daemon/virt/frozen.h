/* SPDX-License-Identifier: MIT */
/*
 * frozen.h - frames that objects and snapshots have in common: what the files of this room share about them.
 *
 *	frozen.c      who may write to an object's frame, and what a write does to the snapshots that hold it
 *	snapshot.c    vm_snapshot(): how they come to hold them
 *
 * A snapshot of shared memory is a private VMA (VM_SNAPSHOT) whose `origin` is the object. Its entries refer to
 * the frames that the object had at that moment, read-only, at the same page numbers. The frames stay the
 * object's: who writes to one has its bytes copied for the snapshots first. So nothing that is keyed by an
 * object's frame ever moves: not futexes, pins, nor what is being written to a file.
 *
 *	object --- chunk --> frame (PG_FROZEN) <-- entry --- VMA of a snapshot    read-only, as long as
 *	   ^                    ^                                                  both have it
 *	   +--- shared VMA -----+-- entry, without the right to write
 *
 * Invariants: a frame that an object has and an entry of a VM_SNAPSHOT VMA refers to, too, is PG_FROZEN, and no
 * entry of a shared mapping permits writing to that page of it. A right to write is given when no snapshot
 * holds the page any more and all who held it have flushed (mm->push_seq). A frame that the object lets go of
 * (mapping 0) is the snapshot's, and nobody writes to it ever again: a snapshot's own write makes a copy.
 * What is absent in a snapshot is zeros.
 */
#ifndef VIRT_FROZEN_H
#define VIRT_FROZEN_H

#include "daemon/virt/internal.h"
#include "daemon/virt/recovery.h"

/* A call that waits for flushes of others, or for a snapshot that settles. */
struct frozen_wait {
	LIST_ENTRY(frozen_wait) link;
	struct flush_wait flush;
	struct io_wait *io;
	uint64_t deadline; /* of a flush_wait */
};

/*
 * A snapshot from its first store until it is told: it settles when everybody who could write to what it holds
 * has acknowledged that he cannot. Until then nobody gets a right to write that he has not: else what is
 * written before the last acknowledgement could depend on what was written behind the first.
 */
struct settle {
	LIST_ENTRY(settle) link;
	struct mm *mm;
	uint64_t from, to, len; /* addresses of the range and of its copy */
	struct flush_wait wait;
	bool armed;        /* all it waits for is in `wait` */
	bool ended;        /* nobody waits for it any more ... */
	bool late;         /* ... because somebody did not acknowledge in time */
	bool owner_wanted; /* who waits next is its own call */
	uint64_t deadline;
	struct io_wait *owner;           /* the call, while it waits and until it is served again */
	struct frozen_wait_list blocked; /* other calls */
	struct object **objects;         /* that it has pages of */
	uint32_t nr_objects, cap_objects;
};

/* ---- frozen.c ---- */

/* May an entry that the VMA would have writable be so? For vma_entry(). */
bool frozen_forbids(const struct vma *vma, pfn_t pfn, bool leaf, bool of_object);
/* Somebody is about to write to a page through this mapping. 0: as far as snapshots go he may.
 * ARENA_E_WAIT_IO, ARENA_E_NO_MEMORY. */
int frozen_write(struct vma *vma, uint64_t addr, unsigned cpu);
/* ... and then the entry that maps it gets the right, and those beside it that may. */
int frozen_raise(struct vma *vma, uint64_t addr, struct pte_ref *ref);
/* The daemon is about to write to pages [first, last) that the object has. can_wait: ARENA_E_WAIT_IO. */
int frozen_vacate(struct object *o, uint64_t first, uint64_t last, bool can_wait);
/* Does a snapshot hold one of the n pages of the object from pgoff on, that it has in frames from pfn on? */
bool frozen_is_held(struct object *o, uint64_t pgoff, pfn_t pfn, unsigned n);
/* Of the call that answered ARENA_E_WAIT_IO. */
void frozen_wait(struct virt *v, struct io_wait *w);
void frozen_wait_cancel(struct io_wait *w);
void frozen_wake(struct frozen_wait *fw);
void frozen_tick(struct virt *v, uint64_t now);
uint64_t frozen_deadline(const struct virt *v);
/* After the clients have had so long to acknowledge, they are not waited for. */
uint64_t frozen_patience(const struct virt *v);

/* ---- snapshot.c ---- */

/* It settles no more: who waits is told. */
void settle_end(struct settle *s, bool late);
/* The call is gone: so goes the copy. */
void settle_abandon(struct settle *s);
/* The mm is dying. */
void settle_forget(struct mm *mm);
/* Recovery: copies that were told to nobody. */
void snapshot_clean(struct mm *mm, struct virt_recover_stats *stats);

#endif
