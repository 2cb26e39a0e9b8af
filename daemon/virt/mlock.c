/* SPDX-License-Identifier: MIT */
/*
 * mlock.c - mlock, mlock2, munlock, mlockall, munlockall, and RLIMIT_MEMLOCK.
 *
 * VM_LOCKED in a VMA's flags is the truth; locked_vm counts its pages. Calls here only set flags: the
 * client populates afterwards, piece by piece (vm_populate with POPULATE_LOCK), so that no call
 * keeps the control thread for long. Whoever takes frames away looks at the VMA.
 *
 * PG_MLOCKED is an index: the frame is mapped by a locked VMA. NR_MLOCK and NR_UNEVICTABLE count such
 * frames, once each, however many map them. It ends with the last entry, or when the last locked
 * VMA lets go.
 */
#include "daemon/virt/internal.h"

/* ---- frames ------------------------------------------------------------------------------------ */

static void count_mlock(struct mm *mm, pfn_t head, const struct page *page, int sign)
{
	struct virt *v = mm->virt;
	struct zone *z = pfn_zone(v->phys, head);
	int64_t n = sign * (INT64_C(1) << page_order(page));

	z->stat[NR_MLOCK] += (uint64_t)n;
	phys_node_stat_add(phys_node(v->phys, z->node), NR_UNEVICTABLE, n);
}

void page_mlock(struct mm *mm, pfn_t head)
{
	struct page *page = pfn_to_page(mm->virt->phys, head);

	if (page->flags & PG_MLOCKED)
		return;
	page->flags |= PG_MLOCKED;
	count_mlock(mm, head, page, 1);
}

void page_munlock(struct mm *mm, pfn_t head)
{
	struct page *page = pfn_to_page(mm->virt->phys, head);

	if (!(page->flags & PG_MLOCKED))
		return;
	page->flags &= ~PG_MLOCKED;
	count_mlock(mm, head, page, -1);
}

static int mlock_one(struct mm *mm, uint64_t addr __unused_, struct pte_ref *ref,
		     void *arg __unused_)
{
	page_mlock(mm, frame_head(mm->virt, (pfn_t)arena_pte_pfn(*ref->entry)));
	return 0;
}

/* Does a locked VMA other than `v` map some of the block? */
static bool locked_elsewhere(const struct vma *v, const struct page *page)
{
	uint64_t first = page->index, last = first + (UINT64_C(1) << page_order(page)) - 1;
	const struct vma *o;

	LIST_FOREACH(o, &v->object->vmas, in_object) {
		if (o != v && (o->flags & VM_LOCKED) && o->pgoff <= last &&
		    o->pgoff + ((o->end - o->start) >> ARENA_PAGE_SHIFT) > first)
			return true;
	}
	return false;
}

static int munlock_one(struct mm *mm, uint64_t addr __unused_, struct pte_ref *ref, void *arg)
{
	const struct vma *v = arg;
	pfn_t head = frame_head(mm->virt, (pfn_t)arena_pte_pfn(*ref->entry));
	const struct page *page = pfn_to_page(mm->virt->phys, head);

	if (!(page->flags & PG_OBJECT) || !locked_elsewhere(v, page))
		page_munlock(mm, head);
	return 0;
}

void munlock_range(struct vma *v, uint64_t start, uint64_t end)
{
	if (v->flags & VM_LOCKED)
		pgtable_walk(v->mm, start, end, munlock_one, v);
}

void mm_recover_mlock(struct mm *mm)
{
	struct vma *v;

	RB_FOREACH(v, vma_tree, &mm->vmas)
		if (v->flags & VM_LOCKED)
			pgtable_walk(mm, v->start, v->end, mlock_one, NULL);
}

/* ---- limits -------------------------------------------------------------------------------------- */

bool mm_can_lock(const struct mm *mm)
{
	return mm_limit(mm, VM_LIMIT_MEMLOCK) != 0;
}

int mm_may_lock(const struct mm *mm, uint32_t flags, uint64_t pages)
{
	if (!(flags & VM_LOCKED))
		return 0;
	return mm->locked_vm + pages > mm_limit(mm, VM_LIMIT_MEMLOCK) >> ARENA_PAGE_SHIFT
		       ? ARENA_E_AGAIN
		       : 0;
}

/* ---- VMAs ---------------------------------------------------------------------------------------- */

/* Give [start, end) of v the lock flags `lock`. */
static int lock_vma(struct vma *v, uint64_t start, uint64_t end, uint32_t lock, struct vma **out)
{
	struct mm *mm = v->mm;
	uint32_t flags = (v->flags & ~VM_LOCKED_MASK) | lock;
	int r;

	*out = v;
	if (flags == v->flags || (v->flags & VM_SPECIAL))
		return 0;
	/* Leaves are counted whole, so none may lie across the border. */
	r = split_leaf_at(mm, start);
	if (!r)
		r = split_leaf_at(mm, end);
	if (!r)
		r = vma_isolate_counted(mm, start, end);
	if (r)
		return r;
	v = vma_find(mm, start);
	if (lock & VM_LOCKED)
		pgtable_walk(mm, start, end, mlock_one, NULL);
	else
		munlock_range(v, start, end);
	vma_set_access(v, flags, v->prot);
	*out = vma_merge(v);
	return 0;
}

static int apply_lock(struct mm *mm, uint64_t start, uint64_t end, uint32_t lock)
{
	uint64_t at = start;

	while (at < end) {
		struct vma *v = vma_find(mm, at);
		uint64_t stop;
		int r;

		if (!v || v->start > at)
			return ARENA_E_NOT_MAPPED;
		stop = MIN(end, v->end);
		r = lock_vma(v, at, stop, lock, &v);
		if (r)
			return r;
		at = stop;
	}
	return 0;
}

/* As mlock(2) rounds: any start, whole pages. */
static int lock_range(uint64_t *addr, uint64_t len, uint64_t *end)
{
	uint64_t start = ALIGN_DOWN(*addr, ARENA_PAGE_SIZE);

	len = ALIGN_UP(len + (*addr - start), ARENA_PAGE_SIZE);
	*addr = start;
	*end = start + len;
	return *end < start ? ARENA_E_INVALID : 0;
}

int vm_mlock(struct mm *mm, uint64_t addr, uint64_t len, bool onfault)
{
	uint64_t limit = mm_limit(mm, VM_LIMIT_MEMLOCK), end, locked;
	struct vm_usage usage;
	int r;

	CONTROL_THREAD();
	if (!limit)
		return ARENA_E_PERMISSION;
	r = lock_range(&addr, len, &end);
	if (r || addr == end)
		return r;
	locked = mm->locked_vm + ((end - addr) >> ARENA_PAGE_SHIFT);
	if (locked > limit >> ARENA_PAGE_SHIFT) {
		mm_range_usage(mm, addr, end, &usage);
		if (locked - usage.locked > limit >> ARENA_PAGE_SHIFT)
			return ARENA_E_NO_MEMORY;
	}
	return apply_lock(mm, addr, end, VM_LOCKED | (onfault ? VM_LOCKONFAULT : 0));
}

int vm_munlock(struct mm *mm, uint64_t addr, uint64_t len)
{
	uint64_t end;
	int r = lock_range(&addr, len, &end);

	CONTROL_THREAD();
	return r ? r : apply_lock(mm, addr, end, 0);
}

static void lock_all(struct mm *mm, uint32_t lock)
{
	struct vma *v = RB_MIN(vma_tree, &mm->vmas);

	for (; v; v = vma_next(v))
		lock_vma(v, v->start, v->end, lock, &v);
}

int vm_mlockall(struct mm *mm, uint32_t flags)
{
	uint64_t limit = mm_limit(mm, VM_LIMIT_MEMLOCK);
	uint32_t lock = VM_LOCKED | (flags & MCL_ONFAULT ? VM_LOCKONFAULT : 0);

	CONTROL_THREAD();
	if (!(flags & (MCL_CURRENT | MCL_FUTURE)) ||
	    (flags & ~(uint32_t)(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)))
		return ARENA_E_INVALID;
	if (!limit)
		return ARENA_E_PERMISSION;
	if ((flags & MCL_CURRENT) && mm->total_vm > limit >> ARENA_PAGE_SHIFT)
		return ARENA_E_NO_MEMORY;
	truth_store(&mm->header->def_flags, flags & MCL_FUTURE ? (uint64_t)lock : 0);
	if (flags & MCL_CURRENT)
		lock_all(mm, lock);
	return 0;
}

int vm_munlockall(struct mm *mm)
{
	CONTROL_THREAD();
	truth_store(&mm->header->def_flags, UINT64_C(0));
	lock_all(mm, 0);
	return 0;
}

bool mm_wants_populate(const struct mm *mm, uint64_t addr)
{
	const struct vma *v = vma_find(mm, addr);

	return v && v->start <= addr && (v->flags & VM_LOCKED_MASK) == VM_LOCKED;
}
