/* SPDX-License-Identifier: MIT */
/* jemalloc.c - jemalloc's own functions, for programs that are linked with it: it is the same heap. */
#include "libclient/preload/jemalloc.h"
#include "libclient/preload/preload.h"

PRELOAD_EXPORT void *mallocx(size_t size, int flags)
{
	return je_mallocx(size, flags);
}

PRELOAD_EXPORT void *rallocx(void *p, size_t size, int flags)
{
	return je_rallocx(p, size, flags);
}

PRELOAD_EXPORT size_t xallocx(void *p, size_t size, size_t extra, int flags)
{
	return je_xallocx(p, size, extra, flags);
}

PRELOAD_EXPORT size_t sallocx(const void *p, int flags)
{
	return je_sallocx(p, flags);
}

PRELOAD_EXPORT void dallocx(void *p, int flags)
{
	je_dallocx(p, flags);
}

PRELOAD_EXPORT void sdallocx(void *p, size_t size, int flags)
{
	je_sdallocx(p, size, flags);
}

PRELOAD_EXPORT size_t nallocx(size_t size, int flags)
{
	return je_nallocx(size, flags);
}

PRELOAD_EXPORT int mallctl(const char *name, void *old, size_t *old_len, void *new_value,
			   size_t new_len)
{
	return je_mallctl(name, old, old_len, new_value, new_len);
}

PRELOAD_EXPORT int mallctlnametomib(const char *name, size_t *mib, size_t *len)
{
	return je_mallctlnametomib(name, mib, len);
}

PRELOAD_EXPORT int mallctlbymib(const size_t *mib, size_t mib_len, void *old, size_t *old_len,
				void *new_value, size_t new_len)
{
	return je_mallctlbymib(mib, mib_len, old, old_len, new_value, new_len);
}

PRELOAD_EXPORT void malloc_stats_print(void (*write_cb)(void *, const char *), void *arg,
				       const char *opts)
{
	je_malloc_stats_print(write_cb, arg, opts);
}
