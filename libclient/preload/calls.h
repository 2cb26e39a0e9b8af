/* SPDX-License-Identifier: MIT */
/*
 * calls.h - calls that libarena may not have yet. Where one is missing its address is NULL, and the
 * interposer does what it can without it.
 */
#ifndef LIBCLIENT_PRELOAD_CALLS_H
#define LIBCLIENT_PRELOAD_CALLS_H

#include "arena/arena.h"

#define MAY_LACK __attribute__((weak))

MAY_LACK void *arena_mremap(arena_t *a, void *old, size_t old_len, size_t new_len, int flags,
			    void *new_addr);
MAY_LACK int arena_msync(arena_t *a, void *addr, size_t len, int flags);
MAY_LACK int arena_mincore(arena_t *a, void *addr, size_t len, unsigned char *vec);
MAY_LACK int arena_mlock(arena_t *a, const void *addr, size_t len);
MAY_LACK int arena_mlock2(arena_t *a, const void *addr, size_t len, unsigned flags);
MAY_LACK int arena_munlock(arena_t *a, const void *addr, size_t len);
MAY_LACK int arena_mlockall(arena_t *a, int flags);
MAY_LACK int arena_munlockall(arena_t *a);
MAY_LACK int arena_brk(arena_t *a, void *end);
MAY_LACK void *arena_sbrk(arena_t *a, intptr_t delta);

#endif
