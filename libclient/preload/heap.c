/* SPDX-License-Identifier: MIT */
/*
 * heap.c - brk(2) and sbrk(3): the arena's heap.
 *
 * Programs expect memory below the first break that they see, because the C library's malloc has been there
 * before them. Ours has not, so the first call moves the break by as much as that would have.
 */
#include <errno.h>
#include <pthread.h>

#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

#define BEFORE_PROGRAM 0x21000u

/* The break that holds afterwards. */
static uint64_t move_break(uint64_t end)
{
	arena_t *a = preload_arena();
	uint64_t now;

	if (!a)
		return (uint64_t)raw3(SYS_brk, end, 0, 0);
	guard_enter();
	if (end && arena_brk(a, (void *)(uintptr_t)end) == 0)
		report_served(SERVED_brk);
	now = (uintptr_t)arena_sbrk(a, 0);
	guard_leave();
	return now;
}

static void begin(void)
{
	if (preload_arena())
		move_break(move_break(0) + BEFORE_PROGRAM);
}

uint64_t preload_brk(uint64_t end)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, begin);
	return move_break(end);
}

/* Two calls, as the C library's: threads that move the break at once get what they deserve. */
void *preload_sbrk(intptr_t delta)
{
	uint64_t now = preload_brk(0), end = now + (uint64_t)delta;

	if (delta == 0 || ((delta > 0) == (end > now) && preload_brk(end) == end))
		return (void *)(uintptr_t)now;
	errno = ENOMEM;
	return (void *)-1;
}
