/* SPDX-License-Identifier: MIT */
/*
 * madvise.c - madvise(2). One row of a table per advice: flags it sets and clears, VMAs it refuses,
 * and what it does to the pages.
 *
 * Precedence is Linux's: unknown advice, alignment, then VMA by VMA from the lowest address; the first
 * VMA that refuses ends the call, a hole is remembered and told at the end.
 *
 * What there is no reclaim for yet is taken for what it is, a hint: FREE keeps the pages (Linux may,
 * too, until memory is short), COLD and PAGEOUT leave them where they are, MERGEABLE is noted.
 */
#include "arena/arena.h"
#include "daemon/virt/file.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* One VMA's part of the range. */
struct advised {
	struct vma *vma;
	uint64_t start, end;
	struct flush_wait *wait;
	bool settled; /* every flush posted before this call is acknowledged */
	bool again;   /* COLLAPSE, GATHER: flush, then call again */
};

struct advice {
	int advice;
	uint32_t set, clear;
	uint32_t refuse; /* EINVAL where the VMA has one of these */
	int (*fn)(struct advised *a);
};

static int advise_willneed(struct advised *a)
{
	const struct vma *v = a->vma;

	if (v->object && v->object->file)
		file_readahead(v->object, vma_pgoff(v, a->start), vma_pgoff(v, a->end) - 1);
	return 0;
}

static int advise_dontneed(struct advised *a)
{
	return zap_and_flush(a->vma->mm, a->start, a->end);
}

static int count_lazy(struct mm *mm, uint64_t addr __unused_, struct pte_ref *ref,
		      void *arg __unused_)
{
	state_event(mm->virt->state, EV_PGLAZYFREE, ref->level ? ARENA_LEAF_PAGES : 1);
	return 0;
}

static int advise_free(struct advised *a)
{
	if (a->vma->object)
		return ARENA_E_INVALID;
	return pgtable_walk(a->vma->mm, a->start, a->end, count_lazy, NULL);
}

static int advise_remove(struct advised *a)
{
	const struct vma *v = a->vma;
	uint64_t from;

	if (!v->object)
		return ARENA_E_INVALID;
	if ((v->flags & (VM_SHARED | VM_MAYWRITE)) != (VM_SHARED | VM_MAYWRITE))
		return ARENA_E_ACCESS;
	/* A hole in a file that others have is theirs to make: fallocate(2). */
	if (v->object->file)
		return ARENA_E_UNSUPPORTED;
	from = vma_pgoff(v, a->start) << ARENA_PAGE_SHIFT;
	return object_punch(v->object, from, from + (a->end - a->start), v->mm, a->wait);
}

/* Only private memory without an object can come up empty in a child. */
static int advise_wipeonfork(struct advised *a)
{
	return a->vma->object || (a->vma->flags & VM_SHARED) ? ARENA_E_INVALID : 0;
}

static int advise_collapse(struct advised *a)
{
	return collapse_range(a->vma, a->start, a->end, a->settled, &a->again);
}

static int advise_gather(struct advised *a)
{
	return gather_range(a->vma, a->start, a->end, a->settled, &a->again);
}

#define VM_LOCKED_SPECIAL (VM_LOCKED | VM_SPECIAL)
static const struct advice advices[] = {
	{MADV_NORMAL, 0, VM_SEQ_READ | VM_RAND_READ, 0, NULL},
	{MADV_RANDOM, VM_RAND_READ, VM_SEQ_READ, 0, NULL},
	{MADV_SEQUENTIAL, VM_SEQ_READ, VM_RAND_READ, 0, NULL},
	{MADV_WILLNEED, 0, 0, 0, advise_willneed},
	{MADV_DONTNEED, 0, 0, VM_LOCKED_SPECIAL, advise_dontneed},
	{MADV_DONTNEED_LOCKED, 0, 0, VM_SPECIAL, advise_dontneed},
	{MADV_FREE, 0, 0, VM_LOCKED_SPECIAL, advise_free},
	{MADV_REMOVE, 0, 0, VM_LOCKED_SPECIAL, advise_remove},
	{MADV_COLD, 0, 0, VM_LOCKED_SPECIAL, NULL},
	{MADV_PAGEOUT, 0, 0, VM_LOCKED_SPECIAL, NULL},
	{MADV_DONTFORK, VM_DONTCOPY, 0, 0, NULL},
	{MADV_DOFORK, 0, VM_DONTCOPY, VM_IO, NULL},
	{MADV_WIPEONFORK, VM_WIPEONFORK, 0, VM_SPECIAL, advise_wipeonfork},
	{MADV_KEEPONFORK, 0, VM_WIPEONFORK, 0, NULL},
	{MADV_DONTDUMP, VM_DONTDUMP, 0, 0, NULL},
	{MADV_DODUMP, 0, VM_DONTDUMP, VM_SPECIAL, NULL},
	{MADV_MERGEABLE, VM_MERGEABLE, 0, 0, NULL},
	{MADV_UNMERGEABLE, 0, VM_MERGEABLE, 0, NULL},
	{MADV_HUGEPAGE, VM_HUGEPAGE, VM_NOHUGEPAGE, 0, NULL},
	{MADV_NOHUGEPAGE, VM_NOHUGEPAGE, VM_HUGEPAGE, 0, NULL},
	{MADV_COLLAPSE, 0, 0, VM_NOHUGEPAGE | VM_SPECIAL, advise_collapse},
	{ARENA_MADV_GATHER, 0, 0, VM_SPECIAL, advise_gather},
};

static const struct advice *find_advice(int advice)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(advices); i++)
		if (advices[i].advice == advice)
			return &advices[i];
	return NULL;
}

static int advise(const struct advice *what, struct advised *a)
{
	struct vma *v = a->vma;
	uint32_t flags;
	int r;

	if (v->flags & what->refuse)
		return ARENA_E_INVALID;
	r = what->fn ? what->fn(a) : 0;
	flags = (v->flags | what->set) & ~what->clear;
	if (r || flags == v->flags)
		return r;
	r = vma_isolate_counted(v->mm, a->start, a->end);
	if (r)
		return r;
	v = vma_find(v->mm, a->start);
	vma_set_access(v, flags, v->prot);
	vma_merge(v);
	return 0;
}

int vm_madvise(struct mm *mm, uint64_t addr, uint64_t len, int advice, struct flush_wait *wait)
{
	uint64_t end = ALIGN_UP(addr + len, ARENA_PAGE_SIZE), at = addr;
	const struct advice *what = find_advice(advice);
	bool hole = false, again = false, settled;
	int r;

	CONTROL_THREAD();
	if (!what || !IS_ALIGNED(addr, ARENA_PAGE_SIZE) || addr + len < addr || end < addr)
		return ARENA_E_INVALID;
	if (addr < end && direct_contains(mm, addr, end))
		return ARENA_E_INVALID;
	mm_flush_collect(mm);
	settled = mm->acked == mm->posted;
	while (at < end) {
		struct advised a = {.vma = vma_find(mm, at), .wait = wait, .settled = settled};

		if (!a.vma || a.vma->start >= end) {
			hole = true;
			break;
		}
		hole |= a.vma->start > at;
		a.start = MAX(at, a.vma->start);
		at = a.end = MIN(end, a.vma->end);
		r = advise(what, &a);
		if (r)
			return r;
		again |= a.again;
	}
	if (again)
		return ARENA_E_AGAIN;
	return hole ? ARENA_E_NOT_MAPPED : 0;
}
