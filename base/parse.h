/* SPDX-License-Identifier: MIT */
/* parse.h - numbers and sizes from text; the whole text must fit. 0 or ARENA_E_INVALID. */
#ifndef BASE_PARSE_H
#define BASE_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int parse_u64(const char *s, uint64_t *out);  /* decimal or 0x; blanks around allowed */
int parse_size(const char *s, uint64_t *out); /* 64M, 2G, 1T, 4096; K M G T, either case */
int parse_bool(const char *s, bool *out);     /* 1 0 yes no on off true false */
/* "1.5 GiB" for people; returns buf */
char *format_size(char *buf, size_t size, uint64_t bytes);

#endif
