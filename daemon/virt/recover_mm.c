/* SPDX-License-Identifier: MIT */
/*
 * recover_mm.c - one address space from its record and its two files.
 *
 * The mm file is written by the daemon alone, so every number in it is checked as what we wrote
 * ourselves: it is right, or half done in one of the ways below, or damage, and then this client
 * cannot be had. The channel is the client's to write: nothing in it is believed anyway.
 *
 * What a crash can leave in the records: an armed transaction of VMAs (finished), records that were
 * not born (freed), a slot that no handle or VMA uses yet or any more (it lingers until the
 * client has flushed).
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/store/store.h"
#include "daemon/virt/recovery.h"

int mm_damaged(const struct mm *mm, const char *fmt, ...)
{
	char why[160];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	log_warning("recovery: client %u (mm %u, %.31s) is dropped: %s", mm->record->pid, mm->id,
		    mm->record->comm, why);
	return ARENA_E_INVALID;
}

/* ---- files --------------------------------------------------------------------------------- */

/* The descriptor of that name, if it is the file of that name and size. */
static int take_file(const struct mm *mm, const char *prefix, uint64_t size, int *fd)
{
	char want[32], name[32];
	uint64_t have;

	*fd = store_take_number(prefix, mm->id);
	if (*fd < 0)
		return mm_damaged(mm, "its %s file is not there", prefix);
	snprintf(want, sizeof(want), "%s:%u", prefix, mm->id);
	if (os_memfd_name(*fd, name, sizeof(name)) || strcmp(name, want) != 0)
		return mm_damaged(mm, "its %s file is another", prefix);
	if (os_memfd_size(*fd, &have) || have != size)
		return mm_damaged(mm, "its %s file has another size", prefix);
	return 0;
}

static bool part_of_window(const struct mm *mm, uint64_t start, uint64_t end)
{
	return start <= end && start >= mm->header->window_base &&
	       end <= mm->header->window_base + mm->header->window_size &&
	       IS_ALIGNED(start, ARENA_PAGE_SIZE) && IS_ALIGNED(end, ARENA_PAGE_SIZE);
}

static int check_header(const struct recovery *r, struct mm *mm)
{
	const struct arena_mm_header *h = mm->header;
	uint64_t frames = phys_nr_frames(r->p);
	uint64_t direct = h->direct_base + (frames << ARENA_PAGE_SHIFT);

	if (h->magic != ARENA_MM_MAGIC || h->mm_id != mm->id ||
	    h->record != (uint32_t)(mm->record - r->v->state->mms))
		return mm_damaged(mm, "its mm file is not its own");
	if (h->abi_major != ARENA_ABI_MAJOR)
		return mm_damaged(mm, "its mm file is of version %u", h->abi_major);
	if (!mm_window_ok(h->window_base, h->window_size) || h->arena_frames != frames ||
	    !part_of_window(mm, h->segment_base, h->segment_end) ||
	    !part_of_window(mm, h->start_brk, h->brk_limit) ||
	    !part_of_window(mm, h->mmap_floor, h->mmap_base) || h->brk < h->start_brk ||
	    h->brk > h->brk_limit ||
	    (h->direct_base &&
	     (direct < h->direct_base || !part_of_window(mm, h->direct_base, direct))))
		return mm_damaged(mm, "the layout of its window");
	if (h->def_flags & ~(uint64_t)VM_LOCKED_MASK)
		return mm_damaged(mm, "the flags of new mappings");
	if (h->uses_zero > 1)
		return mm_damaged(mm, "whether it maps zeros");
	if (!policy_is_valid(r->v, h))
		return mm_damaged(mm, "its policy for memory");
	if (!h->anon_family)
		return mm_damaged(mm, "anonymous memory of nobody");
	/* A number that has been counted to by flushes one at a time. */
	if (h->next_seq >> 62)
		return mm_damaged(mm, "its number of flushes");
	mm->anon_family = h->anon_family;
	mm->posted = h->next_seq;
	mm->acked = MIN(load_acquire(&mm->channel->flush_ack), mm->posted);
	mm->search_from = h->mmap_base;
	return 0;
}

/*
 * The parts of the mm file's [from, from + nr * size) that were ever written, as indexes of records;
 * reading the rest would have the host back it. False: no more.
 */
static bool next_records(const struct mm *mm, uint64_t from, uint64_t nr, uint64_t size,
			 uint64_t *first, uint64_t *end)
{
	uint64_t start, stop, limit = from + nr * size;

	if (!os_file_data(mm->file, from + *end * size, &start, &stop) || start >= limit)
		return false;
	*first = (start - from) / size;
	*end = (MIN(stop, limit) - from + size - 1) / size;
	return true;
}

/* ---- slots --------------------------------------------------------------------------------------- */

static int grow_slots(struct mm *mm, uint64_t nr)
{
	uint32_t n = mm->nr_slots ? mm->nr_slots : 4;
	struct slot *grown;

	while (n < nr)
		n *= 2;
	if (n == mm->nr_slots)
		return 0;
	grown = mem_grow(mm->slots, mm->nr_slots, n, sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	mm->slots = grown;
	mm->nr_slots = n;
	return 0;
}

static int recover_slot(struct recovery *r, struct mm *mm, uint32_t slot)
{
	const struct arena_slot_record *rec = &mm->slot_records[slot];
	struct domain *d;
	int e;

	if (!rec->domain)
		return 0;
	d = domain_by_id(r->p, rec->domain);
	if (!d || rec->readonly > 1)
		return mm_damaged(mm, "slot %u is of domain %u", slot, rec->domain);
	e = grow_slots(mm, slot + UINT64_C(1));
	if (!e)
		mm->slots[slot] = (struct slot){.domain = domain_get(d), .readonly = rec->readonly};
	return e;
}

static int recover_slots(struct recovery *r, struct mm *mm)
{
	uint64_t i, end = 0;
	int e = 0;

	while (!e && next_records(mm, ARENA_MM_SLOTS_OFFSET, ARENA_MAX_SLOTS,
				  sizeof(*mm->slot_records), &i, &end))
		for (; i < end && !e; i++)
			e = recover_slot(r, mm, (uint32_t)i);
	if (e)
		return e;
	if (!mm->nr_slots || mm->slots[0].domain != mm->domain || mm->slots[0].readonly)
		return mm_damaged(mm, "slot 0 is not its own domain");
	slot_use(mm, 0);
	return 0;
}

static bool slot_is_of(const struct mm *mm, uint32_t slot, const struct object *o)
{
	return slot < mm->nr_slots && mm->slots[slot].domain == o->domain;
}

/* ---- handles --------------------------------------------------------------------------------------- */

static int recover_handle(struct recovery *r, struct mm *mm, uint32_t i)
{
	const struct arena_handle_record *rec = &mm->handle_records[i];
	struct object *o;

	if (!rec->object)
		return 0;
	o = recovery_object(r, rec->object);
	if (!o || o->kind != OBJECT_SEGMENT || rec->writable > 1 || !slot_is_of(mm, rec->slot, o) ||
	    (rec->writable && mm->slots[rec->slot].readonly))
		return mm_damaged(mm, "handle %u is of segment %u", i + 1, rec->object);
	if (i >= mm->nr_handles) {
		uint32_t n = mm->nr_handles ? mm->nr_handles : 4;
		struct handle *grown;

		while (n <= i)
			n *= 2;
		grown = mem_grow(mm->handles, mm->nr_handles, n, sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		mm->handles = grown;
		mm->nr_handles = n;
	}
	mm->handles[i] = (struct handle){.object = o, .slot = rec->slot, .writable = rec->writable};
	o->nr_handles++;
	slot_use(mm, rec->slot);
	return 0;
}

static int recover_handles(struct recovery *r, struct mm *mm)
{
	uint64_t i, end = 0;
	int e = 0;

	while (!e && next_records(mm, ARENA_MM_HANDLES_OFFSET, ARENA_MM_MAX_HANDLES,
				  sizeof(*mm->handle_records), &i, &end))
		for (; i < end && !e; i++)
			e = recover_handle(r, mm, (uint32_t)i);
	return e;
}

/* ---- VMAs --------------------------------------------------------------------------------------------- */

static bool txn_ok(const struct mm *mm, const uint32_t *record, uint32_t nr, uint32_t state,
		   uint32_t other)
{
	if (nr > ARENA_VMA_TXN_MAX)
		return false;
	for (uint32_t i = 0; i < nr; i++) {
		uint32_t s;

		if (record[i] >= ARENA_MM_MAX_VMAS)
			return false;
		s = mm->records[record[i]].state;
		if (s != state && s != other)
			return false;
	}
	return true;
}

/* What txn_commit() had not stored yet. */
static int replay_txn(struct recovery *r, struct mm *mm)
{
	struct arena_vma_txn *t = &mm->header->txn;

	if (!t->armed)
		return 0;
	if (t->armed != 1 || !txn_ok(mm, t->kill, t->nr_kill, ARENA_VMA_LIVE, ARENA_VMA_FREE) ||
	    !txn_ok(mm, t->born, t->nr_born, ARENA_VMA_BORN, ARENA_VMA_LIVE))
		return mm_damaged(mm, "a change of its VMAs that makes no sense");
	for (uint32_t i = 0; i < t->nr_born; i++)
		truth_store(&mm->records[t->born[i]].state, (uint32_t)ARENA_VMA_LIVE);
	for (uint32_t i = 0; i < t->nr_kill; i++)
		truth_store(&mm->records[t->kill[i]].state, (uint32_t)ARENA_VMA_FREE);
	truth_store(&t->armed, 0u);
	r->stats->repaired++;
	return 0;
}

static const char *vma_wrong(struct recovery *r, const struct mm *mm,
			     const struct arena_vma_record *rec, struct object **out)
{
	uint64_t pages = (rec->end - rec->start) >> ARENA_PAGE_SHIFT;
	struct object *o = rec->object ? recovery_object(r, rec->object) : NULL;

	*out = o;
	if (rec->start == rec->end || !part_of_window(mm, rec->start, rec->end))
		return "its place";
	if (rec->prot & ~(uint32_t)(PROT_READ | PROT_WRITE | PROT_EXEC))
		return "its protection";
	if (rec->flags & VM_DIRECT ? rec->start != mm->header->direct_base || rec->object
				   : direct_contains(mm, rec->start, rec->end))
		return "it is not the direct map";
	if (VM_IS_PFN_MAP(rec->flags) && (rec->object || rec->pgoff >= phys_nr_frames(r->p) ||
					  pages > phys_nr_frames(r->p) - rec->pgoff))
		return "the frames it maps by number";
	if (rec->flags & VM_SNAPSHOT && (!o || rec->flags & (VM_SHARED | VM_SPECIAL)))
		return "it is a snapshot of nothing";
	if (!rec->object)
		return rec->slot || rec->flags & VM_SHARED ? "private memory that is shared" : NULL;
	if (!o || !slot_is_of(mm, rec->slot, o) || rec->pgoff + pages < pages ||
	    rec->pgoff + pages > UINT32_MAX)
		return "what it maps";
	if (mm->slots[rec->slot].readonly && rec->flags & VM_SHARED &&
	    (rec->prot & PROT_WRITE || rec->flags & VM_MAYWRITE))
		return "it may write where it may only read";
	return NULL;
}

/* One record; *top is past the last that is in use. */
static int recover_vma(struct recovery *r, struct mm *mm, uint32_t i, uint32_t *top)
{
	struct arena_vma_record *rec = &mm->records[i];
	const char *wrong;
	struct object *o;

	if (rec->state == ARENA_VMA_FREE)
		return 0;
	if (rec->state == ARENA_VMA_BORN) {
		truth_store(&rec->state, (uint32_t)ARENA_VMA_FREE);
		r->stats->repaired++;
		return 0;
	}
	if (rec->state != ARENA_VMA_LIVE)
		return mm_damaged(mm, "VMA record %u is in state %u", i, rec->state);
	wrong = vma_wrong(r, mm, rec, &o);
	if (wrong)
		return mm_damaged(mm, "VMA %#llx-%#llx: %s", (unsigned long long)rec->start,
				  (unsigned long long)rec->end, wrong);
	*top = i + 1;
	return vma_adopt(mm, i, o);
}

static int recover_vmas(struct recovery *r, struct mm *mm)
{
	uint64_t i, end = 0, last = 0;
	uint32_t top = 0;
	struct vma *v;
	int e = replay_txn(r, mm);

	while (!e && next_records(mm, ARENA_MM_VMAS_OFFSET, ARENA_MM_MAX_VMAS, sizeof(*mm->records),
				  &i, &end))
		for (; i < end && !e; i++)
			e = recover_vma(r, mm, (uint32_t)i, &top);
	if (e == ARENA_E_EXISTS)
		return mm_damaged(mm, "two VMAs at one place");
	if (!e)
		e = vma_adopt_free_records(mm, top);
	if (e)
		return e;
	RB_FOREACH(v, vma_tree, &mm->vmas) {
		if (v->start < last)
			return mm_damaged(mm, "two VMAs at one place");
		last = v->end;
	}
	return 0;
}

/* ---- pins ------------------------------------------------------------------------------------------ */

static void count_pin(void *arg, pfn_t head)
{
	struct recovery *r = arg;

	phys_recover_ref(r->p, head, false);
}

/* How many records there are, and room to index them: what comes behind must not fail. */
static int reserve_pins(struct mm *mm, uint32_t *n)
{
	uint64_t first, end = 0;

	*n = 0;
	while (next_records(mm, ARENA_MM_PINS_OFFSET, ARENA_MM_MAX_PINS,
			    sizeof(struct arena_pin_record), &first, &end))
		*n = (uint32_t)end;
	return *n ? pin_index_reserve(mm, *n) : 0;
}

/* Cannot fail: a record that does not make sense is dropped, and what it held may be freed. */
static void recover_pins(struct recovery *r, struct mm *mm, uint32_t n)
{
	r->stats->repaired += mm_recover_pins(mm, n);
	mm_for_each_pin(mm, count_pin, r);
}

/* ---- all of it ---------------------------------------------------------------------------------------- */

void mm_forget(struct mm *mm)
{
	struct vma *v;

	while ((v = RB_MIN(vma_tree, &mm->vmas)))
		vma_forget(v);
	free(mm->free_records);
	for (uint32_t i = 0; i < mm->nr_handles; i++)
		if (mm->handles[i].object)
			mm->handles[i].object->nr_handles--;
	free(mm->handles);
	slot_free_all(mm);
	free(mm->tables);
	free(mm->free_tables);
	pin_index_free(mm);
	limbo_forget(mm);
	domain_put(mm->domain);
	if (mm->channel)
		os_unmap(mm->channel, ARENA_CHANNEL_SIZE);
	if (mm->base)
		os_unmap(mm->base, ARENA_MM_FILE_SIZE);
	if (mm->file >= 0)
		close(mm->file);
	if (mm->channel_file >= 0)
		close(mm->channel_file);
	mm_init(mm, mm->virt, mm->id);
}

static int recover_domain(struct recovery *r, struct mm *mm)
{
	struct domain *d = domain_by_id(r->p, mm->record->domain);
	bool own = d && domain_kind(d) == DOMAIN_PROCESS;

	if (!d || (own ? domain_owner(d) != mm->id
		       : domain_kind(d) != DOMAIN_UID || domain_owner(d) != mm->record->uid))
		return mm_damaged(mm, "domain %u is not its own", mm->record->domain);
	mm->process_domain = own;
	mm->domain = domain_get(d);
	return 0;
}

static int recover_parts(struct recovery *r, struct mm *mm)
{
	uint32_t nr_pins;
	int e;

	if ((mm->record->state != MM_LIVE && mm->record->state != MM_FORKED) ||
	    mm->record->checksum != mm_checksum(mm->record, mm->record->state))
		return mm_damaged(mm, "its record, in state %u", mm->record->state);
	e = take_file(mm, "mm", ARENA_MM_FILE_SIZE, &mm->file);
	if (!e)
		e = take_file(mm, "channel", ARENA_CHANNEL_SIZE, &mm->channel_file);
	if (!e)
		e = mm_map_files(mm);
	if (!e)
		e = check_header(r, mm);
	if (!e)
		e = recover_domain(r, mm);
	if (!e)
		e = recover_slots(r, mm);
	if (!e)
		e = recover_handles(r, mm);
	if (!e)
		e = recover_vmas(r, mm);
	if (!e)
		e = reserve_pins(mm, &nr_pins);
	if (!e)
		e = pgtable_recover(r, mm);
	if (!e)
		recover_pins(r, mm, nr_pins);
	return e;
}

int mm_recover(struct recovery *r, struct mm *mm)
{
	struct mm_record *record = mm->record;
	uint32_t family;
	int e = recover_parts(r, mm);

	if (!e)
		return 0;
	family = mm->anon_family;
	mm_forget(mm);
	mm->record = record;
	mm->anon_family = family;
	return e == ARENA_E_NO_MEMORY ? -ENOMEM : e;
}
