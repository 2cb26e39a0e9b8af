/* SPDX-License-Identifier: MIT */
/*
 * os_file.c - files that somebody else opened, and whose flags he can change at any time.
 *
 * What is asked here about a file is what the kernel knows: a file system in user space, or on a server that
 * is gone, must not be waited for by who only looks.
 */
#include "base/os.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/util.h"

int os_file_id(int fd, struct os_file_id *id)
{
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
		  STATX_TYPE | STATX_MODE | STATX_INO | STATX_SIZE, &st) < 0)
		return -errno;
	*id = (struct os_file_id){
		.dev = makedev(st.stx_dev_major, st.stx_dev_minor),
		.ino = st.stx_ino,
		.size = st.stx_size,
		.regular = S_ISREG(st.stx_mode),
	};
	return 0;
}

int os_file_size(int fd, uint64_t *size)
{
	struct os_file_id id;
	int r = os_file_id(fd, &id);

	if (!r)
		*size = id.size;
	return r;
}

int os_file_flags(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags < 0 ? -errno : flags;
}

unsigned os_file_seals(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);

	return seals < 0 ? 0 : (unsigned)seals;
}

void os_file_path(int fd, char *path, size_t size)
{
	char link[32], whole[4096];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, whole, sizeof(whole) - 1);
	whole[MAX(n, (ssize_t)0)] = '\0';
	n = (ssize_t)strlen(whole);
	snprintf(path, size, "%s", (size_t)n < size ? whole : whole + n - size + 1);
}

/* The descriptor to use: fd, or another that *own gets. -errno. */
static int plain(int fd, int *own)
{
	int flags = os_file_flags(fd);
	char link[32];

	if (flags < 0)
		return flags;
	if (!(flags & (O_APPEND | O_DIRECT)))
		return fd;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	*own = open(link, (flags & O_ACCMODE) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	/* The file may be one that we could not have opened. */
	return *own < 0 ? -EIO : *own;
}

ssize_t os_file_read(int fd, void *to, size_t n, uint64_t offset)
{
	_cleanup_(closep) int own = -1;
	int use = plain(fd, &own);
	ssize_t r;

	if (use < 0)
		return use;
	do
		r = pread(use, to, n, (off_t)offset);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

ssize_t os_file_write(int fd, const void *from, size_t n, uint64_t offset)
{
	_cleanup_(closep) int own = -1;
	int use = plain(fd, &own);
	ssize_t r;

	if (use < 0)
		return use;
	do
		r = pwrite(use, from, n, (off_t)offset);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

int os_file_sync(int fd)
{
	return fdatasync(fd) < 0 ? -errno : 0;
}
