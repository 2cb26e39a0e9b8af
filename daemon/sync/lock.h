/* SPDX-License-Identifier: MIT */
/*
 * lock.h - mutexes with a class. In debug builds each thread records the classes it holds and
 * every acquisition is checked against the one order of docs/locking.md (lock.def): taking a
 * class that is listed before one already held is an assertion failure that names both places,
 * whether or not it deadlocks this time.
 */
#ifndef SYNC_LOCK_H
#define SYNC_LOCK_H

#include <pthread.h>
#include <stdbool.h>

#include "base/util.h"

enum lock_class {
#define LOCK_CLASS(name, text) LOCK_CLASS_##name,
#include "daemon/sync/lock.def"
#undef LOCK_CLASS
	NR_LOCK_CLASSES
};

struct lock {
	pthread_mutex_t mutex;
	enum lock_class class;
};

void lock_init(struct lock *l, enum lock_class class);
void lock_destroy(struct lock *l);
void lock_acquire_at(struct lock *l, const char *file, int line);
void lock_release(struct lock *l);
#define lock_acquire(l) lock_acquire_at((l), __FILE__, __LINE__)
/* Debug builds: aborts unless the calling thread holds it. */
void lock_assert_held(const struct lock *l);
const char *lock_class_name(enum lock_class class);

static inline void lock_releasep(struct lock **l)
{
	if (*l)
		lock_release(*l);
}
/* Hold until the end of the scope. */
#define LOCK_GUARD(l)                                                              \
	__attribute__((cleanup(lock_releasep), unused)) struct lock *lock_guard_ = \
		(lock_acquire(l), (l))

/*
 * The control thread: the one thread that owns the truth and every index. Functions that touch
 * them say CONTROL_THREAD(), which debug builds check. The first caller becomes it, until
 * control_thread_reset().
 */
void control_thread_check(const char *file, int line);
void control_thread_reset(void);
#ifdef ARENA_DEBUG
#define CONTROL_THREAD() control_thread_check(__FILE__, __LINE__)
#else
#define CONTROL_THREAD() ((void)0)
#endif

#endif
