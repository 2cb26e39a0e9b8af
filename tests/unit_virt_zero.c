/* SPDX-License-Identifier: MIT */
/* The zero page: what is read of private memory that was never written takes nothing of the arena. */
#include <fcntl.h>

#include "tests/virt_one.h"
#include "tests/virt_rmap.h"

#define ZERO_PFN ((pfn_t)phys_nr_frames(m.phys))

static int setup_zeros(void **state)
{
	setup(state);
	client_use_zeros(c);
	return 0;
}

static uint64_t event(enum event_item item)
{
	return m.state.counters[item];
}

static uint64_t map_leaves(unsigned n)
{
	uint64_t at = client_map(c, LEAF(n), PROT_RW, MAP_ANON_PRIVATE);

	assert_int_equal(at % ARENA_LEAF_SIZE, 0);
	return at;
}

static bool maps_zeros(const struct fake_client *of, uint64_t at)
{
	unsigned level;

	return pfn_is_zeros(&m, client_pfn(of, at)) &&
	       arena_pte_slot(client_walk(of, at, &level)) == ARENA_SLOT_ZERO;
}

static bool page_is_zero(struct fake_client *of, uint64_t at)
{
	return bytes_are_zero(client_read(of, at), ARENA_PAGE_SIZE);
}

static bool in_core(uint64_t at)
{
	uint8_t bits = 0;
	uint64_t next;

	assert_int_equal(vm_mincore(c->mm, at, PAGE(1), &bits, 1, &next), 0);
	return bits & 1;
}

static void test_read(void **state)
{
	uint64_t free = phys_free_pages(m.phys), at = map_leaves(8), i;
	struct fake_client *other = client_up(&m, 1001, 2);
	uint64_t there;

	(void)state;
	client_use_zeros(other);
	assert_false(in_core(at));
	for (i = 0; i < 8; i++)
		assert_true(page_is_zero(c, at + LEAF(i) + PAGE(i)));
	assert_true(in_core(at + LEAF(7)));
	assert_true(client_is_leaf(c, at));
	assert_int_equal(client_pfn(c, at), ZERO_PFN);
	assert_int_equal(client_pfn(c, at + LEAF(3) + PAGE(5)), ZERO_PFN + 5);
	there = client_map(other, LEAF(1), PROT_READ, MAP_ANON_PRIVATE);
	assert_true(page_is_zero(other, there));
	assert_true(maps_zeros(other, there));
	/* Neither the arena's, nor anybody's. */
	assert_int_equal(phys_free_pages(m.phys), free);
	assert_int_equal(c->mm->rss_anon, 0);
	assert_int_equal(c->mm->leaves, 0);
	assert_int_equal(event(EV_THP_ZERO_PAGE_ALLOC), 1);
	assert_int_equal(event(EV_THP_FAULT_ALLOC), 0);
	assert_true(virt_is_valid(m.virt));
	client_down(other);
}

static void test_write(void **state)
{
	uint64_t free = phys_free_pages(m.phys), at = map_leaves(2);

	(void)state;
	assert_true(page_is_zero(c, at));
	assert_true(page_is_zero(c, at + LEAF(1)));
	put(at + PAGE(9), 77);
	assert_true(client_is_leaf(c, at));
	assert_false(maps_zeros(c, at));
	assert_true(maps_zeros(c, at + LEAF(1)));
	assert_int_equal(phys_free_pages(m.phys), free - ARENA_LEAF_PAGES);
	assert_int_equal(c->mm->rss_anon, ARENA_LEAF_PAGES);
	/* The fault has posted what takes the old mapping away. */
	client_ack_all(c);
	assert_true(client_tlb_is_current(c));
	assert_int_equal(get(at + PAGE(9)), 77);
	assert_true(page_is_zero(c, at + PAGE(8)));
	/* Once more from the start. */
	assert_int_equal(vm_madvise(c->mm, at, LEAF(1), MADV_DONTNEED, NULL), 0);
	client_ack_all(c);
	assert_true(page_is_zero(c, at + PAGE(9)));
	assert_true(maps_zeros(c, at));
	assert_int_equal(phys_free_pages(m.phys), free);
}

/* Read in sequence, then written in sequence: both with few faults. */
static void test_sequence(void **state)
{
	uint64_t at = map_leaves(16), i, faults = c->mm->faults;

	(void)state;
	for (i = 0; i < 16; i++)
		assert_true(page_is_zero(c, at + LEAF(i)));
	assert_in_range(c->mm->faults - faults, 1, 4);
	faults = c->mm->faults;
	for (i = 0; i < 16; i++)
		put(at + LEAF(i), i + 1);
	assert_in_range(c->mm->faults - faults, 1, 5);
	client_ack_all(c);
	assert_true(client_tlb_is_current(c));
	for (i = 0; i < 16; i++)
		assert_int_equal(get(at + LEAF(i)), i + 1);
}

static void test_split(void **state)
{
	uint64_t free = phys_free_pages(m.phys), at = map_leaves(2), i;

	(void)state;
	assert_true(page_is_zero(c, at));
	assert_int_equal(vm_munmap(c->mm, at + PAGE(100), PAGE(2)), 0);
	assert_false(client_is_leaf(c, at));
	assert_true(maps_zeros(c, at + PAGE(99)) && maps_zeros(c, at + PAGE(102)));
	assert_int_equal(client_pfn(c, at + PAGE(102)), ZERO_PFN + 102);
	assert_true(virt_is_valid(m.virt));
	put(at + PAGE(50), 5);
	assert_true(page_is_zero(c, at + PAGE(49)));
	assert_true(maps_zeros(c, at + PAGE(49)));
	assert_true(phys_free_pages(m.phys) < free && phys_free_pages(m.phys) > free - 64);
	client_ack_all(c);
	assert_true(client_tlb_is_current(c));
	/* A leaf in whose place only single frames may come. */
	assert_true(page_is_zero(c, at + LEAF(1)));
	assert_true(maps_zeros(c, at + LEAF(1)));
	assert_int_equal(vm_madvise(c->mm, at + LEAF(1), LEAF(1), MADV_NOHUGEPAGE, NULL), 0);
	put(at + LEAF(1) + PAGE(3), 6);
	assert_false(client_is_leaf(c, at + LEAF(1)));
	assert_true(maps_zeros(c, at + LEAF(1) + PAGE(2)));
	client_ack_all(c);
	for (i = 0; i < 512; i++)
		if (i != 3)
			assert_true(page_is_zero(c, at + LEAF(1) + PAGE(i)));
	assert_int_equal(get(at + LEAF(1) + PAGE(3)), 6);
	assert_int_equal(get(at + PAGE(50)), 5);
}

static void test_protect(void **state)
{
	uint64_t at = client_map(c, LEAF(1), PROT_READ, MAP_ANON_PRIVATE);

	(void)state;
	assert_true(page_is_zero(c, at));
	assert_refused(c, at, PROT_WRITE, SIGSEGV, SEGV_ACCERR);
	assert_int_equal(vm_mprotect(c->mm, at, LEAF(1), PROT_NONE), 0);
	assert_refused(c, at, PROT_READ, SIGSEGV, SEGV_ACCERR);
	assert_int_equal(vm_mprotect(c->mm, at, LEAF(1), PROT_RW), 0);
	assert_true(page_is_zero(c, at + PAGE(1)));
	assert_true(maps_zeros(c, at));
	put(at, 1);
	assert_false(maps_zeros(c, at));
}

static void test_fork(void **state)
{
	uint64_t free = phys_free_pages(m.phys), at = map_leaves(2), copy;
	struct fake_client *child;

	(void)state;
	assert_true(page_is_zero(c, at));
	assert_true(page_is_zero(c, at + LEAF(1)));
	assert_int_equal(vm_munmap(c->mm, at + LEAF(1) + PAGE(7), PAGE(1)), 0);
	client_ack_all(c);
	child = client_fork(c, 9);
	assert_true(maps_zeros(child, at) && maps_zeros(child, at + LEAF(1)));
	assert_true(page_is_zero(child, at + PAGE(3)));
	assert_int_equal(phys_free_pages(m.phys), free);
	*client_write(child, at) = 1;
	assert_true(page_is_zero(c, at));
	*client_write(c, at) = 2;
	assert_int_equal(*client_read(child, at), 1);
	assert_true(rmap_finds_every_entry(m.virt));
	client_down(child);
	client_ack_all(c);
	assert_int_equal(vm_snapshot(c->mm, at, LEAF(1) + PAGE(7), &copy), 0);
	assert_true(maps_zeros(c, copy + LEAF(1)));
	put(at + LEAF(1), 3);
	assert_true(page_is_zero(c, copy + LEAF(1)));
	assert_int_equal(*client_read(c, copy), 2);
	client_ack_all(c);
}

static void test_mremap(void **state)
{
	uint64_t at = map_leaves(4), to = map_leaves(4), out;

	(void)state;
	assert_true(page_is_zero(c, at));
	put(at + LEAF(1), 8);
	assert_int_equal(remap(at, LEAF(2), LEAF(2), MREMAP_MAYMOVE | MREMAP_FIXED, to, &out), 0);
	assert_true(client_is_leaf(c, to) && maps_zeros(c, to));
	assert_int_equal(get(to + LEAF(1)), 8);
	/* Not alike modulo 2 MiB. */
	assert_int_equal(remap(to, LEAF(1), LEAF(1), MREMAP_MAYMOVE | MREMAP_FIXED,
			       at + LEAF(2) + PAGE(5), &out),
			 0);
	assert_true(maps_zeros(c, at + LEAF(2) + PAGE(5)));
	client_ack_all(c);
	put(at + LEAF(2) + PAGE(5), 9);
	assert_true(page_is_zero(c, at + LEAF(2) + PAGE(6)));
	client_ack_all(c);
	assert_true(client_tlb_is_current(c));
}

/* Nothing may ever be put in the place of what is pinned, nor is there anything to lock. */
static void test_pin(void **state)
{
	uint64_t at = map_leaves(2), next = 0;
	pfn_t pfn;

	(void)state;
	assert_true(page_is_zero(c, at));
	assert_null(follow_page(c->mm, at, false, &pfn));
	assert_int_equal(vm_pin(c->mm, at, PAGE(2), false, 0, &next), 0);
	assert_int_equal(next, at + PAGE(2));
	assert_false(maps_zeros(c, at));
	pfn = client_pfn(c, at);
	put(at, 1);
	assert_int_equal(client_pfn(c, at), pfn);
	assert_int_equal(vm_unpin(c->mm, at, PAGE(2)), 0);
	assert_true(page_is_zero(c, at + LEAF(1)));
	assert_int_equal(vm_mlock(c->mm, at + LEAF(1) + PAGE(1), PAGE(1), true), 0);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(c->mm->locked_vm, 1);
	put(at + LEAF(1) + PAGE(1), 2);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(vm_munlock(c->mm, at + LEAF(1), LEAF(1)), 0);
	client_ack_all(c);
}

static void test_populate(void **state)
{
	uint64_t free = phys_free_pages(m.phys), at = map_leaves(3), next = 0;

	(void)state;
	assert_int_equal(vm_populate(c->mm, at, LEAF(1), POPULATE_READ, 0, &next), 0);
	assert_int_equal(next, at + LEAF(1));
	assert_true(maps_zeros(c, at));
	assert_int_equal(vm_populate(c->mm, at, LEAF(2), POPULATE_WRITE, 0, &next), 0);
	assert_false(maps_zeros(c, at) || maps_zeros(c, at + LEAF(1)));
	/* As mlock does, which wants what will be written. */
	assert_int_equal(vm_populate(c->mm, at + LEAF(2), LEAF(1), POPULATE_LOCK, 0, &next), 0);
	assert_false(maps_zeros(c, at + LEAF(2)));
	assert_int_equal(phys_free_pages(m.phys), free - 3 * ARENA_LEAF_PAGES);
	client_ack_all(c);
}

static void test_collapse(void **state)
{
	uint64_t at = map_leaves(1);

	(void)state;
	assert_true(page_is_zero(c, at));
	assert_int_equal(vm_madvise(c->mm, at, LEAF(1), MADV_COLLAPSE, NULL), 0);
	assert_int_equal(vm_mprotect(c->mm, at, PAGE(1), PROT_READ), 0);
	assert_int_equal(vm_mprotect(c->mm, at, PAGE(1), PROT_RW), 0);
	put(at + PAGE(40), 4);
	client_ack_all(c);
	assert_true(maps_zeros(c, at));
	while (vm_madvise(c->mm, at, LEAF(1), MADV_COLLAPSE, NULL) == ARENA_E_AGAIN)
		client_ack_all(c);
	client_ack_all(c);
	assert_true(client_is_leaf(c, at) && !maps_zeros(c, at));
	assert_int_equal(get(at + PAGE(40)), 4);
	assert_true(page_is_zero(c, at + PAGE(39)));
}

static void test_not_asked(void **state)
{
	uint64_t free = phys_free_pages(m.phys), at, there;
	struct fake_client *other = client_up(&m, 1000, 2);

	(void)state;
	there = client_map(other, LEAF(1), PROT_RW, MAP_ANON_PRIVATE);
	assert_true(page_is_zero(other, there));
	assert_false(maps_zeros(other, there));
	client_down(other);
	assert_int_equal(phys_free_pages(m.phys), free);
	/* Shared memory, and where no leaf fits. */
	at = client_map(c, LEAF(1), PROT_RW, MAP_ANON_SHARED);
	assert_true(page_is_zero(c, at));
	assert_false(maps_zeros(c, at));
	at = client_map(c, PAGE(9), PROT_RW, MAP_ANON_PRIVATE);
	assert_true(page_is_zero(c, at));
	assert_false(maps_zeros(c, at));
	m.state.tunables[TUNABLE_USE_ZERO_PAGE] = 0;
	at = map_leaves(1);
	assert_true(page_is_zero(c, at));
	assert_false(maps_zeros(c, at));
}

/* What was mapped before goes on. */
static void test_turned_off(void **state)
{
	uint64_t at = map_leaves(2);

	(void)state;
	assert_true(page_is_zero(c, at));
	m.state.tunables[TUNABLE_USE_ZERO_PAGE] = 0;
	assert_true(page_is_zero(c, at + PAGE(1)));
	assert_true(maps_zeros(c, at));
	assert_true(page_is_zero(c, at + LEAF(1)));
	assert_false(maps_zeros(c, at + LEAF(1)));
	put(at, 1);
	assert_int_equal(get(at), 1);
}

static void test_no_memory(void **state)
{
	uint64_t at = map_leaves(2);

	(void)state;
	assert_int_equal(faultpoint_arm("virt.zero=fail@1"), 0);
	assert_true(page_is_zero(c, at));
	assert_int_equal(faultpoint_arm(NULL), 0);
	assert_false(maps_zeros(c, at));
	assert_int_equal(event(EV_THP_ZERO_PAGE_ALLOC_FAILED), 1);
	assert_int_equal(event(EV_THP_ZERO_PAGE_ALLOC), 0);
}

/* Whoever has the file, and whatever he is: it cannot be written to. */
static void test_sealed(void **state)
{
	uint64_t offset = (uint64_t)ZERO_PFN << ARENA_PAGE_SHIFT, at = map_leaves(1);
	int fd = vm_zero_file(c->mm), ro = os_reopen_readonly(fd);
	char path[64];
	void *p;
	int again;

	(void)state;
	assert_true(page_is_zero(c, at));
	assert_true(ro >= 0);
	assert_int_equal(pwrite(fd, "x", 1, (off_t)offset), -1);
	assert_int_equal(os_map(fd, offset, ARENA_LEAF_SIZE, OS_MAP_READ | OS_MAP_WRITE, &p),
			 -EPERM);
	assert_int_equal(
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, 4096), -1);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", ro);
	again = open(path, O_RDWR | O_CLOEXEC);
	if (again >= 0) {
		assert_int_equal(pwrite(again, "x", 1, (off_t)offset), -1);
		assert_int_equal(
			os_map(again, offset, ARENA_LEAF_SIZE, OS_MAP_READ | OS_MAP_WRITE, &p),
			-EPERM);
		close(again);
	}
	/* To a mapping without it the right cannot be given either. */
	assert_int_equal(os_map(ro, offset, ARENA_LEAF_SIZE, OS_MAP_READ, &p), 0);
	assert_true(mprotect(p, ARENA_LEAF_SIZE, PROT_READ | PROT_WRITE) < 0);
	os_unmap(p, ARENA_LEAF_SIZE);
	close(ro);
}

#define ZERO_TEST(t) cmocka_unit_test_setup_teardown(t, setup_zeros, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ZERO_TEST(test_read),      ZERO_TEST(test_write),     ZERO_TEST(test_sequence),
		ZERO_TEST(test_split),     ZERO_TEST(test_protect),   ZERO_TEST(test_fork),
		ZERO_TEST(test_mremap),    ZERO_TEST(test_pin),       ZERO_TEST(test_populate),
		ZERO_TEST(test_collapse),  ZERO_TEST(test_not_asked), ZERO_TEST(test_turned_off),
		ZERO_TEST(test_no_memory), ZERO_TEST(test_sealed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
