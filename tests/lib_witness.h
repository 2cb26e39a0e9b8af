/* SPDX-License-Identifier: MIT */
/*
 * lib_witness.h - a client that knows what its memory must hold.
 *
 * It maps private memory in small pages and in leaves, a segment of its own, and blocks of pages,
 * and remembers beside the arena what it wrote to each page. Each step is one random call or access;
 * what it reads must be what it remembers, and each call must come to the end it would have come to
 * if it had been made exactly once: a name is new the first time and gone the second, a block that
 * was given back is no more. Whatever happens to the daemon meanwhile.
 */
#ifndef TESTS_LIB_WITNESS_H
#define TESTS_LIB_WITNESS_H

#include "base/prng.h"
#include "tests/lib_client.h"

#define WITNESS_SMALL 256u /* pages */
#define WITNESS_LEAVES 4u
#define WITNESS_SHARED 64u /* pages of the segment */
#define WITNESS_BLOCKS 16u

struct witness {
	arena_t *a;
	arena_shm_t *shm;
	struct prng prng;
	char name[40];
	uint64_t stamp; /* of the last write */
	char *small, *large, *shared;
	uint64_t small_has[WITNESS_SMALL]; /* 0: nothing was written since it was mapped */
	uint64_t large_has[WITNESS_LEAVES * 512];
	uint64_t shared_has[WITNESS_SHARED];
	struct {
		char *p;
		unsigned order;
		uint64_t has;
	} block[WITNESS_BLOCKS];
};

/* In a client. `number` is another one for each that lives at the same time. */
struct witness *witness_open(struct test_daemon *d, unsigned number, uint64_t seed);
void witness_step(struct witness *w);
/* All it has, every page. */
void witness_check(struct witness *w);
void witness_close(struct witness *w);

#endif
