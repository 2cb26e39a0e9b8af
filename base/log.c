/* SPDX-License-Identifier: MIT */
/*
 * log.c - a log line is one write(2) of a buffer on the stack: no lock, no heap, and lines of
 * several threads or processes do not mix.
 *
 * Names that clients choose end up here, so whatever a terminal would obey is escaped: C0 control
 * characters, DEL, and the C1 ones in their UTF-8 form.
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024 /* what is longer ends in "..." */

static int log_level = LOG_LEVEL_INFO;
static int log_fd = STDERR_FILENO;

void log_set_level(enum log_level level)
{
	store_relaxed(&log_level, (int)level);
}

enum log_level log_get_level(void)
{
	return (enum log_level)load_relaxed(&log_level);
}

bool log_level_parse(const char *name, enum log_level *out)
{
#define LOG_LEVEL(name_, number, text)    \
	if (strcmp(name, text) == 0) {    \
		*out = LOG_LEVEL_##name_; \
		return true;              \
	}
	LOG_LEVELS(LOG_LEVEL)
#undef LOG_LEVEL
	return false;
}

void log_set_fd(int fd)
{
	store_relaxed(&log_fd, fd < 0 ? STDERR_FILENO : fd);
}

static bool is_control(unsigned char c, unsigned char before)
{
	return c < 0x20 || c == 0x7f || (before == 0xc2 && c >= 0x80 && c < 0xa0);
}

/* `to` has room for 4 bytes per byte of `text`; returns the end. */
static char *escape(char *to, const char *text)
{
	static const char hex[] = "0123456789abcdef";
	unsigned char before = 0;

	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (is_control(c, before)) {
			*to++ = '\\';
			*to++ = 'x';
			*to++ = hex[c >> 4];
			*to++ = hex[c & 15];
		} else {
			*to++ = (char)c;
		}
		before = c;
	}
	return to;
}

static void write_line(const char *line, size_t n)
{
	int fd = load_relaxed(&log_fd);

	while (n) {
		ssize_t written = write(fd, line, n);

		if (written < 0) {
			if (errno == EINTR)
				continue;
			return;
		}
		line += written;
		n -= (size_t)written;
	}
}

void log_line(enum log_level level, const char *fmt, ...)
{
	char text[LINE_MAX_BYTES];
	char line[8 + 4 * LINE_MAX_BYTES];
	int saved_errno = errno;
	char *end;
	va_list ap;
	int n;

	if ((int)level > load_relaxed(&log_level))
		return;
	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	if ((size_t)n >= sizeof(text))
		memcpy(text + sizeof(text) - 4, "...", 4);

	line[0] = '<';
	line[1] = (char)('0' + (int)level);
	line[2] = '>';
	end = escape(line + 3, text);
	*end++ = '\n';
	write_line(line, (size_t)(end - line));
	errno = saved_errno;
}
