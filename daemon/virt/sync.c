/* SPDX-License-Identifier: MIT */
/*
 * sync.c - mincore(2) and msync(2): calls that look and change nothing here.
 *
 * Resident is what has an entry, and what its object has (the page cache of what has no file). Memory
 * without a file is its own storage, so there is nothing for msync to write: what is left of it
 * are its refusals.
 */
#include "daemon/virt/internal.h"

/* ---- mincore -------------------------------------------------------------------------------------- */

static bool in_core(const struct vma *v, uint64_t addr)
{
	struct pte_ref ref;
	struct chunk *chunk;

	if (pgtable_lookup(v->mm, addr, &ref) && *ref.entry)
		return true;
	return v->object && object_frame(v->object, vma_pgoff(v, addr), &chunk) != PFN_NONE;
}

int vm_mincore(struct mm *mm, uint64_t addr, uint64_t len, uint8_t *vec, uint64_t nr_bits,
	       uint64_t *next)
{
	uint64_t end = ALIGN_UP(addr + len, ARENA_PAGE_SIZE), n;
	const struct vma *v = NULL;

	CONTROL_THREAD();
	if (!IS_ALIGNED(addr, ARENA_PAGE_SIZE))
		return ARENA_E_INVALID;
	if (len && (!range_ok(addr, len) || end < addr))
		return ARENA_E_NOT_MAPPED;
	for (n = 0; n < nr_bits && addr < end; n++, addr += ARENA_PAGE_SIZE) {
		if (!v || addr >= v->end)
			v = vma_find(mm, addr);
		if (!v || v->start > addr)
			break;
		if (in_core(v, addr))
			vec[n / 8] |= (uint8_t)(1u << n % 8);
	}
	*next = addr;
	return n < nr_bits && addr < end ? ARENA_E_NOT_MAPPED : 0;
}

/* ---- msync ---------------------------------------------------------------------------------------- */

int vm_msync(struct mm *mm, uint64_t addr, uint64_t len, uint32_t flags)
{
	uint64_t end = ALIGN_UP(addr + len, ARENA_PAGE_SIZE);
	bool hole = false;

	CONTROL_THREAD();
	if ((flags & ~(uint32_t)(MS_ASYNC | MS_INVALIDATE | MS_SYNC)) ||
	    !IS_ALIGNED(addr, ARENA_PAGE_SIZE) || ((flags & MS_ASYNC) && (flags & MS_SYNC)))
		return ARENA_E_INVALID;
	if (addr + len < addr || end < addr)
		return ARENA_E_NOT_MAPPED;
	while (addr < end) {
		const struct vma *v = vma_find(mm, addr);

		if (!v || v->start >= end)
			return ARENA_E_NOT_MAPPED;
		if (v->start > addr) {
			if (flags == MS_ASYNC)
				return ARENA_E_NOT_MAPPED;
			hole = true;
		}
		if ((flags & MS_INVALIDATE) && (v->flags & VM_LOCKED))
			return ARENA_E_BUSY;
		addr = v->end;
	}
	return hole ? ARENA_E_NOT_MAPPED : 0;
}
