/* SPDX-License-Identifier: MIT */
/* Faults: leaves and single frames, filling ahead, splitting leaves, permissions, populate. */
#include "tests/virt_fake.h"

static struct fake_machine m;
static struct fake_client *c;

static int up(void **state)
{
	(void)state;
	machine_up(&m, UINT64_C(256) << 20, 1);
	c = client_up(&m, 1000, 1);
	return 0;
}

static int down(void **state)
{
	(void)state;
	assert_true(client_check_tlb(c));
	c = client_down(c);
	machine_down(&m);
	return 0;
}

static void set_tunable(enum tunable t, uint64_t value)
{
	phys_state(m.phys)->tunables[t] = value;
}

/* Pages present in a run from addr on. */
static uint64_t present_from(uint64_t addr)
{
	uint64_t n = 0;

	while (client_pfn(c, addr + PAGE(n)) != PFN_NONE)
		n++;
	return n;
}

static void test_leaf(void **state)
{
	uint64_t at = client_map(c, LEAF(2) + PAGE(3), PROT_RW, MAP_ANON_PRIVATE);
	struct mm_stats stats;
	unsigned level;

	(void)state;
	assert_int_equal(client_walk(c, at, &level), 0);
	client_write(c, at + PAGE(700))[5] = 1;
	assert_true(client_is_leaf(c, at + LEAF(1)));
	assert_false(client_walk(c, at, &level));
	assert_true(client_walk(c, at + LEAF(1), &level) & ARENA_PTE_HOLE);
	client_write(c, at + LEAF(2) + PAGE(1)); /* no leaf fits in three pages */
	assert_false(client_is_leaf(c, at + LEAF(2) + PAGE(1)));
	assert_int_equal(client_pfn(c, at + LEAF(2)), PFN_NONE);
	mm_get_stats(c->mm, &stats);
	assert_int_equal(stats.leaves, 1);
	assert_int_equal(stats.rss_anon, ARENA_LEAF_PAGES + 2);
	assert_int_equal(stats.faults, 2);
	assert_int_equal(client_read(c, at + PAGE(700))[5], 1);
	assert_true(virt_is_valid(m.virt));
}

static void test_split_by_munmap(void **state)
{
	uint64_t at = client_map(c, LEAF(1), PROT_RW, MAP_ANON_PRIVATE), i, before;
	struct mm_stats stats;

	(void)state;
	for (i = 0; i < ARENA_LEAF_PAGES; i++)
		client_write(c, at + PAGE(i))[0] = (uint8_t)i;
	before = phys_free_pages(m.phys);
	assert_int_equal(vm_munmap(c->mm, at + PAGE(100), PAGE(10)), 0);
	assert_false(client_is_leaf(c, at));
	assert_int_equal(phys_free_pages(m.phys), before); /* not before the client let go */
	mm_get_stats(c->mm, &stats);
	assert_int_equal(stats.limbo, 10);
	assert_int_equal(stats.leaves, 0);
	assert_true(virt_is_valid(m.virt));
	client_ack_all(c);
	assert_true(client_tlb_is_current(c));
	assert_int_equal(phys_free_pages(m.phys), before + 10);
	for (i = 0; i < ARENA_LEAF_PAGES; i++)
		if (i < 100 || i >= 110)
			assert_int_equal(client_read(c, at + PAGE(i))[0], (uint8_t)i);
	assert_refused(c, at + PAGE(105), PROT_READ, SIGSEGV, SEGV_MAPERR);
	/* Cut at both ends of a leaf, and across two. */
	at = client_map(c, LEAF(3), PROT_RW, MAP_ANON_PRIVATE);
	for (i = 0; i < 3; i++)
		client_write(c, at + LEAF(i))[9] = 9;
	assert_int_equal(vm_munmap(c->mm, at + LEAF(1) - PAGE(1), LEAF(1) + PAGE(2)), 0);
	assert_int_equal(client_read(c, at)[9], 9);
	assert_int_equal(client_pfn(c, at + LEAF(1)), PFN_NONE);
	assert_int_equal(client_pfn(c, at + LEAF(2)), PFN_NONE);
	assert_true(client_pfn(c, at + LEAF(2) + PAGE(1)) != PFN_NONE);
	assert_true(virt_is_valid(m.virt));
}

static void test_split_by_dontneed(void **state)
{
	uint64_t at = client_map(c, LEAF(1), PROT_RW, MAP_ANON_PRIVATE);
	pfn_t old;

	(void)state;
	memset(client_write(c, at), 0x55, ARENA_PAGE_SIZE);
	memset(client_write(c, at + PAGE(1)), 0x55, ARENA_PAGE_SIZE);
	old = client_pfn(c, at);
	assert_int_equal(vm_madvise(c->mm, at, PAGE(1), MADV_DONTNEED, NULL), 0);
	assert_int_equal(client_read(c, at + PAGE(1))[0], 0x55);
	assert_true(bytes_are_zero(client_read(c, at), ARENA_PAGE_SIZE));
	assert_int_not_equal(client_pfn(c, at), old); /* that one is in limbo */
	client_ack_all(c);
	/* Given back and taken again, by the same process, it is zeroed all the same. */
	assert_int_equal(vm_madvise(c->mm, at, LEAF(1), MADV_DONTNEED, NULL), 0);
	client_ack_all(c);
	assert_int_equal(c->mm->nr_live_tables, 1);
	assert_true(bytes_are_zero(client_read(c, at + PAGE(1)), ARENA_PAGE_SIZE));
	assert_true(client_is_leaf(c, at));
}

static void test_mprotect(void **state)
{
	uint64_t at = client_map(c, LEAF(2), PROT_RW, MAP_ANON_PRIVATE), seq;
	const struct arena_flush_entry *e;

	(void)state;
	client_write(c, at)[0] = 1;
	client_write(c, at + PAGE(600))[0] = 2;
	seq = mm_flush_posted(c->mm);
	assert_int_equal(vm_mprotect(c->mm, at, LEAF(1) + PAGE(1), PROT_READ), 0);
	assert_int_equal(mm_flush_posted(c->mm), seq + 1);
	e = &c->ring[(seq + 1) % ARENA_FLUSH_ENTRIES];
	assert_int_equal(e->seq, seq + 1);
	assert_int_equal(e->op, ARENA_FLUSH_WRPROTECT);
	assert_int_equal(e->start, at);
	assert_int_equal(e->end, at + LEAF(1) + PAGE(1));
	assert_true(client_is_leaf(c, at)); /* whole ones stay */
	assert_false(client_is_leaf(c, at + LEAF(1)));
	assert_refused(c, at, PROT_WRITE, SIGSEGV, SEGV_ACCERR);
	assert_refused(c, at, PROT_EXEC, SIGSEGV, SEGV_ACCERR);
	assert_int_equal(client_read(c, at)[0], 1);
	client_ack_all(c);
	assert_true(client_tlb_is_current(c));
	client_write(c, at + PAGE(600))[0] = 3;
	assert_int_equal(vm_mprotect(c->mm, at, LEAF(2), PROT_NONE), 0);
	assert_refused(c, at, PROT_READ, SIGSEGV, SEGV_ACCERR);
	assert_refused(c, at + PAGE(600), PROT_READ, SIGSEGV, SEGV_ACCERR);
	assert_int_equal(c->ring[mm_flush_posted(c->mm) % ARENA_FLUSH_ENTRIES].op,
			 ARENA_FLUSH_UNMAP);
	client_ack_all(c);
	assert_int_equal(c->nr_tlb, 0);
	assert_int_equal(vm_mprotect(c->mm, at, LEAF(2), PROT_WRITE), 0);
	assert_int_equal(client_read(c, at + PAGE(600))[0], 3); /* writing implies reading */
	client_write(c, at)[0] = 4;
	assert_int_equal(vm_mprotect(c->mm, at, LEAF(2), PROT_EXEC), 0);
	assert_int_equal(client_read(c, at)[0], 4);
	assert_true(virt_is_valid(m.virt));
}

/* A sequence of faults takes four times as much each time, up to the tunable; another fault begins anew. */
static void test_fill_ahead_leaves(void **state)
{
	uint64_t at = client_map(c, LEAF(40), PROT_RW, MAP_ANON_PRIVATE), next = at, n, want = 1;
	unsigned level;

	(void)state;
	set_tunable(TUNABLE_FILL_AHEAD_LEAVES, 8);
	while (next < at + LEAF(23)) {
		client_write(c, next);
		n = present_from(next) / ARENA_LEAF_PAGES;
		assert_int_equal(n, MIN(want, UINT64_C(8)));
		assert_false(client_walk(c, next, &level) & ARENA_PTE_AHEAD);
		assert_true(n == 1 || client_walk(c, next + LEAF(n - 1), &level) & ARENA_PTE_AHEAD);
		/* One run of frames, so one mapping of the client. */
		assert_int_equal(client_pfn(c, next + LEAF(n - 1)),
				 client_pfn(c, next) + (n - 1) * ARENA_LEAF_PAGES);
		/* And it continues the last one. */
		assert_true(next == at || client_pfn(c, next) ==
						  client_pfn(c, next - LEAF(1)) + ARENA_LEAF_PAGES);
		next += LEAF(n);
		want *= 4;
	}
	client_write(c, next + LEAF(2));
	assert_int_equal(present_from(next + LEAF(2)), ARENA_LEAF_PAGES);
	assert_int_equal(client_pfn(c, next), PFN_NONE);
	assert_int_equal(vm_madvise(c->mm, at, LEAF(40), MADV_RANDOM, 0), 0);
	client_write(c, next + LEAF(3));
	assert_int_equal(present_from(next + LEAF(3)), ARENA_LEAF_PAGES);
	set_tunable(TUNABLE_FILL_AHEAD_LEAVES, 0);
	at = client_map(c, LEAF(4), PROT_RW, MAP_ANON_SHARED);
	for (n = 0; n < 4; n++) {
		client_write(c, at + LEAF(n));
		assert_true(n == 3 || client_pfn(c, at + LEAF(n + 1)) == PFN_NONE);
	}
	assert_true(virt_is_valid(m.virt));
}

/* What is free came back in no order, and still a sequence of faults gets neighbours where there are any. */
static void test_sequence_continues_in_frames(void **state)
{
	unsigned leaves = (unsigned)(phys_free_pages(m.phys) / ARENA_LEAF_PAGES), n, continued = 0;
	uint64_t at = client_map(c, LEAF(leaves), PROT_RW, MAP_ANON_PRIVATE);
	bool *ours = calloc(phys_nr_frames(m.phys) / ARENA_LEAF_PAGES + 1, sizeof(*ours));
	pfn_t pfn = PFN_NONE;

	(void)state;
	assert_non_null(ours);
	set_tunable(TUNABLE_FILL_AHEAD_LEAVES, 0);
	/* Nearly all there is, so that little but what comes back here is free. */
	for (n = 0; n < leaves; n++) {
		struct fault_refusal refusal;

		assert_int_equal(vm_fault(c->mm, at + LEAF(n), PROT_WRITE, 0, &refusal), 0);
		if (refusal.signo || !client_is_leaf(c, at + LEAF(n)))
			break;
	}
	assert_true(n > 24);
	for (unsigned i = 0; i < 24; i++) {
		uint64_t addr = at + LEAF(n - 24 + i * 7 % 24);

		ours[client_pfn(c, addr) / ARENA_LEAF_PAGES] = true;
		assert_int_equal(vm_munmap(c->mm, addr, LEAF(1)), 0);
		client_ack_all(c);
	}
	at = client_map(c, LEAF(16), PROT_RW, MAP_ANON_PRIVATE);
	for (unsigned i = 0; i < 16; i++) {
		client_write(c, at + LEAF(i));
		if (i && ours[pfn / ARENA_LEAF_PAGES + 1]) {
			assert_int_equal(client_pfn(c, at + LEAF(i)), pfn + ARENA_LEAF_PAGES);
			continued++;
		}
		pfn = client_pfn(c, at + LEAF(i));
		ours[pfn / ARENA_LEAF_PAGES] = false;
	}
	assert_true(continued > 3);
	free(ours);
	assert_true(virt_is_valid(m.virt));
}

/* However high the limit: a quarter of the free memory at most. */
static void test_fill_ahead_leaves_others_theirs(void **state)
{
	uint64_t leaves = phys_free_pages(m.phys) / ARENA_LEAF_PAGES, want = 1;
	uint64_t at = client_map(c, LEAF(leaves), PROT_RW, MAP_ANON_PRIVATE);
	bool capped = false;

	(void)state;
	set_tunable(TUNABLE_FILL_AHEAD_LEAVES, 512);
	for (uint64_t next = at; next < at + LEAF(leaves / 2); want *= 4) {
		uint64_t most = MAX(phys_free_pages(m.phys) / 4 / ARENA_LEAF_PAGES, UINT64_C(1)), n;

		client_write(c, next);
		n = present_from(next) / ARENA_LEAF_PAGES;
		assert_true(n >= 1 && n <= most);
		capped |= n < want;
		next += LEAF(n);
	}
	assert_true(capped);
	assert_true(virt_is_valid(m.virt));
}

static void test_fill_ahead_pages(void **state)
{
	uint64_t at = client_map(c, PAGE(100), PROT_RW, MAP_ANON_PRIVATE);

	(void)state;
	set_tunable(TUNABLE_FILL_AHEAD_PAGES, 16);
	client_write(c, at);
	assert_int_equal(present_from(at), 16);
	client_write(c, at + PAGE(20));
	assert_int_equal(present_from(at + PAGE(20)), 16);
	client_write(c, at + PAGE(16)); /* stops at what is there */
	assert_int_equal(present_from(at), 36);
	client_write(c, at + PAGE(90)); /* and at the end */
	assert_int_equal(present_from(at + PAGE(90)), 10);
	assert_int_equal(vm_madvise(c->mm, at, PAGE(100), MADV_RANDOM, 0), 0);
	client_write(c, at + PAGE(50));
	assert_int_equal(present_from(at + PAGE(50)), 1);
	at = client_map(c, LEAF(1), PROT_RW, MAP_ANON_PRIVATE);
	assert_int_equal(vm_madvise(c->mm, at, LEAF(1), MADV_NOHUGEPAGE, NULL), 0);
	client_write(c, at);
	assert_false(client_is_leaf(c, at));
	assert_int_equal(present_from(at), 1);
	assert_int_equal(vm_madvise(c->mm, at, LEAF(1), MADV_HUGEPAGE, 0), 0);
	assert_int_equal(vm_madvise(c->mm, at, LEAF(1), MADV_DONTNEED, NULL), 0);
	client_write(c, at);
	assert_true(client_is_leaf(c, at));
	assert_true(virt_is_valid(m.virt));
}

static void test_populate(void **state)
{
	uint64_t at = client_map(c, LEAF(100), PROT_RW, MAP_ANON_PRIVATE), next = at, rounds = 0;

	(void)state;
	set_tunable(TUNABLE_FILL_AHEAD_LEAVES, 0);
	for (; next < at + LEAF(80); rounds++)
		assert_int_equal(vm_populate(c->mm, next, at + LEAF(80) - next, true, 0, &next), 0);
	assert_true(rounds >= 2); /* bounded pieces */
	assert_int_equal(present_from(at), 80 * ARENA_LEAF_PAGES);
	assert_int_equal(vm_populate(c->mm, at, LEAF(80), false, 0, &next), 0);
	assert_int_equal(next, at + LEAF(80));
	assert_int_equal(vm_populate(c->mm, at + 1, PAGE(1), false, 0, &next), ARENA_E_INVALID);
	assert_int_equal(vm_populate(c->mm, at, 0, false, 0, &next), 0);
	assert_int_equal(vm_populate(c->mm, at - PAGE(1), PAGE(2), false, 0, &next),
			 ARENA_E_NOT_MAPPED);
	assert_int_equal(vm_munmap(c->mm, at + PAGE(5), PAGE(1)), 0);
	assert_int_equal(vm_populate(c->mm, at, LEAF(1), true, 0, &next), ARENA_E_NOT_MAPPED);
	assert_int_equal(vm_mprotect(c->mm, at, PAGE(5), PROT_READ), 0);
	assert_int_equal(vm_populate(c->mm, at, PAGE(5), true, 0, &next), ARENA_E_ACCESS);
	assert_int_equal(vm_populate(c->mm, at, PAGE(5), false, 0, &next), 0);
}

/* Out of memory: the program hears of it, nothing else happens, and it recovers. */
static void test_out_of_memory(void **state)
{
	uint64_t size = UINT64_C(512) << 20, at = client_map(c, size, PROT_RW, MAP_ANON_PRIVATE);
	uint64_t next = at, i;
	int r = 0;

	(void)state;
	while (!r)
		r = vm_populate(c->mm, next, at + size - next, true, 0, &next);
	assert_int_equal(r, ARENA_E_NO_MEMORY);
	assert_true(virt_is_valid(m.virt));
	i = present_from(at);
	assert_true(PAGE(i) > UINT64_C(200) << 20);
	assert_refused(c, at + PAGE(i), PROT_WRITE, SIGBUS, BUS_ADRERR);
	assert_int_equal(vm_madvise(c->mm, at, size, MADV_DONTNEED, NULL), 0);
	assert_refused(c, at, PROT_WRITE, SIGBUS, BUS_ADRERR); /* all of it is in limbo */
	client_ack_all(c);
	assert_true(bytes_are_zero(client_write(c, at), ARENA_PAGE_SIZE));
	assert_true(virt_is_valid(m.virt));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_leaf, up, down),
		cmocka_unit_test_setup_teardown(test_split_by_munmap, up, down),
		cmocka_unit_test_setup_teardown(test_split_by_dontneed, up, down),
		cmocka_unit_test_setup_teardown(test_mprotect, up, down),
		cmocka_unit_test_setup_teardown(test_fill_ahead_leaves, up, down),
		cmocka_unit_test_setup_teardown(test_sequence_continues_in_frames, up, down),
		cmocka_unit_test_setup_teardown(test_fill_ahead_leaves_others_theirs, up, down),
		cmocka_unit_test_setup_teardown(test_fill_ahead_pages, up, down),
		cmocka_unit_test_setup_teardown(test_populate, up, down),
		cmocka_unit_test_setup_teardown(test_out_of_memory, up, down),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
