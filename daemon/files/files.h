/* SPDX-License-Identifier: MIT */
/*
 * files.h - the /proc and /sys tree as table rows with show and store.
 *
 * Paths are relative, "proc/meminfo"; a leading slash is allowed. The formats are Linux's. A row's
 * mode says who may: 0444 anyone, 0400 and writes only root and the daemon's own uid.
 */
#ifndef FILES_FILES_H
#define FILES_FILES_H

#include <stddef.h>

#include "daemon/machine/machine.h"

struct files;

int files_create(struct machine *m, struct files **out);
struct files *files_destroy(struct files *f);
/* The whole text, made now, malloc()ed for the caller; a directory gives its names, one a line (a
 * directory's with a trailing slash). ARENA_E_NOT_FOUND, ARENA_E_ACCESS. */
int files_read(struct files *f, const struct credentials *cred, const char *path, char **out,
	       size_t *len);
/* One value; a trailing newline is dropped. ARENA_E_INVALID, ARENA_E_NOT_FOUND, ARENA_E_ACCESS. */
int files_write(struct files *f, const struct credentials *cred, const char *path,
		const char *value, size_t len);

#endif
