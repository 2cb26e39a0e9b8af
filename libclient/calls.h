/* SPDX-License-Identifier: MIT */
/* calls.h - the mapping call that anonymous memory and segments share. */
#ifndef LIBCLIENT_CALLS_H
#define LIBCLIENT_CALLS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct arena;

struct mmap_args {
	void *addr;
	size_t len;
	int prot, flags;
	off_t off;
	uint32_t segment; /* 0: anonymous */
};

/* The arena is attached. 0 and *out, or -errno. */
int client_mmap(struct arena *a, const struct mmap_args *args, void **out);

#endif
