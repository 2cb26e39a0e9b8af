/* SPDX-License-Identifier: MIT */
/*
 * fork.c - copies of address spaces that share their frames until somebody writes.
 *
 *	mm_fork()         a new mm with all of the parent's VMAs, handles and slots, for a child process
 *	share_entries()   what it does to private memory, and vm_snapshot() does, too (snapshot.c)
 *
 * Each present entry of private memory loses the right to write, and an equal
 * one is installed in the copy, with a reference of its own. So the cost grows with entries, and a leaf
 * is one. What writes do after that is cow.c's. Frames of objects are not shared this way: the copy
 * finds them when it faults. In what a snapshot took of an object they are: nobody writes to those.
 *
 * The copy is the memory of one moment, though other threads go on writing: it is that of the flush.
 * Writes that the client makes before it applies the flush lie in shared frames, and a client applies
 * all of a flush under one hold of its tlb lock, before it gets any right that was given after the
 * flush was posted (tlb_refill()); cow_fault() gives none before the acknowledgement.
 *
 * A pinned frame is its pinner's alone (pin.c): the copy gets another with its bytes at once.
 *
 * A crash: a child's record is made live last, so a half-made one is left over and freed.
 * Entries that lost their right meanwhile get it back by a fault.
 *
 * rmap: frames of an mm and of all that came from it by fork have one anon_family and keep their linear
 * index, so that whoever maps a frame is found by looking there (rmap_walk()).
 */
#include <string.h>

#include "daemon/virt/internal.h"
#include "daemon/virt/resume.h"

struct sharing {
	struct vma *to;
	uint64_t shift; /* of addresses, modulo 2^64 */
	bool any;       /* an entry lost its right */
};

/* Frames of its own for the copy, with what the 2^order at pfn hold. ARENA_E_NO_MEMORY. */
static int copy_frames(struct vma *vma, uint64_t addr, pfn_t pfn, unsigned order)
{
	struct mm *mm = vma->mm;
	struct alloc_result got;
	struct pte_ref to;
	int r = pgtable_get(mm, addr, order ? 1 : 0, &to);

	if (!r)
		r = anon_alloc(vma, addr, order, GFP_NO_ZERO | (order ? ARENA_GFP_NOWARN : 0), 0,
			       PFN_NONE, &got);
	if (r)
		return r;
	memcpy(domain_address(mm->domain, got.pfn),
	       domain_address(pfn_domain(mm->virt->phys, pfn), pfn), ARENA_PAGE_SIZE << order);
	map_frame(vma, &to, got.pfn, vma_entry(vma, got.pfn, order, false, false, false));
	return 0;
}

int copy_block(struct vma *to, uint64_t addr, pfn_t pfn, unsigned n)
{
	bool leaf = n == ARENA_LEAF_PAGES && IS_ALIGNED(addr, ARENA_LEAF_SIZE);
	int r = leaf ? copy_frames(to, addr, pfn, ARENA_LEAF_ORDER) : ARENA_E_NO_MEMORY;
	unsigned i;

	/* No block to be had: single frames. */
	for (i = 0; r == ARENA_E_NO_MEMORY && i < n; i++) {
		r = copy_frames(to, addr + i * ARENA_PAGE_SIZE, pfn + i, 0);
		if (r)
			return r;
		r = i + 1 < n ? ARENA_E_NO_MEMORY : 0;
	}
	return r;
}

/* Zeros are there for everybody; nobody may write to them, here or there. */
static int share_zero(const struct sharing *s, uint64_t addr, const struct pte_ref *ref)
{
	struct pte_ref to;
	int r;

	/* Where the leaf cannot be one, what is absent is zeros as well. */
	if (ref->level && !IS_ALIGNED(addr, ARENA_LEAF_SIZE))
		return 0;
	r = pgtable_get(s->to->mm, addr, ref->level, &to);
	if (!r)
		pte_install(s->to->mm, &to, *ref->entry);
	return r;
}

static int share_one(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	struct sharing *s = arg;
	struct virt *v = mm->virt;
	uint64_t entry = *ref->entry;
	pfn_t pfn = (pfn_t)arena_pte_pfn(entry), head;
	struct pte_ref to;
	int r;

	if (entry_is_zero(v, entry))
		return share_zero(s, addr + s->shift, ref);
	head = frame_head(v, pfn);
	if (!(pfn_to_page(v->phys, head)->flags & PG_ANON) && !s->to->origin)
		return 0;
	if ((pfn_to_page(v->phys, head)->flags & (PG_PINNED | PG_ANON)) == (PG_PINNED | PG_ANON))
		return copy_block(s->to, addr + s->shift, pfn, ref->level ? ARENA_LEAF_PAGES : 1);
	r = pgtable_get(s->to->mm, addr + s->shift, ref->level, &to);
	if (r)
		return r;
	if (entry & ARENA_PTE_WRITE) {
		entry &= ~ARENA_PTE_WRITE;
		pte_switch(mm, ref, entry);
		s->any = true;
	}
	get_page(v->phys, head);
	map_frame(s->to, &to, pfn, entry & ~ARENA_PTE_AHEAD);
	return 0;
}

/* The entries of [start, end), which lies in `from`, in `to` as well. */
int share_entries(struct vma *from, struct vma *to, uint64_t start, uint64_t end, uint64_t shift)
{
	struct sharing s = {.to = to, .shift = shift};
	struct mm *mm = from->mm;
	int r;

	/* A copy has its borders where a leaf may not. */
	r = split_leaf_at(mm, start);
	if (!r)
		r = split_leaf_at(mm, end);
	if (!r)
		r = pgtable_walk(mm, start, end, share_one, &s);
	if (s.any) {
		flush_post(mm, ARENA_FLUSH_WRPROTECT, start, end);
		mm->wp_seq = mm->posted;
	}
	return r;
}

/* ---- fork ------------------------------------------------------------------------------------ */

static int fork_vma(struct mm *child, struct vma *v)
{
	struct vma_template t = {
		.start = v->start,
		.end = v->end,
		.pgoff = v->pgoff,
		.flags = v->flags & ~VM_LOCKED_MASK,
		.prot = v->prot,
		.slot = v->slot,
		.object = v->object,
		.origin = v->origin,
	};
	struct vma *copy;
	int r = 0;

	/* Nobody knows yet of a snapshot that is settling. */
	if (v->flags & (VM_DONTCOPY | VM_SPECIAL | VM_SETTLING))
		return 0;
	/* The parent asks for it, and the child promises as much again. */
	if (v->flags & VM_ACCOUNT)
		r = vm_enough_memory(v->mm, (v->end - v->start) >> ARENA_PAGE_SHIFT);
	if (!r)
		r = vma_insert(child, &t);
	if (r || v->flags & (VM_SHARED | VM_WIPEONFORK))
		return r;
	copy = vma_find(child, v->start);
	return share_entries(v, copy, v->start, v->end, 0);
}

int mm_copy_memory(struct mm *parent, struct mm *child)
{
	struct vma *v;
	int r;

	cow_forget(parent, 0, UINT64_MAX);
	r = slot_copy_all(child, parent);
	if (!r)
		r = handle_copy_all(child, parent);
	RB_FOREACH(v, vma_tree, &parent->vmas) {
		if (r)
			break;
		r = fork_vma(child, v);
	}
	return r;
}

/* ---- reverse mapping --------------------------------------------------------------------------- */

/* The entry at addr, if it maps the frame. */
static bool entry_maps(const struct mm *mm, uint64_t addr, pfn_t pfn, struct pte_ref *ref)
{
	pfn_t mapped;

	if (!pgtable_lookup(mm, addr, ref) || !(*ref->entry & ARENA_PTE_PRESENT))
		return false;
	mapped = (pfn_t)arena_pte_pfn(*ref->entry);
	if (ref->level)
		mapped += arena_table_index(addr, 0);
	return mapped == pfn;
}

static int rmap_walk_mm(struct mm *mm, pfn_t pfn, uint32_t index, rmap_visitor fn, void *arg)
{
	struct vma *v, *next;

	for (v = RB_MIN(vma_tree, &mm->vmas); v; v = next) {
		uint32_t first = vma_anon_index(v, v->start);
		uint64_t pages = (v->end - v->start) >> ARENA_PAGE_SHIFT, addr;
		struct pte_ref ref;
		int r;

		next = vma_next(v);
		if (v->flags & (VM_SHARED | VM_SPECIAL) || (uint32_t)(index - first) >= pages)
			continue;
		addr = v->start + ((uint64_t)(uint32_t)(index - first) << ARENA_PAGE_SHIFT);
		if (!entry_maps(mm, addr, pfn, &ref))
			continue;
		r = fn(v, addr, &ref, arg);
		if (r)
			return r;
	}
	return 0;
}

int rmap_walk(struct virt *v, pfn_t pfn, rmap_visitor fn, void *arg)
{
	pfn_t head = frame_head(v, pfn);
	const struct page *page = head == PFN_NONE ? NULL : pfn_to_page(v->phys, head);
	struct mm *mm;
	int r = 0;

	if (!page || !(page->flags & PG_ANON))
		return 0;
	LIST_FOREACH(mm, &v->mms, link) {
		if (mm->anon_family != page->mapping)
			continue;
		r = rmap_walk_mm(mm, pfn, page->index + (pfn - head), fn, arg);
		if (r)
			break;
	}
	return r;
}
