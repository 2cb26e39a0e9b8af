/* SPDX-License-Identifier: MIT */
/*
 * state_adopt.c - taking over the state file of a worker before us, perhaps of another minor.
 *
 * Nothing is believed before it was checked, and nothing is written before all was. Then the file
 * is brought to our minor in steps each of which ends with one store, and can be begun anew:
 * regions (nr_regions), tables (header.tables), the minor itself.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "base/os.h"
#include "base/truth.h"
#include "base/util.h"
#include "daemon/phys/state_file.h"
#include "numa/topology.h"

#define SECTION_PAGES_MAX (UINT64_C(1) << 28)

struct complaint {
	char *text;
	size_t size;
};

static int __printf_(2, 3) refuse(const struct complaint *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->text, c->size, fmt, ap);
	va_end(ap);
	return ARENA_E_INVALID;
}

bool state_header_ok(const struct state_header *h)
{
	return h->nr_nodes && h->nr_nodes <= NUMA_MAX_NODES && h->nr_frames &&
	       h->nr_frames < PFN_NONE && h->nr_frames % PAGEBLOCK_PAGES == 0 &&
	       h->section_pages >= PAGEBLOCK_PAGES && h->section_pages <= SECTION_PAGES_MAX &&
	       (h->section_pages & (h->section_pages - 1)) == 0 &&
	       h->nr_regions >= STATE_NEEDED_REGIONS && h->nr_regions <= STATE_MAX_REGIONS &&
	       h->tables <= 1;
}

/* Nodes one behind the other from frame 0 to the last, zones inside them, on pageblocks. */
static bool nodes_ok(const struct state_header *h, const struct state_geometry *g)
{
	uint64_t at = 0;

	for (unsigned n = 0; n < g->nr_nodes; n++) {
		if (g->node[n].start != at)
			return false;
		for (unsigned t = 0; t < NR_ZONE_TYPES; t++) {
			uint64_t end = g->node[n].zone_end[t];

			if (end < at || end > h->nr_frames || end % PAGEBLOCK_PAGES)
				return false;
			at = end;
		}
		if (at == g->node[n].start)
			return false;
	}
	return at == h->nr_frames;
}

static bool topology_ok(const struct state_geometry *g)
{
	if (!g->nr_cpus || g->nr_cpus > NUMA_MAX_CPUS || g->simulated > 1)
		return false;
	for (unsigned from = 0; from < g->nr_nodes; from++)
		for (unsigned to = 0; to < g->nr_nodes; to++)
			if ((from == to) != (g->distance[from][to] == NUMA_LOCAL_DISTANCE) ||
			    g->distance[from][to] < NUMA_LOCAL_DISTANCE)
				return false;
	for (unsigned cpu = 0; cpu < g->nr_cpus; cpu++)
		if (g->cpu_node[cpu] >= g->nr_nodes)
			return false;
	return true;
}

bool state_geometry_ok(const struct state_header *h, const struct state_geometry *g)
{
	uint64_t bytes = h->nr_frames << 12;

	if (g->nr_nodes != h->nr_nodes || g->nr_reserved > ARRAY_SIZE(g->reserved))
		return false;
	for (unsigned i = 0; i < g->nr_reserved; i++)
		if (g->reserved[i].base >= bytes || !g->reserved[i].size ||
		    g->reserved[i].size > bytes - g->reserved[i].base)
			return false;
	return nodes_ok(h, g) && topology_ok(g);
}

static int check(struct state *s, const struct complaint *c)
{
	const struct state_header *h = s->header;

	if (h->magic != STATE_MAGIC)
		return refuse(c, "not a finished state file: it begins with %#llx",
			      (unsigned long long)h->magic);
	if (h->major != STATE_MAJOR)
		return refuse(c, "made by a worker of major %u; this one serves major %u", h->major,
			      STATE_MAJOR);
	if (!state_header_ok(h))
		return refuse(c, "its header is damaged");
	if (!state_regions_ok(h, MIN(h->nr_regions, NR_STATE_REGIONS), s->size))
		return refuse(c, "its regions do not lie where they should, or it was cut off");
	state_set_pointers(s);
	if (h->checksum != state_checksum(h, s->geometry))
		return refuse(c, "its geometry is damaged: the checksum does not agree");
	if (!state_geometry_ok(h, s->geometry))
		return refuse(c, "its geometry is impossible");
	return 0;
}

/* What lies there may have been a region of a newer minor that worked on the file before. */
static int add_regions(struct state *s, const struct complaint *c)
{
	struct state_header *h = s->header, placed = *h;

	if (h->nr_regions >= NR_STATE_REGIONS) {
		if (h->nr_regions > NR_STATE_REGIONS)
			truth_store(&h->nr_regions, (uint32_t)NR_STATE_REGIONS);
		return 0;
	}
	if (state_place_regions(&placed, h->nr_regions) > s->size)
		return refuse(c, "made by minor %u, and it has no room for what minor %u keeps",
			      h->minor, STATE_MINOR);
	for (unsigned i = h->nr_regions; i < NR_STATE_REGIONS; i++) {
		int r = os_punch_hole(s->fd, placed.region[i].offset,
				      ALIGN_UP(placed.region[i].size, STATE_ALIGN));

		if (r < 0)
			return r;
	}
	truth_fill(h->region, placed.region, sizeof(placed.region));
	truth_store(&h->nr_regions, (uint32_t)NR_STATE_REGIONS);
	state_set_pointers(s);
	return 0;
}

static int migrate(struct state *s, const struct complaint *c)
{
	struct state_header *h = s->header;
	int r = add_regions(s, c);

	if (r)
		return r;
	if (!state_tables_current(s->tables)) {
		struct state_tables *other =
			h->tables ? s->tables - 1 : s->tables + 1; /* the two lie side by side */

		state_tables_migrate(other, s->tables);
		truth_store(&h->tables, 1 - h->tables);
		state_set_pointers(s);
	}
	if (h->minor != STATE_MINOR) {
		log_notice("the state file of minor %u is now one of minor %u", h->minor,
			   STATE_MINOR);
		truth_store(&h->minor, STATE_MINOR);
	}
	state_tables_repair(s->tables);
	truth_store(&h->epoch, h->epoch + 1);
	return 0;
}

int state_adopt(int fd, struct state *s, char *err, size_t err_size)
{
	const struct complaint c = {.text = err, .size = err_size};
	uint64_t size;
	int r = os_memfd_size(fd, &size);

	*s = (struct state){.fd = -1};
	if (r < 0)
		return refuse(&c, "not a state file: it is no file of memory that keeps its size");
	if (size < sizeof(struct state_header) || size % STATE_ALIGN)
		return refuse(&c, "not a state file: %llu bytes", (unsigned long long)size);
	r = os_map(fd, 0, size, OS_MAP_READ | OS_MAP_WRITE, &s->base);
	if (r < 0) {
		snprintf(err, err_size, "cannot map it: %s", error_text(r));
		*s = (struct state){.fd = -1};
		return r;
	}
	s->size = size;
	s->header = s->base;
	s->fd = fd;
	r = check(s, &c);
	if (!r)
		r = migrate(s, &c);
	if (r) {
		if (r < 0)
			snprintf(err, err_size, "cannot migrate it: %s", error_text(r));
		os_unmap(s->base, size);
		*s = (struct state){.fd = -1};
	}
	return r;
}
