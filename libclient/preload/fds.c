/* SPDX-License-Identifier: MIT */
/*
 * fds.c - programs that close what they did not open.
 *
 * Under the userfaultfd trap the library's descriptors are in another table. Under the signal trap they
 * are in the program's: to it their numbers are not open. A number that the program wants by
 * name (dup2) and that is ours is busy.
 */
#include <errno.h>
#include <linux/close_range.h>
#include <unistd.h>

#include "base/util.h"
#include "libclient/internal.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

extern int __close(int fd);

/* The lowest of ours in [first, last]; UINT32_MAX: there is none. */
static unsigned next_ours(unsigned first, unsigned last)
{
	const struct arena *a = load_acquire(&preload.arena);
	unsigned least = UINT32_MAX;

#define LOOK_AT(fd)                                                              \
	do {                                                                     \
		int fd_ = (fd);                                                  \
		if (fd_ >= 0 && (unsigned)fd_ >= first && (unsigned)fd_ <= last) \
			least = MIN(least, (unsigned)fd_);                       \
	} while (0)

	LOOK_AT(preload.report_fd);
	if (!a || load_acquire(&a->agent.running) || load_relaxed(&a->foreign))
		return least;
	LOOK_AT(load_relaxed(&a->sock));
	LOOK_AT(load_relaxed(&a->doorbell));
	for (unsigned c = 0; c < ARRAY_SIZE(a->tlb.slots); c++) {
		const struct tlb_slot *chunk = load_acquire(&a->tlb.slots[c]);

		/* Descriptors plus one. */
		for (unsigned i = 0; chunk && i < SLOTS_PER_CHUNK; i++)
			LOOK_AT(load_relaxed(&chunk[i].number) - 1);
	}
#undef LOOK_AT
	return least;
}

static bool is_ours(int fd)
{
	return fd >= 0 && next_ours((unsigned)fd, (unsigned)fd) == (unsigned)fd;
}

int64_t preload_close(int fd)
{
	int64_t r;

	if (is_ours(fd))
		return -EBADF;
	r = __close(fd) < 0 ? -errno : 0;
	shm_closed(fd);
	return r;
}

int64_t preload_close_range(unsigned first, unsigned last, unsigned flags)
{
	unsigned ours;

	if (first > last || (flags & CLOSE_RANGE_CLOEXEC))
		return raw3(SYS_close_range, first, last, flags);
	while ((ours = next_ours(first, last)) != UINT32_MAX) {
		int64_t r = 0;

		if (ours > first)
			r = raw3(SYS_close_range, first, ours - 1, flags);
		if (r < 0)
			return r;
		if (ours == last)
			return 0;
		first = ours + 1;
	}
	return raw3(SYS_close_range, first, last, flags);
}

int64_t preload_dup3(int from, int to, int flags)
{
	if (to != from && is_ours(to))
		return -EBUSY;
	if (is_ours(from))
		return -EBADF;
	return raw3(SYS_dup3, (uint64_t)from, (uint64_t)to, (uint64_t)flags);
}
