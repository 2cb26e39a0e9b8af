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
	if (mm->nr_handles >= MM_MAX_HANDLES)
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
	if (!r)
		(*out)->readonly_slots = own;
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

int mm_open_segment(struct mm *mm, const struct credentials *cred, struct segment_open *open)
{
	bool write = (open->oflag & O_ACCMODE) == O_RDWR;
	struct object *o = object_by_name(mm->virt, open->name);
	bool created = !o;
	struct handle *h;
	int r;

	CONTROL_THREAD();
	if (!write && (open->oflag & O_ACCMODE) != O_RDONLY)
		return ARENA_E_INVALID;
	if (o && (open->oflag & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
		return ARENA_E_EXISTS;
	if (!o && !(open->oflag & O_CREAT))
		return ARENA_E_NOT_FOUND;
	if (o && !permitted(o->record, cred, write || (open->oflag & O_TRUNC) ? 6 : 4))
		return ARENA_E_ACCESS;
	r = handle_alloc(mm, &open->handle);
	if (!r && !o)
		r = segment_create(mm, cred, open, &o);
	else if (!r && (open->oflag & O_TRUNC))
		r = object_resize(o, 0, mm, NULL);
	if (r)
		return r;
	r = slot_get(mm, o->domain, !write && o->readonly_slots, &open->slot, &open->slot_new);
	if (r) {
		if (created)
			segment_remove_name(o);
		return r;
	}
	o->nr_handles++;
	slot_use(mm, open->slot);
	h = &mm->handles[open->handle - 1];
	*h = (struct handle){.object = o, .slot = open->slot, .writable = write};
	open->slot_fd = open->slot_new ? domain_fd(o->domain) : -1;
	open->slot_readonly = mm->slots[open->slot].readonly;
	open->size = o->size;
	return 0;
}

int mm_close_segment(struct mm *mm, uint32_t handle)
{
	struct handle *h = mm_handle(mm, handle);
	struct object *o;

	CONTROL_THREAD();
	if (!h)
		return ARENA_E_INVALID;
	o = h->object;
	h->object = NULL;
	slot_unuse(mm, h->slot);
	o->nr_handles--;
	object_release(o);
	return 0;
}

void mm_close_handles(struct mm *mm)
{
	uint32_t i;

	for (i = 1; i <= mm->nr_handles; i++)
		mm_close_segment(mm, i);
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

	CONTROL_THREAD();
	if (!o)
		return ARENA_E_NOT_FOUND;
	if (cred->uid != 0 && cred->uid != o->record->uid)
		return ARENA_E_ACCESS;
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
