/* SPDX-License-Identifier: MIT */
/* virt_rmap.h - reverse mapping against a walk of all page tables. */
#ifndef TESTS_VIRT_RMAP_H
#define TESTS_VIRT_RMAP_H

#include "tests/virt_fake.h"

struct rmap_search {
	struct mm *mm;
	uint64_t addr;
	bool found;
	unsigned n;
};

static inline int rmap_is_it(struct vma *vma, uint64_t addr, struct pte_ref *ref, void *arg)
{
	struct rmap_search *s = arg;

	(void)ref;
	s->n++;
	s->found |= vma->mm == s->mm && addr == s->addr;
	return 0;
}

static inline int rmap_look_for(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	pfn_t pfn = (pfn_t)arena_pte_pfn(*ref->entry);
	const struct page *page;
	struct rmap_search s = {.mm = mm, .addr = addr};
	bool *ok = arg;

	if (entry_is_zero(mm->virt, *ref->entry))
		return 0;
	page = pfn_to_page(mm->virt->phys, frame_head(mm->virt, pfn));
	if (!(page->flags & PG_ANON))
		return 0;
	rmap_walk(mm->virt, pfn, rmap_is_it, &s);
	if (!s.found)
		fprintf(stderr, "mm %u: rmap does not find %#lx\n", mm_id(mm), (unsigned long)addr);
	*ok &= s.found && (page_order(page) || s.n == page->mapcount);
	return 0;
}

static inline bool rmap_finds_every_entry(struct virt *v)
{
	struct mm *mm = NULL;
	bool ok = true;

	while ((mm = mm_next(v, mm)))
		pgtable_walk(mm, 0, UINT64_C(1) << 47, rmap_look_for, &ok);
	return ok;
}

#endif
