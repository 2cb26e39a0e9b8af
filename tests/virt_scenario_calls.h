/* SPDX-License-Identifier: MIT */
/*
 * virt_scenario_calls.h - steps of unit_virt_recover_sweep.c's scenario: mremap, the heap, mlock, pins, holes
 * and collapse, so that a worker dies in each of their stores.
 */
#ifndef TESTS_VIRT_SCENARIO_CALLS_H
#define TESTS_VIRT_SCENARIO_CALLS_H

static void move(struct mclient *mc, uint64_t old, uint64_t old_len, uint64_t to, uint64_t new_len,
		 uint32_t flags)
{
	struct vm_mremap_args a = {
		.old = old, .old_len = old_len, .new_len = new_len, .flags = flags, .new_addr = to};

	if (flags & MREMAP_FIXED)
		remap_fixed(mc, &a);
	else
		remap_in_place(mc, &a);
}

static void step_mremap(void)
{
	const uint32_t fixed = MREMAP_MAYMOVE | MREMAP_FIXED;
	uint64_t at = map(A, 0, LEAF(4), PROT_RW, MAP_PRIVATE, NULL, 0), to = at - LEAF(20);

	put(A, at + PAGE(3));
	put(A, at + LEAF(1) + PAGE(4));
	put(A, at + LEAF(3) + PAGE(9));
	move(A, at, LEAF(2), to, LEAF(2), fixed); /* leaves, whole */
	get(A, to + PAGE(3));
	move(A, to + LEAF(1), LEAF(1), to + LEAF(4) + PAGE(3), LEAF(1), fixed); /* in pieces */
	get(A, to + LEAF(5) - LEAF(1) + PAGE(7));
	put(A, to + LEAF(4) + PAGE(5));
	move(A, to + LEAF(4) + PAGE(3), LEAF(1), 0, PAGE(10), 0); /* shrinks, grows */
	move(A, to + LEAF(4) + PAGE(3), PAGE(10), 0, PAGE(30), 0);
	get(A, to + LEAF(4) + PAGE(7));
	put(A, to + LEAF(4) + PAGE(30));
	move(A, to + LEAF(4) + PAGE(5), PAGE(20), to + LEAF(8), PAGE(20), fixed | MREMAP_DONTUNMAP);
	get(A, to + LEAF(8) + PAGE(2));
	get(A, to + LEAF(4) + PAGE(7));
	/* Several VMAs with a hole, over something. */
	unmap(A, at + LEAF(3) + PAGE(2), PAGE(2));
	protect(A, at + LEAF(3) + PAGE(8), PAGE(4), PROT_READ);
	move(A, at + LEAF(3), PAGE(20), to + LEAF(8) + PAGE(1), PAGE(20), fixed);
	get(A, to + LEAF(8) + PAGE(10));
	move(A, s.shared + PAGE(1), 0, to + LEAF(9), PAGE(5), fixed); /* a second mapping */
	get(A, to + LEAF(9) + PAGE(2));
	put(A, to + LEAF(9) + PAGE(3));
	move(A, s.shared + LEAF(1), PAGE(4), to + LEAF(11) + PAGE(1), PAGE(6), fixed);
	get(A, to + LEAF(11) + PAGE(2));
	unmap(A, to, LEAF(25));
}

static void step_heap(void)
{
	uint64_t heap = A->c->mm->header->start_brk;

	move_break(A, (int64_t)PAGE(20) + 5, true);
	put(A, heap + PAGE(2));
	move_break(A, (int64_t)PAGE(3), false);
	move_break(A, -(int64_t)PAGE(21), true);
	get(A, heap + PAGE(1));
	move_break(A, (int64_t)PAGE(4), true);
	get(A, heap + PAGE(4));
	put(A, heap + PAGE(4));
}

static void step_lock(void)
{
	uint64_t at = map(A, 0, LEAF(1), PROT_RW, MAP_PRIVATE, NULL, 0);

	put(A, at);
	lock_pages(A, at + PAGE(3), PAGE(5), true, false);
	put(A, at + PAGE(4));
	lock_pages(A, at, LEAF(1), true, true);
	lock_pages(A, at + PAGE(4), PAGE(100), false, false);
	unmap(A, at, PAGE(50));
}

static void step_pin(void)
{
	uint64_t at = map(A, 0, LEAF(1), PROT_RW, MAP_PRIVATE, NULL, 0);
	struct mpin twice = {0};

	put(A, at + PAGE(3));
	pin_pages(A, &A->pin[0], at, PAGE(12), true);
	pin_pages(A, &twice, at + PAGE(2), PAGE(4), false);
	assert_int_equal(vm_unpin(A->c->mm, at + PAGE(3), PAGE(2)), 0);
	assert_int_equal(vm_unpin(A->c->mm, at + PAGE(2), PAGE(1)), 0);
	assert_int_equal(vm_unpin(A->c->mm, at + PAGE(5), PAGE(1)), 0);
	get(A, at + PAGE(3));
	unmap(A, at, LEAF(1));
	/* The end of A lets go of the rest. */
}

static void punch(struct mclient *mc, uint64_t at, uint64_t len)
{
	struct flush_wait wait = {0};
	uint64_t addr;

	assert_int_equal(vm_madvise(mc->c->mm, at, len, MADV_REMOVE, &wait), 0);
	flush_wait_cancel(&wait);
	for (addr = at; addr < at + len; addr += ARENA_PAGE_SIZE)
		mpage_at(mc, addr)->object->page[mpage_at(mc, addr)->pgoff] = (struct content){0};
}

static void step_hole(void)
{
	put(A, s.seg + PAGE(1));
	get(C, s.seg_c + PAGE(1));
	punch(A, s.seg, PAGE(3)); /* of a leaf */
	get(A, s.seg + PAGE(1));
	get(C, s.priv_c + PAGE(1));
	punch(A, s.seg, LEAF(1)); /* all of it */
	put(C, s.seg_c + PAGE(1));
	get(A, s.seg + PAGE(1));
}

static void step_collapse(void)
{
	uint64_t at = map(A, 0, LEAF(1), PROT_RW, MAP_PRIVATE, NULL, 0), i;
	int r = ARENA_E_AGAIN;

	advise(A, at, LEAF(1), MADV_NOHUGEPAGE);
	for (i = 0; i < 40; i += 3)
		put(A, at + PAGE(i));
	advise(A, at, LEAF(1), MADV_HUGEPAGE);
	for (i = 0; i < LEAF(1); i += ARENA_PAGE_SIZE)
		mpage_at(A, at + i)->flags &= ~VM_NOHUGEPAGE;
	for (i = 0; i < 8 && r == ARENA_E_AGAIN; i++) {
		r = vm_madvise(A->c->mm, at, LEAF(1), MADV_COLLAPSE, NULL);
		/* After a crash whoever may have the frames mapped holds them until he has flushed. */
		ack(A, true);
		ack(B, true);
	}
	assert_int_equal(r, 0);
	assert_true(client_is_leaf(A->c, at));
	get(A, at + PAGE(3));
	put(A, at + PAGE(4));
}

#endif
