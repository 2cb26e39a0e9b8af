/* SPDX-License-Identifier: MIT */
/* Frames mapped by number: what such mappings refuse, whose frames they may be, and how long those live. */
#include "tests/virt_one.h"

#define N 8u

static uint64_t direct, pfn; /* of a block of N frames */

static int setup_block(void **state)
{
	setup(state);
	assert_int_equal(vm_alloc_pages(c->mm, ARENA_GFP_DMA, 3, 0, &direct, &pfn), 0);
	return 0;
}

static int map_pfn(struct fake_client *by, uint64_t addr, uint64_t first, uint64_t len,
		   uint32_t prot, uint32_t flags, uint64_t *out)
{
	struct vm_mmap_args a = {.addr = addr, .len = len, .prot = prot, .flags = flags};

	return vm_mmap_pfn(by->mm, &a, first, out);
}

static uint64_t map_block(uint32_t flags)
{
	uint64_t at = 0;

	assert_int_equal(map_pfn(c, 0, pfn, PAGE(N), PROT_RW, flags, &at), 0);
	return at;
}

static void free_block(void)
{
	assert_int_equal(vm_free_pages(c->mm, direct, 3), 0);
	client_ack_all(c);
}

static void test_same_frames(void **state)
{
	uint64_t at = map_block(0), part, committed = virt_committed_pages(m.virt);
	unsigned i;

	(void)state;
	for (i = 0; i < N; i++) {
		put(direct + PAGE(i), 100 + i);
		assert_int_equal(get(at + PAGE(i)), 100 + i);
		assert_int_equal(client_pfn(c, at + PAGE(i)), pfn + i);
	}
	put(at + PAGE(3), 7);
	assert_int_equal(get(direct + PAGE(3)), 7);
	/* From the middle, for reading. */
	assert_int_equal(map_pfn(c, 0, pfn + 3, PAGE(2), PROT_READ, 0, &part), 0);
	assert_int_equal(get(part), 7);
	assert_refused(c, part, PROT_WRITE, SIGSEGV, SEGV_ACCERR);
	assert_int_equal(vm_mprotect(c->mm, part, PAGE(2), PROT_RW), 0);
	put(part + PAGE(1), 8);
	/* It is there: nothing is promised. */
	assert_int_equal(virt_committed_pages(m.virt), committed);
	assert_int_equal(get(at + PAGE(4)), 8);
	assert_int_equal(pfn_to_page(m.phys, (pfn_t)pfn)->mapcount, 2 * N + 2);
	assert_int_equal(vm_munmap(c->mm, part, PAGE(2)), 0);
	assert_int_equal(vm_munmap(c->mm, at, PAGE(N)), 0);
	client_ack_all(c);
	assert_int_equal(pfn_to_page(m.phys, (pfn_t)pfn)->refcount, N);
	free_block();
}

static void test_outlives_free(void **state)
{
	uint64_t at = map_block(0), free, other, number, i;

	(void)state;
	put(direct + PAGE(5), 55);
	free_block();
	free = phys_free_pages(m.phys);
	assert_int_equal(get(at + PAGE(5)), 55);
	/* Nobody gets them, and nobody may map them again. */
	for (i = 0; i < 40; i++) {
		assert_int_equal(vm_alloc_pages(c->mm, ARENA_GFP_DMA, 0, 0, &other, &number), 0);
		assert_true(number < pfn || number >= pfn + N);
		put(other, 1);
	}
	assert_int_equal(map_pfn(c, 0, pfn, PAGE(1), PROT_RW, 0, &other), ARENA_E_PERMISSION);
	assert_int_equal(vm_free_pages(c->mm, direct, 3), ARENA_E_INVALID);
	assert_int_equal(get(at + PAGE(5)), 55);
	free = phys_free_pages(m.phys);
	assert_int_equal(vm_munmap(c->mm, at, PAGE(N - 1)), 0);
	client_ack_all(c);
	assert_int_equal(phys_free_pages(m.phys), free);
	assert_int_equal(vm_munmap(c->mm, at + PAGE(N - 1), PAGE(1)), 0);
	assert_int_equal(phys_free_pages(m.phys), free); /* may be mapped yet */
	client_ack_all(c);
	assert_int_equal(phys_free_pages(m.phys), free + N);
}

static void test_whose(void **state)
{
	struct fake_client *other = client_up(&m, 1000, 2);
	uint64_t at, anon = client_map(c, PAGE(4), PROT_RW, MAP_ANON_PRIVATE);

	(void)state;
	put(anon, 1);
	assert_int_equal(map_pfn(other, 0, pfn, PAGE(1), PROT_READ, 0, &at), ARENA_E_PERMISSION);
	assert_int_equal(map_pfn(c, 0, client_pfn(c, anon), PAGE(1), PROT_READ, 0, &at),
			 ARENA_E_PERMISSION);
	assert_int_equal(map_pfn(c, 0, pfn + 1, PAGE(N), PROT_READ, 0, &at), ARENA_E_PERMISSION);
	assert_int_equal(map_pfn(c, 0, phys_nr_frames(m.phys), PAGE(1), PROT_READ, 0, &at),
			 ARENA_E_INVALID);
	assert_int_equal(map_pfn(c, 0, UINT64_MAX, PAGE(2), PROT_READ, 0, &at), ARENA_E_INVALID);
	assert_int_equal(map_pfn(c, 0, pfn, 0, PROT_READ, 0, &at), ARENA_E_INVALID);
	assert_int_equal(map_pfn(c, 0, 0, PAGE(65537), PROT_READ, 0, &at), ARENA_E_INVALID);
	assert_int_equal(map_pfn(c, 0, pfn, PAGE(1), PROT_READ, MAP_GROWSDOWN, &at),
			 ARENA_E_INVALID);
	assert_int_equal(map_pfn(c, anon, pfn, PAGE(1), PROT_READ, MAP_FIXED_NOREPLACE, &at),
			 ARENA_E_EXISTS);
	assert_int_equal(map_pfn(c, anon + 1, pfn, PAGE(1), PROT_READ, MAP_FIXED, &at),
			 ARENA_E_INVALID);
	assert_int_equal(map_pfn(c, direct, pfn, PAGE(1), PROT_READ, MAP_FIXED, &at),
			 ARENA_E_INVALID);
	/* In the place of something. */
	put(direct + PAGE(2), 33);
	assert_int_equal(map_pfn(c, anon + PAGE(1), pfn + 2, PAGE(1), PROT_READ, MAP_FIXED, &at),
			 0);
	assert_int_equal(at, anon + PAGE(1));
	assert_int_equal(get(at), 33);
	assert_int_equal(get(anon), 1);
	client_ack_all(c);
	assert_true(client_tlb_is_current(c));
	client_down(other);
	free_block();
}

/* As Linux refuses it of a driver's mapping. */
static void test_refusals(void **state)
{
	uint64_t at = map_block(0), out, next = at, to, locked = c->mm->locked_vm;
	pfn_t number;

	(void)state;
	assert_int_equal(remap(at, PAGE(N), PAGE(2 * N), MREMAP_MAYMOVE, 0, &out), ARENA_E_FAULT);
	assert_int_equal(remap(at, PAGE(N), PAGE(N), MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0, &out),
			 ARENA_E_INVALID);
	assert_int_equal(vm_madvise(c->mm, at, PAGE(1), MADV_DONTNEED, NULL), ARENA_E_INVALID);
	assert_int_equal(vm_madvise(c->mm, at, PAGE(1), MADV_FREE, NULL), ARENA_E_INVALID);
	assert_int_equal(vm_madvise(c->mm, at, PAGE(1), MADV_WIPEONFORK, NULL), ARENA_E_INVALID);
	assert_int_equal(vm_madvise(c->mm, at, PAGE(1), MADV_DOFORK, NULL), ARENA_E_INVALID);
	assert_int_equal(vm_snapshot(c->mm, at, PAGE(N), &out), ARENA_E_INVALID);
	assert_int_equal(vm_pin(c->mm, at, PAGE(1), true, 0, &next), ARENA_E_FAULT);
	assert_null(follow_page(c->mm, at, false, &number));
	assert_int_equal(number, pfn);
	assert_int_equal(vm_populate(c->mm, at, PAGE(1), POPULATE_READ, 0, &next), ARENA_E_INVALID);
	assert_int_equal(vm_mlock(c->mm, at, PAGE(N), false), 0);
	assert_int_equal(vm_populate(c->mm, at, PAGE(N), POPULATE_LOCK, 0, &next), 0);
	assert_int_equal(c->mm->locked_vm, locked);
	assert_int_equal(c->mm->data_vm, 0);
	/* Moved and shrunk it may be. */
	put(at + PAGE(1), 9);
	to = client_map(c, PAGE(N), PROT_RW, MAP_ANON_PRIVATE);
	assert_int_equal(remap(at, PAGE(N), PAGE(N), MREMAP_MAYMOVE | MREMAP_FIXED, to, &out), 0);
	assert_int_equal(get(to + PAGE(1)), 9);
	assert_int_equal(client_pfn(c, to + PAGE(7)), pfn + 7);
	assert_int_equal(remap(to, PAGE(N), PAGE(2), 0, 0, &out), 0);
	assert_int_equal(count_vmas(c), 2);
	assert_refused(c, to + PAGE(2), PROT_READ, SIGSEGV, SEGV_MAPERR);
	client_ack_all(c);
	free_block();
}

static void test_mixed(void **state)
{
	uint64_t at = map_block(ARENA_MAP_MIXED), out, next = at, free;
	pfn_t number;

	(void)state;
	assert_ptr_equal(follow_page(c->mm, at + PAGE(2), true, &number),
			 pfn_to_page(m.phys, (pfn_t)pfn));
	assert_int_equal(number, pfn + 2);
	assert_int_equal(remap(at, PAGE(N), PAGE(2 * N), MREMAP_MAYMOVE, 0, &out), ARENA_E_FAULT);
	assert_int_equal(vm_madvise(c->mm, at, PAGE(1), MADV_DONTNEED, NULL), ARENA_E_INVALID);
	assert_int_equal(vm_pin(c->mm, at, PAGE(2), true, 0, &next), 0);
	assert_int_equal(next, at + PAGE(2));
	assert_true(virt_is_valid(m.virt));
	/* The pin alone holds them now. */
	assert_int_equal(vm_munmap(c->mm, at, PAGE(N)), 0);
	free_block();
	free = phys_free_pages(m.phys);
	assert_int_equal(vm_unpin(c->mm, at, PAGE(2)), 0);
	assert_int_equal(phys_free_pages(m.phys), free + N);
}

/* Neighbours are one VMA where their frames are neighbours. A child has none of it. */
static void test_neighbours(void **state)
{
	uint64_t area = client_map(c, PAGE(64), PROT_NONE, MAP_ANON_PRIVATE), out;
	struct fake_client *child;
	unsigned before;

	(void)state;
	assert_int_equal(vm_munmap(c->mm, area, PAGE(64)), 0);
	before = count_vmas(c);
	assert_int_equal(map_pfn(c, area, pfn, PAGE(2), PROT_RW, MAP_FIXED, &out), 0);
	assert_int_equal(map_pfn(c, area + PAGE(2), pfn + 2, PAGE(2), PROT_RW, MAP_FIXED, &out), 0);
	assert_int_equal(count_vmas(c), before + 1);
	assert_int_equal(map_pfn(c, area + PAGE(4), pfn, PAGE(2), PROT_RW, MAP_FIXED, &out), 0);
	assert_int_equal(count_vmas(c), before + 2);
	assert_true(virt_is_valid(m.virt));
	child = client_fork(c, 7);
	assert_refused(child, area, PROT_READ, SIGSEGV, SEGV_MAPERR);
	assert_int_equal(map_pfn(child, 0, pfn, PAGE(1), PROT_READ, 0, &out), ARENA_E_PERMISSION);
	client_down(child);
	/* With its last mapping, and not before, at the end of everything. */
	free_block();
	put(area, 1);
}

static void test_no_memory(void **state)
{
	uint64_t out, free = phys_free_pages(m.phys);
	unsigned vmas = count_vmas(c);

	(void)state;
	assert_int_equal(faultpoint_arm("virt.table=fail@1"), 0);
	assert_int_equal(map_pfn(c, 0, pfn, PAGE(N), PROT_RW, 0, &out), ARENA_E_NO_MEMORY);
	assert_int_equal(faultpoint_arm(NULL), 0);
	assert_int_equal(count_vmas(c), vmas);
	assert_int_equal(phys_free_pages(m.phys), free);
	assert_true(virt_is_valid(m.virt));
	map_block(0);
	free_block();
}

#define PFN_TEST(t) cmocka_unit_test_setup_teardown(t, setup_block, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		PFN_TEST(test_same_frames), PFN_TEST(test_outlives_free), PFN_TEST(test_whose),
		PFN_TEST(test_refusals),    PFN_TEST(test_mixed),         PFN_TEST(test_neighbours),
		PFN_TEST(test_no_memory),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
