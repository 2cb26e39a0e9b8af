/* SPDX-License-Identifier: MIT */
/* log.h - one line per event worth a line, to stderr, with sd-daemon(3)'s <N> level prefixes. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

#include "base/util.h"

/* LOG_LEVEL(enum, number, name): syslog(3)'s numbers, the names --log-level takes. */
#define LOG_LEVELS(LOG_LEVEL)            \
	LOG_LEVEL(ERR, 3, "error")       \
	LOG_LEVEL(WARNING, 4, "warning") \
	LOG_LEVEL(NOTICE, 5, "notice")   \
	LOG_LEVEL(INFO, 6, "info")       \
	LOG_LEVEL(DEBUG, 7, "debug")

enum log_level {
#define LOG_LEVEL(name, number, text) LOG_LEVEL_##name = number,
	LOG_LEVELS(LOG_LEVEL)
#undef LOG_LEVEL
};

void log_set_level(enum log_level level);
enum log_level log_get_level(void);
/* True and *out set if `name` is one of the level names. */
bool log_level_parse(const char *name, enum log_level *out);
/* Tests read the log from here instead of stderr; -1 restores stderr. */
void log_set_fd(int fd);
/* Whole lines, one write(2) each; safe from any thread. Control characters are escaped. */
void log_line(enum log_level level, const char *fmt, ...) __printf_(2, 3);

#define log_err(...) log_line(LOG_LEVEL_ERR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...) log_line(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
