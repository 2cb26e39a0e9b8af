/* SPDX-License-Identifier: MIT */
/*
 * file_reclaim.c - cached pages of files go: where memory is short, and where the file was changed by others.
 *
 * A clean page is what is in the file, so it can be dropped and read again. One that nobody maps goes at
 * once, in the middle of an allocation; one that is mapped is taken from its mappings first and
 * is free when their clients have flushed, which only who has nothing in his hands may start.
 */
#include "daemon/virt/file.h"

#define RELIEVE_PAGES 256u
#define SHRINK_PAGES 1024u

static bool droppable(const struct page *page)
{
	return !(page->flags & (PG_DIRTY | PG_WRITEBACK | PG_MLOCKED | PG_PINNED));
}

uint64_t files_relieve(void *ctx, struct zone *z, unsigned order __unused_)
{
	struct virt *v = ctx;
	uint64_t freed = 0;
	struct object *o;

	LIST_FOREACH(o, &v->objects, link) {
		struct chunk *c, *next;

		if (o->kind != OBJECT_FILE)
			continue;
		HASH_ITER(hh, o->chunks, c, next) {
			uint64_t base = c->index * ARENA_LEAF_PAGES;
			unsigned left = c->nr;

			for (unsigned i = 0; i < ARENA_LEAF_PAGES && left; i++) {
				pfn_t pfn = c->pages[i];
				const struct page *page;

				if (pfn == PFN_NONE)
					continue;
				left--;
				page = pfn_to_page(v->phys, pfn);
				if (page->refcount != 1 || !droppable(page) ||
				    pfn_zone(v->phys, pfn) != z)
					continue;
				/* With the last page of it the chunk goes, too. */
				object_drop_page(o, base + i);
				if (++freed == RELIEVE_PAGES)
					return freed;
			}
		}
	}
	return freed;
}

/* Take a page's entries from one VMA. True: there was one. */
static int unmap_page(struct vma *v, uint64_t pgoff, pfn_t pfn, bool *any)
{
	struct pte_ref ref;
	uint64_t addr;
	int r;

	if (!file_entry(v, pgoff, pfn, &addr, &ref))
		return 0;
	r = limbo_reserve(v->mm, 1 + ARENA_TABLE_LEVELS);
	if (r)
		return r;
	unmap_entry(v, &ref);
	flush_post(v->mm, ARENA_FLUSH_UNMAP, addr, addr + ARENA_PAGE_SIZE);
	*any = true;
	return 0;
}

static bool drop_page(struct object *o, uint64_t pgoff, pfn_t pfn, bool *mapped)
{
	struct vma *v;

	LIST_FOREACH(v, &o->vmas, in_object)
		if (unmap_page(v, pgoff, pfn, mapped))
			return false;
	object_drop_page(o, pgoff);
	return true;
}

/* Up to `most` clean pages. */
static unsigned drop_clean(struct object *o, uint64_t first, uint64_t last, unsigned most,
			   bool *mapped)
{
	struct chunk *c, *next;
	unsigned n = 0;

	HASH_ITER(hh, o->chunks, c, next) {
		uint64_t base = c->index * ARENA_LEAF_PAGES;
		unsigned left = c->nr;

		if (base > last || base + ARENA_LEAF_PAGES <= first)
			continue;
		for (unsigned i = 0; i < ARENA_LEAF_PAGES && left && n < most; i++) {
			pfn_t pfn = c->pages[i];

			if (pfn == PFN_NONE)
				continue;
			left--;
			if (base + i < first || base + i > last ||
			    !droppable(pfn_to_page(o->virt->phys, pfn)))
				continue;
			n += drop_page(o, base + i, pfn, mapped);
		}
	}
	return n;
}

/* Those who have lost entries flush soon. */
static void hurry(struct object *o)
{
	const struct vma *v;

	LIST_FOREACH(v, &o->vmas, in_object)
		if (mm_flush_pending(v->mm))
			mm_flush_want(v->mm, true);
}

bool file_invalidate(struct object *o, uint64_t first, uint64_t last)
{
	bool mapped = false;

	drop_clean(o, first, last, UINT32_MAX, &mapped);
	if (mapped)
		hurry(o);
	return mapped;
}

bool files_shrink(struct virt *v)
{
	bool mapped = false;
	unsigned n = 0;
	struct object *o;

	LIST_FOREACH(o, &v->objects, link) {
		bool here = false;

		if (o->kind != OBJECT_FILE)
			continue;
		n += drop_clean(o, 0, UINT64_MAX, SHRINK_PAGES - n, &here);
		if (here)
			hurry(o);
		mapped |= here;
		if (n == SHRINK_PAGES)
			break;
		if (o->file->nr_dirty && TAILQ_EMPTY(&o->file->requests))
			file_request(o, 0, UINT64_MAX, false, NULL);
	}
	return mapped;
}
