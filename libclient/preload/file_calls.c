/* SPDX-License-Identifier: MIT */
/*
 * file_calls.c - the C library's functions that read and write files: files.c, and the function itself.
 *
 * They are cancellation points, so where files.c has nothing to do it is the next library's function that is called. Before
 * those are looked up, before main(), it is the system call.
 *
 * Streams (stdio) go past all this, by calls inside the C library; but what opens one finds in the file what was
 * written to mappings before, and what fclose() and fflush() have written is in the mappings afterwards.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/util.h"
#include "libclient/preload/files.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

/* What is called, if files.c does not do it: result type, name, parameters. */
#define FILE_FUNCTIONS(X)                                                               \
	X(ssize_t, read, (int, void *, size_t))                                         \
	X(ssize_t, pread64, (int, void *, size_t, off64_t))                             \
	X(ssize_t, readv, (int, const struct iovec *, int))                             \
	X(ssize_t, preadv64, (int, const struct iovec *, int, off64_t))                 \
	X(ssize_t, preadv64v2, (int, const struct iovec *, int, off64_t, int))          \
	X(ssize_t, write, (int, const void *, size_t))                                  \
	X(ssize_t, pwrite64, (int, const void *, size_t, off64_t))                      \
	X(ssize_t, writev, (int, const struct iovec *, int))                            \
	X(ssize_t, pwritev64, (int, const struct iovec *, int, off64_t))                \
	X(ssize_t, pwritev64v2, (int, const struct iovec *, int, off64_t, int))         \
	X(ssize_t, copy_file_range, (int, off64_t *, int, off64_t *, size_t, unsigned)) \
	X(ssize_t, sendfile64, (int, int, off64_t *, size_t))                           \
	X(ssize_t, splice, (int, off64_t *, int, off64_t *, size_t, unsigned))          \
	X(int, truncate64, (const char *, off64_t))                                     \
	X(int, fsync, (int))                                                            \
	X(int, fdatasync, (int))                                                        \
	X(int, sync_file_range, (int, off64_t, off64_t, unsigned))                      \
	X(int, syncfs, (int))                                                           \
	X(ssize_t, __read_chk, (int, void *, size_t, size_t))                           \
	X(ssize_t, __pread64_chk, (int, void *, size_t, off64_t, size_t))               \
	X(FILE *, fopen64, (const char *, const char *))                                \
	X(int, fclose, (FILE *))                                                        \
	X(int, fflush, (FILE *))

static struct {
#define X(type, name, params) type(*name) params;
	FILE_FUNCTIONS(X)
#undef X
} next;

void file_calls_start(void)
{
#define X(type, name, params) next.name = (type(*) params)dlsym(RTLD_NEXT, #name);
	FILE_FUNCTIONS(X)
#undef X
}

/* For what is no system call. */
#define NEXT(name) (next.name ? next.name : (__typeof__(next.name))dlsym(RTLD_NEXT, #name))

static int64_t result(int64_t r)
{
	if (r >= 0 || r < -4095)
		return r;
	errno = (int)-r;
	return -1;
}

/* The call, by the next function with these arguments, and what comes before and after it. */
#define DO(name, number, params, ...)                                                     \
	do {                                                                              \
		struct file_call c_ = FILE_CALL(number, __VA_ARGS__);                     \
                                                                                          \
		if (!files_before(&c_)) {                                                 \
			if (likely(next.name != NULL)) {                                  \
				c_.result = next.name params;                             \
				if (c_.result < 0)                                        \
					return -1;                                        \
			} else {                                                          \
				c_.result = raw6(number, c_.arg[0], c_.arg[1], c_.arg[2], \
						 c_.arg[3], c_.arg[4], c_.arg[5]);        \
			}                                                                 \
		}                                                                         \
		files_after(&c_);                                                         \
		return (__typeof__(next.name params))result(c_.result);                   \
	} while (0)

#define U(x) ((uint64_t)(x))
#define P(x) ((uintptr_t)(x))

/* Two names of one function. */
#define ALIAS(type, name, params, of) PRELOAD_EXPORT type name params __attribute__((alias(#of)));

/* ---- reading ------------------------------------------------------------------------------ */

PRELOAD_EXPORT ssize_t read(int fd, void *buf, size_t n)
{
	DO(read, SYS_read, (fd, buf, n), U(fd), P(buf), n);
}

PRELOAD_EXPORT ssize_t pread64(int fd, void *buf, size_t n, off64_t off)
{
	DO(pread64, SYS_pread64, (fd, buf, n, off), U(fd), P(buf), n, U(off));
}
ALIAS(ssize_t, pread, (int fd, void *buf, size_t n, off_t off), pread64)

PRELOAD_EXPORT ssize_t __read_chk(int fd, void *buf, size_t n, size_t room);
PRELOAD_EXPORT ssize_t __pread64_chk(int fd, void *buf, size_t n, off64_t off, size_t room);

/* Of programs that were compiled to check their buffers. */
ssize_t __read_chk(int fd, void *buf, size_t n, size_t room)
{
	DO(__read_chk, SYS_read, (fd, buf, n, room), U(fd), P(buf), n);
}

ssize_t __pread64_chk(int fd, void *buf, size_t n, off64_t off, size_t room)
{
	DO(__pread64_chk, SYS_pread64, (fd, buf, n, off, room), U(fd), P(buf), n, U(off));
}
ALIAS(ssize_t, __pread_chk, (int fd, void *buf, size_t n, off64_t off, size_t room), __pread64_chk)

PRELOAD_EXPORT ssize_t readv(int fd, const struct iovec *v, int n)
{
	DO(readv, SYS_readv, (fd, v, n), U(fd), P(v), U(n));
}

PRELOAD_EXPORT ssize_t preadv64(int fd, const struct iovec *v, int n, off64_t off)
{
	DO(preadv64, SYS_preadv, (fd, v, n, off), U(fd), P(v), U(n), U(off));
}
ALIAS(ssize_t, preadv, (int fd, const struct iovec *v, int n, off_t off), preadv64)

PRELOAD_EXPORT ssize_t preadv64v2(int fd, const struct iovec *v, int n, off64_t off, int flags)
{
	DO(preadv64v2, SYS_preadv2, (fd, v, n, off, flags), U(fd), P(v), U(n), U(off), 0, U(flags));
}
ALIAS(ssize_t, preadv2, (int fd, const struct iovec *v, int n, off_t off, int flags), preadv64v2)

/* ---- writing -------------------------------------------------------------------------------- */

PRELOAD_EXPORT ssize_t write(int fd, const void *buf, size_t n)
{
	DO(write, SYS_write, (fd, buf, n), U(fd), P(buf), n);
}

PRELOAD_EXPORT ssize_t pwrite64(int fd, const void *buf, size_t n, off64_t off)
{
	DO(pwrite64, SYS_pwrite64, (fd, buf, n, off), U(fd), P(buf), n, U(off));
}
ALIAS(ssize_t, pwrite, (int fd, const void *buf, size_t n, off_t off), pwrite64)

PRELOAD_EXPORT ssize_t writev(int fd, const struct iovec *v, int n)
{
	DO(writev, SYS_writev, (fd, v, n), U(fd), P(v), U(n));
}

PRELOAD_EXPORT ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t off)
{
	DO(pwritev64, SYS_pwritev, (fd, v, n, off), U(fd), P(v), U(n), U(off));
}
ALIAS(ssize_t, pwritev, (int fd, const struct iovec *v, int n, off_t off), pwritev64)

PRELOAD_EXPORT ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off64_t off, int flags)
{
	DO(pwritev64v2, SYS_pwritev2, (fd, v, n, off, flags), U(fd), P(v), U(n), U(off), 0,
	   U(flags));
}
ALIAS(ssize_t, pwritev2, (int fd, const struct iovec *v, int n, off_t off, int flags), pwritev64v2)

PRELOAD_EXPORT ssize_t copy_file_range(int in, off64_t *in_off, int out, off64_t *out_off, size_t n,
				       unsigned flags)
{
	DO(copy_file_range, SYS_copy_file_range, (in, in_off, out, out_off, n, flags), U(in),
	   P(in_off), U(out), P(out_off), n, U(flags));
}

PRELOAD_EXPORT ssize_t sendfile64(int out, int in, off64_t *off, size_t n)
{
	DO(sendfile64, SYS_sendfile, (out, in, off, n), U(out), U(in), P(off), n);
}
ALIAS(ssize_t, sendfile, (int out, int in, off_t *off, size_t n), sendfile64)

PRELOAD_EXPORT ssize_t splice(int in, off64_t *in_off, int out, off64_t *out_off, size_t n,
			      unsigned flags)
{
	DO(splice, SYS_splice, (in, in_off, out, out_off, n, flags), U(in), P(in_off), U(out),
	   P(out_off), n, U(flags));
}

PRELOAD_EXPORT int truncate64(const char *path, off64_t size)
{
	DO(truncate64, SYS_truncate, (path, size), P(path), U(size));
}
ALIAS(int, truncate, (const char *path, off_t size), truncate64)

/* ---- to the disk -------------------------------------------------------------------------------- */

PRELOAD_EXPORT int fsync(int fd)
{
	DO(fsync, SYS_fsync, (fd), U(fd));
}

PRELOAD_EXPORT int fdatasync(int fd)
{
	DO(fdatasync, SYS_fdatasync, (fd), U(fd));
}

PRELOAD_EXPORT int sync_file_range(int fd, off64_t off, off64_t n, unsigned flags)
{
	DO(sync_file_range, SYS_sync_file_range, (fd, off, n, flags), U(fd), U(off), U(n),
	   U(flags));
}

PRELOAD_EXPORT int syncfs(int fd)
{
	DO(syncfs, SYS_syncfs, (fd), U(fd));
}

PRELOAD_EXPORT void sync(void)
{
	files_syscall(SYS_sync, 0, 0, 0, 0, 0, 0);
}

/* ---- streams -------------------------------------------------------------------------------------- */

PRELOAD_EXPORT FILE *fopen64(const char *path, const char *mode)
{
	FILE *f = NEXT(fopen64)(path, mode);
	int saved = errno;

	if (f)
		files_opened(fileno(f));
	errno = saved;
	return f;
}
ALIAS(FILE *, fopen, (const char *path, const char *mode), fopen64)

PRELOAD_EXPORT int fflush(FILE *f)
{
	struct file_key key;
	bool changes = f && files_may_change(fileno(f), &key);
	int r = NEXT(fflush)(f), saved = errno;

	if (changes)
		files_changed(&key);
	errno = saved;
	return r;
}

PRELOAD_EXPORT int fclose(FILE *f)
{
	struct file_key key;
	bool changes = files_may_change(fileno(f), &key);
	int r = NEXT(fclose)(f), saved = errno;

	if (changes)
		files_changed(&key);
	errno = saved;
	return r;
}
