/* SPDX-License-Identifier: MIT */
/*
 * bitmap.c - bits in 64-bit words; bit b is bit b % 64 of word b / 64.
 *
 * Searches and counts go by words. Bits of the last word beyond nbits may hold anything: every
 * function masks or bounds them.
 */
#include "base/bitmap.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/util.h"

#define WORD_BITS 64
#define MASK_CHUNK 32 /* bits between two commas of a printed mask */

/* Bits [first, first + n) of one word, n > 0. */
static uint64_t word_mask(size_t first, size_t n)
{
	return (~UINT64_C(0) >> (WORD_BITS - n)) << first;
}

bool bitmap_test(const uint64_t *map, size_t bit)
{
	return map[bit / WORD_BITS] >> (bit % WORD_BITS) & 1;
}

void bitmap_set(uint64_t *map, size_t bit)
{
	map[bit / WORD_BITS] |= UINT64_C(1) << (bit % WORD_BITS);
}

void bitmap_clear(uint64_t *map, size_t bit)
{
	map[bit / WORD_BITS] &= ~(UINT64_C(1) << (bit % WORD_BITS));
}

void bitmap_set_range(uint64_t *map, size_t first, size_t n)
{
	while (n) {
		size_t offset = first % WORD_BITS;
		size_t part = MIN(n, WORD_BITS - offset);

		map[first / WORD_BITS] |= word_mask(offset, part);
		first += part;
		n -= part;
	}
}

void bitmap_clear_range(uint64_t *map, size_t first, size_t n)
{
	while (n) {
		size_t offset = first % WORD_BITS;
		size_t part = MIN(n, WORD_BITS - offset);

		map[first / WORD_BITS] &= ~word_mask(offset, part);
		first += part;
		n -= part;
	}
}

size_t bitmap_weight(const uint64_t *map, size_t nbits)
{
	size_t weight = 0;

	for (size_t i = 0; i < nbits / WORD_BITS; i++)
		weight += (size_t)__builtin_popcountll(map[i]);
	if (nbits % WORD_BITS)
		weight += (size_t)__builtin_popcountll(map[nbits / WORD_BITS] &
						       word_mask(0, nbits % WORD_BITS));
	return weight;
}

/* `flip` is all ones to search for clear bits. */
static size_t next_bit(const uint64_t *map, size_t nbits, size_t from, uint64_t flip)
{
	uint64_t word;
	size_t i;

	if (from >= nbits)
		return nbits;
	i = from / WORD_BITS;
	word = (map[i] ^ flip) & (~UINT64_C(0) << (from % WORD_BITS));
	while (!word) {
		if (++i >= BITMAP_WORDS(nbits))
			return nbits;
		word = map[i] ^ flip;
	}
	return MIN(i * WORD_BITS + (size_t)__builtin_ctzll(word), nbits);
}

size_t bitmap_next_set(const uint64_t *map, size_t nbits, size_t from)
{
	return next_bit(map, nbits, from, 0);
}

size_t bitmap_next_clear(const uint64_t *map, size_t nbits, size_t from)
{
	return next_bit(map, nbits, from, ~UINT64_C(0));
}

size_t bitmap_find_clear_area(const uint64_t *map, size_t nbits, size_t from, size_t n,
			      size_t align)
{
	while (from < nbits) {
		size_t start = ALIGN_UP(bitmap_next_clear(map, nbits, from), align);
		size_t taken;

		if (start >= nbits || n > nbits - start)
			return nbits;
		taken = bitmap_next_set(map, start + n, start);
		if (taken == start + n)
			return start;
		from = taken + 1;
	}
	return nbits;
}

/* Decimal digits at *s, below `limit`; *s moves behind them. */
static bool list_number(const char **s, size_t limit, size_t *out)
{
	size_t n = 0;

	if (!isdigit((unsigned char)**s))
		return false;
	for (; isdigit((unsigned char)**s); (*s)++) {
		n = n * 10 + (size_t)(**s - '0');
		if (n >= limit)
			return false;
	}
	*out = n;
	return true;
}

/* Parses the list and, with a map, sets its bits. Blanks may stand around the list only. */
static int walk_list(const char *s, uint64_t *map, size_t nbits)
{
	s += strspn(s, " \t\n");
	while (*s && !isspace((unsigned char)*s)) {
		size_t first, last;

		if (!list_number(&s, nbits, &first))
			return ARENA_E_INVALID;
		last = first;
		if (*s == '-') {
			s++;
			if (!list_number(&s, nbits, &last) || last < first)
				return ARENA_E_INVALID;
		}
		if (map)
			bitmap_set_range(map, first, last - first + 1);
		if (*s == ',') {
			s++;
			if (!isdigit((unsigned char)*s))
				return ARENA_E_INVALID;
		} else if (*s && !isspace((unsigned char)*s)) {
			return ARENA_E_INVALID;
		}
	}
	return s[strspn(s, " \t\n")] ? ARENA_E_INVALID : 0;
}

/* A list that is not valid leaves the map as it was; an empty one is the empty set. */
int bitmap_parse_list(const char *s, uint64_t *map, size_t nbits)
{
	int r = walk_list(s, NULL, nbits);

	if (r)
		return r;
	memset(map, 0, BITMAP_WORDS(nbits) * sizeof(*map));
	return walk_list(s, map, nbits);
}

/* As snprintf(3), both return the length that a large enough buffer would hold. */
int bitmap_print_list(char *buf, size_t size, const uint64_t *map, size_t nbits)
{
	size_t first, end, used = 0;

	if (size)
		buf[0] = '\0';
	for (first = bitmap_next_set(map, nbits, 0); first < nbits;
	     first = bitmap_next_set(map, nbits, end)) {
		const char *comma = used ? "," : "";
		size_t room = used < size ? size - used : 0;
		char *to = room ? buf + used : NULL;

		end = bitmap_next_clear(map, nbits, first);
		if (end - first == 1)
			used += (size_t)snprintf(to, room, "%s%zu", comma, first);
		else
			used += (size_t)snprintf(to, room, "%s%zu-%zu", comma, first, end - 1);
	}
	return (int)used;
}

/* The first chunk has as many digits as nbits needs, the others eight. */
int bitmap_print_mask(char *buf, size_t size, const uint64_t *map, size_t nbits)
{
	size_t bits = MAX(nbits, 1);
	size_t chunk = (bits - 1) / MASK_CHUNK;
	int digits = (int)(bits - chunk * MASK_CHUNK + 3) / 4;
	size_t used = 0;

	for (;; chunk--) {
		size_t room = used < size ? size - used : 0;
		size_t first = chunk * MASK_CHUNK;
		uint32_t value = 0;

		if (first < nbits) {
			uint64_t mask = word_mask(0, MIN(nbits - first, MASK_CHUNK));

			value = (uint32_t)(map[first / WORD_BITS] >> (first % WORD_BITS) & mask);
		}
		used += (size_t)snprintf(room ? buf + used : NULL, room, "%s%0*" PRIx32,
					 used ? "," : "", digits, value);
		digits = MASK_CHUNK / 4;
		if (!chunk)
			return (int)used;
	}
}
