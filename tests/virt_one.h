/* SPDX-License-Identifier: MIT */
/* virt_one.h - one client of a small machine, for tests of single calls. */
#ifndef TESTS_VIRT_ONE_H
#define TESTS_VIRT_ONE_H

#include "tests/virt_fake.h"

static struct fake_machine m;
static struct fake_client *c;

static inline int setup(void **state)
{
	unsigned i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(test_limit); i++)
		test_limit[i] = UINT64_MAX;
	machine_up(&m, UINT64_C(128) << 20, 1);
	c = client_up(&m, 1000, 1);
	return 0;
}

static inline int teardown(void **state)
{
	(void)state;
	assert_true(virt_is_valid(m.virt));
	assert_true(client_check_tlb(c));
	c = client_down(c);
	machine_down(&m);
	return 0;
}

static inline int remap(uint64_t old, uint64_t old_len, uint64_t new_len, uint32_t flags,
			uint64_t to, uint64_t *out)
{
	struct vm_mremap_args a = {
		.old = old, .old_len = old_len, .new_len = new_len, .flags = flags, .new_addr = to};

	return vm_mremap(c->mm, &a, out);
}

/* Word `n` of the page at addr, as the client sees it. */
static inline void put(uint64_t addr, uint64_t value)
{
	memcpy(client_write(c, addr), &value, sizeof(value));
}

static inline uint64_t get(uint64_t addr)
{
	uint64_t value;

	memcpy(&value, client_read(c, addr), sizeof(value));
	return value;
}

static inline uint64_t map_small(uint64_t len)
{
	uint64_t at = client_map(c, len, PROT_RW, MAP_ANON_PRIVATE);

	assert_int_equal(vm_madvise(c->mm, at, len, MADV_NOHUGEPAGE, NULL), 0);
	return at;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif
