/* SPDX-License-Identifier: MIT */
/*
 * memblock_query.c - memblock's questions, iteration and allocation.
 *
 * Address 0 is never handed out, because 0 is the answer that means failure.
 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "daemon/phys/internal.h"

static uint64_t region_end(const struct memblock_region *r)
{
	return r->base + r->size;
}

/* First region that ends after addr: it holds addr, or begins after it. */
static unsigned region_after(const struct memblock_type *t, uint64_t addr)
{
	unsigned lo = 0, hi = t->nr;

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (region_end(&t->region[mid]) <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static const struct memblock_region *region_at(const struct memblock_type *t, uint64_t addr)
{
	unsigned i = region_after(t, addr);

	return i < t->nr && t->region[i].base <= addr ? &t->region[i] : NULL;
}

bool memblock_next_free(const struct memblock *mb, uint64_t *cursor, struct memblock_region *out)
{
	for (unsigned i = region_after(&mb->memory, *cursor); i < mb->memory.nr; i++) {
		const struct memblock_region *m = &mb->memory.region[i];
		uint64_t at = MAX(*cursor, m->base);
		unsigned j;

		if (m->flags & MEMBLOCK_NOMAP)
			continue;
		for (j = region_after(&mb->reserved, at); j < mb->reserved.nr; j++) {
			if (mb->reserved.region[j].base > at)
				break;
			at = region_end(&mb->reserved.region[j]);
		}
		if (at >= region_end(m))
			continue;
		*out = *m;
		out->base = at;
		out->size = region_end(m) - at;
		if (j < mb->reserved.nr && mb->reserved.region[j].base < region_end(m))
			out->size = mb->reserved.region[j].base - at;
		*cursor = region_end(out);
		return true;
	}
	return false;
}

uint64_t memblock_alloc_range(struct memblock *mb, uint64_t size, uint64_t align, uint64_t start,
			      uint64_t end, uint32_t nid)
{
	struct memblock_region r;
	uint64_t cursor = 0, found = 0;

	if (!align || align & (align - 1) || !size)
		return 0;
	if (!end || end > mb->current_limit)
		end = mb->current_limit;
	while (memblock_next_free(mb, &cursor, &r)) {
		uint64_t lo = MAX(MAX(r.base, start), 1);
		uint64_t hi = MIN(region_end(&r), end);
		uint64_t low = ALIGN_UP(lo, align);

		if (nid != MEMBLOCK_ANY_NODE && r.nid != nid)
			continue;
		if (low < lo || low >= hi || hi - low < size)
			continue;
		found = mb->bottom_up ? low : ALIGN_DOWN(hi - size, align);
		if (mb->bottom_up)
			break;
	}
	return found && !memblock_reserve(mb, found, size) ? found : 0;
}

uint64_t memblock_alloc(struct memblock *mb, uint64_t size, uint64_t align)
{
	return memblock_alloc_range(mb, size, align, 0, 0, MEMBLOCK_ANY_NODE);
}

bool memblock_is_memory(const struct memblock *mb, uint64_t addr)
{
	return region_at(&mb->memory, addr);
}

bool memblock_is_map_memory(const struct memblock *mb, uint64_t addr)
{
	const struct memblock_region *r = region_at(&mb->memory, addr);

	return r && !(r->flags & MEMBLOCK_NOMAP);
}

bool memblock_is_reserved(const struct memblock *mb, uint64_t addr)
{
	return region_at(&mb->reserved, addr);
}

bool memblock_is_region_memory(const struct memblock *mb, uint64_t base, uint64_t size)
{
	uint64_t at = base;

	for (unsigned i = region_after(&mb->memory, base); i < mb->memory.nr; i++) {
		const struct memblock_region *r = &mb->memory.region[i];

		if (r->base > at)
			return false;
		at = region_end(r);
		if (at - base >= size)
			return true;
	}
	return false;
}

bool memblock_is_region_reserved(const struct memblock *mb, uint64_t base, uint64_t size)
{
	return memblock_overlaps_region(&mb->reserved, base, size);
}

bool memblock_overlaps_region(const struct memblock_type *t, uint64_t base, uint64_t size)
{
	unsigned i = region_after(t, base);

	return size && i < t->nr && (t->region[i].base <= base || t->region[i].base - base < size);
}

static uint64_t type_size(const struct memblock_type *t)
{
	uint64_t size = 0;

	for (unsigned i = 0; i < t->nr; i++)
		size += t->region[i].size;
	return size;
}

uint64_t memblock_phys_mem_size(const struct memblock *mb)
{
	return type_size(&mb->memory);
}

uint64_t memblock_reserved_size(const struct memblock *mb)
{
	return type_size(&mb->reserved);
}

uint64_t memblock_start(const struct memblock *mb)
{
	return mb->memory.nr ? mb->memory.region[0].base : 0;
}

uint64_t memblock_end(const struct memblock *mb)
{
	return mb->memory.nr ? region_end(&mb->memory.region[mb->memory.nr - 1]) : 0;
}

static bool type_is_valid(const struct memblock_type *t)
{
	if (t->nr > MEMBLOCK_MAX_REGIONS)
		return false;
	for (unsigned i = 0; i < t->nr; i++) {
		const struct memblock_region *r = &t->region[i], *prev = r - 1;

		if (!r->size || region_end(r) <= r->base)
			return false;
		if (!i)
			continue;
		if (r->base < region_end(prev))
			return false;
		if (r->base == region_end(prev) && r->nid == prev->nid && r->flags == prev->flags)
			return false;
	}
	return true;
}

bool memblock_is_valid(const struct memblock *mb)
{
	return type_is_valid(&mb->memory) && type_is_valid(&mb->reserved);
}

static void format_flags(uint32_t flags, char buf[32])
{
	static const char *const names[] = {"HOTPLUG", "MIRROR", "NOMAP"};

	strcpy(buf, flags ? "" : "NONE");
	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		if (!(flags & 1u << i))
			continue;
		if (*buf)
			strcat(buf, "|");
		strcat(buf, names[i]);
	}
}

void memblock_print(const struct memblock_type *t, FILE *out)
{
	for (unsigned i = 0; i < t->nr; i++) {
		const struct memblock_region *r = &t->region[i];
		char flags[32], nid[16] = "x";

		format_flags(r->flags, flags);
		if (r->nid != MEMBLOCK_ANY_NODE)
			snprintf(nid, sizeof(nid), "%u", r->nid);
		fprintf(out, "%4u: 0x%016llx..0x%016llx %4s %s\n", i, (unsigned long long)r->base,
			(unsigned long long)(region_end(r) - 1), nid, flags);
	}
}

const struct memblock *phys_memblock(const struct phys *p)
{
	return &p->memblock;
}
