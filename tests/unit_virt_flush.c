/* SPDX-License-Identifier: MIT */
/* Flushes: the ring, acknowledgements true and false, limbo, waiting for other clients, death. */
#include <fcntl.h>

#include "tests/virt_fake.h"

static struct fake_machine m;
static struct fake_client *a, *b;
static uint32_t ha, hb; /* of one segment */
static uint64_t at_a, at_b;
static unsigned nr_done;

static int up(void **state)
{
	struct segment_open open;

	(void)state;
	machine_up(&m, UINT64_C(128) << 20, 1);
	a = client_up(&m, 1000, 1);
	b = client_up(&m, 1000, 2);
	assert_int_equal(client_open(a, "s", O_RDWR | O_CREAT, 0600, &open), 0);
	ha = open.handle;
	assert_int_equal(mm_truncate_segment(a->mm, ha, (int64_t)LEAF(2), NULL), 0);
	assert_int_equal(client_open(b, "s", O_RDWR, 0600, &open), 0);
	hb = open.handle;
	at_a = client_map_segment(a, ha, LEAF(2), PROT_RW, MAP_SHARED, 0);
	at_b = client_map_segment(b, hb, LEAF(2), PROT_RW, MAP_SHARED, 0);
	nr_done = 0;
	return 0;
}

static int down(void **state)
{
	(void)state;
	faultpoint_arm(NULL);
	a = client_down(a);
	b = client_down(b);
	machine_down(&m);
	return 0;
}

static void done(struct flush_wait *w)
{
	assert_int_equal(w->pending, 0);
	assert_null(w->first);
	nr_done++;
}

static void test_ring(void **state)
{
	uint64_t at = client_map(a, PAGE(64), PROT_RW, MAP_ANON_PRIVATE), i, before;
	uint64_t seq = mm_flush_posted(a->mm);

	(void)state;
	before = phys_free_pages(m.phys);
	client_write(a, at);
	for (i = 0; i < 3; i++) {
		const struct arena_flush_entry *e;

		client_write(a, at + PAGE(i));
		assert_int_equal(vm_munmap(a->mm, at + PAGE(i), PAGE(1)), 0);
		assert_int_equal(mm_flush_posted(a->mm), seq + i + 1);
		e = &a->ring[(seq + i + 1) % ARENA_FLUSH_ENTRIES];
		assert_int_equal(e->seq, seq + i + 1);
		assert_int_equal(e->op, ARENA_FLUSH_UNMAP);
		assert_int_equal(e->start, at + PAGE(i));
		assert_int_equal(e->end, at + PAGE(i + 1));
		assert_int_equal(a->channel->flush_head, seq + i + 1);
		assert_int_equal(a->channel->flush_word, (uint32_t)(seq + i + 1));
	}
	/* Nothing was there: nothing to flush. */
	assert_int_equal(vm_munmap(a->mm, at + PAGE(40), PAGE(24)), 0);
	assert_int_equal(mm_flush_posted(a->mm), seq + 3);
	assert_true(virt_flush_pending(m.virt));
	assert_int_equal(virt_limbo_pages(m.virt), 3);
	assert_false(mm_flush_collect(a->mm));
	client_ack(a, seq + 2);
	assert_true(mm_flush_collect(a->mm));
	assert_int_equal(virt_limbo_pages(m.virt), 1);
	assert_true(mm_flush_pending(a->mm));
	mm_flush_want(a->mm, true);
	assert_int_equal(a->channel->flush_kick, 1);
	client_ack_all(a);
	assert_false(virt_flush_pending(m.virt));
	assert_int_equal(vm_munmap(a->mm, at, PAGE(64)), 0);
	client_ack_all(a);
	assert_int_equal(phys_free_pages(m.phys), before);
	assert_true(virt_is_valid(m.virt));
}

/* More flushes than the ring has places, and never an answer: nothing blocks, nothing is lost. */
static void test_ring_overtaken(void **state)
{
	uint64_t at = client_map(a, PAGE(8), PROT_RW, MAP_ANON_PRIVATE), i;
	uint64_t before = phys_free_pages(m.phys), n = ARENA_FLUSH_ENTRIES * 2 + 100;
	uint64_t keep = client_map(a, PAGE(1), PROT_RW, MAP_ANON_PRIVATE);

	(void)state;
	*client_write(a, keep) = 1;
	for (i = 0; i < n; i++) {
		*client_write(a, at) = 5;
		assert_int_equal(vm_madvise(a->mm, at, PAGE(8), MADV_DONTNEED, NULL), 0);
	}
	assert_int_equal(virt_limbo_pages(m.virt), n * 8);
	assert_true(client_check_tlb(a));
	assert_true(virt_is_valid(m.virt));
	client_ack_all(a);
	assert_int_equal(a->nr_tlb, 0); /* the fake client did as it must */
	assert_int_equal(*client_read(a, keep), 1);
	assert_int_equal(vm_munmap(a->mm, keep, PAGE(1)), 0);
	client_ack_all(a);
	assert_int_equal(phys_free_pages(m.phys), before);
	assert_true(virt_is_valid(m.virt));
}

/* A client may write anything there; it frees its own memory too early at worst. */
static void test_hostile_ack(void **state)
{
	uint64_t at = client_map(a, PAGE(8), PROT_RW, MAP_ANON_PRIVATE), seq;

	(void)state;
	client_write(a, at);
	client_write(a, at + PAGE(1));
	assert_int_equal(vm_munmap(a->mm, at, PAGE(1)), 0);
	seq = mm_flush_posted(a->mm);
	a->channel->flush_ack = UINT64_MAX;
	assert_true(mm_flush_collect(a->mm));
	assert_int_equal(a->mm->acked, seq);
	assert_int_equal(virt_limbo_pages(m.virt), 0);
	/* Backwards, and ahead: what comes later still waits for a number that it has reached. */
	a->channel->flush_ack = 0;
	assert_int_equal(vm_munmap(a->mm, at + PAGE(1), PAGE(1)), 0);
	assert_false(mm_flush_collect(a->mm));
	assert_int_equal(virt_limbo_pages(m.virt), 1);
	a->channel->flush_ack = seq;
	assert_false(mm_flush_collect(a->mm));
	a->channel->flush_ack = seq - 1;
	assert_false(mm_flush_collect(a->mm));
	assert_true(virt_is_valid(m.virt));
	/* Words that are the daemon's to write do not concern it. */
	a->channel->flush_head = 77;
	a->channel->flush_word = 78;
	memset(a->ring, 0xff, ARENA_FLUSH_ENTRIES * sizeof(*a->ring));
	assert_int_equal(vm_munmap(a->mm, at + PAGE(2), PAGE(6)), 0);
	assert_int_equal(mm_flush_posted(a->mm), seq + 2);
	assert_int_equal(a->channel->flush_head, seq + 2);
	a->channel->flush_ack = seq + 2;
	assert_true(mm_flush_collect(a->mm));
	assert_int_equal(virt_limbo_pages(m.virt), 0);
	a->nr_tlb = 0;
	a->acked = seq + 2;
}

/* A frame that two clients map is free when both have acknowledged. */
static void test_shared_frames(void **state)
{
	uint64_t before;

	(void)state;
	client_write(a, at_a);
	client_write(b, at_b);
	before = phys_free_pages(m.phys);
	assert_int_equal(mm_truncate_segment(a->mm, ha, 0, NULL), 0);
	client_ack_all(a);
	assert_int_equal(phys_free_pages(m.phys), before);
	assert_true(client_check_tlb(b));
	assert_true(virt_is_valid(m.virt));
	client_ack_all(b);
	assert_int_equal(phys_free_pages(m.phys), before + ARENA_LEAF_PAGES);
}

static void test_wait(void **state)
{
	struct flush_wait w = {.done = done};
	struct fake_client *c = client_up(&m, 1000, 3);
	struct segment_open open;
	uint64_t at;

	(void)state;
	assert_int_equal(client_open(c, "s", O_RDWR, 0, &open), 0);
	at = client_map_segment(c, open.handle, LEAF(2), PROT_READ, MAP_SHARED, 0);
	/* Nobody has mapped anything: nobody to wait for. */
	assert_int_equal(mm_truncate_segment(a->mm, ha, (int64_t)LEAF(1), &w), 0);
	assert_int_equal(w.pending, 0);
	client_write(a, at_a);
	client_write(b, at_b);
	client_read(c, at);
	assert_int_equal(mm_truncate_segment(a->mm, ha, 0, &w), 0);
	assert_int_equal(w.pending, 2); /* not for oneself */
	assert_true(virt_is_valid(m.virt));
	client_ack_all(b);
	assert_int_equal(w.pending, 1);
	assert_int_equal(nr_done, 0);
	client_ack(c, mm_flush_posted(c->mm));
	virt_flush_collect(m.virt);
	assert_int_equal(nr_done, 1);
	/* Giving up. */
	assert_int_equal(mm_truncate_segment(a->mm, ha, (int64_t)LEAF(1), NULL), 0);
	client_write(b, at_b);
	client_read(c, at);
	w = (struct flush_wait){.done = done};
	assert_int_equal(mm_truncate_segment(a->mm, ha, 0, &w), 0);
	assert_int_equal(w.pending, 2);
	flush_wait_cancel(&w);
	assert_int_equal(w.pending, 0);
	assert_null(w.first);
	client_ack_all(b);
	assert_int_equal(nr_done, 1);
	/* Death answers for the dead. */
	assert_int_equal(mm_truncate_segment(a->mm, ha, (int64_t)LEAF(1), NULL), 0);
	client_read(c, at);
	w = (struct flush_wait){.done = done};
	assert_int_equal(mm_truncate_segment(a->mm, ha, 0, &w), 0);
	assert_int_equal(w.pending, 1);
	client_down(c);
	assert_int_equal(nr_done, 2);
	assert_int_equal(w.pending, 0);
	assert_true(virt_is_valid(m.virt));
}

/* Without memory for the wait there is no wait; the frames are as safe as ever. */
static void test_wait_without_memory(void **state)
{
	struct flush_wait w = {.done = done};

	(void)state;
	client_write(b, at_b);
	assert_int_equal(vm_munmap(b->mm, at_b, LEAF(1)), 0); /* room in b's limbo */
	client_ack_all(b);
	client_write(b, at_b + LEAF(1));
	assert_int_equal(faultpoint_arm("mem=fail"), 0);
	assert_int_equal(mm_truncate_segment(a->mm, ha, 0, &w), 0);
	assert_int_equal(faultpoint_arm(NULL), 0);
	assert_int_equal(w.pending, 0);
	assert_true(mm_flush_pending(b->mm));
	assert_true(virt_is_valid(m.virt));
}

/* Tables taken out of the tree are not used again while a client may be walking them. */
static void test_tables_in_limbo(void **state)
{
	uint64_t at = client_map(a, PAGE(16), PROT_RW, MAP_ANON_PRIVATE), tables, i;
	struct mm_stats stats;

	(void)state;
	client_write(a, at);
	mm_get_stats(a->mm, &stats);
	tables = stats.tables;
	for (i = 0; i < 8; i++) {
		assert_int_equal(vm_madvise(a->mm, at, PAGE(16), MADV_DONTNEED, NULL), 0);
		client_write(a, at);
		mm_get_stats(a->mm, &stats);
		assert_int_equal(stats.tables, tables + (i + 1) * (tables - 1));
		assert_true(virt_is_valid(m.virt));
	}
	client_ack_all(a);
	mm_get_stats(a->mm, &stats);
	assert_int_equal(stats.tables, tables);
	assert_int_equal(vm_madvise(a->mm, at, PAGE(16), MADV_DONTNEED, NULL), 0);
	client_ack_all(a);
	mm_get_stats(a->mm, &stats);
	assert_int_equal(stats.tables, 1);
	client_write(a, at);
	assert_int_equal(a->mm->header->nr_tables, 1 + 9 * (tables - 1)); /* used again, not more */
	assert_true(virt_is_valid(m.virt));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_ring, up, down),
		cmocka_unit_test_setup_teardown(test_ring_overtaken, up, down),
		cmocka_unit_test_setup_teardown(test_hostile_ack, up, down),
		cmocka_unit_test_setup_teardown(test_shared_frames, up, down),
		cmocka_unit_test_setup_teardown(test_wait, up, down),
		cmocka_unit_test_setup_teardown(test_wait_without_memory, up, down),
		cmocka_unit_test_setup_teardown(test_tables_in_limbo, up, down),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
