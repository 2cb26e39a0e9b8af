/* SPDX-License-Identifier: MIT */
/*
 * daemon_snapshot.c - arena_snapshot() of shared memory: processes that write all the time while
 * snapshots are taken, each of which must be of one moment of all of them, and stay it.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#include "base/util.h"
#include "tests/lib_client.h"

#define NAME "/snapshot-test"
#define DEADLINE "sys/kernel/mm/arena/flush_deadline_msecs"
#define WRITERS 4

/* ---- one moment of several processes ------------------------------------------------------------ */

/*
 * A chain goes round through all writers: each waits until the one before it has stored number n, and stores
 * n itself, in a page of its own. So at any moment the numbers fall along the chain, by at most one, and a
 * snapshot that has one writer's moment earlier than the other's shows it. Beside that each stores a pair of
 * words that lie far apart, and a page that only it touches: a new one now and then.
 */
#define SIZE (4 * LEAF + 24 * PAGE)
#define PAIR_AT(w) (LEAF + (w)*7 * PAGE)
#define PAIR_TO(w) (4 * LEAF + (w)*5 * PAGE)
#define FRESH_AT(w, n) (2 * LEAF + ((w)*128 + (n) % 128) * PAGE)

/* A worker that is killed settles nothing, and the next one begins anew. */
static unsigned rounds(void)
{
	return test_scaled(getenv("ARENA_TEST_KILL") ? 6 : 60);
}

struct common {
	struct gate ready, go;
	volatile uint32_t stop;
	bool by_file;
	int fd;
};

static volatile uint64_t *word(volatile void *base, uint64_t at)
{
	return (volatile uint64_t *)((volatile char *)base + at);
}

static uint64_t chain(volatile void *base, unsigned w)
{
	return __atomic_load_n(word(base, w * 3 * PAGE), __ATOMIC_SEQ_CST);
}

static void *map_it(arena_t *a, const struct common *k)
{
	void *p = k->by_file ? arena_mmap(a, NULL, SIZE, RW, MAP_SHARED, k->fd, 0)
			     : arena_shm_mmap(client_shm(a, NAME, O_RDWR, 0600), NULL, SIZE, RW,
					      MAP_SHARED, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

/* A round of the chain. False: the test is over. */
static bool chain_step(const struct common *k, volatile void *p, unsigned w, uint64_t n)
{
	uint64_t want = w ? n : n - 1;

	while (chain(p, w ? w - 1 : WRITERS - 1) < want) {
		if (load_relaxed(&k->stop))
			return false;
		sched_yield();
	}
	__atomic_store_n(word(p, w * 3 * PAGE), n, __ATOMIC_SEQ_CST);
	return true;
}

static unsigned number_of_writer;

static void writer(struct test_daemon *d, void *arg)
{
	struct common *k = arg;
	arena_t *a = client_open(d);
	volatile void *p = map_it(a, k);
	unsigned w = number_of_writer;

	gate_open(&k->ready, 1);
	gate_pass(&k->go);
	for (uint64_t n = 1; chain_step(k, p, w, n); n++) {
		__atomic_store_n(word(p, PAIR_AT(w)), n, __ATOMIC_SEQ_CST);
		__atomic_store_n(word(p, FRESH_AT(w, n / 64)), n, __ATOMIC_SEQ_CST);
		__atomic_store_n(word(p, PAIR_TO(w)), n, __ATOMIC_SEQ_CST);
	}
	arena_close(a);
}

static void check_cut(volatile void *copy)
{
	uint64_t first = chain(copy, 0);

	for (unsigned w = 0; w < WRITERS; w++) {
		uint64_t from = *word(copy, PAIR_AT(w)), to = *word(copy, PAIR_TO(w));
		uint64_t fresh = *word(copy, FRESH_AT(w, from / 64)), n = chain(copy, w);

		CHECK(n <= first && first <= n + 1);
		CHECK(!w || n <= chain(copy, w - 1));
		CHECK(from == n || from + 1 == n);
		CHECK(to == from || to + 1 == from);
		CHECK(fresh == from || fresh + 1 == from || from % 64 == 0);
	}
}

static void *take(arena_t *a, void *p, size_t len)
{
	void *copy;

	/* Somebody did not come to acknowledge on a machine as busy as this. */
	do
		copy = arena_snapshot(a, p, len);
	while (copy == MAP_FAILED && errno == EBUSY);
	if (copy == MAP_FAILED)
		check_errno_failed(__FILE__, __LINE__, "arena_snapshot()", -1, 0);
	return copy;
}

/* A sum over all words that were ever written. */
static uint64_t sum_of(volatile void *copy)
{
	uint64_t sum = 0;

	for (uint64_t at = 0; at < SIZE; at += PAGE)
		sum = sum * 31 + *word(copy, at);
	return sum;
}

static void taker(struct test_daemon *d, void *arg)
{
	struct common *k = arg;
	arena_t *a = client_open(d);
	void *p = map_it(a, k), *kept = NULL;
	uint64_t kept_sum = 0, last = 0;

	gate_open(&k->ready, 1);
	gate_pass(&k->go);
	for (unsigned round = 0; round < rounds(); round++) {
		uint64_t before = chain(p, 0), seen;
		void *copy = take(a, p, SIZE);
		uint64_t sum = sum_of(copy);

		check_cut(copy);
		seen = chain(copy, 0);
		/* What was written before the call is in it. */
		CHECK(seen >= before && seen >= last);
		last = seen;
		/* Writers go on, and it stays as it is; so does the one before. */
		while (chain(p, 0) < seen + 3)
			sched_yield();
		CHECK(sum_of(copy) == sum);
		if (kept) {
			CHECK(sum_of(kept) == kept_sum);
			CHECK_OK(arena_munmap(a, kept, SIZE));
		}
		kept = copy;
		kept_sum = sum;
	}
	arena_close(a);
}

static void one_moment(struct test_daemon *d, struct common *k, unsigned takers)
{
	pid_t pid[WRITERS], of[2];
	unsigned i;

	for (i = 0; i < WRITERS; i++) {
		number_of_writer = i;
		pid[i] = client_start(d, writer, k);
	}
	for (i = 0; i < takers; i++)
		of[i] = client_start(d, taker, k);
	for (i = 0; i < WRITERS + takers; i++)
		gate_pass(&k->ready);
	gate_open(&k->go, WRITERS + takers);
	for (i = 0; i < takers; i++)
		client_wait(of[i]);
	store_relaxed(&k->stop, 1);
	for (i = 0; i < WRITERS; i++)
		client_wait(pid[i]);
}

/* The cut is looked at with all the patience there is: clients of a busy machine are slow to flush. */
static void prepare(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);

	(void)arg;
	CHECK_OK(arena_attr_write(a, DEADLINE, "6000"));
	CHECK_OK(arena_shm_truncate(client_shm(a, NAME, O_RDWR | O_CREAT, 0600), SIZE));
	arena_close(a);
}

static void end(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);

	(void)arg;
	CHECK_OK(arena_attr_write(a, DEADLINE, "100"));
	CHECK_OK(arena_shm_unlink(a, NAME));
	arena_close(a);
}

static void test_moment(struct test_daemon *d, bool by_file, unsigned takers)
{
	struct common *k = shared_alloc(sizeof(*k));
	char name[] = "/tmp/arena-snapshot-XXXXXX";

	*k = (struct common){.ready = gate_make(), .go = gate_make(), .by_file = by_file};
	if (by_file) {
		k->fd = mkstemp(name);
		assert_true(k->fd >= 0);
		unlink(name);
		assert_int_equal(ftruncate(k->fd, SIZE), 0);
	}
	client_run(d, prepare, NULL);
	one_moment(d, k, takers);
	client_run(d, end, NULL);
	if (by_file)
		close(k->fd);
	gate_close(&k->ready);
	gate_close(&k->go);
	shared_free(k, sizeof(*k));
}

static void test_moment_of_segment(void **state)
{
	test_moment(*state, false, 1);
}

static void test_moment_of_two(void **state)
{
	test_moment(*state, false, 2);
}

static void test_moment_of_file(void **state)
{
	test_moment(*state, true, 1);
}

/* ---- threads of one process, and private memory beside it ------------------------------------------ */

#define THREADS 3

struct thread {
	volatile uint64_t *shared, *own;
	volatile uint32_t *stop;
};

/* The word in shared memory follows the one in private memory. */
static void *write_both(void *arg)
{
	struct thread *t = arg;

	for (uint64_t n = 1; !load_relaxed(t->stop); n++) {
		__atomic_store_n(t->own, n, __ATOMIC_SEQ_CST);
		__atomic_store_n(t->shared, n, __ATOMIC_SEQ_CST);
		sched_yield();
	}
	return NULL;
}

static void threads(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *own = client_map(a, 2 * LEAF), *shared = own + LEAF;
	volatile uint32_t stop = 0;
	struct thread t[THREADS];
	pthread_t thread[THREADS];

	(void)arg;
	CHECK(arena_mmap(a, shared, LEAF, RW, ANON_SHARED | MAP_FIXED, -1, 0) == shared);
	for (unsigned i = 0; i < THREADS; i++) {
		t[i] = (struct thread){word(shared, i * 9 * PAGE), word(own, i * 5 * PAGE), &stop};
		CHECK(pthread_create(&thread[i], NULL, write_both, &t[i]) == 0);
	}
	for (unsigned round = 0; round < rounds(); round++) {
		char *copy = take(a, own, 2 * LEAF);

		for (unsigned i = 0; i < THREADS; i++) {
			uint64_t first = *word(copy, i * 5 * PAGE);
			uint64_t second = *word(copy, LEAF + i * 9 * PAGE);

			CHECK(second <= first && first <= second + 1);
		}
		CHECK_OK(arena_munmap(a, copy, 2 * LEAF));
	}
	store_relaxed(&stop, 1);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	arena_close(a);
}

static void test_threads(void **state)
{
	client_run(*state, threads, NULL);
}

/* ---- what a snapshot is ------------------------------------------------------------------------------ */

static void contents(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR | O_CREAT, 0600);
	char *p, *copy, *second;
	pid_t pid;

	(void)arg;
	CHECK_OK(arena_shm_truncate(s, SIZE));
	p = arena_shm_mmap(s, NULL, SIZE, RW, MAP_SHARED, 0);
	CHECK(p != MAP_FAILED);
	pattern_fill(p, SIZE - 2 * LEAF, 1);
	copy = take(a, p, SIZE);
	CHECK(copy != p);
	CHECK(pattern_is(copy, SIZE - 2 * LEAF, 1));
	pattern_fill(p, SIZE, 2);
	CHECK(pattern_is(copy, SIZE - 2 * LEAF, 1));
	/* What was not there is zeros. */
	CHECK(is_zero(copy + ALIGN_UP(SIZE - 2 * LEAF, LEAF), LEAF));
	second = take(a, copy, SIZE);
	pattern_fill(copy, 3 * PAGE, 3);
	CHECK(pattern_is(p, SIZE, 2));
	CHECK(pattern_is(second, SIZE - 2 * LEAF, 1));
	/* It outlives the segment and its mapping. */
	CHECK_OK(arena_shm_truncate(s, PAGE));
	CHECK_OK(arena_shm_unlink(a, NAME));
	arena_shm_close(s);
	CHECK_OK(arena_munmap(a, p, SIZE));
	CHECK(pattern_is(second, SIZE - 2 * LEAF, 1));
	CHECK_OK(arena_munmap(a, copy, SIZE));
	if (!TEST_TSAN) {
		IN_CHILD(pid)
		{
			CHECK(pattern_is(second, SIZE - 2 * LEAF, 1));
			pattern_fill(second, SIZE, 4);
			CHECK(pattern_is(second, SIZE, 4));
		}
		expect_child(pid);
	}
	CHECK(pattern_is(second, SIZE - 2 * LEAF, 1));
	CHECK_ERRNO(arena_snapshot(a, second, SIZE + 64 * LEAF), ENOMEM);
	arena_close(a);
}

static void test_contents(void **state)
{
	client_run(*state, contents, NULL);
}

/* ---- who does not come -------------------------------------------------------------------------------- */

struct stopped {
	struct gate ready, go;
};

static void sleeper(struct test_daemon *d, void *arg)
{
	struct stopped *k = arg;
	arena_t *a = client_open(d);
	volatile uint64_t *p =
		arena_shm_mmap(client_shm(a, NAME, O_RDWR, 0600), NULL, SIZE, RW, MAP_SHARED, 0);

	p[0] = 7;
	gate_open(&k->ready, 1);
	raise(SIGSTOP);
	p[1] = 8;
	arena_close(a);
}

/* A stopped process that may write keeps no snapshot waiting for ever; one that may not is no matter. */
static void taker_beside_sleeper(struct test_daemon *d, void *arg)
{
	struct stopped *k = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR, 0600);
	volatile uint64_t *p = arena_shm_mmap(s, NULL, SIZE, RW, MAP_SHARED, 0);
	void *copy;

	p[1] = 1;
	gate_open(&k->ready, 1);
	gate_pass(&k->go);
	CHECK_ERRNO(arena_snapshot(a, (void *)p, SIZE), EBUSY);
	p[2] = 3;
	gate_open(&k->ready, 1);
	gate_pass(&k->go);
	copy = take(a, (void *)p, SIZE);
	CHECK(((uint64_t *)copy)[0] == 7 && ((uint64_t *)copy)[1] == 8);
	arena_close(a);
}

static void test_stopped(void **state)
{
	struct stopped k = {gate_make(), gate_make()};
	struct test_daemon *d = *state;
	pid_t asleep, pid;

	if (getenv("ARENA_TEST_KILL")) {
		print_message("skipped: each worker would wait anew for who does not come\n");
		skip();
	}
	client_run(d, prepare, NULL);
	asleep = client_start(d, sleeper, &k);
	gate_pass(&k.ready);
	client_wait_stopped(asleep);
	pid = client_start(d, taker_beside_sleeper, &k);
	gate_pass(&k.ready);
	client_run(d, end, NULL);
	gate_open(&k.go, 1);
	gate_pass(&k.ready);
	kill(asleep, SIGCONT);
	client_wait(asleep);
	gate_open(&k.go, 1);
	client_wait(pid);
	gate_close(&k.ready);
	gate_close(&k.go);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		daemon_test(test_contents),          daemon_test(test_threads),
		daemon_test(test_moment_of_segment), daemon_test(test_moment_of_two),
		daemon_test(test_moment_of_file),    daemon_test(test_stopped),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
