/* SPDX-License-Identifier: MIT */
/*
 * The worker dies at a store to the truth, at each of them in a scenario that makes every call, and at
 * random ones under the random calls of unit_virt_model.c. The next worker recovers, the call is
 * issued again, and nobody may notice: every result, byte and VMA is the model's, no frame that a
 * client may still have mapped is anybody else's, and in the end every frame is back.
 *
 * A loop of thousands of equal stores is not worth thousands of deaths: of each place in the code that a
 * step of the scenario reaches, the first store is the last of a worker, and some of the others, at
 * random. ARENA_TEST_SWEEP=all takes every one, ARENA_TEST_STEP=16 only those of one step, ARENA_TEST_DEATH=1234,56 runs one trial: death at
 * store 1234, and at the next worker's 56th. ARENA_TEST_SEED repeats the random part, ARENA_TEST_OPS
 * sets its length.
 */
#include "tests/virt_crash.h"

int virt_model_main(void);
#define main virt_model_main
#include "tests/unit_virt_model.c"
#undef main

/* ---- what survives -------------------------------------------------------------------------- */

static void crash_reborn(void)
{
	unsigned i;

	w.workers++;
	memset(w.wait, 0, sizeof(w.wait));
	memset(w.waiting, 0, sizeof(w.waiting));
	for (i = 0; i < NR_CLIENTS; i++) {
		struct fake_client *c = w.client[i].c;

		if (!c)
			continue;
		c->mm = crash_find(c->id);
		/* Its end may have been what the worker died of. */
		if (!c->mm)
			continue;
		client_reborn(c);
		assert_true(client_check_tlb(c));
	}
}

/* Every byte of every page that was ever written, seen by its client. */
static void verify_client(struct mclient *mc)
{
	uint64_t i, n;

	for (i = 0; i < NR_CHUNKS; i++)
		for (n = 0; mc->chunk[i] && n < ARENA_LEAF_PAGES; n++) {
			struct mpage *p = &mc->chunk[i][n];
			uint64_t addr = mc->base + LEAF(i) + PAGE(n);
			struct fault_refusal refusal;
			uint8_t *at;

			if (!p->mapped || mpage_refusal(p, PROT_READ).signo ||
			    bytes_are_zero((const uint8_t *)mpage_content(p),
					   sizeof(struct content)))
				continue;
			at = client_access(mc->c, addr, PROT_READ, 0, &refusal);
			if (!at && refusal.signo == SIGBUS && memory_is_short())
				continue;
			assert_non_null(at);
			check_content(mc, addr, at, false);
		}
}

static void verify_all(void)
{
	unsigned i;

	for (i = 0; i < NR_CLIENTS; i++)
		if (w.client[i].c)
			verify_client(&w.client[i]);
	check_all();
}

/* ---- the scenario --------------------------------------------------------------------------- */

static struct mclient *const A = &w.client[0], *const B = &w.client[1], *const C = &w.client[2];

static uint64_t map(struct mclient *mc, uint64_t addr, uint64_t len, uint32_t prot, uint32_t flags,
		    struct mhandle *h, uint64_t offset)
{
	struct vm_mmap_args a = {.addr = addr,
				 .len = len,
				 .prot = prot,
				 .flags = flags | (h ? 0 : MAP_ANONYMOUS),
				 .segment = h ? h->handle : 0,
				 .offset = (int64_t)offset};
	uint64_t at = 0;

	assert_int_equal(vm_mmap(mc->c->mm, &a, &at), expect_mmap(mc, &a, h));
	if (!at)
		return 0;
	check_place(mc, &a, at);
	model_mmap(mc, &a, h, at);
	return at;
}

static void unmap(struct mclient *mc, uint64_t at, uint64_t len)
{
	uint64_t addr;

	assert_int_equal(vm_munmap(mc->c->mm, at, len), 0);
	for (addr = at; addr < at + len; addr += ARENA_PAGE_SIZE)
		if (mpage_at(mc, addr)->mapped)
			mpage_unmap(mpage_at(mc, addr));
}

static void protect(struct mclient *mc, uint64_t at, uint64_t len, uint32_t prot)
{
	uint64_t addr;

	assert_int_equal(vm_mprotect(mc->c->mm, at, len, prot), 0);
	for (addr = at; addr < at + len; addr += ARENA_PAGE_SIZE)
		mpage_at(mc, addr)->prot = (uint8_t)prot;
}

static void advise(struct mclient *mc, uint64_t at, uint64_t len, int advice)
{
	uint64_t addr;

	assert_int_equal(vm_madvise(mc->c->mm, at, len, advice, 0), 0);
	for (addr = at; addr < at + len; addr += ARENA_PAGE_SIZE) {
		struct mpage *p = mpage_at(mc, addr);

		if (advice == MADV_HUGEPAGE)
			p->flags |= VM_HUGEPAGE;
		if (advice == MADV_NORMAL || advice == MADV_NOHUGEPAGE)
			p->flags &= ~VM_HUGEPAGE;
		if (advice == MADV_NOHUGEPAGE)
			p->flags |= VM_NOHUGEPAGE;
		if (advice == MADV_DONTNEED && (!p->object || p->own)) {
			mpage_wipe(p);
		}
	}
}

static void access_at(struct mclient *mc, uint64_t addr, bool write)
{
	struct mpage *p = mpage_at(mc, addr);
	struct fault_refusal got, want = mpage_refusal(p, write ? PROT_WRITE : PROT_READ);
	uint8_t *at = client_access(mc->c, addr, write ? PROT_WRITE : PROT_READ, 0, &got);

	assert_int_equal(got.signo, want.signo);
	assert_int_equal(got.code, want.code);
	if (!at)
		return;
	if (write && p->object && !p->shared && !p->own)
		mpage_copy(p);
	check_content(mc, addr, at, true);
	if (write)
		write_word(p, at);
}

static void put(struct mclient *mc, uint64_t addr)
{
	access_at(mc, addr, true);
}

static void get(struct mclient *mc, uint64_t addr)
{
	access_at(mc, addr, false);
}

static struct mhandle *open_segment(struct mclient *mc, int name, int oflag, uint32_t mode)
{
	struct mobject *o = named(name);
	struct segment_open open;
	struct mhandle *h = mc->handle;

	while (h->handle)
		h++;
	assert_int_equal(client_open(mc->c, names[name], oflag, mode, &open),
			 expect_open(mc, o, oflag));
	if (!o) {
		o = mobject_new(w.object);
		o->name = name;
		o->uid = mc->c->cred.uid;
		o->gid = mc->c->cred.gid;
		o->mode = mode;
	}
	assert_int_equal(open.size, o->size);
	assert_true(mc->c->slot_fd[open.slot] >= 0);
	o->handles++;
	*h = (struct mhandle){
		.handle = open.handle, .object = o, .slot = open.slot, .writable = oflag & O_RDWR};
	return h;
}

static void close_segment(struct mclient *mc, struct mhandle *h)
{
	assert_int_equal(mm_close_segment(mc->c->mm, h->handle), 0);
	h->object->handles--;
	mobject_put(h->object);
	*h = (struct mhandle){0};
}

static void resize(struct mclient *mc, struct mhandle *h, uint64_t size)
{
	struct flush_wait wait;
	int r;

	do {
		wait = (struct flush_wait){0};
		r = mm_truncate_segment(mc->c->mm, h->handle, (int64_t)size, &wait);
		flush_wait_cancel(&wait);
	} while (flushed_again(mc, &r));
	assert_int_equal(r, 0);
	truncated(h->object, size);
}

static void unlink_segment(struct mclient *mc, int name)
{
	struct mobject *o = named(name);

	assert_int_equal(segment_unlink(w.m.virt, &mc->c->cred, names[name]), 0);
	o->name = -1;
	mobject_put(o);
}

static struct mblock *alloc_block(struct mclient *mc, unsigned order)
{
	struct mblock *b = mc->block;
	uint64_t addr, pfn, i;

	while (b->addr)
		b++;
	assert_int_equal(vm_alloc_pages(mc->c->mm, ARENA_GFP_HIGHMEM, order, 0, &addr, &pfn), 0);
	*b = (struct mblock){.addr = addr, .order = order};
	for (i = 0; i < UINT64_C(1) << order; i++)
		*mpage_at(mc, addr + PAGE(i)) =
			(struct mpage){.mapped = true, .direct = true, .prot = PROT_RW};
	put(mc, addr);
	put(mc, addr + PAGE((UINT64_C(1) << order) - 1));
	return b;
}

static void free_block(struct mclient *mc, struct mblock *b)
{
	uint64_t i;

	assert_int_equal(vm_free_pages(mc->c->mm, b->addr, b->order), 0);
	for (i = 0; i < UINT64_C(1) << b->order; i++)
		mpage_unmap(mpage_at(mc, b->addr + PAGE(i)));
	b->addr = 0;
}

static void populate(struct mclient *mc, uint64_t at, uint64_t len, bool write)
{
	uint64_t next = at;

	while (at < next + len && len) {
		assert_int_equal(vm_populate(mc->c->mm, at, len, write, 0, &next), 0);
		len -= next - at;
		at = next;
	}
	sync_copies(mc, at - len, at);
}

/* What one step leaves to the next. */
static struct {
	uint64_t anon, shared, fixed, seg, seg_c, priv_c, own, odd;
	struct mhandle *a, *a_c, *a_ro, *b;
	struct mblock *small, *block, *leaf, *huge;
} s;

static void step_start(void)
{
	client_start(A, 1000, ARENA_WINDOW_BASE);
	client_start(B, 1000, ARENA_WINDOW_BASE);
	client_start(C, 1001, ARENA_WINDOW_BASE + (UINT64_C(1) << 40));
}

static void step_anon(void)
{
	s.anon = map(A, 0, LEAF(3) + PAGE(8), PROT_RW, MAP_PRIVATE, NULL, 0);
	put(A, s.anon + PAGE(5));
	put(A, s.anon + LEAF(1));
	put(A, s.anon + LEAF(2) + PAGE(7)); /* ahead */
	put(A, s.anon + LEAF(3) + PAGE(2));
	get(A, s.anon + LEAF(3) + PAGE(1));
	assert_true(client_is_leaf(A->c, s.anon));
}

static void step_split(void)
{
	unmap(A, s.anon + PAGE(6), PAGE(1)); /* a VMA and a leaf in two */
	put(A, s.anon + PAGE(7));
	get(A, s.anon + PAGE(5));
}

static void step_protect(void)
{
	protect(A, s.anon + LEAF(1), PAGE(512), PROT_READ);
	access_at(A, s.anon + LEAF(1), true);
	protect(A, s.anon + LEAF(1), PAGE(512), PROT_NONE);
	access_at(A, s.anon + LEAF(1), false);
	protect(A, s.anon + LEAF(1), PAGE(512), PROT_RW); /* joined again */
	put(A, s.anon + LEAF(1));
	protect(A, s.anon + PAGE(100), PAGE(3), PROT_READ);
}

static void step_fixed(void)
{
	map(A, s.anon + PAGE(200), PAGE(20), PROT_RW, MAP_PRIVATE | MAP_FIXED, NULL, 0);
	get(A, s.anon + PAGE(201));
	s.fixed = map(A, s.anon + PAGE(6), PAGE(1), PROT_RW, MAP_SHARED | MAP_FIXED_NOREPLACE, NULL,
		      0);
	put(A, s.fixed);
	map(A, s.anon + PAGE(6), PAGE(1), PROT_RW, MAP_PRIVATE | MAP_FIXED_NOREPLACE, NULL, 0);
	get(A, s.fixed);
}

static void step_shared(void)
{
	s.shared = map(A, 0, LEAF(1) + PAGE(4), PROT_RW, MAP_SHARED, NULL, 0);
	put(A, s.shared + PAGE(3));
	put(A, s.shared + LEAF(1) + PAGE(1));
	unmap(A, s.shared + PAGE(8), PAGE(2));
	get(A, s.shared + PAGE(3));
	put(A, s.shared + PAGE(10));
}

static void step_segment(void)
{
	s.a = open_segment(A, 0, O_RDWR | O_CREAT | O_EXCL, 0666);
	resize(A, s.a, LEAF(3) + PAGE(3));
	s.seg = map(A, 0, LEAF(3) + PAGE(3), PROT_RW, MAP_SHARED, s.a, 0);
	put(A, s.seg + PAGE(1));
	put(A, s.seg + LEAF(1));
	put(A, s.seg + LEAF(3) + PAGE(1));
	s.a_c = open_segment(C, 0, O_RDWR, 0);
	s.seg_c = map(C, 0, LEAF(2), PROT_RW, MAP_SHARED, s.a_c, 0);
	get(C, s.seg_c + PAGE(1));
	put(C, s.seg_c + LEAF(1) + PAGE(9));
	get(A, s.seg + LEAF(1) + PAGE(9));
	s.a_ro = open_segment(C, 0, O_RDONLY, 0);
	s.odd = map(C, 0, PAGE(40), PROT_READ, MAP_SHARED, s.a_ro, PAGE(1));
	get(C, s.odd);
}

static void step_cow(void)
{
	s.priv_c = map(C, 0, LEAF(1), PROT_RW, MAP_PRIVATE, s.a_c, 0);
	get(C, s.priv_c + PAGE(1));
	put(C, s.priv_c + PAGE(1)); /* takes a leaf's entry apart */
	put(C, s.priv_c + PAGE(2));
	get(A, s.seg + PAGE(1));
	put(A, s.seg + PAGE(2));
	get(C, s.priv_c + PAGE(2));
	advise(C, s.priv_c + PAGE(1), PAGE(1), MADV_DONTNEED);
	get(C, s.priv_c + PAGE(1));
}

static void step_own_segment(void)
{
	s.b = open_segment(B, 1, O_RDWR | O_CREAT, 0600);
	resize(B, s.b, PAGE(5) + 100);
	s.own = map(B, 0, PAGE(8), PROT_RW, MAP_SHARED, s.b, 0);
	put(B, s.own + PAGE(1));
	put(B, s.own + PAGE(4));
	access_at(B, s.own + PAGE(7), true);
	resize(B, s.b, PAGE(1) + 2 * WORD_STEP);
	resize(B, s.b, PAGE(6));
	get(B, s.own + PAGE(1));
	get(B, s.own + PAGE(4));
	put(B, s.own + PAGE(5));
}

static void step_truncate(void)
{
	resize(A, s.a, LEAF(1) + PAGE(9) + 5);
	get(A, s.seg + LEAF(1));
	get(C, s.seg_c + LEAF(1) + PAGE(9));
	access_at(C, s.seg_c + LEAF(1) + PAGE(10), true);
	resize(A, s.a, LEAF(1) + PAGE(40));
	get(A, s.seg + LEAF(1) + PAGE(9));
	put(C, s.seg_c + LEAF(1) + PAGE(20));
}

static void step_pages(void)
{
	s.small = alloc_block(A, 0);
	s.block = alloc_block(A, 3);
	s.leaf = alloc_block(B, 9);
	s.huge = alloc_block(A, 10);
	free_block(A, s.block);
	free_block(A, s.huge);
	s.block = alloc_block(A, 2);
	free_block(B, s.leaf);
}

static void step_ack(void)
{
	ack(A, true);
	ack(B, true);
}

static void step_advice(void)
{
	advise(A, s.anon + PAGE(300), PAGE(50), MADV_DONTNEED);
	get(A, s.anon + PAGE(301));
	advise(A, s.anon + LEAF(1), PAGE(30), MADV_HUGEPAGE);
	advise(A, s.anon + LEAF(1), PAGE(30), MADV_NOHUGEPAGE);
	advise(A, s.anon + LEAF(2), LEAF(1), MADV_DONTNEED);
	put(A, s.anon + LEAF(2));
}

static void step_populate(void)
{
	populate(A, s.anon + LEAF(2), LEAF(1) + PAGE(8), true);
	populate(B, s.own, PAGE(6), false);
	populate(C, s.priv_c + PAGE(4), PAGE(5), true);
}

static void step_late_ack(void)
{
	scribble(C);
	ack(C, true);
}

/* Zeros: mapped, taken apart, replaced, copied. */
static void step_zero(void)
{
	uint64_t at = map(B, 0, LEAF(4), PROT_RW, MAP_PRIVATE, NULL, 0);

	get(B, at + PAGE(3));
	get(B, at + LEAF(1)); /* ahead */
	assert_true(pfn_is_zeros(&w.m, client_pfn(B->c, at + LEAF(1))));
	put(B, at + LEAF(1) + PAGE(1));
	put(B, at + LEAF(2));
	unmap(B, at + PAGE(8), PAGE(2));
	put(B, at + PAGE(7));
	get(B, at + PAGE(6));
	protect(B, at, PAGE(4), PROT_READ);
	get(B, at + PAGE(3));
	unmap(B, at, PAGE(8));
	unmap(B, at + PAGE(10), LEAF(4) - PAGE(10));
}

static void expect_at(const struct mclient *mc, uint64_t at, uint64_t value)
{
	struct fault_refusal refusal;
	uint8_t *p = client_access(mc->c, at, PROT_READ, 0, &refusal);

	assert_true(p && memcmp(p, &value, sizeof(value)) == 0);
}

/* Frames mapped by number, in two places, moved, and living longer than their block. The model does not
 * know of these mappings: none is left. */
static void step_pfn(void)
{
	struct mblock *b = alloc_block(B, 3);
	uint64_t pfn = client_pfn(B->c, b->addr), at = 0, to = 0, value;
	struct vm_mmap_args a = {.len = PAGE(8), .prot = PROT_RW};
	struct vm_mremap_args move = {.old_len = PAGE(6), .new_len = PAGE(6)};
	struct fault_refusal refusal;
	unsigned vmas = count_vmas(B->c);

	memcpy(&value, client_access(B->c, b->addr + PAGE(7), PROT_READ, 0, &refusal),
	       sizeof(value));
	assert_int_equal(vm_mmap_pfn(B->c->mm, &a, pfn, &at), 0);
	expect_at(B, at + PAGE(7), value);
	a = (struct vm_mmap_args){
		.addr = at, .len = PAGE(2), .prot = PROT_READ, .flags = MAP_FIXED};
	assert_int_equal(vm_mmap_pfn(B->c->mm, &a, pfn + 6, &at), 0);
	expect_at(B, at + PAGE(1), value);
	free_block(B, b);
	move.old = at + PAGE(2);
	move.flags = MREMAP_MAYMOVE | MREMAP_FIXED;
	move.new_addr = at + PAGE(100);
	if (area_is_free(B->c->mm, move.new_addr, move.new_addr + PAGE(6)))
		assert_int_equal(vm_mremap(B->c->mm, &move, &to), 0);
	else
		to = move.old;
	expect_at(B, to + PAGE(5), value);
	assert_int_equal(vm_munmap(B->c->mm, at, PAGE(2)), 0);
	expect_at(B, to + PAGE(5), value);
	assert_int_equal(vm_munmap(B->c->mm, to, PAGE(6)), 0);
	assert_int_equal(count_vmas(B->c), vmas);
}

#include "tests/virt_scenario_calls.h"

static void step_close(void)
{
	close_segment(C, s.a_ro);
	unmap(C, s.odd, PAGE(40));
	unlink_segment(A, 0);
	close_segment(A, s.a);
	unmap(A, s.seg, LEAF(3) + PAGE(3));
	close_segment(C, s.a_c);
	get(C, s.seg_c + PAGE(1));
	unmap(C, s.seg_c, LEAF(2));
	ack(A, true);
	close_segment(B, s.b);
	unlink_segment(B, 1);
}

static void step_unmap(void)
{
	unmap(A, s.shared, LEAF(1) + PAGE(4));
	unmap(A, s.anon, LEAF(2));
	free_block(A, s.small);
}

static void step_death(void)
{
	client_end(C); /* with much in limbo, and the last user of the segment */
	client_end(A);
}

static void step_new_client(void)
{
	client_start(A, 1002, ARENA_WINDOW_BASE);
	put(A, map(A, 0, LEAF(1), PROT_RW, MAP_PRIVATE, NULL, 0));
	put(B, map(B, 0, LEAF(2), PROT_RW, MAP_PRIVATE, NULL, 0));
}

static void step_end(void)
{
	client_end(A);
	client_end(B);
}

static void (*const steps[])(void) = {
	step_start,    step_anon,        step_split,    step_protect,
	step_fixed,    step_shared,      step_segment,  step_cow,
	step_ack,      step_own_segment, step_zero,     step_pfn,
	step_truncate, step_pages,       step_ack,      step_advice,
	step_populate, step_hole,        step_file,     step_file_hold,
	step_late_ack, step_mremap,      step_heap,     step_lock,
	step_policy,   step_pin,         step_gather,   step_collapse,
	step_fork,     step_cow_calls,   step_snapshot, step_snapshot_shared,
	step_close,    step_unmap,       step_death,    step_new_client,
	step_ack,      step_end,
};

static void scenario_up(void)
{
	w.rng.state = 7;
	w.next_pid = 100;
	store_fake();
	crash.m = &w.m;
	fake_others_flush = others_ack;
	machine_up(&w.m, UINT64_C(64) << 20, 1);
}

static unsigned step_now;

static void scenario_run(void)
{
	unsigned deaths = 0;

	for (step_now = 0; step_now < ARRAY_SIZE(steps); step_now++) {
		steps[step_now]();
		if (crash.deaths != deaths) {
			deaths = crash.deaths;
			verify_all();
		}
	}
	machine_down(&w.m);
}

/* ---- the sweep ------------------------------------------------------------------------------ */

#define MAX_POINTS 100000
#define SITES 4096

/* Which stores are worth a death; shared with the child that finds out. */
struct survey {
	uint64_t stores, nr;
	struct {
		uint32_t store;
		bool first; /* of its place */
		uint16_t step;
	} point[MAX_POINTS];
};
static struct survey *survey;

static struct {
	uintptr_t at;
	unsigned n;
} sites[SITES];

static void survey_store(uintptr_t site)
{
	static unsigned last_step;
	unsigned i = (unsigned)(site * 2654435761u >> 8) % SITES;

	if (last_step != step_now)
		memset(sites, 0, sizeof(sites));
	last_step = step_now;
	while (sites[i].at && sites[i].at != site)
		i = (i + 1) % SITES;
	sites[i].at = site;
	survey->stores = truth_stores;
	if (++sites[i].n > 3 && sites[i].n % 211 && !getenv("ARENA_TEST_SWEEP"))
		return;
	assert_true(survey->nr < MAX_POINTS);
	survey->point[survey->nr].store = (uint32_t)truth_stores;
	survey->point[survey->nr].step = (uint16_t)step_now;
	survey->point[survey->nr++].first = sites[i].n == 1;
}

/* Sanitizers take ten times as long. */
static bool worth_a_death(uint64_t i)
{
	const unsigned slow = TEST_SANITIZED ? 24 : 9;
	const char *step = getenv("ARENA_TEST_STEP");

	if (step && survey->point[i].step != strtoul(step, NULL, 0))
		return false;
	return getenv("ARENA_TEST_SWEEP") || below(survey->point[i].first ? slow : 8 * slow) == 0;
}

static uint64_t again_after; /* stores of the second worker */

static uint64_t die_again(void)
{
	uint64_t n = again_after;

	again_after = 0;
	return n;
}

static void survey_child(void)
{
	scenario_up();
	crash.survey = survey_store;
	scenario_run();
}

static uint64_t trial_death;

static void trial_child(void)
{
	scenario_up();
	crash_arm(trial_death);
	crash.after_death = die_again;
	scenario_run();
}

static unsigned trial(uint64_t death, uint64_t again)
{
	unsigned deaths;

	trial_death = death;
	again_after = again;
	if (!in_child(trial_child, &deaths))
		fail_msg("the worker died at store %lu, the next at %lu, and that was noticed",
			 (unsigned long)death, (unsigned long)again);
	return deaths;
}

static void take_survey(void)
{
	unsigned deaths;

	survey = mmap(NULL, sizeof(*survey), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	assert_true(survey != MAP_FAILED);
	assert_true(in_child(survey_child, &deaths));
	assert_true(survey->nr > 500);
}

static void test_sweep(void **state)
{
	uint64_t i, n = 0;

	(void)state;
	take_survey();
	w.rng.state = test_seed();
	for (i = 0; i < survey->nr; i++) {
		if (!worth_a_death(i))
			continue;
		assert_int_equal(trial(survey->point[i].store, 0), 1);
		n++;
	}
	printf("%lu stores, %lu deaths\n", (unsigned long)survey->stores, (unsigned long)n);
}

/* The next worker dies as well, in recovery or soon after. */
static void test_sweep_twice(void **state)
{
	uint64_t i, again, n = 0;
	unsigned deaths;

	(void)state;
	take_survey();
	w.rng.state = test_seed();
	for (i = 1 + below(150); i < survey->nr; i += 1 + below(TEST_SANITIZED ? 2000 : 1000)) {
		again = 1 + below(3);
		do {
			deaths = trial(survey->point[i].store, again);
			again += 1 + below(1 + again);
			n++;
		} while (deaths == 2 && again < 3000);
	}
	printf("%lu deaths in recovery\n", (unsigned long)n);
}

/* ---- at random -------------------------------------------------------------------------------- */

/* A fork that is begun anew each time needs somebody who lives to its end. */
static uint64_t random_life(void)
{
	return 1 + (chance(15) ? below(100) : below(6000)) * (1 + crash.call_deaths);
}

/* What dead workers had open stays open in this process. */
static void allow_descriptors(void)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = limit.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static void random_child(void)
{
	const char *length = getenv("ARENA_TEST_OPS");
	unsigned long n = length ? strtoul(length, NULL, 0) : 6000, i;
	unsigned deaths = 0;

	allow_descriptors();
	w.next_pid = 100;
	store_fake();
	crash.m = &w.m;
	fake_others_flush = others_ack;
	machine_up(&w.m, ARENA_BYTES, 2);
	crash.after_death = random_life;
	crash_arm(random_life());
	for (i = 0; i < n; i++) {
		struct mclient *mc = &w.client[below(NR_CLIENTS)];

		if (!mc->c)
			client_new(mc);
		random_op(mc);
		if (chance(20) && !mc->deaf)
			ack(mc, chance(30));
		if (below(1500) == 0)
			client_end(mc);
		if (memory_is_short() && chance(20))
			make_room();
		if (below(3000) == 0)
			everybody_acks();
		if (crash.deaths != deaths) {
			deaths = crash.deaths;
			check_all();
			if (chance(20))
				verify_all();
		}
	}
	verify_all();
	for (i = 0; i < NR_CLIENTS; i++)
		client_end(&w.client[i]);
	printf("%lu calls, %lu writes, %lu refusals, %lu stale writes, %lu times no memory, %u "
	       "deaths\n",
	       n, w.writes, w.refusals, w.scribbles, w.no_memory, crash.deaths);
	machine_down(&w.m);
}

static void test_random(void **state)
{
	unsigned deaths;

	(void)state;
	w.rng.state = test_seed();
	assert_true(in_child(random_child, &deaths));
	assert_true(deaths > 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sweep),
		cmocka_unit_test(test_sweep_twice),
		cmocka_unit_test(test_random),
	};

	const char *one = getenv("ARENA_TEST_DEATH");

	log_set_level(getenv("ARENA_TEST_LOG") ? LOG_LEVEL_INFO : LOG_LEVEL_ERR);
	if (one) {
		char *more;

		trial_death = strtoull(one, &more, 0);
		again_after = *more ? strtoull(more + 1, NULL, 0) : 0;
		trial_child();
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
