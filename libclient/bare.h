/* SPDX-License-Identifier: MIT */
/*
 * bare.h - code that runs beside the C library: on a stack of its own, with a thread pointer of its own.
 *
 * A thread's stack and its thread-local data may lie in arena memory. While a child of fork() is made
 * there are moments without arena memory, and while they last nothing may touch it, not even errno:
 *
 *     memory   | guard |      stack      | thread-local data | thread pointer ... |
 *
 * Only those thread-local variables exist there which such code uses: errno, and the library's own.
 * So it takes no part in anything of the C library but thin wrappers of system calls, string functions and
 * mutexes that nobody contends for.
 */
#ifndef LIBCLIENT_BARE_H
#define LIBCLIENT_BARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bare {
	char *memory;
	size_t len;
	char *stack_top, *thread_pointer;
	uint32_t tid; /* futex: 0 when its thread has ended */
	/* of the call under way */
	void (*fn)(void *arg);
	void *arg, *callers;
};

/* 0 or -errno: -EOPNOTSUPP where this cannot be done. */
int bare_make(struct bare *b);
void bare_free(struct bare *b);
/* fn(arg) there; it may return in two processes. One caller at a time. */
void bare_call(struct bare *b, void (*fn)(void *arg), void *arg);
/* A thread that the C library knows nothing of; all signals blocked, descriptors shared. */
int bare_thread(struct bare *b, void (*fn)(void *arg), void *arg);
/* Wait for its end: nothing runs there any more. One caller. */
void bare_join(struct bare *b);

/* A system call without errno: the kernel's result. */
long bare_syscall(long nr, long a, long b, long c, long d, long e, long f);
/* The thread pointer of the calling thread. */
uintptr_t bare_thread_pointer(void);

#endif
