/* SPDX-License-Identifier: MIT */
/*
 * object.c - segments and shared anonymous memory: named or unnamed sequences of pages.
 *
 * Truth: the object's record (its kind is stored last and cleared first), and in mem_map the frames
 * that say PG_OBJECT, this id, and their page of the object; id 0 in a frame that the object has let
 * go and that waits in limbo. Index: a hash of 2 MiB chunks, each
 * one leaf or 512 single frames. The object holds one reference of every frame of its own; entries
 * hold more.
 *
 * The object of a file (file.c) has single frames only, which are what was read of it.
 *
 * An object ends when it has no handle, no VMA, and either no name or its name was unlinked.
 *
 * A leaf is mapped as such only where it lies wholly inside the size. Truncation into the
 * middle of a leaf keeps the frame and zeroes what is past the end, again when it grows back.
 */
#include "daemon/virt/file.h"
#include "daemon/virt/frozen.h"

#define CHUNK_PAGES ARENA_LEAF_PAGES

static struct node *frame_node(struct object *o, pfn_t pfn)
{
	struct phys *p = o->virt->phys;

	return phys_node(p, pfn_zone(p, pfn)->node);
}

/* ---- records -------------------------------------------------------------------------------------- */

static struct object_record *record_find(struct virt *v)
{
	uint32_t i;

	for (i = 0; i < STATE_MAX_OBJECTS; i++) {
		uint32_t n = (v->object_cursor + i) % STATE_MAX_OBJECTS;

		if (v->state->objects[n].kind == OBJECT_FREE) {
			v->object_cursor = n + 1;
			return &v->state->objects[n];
		}
	}
	return NULL;
}

uint32_t object_checksum(const struct object_record *r)
{
	uint32_t sum = checksum_add(0, &r->id, sizeof(r->id));
	char name[sizeof(r->name)];

	sum = checksum_add(sum, &r->domain, sizeof(r->domain));
	sum = checksum_add(sum, &r->uid, sizeof(r->uid));
	sum = checksum_add(sum, &r->gid, sizeof(r->gid));
	sum = checksum_add(sum, &r->mode, sizeof(r->mode));
	if (r->mode & OBJECT_IS_FILE) {
		sum = checksum_add(sum, &r->dev, sizeof(r->dev));
		sum = checksum_add(sum, &r->ino, sizeof(r->ino));
	}
	memcpy(name, r->name, sizeof(name));
	/* A file's writer comes and goes. */
	if (r->mode & OBJECT_IS_FILE)
		memset(name + offsetof(struct object_record, writer) -
			       offsetof(struct object_record, name),
		       0, sizeof(r->writer));
	return checksum_add(sum, name, sizeof(name));
}

/* What the record of a new object says; of a file: its size, device and inode. */
struct object_facts {
	const char *name;
	const struct credentials *cred;
	uint32_t mode;
	uint64_t size, dev, ino;
};

static int record_write(struct virt *v, struct object *o, const struct object_facts *facts)
{
	struct object_record r = {.kind = OBJECT_FREE, .size = facts->size};
	const char *name = facts->name;

	o->record = record_find(v);
	if (!o->record)
		return ARENA_E_TOO_MANY;
	o->id = v->state->header->next_object;
	truth_store(&v->state->header->next_object, o->id + 1);
	r.id = o->id;
	r.domain = domain_id(o->domain);
	r.uid = facts->cred->uid;
	r.gid = facts->cred->gid;
	r.mode = facts->mode;
	r.dev = facts->dev;
	r.ino = facts->ino;
	o->size = facts->size;
	if (name)
		memcpy(r.name, name, strlen(name) + 1);
	r.checksum = object_checksum(&r);
	truth_fill(o->record, &r, sizeof(r));
	truth_store(&o->record->kind, (uint32_t)o->kind);
	return 0;
}

static int create(struct virt *v, enum object_kind kind, struct domain *d,
		  const struct object_facts *facts, struct object **out)
{
	struct object *o = mem_alloc(sizeof(*o));
	int r;

	if (!o)
		return ARENA_E_NO_MEMORY;
	o->virt = v;
	o->kind = kind;
	o->domain = d;
	o->readonly_slots = domain_kind(d) == DOMAIN_SEGMENT;
	LIST_INIT(&o->vmas);
	LIST_INIT(&o->snapshots);
	r = record_write(v, o, facts);
	if (r) {
		free(o);
		return r;
	}
	if (kind == OBJECT_SEGMENT) {
		HASH_ADD_KEYPTR(by_name, v->names, o->record->name, strlen(o->record->name), o);
		if (o->hash_failed) {
			truth_store(&o->record->kind, (uint32_t)OBJECT_FREE);
			free(o);
			return ARENA_E_NO_MEMORY;
		}
	}
	if (kind == OBJECT_FILE) {
		r = file_adopt(v, o);
		if (r) {
			truth_store(&o->record->kind, (uint32_t)OBJECT_FREE);
			free(o);
			return r;
		}
	}
	LIST_INSERT_HEAD(&v->objects, o, link);
	domain_get(d);
	*out = o;
	return 0;
}

int object_create(struct virt *v, enum object_kind kind, struct domain *d, const char *name,
		  const struct credentials *cred, uint32_t mode, struct object **out)
{
	const struct object_facts facts = {.name = name, .cred = cred, .mode = mode};

	return create(v, kind, d, &facts, out);
}

int object_create_file(struct virt *v, struct domain *d, const char *path, const uint64_t key[3],
		       uint64_t size, const struct credentials *cred, struct object **out)
{
	const struct object_facts facts = {
		.name = path,
		.cred = cred,
		.mode = 0600 | OBJECT_IS_FILE,
		.size = size,
		.dev = key[1],
		.ino = key[2],
	};

	return create(v, OBJECT_FILE, d, &facts, out);
}

struct object *object_by_name(struct virt *v, const char *name)
{
	struct object *o;

	HASH_FIND(by_name, v->names, name, strlen(name), o);
	return o;
}

/* ---- chunks ------------------------------------------------------------------------------------------ */

static struct chunk *chunk_find(struct object *o, uint64_t index)
{
	struct chunk *c = o->last;

	if (c && c->index == index)
		return c;
	HASH_FIND(hh, o->chunks, &index, sizeof(index), c);
	if (c)
		o->last = c;
	return c;
}

static struct chunk *chunk_make(struct object *o, uint64_t index, bool pages)
{
	struct chunk *c = mem_alloc(sizeof(*c));

	if (!c)
		return NULL;
	c->index = index;
	c->leaf = PFN_NONE;
	if (pages) {
		c->pages = mem_array(CHUNK_PAGES, sizeof(*c->pages));
		if (c->pages)
			memset(c->pages, 0xff, CHUNK_PAGES * sizeof(*c->pages));
	}
	if (!pages || c->pages)
		HASH_ADD(hh, o->chunks, index, sizeof(c->index), c);
	if ((pages && !c->pages) || c->hash_failed) {
		free(c->pages);
		free(c);
		return NULL;
	}
	return c;
}

static void chunk_free(struct object *o, struct chunk *c)
{
	HASH_DELETE(hh, o->chunks, c);
	if (o->last == c)
		o->last = NULL;
	free(c->pages);
	free(c);
}

pfn_t object_frame(struct object *o, uint64_t pgoff, struct chunk **chunk)
{
	struct chunk *c = chunk_find(o, pgoff / CHUNK_PAGES);

	*chunk = c;
	if (!c)
		return PFN_NONE;
	if (c->leaf != PFN_NONE)
		return c->leaf + (pfn_t)(pgoff % CHUNK_PAGES);
	return c->pages[pgoff % CHUNK_PAGES];
}

int object_add_frame(struct object *o, uint64_t pgoff, pfn_t pfn, bool leaf)
{
	struct chunk *c = chunk_find(o, pgoff / CHUNK_PAGES);
	int64_t n = leaf ? CHUNK_PAGES : 1;

	if (!c)
		c = chunk_make(o, pgoff / CHUNK_PAGES, !leaf);
	if (!c)
		return ARENA_E_NO_MEMORY;
	if (leaf) {
		ASSERT(!c->pages);
		c->leaf = pfn;
		phys_node_stat_add(frame_node(o, pfn), NR_SHMEM_THPS, 1);
	} else {
		c->pages[pgoff % CHUNK_PAGES] = pfn;
		c->nr++;
	}
	o->nr_pages += (uint64_t)n;
	if (o->kind != OBJECT_FILE)
		phys_node_stat_add(frame_node(o, pfn), NR_SHMEM, n);
	phys_node_stat_add(frame_node(o, pfn), NR_FILE_PAGES, n);
	return 0;
}

/* The object lets a frame go; entries in limbo may keep it for a while. Recovery must not take it for
 * the object's then, which may have grown again. */
static void drop_frame(struct object *o, pfn_t pfn, int64_t n)
{
	struct page *page = pfn_to_page(o->virt->phys, pfn);
	struct node *node = frame_node(o, pfn);

	if (page->refcount > 1)
		truth_store(&page->mapping, 0u);
	if (o->kind == OBJECT_FILE)
		file_undirty(o, page);
	else
		phys_node_stat_add(node, NR_SHMEM, -n);
	phys_node_stat_add(node, NR_FILE_PAGES, -n);
	if (n > 1)
		phys_node_stat_add(node, NR_SHMEM_THPS, -1);
	o->nr_pages -= (uint64_t)n;
	put_page(o->virt->phys, pfn);
}

/* Zero what a kept leaf, or a last page, holds from a byte of the object on. */
static void zero_tail(struct object *o, const struct chunk *c, uint64_t from_byte)
{
	uint64_t whole = c->leaf != PFN_NONE ? ARENA_LEAF_SIZE : ARENA_PAGE_SIZE;
	uint64_t start = from_byte % whole;
	pfn_t pfn = c->leaf != PFN_NONE ? c->leaf
					: c->pages[from_byte % ARENA_LEAF_SIZE >> ARENA_PAGE_SHIFT];

	if (start && pfn != PFN_NONE)
		memset((uint8_t *)domain_address(o->domain, pfn) + start, 0, whole - start);
}

/* The single frames of pages [from, to) of a chunk; with the last of them the chunk goes, too. */
static void chunk_drop(struct object *o, struct chunk *c, unsigned from, unsigned to)
{
	unsigned i;

	for (i = from; i < to; i++) {
		if (c->pages[i] == PFN_NONE)
			continue;
		drop_frame(o, c->pages[i], 1);
		c->pages[i] = PFN_NONE;
		c->nr--;
	}
	if (!c->nr)
		chunk_free(o, c);
}

/* Drop the frames of a chunk from byte `from` of the object on. */
static void chunk_truncate(struct object *o, struct chunk *c, uint64_t from)
{
	uint64_t base = c->index * ARENA_LEAF_SIZE, keep = from > base ? from - base : 0;
	unsigned first = (unsigned)((keep + ARENA_PAGE_SIZE - 1) >> ARENA_PAGE_SHIFT);

	if (keep)
		zero_tail(o, c, from);
	if (c->leaf != PFN_NONE) {
		if (keep)
			return;
		drop_frame(o, c->leaf, CHUNK_PAGES);
		chunk_free(o, c);
		return;
	}
	chunk_drop(o, c, first, CHUNK_PAGES);
}

void object_drop_page(struct object *o, uint64_t pgoff)
{
	unsigned i = pgoff % CHUNK_PAGES;

	chunk_drop(o, chunk_find(o, pgoff / CHUNK_PAGES), i, i + 1);
}

static void drop_frames_from(struct object *o, uint64_t from)
{
	struct chunk *c, *next;

	HASH_ITER(hh, o->chunks, c, next) {
		if ((c->index + 1) * ARENA_LEAF_SIZE > from)
			chunk_truncate(o, c, from);
	}
}

bool object_leaf_fits(const struct object *o, uint64_t chunk_index)
{
	return (chunk_index + 1) * ARENA_LEAF_SIZE <= ALIGN_UP(o->size, ARENA_PAGE_SIZE);
}

void object_account(struct object *o)
{
	if (o->kind != OBJECT_ANON || (o->record->mode & OBJECT_NORESERVE))
		return;
	o->accounted = ALIGN_UP(o->size, ARENA_PAGE_SIZE) >> ARENA_PAGE_SHIFT;
	o->virt->committed += o->accounted;
}

/* ---- end and size -------------------------------------------------------------------------------------- */

void object_release(struct object *o)
{
	if (o->nr_handles || o->nr_vmas || (o->kind == OBJECT_SEGMENT && !o->record->unlinked))
		return;
	if (o->kind == OBJECT_FILE && !file_unused(o))
		return;
	/* What snapshots hold is theirs from now on; the record stays for them to refer to. */
	if (o->nr_snapshots || o->nr_settles) {
		drop_frames_from(o, 0);
		o->virt->committed -= o->accounted;
		o->accounted = 0;
		return;
	}
	if (o->kind != OBJECT_SEGMENT)
		truth_store(&o->record->unlinked, 1u);
	drop_frames_from(o, 0);
	o->virt->committed -= o->accounted;
	ASSERT(!o->nr_pages && !o->chunks);
	truth_store(&o->record->kind, (uint32_t)OBJECT_FREE);
	if (o->kind == OBJECT_FILE)
		file_end(o);
	LIST_REMOVE(o, link);
	domain_put(o->domain);
	free(o);
}

/* Take the entries of [from, ...) of the object out of every address space that maps it. */
static int zap_mappings(struct object *o, uint64_t from, const struct mm *caller,
			struct flush_wait *wait)
{
	uint64_t pgoff = from >> ARENA_PAGE_SHIFT;
	struct vma *vma;
	int r = 0;

	LIST_FOREACH(vma, &o->vmas, in_object) {
		uint64_t pages = (vma->end - vma->start) >> ARENA_PAGE_SHIFT, start;
		bool any;
		int e;

		if (vma->pgoff + pages <= pgoff)
			continue;
		start = vma->start;
		if (pgoff > vma->pgoff)
			start += (pgoff - vma->pgoff) << ARENA_PAGE_SHIFT;
		e = zap_range(vma->mm, start, vma->end, &any);
		if (any)
			flush_post(vma->mm, ARENA_FLUSH_UNMAP, start, vma->end);
		if (any && wait && vma->mm != caller)
			flush_wait_add(wait, vma->mm);
		if (e)
			r = e;
	}
	return r;
}

/* A truncation that was done before the worker died: whoever maps the object has not let go. */
static void wait_for_mappers(struct object *o, const struct mm *caller, struct flush_wait *wait)
{
	struct vma *vma;

	LIST_FOREACH(vma, &o->vmas, in_object)
		if (vma->mm != caller && vma->mm->acked < vma->mm->recovered)
			flush_wait_add(wait, vma->mm);
}

/* ---- holes ----------------------------------------------------------------------------------------- */

struct punch {
	const struct vma *vma;
	bool any;
};

static int punch_one(struct mm *mm, uint64_t addr __unused_, struct pte_ref *ref, void *arg)
{
	const struct virt *v = mm->virt;
	struct punch *p = arg;
	int r;

	if (!(pfn_to_page(v->phys, frame_head(v, (pfn_t)arena_pte_pfn(*ref->entry)))->flags &
	      PG_OBJECT))
		return 0; /* a private copy */
	r = limbo_reserve(mm, 1 + ARENA_TABLE_LEVELS);
	if (r)
		return r;
	p->any = true;
	unmap_entry(p->vma, ref);
	return 0;
}

static int punch_vma(struct vma *v, uint64_t first, uint64_t last, const struct mm *caller,
		     struct flush_wait *wait)
{
	uint64_t pages = (v->end - v->start) >> ARENA_PAGE_SHIFT, start, end;
	struct punch p = {.vma = v};
	int r;

	if (v->pgoff >= last || v->pgoff + pages <= first)
		return 0;
	start = v->start + ((MAX(first, v->pgoff) - v->pgoff) << ARENA_PAGE_SHIFT);
	end = v->start + ((MIN(last, v->pgoff + pages) - v->pgoff) << ARENA_PAGE_SHIFT);
	r = split_leaf_at(v->mm, start);
	if (!r)
		r = split_leaf_at(v->mm, end);
	if (!r)
		r = pgtable_walk(v->mm, start, end, punch_one, &p);
	if (p.any)
		flush_post(v->mm, ARENA_FLUSH_UNMAP, start, end);
	if (p.any && wait && v->mm != caller)
		flush_wait_add(wait, v->mm);
	return r;
}

static void punch_chunk(struct object *o, struct chunk *c, uint64_t first, uint64_t last)
{
	uint64_t base = c->index * CHUNK_PAGES;
	uint64_t from = MAX(first, base) - base, to = MIN(last, base + CHUNK_PAGES) - base;

	if (to - from == CHUNK_PAGES) {
		chunk_truncate(o, c, 0);
		return;
	}
	if (c->leaf != PFN_NONE) {
		memset(domain_address(o->domain, c->leaf + (pfn_t)from), 0,
		       (to - from) << ARENA_PAGE_SHIFT);
		return;
	}
	chunk_drop(o, c, (unsigned)from, (unsigned)to);
}

/* Leaves that are zeroed in place, in part. */
static int vacate_leaves(struct object *o, uint64_t first, uint64_t last,
			 const struct flush_wait *wait)
{
	struct chunk *c, *next;
	int r = 0;

	HASH_ITER(hh, o->chunks, c, next) {
		uint64_t base = c->index * CHUNK_PAGES;
		uint64_t from = MAX(first, base), to = MIN(last, base + CHUNK_PAGES);

		if (!r && from < to && to - from < CHUNK_PAGES && c->leaf != PFN_NONE)
			r = frozen_vacate(o, from, to, wait != NULL);
	}
	return r;
}

int object_punch(struct object *o, uint64_t from, uint64_t to, const struct mm *caller,
		 struct flush_wait *wait)
{
	uint64_t first = from >> ARENA_PAGE_SHIFT, last = to >> ARENA_PAGE_SHIFT;
	struct chunk *c, *next;
	struct vma *v;
	int e = vacate_leaves(o, first, last, wait);

	if (e)
		return e;
	LIST_FOREACH(v, &o->vmas, in_object) {
		int r = punch_vma(v, first, last, caller, wait);

		if (r)
			return r;
	}
	HASH_ITER(hh, o->chunks, c, next) {
		if (c->index * CHUNK_PAGES < last && (c->index + 1) * CHUNK_PAGES > first)
			punch_chunk(o, c, first, last);
	}
	return 0;
}

/* What zero_tail() is about to write to, from a byte of the object on, is nobody else's. */
static int vacate_tail(struct object *o, uint64_t byte, const struct flush_wait *wait)
{
	const struct chunk *c = chunk_find(o, byte / ARENA_LEAF_SIZE);
	uint64_t first = byte >> ARENA_PAGE_SHIFT, last = first + 1;

	if (!c || IS_ALIGNED(byte, c->leaf != PFN_NONE ? ARENA_LEAF_SIZE : ARENA_PAGE_SIZE))
		return 0;
	if (c->leaf != PFN_NONE)
		last = (c->index + 1) * CHUNK_PAGES;
	return frozen_vacate(o, first, last, wait != NULL);
}

int object_resize(struct object *o, uint64_t size, const struct mm *caller, struct flush_wait *wait)
{
	uint64_t old = o->size;
	struct chunk *c;
	int r = size == old ? 0 : vacate_tail(o, MIN(size, old), wait);

	if (r)
		return r;
	if (size > old) {
		/* Whoever was late to let go may have written past the end; so may a worker have died
		 * before it zeroed what truncating left there. */
		c = chunk_find(o, old / ARENA_LEAF_SIZE);
		if (c && old % ARENA_LEAF_SIZE)
			zero_tail(o, c, old);
		o->size = size;
		truth_store(&o->record->size, size);
		return 0;
	}
	if (size == old) {
		if (wait)
			wait_for_mappers(o, caller, wait);
		return 0;
	}
	/* Splits mappings of a leaf that the new end cuts; private copies below the end stay. */
	r = zap_mappings(o, ALIGN_UP(size, ARENA_PAGE_SIZE), caller, wait);
	if (r)
		return r;
	o->size = size;
	truth_store(&o->record->size, size);
	drop_frames_from(o, size);
	return 0;
}

/* ---- recovery ------------------------------------------------------------------------------------------ */

int object_adopt(struct virt *v, struct object_record *rec, struct domain *d, struct object **out)
{
	struct object *o = mem_alloc(sizeof(*o));

	if (!o)
		return ARENA_E_NO_MEMORY;
	o->virt = v;
	o->record = rec;
	o->id = rec->id;
	o->kind = rec->kind;
	o->size = rec->size;
	o->domain = d;
	o->readonly_slots = domain_kind(d) == DOMAIN_SEGMENT;
	LIST_INIT(&o->vmas);
	LIST_INIT(&o->snapshots);
	if (o->kind == OBJECT_SEGMENT && !rec->unlinked) {
		HASH_ADD_KEYPTR(by_name, v->names, rec->name, strlen(rec->name), o);
		if (o->hash_failed) {
			free(o);
			return ARENA_E_NO_MEMORY;
		}
	}
	if (o->kind == OBJECT_FILE) {
		int r = file_adopt(v, o);

		if (r) {
			free(o);
			return r;
		}
		file_take_descriptors(o);
	}
	LIST_INSERT_HEAD(&v->objects, o, link);
	domain_get(d);
	object_account(o);
	*out = o;
	return 0;
}

void object_forget(struct object *o)
{
	struct chunk *c, *next;

	HASH_ITER(hh, o->chunks, c, next)
		chunk_free(o, c);
	if (o->kind == OBJECT_SEGMENT && !o->record->unlinked)
		HASH_DELETE(by_name, o->virt->names, o);
	o->virt->committed -= o->accounted;
	if (o->kind == OBJECT_FILE)
		file_forget(o);
	LIST_REMOVE(o, link);
	domain_put(o->domain);
	free(o);
}
