/* SPDX-License-Identifier: MIT */
/*
 * state.c - the state file: one memfd with a table of regions at its front.
 *
 * Regions lie in enum order, page aligned, so that mem_map, the large sparse one, is last. The
 * header's magic is stored last: a file without it was never finished and holds nothing.
 */
#include "daemon/phys/state.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/os.h"
#include "base/truth.h"
#include "base/util.h"

#define STATE_ALIGN UINT64_C(4096)

static const uint64_t tunable_defaults[NR_TUNABLES] = {
#define TUNABLE(name, path, def, min, max, text) [TUNABLE_##name] = (def),
#include "arena/tunables.def"
#undef TUNABLE
};

static void region_sizes(const struct state_params *params, uint64_t size[NR_STATE_REGIONS])
{
	uint64_t blocks = (params->nr_frames + PAGEBLOCK_PAGES - 1) / PAGEBLOCK_PAGES;
	uint64_t sections = (params->nr_frames + params->section_pages - 1) / params->section_pages;

	size[STATE_GEOMETRY] = sizeof(struct state_geometry);
	size[STATE_JOURNAL] = sizeof(struct call_journal);
	size[STATE_NAMES] = (uint64_t)(NR_EVENTS + NR_TUNABLES) * STATE_NAME_SIZE;
	size[STATE_COUNTERS] = NR_EVENTS * sizeof(uint64_t);
	size[STATE_TUNABLES] = NR_TUNABLES * sizeof(uint64_t);
	size[STATE_DOMAINS] = STATE_MAX_DOMAINS * sizeof(struct domain_record);
	size[STATE_OBJECTS] = STATE_MAX_OBJECTS * sizeof(struct object_record);
	size[STATE_MMS] = STATE_MAX_MMS * sizeof(struct mm_record);
	size[STATE_SECTIONS] = sections * sizeof(struct section_record);
	size[STATE_PAGEBLOCKS] = blocks * sizeof(struct pageblock);
	size[STATE_MEM_MAP] = params->nr_frames * sizeof(struct page);
}

static void state_set_pointers(struct state *s)
{
	char *base = s->base;
	const struct state_header *h = s->header;

	s->geometry = (struct state_geometry *)(void *)(base + h->region[STATE_GEOMETRY].offset);
	s->journal = (struct call_journal *)(void *)(base + h->region[STATE_JOURNAL].offset);
	s->names = (char(*)[STATE_NAME_SIZE])(base + h->region[STATE_NAMES].offset);
	s->counters = (uint64_t *)(void *)(base + h->region[STATE_COUNTERS].offset);
	s->tunables = (uint64_t *)(void *)(base + h->region[STATE_TUNABLES].offset);
	s->domains = (struct domain_record *)(void *)(base + h->region[STATE_DOMAINS].offset);
	s->objects = (struct object_record *)(void *)(base + h->region[STATE_OBJECTS].offset);
	s->mms = (struct mm_record *)(void *)(base + h->region[STATE_MMS].offset);
	s->sections = (struct section_record *)(void *)(base + h->region[STATE_SECTIONS].offset);
	s->pageblocks = (struct pageblock *)(void *)(base + h->region[STATE_PAGEBLOCKS].offset);
	s->mem_map = (struct page *)(void *)(base + h->region[STATE_MEM_MAP].offset);
}

int state_create(const struct state_params *params, struct state *s)
{
	struct state_header header = {
		.major = STATE_MAJOR,
		.minor = STATE_MINOR,
		.nr_counters = NR_EVENTS,
		.nr_tunables = NR_TUNABLES,
		.nr_nodes = params->nr_nodes,
		.nr_frames = params->nr_frames,
		.section_pages = params->section_pages,
		.next_domain = 1,
		.next_object = 1,
		.next_mm = 1,
		.next_peer = 1,
	};
	uint64_t size[NR_STATE_REGIONS], end = STATE_ALIGN;
	int r;

	region_sizes(params, size);
	for (unsigned i = 0; i < NR_STATE_REGIONS; i++) {
		header.region[i].offset = end;
		header.region[i].size = size[i];
		end = ALIGN_UP(end + size[i], STATE_ALIGN);
	}
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
	truth_fill(s->tunables, tunable_defaults, sizeof(tunable_defaults));
	truth_store(&s->header->magic, STATE_MAGIC);
	return 0;
}

void state_close(struct state *s)
{
	if (!s || !s->base)
		return;
	os_unmap(s->base, s->size);
	close(s->fd);
	*s = (struct state){.fd = -1};
}

bool state_is_valid(const struct state *s)
{
	const struct state_header *h = s->header;
	uint64_t size[NR_STATE_REGIONS], end = STATE_ALIGN;

	if (!s->base || (const void *)h != s->base)
		return false;
	if (h->magic != STATE_MAGIC || h->major != STATE_MAJOR)
		return false;
	if (!h->nr_frames || h->nr_frames >= PFN_NONE)
		return false;
	if (h->section_pages < PAGEBLOCK_PAGES || h->section_pages & (h->section_pages - 1))
		return false;
	region_sizes(&(struct state_params){.nr_frames = h->nr_frames,
					    .section_pages = h->section_pages,
					    .nr_nodes = h->nr_nodes},
		     size);
	for (unsigned i = 0; i < NR_STATE_REGIONS; i++) {
		if (h->region[i].offset != end || h->region[i].size != size[i])
			return false;
		end = ALIGN_UP(end + size[i], STATE_ALIGN);
	}
	return end == s->size;
}
