/* SPDX-License-Identifier: MIT */
/* bitmap.h - bits in an array of 64-bit words, as Linux's bitmap and find_bit. */
#ifndef BASE_BITMAP_H
#define BASE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BITMAP_WORDS(n) (((n) + 63) / 64)

bool bitmap_test(const uint64_t *map, size_t bit);
void bitmap_set(uint64_t *map, size_t bit);
void bitmap_clear(uint64_t *map, size_t bit);
void bitmap_set_range(uint64_t *map, size_t first, size_t n);
void bitmap_clear_range(uint64_t *map, size_t first, size_t n);
size_t bitmap_weight(const uint64_t *map, size_t nbits);
/* First set (clear) bit at or after `from`; nbits if there is none. */
size_t bitmap_next_set(const uint64_t *map, size_t nbits, size_t from);
size_t bitmap_next_clear(const uint64_t *map, size_t nbits, size_t from);
/* First run of n clear bits at or after `from`, aligned to `align` (a power of two); nbits if
 * there is none. */
size_t bitmap_find_clear_area(const uint64_t *map, size_t nbits, size_t from, size_t n,
			      size_t align);
/* "0-3,7" as the kernel's list files: parse returns 0 or ARENA_E_INVALID; print returns length. */
int bitmap_parse_list(const char *s, uint64_t *map, size_t nbits);
int bitmap_print_list(char *buf, size_t size, const uint64_t *map, size_t nbits);
/* hex mask, comma every 32 bits, as cpumap; at least one word of nbits */
int bitmap_print_mask(char *buf, size_t size, const uint64_t *map, size_t nbits);

#endif
