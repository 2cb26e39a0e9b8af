/* SPDX-License-Identifier: MIT */
/*
 * unit_virt_file.c - mapped files: reading, sharing, write notify, write-back and its errors, truncation,
 * the end. Nothing is read or written but when a test has it collected.
 */
#include "tests/virt_fake.h"
#include "tests/virt_file.h"

#define SIZE (PAGE(40) + 100)

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

static uint64_t node_sum(enum node_item item)
{
	return phys_node(m.phys, 0)->stat[item];
}

static struct page *page_at(struct fake_client *c, uint64_t addr)
{
	return pfn_to_page(m.phys, client_pfn(c, addr));
}

static bool entry_writable(struct fake_client *c, uint64_t addr)
{
	unsigned level;

	return client_walk(c, addr, &level) & ARENA_PTE_WRITE;
}

/* As the service has msync(2) answered, with all clients flushing. */
static int sync_all(struct fake_client *c, struct fake_client *other, uint64_t addr, uint64_t len)
{
	struct io_wait w = {0};
	int r = vm_msync(c->mm, addr, len, MS_SYNC, &w);

	for (unsigned i = 0; w.pending && i < 10; i++) {
		client_ack_all(c);
		if (other)
			client_ack_all(other);
		virt_files_collect(m.virt);
	}
	assert_int_equal(w.pending, 0);
	assert_true(virt_is_valid(m.virt));
	return r ? r : w.error;
}

/* ---- reading --------------------------------------------------------------------------------- */

static void test_read(void **state)
{
	struct fake_client *c = client_up(&m, 1000, 10);
	int fd = file_make(SIZE);
	uint64_t at = file_map(c, fd, PAGE(60), PROT_READ, MAP_SHARED), i;

	(void)state;
	for (i = 0; i < SIZE; i += 997)
		assert_int_equal(*client_read(c, at + i), file_byte(i));
	/* Behind the end the last page has zeros, and there is no other. */
	assert_true(bytes_are_zero(client_read(c, at + SIZE), PAGE(41) - SIZE));
	assert_refused(c, at + PAGE(41), PROT_READ, SIGBUS, BUS_ADRERR);
	assert_refused(c, at, PROT_WRITE, SIGSEGV, SEGV_ACCERR);
	/* One window after the other, each twice as large. */
	assert_true(bad.reads <= 8);
	assert_int_equal(node_sum(NR_FILE_PAGES), 41);
	assert_int_equal(node_sum(NR_SHMEM), 0);
	assert_true(virt_is_valid(m.virt));
	/* The file has grown: what was zeros is the file's. */
	assert_int_equal(ftruncate(fd, (off_t)PAGE(50)), 0);
	file_put(fd, SIZE + 5, 77);
	assert_int_equal(*client_read(c, at + PAGE(45)), 0);
	assert_int_equal(*client_read(c, at + SIZE + 5), 77);
	close(fd);
	client_down(c);
}

static void test_random_reads_one(void **state)
{
	struct fake_client *c = client_up(&m, 1000, 10);
	int fd = file_make(SIZE);
	uint64_t at = file_map(c, fd, SIZE, PROT_READ, MAP_PRIVATE);

	(void)state;
	assert_int_equal(vm_madvise(c->mm, at, SIZE, MADV_RANDOM, NULL), 0);
	client_read(c, at + PAGE(7));
	assert_int_equal(node_sum(NR_FILE_PAGES), 1);
	assert_int_equal(vm_madvise(c->mm, at, SIZE, MADV_SEQUENTIAL, NULL), 0);
	client_read(c, at + PAGE(8));
	assert_int_equal(node_sum(NR_FILE_PAGES), 33);
	assert_int_equal(vm_madvise(c->mm, at, PAGE(41), MADV_WILLNEED, NULL), 0);
	virt_files_collect(m.virt);
	assert_int_equal(node_sum(NR_FILE_PAGES), 41);
	close(fd);
	client_down(c);
}

static void test_read_error(void **state)
{
	struct fake_client *c = client_up(&m, 1000, 10);
	int fd = file_make(SIZE);
	uint64_t at = file_map(c, fd, SIZE, PROT_READ, MAP_SHARED), next;
	struct io_wait w = {0};

	(void)state;
	bad.bad_read = PAGE(2);
	/* What comes before it is there. */
	assert_int_equal(*client_read(c, at), file_byte(0));
	assert_int_equal(*client_read(c, at + PAGE(1)), file_byte(PAGE(1)));
	assert_refused(c, at + PAGE(2), PROT_READ, SIGBUS, BUS_ADRERR);
	assert_int_equal(vm_populate(c->mm, at + PAGE(2), PAGE(1), POPULATE_READ, 0, &next),
			 ARENA_E_WAIT_IO);
	virt_io_wait(m.virt, &w);
	assert_true(virt_is_valid(m.virt));
	virt_files_collect(m.virt);
	assert_int_equal(w.pending, 0);
	virt_io_retry(m.virt, &w);
	assert_int_equal(vm_populate(c->mm, at + PAGE(2), PAGE(1), POPULATE_READ, 0, &next),
			 ARENA_E_FAULT);
	virt_io_retry(m.virt, NULL);
	bad.bad_read = UINT64_MAX;
	assert_int_equal(*client_read(c, at + PAGE(2)), file_byte(PAGE(2)));
	close(fd);
	client_down(c);
}

/* A page that is being read is nobody's yet, whoever goes meanwhile. */
static void test_unmapped_while_read(void **state)
{
	struct fake_client *c = client_up(&m, 1000, 10), *other = client_up(&m, 1000, 11);
	int fd = file_make(SIZE);
	uint64_t at = file_map(c, fd, SIZE, PROT_READ, MAP_SHARED);
	uint64_t there = file_map(other, fd, SIZE, PROT_READ, MAP_SHARED);
	struct fault_refusal refusal;
	struct io_wait w = {0}, w2 = {0};

	(void)state;
	assert_int_equal(vm_fault(c->mm, at, PROT_READ, 0, &refusal), ARENA_E_WAIT_IO);
	virt_io_wait(m.virt, &w);
	assert_int_equal(vm_fault(other->mm, there + PAGE(1), PROT_READ, 0, &refusal),
			 ARENA_E_WAIT_IO);
	virt_io_wait(m.virt, &w2);
	assert_int_equal(bad.reads, 0);
	assert_int_equal(node_sum(NR_FILE_PAGES), 0);
	assert_true(virt_is_valid(m.virt));
	io_wait_cancel(&w);
	client_down(c);
	virt_files_collect(m.virt);
	assert_int_equal(w2.pending, 0);
	assert_int_equal(bad.reads, 1);
	assert_int_equal(*client_read(other, there + PAGE(1)), file_byte(PAGE(1)));
	assert_int_equal(vm_fault(other->mm, there + PAGE(30), PROT_READ, 0, &refusal),
			 ARENA_E_WAIT_IO);
	client_down(other);
	assert_true(virt_is_valid(m.virt));
	virt_files_collect(m.virt);
	assert_int_equal(store_fake_count(), 1 + 1); /* the state, a domain */
	close(fd);
}

/* ---- who may what ------------------------------------------------------------------------------ */

static void test_descriptors(void **state)
{
	struct fake_client *c = client_up(&m, 1000, 10);
	int fd = file_make(SIZE), ro, wo, dir = open("/", O_RDONLY), path = open("/", O_PATH);
	char link[32];
	uint64_t at;

	(void)state;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	ro = open(link, O_RDONLY);
	wo = open(link, O_WRONLY);
	assert_true(ro >= 0 && wo >= 0 && dir >= 0 && path >= 0);
	assert_int_equal(file_try_map(c, -1, SIZE, PROT_READ, MAP_SHARED, 0, &at), ARENA_E_BAD_FD);
	assert_int_equal(file_try_map(c, path, SIZE, PROT_READ, MAP_SHARED, 0, &at),
			 ARENA_E_BAD_FD);
	assert_int_equal(file_try_map(c, dir, SIZE, PROT_READ, MAP_SHARED, 0, &at),
			 ARENA_E_NO_DEVICE);
	assert_int_equal(file_try_map(c, wo, SIZE, PROT_READ, MAP_PRIVATE, 0, &at), ARENA_E_ACCESS);
	assert_int_equal(file_try_map(c, ro, SIZE, PROT_WRITE, MAP_SHARED, 0, &at), ARENA_E_ACCESS);
	assert_int_equal(file_try_map(c, fd, SIZE, PROT_READ, MAP_SHARED, 100, &at),
			 ARENA_E_INVALID);
	assert_int_equal(file_try_map(c, ro, SIZE, PROT_READ, MAP_SHARED, 0, &at), 0);
	assert_int_equal(vm_mprotect(c->mm, at, PAGE(1), PROT_READ | PROT_WRITE), ARENA_E_ACCESS);
	assert_int_equal(file_try_map(c, ro, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0, &at), 0);
	*client_write(c, at) = 99;
	assert_int_equal(file_get(fd, 0), file_byte(0));
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
	assert_int_equal(file_try_map(c, fd, SIZE, PROT_WRITE, MAP_SHARED, 0, &at),
			 ARENA_E_PERMISSION);
	assert_int_equal(store_fake_count(), 5); /* state, domain, mm, channel, file */
	close(fd), close(ro), close(wo), close(dir), close(path);
	client_down(c);
}

/* ---- sharing ------------------------------------------------------------------------------------- */

static void test_shared_and_private(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10), *b = client_up(&m, 1000, 11), *child;
	struct fake_client *stranger = client_up(&m, 1001, 12);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	uint64_t there = file_map(b, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	uint64_t own = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	uint64_t far = file_map(stranger, fd, SIZE, PROT_READ, MAP_SHARED);

	(void)state;
	*client_write(a, at + 10) = 1;
	assert_int_equal(*client_read(b, there + 10), 1);
	assert_int_equal(client_pfn(a, at), client_pfn(b, there));
	assert_int_equal(*client_read(a, own + 10), 1);
	*client_write(a, own + 10) = 2;
	assert_int_equal(*client_read(b, there + 10), 1);
	*client_write(b, there + 10) = 3;
	assert_int_equal(*client_read(a, own + 10), 2);
	child = client_fork(a, 13);
	client_ack_all(a);
	*client_write(child, at + 10) = 4;
	*client_write(child, own + 10) = 5;
	assert_int_equal(*client_read(b, there + 10), 4);
	assert_int_equal(*client_read(a, own + 10), 2);
	/* Another domain has what is in the file. */
	assert_int_equal(*client_read(stranger, far + 10), file_byte(10));
	client_down(child);
	assert_int_equal(sync_all(a, b, at, SIZE), 0);
	assert_int_equal(file_get(fd, 10), 4);
	assert_true(virt_is_valid(m.virt));
	close(fd);
	client_down(stranger), client_down(b), client_down(a);
}

/* ---- writing ---------------------------------------------------------------------------------------- */

static void test_write_notify(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10), *b = client_up(&m, 1000, 11);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	uint64_t there = file_map(b, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	struct io_wait w = {0};

	(void)state;
	client_read(a, at);
	assert_false(entry_writable(a, at));
	assert_false(page_at(a, at)->flags & PG_DIRTY);
	*client_write(a, at + 1) = 1;
	*client_write(b, there + 2) = 2;
	*client_write(a, at + PAGE(40) + 200) = 3; /* behind the end */
	assert_true(page_at(a, at)->flags & PG_DIRTY);
	assert_int_equal(node_sum(NR_FILE_DIRTY), 2);
	/* Not before all have lost the right to write. */
	assert_int_equal(vm_msync(a->mm, at, SIZE, MS_SYNC, &w), 0);
	assert_int_equal(w.pending, 1);
	assert_int_equal(node_sum(NR_WRITEBACK), 2);
	assert_false(entry_writable(a, at) || entry_writable(b, there));
	virt_files_collect(m.virt);
	client_ack_all(a);
	virt_files_collect(m.virt);
	assert_int_equal(bad.writes, 0);
	client_ack_all(b);
	assert_true(virt_is_valid(m.virt));
	virt_files_collect(m.virt);
	assert_int_equal(w.pending, 0);
	assert_int_equal(w.error, 0);
	assert_int_equal(bad.syncs, 1);
	assert_int_equal(file_get(fd, 1), 1);
	assert_int_equal(file_get(fd, 2), 2);
	assert_int_equal(lseek(fd, 0, SEEK_END), (off_t)SIZE);
	assert_int_equal(node_sum(NR_FILE_DIRTY), 0);
	assert_int_equal(node_sum(NR_WRITEBACK), 0);
	/* Clean again: the next write is noticed. */
	*client_write(b, there + 3) = 4;
	assert_int_equal(node_sum(NR_FILE_DIRTY), 1);
	assert_int_equal(sync_all(a, b, at, SIZE), 0);
	assert_int_equal(file_get(fd, 3), 4);
	close(fd);
	client_down(b), client_down(a);
}

/* What is written while the page is under way is not lost. */
static void test_written_meanwhile(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	struct io_wait w = {0};

	(void)state;
	*client_write(a, at) = 1;
	assert_int_equal(vm_msync(a->mm, at, SIZE, MS_SYNC, &w), 0);
	/* mprotect gives no right that is taken. */
	assert_int_equal(vm_mprotect(a->mm, at, PAGE(1), PROT_READ), 0);
	assert_int_equal(vm_mprotect(a->mm, at, PAGE(1), PROT_READ | PROT_WRITE), 0);
	assert_false(entry_writable(a, at));
	client_ack_all(a);
	*client_write(a, at) = 2;
	assert_true(virt_is_valid(m.virt));
	virt_files_collect(m.virt);
	assert_int_equal(w.pending, 0);
	assert_true(page_at(a, at)->flags & PG_DIRTY);
	assert_true(entry_writable(a, at));
	*client_write(a, at) = 3;
	assert_int_equal(sync_all(a, NULL, at, SIZE), 0);
	assert_int_equal(file_get(fd, 0), 3);
	assert_false(page_at(a, at)->flags & PG_DIRTY);
	close(fd);
	client_down(a);
}

static void test_deaf_client(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	struct io_wait w = {0};
	uint8_t *tlb;

	(void)state;
	tlb = client_write(a, at);
	*tlb = 1;
	assert_int_equal(vm_msync(a->mm, at, SIZE, MS_SYNC, &w), 0);
	assert_true(virt_files_deadline(m.virt) < UINT64_MAX);
	virt_files_tick(m.virt, clock_now() + NSEC_PER_SEC);
	virt_files_collect(m.virt);
	assert_int_equal(w.pending, 0);
	assert_int_equal(file_get(fd, 0), 1);
	/* It could have been written since. */
	*tlb = 2;
	assert_true(page_at(a, at)->flags & PG_DIRTY);
	assert_int_equal(sync_all(a, NULL, at, SIZE), 0);
	assert_int_equal(file_get(fd, 0), 2);
	close(fd);
	client_down(a);
}

static void test_write_error(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10), *b = client_up(&m, 1000, 11);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	uint64_t there = file_map(b, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);

	(void)state;
	*client_write(a, at) = 1;
	bad.write_error = -ENOSPC;
	assert_int_equal(sync_all(a, b, at, SIZE), -ENOSPC);
	assert_int_equal(file_get(fd, 0), file_byte(0));
	assert_true(page_at(a, at)->flags & PG_DIRTY);
	/* By itself, at an interval: the next msync of each hears of it, once. */
	virt_files_tick(m.virt, clock_now() + 100 * NSEC_PER_SEC);
	client_ack_all(a), client_ack_all(b);
	virt_files_collect(m.virt);
	bad.write_error = 0;
	assert_int_equal(sync_all(a, b, at, SIZE), -ENOSPC);
	assert_int_equal(file_get(fd, 0), 1);
	assert_int_equal(sync_all(a, b, at, SIZE), 0);
	assert_int_equal(sync_all(b, a, there, SIZE), -ENOSPC);
	assert_int_equal(sync_all(b, a, there, SIZE), 0);
	bad.sync_error = -EIO;
	assert_int_equal(sync_all(a, b, at, SIZE), -EIO);
	bad.sync_error = 0;
	assert_int_equal(sync_all(b, a, there, SIZE), -EIO);
	assert_int_equal(sync_all(b, a, there, SIZE), 0);
	/* Lost with the last mapping, and nothing hangs. */
	*client_write(a, at) = 5;
	bad.write_error = -EIO;
	client_down(b), client_down(a);
	virt_files_collect(m.virt);
	assert_int_equal(node_sum(NR_FILE_DIRTY), 0);
	close(fd);
}

static void test_interval(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED), now;

	(void)state;
	*client_write(a, at) = 1;
	now = clock_now();
	virt_files_tick(m.virt, now + 6 * NSEC_PER_SEC);
	client_ack_all(a);
	virt_files_collect(m.virt);
	assert_int_equal(bad.writes, 0);
	virt_files_tick(m.virt, now + 36 * NSEC_PER_SEC);
	client_ack_all(a);
	virt_files_collect(m.virt);
	assert_int_equal(bad.writes, 1);
	assert_int_equal(bad.syncs, 0);
	assert_int_equal(file_get(fd, 0), 1);
	close(fd);
	client_down(a);
}

/* Neither munmap nor death loses anything, whatever flags the descriptor has by then. */
static void test_end_writes(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10), *b = client_up(&m, 1000, 11);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	uint64_t there = file_map(b, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	struct io_wait w = {0};

	(void)state;
	assert_int_equal(fcntl(fd, F_SETFL, O_APPEND), 0);
	*client_write(a, at) = 1;
	vm_write_back(a->mm, at, SIZE, &w);
	assert_int_equal(vm_munmap(a->mm, at, SIZE), 0);
	client_ack_all(a), client_ack_all(b);
	virt_files_collect(m.virt);
	assert_int_equal(w.pending, 0);
	assert_int_equal(fcntl(fd, F_SETFL, 0), 0);
	assert_int_equal(file_get(fd, 0), 1);
	for (uint64_t i = 0; i < SIZE; i += PAGE(1))
		*client_write(b, there + i) = (uint8_t)(i >> 12);
	client_down(b);
	virt_files_collect(m.virt);
	for (uint64_t i = 0; i < SIZE; i += PAGE(1))
		assert_int_equal(file_get(fd, i), (uint8_t)(i >> 12));
	assert_int_equal(lseek(fd, 0, SEEK_END), (off_t)SIZE);
	assert_int_equal(node_sum(NR_FILE_PAGES), 0);
	assert_int_equal(store_fake_count(), 4); /* state, domain, mm and channel of a */
	close(fd);
	client_down(a);
}

/* The last mapping ends and a new one comes before all is written. */
static void test_mapped_again(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);

	(void)state;
	*client_write(a, at) = 1;
	assert_int_equal(vm_munmap(a->mm, at, SIZE), 0);
	at = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	client_ack_all(a);
	assert_int_equal(*client_read(a, at), 1);
	*client_write(a, at) = 2;
	virt_files_collect(m.virt);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(sync_all(a, NULL, at, SIZE), 0);
	assert_int_equal(file_get(fd, 0), 2);
	close(fd);
	client_down(a);
}

/* ---- what others do to the file ----------------------------------------------------------------------- */

static void test_truncate(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	uint64_t own = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE);

	(void)state;
	for (uint64_t i = 0; i < SIZE; i += PAGE(1))
		*client_write(a, at + i) = 1;
	*client_write(a, own + PAGE(30)) = 2;
	assert_int_equal(ftruncate(fd, (off_t)(PAGE(10) + 10)), 0);
	virt_files_tick(m.virt, clock_now() + 6 * NSEC_PER_SEC);
	client_ack_all(a);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(node_sum(NR_FILE_DIRTY), 11);
	assert_refused(a, at + PAGE(20), PROT_WRITE, SIGBUS, BUS_ADRERR);
	assert_refused(a, own + PAGE(30), PROT_READ, SIGBUS, BUS_ADRERR);
	*client_write(a, at + PAGE(10)) = 3;
	assert_int_equal(sync_all(a, NULL, at, SIZE), 0);
	assert_int_equal(lseek(fd, 0, SEEK_END), (off_t)(PAGE(10) + 10));
	assert_int_equal(file_get(fd, PAGE(10)), 3);
	close(fd);
	client_down(a);
}

static void test_invalidate(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10);
	int fd = file_make(SIZE);
	uint64_t at = file_map(a, fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	struct io_wait w = {0};

	(void)state;
	client_read(a, at);
	*client_write(a, at + PAGE(1)) = 1;
	file_put(fd, 0, 200);
	file_put(fd, PAGE(1), 201);
	assert_int_equal(*client_read(a, at), file_byte(0));
	assert_int_equal(vm_msync(a->mm, at, SIZE, MS_INVALIDATE, &w), 0);
	assert_int_equal(w.pending, 0);
	client_ack_all(a);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(*client_read(a, at), 200);
	/* What is not written yet stays. */
	assert_int_equal(*client_read(a, at + PAGE(1)), 1);
	assert_int_equal(vm_madvise(a->mm, at, PAGE(1), MADV_REMOVE, NULL), ARENA_E_UNSUPPORTED);
	close(fd);
	client_down(a);
}

/* ---- memory ------------------------------------------------------------------------------------------------ */

/* A file larger than the arena is read, and leaves room for others. */
static void test_pressure(void **state)
{
	struct fake_client *a = client_up(&m, 1000, 10);
	uint64_t size = UINT64_C(96) << 20;
	int fd = file_make(size);
	uint64_t at = file_map(a, fd, size, PROT_READ | PROT_WRITE, MAP_SHARED), anon;

	(void)state;
	for (uint64_t i = 0; i < size; i += PAGE(1)) {
		assert_int_equal(*client_read(a, at + i), file_byte(i));
		if (i % LEAF(1) == 0)
			client_ack_all(a);
	}
	/* Unmapped and clean, it goes by itself. */
	assert_int_equal(vm_madvise(a->mm, at, size, MADV_DONTNEED, NULL), 0);
	client_ack_all(a);
	anon = client_map(a, LEAF(20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	for (uint64_t i = 0; i < LEAF(20); i += PAGE(1))
		*client_write(a, anon + i) = 1;
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(vm_munmap(a->mm, anon, LEAF(20)), 0);
	client_ack_all(a);
	close(fd);
	client_down(a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_read, up, down),
		cmocka_unit_test_setup_teardown(test_random_reads_one, up, down),
		cmocka_unit_test_setup_teardown(test_read_error, up, down),
		cmocka_unit_test_setup_teardown(test_unmapped_while_read, up, down),
		cmocka_unit_test_setup_teardown(test_descriptors, up, down),
		cmocka_unit_test_setup_teardown(test_shared_and_private, up, down),
		cmocka_unit_test_setup_teardown(test_write_notify, up, down),
		cmocka_unit_test_setup_teardown(test_written_meanwhile, up, down),
		cmocka_unit_test_setup_teardown(test_deaf_client, up, down),
		cmocka_unit_test_setup_teardown(test_write_error, up, down),
		cmocka_unit_test_setup_teardown(test_interval, up, down),
		cmocka_unit_test_setup_teardown(test_end_writes, up, down),
		cmocka_unit_test_setup_teardown(test_mapped_again, up, down),
		cmocka_unit_test_setup_teardown(test_truncate, up, down),
		cmocka_unit_test_setup_teardown(test_invalidate, up, down),
		cmocka_unit_test_setup_teardown(test_pressure, up, down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
