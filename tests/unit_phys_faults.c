/* SPDX-License-Identifier: MIT */
/* Every allocation of the room fails once, at each place, and nothing is lost or left half done. */
#include "base/faultpoint.h"
#include "tests/phys_test.h"

static struct arena_fixture f;

static bool armed_nth(unsigned n)
{
	char spec[32];

	snprintf(spec, sizeof(spec), "mem=fail@%u", n);
	assert_int_equal(faultpoint_arm(spec), 0);
	return true;
}

static void test_boot(void **state)
{
	unsigned n = 0;
	int r;

	(void)state;
	fixture_init(&f, 64 * MIB, 2, 2);
	do {
		armed_nth(++n);
		r = phys_create(&f.config, &f.state, &f.phys);
		faultpoint_arm(NULL);
		if (r) {
			assert_int_equal(r, ARENA_E_NO_MEMORY);
			assert_null(f.state.base);
		}
	} while (r);
	assert_true(n > 5);
	fixture_end(&f);
}

/* domain_create, first use of a zone, of a CPU's list, and what follows. */
static void test_use(void **state)
{
	struct domain *d = NULL;
	bool failed;
	unsigned n = 0, failures = 0;

	(void)state;
	fixture_start(&f, 64 * MIB, 2, 2);
	do {
		struct alloc_result small = {0}, leaf = {0};
		int rd, rs = -1, rl = -1;

		armed_nth(++n);
		rd = domain_create(f.phys, DOMAIN_UID, n, &d);
		if (!rd) {
			rs = try_alloc(&f, d, GFP_USER_MOVABLE | ARENA_GFP_NOWARN, 0, 0, &small);
			rl = try_alloc(&f, d, ARENA_GFP_DMA | ARENA_GFP_NOWARN, 0, 1, &leaf);
		}
		failed = faultpoint_passages("mem") >= n;
		faultpoint_arm(NULL);
		failures += failed;
		assert_true(!rd || rd == ARENA_E_NO_MEMORY);
		assert_true(phys_is_valid(f.phys));
		if (rd)
			continue;
		if (!rs)
			put_page(f.phys, small.pfn);
		if (!rl)
			put_page(f.phys, leaf.pfn);
		d = domain_put(d);
		assert_true(phys_is_valid(f.phys));
		assert_int_equal(phys_free_pages(f.phys), phys_total_pages(f.phys));
		assert_true(failed || (!rs && !rl));
	} while (failed);
	assert_true(failures >= 4);
	fixture_end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_boot),
		cmocka_unit_test(test_use),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
