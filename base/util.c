/* SPDX-License-Identifier: MIT */
/* util.c - what happens when an invariant does not hold: say which, and stop at once. */
#include "base/util.h"

#include <stdlib.h>

#include "base/log.h"

void assert_failed(const char *what, const char *file, int line)
{
	log_err("%s:%d: assertion failed: %s", file, line, what);
	abort();
}
