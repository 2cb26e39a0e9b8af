/* SPDX-License-Identifier: MIT */
/*
 * memblock.c - memory described by regions, before anything else runs: the operations that change.
 *
 * Each of the two types (memory, reserved) is a sorted array of disjoint regions in which
 * neighbours that touch differ in node or flags. Every operation works on a copy that replaces
 * the type only when all of it fits: cut regions at the two ends of the range, change what lies
 * between, merge.
 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "daemon/phys/phys.h"

static uint64_t region_end(const struct memblock_region *r)
{
	return r->base + r->size;
}

static bool range_valid(uint64_t base, uint64_t size)
{
	return size && base + size > base;
}

void memblock_init(struct memblock *mb)
{
	memset(mb, 0, sizeof(*mb));
	mb->memory.name = "memory";
	mb->reserved.name = "reserved";
	mb->current_limit = UINT64_MAX;
}

/* Room for what one operation adds before it merges: two cuts, and a gap beside each region. */
struct work_type {
	unsigned nr;
	struct memblock_region region[2 * MEMBLOCK_MAX_REGIONS + 4];
};

static void work_load(struct work_type *w, const struct memblock_type *t)
{
	w->nr = t->nr;
	memcpy(w->region, t->region, t->nr * sizeof(t->region[0]));
}

static void work_insert(struct work_type *w, unsigned at, struct memblock_region r)
{
	memmove(&w->region[at + 1], &w->region[at], (w->nr - at) * sizeof(w->region[0]));
	w->region[at] = r;
	w->nr++;
}

static void work_cut(struct work_type *w, uint64_t at)
{
	for (unsigned i = 0; i < w->nr; i++) {
		struct memblock_region *r = &w->region[i];

		if (at > r->base && at < region_end(r)) {
			struct memblock_region upper = *r;

			upper.base = at;
			upper.size = region_end(r) - at;
			r->size = at - r->base;
			work_insert(w, i + 1, upper);
			return;
		}
	}
}

/* Merge, drop empty regions, and replace the type. */
static int work_store(struct work_type *w, struct memblock_type *t)
{
	unsigned n = 0;

	for (unsigned i = 0; i < w->nr; i++) {
		const struct memblock_region *r = &w->region[i];
		struct memblock_region *last = n ? &w->region[n - 1] : NULL;

		if (!r->size)
			continue;
		if (last && region_end(last) == r->base && last->nid == r->nid &&
		    last->flags == r->flags)
			last->size += r->size;
		else
			w->region[n++] = *r;
	}
	if (n > MEMBLOCK_MAX_REGIONS)
		return ARENA_E_NO_MEMORY;
	t->nr = n;
	memcpy(t->region, w->region, n * sizeof(t->region[0]));
	return 0;
}

/* Fill the gaps of the range; what is there already keeps its node and flags. */
static int type_add(struct memblock_type *t, uint64_t base, uint64_t size, uint32_t nid,
		    uint32_t flags)
{
	uint64_t end = base + size, at = base;
	struct work_type w;
	unsigned i = 0;

	if (!range_valid(base, size))
		return ARENA_E_INVALID;
	work_load(&w, t);
	while (at < end) {
		uint64_t stop = end;

		while (i < w.nr && region_end(&w.region[i]) <= at)
			i++;
		if (i < w.nr && w.region[i].base <= at) {
			at = region_end(&w.region[i]);
			continue;
		}
		if (i < w.nr && w.region[i].base < end)
			stop = w.region[i].base;
		work_insert(&w, i,
			    (struct memblock_region){
				    .base = at, .size = stop - at, .flags = flags, .nid = nid});
		at = stop;
	}
	return work_store(&w, t);
}

/* Cut at both ends and let `change` alter each region between them. */
static int type_change(struct memblock_type *t, uint64_t base, uint64_t size,
		       void (*change)(struct memblock_region *r, uint32_t arg), uint32_t arg)
{
	struct work_type w;

	if (!range_valid(base, size))
		return ARENA_E_INVALID;
	work_load(&w, t);
	work_cut(&w, base);
	work_cut(&w, base + size);
	for (unsigned i = 0; i < w.nr; i++)
		if (w.region[i].base >= base && region_end(&w.region[i]) <= base + size)
			change(&w.region[i], arg);
	return work_store(&w, t);
}

static void change_drop(struct memblock_region *r, uint32_t arg __unused_)
{
	r->size = 0;
}

static void change_node(struct memblock_region *r, uint32_t nid)
{
	r->nid = nid;
}

static void change_set(struct memblock_region *r, uint32_t flag)
{
	r->flags |= flag;
}

static void change_clear(struct memblock_region *r, uint32_t flag)
{
	r->flags &= ~flag;
}

int memblock_add_node(struct memblock *mb, uint64_t base, uint64_t size, uint32_t nid,
		      uint32_t flags)
{
	return type_add(&mb->memory, base, size, nid, flags);
}

int memblock_add(struct memblock *mb, uint64_t base, uint64_t size)
{
	return type_add(&mb->memory, base, size, MEMBLOCK_ANY_NODE, MEMBLOCK_NONE);
}

int memblock_remove(struct memblock *mb, uint64_t base, uint64_t size)
{
	return type_change(&mb->memory, base, size, change_drop, 0);
}

int memblock_reserve(struct memblock *mb, uint64_t base, uint64_t size)
{
	return type_add(&mb->reserved, base, size, MEMBLOCK_ANY_NODE, MEMBLOCK_NONE);
}

int memblock_free(struct memblock *mb, uint64_t base, uint64_t size)
{
	return type_change(&mb->reserved, base, size, change_drop, 0);
}

int memblock_set_node(struct memblock *mb, uint64_t base, uint64_t size, uint32_t nid)
{
	return type_change(&mb->memory, base, size, change_node, nid);
}

int memblock_mark(struct memblock *mb, uint64_t base, uint64_t size, uint32_t flag)
{
	return type_change(&mb->memory, base, size, change_set, flag);
}

int memblock_clear(struct memblock *mb, uint64_t base, uint64_t size, uint32_t flag)
{
	return type_change(&mb->memory, base, size, change_clear, flag);
}

int memblock_trim_memory(struct memblock *mb, uint64_t align)
{
	struct work_type w;

	if (!align || align & (align - 1))
		return ARENA_E_INVALID;
	work_load(&w, &mb->memory);
	for (unsigned i = 0; i < w.nr; i++) {
		struct memblock_region *r = &w.region[i];
		uint64_t end = ALIGN_DOWN(region_end(r), align);
		uint64_t skip = -r->base & (align - 1);
		uint64_t base = r->base + skip;

		if (skip >= r->size || base >= end) {
			r->size = 0;
			continue;
		}
		r->base = base;
		r->size = end - base;
	}
	return work_store(&w, &mb->memory);
}

int memblock_enforce_limit(struct memblock *mb, uint64_t limit)
{
	uint64_t left = limit, end = UINT64_MAX;
	int r;

	for (unsigned i = 0; i < mb->memory.nr; i++) {
		const struct memblock_region *reg = &mb->memory.region[i];

		if (reg->size > left) {
			end = reg->base + left;
			break;
		}
		left -= reg->size;
	}
	if (end == UINT64_MAX)
		return 0;
	r = memblock_remove(mb, end, UINT64_MAX - end);
	return r ? r : memblock_free(mb, end, UINT64_MAX - end);
}

void memblock_set_current_limit(struct memblock *mb, uint64_t limit)
{
	mb->current_limit = limit;
}
