/* SPDX-License-Identifier: MIT */
/* VMAs: merge, split, their records in the mm file, placement, arguments, limits, the direct map. */
#include "tests/virt_fake.h"

static struct fake_machine m;
static struct fake_client *c;

static int up(void **state)
{
	(void)state;
	machine_up(&m, UINT64_C(128) << 20, 1);
	c = client_up(&m, 1000, 1);
	return 0;
}

static int down(void **state)
{
	(void)state;
	faultpoint_arm(NULL);
	c = client_down(c);
	machine_down(&m);
	return 0;
}

/* A place of the window where nothing else goes by itself. */
static uint64_t spot(uint64_t leaf)
{
	return c->mm->header->mmap_floor + LEAF(1024 + leaf);
}

static void map_at(uint64_t at, uint64_t len, uint32_t prot)
{
	uint64_t out;

	assert_int_equal(client_mmap(c, at, len, prot, MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &out),
			 0);
	assert_int_equal(out, at);
}

static void assert_vma(uint64_t at, uint64_t start, uint64_t end, uint32_t prot)
{
	struct vma_info v;

	assert_true(mm_next_vma(c->mm, at, &v));
	assert_int_equal(v.start, start);
	assert_int_equal(v.end, end);
	assert_int_equal(v.prot, prot);
}

static void test_merge(void **state)
{
	uint64_t at = spot(0);

	(void)state;
	map_at(at, PAGE(2), PROT_RW);
	map_at(at + PAGE(4), PAGE(2), PROT_RW);
	assert_int_equal(count_vmas(c), 2);
	map_at(at + PAGE(2), PAGE(1), PROT_RW); /* grows the lower one */
	assert_int_equal(count_vmas(c), 2);
	map_at(at + PAGE(3), PAGE(1), PROT_RW); /* joins both */
	assert_int_equal(count_vmas(c), 1);
	assert_vma(at, at, at + PAGE(6), PROT_RW);
	map_at(at - PAGE(1), PAGE(1), PROT_RW); /* grows downwards */
	assert_vma(at, at - PAGE(1), at + PAGE(6), PROT_RW);
	map_at(at + PAGE(6), PAGE(1), PROT_READ);
	assert_int_equal(count_vmas(c), 2);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(vm_mprotect(c->mm, at + PAGE(6), PAGE(1), PROT_RW), 0);
	assert_int_equal(count_vmas(c), 1);
	assert_int_equal(c->mm->total_vm, 8);
	assert_int_equal(vm_munmap(c->mm, at - PAGE(8), PAGE(100)), 0);
	assert_int_equal(count_vmas(c), 0);
	assert_int_equal(c->mm->total_vm, 0);
}

static void test_split(void **state)
{
	uint64_t at = spot(0);

	(void)state;
	map_at(at, PAGE(9), PROT_RW);
	assert_int_equal(vm_mprotect(c->mm, at + PAGE(3), PAGE(3), PROT_READ), 0);
	assert_int_equal(count_vmas(c), 3);
	assert_vma(at, at, at + PAGE(3), PROT_RW);
	assert_vma(at + PAGE(3), at + PAGE(3), at + PAGE(6), PROT_READ);
	assert_vma(at + PAGE(6), at + PAGE(6), at + PAGE(9), PROT_RW);
	assert_int_equal(vm_munmap(c->mm, at + PAGE(4), PAGE(1)), 0);
	assert_int_equal(count_vmas(c), 4);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(vm_mprotect(c->mm, at, PAGE(9), PROT_NONE), ARENA_E_NOT_MAPPED);
	assert_vma(at, at, at + PAGE(4), PROT_NONE); /* what comes before the hole is changed */
	assert_vma(at + PAGE(5), at + PAGE(5), at + PAGE(6), PROT_READ);
	map_at(at + PAGE(2), PAGE(5), PROT_RW); /* over four of them */
	assert_vma(at + PAGE(2), at + PAGE(2), at + PAGE(9), PROT_RW);
	assert_int_equal(count_vmas(c), 2);
}

/* What a client reads of the records is the tree, and no transaction is left open. */
static void test_records(void **state)
{
	const struct arena_mm_header *h = (const void *)c->file;
	const struct arena_vma_record *r = (const void *)(c->file + ARENA_MM_VMAS_OFFSET);
	uint64_t at = spot(0);
	unsigned live = 0, i;

	(void)state;
	assert_int_equal(h->magic, ARENA_MM_MAGIC);
	assert_int_equal(h->window_base, ARENA_WINDOW_BASE);
	map_at(at, PAGE(8), PROT_RW);
	assert_int_equal(vm_mprotect(c->mm, at + PAGE(2), PAGE(2), PROT_READ), 0);
	assert_int_equal(vm_mprotect(c->mm, at + PAGE(2), PAGE(2), PROT_RW), 0);
	assert_int_equal(vm_munmap(c->mm, at + PAGE(7), PAGE(1)), 0);
	for (i = 0; i < 16; i++) {
		if (r[i].state == ARENA_VMA_FREE)
			continue;
		live++;
		assert_int_equal(r[i].state, ARENA_VMA_LIVE);
		assert_int_equal(r[i].start, at);
		assert_int_equal(r[i].end, at + PAGE(7));
		assert_int_equal(r[i].prot, PROT_RW);
		assert_int_equal(r[i].pgoff, at >> ARENA_PAGE_SHIFT);
		assert_int_equal(r[i].object, 0);
	}
	assert_int_equal(live, 1);
	assert_int_equal(h->txn.armed, 0);
}

static void test_mmap_arguments(void **state)
{
	static const struct {
		uint64_t addr, len;
		uint32_t flags, segment;
		int64_t offset;
		int want;
	} rows[] = {
		{0, 0, MAP_ANON_PRIVATE, 0, 0, ARENA_E_INVALID},
		{0, 4096, MAP_ANONYMOUS, 0, 0, ARENA_E_INVALID},
		{0, 4096, MAP_ANONYMOUS | MAP_PRIVATE | MAP_SHARED, 0, 0, ARENA_E_INVALID},
		{0, 4096, MAP_PRIVATE, 0, 0, ARENA_E_NO_DEVICE},
		{0, 4096, MAP_ANON_PRIVATE | MAP_HUGETLB, 0, 0, ARENA_E_UNSUPPORTED},
		{0, 4096, MAP_ANON_PRIVATE | MAP_32BIT, 0, 0, ARENA_E_UNSUPPORTED},
		{0, 4096, MAP_ANON_SHARED | MAP_GROWSDOWN, 0, 0, ARENA_E_INVALID},
		{0, 4096, MAP_ANON_PRIVATE, 0, 1, ARENA_E_INVALID},
		{0, 4096, MAP_ANON_PRIVATE, 0, -4096, ARENA_E_INVALID},
		{0, 4096, MAP_SHARED, 77, 0, ARENA_E_INVALID},
		{0, UINT64_MAX, MAP_ANON_PRIVATE, 0, 0, ARENA_E_NO_MEMORY},
		{0, UINT64_MAX - 4096, MAP_ANON_SHARED, 0, 4096, ARENA_E_NO_MEMORY},
		{0, 8192, MAP_ANON_SHARED, 0, INT64_MAX - 4095, ARENA_E_OVERFLOW_},
		{0, UINT64_C(1) << 46, MAP_ANON_PRIVATE, 0, 0, ARENA_E_NO_MEMORY},
		{0, TEST_WINDOW, MAP_ANON_SHARED, 0, 0, ARENA_E_NO_MEMORY},
		{4096, 4096, MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, ARENA_E_NO_MEMORY},
		{5000, 4096, MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, ARENA_E_INVALID},
		{ARENA_WINDOW_BASE - 4096, 8192, MAP_ANON_PRIVATE | MAP_FIXED, 0, 0,
		 ARENA_E_NO_MEMORY},
		{ARENA_WINDOW_BASE + TEST_WINDOW - 4096, 8192, MAP_ANON_PRIVATE | MAP_FIXED, 0, 0,
		 ARENA_E_NO_MEMORY},
		{UINT64_MAX - 4095, 8192, MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, ARENA_E_NO_MEMORY},
	};
	uint64_t out;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		int r = client_mmap(c, rows[i].addr, rows[i].len, PROT_RW, rows[i].flags,
				    rows[i].segment, rows[i].offset, &out);

		if (r != rows[i].want)
			fail_msg("row %zu: %d, not %d", i, r, rows[i].want);
	}
	assert_int_equal(count_vmas(c), 0);
	assert_true(virt_is_valid(m.virt));
}

static void test_range_arguments(void **state)
{
	static const uint64_t bad[][2] = {{ARENA_WINDOW_BASE - 4096, 8192},
					  {ARENA_WINDOW_BASE + TEST_WINDOW - 4096, 8192},
					  {0, 4096},
					  {UINT64_MAX - 4095, 4096},
					  {ARENA_WINDOW_BASE, UINT64_MAX - ARENA_WINDOW_BASE},
					  {ARENA_WINDOW_BASE + (UINT64_C(1) << 48), 4096}};
	struct fault_refusal refusal;
	uint64_t at = spot(0), next;
	size_t i;

	(void)state;
	map_at(at, PAGE(1), PROT_RW);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(vm_munmap(c->mm, bad[i][0], bad[i][1]), ARENA_E_INVALID);
		assert_int_equal(
			error_to_errno(vm_mprotect(c->mm, bad[i][0], bad[i][1], PROT_READ)),
			ENOMEM);
		assert_int_not_equal(vm_populate(c->mm, bad[i][0], bad[i][1], true, 0, &next), 0);
	}
	assert_int_equal(vm_munmap(c->mm, at, 0), ARENA_E_INVALID);
	assert_int_equal(vm_munmap(c->mm, at + 1, 4096), ARENA_E_INVALID);
	assert_int_equal(vm_mprotect(c->mm, at + 1, 4096, PROT_READ), ARENA_E_INVALID);
	assert_int_equal(vm_mprotect(c->mm, at, 4096, 0x100), ARENA_E_INVALID);
	assert_int_equal(vm_mprotect(c->mm, at, 0, PROT_READ), 0);
	assert_int_equal(vm_madvise(c->mm, at, 0, MADV_DONTNEED, NULL), 0);
	assert_int_equal(vm_madvise(c->mm, at + 1, 4096, MADV_DONTNEED, NULL), ARENA_E_INVALID);
	assert_int_equal(vm_madvise(c->mm, at, 4096, MADV_REMOVE, 0), ARENA_E_INVALID);
	assert_int_equal(vm_madvise(c->mm, at, UINT64_MAX - 8191, MADV_DONTNEED, NULL),
			 ARENA_E_INVALID);
	/* The walk sees 48 bits: what lies above must not pass for what lies below. */
	client_write(c, at);
	assert_int_equal(vm_populate(c->mm, at + (UINT64_C(1) << 48), 4096, true, 0, &next),
			 ARENA_E_NOT_MAPPED);
	assert_int_equal(vm_fault(c->mm, at + (UINT64_C(1) << 48), PROT_WRITE, 0, &refusal), 0);
	assert_int_equal(refusal.signo, SIGSEGV);
	assert_int_equal(refusal.code, SEGV_MAPERR);
	assert_int_equal(vm_fault(c->mm, at, 0x40, 0, &refusal), ARENA_E_INVALID);
	assert_vma(at, at, at + PAGE(1), PROT_RW);
}

static void test_placement(void **state)
{
	const struct arena_mm_header *h = c->mm->header;
	uint64_t a, b, hole, out;

	(void)state;
	a = client_map(c, PAGE(4), PROT_RW, MAP_ANON_PRIVATE);
	assert_int_equal(a, h->mmap_base - PAGE(4));
	b = client_map(c, PAGE(4), PROT_RW, MAP_ANON_SHARED);
	assert_int_equal(b, a - PAGE(4));
	hole = b;
	client_map(c, PAGE(1), PROT_READ, MAP_ANON_PRIVATE);
	assert_int_equal(vm_munmap(c->mm, hole, PAGE(4)), 0);
	assert_int_equal(client_map(c, PAGE(3), PROT_NONE, MAP_ANON_PRIVATE), hole + PAGE(1));
	out = client_map(c, LEAF(3), PROT_RW, MAP_ANON_PRIVATE);
	assert_true(IS_ALIGNED(out, ARENA_LEAF_SIZE) && out < hole);
	/* A hint that is free is taken, one that is not is only a hint. */
	assert_int_equal(
		client_mmap(c, spot(7) + 5, PAGE(1), PROT_RW, MAP_ANON_PRIVATE, 0, 0, &out), 0);
	assert_int_equal(out, spot(7));
	assert_int_equal(client_mmap(c, spot(7), PAGE(1), PROT_RW, MAP_ANON_PRIVATE, 0, 0, &out),
			 0);
	assert_int_not_equal(out, spot(7));
	assert_int_equal(client_mmap(c, spot(7), PAGE(1), PROT_RW,
				     MAP_ANON_PRIVATE | MAP_FIXED_NOREPLACE, 0, 0, &out),
			 ARENA_E_EXISTS);
	/* Fill the area up; a smaller one still fits, and what was freed is found again. */
	assert_int_equal(client_mmap(c, 0, h->mmap_base - h->mmap_floor, PROT_NONE,
				     MAP_ANON_PRIVATE | MAP_NORESERVE, 0, 0, &out),
			 ARENA_E_NO_MEMORY);
	while (!client_mmap(c, 0, LEAF(1024), PROT_NONE, MAP_ANON_SHARED, 0, 0, &out))
		a = out;
	assert_int_equal(vm_munmap(c->mm, a, LEAF(1024)), 0);
	assert_int_equal(client_map(c, LEAF(1024), PROT_NONE, MAP_ANON_PRIVATE), a);
	assert_true(virt_is_valid(m.virt));
}

#define MAX_MAP_COUNT 65530u /* by default */

/* As in Linux: cutting stops at max_map_count, mmap one above it; running out loses nothing. */
static void test_record_limit(void **state)
{
	uint64_t at = spot(0), out, n;
	struct vma_info last;
	int r;

	(void)state;
	map_at(at, PAGE(2 * ARENA_MM_MAX_VMAS), PROT_READ);
	for (n = 0, r = 0; !r; n++)
		r = vm_mprotect(c->mm, at + PAGE(2 * n), PAGE(1), PROT_RW);
	assert_int_equal(r, ARENA_E_NO_MEMORY);
	assert_true(c->mm->nr_vmas <= MAX_MAP_COUNT && c->mm->nr_vmas > MAX_MAP_COUNT - 3);
	assert_true(virt_is_valid(m.virt));
	for (r = 0; !r;)
		r = client_mmap(c, spot(4000) + PAGE(2 * c->mm->nr_vmas), PAGE(1), PROT_RW,
				MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &out);
	assert_int_equal(r, ARENA_E_NO_MEMORY);
	assert_int_equal(c->mm->nr_vmas, MAX_MAP_COUNT + 1);
	/* A hole in the middle needs a record more; at an edge it does not. */
	assert_true(mm_next_vma(c->mm, at + PAGE(2 * n - 2), &last));
	assert_int_equal(vm_munmap(c->mm, last.end - PAGE(4), PAGE(1)), ARENA_E_NO_MEMORY);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(vm_munmap(c->mm, at, PAGE(4)), 0);
	assert_int_equal(vm_munmap(c->mm, at, PAGE(2 * ARENA_MM_MAX_VMAS)), 0);
	assert_true(c->mm->nr_vmas < 10);
	assert_true(virt_is_valid(m.virt));
}

static void test_direct_map(void **state)
{
	const struct arena_mm_header *h = c->mm->header;
	uint64_t addr, pfn, other, out, i;
	struct mm_stats stats;

	(void)state;
	assert_int_equal(vm_alloc_pages(c->mm, 0, ARENA_MAX_ORDER + 1, 0, &addr, &pfn),
			 ARENA_E_INVALID);
	assert_int_equal(vm_alloc_pages(c->mm, 1u << 30, 0, 0, &addr, &pfn), ARENA_E_INVALID);
	for (i = 0; i <= ARENA_MAX_ORDER; i++) {
		assert_int_equal(
			vm_alloc_pages(c->mm, ARENA_GFP_HIGHMEM, (unsigned)i, 0, &addr, &pfn), 0);
		assert_int_equal(addr, h->direct_base + PAGE(pfn));
		assert_true(bytes_are_zero(client_write(c, addr), ARENA_PAGE_SIZE));
		assert_int_equal(client_pfn(c, addr + PAGE((1u << i) - 1)), pfn + (1u << i) - 1);
		assert_int_equal(client_is_leaf(c, addr), i >= ARENA_LEAF_ORDER);
		memset(client_write(c, addr), 7, ARENA_PAGE_SIZE);
		mm_get_stats(c->mm, &stats);
		assert_int_equal(stats.direct_pages, 1u << i);
		assert_int_equal(stats.total_vm, 0);
		assert_true(virt_is_valid(m.virt));
		assert_int_equal(vm_free_pages(c->mm, addr, (unsigned)i), 0);
		mm_get_stats(c->mm, &stats);
		assert_int_equal(stats.direct_pages, 0);
		assert_int_equal(stats.limbo, 1u << i);
		assert_true(virt_is_valid(m.virt));
		client_ack_all(c);
	}
	assert_int_equal(vm_alloc_pages(c->mm, 0, 3, 0, &addr, &pfn), 0);
	assert_int_equal(vm_free_pages(c->mm, addr, 2), ARENA_E_INVALID);
	assert_int_equal(vm_free_pages(c->mm, addr + PAGE(1), 3), ARENA_E_INVALID);
	assert_int_equal(vm_free_pages(c->mm, addr, 40), ARENA_E_INVALID);
	assert_int_equal(vm_free_pages(c->mm, 0, 0), ARENA_E_INVALID);
	/* Frames of its own that it did not get this way are not its to free. */
	other = client_map(c, PAGE(1), PROT_RW, MAP_ANON_PRIVATE);
	client_write(c, other);
	assert_int_equal(vm_free_pages(c->mm, h->direct_base + PAGE(client_pfn(c, other)), 0),
			 ARENA_E_INVALID);
	/* The direct map is nobody's to change. */
	assert_int_equal(vm_munmap(c->mm, addr, PAGE(1)), ARENA_E_INVALID);
	assert_int_equal(vm_mprotect(c->mm, addr, PAGE(1), PROT_READ), ARENA_E_INVALID);
	assert_int_equal(vm_madvise(c->mm, addr, PAGE(1), MADV_DONTNEED, NULL), ARENA_E_INVALID);
	assert_int_equal(
		client_mmap(c, addr, PAGE(1), PROT_RW, MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &out),
		ARENA_E_INVALID);
	assert_refused(c, h->direct_base + PAGE(h->arena_frames - 1), PROT_READ, SIGSEGV,
		       SEGV_MAPERR);
	assert_int_equal(vm_free_pages(c->mm, addr, 3), 0);
}

/* A range that begins at the program's own and reaches into the direct map: refused whole. */
static void test_direct_map_is_refused_whole(void **state)
{
	const struct arena_mm_header *h = c->mm->header;
	uint64_t at, addr, pfn, len = LEAF(1) + PAGE(10);

	(void)state;
	assert_int_equal(vm_alloc_pages(c->mm, 0, 0, 0, &addr, &pfn), 0);
	at = h->direct_base - LEAF(1);
	assert_int_equal(
		client_mmap(c, at, LEAF(1), PROT_RW, MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &at), 0);
	assert_int_equal(count_vmas(c), 2);
	assert_int_equal(vm_madvise(c->mm, at + PAGE(3), len, MADV_HUGEPAGE, 0), ARENA_E_INVALID);
	assert_int_equal(vm_mprotect(c->mm, at + PAGE(3), len, PROT_READ), ARENA_E_INVALID);
	assert_int_equal(vm_munmap(c->mm, at + PAGE(3), len), ARENA_E_INVALID);
	assert_int_equal(count_vmas(c), 2);
	client_write(c, at + PAGE(4));
	assert_int_equal(vm_madvise(c->mm, addr, 0, MADV_HUGEPAGE, 0), 0);
	assert_int_equal(vm_free_pages(c->mm, addr, 0), 0);
}

static void test_windows(void **state)
{
	struct fake_client *other = NULL;

	(void)state;
	assert_int_equal(client_try_up(&m, 1000, 2, 0, &other), ARENA_E_INVALID);
	assert_int_equal(client_try_up(&m, 1000, 2, 4096, &other), ARENA_E_INVALID);
	assert_int_equal(client_try_up(&m, 1000, 2, UINT64_C(1) << 47, &other), ARENA_E_INVALID);
	assert_int_equal(client_try_up(&m, 1000, 2,
				       (UINT64_C(1) << 47) - TEST_WINDOW + ARENA_WINDOW_ALIGN,
				       &other),
			 ARENA_E_INVALID);
	assert_int_equal(client_try_up(&m, 1000, 2, (UINT64_C(1) << 47) - TEST_WINDOW, &other), 0);
	client_write(other, client_map(other, PAGE(1), PROT_RW, MAP_ANON_PRIVATE));
	assert_ptr_equal(mm_find_pid(m.virt, 2), other->mm);
	client_down(other);
	assert_null(mm_find_pid(m.virt, 2));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_merge, up, down),
		cmocka_unit_test_setup_teardown(test_split, up, down),
		cmocka_unit_test_setup_teardown(test_records, up, down),
		cmocka_unit_test_setup_teardown(test_mmap_arguments, up, down),
		cmocka_unit_test_setup_teardown(test_range_arguments, up, down),
		cmocka_unit_test_setup_teardown(test_placement, up, down),
		cmocka_unit_test_setup_teardown(test_record_limit, up, down),
		cmocka_unit_test_setup_teardown(test_direct_map, up, down),
		cmocka_unit_test_setup_teardown(test_direct_map_is_refused_whole, up, down),
		cmocka_unit_test_setup_teardown(test_windows, up, down),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
