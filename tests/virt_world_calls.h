/* SPDX-License-Identifier: MIT */
/*
 * virt_world_calls.h - mremap, brk, mlock and pins of virt_world.h's clients, at random and beside
 * the model.
 */
#ifndef TESTS_VIRT_WORLD_CALLS_H
#define TESTS_VIRT_WORLD_CALLS_H

#include "tests/virt_world.h"

static inline void model_unmap(struct mclient *mc, uint64_t start, uint64_t end)
{
	for (; start < end; start += ARENA_PAGE_SIZE)
		if (mpage_at(mc, start)->mapped)
			mpage_unmap(mpage_at(mc, start));
}

/* ---- mremap -------------------------------------------------------------------------------- */

/* End of the VMA that has addr, as the model sees VMAs; not looked for beyond `limit`. */
static inline uint64_t run_end(struct mclient *mc, uint64_t addr, uint64_t limit)
{
	uint64_t end = addr + ARENA_PAGE_SIZE;

	limit = MIN(limit, mc->base + TEST_WINDOW);
	while (end < limit && mpages_alike(mpage_at(mc, end - ARENA_PAGE_SIZE), mpage_at(mc, end)))
		end += ARENA_PAGE_SIZE;
	return end;
}

static inline bool any_present(const struct mclient *mc, uint64_t start, uint64_t end)
{
	for (; start < end; start += ARENA_PAGE_SIZE)
		if (client_pfn(mc->c, start) != PFN_NONE)
			return true;
	return false;
}

/* What a move has to do with one page; `from` may be past the source. */
static inline struct mpage moved_page(const struct mpage *first, const struct mpage *from,
				      uint64_t i, bool old)
{
	struct mpage p = old ? *from : *first;

	if (!old)
		mpage_wipe(&p);
	if (p.object)
		p.pgoff = first->pgoff + (uint32_t)i;
	else
		p.linear = first->linear + i;
	return p;
}

/* [old, old + len) to a free place; `present`: some of it was. */
static inline void model_move(struct mclient *mc, uint64_t old, uint64_t len, uint64_t to,
			      uint64_t new_len, bool keep, bool present)
{
	struct mpage first = *mpage_at(mc, old);
	uint64_t i;

	if (!first.object && !first.origin && !present && !keep && to != old + len &&
	    to + new_len != old)
		first.linear = to >> ARENA_PAGE_SHIFT;
	for (i = 0; i < new_len >> ARENA_PAGE_SHIFT; i++) {
		bool moves = PAGE(i) < len;
		struct mpage *from = moves ? mpage_at(mc, old + PAGE(i)) : NULL;
		struct mpage *at = mpage_at(mc, to + PAGE(i));

		assert_false(at->mapped);
		*at = moved_page(&first, from, i, moves);
		if (at->object)
			at->object->mapped++;
		if (!moves)
			continue;
		if (keep) {
			mpage_wipe(from);
			from->flags &= ~VM_LOCKED_MASK;
		} else {
			mpage_unmap(from);
		}
	}
}

static inline void check_new_place(struct mclient *mc, uint64_t at, uint64_t len)
{
	assert_true(mrange_in_window(mc, at, at + len));
	assert_false(meets_direct(mc, at, len));
	assert_true(mrange_is_free(mc, at, at + len));
	assert_true(len < ARENA_LEAF_SIZE || IS_ALIGNED(at, ARENA_LEAF_SIZE));
}

/* The source of a move that neither shrinks nor stays: what check_resize says. */
static inline int expect_resize(struct mclient *mc, uint64_t old, uint64_t old_len)
{
	const struct mpage *p = mpage_at(mc, old);

	if (!p->mapped)
		return ARENA_E_FAULT;
	if (!old_len && !p->shared)
		return ARENA_E_INVALID;
	return run_end(mc, old, old + old_len + 1) < old + old_len ? ARENA_E_FAULT : 0;
}

static inline void remap_in_place(struct mclient *mc, const struct vm_mremap_args *a)
{
	bool present = any_present(mc, a->old, a->old + a->old_len),
	     grows = a->new_len > a->old_len;
	int want = grows ? expect_resize(mc, a->old, a->old_len)
			 : (mpage_at(mc, a->old)->mapped ? 0 : ARENA_E_FAULT),
	    r;
	uint64_t end = a->old + a->old_len, new_end = a->old + a->new_len, out = 0;
	bool room = !want && a->old_len && run_end(mc, a->old, end + 1) == end &&
		    mrange_in_window(mc, end, new_end) && !meets_direct(mc, end, new_end - end) &&
		    mrange_is_free(mc, end, new_end);

	if (!want && grows && !room && !(a->flags & MREMAP_MAYMOVE))
		want = ARENA_E_NO_MEMORY;
	r = vm_mremap(mc->c->mm, a, &out);
	if (r != want)
		fail_msg("mremap of %#lx, %#lx to %#lx, flags %u: %d, not %d",
			 (unsigned long)a->old, (unsigned long)a->old_len,
			 (unsigned long)a->new_len, a->flags, r, want);
	if (want)
		return;
	if (!grows) {
		assert_int_equal(out, a->old);
		model_unmap(mc, new_end, end);
		return;
	}
	if (room) {
		struct mpage first = *mpage_at(mc, a->old);
		uint64_t i;

		assert_int_equal(out, a->old);
		for (i = a->old_len >> ARENA_PAGE_SHIFT; i < a->new_len >> ARENA_PAGE_SHIFT; i++) {
			struct mpage *p = mpage_at(mc, a->old + PAGE(i));

			*p = moved_page(&first, NULL, i, false);
			if (p->object)
				p->object->mapped++;
		}
		return;
	}
	check_new_place(mc, out, a->new_len);
	model_move(mc, a->old, a->old_len, out, a->new_len, false, present);
	note_region(mc, out, a->new_len);
}

static inline void remap_fixed(struct mclient *mc, const struct vm_mremap_args *a)
{
	uint64_t new_end = a->new_addr + a->new_len, out = 0, at, len = a->old_len;
	bool present[4096], many;
	unsigned n = 0;
	int want = 0, r;

	if (!mpage_at(mc, a->old)->mapped)
		want = ARENA_E_FAULT;
	if (!mrange_in_window(mc, a->new_addr, new_end) ||
	    meets_direct(mc, a->new_addr, a->new_len) ||
	    (a->old + a->old_len > a->new_addr && new_end > a->old))
		want = ARENA_E_INVALID;
	many = !want && a->old_len == a->new_len &&
	       run_end(mc, a->old, a->old + len) < a->old + len;
	if (!want && !many)
		want = expect_resize(mc, a->old, MIN(len, a->new_len));
	if (!want && !many) {
		model_unmap(mc, a->new_addr, new_end);
		if (len > a->new_len)
			model_unmap(mc, a->old + a->new_len, a->old + len);
		len = MIN(len, a->new_len);
		if (!mpage_at(mc, a->old)->mapped)
			want = ARENA_E_FAULT;
	}
	/* Before the call: what was there. One answer a run. */
	for (at = a->old; !want && at < a->old + len;) {
		uint64_t end;

		if (!mpage_at(mc, at)->mapped) {
			at += ARENA_PAGE_SIZE;
			continue;
		}
		end = run_end(mc, at, a->old + len);
		assert_true(n < ARRAY_SIZE(present));
		present[n++] = any_present(mc, at, end);
		at = end;
	}
	r = vm_mremap(mc->c->mm, a, &out);
	if (r != want)
		fail_msg("mremap of %#lx, %#lx to %#lx, %#lx, flags %u: %d, not %d",
			 (unsigned long)a->old, (unsigned long)a->old_len,
			 (unsigned long)a->new_addr, (unsigned long)a->new_len, a->flags, r, want);
	if (want)
		return;
	assert_int_equal(out, a->new_addr);
	note_region(mc, out, a->new_len);
	if (!many) {
		model_move(mc, a->old, len, out, a->new_len, a->flags & MREMAP_DONTUNMAP,
			   len && present[0]);
		return;
	}
	for (at = a->old, n = 0; at < a->old + len;) {
		uint64_t end;

		if (!mpage_at(mc, at)->mapped) {
			at += ARENA_PAGE_SIZE;
			continue;
		}
		end = run_end(mc, at, a->old + len);
		model_unmap(mc, out + (at - a->old), out + (end - a->old));
		model_move(mc, at, end - at, out + (at - a->old), end - at,
			   a->flags & MREMAP_DONTUNMAP, present[n++]);
		at = end;
	}
}

static inline void op_mremap(struct mclient *mc)
{
	struct vm_mremap_args a = {.flags = chance(80) ? MREMAP_MAYMOVE : 0};
	uint64_t other = 0;

	random_range(mc, &a.old, &a.old_len);
	if (meets_direct(mc, a.old, a.old_len)) {
		a.new_len = a.old_len + ARENA_PAGE_SIZE;
		assert_int_not_equal(vm_mremap(mc->c->mm, &a, &other), 0);
		return;
	}
	if (chance(60) && mpage_at(mc, a.old)->mapped)
		a.old_len = run_end(mc, a.old, a.old + a.old_len) - a.old;
	a.new_len = chance(40)   ? a.old_len
		    : chance(50) ? a.old_len + PAGE(below(40))
				 : random_len();
	if (chance(5))
		a.old_len = 0;
	if (!(a.flags & MREMAP_MAYMOVE) || chance(50)) {
		remap_in_place(mc, &a);
		return;
	}
	a.flags |= MREMAP_FIXED;
	if (a.old_len == a.new_len && chance(25))
		a.flags |= MREMAP_DONTUNMAP;
	random_range(mc, &a.new_addr, &other);
	if (chance(30)) /* as leaves like it */
		a.new_addr = ALIGN_DOWN(a.new_addr, ARENA_LEAF_SIZE) + (a.old & ~ARENA_LEAF_MASK);
	remap_fixed(mc, &a);
}

/* ---- brk ----------------------------------------------------------------------------------- */

static inline void move_break(struct mclient *mc, int64_t delta, bool relative)
{
	uint64_t start = mc->c->mm->header->start_brk, out = 0, end = mc->brk + (uint64_t)delta;
	uint64_t from = ALIGN_UP(mc->brk, ARENA_PAGE_SIZE), to = ALIGN_UP(end, ARENA_PAGE_SIZE);
	int want = 0, r;

	if (end < start)
		want = ARENA_E_NO_MEMORY;
	else if (to > from && !mrange_is_free(mc, from, to + ARENA_PAGE_SIZE))
		want = ARENA_E_NO_MEMORY;
	r = relative ? vm_brk(mc->c->mm, 0, delta, &out) : vm_brk(mc->c->mm, end, 0, &out);
	assert_int_equal(r, want);
	if (want)
		return;
	assert_int_equal(out, relative ? mc->brk : end);
	mc->brk = end;
	if (to < from)
		model_unmap(mc, to, from);
	for (; from < to; from += ARENA_PAGE_SIZE)
		*mpage_at(mc, from) = (struct mpage){
			.mapped = true,
			.maywrite = true,
			.prot = PROT_RW,
			.flags = VM_ACCOUNT,
			.linear = from >> ARENA_PAGE_SHIFT,
		};
	if (end > start)
		note_region(mc, start, ALIGN_UP(end - start, ARENA_PAGE_SIZE));
}

static inline void op_brk(struct mclient *mc)
{
	move_break(mc, (int64_t)below(PAGE(600)) - (int64_t)PAGE(chance(10) ? 600 : 250),
		   chance(50));
}

/* ---- mlock, pins --------------------------------------------------------------------------- */

static inline void lock_pages(struct mclient *mc, uint64_t start, uint64_t len, bool lock,
			      bool onfault)
{
	uint64_t at;
	int want = 0, r;

	for (at = start; at < start + len && !want; at += ARENA_PAGE_SIZE) {
		struct mpage *p = mpage_at(mc, at);

		if (!p->mapped)
			want = ARENA_E_NOT_MAPPED;
		else
			p->flags = (p->flags & ~VM_LOCKED_MASK) |
				   (!lock     ? 0
				    : onfault ? VM_LOCKED | VM_LOCKONFAULT
					      : VM_LOCKED);
	}
	r = lock ? vm_mlock(mc->c->mm, start + 50, len - 100, onfault)
		 : vm_munlock(mc->c->mm, start + 50, len - 100);
	assert_int_equal(r, want);
}

static inline void op_mlock(struct mclient *mc)
{
	uint64_t start, len;

	random_range(mc, &start, &len);
	if (!meets_direct(mc, start, len))
		lock_pages(mc, start, len, chance(40), chance(30));
}

/* Unpinning goes by address: where two have one pinned, whose frame is let go first is not said. */
static inline void forget_firsts(struct mclient *mc, struct mpin *p)
{
	struct mpin *q;

	for (q = mc->pin; q < mc->pin + MAX_PINS; q++)
		if (q != p && q->len && q->addr < p->addr + p->len && p->addr < q->addr + q->len)
			p->first = q->first = PFN_NONE;
}

static inline void pin_pages(struct mclient *mc, struct mpin *p, uint64_t start, uint64_t len,
			     bool write)
{
	uint32_t access = write ? PROT_WRITE : PROT_READ;
	uint64_t at, next = start;
	int r = 0;

	for (at = start; at < start + len && !r; at = next) {
		next = at;
		r = vm_pin(mc->c->mm, at, start + len - at, write, 0, &next);
		flushed_again(mc, &r);
	}
	sync_copies(mc, start, start + len);
	if (next > start) {
		*p = (struct mpin){
			.addr = start, .len = next - start, .first = client_pfn(mc->c, start)};
		forget_firsts(mc, p);
	}
	for (at = start; at < next; at += ARENA_PAGE_SIZE) {
		assert_int_equal(mpage_refusal(mpage_at(mc, at), access).signo, 0);
		if (!mpage_at(mc, at)->shared)
			mpage_at(mc, at)->pinned = client_pfn(mc->c, at);
	}
	/* A piece is refused for the first page in it that refuses. */
	for (; r && at < start + len; at += ARENA_PAGE_SIZE)
		if (mpage_refusal(mpage_at(mc, at), access).signo)
			return;
	assert_true(!r || excused(r));
}

/* Whatever was called since: private memory that is pinned is where it was. */
static inline void check_pinned(struct mclient *mc)
{
	uint64_t i, n;

	for (i = 0; i < NR_CHUNKS; i++)
		for (n = 0; mc->chunk[i] && n < ARENA_LEAF_PAGES; n++) {
			uint64_t addr = mc->base + LEAF(i) + PAGE(n);
			pfn_t pfn = mc->chunk[i][n].pinned;

			if (pfn && client_pfn(mc->c, addr) != pfn)
				fail_msg("mm %u: %#lx was pinned in frame %u, and is in %u",
					 mm_id(mc->c->mm), (unsigned long)addr, pfn,
					 client_pfn(mc->c, addr));
		}
}

/* Of frames that have no pin any more nothing is expected. */
static inline void forget_pinned(struct mclient *mc)
{
	uint64_t i, n;

	for (i = 0; i < NR_CHUNKS; i++)
		for (n = 0; mc->chunk[i] && n < ARENA_LEAF_PAGES; n++)
			if (mc->chunk[i][n].pinned &&
			    !page_pins(pfn_to_page(
				    w.m.phys, compound_head(w.m.phys, mc->chunk[i][n].pinned))))
				mc->chunk[i][n].pinned = 0;
}

static inline void op_pin(struct mclient *mc)
{
	struct mpin *p = &mc->pin[below(MAX_PINS)];
	uint64_t start, len;

	random_range(mc, &start, &len);
	if (!p->len && len <= PAGE(600) && !meets_direct(mc, start, len))
		pin_pages(mc, p, start, len, chance(50));
}

static inline void op_unpin(struct mclient *mc)
{
	struct mpin *p = &mc->pin[below(MAX_PINS)];
	uint64_t half;

	if (!p->len)
		return;
	/* Whatever became of the mapping, the frame is there. */
	assert_true(p->first == PFN_NONE || compound_head(w.m.phys, p->first) != PFN_NONE);
	half = ALIGN_UP(p->len / 2, ARENA_PAGE_SIZE);
	if (chance(30) && p->len > half + ARENA_PAGE_SIZE) { /* out of the middle */
		assert_int_equal(vm_unpin(mc->c->mm, p->addr + half, ARENA_PAGE_SIZE), 0);
		assert_int_equal(vm_unpin(mc->c->mm, p->addr, half), 0);
		half += ARENA_PAGE_SIZE;
		p->addr += half;
		p->len -= half;
		p->first = PFN_NONE;
	}
	assert_int_equal(vm_unpin(mc->c->mm, p->addr, p->len), 0);
	p->len = 0;
	forget_pinned(mc);
}

static inline uint64_t pinned_pages(const struct mclient *mc)
{
	uint64_t n = 0;
	unsigned i;

	for (i = 0; i < MAX_PINS; i++)
		n += mc->pin[i].len >> ARENA_PAGE_SHIFT;
	return n;
}

#endif
