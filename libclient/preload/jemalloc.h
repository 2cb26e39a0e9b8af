/* SPDX-License-Identifier: MIT */
/* jemalloc.h - jemalloc's functions as room.mk renames them, and what our copies of them look like. */
#ifndef LIBCLIENT_PRELOAD_JEMALLOC_H
#define LIBCLIENT_PRELOAD_JEMALLOC_H

#include <stdbool.h>
#include <stddef.h>

#define JEMALLOC_NO_RENAME
#include <jemalloc/jemalloc.h>

/* The functions of the C library's malloc.h, which would declare others that are not ours. */
void *memalign(size_t align, size_t size);
void *pvalloc(size_t size);
size_t malloc_usable_size(void *p);
int malloc_trim(size_t pad);

void *mallocx(size_t size, int flags);
void *rallocx(void *p, size_t size, int flags);
size_t xallocx(void *p, size_t size, size_t extra, int flags);
size_t sallocx(const void *p, int flags);
void dallocx(void *p, int flags);
void sdallocx(void *p, size_t size, int flags);
size_t nallocx(size_t size, int flags);
int mallctl(const char *name, void *old, size_t *old_len, void *new_value, size_t new_len);
int mallctlnametomib(const char *name, size_t *mib, size_t *len);
int mallctlbymib(const size_t *mib, size_t mib_len, void *old, size_t *old_len, void *new_value,
		 size_t new_len);
void malloc_stats_print(void (*write_cb)(void *, const char *), void *arg, const char *opts);

/* kernel_heap.c: a jemalloc arena whose chunks are the kernel's. */
extern extent_hooks_t kernel_heap_hooks;

#endif
