/* SPDX-License-Identifier: MIT */
/* lock.c - small_lock over the futex of base/os.h, and rt_sigprocmask(2) called directly. */
#include "libclient/lock.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/os.h"
#include "base/util.h"

#define SPINS 100

#ifdef ARENA_DEBUG
static uint32_t self(void)
{
	return (uint32_t)syscall(SYS_gettid);
}
#endif

static bool try_acquire(struct small_lock *l)
{
	uint32_t free_word = 0;

	return __atomic_compare_exchange_n(&l->word, &free_word, 1, false, __ATOMIC_ACQUIRE,
					   __ATOMIC_RELAXED);
}

static void acquire_slowly(struct small_lock *l)
{
	/* Holds are a few system calls long; on one CPU the holder cannot be running. */
	if (os_nr_cpus() > 1)
		for (int i = 0; i < SPINS; i++) {
			if (load_relaxed(&l->word) == 0 && try_acquire(l))
				return;
			__builtin_ia32_pause();
		}
	while (__atomic_exchange_n(&l->word, 2, __ATOMIC_ACQUIRE) != 0)
		os_futex_wait(&l->word, 2, 0);
}

void small_lock_acquire(struct small_lock *l)
{
	ASSERT(!small_lock_held(l));
	if (!try_acquire(l))
		acquire_slowly(l);
#ifdef ARENA_DEBUG
	store_relaxed(&l->owner, self());
#endif
}

void small_lock_release(struct small_lock *l)
{
	ASSERT(small_lock_held(l));
#ifdef ARENA_DEBUG
	store_relaxed(&l->owner, 0);
#endif
	if (__atomic_exchange_n(&l->word, 0, __ATOMIC_RELEASE) == 2)
		os_futex_wake(&l->word, 1);
}

bool small_lock_held(const struct small_lock *l)
{
#ifdef ARENA_DEBUG
	return load_relaxed(&l->owner) == self();
#else
	(void)l;
	return false;
#endif
}

uint64_t signals_block_all(void)
{
	uint64_t all = ~UINT64_C(0), old = 0;

	syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, &old, sizeof(old));
	return old;
}

void signals_restore(uint64_t mask)
{
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof(mask));
}
