/* SPDX-License-Identifier: MIT */
/*
 * bitmap: random operations against a model of one bool per bit, and the list and mask formats.
 * The seed is printed; $ARENA_TEST_SEED repeats a run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/parse.h"
#include "base/prng.h"
#include "base/util.h"

#define MAX_BITS 300
#define ROUNDS 200
#define STEPS 200

static uint64_t seed;

static bool model[MAX_BITS];
static uint64_t map[BITMAP_WORDS(MAX_BITS)];

static size_t model_next(size_t nbits, size_t from, bool value)
{
	for (size_t i = from; i < nbits; i++)
		if (model[i] == value)
			return i;
	return nbits;
}

static size_t model_find_area(size_t nbits, size_t from, size_t n, size_t align)
{
	for (size_t start = ALIGN_UP(from, align); start + n <= nbits && start < nbits;
	     start += align)
		if (model_next(start + n, start, true) == start + n)
			return start;
	return nbits;
}

static void change(struct prng *r, size_t nbits)
{
	size_t first = prng_below(r, nbits);
	size_t n = prng_below(r, nbits - first + 1);
	bool value = prng_below(r, 2);

	if (prng_below(r, 2)) {
		(value ? bitmap_set : bitmap_clear)(map, first);
		model[first] = value;
	} else {
		(value ? bitmap_set_range : bitmap_clear_range)(map, first, n);
		for (size_t i = 0; i < n; i++)
			model[first + i] = value;
	}
}

static void compare(struct prng *r, size_t nbits)
{
	size_t from = prng_below(r, nbits + 2);
	size_t n = 1 + prng_below(r, 70);
	size_t align = UINT64_C(1) << prng_below(r, 7);
	size_t part = prng_below(r, nbits + 1);
	size_t weight = 0;

	for (size_t i = 0; i < nbits; i++)
		assert_int_equal(bitmap_test(map, i), model[i]);
	for (size_t i = 0; i < part; i++)
		weight += model[i];
	assert_int_equal(bitmap_weight(map, part), weight);
	assert_int_equal(bitmap_next_set(map, nbits, from),
			 model_next(nbits, MIN(from, nbits), true));
	assert_int_equal(bitmap_next_clear(map, nbits, from),
			 model_next(nbits, MIN(from, nbits), false));
	assert_int_equal(bitmap_find_clear_area(map, nbits, from, n, align),
			 model_find_area(nbits, from, n, align));
}

/* What is printed as a list reads back as the same set. */
static void round_trip(size_t nbits)
{
	uint64_t back[BITMAP_WORDS(MAX_BITS)];
	char text[4 * MAX_BITS];
	int n = bitmap_print_list(text, sizeof(text), map, nbits);

	assert_int_equal(n, strlen(text));
	memset(back, 0xff, sizeof(back));
	assert_int_equal(bitmap_parse_list(text, back, nbits), 0);
	for (size_t i = 0; i < nbits; i++)
		assert_int_equal(bitmap_test(back, i), model[i]);
}

static void test_random_operations(void **state)
{
	struct prng r = {seed};

	(void)state;
	for (int round = 0; round < ROUNDS; round++) {
		size_t nbits = 1 + prng_below(&r, MAX_BITS);

		/* Bits beyond nbits must not count, whatever they are. */
		memset(map, round & 1 ? 0xff : 0, sizeof(map));
		for (size_t i = 0; i < MAX_BITS; i++)
			model[i] = round & 1;
		for (int step = 0; step < STEPS; step++) {
			change(&r, nbits);
			compare(&r, nbits);
		}
		round_trip(nbits);
	}
}

static void test_find_area_edges(void **state)
{
	uint64_t bits[2] = {0, 0};

	(void)state;
	assert_int_equal(bitmap_find_clear_area(bits, 100, 0, 100, 1), 0);
	assert_int_equal(bitmap_find_clear_area(bits, 100, 0, 101, 1), 100);
	assert_int_equal(bitmap_find_clear_area(bits, 100, 1, 99, 1), 1);
	assert_int_equal(bitmap_find_clear_area(bits, 100, 1, 37, 64), 100);
	assert_int_equal(bitmap_find_clear_area(bits, 100, 1, 36, 64), 64);
	assert_int_equal(bitmap_find_clear_area(bits, 100, 100, 1, 1), 100);
}

static void test_parse_list(void **state)
{
	static const char *const bad[] = {
		"x",    "1-", "-1",   "3-1", "1,",  ",1",
		"1,,2", "64", "0-64", "1 2", "1;2", "99999999999999999999",
		"0x1",
	};
	uint64_t bits = 0;

	(void)state;
	assert_int_equal(bitmap_parse_list("0-3,7,63\n", &bits, 64), 0);
	assert_true(bits == (UINT64_C(1) << 63 | 0x8f));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(bitmap_parse_list(bad[i], &bits, 64), ARENA_E_INVALID);
		assert_true(bits == (UINT64_C(1) << 63 | 0x8f));
	}
	assert_int_equal(bitmap_parse_list(" 5 ", &bits, 64), 0);
	assert_true(bits == 1 << 5);
	assert_int_equal(bitmap_parse_list("\n", &bits, 64), 0);
	assert_true(bits == 0);
}

static void check_mask(const uint64_t *bits, size_t nbits, const char *expected)
{
	char text[64];

	assert_int_equal(bitmap_print_mask(text, sizeof(text), bits, nbits), strlen(expected));
	assert_string_equal(text, expected);
}

static void test_print(void **state)
{
	const uint64_t bits[2] = {UINT64_C(0x8000000100000005), ~UINT64_C(0)};
	char text[8];

	(void)state;
	check_mask(bits, 2, "1");
	check_mask(bits, 4, "5");
	check_mask(bits, 5, "05");
	check_mask(bits, 32, "00000005");
	check_mask(bits, 33, "1,00000005");
	check_mask(bits, 64, "80000001,00000005");
	check_mask(bits, 66, "3,80000001,00000005");
	check_mask(bits, 0, "0");

	/* As snprintf: cut, terminated, and the whole length returned. */
	assert_int_equal(bitmap_print_list(text, sizeof(text), bits, 64), strlen("0,2,32,63"));
	assert_string_equal(text, "0,2,32,");
	assert_int_equal(bitmap_print_list(NULL, 0, bits, 64), strlen("0,2,32,63"));
	assert_int_equal(bitmap_print_mask(text, sizeof(text), bits, 64), 17);
	assert_string_equal(text, "8000000");
	assert_int_equal(bitmap_print_list(text, sizeof(text), bits, 0), 0);
	assert_string_equal(text, "");
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random_operations),
		cmocka_unit_test(test_find_area_edges),
		cmocka_unit_test(test_parse_list),
		cmocka_unit_test(test_print),
	};
	const char *given = getenv("ARENA_TEST_SEED");

	if (!given || parse_u64(given, &seed))
		seed = clock_now();
	print_message("ARENA_TEST_SEED=%llu\n", (unsigned long long)seed);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
