/* SPDX-License-Identifier: MIT */
/* parse.c - text to numbers without locale, sign or silent overflow. */
#include "base/parse.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/error.h"
#include "base/util.h"

static const char units[] = "KMGTPE";

static const char *skip_blanks(const char *s)
{
	while (isspace((unsigned char)*s))
		s++;
	return s;
}

static int digit_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return 16;
}

/* A number at *s, which moves behind it. */
static int read_number(const char **s, uint64_t *out)
{
	unsigned base = 10;
	uint64_t n = 0;

	if ((*s)[0] == '0' && ((*s)[1] == 'x' || (*s)[1] == 'X')) {
		base = 16;
		*s += 2;
	}
	if (digit_value(**s) >= (int)base)
		return ARENA_E_INVALID;
	for (; digit_value(**s) < (int)base; (*s)++) {
		if (__builtin_mul_overflow(n, base, &n) ||
		    __builtin_add_overflow(n, (uint64_t)digit_value(**s), &n))
			return ARENA_E_INVALID;
	}
	*out = n;
	return 0;
}

int parse_u64(const char *s, uint64_t *out)
{
	uint64_t n;

	s = skip_blanks(s);
	if (read_number(&s, &n) || *skip_blanks(s))
		return ARENA_E_INVALID;
	*out = n;
	return 0;
}

int parse_size(const char *s, uint64_t *out)
{
	unsigned shift = 0;
	uint64_t n;

	s = skip_blanks(s);
	if (read_number(&s, &n))
		return ARENA_E_INVALID;
	if (*s && memchr("KMGT", toupper((unsigned char)*s), 4)) {
		shift = 10 * (unsigned)(strchr(units, toupper((unsigned char)*s)) - units + 1);
		s++;
	}
	if (*skip_blanks(s) || n > UINT64_MAX >> shift)
		return ARENA_E_INVALID;
	*out = n << shift;
	return 0;
}

int parse_bool(const char *s, bool *out)
{
	static const struct {
		const char *text;
		bool value;
	} words[] = {
		{"1", true},  {"yes", true}, {"on", true},   {"true", true},
		{"0", false}, {"no", false}, {"off", false}, {"false", false},
	};
	size_t n;

	s = skip_blanks(s);
	n = strcspn(s, " \t\r\n\v\f");
	if (*skip_blanks(s + n))
		return ARENA_E_INVALID;
	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		if (strlen(words[i].text) == n && strncasecmp(words[i].text, s, n) == 0) {
			*out = words[i].value;
			return 0;
		}
	}
	return ARENA_E_INVALID;
}

char *format_size(char *buf, size_t size, uint64_t bytes)
{
	unsigned unit = 0;

	while (unit < sizeof(units) - 1 && bytes >> (10 * (unit + 1)))
		unit++;
	if (!unit)
		snprintf(buf, size, "%" PRIu64 " B", bytes);
	else if (bytes & ((UINT64_C(1) << (10 * unit)) - 1))
		snprintf(buf, size, "%.1f %ciB", (double)bytes / (double)(UINT64_C(1) << 10 * unit),
			 units[unit - 1]);
	else
		snprintf(buf, size, "%" PRIu64 " %ciB", bytes >> (10 * unit), units[unit - 1]);
	return buf;
}
