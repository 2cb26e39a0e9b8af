/* SPDX-License-Identifier: MIT */
/* Random lives that end at random stores; some of the recoveries die too. */
#include "phys_trial.h"

static void dies_in_random_lives(void **state)
{
	uint64_t seed = test_seed();
	struct prng prng = {.state = seed};
	unsigned deaths = 0, runs = TEST_SANITIZED ? 40 : 150;

	(void)state;
	for (unsigned i = 0; i < runs; i++) {
		struct trial t = {
			.boot = i % 8 ? boot_small : boot_deferred,
			.scenario = random_life,
			.seed = prng_next(&prng),
			.die_at = 1 + prng_below(&prng, 1500),
			.die_in_recovery = prng_below(&prng, 3) ? 0 : 1 + prng_below(&prng, 60),
		};

		deaths += run(&t) == 0;
	}
	printf("%u deaths\n", deaths);
	assert_true(deaths > runs / 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(dies_in_random_lives),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
