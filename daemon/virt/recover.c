/* SPDX-License-Identifier: MIT */
/*
 * recover.c - virt_recover(): every index of this room from the truth, over a phys that is being
 * recovered too.
 *
 *	objects' records -> objects' frames -> address spaces -> phys_recover_finish() -> clean up
 *
 * Up to phys_recover_finish() nothing is allocated, freed or unmapped: what is found is counted.
 * What takes normal operations to repair waits until then: objects without users, VMAs that should
 * be one, blocks of arena_alloc_pages() without all their entries.
 *
 * A client that cannot be had (mm_recover() says why) may be alive and have frames mapped. So it is not
 * forgotten but condemned: it keeps a reference of everything it can have mapped, in a limbo that it
 * will never be asked to flush, until the service has seen its process die and destroys it.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "daemon/store/store.h"
#include "daemon/virt/file.h"
#include "daemon/virt/frozen.h"
#include "daemon/virt/recovery.h"

/* ---- objects ------------------------------------------------------------------------------------------ */

static int object_order(const void *a, const void *b)
{
	const struct object *x = *(struct object *const *)a, *y = *(struct object *const *)b;

	return x->id < y->id ? -1 : x->id > y->id;
}

struct object *recovery_object(struct recovery *r, uint32_t id)
{
	uint32_t lo = 0, hi = r->nr_objects;

	if (r->last && r->last->id == id)
		return r->last;
	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;
		struct object *o = r->objects[mid];

		if (o->id == id)
			return r->last = o;
		if (o->id < id)
			lo = mid + 1;
		else
			hi = mid;
	}
	return NULL;
}

static const char *object_wrong(const struct recovery *r, const struct object_record *rec)
{
	bool segment = rec->kind == OBJECT_SEGMENT, file = rec->kind == OBJECT_FILE;
	uint64_t area = ARENA_WINDOW_BASE + ARENA_WINDOW_SIZE_DEFAULT_HERE / 4;

	if (!segment && !file && rec->kind != OBJECT_ANON)
		return "its kind";
	if (!rec->id || rec->checksum != object_checksum(rec) ||
	    file != !!(rec->mode & OBJECT_IS_FILE))
		return "its record";
	if (rec->size > (uint64_t)UINT32_MAX << ARENA_PAGE_SHIFT || rec->unlinked > 1)
		return "its size";
	if (memchr(rec->name, '\0', sizeof(rec->name)) == NULL)
		return "its name";
	if (file)
		return NULL;
	if (segment != (rec->name[0] != '\0') || strchr(rec->name, '/'))
		return "its name";
	if (segment && !rec->unlinked && object_by_name(r->v, rec->name))
		return "its name is another's";
	if (rec->address && (rec->address < ARENA_WINDOW_BASE || rec->address >= area ||
			     rec->span > area - rec->address ||
			     !IS_ALIGNED(rec->address | rec->span, ARENA_LEAF_SIZE)))
		return "its address";
	return NULL;
}

static int recover_object(struct recovery *r, struct object_record *rec, uint32_t *cap)
{
	struct domain *d = domain_by_id(r->p, rec->domain);
	const char *wrong = d ? object_wrong(r, rec) : "its domain is not there";
	int e;

	if (wrong) {
		log_warning("recovery: segment %u (%.255s) is dropped: %s", rec->id, rec->name,
			    wrong);
		r->stats->lost_objects++;
		truth_store(&rec->kind, (uint32_t)OBJECT_FREE);
		return 0;
	}
	if (r->nr_objects == *cap) {
		uint32_t n = *cap ? *cap * 2 : 64;
		struct object **grown = mem_grow(r->objects, *cap, n, sizeof(struct object *));

		if (!grown)
			return -ENOMEM;
		r->objects = grown;
		*cap = n;
	}
	e = object_adopt(r->v, rec, d, &r->objects[r->nr_objects]);
	if (e == ARENA_E_EXISTS) {
		log_warning("recovery: file %u (%.255s) is dropped: it is another's", rec->id,
			    rec->name);
		r->stats->lost_objects++;
		truth_store(&rec->kind, (uint32_t)OBJECT_FREE);
		return 0;
	}
	if (e)
		return -ENOMEM;
	r->nr_objects++;
	if (rec->id >= r->v->state->header->next_object)
		truth_store(&r->v->state->header->next_object, rec->id + 1);
	return 0;
}

/* The parts of a table of the state that were ever written; reading the rest would have the host back
 * it. Go on with *end; false: no more. */
static bool next_records(const struct state *s, enum state_region region, uint64_t size,
			 uint64_t *first, uint64_t *end)
{
	uint64_t from = s->header->region[region].offset, start, stop;
	uint64_t limit = from + s->header->region[region].size;

	if (!os_file_data(s->fd, from + *end * size, &start, &stop) || start >= limit)
		return false;
	*first = (start - from) / size;
	*end = MIN((stop - from + size - 1) / size, (limit - from) / size);
	return true;
}

/* Two of one id: neither can be told from the other. The later one is dropped. */
static void drop_twins(struct recovery *r)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < r->nr_objects; i++) {
		struct object *o = r->objects[i];

		if (!n || r->objects[n - 1]->id != o->id) {
			r->objects[n++] = o;
			continue;
		}
		log_warning("recovery: segment %u (%.255s) is dropped: its id is another's", o->id,
			    o->record->name);
		r->stats->lost_objects++;
		truth_store(&o->record->kind, (uint32_t)OBJECT_FREE);
		object_forget(o);
	}
	r->nr_objects = n;
}

static int recover_objects(struct recovery *r)
{
	struct state *s = r->v->state;
	uint64_t i, end = 0;
	uint32_t cap = 0;
	int e = 0;

	while (!e && next_records(s, STATE_OBJECTS, sizeof(*s->objects), &i, &end))
		for (; i < end && !e; i++)
			if (s->objects[i].kind != OBJECT_FREE)
				e = recover_object(r, &s->objects[i], &cap);
	if (!e && r->nr_objects)
		qsort(r->objects, r->nr_objects, sizeof(struct object *), object_order);
	drop_twins(r);
	return e;
}

/* ---- frames --------------------------------------------------------------------------------------------- */

typedef int (*head_visitor)(struct recovery *r, pfn_t head, struct page *page);

/* Every block in use. Those of nobody's pageblocks are not looked at: there are none. */
static int for_each_head(struct recovery *r, head_visitor fn)
{
	uint64_t nr = phys_nr_frames(r->p), pfn = 0;
	int e = 0;

	while (pfn < nr && !e) {
		struct page *page;

		if (IS_ALIGNED(pfn, PAGEBLOCK_PAGES) && !pfn_domain(r->p, (pfn_t)pfn)) {
			pfn += PAGEBLOCK_PAGES;
			continue;
		}
		page = pfn_to_page(r->p, (pfn_t)pfn);
		if (page && page->refcount) {
			e = fn(r, (pfn_t)pfn, page);
			pfn += UINT64_C(1) << page_order(page);
		} else {
			pfn++;
		}
	}
	return e;
}

/* It may wait in limbo yet, and must not be found by a later recovery. */
static void disown_frame(struct page *page)
{
	truth_store(&page->mapping, 0u);
}

/*
 * A frame of an object goes back to its place, if the object still reaches so far: truncation stores the
 * size before it frees. A crash leaves no second frame for a page; damage might.
 */
static int object_frame_found(struct recovery *r, pfn_t head, struct page *page)
{
	uint64_t pages = UINT64_C(1) << page_order(page);
	struct object *o;
	struct chunk *chunk;

	if (!(page->flags & PG_OBJECT) || !page->mapping)
		return 0;
	o = recovery_object(r, page->mapping);
	if (!o || pfn_domain(r->p, head) != o->domain ||
	    (pages != 1 && (pages != ARENA_LEAF_PAGES || page->index % ARENA_LEAF_PAGES ||
			    o->kind == OBJECT_FILE))) {
		r->stats->stray_frames++;
		disown_frame(page);
		return 0;
	}
	if (page->index >= ALIGN_UP(o->size, ARENA_PAGE_SIZE) >> ARENA_PAGE_SHIFT) {
		disown_frame(page);
		return 0;
	}
	if (object_frame(o, page->index, &chunk) != PFN_NONE || (chunk && pages != 1)) {
		r->stats->stray_frames++;
		disown_frame(page);
		return 0;
	}
	if (o->kind == OBJECT_FILE && page->flags & (PG_WRITEBACK | PG_REDIRTY))
		truth_store(&page->flags, page->flags & ~(PG_WRITEBACK | PG_REDIRTY));
	if (object_add_frame(o, page->index, head, pages != 1))
		return -ENOMEM;
	if (o->kind == OBJECT_FILE && page->flags & PG_DIRTY)
		file_count_dirty(o, page);
	if (!phys_recover_ref(r->p, head, false))
		r->stats->stray_frames++;
	return 0;
}

/* ---- address spaces ------------------------------------------------------------------------------------- */

/* What the store keeps of it stays until it is destroyed; `own`: under its id. */
static void condemn(struct recovery *r, struct mm *mm, bool own)
{
	struct domain *d = domain_by_id(r->p, mm->record->domain);

	if (d && domain_kind(d) != DOMAIN_SEGMENT)
		mm->domain = domain_get(d);
	mm->condemned = true;
	mm->kept = own;
	if (own) {
		/* Not taken by anybody, they would count as left over. */
		mm->file = store_take_number("mm", mm->id);
		mm->channel_file = store_take_number("channel", mm->id);
	}
	LIST_INSERT_HEAD(&r->v->condemned, mm, link);
	r->stats->lost_clients++;
}

static bool id_is_taken(const struct virt *v, uint32_t id)
{
	const struct mm *mm;

	LIST_FOREACH(mm, &v->mms, link)
		if (mm->id == id)
			return true;
	return false;
}

static int recover_mm(struct recovery *r, struct mm_record *rec)
{
	struct mm *mm = mem_alloc(sizeof(*mm));
	bool own;
	int e;

	if (!mm)
		return -ENOMEM;
	mm_init(mm, r->v, rec->id);
	mm->record = rec;
	own = rec->id && rec->checksum == mm_checksum(rec, rec->state) &&
	      !id_is_taken(r->v, rec->id);
	e = own ? mm_recover(r, mm) : mm_damaged(mm, "its record");
	if (e == ARENA_E_INVALID) {
		condemn(r, mm, own);
		return 0;
	}
	if (e) {
		free(mm);
		return e;
	}
	if (mm->id >= r->v->state->header->next_mm)
		truth_store(&r->v->state->header->next_mm, mm->id + 1);
	/* Whose it was about to become had not been told. */
	if (rec->state == MM_FORKED) {
		truth_store(&rec->pid, 0u);
		truth_store(&rec->peer, 0u);
	}
	mm->kept = true;
	LIST_INSERT_HEAD(&r->v->mms, mm, link);
	r->v->nr_mms++;
	return 0;
}

static int recover_mms(struct recovery *r)
{
	struct state *s = r->v->state;
	uint64_t i, end = 0;
	int e = 0;

	while (!e && next_records(s, STATE_MMS, sizeof(*s->mms), &i, &end))
		for (; i < end && !e; i++)
			if (s->mms[i].state)
				e = recover_mm(r, &s->mms[i]);
	return e;
}

/* ---- limbo ------------------------------------------------------------------------------------------------ */

static int holder_order(const void *a, const void *b)
{
	const struct holder *x = a, *y = b;

	if (x->domain != y->domain)
		return (uintptr_t)x->domain < (uintptr_t)y->domain ? -1 : 1;
	return x->mm->id < y->mm->id ? -1 : x->mm->id > y->mm->id;
}

static int list_holders(struct recovery *r)
{
	struct mm *mm;
	uint32_t n = 0, i, kept = 0;

	LIST_FOREACH(mm, &r->v->mms, link)
		n += mm->nr_slots;
	if (!n)
		return 0;
	r->holders = mem_array(n, sizeof(*r->holders));
	if (!r->holders)
		return -ENOMEM;
	n = 0;
	LIST_FOREACH(mm, &r->v->mms, link)
		for (i = 0; i < mm->nr_slots; i++)
			if (mm->slots[i].domain)
				r->holders[n++] = (struct holder){mm->slots[i].domain, mm};
	qsort(r->holders, n, sizeof(*r->holders), holder_order);
	/* The same domain in two slots, one of them read-only. */
	for (i = 0; i < n; i++)
		if (!kept || holder_order(&r->holders[kept - 1], &r->holders[i]))
			r->holders[kept++] = r->holders[i];
	r->nr_holders = kept;
	return 0;
}

/* What a condemned client can have mapped: its own, and what it may have opened; which segments that
 * were is not known. */
static bool condemned_reaches(const struct mm *mm, const struct page *page, const struct domain *d)
{
	if ((page->flags & PG_ANON && page->mapping == mm->anon_family) ||
	    (page->flags & (PG_ANON | PG_KERNEL) && page->mapping == mm->id))
		return true;
	return page->flags & (PG_OBJECT | PG_LIMBO) &&
	       (d == mm->domain || domain_kind(d) == DOMAIN_SEGMENT);
}

static uint32_t first_holder(const struct recovery *r, const struct domain *d)
{
	uint32_t lo = 0, hi = r->nr_holders;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if ((uintptr_t)r->holders[mid].domain < (uintptr_t)d)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static int give_limbo(struct mm *mm, pfn_t head, const struct page *page)
{
	int e = limbo_reserve(mm, 1);

	if (!e)
		limbo_add(mm, LIMBO_FRAME, head, 1u << page_order(page));
	return e;
}

/*
 * Whether a frame is in limbo. One that nothing refers to was claimed for an entry that was never stored,
 * and nobody has it mapped; but it can also be what damage took the entry from, so it is not believed.
 * Condemned clients also get what is in use.
 */
static bool waits_for_flush(struct recovery *r, pfn_t head, const struct page *page)
{
	const struct domain *d = pfn_domain(r->p, head);
	const struct mm *mm;

	if (page->flags & PG_LIMBO || !phys_recover_referenced(r->p, head))
		return true;
	LIST_FOREACH(mm, &r->v->condemned, link)
		if (condemned_reaches(mm, page, d))
			return true;
	return false;
}

/* Everybody who may have it mapped gets a frame in limbo, whether something else refers to it or not. */
static int limbo_found(struct recovery *r, pfn_t head, struct page *page)
{
	const struct domain *d = pfn_domain(r->p, head);
	struct mm *mm;
	uint32_t i;
	int e = 0;

	if (!waits_for_flush(r, head, page))
		return 0;
	if (!(page->flags & PG_LIMBO))
		truth_store(&page->flags, page->flags | PG_LIMBO);
	for (i = first_holder(r, d); !e && i < r->nr_holders && r->holders[i].domain == d; i++)
		e = give_limbo(r->holders[i].mm, head, page);
	LIST_FOREACH(mm, &r->v->condemned, link)
		if (!e && condemned_reaches(mm, page, d))
			e = give_limbo(mm, head, page);
	return e;
}

/* As many as limbo_found() gave the frame to. */
static unsigned count_limbo(void *ctx, pfn_t head, struct domain *d)
{
	const struct recovery *r = ctx;
	const struct page *page = pfn_to_page(r->p, head);
	unsigned n = 0;
	const struct mm *mm;
	uint32_t i;

	for (i = first_holder(r, d); i < r->nr_holders && r->holders[i].domain == d; i++)
		n++;
	LIST_FOREACH(mm, &r->v->condemned, link)
		n += condemned_reaches(mm, page, d);
	return n;
}

/* ---- after phys is alive again ------------------------------------------------------------------------------ */

static void clean_mm(struct recovery *r, struct mm *mm)
{
	struct vma *v;
	uint64_t pages = ARENA_PAGE_SIZE << MAX(mm->partial_order, 1u) >> 1;
	bool any;

	/* Whatever was taken from an entry before the flush that tells could be posted. */
	flush_post(mm, ARENA_FLUSH_ALL, mm->header->window_base,
		   mm->header->window_base + mm->header->window_size);
	mm->recovered = mm->posted;
	mm->wp_seq = mm->push_seq = mm->posted;
	if (mm->partial_order) {
		if (zap_range(mm, mm->partial, mm->partial + pages, &any))
			log_warning("recovery: no memory to free a block of mm %u", mm->id);
		if (any)
			flush_post(mm, ARENA_FLUSH_UNMAP, mm->partial, mm->partial + pages);
		mm->partial_order = 0;
		r->stats->repaired++;
	}
	snapshot_clean(mm, r->stats);
	file_bits_tell(mm);
	for (v = RB_MIN(vma_tree, &mm->vmas); v; v = vma_next(v))
		v = vma_merge(v);
	mm_recover_mlock(mm);
	mm_recover_pin_counts(mm);
	for (uint32_t i = 1; i < mm->nr_slots; i++)
		if (mm->slots[i].domain && !mm->slots[i].users)
			slot_linger(mm, i);
	if (!mm->process_domain)
		domain_keep(r->v, mm->domain);
	mm_flush_want(mm, true);
}

static void clean_up(struct recovery *r)
{
	struct virt_recover_stats *stats = r->stats;
	const struct object *o;
	struct mm *mm;

	LIST_FOREACH(mm, &r->v->mms, link) {
		clean_mm(r, mm);
		stats->clients++;
		stats->vmas += mm->nr_vmas;
	}
	/* Made and not used yet, or used for the last time. */
	for (uint32_t i = 0; i < r->nr_objects; i++)
		if (r->objects[i]->file && r->objects[i]->record->writer)
			file_hold_recover(r->objects[i]);
	for (uint32_t i = 0; i < r->nr_objects; i++)
		object_release(r->objects[i]);
	domain_end_unused(r->p);
	LIST_FOREACH(o, &r->v->objects, link)
		stats->objects++;
	stats->limbo_pages = r->v->limbo_pages;
}

/* ---- all of it ------------------------------------------------------------------------------------------------ */

static int recover_all(struct recovery *r)
{
	const struct phys_recover_ops ops = {.limbo = count_limbo};
	int e = recover_objects(r);

	if (!e)
		e = for_each_head(r, object_frame_found);
	if (!e)
		e = recover_mms(r);
	if (!e)
		e = list_holders(r);
	if (!e)
		e = for_each_head(r, limbo_found);
	if (!e)
		e = phys_recover_finish(r->p, &ops, r, &r->stats->phys);
	r->v->frozen.recovering = false;
	if (!e)
		clean_up(r);
	return e;
}

static void virt_forget(struct virt *v)
{
	struct mm *mm;

	while ((mm = LIST_FIRST(&v->mms)) || (mm = LIST_FIRST(&v->condemned))) {
		LIST_REMOVE(mm, link);
		mm_forget(mm);
		free(mm);
	}
	while (!LIST_EMPTY(&v->objects))
		object_forget(LIST_FIRST(&v->objects));
	zero_exit(v, false);
	phys_set_pressure_ops(v->phys, NULL, NULL);
	free(v);
}

int virt_recover(struct phys *p, struct virt **out, struct virt_recover_stats *stats)
{
	struct recovery r = {.p = p, .stats = stats};
	int e;

	CONTROL_THREAD();
	*stats = (struct virt_recover_stats){0};
	e = virt_create(p, &r.v);
	if (e)
		return e;
	zero_recover(r.v);
	r.v->frozen.recovering = true;
	e = recover_all(&r);
	free(r.objects);
	free(r.holders);
	if (e) {
		virt_forget(r.v);
		return e;
	}
	log_notice("recovery: %u clients and %u segments taken over, %u and %u dropped; %llu "
		   "entries, %llu half-done steps settled, %llu pages freed, %llu wait for flushes",
		   stats->clients, stats->objects, stats->lost_clients, stats->lost_objects,
		   (unsigned long long)stats->entries, (unsigned long long)stats->repaired,
		   (unsigned long long)stats->phys.freed_pages,
		   (unsigned long long)stats->limbo_pages);
	ASSERT_VALID(virt_is_valid(r.v));
	*out = r.v;
	return 0;
}
