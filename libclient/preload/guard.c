/* SPDX-License-Identifier: MIT */
/*
 * guard.c - the library's threads and fork handlers, and who is inside.
 *
 * The linker has libarena call __wrap_NAME where it says NAME (room.mk): what its threads and handlers
 * allocate, and what the C library allocates for them, is the library's.
 */
#include <errno.h>
#include <pthread.h>

#include "libclient/preload/preload.h"

__thread unsigned preload_inside;

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
			  void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
			  void *arg);
int __real_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void));
int __wrap_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void));

/* ---- threads ---- */

struct begin {
	void *(*fn)(void *);
	void *arg;
};

static void *begin(void *arg)
{
	struct begin b = *(struct begin *)arg;
	void *result;

	guard_enter();
	private_free(arg);
	threads_library(1);
	result = b.fn(b.arg);
	threads_library(-1);
	return result;
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
			  void *arg)
{
	struct begin *b = private_alloc(sizeof(*b));
	int r;

	if (!b)
		return ENOMEM;
	*b = (struct begin){.fn = fn, .arg = arg};
	guard_enter();
	r = __real_pthread_create(thread, attr, begin, b);
	guard_leave();
	if (r)
		private_free(b);
	return r;
}

/* ---- the tables of what is shared by name ---- */

static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;

void shared_enter(void)
{
	guard_enter();
	pthread_mutex_lock(&shared_lock);
}

void shared_leave(void)
{
	pthread_mutex_unlock(&shared_lock);
	guard_leave();
}

/* ---- fork ---- */

static void (*client_prepare)(void), (*client_parent)(void), (*client_child)(void);

void preload_fork_prepare(void)
{
	shared_enter();
	if (client_prepare)
		client_prepare();
	private_before_fork();
}

void preload_fork_parent(void)
{
	private_after_fork(false);
	if (client_parent)
		client_parent();
	shared_leave();
}

void preload_fork_child(void)
{
	private_after_fork(true);
	if (client_child)
		client_child();
	report_after_fork();
	threads_after_fork();
	shared_leave();
}

/* The library registers once, and first (start.c). The other one who gets here is jemalloc. */
int __wrap_pthread_atfork(void (*before)(void), void (*in_parent)(void), void (*in_child)(void))
{
	if (client_prepare)
		return __real_pthread_atfork(before, in_parent, in_child);
	client_prepare = before;
	client_parent = in_parent;
	client_child = in_child;
	return __real_pthread_atfork(preload_fork_prepare, preload_fork_parent, preload_fork_child);
}
