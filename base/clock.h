/* SPDX-License-Identifier: MIT */
/* clock.h - time; monotonic, and fakeable in tests. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

#define NSEC_PER_USEC UINT64_C(1000)
#define NSEC_PER_MSEC UINT64_C(1000000)
#define NSEC_PER_SEC UINT64_C(1000000000)

uint64_t clock_now(void);        /* CLOCK_MONOTONIC, ns */
uint64_t clock_thread_cpu(void); /* CPU time of the calling thread, ns */
/* Tests: a fixed time, in ns, until called with 0. */
void clock_fake(uint64_t now);

#endif
