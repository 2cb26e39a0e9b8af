/* SPDX-License-Identifier: MIT */
/*
 * pages.c - arena_alloc_pages(): frames by number, seen through a direct map.
 *
 * As in a kernel, page_address(pfn) = direct_base + (pfn << 12): the address is the frame's number, so
 * virt_to_pfn is a subtraction, neighbouring frames lie side by side (and their kernel mappings in
 * the client join), and the whole direct map is one VMA, made with the mm. Frames are PG_KERNEL with
 * the mm's id; each entry holds a reference of the block's head. A block has all its entries or
 * none: recovery frees what a crash left between.
 */
#include "daemon/virt/internal.h"
#include "daemon/virt/resume.h"

#define GFP_ALLOWED                                                                      \
	(ARENA_GFP_DMA | ARENA_GFP_HIGHMEM | ARENA_GFP_MOVABLE | ARENA_GFP_RECLAIMABLE | \
	 ARENA_GFP_ZERO | ARENA_GFP_ATOMIC | ARENA_GFP_NOWARN | ARENA_GFP_THISNODE)

bool direct_contains(const struct mm *mm, uint64_t start, uint64_t end)
{
	uint64_t base = mm->header->direct_base;

	return base && start < base + (mm->header->arena_frames << ARENA_PAGE_SHIFT) && end > base;
}

static int direct_vma(struct mm *mm)
{
	uint64_t base = mm->header->direct_base;
	struct vma_template t = {
		.start = base,
		.end = base + (mm->header->arena_frames << ARENA_PAGE_SHIFT),
		.pgoff = base >> ARENA_PAGE_SHIFT,
		.flags = VM_DIRECT | VM_PFNMAP | VM_IO | VM_DONTDUMP,
		.prot = PROT_READ | PROT_WRITE,
	};
	struct vma *v;

	if (!base)
		return ARENA_E_NO_MEMORY;
	v = vma_find(mm, base);
	return v && v->start == base ? 0 : vma_insert(mm, &t);
}

/* Take back the entries of [addr, ...) that were installed before one failed. */
static void undo_entries(const struct vma *vma, uint64_t addr, unsigned n, uint64_t step)
{
	struct pte_ref ref;

	while (n--) {
		if (pgtable_lookup(vma->mm, addr, &ref) && *ref.entry)
			unmap_entry(vma, &ref);
		addr += step;
	}
}

static int map_block(struct mm *mm, uint64_t addr, pfn_t pfn, unsigned order, bool hole)
{
	bool leaf = order >= ARENA_LEAF_ORDER;
	uint64_t step = leaf ? ARENA_LEAF_SIZE : ARENA_PAGE_SIZE;
	unsigned n = leaf ? 1u << (order - ARENA_LEAF_ORDER) : 1u << order, i;
	struct vma *vma = vma_find(mm, addr);
	struct pte_ref ref;
	int r = limbo_reserve(mm, n * (1 + ARENA_TABLE_LEVELS));

	for (i = 0; i < n && !r; i++) {
		uint64_t at = addr + i * step;
		pfn_t frame = pfn + (pfn_t)(i * (step >> ARENA_PAGE_SHIFT));

		r = pgtable_get(mm, at, leaf ? 1 : 0, &ref);
		if (r)
			break;
		get_page(mm->virt->phys, pfn);
		map_frame(vma, &ref, frame, vma_entry(vma, frame, leaf, hole, false, false));
	}
	if (r && i) {
		undo_entries(vma, addr, i, step);
		flush_post(mm, ARENA_FLUSH_UNMAP, addr, addr + i * step);
	}
	return r;
}

/* The block at addr, if it is one of this mm and all there. */
static bool block_is_mapped(struct mm *mm, uint64_t addr, pfn_t pfn, unsigned order)
{
	const struct page *page = pfn_to_page(mm->virt->phys, pfn);
	struct pte_ref ref;

	return page && page->refcount && (page->flags & PG_KERNEL) && page->mapping == mm->id &&
	       page_order(page) == order && pgtable_lookup(mm, addr, &ref) && *ref.entry;
}

int vm_alloc_pages(struct mm *mm, unsigned gfp, unsigned order, unsigned cpu, uint64_t *addr,
		   uint64_t *pfn)
{
	struct phys *p = mm->virt->phys;
	struct alloc_request rq = {
		.domain = mm->domain,
		.gfp = gfp | (order >= ARENA_LEAF_ORDER ? GFP_HOLE_OK : 0),
		.order = order,
		.cpu = cpu,
		.hint = PFN_NONE,
		.owner = PG_KERNEL,
		.mapping = mm->id,
	};
	uint64_t arg[JOURNAL_ARGS];
	struct alloc_result got;
	int r;

	CONTROL_THREAD();
	if (order > ARENA_MAX_ORDER || (gfp & ~(unsigned)GFP_ALLOWED))
		return ARENA_E_INVALID;
	if (call_resume(mm->virt, VIRT_CALL_ALLOC_PAGES, mm->id, arg) && arg[2] == order) {
		*pfn = arg[1];
		*addr = mm->header->direct_base + (arg[1] << ARENA_PAGE_SHIFT);
		if (block_is_mapped(mm, *addr, (pfn_t)arg[1], order))
			return 0;
	}
	policy_apply(mm, &rq);
	r = direct_vma(mm);
	if (!r)
		r = alloc_pages(p, &rq, &got);
	if (r)
		return r;
	call_prepare(mm->virt, VIRT_CALL_ALLOC_PAGES, mm->id, got.pfn, order, 0, 0);
	*pfn = got.pfn;
	*addr = mm->header->direct_base + ((uint64_t)got.pfn << ARENA_PAGE_SHIFT);
	r = map_block(mm, *addr, got.pfn, order, got.hole);
	/* The entries hold the block now; on failure nothing does. */
	put_page(p, got.pfn);
	return r;
}

int vm_free_pages(struct mm *mm, uint64_t addr, unsigned order)
{
	uint64_t end = addr + (ARENA_PAGE_SIZE << (order & 31));
	uint64_t arg[JOURNAL_ARGS];
	bool any, resumed;
	pfn_t pfn;
	int r;

	CONTROL_THREAD();
	resumed = call_resume(mm->virt, VIRT_CALL_FREE_PAGES, mm->id, arg) && arg[1] == addr &&
		  arg[2] == order;
	if (order > ARENA_MAX_ORDER || !IS_ALIGNED(addr, ARENA_PAGE_SIZE) || end <= addr ||
	    addr < mm->header->direct_base || !direct_contains(mm, addr, end))
		return ARENA_E_INVALID;
	pfn = (pfn_t)((addr - mm->header->direct_base) >> ARENA_PAGE_SHIFT);
	if (!block_is_mapped(mm, addr, pfn, order))
		return resumed ? 0 : ARENA_E_INVALID;
	/* All or nothing: a block without its first entry could not be named any more. */
	r = limbo_reserve(mm, (1u << order) * (1 + ARENA_TABLE_LEVELS));
	if (r)
		return r;
	call_prepare(mm->virt, VIRT_CALL_FREE_PAGES, mm->id, addr, order, 0, 0);
	r = zap_range(mm, addr, end, &any);
	if (any)
		flush_post(mm, ARENA_FLUSH_UNMAP, addr, end);
	return r;
}
