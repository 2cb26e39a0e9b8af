/* SPDX-License-Identifier: MIT */
/*
 * slot.c - the arena descriptors a client holds. An entry names a slot, the client maps the frame from
 * that slot's file. Slot 0 is the client's own domain for ever; others come with segments in domains
 * of their own, one per (domain, read-only), and end with their last handle or VMA; the number is
 * then used again, and the client replaces its descriptor when a reply brings a new one. The last number
 * is not given to any: it is that of the zero page (zero.c).
 *
 * Truth: the records in the mm file, whose domain is stored last and cleared first. They say whose
 * frames the client may have mapped, also those it was told to drop; so a slot without users lingers
 * until every flush posted by then is acknowledged.
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

static void slot_revive(struct mm *mm, struct slot *s)
{
	bool before = mm_flush_pending(mm);

	if (!s->linger)
		return;
	s->linger = 0;
	mm->nr_lingering--;
	flush_note_pending(mm, before);
}

int slot_get(struct mm *mm, struct domain *d, bool readonly, uint32_t *slot, bool *is_new)
{
	uint32_t i, free_slot = UINT32_MAX;
	int r;

	for (i = 0; i < mm->nr_slots; i++) {
		struct slot *s = &mm->slots[i];

		if (s->domain == d && s->readonly == readonly) {
			*slot = i;
			*is_new = s->linger;
			slot_revive(mm, s);
			return 0;
		}
		if (!s->domain && i != ARENA_SLOT_ZERO && free_slot == UINT32_MAX)
			free_slot = i;
	}
	if (free_slot == UINT32_MAX) {
		free_slot = mm->nr_slots;
		r = slot_grow(mm);
		if (r)
			return r;
	}
	mm->slots[free_slot] = (struct slot){.domain = domain_get(d), .readonly = readonly};
	truth_store(&mm->slot_records[free_slot].readonly, (uint32_t)readonly);
	truth_store(&mm->slot_records[free_slot].domain, domain_id(d));
	*slot = free_slot;
	*is_new = true;
	return 0;
}

void slot_use(struct mm *mm, uint32_t slot)
{
	mm->slots[slot].users++;
}

static void slot_end(struct mm *mm, uint32_t slot)
{
	struct slot *s = &mm->slots[slot];

	s->linger = 0;
	truth_store(&mm->slot_records[slot].domain, 0u);
	s->domain = domain_put(s->domain);
}

void slot_unuse(struct mm *mm, uint32_t slot)
{
	struct slot *s = &mm->slots[slot];
	ASSERT(s->users);
	if (--s->users || slot == 0)
		return;
	slot_linger(mm, slot);
}

void slot_linger(struct mm *mm, uint32_t slot)
{
	bool before = mm_flush_pending(mm);
	uint64_t last = limbo_last(mm);

	if (mm->dying || last <= mm->acked) {
		slot_end(mm, slot);
		return;
	}
	mm->slots[slot].linger = last;
	mm->nr_lingering++;
	flush_note_pending(mm, before);
}

/* The caller notes what that does to mm_flush_pending(). */
void slot_end_lingering(struct mm *mm, uint64_t acked)
{
	uint32_t i;

	for (i = 0; i < mm->nr_slots && mm->nr_lingering; i++) {
		struct slot *s = &mm->slots[i];

		if (!s->linger || s->linger > acked)
			continue;
		mm->nr_lingering--;
		slot_end(mm, i);
	}
}

int slot_copy_all(struct mm *to, const struct mm *from)
{
	uint32_t i;
	int r;

	for (i = 0; i < from->nr_slots; i++) {
		const struct slot *s = &from->slots[i];

		while (i >= to->nr_slots) {
			r = slot_grow(to);
			if (r)
				return r;
		}
		/* Slot 0 is there, and what only waits for a flush of the other's is nothing here. */
		if (!i || !s->domain || s->linger)
			continue;
		to->slots[i] =
			(struct slot){.domain = domain_get(s->domain), .readonly = s->readonly};
		truth_store(&to->slot_records[i].readonly, (uint32_t)s->readonly);
		truth_store(&to->slot_records[i].domain, domain_id(s->domain));
	}
	return 0;
}

void slot_free_all(struct mm *mm)
{
	uint32_t i;

	for (i = 0; i < mm->nr_slots; i++)
		if (mm->slots[i].domain)
			domain_put(mm->slots[i].domain);
	free(mm->slots);
}
