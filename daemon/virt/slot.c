/* SPDX-License-Identifier: MIT */
/*
 * slot.c - the arena descriptors a client holds. An entry names a slot, the client maps the frame from
 * that slot's file. Slot 0 is the client's own domain for ever; others come with segments in domains
 * of their own, one per (domain, read-only), and end with their last handle or VMA; the number is
 * then used again, and the client replaces its descriptor when a reply brings a new one.
 */
#include "daemon/virt/internal.h"

static int slot_grow(struct mm *mm)
{
	uint32_t n = mm->nr_slots ? mm->nr_slots * 2 : 4;
	struct slot *grown;

	if (mm->nr_slots >= ARENA_MAX_SLOTS)
		return ARENA_E_TOO_MANY;
	grown = mem_grow(mm->slots, mm->nr_slots, n, sizeof(*grown));
	if (!grown)
		return ARENA_E_NO_MEMORY;
	mm->slots = grown;
	mm->nr_slots = n;
	return 0;
}

int slot_get(struct mm *mm, struct domain *d, bool readonly, uint32_t *slot, bool *is_new)
{
	uint32_t i, free_slot = UINT32_MAX;
	int r;

	for (i = 0; i < mm->nr_slots; i++) {
		struct slot *s = &mm->slots[i];

		if (s->domain == d && s->readonly == readonly) {
			*slot = i;
			*is_new = false;
			return 0;
		}
		if (!s->domain && free_slot == UINT32_MAX)
			free_slot = i;
	}
	if (free_slot == UINT32_MAX) {
		free_slot = mm->nr_slots;
		r = slot_grow(mm);
		if (r)
			return r;
	}
	mm->slots[free_slot] = (struct slot){.domain = domain_get(d), .readonly = readonly};
	*slot = free_slot;
	*is_new = true;
	return 0;
}

void slot_use(struct mm *mm, uint32_t slot)
{
	mm->slots[slot].users++;
}

void slot_unuse(struct mm *mm, uint32_t slot)
{
	struct slot *s = &mm->slots[slot];

	ASSERT(s->users);
	if (--s->users || slot == 0)
		return;
	s->domain = domain_put(s->domain);
}

void slot_free_all(struct mm *mm)
{
	uint32_t i;

	for (i = 0; i < mm->nr_slots; i++)
		if (mm->slots[i].domain)
			domain_put(mm->slots[i].domain);
	free(mm->slots);
}
