/* SPDX-License-Identifier: MIT */
/*
 * virt_model.h - address spaces as the man pages describe them, page by page and without cleverness.
 *
 * A page is mapped or not, has a protection, and shows four words of content (at each 1024 bytes;
 * the rest of a page stays zero): its own if it is anonymous or a private copy, else its
 * object's. Objects are arrays of such pages. Nothing here knows of VMAs, tables or frames.
 */
#ifndef TESTS_VIRT_MODEL_H
#define TESTS_VIRT_MODEL_H

#include <fcntl.h>

#include "tests/virt_fake.h"

#define NR_WORDS 4
#define WORD_STEP 1024u
#define MAX_OBJECTS 4096
#define MAX_OBJECT_PAGES 3072u /* 12 MiB */
#define NR_NAMES 8
#define MAX_HANDLES 24
#define MAX_BLOCKS 24
#define MAX_PINS 4
#define NR_REGIONS 24
#define NR_CHUNKS (TEST_WINDOW >> ARENA_LEAF_SHIFT)

struct content {
	uint64_t word[NR_WORDS];
};

struct mobject {
	bool used;
	int name; /* -1: none (any more) */
	uint32_t uid, gid, mode;
	uint64_t size;
	unsigned handles, mapped;
	struct content *page;
};

struct mpage {
	bool mapped, shared, maywrite, direct;
	bool own; /* a private copy of an object's page */
	uint8_t prot;
	uint32_t flags;  /* VM_* that madvise, mlock and mmap set */
	uint64_t linear; /* without an object: page number of where it was first mapped */
	struct mobject *object;
	struct mobject *origin; /* of a snapshot: what it was shared memory of; never looked into */
	uint32_t pgoff, slot;
	struct content content;
	pfn_t pinned; /* private memory: the frame that it must keep; 0: none */
};

struct mhandle {
	uint32_t handle; /* 0: none */
	uint32_t slot;
	struct mobject *object;
	bool writable;
};

struct mblock {
	uint64_t addr; /* 0: none */
	unsigned order;
};

struct mpin {
	uint64_t addr, len; /* len 0: none */
	pfn_t first;
};

struct mclient {
	struct fake_client *c; /* NULL: not there */
	uint64_t base;
	struct mpage *chunk[NR_CHUNKS];
	struct mhandle handle[MAX_HANDLES];
	struct mblock block[MAX_BLOCKS];
	struct mpin pin[MAX_PINS];
	uint64_t brk;
	struct {
		uint64_t start, len;
	} region[NR_REGIONS]; /* where something was mapped, to aim at */
	bool deaf;            /* never acknowledges */
};

static inline struct mpage *mpage_at(struct mclient *mc, uint64_t addr)
{
	uint64_t i = (addr - mc->base) >> ARENA_LEAF_SHIFT;

	assert_true(addr >= mc->base && i < NR_CHUNKS);
	if (!mc->chunk[i])
		mc->chunk[i] = calloc(ARENA_LEAF_PAGES, sizeof(struct mpage));
	assert_non_null(mc->chunk[i]);
	return &mc->chunk[i][(addr >> ARENA_PAGE_SHIFT) % ARENA_LEAF_PAGES];
}

static inline bool mrange_in_window(const struct mclient *mc, uint64_t start, uint64_t end)
{
	return start >= mc->base && end > start && end <= mc->base + TEST_WINDOW;
}

static inline bool mrange_is_free(struct mclient *mc, uint64_t start, uint64_t end)
{
	for (; start < end; start += ARENA_PAGE_SIZE)
		if (mpage_at(mc, start)->mapped)
			return false;
	return true;
}

/* ---- objects ------------------------------------------------------------------------------- */

static inline struct mobject *mobject_new(struct mobject *table)
{
	struct mobject *o = table;

	while (o->used)
		assert_true(++o < table + MAX_OBJECTS);
	*o = (struct mobject){.used = true, .name = -1};
	o->page = calloc(MAX_OBJECT_PAGES, sizeof(*o->page));
	assert_non_null(o->page);
	return o;
}

static inline void mobject_put(struct mobject *o)
{
	if (o->name >= 0 || o->handles || o->mapped)
		return;
	free(o->page);
	*o = (struct mobject){0};
}

static inline uint64_t mobject_pages(const struct mobject *o)
{
	return (o->size + ARENA_PAGE_SIZE - 1) >> ARENA_PAGE_SHIFT;
}

static inline bool mobject_permits(const struct mobject *o, const struct credentials *cred,
				   bool write)
{
	unsigned shift = 0, want = write ? 6 : 4, i;

	if (cred->uid == 0)
		return true;
	if (cred->uid == o->uid) {
		shift = 6;
	} else {
		if (cred->gid == o->gid)
			shift = 3;
		for (i = 0; i < cred->nr_groups; i++)
			if (cred->groups[i] == o->gid)
				shift = 3;
	}
	return (o->mode >> shift & want) == want;
}

/* ---- pages --------------------------------------------------------------------------------- */

static inline void mpage_unmap(struct mpage *p)
{
	struct mobject *o = p->object;

	*p = (struct mpage){0};
	if (o) {
		o->mapped--;
		mobject_put(o);
	}
}

static inline struct content *mpage_content(struct mpage *p)
{
	return p->object && !p->own ? &p->object->page[p->pgoff] : &p->content;
}

static inline bool mpage_permits(const struct mpage *p, uint32_t access)
{
	if (access == PROT_READ)
		return p->prot & (PROT_READ | PROT_WRITE | PROT_EXEC);
	return p->prot & access;
}

/* What an access must come to. */
static inline struct fault_refusal mpage_refusal(const struct mpage *p, uint32_t access)
{
	if (!p->mapped)
		return (struct fault_refusal){SIGSEGV, SEGV_MAPERR};
	if (!mpage_permits(p, access))
		return (struct fault_refusal){SIGSEGV, SEGV_ACCERR};
	if (p->object && p->pgoff >= mobject_pages(p->object))
		return (struct fault_refusal){SIGBUS, BUS_ADRERR};
	return (struct fault_refusal){0};
}

/* What it had of its own is gone. */
static inline void mpage_wipe(struct mpage *p)
{
	p->content = (struct content){0};
	p->own = false;
	p->pinned = 0;
}

/* The object's page becomes the mapping's own. */
static inline void mpage_copy(struct mpage *p)
{
	p->content = p->object->page[p->pgoff];
	p->own = true;
}

/* Pages that have lost their place in the object: private copies go as well. */
static inline void mobject_truncate(struct mobject *o, uint64_t size)
{
	uint64_t i, n,
		end = MAX(mobject_pages(o), (size + ARENA_PAGE_SIZE - 1) >> ARENA_PAGE_SHIFT);

	for (i = size >> ARENA_PAGE_SHIFT; i < end && i < MAX_OBJECT_PAGES; i++)
		for (n = 0; n < NR_WORDS; n++)
			if (PAGE(i) + n * WORD_STEP >= size)
				o->page[i].word[n] = 0;
	o->size = size;
}

static inline void mclient_drop_copies(struct mclient *mc, const struct mobject *o)
{
	uint64_t i, n;

	for (i = 0; i < NR_CHUNKS; i++)
		for (n = 0; mc->chunk[i] && n < ARENA_LEAF_PAGES; n++) {
			struct mpage *p = &mc->chunk[i][n];

			if (p->mapped && p->object == o && p->own && p->pgoff >= mobject_pages(o))
				mpage_wipe(p);
		}
}

static inline void mclient_clear(struct mclient *mc)
{
	uint64_t i, n;

	for (i = 0; i < NR_CHUNKS; i++) {
		for (n = 0; mc->chunk[i] && n < ARENA_LEAF_PAGES; n++)
			if (mc->chunk[i][n].mapped)
				mpage_unmap(&mc->chunk[i][n]);
		free(mc->chunk[i]);
	}
	for (i = 0; i < MAX_HANDLES; i++) {
		if (mc->handle[i].handle) {
			mc->handle[i].object->handles--;
			mobject_put(mc->handle[i].object);
		}
	}
	*mc = (struct mclient){0};
}

/* ---- the model against the room --------------------------------------------------------------- */

static inline bool mpages_alike(const struct mpage *a, const struct mpage *b)
{
	return a->mapped && b->mapped && a->shared == b->shared && a->maywrite == b->maywrite &&
	       a->prot == b->prot && a->flags == b->flags && a->object == b->object &&
	       a->origin == b->origin &&
	       (a->object ? a->pgoff + 1 == b->pgoff && a->slot == b->slot
			  : a->linear + 1 == b->linear);
}

/* The VMAs are the model's maximal runs of alike pages, no more and no fewer. */
static inline bool mclient_vmas_agree(struct mclient *mc)
{
	struct vma_info v;
	uint64_t from = 0, pages = 0, mapped = 0, i, n, addr;
	uint64_t last_end = 0;

	for (; mm_next_vma(mc->c->mm, from, &v); from = v.end) {
		if (v.name && !strcmp(v.name, "[direct]"))
			continue;
		for (addr = v.start; addr < v.end; addr += ARENA_PAGE_SIZE) {
			const struct mpage *p = mpage_at(mc, addr);
			bool joined = addr > mc->base &&
				      mpages_alike(mpage_at(mc, addr - ARENA_PAGE_SIZE), p) &&
				      !mpage_at(mc, addr - ARENA_PAGE_SIZE)->direct;

			if (!p->mapped || p->direct || p->prot != v.prot || p->shared != v.shared ||
			    p->flags != (vma_find(mc->c->mm, addr)->flags &
					 ~(uint32_t)(VM_SHARED | VM_MAYWRITE)) ||
			    (p->object ? p->pgoff != v.pgoff + ((addr - v.start) >> 12)
				       : v.object) ||
			    joined != (addr > v.start)) {
				fprintf(stderr,
					"mm %u: VMA %#lx-%#lx is wrong at %#lx (last end %#lx): "
					"model %u %u %u %#x, room %u %u %#x%s\n",
					mm_id(mc->c->mm), (unsigned long)v.start,
					(unsigned long)v.end, (unsigned long)addr,
					(unsigned long)last_end, p->mapped, p->prot, p->shared,
					p->flags, v.prot, v.shared,
					vma_find(mc->c->mm, addr)->flags, joined ? ", joined" : "");
				return false;
			}
			pages++;
		}
		last_end = v.end;
	}
	for (i = 0; i < NR_CHUNKS; i++)
		for (n = 0; mc->chunk[i] && n < ARENA_LEAF_PAGES; n++)
			mapped += mc->chunk[i][n].mapped && !mc->chunk[i][n].direct;
	if (mapped != pages)
		fprintf(stderr, "mm %u: %lu pages mapped, the model has %lu\n", mm_id(mc->c->mm),
			(unsigned long)pages, (unsigned long)mapped);
	return mapped == pages;
}

#endif
