/* SPDX-License-Identifier: MIT */
/*
 * brk.c - the heap: [start_brk, brk) of the window, private anonymous memory that grows upwards.
 *
 * The header's `brk` is the truth about the end, in bytes; the VMAs below it are ordinary ones, so a
 * program may unmap or protect parts of its heap. Growing: VMA, then `brk`. Shrinking: `brk`
 * follows what is unmapped. The new end is noted in the journal, so that a call that died half-way
 * is known by its arguments and not taken for something mapped in the heap's way.
 */
#include "daemon/virt/resume.h"

static int heap_grow(struct mm *mm, uint64_t from, uint64_t to)
{
	uint64_t pages = (to - from) >> ARENA_PAGE_SHIFT;
	struct vma_template t = {
		.start = from,
		.end = to,
		.pgoff = from >> ARENA_PAGE_SHIFT,
		.flags = VM_MAYWRITE | (uint32_t)mm->header->def_flags,
		.prot = PROT_READ | PROT_WRITE,
	};
	const struct vma *above = vma_find(mm, from);
	int r;

	t.flags = vm_account_flags(mm->virt, t.flags, t.prot);
	/* Linux keeps a page free before what lies above, or a stack's gap. */
	if (above && vma_start_gap(above) < to + ARENA_PAGE_SIZE)
		return ARENA_E_NO_MEMORY;
	if (mm_may_lock(mm, t.flags, pages))
		return ARENA_E_NO_MEMORY;
	r = mm_may_expand(mm, t.flags, t.prot, pages);
	if (!r && (t.flags & VM_ACCOUNT))
		r = vm_enough_memory(mm, pages);
	if (!r && mm->nr_vmas > state_tunable(mm->virt->state, TUNABLE_MAX_MAP_COUNT))
		r = ARENA_E_NO_MEMORY;
	return r ? r : vma_insert(mm, &t);
}

static bool heap_is_mapped(const struct mm *mm, uint64_t from, uint64_t to)
{
	const struct vma *v = vma_find(mm, from);

	return v && v->start <= from && v->end >= to;
}

static int set_brk(struct mm *mm, uint64_t end, bool resumed)
{
	struct arena_mm_header *h = mm->header;
	uint64_t from = ALIGN_UP(h->brk, ARENA_PAGE_SIZE), to = ALIGN_UP(end, ARENA_PAGE_SIZE);
	int r = 0;

	if (end < h->start_brk || end > h->brk_limit)
		return ARENA_E_NO_MEMORY;
	if (end > h->brk && end - h->start_brk > mm_limit(mm, VM_LIMIT_DATA))
		return ARENA_E_NO_MEMORY;
	call_prepare(mm->virt, VIRT_CALL_BRK, mm->id, h->brk, end, 0, 0);
	if (to > from && !(resumed && heap_is_mapped(mm, from, to)))
		r = heap_grow(mm, from, to);
	else if (to < from)
		r = unmap_range(mm, to, from);
	if (!r)
		truth_store(&h->brk, end);
	return r;
}

int vm_brk(struct mm *mm, uint64_t end, int64_t delta, uint64_t *out)
{
	uint64_t arg[JOURNAL_ARGS], now = mm->header->brk;
	bool resumed = call_resume(mm->virt, VIRT_CALL_BRK, mm->id, arg);

	CONTROL_THREAD();
	if (end) {
		*out = end;
		return set_brk(mm, end, resumed);
	}
	/* What was prepared counts from the end that was then. */
	if (resumed)
		now = arg[1];
	*out = now;
	if (!delta)
		return 0;
	if (__builtin_add_overflow(now, (uint64_t)delta, &end) != (delta < 0))
		return ARENA_E_NO_MEMORY;
	return set_brk(mm, end, resumed);
}
