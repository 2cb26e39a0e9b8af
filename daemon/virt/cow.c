/* SPDX-License-Identifier: MIT */
/*
 * cow.c - copy on write: what a write does to a private page that others refer to, too.
 *
 * An anonymous frame may be mapped by several entries, of one address space (snapshot) or of several
 * (fork). An entry permits writing only while the frame is its own alone. So a write fault on a
 * present entry finds one of two things:
 *
 *	nobody else has it any more     the entry gets its right back
 *	others refer to it              they keep it, the writer gets a copy
 *
 * A shared leaf is not copied in one go: this is the control thread, and 2 MiB take it as long as a
 * dozen faults of everybody else. The leaf becomes a table of 512 entries, a block for its copy is set
 * aside, and each fault copies a piece of it, the next twice as large as the last:
 *
 *	shared block  |SSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSS|   entries point there, read-only, ...
 *	its copy      |......CC......CCCC..............|   ... or here, writable, at the same offset
 *
 * When all of it is copied the table becomes a leaf again: same frames at the same places, so clients
 * keep what they have mapped. The job is an index with one reference of the copy's block; where it is
 * dropped (unmapping, recovery) what was not copied of the block is free with the last entry.
 *
 * A frame may be copied only while nobody writes to it: not before the flush that took the right away
 * is acknowledged. Till then the fault is answered ARENA_E_AGAIN with that flush's number.
 *
 * A pinned frame (pin.c) is its pinner's alone, whatever its count of references: it is made so before it is
 * pinned, and fork and snapshot copy it instead of sharing it. So it is never replaced under its pinner.
 *
 * Invariant: a job's range holds only entries of level 0, and those marked done point to its block.
 */
#include <string.h>

#include "daemon/virt/internal.h"

#define PIECE_FIRST 16u /* pages */
#define MAX_JOBS 64u    /* of an mm; one more ends the oldest */

struct cow_job {
	TAILQ_ENTRY(cow_job) link; /* oldest first */
	uint64_t base;             /* of the 2 MiB */
	pfn_t block;               /* a reference is held */
	unsigned piece;            /* pages the next fault copies */
	unsigned nr_done;
	uint64_t done[ARENA_PTRS_PER_TABLE / 64];
};

/* ---- whose is a frame ---------------------------------------------------------------------- */

static struct cow_job *job_find(const struct mm *mm, uint64_t addr)
{
	struct cow_job *j;

	TAILQ_FOREACH(j, &mm->cow_jobs, link)
		if (j->base == (addr & ARENA_LEAF_MASK))
			return j;
	return NULL;
}

/* Entries of the table that `ref` lies in which point into the block at head. */
static unsigned entries_of_block(const struct mm *mm, const struct pte_ref *ref, pfn_t head,
				 unsigned pages)
{
	const uint64_t *e = pgtable_entries(mm, ref->table);
	unsigned i, n = 0;

	for (i = 0; i < ARENA_PTRS_PER_TABLE; i++) {
		uint64_t pfn = arena_pte_pfn(e[i]);

		n += (e[i] & ARENA_PTE_PRESENT) && pfn >= head && pfn < head + pages;
	}
	return n;
}

bool cow_exclusive(const struct mm *mm, uint64_t addr, const struct pte_ref *ref)
{
	struct virt *v = mm->virt;
	pfn_t head = frame_head(v, (pfn_t)arena_pte_pfn(*ref->entry));
	const struct page *page = pfn_to_page(v->phys, head);
	const struct cow_job *j;
	unsigned refs;

	/* An object's frame in a snapshot stays what it was, whether the object has it still or not. */
	if (!(page->flags & PG_ANON))
		return false;
	if (page->refcount == 1)
		return true;
	/* Its other references are pins, and the limbo of what was there before it was pinned. */
	if (page->flags & PG_PINNED)
		return true;
	if (ref->level || !page_order(page))
		return false;
	/* A block whose every reference is an entry of this one table is as good as single frames. */
	j = job_find(mm, addr);
	refs = page->refcount - (j && j->block == head);
	return refs <= ARENA_PTRS_PER_TABLE &&
	       entries_of_block(mm, ref, head, 1u << page_order(page)) == refs;
}

/* ---- jobs ------------------------------------------------------------------------------------ */

static void job_end(struct mm *mm, struct cow_job *j)
{
	TAILQ_REMOVE(&mm->cow_jobs, j, link);
	mm->nr_cow_jobs--;
	put_page(mm->virt->phys, j->block);
	free(j);
}

void cow_forget(struct mm *mm, uint64_t start, uint64_t end)
{
	struct cow_job *j, *next;

	TAILQ_FOREACH_SAFE(j, &mm->cow_jobs, link, next)
		if (j->base < end && j->base + ARENA_LEAF_SIZE > start)
			job_end(mm, j);
}

void cow_for_each_block(const struct mm *mm, void (*f)(void *ctx, pfn_t block), void *ctx)
{
	const struct cow_job *j;

	TAILQ_FOREACH(j, &mm->cow_jobs, link)
		f(ctx, j->block);
}

static struct cow_job *job_start(struct vma *vma, uint64_t addr, unsigned cpu)
{
	struct mm *mm = vma->mm;
	uint64_t base = addr & ARENA_LEAF_MASK;
	struct alloc_result got;
	struct cow_job *j;

	if (base < vma->start || base + ARENA_LEAF_SIZE > vma->end)
		return NULL;
	j = mem_alloc(sizeof(*j));
	if (!j)
		return NULL;
	/* Without a block the copy goes by pages, and the frames lie elsewhere. */
	if (anon_alloc(vma, base, ARENA_LEAF_ORDER, GFP_NO_ZERO | GFP_HOLE_OK | ARENA_GFP_NOWARN,
		       cpu, PFN_NONE, &got)) {
		free(j);
		return NULL;
	}
	*j = (struct cow_job){.base = base, .block = got.pfn, .piece = PIECE_FIRST};
	if (mm->nr_cow_jobs == MAX_JOBS)
		job_end(mm, TAILQ_FIRST(&mm->cow_jobs));
	TAILQ_INSERT_TAIL(&mm->cow_jobs, j, link);
	mm->nr_cow_jobs++;
	return j;
}

/* All 512 entries point to the block, one after the other: a leaf says the same. */
static bool job_join(struct vma *vma, const struct cow_job *j)
{
	struct mm *mm = vma->mm;
	struct virt *v = mm->virt;
	struct page *page = pfn_to_page(v->phys, j->block);
	struct pte_ref pmd;
	uint32_t table;
	unsigned i;

	if (j->base < vma->start || j->base + ARENA_LEAF_SIZE > vma->end || limbo_reserve(mm, 1) ||
	    !pgtable_lookup(mm, j->base, &pmd) || pmd.level)
		return false;
	table = pmd.table;
	if (entries_of_block(mm, &pmd, j->block, ARENA_LEAF_PAGES) != ARENA_LEAF_PAGES ||
	    page->refcount != ARENA_LEAF_PAGES + 1 + page_pins(page))
		return false;
	pgtable_parent(mm, &pmd);
	pte_switch(mm, &pmd, vma_entry(vma, j->block, true, false, false, false));
	for (i = 1; i < ARENA_LEAF_PAGES; i++) {
		page->mapcount--;
		put_page(v->phys, j->block);
	}
	if (vma->flags & VM_LOCKED)
		page_munlock(v, j->block, ARENA_LEAF_PAGES - 1);
	mm->leaves++;
	limbo_add(mm, LIMBO_TABLE, table, 0);
	/* Nothing to unmap: the flush is there so that the table is let go. */
	flush_post(mm, ARENA_FLUSH_UNMAP, j->base, j->base);
	return true;
}

/* ---- copying ----------------------------------------------------------------------------------- */

/* Put the copy in the entry's place; the copy's reference goes with it. Room in limbo is reserved. */
static void switch_to_copy(struct vma *vma, struct pte_ref *ref, pfn_t to)
{
	struct mm *mm = vma->mm;
	pfn_t from = (pfn_t)arena_pte_pfn(*ref->entry);

	memcpy(domain_address(mm->domain, to),
	       domain_address(pfn_domain(mm->virt->phys, from), from), ARENA_PAGE_SIZE);
	remap_entry(vma, ref, to, vma_entry(vma, to, false, false, false, false));
}

/* The page's entry, if it is one that has to be copied: present, shared, of level 0. */
static bool needs_copy(struct vma *vma, uint64_t addr, struct pte_ref *ref)
{
	struct mm *mm = vma->mm;
	const struct page *page;
	pfn_t pfn;

	if (!pgtable_lookup(mm, addr, ref) || ref->level || !(*ref->entry & ARENA_PTE_PRESENT) ||
	    (*ref->entry & ARENA_PTE_WRITE) || entry_is_zero(mm->virt, *ref->entry))
		return false;
	pfn = (pfn_t)arena_pte_pfn(*ref->entry);
	page = pfn_to_page(mm->virt->phys, frame_head(mm->virt, pfn));
	return page->flags & PG_ANON || vma->origin;
}

/* Copies are in the place of frames of an object, to which others may be waiting to write. */
static void note_copied(struct vma *vma)
{
	if (vma->origin)
		vma->mm->push_seq = vma->mm->posted;
}

/* Copy up to n pages of the job around addr, which is one of them. */
static int job_copy(struct vma *vma, struct cow_job *j, uint64_t addr)
{
	struct mm *mm = vma->mm;
	uint64_t piece = (uint64_t)j->piece << ARENA_PAGE_SHIFT, at;
	uint64_t start = MAX(ALIGN_DOWN(addr, piece), vma->start);
	uint64_t end = MIN(ALIGN_DOWN(addr, piece) + piece, vma->end);
	int r = limbo_reserve(mm, j->piece + 1 + ARENA_TABLE_LEVELS);

	if (r)
		return r;
	for (at = start; at < end; at += ARENA_PAGE_SIZE) {
		unsigned i = arena_table_index(at, 0);
		struct pte_ref ref;

		if (j->done[i / 64] >> i % 64 & 1 || !needs_copy(vma, at, &ref))
			continue;
		get_page(mm->virt->phys, j->block);
		switch_to_copy(vma, &ref, j->block + i);
		j->done[i / 64] |= UINT64_C(1) << i % 64;
		j->nr_done++;
	}
	state_event(mm->virt->state, EV_ARENA_COW, 1);
	flush_post(mm, ARENA_FLUSH_UNMAP, start, end);
	note_copied(vma);
	j->piece = MIN(j->piece * 2, ARENA_LEAF_PAGES);
	if (j->nr_done == ARENA_LEAF_PAGES && job_join(vma, j))
		job_end(mm, j);
	return 0;
}

/* One page, to wherever there is a frame; beside its neighbour's if that can be. */
static int copy_page(struct vma *vma, struct pte_ref *ref, uint64_t addr, unsigned cpu)
{
	struct mm *mm = vma->mm;
	pfn_t hint = PFN_NONE;
	struct alloc_result got;
	int r = limbo_reserve(mm, 1 + ARENA_TABLE_LEVELS);

	if (r)
		return r;
	if (ref->index && (ref->entry[-1] & ARENA_PTE_PRESENT) &&
	    !entry_is_zero(mm->virt, ref->entry[-1]))
		hint = (pfn_t)arena_pte_pfn(ref->entry[-1]) + 1;
	r = anon_alloc(vma, addr, 0, GFP_NO_ZERO, cpu, hint, &got);
	if (r)
		return r;
	switch_to_copy(vma, ref, got.pfn);
	state_event(mm->virt->state, EV_ARENA_COW, 1);
	flush_post(mm, ARENA_FLUSH_UNMAP, addr, addr + ARENA_PAGE_SIZE);
	note_copied(vma);
	return 0;
}

/* ---- the fault ----------------------------------------------------------------------------------- */

/* Has everything that took write rights away been acknowledged? Else the frame may change yet. */
static bool frames_stable(struct mm *mm)
{
	if (mm->acked < mm->wp_seq)
		mm_flush_collect(mm);
	return mm->acked >= mm->wp_seq;
}

int cow_push(struct vma *vma, uint64_t addr, unsigned cpu, struct pte_ref *ref)
{
	struct mm *mm = vma->mm;
	struct cow_job *j;
	int r;

	if (ref->level) {
		j = job_start(vma, addr, cpu);
		r = pgtable_split_leaf(mm, ref, addr);
		if (r && j)
			job_end(mm, j);
		if (r)
			return r;
	} else {
		j = job_find(mm, addr);
	}
	return j ? job_copy(vma, j, addr) : copy_page(vma, ref, addr, cpu);
}

int cow_fault(struct vma *vma, uint64_t addr, unsigned cpu, struct pte_ref *ref)
{
	struct mm *mm = vma->mm;
	uint64_t old = *ref->entry;

	if (cow_exclusive(mm, addr, ref)) {
		pte_switch(mm, ref,
			   vma_entry(vma, (pfn_t)arena_pte_pfn(old), old & ARENA_PTE_HUGE,
				     old & ARENA_PTE_HOLE, old & ARENA_PTE_AHEAD, false));
		state_event(mm->virt->state, EV_ARENA_COW_REUSE, 1);
		return 0;
	}
	if (!frames_stable(mm))
		return ARENA_E_AGAIN;
	return cow_push(vma, addr, cpu, ref);
}
