/* SPDX-License-Identifier: MIT */
/* kernel_heap.c - where the chunks of the C library's own allocations come from: the kernel. */
#include <sys/mman.h>

#include "base/util.h"
#include "libclient/preload/jemalloc.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

static bool is_error(int64_t r)
{
	return r < 0 && r > -4096;
}

static int64_t map_kernel(void *at, size_t size)
{
	return raw6(SYS_mmap, (uintptr_t)at, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1, 0);
}

static void *kernel_alloc(extent_hooks_t *hooks, void *at, size_t size, size_t alignment,
			  bool *zero, bool *commit, unsigned arena)
{
	int64_t p;
	uint64_t start, end;

	(void)hooks;
	(void)arena;
	if (at)
		return NULL;
	p = map_kernel(NULL, size + alignment);
	if (is_error(p))
		return NULL;
	start = ALIGN_UP((uint64_t)p, alignment);
	end = (uint64_t)p + size + alignment;
	if (start > (uint64_t)p)
		raw3(SYS_munmap, (uint64_t)p, start - (uint64_t)p, 0);
	if (end > start + size)
		raw3(SYS_munmap, start + size, end - start - size, 0);
	*zero = *commit = true;
	return (void *)start;
}

static bool kernel_dalloc(extent_hooks_t *hooks, void *at, size_t size, bool committed,
			  unsigned arena)
{
	(void)hooks;
	(void)committed;
	(void)arena;
	return raw3(SYS_munmap, (uintptr_t)at, size, 0) < 0;
}

static bool kernel_purge(extent_hooks_t *hooks, void *at, size_t size, size_t offset, size_t len,
			 unsigned arena)
{
	(void)hooks;
	(void)size;
	(void)arena;
	return raw3(SYS_madvise, (uintptr_t)at + offset, len, MADV_DONTNEED) < 0;
}

static bool kernel_split(extent_hooks_t *hooks, void *at, size_t size, size_t a, size_t b,
			 bool committed, unsigned arena)
{
	(void)hooks;
	(void)at;
	(void)size;
	(void)a;
	(void)b;
	(void)committed;
	(void)arena;
	return false;
}

static bool kernel_merge(extent_hooks_t *hooks, void *a, size_t a_size, void *b, size_t b_size,
			 bool committed, unsigned arena)
{
	(void)hooks;
	(void)a;
	(void)a_size;
	(void)b;
	(void)b_size;
	(void)committed;
	(void)arena;
	return false;
}

extent_hooks_t kernel_heap_hooks = {
	.alloc = kernel_alloc,
	.dalloc = kernel_dalloc,
	.purge_forced = kernel_purge,
	.split = kernel_split,
	.merge = kernel_merge,
};
