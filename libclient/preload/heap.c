/* SPDX-License-Identifier: MIT */
/* heap.c - brk(2) and sbrk(3): the arena's heap, where libarena has one, from the first call on. */
#include <errno.h>

#include "libclient/preload/calls.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

static uint64_t kernel_brk(uint64_t end)
{
	return (uint64_t)raw3(SYS_brk, end, 0, 0);
}

static arena_t *heap_arena(void)
{
	return arena_brk && arena_sbrk ? preload_arena() : NULL;
}

uint64_t preload_brk(uint64_t end)
{
	arena_t *a = heap_arena();
	uint64_t now;

	if (!a)
		return kernel_brk(end);
	guard_enter();
	if (end && arena_brk(a, (void *)(uintptr_t)end) == 0)
		report_served(SERVED_brk);
	now = (uintptr_t)arena_sbrk(a, 0);
	guard_leave();
	return now;
}

void *preload_sbrk(intptr_t delta)
{
	arena_t *a = heap_arena();
	uint64_t now;
	void *p;

	if (a) {
		guard_enter();
		p = arena_sbrk(a, delta);
		guard_leave();
		if (p != (void *)-1 && delta)
			report_served(SERVED_brk);
		return p;
	}
	now = kernel_brk(0);
	if (delta == 0)
		return (void *)(uintptr_t)now;
	if ((delta > 0 ? now + (uint64_t)delta < now : now + (uint64_t)delta > now) ||
	    kernel_brk(now + (uint64_t)delta) != now + (uint64_t)delta) {
		errno = ENOMEM;
		return (void *)-1;
	}
	return (void *)(uintptr_t)now;
}
