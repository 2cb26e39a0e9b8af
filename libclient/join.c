/* SPDX-License-Identifier: MIT */
/*
 * join.c - pthread_join(3) for threads whose stack lies in arena memory.
 *
 * Who joins sleeps on a word in the C library's data about the thread, at the top of its stack, and the
 * kernel wakes whom it finds there when the thread ends. But it finds sleepers of this kind by the frame that
 * they went to sleep on, and a fork moves the page to another at its next write. So such a joiner looks
 * again now and then.
 */
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/clock.h"
#include "libclient/internal.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

#define LOOK_AGAIN (20 * NSEC_PER_MSEC)

static bool in_arena(uint64_t addr)
{
	unsigned hold;

	if (!client_get_window(addr, &hold))
		return false;
	client_put_window(hold);
	return true;
}

int pthread_join(pthread_t thread, void **result)
{
	struct timespec t;
	int r;

	if (!in_arena((uint64_t)thread))
		return pthread_clockjoin_np(thread, result, CLOCK_MONOTONIC, NULL);
	do {
		uint64_t until = clock_now() + LOOK_AGAIN;

		t = (struct timespec){.tv_sec = (time_t)(until / NSEC_PER_SEC),
				      .tv_nsec = (long)(until % NSEC_PER_SEC)};
		r = pthread_clockjoin_np(thread, result, CLOCK_MONOTONIC, &t);
	} while (r == ETIMEDOUT);
	return r;
}

#endif
