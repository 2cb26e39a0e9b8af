/* SPDX-License-Identifier: MIT */
/* clock.c - time from the host, or the one a test has set. */
#include "base/clock.h"

#include <time.h>

#include "base/util.h"

static uint64_t fake_now;

static uint64_t read_clock(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

uint64_t clock_now(void)
{
	uint64_t fake = load_relaxed(&fake_now);

	return unlikely(fake) ? fake : read_clock(CLOCK_MONOTONIC);
}

uint64_t clock_thread_cpu(void)
{
	return read_clock(CLOCK_THREAD_CPUTIME_ID);
}

void clock_fake(uint64_t now)
{
	store_relaxed(&fake_now, now);
}
