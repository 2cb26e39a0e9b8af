/* SPDX-License-Identifier: MIT */
/*
 * recovery.h - what recover.c (reading) and rebuild.c (building) share.
 */
#ifndef PHYS_RECOVERY_H
#define PHYS_RECOVERY_H

#include <string.h>

#include "daemon/phys/internal.h"

struct recovery {
	struct phys_recover_stats stats;
	uint32_t last_id; /* the domain looked for last, and what was found */
	struct domain *last_domain;
};

/* What no crash explains: counted, and the first ones logged. */
void recovery_damage(struct phys *p, const char *fmt, ...) __printf_(2, 3);

#endif
