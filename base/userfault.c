/* SPDX-License-Identifier: MIT */
/* userfault.c - userfault.h on Linux. */
#include "base/userfault.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"

/* Newer than the C library's headers may be. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP (UINT64_C(1) << 1)
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1U << 1)
#endif

#define FEATURES                                                                            \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |                 \
	 UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EVENT_REMAP | \
	 UFFD_FEATURE_THREAD_ID)
#define MODES (UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR)
#define MAX_EVENTS 16u

static int request(int fd, unsigned long nr, void *arg)
{
	return syscall(SYS_ioctl, fd, nr, arg) < 0 ? -errno : 0;
}

/* ---- userfaultfd ---- */

static int new_of_device(int device)
{
	int fd = (int)syscall(SYS_ioctl, device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);

	return fd < 0 ? -errno : fd;
}

static int new_by_own_rights(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int r = fd < 0 ? -errno : fd;
	int device;

	if (r >= 0 || r == -ENOSYS)
		return r;
	device = (int)syscall(SYS_openat, AT_FDCWD, USERFAULT_DEVICE, O_RDWR | O_CLOEXEC);
	if (device < 0)
		return r;
	fd = new_of_device(device);
	syscall(SYS_close, device);
	return fd;
}

int userfault_open(int device)
{
	struct uffdio_api api = {.api = UFFD_API, .features = FEATURES};
	int fd = device < 0 ? new_by_own_rights() : new_of_device(device);
	int r;

	if (fd == -ENOSYS || fd == -ENOTTY)
		return -EOPNOTSUPP;
	if (fd < 0)
		return fd == -EACCES ? -EPERM : fd;
	r = request(fd, UFFDIO_API, &api);
	if (r < 0) {
		syscall(SYS_close, fd);
		return r == -EINVAL ? -EOPNOTSUPP : r;
	}
	return fd;
}

int userfault_read(int fd, struct userfault_event *events, unsigned max)
{
	struct uffd_msg msg[MAX_EVENTS];
	long n = syscall(SYS_read, fd, msg, MIN(max, MAX_EVENTS) * sizeof(*msg));
	int nr = 0;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (long i = 0; i < n / (long)sizeof(*msg); i++) {
		if (msg[i].event == UFFD_EVENT_REMAP)
			events[nr++] = (struct userfault_event){.moved = true};
		if (msg[i].event != UFFD_EVENT_PAGEFAULT)
			continue;
		events[nr++] = (struct userfault_event){
			.address = msg[i].arg.pagefault.address,
			.write = msg[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE,
			.protected = msg[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP,
			.thread = msg[i].arg.pagefault.feat.ptid,
		};
	}
	return nr;
}

static struct uffdio_range range_of(void *addr, uint64_t len)
{
	return (struct uffdio_range){.start = (uintptr_t)addr, .len = len};
}

int userfault_register(int fd, void *addr, uint64_t len, bool protected)
{
	struct uffdio_register arg = {
		.range = range_of(addr, len),
		.mode = protected ? MODES | UFFDIO_REGISTER_MODE_WP : MODES,
	};

	return request(fd, UFFDIO_REGISTER, &arg);
}

int userfault_wake(int fd, void *addr, uint64_t len)
{
	struct uffdio_range arg = range_of(addr, len);

	return request(fd, UFFDIO_WAKE, &arg);
}

/* While another thread moves a mapping the kernel has both wait. */
static int retried(int fd, unsigned long nr, void *arg)
{
	int r;

	do
		r = request(fd, nr, arg);
	while (r == -EAGAIN);
	return r;
}

int userfault_map_protected(int fd, void *addr, uint64_t len)
{
	struct uffdio_writeprotect mark = {
		.range = range_of(addr, len),
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	struct uffdio_continue map = {
		.range = range_of(addr, len),
		.mode = UFFDIO_CONTINUE_MODE_WP | UFFDIO_CONTINUE_MODE_DONTWAKE,
	};
	int r = retried(fd, UFFDIO_WRITEPROTECT, &mark);

	/* Only now: what is not mapped by it is marked nevertheless. */
	return r < 0 ? r : retried(fd, UFFDIO_CONTINUE, &map);
}

/* ---- memory ---- */

static int advise(void *addr, uint64_t len, int advice)
{
	return syscall(SYS_madvise, addr, len, advice) < 0 ? -errno : 0;
}

/* Where overcommitting is forbidden only a file of its own goes without a promise of memory. */
static int map_empty_file(void *addr, uint64_t len, void **out)
{
	int flags = MAP_SHARED | MAP_NORESERVE | (addr ? MAP_FIXED : 0);
	long r = syscall(SYS_mmap, addr, len, PROT_NONE, flags | MAP_ANONYMOUS, -1, 0);
	int fd;

	if (r == -1 && errno == ENOMEM) {
		fd = (int)syscall(SYS_memfd_create, "arena-window", MFD_CLOEXEC);
		if (fd >= 0 && syscall(SYS_ftruncate, fd, len) == 0)
			r = syscall(SYS_mmap, addr, len, PROT_NONE, flags, fd, 0);
		if (fd >= 0)
			syscall(SYS_close, fd);
		if (r == -1)
			return -ENOMEM;
	}
	if (r == -1)
		return -errno;
	*out = (void *)r; /* NOLINT: an address */
	return 0;
}

/* Accessible only when registered. */
int userfault_reserve(int fd, void *addr, uint64_t len, void **out)
{
	int r = map_empty_file(addr, len, out);

	if (r < 0)
		return r;
	r = advise(*out, len, MADV_DONTFORK);
	if (r == 0)
		r = advise(*out, len, MADV_DONTDUMP);
	if (r == 0)
		r = userfault_register(fd, *out, len, false);
	if (r == 0 && syscall(SYS_mprotect, *out, len, PROT_READ | PROT_WRITE) < 0)
		r = -errno;
	if (r < 0 && !addr)
		syscall(SYS_munmap, *out, len);
	return r;
}

int userfault_zap(void *addr, uint64_t len)
{
	int r = advise(addr, len, MADV_DONTNEED);

	return r == -EINVAL ? advise(addr, len, MADV_DONTNEED_LOCKED) : r;
}

int userfault_touch(void *addr, uint64_t len, bool write)
{
	int r;

	do
		r = advise(addr, len, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
	while (r == -EINTR || r == -EAGAIN);
	return r;
}

int userfault_move(void *from, uint64_t len, void *to)
{
	long r = syscall(SYS_mremap, from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to);

	return r == -1 ? -errno : 0;
}

/* ---- descriptors ---- */

static int close_between(unsigned first, unsigned last, unsigned flags)
{
	if (first > last)
		return 0;
	return syscall(SYS_close_range, first, last, flags) < 0 ? -errno : 0;
}

int userfault_own_table(const int *fds, unsigned nr)
{
	unsigned next = 0;
	int r;

	/* A copy first, whatever happens: the table that is swept must not be the program's. */
	r = syscall(SYS_close_range, UINT32_MAX, UINT32_MAX, CLOSE_RANGE_UNSHARE) < 0 ? -errno : 0;
	for (unsigned i = 0; r == 0 && i < nr; i++) {
		if ((unsigned)fds[i] > next)
			r = close_between(next, (unsigned)fds[i] - 1, 0);
		next = (unsigned)fds[i] + 1;
	}
	return r < 0 ? r : close_between(next, UINT32_MAX, 0);
}
