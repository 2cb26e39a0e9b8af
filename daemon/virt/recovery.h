/* SPDX-License-Identifier: MIT */
/*
 * recovery.h - what the files of virt's recovery share:
 *
 *	recover.c        the order of things, objects' frames, limbo, what waits for normal life
 *	recover_mm.c     an address space from its record and files, or why it cannot be had
 *	recover_table.c  its page tables
 */
#ifndef VIRT_RECOVERY_H
#define VIRT_RECOVERY_H

#include "daemon/virt/internal.h"

/* An mm that may have frames of a domain mapped; sorted by domain. */
struct holder {
	struct domain *domain;
	struct mm *mm;
};

struct recovery {
	struct virt *v;
	struct phys *p;
	struct virt_recover_stats *stats;
	struct object **objects; /* sorted by id */
	uint32_t nr_objects;
	struct object *last; /* found last */
	struct holder *holders;
	uint32_t nr_holders;
};

struct object *recovery_object(struct recovery *r, uint32_t id);

/*
 * Rebuild mm, of which only virt, id and record are set. All its entries are counted. ARENA_E_INVALID:
 * damage that no crash explains; a line in the log says which, mm has nothing but its id again,
 * and nothing is counted. -errno.
 */
int mm_recover(struct recovery *r, struct mm *mm);
/* Why an address space cannot be had. Returns ARENA_E_INVALID. */
int mm_damaged(const struct mm *mm, const char *fmt, ...) __printf_(2, 3);
/* Index and check the tables, count what their entries refer to. ARENA_E_INVALID: damage, nothing is
 * counted. */
int pgtable_recover(struct recovery *r, struct mm *mm);

#endif
