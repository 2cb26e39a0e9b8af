/* SPDX-License-Identifier: MIT */
/* symbols.c - the C library's functions that the program finds here instead: errno, and who does it. */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

#include "base/util.h"
#include "libclient/preload/files.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

PRELOAD_EXPORT int madvise(void *addr, size_t len, int advice);

static int64_t result(int64_t r)
{
	if (r >= 0 || r < -4095)
		return r;
	errno = (int)-r;
	return -1;
}

static int status(int64_t r)
{
	return (int)result(r);
}

/* ---- mappings ---- */

PRELOAD_EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return (void *)result(preload_mmap((uintptr_t)addr, len, prot, flags, fd, off));
}

PRELOAD_EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off)
{
	return (void *)result(preload_mmap((uintptr_t)addr, len, prot, flags, fd, off));
}

PRELOAD_EXPORT int munmap(void *addr, size_t len)
{
	return status(preload_munmap((uintptr_t)addr, len));
}

PRELOAD_EXPORT int mprotect(void *addr, size_t len, int prot)
{
	return status(preload_mprotect((uintptr_t)addr, len, prot));
}

/* Without a key it is mprotect(2). The arena has no keys. */
PRELOAD_EXPORT int pkey_mprotect(void *addr, size_t len, int prot, int key)
{
	if (key == -1)
		return mprotect(addr, len, prot);
	if (range_place((uintptr_t)addr, len) != RANGE_OUTSIDE)
		return status(-EINVAL);
	return status(
		raw6(SYS_pkey_mprotect, (uintptr_t)addr, len, (uint64_t)prot, (uint64_t)key, 0, 0));
}

PRELOAD_EXPORT void *mremap(void *old, size_t old_len, size_t new_len, int flags, ...)
{
	va_list args;
	void *to;

	va_start(args, flags);
	to = va_arg(args, void *);
	va_end(args);
	return (void *)result(
		preload_mremap((uintptr_t)old, old_len, new_len, flags, (uintptr_t)to));
}

PRELOAD_EXPORT int remap_file_pages(void *addr, size_t len, int prot, size_t pgoff, int flags)
{
	if (range_place((uintptr_t)addr, len) != RANGE_OUTSIDE)
		return status(-EINVAL);
	return status(raw6(SYS_remap_file_pages, (uintptr_t)addr, len, (uint64_t)prot, pgoff,
			   (uint64_t)flags, 0));
}

PRELOAD_EXPORT int madvise(void *addr, size_t len, int advice)
{
	return status(preload_madvise((uintptr_t)addr, len, advice));
}

/* Its DONTNEED is no more than a hint; and it returns the error. */
PRELOAD_EXPORT int posix_madvise(void *addr, size_t len, int advice)
{
	if (advice == POSIX_MADV_DONTNEED)
		return 0;
	return (int)-preload_madvise((uintptr_t)addr, len, advice);
}

PRELOAD_EXPORT int msync(void *addr, size_t len, int flags)
{
	return status(preload_msync((uintptr_t)addr, len, flags));
}

PRELOAD_EXPORT int mincore(void *addr, size_t len, unsigned char *vec)
{
	return status(preload_mincore((uintptr_t)addr, len, vec));
}

/* ---- locks ---- */

PRELOAD_EXPORT int mlock(const void *addr, size_t len)
{
	return status(preload_mlock((uintptr_t)addr, len, 0));
}

PRELOAD_EXPORT int mlock2(const void *addr, size_t len, unsigned flags)
{
	return status(preload_mlock((uintptr_t)addr, len, flags));
}

PRELOAD_EXPORT int munlock(const void *addr, size_t len)
{
	return status(preload_munlock((uintptr_t)addr, len));
}

PRELOAD_EXPORT int mlockall(int flags)
{
	return status(preload_mlockall(flags));
}

PRELOAD_EXPORT int munlockall(void)
{
	return status(preload_munlockall());
}

/* ---- the heap ---- */

PRELOAD_EXPORT int brk(void *end)
{
	if (preload_brk((uintptr_t)end) >= (uintptr_t)end)
		return 0;
	errno = ENOMEM;
	return -1;
}

PRELOAD_EXPORT void *sbrk(intptr_t delta)
{
	return preload_sbrk(delta);
}

/* ---- descriptors ---- */

PRELOAD_EXPORT int close(int fd)
{
	return status(preload_close(fd));
}

PRELOAD_EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	return status(preload_close_range(first, last, (unsigned)flags));
}

PRELOAD_EXPORT void closefrom(int low)
{
	preload_close_range((unsigned)MAX(low, 0), UINT_MAX, 0);
}

PRELOAD_EXPORT int dup2(int from, int to)
{
	/* dup3() refuses what dup2() allows; whether `from` is open, F_GETFD says. */
	if (from == to)
		return raw3(SYS_fcntl, (uint64_t)from, 1, 0) < 0 ? status(-EBADF) : to;
	return status(preload_dup3(from, to, 0));
}

PRELOAD_EXPORT int dup3(int from, int to, int flags)
{
	return status(preload_dup3(from, to, flags));
}

/* ---- shared memory by name ---- */

PRELOAD_EXPORT int ftruncate(int fd, off_t size)
{
	return status(preload_ftruncate(fd, size));
}

PRELOAD_EXPORT int ftruncate64(int fd, off64_t size)
{
	return status(preload_ftruncate(fd, size));
}

PRELOAD_EXPORT int fallocate(int fd, int mode, off_t off, off_t len)
{
	return status(preload_fallocate(fd, mode, off, len));
}

PRELOAD_EXPORT int fallocate64(int fd, int mode, off64_t off, off64_t len)
{
	return status(preload_fallocate(fd, mode, off, len));
}

PRELOAD_EXPORT int shmget(key_t key, size_t size, int flags)
{
	return status(preload_shmget(key, size, flags));
}

PRELOAD_EXPORT void *shmat(int id, const void *addr, int flags)
{
	return (void *)result(preload_shmat(id, (uintptr_t)addr, flags));
}

PRELOAD_EXPORT int shmdt(const void *addr)
{
	return status(preload_shmdt((uintptr_t)addr));
}

PRELOAD_EXPORT int shmctl(int id, int cmd, struct shmid_ds *buf)
{
	return status(preload_shmctl(id, cmd, buf));
}

/* ---- the end ---- */

PRELOAD_EXPORT void _exit(int code)
{
	files_at_exit();
	report_at_exit();
	for (;;)
		raw3(SYS_exit_group, (uint64_t)code, 0, 0);
}

PRELOAD_EXPORT void _Exit(int code)
{
	_exit(code);
}
