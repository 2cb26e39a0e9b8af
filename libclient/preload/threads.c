/* SPDX-License-Identifier: MIT */
/*
 * threads.c - a process ends with its last thread. The library's are not to count: where main() leaves by
 * pthread_exit() the C library would wait for them for ever.
 *
 * So the program's threads are counted, by a destructor of thread-specific data that has itself called
 * as often and as late as there is. The last one looks whether there are threads that nobody here has
 * made (the C library's helpers), and ends the process if not.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "libclient/preload/preload.h"

typedef int create_fn(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
		      void *arg);

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static create_fn *next_create;
static uint32_t nr_threads = 1; /* the program's */
static uint32_t nr_library;

/* Threads that have been counted and need a moment more to be gone: the last of them. */
#define NR_ENDED 256u
static uint32_t ended[NR_ENDED], nr_ended;

void threads_library(int change)
{
	__atomic_fetch_add(&nr_library, (uint32_t)change, __ATOMIC_SEQ_CST);
}

static bool has_ended(uint32_t task)
{
	for (unsigned i = 0; i < NR_ENDED; i++)
		if (load_relaxed(&ended[i]) == task)
			return true;
	return false;
}

/* Is it one that goes on? main()'s stays as a zombie. */
static bool is_alive(const char *task)
{
	char path[64], line[512];
	_cleanup_(closep) int fd = -1;
	const char *state;
	ssize_t n;

	if (has_ended((uint32_t)atoi(task)))
		return false;

	snprintf(path, sizeof(path), "/proc/self/task/%.20s/stat", task);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, line, sizeof(line) - 1);
	line[MAX(n, 0)] = '\0';
	state = strrchr(line, ')');
	return state && strncmp(state, ") Z", 3) != 0 && strncmp(state, ") X", 3) != 0;
}

static uint32_t nr_alive(void)
{
	DIR *d = opendir("/proc/self/task");
	const struct dirent *e;
	uint32_t n = 0;

	while (d && (e = readdir(d)))
		n += *e->d_name != '.' && is_alive(e->d_name);
	if (d)
		closedir(d);
	return n;
}

/* `pass`: how often it was called, and one more. */
static void at_thread_end(void *pass)
{
	uintptr_t n = (uintptr_t)pass;
	bool last;

	if (n < PTHREAD_DESTRUCTOR_ITERATIONS) {
		pthread_setspecific(key, (void *)(n + 1));
		return;
	}
	store_relaxed(&ended[__atomic_fetch_add(&nr_ended, 1, __ATOMIC_RELAXED) % NR_ENDED],
		      (uint32_t)gettid());
	if (__atomic_sub_fetch(&nr_threads, 1, __ATOMIC_SEQ_CST))
		return;
	guard_enter();
	last = nr_alive() <= load_relaxed(&nr_library);
	guard_leave();
	if (last)
		exit(0);
}

static void find_next(void)
{
	next_create = (create_fn *)dlsym(RTLD_NEXT, "pthread_create");
	pthread_key_create(&key, at_thread_end);
}

void threads_start(void)
{
	pthread_once(&once, find_next);
	pthread_setspecific(key, (void *)1);
}

void threads_after_fork(void)
{
	nr_threads = 1;
}

struct begin {
	void *(*fn)(void *);
	void *arg;
};

static void *begin(void *arg)
{
	struct begin b = *(struct begin *)arg;

	private_free(arg);
	pthread_setspecific(key, (void *)1);
	return b.fn(b.arg);
}

PRELOAD_EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attr,
				  void *(*fn)(void *), void *arg)
{
	struct begin *b;
	int r;

	pthread_once(&once, find_next);
	/* The library's own, or none of the library's are there. */
	if (preload_inside || !preload_arena())
		return next_create(thread, attr, fn, arg);
	b = private_alloc(sizeof(*b));
	if (!b)
		return EAGAIN;
	*b = (struct begin){.fn = fn, .arg = arg};
	__atomic_fetch_add(&nr_threads, 1, __ATOMIC_SEQ_CST);
	r = next_create(thread, attr, begin, b);
	if (r) {
		private_free(b);
		__atomic_fetch_sub(&nr_threads, 1, __ATOMIC_SEQ_CST);
	}
	return r;
}
