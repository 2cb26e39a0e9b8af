/* SPDX-License-Identifier: MIT */
/*
 * pfnmap.c - arena_mmap_pfn(): frames of arena_alloc_pages() once more, at an address of choice, as a driver
 * maps its buffer with remap_pfn_range(9), or page by page with vm_insert_page(9).
 *
 *	VM_PFNMAP | VM_IO    by number: no page that anybody may look at, hold or count
 *	VM_MIXEDMAP          pages: arena_pin() takes them
 *
 * All entries are there from the start, as single pages; nothing is filled in by a fault, and what is lacking is a
 * SIGBUS. As such mappings of Linux they are not expanded (EFAULT), not locked (passed over), advised
 * (EINVAL), or shared with a snapshot; a child does not get them, since it has none of these frames.
 *
 * The caller must own the frames: the direct map has them. Each entry holds a reference of its block, as
 * those of the direct map do. So arena_free_pages() ends the right to map them again, and the frames live on
 * until the last mapping is gone and flushed.
 *
 * Invariant: the VMA's pgoff is the number of its first frame; an entry in it is of a PG_KERNEL frame of its mm
 * and has the number that its address says. So neighbours merge only where the frames are neighbours, too.
 */
#include "daemon/virt/resume.h"

/* Of one call, which the control thread makes in one go. */
#define PFN_MAX_PAGES 65536u

static int check_frames(const struct mm *mm, uint64_t pfn, uint64_t n)
{
	uint64_t at = mm->header->direct_base + (pfn << ARENA_PAGE_SHIFT), i;
	struct pte_ref ref;

	if (!mm->header->direct_base)
		return ARENA_E_PERMISSION;
	for (i = 0; i < n; i++)
		if (!pgtable_lookup(mm, at + (i << ARENA_PAGE_SHIFT), &ref) ||
		    !(*ref.entry & ARENA_PTE_PRESENT))
			return ARENA_E_PERMISSION;
	return 0;
}

static int check_args(const struct mm *mm, const struct vm_mmap_args *a, uint64_t pfn)
{
	uint64_t n = ALIGN_UP(a->len, ARENA_PAGE_SIZE) >> ARENA_PAGE_SHIFT;
	uint64_t frames = phys_nr_frames(mm->virt->phys);

	if (!a->len || !n || n > PFN_MAX_PAGES || pfn >= frames || n > frames - pfn ||
	    a->flags & ~(uint32_t)(MAP_FIXED | MAP_FIXED_NOREPLACE | ARENA_MAP_MIXED))
		return ARENA_E_INVALID;
	if (mm->nr_vmas > state_tunable(mm->virt->state, TUNABLE_MAX_MAP_COUNT))
		return ARENA_E_NO_MEMORY;
	return check_frames(mm, pfn, n);
}

/* Tables between [start, end) and the root, at most. */
static uint32_t tables_for(uint64_t start, uint64_t end)
{
	uint32_t n = 0;
	unsigned level;

	for (level = 1; level < ARENA_TABLE_LEVELS; level++) {
		unsigned shift = ARENA_PAGE_SHIFT + 9 * level;

		n += (uint32_t)(((end - 1) >> shift) - (start >> shift)) + 1;
	}
	return n;
}

/* Cannot fail: tables are reserved. */
static void map_frames(struct mm *mm, uint64_t start, uint64_t end)
{
	struct vma *v = vma_find(mm, start);
	struct phys *p = mm->virt->phys;
	uint64_t at;

	for (at = start; at < end; at += ARENA_PAGE_SIZE) {
		pfn_t pfn = (pfn_t)vma_pgoff(v, at);
		struct pte_ref ref;

		BUG_ON(pgtable_get(mm, at, 0, &ref));
		get_page(p, frame_head(mm->virt, pfn));
		map_frame(v, &ref, pfn, vma_entry(v, pfn, false, false, false, false));
	}
}

/* What a worker before us had made of this call was told to nobody. */
static int undo_resumed(struct mm *mm)
{
	uint64_t arg[JOURNAL_ARGS];

	if (!call_resume(mm->virt, VIRT_CALL_MMAP_PFN, mm->id, arg) || !range_ok(arg[1], arg[2]) ||
	    !window_contains(mm, arg[1], arg[1] + arg[2]) ||
	    direct_contains(mm, arg[1], arg[1] + arg[2]))
		return 0;
	return unmap_range(mm, arg[1], arg[1] + arg[2]);
}

int vm_mmap_pfn(struct mm *mm, const struct vm_mmap_args *a, uint64_t pfn, uint64_t *out)
{
	uint64_t len = ALIGN_UP(a->len, ARENA_PAGE_SIZE);
	struct vma_template t = {
		.pgoff = pfn,
		.prot = a->prot & (PROT_READ | PROT_WRITE | PROT_EXEC),
		.flags = VM_DONTDUMP | VM_MAYWRITE |
			 (a->flags & ARENA_MAP_MIXED ? VM_MIXEDMAP : VM_PFNMAP | VM_IO),
	};
	int r = undo_resumed(mm);

	CONTROL_THREAD();
	if (!r)
		r = check_args(mm, a, pfn);
	if (!r)
		r = mmap_place(mm, a, len, &t);
	if (r)
		return r;
	t.end = t.start + len;
	call_prepare(mm->virt, VIRT_CALL_MMAP_PFN, mm->id, t.start, len, 0, 0);
	if (a->flags & MAP_FIXED)
		r = unmap_range(mm, t.start, t.end);
	if (!r)
		r = pgtable_reserve(mm, tables_for(t.start, t.end));
	if (!r)
		r = vma_insert(mm, &t);
	if (!r)
		map_frames(mm, t.start, t.end);
	pgtable_unreserve(mm);
	*out = t.start;
	return r;
}
