/* SPDX-License-Identifier: MIT */
/*
 * stack.c - mappings that grow down: MAP_GROWSDOWN.
 *
 * A fault below such a VMA, with nothing between, extends it to the page that was touched, as long as
 * RLIMIT_STACK of the client's process allows and a gap of stack_guard_gap pages stays free above
 * what lies below. What is mapped later keeps out of that gap too (area.c), unless MAP_FIXED says
 * where it goes. Start and pgoff of the VMA change in one transaction of its record.
 */
#include "daemon/virt/internal.h"

#define STACK_GUARD_GAP (UINT64_C(256) << ARENA_PAGE_SHIFT)

uint64_t vma_start_gap(const struct vma *v)
{
	if (!(v->flags & VM_GROWSDOWN))
		return v->start;
	return v->start > STACK_GUARD_GAP ? v->start - STACK_GUARD_GAP : 0;
}

static bool may_grow(struct vma *v, uint64_t addr)
{
	struct mm *mm = v->mm;
	struct vma *prev = vma_prev(v);
	uint64_t grow = (v->start - addr) >> ARENA_PAGE_SHIFT;

	if (!window_contains(mm, addr, v->end) || grow > v->pgoff)
		return false;
	/* A neighbour that nobody can touch guards as well as a gap does. */
	if (prev && !(prev->flags & VM_GROWSDOWN) && prev->prot != PROT_NONE &&
	    addr - prev->end < STACK_GUARD_GAP)
		return false;
	if (v->end - addr > mm_limit(mm, VM_LIMIT_STACK))
		return false;
	return !mm_may_lock(mm, v->flags, grow) &&
	       !(v->flags & VM_ACCOUNT && vm_enough_memory(mm, grow));
}

struct vma *find_extend_vma(struct mm *mm, uint64_t addr)
{
	struct vma *v = vma_find(mm, addr);

	addr = ALIGN_DOWN(addr, ARENA_PAGE_SIZE);
	if (!v || v->start <= addr)
		return v;
	if (!(v->flags & VM_GROWSDOWN) || !may_grow(v, addr) || vma_grow_down(v, addr))
		return NULL;
	return v;
}
