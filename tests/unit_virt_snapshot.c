/* SPDX-License-Identifier: MIT */
/*
 * Snapshots of shared memory: what they hold, who may write when, what of the object comes and goes
 * behind them, and that every frame comes back.
 */
#include <fcntl.h>
#include <unistd.h>

#include "daemon/virt/frozen.h"
#include "tests/virt_fake.h"
#include "tests/virt_file.h"

static struct fake_machine m;
static struct fake_client *a, *b, *c; /* c is of another uid */

static void all_flush(void)
{
	client_ack_all(a);
	client_ack_all(b);
	client_ack_all(c);
}

static int up(void **state)
{
	(void)state;
	machine_up(&m, UINT64_C(128) << 20, 1);
	a = client_up(&m, 1000, 1);
	b = client_up(&m, 1000, 2);
	c = client_up(&m, 1001, 3);
	fake_others_flush = all_flush;
	return 0;
}

static int down(void **state)
{
	(void)state;
	assert_true(virt_is_valid(m.virt));
	assert_true(client_check_tlb(a) && client_check_tlb(b) && client_check_tlb(c));
	a = client_down(a);
	b = client_down(b);
	c = client_down(c);
	machine_down(&m);
	return 0;
}

static void put(struct fake_client *x, uint64_t addr, uint64_t word)
{
	*(uint64_t *)(void *)client_write(x, addr) = word;
}

static uint64_t get(struct fake_client *x, uint64_t addr)
{
	return *(const uint64_t *)(const void *)client_read(x, addr);
}

/* A call as the service makes it, until it is answered. */
static int try_snapshot(struct fake_client *x, uint64_t addr, uint64_t len, uint64_t *out)
{
	struct io_wait w = {0};
	int r = vm_snapshot(x->mm, addr, len, out);

	for (unsigned tries = 0; r == ARENA_E_WAIT_IO; tries++) {
		assert_true(tries < 200);
		w = (struct io_wait){.settle = w.settle};
		virt_io_wait(m.virt, &w);
		assert_true(virt_is_valid(m.virt));
		virt_files_collect(m.virt);
		if (w.pending)
			all_flush();
		assert_int_equal(w.pending, 0);
		virt_io_retry(m.virt, &w);
		r = vm_snapshot(x->mm, addr, len, out);
		virt_io_retry(m.virt, NULL);
	}
	assert_true(virt_is_valid(m.virt));
	return r;
}

static uint64_t snapshot(struct fake_client *x, uint64_t addr, uint64_t len)
{
	uint64_t out = 0;

	assert_int_equal(try_snapshot(x, addr, len, &out), 0);
	return out;
}

static uint32_t open_segment(struct fake_client *x, int oflag, uint64_t size)
{
	struct segment_open open;

	assert_int_equal(client_open(x, "s", oflag, 0666, &open), 0);
	if (size)
		assert_int_equal(mm_truncate_segment(x->mm, open.handle, (int64_t)size, NULL), 0);
	return open.handle;
}

static uint64_t used(void)
{
	return m.boot_free - phys_free_pages(m.phys);
}

#define SEG (LEAF(2) + PAGE(40))

/* All of a segment, a word a page. */
static void fill(struct fake_client *x, uint64_t at, uint64_t from)
{
	for (uint64_t i = 0; i < SEG / ARENA_PAGE_SIZE; i++)
		put(x, at + PAGE(i), from + i);
}

static void expect(struct fake_client *x, uint64_t at, uint64_t from)
{
	for (uint64_t i = 0; i < SEG / ARENA_PAGE_SIZE; i++)
		assert_int_equal(get(x, at + PAGE(i)), from + i);
}

/* Three processes share a segment, one of another uid; each writes, and a snapshot stays what it was. */
static void test_segment(void **state)
{
	uint32_t ha = open_segment(a, O_RDWR | O_CREAT, SEG), hb = open_segment(b, O_RDWR, 0);
	uint32_t hc = open_segment(c, O_RDWR, 0);
	uint64_t pa = client_map_segment(a, ha, SEG, PROT_RW, MAP_SHARED, 0), before, copy, twice;
	uint64_t pb = client_map_segment(b, hb, SEG, PROT_RW, MAP_SHARED, 0);
	uint64_t pc = client_map_segment(c, hc, SEG, PROT_RW, MAP_SHARED, 0);

	(void)state;
	fill(a, pa, 100);
	put(b, pb, 100);
	put(c, pc, 100);
	assert_true(client_is_leaf(a, pa) && client_is_leaf(c, pc));
	before = used();
	copy = snapshot(b, pb, SEG);
	assert_int_equal(used(), before);
	assert_true(client_is_leaf(b, copy));
	expect(b, copy, 100);
	/* The first write takes a piece out of the snapshot; the object's leaf stays. */
	put(c, pc + PAGE(3), 7);
	assert_int_equal(get(a, pa + PAGE(3)), 7);
	assert_int_equal(get(b, copy + PAGE(3)), 103);
	assert_true(virt_is_valid(m.virt));
	twice = snapshot(b, copy, SEG);
	fill(a, pa, 5000);
	assert_true(virt_is_valid(m.virt));
	/* All of it is copied, and leaves are leaves again; but one whose copying was under way. */
	assert_true(client_is_leaf(a, pa));
	assert_true(client_is_leaf(b, copy + LEAF(1)) && client_is_leaf(b, twice + LEAF(1)));
	expect(b, copy, 100);
	expect(b, twice, 100);
	expect(c, pc, 5000);
	put(b, copy + PAGE(9), 1);
	assert_int_equal(get(b, twice + PAGE(9)), 109);
	assert_int_equal(get(b, pb + PAGE(9)), 5009);
}

/* What was written before a client flushed is in it, what is written later is not; and nobody gets a right
 * before all have flushed. */
static void test_moment(void **state)
{
	uint64_t at = client_map(a, LEAF(1), PROT_RW, MAP_ANON_SHARED), copy = 0, hidden;
	struct fake_client *child;
	struct fault_refusal refusal;
	struct io_wait w = {0}, blocked = {0};
	uint8_t *word;

	(void)state;
	put(a, at, 1);
	put(a, at + PAGE(1), 1);
	client_ack_all(a);
	child = client_fork(a, 9);
	client_ack_all(a);
	client_ack_all(child);
	put(child, at, 2);
	word = client_write(child, at); /* mapped, and nothing flushed yet */
	hidden = client_map(a, LEAF(1), PROT_RW, MAP_ANON_PRIVATE);
	assert_int_equal(vm_snapshot(a->mm, at, PAGE(2), &copy), ARENA_E_WAIT_IO);
	virt_io_wait(m.virt, &w);
	client_ack_all(a);
	assert_int_equal(w.pending, 1);
	/* It is too early for who has flushed, whatever he writes to. */
	assert_int_equal(vm_fault(a->mm, at + PAGE(1), PROT_WRITE, 0, &refusal), ARENA_E_WAIT_IO);
	virt_io_wait(m.virt, &blocked);
	assert_int_equal(vm_fault(a->mm, at + PAGE(100), PROT_WRITE, 0, &refusal), ARENA_E_WAIT_IO);
	virt_io_retry(m.virt, NULL);
	m.virt->frozen.wanted_settle = NULL;
	assert_int_equal(vm_fault(a->mm, hidden, PROT_WRITE, 0, &refusal), ARENA_E_WAIT_IO);
	m.virt->frozen.wanted_settle = NULL;
	assert_int_equal(vm_fault(a->mm, at + PAGE(1), PROT_READ, 0, &refusal), 0);
	assert_false(client_permits(client_walk(a, at + PAGE(1), &(unsigned){0}), PROT_WRITE));
	*word = 77;
	client_ack_all(child);
	assert_int_equal(w.pending, 0);
	assert_int_equal(blocked.pending, 0);
	virt_io_retry(m.virt, &w);
	assert_int_equal(vm_snapshot(a->mm, at, PAGE(2), &copy), 0);
	virt_io_retry(m.virt, NULL);
	put(a, at + PAGE(1), 5);
	put(a, hidden, 5);
	put(child, at, 6);
	assert_int_equal(get(a, copy), 77);
	assert_int_equal(get(a, copy + PAGE(1)), 1);
	assert_true(virt_is_valid(m.virt));
	client_ack_all(a);
	client_down(child);
}

/* The client with the snapshot has it mapped: others write when it has flushed, or the time is over. */
static void test_readers_flush(void **state)
{
	uint32_t ha = open_segment(a, O_RDWR | O_CREAT, PAGE(64)), hb = open_segment(b, O_RDWR, 0);
	uint64_t pa = client_map_segment(a, ha, PAGE(64), PROT_RW, MAP_SHARED, 0), copy;
	uint64_t pb = client_map_segment(b, hb, PAGE(64), PROT_RW, MAP_SHARED, 0);
	struct fault_refusal refusal;
	struct io_wait w = {0};
	unsigned level;

	(void)state;
	for (uint64_t i = 0; i < 64; i++)
		put(a, pa + PAGE(i), i);
	copy = snapshot(b, pb, PAGE(64));
	assert_int_equal(get(b, copy + PAGE(5)), 5);
	all_flush();
	assert_int_equal(vm_fault(a->mm, pa + PAGE(5), PROT_WRITE, 0, &refusal), ARENA_E_WAIT_IO);
	virt_io_wait(m.virt, &w);
	assert_false(client_permits(client_walk(a, pa + PAGE(5), &level), PROT_WRITE));
	/* Others do not get there by another way. */
	assert_int_equal(vm_mprotect(a->mm, pa, PAGE(64), PROT_READ), 0);
	assert_int_equal(vm_mprotect(a->mm, pa, PAGE(64), PROT_RW), 0);
	assert_false(client_permits(client_walk(a, pa + PAGE(5), &level), PROT_WRITE));
	client_ack_all(b);
	assert_int_equal(w.pending, 0);
	put(a, pa + PAGE(5), 500);
	assert_int_equal(get(b, copy + PAGE(5)), 5);
	/* Who has it himself need not wait: he flushes before he writes. */
	assert_int_equal(vm_fault(b->mm, pb + PAGE(40), PROT_WRITE, 0, &refusal), 0);
	assert_true(client_permits(client_walk(b, pb + PAGE(40), &level), PROT_WRITE));
	assert_int_equal(vm_fault(a->mm, pa + PAGE(40), PROT_WRITE, 0, &refusal), ARENA_E_WAIT_IO);
	virt_io_wait(m.virt, &w);
	virt_files_tick(m.virt, virt_files_deadline(m.virt));
	assert_int_equal(w.pending, 0);
	assert_int_equal(vm_fault(a->mm, pa + PAGE(40), PROT_WRITE, 0, &refusal), 0);
	assert_true(client_permits(client_walk(a, pa + PAGE(40), &level), PROT_WRITE));
	/* And not for it again. */
	assert_int_equal(vm_fault(a->mm, pa + PAGE(63), PROT_WRITE, 0, &refusal), 0);
	assert_true(virt_is_valid(m.virt));
}

/* Somebody who could write does not acknowledge: no snapshot, and nothing is left of it. */
static void test_late(void **state)
{
	uint32_t ha = open_segment(a, O_RDWR | O_CREAT, LEAF(1)), hb = open_segment(b, O_RDWR, 0);
	uint64_t pa = client_map_segment(a, ha, LEAF(1), PROT_RW, MAP_SHARED, 0), copy, vmas;
	uint64_t pb = client_map_segment(b, hb, LEAF(1), PROT_RW, MAP_SHARED, 0);
	struct io_wait w = {0};

	(void)state;
	put(a, pa, 1);
	put(b, pb, 2);
	vmas = count_vmas(a);
	assert_int_equal(vm_snapshot(a->mm, pa, LEAF(1), &copy), ARENA_E_WAIT_IO);
	virt_io_wait(m.virt, &w);
	assert_int_not_equal(virt_files_deadline(m.virt), UINT64_MAX);
	virt_files_tick(m.virt, virt_files_deadline(m.virt));
	assert_int_equal(w.pending, 0);
	virt_io_retry(m.virt, &w);
	assert_int_equal(vm_snapshot(a->mm, pa, LEAF(1), &copy), ARENA_E_BUSY);
	virt_io_retry(m.virt, NULL);
	assert_int_equal(count_vmas(a), vmas);
	assert_null(w.settle);
	put(a, pa, 3);
	put(b, pb + PAGE(7), 4);
	/* One whose caller is gone. */
	assert_int_equal(vm_snapshot(a->mm, pa, LEAF(1), &copy), ARENA_E_WAIT_IO);
	w = (struct io_wait){0};
	virt_io_wait(m.virt, &w);
	io_wait_cancel(&w);
	assert_int_equal(count_vmas(a), vmas);
	assert_int_equal(virt_files_deadline(m.virt), UINT64_MAX);
	/* And one whose caller dies. */
	assert_int_equal(vm_snapshot(b->mm, pb, LEAF(1), &copy), ARENA_E_WAIT_IO);
	w = (struct io_wait){0};
	virt_io_wait(m.virt, &w);
	b = client_down(b);
	assert_null(w.settle);
	assert_true(virt_is_valid(m.virt));
	put(a, pa, 5);
	b = client_up(&m, 1000, 2);
}

/* What the object loses is the snapshot's; what it gets back is new. */
static void test_object_changes(void **state)
{
	uint32_t ha = open_segment(a, O_RDWR | O_CREAT, SEG);
	uint64_t pa = client_map_segment(a, ha, SEG, PROT_RW, MAP_SHARED, 0), copy, child_copy;
	struct fake_client *child;
	uint64_t before;

	(void)state;
	fill(a, pa, 100);
	copy = snapshot(a, pa, SEG);
	before = used();
	/* In the middle of a page, of a leaf; then back. */
	assert_int_equal(mm_truncate_segment(a->mm, ha, (int64_t)(LEAF(1) + PAGE(9) + 8), NULL), 0);
	assert_int_equal(mm_truncate_segment(a->mm, ha, (int64_t)SEG, NULL), 0);
	assert_int_equal(get(a, pa + LEAF(1) + PAGE(9)), 100 + 512 + 9);
	assert_int_equal(get(a, pa + LEAF(1) + PAGE(10)), 0);
	assert_int_equal(get(a, pa + LEAF(2) + PAGE(3)), 0);
	expect(a, copy, 100);
	assert_true(used() > before);
	assert_int_equal(vm_madvise(a->mm, pa + PAGE(4), PAGE(3), MADV_REMOVE, NULL), 0);
	assert_int_equal(get(a, pa + PAGE(5)), 0);
	expect(a, copy, 100);
	assert_true(virt_is_valid(m.virt));
	/* Its end. */
	assert_int_equal(segment_unlink(m.virt, &a->cred, "s"), 0);
	assert_int_equal(mm_close_segment(a->mm, ha), 0);
	assert_int_equal(vm_munmap(a->mm, pa, SEG), 0);
	client_ack_all(a);
	expect(a, copy, 100);
	child = client_fork(a, 9);
	child_copy = snapshot(child, copy, SEG);
	put(a, copy + PAGE(4), 1);
	put(child, copy + PAGE(4), 2);
	assert_int_equal(get(child, child_copy + PAGE(4)), 104);
	expect(child, child_copy, 100);
	assert_true(virt_is_valid(m.virt));
	client_ack_all(a);
	client_down(child);
	/* Moved, thrown away, protected. */
	assert_int_equal(vm_mprotect(a->mm, copy, PAGE(3), PROT_READ), 0);
	assert_int_equal(vm_madvise(a->mm, copy + PAGE(8), PAGE(8), MADV_DONTNEED, NULL), 0);
	assert_int_equal(get(a, copy + PAGE(9)), 0);
	put(a, copy + PAGE(9), 3);
	assert_int_equal(get(a, copy + PAGE(2)), 102);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(vm_munmap(a->mm, copy, SEG), 0);
	client_ack_all(a);
	assert_true(LIST_EMPTY(&m.virt->objects));
}

/* Pages the object lacks; a part of a leaf; another distance from its border; memory of all kinds. */
static void test_parts(void **state)
{
	uint64_t at = client_map(a, LEAF(3), PROT_RW, MAP_ANON_SHARED), copy, own, both;

	(void)state;
	put(a, at + LEAF(1) + PAGE(2), 12);
	copy = snapshot(a, at, LEAF(3));
	put(a, at, 1);
	put(a, at + LEAF(2), 1);
	assert_int_equal(get(a, copy), 0);
	assert_int_equal(get(a, copy + LEAF(2) + PAGE(1)), 0);
	assert_int_equal(get(a, copy + LEAF(1) + PAGE(2)), 12);
	put(a, copy + LEAF(2), 9);
	assert_int_equal(get(a, at + LEAF(2)), 1);
	assert_int_equal(vm_munmap(a->mm, copy, LEAF(3)), 0);
	copy = snapshot(a, at + LEAF(1) + PAGE(1), PAGE(5));
	put(a, at + LEAF(1) + PAGE(2), 13);
	put(a, at + LEAF(1) + PAGE(40), 13);
	assert_int_equal(get(a, copy + PAGE(1)), 12);
	assert_false(client_is_leaf(a, at + LEAF(1)));
	for (uint64_t i = 1; i <= 5; i++)
		put(a, at + LEAF(1) + PAGE(i), 14);
	assert_true(client_is_leaf(a, at + LEAF(1)));
	/* A private part beside it. */
	own = at - PAGE(4);
	assert_int_equal(client_mmap(a, own, PAGE(4), PROT_RW,
				     MAP_ANON_PRIVATE | MAP_FIXED_NOREPLACE, 0, 0, &own),
			 0);
	put(a, own + PAGE(3), 8);
	both = snapshot(a, own, PAGE(4) + PAGE(3));
	put(a, own + PAGE(3), 9);
	put(a, at, 9);
	assert_int_equal(get(a, both + PAGE(3)), 8);
	assert_int_equal(get(a, both + PAGE(4)), 1);
}

/* A pinned page is copied at once, and its pinner writes on. */
static void test_pinned(void **state)
{
	uint64_t at = client_map(a, LEAF(1), PROT_RW, MAP_ANON_SHARED), copy, next, again;
	uint8_t *pinned;

	(void)state;
	put(a, at + PAGE(1), 1);
	assert_int_equal(vm_pin(a->mm, at, PAGE(2), true, 0, &next), 0);
	pinned = client_write(a, at + PAGE(1));
	copy = snapshot(a, at, PAGE(4));
	assert_ptr_equal(client_frame(a, at + PAGE(1)), pinned);
	assert_true(client_permits(client_walk(a, at, &(unsigned){0}), PROT_WRITE));
	*pinned = 2;
	assert_int_equal(get(a, copy + PAGE(1)), 1);
	assert_int_equal(vm_unpin(a->mm, at, PAGE(2)), 0);
	/* A snapshot's page is its own when it is pinned. */
	again = snapshot(a, at, PAGE(4));
	assert_int_equal(vm_pin(a->mm, again, PAGE(2), false, 0, &next), 0);
	pinned = client_read(a, again + PAGE(1));
	put(a, at + PAGE(1), 3);
	assert_ptr_equal(client_frame(a, again + PAGE(1)), pinned);
	assert_int_equal(*pinned, 2);
	assert_int_equal(vm_unpin(a->mm, again, PAGE(2)), 0);
}

/* Files: what is not cached is read first; dirty pages stay the file's, and get into it. */
static void test_file(void **state)
{
	int fd = file_make(PAGE(700) + 100);
	uint64_t at = file_map(a, fd, PAGE(702), PROT_RW, MAP_SHARED), copy, i;

	(void)state;
	put(a, at + PAGE(600), 1);
	copy = snapshot(a, at, PAGE(702));
	put(a, at + PAGE(600), 2);
	put(a, at + PAGE(3), 3);
	file_put(fd, PAGE(400) + 1, 99);
	for (i = 0; i < 700; i++)
		if (i != 600)
			assert_int_equal(*client_read(a, copy + PAGE(i) + 1),
					 file_byte(PAGE(i) + 1));
	assert_int_equal(get(a, copy + PAGE(600)), 1);
	assert_int_equal(get(a, copy + PAGE(701)), 0);
	/* Written, dropped, cut: the copy stays. */
	virt_files_write_all(m.virt);
	assert_int_equal(file_get(fd, PAGE(600)), 2);
	assert_int_equal(file_get(fd, PAGE(3)), 3);
	assert_int_equal(ftruncate(fd, (off_t)PAGE(3) + 5), 0);
	assert_int_equal(*client_read(a, at + PAGE(3)), 3);
	assert_int_equal(get(a, copy + PAGE(600)), 1);
	assert_int_equal(*client_read(a, copy + PAGE(3)), file_byte(PAGE(3)));
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(vm_munmap(a->mm, at, PAGE(702)), 0);
	client_ack_all(a);
	virt_files_write_all(m.virt);
	assert_int_equal(get(a, copy + PAGE(600)), 1);
	assert_true(virt_is_valid(m.virt));
	/* The file again, while its copy is there. */
	at = file_map(a, fd, PAGE(4), PROT_RW, MAP_SHARED);
	put(a, at, 4);
	assert_int_equal(vm_munmap(a->mm, copy, PAGE(702)), 0);
	assert_int_equal(vm_munmap(a->mm, at, PAGE(4)), 0);
	client_ack_all(a);
	virt_files_write_all(m.virt);
	assert_true(LIST_EMPTY(&m.virt->objects));
	close(fd);
}

/* A file that cannot be read. */
static void test_file_error(void **state)
{
	int fd = file_make(PAGE(8));
	uint64_t at = file_map(a, fd, PAGE(8), PROT_RW, MAP_SHARED), copy;

	(void)state;
	virt_set_file_ops(m.virt, &bad_ops);
	bad.bad_read = PAGE(6);
	assert_int_equal(try_snapshot(a, at, PAGE(8), &copy), ARENA_E_FAULT);
	virt_set_file_ops(m.virt, NULL);
	copy = snapshot(a, at, PAGE(8));
	assert_int_equal(*client_read(a, copy + PAGE(7)), file_byte(PAGE(7)));
	close(fd);
}

/* What is promised is counted, and what a process may not have it does not get. */
static void test_limits(void **state)
{
	uint64_t at = client_map(a, LEAF(1), PROT_RW, MAP_ANON_SHARED), copy = 0, committed;

	(void)state;
	put(a, at, 1);
	committed = m.virt->committed;
	copy = snapshot(a, at, LEAF(1));
	assert_int_equal(m.virt->committed, committed + ARENA_LEAF_PAGES);
	test_limit[VM_LIMIT_DATA] = LEAF(1) + PAGE(4);
	assert_int_equal(try_snapshot(a, at, LEAF(1), &copy), ARENA_E_NO_MEMORY);
	test_limit[VM_LIMIT_DATA] = UINT64_MAX;
	assert_int_equal(try_snapshot(a, at, LEAF(2), &copy), ARENA_E_NOT_MAPPED);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, up, down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_segment), TEST(test_moment),         TEST(test_readers_flush),
		TEST(test_late),    TEST(test_object_changes), TEST(test_parts),
		TEST(test_pinned),  TEST(test_file),           TEST(test_file_error),
		TEST(test_limits),
	};

	return cmocka_run_group_tests_name("virt snapshot", tests, NULL, NULL);
}
