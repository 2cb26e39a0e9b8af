/* SPDX-License-Identifier: MIT */
/*
 * unit_virt_file_hold.c - clients that read and write a mapped file by system calls, too: what is dirty is in the
 * file, what was written is in the mappings, no old page goes over it, whoever dies or comes late.
 */
#include "tests/virt_fake.h"
#include "tests/virt_file.h"

#define SIZE (PAGE(40) + 100)
#define RW (PROT_READ | PROT_WRITE)

static struct fake_machine m;

static int up(void **state)
{
	(void)state;
	store_fake();
	machine_up(&m, UINT64_C(64) << 20, 1);
	virt_set_file_ops(m.virt, &bad_ops);
	memset(&bad, 0, sizeof(bad));
	bad.bad_read = UINT64_MAX;
	return 0;
}

static int down(void **state)
{
	(void)state;
	machine_down(&m);
	assert_int_equal(store_fake_count(), 0);
	store_fake_end();
	return 0;
}

static struct vm_file_range range_of(int fd, uint64_t offset, uint64_t length)
{
	struct os_file_id id;

	assert_int_equal(os_file_id(fd, &id), 0);
	return (struct vm_file_range){
		.dev = id.dev, .ino = id.ino, .offset = offset, .length = length};
}

/* Until the wait is over, all clients flushing. */
static int finish(struct fake_client *a, struct fake_client *b, struct io_wait *w)
{
	for (unsigned i = 0; w->pending && i < 20; i++) {
		client_ack_all(a);
		if (b)
			client_ack_all(b);
		virt_files_collect(m.virt);
	}
	assert_int_equal(w->pending, 0);
	assert_true(virt_is_valid(m.virt));
	return w->error;
}

static int sync_range(struct fake_client *a, struct fake_client *b, int fd, uint64_t offset,
		      uint64_t length)
{
	struct vm_file_range range = range_of(fd, offset, length);
	struct io_wait w = {0};
	int r = vm_file_sync(a->mm, &range, &w);

	return r ? r : finish(a, b, &w);
}

static void hold(struct fake_client *a, struct fake_client *b, int fd, uint32_t thread)
{
	struct vm_file_range range = range_of(fd, PAGE(6), 1);
	struct io_wait w = {0};

	assert_int_equal(vm_file_hold(a->mm, &range, thread, &w), 0);
	assert_int_equal(finish(a, b, &w), 0);
}

static void release(struct fake_client *a, struct fake_client *b, int fd, uint32_t thread,
		    uint64_t offset, uint64_t length)
{
	struct vm_file_range range = range_of(fd, offset, length);
	struct io_wait w = {0};

	assert_int_equal(vm_file_release(a->mm, &range, thread, &w), 0);
	assert_int_equal(finish(a, b, &w), 0);
}

/* ---- reading -------------------------------------------------------------------------------- */

static void test_sync(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10), *b = client_up(&m, 1000, 11);
	struct fake_client *other = client_up(&m, 1001, 12);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, RW, MAP_SHARED);

	(void)state;
	assert_int_equal(sync_range(b, a, fd, 0, SIZE), 0);
	*client_write(a, at + 5) = 1;
	*client_write(a, at + PAGE(3)) = 2;
	*client_write(a, at + PAGE(7)) = 3;
	/* Only what is asked for, and not on its disk. */
	assert_int_equal(sync_range(b, a, fd, PAGE(3) - 1, 2), 0);
	assert_int_equal(file_get(fd, PAGE(3)), 2);
	assert_int_equal(file_get(fd, 5), file_byte(5));
	assert_int_equal(bad.writes, 1);
	assert_int_equal(bad.syncs, 0);
	assert_int_equal(sync_range(b, a, fd, PAGE(3), PAGE(1)), 0);
	assert_int_equal(sync_range(b, a, fd, 0, 0), 0);
	assert_int_equal(bad.writes, 1);
	/* Another uid's cache is another one. */
	assert_int_equal(sync_range(other, a, fd, 0, SIZE), 0);
	assert_int_equal(bad.writes, 1);
	bad.write_error = -ENOSPC;
	assert_int_equal(sync_range(b, a, fd, 1, UINT64_MAX), -ENOSPC);
	bad.write_error = 0;
	assert_int_equal(sync_range(b, a, fd, 1, UINT64_MAX), 0);
	assert_int_equal(file_get(fd, 5), 1);
	assert_int_equal(file_get(fd, PAGE(7)), 3);
	close(fd);
	client_down(other), client_down(b), client_down(a);
}

static void test_write_back_all(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10);
	int fd = file_make(SIZE), fd2 = file_make(PAGE(3));
	uint64_t at = file_map(a, fd, SIZE, RW, MAP_SHARED);
	uint64_t at2 = file_map(a, fd2, PAGE(3), RW, MAP_SHARED);
	struct io_wait w = {0};

	(void)state;
	*client_write(a, at + PAGE(20)) = 1;
	*client_write(a, at2 + 7) = 2;
	vm_write_back_all(a->mm, &w);
	assert_int_equal(w.pending, 2);
	assert_int_equal(finish(a, NULL, &w), 0);
	assert_int_equal(file_get(fd, PAGE(20)), 1);
	assert_int_equal(file_get(fd2, 7), 2);
	close(fd), close(fd2);
	client_down(a);
}

/* ---- writing ---------------------------------------------------------------------------------- */

static void test_write(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10), *b = client_up(&m, 1000, 11);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, RW, MAP_SHARED);
	uint64_t own = file_map(b, fd, SIZE, RW, MAP_PRIVATE);
	struct io_wait w = {0};

	(void)state;
	client_read(a, at + PAGE(2));
	*client_write(a, at + 1) = 1;
	*client_write(a, at + PAGE(1)) = 9;
	client_read(b, own + PAGE(2));
	*client_write(b, own + PAGE(3)) = 5;
	hold(b, a, fd, 7);
	/* Meanwhile nothing is written, and faults go on. */
	assert_int_equal(vm_msync(a->mm, at, SIZE, MS_SYNC, &w), 0);
	for (unsigned i = 0; i < 5; i++) {
		client_ack_all(a);
		virt_files_collect(m.virt);
	}
	assert_int_equal(w.pending, 1);
	assert_int_equal(bad.writes, 0);
	*client_write(a, at + 2) = 2;
	*client_write(a, at + PAGE(30)) = 3;
	for (uint64_t i = 10; i < PAGE(4); i++)
		file_put(fd, i, 77);
	assert_int_equal(*client_read(a, at + PAGE(2)), file_byte(PAGE(2)));
	release(b, a, fd, 7, 10, PAGE(4) - 10);
	/* What was written, and nothing else. */
	assert_int_equal(*client_read(a, at + 1), 1);
	assert_int_equal(*client_read(a, at + 2), 2);
	assert_int_equal(*client_read(a, at + 9), file_byte(9));
	assert_int_equal(*client_read(a, at + 10), 77);
	assert_int_equal(*client_read(a, at + PAGE(1)), 77);
	assert_int_equal(*client_read(b, own + PAGE(2) + 5), 77);
	assert_int_equal(*client_read(b, own + PAGE(3)), 5);
	assert_int_equal(*client_read(a, at + PAGE(3)), 77);
	assert_int_equal(*client_read(a, at + PAGE(4)), file_byte(PAGE(4)));
	assert_int_equal(finish(a, b, &w), 0);
	assert_int_equal(file_get(fd, 1), 1);
	assert_int_equal(file_get(fd, 2), 2);
	assert_int_equal(file_get(fd, 10), 77);
	assert_int_equal(file_get(fd, PAGE(1)), 77);
	assert_int_equal(file_get(fd, PAGE(30)), 3);
	close(fd);
	client_down(b), client_down(a);
}

static uint64_t snapshot(struct fake_client *a, uint64_t addr, uint64_t len)
{
	struct io_wait w = {0};
	uint64_t out = 0;
	int r = vm_snapshot(a->mm, addr, len, &out);

	for (unsigned tries = 0; r == ARENA_E_WAIT_IO && tries < 50; tries++) {
		w = (struct io_wait){.settle = w.settle};
		virt_io_wait(m.virt, &w);
		finish(a, NULL, &w);
		virt_io_retry(m.virt, &w);
		r = vm_snapshot(a->mm, addr, len, &out);
		virt_io_retry(m.virt, NULL);
	}
	assert_int_equal(r, 0);
	return out;
}

/* What was written or appended after a snapshot is not in it. */
static void test_snapshot(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, RW, MAP_SHARED), copy;

	(void)state;
	*client_write(a, at + PAGE(3)) = 1;
	copy = snapshot(a, at, SIZE);
	hold(a, NULL, fd, 7);
	file_put(fd, PAGE(2) + 9, 77);
	file_put(fd, PAGE(3) + 9, 78);
	release(a, NULL, fd, 7, PAGE(2) + 9, PAGE(1) + 1);
	assert_int_equal(*client_read(a, at + PAGE(2) + 9), 77);
	assert_int_equal(*client_read(a, at + PAGE(3) + 9), 78);
	assert_int_equal(*client_read(a, copy + PAGE(2) + 9), file_byte(PAGE(2) + 9));
	assert_int_equal(*client_read(a, copy + PAGE(3) + 9), file_byte(PAGE(3) + 9));
	assert_int_equal(*client_read(a, copy + PAGE(3)), 1);
	file_put(fd, SIZE + 5, 79);
	hold(a, NULL, fd, 7);
	release(a, NULL, fd, 7, SIZE, 6);
	assert_int_equal(*client_read(a, at + SIZE + 5), 79);
	assert_int_equal(*client_read(a, copy + SIZE + 5), 0);
	close(fd);
	client_down(a);
}

/* One after the other, and after what was asked for before. */
static void test_writers_queue(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10), *b = client_up(&m, 1000, 11);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, RW, MAP_SHARED);
	struct vm_file_range range = range_of(fd, 0, 1);
	struct io_wait w = {0}, w2 = {0}, again = {0};

	(void)state;
	*client_write(a, at) = 1;
	assert_int_equal(vm_file_sync(b->mm, &range, &w), 0);
	assert_int_equal(vm_file_hold(b->mm, &range, 7, &w2), 0);
	assert_int_equal(w2.pending, 1);
	assert_int_equal(finish(a, b, &w2), 0);
	assert_int_equal(w.pending, 0);
	assert_int_equal(file_get(fd, 0), 1);
	/* The same thread once more has it; another one has to wait. */
	assert_int_equal(vm_file_hold(b->mm, &range, 7, &again), 0);
	assert_int_equal(again.pending, 0);
	w2 = (struct io_wait){0};
	assert_int_equal(vm_file_hold(b->mm, &range, 8, &w2), 0);
	assert_int_equal(w2.pending, 1);
	assert_int_equal(vm_file_hold(b->mm, &range, 8, &again), ARENA_E_BUSY);
	file_put(fd, 0, 2);
	release(b, a, fd, 7, 0, 1);
	assert_int_equal(*client_read(a, at), 2);
	assert_int_equal(w2.pending, 0);
	release(b, a, fd, 8, 0, 0);
	/* Without a hold it is read all the same; and what is not cached is nobody's. */
	file_put(fd, 0, 3);
	release(b, a, fd, 7, 0, 1);
	assert_int_equal(*client_read(a, at), 3);
	range.ino++;
	assert_int_equal(vm_file_hold(b->mm, &range, 7, &again), ARENA_E_NOT_FOUND);
	assert_int_equal(vm_file_release(b->mm, &range, 7, &again), 0);
	close(fd);
	client_down(b), client_down(a);
}

/* A page that was being read while the file was written is read again. */
static void test_stale_read(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, RW, MAP_SHARED);
	struct vm_file_range range = range_of(fd, PAGE(1), 1);
	struct io_wait w = {0}, rw = {0};
	struct fault_refusal refusal;

	(void)state;
	hold(a, NULL, fd, 7);
	assert_int_equal(vm_fault(a->mm, at + PAGE(1), PROT_READ, 0, &refusal), ARENA_E_WAIT_IO);
	virt_io_wait(m.virt, &w);
	assert_int_equal(vm_file_release(a->mm, &range, 7, &rw), 0);
	virt_files_collect(m.virt);
	assert_int_equal(w.pending, 0);
	assert_int_equal(w.error, 0);
	assert_int_equal(phys_node(m.phys, 0)->stat[NR_FILE_PAGES], 0);
	assert_int_equal(finish(a, NULL, &rw), 0);
	assert_int_equal(*client_read(a, at + PAGE(1)), file_byte(PAGE(1)));
	close(fd);
	client_down(a);
}

static void test_size(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10), *b = client_up(&m, 1000, 11);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, PAGE(60), RW, MAP_SHARED);
	struct vm_file_range range = range_of(fd, 0, 0);
	struct io_wait w = {0};

	(void)state;
	*client_write(a, at + PAGE(30)) = 1;
	*client_write(a, at + PAGE(10) + 100) = 2;
	hold(b, a, fd, 7);
	assert_int_equal(ftruncate(fd, (off_t)PAGE(10) + 50), 0);
	assert_int_equal(vm_file_release(b->mm, &range, 7, &w), 0);
	/* Not before all who map it have let go. */
	virt_files_collect(m.virt);
	assert_int_equal(w.pending, 1);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(finish(a, b, &w), 0);
	assert_refused(a, at + PAGE(30), PROT_READ, SIGBUS, BUS_ADRERR);
	assert_int_equal(*client_read(a, at + PAGE(10) + 100), 0);
	/* It grows. */
	hold(b, a, fd, 7);
	file_put(fd, PAGE(50), 3);
	file_put(fd, PAGE(10) + 60, 4);
	release(b, a, fd, 7, PAGE(50), 1);
	assert_int_equal(*client_read(a, at + PAGE(50)), 3);
	assert_int_equal(*client_read(a, at + PAGE(10) + 60), 4);
	assert_int_equal(*client_read(a, at + PAGE(30)), 0);
	/* Who does not let go is not waited for. */
	hold(b, a, fd, 7);
	assert_int_equal(ftruncate(fd, (off_t)PAGE(5)), 0);
	w = (struct io_wait){0};
	assert_int_equal(vm_file_release(b->mm, &range, 7, &w), 0);
	assert_int_equal(w.pending, 1);
	virt_files_tick(m.virt, clock_now() + 60 * NSEC_PER_SEC);
	virt_files_collect(m.virt);
	assert_int_equal(w.pending, 0);
	close(fd);
	client_down(b), client_down(a);
}

/* More than one reading can take, and one that fails. */
static void test_large_and_bad(void **state)
{
	const uint64_t pages = 600;
	struct fake_client *a = client_up(&m, 1000, 10);
	int fd = file_make(PAGE(pages));
	uint64_t at = file_map(a, fd, PAGE(pages), RW, MAP_SHARED);

	(void)state;
	for (uint64_t i = 0; i < pages; i++)
		client_read(a, at + PAGE(i));
	hold(a, NULL, fd, 7);
	for (uint64_t i = 0; i < pages; i++)
		file_put(fd, PAGE(i) + i, (uint8_t)(i + 3));
	release(a, NULL, fd, 7, 0, PAGE(pages));
	for (uint64_t i = 0; i < pages; i++)
		assert_int_equal(*client_read(a, at + PAGE(i) + i), (uint8_t)(i + 3));
	hold(a, NULL, fd, 7);
	file_put(fd, PAGE(9), 99);
	bad.bad_read = PAGE(9);
	release(a, NULL, fd, 7, PAGE(8), PAGE(4));
	bad.bad_read = UINT64_MAX;
	client_ack_all(a);
	assert_int_equal(*client_read(a, at + PAGE(9)), 99);
	close(fd);
	client_down(a);
}

/* ---- holders that do not come back ----------------------------------------------------------------- */

static void test_dead_holder(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10), *b = client_up(&m, 1000, 11);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, RW, MAP_SHARED);
	struct vm_file_range range = range_of(fd, 0, 0);
	struct io_wait w = {0}, queued = {0};

	(void)state;
	*client_write(a, at + 1) = 1;
	client_read(a, at + PAGE(6));
	hold(b, a, fd, 7);
	assert_int_equal(vm_file_hold(b->mm, &range, 8, &queued), 0);
	file_put(fd, PAGE(6), 66);
	assert_int_equal(vm_file_hold(a->mm, &range, 9, &w), 0);
	assert_int_equal(w.pending, 1);
	io_wait_cancel(&queued);
	client_down(b);
	assert_int_equal(finish(a, NULL, &w), 0);
	assert_int_equal(*client_read(a, at + PAGE(6)), 66);
	/* What is dirty stays. */
	assert_int_equal(*client_read(a, at + 1), 1);
	release(a, NULL, fd, 9, 0, 0);
	/* One that lives and says nothing. */
	*client_write(a, at + 1) = 2;
	hold(a, NULL, fd, 9);
	file_put(fd, PAGE(6), 67);
	w = (struct io_wait){0};
	assert_int_equal(vm_msync(a->mm, at, SIZE, MS_SYNC, &w), 0);
	virt_files_tick(m.virt, clock_now() + 20 * NSEC_PER_SEC);
	assert_int_equal(*client_read(a, at + PAGE(6)), 66);
	virt_files_tick(m.virt, clock_now() + 60 * NSEC_PER_SEC);
	assert_int_equal(finish(a, NULL, &w), 0);
	assert_int_equal(*client_read(a, at + PAGE(6)), 67);
	assert_int_equal(file_get(fd, 1), 2);
	/* It comes at last. */
	file_put(fd, PAGE(6), 68);
	release(a, NULL, fd, 9, PAGE(6), 1);
	assert_int_equal(*client_read(a, at + PAGE(6)), 68);
	/* Where it is not known what was written, dirty pages stay as they are. */
	*client_write(a, at + PAGE(7)) = 7;
	file_put(fd, PAGE(6), 69);
	file_put(fd, PAGE(7), 70);
	release(a, NULL, fd, 9, 0, UINT64_MAX);
	assert_int_equal(*client_read(a, at + PAGE(6)), 69);
	assert_int_equal(*client_read(a, at + PAGE(7)), 7);
	/* The last mapping goes while it is held. */
	*client_write(a, at + 3) = 3;
	hold(a, NULL, fd, 9);
	assert_int_equal(vm_munmap(a->mm, at, SIZE), 0);
	client_ack_all(a);
	virt_files_collect(m.virt);
	assert_true(virt_has_files(m.virt));
	release(a, NULL, fd, 9, PAGE(6), 1);
	virt_files_collect(m.virt);
	assert_false(virt_has_files(m.virt));
	assert_int_equal(file_get(fd, 3), 3);
	close(fd);
	client_down(a);
}

/* ---- which files it is ----------------------------------------------------------------------------------- */

static bool is_set(const uint64_t *words, int fd)
{
	struct vm_file_range range = range_of(fd, 0, 0);
	unsigned bit = arena_file_bit(range.dev, range.ino);

	return words[bit / 64] >> bit % 64 & 1;
}

static void test_bits(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10), *b = client_up(&m, 1000, 11);
	struct fake_client *other = client_up(&m, 1001, 12), *c;
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, RW, MAP_SHARED), there;

	(void)state;
	assert_true(is_set(a->mm->header->files_cached, fd));
	assert_true(is_set(b->mm->header->files_cached, fd));
	assert_false(is_set(other->mm->header->files_cached, fd));
	assert_false(is_set(b->mm->header->files_dirty, fd));
	*client_write(a, at) = 1;
	assert_true(is_set(b->mm->header->files_dirty, fd));
	assert_false(is_set(other->mm->header->files_dirty, fd));
	c = client_up(&m, 1000, 13);
	assert_true(is_set(c->mm->header->files_cached, fd));
	assert_true(is_set(c->mm->header->files_dirty, fd));
	assert_int_equal(sync_range(a, NULL, fd, 0, SIZE), 0);
	virt_files_tick(m.virt, clock_now() + 6 * NSEC_PER_SEC);
	assert_false(is_set(c->mm->header->files_dirty, fd));
	*client_write(a, at) = 2;
	assert_true(is_set(c->mm->header->files_dirty, fd));
	/* As long as anybody has it. */
	there = file_map(c, fd, SIZE, RW, MAP_SHARED);
	client_down(a);
	virt_files_collect(m.virt);
	assert_true(is_set(c->mm->header->files_cached, fd));
	assert_int_equal(vm_munmap(c->mm, there, SIZE), 0);
	client_ack_all(c);
	while (virt_has_files(m.virt))
		virt_files_collect(m.virt);
	assert_false(is_set(c->mm->header->files_cached, fd));
	assert_false(is_set(c->mm->header->files_dirty, fd));
	assert_int_equal(file_get(fd, 0), 2);
	close(fd);
	client_down(c), client_down(other), client_down(b);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_sync, up, down),
		cmocka_unit_test_setup_teardown(test_write_back_all, up, down),
		cmocka_unit_test_setup_teardown(test_write, up, down),
		cmocka_unit_test_setup_teardown(test_snapshot, up, down),
		cmocka_unit_test_setup_teardown(test_writers_queue, up, down),
		cmocka_unit_test_setup_teardown(test_stale_read, up, down),
		cmocka_unit_test_setup_teardown(test_size, up, down),
		cmocka_unit_test_setup_teardown(test_large_and_bad, up, down),
		cmocka_unit_test_setup_teardown(test_dead_holder, up, down),
		cmocka_unit_test_setup_teardown(test_bits, up, down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
