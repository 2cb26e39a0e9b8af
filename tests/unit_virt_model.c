/* SPDX-License-Identifier: MIT */
/*
 * Random calls of several clients against the naive model of virt_model.h: every result, every
 * byte, every VMA, and that no frame a client may still have mapped becomes anybody else's.
 *
 * ARENA_TEST_SEED repeats a run, ARENA_TEST_OPS sets its length (60000).
 */
#include "tests/sanitized.h"
#include "tests/virt_world.h"
#include "tests/virt_world_calls.h"
#include "tests/virt_world_fork.h"

#define CHECK_EVERY 500

/* ---- mappings ------------------------------------------------------------------------------ */

static int expect_mmap(struct mclient *mc, const struct vm_mmap_args *a, const struct mhandle *h)
{
	uint64_t end = a->addr + a->len;

	if (h && (a->prot & PROT_WRITE) && (a->flags & MAP_SHARED) && !h->writable)
		return ARENA_E_ACCESS;
	if (!(a->flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)))
		return 0;
	if (!IS_ALIGNED(a->addr, ARENA_PAGE_SIZE))
		return ARENA_E_INVALID;
	if (!mrange_in_window(mc, a->addr, end))
		return ARENA_E_NO_MEMORY;
	if (meets_direct(mc, a->addr, a->len))
		return ARENA_E_INVALID;
	if ((a->flags & MAP_FIXED_NOREPLACE) && !mrange_is_free(mc, a->addr, end))
		return ARENA_E_EXISTS;
	return 0;
}

static void check_place(struct mclient *mc, const struct vm_mmap_args *a, uint64_t at)
{
	uint64_t hint = ALIGN_DOWN(a->addr, ARENA_PAGE_SIZE);

	assert_true(IS_ALIGNED(at, ARENA_PAGE_SIZE));
	assert_true(mrange_in_window(mc, at, at + a->len));
	assert_false(direct_contains(mc->c->mm, at, at + a->len));
	if (a->flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) {
		assert_int_equal(at, a->addr);
		return;
	}
	assert_true(mrange_is_free(mc, at, at + a->len));
	if (hint && mrange_in_window(mc, hint, hint + a->len) && !meets_direct(mc, hint, a->len) &&
	    mrange_is_free(mc, hint, hint + a->len))
		assert_int_equal(at, hint);
	else if (a->len >= ARENA_LEAF_SIZE && !a->segment)
		assert_true(IS_ALIGNED(at, ARENA_LEAF_SIZE));
}

static void model_mmap(struct mclient *mc, const struct vm_mmap_args *a, const struct mhandle *h,
		       uint64_t at)
{
	bool shared = a->flags & MAP_SHARED;
	struct mobject *o = h ? h->object : shared ? mobject_new(w.object) : NULL;
	uint64_t i, pages = a->len >> ARENA_PAGE_SHIFT;

	if (o && !h) {
		o->size = a->len;
		o->uid = mc->c->cred.uid;
	}
	for (i = 0; i < pages; i++) {
		struct mpage *p = mpage_at(mc, at + PAGE(i));

		if (p->mapped)
			mpage_unmap(p);
		*p = (struct mpage){
			.mapped = true,
			.shared = shared,
			.maywrite = !h || !shared || h->writable,
			.prot = (uint8_t)a->prot,
			.flags = (a->flags & MAP_NORESERVE ? VM_NORESERVE : 0) |
				 (!shared && (a->prot & PROT_WRITE) && !(a->flags & MAP_NORESERVE)
					  ? VM_ACCOUNT
					  : 0),
			.object = o,
			.linear = (at + PAGE(i)) >> ARENA_PAGE_SHIFT,
			.pgoff = o ? (uint32_t)((a->offset >> ARENA_PAGE_SHIFT) + i) : 0,
			.slot = h ? h->slot : 0,
		};
		if (o)
			o->mapped++;
	}
	note_region(mc, at, a->len);
}

static uint32_t random_prot(void)
{
	static const uint32_t prots[] = {PROT_NONE, PROT_READ,  PROT_RW,
					 PROT_RW,   PROT_RW,    PROT_RW,
					 PROT_RW,   PROT_WRITE, PROT_READ | PROT_EXEC};

	return prots[below(ARRAY_SIZE(prots))];
}

static void op_mmap(struct mclient *mc)
{
	struct vm_mmap_args a = {.len = random_len(),
				 .prot = random_prot(),
				 .flags = chance(60) ? MAP_PRIVATE : MAP_SHARED};
	struct mhandle *h = chance(40) ? &mc->handle[below(MAX_HANDLES)] : NULL;
	uint64_t at = 0, start, len;
	int r, want;

	if (h && h->handle) {
		a.segment = h->handle;
		a.offset = (int64_t)(chance(60) ? 0 : chance(50) ? LEAF(1) : PAGE(below(600)));
		/* The model's objects are not longer. */
		a.len = MIN(a.len, PAGE(MAX_OBJECT_PAGES) - (uint64_t)a.offset);
	} else {
		h = NULL;
		a.flags |= MAP_ANONYMOUS;
	}
	if (chance(10))
		a.flags |= MAP_NORESERVE;
	if (chance(40)) {
		random_range(mc, &start, &len);
		a.addr = chance(10) ? ALIGN_DOWN(start, ARENA_LEAF_SIZE) : start;
		a.addr += chance(4) ? 100 : 0;
		a.flags |= chance(50) ? MAP_FIXED : chance(50) ? MAP_FIXED_NOREPLACE : 0;
		if (chance(2))
			a.addr = mc->base + TEST_WINDOW - ARENA_PAGE_SIZE;
	}
	want = expect_mmap(mc, &a, h);
	r = vm_mmap(mc->c->mm, &a, &at);
	if (r != want)
		fail_msg("mmap of %#lx at %#lx, flags %#x: %d, not %d", (unsigned long)a.len,
			 (unsigned long)a.addr, a.flags, r, want);
	if (r)
		return;
	check_place(mc, &a, at);
	model_mmap(mc, &a, h, at);
}

static void op_munmap(struct mclient *mc)
{
	uint64_t start, len, at;

	random_range(mc, &start, &len);
	if (chance(3)) {
		assert_int_equal(vm_munmap(mc->c->mm, start + 1, len), ARENA_E_INVALID);
		assert_int_equal(vm_munmap(mc->c->mm, start, 0), ARENA_E_INVALID);
		return;
	}
	if (meets_direct(mc, start, len)) {
		assert_int_equal(vm_munmap(mc->c->mm, start, len), ARENA_E_INVALID);
		return;
	}
	assert_int_equal(vm_munmap(mc->c->mm, start, len - below(100)), 0);
	for (at = start; at < start + len; at += ARENA_PAGE_SIZE)
		if (mpage_at(mc, at)->mapped)
			mpage_unmap(mpage_at(mc, at));
}

static void op_mprotect(struct mclient *mc)
{
	uint32_t prot = random_prot();
	uint64_t start, len, at;
	int r, want = 0;

	random_range(mc, &start, &len);
	if (meets_direct(mc, start, len)) {
		assert_int_not_equal(vm_mprotect(mc->c->mm, start, len, prot), 0);
		return;
	}
	for (at = start; at < start + len && !want; at += ARENA_PAGE_SIZE) {
		struct mpage *p = mpage_at(mc, at);

		if (!p->mapped)
			want = ARENA_E_NOT_MAPPED;
		else if ((prot & PROT_WRITE) && !p->maywrite)
			want = ARENA_E_ACCESS;
		else {
			if ((prot & PROT_WRITE) && !(p->prot & PROT_WRITE) && !p->shared &&
			    !(p->flags & VM_NORESERVE))
				p->flags |= VM_ACCOUNT;
			p->prot = (uint8_t)prot;
		}
	}
	r = vm_mprotect(mc->c->mm, start, len - below(100), prot);
	assert_int_equal(r, want);
}

static int advice_refused(const struct mpage *p, int advice)
{
	bool lru = advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_COLD ||
		   advice == MADV_REMOVE;

	if (lru && (p->flags & VM_LOCKED))
		return ARENA_E_INVALID;
	if (advice == MADV_FREE || advice == MADV_WIPEONFORK)
		return p->object ? ARENA_E_INVALID : 0;
	if (advice != MADV_REMOVE)
		return 0;
	if (!p->object)
		return ARENA_E_INVALID;
	return p->shared && p->maywrite ? 0 : ARENA_E_ACCESS;
}

static void op_madvise(struct mclient *mc)
{
	static const struct {
		int advice;
		uint32_t set, clear;
	} kinds[] = {
		{MADV_DONTNEED, 0, 0},
		{MADV_DONTNEED, 0, 0},
		{MADV_WILLNEED, 0, 0},
		{MADV_NORMAL, 0, VM_SEQ_READ | VM_RAND_READ},
		{MADV_RANDOM, VM_RAND_READ, VM_SEQ_READ},
		{MADV_SEQUENTIAL, VM_SEQ_READ, VM_RAND_READ},
		{MADV_HUGEPAGE, VM_HUGEPAGE, VM_NOHUGEPAGE},
		{MADV_NOHUGEPAGE, VM_NOHUGEPAGE, VM_HUGEPAGE},
		{MADV_FREE, 0, 0},
		{MADV_REMOVE, 0, 0},
		{MADV_COLD, 0, 0},
		{MADV_DONTFORK, VM_DONTCOPY, 0},
		{MADV_DOFORK, 0, VM_DONTCOPY},
		{MADV_WIPEONFORK, VM_WIPEONFORK, 0},
		{MADV_KEEPONFORK, 0, VM_WIPEONFORK},
		{MADV_DONTDUMP, VM_DONTDUMP, 0},
		{MADV_DODUMP, 0, VM_DONTDUMP},
		{MADV_MERGEABLE, VM_MERGEABLE, 0},
		{MADV_UNMERGEABLE, 0, VM_MERGEABLE},
	};
	uint64_t start, len, at, kind = below(ARRAY_SIZE(kinds));
	int want = 0, advice = kinds[kind].advice;

	random_range(mc, &start, &len);
	/* What a snapshot holds of a leaf is copied for it first. */
	if (advice == MADV_REMOVE && memory_is_short())
		return;
	if (meets_direct(mc, start, len)) {
		assert_int_not_equal(vm_madvise(mc->c->mm, start, len, kinds[kind].advice, 0), 0);
		return;
	}
	for (at = start; at < start + len; at += ARENA_PAGE_SIZE) {
		struct mpage *p = mpage_at(mc, at);

		if (!p->mapped) {
			want = ARENA_E_NOT_MAPPED;
			continue;
		}
		if (advice_refused(p, advice)) {
			want = advice_refused(p, advice);
			break;
		}
		if (advice == MADV_REMOVE && p->pgoff < MAX_OBJECT_PAGES)
			p->object->page[p->pgoff] = (struct content){0};
		p->flags = (p->flags | kinds[kind].set) & ~kinds[kind].clear;
		if (kinds[kind].advice == MADV_DONTNEED && (!p->object || p->own)) {
			mpage_wipe(p);
		}
	}
	assert_int_equal(vm_madvise(mc->c->mm, start, len, kinds[kind].advice, 0), want);
	assert_int_equal(vm_madvise(mc->c->mm, start, len, 12345, 0), ARENA_E_INVALID);
}

/* ---- pages by number ----------------------------------------------------------------------- */

static void op_alloc_pages(struct mclient *mc)
{
	static const unsigned flags[] = {0,
					 ARENA_GFP_ZERO,
					 ARENA_GFP_HIGHMEM,
					 ARENA_GFP_DMA,
					 ARENA_GFP_HIGHMEM | ARENA_GFP_MOVABLE,
					 ARENA_GFP_RECLAIMABLE,
					 ARENA_GFP_ATOMIC};
	unsigned order = (unsigned)(chance(70) ? below(6) : below(ARENA_MAX_ORDER + 1));
	unsigned gfp = flags[below(ARRAY_SIZE(flags))] | ARENA_GFP_NOWARN;
	struct mblock *b = &mc->block[below(MAX_BLOCKS)];
	uint64_t addr, pfn, i;
	int r;

	if (b->addr)
		return;
	r = vm_alloc_pages(mc->c->mm, gfp, order, (unsigned)below(4), &addr, &pfn);
	/* Zones DMA and NORMAL are small, and large blocks of them are soon cut. */
	if (r == ARENA_E_NO_MEMORY &&
	    (memory_is_short() || !(gfp & ARENA_GFP_HIGHMEM) || order > 8)) {
		w.no_memory++;
		return;
	}
	assert_int_equal(r, 0);
	assert_int_equal(addr, mc->c->mm->header->direct_base + PAGE(pfn));
	*b = (struct mblock){.addr = addr, .order = order};
	for (i = 0; i < UINT64_C(1) << order; i++) {
		struct mpage *p = mpage_at(mc, addr + PAGE(i));

		assert_false(p->mapped);
		*p = (struct mpage){.mapped = true, .direct = true, .prot = PROT_RW};
		assert_int_equal(client_pfn(mc->c, addr + PAGE(i)), pfn + i);
		if (i < 4 || chance(10))
			check_content(mc, addr + PAGE(i), client_write(mc->c, addr + PAGE(i)),
				      true);
	}
	note_region(mc, addr, PAGE(UINT64_C(1) << MIN(order, 3u)));
}

static void op_free_pages(struct mclient *mc)
{
	struct mblock *b = &mc->block[below(MAX_BLOCKS)];
	uint64_t i;

	if (!b->addr)
		return;
	if (chance(20)) {
		assert_int_equal(vm_free_pages(mc->c->mm, b->addr, b->order ^ 1), ARENA_E_INVALID);
		assert_int_equal(vm_free_pages(mc->c->mm, b->addr + 8, b->order), ARENA_E_INVALID);
		if (b->order)
			assert_int_equal(vm_free_pages(mc->c->mm, b->addr + PAGE(1), b->order),
					 ARENA_E_INVALID);
	}
	assert_int_equal(vm_free_pages(mc->c->mm, b->addr, b->order), 0);
	assert_int_equal(vm_free_pages(mc->c->mm, b->addr, b->order), ARENA_E_INVALID);
	for (i = 0; i < UINT64_C(1) << b->order; i++)
		mpage_unmap(mpage_at(mc, b->addr + PAGE(i)));
	b->addr = 0;
}

/* ---- segments ------------------------------------------------------------------------------ */

static struct mobject *named(int name)
{
	struct mobject *o;

	for (o = w.object; o < w.object + MAX_OBJECTS; o++)
		if (o->used && o->name == name)
			return o;
	return NULL;
}

static void truncated(struct mobject *o, uint64_t size)
{
	uint64_t old = o->size;
	unsigned i;

	mobject_truncate(o, size);
	for (i = 0; i < NR_CLIENTS && size < old; i++)
		mclient_drop_copies(&w.client[i], o);
}

static int expect_open(const struct mclient *mc, const struct mobject *o, int oflag)
{
	bool write = oflag & O_RDWR;

	/* As open(2): truncating takes the right to write, however it is opened. */
	write |= (oflag & O_TRUNC) != 0;
	if (o && (oflag & O_CREAT) && (oflag & O_EXCL))
		return ARENA_E_EXISTS;
	if (!o && !(oflag & O_CREAT))
		return ARENA_E_NOT_FOUND;
	return o && !mobject_permits(o, &mc->c->cred, write) ? ARENA_E_ACCESS : 0;
}

static void op_open(struct mclient *mc)
{
	static const uint32_t modes[] = {0600, 0600, 0644, 0666, 0660, 0400};
	int name = (int)below(NR_NAMES), want;
	int oflag = (chance(70) ? O_RDWR : O_RDONLY) | (chance(80) ? O_CREAT : 0) |
		    (chance(10) ? O_EXCL : 0) | (chance(8) ? O_TRUNC : 0);
	struct mhandle *h = &mc->handle[below(MAX_HANDLES)];
	struct mobject *o = named(name);
	struct segment_open open;
	uint32_t mode = modes[below(ARRAY_SIZE(modes))];

	if (h->handle)
		return;
	want = expect_open(mc, o, oflag);
	assert_int_equal(client_open(mc->c, names[name], oflag, mode, &open), want);
	if (want)
		return;
	if (!o) {
		o = mobject_new(w.object);
		o->name = name;
		o->uid = mc->c->cred.uid;
		o->gid = mc->c->cred.gid;
		o->mode = mode;
	} else if (oflag & O_TRUNC) {
		truncated(o, 0);
	}
	assert_int_equal(open.size, o->size);
	assert_true(mc->c->slot_fd[open.slot] >= 0);
	o->handles++;
	*h = (struct mhandle){
		.handle = open.handle, .object = o, .slot = open.slot, .writable = oflag & O_RDWR};
}

static void op_close(struct mclient *mc)
{
	struct mhandle *h = &mc->handle[below(MAX_HANDLES)];

	if (!h->handle)
		return;
	assert_int_equal(mm_close_segment(mc->c->mm, h->handle), 0);
	assert_int_equal(mm_close_segment(mc->c->mm, h->handle), ARENA_E_INVALID);
	h->object->handles--;
	mobject_put(h->object);
	*h = (struct mhandle){0};
}

static void wait_done(struct flush_wait *wait)
{
	assert_int_equal(wait->pending, 0);
	assert_null(wait->first);
	w.waiting[wait - w.wait] = false;
	w.done++;
}

static void op_truncate(struct mclient *mc)
{
	struct mhandle *h = &mc->handle[below(MAX_HANDLES)];
	uint64_t slot = below(NR_WAITS), size;
	struct flush_wait *wait = w.waiting[slot] ? NULL : &w.wait[slot];
	int64_t now;
	int r;

	if (!h->handle)
		return;
	size = chance(50)   ? PAGE(below(MAX_OBJECT_PAGES))
	       : chance(50) ? LEAF(below(6))
			    : below(MAX_OBJECT_PAGES * NR_WORDS) * WORD_STEP;
	do {
		if (wait)
			*wait = (struct flush_wait){.done = wait_done};
		r = mm_truncate_segment(mc->c->mm, h->handle, (int64_t)size, wait);
	} while (flushed_again(mc, &r));
	/* What snapshots hold of its last leaf is copied for them first. */
	if (excused(r))
		return;
	assert_int_equal(r, h->writable ? 0 : ARENA_E_INVALID);
	if (!r)
		truncated(h->object, size);
	if (wait && wait->pending) {
		w.waiting[slot] = true;
		if (chance(10)) {
			flush_wait_cancel(wait);
			assert_int_equal(wait->pending, 0);
			w.waiting[slot] = false;
		}
	}
	assert_int_equal(mm_stat_segment(mc->c->mm, h->handle, &now), 0);
	assert_int_equal(now, h->object->size);
}

static void op_unlink(struct mclient *mc)
{
	int name = (int)below(NR_NAMES), want = 0;
	struct mobject *o = named(name);

	if (!o)
		want = ARENA_E_NOT_FOUND;
	else if (mc->c->cred.uid && mc->c->cred.uid != o->uid)
		want = ARENA_E_ACCESS;
	assert_int_equal(segment_unlink(w.m.virt, &mc->c->cred, names[name]), want);
	if (!want) {
		o->name = -1;
		mobject_put(o);
	}
}

/* ---- the run ------------------------------------------------------------------------------- */

static void check_all(void)
{
	unsigned i;

	for (i = 0; i < NR_CLIENTS; i++) {
		if (!w.client[i].c)
			continue;
		assert_true(client_check_tlb(w.client[i].c));
		assert_true(mclient_vmas_agree(&w.client[i]));
		check_pinned(&w.client[i]);
		assert_int_equal(w.client[i].c->mm->pinned_vm, pinned_pages(&w.client[i]));
		assert_int_equal(w.client[i].c->mm->header->brk, w.client[i].brk);
	}
	assert_true(virt_is_valid(w.m.virt));
	if (chance(25)) /* each entry is looked for in each VMA */
		assert_true(rmap_finds_every_entry(w.m.virt));
}

/* Everybody answers; whoever still waits for somebody has been forgotten. */
static void everybody_acks(void)
{
	unsigned i, workers;

	/* A worker that dies as it lets go leaves the next one's flush to be answered. */
	do {
		workers = w.workers;
		for (i = 0; i < NR_CLIENTS; i++)
			if (w.client[i].c)
				ack(&w.client[i], true);
		virt_flush_collect(w.m.virt);
	} while (workers != w.workers);
	assert_false(virt_flush_pending(w.m.virt));
	assert_int_equal(virt_limbo_pages(w.m.virt), 0);
	for (i = 0; i < NR_WAITS; i++)
		assert_false(w.waiting[i]);
}

static void make_room(void)
{
	unsigned i;

	everybody_acks();
	if (memory_is_short())
		client_end(&w.client[below(NR_CLIENTS)]);
	for (i = 0; i < NR_CLIENTS && memory_is_short(); i++)
		if (w.client[i].c)
			op_unlink(&w.client[i]);
}

static const struct op {
	unsigned weight;
	void (*fn)(struct mclient *mc);
} ops[] = {
	{38, op_touch},  {15, op_mmap},    {5, op_munmap},      {6, op_mprotect},
	{7, op_madvise}, {4, op_populate}, {4, op_alloc_pages}, {4, op_free_pages},
	{5, op_open},    {2, op_close},    {4, op_truncate},    {1, op_unlink},
	{6, op_mremap},  {3, op_brk},      {3, op_mlock},       {2, op_pin},
	{2, op_unpin},   {5, scribble},    {1, op_fork},        {2, op_snapshot},
};

static void random_op(struct mclient *mc)
{
	unsigned total = 0, pick, i;

	for (i = 0; i < ARRAY_SIZE(ops); i++)
		total += ops[i].weight;
	pick = (unsigned)below(total);

	for (i = 0; i < ARRAY_SIZE(ops) - 1 && pick >= ops[i].weight; i++)
		pick -= ops[i].weight;
	ops[i].fn(mc);
}

static void test_model(void **state)
{
	const char *length = getenv("ARENA_TEST_OPS");
	unsigned long n = length ? strtoul(length, NULL, 0) : TEST_SANITIZED ? 8000 : 40000, i;

	(void)state;
	w.rng.state = test_seed();
	w.next_pid = 100;
	machine_up(&w.m, ARENA_BYTES, 2);
	fake_others_flush = others_ack;
	for (i = 0; i < n; i++) {
		struct mclient *mc = &w.client[below(NR_CLIENTS)];

		if (!mc->c)
			client_new(mc);
		random_op(mc);
		if (chance(20) && !mc->deaf)
			ack(mc, chance(30));
		if (below(1500) == 0)
			client_end(mc);
		if (mc->c && chance(20))
			assert_true(client_check_tlb(mc->c));
		if (memory_is_short() && chance(20))
			make_room();
		if (below(3000) == 0)
			everybody_acks();
		if (i % CHECK_EVERY == 0)
			check_all();
	}
	check_all();
	for (i = 0; i < NR_CLIENTS; i++)
		client_end(&w.client[i]);
	for (i = 0; i < NR_WAITS; i++)
		assert_false(w.waiting[i]);
	printf("%lu calls, %lu writes, %lu refusals, %lu stale writes, %lu waits done, %lu times "
	       "no memory\n",
	       n, w.writes, w.refusals, w.scribbles, w.done, w.no_memory);
	machine_down(&w.m);
	for (i = 0; i < MAX_OBJECTS; i++)
		free(w.object[i].page);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_model)};

	log_set_level(getenv("ARENA_TEST_LOG") ? LOG_LEVEL_INFO : LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
