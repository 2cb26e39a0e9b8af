/* SPDX-License-Identifier: MIT */
/*
 * unit_virt_calls.c - the mlock family, stacks, overcommit, collapse, holes, mincore and msync, one
 * promise at a time.
 */
#include <fcntl.h>

#include "tests/virt_one.h"

/* ---- mlock --------------------------------------------------------------------------------- */

static uint64_t mlocked_pages(void)
{
	uint64_t n = 0;
	unsigned t;

	for (t = 0; t < NR_ZONE_TYPES; t++)
		n += phys_node(m.phys, 0)->zone[t].stat[NR_MLOCK];
	assert_int_equal(phys_node(m.phys, 0)->stat[NR_UNEVICTABLE], n);
	return n;
}

static void populate(uint64_t at, uint64_t len, enum populate_mode mode, int want)
{
	uint64_t next = at, end = at + len;
	int r = 0;

	while (next < end && !r)
		r = vm_populate(c->mm, next, end - next, mode, 0, &next);
	assert_int_equal(r, want);
}

static void test_mlock_counts(void **state)
{
	uint64_t at = map_small(PAGE(20)), shared, leaf;

	(void)state;
	put(at, 1);
	assert_int_equal(vm_mlock(c->mm, at + 5, PAGE(10) - 5, false), 0);
	assert_int_equal(c->mm->locked_vm, 10);
	assert_int_equal(count_vmas(c), 2);
	populate(at, PAGE(20), POPULATE_LOCK, 0);
	assert_int_equal(mlocked_pages(), 10);
	assert_int_equal(vm_munlock(c->mm, at, PAGE(4)), 0);
	assert_int_equal(mlocked_pages(), 6);
	assert_int_equal(vm_munmap(c->mm, at, PAGE(7)), 0);
	assert_int_equal(mlocked_pages(), 3);
	assert_int_equal(c->mm->locked_vm, 3);
	/* A frame that two map is counted once, until both have let go. */
	shared = client_map(c, PAGE(4), PROT_RW, MAP_ANON_SHARED);
	assert_int_equal(remap(shared, 0, PAGE(4), MREMAP_MAYMOVE, 0, &leaf), 0);
	put(shared, 1);
	put(leaf, 1);
	assert_int_equal(vm_mlock(c->mm, shared, PAGE(1), false), 0);
	assert_int_equal(vm_mlock(c->mm, leaf, PAGE(1), false), 0);
	assert_int_equal(mlocked_pages(), 4);
	assert_int_equal(vm_munmap(c->mm, shared, PAGE(4)), 0);
	assert_int_equal(mlocked_pages(), 4);
	assert_int_equal(vm_munlock(c->mm, leaf, PAGE(1)), 0);
	assert_int_equal(mlocked_pages(), 3);
	/* Part of a leaf is no leaf any more. */
	leaf = client_map(c, LEAF(1), PROT_RW, MAP_ANON_PRIVATE);
	put(leaf, 1);
	assert_int_equal(vm_mlock(c->mm, leaf + PAGE(1), PAGE(2), false), 0);
	assert_int_equal(mlocked_pages(), 5);
	assert_int_equal(vm_munlockall(c->mm), 0);
	assert_int_equal(mlocked_pages(), 0);
	assert_int_equal(c->mm->locked_vm, 0);
}

static void test_mlock_limits(void **state)
{
	uint64_t at = map_small(PAGE(40)), out;

	(void)state;
	test_limit[VM_LIMIT_MEMLOCK] = PAGE(8) + 100;
	assert_int_equal(vm_mlock(c->mm, at, PAGE(8), false), 0);
	assert_int_equal(vm_mlock(c->mm, at, PAGE(8), true), 0); /* again is not more */
	assert_int_equal(vm_mlock(c->mm, at, PAGE(9), false), ARENA_E_NO_MEMORY);
	assert_int_equal(vm_munlock(c->mm, at, PAGE(4)), 0);
	assert_int_equal(vm_mlock(c->mm, at + PAGE(36), PAGE(5), false), ARENA_E_NO_MEMORY);
	assert_int_equal(
		client_mmap(c, 0, PAGE(5), PROT_RW, MAP_ANON_PRIVATE | MAP_LOCKED, 0, 0, &out),
		ARENA_E_AGAIN);
	assert_int_equal(remap(at + PAGE(4), PAGE(4), PAGE(9), MREMAP_MAYMOVE, 0, &out),
			 ARENA_E_AGAIN);
	assert_int_equal(vm_mlockall(c->mm, MCL_CURRENT), ARENA_E_NO_MEMORY);
	assert_int_equal(vm_mlockall(c->mm, 0), ARENA_E_INVALID);
	assert_int_equal(vm_mlockall(c->mm, MCL_ONFAULT), ARENA_E_INVALID);
	assert_int_equal(vm_mlockall(c->mm, MCL_CURRENT | 8), ARENA_E_INVALID);
	assert_int_equal(vm_mlockall(c->mm, MCL_FUTURE), 0);
	assert_int_equal(client_mmap(c, 0, PAGE(5), PROT_RW, MAP_ANON_PRIVATE, 0, 0, &out),
			 ARENA_E_AGAIN);
	assert_int_equal(client_mmap(c, 0, PAGE(4), PROT_RW, MAP_ANON_PRIVATE, 0, 0, &out), 0);
	assert_true(mm_wants_populate(c->mm, out));
	assert_int_equal(vm_munlockall(c->mm), 0);
	assert_int_equal(client_mmap(c, 0, PAGE(9), PROT_RW, MAP_ANON_PRIVATE, 0, 0, &out), 0);
	assert_false(mm_wants_populate(c->mm, out));
	test_limit[VM_LIMIT_MEMLOCK] = 0;
	assert_int_equal(vm_mlock(c->mm, at, PAGE(1), false), ARENA_E_PERMISSION);
	assert_int_equal(vm_mlockall(c->mm, MCL_CURRENT), ARENA_E_PERMISSION);
	assert_int_equal(
		client_mmap(c, 0, PAGE(1), PROT_RW, MAP_ANON_PRIVATE | MAP_LOCKED, 0, 0, &out),
		ARENA_E_PERMISSION);
	assert_int_equal(vm_munlock(c->mm, at, PAGE(1)), 0);
	assert_int_equal(vm_munlock(c->mm, at + PAGE(60), PAGE(1)), ARENA_E_NOT_MAPPED);
}

/* Populating as mlock does: what refuses ends it, or is passed over. */
static void test_populate_lock(void **state)
{
	uint64_t at = map_small(PAGE(30));

	(void)state;
	assert_int_equal(vm_munmap(c->mm, at + PAGE(5), PAGE(5)), 0);
	assert_int_equal(vm_mprotect(c->mm, at + PAGE(20), PAGE(2), PROT_NONE), 0);
	assert_int_equal(vm_mlock(c->mm, at + PAGE(25), PAGE(1), true), 0);
	populate(at, PAGE(20), POPULATE_LOCK, 0);
	assert_int_not_equal(client_pfn(c, at + PAGE(10)), PFN_NONE);
	populate(at, PAGE(30), POPULATE_LOCK, ARENA_E_ACCESS);
	assert_int_equal(client_pfn(c, at + PAGE(29)), PFN_NONE);
	populate(at, PAGE(30), POPULATE_LOCK_ALL, 0);
	assert_int_not_equal(client_pfn(c, at + PAGE(29)), PFN_NONE);
	assert_int_equal(client_pfn(c, at + PAGE(20)), PFN_NONE);
	assert_int_equal(client_pfn(c, at + PAGE(25)), PFN_NONE);
	populate(at, PAGE(30), POPULATE_READ, ARENA_E_NOT_MAPPED);
}

/* ---- stacks -------------------------------------------------------------------------------- */

static void test_growsdown(void **state)
{
	const uint64_t gap = PAGE(256);
	uint64_t top = c->mm->header->mmap_floor + LEAF(2000), at = top - PAGE(2), out, wall;

	(void)state;
	test_limit[VM_LIMIT_STACK] = PAGE(1000);
	assert_int_equal(client_mmap(c, at, PAGE(2), PROT_RW,
				     MAP_ANON_PRIVATE | MAP_GROWSDOWN | MAP_FIXED, 0, 0, &out),
			 0);
	put(at - PAGE(1), 1);
	put(at - PAGE(500) + 8, 2);
	assert_int_equal(count_vmas(c), 1);
	assert_int_equal(c->mm->stack_vm, 502);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(get(at - PAGE(1)), 1);
	/* The limit. */
	assert_refused(c, top - PAGE(1001), PROT_WRITE, SIGSEGV, SEGV_MAPERR);
	put(top - PAGE(1000), 3);
	test_limit[VM_LIMIT_STACK] = UINT64_MAX;
	/* A neighbour below, and the gap that stays; one that nobody can touch may be nearer. */
	wall = top - PAGE(1400);
	assert_int_equal(client_mmap(c, wall - PAGE(1), PAGE(1), PROT_READ,
				     MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &out),
			 0);
	assert_refused(c, wall + gap - PAGE(1), PROT_WRITE, SIGSEGV, SEGV_MAPERR);
	put(wall + gap, 4);
	assert_int_equal(vm_mprotect(c->mm, wall - PAGE(1), PAGE(1), PROT_NONE), 0);
	put(wall + PAGE(3), 5);
	/* Populating does not grow it. */
	populate(wall, PAGE(1), POPULATE_WRITE, ARENA_E_NOT_MAPPED);
	/* Whoever comes later keeps out of the gap, unless he says where he goes. */
	assert_int_equal(vm_munmap(c->mm, wall - PAGE(1), PAGE(1)), 0);
	assert_int_equal(client_mmap(c, wall, PAGE(1), PROT_RW, MAP_ANON_PRIVATE, 0, 0, &out), 0);
	assert_int_not_equal(out, wall);
	assert_int_equal(
		client_mmap(c, wall, PAGE(1), PROT_RW, MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &out),
		0);
	/* PROT_GROWSDOWN: all of it from its beginning. */
	assert_int_equal(vm_mprotect(c->mm, top - PAGE(1), PAGE(1), PROT_READ | PROT_GROWSDOWN), 0);
	assert_refused(c, wall + PAGE(3), PROT_WRITE, SIGSEGV, SEGV_ACCERR);
	assert_int_equal(vm_mprotect(c->mm, out, PAGE(1), PROT_READ | PROT_GROWSDOWN),
			 ARENA_E_INVALID);
	assert_int_equal(vm_mprotect(c->mm, out, PAGE(1), PROT_READ | PROT_GROWSUP),
			 ARENA_E_INVALID);
}

/* ---- overcommit ---------------------------------------------------------------------------- */

static void test_overcommit(void **state)
{
	uint64_t *t = m.state.tunables, total = phys_total_pages(m.phys), out, at;

	(void)state;
	t[TUNABLE_OVERCOMMIT_MEMORY] = 0;
	assert_int_equal(client_mmap(c, 0, PAGE(total + 1), PROT_RW, MAP_ANON_PRIVATE, 0, 0, &out),
			 ARENA_E_NO_MEMORY);
	at = client_map(c, PAGE(total + 1), PROT_READ, MAP_ANON_PRIVATE);
	assert_int_equal(virt_committed_pages(m.virt), 0);
	assert_int_equal(vm_mprotect(c->mm, at, PAGE(total + 1), PROT_RW), ARENA_E_NO_MEMORY);
	assert_int_equal(vm_mprotect(c->mm, at, PAGE(10), PROT_RW), 0);
	assert_int_equal(virt_committed_pages(m.virt), 10);
	/* What was promised stays so while it is not writable. */
	assert_int_equal(vm_mprotect(c->mm, at, PAGE(10), PROT_READ), 0);
	assert_int_equal(virt_committed_pages(m.virt), 10);
	client_map(c, PAGE(total + 1), PROT_RW, MAP_ANON_PRIVATE | MAP_NORESERVE);
	client_map(c, PAGE(5), PROT_RW, MAP_ANON_SHARED);
	client_map(c, PAGE(50), PROT_RW, MAP_ANON_SHARED | MAP_NORESERVE);
	assert_int_equal(virt_committed_pages(m.virt), 15);
	t[TUNABLE_OVERCOMMIT_MEMORY] = 1;
	client_map(c, PAGE(total + 1), PROT_RW, MAP_ANON_PRIVATE);
	assert_int_equal(virt_committed_pages(m.virt), 16 + total);
	assert_int_equal(vm_munmap(c->mm, c->mm->header->mmap_floor,
				   c->mm->header->mmap_base - c->mm->header->mmap_floor),
			 0);
	assert_int_equal(virt_committed_pages(m.virt), 0);
	t[TUNABLE_OVERCOMMIT_MEMORY] = 2;
	t[TUNABLE_ADMIN_RESERVE_KBYTES] = 40;
	assert_int_equal(virt_commit_limit(m.virt), total / 2);
	t[TUNABLE_OVERCOMMIT_KBYTES] = 400;
	assert_int_equal(virt_commit_limit(m.virt), 100);
	at = client_map(c, PAGE(80), PROT_RW, MAP_ANON_PRIVATE | MAP_NORESERVE);
	assert_int_equal(virt_committed_pages(m.virt), 80);
	/* 10 are kept for root, 2 for the client's own good. */
	assert_int_equal(client_mmap(c, 0, PAGE(8), PROT_RW, MAP_ANON_PRIVATE, 0, 0, &out),
			 ARENA_E_NO_MEMORY);
	assert_int_equal(client_mmap(c, 0, PAGE(8), PROT_RW, MAP_ANON_SHARED, 0, 0, &out),
			 ARENA_E_NO_MEMORY);
	assert_int_equal(vm_brk(c->mm, 0, (int64_t)PAGE(8), &out), ARENA_E_NO_MEMORY);
	assert_int_equal(remap(at, PAGE(80), PAGE(88), MREMAP_MAYMOVE, 0, &out), ARENA_E_NO_MEMORY);
	/* A place that is taken over makes room first. */
	assert_int_equal(
		client_mmap(c, at, PAGE(80), PROT_RW, MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &out), 0);
	client_map(c, PAGE(7), PROT_RW, MAP_ANON_PRIVATE);
}

/* ---- madvise ------------------------------------------------------------------------------- */

/* How many pages of [at, at + n pages) lie elsewhere than behind the one before? */
static unsigned breaks(uint64_t at, unsigned n)
{
	unsigned i, sum = 0;

	for (i = 1; i < n; i++)
		sum += client_pfn(c, at + PAGE(i)) != client_pfn(c, at + PAGE(i - 1)) + 1;
	return sum;
}

static int gather(uint64_t at, uint64_t len)
{
	int r = vm_madvise(c->mm, at, len, ARENA_MADV_GATHER, NULL);

	client_ack_all(c);
	assert_true(virt_is_valid(m.virt));
	return r;
}

static void test_gather(void **state)
{
	uint64_t at = map_small(LEAF(2)), base = ALIGN_UP(at, ARENA_LEAF_SIZE), free, next;
	pfn_t pinned;
	unsigned i;

	(void)state;
	/* In an order that no neighbours lie together, and with a hole of ten pages. */
	for (i = 0; i < 300; i++)
		if (i * 7 % 300 < 100 || i * 7 % 300 >= 110)
			put(base + PAGE(i * 7 % 300), i * 7 % 300 + 1);
	client_ack_all(c);
	assert_true(breaks(base, 100) > 50);
	free = phys_free_pages(m.phys);
	assert_int_equal(vm_pin(c->mm, base + PAGE(50), PAGE(1), true, 0, &next), 0);
	pinned = client_pfn(c, base + PAGE(50));
	/* Who writes between the two halves has it begin anew. */
	assert_int_equal(gather(base, LEAF(1)), ARENA_E_AGAIN);
	put(base + PAGE(7), 1000);
	assert_int_equal(gather(base, LEAF(1)), ARENA_E_AGAIN);
	assert_int_equal(gather(base, LEAF(1)), 0);
	assert_int_equal(breaks(base, 50) + breaks(base + PAGE(51), 49), 0);
	assert_int_equal(breaks(base + PAGE(110), 190), 0);
	assert_int_equal(client_pfn(c, base + PAGE(50)), pinned);
	assert_int_equal(phys_free_pages(m.phys), free);
	for (i = 0; i < 300; i++)
		if (i < 100 || i >= 110)
			assert_int_equal(get(base + PAGE(i)), i == 7 ? 1000 : i + 1);
	assert_int_equal(get(base + PAGE(105)), 0);
	assert_int_equal(vm_unpin(c->mm, base + PAGE(50), PAGE(1)), 0);
	/* Nothing is left to do. */
	assert_int_equal(gather(base, PAGE(50)), 0);
	at = client_map(c, LEAF(1), PROT_RW, MAP_ANON_SHARED);
	assert_int_equal(gather(at, LEAF(1)), ARENA_E_INVALID);
}

static void test_collapse(void **state)
{
	uint64_t at = map_small(LEAF(3)), base = ALIGN_UP(at, ARENA_LEAF_SIZE), i;
	pfn_t before;

	(void)state;
	for (i = 0; i < 512; i += 7)
		put(base + PAGE(i), i + 1);
	assert_int_equal(vm_madvise(c->mm, base, LEAF(1), MADV_COLLAPSE, NULL), ARENA_E_INVALID);
	assert_int_equal(vm_madvise(c->mm, at, LEAF(3), MADV_HUGEPAGE, NULL), 0);
	before = client_pfn(c, base);
	/* Rights are taken; who writes gets his back, and it begins anew. */
	assert_int_equal(vm_madvise(c->mm, base, LEAF(1), MADV_COLLAPSE, NULL), ARENA_E_AGAIN);
	put(base + PAGE(7), 1000);
	assert_int_equal(client_pfn(c, base), before);
	client_ack_all(c);
	assert_int_equal(vm_madvise(c->mm, base, LEAF(1), MADV_COLLAPSE, NULL), ARENA_E_AGAIN);
	/* Not acknowledged: somebody may still be writing. */
	assert_int_equal(vm_madvise(c->mm, base, LEAF(1), MADV_COLLAPSE, NULL), ARENA_E_AGAIN);
	client_ack_all(c);
	assert_int_equal(vm_madvise(c->mm, base, LEAF(1), MADV_COLLAPSE, NULL), 0);
	assert_true(client_is_leaf(c, base));
	assert_true(virt_is_valid(m.virt));
	assert_int_not_equal(client_pfn(c, base), before);
	assert_true(pfn_to_page(m.phys, before)->flags & PG_LIMBO);
	client_ack_all(c);
	for (i = 0; i < 512; i += 7)
		assert_int_equal(get(base + PAGE(i)), i == 7 ? 1000 : i + 1);
	put(base + PAGE(500), 77);
	assert_int_equal(vm_madvise(c->mm, base, LEAF(1), MADV_COLLAPSE, NULL), 0);
	/* Nothing there; and what is not ours alone. */
	assert_int_equal(vm_madvise(c->mm, base + LEAF(1), LEAF(1), MADV_COLLAPSE, NULL),
			 ARENA_E_INVALID);
	i = client_map(c, LEAF(1), PROT_RW, MAP_ANON_SHARED);
	assert_int_equal(vm_madvise(c->mm, i, LEAF(1), MADV_COLLAPSE, NULL), ARENA_E_INVALID);
}

static void test_remove(void **state)
{
	uint64_t at = client_map(c, LEAF(2), PROT_RW, MAP_ANON_SHARED), copy, i;
	uint64_t used = phys_free_pages(m.phys);
	struct flush_wait wait = {0};
	struct segment_open open;

	(void)state;
	put(at + PAGE(5), 5);
	put(at + LEAF(1), 6);
	assert_true(client_is_leaf(c, at));
	assert_int_equal(vm_madvise(c->mm, at + PAGE(4), PAGE(3), MADV_REMOVE, &wait), 0);
	assert_int_equal(vm_madvise(c->mm, at + LEAF(1), LEAF(1), MADV_REMOVE, &wait), 0);
	assert_int_equal(wait.pending, 0); /* the caller flushes for itself */
	client_ack_all(c);
	assert_int_equal(get(at + PAGE(5)), 0);
	assert_int_equal(get(at + LEAF(1)), 0);
	assert_true(used > phys_free_pages(m.phys));
	/* Private copies stay. */
	assert_int_equal(client_open(c, "s", O_RDWR | O_CREAT, 0600, &open), 0);
	assert_int_equal(mm_truncate_segment(c->mm, open.handle, (int64_t)PAGE(8), NULL), 0);
	i = client_map_segment(c, open.handle, PAGE(8), PROT_RW, MAP_SHARED, 0);
	copy = client_map_segment(c, open.handle, PAGE(8), PROT_RW, MAP_PRIVATE, 0);
	put(i, 1);
	put(i + PAGE(1), 1);
	put(copy, 2);
	assert_int_equal(get(copy + PAGE(1)), 1);
	assert_int_equal(vm_madvise(c->mm, copy, PAGE(8), MADV_REMOVE, NULL), ARENA_E_ACCESS);
	assert_int_equal(vm_madvise(c->mm, i, PAGE(8), MADV_REMOVE, NULL), 0);
	client_ack_all(c);
	assert_int_equal(get(i), 0);
	assert_int_equal(get(copy), 2);
	assert_int_equal(get(copy + PAGE(1)), 0);
	assert_int_equal(segment_unlink(m.virt, &c->cred, "s"), 0);
}

/* ---- looking ------------------------------------------------------------------------------- */

static void test_mincore_msync(void **state)
{
	uint64_t at = map_small(PAGE(20)), next = 0, shared;
	uint8_t vec[3] = {0};

	(void)state;
	m.state.tunables[TUNABLE_FILL_AHEAD_PAGES] = 1;
	put(at + PAGE(3), 1);
	put(at + PAGE(9), 1);
	assert_int_equal(vm_mincore(c->mm, at, PAGE(20), vec, 24, &next), 0);
	assert_int_equal(next, at + PAGE(20));
	assert_true(vec[0] == 1 << 3 && vec[1] == 1 << 1 && vec[2] == 0);
	memset(vec, 0, sizeof(vec));
	assert_int_equal(vm_mincore(c->mm, at, PAGE(20), vec, 4, &next), 0);
	assert_int_equal(next, at + PAGE(4));
	assert_int_equal(vm_mincore(c->mm, at, PAGE(21), vec, 24, &next), ARENA_E_NOT_MAPPED);
	assert_int_equal(next, at + PAGE(20));
	assert_int_equal(vm_mincore(c->mm, at + 1, PAGE(1), vec, 24, &next), ARENA_E_INVALID);
	/* What the object has is in core, mapped here or not. */
	shared = client_map(c, PAGE(2), PROT_RW, MAP_ANON_SHARED);
	put(shared, 1);
	assert_int_equal(vm_madvise(c->mm, shared, PAGE(2), MADV_DONTNEED, NULL), 0);
	memset(vec, 0, sizeof(vec));
	assert_int_equal(vm_mincore(c->mm, shared, PAGE(1), vec, 24, &next), 0);
	assert_int_equal(vec[0], 1);
	struct io_wait wait = {0};
	assert_int_equal(vm_msync(c->mm, at, PAGE(20), MS_SYNC, &wait), 0);
	assert_int_equal(vm_msync(c->mm, at, PAGE(21), MS_SYNC, &wait), ARENA_E_NOT_MAPPED);
	assert_int_equal(vm_msync(c->mm, at, PAGE(20), MS_SYNC | MS_ASYNC, &wait), ARENA_E_INVALID);
	assert_int_equal(vm_mlock(c->mm, at, PAGE(1), true), 0);
	assert_int_equal(vm_msync(c->mm, at, PAGE(20), MS_INVALIDATE, &wait), ARENA_E_BUSY);
	assert_int_equal(vm_msync(c->mm, at + PAGE(1), PAGE(19), MS_INVALIDATE, &wait), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_mlock_counts), TEST(test_mlock_limits), TEST(test_populate_lock),
		TEST(test_growsdown),    TEST(test_overcommit),   TEST(test_gather),
		TEST(test_collapse),     TEST(test_remove),       TEST(test_mincore_msync),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
