/* SPDX-License-Identifier: MIT */
/*
 * show_section.c - memory from below the zones: memblock's regions, and sections as the memory
 * blocks of sysfs. A memory block is one section; writing its state takes it off and on line.
 */
#include <string.h>

#include "base/parse.h"
#include "daemon/files/show.h"

int show_memblock_memory(struct show *s)
{
	memblock_print(&phys_memblock(s->phys)->memory, s->out);
	return 0;
}

int show_memblock_reserved(struct show *s)
{
	memblock_print(&phys_memblock(s->phys)->reserved, s->out);
	return 0;
}

int show_block_size_bytes(struct show *s)
{
	fprintf(s->out, "%" PRIx64 "\n", phys_section_pages(s->phys) << ARENA_PAGE_SHIFT);
	return 0;
}

static bool is_online(const struct show *s)
{
	return section_state(s->phys, s->number) == SECTION_ONLINE;
}

int show_section_online(struct show *s)
{
	fprintf(s->out, "%d\n", is_online(s));
	return 0;
}

int show_section_state(struct show *s)
{
	fprintf(s->out, "%s\n", is_online(s) ? "online" : "offline");
	return 0;
}

int show_section_phys_device(struct show *s)
{
	fputs("0\n", s->out);
	return 0;
}

int show_section_phys_index(struct show *s)
{
	fprintf(s->out, "%08" PRIx32 "\n", s->number);
	return 0;
}

/* As Linux since 5.x: it may be tried with every block. */
int show_section_removable(struct show *s)
{
	fputs("1\n", s->out);
	return 0;
}

/* The zone that holds all of the section's frames; "none" where it spans several. */
int show_section_valid_zones(struct show *s)
{
	uint64_t start = s->number * phys_section_pages(s->phys);
	uint64_t end = start + phys_section_pages(s->phys);
	const char *name = "none";

	if (end > phys_nr_frames(s->phys))
		end = phys_nr_frames(s->phys);
	for (unsigned nid = 0; nid < phys_nr_nodes(s->phys); nid++) {
		for (unsigned t = 0; t < NR_ZONE_TYPES; t++) {
			const struct zone *z = &phys_node(s->phys, nid)->zone[t];

			if (z->start <= start && end <= z->end)
				name = zone_type_name(t);
		}
	}
	fprintf(s->out, "%s\n", name);
	return 0;
}

static int set_online(struct show *s, bool online)
{
	return online ? section_online(s->phys, s->number) : section_offline(s->phys, s->number);
}

/* The zone of a section is fixed, so online_kernel and online_movable are not taken. */
int store_section_state(struct show *s, const char *value)
{
	if (strcmp(value, "online") == 0)
		return set_online(s, true);
	if (strcmp(value, "offline") == 0)
		return set_online(s, false);
	return ARENA_E_INVALID;
}

int store_section_online(struct show *s, const char *value)
{
	uint64_t n;

	if (parse_u64(value, &n) || n > 1)
		return ARENA_E_INVALID;
	return set_online(s, n);
}
