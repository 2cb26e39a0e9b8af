/* SPDX-License-Identifier: MIT */
/*
 * mmap.c - mmap, munmap, mprotect, madvise: arguments checked as Linux checks them, VMAs cut and
 * joined, entries changed, the client's TLB told.
 *
 * Order, so that a crash leaves something whole: entries go before the VMA that permits them; a VMA
 * comes before its entries. A call cut short by a crash is served again by the next worker and finds
 * part of its work done; mmap notes in the journal which place it chose.
 */
#include "daemon/virt/internal.h"
#include "daemon/virt/resume.h"

#define PROT_ALL (PROT_READ | PROT_WRITE | PROT_EXEC)
/* <linux/mman.h>: the page may hold atomic operations; means nothing on x86. */
#define PROT_SEM 0x8
#define MAP_FLAGS_UNSUPPORTED (MAP_GROWSDOWN | MAP_LOCKED | MAP_HUGETLB | MAP_32BIT)

/* [addr, addr + len) rounded up to pages, inside the window and outside the direct map. */
static int range_check(const struct mm *mm, uint64_t addr, uint64_t len, uint64_t *end)
{
	if (!IS_ALIGNED(addr, ARENA_PAGE_SIZE) || !range_ok(addr, len))
		return ARENA_E_INVALID;
	*end = ALIGN_UP(addr + len, ARENA_PAGE_SIZE);
	if (*end <= addr || !window_contains(mm, addr, *end))
		return ARENA_E_INVALID;
	return direct_contains(mm, addr, *end) ? ARENA_E_INVALID : 0;
}

/* ---- munmap ------------------------------------------------------------------------------------------ */

static int zap_and_flush(struct mm *mm, uint64_t start, uint64_t end)
{
	bool any;
	int r = zap_range(mm, start, end, &any);

	if (any)
		flush_post(mm, ARENA_FLUSH_UNMAP, start, end);
	return r;
}

static int unmap_range(struct mm *mm, uint64_t start, uint64_t end)
{
	struct vma *v = vma_find(mm, start), *next;
	int r;

	if (!v || v->start >= end)
		return 0;
	r = vma_isolate(mm, start, end);
	if (!r)
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

/* What is mapped: fills in object, slot, pgoff, flags. */
static int mmap_source(struct mm *mm, const struct vm_mmap_args *a, uint64_t len,
		       struct vma_template *t)
{
	bool shared = (a->flags & MAP_TYPE) == MAP_SHARED;
	struct handle *h;

	t->prot = a->prot & PROT_ALL;
	t->flags = VM_MAYWRITE | (shared ? VM_SHARED : 0) |
		   (a->flags & MAP_NORESERVE ? VM_NORESERVE : 0);
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
	return 0;
}

/* Shared anonymous memory: the object is not referred to by anything yet, the caller releases it
 * on failure. */
static int mmap_object(struct mm *mm, struct vma_template *t)
{
	struct credentials cred = {.uid = mm->record->uid, .gid = mm->record->gid};
	int r = object_create(mm->virt, OBJECT_ANON, mm->domain, NULL, &cred, 0600, &t->object);

	return r ? r : object_resize(t->object, t->end - t->start, mm, NULL);
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

static int mmap_place(struct mm *mm, const struct vm_mmap_args *a, uint64_t len,
		      struct vma_template *t)
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
	uint32_t type = a->flags & MAP_TYPE;

	if (!a->len || (type != MAP_SHARED && type != MAP_PRIVATE))
		return ARENA_E_INVALID;
	if (a->flags & MAP_FLAGS_UNSUPPORTED)
		return ARENA_E_UNSUPPORTED;
	if (a->offset < 0 || !IS_ALIGNED((uint64_t)a->offset, ARENA_PAGE_SIZE))
		return ARENA_E_INVALID;
	if (!a->segment && !(a->flags & MAP_ANONYMOUS))
		return ARENA_E_NO_DEVICE;
	*len = ALIGN_UP(a->len, ARENA_PAGE_SIZE);
	if (!*len || *len > ARENA_WINDOW_SIZE_DEFAULT * 4)
		return ARENA_E_NO_MEMORY;
	return (uint64_t)a->offset + *len > INT64_MAX ? ARENA_E_OVERFLOW_ : 0;
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
	r = mmap_source(mm, a, len, &t);
	if (!r)
		r = mmap_place(mm, a, len, &t);
	if (r)
		return r;
	t.end = t.start + len;
	own = !a->segment && (t.flags & VM_SHARED);
	if (!a->segment && !own)
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
		if (own && t.object)
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

/* v lies wholly inside the range to change. */
static int protect_vma(struct vma *v, uint32_t prot)
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
	vma_set_access(v, v->flags, prot);
	pgtable_walk(mm, start, end, protect_one, &p);
	if (p.any)
		flush_post(mm,
			   lost == PROT_WRITE && !gained && (prot & PROT_READ)
				   ? ARENA_FLUSH_WRPROTECT
				   : ARENA_FLUSH_UNMAP,
			   start, end);
	return 0;
}

int vm_mprotect(struct mm *mm, uint64_t addr, uint64_t len, uint32_t prot)
{
	uint64_t end = ALIGN_UP(addr + len, ARENA_PAGE_SIZE), at = addr;
	struct vma *v;
	int r;

	CONTROL_THREAD();
	if (!IS_ALIGNED(addr, ARENA_PAGE_SIZE))
		return ARENA_E_INVALID;
	if (!len)
		return 0;
	if (!range_ok(addr, len) || end <= addr)
		return ARENA_E_NOT_MAPPED;
	if (prot & ~(uint32_t)(PROT_ALL | PROT_SEM))
		return ARENA_E_INVALID;
	/* Not the program's to change: such a range is refused whole, as munmap does. */
	if (direct_contains(mm, addr, end))
		return ARENA_E_INVALID;
	prot &= PROT_ALL;
	while (at < end) {
		v = vma_find(mm, at);
		if (!v || v->start > at)
			return ARENA_E_NOT_MAPPED;
		if ((prot & PROT_WRITE) && !(v->flags & VM_MAYWRITE))
			return ARENA_E_ACCESS;
		if (v->prot == prot) {
			at = v->end;
			continue;
		}
		r = vma_isolate(mm, at, MIN(end, v->end));
		if (r)
			return r;
		v = vma_find(mm, at);
		at = v->end;
		r = protect_vma(v, prot);
		if (r)
			return r;
		vma_merge(v);
	}
	return 0;
}

/* ---- madvise -------------------------------------------------------------------------------------------- */

struct advice {
	int advice;
	uint32_t set, clear;
};

static const struct advice flag_advice[] = {
	{MADV_NORMAL, 0, VM_SEQ_READ | VM_RAND_READ},  {MADV_RANDOM, VM_RAND_READ, VM_SEQ_READ},
	{MADV_SEQUENTIAL, VM_SEQ_READ, VM_RAND_READ},  {MADV_HUGEPAGE, VM_HUGEPAGE, VM_NOHUGEPAGE},
	{MADV_NOHUGEPAGE, VM_NOHUGEPAGE, VM_HUGEPAGE},
};

static const struct advice *find_advice(int advice)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(flag_advice); i++)
		if (flag_advice[i].advice == advice)
			return &flag_advice[i];
	return NULL;
}

static int advise_range(struct mm *mm, struct vma *v, uint64_t start, uint64_t end, int advice)
{
	const struct advice *a = find_advice(advice);
	uint32_t flags;
	int r;

	if (advice == MADV_DONTNEED)
		return zap_and_flush(mm, start, end);
	if (!a)
		return 0;
	flags = (v->flags | a->set) & ~a->clear;
	if (flags == v->flags)
		return 0;
	r = vma_isolate(mm, start, end);
	if (r)
		return r;
	v = vma_find(mm, start);
	vma_set_access(v, flags, v->prot);
	vma_merge(v);
	return 0;
}

int vm_madvise(struct mm *mm, uint64_t addr, uint64_t len, int advice, unsigned cpu)
{
	uint64_t end = ALIGN_UP(addr + len, ARENA_PAGE_SIZE), at = addr;
	bool hole = false;
	int r;

	CONTROL_THREAD();
	(void)cpu;
	if (advice != MADV_DONTNEED && advice != MADV_WILLNEED && !find_advice(advice))
		return ARENA_E_INVALID;
	if (!IS_ALIGNED(addr, ARENA_PAGE_SIZE) || addr + len < addr || end < addr)
		return ARENA_E_INVALID;
	if (addr < end && direct_contains(mm, addr, end))
		return ARENA_E_INVALID;
	while (at < end) {
		struct vma *v = vma_find(mm, at);
		uint64_t stop;

		if (!v || v->start >= end) {
			hole = true;
			break;
		}
		if (v->start > at) {
			hole = true;
			at = v->start;
		}
		stop = MIN(end, v->end);
		r = advise_range(mm, v, at, stop, advice);
		if (r)
			return r;
		at = stop;
	}
	return hole ? ARENA_E_NOT_MAPPED : 0;
}
