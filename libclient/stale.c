/* SPDX-License-Identifier: MIT */
/*
 * stale.c - kernel mappings that a trap leaves behind where nothing is mapped (trap_userfaultfd.c).
 *
 * They count against vm.max_map_count like all others, until something is mapped over them or the window
 * is evicted. A bit a page says that one begins here; it counts twice, for what follows it is a mapping,
 * too. As with notes, a chunk of bits for each GiB of window gets memory when it is used.
 *
 * Invariant, under the tlb's lock: nr_stale is at least twice the bits set. It is more after
 * tlb_drop(), which forgets where they were.
 */
#include <string.h>

#include "base/bitmap.h"
#include "base/os.h"
#include "base/util.h"
#include "libclient/tlb.h"

#define CHUNK_BYTES (NOTE_CHUNK_NOTES * sizeof(uint64_t))

static uint64_t stale_bytes(const struct tlb *t)
{
	return (t->size >> NOTE_CHUNK_SHIFT) * CHUNK_BYTES;
}

int stale_init(struct tlb *t)
{
	void *p;
	int r = os_reserve(NULL, stale_bytes(t), false, &p);

	if (r == 0)
		t->stale = p;
	return r;
}

void stale_exit(struct tlb *t)
{
	if (t->stale)
		os_unmap(t->stale, stale_bytes(t));
	t->stale = NULL;
}

static bool has_memory(struct tlb *t, uint64_t word, bool wanted)
{
	uint64_t chunk = word / NOTE_CHUNK_NOTES;

	if (bitmap_test(t->stale_ready, chunk))
		return true;
	if (!wanted || os_protect(t->stale + chunk * NOTE_CHUNK_NOTES, CHUNK_BYTES,
				  OS_MAP_READ | OS_MAP_WRITE) < 0)
		return false;
	bitmap_set(t->stale_ready, chunk);
	return true;
}

/* Bits of the word that belong to [first, end), numbers of pages. */
static uint64_t bits_of(uint64_t word, uint64_t first, uint64_t end)
{
	uint64_t mask = ~UINT64_C(0);

	if (word == first / 64)
		mask <<= first % 64;
	if (word == end / 64)
		mask &= (UINT64_C(1) << (end % 64)) - 1;
	return mask;
}

void stale_add(struct tlb *t, uint64_t first, uint64_t end)
{
	for (uint64_t word = first / 64; word * 64 < end; word++) {
		uint64_t begins = tlb_note_starts(t, word * 64) & bits_of(word, first, end);

		if (!begins)
			continue;
		t->nr_stale += 2 * (uint64_t)__builtin_popcountll(begins);
		/* Without memory it stays counted until the next eviction. */
		if (has_memory(t, word, true))
			t->stale[word] |= begins;
	}
}

void stale_replaced(struct tlb *t, uint64_t first, uint64_t end)
{
	for (uint64_t word = first / 64; word * 64 < end; word++) {
		uint64_t gone;

		if (!has_memory(t, word, false))
			continue;
		gone = t->stale[word] & bits_of(word, first, end);
		t->nr_stale -= 2 * (uint64_t)__builtin_popcountll(gone);
		t->stale[word] &= ~gone;
	}
}

static void clear_bits(struct tlb *t)
{
	void *p;

	if (os_reserve(t->stale, stale_bytes(t), true, &p) == 0) {
		memset(t->stale_ready, 0, sizeof(t->stale_ready));
		return;
	}
	for (uint64_t c = 0; c < t->size >> NOTE_CHUNK_SHIFT; c++)
		if (bitmap_test(t->stale_ready, c))
			memset(t->stale + c * NOTE_CHUNK_NOTES, 0, CHUNK_BYTES);
}

void stale_add_all(struct tlb *t)
{
	t->nr_stale += t->nr_starts + t->nr_pieces;
	clear_bits(t);
}

void stale_forget(struct tlb *t)
{
	t->nr_stale = 0;
	clear_bits(t);
}
