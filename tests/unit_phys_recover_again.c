/* SPDX-License-Identifier: MIT */
/* Death before there is anything to take over, and in the middle of taking over. */
#include "phys_trial.h"

static void nothing(struct world *w)
{
	(void)w;
}

static void dies_at_every_store_of_boot(void **state)
{
	struct trial t = {.boot = boot_small, .scenario = nothing, .seed = 3, .from_boot = true};

	(void)state;
	sweep(&t, 11);
}

/* The scenario dies in many places, and each recovery at every store of its own. */
static void dies_at_every_store_of_recovery(void **state)
{
	struct trial t = {.boot = boot_small, .scenario = every_operation, .seed = 4};
	unsigned every = TEST_SANITIZED ? 150 : 29, deaths = 0;

	(void)state;
	for (t.die_at = 7; t.die_at < 660; t.die_at += every)
		for (t.die_in_recovery = 1; run(&t) == 0; t.die_in_recovery++)
			deaths++;
	printf("%u deaths in recovery\n", deaths);
	assert_true(deaths > 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(dies_at_every_store_of_boot),
		cmocka_unit_test(dies_at_every_store_of_recovery),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
