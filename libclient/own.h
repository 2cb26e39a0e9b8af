/* SPDX-License-Identifier: MIT */
/*
 * own.h - memory that is never the program's heap.
 *
 * The heap may lie in arena memory. What a trap, a thread of the library or a newborn child uses must not:
 * it would wait for itself. So handles and what hangs on them come straight from the kernel; zeroed, and
 * a child of fork() has them, too.
 */
#ifndef LIBCLIENT_OWN_H
#define LIBCLIENT_OWN_H

#include <stddef.h>

void *own_alloc(size_t size); /* NULL: no memory */
void own_free(void *p, size_t size);

#endif
