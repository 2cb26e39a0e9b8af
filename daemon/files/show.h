/* SPDX-License-Identifier: MIT */
/*
 * show.h - inside the files room: a row of the tree, and what its show and store get.
 *
 * A path has at most one number, written %u in the row; `key` says what is counted by it and so
 * which directories exist. Nothing here keeps state of its own: every text is made from phys, virt
 * and the state at the moment it is asked for.
 */
#ifndef FILES_SHOW_H
#define FILES_SHOW_H

#include <inttypes.h>
#include <stdio.h>

#include "daemon/files/files.h"

enum file_key { KEY_NONE, KEY_PID, KEY_NODE, KEY_SECTION };

/* Beside the permission bits: the process itself, its uid, root and the daemon's uid only, as
 * the kernel checks for ptrace whatever the mode says. KEY_PID rows only. */
#define FILE_PTRACE 010000u

struct file_row;

struct show {
	struct machine *machine;
	struct phys *phys;
	struct virt *virt;
	const struct file_row *row;
	uint32_t number; /* what stands for %u in the path */
	FILE *out;       /* for show */
};

struct file_row {
	const char *path;
	enum file_key key;
	unsigned mode;
	int (*show)(struct show *s);                     /* 0, ARENA_E_*, -errno */
	int (*store)(struct show *s, const char *value); /* NULL: read-only */
	enum tunable tunable;                            /* of a tunable's row */
};

#define FILE_ROW(path, key, mode, show_fn) int show_fn(struct show *s);
#define FILE_ROW_STORE(path, key, mode, show_fn, store_fn) \
	int show_fn(struct show *s);                       \
	int store_fn(struct show *s, const char *value);
#include "daemon/files/files.def"
int show_tunable(struct show *s);
int store_tunable(struct show *s, const char *value);

/* ---- sums (show_mem.c) ------------------------------------------------------------------- */

/* A gauge that several places count up and down: below zero for a moment shows as zero. */
static inline uint64_t gauge(uint64_t v)
{
	return (int64_t)v < 0 ? 0 : v;
}

static inline uint64_t pages_to_kb(uint64_t pages)
{
	return pages << (ARENA_PAGE_SHIFT - 10);
}

struct mem_sums {
	uint64_t present, managed, free;
	uint64_t zone[NR_ZONE_ITEMS];
	uint64_t numa[NR_NUMA_ITEMS];
	uint64_t node[NR_NODE_ITEMS];
};

void sum_node(struct node *n, struct mem_sums *sums); /* adds */
void sum_all(struct phys *p, struct mem_sums *sums);  /* sets */

extern const char *const zone_item_text[NR_ZONE_ITEMS];
extern const char *const numa_item_text[NR_NUMA_ITEMS];
extern const char *const node_item_text[NR_NODE_ITEMS];

/* ---- text -------------------------------------------------------------------------------- */

/* A name that a client chose: control characters and backslashes in octal, "\012", and with
 * `blanks` blanks too, so that it stays one field of one line. */
void put_name(FILE *out, const char *name, bool blanks);

#endif
