/* SPDX-License-Identifier: MIT */
/*
 * daemon_fork.c - fork() and arena_snapshot() of real clients: what both sides see, before and
 * after they write; trees of processes; threads that go on writing meanwhile.
 */
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "tests/lib_client.h"

/* ThreadSanitizer's own book of threads is not made for the ones that a forked child starts. */
static void need_threads_after_fork(void)
{
	if (TEST_TSAN) {
		print_message(
			"skipped: ThreadSanitizer cannot follow threads that start after a fork\n");
		skip();
	}
}

#define AREA (4 * LEAF + 5 * PAGE)

extern char **environ;

/* ---- both sides ------------------------------------------------------------------------------- */

static void both_sides(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, AREA);
	uint64_t *shared = arena_mmap(a, NULL, PAGE, RW, ANON_SHARED, -1, 0);
	arena_shm_t *s = client_shm(a, "/fork-test", O_RDWR | O_CREAT, 0600);
	pid_t pid;

	(void)arg;
	CHECK(shared != MAP_FAILED);
	CHECK_OK(arena_shm_truncate(s, LEAF));
	pattern_fill(p, AREA, 1);
	*shared = 1;
	IN_CHILD(pid)
	{
		uint64_t *in_segment;

		CHECK(pattern_is(p, AREA, 1));
		pattern_fill(p, AREA, 2);
		CHECK(pattern_is(p, AREA, 2));
		++*shared;
		/* Handles stay what they are, and new memory is to be had. */
		in_segment = arena_shm_mmap(s, NULL, LEAF, RW, MAP_SHARED, 0);
		CHECK(in_segment != MAP_FAILED);
		in_segment[7] = 77;
		CHECK(is_zero(client_map(a, LEAF), LEAF));
		CHECK_OK(arena_munmap(a, p, AREA));
		arena_close(a);
	}
	expect_child(pid);
	CHECK(pattern_is(p, AREA, 1));
	CHECK(*shared == 2);
	CHECK(((uint64_t *)arena_shm_mmap(s, NULL, LEAF, RW, MAP_SHARED, 0))[7] == 77);
	CHECK_OK(arena_shm_unlink(a, "/fork-test"));
	arena_close(a);
}

static void test_both_sides(void **state)
{
	need_threads_after_fork();
	client_run(*state, both_sides, NULL);
}

/* The parent writes all of it while the child looks, and ends before the child does. */
static void parent_goes(struct test_daemon *d, void *arg)
{
	struct gate *gates = arg;
	arena_t *a = client_open(d);
	char *p = client_map(a, AREA);
	pid_t pid;

	pattern_fill(p, AREA, 3);
	IN_CHILD(pid)
	{
		gate_pass(&gates[0]);
		CHECK(pattern_is(p, AREA, 3));
		gate_open(&gates[1], 1);
	}
	pattern_fill(p, AREA, 4);
	CHECK(pattern_is(p, AREA, 4));
	/* Not closed: it dies with all of it. */
}

static void test_parent_goes(void **state)
{
	struct gate gates[] = {gate_make(), gate_make()};

	need_threads_after_fork();
	client_run(*state, parent_goes, gates);
	gate_open(&gates[0], 1);
	gate_pass(&gates[1]);
	gate_close(&gates[0]);
	gate_close(&gates[1]);
}

/* ---- trees ------------------------------------------------------------------------------------- */

#define GENERATIONS 5

static void generation(uint64_t *p, unsigned depth)
{
	pid_t pid;

	for (unsigned i = 0; i <= depth; i++)
		CHECK(p[i * PAGE / 8] == i + 1);
	if (depth == GENERATIONS)
		return;
	p[(depth + 1) * PAGE / 8] = depth + 2;
	for (int i = 0; i < 2; i++) {
		IN_CHILD(pid)
		{
			generation(p, depth + 1);
			p[0] = 99;
		}
		expect_child(pid);
		CHECK(p[0] == 1);
	}
}

static void tree(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	uint64_t *p = client_map(a, LEAF);

	(void)arg;
	p[0] = 1;
	generation(p, 0);
	arena_close(a);
}

static void test_generations(void **state)
{
	need_threads_after_fork();
	client_run(*state, tree, NULL);
}

/* Many children, some at once; every second one is killed in the middle of its writes. */
static void many(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 2 * LEAF);
	pid_t pid[8];

	(void)arg;
	pattern_fill(p, 2 * LEAF, 5);
	for (unsigned round = 0; round < test_scaled(12); round++) {
		for (unsigned i = 0; i < ARRAY_SIZE(pid); i++) {
			IN_CHILD(pid[i])
			{
				CHECK(pattern_is(p, 2 * LEAF, 5));
				pattern_fill(p, LEAF + PAGE, i);
				if (i % 2)
					raise(SIGKILL);
				CHECK(pattern_is(p, LEAF + PAGE, i));
			}
		}
		for (unsigned i = 0; i < ARRAY_SIZE(pid); i++) {
			if (i % 2)
				client_wait_signal(pid[i], SIGKILL);
			else
				expect_child(pid[i]);
		}
	}
	CHECK(pattern_is(p, 2 * LEAF, 5));
	arena_close(a);
}

static void test_many(void **state)
{
	need_threads_after_fork();
	client_run(*state, many, NULL);
}

/* What makes no copy of the process leaves the arena alone. */
static void spawn(struct test_daemon *d, void *arg)
{
	char *const argv[] = {"true", NULL};
	arena_t *a = client_open(d);
	char *p = client_map(a, LEAF);
	pid_t pid;

	(void)arg;
	pattern_fill(p, LEAF, 6);
	CHECK_OK(posix_spawnp(&pid, "true", NULL, NULL, argv, environ));
	expect_child(pid);
	pid = vfork();
	if (pid == 0) {
		execlp("true", "true", (char *)NULL);
		_exit(1);
	}
	expect_child(pid);
	CHECK(system("true") == 0);
	CHECK(pattern_is(p, LEAF, 6));
	arena_close(a);
}

static void test_spawn(void **state)
{
	client_run(*state, spawn, NULL);
}

/* ---- one moment ---------------------------------------------------------------------------------- */

#define WRITERS 4
#define SPREAD 512 /* pages between a writer's first and second word */

struct writers {
	volatile uint64_t *area;
	volatile uint32_t stop;
};

struct writer {
	struct writers *all;
	unsigned number;
};

static volatile uint64_t *first_word(volatile uint64_t *area, unsigned writer)
{
	return area + writer * PAGE / 8;
}

static volatile uint64_t *second_word(volatile uint64_t *area, unsigned writer)
{
	return area + (SPREAD + writer) * PAGE / 8;
}

/* The second word follows the first: no moment shows it ahead, or more than one behind. */
static void *write_on(void *arg)
{
	struct writer *w = arg;

	for (uint64_t n = 1; !load_relaxed(&w->all->stop); n++) {
		__atomic_store_n(first_word(w->all->area, w->number), n, __ATOMIC_SEQ_CST);
		__atomic_store_n(second_word(w->all->area, w->number), n, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

static void check_moment(volatile uint64_t *area)
{
	for (unsigned i = 0; i < WRITERS; i++) {
		uint64_t first = *first_word(area, i), second = *second_word(area, i);

		CHECK(second <= first && first <= second + 1);
	}
}

/* It is one of a moment, and stays it. */
static void check_still(volatile uint64_t *area)
{
	uint64_t first[WRITERS];

	for (unsigned i = 0; i < WRITERS; i++)
		first[i] = *first_word(area, i);
	check_moment(area);
	for (unsigned k = 0; k < 200; k++)
		for (unsigned i = 0; i < WRITERS; i++)
			CHECK(*first_word(area, i) == first[i]);
}

static void moment(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	struct writers all = {.area = client_map(a, 2 * LEAF)};
	struct writer w[WRITERS];
	pthread_t thread[WRITERS];
	bool by_fork = arg;

	for (unsigned i = 0; i < WRITERS; i++) {
		w[i] = (struct writer){&all, i};
		CHECK(pthread_create(&thread[i], NULL, write_on, &w[i]) == 0);
	}
	for (unsigned round = 0; round < test_scaled(60); round++) {
		if (by_fork) {
			pid_t pid;

			IN_CHILD(pid) check_moment(all.area);
			expect_child(pid);
		} else {
			void *copy = arena_snapshot(a, (void *)all.area, 2 * LEAF);

			CHECK(copy != MAP_FAILED);
			check_moment(copy);
			CHECK_OK(arena_munmap(a, copy, 2 * LEAF));
		}
	}
	store_relaxed(&all.stop, 1);
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(thread[i], NULL);
	arena_close(a);
}

/* The same while another thread takes snapshots: whose flush it is, both copies are still from then on. */
struct taker {
	arena_t *a;
	void *area;
	volatile uint32_t stop;
};

static void *take_snapshots(void *arg)
{
	struct taker *t = arg;

	while (!load_relaxed(&t->stop)) {
		void *copy = arena_snapshot(t->a, t->area, 2 * LEAF);

		CHECK(copy != MAP_FAILED);
		check_still(copy);
		CHECK_OK(arena_munmap(t->a, copy, 2 * LEAF));
	}
	return NULL;
}

static void moment_of_two(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	struct writers all = {.area = client_map(a, 2 * LEAF)};
	struct taker taker = {.a = a, .area = (void *)all.area};
	struct writer w[WRITERS];
	pthread_t thread[WRITERS + 1];

	(void)arg;
	for (unsigned i = 0; i < WRITERS; i++) {
		w[i] = (struct writer){&all, i};
		CHECK(pthread_create(&thread[i], NULL, write_on, &w[i]) == 0);
	}
	CHECK(pthread_create(&thread[WRITERS], NULL, take_snapshots, &taker) == 0);
	for (uint64_t round = 0; round < test_scaled(60); round++) {
		volatile uint64_t *mark = first_word(all.area, WRITERS);
		pid_t pid;

		*mark = 2 * round;
		IN_CHILD(pid)
		{
			CHECK(*mark == 2 * round);
			check_still(all.area);
		}
		/* Whatever this page may still be mapped as, the child's is another. */
		*mark = 2 * round + 1;
		expect_child(pid);
	}
	store_relaxed(&taker.stop, 1);
	store_relaxed(&all.stop, 1);
	for (unsigned i = 0; i < ARRAY_SIZE(thread); i++)
		pthread_join(thread[i], NULL);
	arena_close(a);
}

static void test_moment_of_two(void **state)
{
	client_run(*state, moment_of_two, NULL);
}

static void test_moment_of_snapshot(void **state)
{
	client_run(*state, moment, NULL);
}

static void test_moment_of_fork(void **state)
{
	need_threads_after_fork();
	client_run(*state, moment, (void *)1);
}

/* ---- snapshots -------------------------------------------------------------------------------------- */

static void snapshots(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, AREA), *copy, *second;

	(void)arg;
	pattern_fill(p, AREA, 7);
	copy = arena_snapshot(a, p, AREA);
	CHECK(copy != MAP_FAILED && copy != p);
	pattern_fill(p, AREA, 8);
	CHECK(pattern_is(copy, AREA, 7));
	second = arena_snapshot(a, copy, AREA);
	CHECK(second != MAP_FAILED);
	CHECK_OK(arena_munmap(a, copy, AREA));
	pattern_fill(second, PAGE, 9);
	CHECK(pattern_is(p, AREA, 8));
	CHECK(pattern_is(second, PAGE, 9));
	CHECK_OK(arena_munmap(a, second, AREA));
	CHECK_ERRNO(arena_snapshot(a, p + 1, PAGE), EINVAL);
	CHECK_ERRNO(arena_snapshot(a, p, 0), EINVAL);
	CHECK_ERRNO(arena_snapshot(a, p, SIZE_MAX), EINVAL);
	CHECK_ERRNO(arena_snapshot(a, p, AREA + 64 * LEAF), ENOMEM);
	CHECK_ERRNO(arena_snapshot(NULL, p, PAGE), EINVAL);
	arena_close(a);
}

static void test_snapshots(void **state)
{
	client_run(*state, snapshots, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		daemon_test(test_both_sides),
		daemon_test(test_parent_goes),
		daemon_test(test_generations),
		daemon_test(test_many),
		daemon_test(test_spawn),
		daemon_test(test_snapshots),
		daemon_test(test_moment_of_snapshot),
		daemon_test(test_moment_of_fork),
		daemon_test(test_moment_of_two),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
