/* SPDX-License-Identifier: MIT */
/*
 * state.c - the state file: one memfd with a table of regions at its front.
 *
 * Regions lie in enum order, page aligned, and the spare room behind them. The header's magic is
 * stored last: a file without it was never finished and holds nothing.
 */
#include "daemon/phys/state_file.h"

#include <string.h>
#include <unistd.h>

#include "base/os.h"
#include "base/truth.h"
#include "base/util.h"

static void region_sizes(const struct state_header *h, uint64_t size[NR_STATE_REGIONS])
{
	uint64_t blocks = (h->nr_frames + PAGEBLOCK_PAGES - 1) / PAGEBLOCK_PAGES;
	uint64_t sections = (h->nr_frames + h->section_pages - 1) / h->section_pages;

	size[STATE_GEOMETRY] = sizeof(struct state_geometry);
	size[STATE_JOURNAL] = sizeof(struct call_journal);
	size[STATE_TABLES] = 2 * sizeof(struct state_tables);
	size[STATE_DOMAINS] = STATE_MAX_DOMAINS * sizeof(struct domain_record);
	size[STATE_OBJECTS] = STATE_MAX_OBJECTS * sizeof(struct object_record);
	size[STATE_MMS] = STATE_MAX_MMS * sizeof(struct mm_record);
	size[STATE_SECTIONS] = sections * sizeof(struct section_record);
	size[STATE_PAGEBLOCKS] = blocks * sizeof(struct pageblock);
	size[STATE_MEM_MAP] = h->nr_frames * sizeof(struct page);
}

/* Where a region begins that follows one which ends at `end`. */
static uint64_t region_start(enum state_region r, uint64_t end)
{
	return ALIGN_UP(end, r == STATE_MEM_MAP ? STATE_HUGE : STATE_ALIGN);
}

uint64_t state_place_regions(struct state_header *h, unsigned from)
{
	uint64_t size[NR_STATE_REGIONS], end = STATE_ALIGN;

	region_sizes(h, size);
	for (unsigned i = 0; i < NR_STATE_REGIONS; i++) {
		if (i >= from) {
			h->region[i].offset = region_start(i, end);
			h->region[i].size = size[i];
		}
		end = h->region[i].offset + h->region[i].size;
	}
	return ALIGN_UP(end, STATE_ALIGN);
}

bool state_regions_ok(const struct state_header *h, unsigned nr, uint64_t file_size)
{
	uint64_t size[NR_STATE_REGIONS], end = STATE_ALIGN;

	region_sizes(h, size);
	for (unsigned i = 0; i < nr; i++) {
		if (h->region[i].offset != region_start(i, end) || h->region[i].size != size[i])
			return false;
		end = h->region[i].offset + size[i];
	}
	return end <= file_size;
}

static void *region_at(const struct state *s, enum state_region r)
{
	return (char *)s->base + s->header->region[r].offset;
}

void state_set_pointers(struct state *s)
{
	struct state_tables *copies = region_at(s, STATE_TABLES);

	s->geometry = region_at(s, STATE_GEOMETRY);
	s->journal = region_at(s, STATE_JOURNAL);
	s->tables = &copies[s->header->tables];
	s->counters = s->tables->counter;
	s->tunables = s->tables->tunable;
	s->domains = region_at(s, STATE_DOMAINS);
	s->objects = region_at(s, STATE_OBJECTS);
	s->mms = region_at(s, STATE_MMS);
	s->sections = region_at(s, STATE_SECTIONS);
	s->pageblocks = region_at(s, STATE_PAGEBLOCKS);
	s->mem_map = region_at(s, STATE_MEM_MAP);
}

/* FNV-1a: it has to notice a flipped bit, not an enemy. */
static uint64_t checksum_add(uint64_t sum, const void *bytes, size_t n)
{
	const uint8_t *b = bytes;

	for (size_t i = 0; i < n; i++)
		sum = (sum ^ b[i]) * UINT64_C(0x100000001b3);
	return sum;
}

uint64_t state_checksum(const struct state_header *h, const struct state_geometry *g)
{
	uint64_t sum = UINT64_C(0xcbf29ce484222325);

	sum = checksum_add(sum, &h->nr_nodes, sizeof(h->nr_nodes));
	sum = checksum_add(sum, &h->nr_frames, sizeof(h->nr_frames));
	sum = checksum_add(sum, &h->section_pages, sizeof(h->section_pages));
	return checksum_add(sum, g, sizeof(*g));
}

int state_create(const struct state_params *params, struct state *s)
{
	struct state_header header = {
		.major = STATE_MAJOR,
		.minor = STATE_MINOR,
		.nr_nodes = params->geometry->nr_nodes,
		.nr_regions = NR_STATE_REGIONS,
		.nr_frames = params->nr_frames,
		.section_pages = params->section_pages,
		.next_domain = 1,
		.next_object = 1,
		.next_mm = 1,
		.next_peer = 1,
	};
	uint64_t end = state_place_regions(&header, 0) + STATE_SPARE;
	int r;

	header.checksum = state_checksum(&header, params->geometry);
	*s = (struct state){.fd = -1, .size = end};
	s->fd = os_memfd("state", end);
	if (s->fd < 0)
		return s->fd;
	r = os_map(s->fd, 0, end, OS_MAP_READ | OS_MAP_WRITE, &s->base);
	if (r < 0) {
		close(s->fd);
		*s = (struct state){.fd = -1};
		return r;
	}
	s->header = s->base;
	truth_fill(s->header, &header, sizeof(header));
	state_set_pointers(s);
	truth_fill(s->geometry, params->geometry, sizeof(*s->geometry));
	state_tables_init(s->tables);
	truth_store(&s->header->magic, STATE_MAGIC);
	return 0;
}

void state_use_hugepages(struct state *s)
{
	uint64_t size = s->header->region[STATE_MEM_MAP].size;
	void *map;

	/* Less is not worth a hugepage that is mostly empty. */
	if (s->huge || size < 4 * STATE_HUGE)
		return;
	if (os_map(s->fd, s->header->region[STATE_MEM_MAP].offset, size,
		   OS_MAP_READ | OS_MAP_WRITE | OS_MAP_HUGE, &map) < 0)
		return;
	s->mem_map = map;
	s->huge = true;
}

void state_close(struct state *s)
{
	if (!s || !s->base)
		return;
	if (s->huge)
		os_unmap(s->mem_map, s->header->region[STATE_MEM_MAP].size);
	os_unmap(s->base, s->size);
	close(s->fd);
	*s = (struct state){.fd = -1};
}

bool state_scan_next(struct state_scan *scan, uint32_t *n)
{
	const struct state_header *h = scan->state->header;
	uint64_t base = h->region[scan->region].offset;
	uint64_t end = base + h->region[scan->region].size, start;

	if (base + scan->next * scan->size >= scan->data_end) {
		uint64_t at = base + scan->next * scan->size;

		if (at >= end || !os_file_data(scan->state->fd, at, &start, &scan->data_end))
			return false;
		/* A record may reach over from memory there is not. */
		scan->next = MAX(scan->next, (start - base) / scan->size);
	}
	if (base + (scan->next + 1) * scan->size > end)
		return false;
	*n = (uint32_t)scan->next++;
	return true;
}

bool state_is_valid(const struct state *s)
{
	const struct state_header *h = s->header;

	if (!s->base || (const void *)h != s->base)
		return false;
	return h->magic == STATE_MAGIC && h->major == STATE_MAJOR && h->minor == STATE_MINOR &&
	       state_header_ok(h) && h->nr_regions >= NR_STATE_REGIONS &&
	       state_regions_ok(h, NR_STATE_REGIONS, s->size) &&
	       h->checksum == state_checksum(h, s->geometry) && state_geometry_ok(h, s->geometry) &&
	       state_tables_current(s->tables);
}
