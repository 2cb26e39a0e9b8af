/* SPDX-License-Identifier: MIT */
/*
 * catch.h - being there when fork(2) is made.
 *
 * Between the system call and the handlers of pthread_atfork(3) the C library touches memory in the child: the
 * stack, its own data about the thread, locks of open files, data of other threads. Any of that may
 * lie in arena memory. So the call is made by this library, which has the child's arena memory ready
 * before the call returns there.
 *
 *     prepare handlers   catch_begin(): system calls of this thread become SIGSYS (syscall user dispatch)
 *     fork(2)            make(), on a bare stack, which calls catch_clone() once
 *     other handlers     catch_end()
 *
 * The calls that come before are made in the handler, one by one.
 */
#ifndef LIBCLIENT_CATCH_H
#define LIBCLIENT_CATCH_H

#include <stdbool.h>

/* It is to be made by `make`. `shy`: meanwhile there may be no memory where the C library has its data about
 * this thread. -errno: it cannot be done. */
int catch_fork(long (*make)(void), bool shy);
/* From here on in the calling thread; all signals but SIGSYS are blocked. */
void catch_begin(void);
/* In make(): fork. As clone(2), or -errno. */
long catch_clone(void);
/* In parent and child. */
void catch_end(void);

#endif
