/* SPDX-License-Identifier: MIT */
/*
 * frozen.c - writes to frames of objects that snapshots hold.
 *
 *	write fault --> each snapshot that holds the page gets a copy of a piece around it (cow_push())
 *	            --> ARENA_E_WAIT_IO until those clients have flushed what they had mapped of it
 *	            --> once more: nobody holds it, the entry gets its right back
 *
 * The writer's own snapshots need no wait: a client flushes before it uses a right that was given later. Who
 * does not acknowledge in time is not waited for (mm->late): a stopped process costs a writer one deadline, and
 * sees what others wrote in pages that it had mapped until its flush thread runs again.
 *
 * A leaf of an object stays one while pieces of it are copied; the writer's entry for it becomes a table, and
 * a leaf again at the first write fault that finds it held by nobody.
 *
 * A crash: PG_FROZEN is stored before an entry of a snapshot refers to the frame, and cleared when none does. An
 * entry of a snapshot is replaced by that of its copy in one store. A worker that follows waits for everybody
 * who has snapshots once, for it does not know who has flushed.
 */
#include "base/clock.h"
#include "daemon/virt/file.h"
#include "daemon/virt/frozen.h"

#define PATIENCE 10 /* flush deadlines */

uint64_t frozen_patience(const struct virt *v)
{
	return PATIENCE * NSEC_PER_MSEC * state_tunable(v->state, TUNABLE_FLUSH_DEADLINE_MSECS);
}

/* ---- who holds what --------------------------------------------------------------------------- */

/* May the client have a page mapped that was taken from its snapshot? Who is still to be born has none. */
static bool has_not_flushed(const struct mm *mm)
{
	return mm->acked < mm->push_seq && !mm->late && !mm_is_forked(mm);
}

struct held {
	uint64_t start; /* address of the first page ... */
	pfn_t pfn;      /* ... and its frame */
};

static int held_entry(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	const struct held *h = arg;

	(void)mm;
	return arena_pte_pfn(*ref->entry) ==
	       h->pfn + (uint64_t)((int64_t)(addr - h->start) >> ARENA_PAGE_SHIFT);
}

/* Has this VMA of a snapshot one of the object's n pages from pgoff on, from this frame on? */
static bool vma_holds(const struct vma *s, uint64_t pgoff, pfn_t pfn, unsigned n)
{
	uint64_t pages = (s->end - s->start) >> ARENA_PAGE_SHIFT;
	uint64_t first = MAX(pgoff, s->pgoff), last = MIN(pgoff + n, s->pgoff + pages);
	struct held h = {.pfn = pfn + (pfn_t)(first - pgoff)};

	if (first >= last)
		return false;
	h.start = s->start + ((first - s->pgoff) << ARENA_PAGE_SHIFT);
	return pgtable_walk(s->mm, h.start, h.start + ((last - first) << ARENA_PAGE_SHIFT),
			    held_entry, &h);
}

bool frozen_is_held(struct object *o, uint64_t pgoff, pfn_t pfn, unsigned n)
{
	const struct vma *s;

	LIST_FOREACH(s, &o->snapshots, in_object)
		if (vma_holds(s, pgoff, pfn, n))
			return true;
	return false;
}

static bool may_write(const struct vma *vma, pfn_t pfn, unsigned n)
{
	const struct virt *v = vma->mm->virt;
	pfn_t head = frame_head(v, pfn);
	const struct page *page = pfn_to_page(v->phys, head);
	const struct vma *s;

	if (!(page->flags & PG_FROZEN))
		return true;
	LIST_FOREACH(s, &vma->object->snapshots, in_object)
		if ((s->mm != vma->mm && has_not_flushed(s->mm)) ||
		    vma_holds(s, page->index + (uint64_t)(pfn - head), pfn, n))
			return false;
	return true;
}

bool frozen_forbids(const struct vma *vma, pfn_t pfn, bool leaf, bool of_object)
{
	const struct frozen *f = &vma->mm->virt->frozen;

	if ((LIST_EMPTY(&f->settling) && !f->nr_snapshots) || f->recovering ||
	    vma->flags & VM_SPECIAL)
		return false;
	if (!of_object)
		return vma->mm->nr_settling;
	return vma->object->nr_settling || !may_write(vma, pfn, leaf ? ARENA_LEAF_PAGES : 1);
}

/* Nobody holds any page of the block, and nobody has it mapped as if he did. */
static void thaw_block(struct object *o, pfn_t head)
{
	struct page *page = pfn_to_page(o->virt->phys, head);
	const struct vma *s;

	LIST_FOREACH(s, &o->snapshots, in_object)
		if (has_not_flushed(s->mm) ||
		    vma_holds(s, page->index, head, 1u << page_order(page)))
			return;
	truth_store(&page->flags, page->flags & ~PG_FROZEN);
}

/* ---- copying for them -------------------------------------------------------------------------- */

/* All snapshots that hold this page get a copy of it. */
static int push_page(struct object *o, uint64_t pgoff, pfn_t pfn, unsigned cpu)
{
	struct vma *s;
	int r = 0;

	LIST_FOREACH(s, &o->snapshots, in_object) {
		struct pte_ref ref;
		uint64_t addr;

		if (!vma_holds(s, pgoff, pfn, 1))
			continue;
		addr = s->start + ((pgoff - s->pgoff) << ARENA_PAGE_SHIFT);
		pgtable_lookup(s->mm, addr, &ref);
		r = cow_push(s, addr, cpu, &ref);
		if (r)
			return r;
	}
	return 0;
}

static bool is_frozen(const struct object *o, pfn_t pfn)
{
	const struct virt *v = o->virt;

	return pfn != PFN_NONE && pfn_to_page(v->phys, frame_head(v, pfn))->flags & PG_FROZEN;
}

/* Somebody other than `writer` has to flush first. */
static int wait_for_flushes(struct object *o, const struct mm *writer)
{
	struct vma *s;

	LIST_FOREACH(s, &o->snapshots, in_object) {
		if (s->mm == writer)
			continue;
		mm_flush_collect(s->mm);
		if (!has_not_flushed(s->mm))
			continue;
		o->virt->frozen.wanted_object = o;
		return ARENA_E_WAIT_IO;
	}
	return 0;
}

static int wait_for_settle(struct virt *v, const struct object *o, const struct mm *mm)
{
	struct settle *s;

	LIST_FOREACH(s, &v->frozen.settling, link) {
		bool of_object = false;

		for (uint32_t i = 0; i < s->nr_objects; i++)
			of_object |= s->objects[i] == o;
		if (s->ended || (o ? !of_object : s->mm != mm))
			continue;
		v->frozen.wanted_settle = s;
		return ARENA_E_WAIT_IO;
	}
	BUG_ON(true);
	return 0;
}

int frozen_write(struct vma *vma, uint64_t addr, unsigned cpu)
{
	struct object *o = vma->object;
	struct chunk *chunk;
	pfn_t pfn;
	int r;

	if (!(vma->flags & VM_SHARED))
		return vma->mm->nr_settling ? wait_for_settle(vma->mm->virt, NULL, vma->mm) : 0;
	if (o->nr_settling)
		return wait_for_settle(o->virt, o, NULL);
	pfn = object_frame(o, vma_pgoff(vma, addr), &chunk);
	if (!is_frozen(o, pfn))
		return 0;
	r = push_page(o, vma_pgoff(vma, addr), pfn, cpu);
	if (!r)
		r = wait_for_flushes(o, vma->mm);
	if (!r)
		thaw_block(o, frame_head(o->virt, pfn));
	return r;
}

int frozen_vacate(struct object *o, uint64_t first, uint64_t last, bool can_wait)
{
	struct chunk *chunk;
	uint64_t pgoff;

	if (o->nr_settling && can_wait)
		return wait_for_settle(o->virt, o, NULL);
	for (pgoff = first; o->nr_snapshots && pgoff < last; pgoff++) {
		pfn_t pfn = object_frame(o, pgoff, &chunk);
		int r = is_frozen(o, pfn) ? push_page(o, pgoff, pfn, 0) : 0;

		if (r)
			return r;
	}
	return can_wait ? wait_for_flushes(o, NULL) : 0;
}

/* ---- rights given back -------------------------------------------------------------------------- */

/* True: the entry got a right. */
static bool raise_entry(struct vma *vma, uint64_t addr)
{
	struct pte_ref ref;
	uint64_t fresh;

	if (!pgtable_lookup(vma->mm, addr, &ref) || ref.level || !*ref.entry ||
	    *ref.entry & ARENA_PTE_WRITE)
		return false;
	fresh = entry_refresh(vma, addr, &ref);
	if (!(fresh & ARENA_PTE_WRITE))
		return false;
	pte_switch(vma->mm, &ref, fresh);
	return true;
}

/* How many entries of the table are there? 0: they are not all of this leaf. */
static unsigned count_entries(const struct mm *mm, uint32_t table, pfn_t leaf)
{
	const uint64_t *e = pgtable_entries(mm, table);
	unsigned n = 0;

	for (unsigned i = 0; i < ARENA_PTRS_PER_TABLE; i++) {
		if (!e[i])
			continue;
		if (arena_pte_pfn(e[i]) != leaf + i)
			return 0;
		n++;
	}
	return n;
}

/* Entries of a leaf that may be written to as a whole, and that fits here: one says the same. */
static void join_leaf(struct vma *vma, uint64_t addr)
{
	struct mm *mm = vma->mm;
	struct virt *v = mm->virt;
	uint64_t base = addr & ARENA_LEAF_MASK, pgoff, fresh;
	struct pte_ref ref;
	struct chunk *chunk;
	struct page *page;
	unsigned n;

	if (base < vma->start || base + ARENA_LEAF_SIZE > vma->end || vma->flags & VM_NOHUGEPAGE)
		return;
	pgoff = vma_pgoff(vma, base);
	if (pgoff % ARENA_LEAF_PAGES || !object_leaf_fits(vma->object, pgoff / ARENA_LEAF_PAGES) ||
	    object_frame(vma->object, pgoff, &chunk) == PFN_NONE || chunk->leaf == PFN_NONE)
		return;
	page = pfn_to_page(v->phys, chunk->leaf);
	if (!pgtable_lookup(mm, base, &ref) || ref.level || limbo_reserve(mm, 1))
		return;
	n = count_entries(mm, ref.table, chunk->leaf);
	fresh = vma_entry(vma, chunk->leaf, true, page->flags & PG_HOLE, false, true);
	if (!n || !(fresh & ARENA_PTE_WRITE))
		return;
	limbo_add(mm, LIMBO_TABLE, ref.table, 0);
	pgtable_parent(mm, &ref);
	entry_count(vma, page, chunk->leaf, fresh, 1);
	pte_switch(mm, &ref, fresh);
	for (unsigned i = 0; i < n; i++)
		entry_count(vma, page, chunk->leaf, fresh & ~ARENA_PTE_HUGE, -1);
	if (vma->flags & VM_LOCKED)
		page_munlock(v, chunk->leaf, n - 1);
	while (--n) {
		page->mapcount--;
		put_page(v->phys, chunk->leaf);
	}
	/* Nothing to unmap: the flush is there so that the table is let go. */
	flush_post(mm, ARENA_FLUSH_UNMAP, base, base);
}

int frozen_raise(struct vma *vma, uint64_t addr, struct pte_ref *ref)
{
	struct mm *mm = vma->mm;
	uint64_t base = addr & ARENA_LEAF_MASK, end = base + ARENA_LEAF_SIZE, at, fresh;
	int r;

	if (!pgtable_lookup(mm, addr, ref) || !*ref->entry)
		return 0;
	fresh = entry_refresh(vma, addr, ref);
	if (ref->level && fresh & ARENA_PTE_WRITE) {
		pte_switch(mm, ref, fresh);
		return 0;
	}
	r = ref->level ? pgtable_split_leaf(mm, ref, addr) : 0;
	if (r)
		return r;
	/* As far as they were copied with it. */
	for (at = addr + ARENA_PAGE_SIZE; at < MIN(end, vma->end) && raise_entry(vma, at);)
		at += ARENA_PAGE_SIZE;
	for (at = addr; at >= MAX(base, vma->start) && raise_entry(vma, at);)
		at -= ARENA_PAGE_SIZE;
	join_leaf(vma, addr);
	return 0;
}

/* ---- waiting --------------------------------------------------------------------------------------- */

void frozen_wake(struct frozen_wait *fw)
{
	struct io_wait *w = fw->io;

	LIST_REMOVE(fw, link);
	free(fw);
	w->frozen = NULL;
	io_wait_end(w, 0);
}

static void flushes_done(struct flush_wait *flush)
{
	frozen_wake(container_of(flush, struct frozen_wait, flush));
}

static void wait_for_object(struct object *o, struct frozen_wait *fw)
{
	struct vma *s;

	LIST_FOREACH(s, &o->snapshots, in_object) {
		if (!has_not_flushed(s->mm))
			continue;
		flush_wait_add(&fw->flush, s->mm);
		mm_flush_want(s->mm, true);
	}
}

void frozen_wait(struct virt *v, struct io_wait *w)
{
	struct settle *s = v->frozen.wanted_settle;
	struct object *o = v->frozen.wanted_object;
	struct frozen_wait *fw;

	v->frozen.wanted_settle = NULL;
	v->frozen.wanted_object = NULL;
	BUG_ON(!s && !o);
	if (s && s->owner_wanted) {
		s->owner_wanted = false;
		if (s->owner)
			s->owner->settle = NULL;
		s->owner = w;
		w->settle = s;
		return;
	}
	fw = mem_alloc(sizeof(*fw));
	if (!fw) {
		/* It finds out by asking again. */
		io_wait_end(w, 0);
		return;
	}
	*fw = (struct frozen_wait){.io = w,
				   .flush = {.done = flushes_done},
				   .deadline = clock_now() + frozen_patience(v)};
	w->frozen = fw;
	LIST_INSERT_HEAD(s ? &s->blocked : &v->frozen.waits, fw, link);
	if (s)
		return;
	wait_for_object(o, fw);
	if (!fw->flush.pending)
		frozen_wake(fw);
}

void frozen_wait_cancel(struct io_wait *w)
{
	struct frozen_wait *fw = w->frozen;
	struct settle *s = w->settle;

	w->frozen = NULL;
	w->settle = NULL;
	if (fw) {
		flush_wait_cancel(&fw->flush);
		LIST_REMOVE(fw, link);
		free(fw);
	}
	if (s) {
		s->owner = NULL;
		settle_abandon(s);
	}
}

void frozen_tick(struct virt *v, uint64_t now)
{
	struct frozen_wait *fw, *next;
	struct settle *s;

	LIST_FOREACH(s, &v->frozen.settling, link)
		if (!s->ended && now >= s->deadline)
			settle_end(s, true);
	LIST_FOREACH_SAFE(fw, &v->frozen.waits, link, next) {
		if (now < fw->deadline)
			continue;
		for (const struct flush_waiter *x = fw->flush.first; x; x = x->next)
			x->mm->late = true;
		flush_wait_cancel(&fw->flush);
		frozen_wake(fw);
	}
}

uint64_t frozen_deadline(const struct virt *v)
{
	const struct frozen_wait *fw;
	const struct settle *s;
	uint64_t at = UINT64_MAX;

	LIST_FOREACH(s, &v->frozen.settling, link)
		if (!s->ended)
			at = MIN(at, s->deadline);
	LIST_FOREACH(fw, &v->frozen.waits, link)
		at = MIN(at, fw->deadline);
	return at;
}
