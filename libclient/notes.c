/* SPDX-License-Identifier: MIT */
/*
 * notes.c - what is mapped where in the window, four bits a page; tlb.h has the drawing.
 *
 * The array of notes is reserved like the window and gets memory by chunks, so that a window of
 * 16 TiB costs nothing before it is used. A chunk without memory reads as all clear. Two counts
 * are kept beside the bits: `starts` bits set, and pieces (a mapped page after an unmapped one).
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bitmap.h"
#include "base/os.h"
#include "base/util.h"
#include "libclient/tlb.h"

static uint64_t nr_chunks(const struct tlb *t)
{
	return t->size >> NOTE_CHUNK_SHIFT;
}

static uint64_t notes_bytes(const struct tlb *t)
{
	return nr_chunks(t) * NOTE_CHUNK_NOTES * sizeof(struct tlb_note);
}

static bool is_ready(const struct tlb *t, uint64_t chunk)
{
	return bitmap_test(t->ready, chunk);
}

int tlb_notes_init(struct tlb *t)
{
	void *p;
	int r = os_reserve(NULL, notes_bytes(t), false, &p);

	if (r < 0)
		return r;
	t->notes = p;
	return 0;
}

void tlb_notes_exit(struct tlb *t)
{
	if (t->notes)
		os_unmap(t->notes, notes_bytes(t));
	t->notes = NULL;
}

void tlb_notes_forget(struct tlb *t)
{
	void *p;

	t->nr_starts = t->nr_pieces = 0;
	if (os_reserve(t->notes, notes_bytes(t), true, &p) == 0) {
		memset(t->ready, 0, sizeof(t->ready));
		return;
	}
	for (uint64_t c = 0; c < nr_chunks(t); c++)
		if (is_ready(t, c))
			memset(t->notes + c * NOTE_CHUNK_NOTES, 0,
			       NOTE_CHUNK_NOTES * sizeof(struct tlb_note));
}

int tlb_note_prepare(struct tlb *t, uint64_t page)
{
	uint64_t chunk = page / 64 / NOTE_CHUNK_NOTES;
	int r;

	if (is_ready(t, chunk))
		return 0;
	r = os_protect(t->notes + chunk * NOTE_CHUNK_NOTES,
		       NOTE_CHUNK_NOTES * sizeof(struct tlb_note), OS_MAP_READ | OS_MAP_WRITE);
	if (r == 0)
		bitmap_set(t->ready, chunk);
	return r;
}

static_assert(NOTES_PER_PAGE_LEAVES * ARENA_LEAF_PAGES / 64 * sizeof(struct tlb_note) ==
		      ARENA_PAGE_SIZE,
	      "notes of a page");

void tlb_notes_expect(const struct tlb *t, uint64_t first, uint64_t n)
{
	const uint64_t per_page = NOTES_PER_PAGE_LEAVES * ARENA_LEAF_PAGES;
	uint64_t chunk_end = ALIGN_DOWN(first, NOTE_CHUNK_NOTES * 64) + NOTE_CHUNK_NOTES * 64;
	uint64_t from = ALIGN_UP(first, per_page),
		 to = MIN(ALIGN_UP(first + n, per_page), chunk_end);

	if (from < to && is_ready(t, from / 64 / NOTE_CHUNK_NOTES))
		os_populate(&t->notes[from / 64], (to - from) / 64 * sizeof(struct tlb_note));
}

/* The note of a page, NULL if its chunk has no memory or it lies outside. */
static struct tlb_note *note_of(const struct tlb *t, uint64_t page)
{
	if (page >= t->size >> ARENA_PAGE_SHIFT || !is_ready(t, page / 64 / NOTE_CHUNK_NOTES))
		return NULL;
	return &t->notes[page / 64];
}

static uint64_t bit_of(uint64_t page)
{
	return UINT64_C(1) << (page % 64);
}

/* Bits [page % 64, ...) of page's note that belong to [page, end). */
static uint64_t mask_from(uint64_t page, uint64_t end)
{
	uint64_t mask = ~UINT64_C(0) << (page % 64);

	if (end - ALIGN_DOWN(page, 64) < 64)
		mask &= bit_of(end) - 1;
	return mask;
}

static uint64_t next_note(uint64_t page)
{
	return ALIGN_DOWN(page, 64) + 64;
}

uint64_t tlb_note_starts(const struct tlb *t, uint64_t page)
{
	const struct tlb_note *n = note_of(t, page);

	return n ? n->starts : 0;
}

bool tlb_note_is_mapped(const struct tlb *t, uint64_t page)
{
	const struct tlb_note *n = note_of(t, page);

	return n && (n->mapped & bit_of(page));
}

bool tlb_note_executable(const struct tlb *t, uint64_t page)
{
	const struct tlb_note *n = note_of(t, page);

	return n && (n->executable & bit_of(page));
}

bool tlb_note_covers(const struct tlb *t, uint64_t first, uint64_t n, uint64_t pte)
{
	uint64_t end = first + n;

	for (uint64_t page = first; page < end; page = next_note(page)) {
		const struct tlb_note *note = note_of(t, page);
		uint64_t have = note ? note->mapped : 0;

		if (note && (pte & ARENA_PTE_WRITE))
			have &= note->writable;
		if (note && (pte & ARENA_PTE_EXEC))
			have &= note->executable;
		if (~have & mask_from(page, end))
			return false;
	}
	return true;
}

uint64_t tlb_note_next(const struct tlb *t, uint64_t first, uint64_t end, bool writable)
{
	const uint64_t chunk_pages = NOTE_CHUNK_NOTES * 64;
	uint64_t page = first;

	while (page < end) {
		const struct tlb_note *n = note_of(t, page);
		uint64_t found;

		if (!n) {
			page = ALIGN_DOWN(page, chunk_pages) + chunk_pages;
			continue;
		}
		found = (writable ? n->writable : n->mapped) & mask_from(page, end);
		if (found)
			return ALIGN_DOWN(page, 64) + (uint64_t)__builtin_ctzll(found);
		page = next_note(page);
	}
	return end;
}

uint64_t tlb_note_last(const struct tlb *t, uint64_t first, uint64_t end)
{
	const uint64_t chunk_pages = NOTE_CHUNK_NOTES * 64;

	while (end > first) {
		uint64_t page = MAX(first, ALIGN_DOWN(end - 1, 64));
		const struct tlb_note *n = note_of(t, page);
		uint64_t found;

		if (!n) {
			end = MAX(first, ALIGN_DOWN(end - 1, chunk_pages));
			continue;
		}
		found = n->mapped & mask_from(page, end);
		if (found)
			return ALIGN_DOWN(page, 64) + 64 - (uint64_t)__builtin_clzll(found);
		end = page;
	}
	return first;
}

uint64_t tlb_note_writable_end(const struct tlb *t, uint64_t first, uint64_t end)
{
	bool executable = tlb_note_executable(t, first);

	for (uint64_t page = first; page < end; page = next_note(page)) {
		const struct tlb_note *n = note_of(t, page);
		uint64_t like = n ? n->writable & (executable ? n->executable : ~n->executable) : 0;
		uint64_t other = ~like & mask_from(page, end);

		if (other)
			return ALIGN_DOWN(page, 64) + (uint64_t)__builtin_ctzll(other);
	}
	return end;
}

/* Pieces that begin in [first, end]: note the bracket. */
static uint64_t count_pieces(const struct tlb *t, uint64_t first, uint64_t end)
{
	bool before = first && tlb_note_is_mapped(t, first - 1);
	uint64_t pieces = 0;

	for (uint64_t page = first; page <= end; page = next_note(page)) {
		const struct tlb_note *n = note_of(t, page);
		uint64_t mapped = n ? n->mapped : 0;
		uint64_t shifted = mapped << 1;

		if (page == first)
			shifted = (shifted & ~bit_of(page)) | (before ? bit_of(page) : 0);
		else
			shifted |= before;
		pieces += (uint64_t)__builtin_popcountll(mapped & ~shifted &
							 mask_from(page, end + 1));
		before = mapped >> 63;
	}
	return pieces;
}

static void set_start(struct tlb *t, uint64_t page, bool start)
{
	struct tlb_note *n = note_of(t, page);
	bool was;

	if (!n || !(n->mapped & bit_of(page)))
		return;
	was = n->starts & bit_of(page);
	n->starts = start ? n->starts | bit_of(page) : n->starts & ~bit_of(page);
	t->nr_starts = t->nr_starts + start - was;
}

/* Set or clear all four bits of a range; starts are cleared either way. */
static void fill(struct tlb *t, uint64_t first, uint64_t end, bool mapped, unsigned prot)
{
	for (uint64_t page = first; page < end; page = next_note(page)) {
		struct tlb_note *n = note_of(t, page);
		uint64_t mask = mask_from(page, end);

		if (!n)
			continue;
		t->nr_starts -= (uint64_t)__builtin_popcountll(n->starts & mask);
		n->starts &= ~mask;
		n->mapped = mapped ? n->mapped | mask : n->mapped & ~mask;
		n->writable = prot & PROT_WRITE ? n->writable | mask : n->writable & ~mask;
		n->executable = prot & PROT_EXEC ? n->executable | mask : n->executable & ~mask;
	}
}

void tlb_note_mapped(struct tlb *t, uint64_t first, uint64_t n, unsigned prot, bool joins_left,
		     bool joins_right)
{
	uint64_t end = first + n;
	uint64_t before = count_pieces(t, first, end);

	fill(t, first, end, true, prot);
	set_start(t, first, !joins_left);
	set_start(t, end, !joins_right);
	t->nr_pieces = t->nr_pieces + count_pieces(t, first, end) - before;
}

void tlb_note_unmapped(struct tlb *t, uint64_t first, uint64_t n)
{
	uint64_t end = first + n;
	uint64_t before = count_pieces(t, first, end);

	fill(t, first, end, false, 0);
	set_start(t, end, true);
	t->nr_pieces = t->nr_pieces + count_pieces(t, first, end) - before;
}

void tlb_note_wrprotected(struct tlb *t, uint64_t first, uint64_t n)
{
	uint64_t end = first + n;

	for (uint64_t page = first; page < end; page = next_note(page)) {
		struct tlb_note *note = note_of(t, page);

		if (note)
			note->writable &= ~mask_from(page, end);
	}
	set_start(t, first, true);
	set_start(t, end, true);
}
