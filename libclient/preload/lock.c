/* SPDX-License-Identifier: MIT */
/*
 * lock.c - mlock(2) and its kin.
 *
 * mlockall(2) must not reach the window: to the kernel it is one mapping of many terabytes. So what is
 * the kernel's is locked mapping by mapping, and later ones as they are made (MCL_FUTURE).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/util.h"
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

static int64_t mlock_inside(uint64_t addr, uint64_t len, uint64_t flags)
{
	arena_t *a = preload_arena();
	uint64_t start = ALIGN_DOWN(addr, (uint64_t)PAGE);

	len = ALIGN_UP(len + (addr - start), (uint64_t)PAGE);
	guard_enter();
	return leave(arena_mlock2(a, pointer(start), len, (unsigned)flags));
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
	return leave(arena_munlock(a, pointer(start), len));
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

static unsigned
	future; /* mlock2()'s flags for what the kernel maps from now on, plus one; 0: none */

void lock_new_mapping(uint64_t addr, uint64_t len)
{
	unsigned how = load_relaxed(&future);

	if (how)
		mlock_outside(addr, len, how - 1);
}

/* What of a line of /proc/self/maps is the kernel's. */
static bool parse_mapping(const char *line, uint64_t *addr, uint64_t *len)
{
	unsigned long start, end;
	char prot[5];

	if (sscanf(line, "%lx-%lx %4s", &start, &end, prot) != 3 || strncmp(prot, "---", 3) == 0 ||
	    (int64_t)start < 0 || range_place(start, end - start) != RANGE_OUTSIDE)
		return false;
	*addr = start;
	*len = end - start;
	return true;
}

/* Call fn on each mapping of the kernel's: the sum of what it returns, or -errno. */
static int64_t each_mapping(int64_t (*fn)(uint64_t addr, uint64_t len, uint64_t arg), uint64_t arg)
{
	_cleanup_(fclosep) FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	int64_t sum = 0;
	uint64_t addr, len;

	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f))
		if (parse_mapping(line, &addr, &len))
			sum += fn(addr, len, arg);
	return sum;
}

static int64_t length(uint64_t addr, uint64_t len, uint64_t arg)
{
	(void)addr;
	(void)arg;
	return (int64_t)len;
}

/* As mlockall(2), which passes over what cannot be brought in. */
static int64_t lock_one(uint64_t addr, uint64_t len, uint64_t flags)
{
	mlock_outside(addr, len, flags);
	return 0;
}

static int64_t unlock_one(uint64_t addr, uint64_t len, uint64_t arg)
{
	munlock_outside(addr, len, arg);
	return 0;
}

/* The limit is over all, and mlock2() would hit it half way. */
static int64_t may_lock_kernel(void)
{
	struct rlimit limit;
	int64_t total;

	if (geteuid() == 0 || getrlimit(RLIMIT_MEMLOCK, &limit) < 0 ||
	    limit.rlim_cur == RLIM_INFINITY)
		return 0;
	if (limit.rlim_cur == 0)
		return -EPERM;
	total = each_mapping(length, 0);
	return total >= 0 && (uint64_t)total > limit.rlim_cur ? -ENOMEM : 0;
}

static int64_t mlockall_inside(arena_t *a, int flags)
{
	int64_t r = may_lock_kernel();

	if (r == 0 && arena_mlockall(a, flags) < 0)
		r = -errno;
	if (r < 0)
		return r;
	if (flags & MCL_CURRENT)
		each_mapping(lock_one, flags & MCL_ONFAULT ? MLOCK_ONFAULT : 0);
	if (flags & MCL_FUTURE)
		store_relaxed(&future, 1u + (flags & MCL_ONFAULT ? MLOCK_ONFAULT : 0));
	return 0;
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
	guard_enter();
	r = mlockall_inside(a, flags);
	guard_leave();
	if (r == 0)
		report_served(SERVED_mlock);
	return r;
}

int64_t preload_munlockall(void)
{
	arena_t *a = preload_arena();

	if (!a)
		return raw3(SYS_munlockall, 0, 0, 0);
	store_relaxed(&future, 0);
	guard_enter();
	each_mapping(unlock_one, 0);
	return leave(arena_munlockall(a));
}
