/* SPDX-License-Identifier: MIT */
/* raw.h - system calls without a function that could be one of ours: the value or -errno. */
#ifndef LIBCLIENT_PRELOAD_RAW_H
#define LIBCLIENT_PRELOAD_RAW_H

#include <stdint.h>
#include <sys/syscall.h>

static inline int64_t raw6(int64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
			   uint64_t f)
{
	register uint64_t r10 __asm__("r10") = d;
	register uint64_t r8 __asm__("r8") = e;
	register uint64_t r9 __asm__("r9") = f;
	int64_t ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

static inline int64_t raw3(int64_t nr, uint64_t a, uint64_t b, uint64_t c)
{
	return raw6(nr, a, b, c, 0, 0, 0);
}

#endif
