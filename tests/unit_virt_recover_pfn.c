/* SPDX-License-Identifier: MIT */
/*
 * arena_mmap_pfn() and the end of what it made, with the worker dying at every store of them: there is one
 * mapping in the end, whole, and then none.
 */
#include "tests/virt_crash.h"

#include "tests/virt_fake.h"

#define N 6u

static struct fake_machine m;
static struct fake_client *c;
static uint64_t die_at;
static unsigned stores;

static void crash_reborn(void)
{
	if (!c)
		return;
	c->mm = crash_find(c->id);
	assert_non_null(c->mm);
	client_reborn(c);
	assert_true(client_check_tlb(c));
}

static void map_and_unmap(void)
{
	uint64_t direct, pfn, at = 0;
	struct vm_mmap_args a = {.len = PAGE(N), .prot = PROT_RW};
	unsigned i, vmas;

	store_fake();
	crash.m = &m;
	machine_up(&m, UINT64_C(64) << 20, 1);
	c = client_up(&m, 1000, 1);
	assert_int_equal(vm_alloc_pages(c->mm, ARENA_GFP_DMA, 3, 0, &direct, &pfn), 0);
	vmas = count_vmas(c);
	for (i = 0; i < N; i++)
		memset(client_write(c, direct + PAGE(i)), (int)i + 1, ARENA_PAGE_SIZE);
	crash_arm(die_at);
	assert_int_equal(vm_mmap_pfn(c->mm, &a, pfn, &at), 0);
	assert_int_equal(count_vmas(c), vmas + 1);
	for (i = 0; i < N; i++) {
		assert_int_equal(client_pfn(c, at + PAGE(i)), pfn + i);
		assert_int_equal(*client_read(c, at + PAGE(i)), i + 1);
	}
	assert_int_equal(vm_free_pages(c->mm, direct, 3), 0);
	assert_int_equal(*client_read(c, at + PAGE(N - 1)), N);
	assert_int_equal(vm_munmap(c->mm, at, PAGE(N)), 0);
	assert_int_equal(count_vmas(c), vmas);
	client_ack_all(c);
	crash.die_at = 0;
	c = client_down(c);
	machine_down(&m);
}

static void test_every_store(void **state)
{
	unsigned deaths = 1;

	(void)state;
	for (die_at = 1; deaths; die_at++) {
		if (!in_child(map_and_unmap, &deaths))
			fail_msg("the worker died at store %lu, and that was noticed",
				 (unsigned long)die_at);
		stores += deaths;
	}
	print_message("%u stores\n", stores);
	assert_true(stores > 50);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_store)};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
