/* SPDX-License-Identifier: MIT */
/*
 * truth.h - the one place through which the daemon writes what must survive it.
 *
 * The files of the state (mem_map, pageblock and object tables, mm files) are the truth; all
 * else is an index that can be rebuilt. Every store to them is one of these, in an order that is
 * right if the worker dies after any of them, so that a test can make it die after the Nth.
 */
#ifndef BASE_TRUTH_H
#define BASE_TRUTH_H

#include <stdint.h>
#include <string.h>

#include "base/util.h"

/* Number of stores after which truth_store_reached() is called; 0: never. Set by tests. */
extern uint64_t truth_stop_after;
extern uint64_t truth_stores;
void truth_store_reached(void);

static inline void truth_count(void)
{
	if (unlikely(truth_stop_after) && ++truth_stores == truth_stop_after)
		truth_store_reached();
}

/*
 * Stores on either side of this stay there. A process that dies has made all its stores up to some
 * instruction and none after, so to keep the compiler from moving them is all that it takes.
 */
#define truth_barrier() __atomic_signal_fence(__ATOMIC_SEQ_CST)

#define truth_store(p, v)                                     \
	do {                                                  \
		truth_barrier();                              \
		__atomic_store_n((p), (v), __ATOMIC_RELEASE); \
		truth_barrier();                              \
		truth_count();                                \
	} while (0)

/* For bytes that become visible only by a later truth_store (a record not yet linked). */
static inline void truth_fill(void *to, const void *from, size_t n)
{
	truth_barrier();
	memcpy(to, from, n);
	truth_barrier();
	truth_count();
}

static inline void truth_zero(void *to, size_t n)
{
	truth_barrier();
	memset(to, 0, n);
	truth_barrier();
	truth_count();
}

#endif
