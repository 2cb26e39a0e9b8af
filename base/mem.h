/* SPDX-License-Identifier: MIT */
/*
 * mem.h - the heap, for indexes. Every allocation passes here so that a test can make the Nth
 * fail (fault point "mem"). Memory comes zeroed; free with free(3).
 */
#ifndef BASE_MEM_H
#define BASE_MEM_H

#include <stddef.h>

void *mem_alloc(size_t size) __attribute__((malloc));               /* NULL: no memory */
void *mem_array(size_t n, size_t size) __attribute__((malloc));     /* checks n * size */
void *mem_grow(void *old, size_t old_n, size_t new_n, size_t size); /* zeroes the new part */
char *mem_strdup(const char *s);

#endif
