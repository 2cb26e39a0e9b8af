/* SPDX-License-Identifier: MIT */
/*
 * mmap.c - mmap, munmap, mprotect: arguments checked as Linux checks them, VMAs cut and joined,
 * entries changed, the client's TLB told.
 *
 * Order, so that a crash leaves something whole: entries go before the VMA that permits them; a VMA
 * comes before its entries. A call cut short by a crash is served again by the next worker and finds
 * part of its work done; mmap notes in the journal which place it chose.
 */
#include "daemon/virt/file.h"
#include "daemon/virt/resume.h"

#define PROT_ALL (PROT_READ | PROT_WRITE | PROT_EXEC)
/* <linux/mman.h>: the page may hold atomic operations; means nothing on x86. */
#define PROT_SEM 0x8
#define MAP_FLAGS_UNSUPPORTED (MAP_HUGETLB | MAP_32BIT)

int range_check(const struct mm *mm, uint64_t addr, uint64_t len, uint64_t *end)
{
	if (!IS_ALIGNED(addr, ARENA_PAGE_SIZE) || !range_ok(addr, len))
		return ARENA_E_INVALID;
	*end = ALIGN_UP(addr + len, ARENA_PAGE_SIZE);
	if (*end <= addr || !window_contains(mm, addr, *end))
		return ARENA_E_INVALID;
	return direct_contains(mm, addr, *end) ? ARENA_E_INVALID : 0;
}

/* ---- munmap ------------------------------------------------------------------------------------------ */

int zap_and_flush(struct mm *mm, uint64_t start, uint64_t end)
{
	bool any;
	int r = zap_range(mm, start, end, &any);

	if (any)
		flush_post(mm, ARENA_FLUSH_UNMAP, start, end);
	return r;
}

int unmap_range(struct mm *mm, uint64_t start, uint64_t end)
{
	struct vma *v = vma_find(mm, start), *next;
	int r;

	if (!v || v->start >= end)
		return 0;
	/* A hole in the middle makes one more of it. */
	if (v->start < start && v->end > end && !map_count_ok(mm, 1))
		return ARENA_E_NO_MEMORY;
	r = vma_isolate(mm, start, end);
	if (r)
		return r;
	r = zap_and_flush(mm, start, end);
	if (r)
		return r;
	for (v = vma_find(mm, start); v && v->start < end; v = next) {
		next = vma_next(v);
		vma_remove(v);
	}
	area_freed(mm, start, end);
	return 0;
}

int vm_munmap(struct mm *mm, uint64_t addr, uint64_t len)
{
	uint64_t end;
	int r = range_check(mm, addr, len, &end);

	CONTROL_THREAD();
	return r ? r : unmap_range(mm, addr, end);
}

/* ---- mmap ---------------------------------------------------------------------------------------------- */

/* The object may be new: the caller releases it on failure. */
static int mmap_file(struct mm *mm, const struct vm_mmap_args *a, uint64_t len,
		     struct vma_template *t)
{
	struct file_source src = {.fd = a->file, .prot = a->prot, .flags = a->flags};
	int r;

	t->pgoff = (uint64_t)a->offset >> ARENA_PAGE_SHIFT;
	if (t->pgoff + (len >> ARENA_PAGE_SHIFT) > UINT32_MAX)
		return ARENA_E_OVERFLOW_;
	r = file_open(mm, &src, &t->object);
	if (!r && !src.maywrite)
		t->flags &= ~VM_MAYWRITE;
	return r;
}

/* What is mapped: fills in object, slot, pgoff, flags. */
static int mmap_source(struct mm *mm, const struct vm_mmap_args *a, uint64_t len,
		       struct vma_template *t)
{
	bool shared = (a->flags & MAP_TYPE) == MAP_SHARED;
	struct handle *h;

	t->prot = a->prot & PROT_ALL;
	t->flags = VM_MAYWRITE | (shared ? VM_SHARED : 0) |
		   (a->flags & MAP_NORESERVE ? VM_NORESERVE : 0) |
		   (a->flags & MAP_GROWSDOWN ? VM_GROWSDOWN : 0) |
		   (a->flags & MAP_LOCKED ? VM_LOCKED : 0) | (uint32_t)mm->header->def_flags;
	t->flags = vm_account_flags(mm->virt, t->flags, t->prot);
	if (a->segment) {
		h = mm_handle(mm, a->segment);
		if (!h)
			return ARENA_E_INVALID;
		if (shared && !h->writable)
			t->flags &= ~VM_MAYWRITE;
		if ((t->prot & PROT_WRITE) && !(t->flags & VM_MAYWRITE))
			return ARENA_E_ACCESS;
		t->object = h->object;
		t->slot = h->slot;
		t->pgoff = (uint64_t)a->offset >> ARENA_PAGE_SHIFT;
		return t->pgoff + (len >> ARENA_PAGE_SHIFT) > UINT32_MAX ? ARENA_E_OVERFLOW_ : 0;
	}
	return a->file ? mmap_file(mm, a, len, t) : 0;
}

/* Shared anonymous memory: the object is not referred to by anything yet, the caller releases it
 * on failure. */
static int mmap_object(struct mm *mm, struct vma_template *t)
{
	struct credentials cred = {.uid = mm->record->uid, .gid = mm->record->gid};
	uint32_t mode = 0600 | (t->flags & VM_NORESERVE ? OBJECT_NORESERVE : 0);
	int r = object_create(mm->virt, OBJECT_ANON, mm->domain, NULL, &cred, mode, &t->object);

	if (!r)
		r = object_resize(t->object, t->end - t->start, mm, NULL);
	if (!r)
		object_account(t->object);
	return r;
}

/* Did a worker before us map what is asked for? At a fixed place that is not to be told from what
 * was there before; but done again it comes to the same. */
static bool mmap_resume(struct mm *mm, const struct vm_mmap_args *a, uint64_t len, uint64_t *out)
{
	uint64_t arg[JOURNAL_ARGS], at;
	const struct vma *v;

	if (!call_resume(mm->virt, VIRT_CALL_MMAP, mm->id, arg) || (a->flags & MAP_FIXED) ||
	    !range_ok(arg[1], len) || arg[1] + len != arg[2])
		return false;
	for (at = arg[1]; at < arg[2]; at = v->end) {
		v = vma_find(mm, at);
		if (!v || v->start > at || (v->object ? v->object->id : 0) != arg[3] ||
		    v->prot != arg[4] || v->flags & VM_DIRECT)
			return false;
	}
	*out = arg[1];
	return true;
}

/* What is mapped already where a MAP_FIXED goes makes room first. */
static int mmap_permitted(struct mm *mm, const struct vm_mmap_args *a, const struct vma_template *t,
			  uint64_t len)
{
	uint64_t pages = len >> ARENA_PAGE_SHIFT;
	struct vm_usage old = {0};
	int r;

	if (mm->nr_vmas > state_tunable(mm->virt->state, TUNABLE_MAX_MAP_COUNT))
		return ARENA_E_NO_MEMORY;
	if ((a->flags & MAP_LOCKED) && !mm_can_lock(mm))
		return ARENA_E_PERMISSION;
	r = mm_may_lock(mm, t->flags, pages);
	if (r)
		return r;
	if (a->flags & MAP_FIXED)
		mm_range_usage(mm, t->start, t->start + len, &old);
	if (pages > old.data)
		r = mm_may_expand(mm, t->flags, t->prot, pages - old.data);
	if (!r && (t->flags & VM_ACCOUNT) && pages > old.accounted)
		r = vm_enough_memory(mm, pages - old.accounted);
	if (!r && !t->object && (t->flags & VM_SHARED) && !(t->flags & VM_NORESERVE))
		r = vm_enough_memory(mm, pages);
	return r;
}

int mmap_place(struct mm *mm, const struct vm_mmap_args *a, uint64_t len, struct vma_template *t)
{
	uint64_t want = a->addr, common;

	if (a->flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) {
		if (!IS_ALIGNED(want, ARENA_PAGE_SIZE))
			return ARENA_E_INVALID;
		if (!range_ok(want, len) || !window_contains(mm, want, want + len))
			return ARENA_E_NO_MEMORY;
		if (direct_contains(mm, want, want + len))
			return ARENA_E_INVALID;
		if ((a->flags & MAP_FIXED_NOREPLACE) && !area_is_free(mm, want, want + len))
			return ARENA_E_EXISTS;
		t->start = want;
		return 0;
	}
	if (t->object && a->segment && !want) {
		object_place(t->object, (uint64_t)a->offset + len);
		common = t->object->record->address;
		if (common && common >= mm->header->segment_base) {
			common += (uint64_t)a->offset;
			if (common + len <= mm->header->segment_end &&
			    area_is_free(mm, common, common + len)) {
				t->start = common;
				return 0;
			}
		}
	}
	return area_find(mm, len, want, &t->start);
}

static int mmap_check(const struct vm_mmap_args *a, uint64_t *len)
{
	if (!a->len)
		return ARENA_E_INVALID;
	if (a->flags & MAP_FLAGS_UNSUPPORTED)
		return ARENA_E_UNSUPPORTED;
	if (a->offset < 0 || !IS_ALIGNED((uint64_t)a->offset, ARENA_PAGE_SIZE))
		return ARENA_E_INVALID;
	if (!a->segment && !a->file && !(a->flags & MAP_ANONYMOUS))
		return ARENA_E_NO_DEVICE;
	*len = ALIGN_UP(a->len, ARENA_PAGE_SIZE);
	if (!*len || *len > ARENA_WINDOW_SIZE_DEFAULT * 4)
		return ARENA_E_NO_MEMORY;
	return (uint64_t)a->offset + *len > INT64_MAX ? ARENA_E_OVERFLOW_ : 0;
}

/* As in Linux the place is looked at first: a place that is taken is told before this. */
static bool type_ok(uint32_t flags)
{
	uint32_t type = flags & MAP_TYPE;

	return type == MAP_PRIVATE || (type == MAP_SHARED && !(flags & MAP_GROWSDOWN));
}

int vm_mmap(struct mm *mm, const struct vm_mmap_args *a, uint64_t *out)
{
	struct vma_template t = {0};
	uint64_t len;
	bool own;
	int r = mmap_check(a, &len);

	CONTROL_THREAD();
	if (r)
		return r;
	if (mmap_resume(mm, a, len, out))
		return 0;
	if (!type_ok(a->flags)) {
		r = mmap_place(mm, a, len, &t);
		return r ? r : ARENA_E_INVALID;
	}
	r = mmap_source(mm, a, len, &t);
	if (!r)
		r = mmap_place(mm, a, len, &t);
	if (!r)
		r = mmap_permitted(mm, a, &t, len);
	if (r) {
		if (a->file && t.object)
			object_release(t.object);
		return r;
	}
	t.end = t.start + len;
	own = !t.object && (t.flags & VM_SHARED);
	if (!t.object && !own)
		t.pgoff = t.start >> ARENA_PAGE_SHIFT;
	call_prepare(mm->virt, VIRT_CALL_MMAP, mm->id, t.start, t.end,
		     own        ? mm->virt->state->header->next_object
		     : t.object ? t.object->id
				: 0,
		     t.prot);
	if (own)
		r = mmap_object(mm, &t);
	if (!r && (a->flags & MAP_FIXED))
		r = unmap_range(mm, t.start, t.end);
	if (!r)
		r = vma_insert(mm, &t);
	if (r) {
		if ((own || a->file) && t.object)
			object_release(t.object);
		return r;
	}
	*out = t.start;
	return 0;
}

/* ---- mprotect ------------------------------------------------------------------------------------------ */

struct protect {
	struct vma *vma;
	bool any;
};

static int protect_one(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	struct protect *p = arg;
	uint64_t fresh = entry_refresh(p->vma, addr, ref);

	if (fresh == *ref->entry)
		return 0;
	pte_switch(mm, ref, fresh);
	p->any = true;
	return 0;
}

/* What becomes writable is promised from here on. */
static int protect_account(const struct vma *v, uint32_t prot, uint64_t pages, uint32_t *flags)
{
	int r;

	*flags = v->flags;
	if (!(prot & PROT_WRITE) || (v->prot & PROT_WRITE) || (v->flags & (VM_SHARED | VM_SPECIAL)))
		return 0;
	r = mm_may_expand(v->mm, v->flags, prot, pages);
	if (r || (v->flags & (VM_ACCOUNT | VM_NORESERVE)))
		return r;
	*flags |= VM_ACCOUNT;
	return vm_enough_memory(v->mm, pages);
}

/* v lies wholly inside the range to change. */
static int protect_vma(struct vma *v, uint32_t flags, uint32_t prot)
{
	struct mm *mm = v->mm;
	struct protect p = {.vma = v};
	uint32_t lost = v->prot & ~prot, gained = prot & ~v->prot;
	uint64_t start = v->start, end = v->end;
	int r = split_leaf_at(mm, start);

	if (!r)
		r = split_leaf_at(mm, end);
	if (r)
		return r;
	vma_set_access(v, flags, prot);
	pgtable_walk(mm, start, end, protect_one, &p);
	if (p.any)
		flush_post(mm,
			   lost == PROT_WRITE && !gained && (prot & PROT_READ)
				   ? ARENA_FLUSH_WRPROTECT
				   : ARENA_FLUSH_UNMAP,
			   start, end);
	return 0;
}

/* PROT_GROWSDOWN: from the beginning of the stack that addr is in. */
static int protect_from(const struct mm *mm, uint32_t prot, uint64_t end, uint64_t *addr)
{
	const struct vma *v = vma_find(mm, *addr);

	if (!v || (!(prot & PROT_GROWSDOWN) && v->start > *addr))
		return ARENA_E_NOT_MAPPED;
	if (prot & PROT_GROWSUP)
		return ARENA_E_INVALID;
	if (!(prot & PROT_GROWSDOWN))
		return 0;
	if (v->start >= end)
		return ARENA_E_NOT_MAPPED;
	*addr = v->start;
	return v->flags & VM_GROWSDOWN ? 0 : ARENA_E_INVALID;
}

static int protect_range(struct mm *mm, uint64_t at, uint64_t end, uint32_t prot)
{
	while (at < end) {
		struct vma *v = vma_find(mm, at);
		uint32_t flags;
		uint64_t stop;
		int r;

		if (!v || v->start > at)
			return ARENA_E_NOT_MAPPED;
		stop = MIN(end, v->end);
		if ((prot & PROT_WRITE) && !(v->flags & VM_MAYWRITE))
			return ARENA_E_ACCESS;
		if (v->prot == prot) {
			at = stop;
			continue;
		}
		r = protect_account(v, prot, (stop - at) >> ARENA_PAGE_SHIFT, &flags);
		if (!r)
			r = vma_isolate_counted(mm, at, stop);
		if (r)
			return r;
		v = vma_find(mm, at);
		r = protect_vma(v, flags, prot);
		if (r)
			return r;
		vma_merge(v);
		at = stop;
	}
	return 0;
}

int vm_mprotect(struct mm *mm, uint64_t addr, uint64_t len, uint32_t prot)
{
	const uint32_t grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP);
	uint64_t end = ALIGN_UP(addr + len, ARENA_PAGE_SIZE);
	int r;

	CONTROL_THREAD();
	if (grows == (PROT_GROWSDOWN | PROT_GROWSUP) || !IS_ALIGNED(addr, ARENA_PAGE_SIZE))
		return ARENA_E_INVALID;
	if (!len)
		return 0;
	if (!range_ok(addr, len) || end <= addr)
		return ARENA_E_NOT_MAPPED;
	if ((prot & ~grows) & ~(uint32_t)(PROT_ALL | PROT_SEM))
		return ARENA_E_INVALID;
	/* Not the program's to change: such a range is refused whole, as munmap does. */
	if (direct_contains(mm, addr, end))
		return ARENA_E_INVALID;
	r = protect_from(mm, prot, end, &addr);
	return r ? r : protect_range(mm, addr, end, prot & PROT_ALL);
}
