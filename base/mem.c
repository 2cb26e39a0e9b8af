/* SPDX-License-Identifier: MIT */
/* mem.c - the heap with one place to fail: fault point "mem" stands for an exhausted heap. */
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

#include "base/faultpoint.h"

/* A size of 0 still gives a pointer of its own, so that NULL always means no memory. */
void *mem_alloc(size_t size)
{
	if (faultpoint("mem"))
		return NULL;
	return calloc(1, MAX(size, 1));
}

void *mem_array(size_t n, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes))
		return NULL;
	return mem_alloc(bytes);
}

/* On failure the old array is untouched and still the caller's. */
void *mem_grow(void *old, size_t old_n, size_t new_n, size_t size)
{
	size_t bytes;
	char *p;

	if (__builtin_mul_overflow(new_n, size, &bytes) || faultpoint("mem"))
		return NULL;
	p = realloc(old, MAX(bytes, 1));
	if (p && new_n > old_n)
		memset(p + old_n * size, 0, (new_n - old_n) * size);
	return p;
}

char *mem_strdup(const char *s)
{
	size_t n = strlen(s) + 1;
	char *copy = mem_alloc(n);

	return copy ? memcpy(copy, s, n) : NULL;
}
