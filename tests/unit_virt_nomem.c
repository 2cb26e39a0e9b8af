/* SPDX-License-Identifier: MIT */
/*
 * The heap fails, or page tables run out, or frames: at the Nth allocation for every N of a scenario
 * that makes every call, and at every allocation from some step on. Each call then says so or succeeds, what is left is valid,
 * and in the end everything is given back.
 */
#include <fcntl.h>

#include "tests/virt_fake.h"

static struct scene {
	struct fake_machine m;
	struct fake_client *a, *b;
	uint32_t segment, segment_b;
	uint64_t small, anon, shared, common, common_b, private_b, block;
	struct flush_wait wait;
} s;

/* A step: 0, or what the call returned. What its predecessors could not make is left out. */
typedef int (*step_fn)(void);

static int touch(struct fake_client *c, uint64_t addr, uint32_t access)
{
	struct fault_refusal refusal;
	uint8_t *at;

	if (!c || !addr)
		return 0;
	at = client_access(c, addr, access, 0, &refusal);
	if (!at) {
		assert_int_equal(refusal.signo, SIGBUS);
		return ARENA_E_NO_MEMORY;
	}
	if (access == PROT_WRITE)
		*at = 0x5a;
	return 0;
}

static int map(struct fake_client *c, uint64_t len, uint32_t flags, uint32_t handle, uint64_t *out)
{
	return c && (handle || (flags & MAP_ANONYMOUS))
		       ? client_mmap(c, 0, len, PROT_RW, flags, handle, 0, out)
		       : 0;
}

static int step_client_a(void)
{
	return client_try_up(&s.m, 1000, 1, ARENA_WINDOW_BASE, &s.a);
}

static int step_client_b(void)
{
	return client_try_up(&s.m, 1001, 2, ARENA_WINDOW_BASE, &s.b);
}

static int step_map_anon(void)
{
	return map(s.a, LEAF(2) + PAGE(40), MAP_ANON_PRIVATE, 0, &s.anon);
}

static int step_map_shared(void)
{
	return map(s.a, LEAF(1) + PAGE(10), MAP_ANON_SHARED, 0, &s.shared);
}

static int open_segment(struct fake_client *c, uint32_t *handle)
{
	struct segment_open open;
	int r = c ? client_open(c, "s", O_RDWR | O_CREAT, 0666, &open) : 0;

	if (c && !r)
		*handle = open.handle;
	return r;
}

static int step_open(void)
{
	int r = open_segment(s.a, &s.segment);
	struct segment_info info;

	/* What could not be opened was not made either. */
	if (r)
		assert_false(segment_next(s.m.virt, 0, &info));
	return r;
}

static int step_grow(void)
{
	return s.segment ? mm_truncate_segment(s.a->mm, s.segment, (int64_t)LEAF(3), NULL) : 0;
}

static int step_open_b(void)
{
	return open_segment(s.b, &s.segment_b);
}

static int step_grow_b(void)
{
	return s.segment_b ? mm_truncate_segment(s.b->mm, s.segment_b, (int64_t)LEAF(3), NULL) : 0;
}

static int step_map_segment(void)
{
	return map(s.a, LEAF(2), MAP_SHARED, s.segment, &s.common);
}

static int step_map_segment_b(void)
{
	return map(s.b, LEAF(2), MAP_SHARED, s.segment_b, &s.common_b);
}

static int step_map_private_b(void)
{
	return map(s.b, LEAF(2), MAP_PRIVATE, s.segment_b, &s.private_b);
}

static int step_touch_anon(void)
{
	return touch(s.a, s.anon, PROT_WRITE);
}

static int step_touch_anon_tail(void)
{
	return touch(s.a, s.anon ? s.anon + LEAF(2) + PAGE(3) : 0, PROT_WRITE);
}

static int step_touch_shared(void)
{
	return touch(s.a, s.shared, PROT_WRITE);
}

static int step_touch_shared_tail(void)
{
	return touch(s.a, s.shared ? s.shared + LEAF(1) + PAGE(2) : 0, PROT_READ);
}

static int step_touch_common(void)
{
	return touch(s.a, s.common ? s.common + PAGE(7) : 0, PROT_WRITE);
}

static int step_read_common_b(void)
{
	return touch(s.b, s.common_b ? s.common_b + PAGE(7) : 0, PROT_READ);
}

static int step_read_private_b(void)
{
	return touch(s.b, s.private_b ? s.private_b + PAGE(7) : 0, PROT_READ);
}

static int step_copy_private_b(void)
{
	return touch(s.b, s.private_b ? s.private_b + PAGE(7) : 0, PROT_WRITE);
}

static int step_copy_absent_b(void)
{
	return touch(s.b, s.private_b ? s.private_b + LEAF(1) + PAGE(7) : 0, PROT_WRITE);
}

static int step_protect(void)
{
	return s.anon ? vm_mprotect(s.a->mm, s.anon + PAGE(5), PAGE(2), PROT_READ) : 0;
}

static int step_advise(void)
{
	return s.anon ? vm_madvise(s.a->mm, s.anon + LEAF(1), PAGE(9), MADV_NOHUGEPAGE, NULL) : 0;
}

static int step_dontneed(void)
{
	return s.shared ? vm_madvise(s.a->mm, s.shared + PAGE(9), PAGE(9), MADV_DONTNEED, NULL) : 0;
}

static int step_populate(void)
{
	uint64_t next;

	return s.anon ? vm_populate(s.a->mm, s.anon + LEAF(1), PAGE(30), false, 0, &next) : 0;
}

static int step_alloc(void)
{
	uint64_t pfn, addr;
	int r = s.a ? vm_alloc_pages(s.a->mm, ARENA_GFP_HIGHMEM, 3, 0, &addr, &pfn) : 0;

	if (s.a && !r)
		s.block = addr;
	return r;
}

static int step_alloc_leaf(void)
{
	uint64_t pfn, addr;

	return s.a ? vm_alloc_pages(s.a->mm, ARENA_GFP_HIGHMEM, ARENA_LEAF_ORDER, 0, &addr, &pfn)
		   : 0;
}

static int step_free(void)
{
	int r = s.block ? vm_free_pages(s.a->mm, s.block, 3) : 0;

	/* All or nothing: the block can still be freed. */
	if (r && s.block)
		assert_true(client_pfn(s.a, s.block) != PFN_NONE);
	else
		s.block = 0;
	return r;
}

static int step_mremap(void)
{
	uint64_t out;
	struct vm_mremap_args a = {.old = s.anon + PAGE(10),
				   .old_len = PAGE(400),
				   .new_len = PAGE(403),
				   .flags = MREMAP_MAYMOVE};
	int r = s.anon ? vm_mremap(s.a->mm, &a, &out) : 0;

	/* Moved or not, never half. */
	if (s.anon && r)
		assert_true(vma_find(s.a->mm, a.old)->start <= a.old);
	return r;
}

static int step_mremap_back(void)
{
	uint64_t out;
	struct vm_mremap_args a = {.old = s.anon,
				   .old_len = PAGE(5),
				   .new_len = PAGE(5),
				   .flags = MREMAP_MAYMOVE | MREMAP_FIXED,
				   .new_addr = s.anon + PAGE(20)};

	return s.anon ? vm_mremap(s.a->mm, &a, &out) : 0;
}

static int step_brk(void)
{
	uint64_t out;

	return s.a ? vm_brk(s.a->mm, 0, (int64_t)PAGE(9), &out) : 0;
}

static int step_touch_heap(void)
{
	uint64_t start = s.a ? s.a->mm->header->start_brk : 0;

	return s.a && s.a->mm->header->brk > start ? touch(s.a, start, PROT_WRITE) : 0;
}

static int step_mlock(void)
{
	return s.anon ? vm_mlock(s.a->mm, s.anon + LEAF(1), PAGE(7), false) : 0;
}

static int step_pin(void)
{
	uint64_t next;

	return s.anon ? vm_pin(s.a->mm, s.anon + LEAF(1), PAGE(5), true, 0, &next) : 0;
}

static int step_small(void)
{
	int r = s.shared ? client_mmap(s.a, s.shared - LEAF(8), LEAF(1), PROT_RW,
				       MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &s.small)
			 : 0;

	if (r)
		s.small = 0;
	return s.small && !r ? vm_madvise(s.a->mm, s.small, LEAF(1), MADV_NOHUGEPAGE, NULL) : r;
}

static int step_touch_small(void)
{
	return touch(s.a, s.small, PROT_WRITE);
}

static int step_collapse(void)
{
	int r = s.small ? vm_madvise(s.a->mm, s.small, LEAF(1), MADV_HUGEPAGE, NULL) : 0;

	if (s.small && !r)
		r = vm_madvise(s.a->mm, s.small, LEAF(1), MADV_COLLAPSE, NULL);
	if (r != ARENA_E_AGAIN)
		return r == ARENA_E_INVALID ? 0 : r; /* nothing could be touched there */
	client_ack_all(s.a);
	r = vm_madvise(s.a->mm, s.small, LEAF(1), MADV_COLLAPSE, NULL);
	return r == ARENA_E_INVALID ? 0 : r;
}

static int step_remove(void)
{
	return s.shared ? vm_madvise(s.a->mm, s.shared + PAGE(1), PAGE(1), MADV_REMOVE, NULL) : 0;
}

static int step_munmap(void)
{
	return s.anon ? vm_munmap(s.a->mm, s.anon + PAGE(100), PAGE(600)) : 0;
}

static int step_map_over(void)
{
	uint64_t out;

	return s.shared ? client_mmap(s.a, s.shared + PAGE(20), PAGE(3), PROT_READ,
				      MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &out)
			: 0;
}

static int step_truncate(void)
{
	s.wait = (struct flush_wait){0};
	return s.segment ? mm_truncate_segment(s.a->mm, s.segment, (int64_t)PAGE(50), &s.wait) : 0;
}

static int step_ack(void)
{
	if (s.a)
		client_ack_all(s.a);
	if (s.b)
		client_ack_all(s.b);
	assert_int_equal(s.wait.pending, 0);
	return 0;
}

static int step_close(void)
{
	int r = s.segment ? mm_close_segment(s.a->mm, s.segment) : 0;

	s.segment = 0;
	return r;
}

static int step_unlink(void)
{
	int r = s.a ? segment_unlink(s.m.virt, &s.a->cred, "s") : 0;

	return r == ARENA_E_NOT_FOUND || r == ARENA_E_ACCESS ? 0 : r;
}

static const step_fn steps[] = {
	step_client_a,        step_client_b,      step_map_anon,
	step_map_shared,      step_open,          step_grow,
	step_open_b,          step_grow_b,        step_map_segment,
	step_map_segment_b,   step_map_private_b, step_touch_anon,
	step_touch_anon_tail, step_touch_shared,  step_touch_shared_tail,
	step_touch_common,    step_read_common_b, step_read_private_b,
	step_copy_private_b,  step_copy_absent_b, step_protect,
	step_advise,          step_dontneed,      step_populate,
	step_alloc,           step_alloc_leaf,    step_free,
	step_mlock,           step_pin,           step_mremap,
	step_mremap_back,     step_brk,           step_touch_heap,
	step_small,           step_touch_small,   step_collapse,
	step_remove,          step_munmap,        step_map_over,
	step_touch_shared,    step_truncate,      step_ack,
	step_touch_common,    step_protect,       step_close,
	step_unlink,
};

static void scene_end(void)
{
	assert_int_equal(faultpoint_arm(NULL), 0);
	assert_true(virt_is_valid(s.m.virt));
	assert_true(!s.a || client_check_tlb(s.a));
	assert_true(!s.b || client_check_tlb(s.b));
	flush_wait_cancel(&s.wait);
	s.a = client_down(s.a);
	s.b = client_down(s.b);
	machine_down(&s.m);
}

static void scene_begin(void)
{
	memset(&s, 0, sizeof(s));
	machine_up(&s.m, UINT64_C(64) << 20, 1);
}

static void check_step(size_t i, int r)
{
	if (r && r != ARENA_E_NO_MEMORY)
		fail_msg("step %zu: %d", i, r);
}

/* `what`: fault point of the heap, the tables, or the frames. */
static void fail_at(const char *what, uint64_t at_least)
{
	uint64_t n, passages;
	unsigned refused = 0;

	for (n = 1;; n++) {
		char spec[32];
		bool looked = false;
		size_t i;

		scene_begin();
		snprintf(spec, sizeof(spec), "%s=fail@%lu", what, (unsigned long)n);
		assert_int_equal(faultpoint_arm(spec), 0);
		for (i = 0; i < ARRAY_SIZE(steps); i++) {
			int r = steps[i]();

			check_step(i, r);
			refused += r != 0;
			if (!looked && faultpoint_passages(what) >= n) {
				looked = true;
				if (!virt_is_valid(s.m.virt))
					fail_msg("after step %zu, %s %lu failed", i, what,
						 (unsigned long)n);
			}
		}
		passages = faultpoint_passages(what);
		scene_end();
		if (passages < n)
			break;
	}
	printf("%s: %lu passages, %u calls refused\n", what, (unsigned long)passages, refused);
	assert_true(passages >= at_least && refused);
}

static void test_heap_fails_at(void **state)
{
	(void)state;
	fail_at("mem", 40);
}

static void test_table_fails_at(void **state)
{
	(void)state;
	fail_at("virt.table", 10);
}

static void test_page_fails_at(void **state)
{
	(void)state;
	fail_at("phys.page", 40);
}

static void fail_from(const char *spec)
{
	size_t from, i;

	for (from = 0; from < ARRAY_SIZE(steps); from++) {
		scene_begin();
		for (i = 0; i < ARRAY_SIZE(steps); i++) {
			if (i == from)
				assert_int_equal(faultpoint_arm(spec), 0);
			check_step(i, steps[i]());
		}
		scene_end();
	}
}

static void test_fails_from(void **state)
{
	(void)state;
	fail_from("mem=fail");
	fail_from("virt.table=fail");
	fail_from("phys.page=fail");
	fail_from("mem=fail,virt.table=fail");
}

/* Every call once, and nothing fails. */
static void test_no_failure(void **state)
{
	size_t i;

	(void)state;
	scene_begin();
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		assert_int_equal(steps[i](), 0);
		assert_true(virt_is_valid(s.m.virt));
	}
	scene_end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_failure),     cmocka_unit_test(test_heap_fails_at),
		cmocka_unit_test(test_table_fails_at), cmocka_unit_test(test_page_fails_at),
		cmocka_unit_test(test_fails_from),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
