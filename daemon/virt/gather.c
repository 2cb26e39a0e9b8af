/* SPDX-License-Identifier: MIT */
/*
 * gather.c - ARENA_MADV_GATHER: pages that lie scattered in the arena move together.
 *
 * A client needs a kernel mapping for each run of frames, and has vm.max_map_count of them. When
 * they come to an end it asks for this where it misses (libclient/gather.c). The single frames of 2 MiB move to
 * their places in one block, which is split for it: neighbours are neighbours again, whether a leaf may
 * be there or not, and whatever is absent between them stays so.
 *
 *	1. entries lose the write right; flush posted; "call again"
 *	2. all is acknowledged and still unwritable: each page is copied and its entry switched by one store;
 *	   old frames go to limbo; flush posted
 *
 * As in collapse.c, a write in between gets its right back and step 2 begins anew. A crash in step 2 leaves
 * some moved and some not, and frames of the block that nobody points to, which recovery frees.
 *
 * Only frames that are private memory's, single, and referred to by this entry alone: what is shared with a
 * copy, pinned, or still in limbo stays where it is.
 */
#include "base/log.h"
#include "daemon/virt/internal.h"

struct gather {
	struct vma *vma;
	uint64_t base;
	pfn_t block;              /* PFN_NONE: only look */
	uint64_t last_addr, last; /* the page before, and its entry */
	unsigned breaks;          /* neighbours that do not lie together */
	bool writable;
	uint64_t used[ARENA_PTRS_PER_TABLE / 64]; /* frames of the block that were given away */
};

static bool movable(const struct mm *mm, uint64_t entry)
{
	const struct page *page;

	if (entry_is_zero(mm->virt, entry))
		return false;
	page = pfn_to_page(mm->virt->phys, frame_head(mm->virt, (pfn_t)arena_pte_pfn(entry)));
	return (page->flags & (PG_ANON | PG_PINNED)) == PG_ANON && !page_order(page) &&
	       page->refcount == 1;
}

static int look_one(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	struct gather *g = arg;
	uint64_t entry = *ref->entry;

	if (ref->level || !movable(mm, entry))
		return 0;
	g->writable |= !!(entry & ARENA_PTE_WRITE);
	g->breaks += addr == g->last_addr + ARENA_PAGE_SIZE &&
		     arena_pte_pfn(entry) != arena_pte_pfn(g->last) + 1;
	g->last_addr = addr;
	g->last = entry;
	return 0;
}

static int wrprotect_one(struct mm *mm, uint64_t addr __unused_, struct pte_ref *ref,
			 void *arg __unused_)
{
	if (!ref->level && (*ref->entry & ARENA_PTE_WRITE) && movable(mm, *ref->entry))
		pte_switch(mm, ref, *ref->entry & ~ARENA_PTE_WRITE);
	return 0;
}

static int move_one(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	struct gather *g = arg;
	unsigned i = (unsigned)((addr - g->base) >> ARENA_PAGE_SHIFT);
	pfn_t from = (pfn_t)arena_pte_pfn(*ref->entry), to = g->block + i;

	if (ref->level || !movable(mm, *ref->entry))
		return 0;
	memcpy(domain_address(mm->domain, to), domain_address(mm->domain, from), ARENA_PAGE_SIZE);
	remap_entry(g->vma, ref, to, vma_entry(g->vma, to, false, false, false, false));
	g->used[i / 64] |= UINT64_C(1) << i % 64;
	return 0;
}

static int get_block(struct gather *g)
{
	struct mm *mm = g->vma->mm;
	struct alloc_result got;
	int r = limbo_reserve(mm, ARENA_PTRS_PER_TABLE);

	if (!r)
		r = anon_alloc(g->vma, g->base, ARENA_LEAF_ORDER, GFP_NO_ZERO | ARENA_GFP_NOWARN, 0,
			       PFN_NONE, &got);
	if (r)
		return r;
	split_page(mm->virt->phys, got.pfn);
	g->block = got.pfn;
	return 0;
}

static void tell(const struct mm *mm)
{
	struct state *s = mm->virt->state;

	if (!s->counters[EV_ARENA_GATHER_FAILED])
		log_notice("pages of client %d cannot be moved together: no block of 2 MiB is "
			   "free. It "
			   "is near vm.max_map_count, and will map and unmap the same pages again "
			   "and again",
			   (int)mm_pid(mm));
	state_event(s, EV_ARENA_GATHER_FAILED, 1);
}

/* One 2 MiB, as far as [start, end) has part in it. */
static int gather_one(struct gather *g, uint64_t start, uint64_t end, bool settled, bool *again)
{
	struct mm *mm = g->vma->mm;
	unsigned i;
	int r;

	pgtable_walk(mm, start, end, look_one, g);
	if (!g->breaks)
		return 0;
	if (g->writable || !settled) {
		pgtable_walk(mm, start, end, wrprotect_one, NULL);
		flush_post(mm, ARENA_FLUSH_WRPROTECT, start, end);
		*again = true;
		return 0;
	}
	r = get_block(g);
	if (r == ARENA_E_NO_MEMORY) {
		tell(mm);
		return ARENA_E_BUSY;
	}
	if (r)
		return r;
	cow_forget(mm, g->base, g->base + ARENA_LEAF_SIZE);
	pgtable_walk(mm, start, end, move_one, g);
	for (i = 0; i < ARENA_LEAF_PAGES; i++)
		if (!(g->used[i / 64] >> i % 64 & 1))
			put_page(mm->virt->phys, g->block + i);
	flush_post(mm, ARENA_FLUSH_UNMAP, start, end);
	state_event(mm->virt->state, EV_ARENA_GATHER, 1);
	return 0;
}

int gather_range(struct vma *v, uint64_t start, uint64_t end, bool settled, bool *again)
{
	uint64_t base = start & ARENA_LEAF_MASK;
	int result = 0;

	if (v->object || v->origin)
		return ARENA_E_INVALID;
	*again |= v->mm->nr_settling; /* as in collapse_range() */
	for (; base < end && !v->mm->nr_settling; base += ARENA_LEAF_SIZE) {
		struct gather g = {.vma = v, .base = base, .block = PFN_NONE};
		int r = gather_one(&g, MAX(start, base), MIN(end, base + ARENA_LEAF_SIZE), settled,
				   again);

		if (r)
			result = r;
	}
	return *again ? 0 : result;
}
