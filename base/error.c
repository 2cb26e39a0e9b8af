/* SPDX-License-Identifier: MIT */
/* error.c - the table of errors.def: what a return of either sign means to a client and a reader. */
#include "base/error.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

static const struct {
	int number;
	const char *text;
} errors[ARENA_E_COUNT] = {
	[ARENA_OK] = {0, "success"},
#define ARENA_ERROR(name, errno_, text_) [ARENA_E_##name] = {errno_, text_},
#include "arena/errors.def"
#undef ARENA_ERROR
};

int error_to_errno(int r)
{
	if (r < 0)
		return -r;
	return r < ARENA_E_COUNT ? errors[r].number : EIO;
}

const char *error_text(int r)
{
	const char *text;

	if (r >= 0)
		return r < ARENA_E_COUNT ? errors[r].text : "unknown condition";
	text = strerrordesc_np(-r);
	return text ? text : "unknown error";
}
