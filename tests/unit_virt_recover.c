/* SPDX-License-Identifier: MIT */
/*
 * What a new worker makes of the truth when the old one died between two calls: the indexes, limbo,
 * slots, the journal, and memory that runs out meanwhile. Death inside calls is
 * unit_virt_recover_sweep.c, damage unit_virt_recover_damage.c.
 */
#include <fcntl.h>

#include "tests/virt_crash.h"

#define ARENA_SIZE (UINT64_C(64) << 20)

static struct fake_machine m;
static struct fake_client *client[4];

static void crash_reborn(void)
{
	for (unsigned i = 0; i < ARRAY_SIZE(client); i++) {
		if (!client[i])
			continue;
		client[i]->mm = crash_find(client[i]->id);
		assert_non_null(client[i]->mm);
		client_reborn(client[i]);
		assert_true(client_check_tlb(client[i]));
	}
}

static void up(void)
{
	store_fake();
	crash.m = &m;
	machine_up(&m, ARENA_SIZE, 1);
	client[0] = client_up(&m, 1000, 1);
	client[1] = client_up(&m, 1000, 2);
	client[2] = client_up(&m, 1001, 3);
}

static void down(void)
{
	for (unsigned i = 0; i < ARRAY_SIZE(client); i++)
		client[i] = client_down(client[i]);
	machine_down(&m);
}

static void run(void (*fn)(void))
{
	unsigned deaths;

	assert_true(in_child(fn, &deaths));
}

static void put(struct fake_client *c, uint64_t addr, uint64_t value)
{
	memcpy(client_write(c, addr), &value, sizeof(value));
}

static uint64_t get(struct fake_client *c, uint64_t addr)
{
	uint64_t value;

	memcpy(&value, client_read(c, addr), sizeof(value));
	return value;
}

static uint32_t segment(struct fake_client *c, const char *name, int oflag, uint32_t mode)
{
	struct segment_open open;

	assert_int_equal(client_open(c, name, oflag, mode, &open), 0);
	return open.handle;
}

static void everybody_acks(void)
{
	for (unsigned i = 0; i < ARRAY_SIZE(client); i++)
		if (client[i])
			client_ack_all(client[i]);
}

/* ---- indexes --------------------------------------------------------------------------------- */

static void same_stats(struct fake_client *c, const struct mm_stats *was)
{
	struct mm_stats now;

	mm_get_stats(c->mm, &now);
	assert_int_equal(now.total_vm, was->total_vm);
	assert_int_equal(now.rss_anon, was->rss_anon);
	assert_int_equal(now.rss_file, was->rss_file);
	assert_int_equal(now.rss_shmem, was->rss_shmem);
	assert_int_equal(now.leaves, was->leaves);
	assert_int_equal(now.direct_pages, was->direct_pages);
	assert_int_equal(now.nr_vmas, was->nr_vmas);
	assert_int_equal(now.tables, was->tables);
}

static void everything_comes_back(void)
{
	uint64_t anon, seg, far, addr, pfn, pinned = 0, stat[NR_NODE_ITEMS];
	uint32_t h, g;
	struct mm_stats was[3];
	struct segment_info before, after;
	uint8_t token[16];
	unsigned i;

	up();
	anon = client_map(client[0], LEAF(2), PROT_RW, MAP_ANON_PRIVATE);
	put(client[0], anon, 1);
	put(client[0], anon + LEAF(1), 2);
	assert_int_equal(vm_munmap(client[0]->mm, anon + PAGE(9), PAGE(1)), 0);
	assert_int_equal(vm_mprotect(client[0]->mm, anon + PAGE(20), PAGE(5), PROT_READ), 0);
	/* A locked leaf across two VMAs, which differ in advice; and a pin. */
	assert_int_equal(vm_mlock(client[0]->mm, anon + LEAF(1), LEAF(1), false), 0);
	assert_int_equal(vm_madvise(client[0]->mm, anon + LEAF(1), PAGE(7), MADV_DONTFORK, NULL),
			 0);
	assert_int_equal(vm_pin(client[0]->mm, anon, PAGE(1), true, 0, &pinned), 0);
	h = segment(client[0], "ours", O_RDWR | O_CREAT, 0666);
	segment(client[0], "mine", O_RDWR | O_CREAT, 0600);
	assert_int_equal(mm_truncate_segment(client[0]->mm, h, (int64_t)LEAF(2) + 9, NULL), 0);
	seg = client_map_segment(client[0], h, LEAF(2) + PAGE(1), PROT_RW, MAP_SHARED, 0);
	put(client[0], seg + PAGE(3), 3);
	put(client[0], seg + LEAF(2), 4);
	g = segment(client[2], "ours", O_RDONLY, 0);
	far = client_map_segment(client[2], g, LEAF(1), PROT_READ, MAP_SHARED, 0);
	assert_int_equal(get(client[2], far + PAGE(3)), 3);
	assert_int_equal(vm_alloc_pages(client[1]->mm, ARENA_GFP_HIGHMEM, 3, 0, &addr, &pfn), 0);
	put(client[1], addr + PAGE(7), 5);
	everybody_acks();
	for (i = 0; i < 3; i++)
		mm_get_stats(client[i]->mm, &was[i]);
	memcpy(stat, phys_node(m.phys, 0)->stat, sizeof(stat));
	memcpy(token, mm_token(client[0]->mm), sizeof(token));
	assert_true(segment_next(m.virt, 0, &before));

	crash_recover();
	assert_int_equal(crash.stats.clients, 3);
	assert_int_equal(crash.stats.objects, 2);
	assert_int_equal(crash.stats.repaired + crash.stats.stray_frames, 0);
	assert_int_equal(crash.stats.limbo_pages, 0);
	assert_int_equal(crash.stats.phys.damaged, 0);
	for (i = 0; i < 3; i++)
		same_stats(client[i], &was[i]);
	assert_memory_equal(stat, phys_node(m.phys, 0)->stat, sizeof(stat));
	assert_memory_equal(token, mm_token(client[0]->mm), sizeof(token));
	assert_true(segment_next(m.virt, 0, &after));
	assert_string_equal(after.name, "ours");
	assert_int_equal(after.address, before.address);
	assert_int_equal(after.pages, before.pages);
	assert_int_equal(after.nr_handles, 2);
	assert_int_equal(after.nr_vmas, 2);
	/* Whoever has flushed nothing yet has everything flushed. */
	for (i = 0; i < 3; i++) {
		assert_int_equal(client[i]->channel->flush_head, client[i]->acked + 1);
		assert_int_equal(client[i]->ring[(client[i]->acked + 1) % ARENA_FLUSH_ENTRIES].op,
				 ARENA_FLUSH_ALL);
	}
	assert_int_equal(get(client[0], anon), 1);
	assert_int_equal(get(client[0], anon + LEAF(1)), 2);
	assert_int_equal(get(client[0], seg + LEAF(2)), 4);
	assert_int_equal(get(client[2], far + PAGE(3)), 3);
	assert_int_equal(get(client[1], addr + PAGE(7)), 5);
	assert_refused(client[0], anon + PAGE(20), PROT_WRITE, SIGSEGV, SEGV_ACCERR);
	assert_refused(client[0], anon + PAGE(9), PROT_READ, SIGSEGV, SEGV_MAPERR);
	assert_int_equal(mm_truncate_segment(client[2]->mm, g, 5, NULL), ARENA_E_INVALID);
	assert_int_equal(vm_free_pages(client[1]->mm, addr, 3), 0);
	put(client[0], client_map(client[0], PAGE(3), PROT_RW, MAP_ANON_PRIVATE), 6);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(segment_unlink(m.virt, &client[0]->cred, "ours"), 0);
	assert_int_equal(segment_unlink(m.virt, &client[0]->cred, "mine"), 0);
	everybody_acks();
	down();
}

static void test_everything_comes_back(void **state)
{
	(void)state;
	run(everything_comes_back);
}

static void nobody_is_there(void)
{
	store_fake();
	crash.m = &m;
	machine_up(&m, ARENA_SIZE, 2);
	crash_recover();
	assert_int_equal(crash.stats.clients + crash.stats.objects, 0);
	client[0] = client_up(&m, 1000, 1);
	put(client[0], client_map(client[0], LEAF(1), PROT_RW, MAP_ANON_PRIVATE), 1);
	down();
	assert_int_equal(store_fake_count(), 1); /* the state: phys_retire() is who ends an arena */
}

static void test_nobody_is_there(void **state)
{
	(void)state;
	run(nobody_is_there);
}

/* Worker after worker: ids are not used again, nothing is lost, nothing piles up. */
static void many_workers(void)
{
	uint64_t at, i;
	uint32_t id = 0;

	up();
	at = client_map(client[0], LEAF(1), PROT_RW, MAP_ANON_PRIVATE);
	for (i = 0; i < 50; i++) {
		put(client[0], at + PAGE(i), i + 1);
		client[3] = client_up(&m, 1002, 9);
		assert_true(client[3]->id > id);
		id = client[3]->id;
		put(client[3], client_map(client[3], PAGE(2), PROT_RW, MAP_ANON_PRIVATE), i);
		crash_recover();
		client[3] = client_down(client[3]);
		crash_recover();
		if (i % 7 == 0)
			everybody_acks();
	}
	for (i = 0; i < 50; i++)
		assert_int_equal(get(client[0], at + PAGE(i)), i + 1);
	everybody_acks();
	down();
}

static void test_many_workers(void **state)
{
	(void)state;
	run(many_workers);
}

/* ---- limbo ------------------------------------------------------------------------------------ */

/* Everything that can be had, each page with its own number in it. */
static uint64_t hoard(struct fake_client *c, uint64_t *at)
{
	struct fault_refusal refusal;
	uint64_t n;

	*at = client_map(c, ARENA_SIZE, PROT_RW, MAP_ANON_PRIVATE);
	assert_int_equal(vm_madvise(c->mm, *at, ARENA_SIZE, MADV_NOHUGEPAGE, 0), 0);
	for (n = 0; n < ARENA_SIZE >> ARENA_PAGE_SHIFT; n++) {
		uint8_t *p = client_access(c, *at + PAGE(n), PROT_WRITE, 0, &refusal);

		if (!p)
			break;
		memcpy(p, &n, sizeof(n));
	}
	return n;
}

/* Where the client wrote when it last could: what its own kernel mapping would do. */
static uint8_t *stale(struct fake_client *c, uint64_t addr)
{
	for (size_t i = 0; i < c->nr_tlb; i++) {
		const struct tlb_item *t = &c->tlb[i];
		struct domain *d;

		if (addr < t->start || addr >= t->end)
			continue;
		d = domain_by_id(m.phys, t->domain);
		assert_non_null(d);
		return (uint8_t *)domain_address(d, t->pfn) + (addr - t->start);
	}
	fail_msg("%#lx is not mapped", (unsigned long)addr);
	return NULL;
}

/* What another client of the domain gets after the crash is not what one that has not flushed writes
 * to, be the frame nobody's by now or still an object's. */
static void check_stale(struct fake_client *writer, uint64_t addr, struct fake_client *other)
{
	uint64_t at, n = hoard(other, &at), i;

	assert_true(n > 1000);
	memset(stale(writer, addr), 0xee, ARENA_PAGE_SIZE);
	for (i = 0; i < n; i++)
		assert_int_equal(get(other, at + PAGE(i)), i);
	assert_true(client_check_tlb(writer));
	assert_int_equal(vm_munmap(other->mm, at, ARENA_SIZE), 0);
	client_ack_all(other);
}

static void limbo_is_kept(void)
{
	uint64_t small, leaf, used;

	up();
	small = client_map(client[0], PAGE(4), PROT_RW, MAP_ANON_PRIVATE);
	leaf = client_map(client[0], LEAF(1), PROT_RW, MAP_ANON_PRIVATE);
	put(client[0], small, 1);
	put(client[0], leaf + PAGE(100), 2);
	assert_int_equal(vm_munmap(client[0]->mm, small, PAGE(4)), 0);
	assert_int_equal(vm_munmap(client[0]->mm, leaf, LEAF(1)), 0);
	used = domain_used_pages(mm_domain(client[0]->mm));
	crash_recover();
	assert_int_equal(domain_used_pages(mm_domain(client[0]->mm)), used);
	/* The neighbour has flushed; it could not have had them mapped, but who can tell. */
	client_ack_all(client[1]);
	assert_int_equal(domain_used_pages(mm_domain(client[0]->mm)), used);
	check_stale(client[0], small, client[1]);
	check_stale(client[0], leaf + PAGE(100), client[1]);
	/* The next worker knows as little as this one. */
	crash_recover();
	check_stale(client[0], leaf + PAGE(100), client[1]);
	client_ack_all(client[0]);
	client_ack_all(client[1]);
	assert_int_equal(domain_used_pages(mm_domain(client[0]->mm)), 0);
	down();
}

static void test_limbo_is_kept(void **state)
{
	(void)state;
	run(limbo_is_kept);
}

/* Dead, the client acknowledges everything. */
static void limbo_ends_with_death(void)
{
	uint64_t at;

	up();
	at = client_map(client[0], LEAF(1), PROT_RW, MAP_ANON_PRIVATE);
	put(client[0], at, 1);
	assert_int_equal(vm_munmap(client[0]->mm, at, LEAF(1)), 0);
	client_ack_all(client[1]);
	crash_recover();
	client_ack_all(client[1]);
	client[0] = client_down(client[0]);
	assert_int_equal(domain_used_pages(mm_domain(client[1]->mm)), 0);
	down();
}

static void test_limbo_ends_with_death(void **state)
{
	(void)state;
	run(limbo_ends_with_death);
}

/*
 * A frame that the object still has when the worker dies, but that one client was told to let go: freed
 * by somebody else afterwards it must wait for that client too.
 */
static void shared_frames_are_kept(void)
{
	uint64_t a, b;
	uint32_t h, g;

	up();
	h = segment(client[0], "mine", O_RDWR | O_CREAT, 0600);
	g = segment(client[1], "mine", O_RDWR, 0);
	assert_int_equal(mm_truncate_segment(client[0]->mm, h, (int64_t)PAGE(8), NULL), 0);
	a = client_map_segment(client[0], h, PAGE(8), PROT_RW, MAP_SHARED, 0);
	b = client_map_segment(client[1], g, PAGE(8), PROT_RW, MAP_SHARED, 0);
	put(client[0], a, 1);
	put(client[1], b, 2);
	assert_int_equal(vm_munmap(client[1]->mm, b, PAGE(8)), 0);
	crash_recover();
	assert_int_equal(get(client[0], a), 2);
	assert_int_equal(mm_truncate_segment(client[0]->mm, h, 0, NULL), 0);
	client_ack_all(client[0]);
	client_ack_all(client[2]);
	check_stale(client[1], b, client[0]);
	/* It grows back with zeros, also when the next worker looks for its frames. */
	assert_int_equal(mm_truncate_segment(client[0]->mm, h, (int64_t)PAGE(8), NULL), 0);
	crash_recover();
	assert_int_equal(get(client[0], a), 0);
	everybody_acks();
	assert_int_equal(segment_unlink(m.virt, &client[0]->cred, "mine"), 0);
	down();
}

static void test_shared_frames_are_kept(void **state)
{
	(void)state;
	run(shared_frames_are_kept);
}

/* The slot through which it has frames mapped is closed, and with it all that would say so but its
 * record. */
static void closed_slots_are_kept(void)
{
	uint64_t a, c;
	uint32_t h, g, slot;
	struct domain *d;

	up();
	h = segment(client[0], "ours", O_RDWR | O_CREAT, 0666);
	g = segment(client[2], "ours", O_RDWR, 0);
	assert_int_equal(mm_truncate_segment(client[0]->mm, h, (int64_t)PAGE(2), NULL), 0);
	a = client_map_segment(client[0], h, PAGE(2), PROT_RW, MAP_SHARED, 0);
	c = client_map_segment(client[2], g, PAGE(2), PROT_RW, MAP_SHARED, 0);
	put(client[2], c, 2);
	put(client[0], a, 1);
	slot = client[2]->mm->handles[g - 1].slot;
	d = client[2]->mm->slots[slot].domain;
	assert_int_equal(vm_munmap(client[2]->mm, c, PAGE(2)), 0);
	assert_int_equal(mm_close_segment(client[2]->mm, g), 0);
	assert_ptr_equal(client[2]->mm->slots[slot].domain, d);
	crash_recover();
	assert_non_null(client[2]->mm->slots[slot].domain);
	assert_int_equal(mm_truncate_segment(client[0]->mm, h, 0, NULL), 0);
	client_ack_all(client[0]);
	client_ack_all(client[1]);
	assert_int_equal(mm_truncate_segment(client[0]->mm, h, (int64_t)PAGE(2), NULL), 0);
	assert_int_equal(get(client[0], a), 0);
	memset(stale(client[2], c), 0xee, ARENA_PAGE_SIZE);
	assert_int_equal(get(client[0], a), 0);
	client_ack_all(client[2]);
	assert_null(client[2]->mm->slots[slot].domain);
	assert_int_equal(client[2]->mm->slot_records[slot].domain, 0);
	everybody_acks();
	assert_int_equal(segment_unlink(m.virt, &client[0]->cred, "ours"), 0);
	down();
}

static void test_closed_slots_are_kept(void **state)
{
	(void)state;
	run(closed_slots_are_kept);
}

/* A table that was taken out of the tree before the crash is no other's before the client has flushed:
 * it may be in the middle of a walk. */
static void tables_are_kept(void)
{
	uint64_t a, far;
	uint32_t table;
	struct pte_ref ref;
	struct mm_stats stats;

	up();
	a = client_map(client[0], PAGE(4), PROT_RW, MAP_ANON_PRIVATE);
	put(client[0], a, 1);
	assert_true(pgtable_lookup(client[0]->mm, a, &ref));
	table = ref.table;
	assert_int_equal(vm_munmap(client[0]->mm, a, PAGE(4)), 0);
	crash_recover();
	for (far = ARENA_WINDOW_BASE + LEAF(9000); far < ARENA_WINDOW_BASE + LEAF(9008);
	     far += LEAF(1)) {
		assert_int_equal(client_mmap(client[0], far, PAGE(1), PROT_RW,
					     MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &a),
				 0);
		put(client[0], a, far);
		assert_true(pgtable_lookup(client[0]->mm, a, &ref));
		assert_int_not_equal(ref.table, table);
	}
	client_ack_all(client[0]);
	mm_get_stats(client[0]->mm, &stats);
	assert_int_equal(stats.tables, 1 + 1 + 1 + 8);
	for (far = ARENA_WINDOW_BASE + LEAF(9000); far < ARENA_WINDOW_BASE + LEAF(9008);
	     far += LEAF(1))
		assert_int_equal(get(client[0], far), far);
	everybody_acks();
	down();
}

static void test_tables_are_kept(void **state)
{
	(void)state;
	run(tables_are_kept);
}

/* Acknowledgements are the client's word: more than was posted is as much as was posted. */
static void hostile_acks(void)
{
	uint64_t at;

	up();
	at = client_map(client[0], LEAF(1), PROT_RW, MAP_ANON_PRIVATE);
	put(client[0], at, 1);
	client[0]->channel->flush_ack = UINT64_MAX;
	client[0]->channel->flush_head = 77777;
	memset(client[0]->ring, 0xff, ARENA_FLUSH_ENTRIES * sizeof(*client[0]->ring));
	client[1]->channel->flush_ack = UINT64_MAX / 2;
	crash_recover();
	assert_int_equal(client[0]->channel->flush_head, mm_flush_posted(client[0]->mm));
	assert_int_equal(client[0]->ring[1].op, ARENA_FLUSH_ALL);
	assert_int_equal(get(client[0], at), 1);
	down();
}

static void test_hostile_acks(void **state)
{
	(void)state;
	run(hostile_acks);
}

/* ---- the journal ------------------------------------------------------------------------------ */

/* The calls as they are, the journal is the test's. */
static int plain_mmap(struct mm *mm, const struct vm_mmap_args *a, uint64_t *out)
{
	struct crash_args k = {.in = a};
	int r = crash_do_mmap(mm, &k);

	*out = k.a;
	return r;
}

static int plain_alloc(struct mm *mm, uint64_t *addr)
{
	struct crash_args k = {0};
	int r = crash_do_alloc(mm, &k);

	*addr = k.a;
	return r;
}

static int plain_free(struct mm *mm, uint64_t addr, unsigned order)
{
	struct crash_args k = {.a = addr, .e = order};

	return crash_do_free(mm, &k);
}

/* What a worker noted is of use to the very call it was noted for, and to no other. */
static void prepared_for_another(void)
{
	struct state *s = &m.state;
	uint64_t at, other, addr, arg[JOURNAL_ARGS];
	struct vm_mmap_args a = {.len = PAGE(3), .prot = PROT_RW, .flags = MAP_ANON_PRIVATE};
	struct mm *one, *two;

	up();
	one = client[0]->mm;
	two = client[1]->mm;
	at = client_map(client[0], PAGE(3), PROT_RW, MAP_ANON_PRIVATE);
	journal_begin(s, 1, 0, 1, 1);
	assert_int_equal(plain_mmap(one, &a, &at), 0);
	/* Another client's, another call, another length: done as if nothing had been noted. */
	journal_set_resuming(s);
	assert_int_equal(plain_mmap(two, &a, &other), 0);
	assert_int_equal(count_vmas(client[1]), 1);
	journal_clear(s);
	journal_begin(s, 1, 0, 1, 1);
	assert_int_equal(plain_mmap(one, &a, &at), 0);
	journal_set_resuming(s);
	assert_int_equal(plain_alloc(one, &addr), 0);
	assert_false(journal_resume(s, arg));
	journal_set_resuming(s);
	assert_int_equal(plain_free(one, addr, 1), ARENA_E_INVALID);
	journal_set_resuming(s);
	assert_int_equal(plain_mmap(two, &a, &other), 0);
	journal_clear(s);
	/* The same: the same answer, and nothing new. */
	journal_begin(s, 1, 0, 1, 1);
	assert_int_equal(plain_mmap(one, &a, &at), 0);
	journal_set_resuming(s);
	assert_int_equal(plain_mmap(one, &a, &other), 0);
	assert_int_equal(other, at);
	a.len = PAGE(4);
	journal_set_resuming(s);
	assert_int_equal(plain_mmap(one, &a, &other), 0);
	assert_int_not_equal(other, at);
	journal_clear(s);
	assert_int_equal(plain_free(one, addr, 0), 0);
	everybody_acks();
	down();
}

static void test_prepared_for_another(void **state)
{
	(void)state;
	run(prepared_for_another);
}

static void journal_phases(void)
{
	struct state *s = &m.state;
	uint64_t arg[JOURNAL_ARGS] = {1, 2, 3}, got[JOURNAL_ARGS];

	up();
	journal_prepare(s, 3, arg); /* not begun: nothing */
	assert_int_equal(s->journal->phase, JOURNAL_NONE);
	journal_done(s, "x", 1);
	assert_int_equal(s->journal->phase, JOURNAL_NONE);
	journal_begin(s, 5, 6, 7, 8);
	assert_int_equal(s->journal->phase, JOURNAL_BEGUN);
	crash_recover();
	assert_int_equal(s->journal->peer, 5);
	journal_set_resuming(s);
	assert_false(journal_resume(s, got)); /* nothing was decided */
	journal_prepare(s, 3, arg);
	assert_false(journal_resume(s, got) && got[0] != 1);
	crash_recover();
	assert_false(journal_resume(s, got)); /* not told to */
	journal_set_resuming(s);
	assert_true(journal_resume(s, got));
	assert_memory_equal(got, arg, sizeof(got));
	assert_false(journal_resume(s, got)); /* once */
	journal_done(s, "reply", 6);
	crash_recover();
	assert_int_equal(s->journal->phase, JOURNAL_DONE);
	assert_int_equal(s->journal->reply_len, 6);
	assert_string_equal((const char *)s->journal->reply, "reply");
	journal_clear(s);
	crash_recover();
	assert_int_equal(s->journal->phase, JOURNAL_NONE);
	down();
}

static void test_journal_phases(void **state)
{
	(void)state;
	run(journal_phases);
}

/* ---- without memory ------------------------------------------------------------------------------ */

/* Recovery that runs out of memory says so, and the next worker finds everything as it was. */
static void no_memory(void)
{
	uint64_t at, seg, n, failed = 0;
	uint32_t h;
	char spec[32];

	up();
	at = client_map(client[0], LEAF(1), PROT_RW, MAP_ANON_PRIVATE);
	put(client[0], at, 1);
	assert_int_equal(vm_munmap(client[0]->mm, at + PAGE(2), PAGE(1)), 0);
	h = segment(client[0], "ours", O_RDWR | O_CREAT, 0666);
	assert_int_equal(mm_truncate_segment(client[0]->mm, h, (int64_t)PAGE(4), NULL), 0);
	seg = client_map_segment(client[0], h, PAGE(4), PROT_RW, MAP_SHARED, 0);
	put(client[0], seg, 2);
	for (n = 1;; n++) {
		int r;

		snprintf(spec, sizeof(spec), "mem=fail@%lu", (unsigned long)n);
		crash.fault = spec;
		r = crash_try_recover();
		if (faultpoint_passages("mem") < n)
			break;
		assert_int_equal(faultpoint_arm(NULL), 0);
		failed += r != 0;
		assert_true(!r || r == ARENA_E_NO_MEMORY || r == -ENOMEM);
	}
	assert_int_equal(faultpoint_arm(NULL), 0);
	crash.fault = NULL;
	assert_true(failed > 20);
	assert_true(virt_is_valid(m.virt));
	crash_reborn();
	assert_int_equal(get(client[0], at), 1);
	assert_int_equal(get(client[0], seg), 2);
	everybody_acks();
	assert_int_equal(segment_unlink(m.virt, &client[0]->cred, "ours"), 0);
	down();
}

static void test_no_memory(void **state)
{
	(void)state;
	run(no_memory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_everything_comes_back),
		cmocka_unit_test(test_nobody_is_there),
		cmocka_unit_test(test_many_workers),
		cmocka_unit_test(test_limbo_is_kept),
		cmocka_unit_test(test_limbo_ends_with_death),
		cmocka_unit_test(test_shared_frames_are_kept),
		cmocka_unit_test(test_closed_slots_are_kept),
		cmocka_unit_test(test_tables_are_kept),
		cmocka_unit_test(test_hostile_acks),
		cmocka_unit_test(test_prepared_for_another),
		cmocka_unit_test(test_journal_phases),
		cmocka_unit_test(test_no_memory),
	};

	log_set_level(getenv("ARENA_TEST_LOG") ? LOG_LEVEL_INFO : LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
