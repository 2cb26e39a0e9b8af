/* SPDX-License-Identifier: MIT */
/*
 * map.c - mmap(2) and what changes mappings.
 *
 * A new mapping is the arena's if it is anonymous, large enough, without flags that only the kernel
 * has, and not asked for at an address outside. An address in the window is always the
 * arena's, whatever the mapping is:
 *
 *                         in the window                       anywhere
 *     anonymous           the arena                           the arena, or the kernel
 *     file (--files)      the arena (file_map.c)                 the arena, or the kernel
 *     file, private       anonymous memory with its bytes     the kernel
 *     file, shared        ENODEV                              the kernel
 *     shm_open()'s (shm.c) the segment                         the segment
 *
 * A stack is the kernel's: fork() on a stack of the arena leaves the child without one.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "libclient/preload/files.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

#define PAGE 4096u
#define LARGEST (UINT64_C(1) << 62)

#ifndef MAP_UNINITIALIZED
#define MAP_UNINITIALIZED 0x4000000
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static void *pointer(uint64_t addr)
{
	return (void *)(uintptr_t)addr;
}

static int64_t status(int r)
{
	return r < 0 ? -errno : 0;
}

static int64_t address(const void *p)
{
	return p == MAP_FAILED ? -errno : (int64_t)(uintptr_t)p;
}

static int64_t kernel_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, int64_t off)
{
	return raw6(SYS_mmap, addr, len, (uint64_t)prot, (uint64_t)flags, (uint64_t)fd,
		    (uint64_t)off);
}

/* ---- mmap ------------------------------------------------------------------------------------ */

/* Ignored by the kernel, or of no meaning where nothing is swapped. */
const int map_idle_flags = MAP_DENYWRITE | MAP_EXECUTABLE | MAP_UNINITIALIZED | MAP_FILE;
static const int served_flags = MAP_TYPE | MAP_ANONYMOUS | MAP_FIXED | MAP_FIXED_NOREPLACE |
				MAP_POPULATE | MAP_NONBLOCK | MAP_NORESERVE | MAP_LOCKED;

bool map_flags_served(int flags)
{
	return !(flags & ~(served_flags | map_idle_flags));
}

static bool may_serve(uint64_t addr, uint64_t len, int flags)
{
	int type = flags & MAP_TYPE;

	if (!(flags & MAP_ANONYMOUS) || (type != MAP_PRIVATE && type != MAP_SHARED))
		return false;
	if (!map_flags_served(flags))
		return false;
	return len >= preload.options.min_size && len <= LARGEST &&
	       (addr == 0 || range_place(addr, len) == RANGE_INSIDE);
}

static int64_t arena_map(arena_t *a, uint64_t addr, uint64_t len, int prot, int flags)
{
	int64_t r;

	guard_enter();
	r = address(arena_mmap(a, pointer(addr), len, prot, flags & ~map_idle_flags, -1, 0));
	if (r >= 0 && preload.options.mergeable)
		arena_madvise(a, pointer((uint64_t)r), len, MADV_MERGEABLE);
	guard_leave();
	if (r < 0)
		return r;
	report_served(SERVED_mmap);
	report_mapped(ALIGN_UP(len, (uint64_t)PAGE));
	if (flags & MAP_FIXED)
		sysv_unmapped((uint64_t)r, ALIGN_UP(len, (uint64_t)PAGE));
	return r;
}

static int64_t read_file(int fd, int64_t off, char *to, uint64_t len, uint64_t *got)
{
	for (*got = 0; *got < len;) {
		int64_t n = raw6(SYS_pread64, (uint64_t)fd, (uintptr_t)(to + *got), len - *got,
				 (uint64_t)off + *got, 0, 0);

		if (n == -EINTR)
			continue;
		if (n <= 0)
			return n;
		*got += (uint64_t)n;
	}
	return 0;
}

/*
 * A private mapping of a file need not show what is written to the file later, so its bytes will do.
 * What lies behind the file's last page is no memory.
 */
static int64_t copy_file(arena_t *a, uint64_t addr, uint64_t len, int prot, int flags, int fd,
			 int64_t off)
{
	int how = MAP_PRIVATE | MAP_ANONYMOUS | (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE));
	int64_t r;
	uint64_t got;

	if ((flags & MAP_TYPE) != MAP_PRIVATE)
		return -ENODEV;
	if (off < 0 || off % PAGE)
		return -EINVAL;
	/* Before anything is replaced: can it be read at all? */
	r = raw6(SYS_pread64, (uint64_t)fd, 0, 0, (uint64_t)off, 0, 0);
	if (r < 0)
		return r == -EBADF ? r : -ENODEV;
	r = arena_map(a, addr, len, PROT_READ | PROT_WRITE, how);
	if (r < 0)
		return r;
	guard_enter();
	r = status(arena_populate(a, pointer(addr), len, 1));
	if (r == 0)
		r = read_file(fd, off, pointer(addr), len, &got);
	if (r == 0)
		r = status(arena_mprotect(a, pointer(addr), len, prot));
	if (r == 0 && ALIGN_UP(got, (uint64_t)PAGE) < len)
		r = status(arena_mprotect(a, pointer(addr + ALIGN_UP(got, (uint64_t)PAGE)),
					  len - ALIGN_UP(got, (uint64_t)PAGE), PROT_NONE));
	if (r < 0)
		arena_munmap(a, pointer(addr), len);
	guard_leave();
	return r < 0 ? r : (int64_t)addr;
}

static int64_t mmap_at(arena_t *a, uint64_t addr, uint64_t len, int prot, int flags, int fd,
		       int64_t off)
{
	if (flags & MAP_ANONYMOUS)
		return arena_map(a, addr, len, prot,
				 flags & ~(MAP_STACK | MAP_GROWSDOWN | MAP_HUGETLB));
	return copy_file(a, addr, len, prot, flags, fd, off);
}

int64_t preload_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, int64_t off)
{
	arena_t *a = preload_arena();
	int64_t r;

	if (!a || len == 0)
		return kernel_mmap(addr, len, prot, flags, fd, off);
	if (shm_mmap(addr, len, prot, flags, fd, off, &r))
		return r;
	if (files_mmap(addr, len, prot, flags, fd, off, &r))
		return r;
	if (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) {
		enum range_place place = range_place(addr, ALIGN_UP(len, (uint64_t)PAGE));

		if (place == RANGE_INSIDE)
			return mmap_at(a, addr, len, prot, flags, fd, off);
		if (place == RANGE_MIXED)
			return flags & MAP_FIXED_NOREPLACE ? -EEXIST : -ENOMEM;
	}
	if (may_serve(addr, len, flags)) {
		r = arena_map(a, addr, len, prot, flags);
		/* No such flag, no daemon any more, no room for another mapping's record. */
		if (r != -ENOTSUP && r != -EINVAL && r != -ECONNRESET)
			return r;
	}
	/* A wish for an address of ours, which the kernel knows to be in use. */
	if (range_place(addr, len) != RANGE_OUTSIDE)
		addr = 0;
	if (!(flags & MAP_ANONYMOUS))
		files_before_kernel_mmap(fd, (uint64_t)off, len);
	r = kernel_mmap(addr, len, prot, flags, fd, off);
	if (r >= 0)
		lock_new_mapping((uint64_t)r, ALIGN_UP(len, (uint64_t)PAGE));
	if (r >= 0 && (flags & MAP_ANONYMOUS))
		report_kernel(ALIGN_UP(len, (uint64_t)PAGE));
	return r;
}

/* ---- munmap, mprotect, madvise, msync --------------------------------------------------------- */

static int64_t served(enum served_call call, int r)
{
	int64_t result = status(r);

	guard_leave();
	if (result == 0)
		report_served(call);
	return result;
}

static int64_t munmap_inside(uint64_t addr, uint64_t len, uint64_t arg)
{
	int64_t r;

	(void)arg;
	guard_enter();
	r = served(SERVED_munmap, arena_munmap(preload_arena(), pointer(addr), len));
	if (r < 0)
		return r;
	report_unmapped(ALIGN_UP(len, (uint64_t)PAGE));
	sysv_unmapped(addr, ALIGN_UP(len, (uint64_t)PAGE));
	files_unmapped(addr, ALIGN_UP(len, (uint64_t)PAGE));
	return 0;
}

static int64_t munmap_outside(uint64_t addr, uint64_t len, uint64_t arg)
{
	(void)arg;
	return raw3(SYS_munmap, addr, len, 0);
}

int64_t preload_munmap(uint64_t addr, uint64_t len)
{
	static const struct range_ops ops = {munmap_inside, munmap_outside, false};

	return range_do(&ops, addr, len, 0);
}

static int64_t mprotect_inside(uint64_t addr, uint64_t len, uint64_t prot)
{
	guard_enter();
	return served(SERVED_mprotect,
		      arena_mprotect(preload_arena(), pointer(addr), len, (int)prot));
}

static int64_t mprotect_outside(uint64_t addr, uint64_t len, uint64_t prot)
{
	return raw3(SYS_mprotect, addr, len, prot);
}

int64_t preload_mprotect(uint64_t addr, uint64_t len, int prot)
{
	static const struct range_ops ops = {mprotect_inside, mprotect_outside, false};

	return range_do(&ops, addr, len, (uint64_t)prot);
}

static int64_t madvise_inside(uint64_t addr, uint64_t len, uint64_t advice)
{
	guard_enter();
	return served(SERVED_madvise,
		      arena_madvise(preload_arena(), pointer(addr), len, (int)advice));
}

static int64_t madvise_outside(uint64_t addr, uint64_t len, uint64_t advice)
{
	return raw3(SYS_madvise, addr, len, advice);
}

int64_t preload_madvise(uint64_t addr, uint64_t len, int advice)
{
	static const struct range_ops ops = {madvise_inside, madvise_outside, true};

	return range_do(&ops, addr, len, (uint64_t)advice);
}

static int64_t msync_inside(uint64_t addr, uint64_t len, uint64_t flags)
{
	guard_enter();
	return served(SERVED_msync, arena_msync(preload_arena(), pointer(addr), len, (int)flags));
}

static int64_t msync_outside(uint64_t addr, uint64_t len, uint64_t flags)
{
	return raw3(SYS_msync, addr, len, flags);
}

int64_t preload_msync(uint64_t addr, uint64_t len, int flags)
{
	static const struct range_ops ops = {msync_inside, msync_outside, true};

	return range_do(&ops, addr, len, (uint64_t)flags);
}

/* ---- mincore ------------------------------------------------------------------------------------ */

struct mincore_call {
	uint64_t addr;
	unsigned char *vec;
};

static int64_t mincore_inside(uint64_t addr, uint64_t len, uint64_t arg)
{
	const struct mincore_call *c = pointer(arg);
	unsigned char *vec = c->vec + (addr - c->addr) / PAGE;

	guard_enter();
	return served(SERVED_mincore, arena_mincore(preload_arena(), pointer(addr), len, vec));
}

static int64_t mincore_outside(uint64_t addr, uint64_t len, uint64_t arg)
{
	const struct mincore_call *c = pointer(arg);

	return raw3(SYS_mincore, addr, len, (uintptr_t)(c->vec + (addr - c->addr) / PAGE));
}

int64_t preload_mincore(uint64_t addr, uint64_t len, unsigned char *vec)
{
	static const struct range_ops ops = {mincore_inside, mincore_outside, false};
	struct mincore_call c = {.addr = addr, .vec = vec};

	return range_do(&ops, addr, len, (uintptr_t)&c);
}

/* ---- mremap -------------------------------------------------------------------------------------- */

static int64_t mremap_inside(arena_t *a, uint64_t old, uint64_t old_len, uint64_t new_len,
			     int flags, uint64_t to)
{
	int64_t r;

	guard_enter();
	r = address(arena_mremap(a, pointer(old), old_len, new_len, flags, pointer(to)));
	guard_leave();
	if (r < 0)
		return r;
	report_served(SERVED_mremap);
	report_unmapped(ALIGN_UP(old_len, (uint64_t)PAGE));
	report_mapped(ALIGN_UP(new_len, (uint64_t)PAGE));
	files_moved(old, (uint64_t)r, ALIGN_UP(new_len, (uint64_t)PAGE));
	return r;
}

int64_t preload_mremap(uint64_t old, uint64_t old_len, uint64_t new_len, int flags, uint64_t to)
{
	bool has_target = flags & (MREMAP_FIXED | MREMAP_DONTUNMAP);
	enum range_place from_place = range_place(old, old_len);
	enum range_place to_place = flags & MREMAP_FIXED ? range_place(to, new_len) : from_place;

	if (from_place == RANGE_OUTSIDE && to_place == RANGE_OUTSIDE)
		return raw6(SYS_mremap, old, old_len, new_len, (uint64_t)flags, to, 0);
	/* Memory does not change its owner. */
	if (from_place != RANGE_INSIDE || to_place != RANGE_INSIDE)
		return from_place == RANGE_MIXED ? -EFAULT : -EINVAL;
	if (new_len == 0)
		return -EINVAL;
	return mremap_inside(preload_arena(), old, old_len, new_len, flags, has_target ? to : 0);
}
