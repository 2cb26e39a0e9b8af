/* SPDX-License-Identifier: MIT */
/*
 * fault.c - page faults: what a client asks for when its entry is absent or forbids the access.
 *
 * Anonymous memory gets a zeroed 2 MiB leaf where one fits (the zero page, zero.c, until it is written, where
 * that is on), and single frames elsewhere. Objects get their frame, made at the first touch. Because a trap and a call cost far more than a frame, a
 * fault that continues a sequential pattern fills ahead: four times as much as the last one did, up
 * to fill_ahead_leaves and a quarter of what is free, taking only memory that is ready (zeroed, or a hole that the host zeroes at
 * the touch), in contiguous frames, so that the client maps all of it in one call.
 *
 * A frame is claimed in mem_map before its entry is stored, so a crash between them leaves a
 * claimed frame that nothing points to, which recovery frees.
 */
#include <signal.h>

#include "daemon/virt/file.h"
#include "daemon/virt/frozen.h"

/* One fault's state. */
struct fault {
	struct mm *mm;
	struct vma *vma;
	uint64_t addr; /* page aligned */
	uint32_t access;
	unsigned cpu;
	struct fault_refusal *refusal;
	uint64_t flush_start, flush_end; /* zeros that were mapped here are replaced */
};

static int refuse(struct fault *f, int signo, int code)
{
	f->refusal->signo = signo;
	f->refusal->code = code;
	return 0;
}

static int frame_alloc(const struct fault *f, uint64_t addr, unsigned order, pfn_t hint,
		       unsigned gfp, struct alloc_result *out)
{
	const struct vma *vma = f->vma;
	struct object *o = vma->object;
	struct alloc_request rq;

	gfp |= ARENA_GFP_ZERO;
	if (!o)
		return anon_alloc(vma, addr, order, gfp, f->cpu, hint, out);
	rq = (struct alloc_request){
		.domain = o->domain,
		.gfp = gfp | GFP_USER_MOVABLE,
		.order = order,
		.cpu = f->cpu,
		.hint = hint,
		.owner = PG_OBJECT,
		.mapping = o->id,
		.index = (uint32_t)vma_pgoff(vma, addr),
	};
	policy_apply(f->mm, &rq);
	return alloc_pages(f->mm->virt->phys, &rq, out);
}

/* Nothing is there, or zeros where this is a write fault. */
static bool entry_is_free(const struct fault *f, uint64_t entry)
{
	return !entry || (f->access == PROT_WRITE && entry_is_zero(f->mm->virt, entry));
}

/* May the 2 MiB around addr be one leaf of this VMA? Nothing may be there yet but zeros. */
static bool leaf_possible(const struct fault *f, uint64_t addr)
{
	const struct vma *vma = f->vma;
	uint64_t base = addr & ARENA_LEAF_MASK;
	struct pte_ref ref;

	if (base < vma->start || base + ARENA_LEAF_SIZE > vma->end || (vma->flags & VM_NOHUGEPAGE))
		return false;
	if (vma->object &&
	    (vma_pgoff(vma, base) % ARENA_LEAF_PAGES ||
	     !object_leaf_fits(vma->object, vma_pgoff(vma, base) / ARENA_LEAF_PAGES)))
		return false;
	pgtable_lookup(vma->mm, base, &ref);
	return ref.level >= 1 && entry_is_free(f, *ref.entry);
}

static void flush_later(struct fault *f, uint64_t start, uint64_t end)
{
	f->flush_start = f->flush_end ? MIN(f->flush_start, start) : start;
	f->flush_end = MAX(f->flush_end, end);
}

/* Map a frame the caller holds a reference of; the reference goes with it. */
static int install(struct fault *f, uint64_t addr, pfn_t pfn, bool leaf, bool hole, bool ahead)
{
	uint64_t entry = vma_entry(f->vma, pfn, leaf, hole, ahead, f->vma->object != NULL);
	struct pte_ref ref;
	int r;

	/* A leaf of zeros is in the way of a single frame. */
	if (!leaf && pgtable_lookup(f->mm, addr, &ref) && ref.level)
		r = pgtable_split_leaf(f->mm, &ref, addr);
	else
		r = pgtable_get(f->mm, addr, leaf ? 1 : 0, &ref);
	if (r)
		return r;
	if (!*ref.entry) {
		map_frame(f->vma, &ref, pfn, entry);
		return 0;
	}
	flush_later(f, addr, addr + (leaf ? ARENA_LEAF_SIZE : ARENA_PAGE_SIZE));
	remap_entry(f->vma, &ref, pfn, entry);
	return 0;
}

/* ---- making new frames ---------------------------------------------------------------------------- */

/* A new frame (or leaf) for addr, entered in the object if there is one, and mapped. */
static int make_frame(struct fault *f, uint64_t addr, bool leaf, pfn_t hint, unsigned gfp,
		      bool ahead, pfn_t *out)
{
	struct phys *p = f->mm->virt->phys;
	struct object *o = f->vma->object;
	struct alloc_result got;
	int r;

	r = frame_alloc(f, addr, leaf ? ARENA_LEAF_ORDER : 0, hint, gfp, &got);
	if (r)
		return r;
	if (o) {
		r = object_add_frame(o, vma_pgoff(f->vma, addr), got.pfn, leaf);
		if (r) {
			put_page(p, got.pfn);
			return r;
		}
		get_page(p, got.pfn);
	}
	r = install(f, addr, got.pfn, leaf, got.hole, ahead);
	if (r) {
		/* An object keeps its frame without the entry; anonymous memory gives it back. */
		put_page(p, got.pfn);
		return r;
	}
	*out = got.pfn;
	return 0;
}

#define AHEAD_GROWTH 4
#define AHEAD_SHARE 4 /* one fault takes at most this part of the free memory */

static uint32_t window_next(struct vma *vma, uint64_t addr, uint64_t max)
{
	uint32_t w = 1;

	if (vma->flags & VM_RAND_READ)
		return 1;
	if (addr == vma->ahead_next && vma->ahead_window)
		w = (uint32_t)MIN((uint64_t)vma->ahead_window * AHEAD_GROWTH,
				  MAX(max, UINT64_C(1)));
	else if (vma->flags & VM_SEQ_READ)
		w = (uint32_t)MIN(UINT64_C(4), MAX(max, UINT64_C(1)));
	return w;
}

/* Where a sequence goes on in addresses, it had better in frames, too. */
static pfn_t ahead_hint(const struct vma *vma, uint64_t addr)
{
	return addr == vma->ahead_next && vma->ahead_window ? vma->ahead_pfn : PFN_NONE;
}

static void ahead_note(struct vma *vma, uint64_t next, uint32_t window, pfn_t pfn)
{
	vma->ahead_next = next;
	vma->ahead_window = window;
	vma->ahead_pfn = pfn;
}

static uint64_t most_leaves(const struct virt *v)
{
	return MIN(state_tunable(v->state, TUNABLE_FILL_AHEAD_LEAVES),
		   phys_free_pages(v->phys) / AHEAD_SHARE / ARENA_LEAF_PAGES);
}

static int fill_leaves(struct fault *f)
{
	struct vma *vma = f->vma;
	struct state *s = f->mm->virt->state;
	uint64_t addr = f->addr & ARENA_LEAF_MASK;
	uint32_t n = window_next(vma, addr, most_leaves(f->mm->virt)), i;
	pfn_t pfn = PFN_NONE;
	int r;

	r = make_frame(f, addr, true, ahead_hint(vma, addr), GFP_HOLE_OK | ARENA_GFP_NOWARN, false,
		       &pfn);
	if (r) {
		if (r == ARENA_E_NO_MEMORY)
			state_event(s, EV_THP_FAULT_FALLBACK, 1);
		return r;
	}
	state_event(s, EV_THP_FAULT_ALLOC, 1);
	for (i = 1; i < n; i++) {
		uint64_t next = addr + i * ARENA_LEAF_SIZE;
		struct chunk *chunk = NULL;

		if (!leaf_possible(f, next))
			break;
		/* Even one single frame of the object there rules a leaf out. */
		if (vma->object)
			object_frame(vma->object, vma_pgoff(vma, next), &chunk);
		if (chunk)
			break;
		if (make_frame(f, next, true, pfn + ARENA_LEAF_PAGES,
			       GFP_HOLE_OK | GFP_READY_ONLY | ARENA_GFP_NOWARN, true, &pfn))
			break;
		state_event(s, EV_ARENA_FILL_AHEAD, ARENA_LEAF_PAGES);
	}
	ahead_note(vma, addr + i * ARENA_LEAF_SIZE, i, pfn + ARENA_LEAF_PAGES);
	return 0;
}

static bool entry_empty(const struct fault *f, uint64_t addr)
{
	struct pte_ref ref;

	return !pgtable_lookup(f->mm, addr, &ref) || entry_is_free(f, *ref.entry);
}

/*
 * Single frames. Where leaves were not turned off, a fault takes its aligned neighbourhood of up to
 * fill_ahead_pages too: kernel mappings are scarce in the client (vm.max_map_count).
 */
static int fill_pages(struct fault *f)
{
	struct vma *vma = f->vma;
	struct state *s = f->mm->virt->state;
	uint64_t max = state_tunable(s, TUNABLE_FILL_AHEAD_PAGES), end, addr;
	uint32_t n = window_next(vma, f->addr, max), filled = 1;
	pfn_t pfn = PFN_NONE;
	struct chunk *chunk;
	int r;

	if (!(vma->flags & (VM_NOHUGEPAGE | VM_RAND_READ)))
		n = (uint32_t)MAX(max, UINT64_C(1));
	r = make_frame(f, f->addr, false, ahead_hint(vma, f->addr), 0, false, &pfn);
	if (r)
		return r;
	end = MIN(vma->end, (f->addr & ARENA_LEAF_MASK) + ARENA_LEAF_SIZE);
	if (vma->object) {
		uint64_t size = ALIGN_UP(vma->object->size, ARENA_PAGE_SIZE);

		end = MIN(end, f->addr + size - (vma_pgoff(vma, f->addr) << ARENA_PAGE_SHIFT));
	}
	for (addr = f->addr + ARENA_PAGE_SIZE; filled < n && addr < end; addr += ARENA_PAGE_SIZE) {
		if (!entry_empty(f, addr) ||
		    (vma->object &&
		     object_frame(vma->object, vma_pgoff(vma, addr), &chunk) != PFN_NONE))
			break;
		if (make_frame(f, addr, false, pfn + 1, ARENA_GFP_NOWARN, true, &pfn))
			break;
		filled++;
	}
	state_event(s, EV_ARENA_FILL_AHEAD, filled - 1);
	ahead_note(vma, f->addr + filled * ARENA_PAGE_SIZE, filled, pfn + 1);
	return 0;
}

/* ---- objects ------------------------------------------------------------------------------------------ */

#define MAP_AROUND_PAGES 16
#define MAP_AROUND_LEAVES 8u

static int map_object_leaf(struct fault *f, uint64_t addr, pfn_t leaf, bool ahead)
{
	struct phys *p = f->mm->virt->phys;
	int r;

	get_page(p, leaf);
	r = install(f, addr, leaf, true, pfn_to_page(p, leaf)->flags & PG_HOLE, ahead);
	if (r)
		put_page(p, leaf);
	return r;
}

/* Leaves that are there already cost nothing to map ahead but their entries. */
static int map_object_leaves(struct fault *f, pfn_t leaf)
{
	struct vma *vma = f->vma;
	struct state *s = f->mm->virt->state;
	uint64_t base = f->addr & ARENA_LEAF_MASK;
	uint32_t n = window_next(vma, base, state_tunable(s, TUNABLE_FILL_AHEAD_LEAVES)), i;
	struct chunk *chunk;
	int r = map_object_leaf(f, base, leaf, false);

	if (r)
		return r;
	if (!(vma->flags & VM_RAND_READ))
		n = MAX(n, MAP_AROUND_LEAVES);
	for (i = 1; i < n; i++) {
		uint64_t addr = base + i * ARENA_LEAF_SIZE;

		if (!leaf_possible(f, addr) ||
		    object_frame(vma->object, vma_pgoff(vma, addr), &chunk) == PFN_NONE ||
		    chunk->leaf == PFN_NONE || map_object_leaf(f, addr, chunk->leaf, true))
			break;
	}
	ahead_note(vma, base + i * ARENA_LEAF_SIZE, i, PFN_NONE);
	return 0;
}

/* Map frames the object has already, from f->addr on: a leaf if it can be one, else some pages. */
static int map_object_frames(struct fault *f, struct chunk *chunk)
{
	struct vma *vma = f->vma;
	struct phys *p = f->mm->virt->phys;
	uint64_t addr = f->addr;
	unsigned i;
	int r;

	if (chunk->leaf != PFN_NONE && leaf_possible(f, f->addr))
		return map_object_leaves(f, chunk->leaf);
	for (i = 0; i < MAP_AROUND_PAGES && addr < vma->end; i++, addr += ARENA_PAGE_SIZE) {
		uint64_t pgoff = vma_pgoff(vma, addr);
		pfn_t pfn;

		if (pgoff >= (vma->object->size + ARENA_PAGE_SIZE - 1) >> ARENA_PAGE_SHIFT ||
		    pgoff / ARENA_LEAF_PAGES != chunk->index || !entry_empty(f, addr))
			break;
		pfn = object_frame(vma->object, pgoff, &chunk);
		if (pfn == PFN_NONE)
			break;
		get_page(p, frame_head(f->mm->virt, pfn));
		r = install(f, addr, pfn, false, false, i > 0);
		if (r) {
			put_page(p, frame_head(f->mm->virt, pfn));
			return i ? 0 : r;
		}
	}
	return 0;
}

/* A private mapping's first write to a page of its object: copy it. */
static int copy_frame(const struct fault *f, pfn_t from)
{
	struct vma *vma = f->vma;
	struct alloc_result got;
	struct pte_ref ref;
	uint64_t entry;
	int r;

	r = anon_alloc(vma, f->addr, 0, GFP_NO_ZERO, f->cpu, PFN_NONE, &got);
	if (r)
		return r;
	memcpy(domain_address(f->mm->domain, got.pfn), domain_address(vma->object->domain, from),
	       ARENA_PAGE_SIZE);
	entry = vma_entry(vma, got.pfn, false, false, false, false);
	if (pgtable_lookup(f->mm, f->addr, &ref) && *ref.entry) {
		r = ref.level ? pgtable_split_leaf(f->mm, &ref, f->addr) : 0;
		if (!r)
			r = limbo_reserve(f->mm, 1 + ARENA_TABLE_LEVELS);
		if (r) {
			put_page(f->mm->virt->phys, got.pfn);
			return r;
		}
		remap_entry(vma, &ref, got.pfn, entry);
		flush_post(f->mm, ARENA_FLUSH_UNMAP, f->addr, f->addr + ARENA_PAGE_SIZE);
		return 0;
	}
	r = pgtable_get(f->mm, f->addr, 0, &ref);
	if (r) {
		put_page(f->mm->virt->phys, got.pfn);
		return r;
	}
	map_frame(vma, &ref, got.pfn, entry);
	return 0;
}

/* Making room for the copy must not take what is to be copied. */
static int copy_on_write(const struct fault *f, pfn_t from)
{
	struct virt *v = f->mm->virt;
	pfn_t head = frame_head(v, from);
	int r;

	get_page(v->phys, head);
	r = copy_frame(f, from);
	put_page(v->phys, head);
	return r;
}

int fault_copy(struct vma *vma, uint64_t addr, unsigned cpu, pfn_t from)
{
	const struct fault f = {.mm = vma->mm, .vma = vma, .addr = addr, .cpu = cpu};

	return copy_on_write(&f, from);
}

static int object_fault(struct fault *f)
{
	struct vma *vma = f->vma;
	uint64_t pgoff = vma_pgoff(vma, f->addr);
	struct chunk *chunk;
	pfn_t pfn;
	bool cow = f->access == PROT_WRITE && !(vma->flags & VM_SHARED);
	int r;

	if (pgoff >= (vma->object->size + ARENA_PAGE_SIZE - 1) >> ARENA_PAGE_SHIFT)
		return refuse(f, SIGBUS, BUS_ADRERR);
	pfn = object_frame(vma->object, pgoff, &chunk);
	if (pfn == PFN_NONE) {
		if (!chunk && leaf_possible(f, f->addr))
			r = fill_leaves(f);
		else
			r = ARENA_E_NO_MEMORY;
		/* A leaf that could not be mapped may be the object's all the same. */
		pfn = object_frame(vma->object, pgoff, &chunk);
		if (r == ARENA_E_NO_MEMORY && pfn == PFN_NONE) {
			r = fill_pages(f);
			pfn = object_frame(vma->object, pgoff, &chunk);
		}
		if (r || !cow)
			return r;
	}
	if (cow)
		return copy_on_write(f, pfn);
	return map_object_frames(f, chunk);
}

/* ---- anonymous memory ---------------------------------------------------------------------------- */

/*
 * A read fault: leaves of zeros, as far ahead as leaves of memory would be. They cost entries alone, and who
 * writes later has them replaced as far ahead, too.
 */
static int fill_zeros(const struct fault *f)
{
	struct vma *vma = f->vma;
	struct state *s = f->mm->virt->state;
	uint64_t addr = f->addr & ARENA_LEAF_MASK;
	uint32_t n = window_next(vma, addr, state_tunable(s, TUNABLE_FILL_AHEAD_LEAVES)), i;

	for (i = 0; i < n && (!i || leaf_possible(f, addr)); i++, addr += ARENA_LEAF_SIZE) {
		struct pte_ref ref;
		int r = pgtable_get(f->mm, addr, 1, &ref);

		if (r && !i)
			return r;
		if (r)
			break;
		pte_install(f->mm, &ref, zero_entry(vma, f->mm->virt->zero_pfn, true));
	}
	ahead_note(vma, addr, i, PFN_NONE);
	return 0;
}

static int anon_fault(struct fault *f)
{
	int r = ARENA_E_NO_MEMORY;

	if (leaf_possible(f, f->addr))
		r = f->access != PROT_WRITE && zero_allowed(f->vma) ? fill_zeros(f)
								    : fill_leaves(f);
	if (r == ARENA_E_NO_MEMORY)
		r = fill_pages(f);
	if (f->flush_end)
		flush_post(f->mm, ARENA_FLUSH_UNMAP, f->flush_start, f->flush_end);
	return r;
}

/* ---- entry ------------------------------------------------------------------------------------------------ */

bool entry_permits(uint64_t entry, uint32_t access)
{
	uint64_t need = ARENA_PTE_PRESENT;

	need |= access == PROT_WRITE  ? ARENA_PTE_WRITE
		: access == PROT_EXEC ? ARENA_PTE_EXEC
				      : ARENA_PTE_READ;
	return (entry & need) == need;
}

static bool vma_permits(const struct vma *vma, uint32_t access)
{
	uint32_t prot = vma->prot;

	/* As on x86: what may be written or executed may be read. */
	if (access == PROT_READ)
		return prot & (PROT_READ | PROT_WRITE | PROT_EXEC);
	return prot & access;
}

/*
 * An entry permits less than the VMA does, though its frame could be mapped as it is: a crash fell
 * between the VMA's new rights and the entry's, or the right was taken to copy the frame (collapse.c), and
 * who was about to do it will see a writable entry and begin anew. False: the frame must be another
 * one.
 */
static bool entry_allow(const struct fault *f, const struct pte_ref *ref)
{
	const struct vma *vma = f->vma;
	uint64_t fresh;

	/* frozen_raise() does more of them. */
	if (f->access == PROT_WRITE && vma->flags & VM_SHARED && vma->object &&
	    vma->object->kind != OBJECT_FILE)
		return false;
	fresh = entry_refresh(vma, f->addr, ref);
	if (!entry_permits(fresh, f->access))
		return false;
	pte_switch(f->mm, ref, fresh);
	return true;
}

static bool entry_is_anon(const struct mm *mm, uint64_t entry)
{
	pfn_t head = frame_head(mm->virt, (pfn_t)arena_pte_pfn(entry));

	return pfn_to_page(mm->virt->phys, head)->flags & PG_ANON;
}

/* A leaf of which a snapshot holds other pages is mapped without the right to write. */
static int shared_fault(struct fault *f)
{
	struct pte_ref ref;
	int r = object_fault(f);

	if (r || f->access != PROT_WRITE || !(f->vma->flags & VM_SHARED) ||
	    !pgtable_lookup(f->mm, f->addr, &ref) || !*ref.entry || *ref.entry & ARENA_PTE_WRITE)
		return r;
	return frozen_raise(f->vma, f->addr, &ref);
}

static int fault_resolve(struct fault *f)
{
	struct vma *vma = find_extend_vma(f->mm, f->addr);
	struct pte_ref ref;
	bool present;

	if (!vma || vma->start > f->addr)
		return refuse(f, SIGSEGV, SEGV_MAPERR);
	if (!vma_permits(vma, f->access))
		return refuse(f, SIGSEGV, SEGV_ACCERR);
	f->vma = vma;
	present = pgtable_lookup(f->mm, f->addr, &ref) && *ref.entry;
	if (present && (entry_permits(*ref.entry, f->access) || entry_allow(f, &ref)))
		return 0;
	if (vma->flags & VM_DIRECT)
		return refuse(f, SIGSEGV, SEGV_MAPERR);
	/* Whatever it has was there from the start. */
	if (vma->flags & VM_SPECIAL)
		return refuse(f, SIGBUS, BUS_ADRERR);
	if (f->access == PROT_WRITE) {
		int r = frozen_write(vma, f->addr, f->cpu);

		if (r)
			return r;
	}
	if (present && entry_is_zero(f->mm->virt, *ref.entry))
		return anon_fault(f);
	if (present && (vma->origin || entry_is_anon(f->mm, *ref.entry)))
		return cow_fault(vma, f->addr, f->cpu, &ref);
	if (present && vma->flags & VM_SHARED && vma->object->kind != OBJECT_FILE)
		return frozen_raise(vma, f->addr, &ref);
	if (vma->object && vma->object->kind == OBJECT_FILE)
		return file_fault(vma, f->addr, f->access, f->cpu, f->refusal);
	if (vma->object)
		return shared_fault(f);
	return anon_fault(f);
}

int fault_handle(struct mm *mm, uint64_t addr, uint32_t access, unsigned cpu,
		 struct fault_refusal *refusal)
{
	struct fault f = {
		.mm = mm,
		.addr = addr & ARENA_PAGE_MASK,
		.access = access,
		.cpu = cpu,
		.refusal = refusal,
	};

	return fault_resolve(&f);
}

int fault_make_own(struct vma *vma, uint64_t addr, unsigned cpu, bool *done)
{
	struct fault f = {.mm = vma->mm, .vma = vma, .addr = addr, .cpu = cpu};
	struct pte_ref ref;

	*done = false;
	if (vma->flags & (VM_SHARED | VM_SPECIAL) || !pgtable_lookup(f.mm, addr, &ref) ||
	    !*ref.entry)
		return 0;
	*done = true;
	if (f.mm->nr_settling) {
		int r = frozen_write(vma, addr, cpu);

		if (r)
			return r;
	}
	if (entry_is_zero(f.mm->virt, *ref.entry)) {
		f.access = PROT_WRITE;
		return anon_fault(&f);
	}
	if (!entry_is_anon(f.mm, *ref.entry) && !vma->origin)
		return copy_on_write(&f, (pfn_t)arena_pte_pfn(*ref.entry) +
						 (ref.level ? arena_table_index(addr, 0) : 0));
	if (!cow_exclusive(f.mm, addr, &ref))
		return cow_fault(vma, addr, cpu, &ref);
	*done = false;
	return 0;
}

int vm_fault(struct mm *mm, uint64_t addr, uint32_t access, unsigned cpu,
	     struct fault_refusal *refusal)
{
	int r;

	CONTROL_THREAD();
	*refusal = (struct fault_refusal){0};
	if (access != PROT_READ && access != PROT_WRITE && access != PROT_EXEC)
		return ARENA_E_INVALID;
	mm->faults++;
	state_event(mm->virt->state, EV_PGFAULT, 1);
	r = fault_handle(mm, addr, access, cpu, refusal);
	/* Linux would kill somebody for memory here; the program hears of it as of a bad disk. */
	if (r == ARENA_E_NO_MEMORY && virt_has_files(mm->virt)) {
		virt_flush_collect(mm->virt);
		r = fault_handle(mm, addr, access, cpu, refusal);
	}
	if (r != ARENA_E_NO_MEMORY)
		return r;
	/* What is taken from mappings is free when they are flushed: once more then. */
	if (files_shrink(mm->virt))
		return ARENA_E_AGAIN;
	*refusal = (struct fault_refusal){.signo = SIGBUS, .code = BUS_ADRERR};
	return 0;
}
