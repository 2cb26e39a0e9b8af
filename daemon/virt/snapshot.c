/* SPDX-License-Identifier: MIT */
/*
 * snapshot.c - vm_snapshot(): one range again at another place of the same mm, as it was at one moment.
 *
 * Private memory is shared entry by entry as fork() does it (share_entries()). Of shared memory the frames that
 * its object has are marked PG_FROZEN, every entry that may write to them loses that right, in all address
 * spaces, and then the copy gets entries for them: a private VMA with that `origin` (frozen.h). Pages
 * that the object lacks are zeros in the copy; of a file they are read first. A pinned frame is copied at once:
 * its pinner writes to it when he likes. So the cost grows with entries and their mappers, and a leaf is one.
 *
 * One moment: a client's is when it applies the flush. What it writes before lies in the frames, and then
 * it gets no right before all have acknowledged (struct settle), so nothing that is in the copy can follow from
 * something that is not. The call is answered then. Who does not acknowledge within a few deadlines makes it
 * fail with EBUSY, and the copy is unmapped: he could write to it yet.
 *
 * A crash: VM_SETTLING of a VMA says that nobody was told of it. Recovery unmaps those, and the call, whose request
 * is where it was, is served from the start. When it is answered the journal has place and length of the copy,
 * then the flags go; what a worker had before it could answer is unmapped and made again.
 */
#include "base/clock.h"
#include "base/log.h"
#include "daemon/virt/file.h"
#include "daemon/virt/frozen.h"
#include "daemon/virt/resume.h"

/* ---- may it be ----------------------------------------------------------------------------------- */

/* What the copy of v is as a mapping. */
static uint32_t copy_flags(const struct vma *v)
{
	uint32_t flags = v->flags & ~(VM_LOCKED_MASK | VM_GROWSDOWN | VM_SETTLING);

	if (!(flags & VM_SHARED))
		return flags;
	flags = (flags & ~VM_SHARED) | VM_MAYWRITE | VM_SNAPSHOT;
	return vm_account_flags(v->mm->virt, flags, v->prot);
}

/* Every page of [start, end) is mapped, and as much again may be. *shared: some of it is. */
static int snapshot_check(const struct mm *mm, uint64_t start, uint64_t end, bool *shared)
{
	uint64_t at, data = 0, accounted = 0;
	const struct vma *v;
	unsigned nr = 0;
	int r;

	*shared = false;
	for (at = start; at < end; at = v->end) {
		uint64_t n;

		v = vma_find(mm, at);
		if (!v || v->start > at)
			return ARENA_E_NOT_MAPPED;
		if (v->flags & VM_SPECIAL)
			return ARENA_E_INVALID;
		n = (MIN(v->end, end) - at) >> ARENA_PAGE_SHIFT;
		*shared |= !!(v->flags & VM_SHARED);
		data += v->prot & PROT_WRITE && !(v->flags & VM_GROWSDOWN) ? n : 0;
		accounted += copy_flags(v) & VM_ACCOUNT ? n : 0;
		nr++;
	}
	if (!map_count_ok(mm, nr))
		return ARENA_E_NO_MEMORY;
	r = mm_may_expand(mm, 0, PROT_WRITE, data);
	return r || !accounted ? r : vm_enough_memory(mm, accounted);
}

/* What shared mappings of files have is there. */
static int read_files(const struct mm *mm, uint64_t start, uint64_t end)
{
	const struct vma *v = vma_find(mm, start);
	int r = 0;

	for (; v && v->start < end && !r; v = vma_find(mm, v->end))
		if (v->flags & VM_SHARED && v->object->file)
			r = file_need(v->object, vma_pgoff(v, MAX(start, v->start)),
				      vma_pgoff(v, MIN(end, v->end)));
	return r;
}

/* A free place at the same distance from a leaf's border, so that leaves stay leaves. */
static int snapshot_place(struct mm *mm, uint64_t start, uint64_t len, uint64_t *at)
{
	uint64_t offset = start % ARENA_LEAF_SIZE, free_at;
	int r = area_find(mm, len + ARENA_LEAF_SIZE, 0, &free_at);

	if (r) {
		/* In a window so full: there, or nowhere. A leaf cannot begin inside another's place. */
		r = area_find(mm, len, 0, at);
		return r || IS_ALIGNED(*at - start, ARENA_LEAF_SIZE) ? r : ARENA_E_NO_MEMORY;
	}
	*at = ALIGN_DOWN(free_at, ARENA_LEAF_SIZE) + offset;
	if (*at < free_at)
		*at += ARENA_LEAF_SIZE;
	return 0;
}

/* ---- settling ------------------------------------------------------------------------------------- */

static void settled(struct flush_wait *w)
{
	struct settle *s = container_of(w, struct settle, wait);

	if (s->armed)
		settle_end(s, false);
}

static struct settle *settle_begin(struct mm *mm, uint64_t from, uint64_t to, uint64_t len)
{
	struct settle *s = mem_alloc(sizeof(*s));

	if (!s)
		return NULL;
	*s = (struct settle){.mm = mm, .from = from, .to = to, .len = len};
	s->wait.done = settled;
	s->deadline = clock_now() + frozen_patience(mm->virt);
	LIST_INIT(&s->blocked);
	LIST_INSERT_HEAD(&mm->virt->frozen.settling, s, link);
	mm->nr_settling++;
	return s;
}

static int settle_add_object(struct settle *s, struct object *o)
{
	for (uint32_t i = 0; i < s->nr_objects; i++)
		if (s->objects[i] == o)
			return 0;
	if (s->nr_objects == s->cap_objects) {
		uint32_t cap = s->cap_objects ? s->cap_objects * 2 : 4;
		struct object **grown =
			mem_grow(s->objects, s->cap_objects, cap, sizeof(struct object *));

		if (!grown)
			return ARENA_E_NO_MEMORY;
		s->objects = grown;
		s->cap_objects = cap;
	}
	s->objects[s->nr_objects++] = o;
	o->nr_settling++;
	o->nr_settles++;
	return 0;
}

/* All that was posted to this client so far: that took rights now, or did so before. */
static int settle_add_mm(struct settle *s, struct mm *mm)
{
	unsigned before;

	mm_flush_collect(mm);
	/* Who is still to be born has nothing mapped. */
	if (mm->acked >= mm->posted || mm->dying || mm_is_forked(mm))
		return 0;
	before = s->wait.pending;
	flush_wait_add(&s->wait, mm);
	mm_flush_want(mm, true);
	return s->wait.pending == before ? ARENA_E_NO_MEMORY : 0;
}

void settle_end(struct settle *s, bool late)
{
	struct frozen_wait *fw;
	struct io_wait *owner = s->owner;

	if (s->ended)
		return;
	s->ended = true;
	s->late = late;
	flush_wait_cancel(&s->wait);
	s->mm->nr_settling--;
	for (uint32_t i = 0; i < s->nr_objects; i++)
		s->objects[i]->nr_settling--;
	while ((fw = LIST_FIRST(&s->blocked)))
		frozen_wake(fw);
	if (owner)
		io_wait_end(owner, 0);
}

static void settle_free(struct settle *s)
{
	settle_end(s, false);
	if (s->owner)
		s->owner->settle = NULL;
	LIST_REMOVE(s, link);
	for (uint32_t i = 0; i < s->nr_objects; i++) {
		s->objects[i]->nr_settles--;
		object_release(s->objects[i]);
	}
	free(s->objects);
	free(s);
}

void settle_abandon(struct settle *s)
{
	if (vm_munmap(s->mm, s->to, s->len))
		log_warning("no memory to unmap a snapshot of mm %u that is not wanted any more",
			    s->mm->id);
	settle_free(s);
}

void settle_forget(struct mm *mm)
{
	struct settle *s, *next;

	LIST_FOREACH_SAFE(s, &mm->virt->frozen.settling, link, next)
		if (s->mm == mm)
			settle_free(s);
}

void snapshot_clean(struct mm *mm, struct virt_recover_stats *stats)
{
	uint64_t at = 0;
	struct vma *v;

	while ((v = vma_find(mm, at))) {
		at = v->end;
		if (!(v->flags & VM_SETTLING))
			continue;
		stats->repaired++;
		if (vm_munmap(mm, v->start, v->end - v->start))
			log_warning("recovery: no memory to unmap a snapshot of mm %u", mm->id);
	}
}

/* ---- what is shared -------------------------------------------------------------------------------- */

static bool is_pinned(const struct virt *v, pfn_t head)
{
	return pfn_to_page(v->phys, head)->flags & PG_PINNED;
}

/* A part of an object inside one chunk that has something there. */
struct piece {
	struct object *o;
	struct chunk *chunk;
	uint64_t first, last; /* pages, the last excluded */
};

/* The first piece of [first, last). False: there is none. */
static bool next_piece(struct object *o, uint64_t first, uint64_t last, struct piece *p)
{
	for (; first < last; first = p->last) {
		object_frame(o, first, &p->chunk);
		p->o = o;
		p->first = first;
		p->last =
			MIN(last, ALIGN_DOWN(first, (uint64_t)ARENA_LEAF_PAGES) + ARENA_LEAF_PAGES);
		if (p->chunk)
			return true;
	}
	return false;
}

static void freeze_frame(struct virt *v, pfn_t head)
{
	struct page *page = pfn_to_page(v->phys, head);

	if (!(page->flags & (PG_FROZEN | PG_PINNED)))
		truth_store(&page->flags, page->flags | PG_FROZEN);
}

static void freeze_frames(struct object *o, uint64_t first, uint64_t last)
{
	struct piece p;

	for (; next_piece(o, first, last, &p); first = p.last) {
		if (p.chunk->leaf != PFN_NONE) {
			freeze_frame(o->virt, p.chunk->leaf);
			continue;
		}
		for (uint64_t i = p.first; i < p.last; i++)
			if (p.chunk->pages[i % ARENA_LEAF_PAGES] != PFN_NONE)
				freeze_frame(o->virt, p.chunk->pages[i % ARENA_LEAF_PAGES]);
	}
}

static int protect_one(struct mm *mm, uint64_t addr __unused_, struct pte_ref *ref, void *arg)
{
	bool *any = arg;

	if (!(*ref->entry & ARENA_PTE_WRITE) ||
	    is_pinned(mm->virt, frame_head(mm->virt, (pfn_t)arena_pte_pfn(*ref->entry))))
		return 0;
	pte_switch(mm, ref, *ref->entry & ~ARENA_PTE_WRITE);
	*any = true;
	return 0;
}

/* Nobody may write to the object's pages [first, last) any more. */
static int protect_mappings(struct settle *s, struct object *o, uint64_t first, uint64_t last)
{
	struct vma *v;
	int r = 0;

	LIST_FOREACH(v, &o->vmas, in_object) {
		uint64_t pages = (v->end - v->start) >> ARENA_PAGE_SHIFT, start, end;
		bool any = false;

		if (!(v->flags & VM_SHARED) || v->pgoff >= last || v->pgoff + pages <= first)
			continue;
		start = v->start + ((MAX(first, v->pgoff) - v->pgoff) << ARENA_PAGE_SHIFT);
		end = v->start + ((MIN(last, v->pgoff + pages) - v->pgoff) << ARENA_PAGE_SHIFT);
		pgtable_walk(v->mm, start, end, protect_one, &any);
		if (any) {
			/* Of a leaf, all of it. */
			flush_post(v->mm, ARENA_FLUSH_WRPROTECT,
				   MAX(start & ARENA_LEAF_MASK, v->start),
				   MIN(ALIGN_UP(end, ARENA_LEAF_SIZE), v->end));
			v->mm->wp_seq = v->mm->posted;
		}
		r = settle_add_mm(s, v->mm);
		if (r)
			return r;
	}
	return 0;
}

/* n frames of the object from pfn on are the copy's, too: as one entry, or as n. */
static int hold_frames(struct vma *to, uint64_t addr, pfn_t pfn, unsigned n)
{
	struct mm *mm = to->mm;
	struct virt *v = mm->virt;
	pfn_t head = frame_head(v, pfn);
	bool leaf = n == ARENA_LEAF_PAGES && IS_ALIGNED(addr, ARENA_LEAF_SIZE);
	bool hole = pfn_to_page(v->phys, head)->flags & PG_HOLE;

	if (is_pinned(v, head))
		return copy_block(to, addr, pfn, n);
	for (unsigned i = 0; i < (leaf ? 1 : n); i++) {
		struct pte_ref ref;
		int r = pgtable_get(mm, addr + i * ARENA_PAGE_SIZE, leaf, &ref);

		if (r)
			return r;
		get_page(v->phys, head);
		map_frame(to, &ref, pfn + i,
			  vma_entry(to, pfn + i, leaf, leaf && hole, false, true));
	}
	return 0;
}

static int hold_pages(struct vma *to, uint64_t addr, struct object *o, uint64_t first,
		      uint64_t last)
{
	uint64_t from = first;
	struct piece p;
	int r = 0;

	for (; !r && next_piece(o, first, last, &p); first = p.last) {
		uint64_t at = addr + ((p.first - from) << ARENA_PAGE_SHIFT), i;

		if (p.chunk->leaf != PFN_NONE) {
			r = hold_frames(to, at, p.chunk->leaf + (pfn_t)(p.first % ARENA_LEAF_PAGES),
					(unsigned)(p.last - p.first));
			continue;
		}
		for (i = p.first; !r && i < p.last; i++, at += ARENA_PAGE_SIZE) {
			pfn_t pfn = p.chunk->pages[i % ARENA_LEAF_PAGES];

			r = pfn == PFN_NONE ? 0 : hold_frames(to, at, pfn, 1);
		}
	}
	return r;
}

/* ---- the copy ---------------------------------------------------------------------------------------- */

/* The part [start, end) of v, `shift` further. s: NULL if there is nothing shared in the range. */
static int snapshot_vma(struct settle *s, struct vma *v, uint64_t start, uint64_t end,
			uint64_t shift)
{
	struct object *shared = v->flags & VM_SHARED ? v->object : NULL;
	uint64_t first = vma_pgoff(v, start), last = vma_pgoff(v, end);
	struct vma_template t = {
		.start = start + shift,
		.end = end + shift,
		.pgoff = first,
		.flags = copy_flags(v) | (s ? VM_SETTLING : 0),
		.prot = v->prot,
		.slot = v->slot,
		.object = shared ? NULL : v->object,
		.origin = shared ? shared : v->origin,
	};
	struct mm *mm = v->mm;
	int r = shared ? settle_add_object(s, shared) : 0;

	if (!r)
		r = vma_insert(mm, &t);
	if (r || !shared)
		return r ? r : share_entries(v, vma_find(mm, t.start), start, end, shift);
	freeze_frames(shared, first, last);
	r = protect_mappings(s, shared, first, last);
	return r ? r : hold_pages(vma_find(mm, t.start), t.start, shared, first, last);
}

static int snapshot_range(struct settle *s, struct mm *mm, uint64_t start, uint64_t end,
			  uint64_t shift)
{
	uint64_t at;
	struct vma *v;
	int r = 0;

	cow_forget(mm, start, end);
	for (at = start; at < end && !r; at = MIN(v->end, end)) {
		v = vma_find(mm, at);
		r = snapshot_vma(s, v, at, MIN(v->end, end), shift);
		/* Inserting may have merged it away. */
		v = vma_find(mm, at);
	}
	/* Of private memory, too. */
	return s && !r ? settle_add_mm(s, mm) : r;
}

/* It is as it is to be: to be told. */
static int snapshot_finish(struct settle *s, uint64_t *out)
{
	struct mm *mm = s->mm;
	uint64_t at = s->to, end = s->to + s->len;
	struct vma *v;

	if (!s->ended) {
		s->owner_wanted = true;
		mm->virt->frozen.wanted_settle = s;
		return ARENA_E_WAIT_IO;
	}
	if (s->late) {
		settle_abandon(s);
		return ARENA_E_BUSY;
	}
	call_prepare(mm->virt, VIRT_CALL_SNAPSHOT, mm->id, s->to, s->len, 0, 0);
	while ((v = vma_find(mm, at)) && v->start < end) {
		at = v->end;
		if (!(v->flags & VM_SETTLING))
			continue;
		vma_set_access(v, v->flags & ~VM_SETTLING, v->prot);
		vma_merge(v);
	}
	*out = s->to;
	settle_free(s);
	return 0;
}

/* What this call waited for. */
static struct settle *settle_of_call(const struct mm *mm, uint64_t from, uint64_t len)
{
	const struct io_wait *w = mm->virt->frozen.retry;
	struct settle *s = w ? w->settle : NULL;

	return s && s->mm == mm && s->from == from && s->len == len ? s : NULL;
}

static int snapshot_make(struct mm *mm, uint64_t start, uint64_t end, bool shared, uint64_t *out)
{
	struct settle *s = NULL;
	uint64_t to;
	int r = snapshot_place(mm, start, end - start, &to);

	if (r)
		return r;
	if (shared) {
		s = settle_begin(mm, start, to, end - start);
		if (!s)
			return ARENA_E_NO_MEMORY;
	}
	call_prepare(mm->virt, VIRT_CALL_SNAPSHOT, mm->id, to, end - start, 0, 0);
	r = snapshot_range(s, mm, start, end, to - start);
	if (r) {
		if (s)
			settle_abandon(s);
		else
			vm_munmap(mm, to, end - start);
		return r;
	}
	*out = to;
	if (!s)
		return 0;
	s->armed = true;
	if (!s->wait.pending)
		settle_end(s, false);
	return snapshot_finish(s, out);
}

int vm_snapshot(struct mm *mm, uint64_t addr, uint64_t len, uint64_t *out)
{
	uint64_t end = ALIGN_UP(addr + len, ARENA_PAGE_SIZE), arg[JOURNAL_ARGS];
	struct settle *s;
	bool shared;
	int r;

	CONTROL_THREAD();
	if (!IS_ALIGNED(addr, ARENA_PAGE_SIZE) || !range_ok(addr, len) || end <= addr ||
	    !window_contains(mm, addr, end))
		return ARENA_E_INVALID;
	s = settle_of_call(mm, addr, end - addr);
	if (s)
		return snapshot_finish(s, out);
	/* What a worker before us had made of it was told to nobody. */
	if (call_resume(mm->virt, VIRT_CALL_SNAPSHOT, mm->id, arg) && arg[2] == end - addr &&
	    range_ok(arg[1], arg[2]) && window_contains(mm, arg[1], arg[1] + arg[2]) &&
	    (arg[1] >= end || arg[1] + arg[2] <= addr)) {
		r = vm_munmap(mm, arg[1], arg[2]);
		if (r)
			return r;
	}
	r = snapshot_check(mm, addr, end, &shared);
	if (!r && shared)
		r = read_files(mm, addr, end);
	return r ? r : snapshot_make(mm, addr, end, shared, out);
}
