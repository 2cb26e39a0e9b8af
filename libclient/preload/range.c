/* SPDX-License-Identifier: MIT */
/* range.c - where a range lies, and a call on the parts of it. */
#include <errno.h>

#include "base/util.h"
#include "libclient/preload/preload.h"

enum range_place range_place(uint64_t addr, uint64_t len)
{
	uint64_t base = preload.base, end = preload.base + preload.size;

	if (!preload_arena() || addr + len < addr || addr >= end || addr + len <= base)
		return len == 0 && preload_arena() && addr >= base && addr < end ? RANGE_INSIDE
										 : RANGE_OUTSIDE;
	return addr >= base && addr + len <= end ? RANGE_INSIDE : RANGE_MIXED;
}

int64_t range_do(const struct range_ops *ops, uint64_t addr, uint64_t len, uint64_t arg)
{
	uint64_t base = preload.base, end = preload.base + preload.size, at = addr,
		 stop = addr + len;
	int64_t first = 0;

	switch (range_place(addr, len)) {
	case RANGE_INSIDE:
		return ops->inside(addr, len, arg);
	case RANGE_OUTSIDE:
		return ops->outside(addr, len, arg);
	case RANGE_MIXED:
		break;
	}
	while (at < stop) {
		bool in = at >= base && at < end;
		uint64_t to = in ? MIN(end, stop) : at < base ? MIN(base, stop) : stop;
		int64_t r = in ? ops->inside(at, to - at, arg) : ops->outside(at, to - at, arg);

		if (r < 0 && first == 0)
			first = r;
		if (r < 0 && !ops->on)
			break;
		at = to;
	}
	return first;
}
