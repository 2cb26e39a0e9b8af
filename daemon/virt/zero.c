/* SPDX-License-Identifier: MIT */
/*
 * zero.c - the zero page: what is read of private memory that was never written.
 *
 * A block of 2 MiB of zeros serves all of it, for all clients. It lies in a file of its own that is
 * sealed against writing before anybody has it, and handed out read-only as ARENA_SLOT_ZERO, so that
 * nobody can put anything there, whatever he is. The block is no frame of the arena: it is numbered right
 * behind the last one, has no struct page, and nothing counts its entries. So mapping, copying (fork) and
 * dropping one is a store, a crash can leave nothing but an entry that is right, and a client that
 * reads a terabyte takes none of the arena.
 *
 *	pfn     0 ........ arena_frames | arena_frames + 512
 *	file    never touched, no memory | zeros
 *
 * It is mapped at the grain of leaves only: for single pages one more trap at the first write, and a moved
 * mapping under userfaultfd, cost more than a frame is worth. A leaf that is split has entries of its pages.
 *
 * As in Linux it is not in RSS, is present for mincore(2), and is no page of ours (vm_normal_page());
 * use_zero_page turns it off for later faults. A write fault replaces the entry, as it does one that is
 * shared copy-on-write, but with zeroed memory: there is nothing to copy (fault.c).
 *
 * Who maps it has asked for the file: a client that does not know of it gets frames.
 *
 * Invariants: an entry of the zero block never permits writing, has ARENA_SLOT_ZERO, and lies in a private
 * VMA without an object of an mm whose header says uses_zero. A leaf is the whole block; a page is any of
 * it.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/store/store.h"
#include "daemon/virt/internal.h"

#define ZERO_NAME "zero"

static uint64_t zero_offset(const struct virt *v)
{
	return (uint64_t)v->zero_pfn << ARENA_PAGE_SHIFT;
}

static uint64_t zero_size(const struct virt *v)
{
	return zero_offset(v) + ARENA_LEAF_SIZE;
}

void zero_init(struct virt *v)
{
	uint64_t nr = phys_nr_frames(v->phys);

	v->zero_file = -1;
	v->zero_pfn = nr + ARENA_LEAF_PAGES < PFN_NONE && IS_ALIGNED(nr, ARENA_LEAF_PAGES)
			      ? (pfn_t)nr
			      : PFN_NONE;
}

void zero_exit(struct virt *v, bool unkeep)
{
	if (v->zero_file < 0)
		return;
	if (unkeep)
		store_remove(ZERO_NAME);
	close(v->zero_file);
	v->zero_file = -1;
}

void zero_recover(struct virt *v)
{
	uint64_t size, start, end;
	char name[32];
	int fd = store_take(ZERO_NAME);

	if (fd < 0)
		return;
	/* Clients that have another map zeros, too; the next to ask gets a new one. */
	if (v->zero_pfn == PFN_NONE || os_memfd_size(fd, &size) || size != zero_size(v) ||
	    os_memfd_name(fd, name, sizeof(name)) || strcmp(name, ZERO_NAME) != 0) {
		log_warning("recovery: what was kept as the file of zeros is another");
		store_remove(ZERO_NAME);
		close(fd);
		return;
	}
	v->zero_file = fd;
	v->zero_backed = os_file_data(fd, zero_offset(v), &start, &end);
}

int vm_zero_file(struct mm *mm)
{
	struct virt *v = mm->virt;
	int fd, r;

	CONTROL_THREAD();
	if (v->zero_pfn == PFN_NONE)
		return -ENOENT;
	if (v->zero_file < 0) {
		fd = os_memfd_zeros(ZERO_NAME, zero_size(v));
		if (fd < 0)
			return fd;
		r = store_add(ZERO_NAME, fd);
		if (r) {
			close(fd);
			return r;
		}
		v->zero_file = fd;
	}
	if (!mm->header->uses_zero)
		truth_store(&mm->header->uses_zero, 1u);
	return v->zero_file;
}

/* Have the host back the block, in one hugepage if it can: reading does. */
static bool zero_back(struct virt *v)
{
	struct state *s = v->state;
	void *p;
	int r = faultpoint("virt.zero") ? -ENOMEM
					: os_map(v->zero_file, zero_offset(v), ARENA_LEAF_SIZE,
						 OS_MAP_READ | OS_MAP_HUGE | OS_MAP_POPULATE, &p);

	if (r) {
		state_event(s, EV_THP_ZERO_PAGE_ALLOC_FAILED, 1);
		return false;
	}
	os_unmap(p, ARENA_LEAF_SIZE);
	state_event(s, EV_THP_ZERO_PAGE_ALLOC, 1);
	v->zero_backed = true;
	return true;
}

bool zero_allowed(const struct vma *vma)
{
	struct virt *v = vma->mm->virt;

	return !vma->object && !(vma->flags & (VM_SHARED | VM_SPECIAL)) &&
	       vma->mm->header->uses_zero && v->zero_file >= 0 &&
	       state_tunable(v->state, TUNABLE_USE_ZERO_PAGE) && (v->zero_backed || zero_back(v));
}

uint64_t zero_entry(const struct vma *vma, pfn_t pfn, bool leaf)
{
	uint64_t e = vma_entry(vma, pfn, leaf, false, false, false);

	return (e & ~ARENA_PTE_WRITE) | (uint64_t)ARENA_SLOT_ZERO << ARENA_PTE_SLOT_SHIFT;
}
