/* SPDX-License-Identifier: MIT */
/*
 * lock.c - mlock(2) and its kin.
 *
 * mlockall(2) must not reach the window: to the kernel it is one mapping of many terabytes. So what is
 * the kernel's is locked mapping by mapping, and later ones as they are made (MCL_FUTURE).
 */
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "libclient/preload/calls.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

#define PAGE 4096u

static void *pointer(uint64_t addr)
{
	return (void *)(uintptr_t)addr;
}

static int64_t leave(int r)
{
	int64_t result = r < 0 ? -errno : 0;

	guard_leave();
	if (result == 0)
		report_served(SERVED_mlock);
	return result;
}

/* What is present stays so where nothing is ever taken away: without libarena's, mlock is a populate. */
static int lock_by_populating(arena_t *a, uint64_t addr, uint64_t len, unsigned flags)
{
	if (flags & ~(unsigned)MLOCK_ONFAULT) {
		errno = EINVAL;
		return -1;
	}
	if (flags & MLOCK_ONFAULT)
		return arena_madvise(a, pointer(addr), len, MADV_WILLNEED);
	if (arena_populate(a, pointer(addr), len, 1) == 0)
		return 0;
	return errno == EFAULT ? arena_populate(a, pointer(addr), len, 0) : -1;
}

static int64_t mlock_inside(uint64_t addr, uint64_t len, uint64_t flags)
{
	arena_t *a = preload_arena();
	uint64_t start = ALIGN_DOWN(addr, (uint64_t)PAGE);

	len = ALIGN_UP(len + (addr - start), (uint64_t)PAGE);
	guard_enter();
	if (arena_mlock2)
		return leave(arena_mlock2(a, pointer(start), len, (unsigned)flags));
	return leave(lock_by_populating(a, start, len, (unsigned)flags));
}

static int64_t mlock_outside(uint64_t addr, uint64_t len, uint64_t flags)
{
	return flags ? raw3(SYS_mlock2, addr, len, flags) : raw3(SYS_mlock, addr, len, 0);
}

int64_t preload_mlock(uint64_t addr, uint64_t len, unsigned flags)
{
	static const struct range_ops ops = {mlock_inside, mlock_outside, false};

	return range_do(&ops, addr, len, flags);
}

static int64_t munlock_inside(uint64_t addr, uint64_t len, uint64_t arg)
{
	arena_t *a = preload_arena();
	uint64_t start = ALIGN_DOWN(addr, (uint64_t)PAGE);

	(void)arg;
	len = ALIGN_UP(len + (addr - start), (uint64_t)PAGE);
	guard_enter();
	if (arena_munlock)
		return leave(arena_munlock(a, pointer(start), len));
	return leave(arena_madvise(a, pointer(start), len, MADV_WILLNEED));
}

static int64_t munlock_outside(uint64_t addr, uint64_t len, uint64_t arg)
{
	(void)arg;
	return raw3(SYS_munlock, addr, len, 0);
}

int64_t preload_munlock(uint64_t addr, uint64_t len)
{
	static const struct range_ops ops = {munlock_inside, munlock_outside, false};

	return range_do(&ops, addr, len, 0);
}

/* ---- all ------------------------------------------------------------------------------------- */

/* Lock (or unlock) each mapping of the kernel's. */
static int64_t each_mapping(bool lock, unsigned flags)
{
	_cleanup_(fclosep) FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	int64_t first = 0;

	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f)) {
		unsigned long start, end;
		int64_t r;

		if (sscanf(line, "%lx-%lx", &start, &end) != 2 || (int64_t)start < 0 ||
		    range_place(start, end - start) != RANGE_OUTSIDE)
			continue;
		r = lock ? mlock_outside(start, end - start, flags)
			 : munlock_outside(start, end - start, 0);
		/* A mapping without access, a guard: the kernel's own passes over them. */
		if (r == -EAGAIN || (r == -ENOMEM && !first))
			first = first;
		else if (r < 0 && first == 0)
			first = r;
	}
	return first;
}

int64_t preload_mlockall(int flags)
{
	arena_t *a = preload_arena();
	int64_t r;

	if (!a)
		return raw3(SYS_mlockall, (uint64_t)flags, 0, 0);
	if (!(flags & (MCL_CURRENT | MCL_FUTURE)) ||
	    (flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)))
		return -EINVAL;
	if (!arena_mlockall)
		return -ENOSYS;
	guard_enter();
	r = leave(arena_mlockall(a, flags));
	if (r == 0 && (flags & MCL_CURRENT)) {
		guard_enter();
		r = each_mapping(true, flags & MCL_ONFAULT ? MLOCK_ONFAULT : 0);
		guard_leave();
	}
	return r;
}

int64_t preload_munlockall(void)
{
	arena_t *a = preload_arena();
	int64_t r = 0;

	if (!a)
		return raw3(SYS_munlockall, 0, 0, 0);
	guard_enter();
	if (arena_munlockall)
		r = leave(arena_munlockall(a));
	else
		guard_leave();
	return r;
}
