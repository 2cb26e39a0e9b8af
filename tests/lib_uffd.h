/* SPDX-License-Identifier: MIT */
/*
 * lib_uffd.h - for tests of the userfaultfd trap: a daemon that hands the device to a group, and clients
 * that are root or one of its members.
 */
#ifndef TESTS_LIB_UFFD_H
#define TESTS_LIB_UFFD_H

#include "tests/lib_client.h"

#define UFFD_MEMBER 23456u /* a uid whose group is the daemon's userfaultfd-group */
#define UFFD_STRANGER 23457u

/* Fixture of the group; the process exits with 77 where root has no userfaultfd. */
int uffd_group_setup(void **state);
/* As root, then as the member. */
void uffd_run(struct test_daemon *d, client_fn fn, void *arg);
/* In a client: an arena with this trap and no other. */
arena_t *uffd_open(struct test_daemon *d);

/* ---- pages in the states that a system call may meet ---------------------------------------- */

enum uffd_state {
	UFFD_FRESH,     /* never touched */
	UFFD_LEAF,      /* never touched, 2 MiB leaves */
	UFFD_DROPPED,   /* touched, unmapped from the client, still there */
	UFFD_DISCARDED, /* MADV_DONTNEED */
	UFFD_READ,      /* read, not written */
	UFFD_COW,       /* a private mapping of a segment, read */
	UFFD_COW_FRESH, /* the same, not touched */
	UFFD_MAPPED,    /* written to: the case that always works */
	UFFD_NR_STATES
};

struct uffd_pages {
	enum uffd_state state;
	char *p;
	size_t len;
	bool zero; /* what it holds: zeros, else pattern_fill(..., 7) */
	arena_shm_t *segment;
	const char *shared; /* COW: the segment itself, mapped shared */
};

/* `len` bytes in this state, read-write. */
void uffd_make(arena_t *a, enum uffd_state state, size_t len, struct uffd_pages *out);
/* It is still what it was, outside of [p + from, p + to). */
void uffd_check_rest(const struct uffd_pages *pages, size_t from, size_t to);
void uffd_end(arena_t *a, struct uffd_pages *pages);

#endif
