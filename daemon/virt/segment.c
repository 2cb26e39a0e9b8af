/* SPDX-License-Identifier: MIT */
/*
 * segment.c - named shared segments: names, permissions, handles, common addresses.
 *
 * A segment that only its owner may open lives in the owner's domain. One that others may open is a
 * domain of its own, so that opening it hands out that one file, read-only to who opened it
 * read-only. A handle is a client's open segment; it dies with the client.
 *
 * Common addresses: first fit in one area that lies at the same place of every window. A segment
 * gets its address at the first mapping, with room to grow, and keeps it.
 */
#include <fcntl.h>

#include "daemon/virt/internal.h"
#include "daemon/virt/resume.h"

#define SEGMENT_SPAN_MIN (UINT64_C(1) << 30)

static bool in_group(const struct credentials *cred, gid_t gid)
{
	unsigned i;

	if (cred->gid == gid)
		return true;
	for (i = 0; i < cred->nr_groups; i++)
		if (cred->groups[i] == gid)
			return true;
	return false;
}

/* As open(2) checks a file's mode. want: 4 read, 6 read and write. */
static bool permitted(const struct object_record *r, const struct credentials *cred, unsigned want)
{
	unsigned bits;

	if (cred->uid == 0)
		return true;
	if (cred->uid == r->uid)
		bits = r->mode >> 6;
	else if (in_group(cred, r->gid))
		bits = r->mode >> 3;
	else
		bits = r->mode;
	return (bits & want) == want;
}

struct handle *mm_handle(const struct mm *mm, uint32_t handle)
{
	if (!handle || handle > mm->nr_handles || !mm->handles[handle - 1].object)
		return NULL;
	return &mm->handles[handle - 1];
}

static int handle_alloc(struct mm *mm, uint32_t *out)
{
	uint32_t i, n;
	struct handle *grown;

	for (i = 0; i < mm->nr_handles; i++) {
		if (!mm->handles[i].object) {
			*out = i + 1;
			return 0;
		}
	}
	if (mm->nr_handles >= ARENA_MM_MAX_HANDLES)
		return ARENA_E_TOO_MANY;
	n = mm->nr_handles ? mm->nr_handles * 2 : 4;
	grown = mem_grow(mm->handles, mm->nr_handles, n, sizeof(*grown));
	if (!grown)
		return ARENA_E_NO_MEMORY;
	*out = mm->nr_handles + 1;
	mm->handles = grown;
	mm->nr_handles = n;
	return 0;
}

/* Truth: the object is stored last, and cleared first. */
static void handle_set(struct mm *mm, uint32_t handle, struct object *o, uint32_t slot,
		       bool writable)
{
	struct arena_handle_record *r = &mm->handle_records[handle - 1];

	o->nr_handles++;
	slot_use(mm, slot);
	mm->handles[handle - 1] = (struct handle){.object = o, .slot = slot, .writable = writable};
	truth_store(&r->slot, slot);
	truth_store(&r->writable, (uint32_t)writable);
	truth_store(&r->object, o->id);
}

int handle_copy_all(struct mm *to, const struct mm *from)
{
	uint32_t i;

	if (!from->nr_handles)
		return 0;
	to->handles = mem_array(from->nr_handles, sizeof(*to->handles));
	if (!to->handles)
		return ARENA_E_NO_MEMORY;
	to->nr_handles = from->nr_handles;
	for (i = 0; i < from->nr_handles; i++) {
		const struct handle *h = &from->handles[i];

		if (h->object)
			handle_set(to, i + 1, h->object, h->slot, h->writable);
	}
	return 0;
}

static void handle_clear(struct mm *mm, uint32_t handle)
{
	struct handle *h = &mm->handles[handle - 1];
	struct object *o = h->object;

	truth_store(&mm->handle_records[handle - 1].object, 0u);
	h->object = NULL;
	slot_unuse(mm, h->slot);
	o->nr_handles--;
	object_release(o);
}

static int segment_create(struct mm *mm, const struct credentials *cred,
			  const struct segment_open *open, struct object **out)
{
	struct virt *v = mm->virt;
	bool others = open->mode & 0077, own = others || mm->process_domain;
	struct domain *d = mm->domain;
	int r;

	if (own) {
		r = domain_create(v->phys, DOMAIN_SEGMENT, v->state->header->next_object, &d);
		if (r)
			return r;
	}
	r = object_create(v, OBJECT_SEGMENT, d, open->name, cred, open->mode & 0777, out);
	if (own)
		domain_put(d);
	return r;
}

/* The name goes at once, the rest with its last user. */
static void segment_remove_name(struct object *o)
{
	HASH_DELETE(by_name, o->virt->names, o);
	truth_store(&o->record->unlinked, 1u);
	object_release(o);
}

static int open_check(const struct object *o, const struct credentials *cred,
		      const struct segment_open *open)
{
	bool write = (open->oflag & O_ACCMODE) == O_RDWR;

	if (!write && (open->oflag & O_ACCMODE) != O_RDONLY)
		return ARENA_E_INVALID;
	if (o && (open->oflag & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
		return ARENA_E_EXISTS;
	if (!o && !(open->oflag & O_CREAT))
		return ARENA_E_NOT_FOUND;
	if (o && !permitted(o->record, cred, write || (open->oflag & O_TRUNC) ? 6 : 4))
		return ARENA_E_ACCESS;
	return 0;
}

static int open_answer(const struct mm *mm, struct segment_open *open)
{
	const struct handle *h = &mm->handles[open->handle - 1];

	open->slot = h->slot;
	open->slot_fd = open->slot_new ? domain_fd(h->object->domain) : -1;
	open->slot_readonly = mm->slots[h->slot].readonly;
	open->size = h->object->size;
	return 0;
}

/*
 * What a worker before us did of this call. True: all of it, *open is the answer; the slot's
 * descriptor may not have been delivered. Else *made is the segment that it made for the caller.
 */
static bool open_resume(struct mm *mm, const struct credentials *cred, struct segment_open *open,
			struct object **made)
{
	uint64_t arg[JOURNAL_ARGS];
	const struct handle *h;
	struct object *o;

	*made = NULL;
	if (!call_resume(mm->virt, VIRT_CALL_OPEN, mm->id, arg))
		return false;
	h = mm_handle(mm, (uint32_t)arg[1]);
	if (h && h->object->id == arg[2]) {
		open->handle = (uint32_t)arg[1];
		open->slot_new = h->slot != 0;
		open_answer(mm, open);
		return true;
	}
	o = arg[3] ? object_by_name(mm->virt, open->name) : NULL;
	if (o && o->id == arg[2] && o->record->uid == cred->uid)
		*made = o;
	return false;
}

int mm_open_segment(struct mm *mm, const struct credentials *cred, struct segment_open *open)
{
	bool write = (open->oflag & O_ACCMODE) == O_RDWR, created;
	struct object *o;
	int r;

	CONTROL_THREAD();
	if (open_resume(mm, cred, open, &o))
		return 0;
	created = o;
	if (!o) {
		o = object_by_name(mm->virt, open->name);
		r = open_check(o, cred, open);
		if (r)
			return r;
	}
	r = handle_alloc(mm, &open->handle);
	if (r)
		return r;
	call_prepare(mm->virt, VIRT_CALL_OPEN, mm->id, open->handle,
		     o ? o->id : mm->virt->state->header->next_object, created || !o, 0);
	if (!o) {
		created = true;
		r = segment_create(mm, cred, open, &o);
	} else if (!created && (open->oflag & O_TRUNC)) {
		r = object_resize(o, 0, mm, NULL);
	}
	if (r)
		return r;
	r = slot_get(mm, o->domain, !write && o->readonly_slots, &open->slot, &open->slot_new);
	if (r) {
		if (created)
			segment_remove_name(o);
		return r;
	}
	handle_set(mm, open->handle, o, open->slot, write);
	return open_answer(mm, open);
}

int mm_close_segment(struct mm *mm, uint32_t handle)
{
	struct handle *h = mm_handle(mm, handle);
	uint64_t arg[JOURNAL_ARGS];

	CONTROL_THREAD();
	if (call_resume(mm->virt, VIRT_CALL_CLOSE, mm->id, arg) && arg[1] == handle && !h)
		return 0;
	if (!h)
		return ARENA_E_INVALID;
	call_prepare(mm->virt, VIRT_CALL_CLOSE, mm->id, handle, h->object->id, 0, 0);
	handle_clear(mm, handle);
	return 0;
}

void mm_close_handles(struct mm *mm)
{
	uint32_t i;

	for (i = 1; i <= mm->nr_handles; i++)
		if (mm->handles[i - 1].object)
			handle_clear(mm, i);
	free(mm->handles);
}

int mm_truncate_segment(struct mm *mm, uint32_t handle, int64_t size, struct flush_wait *wait)
{
	struct handle *h = mm_handle(mm, handle);

	CONTROL_THREAD();
	if (!h || size < 0 || !h->writable)
		return ARENA_E_INVALID;
	if ((uint64_t)size > ARENA_WINDOW_SIZE_DEFAULT / 4)
		return ARENA_E_TOO_BIG;
	return object_resize(h->object, (uint64_t)size, mm, wait);
}

int mm_stat_segment(struct mm *mm, uint32_t handle, int64_t *size)
{
	struct handle *h = mm_handle(mm, handle);

	if (!h)
		return ARENA_E_INVALID;
	*size = (int64_t)h->object->size;
	return 0;
}

int segment_unlink(struct virt *v, const struct credentials *cred, const char *name)
{
	struct object *o = object_by_name(v, name);
	uint64_t arg[JOURNAL_ARGS];

	CONTROL_THREAD();
	/* The name is gone: a worker before us did that. */
	if (call_resume(v, VIRT_CALL_UNLINK, 0, arg) && !o && arg[2] == cred->uid)
		return 0;
	if (!o)
		return ARENA_E_NOT_FOUND;
	if (cred->uid != 0 && cred->uid != o->record->uid)
		return ARENA_E_ACCESS;
	call_prepare(v, VIRT_CALL_UNLINK, 0, o->id, cred->uid, 0, 0);
	segment_remove_name(o);
	return 0;
}

/* ---- common addresses ------------------------------------------------------------------------------- */

/* The lowest free span of the common area at or above the canonical base, or 0. */
static uint64_t span_find(struct virt *v, uint64_t span)
{
	uint64_t base = ARENA_WINDOW_BASE, limit = base + ARENA_WINDOW_SIZE_DEFAULT_HERE / 4;
	struct object *o;
	bool moved = true;

	while (moved) {
		moved = false;
		LIST_FOREACH(o, &v->objects, link) {
			const struct object_record *r = o->record;

			if (r->address && base < r->address + r->span && r->address < base + span) {
				base = r->address + r->span;
				moved = true;
			}
		}
		if (base + span > limit)
			return 0;
	}
	return base;
}

void object_place(struct object *o, uint64_t len)
{
	uint64_t need = ALIGN_UP(MAX(len, o->size), ARENA_LEAF_SIZE), span, at;

	if (o->record->address)
		return;
	span = MAX(need, SEGMENT_SPAN_MIN);
	at = span_find(o->virt, MIN(span * 4, ARENA_WINDOW_SIZE_DEFAULT / 64));
	if (at && span * 4 <= ARENA_WINDOW_SIZE_DEFAULT / 64)
		span *= 4;
	else
		at = span_find(o->virt, span);
	if (!at) {
		span = need;
		at = span_find(o->virt, span);
	}
	if (!at)
		return;
	truth_store(&o->record->span, span);
	truth_store(&o->record->address, at);
}

/* ---- listing ------------------------------------------------------------------------------------------- */

bool segment_next(struct virt *v, uint32_t from, struct segment_info *out)
{
	struct object *o, *best = NULL;

	LIST_FOREACH(o, &v->objects, link) {
		if (o->kind == OBJECT_SEGMENT && o->id > from && (!best || o->id < best->id))
			best = o;
	}
	if (!best)
		return false;
	*out = (struct segment_info){
		.name = best->record->name,
		.id = best->id,
		.uid = best->record->uid,
		.gid = best->record->gid,
		.mode = best->record->mode,
		.domain = domain_id(best->domain),
		.size = best->size,
		.address = best->record->address,
		.pages = best->nr_pages,
		.nr_handles = best->nr_handles,
		.nr_vmas = best->nr_vmas,
		.unlinked = best->record->unlinked,
	};
	return true;
}
