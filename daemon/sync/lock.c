/* SPDX-License-Identifier: MIT */
/*
 * lock.c - mutexes, and in debug builds a witness of the order in which they are taken.
 *
 * Each thread keeps a stack of what it holds. lock.def lists the classes outermost first, so along
 * that stack, oldest first, class numbers strictly rise: two locks of one class have no order
 * between them and may not be held together either. Locks may be released in any order.
 *
 * The check runs before the mutex is waited for, so that a deadlock is reported, not entered.
 */
#include "daemon/sync/lock.h"

#include <stdlib.h>

#include "base/log.h"

static const char *const class_names[NR_LOCK_CLASSES] = {
#define LOCK_CLASS(name, text) [LOCK_CLASS_##name] = #name,
#include "daemon/sync/lock.def"
#undef LOCK_CLASS
};

const char *lock_class_name(enum lock_class class)
{
	return (unsigned)class < NR_LOCK_CLASSES ? class_names[class] : "?";
}

#ifdef ARENA_DEBUG

struct held {
	const struct lock *lock;
	const char *file;
	int line;
};

/* Classes strictly rise, so there cannot be more. */
static _Thread_local struct held held[NR_LOCK_CLASSES];
static _Thread_local unsigned nr_held;

static void check_order(const struct lock *l, const char *file, int line)
{
	for (unsigned i = 0; i < nr_held; i++) {
		const struct held *h = &held[i];

		if (h->lock->class < l->class)
			continue;
		log_err("lock order: %s:%d takes %s while %s:%d holds %s%s", file, line,
			lock_class_name(l->class), h->file, h->line,
			lock_class_name(h->lock->class), h->lock == l ? ", the same lock" : "");
		assert_failed("lock order", file, line);
	}
}

static void note_acquired(const struct lock *l, const char *file, int line)
{
	held[nr_held++] = (struct held){.lock = l, .file = file, .line = line};
}

static struct held *find_held(const struct lock *l)
{
	for (unsigned i = 0; i < nr_held; i++)
		if (held[i].lock == l)
			return &held[i];
	return NULL;
}

static void note_released(const struct lock *l)
{
	struct held *h = find_held(l);

	ASSERT(h);
	for (nr_held--; h < &held[nr_held]; h++)
		h[0] = h[1];
}

void lock_assert_held(const struct lock *l)
{
	ASSERT(find_held(l));
}

#else

static void check_order(const struct lock *l, const char *file, int line)
{
	(void)l, (void)file, (void)line;
}

static void note_acquired(const struct lock *l, const char *file, int line)
{
	(void)l, (void)file, (void)line;
}

static void note_released(const struct lock *l)
{
	(void)l;
}

void lock_assert_held(const struct lock *l)
{
	(void)l;
}

#endif

void lock_init(struct lock *l, enum lock_class class)
{
	BUG_ON((unsigned)class >= NR_LOCK_CLASSES);
	l->class = class;
	BUG_ON(pthread_mutex_init(&l->mutex, NULL) != 0);
}

/* A mutex that somebody still holds cannot be destroyed. */
void lock_destroy(struct lock *l)
{
	BUG_ON(pthread_mutex_destroy(&l->mutex) != 0);
}

void lock_acquire_at(struct lock *l, const char *file, int line)
{
	check_order(l, file, line);
	BUG_ON(pthread_mutex_lock(&l->mutex) != 0);
	note_acquired(l, file, line);
}

void lock_release(struct lock *l)
{
	note_released(l);
	BUG_ON(pthread_mutex_unlock(&l->mutex) != 0);
}

/* ---- the control thread ---- */

/* pthread_self() of the owner, 0 for none; it stays the same in a fork()ed child. */
static pthread_t control_thread;

void control_thread_check(const char *file, int line)
{
	pthread_t self = pthread_self();
	pthread_t owner = 0;

	if (__atomic_compare_exchange_n(&control_thread, &owner, self, false, __ATOMIC_ACQ_REL,
					__ATOMIC_ACQUIRE))
		return;
	if (owner != self)
		assert_failed("this is not the control thread", file, line);
}

void control_thread_reset(void)
{
	store_release(&control_thread, 0);
}
