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
	}
	return 0;
}

/* What a page of a snapshot is of the page that it is of. */
static inline struct mpage mpage_snapshot(struct mpage *from)
{
	struct mpage p = *from;

	p.pinned = 0;
	p.flags &= ~(VM_LOCKED_MASK | VM_GROWSDOWN);
	if (!p.shared) {
		if (p.object)
			p.object->mapped++;
		return p;
	}
	p.content = p.pgoff < mobject_pages(p.object) ? *mpage_content(from) : (struct content){0};
	p.shared = false;
	p.own = false;
	p.maywrite = true;
	p.flags |= VM_SNAPSHOT;
	if (p.prot & PROT_WRITE && !(p.flags & VM_NORESERVE))
		p.flags |= VM_ACCOUNT;
	p.linear = p.pgoff;
	p.origin = p.object;
	p.object = NULL;
	return p;
}

/* Who hears acknowledges what calls of others wait for. */
static inline void others_ack(void)
{
	for (unsigned i = 0; i < NR_CLIENTS; i++)
		if (w.client[i].c && !w.client[i].deaf)
			ack(&w.client[i], true);
	/* ... and the others are not waited for. */
	if (virt_files_deadline(w.m.virt) != UINT64_MAX)
		virt_files_tick(w.m.virt, virt_files_deadline(w.m.virt));
}

/* As the service makes the call. */
static inline int call_snapshot(struct mclient *mc, uint64_t start, uint64_t len, uint64_t *to)
{
	struct io_wait wait = {0};
	int r;

	for (unsigned tries = 0; tries < 100; tries++) {
		virt_io_retry(w.m.virt, &wait);
		r = vm_snapshot(mc->c->mm, start, len, to);
		virt_io_retry(w.m.virt, NULL);
		if (r != ARENA_E_WAIT_IO)
			return r;
		wait = (struct io_wait){0};
		virt_io_wait(w.m.virt, &wait);
		virt_files_collect(w.m.virt);
		if (!wait.pending)
			continue;
		others_ack();
		/* A worker that died meanwhile knew of it, and the next one does not. */
		if (wait.pending)
			wait = (struct io_wait){0};
	}
	fail_msg("a snapshot that is never done");
	return r;
}

static inline uint64_t snapshot(struct mclient *mc, uint64_t start, uint64_t len)
{
	int want = expect_snapshot(mc, start, len), r;
	uint64_t to = 0, at;

	r = call_snapshot(mc, start, len, &to);
	if (r != want && !excused(r) && r != ARENA_E_BUSY)
		fail_msg("snapshot of %#lx, %#lx: %d, not %d", (unsigned long)start,
			 (unsigned long)len, r, want);
	if (r)
		return 0;
	assert_true(mrange_in_window(mc, to, to + len));
	assert_false(meets_direct(mc, to, len));
	assert_true(mrange_is_free(mc, to, to + len));
	for (at = 0; at < len; at += ARENA_PAGE_SIZE)
		*mpage_at(mc, to + at) = mpage_snapshot(mpage_at(mc, start + at));
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
