/* SPDX-License-Identifier: MIT */
/*
 * populate.c - faults without an access: MADV_POPULATE_*, mlock, pins. A bounded piece a call, so that no
 * client keeps the control thread; the caller goes on where one ended.
 */
#include <signal.h>

#include "daemon/virt/file.h"

#define POPULATE_FAULTS 64
#define POPULATE_LOOKS 65536 /* at entries that are there already */

/* One bounded piece's state. */
struct populate {
	struct mm *mm;
	uint64_t addr, end;
	enum populate_mode mode;
	unsigned cpu, faults;
};

/* The access that populates v; 0: this VMA is passed over. */
static uint32_t populate_access(const struct populate *p, const struct vma *v)
{
	if (p->mode == POPULATE_READ || p->mode == POPULATE_PIN_READ)
		return PROT_READ;
	if (p->mode == POPULATE_WRITE || p->mode == POPULATE_PIN_WRITE)
		return PROT_WRITE;
	if (v->flags & (VM_LOCKONFAULT | VM_SPECIAL))
		return 0;
	return (v->prot & PROT_WRITE) && !(v->flags & VM_SHARED) ? PROT_WRITE : PROT_READ;
}

static int populate_refused(const struct fault_refusal *refusal)
{
	if (refusal->signo == SIGBUS)
		return ARENA_E_FAULT;
	return refusal->code == SEGV_MAPERR ? ARENA_E_NOT_MAPPED : ARENA_E_ACCESS;
}

/* Have p->addr present; it moves on to what lies behind the entry. */
static int populate_entry(struct populate *p, uint32_t access)
{
	struct fault_refusal refusal = {0};
	struct pte_ref ref;

	if (!pgtable_lookup(p->mm, p->addr, &ref) || !entry_permits(*ref.entry, access)) {
		int r = fault_handle(p->mm, p->addr, access, p->cpu, &refusal);

		if (r || refusal.signo)
			return r ? r : populate_refused(&refusal);
		p->faults++;
		/* Skip what this fault filled ahead: the next look finds it present. */
	}
	if (p->mode == POPULATE_PIN_READ || p->mode == POPULATE_PIN_WRITE) {
		bool copied;
		int r = fault_make_own(vma_find(p->mm, p->addr), p->addr, p->cpu, &copied);

		if (r)
			return r;
		p->faults += copied;
	}
	if (!pgtable_lookup(p->mm, p->addr, &ref))
		return ARENA_E_NO_MEMORY;
	p->addr = ref.level ? (p->addr & ARENA_LEAF_MASK) + ARENA_LEAF_SIZE
			    : p->addr + ARENA_PAGE_SIZE;
	return 0;
}

static int populate_step(struct populate *p)
{
	const struct vma *v = vma_find(p->mm, p->addr);
	bool lock = p->mode == POPULATE_LOCK || p->mode == POPULATE_LOCK_ALL;
	uint64_t stop;
	uint32_t access;
	int r;

	/* A stack is not grown by this. */
	if (!v || v->start > p->addr) {
		if (!lock)
			return ARENA_E_NOT_MAPPED;
		p->addr = v ? MIN(v->start, p->end) : p->end;
		return 0;
	}
	/* As Linux: what is mapped by number has no page to be got. */
	if (!lock && VM_IS_PFN_MAP(v->flags) && v->flags & VM_PFNMAP)
		return p->mode == POPULATE_READ || p->mode == POPULATE_WRITE ? ARENA_E_INVALID
									     : ARENA_E_FAULT;
	access = populate_access(p, v);
	stop = v->end;
	r = access ? populate_entry(p, access) : 0;
	if (r == ARENA_E_WAIT_IO)
		return r;
	if (!access || (r && p->mode == POPULATE_LOCK_ALL)) {
		p->addr = stop;
		r = 0;
	}
	return r;
}

int vm_populate(struct mm *mm, uint64_t addr, uint64_t len, enum populate_mode mode, unsigned cpu,
		uint64_t *next)
{
	struct populate p = {
		.mm = mm,
		.addr = addr,
		.end = ALIGN_UP(addr + len, ARENA_PAGE_SIZE),
		.mode = mode,
		.cpu = cpu,
	};
	unsigned looks;
	int r = 0;

	CONTROL_THREAD();
	if (!IS_ALIGNED(addr, ARENA_PAGE_SIZE) || (len && (!range_ok(addr, len) || p.end < addr)))
		return ARENA_E_INVALID;
	for (looks = 0;
	     p.addr < p.end && p.faults < POPULATE_FAULTS && looks < POPULATE_LOOKS && !r; looks++)
		r = populate_step(&p);
	if (!r)
		*next = MIN(p.addr, p.end);
	if (r == ARENA_E_NO_MEMORY && virt_has_files(mm->virt))
		virt_flush_collect(mm->virt);
	if (r == ARENA_E_NO_MEMORY && files_shrink(mm->virt))
		return ARENA_E_AGAIN;
	return r;
}
