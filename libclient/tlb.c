/* SPDX-License-Identifier: MIT */
/*
 * tlb.c - refill, flush, eviction; and how the signal trap maps and unmaps.
 *
 * A refill that fails half-way may have lost the reservation of its range: mmap(2) unmaps first.
 * So every failure puts the reservation back. Where not even that succeeds nothing is known of
 * the window any more, and an acknowledged flush would be a lie: the process stops.
 */
#include "libclient/tlb.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/faultpoint.h"
#include "base/os.h"
#include "base/util.h"
#include "libclient/own.h"

#define CROWDED 4096u  /* misses that look after an eviction */
#define SLOT_LOST (-1) /* in the place of a descriptor plus one */

uint64_t tlb_lock(struct tlb *t, bool blocked)
{
	uint64_t mask = blocked ? 0 : signals_block_all();

	small_lock_acquire(&t->lock);
	return mask;
}

void tlb_unlock(struct tlb *t, uint64_t mask, bool blocked)
{
	small_lock_release(&t->lock);
	if (!blocked)
		signals_restore(mask);
}

static uint64_t page_of(const struct tlb *t, uint64_t addr)
{
	return (addr - t->base) >> ARENA_PAGE_SHIFT;
}

static void *pointer(uint64_t addr)
{
	return (void *)(uintptr_t)addr;
}

/* A number of the client's own, shown to people. */
static void count(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

/* ---- slots ---- */

static struct tlb_slot *slot_at(const struct tlb *t, unsigned slot)
{
	struct tlb_slot *chunk;

	if (slot >= ARENA_MAX_SLOTS)
		return NULL;
	chunk = load_acquire(&t->slots[slot / SLOTS_PER_CHUNK]);
	return chunk ? &chunk[slot % SLOTS_PER_CHUNK] : NULL;
}

int tlb_slot_fd(const struct tlb *t, unsigned slot)
{
	const struct tlb_slot *s = slot_at(t, slot);

	return s ? load_acquire(&s->number) - 1 : -1;
}

static ino_t ino_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

/* The program may have closed it, and what has its number now is not ours to map or to close. */
static bool slot_is_ours(const struct tlb_slot *s)
{
	return s->number > 0 && s->ino && ino_of(s->number - 1) == s->ino;
}

static void slot_put(struct tlb_slot *s, int fd)
{
	s->ino = ino_of(fd);
	store_release(&s->number, fd + 1);
}

static int slot_make_room(struct tlb *t, unsigned slot)
{
	struct tlb_slot *chunk;

	if (t->slots[slot / SLOTS_PER_CHUNK])
		return 0;
	chunk = own_alloc(SLOTS_PER_CHUNK * sizeof(*chunk));
	if (!chunk)
		return -ENOMEM;
	store_release(&t->slots[slot / SLOTS_PER_CHUNK], chunk);
	return 0;
}

int tlb_slot_expect(struct tlb *t, unsigned slot)
{
	int r = slot_make_room(t, slot);

	if (r == 0)
		store_release(&slot_at(t, slot)->number, SLOT_LOST);
	return r;
}

int tlb_slot_set(struct tlb *t, unsigned slot, int fd)
{
	struct tlb_slot *s;
	uint64_t mask;
	int old, r;

	if (slot >= ARENA_MAX_SLOTS || fd < 0)
		return -EBADF;
	r = slot_make_room(t, slot);
	if (r < 0)
		return r;
	s = slot_at(t, slot);
	/* A refill uses the descriptor under the lock. */
	mask = tlb_lock(t, false);
	old = slot_is_ours(s) ? s->number - 1 : -1;
	slot_put(s, fd);
	tlb_unlock(t, mask, false);
	if (old >= 0 && old != fd)
		close(old);
	return 0;
}

int tlb_slot_replace(struct tlb *t, unsigned slot, int fd)
{
	struct tlb_slot *s = slot_at(t, slot);
	uint64_t mask = tlb_lock(t, false);
	int left = -1;

	/* The new one may have got the very number that the old one had. */
	if (s->number - 1 != fd && slot_is_ours(s) && ino_of(fd) == s->ino)
		left = fd;
	else
		slot_put(s, fd);
	tlb_unlock(t, mask, false);
	return left;
}

void tlb_slots_forget(struct tlb *t)
{
	for (unsigned c = 0; c < ARRAY_SIZE(t->slots); c++)
		if (t->slots[c])
			memset(t->slots[c], 0, SLOTS_PER_CHUNK * sizeof(*t->slots[c]));
}

bool tlb_slot_is_known(const struct tlb *t, unsigned slot)
{
	const struct tlb_slot *s = slot_at(t, slot);

	return s && s->number;
}

void tlb_slots_lose(struct tlb *t)
{
	for (unsigned slot = 0; slot < ARENA_MAX_SLOTS; slot++)
		if (tlb_slot_is_known(t, slot))
			*slot_at(t, slot) = (struct tlb_slot){.number = SLOT_LOST};
}

void tlb_slot_is_gone(struct tlb *t, unsigned slot)
{
	struct tlb_slot *s = slot_at(t, slot);

	if (s->number == SLOT_LOST)
		s->number = 0;
}

void tlb_slots_close(struct tlb *t)
{
	for (unsigned c = 0; c < ARRAY_SIZE(t->slots); c++) {
		for (unsigned i = 0; t->slots[c] && i < SLOTS_PER_CHUNK; i++)
			if (slot_is_ours(&t->slots[c][i]))
				close(t->slots[c][i].number - 1);
		own_free(t->slots[c], SLOTS_PER_CHUNK * sizeof(*t->slots[c]));
		t->slots[c] = NULL;
	}
}

/* ---- mapping ---- */

static int reservation_map(struct tlb *t, const struct tlb_run *run, int fd, unsigned flags)
{
	if (!slot_is_ours(slot_at(t, arena_pte_slot(run->pte))))
		return -EBADF;
	return os_map_fixed(pointer(run->start), run->end - run->start, fd,
			    arena_pte_pfn(run->pte) << ARENA_PAGE_SHIFT, flags);
}

static int reservation_unmap(struct tlb *t, uint64_t start, uint64_t end)
{
	void *p;

	(void)t;
	return os_reserve(pointer(start), end - start, true, &p);
}

static int reservation_drop(struct tlb *t)
{
	return reservation_unmap(t, t->base, t->base + t->size);
}

static unsigned reservation_max_leaves(const struct tlb *t, uint64_t addr, uint64_t pte)
{
	(void)t, (void)addr;
	return tlb_is_writable_hole(pte) ? TLB_HOLE_RUN : TLB_LEAF_RUN;
}

const struct tlb_ops tlb_reservation_ops = {
	.map = reservation_map,
	.unmap = reservation_unmap,
	.restore = reservation_unmap,
	.drop = reservation_drop,
	.evict = reservation_drop,
	.max_leaves = reservation_max_leaves,
	.wrprotects = true,
};

/* Nothing is mapped any more. */
static void forget(struct tlb *t)
{
	uint32_t nr = MIN(load_acquire(&t->header->nr_tables), t->nr_tables);

	tlb_notes_forget(t);
	for (uint32_t i = 0; i < nr; i++)
		for (unsigned w = 0; w < ARRAY_SIZE(t->bits[i].accessed); w++)
			if (load_relaxed(&t->bits[i].accessed[w]))
				store_relaxed(&t->bits[i].accessed[w], 0);
}

void tlb_drop(struct tlb *t)
{
	BUG_ON(tlb_ops(t)->drop(t) < 0);
	forget(t);
}

static void evict(struct tlb *t)
{
	BUG_ON(tlb_ops(t)->evict(t) < 0);
	forget(t);
	count(&t->channel->evictions, 1);
	store_relaxed(&t->crowded, CROWDED);
}

static void mark_bits(uint64_t *words, unsigned first, unsigned nr, bool set)
{
	while (nr) {
		unsigned n = MIN(nr, 64 - first % 64);
		uint64_t mask = (n == 64 ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1) << (first % 64);

		if (set)
			__atomic_fetch_or(&words[first / 64], mask, __ATOMIC_RELAXED);
		else if (load_relaxed(&words[first / 64]) & mask)
			__atomic_fetch_and(&words[first / 64], ~mask, __ATOMIC_RELAXED);
		first += n;
		nr -= n;
	}
}

static unsigned run_flags(const struct tlb_run *run)
{
	unsigned flags = OS_MAP_DONTFORK;

	if (run->pte & ARENA_PTE_READ)
		flags |= OS_MAP_READ;
	if (run->pte & ARENA_PTE_WRITE)
		flags |= OS_MAP_READ | OS_MAP_WRITE;
	if (run->pte & ARENA_PTE_EXEC)
		flags |= OS_MAP_EXEC;
	flags |= run->pte & ARENA_PTE_HOLE ? OS_MAP_HUGE : OS_MAP_POPULATE;
	return flags;
}

static int map_run(struct tlb *t, const struct tlb_run *run)
{
	uint64_t page = page_of(t, run->start), nr = (run->end - run->start) >> ARENA_PAGE_SHIFT;
	unsigned flags = run_flags(run);
	int fd = tlb_slot_fd(t, arena_pte_slot(run->pte));
	int r;

	if (fd < 0)
		return -EBADF;
	r = tlb_note_prepare(t, page);
	if (r < 0)
		return r;
	r = faultpoint("client.refill") ? -ENOMEM : tlb_ops(t)->map(t, run, fd, flags);
	if (r < 0) {
		/* At the limit of mappings the range's reservation comes back with the whole window. */
		if (tlb_ops(t)->restore(t, run->start, run->end) < 0)
			evict(t);
		tlb_note_unmapped(t, page, nr);
		return r;
	}
	if (flags & OS_MAP_WRITE && run->start < t->readonly.end && run->end > t->readonly.start)
		t->readonly = (struct tlb_span){0};
	tlb_note_mapped(t, page, nr,
			(flags & OS_MAP_WRITE ? PROT_WRITE : 0) |
				(flags & OS_MAP_EXEC ? PROT_EXEC : 0),
			run->joins_left, run->joins_right);
	mark_bits(t->bits[run->table].accessed, run->index, run->nr, true);
	if (flags & OS_MAP_WRITE)
		mark_bits(t->bits[run->table].dirty, run->index, run->nr, true);
	if (run->nr_ahead)
		count(&t->channel->ahead_hits, run->nr_ahead);
	faultpoint("client.mapped");
	return 0;
}

/*
 * What was posted before the entries were read comes first: a right that the daemon gave after it
 * took others away is not to be had before those are gone (snapshots and forks depend on it).
 */
static bool flush_is_due(const struct tlb *t)
{
	return load_acquire(&t->channel->flush_head) != t->applied;
}

static uint64_t apply_ring(struct tlb *t);

/* Map the run around a present entry; a window full of mappings is emptied first. */
static int refill_entry(struct tlb *t, uint64_t addr, const struct tlb_walk *w, struct tlb_run *run)
{
	int r;

	if (tlb_nr_maps(t) + 2 > t->max_maps || faultpoint("client.evict"))
		evict(t);
	tlb_find_run(t, addr, w, run);
	if (flush_is_due(t))
		return TLB_AGAIN;
	r = map_run(t, run);
	if (r != -ENOMEM)
		return r;
	evict(t);
	tlb_find_run(t, addr, w, run);
	return flush_is_due(t) ? TLB_AGAIN : map_run(t, run);
}

int tlb_refill(struct tlb *t, uint64_t addr, unsigned access, struct tlb_span *holes)
{
	struct tlb_walk w;
	struct tlb_run run;
	int r;

	do {
		if (!tlb_walk(t, addr, &w) || !tlb_permits(w.pte, access))
			return TLB_MISS;
		r = refill_entry(t, addr, &w, &run);
		if (r == TLB_AGAIN)
			apply_ring(t);
	} while (r == TLB_AGAIN);
	if (r == 0 && holes && tlb_is_writable_hole(w.pte)) {
		holes->start = ALIGN_DOWN(addr, ARENA_LEAF_SIZE);
		holes->end = run.end;
	}
	return r;
}

void tlb_back_holes(struct tlb_span holes)
{
	/* One leaf is as cheap by its own fault. */
	if (holes.end - holes.start > ARENA_LEAF_SIZE)
		os_populate(pointer(holes.start), holes.end - holes.start);
}

/* One step of an eager refill: where to go on. */
static uint64_t refill_step(struct tlb *t, uint64_t addr, unsigned access)
{
	bool present;
	struct tlb_walk w;
	struct tlb_run run;
	uint64_t span, start;
	int r;

	present = tlb_walk(t, addr, &w);
	span = UINT64_C(1) << (ARENA_PAGE_SHIFT + 9 * w.level);
	start = ALIGN_DOWN(addr, span);
	if (!present || !tlb_permits(w.pte, access) ||
	    tlb_note_covers(t, page_of(t, start), span >> ARENA_PAGE_SHIFT, w.pte))
		return start + span;
	r = refill_entry(t, addr, &w, &run);
	if (r == TLB_AGAIN) {
		apply_ring(t);
		return addr;
	}
	return r < 0 ? start + span : run.end;
}

void tlb_refill_range(struct tlb *t, uint64_t start, uint64_t end, unsigned access)
{
	uint64_t addr = start;

	while (addr < end) {
		/* In bounded pieces: flushes want in between. */
		uint64_t stop = MIN(end, addr + TLB_LEAF_RUN * ARENA_LEAF_SIZE);
		uint64_t mask = tlb_lock(t, false);

		for (int n = 0; n < 32 && addr < stop; n++)
			addr = refill_step(t, addr, access);
		tlb_unlock(t, mask, false);
	}
}

/* ---- flushing ---- */

/* Clear the accessed bits beside the entries of [start, end), as far as their tables are found. */
static void clear_accessed(struct tlb *t, uint64_t start, uint64_t end)
{
	uint64_t addr = start;

	while (addr < end) {
		struct tlb_walk w;
		uint64_t span, table_end, stop;

		tlb_walk(t, addr, &w);
		span = UINT64_C(1) << (ARENA_PAGE_SHIFT + 9 * w.level);
		if (w.level > 1) {
			addr = ALIGN_DOWN(addr, span) + span;
			continue;
		}
		/* Entries of a PMD table may lead down to further tables, so one at a time. */
		table_end = w.level ? ALIGN_DOWN(addr, span) + span
				    : ALIGN_DOWN(addr, span << 9) + (span << 9);
		stop = MIN(end, table_end);
		if (w.level == 0)
			mark_bits(t->bits[w.table].accessed, w.index,
				  (unsigned)((stop - addr) >> ARENA_PAGE_SHIFT), false);
		else if (IS_ALIGNED(addr, span) && stop - addr == span)
			mark_bits(t->bits[w.table].accessed, w.index, 1, false);
		addr = stop;
	}
}

/* One system call for all that is mapped between: the gaps are reservation already. */
void tlb_unmap(struct tlb *t, uint64_t start, uint64_t end)
{
	uint64_t first = tlb_note_next(t, page_of(t, start), page_of(t, end), false);
	uint64_t last = tlb_note_last(t, first, page_of(t, end));
	uint64_t from = t->base + (first << ARENA_PAGE_SHIFT);
	uint64_t to = t->base + (last << ARENA_PAGE_SHIFT);

	if (first == last)
		return;
	if (tlb_ops(t)->unmap(t, from, to) < 0) {
		evict(t);
		return;
	}
	tlb_note_unmapped(t, first, last - first);
	clear_accessed(t, from, to);
}

static void flush_wrprotect(struct tlb *t, uint64_t start, uint64_t end)
{
	uint64_t stop = page_of(t, end);
	uint64_t first = tlb_note_next(t, page_of(t, start), stop, true);

	while (first < stop) {
		uint64_t last = tlb_note_writable_end(t, first, stop);
		uint64_t from = t->base + (first << ARENA_PAGE_SHIFT);
		uint64_t len = (last - first) << ARENA_PAGE_SHIFT;
		bool executable = tlb_note_executable(t, first);

		if (os_protect(pointer(from), len, OS_MAP_READ | (executable ? OS_MAP_EXEC : 0)) <
		    0) {
			evict(t);
			return;
		}
		tlb_note_wrprotected(t, first, last - first);
		first = tlb_note_next(t, last, stop, true);
	}
}

static void take_writing(struct tlb *t, uint64_t start, uint64_t end)
{
	if (start >= t->readonly.start && end <= t->readonly.end)
		return;
	if (tlb_ops(t)->wrprotects)
		flush_wrprotect(t, start, end);
	else
		tlb_unmap(t, start, end);
	t->readonly = (struct tlb_span){start, end};
}

static void apply(struct tlb *t, const struct arena_flush_entry *e)
{
	uint64_t start = MAX(ALIGN_DOWN(e->start, ARENA_PAGE_SIZE), t->base);
	uint64_t end = MIN(e->end, t->base + t->size);

	end = ALIGN_UP(end, ARENA_PAGE_SIZE);
	if (e->op != ARENA_FLUSH_UNMAP && e->op != ARENA_FLUSH_WRPROTECT)
		tlb_drop(t); /* ARENA_FLUSH_ALL, or one that this library does not know */
	else if (start >= end)
		return;
	else if (e->op == ARENA_FLUSH_UNMAP)
		tlb_unmap(t, start, end);
	else
		take_writing(t, start, end);
}

/*
 * Copy entry `seq` out of the ring; false if it was overtaken, or may have been while it was
 * copied: its successor is written only after entry seq + ARENA_FLUSH_ENTRIES - 1 was posted.
 */
static bool copy_entry(const struct tlb *t, uint64_t seq, struct arena_flush_entry *out)
{
	struct arena_flush_entry *e = &t->ring[seq % ARENA_FLUSH_ENTRIES];

	if (load_acquire(&e->seq) != seq)
		return false;
	out->start = load_acquire(&e->start);
	out->end = load_acquire(&e->end);
	out->op = load_acquire(&e->op);
	return load_acquire(&t->channel->flush_head) - seq < ARENA_FLUSH_ENTRIES - 1 &&
	       load_acquire(&e->seq) == seq;
}

/* Under the lock: all that was posted. The acknowledgement is another's, soon (flush_thread.c). */
static uint64_t apply_ring(struct tlb *t)
{
	uint64_t head = load_acquire(&t->channel->flush_head);
	uint64_t seq = t->applied;

	while (seq < head) {
		struct arena_flush_entry e;

		if (!copy_entry(t, seq + 1, &e)) {
			head = load_acquire(&t->channel->flush_head);
			tlb_drop(t);
			count(&t->channel->flushes, head - seq);
			seq = head;
			break;
		}
		apply(t, &e);
		count(&t->channel->flushes, 1);
		seq++;
	}
	store_release(&t->applied, seq);
	return seq;
}

uint64_t tlb_flush(struct tlb *t, bool blocked)
{
	uint64_t mask = tlb_lock(t, blocked);
	uint64_t seq = apply_ring(t);

	tlb_unlock(t, mask, blocked);
	return seq;
}

void tlb_take_writing(struct tlb *t, uint64_t start, uint64_t end)
{
	uint64_t mask = tlb_lock(t, false);

	take_writing(t, start, end);
	tlb_unlock(t, mask, false);
}

bool tlb_ack(struct tlb *t, uint64_t seq)
{
	uint64_t old = load_relaxed(&t->channel->flush_ack);

	/* Others may have gone further meanwhile; and then `kick` must be read after the store. */
	while (old < seq && !__atomic_compare_exchange_n(&t->channel->flush_ack, &old, seq, false,
							 __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		;
	return __atomic_load_n(&t->channel->flush_kick, __ATOMIC_SEQ_CST) == 1;
}
