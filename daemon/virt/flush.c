/* SPDX-License-Identifier: MIT */
/*
 * flush.c - TLB flushes and limbo.
 *
 * What an entry loses (a frame's reference, a table page) waits in its mm's limbo under the number
 * of the flush that tells the client. Limbo is a ring in flush order; when the client's
 * flush_ack passes a number, everything up to it is let go: put_page() for frames, the free list for
 * tables. The daemon never waits here: it posts, and looks at the acks when it passes by.
 *
 * The ring of the channel may be overtaken; the client then flushes everything. So posting never
 * blocks and never fails. Only room in limbo must be reserved before an entry is cleared.
 *
 * Invariants: items are in ascending seq; no item's seq is above posted + 1; acked <= posted;
 * limbo.pages is the sum over items.
 */
#include "daemon/virt/internal.h"

bool mm_flush_pending(const struct mm *mm)
{
	return !mm->condemned &&
	       (mm->limbo.count || !TAILQ_EMPTY(&mm->waiters) || mm->nr_lingering);
}

void flush_note_pending(struct mm *mm, bool before)
{
	bool after = mm_flush_pending(mm);

	if (after && !before)
		mm->virt->nr_pending++;
	else if (!after && before)
		mm->virt->nr_pending--;
}

int limbo_reserve(struct mm *mm, uint32_t n)
{
	struct limbo *l = &mm->limbo;
	uint32_t capacity = l->capacity ? l->capacity : 64, i;
	struct limbo_item *ring;

	if (mm->dying || l->count + n <= l->capacity)
		return 0;
	while (capacity < l->count + n)
		capacity *= 2;
	ring = mem_array(capacity, sizeof(*ring));
	if (!ring)
		return ARENA_E_NO_MEMORY;
	for (i = 0; i < l->count; i++)
		ring[i] = l->ring[(l->head + i) & (l->capacity - 1)];
	free(l->ring);
	l->ring = ring;
	l->head = 0;
	l->capacity = capacity;
	return 0;
}

void limbo_add(struct mm *mm, enum limbo_kind kind, uint32_t number, unsigned pages)
{
	struct limbo *l = &mm->limbo;
	bool before = mm_flush_pending(mm);

	BUG_ON(l->count == l->capacity);
	l->ring[(l->head + l->count++) & (l->capacity - 1)] =
		(struct limbo_item){.seq = mm->posted + 1,
				    .number = number,
				    .kind = (uint16_t)kind,
				    .pages = (uint16_t)pages};
	if (kind == LIMBO_FRAME) {
		l->pages += pages;
		mm->virt->limbo_pages += pages;
		state_event(mm->virt->state, EV_ARENA_LIMBO_ENTER, 1);
	}
	flush_note_pending(mm, before);
}

uint64_t limbo_last(const struct mm *mm)
{
	const struct limbo *l = &mm->limbo;

	if (!l->count)
		return mm->posted;
	return MAX(mm->posted, l->ring[(l->head + l->count - 1) & (l->capacity - 1)].seq);
}

static void limbo_let_go(struct mm *mm, const struct limbo_item *item)
{
	if (item->kind == LIMBO_TABLE) {
		pgtable_release(mm, item->number);
		return;
	}
	mm->limbo.pages -= item->pages;
	mm->virt->limbo_pages -= item->pages;
	state_event(mm->virt->state, EV_ARENA_LIMBO_LEAVE, 1);
	page_leave_limbo(mm->virt->phys, item->number);
}

static bool limbo_release(struct mm *mm, uint64_t upto)
{
	struct limbo *l = &mm->limbo;
	bool any = false;

	while (l->count && l->ring[l->head].seq <= upto) {
		struct limbo_item item = l->ring[l->head];

		l->head = (l->head + 1) & (l->capacity - 1);
		l->count--;
		limbo_let_go(mm, &item);
		any = true;
	}
	/* A large unmapping should not leave its list behind for good. */
	if (!l->count && l->capacity > 65536) {
		free(l->ring);
		l->ring = NULL;
		l->capacity = l->head = 0;
	}
	return any;
}

void flush_post(struct mm *mm, enum arena_flush_op op, uint64_t start, uint64_t end)
{
	uint64_t seq = mm->posted + 1;
	struct arena_flush_entry *e = &mm->flush_ring[seq % ARENA_FLUSH_ENTRIES];

	if (mm->dying)
		return;
	/* A reader that copies this entry meanwhile must not take it for the old or the new one. */
	store_relaxed(&e->seq, UINT64_C(0));
	fence_full();
	store_relaxed(&e->start, start);
	store_relaxed(&e->end, end);
	store_relaxed(&e->op, (uint32_t)op);
	store_release(&e->seq, seq);
	mm->posted = seq;
	truth_store(&mm->header->next_seq, seq);
	store_release(&mm->channel->flush_head, seq);
	__atomic_store_n(&mm->channel->flush_word, (uint32_t)seq, __ATOMIC_SEQ_CST);
	state_event(mm->virt->state, EV_ARENA_FLUSH_POSTED, 1);
}

/* ---- waits --------------------------------------------------------------------------------------- */

static void waiter_end(struct flush_waiter *waiter)
{
	struct flush_wait *w = waiter->wait;
	struct flush_waiter **at = &w->first;
	struct mm *mm = waiter->mm;
	bool before = mm_flush_pending(mm);

	while (*at != waiter)
		at = &(*at)->next;
	*at = waiter->next;
	TAILQ_REMOVE(&mm->waiters, waiter, in_mm);
	flush_note_pending(mm, before);
	free(waiter);
	w->pending--;
}

static bool waiters_release(struct mm *mm, uint64_t upto)
{
	struct flush_waiter *waiter;
	bool any = false;

	while ((waiter = TAILQ_FIRST(&mm->waiters)) && waiter->seq <= upto) {
		struct flush_wait *w = waiter->wait;

		waiter_end(waiter);
		any = true;
		if (!w->pending && w->done)
			w->done(w);
	}
	return any;
}

void flush_wait_add(struct flush_wait *w, struct mm *mm)
{
	struct flush_waiter *waiter;
	bool before = mm_flush_pending(mm);

	if (mm->acked >= mm->posted || mm->dying)
		return;
	waiter = mem_alloc(sizeof(*waiter));
	if (!waiter)
		return;
	waiter->wait = w;
	waiter->mm = mm;
	waiter->seq = mm->posted;
	waiter->next = w->first;
	w->first = waiter;
	w->pending++;
	TAILQ_INSERT_TAIL(&mm->waiters, waiter, in_mm);
	flush_note_pending(mm, before);
}

void flush_wait_cancel(struct flush_wait *w)
{
	while (w->first)
		waiter_end(w->first);
}

/* ---- acknowledgements ------------------------------------------------------------------------------ */

uint64_t mm_flush_posted(const struct mm *mm)
{
	return mm->posted;
}

bool mm_flush_collect(struct mm *mm)
{
	uint64_t ack = load_acquire(&mm->channel->flush_ack);
	bool before, any;

	CONTROL_THREAD();
	/* A client that acknowledges what was never posted hurts itself, not our order. */
	ack = MIN(ack, mm->posted);
	if (ack <= mm->acked)
		return false;
	state_event(mm->virt->state, EV_ARENA_FLUSH_ACKED, ack - mm->acked);
	mm->acked = ack;
	mm->late = false;
	before = mm_flush_pending(mm);
	any = limbo_release(mm, ack);
	slot_end_lingering(mm, ack);
	flush_note_pending(mm, before);
	any |= waiters_release(mm, ack);
	/* A client that owes nothing any more need not ring at each of its acks. */
	if (mm->kicked && !mm_flush_pending(mm)) {
		mm->kicked = false;
		store_relaxed(&mm->channel->flush_kick, 0u);
	}
	return any;
}

void mm_flush_want(struct mm *mm, bool wake)
{
	mm->kicked = true;
	__atomic_store_n(&mm->channel->flush_kick, 1u, __ATOMIC_SEQ_CST);
	if (wake)
		os_futex_wake(&mm->channel->flush_word, 1);
}

void virt_flush_collect(struct virt *v)
{
	struct mm *mm;

	if (!v->nr_pending)
		return;
	LIST_FOREACH(mm, &v->mms, link)
		mm_flush_collect(mm);
}

bool virt_flush_pending(const struct virt *v)
{
	return v->nr_pending != 0;
}

uint64_t virt_limbo_pages(const struct virt *v)
{
	return v->limbo_pages;
}

void limbo_forget(struct mm *mm)
{
	bool before = mm_flush_pending(mm);

	mm->virt->limbo_pages -= mm->limbo.pages;
	free(mm->limbo.ring);
	mm->limbo = (struct limbo){0};
	mm->nr_lingering = 0;
	flush_note_pending(mm, before);
}

void flush_drop_all(struct mm *mm)
{
	bool before = mm_flush_pending(mm);

	mm->dying = true;
	mm->acked = mm->posted;
	limbo_release(mm, UINT64_MAX);
	slot_end_lingering(mm, UINT64_MAX);
	flush_note_pending(mm, before);
	waiters_release(mm, UINT64_MAX);
	free(mm->limbo.ring);
	mm->limbo = (struct limbo){0};
}
