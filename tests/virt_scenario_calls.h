/* SPDX-License-Identifier: MIT */
/*
 * virt_scenario_calls.h - steps of unit_virt_recover_sweep.c's scenario: mremap, the heap, mlock, pins, holes,
 * mapped files, collapse, fork and snapshot, so that a worker dies in each of their stores.
 */
#ifndef TESTS_VIRT_SCENARIO_CALLS_H
#define TESTS_VIRT_SCENARIO_CALLS_H

#include <linux/mempolicy.h>

#include "tests/virt_file.h"

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

static void step_policy(void)
{
	uint64_t at = map(A, 0, LEAF(1), PROT_RW, MAP_PRIVATE, NULL, 0);

	assert_int_equal(vm_set_mempolicy(A->c->mm, MPOL_BIND, 1), 0);
	put(A, at);
	assert_int_equal(vm_set_mempolicy(A->c->mm, MPOL_PREFERRED, 1), 0);
	assert_int_equal(vm_set_mempolicy(A->c->mm, MPOL_DEFAULT, 0), 0);
	put(A, at + PAGE(7));
	assert_int_equal(vm_set_mempolicy(A->c->mm, MPOL_BIND, 1), 0);
	unmap(A, at, LEAF(1));
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
	struct flush_wait wait;
	uint64_t addr;
	int r;

	do {
		wait = (struct flush_wait){0};
		r = vm_madvise(mc->c->mm, at, len, MADV_REMOVE, &wait);
	} while (flushed_again(mc, &r));
	assert_int_equal(r, 0);
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

/* All that a call waits for comes. False: the worker died before. */
static bool is_done(const struct io_wait *wait)
{
	unsigned deaths = crash.deaths;

	while (deaths == crash.deaths && wait->pending) {
		ack(A, true);
		ack(B, true);
		if (deaths == crash.deaths)
			virt_files_collect(w.m.virt);
	}
	return deaths == crash.deaths;
}

/* msync(2), made again where a worker dies in it. */
static void sync_file(struct mclient *mc, uint64_t at, uint64_t len)
{
	struct io_wait wait;

	do {
		assert_int_equal(vm_msync(mc->c->mm, at, len, MS_SYNC, &wait), 0);
	} while (!is_done(&wait));
	assert_int_equal(wait.error, 0);
}

/* The same of a call of a client that reads and writes files by system calls. */
static void file_call(struct mclient *mc, enum crash_file_call what, int fd, uint64_t off,
		      uint64_t len)
{
	struct vm_file_range range = {.offset = off, .length = len};
	struct os_file_id id;
	struct io_wait wait;

	assert_int_equal(os_file_id(fd, &id), 0);
	range.dev = id.dev;
	range.ino = id.ino;
	do {
		assert_int_equal(crash_file(mc->c->mm, what, &range, 7, &wait), 0);
	} while (!is_done(&wait));
	assert_int_equal(wait.error, 0);
}

/* Not in the model, either. What is dirty when the worker dies between hold and release is not written. */
static void step_file_hold(void)
{
	int fd = file_make(PAGE(12) + 100);
	uint64_t at = file_map(A->c, fd, PAGE(14), PROT_RW, MAP_SHARED), there;
	struct fault_refusal refusal;

	there = file_map(B->c, fd, PAGE(14), PROT_RW, MAP_SHARED);
	*client_write(A->c, at + PAGE(1)) = 1;
	*client_write(A->c, at + PAGE(2)) = 2;
	assert_int_equal(*client_read(B->c, there + PAGE(3)), file_byte(PAGE(3)));
	file_call(B, CRASH_FILE_SYNC, fd, PAGE(2), 1);
	assert_int_equal(file_get(fd, PAGE(2)), 2);
	file_call(B, CRASH_FILE_HOLD, fd, PAGE(1) + 5, PAGE(2));
	*client_write(A->c, at + PAGE(1) + 1) = 3;
	for (uint64_t i = 0; i < PAGE(2); i++)
		file_put(fd, PAGE(1) + 5 + i, 4);
	/* It would be written now. */
	virt_files_tick(w.m.virt, clock_now() + 20 * NSEC_PER_SEC);
	ack(A, true);
	ack(B, true);
	virt_files_collect(w.m.virt);
	assert_int_equal(file_get(fd, PAGE(1) + 5), 4);
	file_call(B, CRASH_FILE_RELEASE, fd, PAGE(1) + 5, PAGE(2));
	assert_int_equal(*client_read(A->c, at + PAGE(1)), 1);
	assert_int_equal(*client_read(A->c, at + PAGE(1) + 1), 3);
	assert_int_equal(*client_read(A->c, at + PAGE(1) + 5), 4);
	assert_int_equal(*client_read(B->c, there + PAGE(3) + 4), 4);
	assert_int_equal(*client_read(B->c, there + PAGE(3) + 5), file_byte(PAGE(3) + 5));
	/* Cut off. */
	file_call(A, CRASH_FILE_HOLD, fd, 0, 0);
	assert_int_equal(ftruncate(fd, (off_t)PAGE(2)), 0);
	file_call(A, CRASH_FILE_RELEASE, fd, 0, 0);
	assert_null(client_access(B->c, there + PAGE(3), PROT_READ, 0, &refusal));
	assert_int_equal(refusal.signo, SIGBUS);
	sync_file(A, at, PAGE(2));
	assert_int_equal(file_get(fd, PAGE(1) + 1), 3);
	assert_int_equal(file_get(fd, PAGE(1) + 5), 4);
	assert_int_equal(vm_munmap(A->c->mm, at, PAGE(14)), 0);
	assert_int_equal(vm_munmap(B->c->mm, there, PAGE(14)), 0);
	ack(A, true);
	ack(B, true);
	while (virt_has_files(w.m.virt)) {
		virt_files_collect(w.m.virt);
		ack(A, true);
		ack(B, true);
	}
	close(fd);
}

/* Not in the model: it is gone when the step ends, and what is in the file says whether it is right. */
static void step_file(void)
{
	int fd = file_make(PAGE(12) + 100);
	uint64_t at, own, there, i;
	struct fault_refusal refusal;

	at = file_map(A->c, fd, PAGE(14), PROT_RW, MAP_SHARED);
	own = file_map(A->c, fd, PAGE(14), PROT_RW, MAP_PRIVATE);
	for (i = 0; i < 12; i++)
		assert_int_equal(*client_read(A->c, at + PAGE(i)), file_byte(PAGE(i)));
	*client_write(A->c, at + PAGE(1)) = 1;
	*client_write(A->c, at + PAGE(3)) = 2;
	*client_write(A->c, own + PAGE(2)) = 3;
	there = file_map(B->c, fd, PAGE(14), PROT_RW, MAP_SHARED);
	assert_int_equal(*client_read(B->c, there + PAGE(1)), 1);
	*client_write(B->c, there + PAGE(1)) = 4;
	sync_file(A, at, PAGE(4));
	assert_int_equal(file_get(fd, PAGE(1)), 4);
	assert_int_equal(file_get(fd, PAGE(2)), file_byte(PAGE(2)));
	assert_int_equal(file_get(fd, PAGE(3)), 2);
	*client_write(A->c, at + PAGE(1)) = 5;
	*client_write(B->c, there + PAGE(12) + 99) = 6;
	*client_write(A->c, at + PAGE(9)) = 7;
	/* Its end moves, below what is dirty. */
	assert_int_equal(ftruncate(fd, (off_t)PAGE(8)), 0);
	virt_files_tick(w.m.virt, clock_now() + 6 * NSEC_PER_SEC);
	assert_null(client_access(A->c, at + PAGE(9), PROT_READ, 0, &refusal));
	assert_int_equal(refusal.signo, SIGBUS);
	assert_int_equal(vm_munmap(A->c->mm, at, PAGE(14)), 0);
	*client_write(B->c, there + PAGE(7)) = 8;
	assert_int_equal(*client_read(A->c, own + PAGE(2)), 3);
	assert_int_equal(vm_munmap(A->c->mm, own, PAGE(14)), 0);
	/* The last mapping ends: nobody waits for it. */
	assert_int_equal(vm_munmap(B->c->mm, there, PAGE(14)), 0);
	ack(A, true);
	ack(B, true);
	while (virt_has_files(w.m.virt)) {
		virt_files_collect(w.m.virt);
		ack(A, true);
		ack(B, true);
	}
	assert_int_equal(file_get(fd, PAGE(1)), 5);
	assert_int_equal(file_get(fd, PAGE(7)), 8);
	assert_int_equal(lseek(fd, 0, SEEK_END), (off_t)PAGE(8));
	close(fd);
}

static void step_gather(void)
{
	uint64_t at = map(A, 0, LEAF(1), PROT_RW, MAP_PRIVATE, NULL, 0), i;
	int r = ARENA_E_AGAIN;

	advise(A, at, LEAF(1), MADV_NOHUGEPAGE);
	for (i = 0; i < 20; i++)
		put(A, at + PAGE(i * 7 % 20));
	for (i = 0; i < 8 && r == ARENA_E_AGAIN; i++) {
		r = vm_madvise(A->c->mm, at, LEAF(1), ARENA_MADV_GATHER, NULL);
		ack(A, true);
		ack(B, true);
	}
	assert_int_equal(r, 0);
	for (i = 1; i < 20; i++)
		assert_int_equal(client_pfn(A->c, at + PAGE(i)), client_pfn(A->c, at) + i);
	get(A, at + PAGE(3));
	put(A, at + PAGE(4));
	unmap(A, at, LEAF(1));
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

/* ---- copy on write ---- */

static struct mclient *const D = &w.client[3];
static uint64_t cow_at;

static void step_fork(void)
{
	cow_at = map(A, 0, LEAF(3), PROT_RW, MAP_PRIVATE, NULL, 0);
	put(A, cow_at + PAGE(3));
	put(A, cow_at + LEAF(1) + PAGE(4));
	put(A, cow_at + LEAF(2) + PAGE(5));
	lock_pages(A, cow_at + PAGE(100), PAGE(4), true, false);
	pin_pages(A, &A->pin[1], cow_at + LEAF(2) + PAGE(5), PAGE(2), true);
	advise(A, cow_at + PAGE(200), PAGE(2), MADV_DONTNEED);
	assert_int_equal(vm_madvise(A->c->mm, cow_at + PAGE(10), PAGE(2), MADV_DONTFORK, NULL), 0);
	assert_int_equal(vm_madvise(A->c->mm, cow_at + PAGE(20), PAGE(2), MADV_WIPEONFORK, NULL),
			 0);
	mpage_at(A, cow_at + PAGE(10))->flags |= VM_DONTCOPY;
	mpage_at(A, cow_at + PAGE(11))->flags |= VM_DONTCOPY;
	mpage_at(A, cow_at + PAGE(20))->flags |= VM_WIPEONFORK;
	mpage_at(A, cow_at + PAGE(21))->flags |= VM_WIPEONFORK;
	put(A, cow_at + PAGE(20));
	assert_true(fork_client(A, D));
	put(A, cow_at + PAGE(3)); /* a copy of a page, and of pieces of a leaf */
	put(D, cow_at + PAGE(4));
	put(D, cow_at + LEAF(1) + PAGE(4));
	put(D, cow_at + LEAF(1) + PAGE(40));
	put(A, cow_at + LEAF(1) + PAGE(40));
	get(D, cow_at + PAGE(3));
	get(D, cow_at + PAGE(20));
	access_at(D, cow_at + PAGE(10), false);
	get(D, cow_at + LEAF(2) + PAGE(5));
	put(A, cow_at + LEAF(2) + PAGE(5));
	get(D, A->c->mm->header->start_brk + PAGE(4));
	move_break(D, (int64_t)PAGE(3), true);
}

/* What is shared, or being copied, is moved, locked, thrown away, collapsed. */
static void step_cow_calls(void)
{
	const uint32_t fixed = MREMAP_MAYMOVE | MREMAP_FIXED;
	uint64_t to = cow_at - LEAF(20);
	unsigned i;

	move(A, cow_at + LEAF(1), LEAF(1), to, LEAF(1), fixed); /* a copy under way */
	put(A, to + PAGE(90));
	get(A, to + PAGE(4));
	get(D, cow_at + LEAF(1) + PAGE(90));
	advise(D, cow_at + LEAF(1) + PAGE(3), PAGE(3), MADV_DONTNEED);
	get(D, cow_at + LEAF(1) + PAGE(4));
	protect(D, cow_at + PAGE(1), PAGE(4), PROT_READ);
	protect(D, cow_at + PAGE(1), PAGE(4), PROT_RW);
	get(D, cow_at + PAGE(3));
	lock_pages(D, cow_at + PAGE(50), PAGE(4), true, false);
	put(D, cow_at + PAGE(52));
	move(D, cow_at + PAGE(48), PAGE(8), to + LEAF(3) + PAGE(1), PAGE(8), fixed);
	get(D, to + LEAF(3) + PAGE(5));
	/* Half of it A's as well. */
	for (i = 0; i < 8; i++) {
		int r = vm_madvise(A->c->mm, to, LEAF(1), MADV_COLLAPSE, NULL);

		ack(A, true);
		if (!r)
			break;
		assert_int_equal(r, ARENA_E_AGAIN);
	}
	assert_true(client_is_leaf(A->c, to));
	put(A, to + PAGE(4));
	get(D, cow_at + LEAF(1) + PAGE(40));
}

/* Of shared memory that is written to meanwhile: leaves and single pages, a part that is truncated. */
static void step_snapshot_shared(void)
{
	uint64_t copy, twice, shared, seg = LEAF(1) - PAGE(3), len = LEAF(1) + PAGE(6);

	put(A, s.seg + seg);
	put(A, s.seg + LEAF(1) + PAGE(1));
	copy = snapshot(A, s.seg + seg, len);
	put(A, s.seg + seg + PAGE(1));
	put(A, s.seg + LEAF(1) + PAGE(1));
	get(A, copy);
	get(A, copy + PAGE(4));
	put(A, copy + PAGE(5));
	twice = snapshot(A, copy, PAGE(20));
	put(A, s.seg + LEAF(1) + PAGE(8));
	put(A, twice + PAGE(3));
	get(A, copy + PAGE(3));
	get(A, copy + PAGE(11));
	resize(A, s.a, LEAF(1) + PAGE(2) + 100);
	resize(A, s.a, LEAF(1) + PAGE(40));
	get(A, copy + PAGE(4));
	get(A, copy + PAGE(6));
	unmap(A, copy, LEAF(1));
	get(A, twice + PAGE(11));
	unmap(A, twice, PAGE(20));
	unmap(A, copy + LEAF(1), PAGE(6));
	/* Anonymous, beside private memory: each in its kind. */
	shared = map(A, 0, LEAF(1) + PAGE(2), PROT_RW, MAP_SHARED, NULL, 0);
	put(A, shared);
	put(A, shared + LEAF(1));
	copy = snapshot(A, shared, LEAF(1) + PAGE(2));
	put(A, shared);
	unmap(A, shared, LEAF(1) + PAGE(2));
	get(A, copy);
	get(A, copy + LEAF(1));
	put(A, copy + PAGE(3));
	unmap(A, copy, LEAF(1) + PAGE(2));
}

static void step_snapshot(void)
{
	uint64_t copy = snapshot(D, cow_at + LEAF(1) - PAGE(3), LEAF(1) + PAGE(5)), twice;

	put(D, cow_at + LEAF(1) + PAGE(1));
	put(D, copy + PAGE(2));
	get(D, copy + PAGE(4));
	twice = snapshot(D, copy, PAGE(8));
	put(D, twice + PAGE(4));
	get(D, copy + PAGE(4));
	unmap(D, copy, LEAF(1));
	get(D, cow_at + LEAF(1) + PAGE(2));
	client_end(D);
	put(A, cow_at + PAGE(60));
	get(A, cow_at + PAGE(61));
	unmap(A, cow_at, LEAF(3));
}

#endif
