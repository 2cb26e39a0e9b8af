/* SPDX-License-Identifier: MIT */
/* files.h - a system call that reads or writes files, and the mappings of those files (--files). */
#ifndef LIBCLIENT_PRELOAD_FILES_H
#define LIBCLIENT_PRELOAD_FILES_H

#include <stdbool.h>
#include <stdint.h>

#include "arena/arena.h"
#include "libclient/calls.h"

/*
 * One such call. What it does is done by files_before(), or by the caller between that and files_after():
 *
 *	struct file_call c = FILE_CALL(SYS_write, fd, buf, n);
 *	if (!files_before(&c))
 *		c.result = ... the system call, perhaps as a cancellation point ...;
 *	files_after(&c);
 */
struct file_call {
	int64_t nr;
	uint64_t arg[6];
	int64_t result; /* a value or -errno */
	/* files.c's */
	struct file_key key; /* of what it writes */
	bool looked;         /* key is known, and it is a regular file */
};

#define FILE_CALL(number, ...)                         \
	{                                              \
		.nr = (number), .arg = { __VA_ARGS__ } \
	}

/* True: it is done, and c->result says how. */
bool files_before(struct file_call *c);
void files_after(struct file_call *c);
/* All of it, no cancellation point. */
int64_t files_syscall(int64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
		      uint64_t f);
/* Is it one of those? */
bool files_knows(int64_t nr);

/* ---- streams, which write by calls that are not seen ---- */

void files_opened(int fd);
/* The file can be written by fd, and is cached. */
bool files_may_change(int fd, struct file_key *key);
/* It may have been, anywhere. */
void files_changed(const struct file_key *key);

/* The arena, if files are served now; NULL. */
arena_t *files_serving(void);

/* ---- mappings: file_map.c ---- */

/* A mapping of a file: true, and *out is the address or -errno; false: the kernel's. */
bool files_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, int64_t off,
		int64_t *out);
/* They are gone, or elsewhere and of another length. */
void files_unmapped(uint64_t addr, uint64_t len);
void files_moved(uint64_t from, uint64_t to, uint64_t len);
/* The kernel is about to show what is in a file. */
void files_before_kernel_mmap(int fd, uint64_t off, uint64_t len);
/* The process ends: what it wrote to mappings is in the files. */
void files_at_exit(void);
/* In the constructor. */
void files_start(void);
void file_calls_start(void);

#endif
