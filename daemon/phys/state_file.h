/* SPDX-License-Identifier: MIT */
/*
 * state_file.h - what state.c, state_adopt.c and state_tables.c share about the file's layout.
 */
#ifndef PHYS_STATE_FILE_H
#define PHYS_STATE_FILE_H

#include "daemon/phys/state.h"

#define STATE_ALIGN UINT64_C(4096)
#define STATE_HUGE (UINT64_C(2) << 20)

/* ---- state.c ---- */

/* Give the regions from number `from` on their places behind the others; where they end. */
uint64_t state_place_regions(struct state_header *h, unsigned from);
/* The first `nr` regions lie where nr_frames and section_pages say, inside the file. */
bool state_regions_ok(const struct state_header *h, unsigned nr, uint64_t file_size);
void state_set_pointers(struct state *s);
uint64_t state_checksum(const struct state_header *h, const struct state_geometry *g);

/* ---- state_adopt.c ---- */

/* The header's numbers make sense by themselves. */
bool state_header_ok(const struct state_header *h);
bool state_geometry_ok(const struct state_header *h, const struct state_geometry *g);

/* ---- state_tables.c ---- */

/* Our names, and defaults. */
void state_tables_init(struct state_tables *t);
/* Its names are ours, in our order. */
bool state_tables_current(const struct state_tables *t);
/* Fill `to` with our names and what `from` knows under them. */
void state_tables_migrate(struct state_tables *to, const struct state_tables *from);
/* A tunable outside its limits gets its default; how many did. */
unsigned state_tables_repair(struct state_tables *t);

#endif
