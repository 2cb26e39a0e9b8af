/* SPDX-License-Identifier: MIT */
/* raw.h - system calls without a function that could be one of ours: the value or -errno. */
#ifndef LIBCLIENT_PRELOAD_RAW_H
#define LIBCLIENT_PRELOAD_RAW_H

#include <stdint.h>
#include <sys/syscall.h>

#include "libclient/bare.h"

static inline int64_t raw6(int64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
			   uint64_t f)
{
	return bare_syscall(nr, (long)a, (long)b, (long)c, (long)d, (long)e, (long)f);
}

static inline int64_t raw3(int64_t nr, uint64_t a, uint64_t b, uint64_t c)
{
	return raw6(nr, a, b, c, 0, 0, 0);
}

#endif
