/* SPDX-License-Identifier: MIT */
/* config.h - the table of config.def for those who list it, and the lists among its values. */
#ifndef MACHINE_CONFIG_H
#define MACHINE_CONFIG_H

#include "daemon/machine/machine.h"

#define MACHINE_ARENA_SIZE_MIN (UINT64_C(64) << 20)
#define MACHINE_ARENA_SIZE_MAX (UINT64_C(8) << 40)

struct config_key {
	const char *name;
	const char *argument; /* what its value is called in a usage text */
	const char *accepted;
	const char *help;
};

extern const struct config_key config_keys[];
extern const unsigned nr_config_keys;

/* "1G,512M": up to `max` sizes, each a multiple of a pageblock. 0, ARENA_E_INVALID, -ENOMEM. */
int config_parse_sizes(const char *text, uint64_t *out, unsigned max, unsigned *nr);
/* "SIZE@BASE,...": the same for ranges of whole pages. */
int config_parse_ranges(const char *text, struct phys_range *out, unsigned max, unsigned *nr);

#endif
