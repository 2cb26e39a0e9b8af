/* SPDX-License-Identifier: MIT */
/*
 * userfault.h - userfaultfd(2), and what a trap made of it asks of the kernel besides.
 *
 * A registered range holds every access to a page that has no memory mapped (missing), whose memory
 * is there but not mapped (minor), or that is write-protected, until somebody has put it right
 * and woken the range. Only memory of files (shmem) is used here, so minor faults exist.
 *
 * As base/os.h: 0 or a descriptor, or -errno; async-signal-safe, without the C library's wrappers.
 */
#ifndef BASE_USERFAULT_H
#define BASE_USERFAULT_H

#include <stdbool.h>
#include <stdint.h>

#define USERFAULT_DEVICE "/dev/userfaultfd"

/*
 * A new userfaultfd of this process, non-blocking, close-on-exec, that also holds accesses of the
 * kernel (system calls), with all features that are used here. `device`: a descriptor of
 * USERFAULT_DEVICE, or -1: by this process's own rights. -EPERM: not permitted; -EOPNOTSUPP: this
 * kernel has none, or not these features.
 */
int userfault_open(int device);

struct userfault_event {
	uint64_t address; /* of the page */
	bool write;
	bool protected;  /* the page is mapped, but write-protected */
	bool moved;      /* no access: userfault_move() goes on */
	uint32_t thread; /* whose access it is */
};
/* Take events, at most 16: how many, 0 if there are none. -EBADF and the like of read(2). */
int userfault_read(int fd, struct userfault_event *events, unsigned max);

/* Hold accesses to what is not mapped in [addr, addr + len); also writes to what is protected. */
int userfault_register(int fd, void *addr, uint64_t len, bool protected);
/* Let all who wait for pages of the range try again. */
int userfault_wake(int fd, void *addr, uint64_t len);
/* In a range registered for it: map the pages that its file has, write-protected. */
int userfault_map_protected(int fd, void *addr, uint64_t len);

/* ---- memory ---- */

/* Address space that holds every access, not inherited, not dumped: registered memory of a file that
 * has none. `addr` NULL: anywhere, else in place of what is there. */
int userfault_reserve(int fd, void *addr, uint64_t len, void **out);
/* Unmap the pages of a range from the page tables; the mappings stay. */
int userfault_zap(void *addr, uint64_t len);
/* Have the kernel touch a range, as a program would: -EFAULT where that would be a signal. */
int userfault_touch(void *addr, uint64_t len, bool write);
/* Put the mapping [from, from + len) in the place of what is at `to`, in one step. A registered one stays
 * registered, and the call returns when its event has been read, by another thread. */
int userfault_move(void *from, uint64_t len, void *to);

/* ---- descriptors ---- */

/* Give the calling thread a descriptor table of its own which has only fds[0 .. nr) (sorted). */
int userfault_own_table(const int *fds, unsigned nr);

#endif
