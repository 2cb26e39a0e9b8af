/* SPDX-License-Identifier: MIT */
/*
 * mremap.c - mremap(2): shrink, grow in place, move, duplicate.
 *
 * A move takes entries, not bytes:
 *
 *	destination unmapped, source cut out    what a repetition does again without harm
 *	room reserved for all that follows      the last step that may fail
 *	plan noted in the journal
 *	VMA of the destination
 *	entry by entry: installed there, then taken away here
 *	VMA of the source removed
 *	flush of the source
 *
 * An entry's reference of its frame goes with it, so no count changes, and a frame that is
 * unmapped at its new place waits for a flush that was posted after this one. Between the two
 * stores of one entry both are there: who dies then leaves a frame with two entries, which recovery
 * counts, and the finishing call drops the old one. A frame keeps its index, because the VMA keeps
 * its pgoff (vma_anon_index()). A leaf moves whole where old and new address are alike modulo 2 MiB,
 * else it is split.
 *
 * The plan says everything the rest needs, so a call found PREPARED is finished from it and not from its
 * request, which the client may have changed. It may cover several VMAs, each a piece that is moved
 * as above; all their destinations are unmapped before it is noted. So a VMA at a piece's
 * destination was inserted by the plan, and a piece without source is done.
 */
#include "daemon/virt/resume.h"

enum plan_kind {
	PLAN_MOVE, /* the source ends */
	PLAN_KEEP, /* MREMAP_DONTUNMAP: it stays, empty */
	PLAN_DUP,  /* old_len 0: it stays as it is */
	PLAN_GROW, /* in place: new == old */
};

struct plan {
	uint64_t old, len, new_addr, new_len;
	enum plan_kind kind;
};

static void plan_note(struct mm *mm, const struct plan *p)
{
	uint64_t arg[JOURNAL_ARGS] = {call_tag(VIRT_CALL_MREMAP, mm->id),
				      p->old,
				      p->len,
				      p->new_addr,
				      p->new_len,
				      (uint64_t)p->kind};

	journal_prepare(mm->virt->state, JOURNAL_ARGS, arg);
}

static bool plan_found(struct mm *mm, struct plan *p)
{
	uint64_t arg[JOURNAL_ARGS];

	if (!call_resume(mm->virt, VIRT_CALL_MREMAP, mm->id, arg) || arg[5] > PLAN_GROW)
		return false;
	*p = (struct plan){.old = arg[1],
			   .len = arg[2],
			   .new_addr = arg[3],
			   .new_len = arg[4],
			   .kind = (enum plan_kind)arg[5]};
	return true;
}

/* ---- moving entries -------------------------------------------------------------------------------- */

struct move {
	const struct vma *vma; /* the source */
	uint64_t start, end, delta;
	uint64_t tables; /* of the last level, at the source */
	uint64_t last;   /* 2 MiB of the last one counted */
	bool any;
};

/* Count what the source's entries hang from; split leaves that cannot move whole. */
static int measure_one(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	struct move *m = arg;

	m->any = true;
	if (ref->level && (m->delta & ~ARENA_LEAF_MASK)) {
		int r = pgtable_split_leaf(mm, ref, addr);

		if (r)
			return r;
	} else if (ref->level) {
		return 0;
	}
	if (addr >> ARENA_LEAF_SHIFT != m->last) {
		m->last = addr >> ARENA_LEAF_SHIFT;
		m->tables++;
	}
	return 0;
}

/* After this the entries of [start, end) can be moved without anything that may fail. */
static int move_reserve(struct mm *mm, struct move *m)
{
	uint64_t upper = ((m->end - m->start) >> 30) + ((m->end - m->start) >> 39) + 4;
	int r = split_leaf_at(mm, m->start);

	m->last = UINT64_MAX;
	m->tables = 0;
	if (!r)
		r = split_leaf_at(mm, m->end);
	if (!r)
		r = pgtable_walk(mm, m->start, m->end, measure_one, m);
	if (r || !m->any)
		return r;
	/* What lies in one table here may lie in two there. */
	r = pgtable_reserve(mm, (uint32_t)(2 * m->tables + upper));
	/* Tables that become empty; and the entry that a crash left at both places. */
	return r ? r : limbo_reserve(mm, (uint32_t)(m->tables + upper) + 2);
}

static int move_one(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	const struct move *m = arg;
	struct pte_ref to;

	BUG_ON(pgtable_get(mm, addr + m->delta, ref->level, &to));
	if (*to.entry) {
		BUG_ON(arena_pte_pfn(*to.entry) != arena_pte_pfn(*ref->entry));
		unmap_entry(m->vma, ref);
		return 0;
	}
	pte_install(mm, &to, *ref->entry);
	pte_clear(mm, ref);
	return 0;
}

static void move_entries(struct mm *mm, struct move *m)
{
	if (!m->any)
		return;
	m->vma = vma_find(mm, m->start);
	cow_forget(mm, m->start, m->end);
	pgtable_walk(mm, m->start, m->end, move_one, m);
	pgtable_unreserve(mm);
	flush_post(mm, ARENA_FLUSH_UNMAP, m->start, m->end);
}

/* ---- one VMA, or part of one ------------------------------------------------------------------------ */

static struct vma *vma_at(const struct mm *mm, uint64_t addr)
{
	struct vma *v = vma_find(mm, addr);

	return v && v->start <= addr ? v : NULL;
}

/* What is left of a piece once its destination's VMA is there. `m` is reserved. */
static void piece_finish(struct mm *mm, const struct plan *p, struct move *m)
{
	struct vma *v;

	move_entries(mm, m);
	v = vma_at(mm, p->old);
	BUG_ON(!v || v->start != p->old || v->end != p->old + p->len);
	if (p->kind == PLAN_MOVE) {
		vma_remove(v);
		area_freed(mm, p->old, p->old + p->len);
		return;
	}
	if (v->flags & VM_LOCKED)
		vma_set_access(v, v->flags & ~VM_LOCKED_MASK, v->prot);
	vma_merge(v);
}

static int piece_insert(struct mm *mm, const struct plan *p, const struct vma *from, bool touched)
{
	uint64_t skip = p->kind == PLAN_GROW ? p->len : 0;
	struct vma_template t = {
		.start = p->new_addr + skip,
		.end = p->new_addr + p->new_len,
		.pgoff = vma_pgoff(from, p->old) + (skip >> ARENA_PAGE_SHIFT),
		.flags = from->flags,
		.prot = from->prot,
		.slot = from->slot,
		.object = from->object,
		.origin = from->origin,
	};

	/*
	 * Memory that was never touched is as if it had been mapped there, and merges with what
	 * is there. Not beside its source: that one must remain a VMA of its own to be removed.
	 */
	if (!from->object && !from->origin && !(from->flags & VM_SPECIAL) && !touched &&
	    p->kind == PLAN_MOVE && p->new_addr != p->old + p->len &&
	    p->new_addr + p->new_len != p->old)
		t.pgoff = p->new_addr >> ARENA_PAGE_SHIFT;
	return vma_insert(mm, &t);
}

/* One VMA's part of the source, and its destination: free, or what a worker before us inserted there. */
static int piece_move(struct mm *mm, const struct plan *p)
{
	struct move m = {.start = p->old, .end = p->old + p->len, .delta = p->new_addr - p->old};
	/* Also what recovery has merged again. */
	int r = vma_isolate(mm, p->old, p->old + p->len);

	if (!r)
		r = move_reserve(mm, &m);
	if (!r && !vma_at(mm, p->new_addr))
		r = piece_insert(mm, p, vma_at(mm, p->old), m.any);
	if (r) {
		pgtable_unreserve(mm);
		vma_merge(vma_at(mm, p->old));
		return r;
	}
	piece_finish(mm, p, &m);
	return 0;
}

/* The whole plan, or what is left of it. */
static int plan_run(struct mm *mm, const struct plan *p)
{
	uint64_t end = p->old + p->len, from = p->old;
	int r = 0;

	if (p->kind == PLAN_DUP || p->kind == PLAN_GROW) {
		if (vma_at(mm, p->new_addr + (p->kind == PLAN_GROW ? p->len : 0)))
			return 0;
		return piece_insert(mm, p, vma_at(mm, p->old), true);
	}
	while (from < end && !r) {
		const struct vma *v = vma_find(mm, from);
		struct plan piece = *p;

		if (!v || v->start >= end)
			break;
		piece.old = MAX(v->start, from);
		from = MIN(v->end, end);
		piece.len = from - piece.old;
		piece.new_addr = p->new_addr + (piece.old - p->old);
		/* Only a single one grows as it moves. */
		piece.new_len = p->new_len > p->len ? p->new_len : piece.len;
		r = piece_move(mm, &piece);
	}
	return r;
}

static int plan_start(struct mm *mm, const struct plan *p)
{
	plan_note(mm, p);
	return plan_run(mm, p);
}

/* ---- what the man page says --------------------------------------------------------------------------- */

/* The VMA may be moved or grown as asked: vma_to_resize of Linux. */
static int check_resize(struct mm *mm, const struct vm_mremap_args *a, uint64_t old_len)
{
	const struct vma *v = vma_at(mm, a->old);
	uint64_t more = a->new_len > old_len ? (a->new_len - old_len) >> ARENA_PAGE_SHIFT : 0;
	bool keep = a->flags & MREMAP_DONTUNMAP;
	int r;

	if (!v)
		return ARENA_E_FAULT;
	if (!old_len && !(v->flags & VM_SHARED))
		return ARENA_E_INVALID;
	/* As a driver's, it may be moved, and is never expanded. */
	if (v->flags & VM_SPECIAL && (keep || more))
		return keep ? ARENA_E_INVALID : ARENA_E_FAULT;
	if (old_len > v->end - a->old)
		return ARENA_E_FAULT;
	if ((v->object || v->origin) &&
	    vma_pgoff(v, a->old) + (a->new_len >> ARENA_PAGE_SHIFT) > UINT32_MAX)
		return ARENA_E_INVALID;
	if (keep)
		more = old_len >> ARENA_PAGE_SHIFT;
	if (!more)
		return 0;
	r = keep ? 0 : mm_may_lock(mm, v->flags, more);
	if (!r)
		r = mm_may_expand(mm, v->flags, v->prot, more);
	if (!r && (v->flags & VM_ACCOUNT))
		r = vm_enough_memory(mm, more);
	return r;
}

static int move_to(struct mm *mm, const struct vm_mremap_args *a, uint64_t old_len,
		   uint64_t new_addr)
{
	struct plan p = {
		.old = a->old,
		.len = old_len,
		.new_addr = new_addr,
		.new_len = a->new_len,
		.kind = !old_len                      ? PLAN_DUP
			: a->flags & MREMAP_DONTUNMAP ? PLAN_KEEP
						      : PLAN_MOVE,
	};

	/* As Linux: in the worst case the source is cut in three. */
	if (!map_count_ok(mm, 6))
		return ARENA_E_NO_MEMORY;
	return plan_start(mm, &p);
}

/* A single VMA, or part of one. Everything is checked before the destination is unmapped. */
static int move_fixed(struct mm *mm, const struct vm_mremap_args *a, uint64_t old_len)
{
	int r = check_resize(mm, a, MIN(old_len, a->new_len));

	if (!r && !map_count_ok(mm, 6))
		r = ARENA_E_NO_MEMORY;
	if (!r)
		r = unmap_range(mm, a->new_addr, a->new_addr + a->new_len);
	if (!r && old_len > a->new_len) {
		r = unmap_range(mm, a->old + a->new_len, a->old + old_len);
		old_len = a->new_len;
	}
	/* With old_len 0 the destination may have been the source. */
	if (!r && !vma_at(mm, a->old))
		return ARENA_E_FAULT;
	return r ? r : move_to(mm, a, old_len, a->new_addr);
}

/* Several VMAs, which keep their distances: since Linux 6.17, where nothing is resized. What lies at
 * the destination of a hole stays. */
static int move_many(struct mm *mm, const struct vm_mremap_args *a)
{
	uint64_t end = a->old + a->new_len, from = a->old;
	int r = 0;

	while (from < end && !r) {
		const struct vma *v = vma_find(mm, from);
		struct vm_mremap_args piece = *a;

		if (!v || v->start >= end)
			break;
		piece.old = MAX(v->start, from);
		from = MIN(v->end, end);
		piece.new_len = from - piece.old;
		piece.new_addr += piece.old - a->old;
		r = check_resize(mm, &piece, piece.new_len);
		if (!r)
			r = unmap_range(mm, piece.new_addr, piece.new_addr + piece.new_len);
	}
	return r ? r : move_to(mm, a, a->new_len, a->new_addr);
}

static int remap_fixed(struct mm *mm, const struct vm_mremap_args *a, uint64_t old_len)
{
	const struct vma *v = vma_at(mm, a->old);

	if (old_len == a->new_len && old_len > v->end - a->old)
		return move_many(mm, a);
	return move_fixed(mm, a, old_len);
}

/* Grow where it is, if nothing is in the way. ARENA_E_BUSY: something is. */
static int grow_in_place(struct mm *mm, const struct vm_mremap_args *a, uint64_t old_len)
{
	const struct vma *v = vma_at(mm, a->old);
	uint64_t end = a->old + a->new_len;
	struct plan p = {.old = a->old,
			 .len = old_len,
			 .new_addr = a->old,
			 .new_len = a->new_len,
			 .kind = PLAN_GROW};

	if (a->old + old_len != v->end || !old_len || !window_contains(mm, a->old, end) ||
	    direct_contains(mm, a->old, end) || !area_is_free(mm, v->end, end))
		return ARENA_E_BUSY;
	return plan_start(mm, &p);
}

static int resize(struct mm *mm, const struct vm_mremap_args *a, uint64_t old_len, uint64_t *out)
{
	int r;

	*out = a->old;
	if (old_len == a->new_len)
		return 0;
	if (old_len > a->new_len)
		return unmap_range(mm, a->old + a->new_len, a->old + old_len);
	r = check_resize(mm, a, old_len);
	if (!r)
		r = grow_in_place(mm, a, old_len);
	if (r != ARENA_E_BUSY)
		return r;
	if (!(a->flags & MREMAP_MAYMOVE))
		return ARENA_E_NO_MEMORY;
	r = area_find(mm, a->new_len, 0, out);
	return r ? r : move_to(mm, a, old_len, *out);
}

/* Where the flags make new_addr count. */
static int check_destination(const struct mm *mm, const struct vm_mremap_args *a, uint64_t old_len)
{
	uint64_t end = a->new_addr + a->new_len;

	if (!IS_ALIGNED(a->new_addr, ARENA_PAGE_SIZE) || end < a->new_addr)
		return ARENA_E_INVALID;
	if (a->old + old_len > a->new_addr && end > a->old)
		return ARENA_E_INVALID;
	if (!(a->flags & MREMAP_FIXED))
		return 0;
	return window_contains(mm, a->new_addr, end) && !direct_contains(mm, a->new_addr, end)
		       ? 0
		       : ARENA_E_INVALID;
}

static int check_args(const struct mm *mm, struct vm_mremap_args *a, uint64_t *old_len)
{
	const uint64_t user_end = UINT64_C(1) << 47;
	uint32_t f = a->flags;

	if (f & ~(uint32_t)(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP))
		return ARENA_E_INVALID;
	if ((f & (MREMAP_FIXED | MREMAP_DONTUNMAP)) && !(f & MREMAP_MAYMOVE))
		return ARENA_E_INVALID;
	if (!IS_ALIGNED(a->old, ARENA_PAGE_SIZE))
		return ARENA_E_INVALID;
	*old_len = ALIGN_UP(a->old_len, ARENA_PAGE_SIZE);
	a->new_len = ALIGN_UP(a->new_len, ARENA_PAGE_SIZE);
	if (!a->new_len || a->new_len > user_end)
		return ARENA_E_INVALID;
	if ((f & MREMAP_DONTUNMAP) && *old_len != a->new_len)
		return ARENA_E_INVALID;
	if (f & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
		int r = check_destination(mm, a, *old_len);

		if (r)
			return r;
	}
	if (!vma_at(mm, a->old))
		return ARENA_E_FAULT;
	if (*old_len > user_end || a->old + *old_len > user_end)
		return ARENA_E_INVALID;
	/* What would be taken away lies in the window, and not in the direct map. */
	if (*old_len && (!window_contains(mm, a->old, a->old + *old_len) ||
			 direct_contains(mm, a->old, a->old + *old_len)))
		return ARENA_E_INVALID;
	return 0;
}

int vm_mremap(struct mm *mm, const struct vm_mremap_args *args, uint64_t *out)
{
	struct vm_mremap_args a = *args;
	uint64_t old_len;
	struct plan p;
	int r;

	CONTROL_THREAD();
	if (plan_found(mm, &p)) {
		*out = p.new_addr;
		return plan_run(mm, &p);
	}
	r = check_args(mm, &a, &old_len);
	if (r)
		return r;
	if (a.flags & MREMAP_FIXED) {
		*out = a.new_addr;
		return remap_fixed(mm, &a, old_len);
	}
	if (!(a.flags & MREMAP_DONTUNMAP))
		return resize(mm, &a, old_len, out);
	r = check_resize(mm, &a, old_len);
	if (!r)
		r = area_find(mm, a.new_len, a.new_addr, out);
	return r ? r : move_to(mm, &a, old_len, *out);
}
