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

/*
 * A file by stat(2)'s numbers, read or written by system calls while somebody may have it mapped; see daemon/virt/virt.h,
 * vm_file_range. Of a thread, hold and release come in pairs. All are async-signal-safe; the arena is attached.
 */
struct file_key {
	uint64_t dev, ino;
};
int client_file_sync(struct arena *a, const struct file_key *key, uint64_t off, uint64_t len);
int client_file_sync_all(struct arena *a);
#define FILE_LENGTH_UNKNOWN UINT64_MAX /* of hold and release */
int client_file_hold(struct arena *a, const struct file_key *key, uint64_t off, uint64_t len);
int client_file_release(struct arena *a, const struct file_key *key, uint64_t off, uint64_t len);

/* The arena is attached. 0 and *out, or -errno. */
int client_mmap(struct arena *a, const struct mmap_args *args, void **out);

#endif
