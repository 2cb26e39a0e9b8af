/* SPDX-License-Identifier: MIT */
/*
 * collapse.c - MADV_COLLAPSE: make one leaf of what 512 entries map.
 *
 * The bytes move to another block, so nobody may write while they are copied. Two calls do it, with the
 * caller's flush between them:
 *
 *	1. entries lose the write right; flush posted; "call again"
 *	2. everything is acknowledged and still unwritable: copy, then one store puts the leaf where the
 *	   table was; table and old frames go to limbo; flush posted
 *
 * Whoever writes in between faults, and the fault gives the right back (fault.c): then step 2 finds a
 * writable entry and begins anew. Readers see the old frames until their flush, which hold the same
 * bytes: who writes to the leaf has replaced his own mapping of that page first.
 *
 * Only private memory. Frames that are shared copy-on-write are copied like others, and stay what they
 * were for whoever shares them; pinned pages never move.
 */
#include "daemon/virt/internal.h"

/* One 2 MiB. */
struct collapse {
	struct mm *mm;
	uint64_t base;
	uint8_t *to; /* NULL: only look */
	unsigned present;
	bool writable, busy;
};

static int look_one(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	struct collapse *c = arg;
	pfn_t pfn = (pfn_t)arena_pte_pfn(*ref->entry);
	const struct page *page;

	c->present++;
	/* As good as absent: the new block is zeroed. */
	if (entry_is_zero(mm->virt, *ref->entry))
		return 0;
	page = pfn_to_page(mm->virt->phys, frame_head(mm->virt, pfn));
	c->writable |= *ref->entry & ARENA_PTE_WRITE;
	c->busy |= !(page->flags & PG_ANON) || page->flags & PG_PINNED;
	if (c->to)
		memcpy(c->to + (addr - c->base), domain_address(mm->domain, pfn), ARENA_PAGE_SIZE);
	return 0;
}

static int wrprotect_one(struct mm *mm, uint64_t addr __unused_, struct pte_ref *ref,
			 void *arg __unused_)
{
	if (*ref->entry & ARENA_PTE_WRITE)
		pte_switch(mm, ref, *ref->entry & ~ARENA_PTE_WRITE);
	return 0;
}

static int mark_one(struct mm *mm, uint64_t addr __unused_, struct pte_ref *ref,
		    void *arg __unused_)
{
	entry_mark_limbo(mm, *ref->entry);
	return 0;
}

/* The old frames, one after the other, to limbo; then their table, which the leaf replaced and a client
 * may still be walking. */
static void drop_table(const struct vma *v, uint32_t table)
{
	struct mm *mm = v->mm;
	const uint64_t *entries = pgtable_entries(mm, table);
	unsigned i;

	for (i = 0; i < ARENA_PTRS_PER_TABLE; i++)
		if (entries[i])
			drop_replaced_entry(v, entries[i]);
	limbo_add(mm, LIMBO_TABLE, table, 0);
}

static int make_leaf(struct vma *v, struct collapse *c, const struct pte_ref *pmd)
{
	struct mm *mm = v->mm;
	uint32_t table = (uint32_t)arena_pte_pfn(*pmd->entry);
	struct alloc_result got;
	int r = limbo_reserve(mm, ARENA_PTRS_PER_TABLE + 1);

	if (!r)
		r = anon_alloc(v, c->base, ARENA_LEAF_ORDER, ARENA_GFP_NOWARN, 0, PFN_NONE, &got);
	if (r)
		return r;
	cow_forget(mm, c->base, c->base + ARENA_LEAF_SIZE);
	c->to = domain_address(mm->domain, got.pfn);
	pgtable_walk(mm, c->base, c->base + ARENA_LEAF_SIZE, look_one, c);
	pgtable_walk(mm, c->base, c->base + ARENA_LEAF_SIZE, mark_one, NULL);
	map_frame_over(v, pmd, got.pfn, vma_entry(v, got.pfn, true, false, false, false));
	drop_table(v, table);
	flush_post(mm, ARENA_FLUSH_UNMAP, c->base, c->base + ARENA_LEAF_SIZE);
	return 0;
}

static int collapse_one(struct vma *v, uint64_t base, bool settled, bool *again)
{
	struct mm *mm = v->mm;
	struct collapse c = {.mm = mm, .base = base};
	struct pte_ref pmd;

	if (pgtable_lookup(mm, base, &pmd) && pmd.level == 1)
		return 0; /* a leaf already */
	if (pmd.level > 0)
		return ARENA_E_INVALID; /* nothing there */
	pgtable_walk(mm, base, base + ARENA_LEAF_SIZE, look_one, &c);
	if (c.busy)
		return ARENA_E_AGAIN;
	if (c.writable || !settled) {
		pgtable_walk(mm, base, base + ARENA_LEAF_SIZE, wrprotect_one, NULL);
		flush_post(mm, ARENA_FLUSH_WRPROTECT, base, base + ARENA_LEAF_SIZE);
		*again = true;
		return 0;
	}
	pgtable_parent(mm, &pmd);
	return make_leaf(v, &c, &pmd);
}

int collapse_range(struct vma *v, uint64_t start, uint64_t end, bool settled, bool *again)
{
	uint64_t base = ALIGN_UP(start, ARENA_LEAF_SIZE);
	int result = 0;

	if (v->object || v->origin ||
	    ALIGN_UP(v->start, ARENA_LEAF_SIZE) + ARENA_LEAF_SIZE > v->end)
		return ARENA_E_INVALID;
	/* A right to write given now could be used too early (frozen.h). */
	*again |= v->mm->nr_settling;
	for (; base + ARENA_LEAF_SIZE <= end && !v->mm->nr_settling; base += ARENA_LEAF_SIZE) {
		int r = collapse_one(v, base, settled, again);

		if (r)
			result = r;
	}
	/* What can be done is done first. */
	return *again ? 0 : result;
}
