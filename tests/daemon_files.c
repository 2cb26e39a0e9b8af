/* SPDX-License-Identifier: MIT */
/*
 * daemon_files.c - mapped files with real clients: what is in the mapping is what is in the file, for all
 * clients, after msync, munmap and death, with workers killed, at its end and past it, and where it
 * cannot be written.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/lib_client.h"

#define SIZE (200 * PAGE + 123)

static char path[64];

static int make_file(size_t size, uint64_t seed)
{
	int fd;

	snprintf(path, sizeof(path), "/tmp/arena-files.%d", (int)getpid());
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	for (size_t at = 0; at < size; at += 1u << 20) {
		static char piece[1u << 20];
		size_t n = size - at < sizeof(piece) ? size - at : sizeof(piece);

		pattern_fill(piece, n, seed + at);
		assert_int_equal(pwrite(fd, piece, n, (off_t)at), (ssize_t)n);
	}
	unlink(path);
	return fd;
}

static char *map_file(arena_t *a, int fd, size_t len, int prot, int flags)
{
	char *p = arena_mmap(a, NULL, len, prot, flags, fd, 0);

	if (p == MAP_FAILED)
		check_errno_failed(__FILE__, __LINE__, "arena_mmap", -1, 0);
	return p;
}

static bool file_is(int fd, const char *want, size_t n)
{
	char *have = malloc(n);
	bool same = have && pread(fd, have, n, 0) == (ssize_t)n && memcmp(have, want, n) == 0;

	free(have);
	return same;
}

struct job {
	int fd;
	size_t size;
	struct gate go, done;
	char *want; /* shared: what the file is to be */
};

/* ---- contents ---------------------------------------------------------------------------------- */

static void read_all(struct test_daemon *d, void *arg)
{
	struct job *j = arg;
	arena_t *a = client_open(d);
	const char *p = map_file(a, j->fd, j->size + 2 * PAGE, PROT_READ, MAP_SHARED);
	struct fault_seen seen;
	size_t end = (j->size + PAGE - 1) / PAGE * PAGE;

	for (size_t at = 0; at < j->size; at += 1u << 20)
		CHECK(pattern_is(p + at, j->size - at < 1u << 20 ? j->size - at : 1u << 20,
				 7 + at));
	CHECK(is_zero(p + j->size, end - j->size));
	CHECK(try_read(p + end, &seen) == SIGBUS);
	CHECK(seen.code == BUS_ADRERR && seen.addr == (uintptr_t)(p + end));
	CHECK_OK(arena_munmap(a, (void *)p, j->size + 2 * PAGE));
	arena_close(a);
}

static void test_read(void **state)
{
	struct job j = {.size = SIZE};

	j.fd = make_file(j.size, 7);
	client_run(*state, read_all, &j);
	close(j.fd);
}

static void test_large_file(void **state)
{
	/* Workers that are killed all the time have to start all the time. */
	unsigned slow = getenv("ARENA_TEST_KILL") ? 20 : 1;
	struct job j = {.size = (200ul << 20) / test_slowness() / slow + 5};

	j.fd = make_file(j.size, 7);
	client_run(*state, read_all, &j);
	close(j.fd);
}

static void what_it_refuses(struct test_daemon *d, void *arg)
{
	struct job *j = arg;
	arena_t *a = client_open(d);
	int pipes[2], dir = open("/", O_RDONLY | O_CLOEXEC), ro, wo;
	char link[32], *p, *k;

	CHECK_OK(pipe(pipes));
	snprintf(link, sizeof(link), "/proc/self/fd/%d", j->fd);
	ro = open(link, O_RDONLY | O_CLOEXEC);
	wo = open(link, O_WRONLY | O_CLOEXEC);
	CHECK(ro >= 0 && wo >= 0 && dir >= 0);
#define SAME(prot, flags, fd, off)                                                \
	CHECK_SAME_ERRNO(arena_mmap(a, NULL, PAGE, (prot), (flags), (fd), (off)), \
			 mmap(NULL, PAGE, (prot), (flags), (fd), (off)))
	SAME(PROT_READ, MAP_SHARED, -1, 0);
	SAME(PROT_READ, MAP_SHARED, 9999, 0);
	SAME(PROT_READ, MAP_SHARED, dir, 0);
	SAME(PROT_READ, MAP_PRIVATE, pipes[0], 0);
	SAME(PROT_READ, MAP_PRIVATE, wo, 0);
	SAME(PROT_WRITE, MAP_SHARED, wo, 0);
	SAME(RW, MAP_SHARED, ro, 0);
	SAME(PROT_READ, MAP_SHARED, ro, 100);
	SAME(PROT_READ, MAP_SHARED | MAP_PRIVATE | 4, ro, 0);
	SAME(RW, MAP_PRIVATE, ro, 0);
	p = map_file(a, ro, PAGE, PROT_READ, MAP_SHARED);
	k = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ro, 0);
	CHECK_SAME_ERRNO(arena_mprotect(a, p, PAGE, RW), mprotect(k, PAGE, RW));
	/* The descriptor is needed no longer. */
	close(ro), close(wo), close(j->fd);
	CHECK(pattern_is(p, PAGE, 7));
	arena_close(a);
}

static void test_refusals(void **state)
{
	struct job j = {.size = SIZE};

	j.fd = make_file(j.size, 7);
	client_run(*state, what_it_refuses, &j);
	close(j.fd);
}

/* ---- sharing ------------------------------------------------------------------------------------- */

static void write_second(struct test_daemon *d, void *arg)
{
	struct job *j = arg;
	arena_t *a = client_open(d);
	char *p = map_file(a, j->fd, SIZE, RW, MAP_SHARED);

	gate_pass(&j->go);
	CHECK(p[10] == 1 && p[50 * PAGE] == 2);
	p[10] = 3;
	gate_open(&j->done, 1);
	gate_pass(&j->go);
	arena_close(a);
}

static void write_first(struct test_daemon *d, void *arg)
{
	struct job *j = arg;
	arena_t *a = client_open(d);
	char *p = map_file(a, j->fd, SIZE, RW, MAP_SHARED);
	char *own = map_file(a, j->fd, SIZE, RW, MAP_PRIVATE), before = own[11];

	p[10] = 1;
	p[50 * PAGE] = 2;
	own[11] = (char)(before + 1);
	CHECK(p[11] == before);
	gate_open(&j->go, 1);
	gate_pass(&j->done);
	CHECK(p[10] == 3);
	memcpy(j->want, p, SIZE);
	CHECK_OK(arena_msync(a, p, SIZE, MS_SYNC));
	CHECK(file_is(j->fd, j->want, SIZE));
	CHECK(own[11] == (char)(before + 1));
	/* What is unmapped is in the file. */
	for (size_t i = 0; i < SIZE; i += PAGE)
		p[i] = j->want[i] = 9;
	CHECK_OK(arena_munmap(a, p, SIZE));
	CHECK(file_is(j->fd, j->want, SIZE));
	gate_open(&j->go, 1);
	arena_close(a);
}

static void test_shared(void **state)
{
	struct job j = {.go = gate_make(), .done = gate_make(), .want = shared_alloc(SIZE)};
	pid_t first, second;

	j.fd = make_file(SIZE, 7);
	second = client_start(*state, write_second, &j);
	first = client_start(*state, write_first, &j);
	client_wait(first);
	client_wait(second);
	gate_close(&j.go), gate_close(&j.done);
	shared_free(j.want, SIZE);
	close(j.fd);
}

static void fork_over(struct test_daemon *d, void *arg)
{
	struct job *j = arg;
	arena_t *a = client_open(d);
	char *p = map_file(a, j->fd, SIZE, RW, MAP_SHARED);
	char *own = map_file(a, j->fd, SIZE, RW, MAP_PRIVATE);
	pid_t pid;

	p[1] = 1;
	own[2] = 2;
	IN_CHILD(pid)
	{
		CHECK(p[1] == 1 && own[2] == 2);
		p[1] = 3;
		own[2] = 4;
	}
	expect_child(pid);
	CHECK(p[1] == 3 && own[2] == 2);
	arena_close(a);
}

static void test_fork(void **state)
{
	struct job j = {.fd = make_file(SIZE, 7)};

	client_run(*state, fork_over, &j);
	close(j.fd);
}

static void map_over(struct test_daemon *d, void *arg)
{
	struct job *j = arg;
	arena_t *a = client_open(d);
	char *p = map_file(a, j->fd, SIZE, RW, MAP_SHARED), *q, byte;
	char *other = arena_mmap(a, NULL, 10 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(other != MAP_FAILED);
#define IN_FILE(at, value) CHECK(pread(j->fd, &byte, 1, (off_t)(at)) == 1 && byte == (value))
	p[5] = 1;
	CHECK(arena_mmap(a, p, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
	IN_FILE(5, 1);
	CHECK(p[5] == 0);
	p[PAGE + 5] = 2;
	CHECK(arena_mmap(a, p + PAGE, PAGE, RW, MAP_SHARED | MAP_FIXED, j->fd, 20 * PAGE) ==
	      p + PAGE);
	IN_FILE(PAGE + 5, 2);
	p[PAGE + 5] = 3;
	q = p + 100 * PAGE;
	q[5] = 4;
	CHECK(arena_mremap(a, other, 10 * PAGE, 10 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, q) == q);
	IN_FILE(100 * PAGE + 5, 4);
	p[90 * PAGE] = 5;
	CHECK(arena_mremap(a, p + 80 * PAGE, 20 * PAGE, 5 * PAGE, 0, NULL) == p + 80 * PAGE);
	IN_FILE(90 * PAGE, 5);
	CHECK_OK(arena_munmap(a, p + PAGE, PAGE));
	IN_FILE(20 * PAGE + 5, 3);
	arena_close(a);
}

/* What is replaced, moved over or cut off is in the file when the call returns, as after munmap. */
static void test_map_over(void **state)
{
	struct job j = {.fd = make_file(SIZE, 7)};

	client_run(*state, map_over, &j);
	close(j.fd);
}

/* ---- death ------------------------------------------------------------------------------------------ */

static void write_and_die(struct test_daemon *d, void *arg)
{
	struct job *j = arg;
	arena_t *a = client_open(d);
	char *p = map_file(a, j->fd, SIZE, RW, MAP_SHARED);

	for (size_t i = 0; i < SIZE; i += PAGE)
		p[i + i / PAGE] = j->want[i + i / PAGE] = (char)i;
	kill(getpid(), SIGKILL);
}

static bool nothing_dirty(struct test_daemon *d, void *arg)
{
	(void)arg;
	return daemon_number(d, "proc/meminfo", "Dirty:") == 0 &&
	       daemon_number(d, "proc/meminfo", "Writeback:") == 0;
}

static void test_killed_client(void **state)
{
	struct job j = {.fd = make_file(SIZE, 7), .want = shared_alloc(SIZE)};
	pid_t pid;

	assert_int_equal(pread(j.fd, j.want, SIZE, 0), (ssize_t)SIZE);
	pid = client_start(*state, write_and_die, &j);
	client_wait_signal(pid, SIGKILL);
	/* With its last page the daemon has let go of the file. */
	expect_all_frames_back(*state);
	assert_true(daemon_await(*state, 10000, nothing_dirty, NULL));
	assert_true(file_is(j.fd, j.want, SIZE));
	shared_free(j.want, SIZE);
	close(j.fd);
}

#define ROUNDS 400u

static void write_at_random(struct test_daemon *d, void *arg)
{
	struct job *j = arg;
	arena_t *a = client_open(d);
	char *p = map_file(a, j->fd, SIZE, RW, MAP_SHARED);
	unsigned seed = 12345, rounds = getenv("ARENA_TEST_KILL") ? ROUNDS / 10 : ROUNDS;

	for (unsigned i = 0; i < rounds; i++) {
		size_t at = (size_t)rand_r(&seed) % SIZE;

		CHECK(p[at] == j->want[at]);
		p[at] = j->want[at] = (char)(i + 1);
		if (i % 40 == 39)
			CHECK_OK(arena_msync(a, p, SIZE, MS_SYNC));
		if (i % 40 == 39)
			CHECK(file_is(j->fd, j->want, SIZE));
		if (i % 100 == 99) {
			CHECK_OK(arena_munmap(a, p, SIZE));
			p = map_file(a, j->fd, SIZE, RW, MAP_SHARED);
		}
	}
	CHECK(memcmp(p, j->want, SIZE) == 0);
	arena_close(a);
}

/* Killed all the while, workers lose no byte. */
static void test_killed_workers(void **state)
{
	struct test_daemon *d = *state;
	struct job j = {.fd = make_file(SIZE, 7), .want = shared_alloc(SIZE)};
	pid_t pid;

	assert_int_equal(pread(j.fd, j.want, SIZE, 0), (ssize_t)SIZE);
	d->expect_deaths = true;
	pid = client_start(d, write_at_random, &j);
	for (unsigned i = 0; i < 12 && kill(pid, 0) == 0; i++) {
		daemon_kill_worker(d);
		usleep(10000);
	}
	client_wait(pid);
	expect_all_frames_back(d);
	assert_true(daemon_await(d, 10000, nothing_dirty, NULL));
	assert_true(file_is(j.fd, j.want, SIZE));
	shared_free(j.want, SIZE);
	close(j.fd);
}

/* A daemon that is told to stop writes what is dirty. */
static void leave_dirty(struct test_daemon *d, void *arg)
{
	struct job *j = arg;
	arena_t *a = client_open(d);
	char *p = map_file(a, j->fd, SIZE, RW, MAP_SHARED);

	p[5] = j->want[5] = 77;
	gate_open(&j->done, 1);
	gate_pass(&j->go);
	_exit(0);
}

static void test_stop(void **state)
{
	struct job j = {.fd = make_file(SIZE, 7),
			.want = shared_alloc(SIZE),
			.go = gate_make(),
			.done = gate_make()};
	pid_t pid;

	assert_int_equal(pread(j.fd, j.want, SIZE, 0), (ssize_t)SIZE);
	pid = client_start(*state, leave_dirty, &j);
	gate_pass(&j.done);
	daemon_stop(*state);
	assert_true(file_is(j.fd, j.want, SIZE));
	gate_open(&j.go, 1);
	client_wait(pid);
	daemon_start(*state, NULL);
	gate_close(&j.go), gate_close(&j.done);
	shared_free(j.want, SIZE);
	close(j.fd);
}

/* ---- what can go wrong -------------------------------------------------------------------------------- */

static void truncate_it(struct test_daemon *d, void *arg)
{
	struct job *j = arg;
	arena_t *a = client_open(d);
	char *p = map_file(a, j->fd, SIZE, RW, MAP_SHARED);
	struct fault_seen seen;

	memset(p, 5, SIZE);
	CHECK_OK(ftruncate(j->fd, (off_t)(10 * PAGE + 10)));
	/* A fault looks at the size, and takes away what is behind it. */
	CHECK_OK(arena_madvise(a, p + 100 * PAGE, PAGE, MADV_DONTNEED));
	CHECK(try_read(p + 100 * PAGE, &seen) == SIGBUS);
	CHECK(seen.code == BUS_ADRERR);
	for (unsigned i = 0; i < 1000 && try_read(p + 50 * PAGE, &seen) == 0; i++)
		usleep(1000);
	CHECK(try_write(p + 50 * PAGE, &seen) == SIGBUS);
	p[10 * PAGE + 9] = 6;
	CHECK_OK(arena_msync(a, p, SIZE, MS_SYNC));
	CHECK(lseek(j->fd, 0, SEEK_END) == (off_t)(10 * PAGE + 10));
	/* It grows again: what is there is the file's. */
	CHECK_OK(ftruncate(j->fd, (off_t)SIZE));
	CHECK(p[50 * PAGE] == 0);
	CHECK(p[10 * PAGE + 9] == 6 && p[10 * PAGE + 10] == 0);
	arena_close(a);
}

static void test_truncate(void **state)
{
	struct job j = {.fd = make_file(SIZE, 7)};

	client_run(*state, truncate_it, &j);
	close(j.fd);
}

static void cannot_be_written(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	int fd = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	char *p, byte;

	(void)arg;
	CHECK(fd >= 0);
	CHECK_OK(ftruncate(fd, (off_t)SIZE));
	p = map_file(a, fd, SIZE, RW, MAP_SHARED);
	p[100] = 1;
	CHECK_OK(arena_msync(a, p, SIZE, MS_SYNC));
	CHECK_OK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
	p[100] = 2;
	CHECK_ERRNO(arena_msync(a, p, SIZE, MS_SYNC), EPERM);
	CHECK(pread(fd, &byte, 1, 100) == 1 && byte == 1);
	CHECK(p[100] == 2);
	arena_close(a);
}

static void test_write_error(void **state)
{
	struct test_daemon d = {0};

	(void)state;
	daemon_start(&d, NULL);
	d.expect_warnings = true;
	client_run(&d, cannot_be_written, NULL);
	/* That what was written last is lost is said. */
	assert_true(daemon_log_wait(&d, 0, "are lost"));
	daemon_stop(&d);
	daemon_destroy(&d);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		daemon_test(test_read),          daemon_test(test_large_file),
		daemon_test(test_refusals),      daemon_test(test_shared),
		daemon_test(test_map_over),      daemon_test(test_fork),
		daemon_test(test_killed_client), daemon_test(test_killed_workers),
		daemon_test(test_stop),          daemon_test(test_truncate),
		daemon_test(test_write_error),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
