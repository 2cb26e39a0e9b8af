/* SPDX-License-Identifier: MIT */
/*
 * sync.c - mincore(2) and msync(2).
 *
 * Resident is what has an entry, and what its object has. Memory without a file is its own storage, so
 * there is nothing for msync to write. Of a file MS_SYNC writes what is dirty, to its disk; MS_ASYNC
 * begins to write it; MS_INVALIDATE drops what is clean, so that what others wrote is seen.
 */
#include <errno.h>

#include "daemon/virt/file.h"

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

static void sync_file(struct vma *v, uint64_t start, uint64_t end, uint32_t flags,
		      struct io_wait *wait)
{
	struct object *o = v->object;
	uint64_t first = vma_pgoff(v, start), last = vma_pgoff(v, end) - 1;

	if (v->error_seq != o->file->error_seq) {
		v->error_seq = o->file->error_seq;
		wait->error = wait->error ? wait->error : o->file->error;
	}
	if (v->flags & VM_SHARED && flags & (MS_SYNC | MS_ASYNC))
		file_request(o, first, last, flags & MS_SYNC, flags & MS_SYNC ? wait : NULL);
	if (flags & MS_INVALIDATE)
		file_invalidate(o, first, last);
}

static int msync_range(struct mm *mm, uint64_t addr, uint64_t len, uint32_t flags,
		       struct io_wait *wait)
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
		struct vma *v = vma_find(mm, addr);

		if (!v || v->start >= end)
			return ARENA_E_NOT_MAPPED;
		if (v->start > addr) {
			if (flags == MS_ASYNC)
				return ARENA_E_NOT_MAPPED;
			hole = true;
		}
		if ((flags & MS_INVALIDATE) && (v->flags & VM_LOCKED))
			return ARENA_E_BUSY;
		if (v->object && v->object->file)
			sync_file(v, MAX(addr, v->start), MIN(end, v->end), flags, wait);
		addr = v->end;
	}
	return hole ? ARENA_E_NOT_MAPPED : 0;
}

int vm_msync(struct mm *mm, uint64_t addr, uint64_t len, uint32_t flags, struct io_wait *wait)
{
	int r;

	/* What is done at once ends no wait that has only begun. */
	wait->pending++;
	r = msync_range(mm, addr, len, flags, wait);
	wait->pending--;
	return r ? r : wait->pending ? 0 : wait->error;
}

/* ---- before munmap, and at the end ------------------------------------------------------------------------------- */

static void write_back(struct mm *mm, uint64_t addr, uint64_t end, struct io_wait *wait)
{
	struct vma *v;

	wait->pending++;
	for (v = vma_find(mm, addr); v && v->start < end; v = vma_next(v))
		if (v->object && v->object->file && v->flags & VM_SHARED &&
		    v->object->file->nr_dirty)
			file_request(v->object, vma_pgoff(v, MAX(addr, v->start)),
				     vma_pgoff(v, MIN(end, v->end)) - 1, false, wait);
	wait->pending--;
}

void vm_write_back(struct mm *mm, uint64_t addr, uint64_t len, struct io_wait *wait)
{
	uint64_t end;

	CONTROL_THREAD();
	if (!range_check(mm, addr, len, &end))
		write_back(mm, addr, end, wait);
}

void vm_write_back_all(struct mm *mm, struct io_wait *wait)
{
	CONTROL_THREAD();
	write_back(mm, 0, UINT64_MAX, wait);
}
