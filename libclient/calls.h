/* SPDX-License-Identifier: MIT */
/* calls.h - the mapping call that anonymous memory and segments share. */
#ifndef LIBCLIENT_CALLS_H
#define LIBCLIENT_CALLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/frame.h"

struct arena;

struct mmap_args {
	void *addr;
	size_t len;
	int prot, flags;
	off_t off;
	uint32_t segment; /* 0: anonymous, or of `file` */
	int file;         /* a descriptor of the program's, where flags do not say MAP_ANONYMOUS */
};

/* As the daemon's enum populate_mode. */
enum populate_how {
	CLIENT_POPULATE_READ,
	CLIENT_POPULATE_WRITE,
	CLIENT_POPULATE_LOCK,
	CLIENT_POPULATE_LOCK_ALL,
};

/* How often a call is made again that needs a flush applied first. */
#define CLIENT_FLUSH_TRIES 1000

bool client_in_window(const struct arena *a, uint64_t start, uint64_t len);
/* Fault a range in, piece by piece. The arena is attached. -EACCES: the mapping forbids it. */
int client_populate(struct arena *a, uint64_t start, uint64_t len, enum populate_how how);

/* A call whose answer is only whether it worked: 0, or -1 and errno. */
int client_plain_call(struct arena *a, Arena__Request *request);

/* The call of a request that carries the program's descriptor: what address_call() has for others. */
int client_file_call(struct arena *a, Arena__Request *request, int fd, uint64_t *address,
		     bool *locked);

/* The arena is attached. 0 and *out, or -errno. */
int client_mmap(struct arena *a, const struct mmap_args *args, void **out);

#endif
