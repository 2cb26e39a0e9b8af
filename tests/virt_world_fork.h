/* SPDX-License-Identifier: MIT */
/* virt_world_fork.h - fork and snapshot of virt_world.h's clients, beside the model. */
#ifndef TESTS_VIRT_WORLD_FORK_H
#define TESTS_VIRT_WORLD_FORK_H

#include "tests/virt_rmap.h"
#include "tests/virt_world.h"

/* What a child has of a page of its parent's. */
static inline struct mpage mpage_forked(const struct mpage *from)
{
	struct mpage p = *from;

	if (!p.mapped || p.direct || p.flags & VM_DONTCOPY)
		return (struct mpage){0};
	p.flags &= ~VM_LOCKED_MASK;
	p.pinned = 0;
	if (p.flags & VM_WIPEONFORK)
		mpage_wipe(&p);
	if (p.object)
		p.object->mapped++;
	return p;
}

static inline void model_fork(struct mclient *parent, struct mclient *child)
{
	uint64_t i, n;

	child->base = parent->base;
	child->brk = parent->brk;
	memcpy(child->region, parent->region, sizeof(child->region));
	memcpy(child->handle, parent->handle, sizeof(child->handle));
	for (i = 0; i < MAX_HANDLES; i++)
		if (child->handle[i].handle)
			child->handle[i].object->handles++;
	for (i = 0; i < NR_CHUNKS; i++) {
		if (!parent->chunk[i])
			continue;
		child->chunk[i] = calloc(ARENA_LEAF_PAGES, sizeof(struct mpage));
		assert_non_null(child->chunk[i]);
		for (n = 0; n < ARENA_LEAF_PAGES; n++)
			child->chunk[i][n] = mpage_forked(&parent->chunk[i][n]);
	}
}

/* False: no memory, and that is no wonder. */
static inline bool fork_client(struct mclient *parent, struct mclient *child)
{
	int r = client_try_fork(parent->c, w.next_pid++, &child->c);

	if (excused(r))
		return false;
	assert_int_equal(r, 0);
	model_fork(parent, child);
	return true;
}

static inline void op_fork(struct mclient *mc)
{
	struct mclient *child = &w.client[below(NR_CLIENTS)];

	if (child == mc)
		return;
	client_end(child);
	if (fork_client(mc, child))
		child->deaf = chance(15);
}

static inline int expect_snapshot(struct mclient *mc, uint64_t start, uint64_t len)
{
	uint64_t at;

	if (!mrange_in_window(mc, start, start + len))
		return ARENA_E_INVALID;
	for (at = start; at < start + len; at += ARENA_PAGE_SIZE) {
		const struct mpage *p = mpage_at(mc, at);

		/* The direct map is one mapping, whatever of it is in use. */
		if (meets_direct(mc, at, ARENA_PAGE_SIZE) && vma_find(mc->c->mm, at) &&
		    vma_find(mc->c->mm, at)->start <= at)
			return ARENA_E_INVALID;
		if (!p->mapped)
			return ARENA_E_NOT_MAPPED;
		if (p->shared)
			return ARENA_E_UNSUPPORTED;
	}
	return 0;
}

static inline uint64_t snapshot(struct mclient *mc, uint64_t start, uint64_t len)
{
	int want = expect_snapshot(mc, start, len), r;
	uint64_t to = 0, at;

	r = vm_snapshot(mc->c->mm, start, len, &to);
	if (r != want && !excused(r))
		fail_msg("snapshot of %#lx, %#lx: %d, not %d", (unsigned long)start,
			 (unsigned long)len, r, want);
	if (r)
		return 0;
	assert_true(mrange_in_window(mc, to, to + len));
	assert_false(meets_direct(mc, to, len));
	assert_true(mrange_is_free(mc, to, to + len));
	for (at = 0; at < len; at += ARENA_PAGE_SIZE) {
		struct mpage *p = mpage_at(mc, to + at);

		*p = *mpage_at(mc, start + at);
		p->pinned = 0;
		p->flags &= ~(VM_LOCKED_MASK | VM_GROWSDOWN);
		if (p->object)
			p->object->mapped++;
	}
	note_region(mc, to, len);
	return to;
}

static inline void op_snapshot(struct mclient *mc)
{
	uint64_t start, len;

	random_range(mc, &start, &len);
	snapshot(mc, start, len);
}

#endif
