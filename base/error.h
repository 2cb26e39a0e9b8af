/* SPDX-License-Identifier: MIT */
/*
 * error.h - how functions of the daemon fail.
 *
 * A negative return is fatal for the operation and nobody's business but the caller's caller:
 * -errno, forward it. A positive return is a documented condition (enum arena_error), which the
 * caller handles or turns into an errno for the client. 0 is success.
 */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

enum arena_error {
	ARENA_OK = 0,
#define ARENA_ERROR(name, errno_, text) ARENA_E_##name,
#include "arena/errors.def"
#undef ARENA_ERROR
	ARENA_E_COUNT
};

/* The errno a client sees for a return of either sign; 0 for 0. */
int error_to_errno(int r);
/* One line of text for a return of either sign. */
const char *error_text(int r);

#endif
