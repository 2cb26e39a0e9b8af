/* SPDX-License-Identifier: MIT */
/*
 * wrap.c - what libarena and jemalloc mean when they call these: the linker has them call
 * __wrap_NAME (room.mk), so that they meet none of our interposers.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

long __wrap_syscall(long nr, ...);
int __wrap_close(int fd);
ssize_t __wrap_read(int fd, void *buf, size_t n);
ssize_t __wrap_write(int fd, const void *buf, size_t n);
ssize_t __wrap_pread(int fd, void *buf, size_t n, off_t off);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t n, off_t off);
int __wrap_ftruncate(int fd, off_t size);
int __wrap_fdatasync(int fd);
int __wrap_dup3(int from, int to, int flags);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
void __wrap_free(void *p);
char *__wrap_strdup(const char *s);

static long result(int64_t r)
{
	if (r >= 0 || r < -4095)
		return r;
	errno = (int)-r;
	return -1;
}

long __wrap_syscall(long nr, ...)
{
	uint64_t arg[6];
	va_list args;

	va_start(args, nr);
	for (unsigned i = 0; i < ARRAY_SIZE(arg); i++)
		arg[i] = va_arg(args, uint64_t);
	va_end(args);
	return result(raw6(nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]));
}

int __wrap_close(int fd)
{
	return (int)result(raw3(SYS_close, (uint64_t)fd, 0, 0));
}

int __wrap_dup3(int from, int to, int flags)
{
	return (int)result(raw3(SYS_dup3, (uint64_t)from, (uint64_t)to, (uint64_t)flags));
}

/* The library's own descriptors, and files that are none of the program's. */
ssize_t __wrap_read(int fd, void *buf, size_t n)
{
	return result(raw3(SYS_read, (uint64_t)fd, (uintptr_t)buf, n));
}

ssize_t __wrap_write(int fd, const void *buf, size_t n)
{
	return result(raw3(SYS_write, (uint64_t)fd, (uintptr_t)buf, n));
}

ssize_t __wrap_pread(int fd, void *buf, size_t n, off_t off)
{
	return result(raw6(SYS_pread64, (uint64_t)fd, (uintptr_t)buf, n, (uint64_t)off, 0, 0));
}

ssize_t __wrap_pwrite(int fd, const void *buf, size_t n, off_t off)
{
	return result(raw6(SYS_pwrite64, (uint64_t)fd, (uintptr_t)buf, n, (uint64_t)off, 0, 0));
}

int __wrap_ftruncate(int fd, off_t size)
{
	return (int)result(raw3(SYS_ftruncate, (uint64_t)fd, (uint64_t)size, 0));
}

int __wrap_fdatasync(int fd)
{
	return (int)result(raw3(SYS_fdatasync, (uint64_t)fd, 0, 0));
}

/* ---- the library's memory ---- */

void *__wrap_malloc(size_t size)
{
	void *p = private_alloc(size);

	if (!p)
		errno = ENOMEM;
	return p;
}

void *__wrap_calloc(size_t n, size_t size)
{
	size_t bytes;

	return __builtin_mul_overflow(n, size, &bytes) ? NULL : __wrap_malloc(bytes);
}

void *__wrap_realloc(void *old, size_t size)
{
	void *p;

	if (old && private_usable_size(old) >= size)
		return old;
	p = __wrap_malloc(size);
	if (p && old) {
		memcpy(p, old, private_usable_size(old));
		private_free(old);
	}
	return p;
}

void __wrap_free(void *p)
{
	private_free(p);
}

char *__wrap_strdup(const char *s)
{
	size_t size = strlen(s) + 1;
	char *p = __wrap_malloc(size);

	return p ? memcpy(p, s, size) : NULL;
}
