/* SPDX-License-Identifier: MIT */
/* why.h - where a step that can fail for many reasons writes its one line for people. */
#ifndef BASE_WHY_H
#define BASE_WHY_H

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include "base/util.h"

struct why {
	char *text;
	size_t size;
};

/* Write the line and return r, as in `return fail(why, -EINVAL, "no %s", name);`. */
static inline int __printf_(3, 4) fail(const struct why *why, int r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why->text, why->size, fmt, ap);
	va_end(ap);
	return r;
}

#endif
