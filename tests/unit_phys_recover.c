/* SPDX-License-Identifier: MIT */
/* Death at every store of scenarios in which everything happens. */
#include "phys_trial.h"

static void dies_at_every_store(void **state)
{
	(void)state;
	sweep(&(struct trial){.boot = boot_small, .scenario = every_operation, .seed = 1}, 17);
}

static void dies_at_every_store_with_deferred_sections(void **state)
{
	(void)state;
	sweep(&(struct trial){.boot = boot_deferred, .scenario = grow_deferred, .seed = 2}, 29);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(dies_at_every_store),
		cmocka_unit_test(dies_at_every_store_with_deferred_sections),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
