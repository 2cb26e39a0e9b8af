/* SPDX-License-Identifier: MIT */
/*
 * daemon_uffd.c - the userfaultfd trap: who gets it, and what system calls find in memory that is not
 * mapped, is to be copied, or is not there.
 */
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "base/userfault.h"
#include "tests/lib_uffd.h"
#include "tests/lib_wire.h"

/* ---- who gets it --------------------------------------------------------------------------- */

static const char *trap_of(struct test_daemon *d, enum arena_trap trap)
{
	arena_t *a = client_open_trap(d, trap);
	const char *name = arena_trap_name(a);
	char *p = client_map(a, PAGE);

	*p = 1;
	arena_close(a);
	return name;
}

static void do_choice_of_member(struct test_daemon *d, void *arg)
{
	(void)arg;
	CHECK(strcmp(trap_of(d, ARENA_TRAP_AUTO), "userfaultfd") == 0);
	CHECK(strcmp(arena_trap_reason(), "") == 0);
	CHECK(strcmp(trap_of(d, ARENA_TRAP_USERFAULTFD), "userfaultfd") == 0);
	CHECK(strcmp(trap_of(d, ARENA_TRAP_SIGNAL), "signal") == 0);
}

static void do_choice_of_stranger(struct test_daemon *d, void *arg)
{
	struct arena_options options = {
		.size = sizeof(options), .socket = d->socket, .trap = ARENA_TRAP_USERFAULTFD};
	arena_t *a = NULL;

	(void)arg;
	CHECK_ERRNO(arena_open(&options, &a), EPERM);
	CHECK(!a);
	CHECK(strstr(arena_trap_reason(), "userfaultfd-group"));
	CHECK(strcmp(trap_of(d, ARENA_TRAP_AUTO), "signal") == 0);
	CHECK(strstr(arena_trap_reason(), "CAP_SYS_PTRACE"));
	CHECK(strcmp(trap_of(d, ARENA_TRAP_SIGNAL), "signal") == 0);
}

static void test_choice(void **state)
{
	struct test_daemon *d = *state;

	uffd_run(d, do_choice_of_member, NULL);
	/* Where the host gives it to everybody there are no strangers. */
	if (userfault_open(-1) >= 0 && access("/proc/sys/vm/unprivileged_userfaultfd", R_OK) == 0) {
		FILE *f = fopen("/proc/sys/vm/unprivileged_userfaultfd", "re");
		int everybody = 1;

		assert_non_null(f);
		assert_int_equal(fscanf(f, "%d", &everybody), 1);
		fclose(f);
		if (!everybody)
			client_run_as(d, UFFD_STRANGER, do_choice_of_stranger, NULL);
	}
}

/* ---- what the daemon keeps ----------------------------------------------------------------- */

#define WIRE_USERFAULT_DEVICE 41
#define WIRE_USERFAULT_KEEP 42

static bool hung_up(int fd, int ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, ms) == 1 && (p.revents & POLLHUP);
}

/* A pipe stands for the userfaultfd: its reader sees when the last writer has gone. */
static void test_keeper(void **state)
{
	struct test_daemon *d = *state;
	static struct wire_reply reply;
	struct wire_client c;
	int pipe_fd[2], other[2];
	unsigned nr;

	if (getenv("ARENA_TEST_KILL"))
		skip(); /* a connection by hand is not made again */
	assert_true(wire_open(&c, d->socket));
	assert_true(wire_attach(&c));
	nr = c.nr_fds;
	assert_int_equal(wire_call(&c, WIRE_USERFAULT_KEEP, NULL, &reply), 0);
	assert_int_equal(c.nr_fds, nr + 1);
	assert_int_equal(pipe2(pipe_fd, O_CLOEXEC), 0);
	assert_int_equal(wire_send(c.fds[nr], "", 1, &pipe_fd[1], 1), 0);
	close(pipe_fd[1]);
	close(c.fds[nr]);
	c.nr_fds = nr;
	assert_int_equal(wire_call(&c, WIRE_NULL, NULL, &reply), 0);
	assert_false(hung_up(pipe_fd[0], 0));
	/* Asked for again, it holds the new one. */
	assert_int_equal(wire_call(&c, WIRE_USERFAULT_KEEP, NULL, &reply), 0);
	assert_true(hung_up(pipe_fd[0], 10000));
	assert_int_equal(pipe2(other, O_CLOEXEC), 0);
	assert_int_equal(wire_send(c.fds[nr], "", 1, &other[1], 1), 0);
	close(other[1]);
	close(c.fds[nr]);
	c.nr_fds = nr;
	assert_false(hung_up(other[0], 0));
	wire_close(&c);
	assert_true(hung_up(other[0], 10000));
	close(pipe_fd[0]);
	close(other[0]);
}

static void do_device(struct test_daemon *d, void *arg)
{
	static struct wire_reply reply;
	int expected = *(const int *)arg;
	struct wire_client c;

	CHECK(wire_open(&c, d->socket));
	CHECK(wire_call(&c, WIRE_USERFAULT_DEVICE, NULL, &reply) == expected);
	CHECK(c.nr_fds == !expected);
	if (!expected) {
		int fd = userfault_open(c.fds[0]);

		CHECK(fd >= 0);
		close(fd);
	}
	wire_close(&c);
}

static void test_device(void **state)
{
	static int none = 0, permission = EPERM;

	if (access(USERFAULT_DEVICE, F_OK) < 0 || getenv("ARENA_TEST_KILL"))
		skip(); /* a connection by hand is not made again */
	uffd_run(*state, do_device, &none);
	client_run_as(*state, UFFD_STRANGER, do_device, &permission);
}

/* ---- system calls -------------------------------------------------------------------------- */

#define SIZE (8 * PAGE)
#define FROM 1000ul
#define TO (5 * PAGE + 77)

typedef ssize_t fill_fn(char *p, size_t len);

static char bytes[TO - FROM];

static ssize_t by_read(char *p, size_t len)
{
	int fd[2];
	size_t done = 0;

	CHECK_OK(pipe(fd));
	CHECK(write(fd[1], bytes, len) == (ssize_t)len);
	while (done < len) {
		ssize_t n = read(fd[0], p + done, len - done);

		CHECK(n > 0);
		done += (size_t)n;
	}
	close(fd[0]);
	close(fd[1]);
	return (ssize_t)done;
}

static ssize_t by_recv(char *p, size_t len)
{
	int fd[2];
	ssize_t n;

	CHECK_OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, fd));
	CHECK(send(fd[1], bytes, len, 0) == (ssize_t)len);
	n = recv(fd[0], p, len, 0);
	close(fd[0]);
	close(fd[1]);
	return n;
}

static ssize_t by_readv(char *p, size_t len)
{
	struct iovec iov[] = {{p, 3000}, {p + 3000, len - 3000}};
	char path[] = "/tmp/arena-uffd.XXXXXX";
	int fd = mkstemp(path);
	ssize_t n;

	CHECK(fd >= 0);
	unlink(path);
	CHECK(write(fd, bytes, len) == (ssize_t)len);
	n = preadv(fd, iov, 2, 0);
	close(fd);
	return n;
}

static ssize_t by_vm_readv(char *p, size_t len)
{
	struct iovec to = {p, len}, from = {bytes, len};

	return process_vm_readv(getpid(), &to, 1, &from, 1, 0);
}

static fill_fn *const fills[] = {by_read, by_recv, by_readv, by_vm_readv};

static void do_calls_write(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);

	(void)arg;
	CHECK(getrandom(bytes, sizeof(bytes), 0) == (ssize_t)sizeof(bytes));
	for (int s = 0; s < UFFD_NR_STATES; s++)
		for (size_t i = 0; i < sizeof(fills) / sizeof(fills[0]); i++) {
			struct uffd_pages pages;

			uffd_make(a, (enum uffd_state)s, SIZE, &pages);
			CHECK(fills[i](pages.p + FROM, TO - FROM) == (ssize_t)(TO - FROM));
			CHECK(memcmp(pages.p + FROM, bytes, TO - FROM) == 0);
			uffd_check_rest(&pages, FROM, TO);
			uffd_end(a, &pages);
		}
	arena_close(a);
}

static void test_calls_write(void **state)
{
	uffd_run(*state, do_calls_write, NULL);
}

/* write(2) out of each state, and the kernel's own reads and writes of words. */
static void do_calls_read(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);
	char *copy = malloc(SIZE);

	(void)arg;
	CHECK(copy);
	for (int s = 0; s < UFFD_NR_STATES; s++) {
		struct uffd_pages pages;
		uint32_t word;
		int fd[2];

		uffd_make(a, (enum uffd_state)s, SIZE, &pages);
		CHECK_OK(pipe(fd));
		CHECK(write(fd[1], pages.p, SIZE) == SIZE);
		CHECK(read(fd[0], copy, SIZE) == SIZE);
		CHECK(memcmp(copy, pages.p, SIZE) == 0);
		CHECK(pages.zero ? is_zero(copy, SIZE) : pattern_is(copy, SIZE, 7));
		uffd_end(a, &pages);
		uffd_make(a, (enum uffd_state)s, SIZE, &pages);
		memcpy(&word, copy + PAGE, sizeof(word));
		errno = 0;
		syscall(SYS_futex, pages.p + PAGE, FUTEX_WAIT_PRIVATE, word + 1, NULL, NULL, 0);
		CHECK(errno == EAGAIN);
		CHECK_OK(pipe((int *)(void *)(pages.p + 2 * PAGE)));
		uffd_check_rest(&pages, 2 * PAGE, 2 * PAGE + 2 * sizeof(int));
		uffd_end(a, &pages);
		close(fd[0]);
		close(fd[1]);
	}
	free(copy);
	arena_close(a);
}

static void test_calls_read(void **state)
{
	uffd_run(*state, do_calls_read, NULL);
}

/* A datagram that met no memory would be lost. */
static void do_datagrams(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);
	unsigned n = test_scaled(400);
	char *p = client_map(a, (size_t)n * PAGE);
	int fd[2];

	(void)arg;
	CHECK_OK(arena_madvise(a, p, (size_t)n * PAGE, MADV_NOHUGEPAGE));
	CHECK_OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, fd));
	for (unsigned i = 0; i < n; i++) {
		uint64_t number = i + 1;

		CHECK(send(fd[1], &number, sizeof(number), 0) == sizeof(number));
		CHECK(recv(fd[0], p + i * PAGE + 40, 100, 0) == sizeof(number));
	}
	for (unsigned i = 0; i < n; i++) {
		uint64_t number;

		memcpy(&number, p + i * PAGE + 40, sizeof(number));
		CHECK(number == i + 1);
	}
	arena_close(a);
}

static void test_datagrams(void **state)
{
	uffd_run(*state, do_datagrams, NULL);
}

/* ---- what is refused ----------------------------------------------------------------------- */

static ssize_t read_into(char *p)
{
	int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	ssize_t n;

	CHECK(fd >= 0);
	errno = 0;
	n = read(fd, p, 8);
	close(fd);
	return n;
}

#define CHECK_EFAULT(p) CHECK(read_into(p) == -1 && errno == EFAULT)
#define CHECK_SIGNAL(access, p, sig, why)                                   \
	do {                                                                \
		struct fault_seen seen_;                                    \
		CHECK((access)((p), &seen_) == (sig));                      \
		CHECK(seen_.addr == (uintptr_t)(p) && seen_.code == (why)); \
	} while (0)

static void do_refused(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);
	char *p = client_map(a, 16 * PAGE), *q = p + 4 * PAGE + 5;

	(void)arg;
	pattern_fill(p, 16 * PAGE, 1);
	for (int i = 0; i < 3; i++) {
		/* Nothing is mapped. */
		CHECK_OK(arena_munmap(a, p + 4 * PAGE, 4 * PAGE));
		CHECK_EFAULT(q);
		CHECK_SIGNAL(try_read, q, SIGSEGV, SEGV_MAPERR);
		CHECK_SIGNAL(try_write, q, SIGSEGV, SEGV_MAPERR);
		CHECK_EFAULT(q);
		/* It is there at once when it is mapped. */
		CHECK(arena_mmap(a, p + 4 * PAGE, 4 * PAGE, RW, ANON | MAP_FIXED, -1, 0) ==
		      p + 4 * PAGE);
		CHECK(read_into(q) == 8);
		CHECK(is_zero(p + 4 * PAGE, 4 * PAGE));
		/* Mapped, without the right. */
		pattern_fill(p + 4 * PAGE, 4 * PAGE, 2);
		CHECK_OK(arena_mprotect(a, p + 4 * PAGE, 4 * PAGE, PROT_READ));
		CHECK_EFAULT(q);
		CHECK_SIGNAL(try_write, q, SIGSEGV, SEGV_ACCERR);
		CHECK(try_read(q, NULL) == 0);
		CHECK(pattern_is(p + 4 * PAGE, 4 * PAGE, 2));
		CHECK_OK(arena_mprotect(a, p + 4 * PAGE, 4 * PAGE, PROT_NONE));
		CHECK_EFAULT(q);
		CHECK_SIGNAL(try_read, q, SIGSEGV, SEGV_ACCERR);
		CHECK_OK(arena_mprotect(a, p + 4 * PAGE, 4 * PAGE, PROT_READ));
		CHECK(pattern_is(p + 4 * PAGE, 4 * PAGE, 2));
		CHECK_OK(arena_mprotect(a, p + 4 * PAGE, 4 * PAGE, RW));
		CHECK(read_into(q) == 8);
	}
	CHECK(pattern_is(p, 4 * PAGE, 1) && pattern_is(p + 8 * PAGE, PAGE, 1) == false);
	arena_close(a);
}

static void test_refused(void **state)
{
	uffd_run(*state, do_refused, NULL);
}

/* More wild accesses at a time than are remembered. */
static void do_many_refused(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);
	char *p = client_map(a, 400 * PAGE);

	(void)arg;
	CHECK_OK(arena_munmap(a, p, 400 * PAGE));
	for (unsigned i = 0; i < 200; i++)
		CHECK_EFAULT(p + 2 * i * PAGE);
	CHECK(arena_mmap(a, p, 400 * PAGE, RW, ANON | MAP_FIXED, -1, 0) == p);
	for (unsigned i = 0; i < 200; i++)
		CHECK(read_into(p + 2 * i * PAGE) == 8);
	arena_close(a);
}

static void test_many_refused(void **state)
{
	uffd_run(*state, do_many_refused, NULL);
}

struct growing {
	struct gate refused, grown;
};

static void do_grow(struct test_daemon *d, void *arg)
{
	struct growing *g = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, "/uffd-grow", O_RDWR, 0);

	gate_pass(&g->refused);
	CHECK_OK(arena_shm_truncate(s, 8 * PAGE));
	gate_open(&g->grown, 1);
	arena_shm_close(s);
	arena_close(a);
}

static void do_grown(struct test_daemon *d, void *arg)
{
	struct growing *g = arg;
	arena_t *a = uffd_open(d);
	arena_shm_t *s = client_shm(a, "/uffd-grow", O_RDWR | O_CREAT | O_EXCL, 0666);
	pid_t pid;
	char *p;

	CHECK_OK(arena_shm_truncate(s, PAGE));
	p = arena_shm_mmap(s, NULL, 8 * PAGE, RW, MAP_SHARED, 0);
	CHECK(p != MAP_FAILED);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		do_grow(d, g);
		_exit(0);
	}
	CHECK(read_into(p) == 8);
	CHECK_EFAULT(p + PAGE);
	CHECK_SIGNAL(try_read, p + 2 * PAGE + 1, SIGBUS, BUS_ADRERR);
	CHECK_SIGNAL(try_write, p + 2 * PAGE + 1, SIGBUS, BUS_ADRERR);
	gate_open(&g->refused, 1);
	gate_pass(&g->grown);
	/* Nobody has told this process. Its threads see it at once, system calls after a moment. */
	CHECK(try_write(p + PAGE, NULL) == 0);
	CHECK(read_into(p + PAGE) == 8);
	for (unsigned i = 0; i < 1000 && read_into(p + 4 * PAGE) < 0; i++)
		usleep(1000);
	CHECK(read_into(p + 4 * PAGE) == 8);
	CHECK_OK(arena_shm_unlink(a, "/uffd-grow"));
	arena_shm_close(s);
	arena_close(a);
}

static void test_grown_by_another(void **state)
{
	struct growing g = {.refused = gate_make(), .grown = gate_make()};

	uffd_run(*state, do_grown, &g);
	gate_close(&g.refused);
	gate_close(&g.grown);
}

/* ---- ahead of a walk ------------------------------------------------------------------------- */

#define WALK 96u /* leaves */

struct walk {
	struct gate here, there;
	unsigned steps;
};

static void do_walk(struct test_daemon *d, void *arg)
{
	struct walk *w = arg;
	arena_t *a = uffd_open(d);
	char *p = client_map(a, WALK * LEAF);

	for (unsigned i = 0; i < WALK; i++) {
		pattern_fill(p + i * LEAF + PAGE * i, PAGE, i);
		if (i + 1 != w->steps)
			continue;
		gate_open(&w->here, 1);
		gate_pass(&w->there);
	}
	for (unsigned i = 0; i < WALK; i++) {
		CHECK(pattern_is(p + i * LEAF + PAGE * i, PAGE, i));
		CHECK(is_zero(p + i * LEAF + PAGE * (i + 1), PAGE));
	}
	arena_close(a);
}

static uint64_t faults_after(struct test_daemon *d, unsigned steps, uint64_t wanted)
{
	struct walk w = {.here = gate_make(), .there = gate_make(), .steps = steps};
	uint64_t until = test_now() + 5 * UINT64_C(1000000000), faults;
	pid_t pid = client_start(d, do_walk, &w);

	gate_pass(&w.here);
	do
		faults = client_number(d, pid, "faults");
	while (faults < wanted && test_now() < until);
	gate_open(&w.there, 1);
	client_wait(pid);
	gate_close(&w.here);
	gate_close(&w.there);
	return faults;
}

/*
 * The daemon fills 1, 4, 16 leaves: faults at leaves 0, 1, 5. Whoever has come to the middle of the 16 is
 * thought to go on: the next, at leaf 21, is asked for before. A fault thread that the scheduler left behind
 * the program lets go; so not every walk has to show it.
 */
static void test_walk(void **state)
{
	uint64_t faults = 0;

	if (getenv("ARENA_TEST_KILL"))
		skip(); /* a fault that is made again counts again */
	for (unsigned walks = 0; walks < 4 && faults < 4; walks++)
		faults = faults_after(*state, 14, 4);
	assert_int_equal(faults, 4);
}

/* ---- at once ------------------------------------------------------------------------------- */

#define RACE_PAGES 64u

struct race {
	arena_t *a;
	char *p;
	size_t len;
	pthread_barrier_t start;
	uint32_t stop;
};

/* Reads map pages that are to be copied; no write(2) or read(2) may find them otherwise. */
static void *race_reader(void *arg)
{
	struct race *r = arg;

	pthread_barrier_wait(&r->start);
	for (size_t i = 0; i < r->len; i += PAGE)
		(void)*(volatile char *)(r->p + i);
	return NULL;
}

static void *race_writer(void *arg)
{
	struct race *r = arg;
	int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0);
	pthread_barrier_wait(&r->start);
	for (size_t i = 0; i < r->len; i += PAGE) {
		CHECK(read(fd, r->p + i + 64, 64) == 64);
		CHECK(*(uint64_t *)(void *)(r->p + i) == i / PAGE + 1);
	}
	close(fd);
	return NULL;
}

static void do_cow_race(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);
	size_t len = RACE_PAGES * PAGE;
	arena_shm_t *s = client_shm(a, "/uffd-race", O_RDWR | O_CREAT | O_EXCL, 0600);
	char *shared, zero[64] = {0};

	(void)arg;
	CHECK_OK(arena_shm_truncate(s, (off_t)len));
	shared = arena_shm_mmap(s, NULL, len, RW, MAP_SHARED, 0);
	CHECK(shared != MAP_FAILED);
	for (size_t i = 0; i < RACE_PAGES; i++)
		*(uint64_t *)(void *)(shared + i * PAGE) = i + 1;
	for (unsigned n = 0; n < test_scaled(60); n++) {
		struct race r = {.a = a, .len = len};
		pthread_t thread[2];

		r.p = arena_shm_mmap(s, NULL, len, RW, MAP_PRIVATE, 0);
		CHECK(r.p != MAP_FAILED);
		CHECK_OK(pthread_barrier_init(&r.start, NULL, 2));
		CHECK_OK(pthread_create(&thread[0], NULL, race_reader, &r));
		CHECK_OK(pthread_create(&thread[1], NULL, race_writer, &r));
		CHECK_OK(pthread_join(thread[0], NULL));
		CHECK_OK(pthread_join(thread[1], NULL));
		for (size_t i = 0; i < RACE_PAGES; i++) {
			CHECK(memcmp(shared + i * PAGE + 64, zero, 64) == 0);
			CHECK(memcmp(r.p + i * PAGE + 64, zero, 64) != 0);
		}
		CHECK_OK(arena_munmap(a, r.p, len));
		CHECK_OK(pthread_barrier_destroy(&r.start));
	}
	CHECK_OK(arena_shm_unlink(a, "/uffd-race"));
	arena_shm_close(s);
	arena_close(a);
}

static void test_cow_race(void **state)
{
	uffd_run(*state, do_cow_race, NULL);
}

static void *discard_again_and_again(void *arg)
{
	struct race *r = arg;

	pthread_barrier_wait(&r->start);
	while (!__atomic_load_n(&r->stop, __ATOMIC_ACQUIRE))
		CHECK_OK(arena_madvise(r->a, r->p, r->len, MADV_DONTNEED));
	return NULL;
}

/* Memory that is valid all the time, and unmapped again and again under system calls. */
static void do_flush_race(struct test_daemon *d, void *arg)
{
	struct race r = {.a = uffd_open(d), .len = 4 * PAGE};
	int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	pthread_t thread;

	(void)arg;
	r.p = client_map(r.a, r.len);
	CHECK(fd >= 0);
	CHECK_OK(arena_madvise(r.a, r.p, r.len, MADV_NOHUGEPAGE));
	CHECK_OK(pthread_barrier_init(&r.start, NULL, 2));
	CHECK_OK(pthread_create(&thread, NULL, discard_again_and_again, &r));
	pthread_barrier_wait(&r.start);
	for (unsigned i = 0; i < test_scaled(2000); i++)
		CHECK(read(fd, r.p + PAGE - 8, 16) == 16);
	__atomic_store_n(&r.stop, 1, __ATOMIC_RELEASE);
	CHECK_OK(pthread_join(thread, NULL));
	close(fd);
	arena_close(r.a);
}

static void test_flush_race(void **state)
{
	uffd_run(*state, do_flush_race, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		daemon_test(test_choice),     daemon_test(test_keeper),
		daemon_test(test_device),     daemon_test(test_calls_write),
		daemon_test(test_calls_read), daemon_test(test_datagrams),
		daemon_test(test_refused),    daemon_test(test_many_refused),
		daemon_test(test_walk),       daemon_test(test_grown_by_another),
		daemon_test(test_cow_race),   daemon_test(test_flush_race),
	};

	return cmocka_run_group_tests(tests, uffd_group_setup, daemon_group_teardown);
}
