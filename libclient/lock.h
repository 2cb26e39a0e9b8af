/* SPDX-License-Identifier: MIT */
/*
 * lock.h - a lock that a trap may take, and signal masks without the C library.
 *
 * A small_lock is one futex word: 0 free, 1 held, 2 held and perhaps waited for. Whoever takes it
 * has all signals blocked, so that no handler of the same thread finds it held.
 */
#ifndef LIBCLIENT_LOCK_H
#define LIBCLIENT_LOCK_H

#include <stdbool.h>
#include <stdint.h>

struct small_lock {
	uint32_t word;
	uint32_t owner; /* thread id, debug builds only */
};

void small_lock_acquire(struct small_lock *l);
void small_lock_release(struct small_lock *l);
/* Debug builds: does the calling thread hold it? Others: false. */
bool small_lock_held(const struct small_lock *l);

/* Masks as the kernel has them: bit n - 1 is signal n. */
uint64_t signals_block_all(void); /* the mask before */
void signals_restore(uint64_t mask);

#endif
