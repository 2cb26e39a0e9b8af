/* SPDX-License-Identifier: MIT */
/*
 * mlock.c - mlock, mlock2, munlock, mlockall, munlockall, and RLIMIT_MEMLOCK.
 *
 * VM_LOCKED in a VMA's flags is the truth; locked_vm counts its pages. Calls here only set flags: the
 * client populates afterwards, piece by piece (vm_populate with POPULATE_LOCK), so that no call
 * keeps the control thread for long. Whoever takes frames away looks at the VMA.
 *
 * PG_MLOCKED is an index: mlock_count entries of locked VMAs point to the block. NR_MLOCK and
 * NR_UNEVICTABLE count such blocks, once each, however many map them. So whoever installs, takes or
 * replaces an entry says of which VMA it is (rmap.c).
 */
#include "daemon/virt/internal.h"

/* ---- frames ------------------------------------------------------------------------------------ */

static void count_mlock(struct virt *v, pfn_t head, const struct page *page, int sign)
{
	struct zone *z = pfn_zone(v->phys, head);
	int64_t n = sign * (INT64_C(1) << page_order(page));

	z->stat[NR_MLOCK] += (uint64_t)n;
	phys_node_stat_add(phys_node(v->phys, z->node), NR_UNEVICTABLE, n);
}

void page_mlock(struct virt *v, pfn_t head, uint32_t n)
{
	struct page *page = pfn_to_page(v->phys, head);

	if (!(page->flags & PG_MLOCKED)) {
		page->flags |= PG_MLOCKED;
		page->mlock_count = 0;
		count_mlock(v, head, page, 1);
	}
	page->mlock_count += n;
}

void page_munlock(struct virt *v, pfn_t head, uint32_t n)
{
	struct page *page = pfn_to_page(v->phys, head);

	BUG_ON(!(page->flags & PG_MLOCKED) || page->mlock_count < n);
	page->mlock_count -= n;
	if (page->mlock_count)
		return;
	page->flags &= ~PG_MLOCKED;
	page->lru_next = PFN_NONE;
	count_mlock(v, head, page, -1);
}

static int mlock_one(struct mm *mm, uint64_t addr __unused_, struct pte_ref *ref,
		     void *arg __unused_)
{
	if (!entry_is_zero(mm->virt, *ref->entry))
		page_mlock(mm->virt, frame_head(mm->virt, (pfn_t)arena_pte_pfn(*ref->entry)), 1);
	return 0;
}

static int munlock_one(struct mm *mm, uint64_t addr __unused_, struct pte_ref *ref,
		       void *arg __unused_)
{
	if (!entry_is_zero(mm->virt, *ref->entry))
		page_munlock(mm->virt, frame_head(mm->virt, (pfn_t)arena_pte_pfn(*ref->entry)), 1);
	return 0;
}

/* A leaf may lie across VMAs that are both locked, if they differ in advice: it counts once. */
static int mlock_found(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	const struct vma *v = arg;

	return addr < v->start ? 0 : mlock_one(mm, addr, ref, NULL);
}

void mm_recover_mlock(struct mm *mm)
{
	struct vma *v;

	RB_FOREACH(v, vma_tree, &mm->vmas)
		if (v->flags & VM_LOCKED)
			pgtable_walk(mm, v->start, v->end, mlock_found, v);
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
	if ((flags ^ v->flags) & VM_LOCKED)
		pgtable_walk(mm, start, end, lock & VM_LOCKED ? mlock_one : munlock_one, NULL);
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
