/* SPDX-License-Identifier: MIT */
/* arenactl.h - what the verbs of arenactl share: a row each, and one line on stderr on failure. */
#ifndef TOOLS_ARENACTL_H
#define TOOLS_ARENACTL_H

#include <stdbool.h>
#include <stddef.h>

#include "arena/arena.h"
#include "base/util.h"

enum { CTL_DONE = 0, CTL_FAILED = 1, CTL_USAGE = 2 };
enum { CTL_REST = -1 };

/* Options that only some verbs take. */
enum ctl_option {
	CTL_JSON = 1 << 0,
	CTL_CHECK = 1 << 1,
	CTL_ROOT = 1 << 2,
	CTL_BINARY = 1 << 3,
};

struct ctl {
	const char *program; /* as it was called */
	const char *socket;  /* NULL: the library's default */
	const char *root;    /* host-setup: directory instead of "" */
	const char *binary;  /* upgrade: the program instead of the one that is installed */
	unsigned options;    /* of enum ctl_option, those given */
	arena_t *arena;      /* NULL for verbs that need no daemon */
	char **rest;         /* run: all that follows the verb, the verb first */
};

struct ctl_verb {
	const char *name, *args, *help;
	int nr_args;      /* CTL_REST: whatever follows, options, too */
	unsigned options; /* of enum ctl_option */
	bool needs_daemon;
	int (*run)(struct ctl *c, char **args); /* CTL_DONE or CTL_FAILED */
};

int verb_status(struct ctl *c, char **args);
int verb_ps(struct ctl *c, char **args);
int verb_segments(struct ctl *c, char **args);
int verb_host_setup(struct ctl *c, char **args);
int verb_upgrade(struct ctl *c, char **args);
int verb_run(struct ctl *c, char **args);
int verb_check(struct ctl *c, char **args);

/* "arenactl: ..." on stderr; returns CTL_FAILED. */
int ctl_fail(const char *fmt, ...) __printf_(1, 2);
/* All of a file of the tree, malloc()ed and NUL-terminated. NULL: said why on stderr. */
char *ctl_read(struct ctl *c, const char *path, size_t *len);

#endif
