/* SPDX-License-Identifier: MIT */
/*
 * daemon_zero.c - the zero page with real clients: what is only read takes nothing of the arena, what is
 * written is one's own, over system calls, forks and workers that die. Both traps.
 */
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "tests/lib_client.h"

#define LEAVES 64u
#define ZERO_PAGE "sys/kernel/mm/transparent_hugepage/use_zero_page"

struct job {
	enum arena_trap trap;
	size_t len;
};

static arena_t *open_trap(struct test_daemon *d, const struct job *j)
{
	return client_open_trap(d, j->trap);
}

/* More than the arena has. */
static void do_read(struct test_daemon *d, void *arg)
{
	const struct job *j = arg;
	arena_t *a = open_trap(d, j);
	char *p = arena_mmap(a, NULL, j->len, RW, ANON | MAP_NORESERVE, -1, 0);
	unsigned char core;

	CHECK(p != MAP_FAILED);
	for (size_t i = 0; i < j->len / LEAF; i++)
		CHECK(is_zero(p + i * LEAF + i % 512 * PAGE, PAGE));
	CHECK_OK(arena_mincore(a, p + j->len - LEAF, PAGE, &core));
	CHECK(core == 1);
	CHECK(arena_virt_to_pfn(a, p) > 0);
	CHECK(arena_virt_to_pfn(a, p) == arena_virt_to_pfn(a, p + LEAF));
	CHECK(client_number(d, getpid(), "anon_kb") == 0);
	arena_close(a);
}

static void do_write(struct test_daemon *d, void *arg)
{
	arena_t *a = open_trap(d, arg);
	char *p = client_map(a, LEAVES * LEAF);
	int64_t zero;

	for (unsigned i = 0; i < LEAVES; i++)
		CHECK(p[i * LEAF + PAGE] == 0);
	zero = arena_virt_to_pfn(a, p);
	for (unsigned i = 0; i < LEAVES; i += 2)
		pattern_fill(p + i * LEAF + i * PAGE, PAGE, i);
	for (unsigned i = 0; i < LEAVES; i++) {
		CHECK(pattern_is(p + i * LEAF + i * PAGE, PAGE, i) == !(i % 2));
		CHECK(is_zero(p + i * LEAF + (i + 1) * PAGE, 100 * PAGE));
	}
	CHECK(arena_virt_to_pfn(a, p) != zero);
	/* Part of one: what is cut away comes up empty, the rest is what it was. */
	CHECK_OK(arena_madvise(a, p + LEAF, LEAF, MADV_DONTNEED));
	CHECK(p[LEAF] == 0);
	CHECK_OK(arena_munmap(a, p + LEAF + PAGE, PAGE));
	CHECK(p[LEAF] == 0 && is_zero(p + LEAF + 2 * PAGE, PAGE));
	p[LEAF] = 1;
	CHECK(is_zero(p + LEAF + 2 * PAGE, LEAF - 2 * PAGE));
	arena_close(a);
}

/* The kernel writes to what was read. */
static void do_system_call(struct test_daemon *d, void *arg)
{
	const struct job *j = arg;
	arena_t *a = open_trap(d, j);
	char *p = client_map(a, 2 * LEAF);
	int fd = open("/proc/self/exe", O_RDONLY);

	CHECK(fd >= 0);
	CHECK(is_zero(p, PAGE) && is_zero(p + LEAF, PAGE));
	/* As the signal trap's programs have to. */
	if (j->trap == ARENA_TRAP_SIGNAL)
		CHECK_OK(arena_populate(a, p, LEAF, 1));
	CHECK(read(fd, p + PAGE / 2, PAGE) == (ssize_t)PAGE);
	CHECK(memcmp(p + PAGE / 2, "\177ELF", 4) == 0);
	CHECK(is_zero(p, PAGE / 2) && is_zero(p + LEAF, PAGE));
	/* A pin for reading makes it one's own, too. */
	CHECK_OK(arena_pin(a, p + LEAF, PAGE, 0));
	CHECK(arena_virt_to_pfn(a, p) != arena_virt_to_pfn(a, p + LEAF));
	CHECK_OK(arena_unpin(a, p + LEAF, PAGE));
	close(fd);
	arena_close(a);
}

static void do_fork(struct test_daemon *d, void *arg)
{
	arena_t *a = open_trap(d, arg);
	char *p = client_map(a, 4 * LEAF), *copy;
	int status;
	pid_t pid;

	CHECK(p[0] == 0 && p[LEAF] == 0);
	p[2 * LEAF] = 5;
	pid = fork();
	if (pid == 0) {
		CHECK(is_zero(p, 2 * PAGE) && p[2 * LEAF] == 5);
		p[PAGE] = 6;
		CHECK(p[LEAF] == 0 && p[3 * LEAF] == 0 && p[PAGE] == 6);
		CHECK(is_zero(p + 2 * PAGE, PAGE));
		_exit(0);
	}
	CHECK(pid > 0);
	p[PAGE + 1] = 7;
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(p[PAGE] == 0 && p[PAGE + 1] == 7);
	copy = arena_snapshot(a, p, 4 * LEAF);
	CHECK(copy != MAP_FAILED);
	p[LEAF] = 8;
	CHECK(copy[LEAF] == 0 && copy[PAGE + 1] == 7 && copy[3 * LEAF] == 0);
	copy[3 * LEAF] = 9;
	CHECK(p[3 * LEAF] == 0);
	arena_close(a);
}

static void do_restart(struct test_daemon *d, void *arg)
{
	arena_t *a = open_trap(d, arg);
	char *p = client_map(a, LEAVES * LEAF);

	for (unsigned i = 0; i < LEAVES / 2; i++)
		CHECK(p[i * LEAF] == 0);
	p[LEAF] = 3;
	daemon_kill_worker(d);
	for (unsigned i = 0; i < LEAVES; i++)
		CHECK(p[i * LEAF + PAGE] == 0);
	p[2 * LEAF] = 4;
	p[40 * LEAF] = 4;
	CHECK(p[LEAF] == 3 && p[2 * LEAF] == 4 && p[40 * LEAF] == 4 && p[40 * LEAF + 1] == 0);
	arena_close(a);
}

/* ---- many threads -------------------------------------------------------------------------- */

#define CROWD 64u
#define CROWD_LEAVES 8u
#define CROWD_ROUNDS 5u

struct member {
	char *base;
	unsigned index;
	pthread_barrier_t *start;
};

static void *read_then_write(void *arg)
{
	const struct member *m = arg;

	pthread_barrier_wait(m->start);
	for (size_t i = 0; i < CROWD_LEAVES * LEAF / PAGE; i++) {
		volatile uint64_t *w = (volatile uint64_t *)(void *)(m->base + i * PAGE) + m->index;

		CHECK(*w == 0);
		*w = i + m->index;
	}
	return NULL;
}

static void run_crowd(char *base)
{
	struct member member[CROWD];
	pthread_t thread[CROWD];
	pthread_barrier_t start;

	CHECK_OK(pthread_barrier_init(&start, NULL, CROWD));
	for (unsigned i = 0; i < CROWD; i++) {
		member[i] = (struct member){base, i, &start};
		CHECK_OK(pthread_create(&thread[i], NULL, read_then_write, &member[i]));
	}
	for (unsigned i = 0; i < CROWD; i++)
		CHECK_OK(pthread_join(thread[i], NULL));
	CHECK_OK(pthread_barrier_destroy(&start));
}

static uint64_t nr_sleeps(void)
{
	struct rusage use;

	CHECK_OK(getrusage(RUSAGE_SELF, &use));
	return (uint64_t)use.ru_nvcsw;
}

/*
 * However many stand at a leaf, it is mapped as often as for one: to be read, to be written, and once more for each
 * that a fault of another took along. And nobody is woken before he can go on, again and again.
 */
static void do_crowd(struct test_daemon *d, void *arg)
{
	arena_t *a = open_trap(d, arg);
	uint64_t refills, sleeps = nr_sleeps();

	for (unsigned round = 0; round < CROWD_ROUNDS; round++) {
		char *p = client_map(a, CROWD_LEAVES * LEAF);

		run_crowd(p);
		for (size_t i = 0; i < CROWD_LEAVES * LEAF / PAGE; i++)
			for (unsigned t = 0; t < CROWD; t++)
				CHECK(((uint64_t *)(void *)(p + i * PAGE))[t] == i + t);
		CHECK_OK(arena_munmap(a, p, CROWD_LEAVES * LEAF));
	}
	refills = client_number(d, getpid(), "refills");
	sleeps = nr_sleeps() - sleeps;
	if (strcmp(arena_trap_name(a), "userfaultfd") == 0) {
		printf("%llu refills, %llu sleeps\n", (unsigned long long)refills,
		       (unsigned long long)sleeps);
		CHECK(refills <= 2 * CROWD_LEAVES * CROWD_ROUNDS);
		CHECK(sleeps <= (uint64_t)8 * CROWD * CROWD_LEAVES * CROWD_ROUNDS);
	}
	arena_close(a);
}

static void both_traps(struct test_daemon *d, client_fn fn, size_t len)
{
	struct job j = {ARENA_TRAP_SIGNAL, len};

	client_run(d, fn, &j);
	j.trap = client_trap();
	if (j.trap != ARENA_TRAP_SIGNAL)
		client_run(d, fn, &j);
}

static void test_read(void **state)
{
	struct test_daemon *d = *state;
	uint64_t total = daemon_number(d, "proc/meminfo", "MemTotal:") * 1024;
	uint64_t allocs = daemon_number(d, "proc/vmstat", "thp_zero_page_alloc");

	both_traps(d, do_read, (total / LEAF + 20) * LEAF);
	/* One block for all who ever come. */
	if (!d->killer)
		assert_true(allocs + daemon_number(d, "proc/vmstat", "thp_zero_page_alloc") <= 2);
	assert_int_equal(daemon_number(d, "proc/vmstat", "thp_zero_page_alloc_failed"), 0);
}

static void test_write(void **state)
{
	both_traps(*state, do_write, 0);
}

static void test_system_call(void **state)
{
	both_traps(*state, do_system_call, 0);
}

static void test_fork(void **state)
{
	both_traps(*state, do_fork, 0);
}

static void test_restart(void **state)
{
	struct test_daemon *d = *state;

	d->expect_deaths = true;
	both_traps(d, do_restart, 0);
}

static void test_crowd(void **state)
{
	both_traps(*state, do_crowd, 0);
}

static void do_off(struct test_daemon *d, void *arg)
{
	arena_t *a = open_trap(d, arg);
	char *p = client_map(a, LEAF);

	CHECK(p[0] == 0);
	CHECK(client_number(d, getpid(), "anon_kb") > 0);
	arena_close(a);
}

static void test_off(void **state)
{
	struct test_daemon *d = *state;

	daemon_write(d, ZERO_PAGE, "0");
	both_traps(d, do_off, 0);
	daemon_write(d, ZERO_PAGE, "1");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		daemon_test(test_read),  daemon_test(test_write),   daemon_test(test_system_call),
		daemon_test(test_fork),  daemon_test(test_restart), daemon_test(test_off),
		daemon_test(test_crowd),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
