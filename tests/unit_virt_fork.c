/* SPDX-License-Identifier: MIT */
/*
 * Copy on write: forks, snapshots, and what writes do after them, one by one and at random against a
 * model that knows one word of each page.
 */
#include "tests/virt_rmap.h"

static struct fake_machine m;

static int up(void **state)
{
	(void)state;
	machine_up(&m, UINT64_C(512) << 20, 2);
	return 0;
}

static int down(void **state)
{
	(void)state;
	machine_down(&m);
	return 0;
}

static uint64_t get(struct fake_client *c, uint64_t addr)
{
	uint64_t word;

	memcpy(&word, client_read(c, addr), sizeof(word));
	return word;
}

static void put(struct fake_client *c, uint64_t addr, uint64_t word)
{
	memcpy(client_write(c, addr), &word, sizeof(word));
}

static uint64_t used(void)
{
	return phys_total_pages(m.phys) - phys_free_pages(m.phys);
}

static void test_fork_shares_until_written(void **state)
{
	struct fake_client *p = client_up(&m, 1000, 1), *c;
	uint64_t at = client_map(p, LEAF(2) + PAGE(8), PROT_RW, MAP_ANON_PRIVATE), i, before;

	(void)state;
	for (i = 0; i < 2 * ARENA_LEAF_PAGES + 8; i++)
		put(p, at + PAGE(i), 1000 + i);
	before = used();
	c = client_fork(p, 2);
	assert_int_equal(used(), before);
	assert_true(client_is_leaf(c, at) && client_is_leaf(p, at));
	assert_true(virt_is_valid(m.virt));
	/* Not before the parent's flush is acknowledged may anything be copied. */
	{
		struct fault_refusal refusal;

		assert_int_equal(vm_fault(p->mm, at, PROT_WRITE, 0, &refusal), ARENA_E_AGAIN);
	}
	put(p, at + PAGE(3), 1);
	put(c, at + PAGE(4), 2);
	put(c, at + LEAF(2), 3);
	assert_int_equal(get(c, at + PAGE(3)), 1003);
	assert_int_equal(get(p, at + PAGE(4)), 1004);
	assert_int_equal(get(p, at + LEAF(2)), 1000 + 2 * ARENA_LEAF_PAGES);
	assert_int_equal(get(p, at + PAGE(3)), 1);
	assert_true(virt_is_valid(m.virt));
	client_ack_all(p);
	client_ack_all(c);
	c = client_down(c);
	client_ack_all(p);
	assert_true(virt_is_valid(m.virt));
	for (i = 0; i < 2 * ARENA_LEAF_PAGES + 8; i++)
		assert_int_equal(get(p, at + PAGE(i)), i == 3 ? 1 : 1000 + i);
	client_down(p);
}

/* Alone again, the one that is left writes to what it has. */
static void test_reuse(void **state)
{
	struct fake_client *p = client_up(&m, 1000, 1), *c;
	uint64_t at = client_map(p, LEAF(1), PROT_RW, MAP_ANON_PRIVATE);
	pfn_t pfn;

	(void)state;
	put(p, at, 7);
	pfn = client_pfn(p, at);
	c = client_fork(p, 2);
	c = client_down(c);
	client_ack_all(p);
	put(p, at, 8);
	assert_int_equal(client_pfn(p, at), pfn);
	assert_true(client_is_leaf(p, at));
	client_down(p);
}

/* Writing all of a shared leaf makes a leaf of the copy, in few faults. */
static void test_leaf_grows_together(void **state)
{
	struct fake_client *p = client_up(&m, 1000, 1), *c;
	uint64_t at = client_map(p, LEAF(1), PROT_RW, MAP_ANON_PRIVATE), i;
	struct mm_stats stats;

	(void)state;
	for (i = 0; i < ARENA_LEAF_PAGES; i++)
		put(p, at + PAGE(i), i);
	c = client_fork(p, 2);
	client_ack_all(p);
	for (i = 0; i < ARENA_LEAF_PAGES; i++) {
		put(c, at + PAGE(i), i + 5000);
		client_ack_all(c);
	}
	assert_true(client_is_leaf(c, at));
	mm_get_stats(c->mm, &stats);
	assert_in_range(stats.faults, 1, 10);
	assert_int_equal(stats.rss_anon, ARENA_LEAF_PAGES);
	assert_true(virt_is_valid(m.virt));
	for (i = 0; i < ARENA_LEAF_PAGES; i++) {
		assert_int_equal(get(p, at + PAGE(i)), i);
		assert_int_equal(get(c, at + PAGE(i)), i + 5000);
	}
	/* The parent has its leaf for itself again. */
	put(p, at, 9);
	assert_true(client_is_leaf(p, at));
	client_down(c);
	client_down(p);
}

static void test_snapshot(void **state)
{
	struct fake_client *p = client_up(&m, 1000, 1);
	uint64_t at = client_map(p, LEAF(3), PROT_RW, MAP_ANON_PRIVATE), i, copy, before;

	(void)state;
	for (i = 0; i < 3 * ARENA_LEAF_PAGES; i++)
		put(p, at + PAGE(i), i);
	before = used();
	assert_int_equal(vm_snapshot(p->mm, at, LEAF(3), &copy), 0);
	assert_int_equal(used(), before);
	assert_true(client_is_leaf(p, copy + LEAF(1)));
	put(p, at + PAGE(5), 77);
	put(p, copy + PAGE(6), 78);
	assert_int_equal(get(p, copy + PAGE(5)), 5);
	assert_int_equal(get(p, at + PAGE(6)), 6);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(vm_snapshot(p->mm, at + LEAF(2), LEAF(2), &copy), ARENA_E_NOT_MAPPED);
	assert_int_equal(vm_snapshot(p->mm, at + 1, LEAF(1), &copy), ARENA_E_INVALID);
	assert_int_equal(vm_munmap(p->mm, at, LEAF(3)), 0);
	client_ack_all(p);
	client_down(p);
}

/* ---- at random ----------------------------------------------------------------------------------- */

#define NR_PROCS 8
#define PAGES (3 * ARENA_LEAF_PAGES)
#define NR_COPIES 3

struct region {
	uint64_t at; /* 0: none */
	uint64_t word[PAGES];
};

struct proc {
	struct fake_client *c;
	struct region region[1 + NR_COPIES];
};

static struct proc procs[NR_PROCS];
static struct prng rng;
static pid_t next_pid = 10;

static void proc_start(struct proc *p)
{
	memset(p, 0, sizeof(*p));
	p->c = client_up(&m, 1000, next_pid++);
	p->region[0].at = client_map(p->c, PAGE(PAGES), PROT_RW, MAP_ANON_PRIVATE);
}

static struct region *some_region(struct proc *p)
{
	struct region *r = &p->region[prng_below(&rng, 1 + NR_COPIES)];

	return r->at ? r : &p->region[0];
}

static void op_write(struct proc *p)
{
	struct region *r = some_region(p);
	uint64_t n = 1 + prng_below(&rng, 40), i = prng_below(&rng, PAGES);

	for (; n-- && i < PAGES; i++) {
		r->word[i] = prng_next(&rng);
		put(p->c, r->at + PAGE(i), r->word[i]);
	}
}

static void op_read(struct proc *p)
{
	struct region *r = some_region(p);
	uint64_t n = 1 + prng_below(&rng, 100), i = prng_below(&rng, PAGES);

	for (; n-- && i < PAGES; i++)
		assert_int_equal(get(p->c, r->at + PAGE(i)), r->word[i]);
}

static void op_fork(struct proc *p)
{
	struct proc *to = &procs[prng_below(&rng, NR_PROCS)];

	if (to == p)
		return;
	if (to->c)
		client_down(to->c);
	memcpy(to->region, p->region, sizeof(to->region));
	to->c = client_fork(p->c, next_pid++);
}

static void op_snapshot(struct proc *p)
{
	struct region *from = some_region(p);
	struct region *to = &p->region[1 + prng_below(&rng, NR_COPIES)];

	if (from == to)
		return;
	if (to->at)
		assert_int_equal(vm_munmap(p->c->mm, to->at, PAGE(PAGES)), 0);
	assert_int_equal(vm_snapshot(p->c->mm, from->at, PAGE(PAGES), &to->at), 0);
	memcpy(to->word, from->word, sizeof(to->word));
}

static void op_remap(struct proc *p)
{
	struct region *r = some_region(p);
	uint64_t i = prng_below(&rng, PAGES), n = 1 + prng_below(&rng, 60), at;

	n = MIN(n, PAGES - i);
	if (prng_below(&rng, 3)) {
		assert_int_equal(vm_mprotect(p->c->mm, r->at + PAGE(i), PAGE(n), PROT_READ), 0);
		assert_int_equal(vm_mprotect(p->c->mm, r->at + PAGE(i), PAGE(n), PROT_RW), 0);
		return;
	}
	assert_int_equal(client_mmap(p->c, r->at + PAGE(i), PAGE(n), PROT_RW,
				     MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &at),
			 0);
	memset(&r->word[i], 0, n * sizeof(r->word[0]));
}

static void op_ack(struct proc *p)
{
	client_ack(p->c, mm_flush_posted(p->c->mm));
	mm_flush_collect(p->c->mm);
}

static void step(struct proc *p)
{
	unsigned what = (unsigned)prng_below(&rng, 100);

	if (!p->c)
		proc_start(p);
	else if (what < 40)
		op_write(p);
	else if (what < 70)
		op_read(p);
	else if (what < 75)
		op_fork(p);
	else if (what < 80)
		op_snapshot(p);
	else if (what < 90)
		op_remap(p);
	else
		op_ack(p);
}

static void test_random(void **state)
{
	uint64_t seed = test_seed();
	unsigned i;

	(void)state;
	printf("ARENA_TEST_SEED=%lu\n", (unsigned long)seed);
	rng = (struct prng){seed};
	for (i = 0; i < 6000; i++) {
		step(&procs[prng_below(&rng, NR_PROCS)]);
		if (i % 200 == 0) {
			assert_true(virt_is_valid(m.virt));
			assert_true(rmap_finds_every_entry(m.virt));
		}
	}
	for (i = 0; i < NR_PROCS; i++) {
		if (procs[i].c) {
			op_read(&procs[i]);
			assert_true(client_check_tlb(procs[i].c));
			procs[i].c = client_down(procs[i].c);
		}
	}
}

/* ---- many ---- */

/* Five generations, and a thousand children. */
static void test_generations(void **state)
{
	struct fake_client *line[6], *c;
	uint64_t at;
	unsigned i;

	(void)state;
	line[0] = client_up(&m, 1000, 1);
	at = client_map(line[0], LEAF(1) + PAGE(4), PROT_RW, MAP_ANON_PRIVATE);
	put(line[0], at, 100);
	put(line[0], at + LEAF(1), 100);
	for (i = 1; i < 6; i++) {
		line[i] = client_fork(line[i - 1], (pid_t)(i + 1));
		put(line[i], at, 100 + i);
		put(line[i], at + LEAF(1), 100 + i);
	}
	assert_true(rmap_finds_every_entry(m.virt));
	for (i = 0; i < 1000; i++) {
		c = client_fork(line[i % 6], (pid_t)(i + 100));
		assert_int_equal(get(c, at), 100 + i % 6);
		if (i % 2)
			put(c, at + LEAF(1), 5);
		client_down(c);
	}
	for (i = 0; i < 6; i++) {
		assert_int_equal(get(line[i], at), 100 + i);
		assert_int_equal(get(line[i], at + LEAF(1)), 100 + i);
		client_down(line[i]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_fork_shares_until_written, up, down),
		cmocka_unit_test_setup_teardown(test_reuse, up, down),
		cmocka_unit_test_setup_teardown(test_leaf_grows_together, up, down),
		cmocka_unit_test_setup_teardown(test_snapshot, up, down),
		cmocka_unit_test_setup_teardown(test_generations, up, down),
		cmocka_unit_test_setup_teardown(test_random, up, down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
