/* SPDX-License-Identifier: MIT */
/*
 * area.c - where a mapping goes when the caller does not say: top-down below mmap_base.
 *
 * The search starts where the last one ended (search_from: above it only holes smaller than or equal
 * to cached_hole are left), so a run of mappings costs no scan. Mappings of a leaf's size or
 * more are aligned to leaves, because only then can they be mapped as such.
 */
#include "daemon/virt/internal.h"

bool area_is_free(const struct mm *mm, uint64_t start, uint64_t end)
{
	const struct vma *v = vma_find(mm, start);

	return !v || v->start >= end;
}

/* Free, and not in the guard gap of the stack above it. */
static bool area_is_clear(const struct mm *mm, uint64_t start, uint64_t end)
{
	const struct vma *v = vma_find(mm, start);

	return !v || vma_start_gap(v) >= end;
}

/* Highest fitting address of the hole [low, high), or 0. */
static uint64_t fit(uint64_t low, uint64_t high, uint64_t len, uint64_t align)
{
	uint64_t addr;

	if (high <= low || high - low < len)
		return 0;
	addr = ALIGN_DOWN(high - len, align);
	return addr >= low ? addr : 0;
}

static uint64_t search_down(struct mm *mm, uint64_t from, uint64_t len, uint64_t align)
{
	uint64_t floor = mm->header->mmap_floor, high = from, addr;
	struct vma *v = vma_find(mm, from);

	if (v && vma_start_gap(v) < from)
		high = vma_start_gap(v);
	v = v ? vma_prev(v) : RB_MAX(vma_tree, &mm->vmas);
	for (;;) {
		uint64_t low = v && v->end > floor ? v->end : floor;

		addr = fit(low, high, len, align);
		if (addr)
			return addr;
		if (high > low)
			mm->cached_hole = MAX(mm->cached_hole, high - low);
		if (!v || v->start <= floor)
			return 0;
		high = MIN(high, vma_start_gap(v));
		v = vma_prev(v);
	}
}

int area_find(struct mm *mm, uint64_t len, uint64_t hint, uint64_t *out)
{
	uint64_t align = len >= ARENA_LEAF_SIZE ? ARENA_LEAF_SIZE : ARENA_PAGE_SIZE, addr;
	const struct arena_mm_header *h = mm->header;

	hint = ALIGN_DOWN(hint, ARENA_PAGE_SIZE);
	if (hint && range_ok(hint, len) && window_contains(mm, hint, hint + len) &&
	    !direct_contains(mm, hint, hint + len) && area_is_clear(mm, hint, hint + len)) {
		*out = hint;
		return 0;
	}
	if (len > h->mmap_base - h->mmap_floor)
		return ARENA_E_NO_MEMORY;
	if (len <= mm->cached_hole) {
		mm->search_from = h->mmap_base;
		mm->cached_hole = 0;
	}
	addr = search_down(mm, mm->search_from, len, align);
	if (!addr && mm->search_from != h->mmap_base) {
		mm->cached_hole = 0;
		addr = search_down(mm, h->mmap_base, len, align);
	}
	if (!addr)
		return ARENA_E_NO_MEMORY;
	mm->search_from = addr + len;
	*out = addr;
	return 0;
}

void area_freed(struct mm *mm, uint64_t start, uint64_t end)
{
	/* At the search front, move it back; behind it, remember that there is a hole to find. */
	if (start <= mm->search_from && end >= mm->search_from)
		mm->search_from = MIN(end, mm->header->mmap_base);
	else if (start > mm->search_from)
		mm->cached_hole = MAX(mm->cached_hole, end - start);
}
