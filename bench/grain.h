/* SPDX-License-Identifier: MIT */
/* grain.h - touches of single pages in random order: what the sections about misses share. */
#ifndef BENCH_GRAIN_H
#define BENCH_GRAIN_H

#include "bench/bench.h"

struct grain {
	const char *socket;
	unsigned pages;
	const uint32_t *order;
	enum arena_trap trap;
	int flags; /* floor: MAP_POPULATE or 0 */
};

/* In children. Times of one round into value[value]: the mean of all, and the 99th percentile, ns. */
void grain_round(const struct grain *g, volatile char *base, struct child_result *r,
		 unsigned value);
void grain_check(const struct grain *g, const volatile char *base, char expected,
		 struct child_result *r);

enum { GRAIN_FAULT, GRAIN_FAULT_P99, GRAIN_REFILL, GRAIN_REFILL_P99 };

/* A round of faults, then one of refills, in a fresh client; ns. */
void grain_arena(const struct grain *g, double value[4]);

#endif
