/* SPDX-License-Identifier: MIT */
/*
 * daemon_invariants.c - a test for each promise of the protocol between page table, software TLB and
 * flush ring. Clients are made late, stopped or killed at the point where the promise matters.
 *
 * (That mappings are counted and never pass vm.max_map_count: daemon_fault.c; that no number of a
 * client's is believed: daemon_hostile.c.)
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "tests/lib_client.h"

#define NAME "/invariants"
#define SIZE (4 * LEAF)
#define SIZE_KB (SIZE / 1024)
#define DEADLINE_PATH "sys/kernel/mm/arena/flush_deadline_msecs"
#define MARK UINT64_C(0x57a1e57a1e57a1e5)

/* ---- the two sides ------------------------------------------------------------------------- */

/* One client has the segment mapped; another takes its pages away. */
struct scene {
	const char *faultpoints; /* of the one who has it mapped */
	struct gate mapped, taken, seen;
	off_t cut;     /* the size it is cut to */
	uint64_t took; /* how long that call took */
	uint64_t word;
};

static void create(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR | O_CREAT | O_EXCL, 0600);

	(void)arg;
	CHECK_OK(arena_shm_truncate(s, (off_t)SIZE));
	memset(arena_shm_mmap(s, NULL, SIZE, RW, MAP_SHARED, 0), 0x11, SIZE);
	arena_close(a);
}

static void destroy(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);

	(void)arg;
	CHECK_OK(arena_shm_unlink(a, NAME));
	arena_close(a);
}

static uint64_t *map_it(arena_t *a)
{
	arena_shm_t *s = client_shm(a, NAME, O_RDWR, 0);
	void *p = arena_shm_mmap(s, NULL, SIZE, RW, MAP_SHARED, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

static void cut(struct test_daemon *d, void *arg)
{
	struct scene *sc = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR, 0);
	uint64_t start = test_now();

	CHECK_OK(arena_shm_truncate(s, sc->cut));
	sc->took = test_now() - start;
	arena_close(a);
}

static struct scene *scene_make(struct test_daemon *d, const char *faultpoints)
{
	struct scene *sc = shared_alloc(sizeof(*sc));

	*sc = (struct scene){
		.faultpoints = faultpoints,
		.mapped = gate_make(),
		.taken = gate_make(),
		.seen = gate_make(),
	};
	client_run(d, create, NULL);
	return sc;
}

static void scene_end(struct test_daemon *d, struct scene *sc)
{
	client_run(d, destroy, NULL);
	daemon_write(d, DEADLINE_PATH, "100");
	gate_close(&sc->mapped);
	gate_close(&sc->taken);
	gate_close(&sc->seen);
	shared_free(sc, sizeof(*sc));
}

static uint64_t limbo_kb(struct test_daemon *d)
{
	return daemon_number(d, STATUS_PATH, "limbo_bytes") / 1024;
}

static bool no_limbo(struct test_daemon *d, void *arg)
{
	(void)arg;
	return limbo_kb(d) == 0;
}

static void expect_taken(uint64_t *p, size_t from, size_t to)
{
	for (size_t at = from; at < to; at += LEAF / 2) {
		struct fault_seen seen;

		CHECK(try_read((char *)p + at, &seen) == SIGBUS);
		CHECK(seen.addr == (uintptr_t)p + at);
	}
}

/* ---- late flush: the caller waits for it --------------------------------------------------- */

static void flush_late(struct test_daemon *d, void *arg)
{
	struct scene *sc = arg;
	arena_t *a;
	uint64_t *p;

	client_faultpoints(sc->faultpoints);
	a = client_open(d);
	p = map_it(a);
	memset(p, 0x22, SIZE);
	gate_open(&sc->mapped, 1);
	gate_pass(&sc->taken);
	/* Whoever took the pages has returned: from here on they must be gone. */
	expect_taken(p, 0, SIZE);
	gate_open(&sc->seen, 1);
	arena_close(a);
}

static void test_call_waits_for_flush(void **state)
{
	struct test_daemon *d = *state;
	struct scene *sc = scene_make(d, "client.flush=delay:250000");
	pid_t pid;

	daemon_write(d, DEADLINE_PATH, "10000");
	pid = client_start(d, flush_late, sc);
	gate_pass(&sc->mapped);
	client_run(d, cut, sc);
	gate_open(&sc->taken, 1);
	gate_pass(&sc->seen);
	/* That the other side was late, and that nobody waited for more than it. */
	assert_true(sc->took >= 200 * UINT64_C(1000000));
	assert_true(sc->took < 5000 * UINT64_C(1000000));
	client_wait(pid);
	scene_end(d, sc);
}

/* ---- no flush: frames wait in limbo -------------------------------------------------------- */

/* Writes to its stale mapping for ever. */
static void never_flush(struct test_daemon *d, void *arg)
{
	struct scene *sc = arg;
	arena_t *a;
	uint64_t *p;

	client_faultpoints(sc->faultpoints);
	a = client_open(d);
	p = map_it(a);
	for (size_t i = 0; i < SIZE / 8; i++)
		p[i] = MARK;
	gate_open(&sc->mapped, 1);
	for (;;)
		for (size_t i = 0; i < SIZE / 8; i += 8)
			__atomic_store_n(&p[i], MARK, __ATOMIC_RELAXED);
}

/* Takes all memory there is and looks for what the other writes; it is writing all the time. */
static void take_all(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	uint64_t **page = calloc(4096, sizeof(*page));
	unsigned n = 0;

	(void)arg;
	while (n < 4096 &&
	       (page[n] = arena_alloc_pages(a, ARENA_GFP_HIGHMEM | ARENA_GFP_NOWARN, 9)))
		n++;
	CHECK(n > 64);
	for (unsigned round = 0; round < (TEST_TSAN ? 1 : 3); round++)
		for (unsigned k = 0; k < n; k++)
			for (size_t i = 0; i < LEAF / 8; i += 8)
				CHECK(__atomic_load_n(&page[k][i], __ATOMIC_RELAXED) != MARK);
	arena_close(a);
}

static void test_limbo(void **state)
{
	struct test_daemon *d = *state;
	struct scene *sc = scene_make(d, "client.flush=fail");
	uint64_t before;
	pid_t pid;

	pid = client_start(d, never_flush, sc);
	gate_pass(&sc->mapped);
	before = daemon_free_kb(d);
	client_run(d, cut, sc);
	/* Not before the deadline, and not long after it. */
	assert_true(sc->took >= 90 * UINT64_C(1000000));
	assert_true(sc->took < (150 + 350 * test_slowness()) * UINT64_C(1000000));
	assert_true(limbo_kb(d) >= SIZE_KB);
	assert_true(daemon_free_kb(d) < before + SIZE_KB / 2);
	assert_true(client_number(d, pid, "limbo_kb") >= SIZE_KB);
	for (unsigned i = 0; i < (TEST_TSAN ? 1 : 2); i++)
		client_run(d, take_all, NULL);
	assert_true(limbo_kb(d) >= SIZE_KB);
	/* A dead client acknowledges everything. */
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_true(daemon_await_free(d, before + SIZE_KB, 1000 * test_slowness()) != UINT64_MAX);
	assert_int_equal(limbo_kb(d), 0);
	scene_end(d, sc);
}

/* ---- a stopped client ---------------------------------------------------------------------- */

static void stop_and_go(struct test_daemon *d, void *arg)
{
	struct scene *sc = arg;
	arena_t *a = client_open(d);
	uint64_t *p = map_it(a);

	memset(p, 0x22, SIZE);
	gate_open(&sc->mapped, 1);
	raise(SIGSTOP);
	gate_pass(&sc->taken);
	expect_taken(p, 2 * LEAF, SIZE);
	CHECK(p[0] == UINT64_C(0x2222222222222222));
	gate_open(&sc->seen, 1);
	arena_close(a);
}

static void test_stopped_client(void **state)
{
	struct test_daemon *d = *state;
	struct scene *sc = scene_make(d, NULL);
	pid_t pid = client_start(d, stop_and_go, sc);

	gate_pass(&sc->mapped);
	client_wait_stopped(pid);
	sc->cut = 2 * LEAF;
	client_run(d, cut, sc);
	assert_true(sc->took < (150 + 350 * test_slowness()) * UINT64_C(1000000));
	assert_true(limbo_kb(d) >= SIZE_KB / 2);
	kill(pid, SIGCONT);
	assert_true(daemon_await(d, 2000, no_limbo, NULL));
	gate_open(&sc->taken, 1);
	gate_pass(&sc->seen);
	client_wait(pid);
	scene_end(d, sc);
}

/* One that dies while somebody waits for it lets him go at once. */
static void test_death_ends_waiting(void **state)
{
	struct test_daemon *d = *state;
	struct scene *sc = scene_make(d, "client.flush=fail");
	pid_t pid, cutter;

	daemon_write(d, DEADLINE_PATH, "20000");
	pid = client_start(d, never_flush, sc);
	gate_pass(&sc->mapped);
	cutter = client_start(d, cut, sc);
	while (limbo_kb(d) < SIZE_KB)
		assert_int_equal(waitpid(cutter, NULL, WNOHANG), 0);
	assert_int_equal(sc->took, 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	client_wait(cutter);
	assert_true(sc->took > 0 && sc->took < 5000 * UINT64_C(1000000));
	assert_int_equal(limbo_kb(d), 0);
	scene_end(d, sc);
}

/* ---- refill under one hold ----------------------------------------------------------------- */

/* Between reading the entry and mapping it, the page is taken away. */
static void map_late(struct test_daemon *d, void *arg)
{
	struct scene *sc = arg;
	arena_t *a;
	uint64_t *p;

	client_faultpoints(sc->faultpoints);
	a = client_open(d);
	p = map_it(a);
	gate_open(&sc->mapped, 1);
	try_read(p, NULL); /* either way is right: it was there when it was asked for */
	gate_pass(&sc->taken);
	expect_taken(p, 0, SIZE);
	gate_open(&sc->seen, 1);
	arena_close(a);
}

static bool has_faulted(struct test_daemon *d, void *arg)
{
	return client_number(d, *(pid_t *)arg, "shmem_kb") > 0;
}

static void test_refill_holds(void **state)
{
	static const char *const points[] = {"client.refill=delay:400000@1",
					     "client.mapped=delay:400000@1"};
	struct test_daemon *d = *state;

	for (size_t i = 0; i < 2; i++) {
		struct scene *sc = scene_make(d, points[i]);
		pid_t pid;

		daemon_write(d, DEADLINE_PATH, "10000");
		pid = client_start(d, map_late, sc);
		gate_pass(&sc->mapped);
		assert_true(daemon_await(d, 5000, has_faulted, &pid));
		client_run(d, cut, sc);
		gate_open(&sc->taken, 1);
		gate_pass(&sc->seen);
		/* The flush had to wait for the one who was mapping. */
		assert_true(sc->took >= 100 * UINT64_C(1000000));
		client_wait(pid);
		scene_end(d, sc);
		expect_all_frames_back(d);
	}
}

/* ---- no lock across a call ----------------------------------------------------------------- */

struct two_threads {
	struct scene *sc;
	arena_shm_t *shm;
	arena_t *a;
	char *p;
	struct gate about;
};

static void *cut_in_thread(void *arg)
{
	struct two_threads *t = arg;
	uint64_t start = test_now();

	gate_open(&t->about, 1);
	CHECK_OK(arena_shm_truncate(t->shm, 0));
	__atomic_store_n(&t->sc->took, test_now() - start, __ATOMIC_RELEASE);
	return NULL;
}

/*
 * One thread sits in a call that takes as long as the deadline, for a stopped client has the
 * segment mapped; another faults, maps and flushes meanwhile.
 */
static void work_beside_call(struct test_daemon *d, void *arg)
{
	struct two_threads t = {.sc = arg, .about = gate_make()};
	uint64_t start;
	pthread_t thread;

	t.a = client_open(d);
	t.shm = client_shm(t.a, NAME, O_RDWR, 0);
	t.p = client_map(t.a, 16 * LEAF);
	CHECK_OK(pthread_create(&thread, NULL, cut_in_thread, &t));
	gate_pass(&t.about);
	start = test_now();
	while (test_now() - start < 500 * UINT64_C(1000000)) {
		char *q = client_map(t.a, LEAF);

		memset(q, 1, LEAF);
		memset(t.p, 2, 16 * LEAF);
		CHECK_OK(arena_madvise(t.a, t.p, 16 * LEAF, MADV_DONTNEED));
		CHECK(t.p[5] == 0);
		CHECK_OK(arena_munmap(t.a, q, LEAF));
		t.sc->word++;
	}
	CHECK(__atomic_load_n(&t.sc->took, __ATOMIC_ACQUIRE) == 0); /* it is still in there */
	CHECK_OK(pthread_join(thread, NULL));
	arena_close(t.a);
}

static void test_no_lock_across_call(void **state)
{
	struct test_daemon *d = *state;
	struct scene *sc = scene_make(d, NULL);
	pid_t stopped = client_start(d, stop_and_go, sc);

	gate_pass(&sc->mapped);
	client_wait_stopped(stopped);
	daemon_write(d, DEADLINE_PATH, "1500");
	client_run(d, work_beside_call, sc);
	assert_true(sc->took >= 1400 * UINT64_C(1000000));
	assert_true(sc->word >= (test_slowness() > 1 ? 1 : 3));
	kill(stopped, SIGKILL);
	waitpid(stopped, NULL, 0);
	scene_end(d, sc);
}

static void *touch(void *arg)
{
	*(volatile char *)arg = 1;
	return NULL;
}

/*
 * With the daemon itself stopped: a thread waits for it in a fault, and another still refills
 * what the page table has.
 */
static void refill_without_daemon(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 4 * LEAF), *absent = client_map(a, 4 * LEAF);
	struct scene *sc = arg;
	pthread_t thread;

	memset(p, 1, 4 * LEAF);
	/* The entries permit writing again, the mappings do not yet. */
	CHECK_OK(arena_mprotect(a, p, 4 * LEAF, PROT_READ));
	CHECK_OK(arena_mprotect(a, p, 4 * LEAF, RW));
	CHECK_OK(kill(d->pid, SIGSTOP));
	CHECK_OK(pthread_create(&thread, NULL, touch, absent));
	for (size_t at = 0; at < 4 * LEAF; at += LEAF / 2)
		p[at] = 2;
	sc->word = 1;
	CHECK_OK(kill(d->pid, SIGCONT));
	CHECK_OK(pthread_join(thread, NULL));
	CHECK(absent[0] == 1);
	arena_close(a);
}

static void test_refill_without_daemon(void **state)
{
	struct test_daemon *d = *state;
	struct scene *sc = shared_alloc(sizeof(*sc));
	pid_t pid = client_start(d, refill_without_daemon, sc);

	for (unsigned i = 0; i < 100 && !*(volatile uint64_t *)&sc->word; i++)
		usleep(100000);
	kill(d->pid, SIGCONT);
	assert_int_equal(sc->word, 1);
	client_wait(pid);
	shared_free(sc, sizeof(*sc));
}

/* ---- a range given out again --------------------------------------------------------------- */

static void *unmap_late(void *arg)
{
	struct two_threads *t = arg;

	gate_open(&t->about, 1);
	CHECK_OK(arena_munmap(t->a, t->p, 4 * LEAF));
	return NULL;
}

/*
 * The thread that unmaps is late with its flush; another gets the same addresses. What it
 * writes there must not go to frames that are about to be taken away.
 */
static void reuse_addresses(struct test_daemon *d, void *arg)
{
	struct two_threads t = {.about = gate_make()};
	pthread_t thread;
	char *q;

	(void)arg;
	client_faultpoints("client.flush.call=delay:300000@1");
	t.a = client_open(d);
	t.p = client_map(t.a, 4 * LEAF);
	pattern_fill(t.p, 4 * LEAF, 1);
	CHECK_OK(pthread_create(&thread, NULL, unmap_late, &t));
	gate_pass(&t.about);
	do
		q = arena_mmap(t.a, t.p, 4 * LEAF, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0);
	while (q == MAP_FAILED && errno == EEXIST);
	CHECK(q == t.p);
	CHECK(is_zero(q, 4 * LEAF));
	pattern_fill(q, 4 * LEAF, 2);
	CHECK_OK(pthread_join(thread, NULL));
	CHECK(pattern_is(q, 4 * LEAF, 2));
	arena_close(t.a);
}

static void test_reuse_addresses(void **state)
{
	client_run(*state, reuse_addresses, NULL);
}

/* ---- the ring overtaken -------------------------------------------------------------------- */

#define CUTS (ARENA_FLUSH_ENTRIES + 100u)

#define SECOND "/invariants-second"

/*
 * A cut of the second segment, of which only the first entry of the ring tells, and then so many of
 * the first one, page by page from its end, that this entry is gone.
 */
static void overtake(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR, 0);

	(void)arg;
	CHECK_OK(arena_shm_truncate(client_shm(a, SECOND, O_RDWR, 0), 0));
	for (unsigned i = 1; i <= CUTS; i++)
		CHECK_OK(arena_shm_truncate(s, (off_t)(SIZE - i * PAGE)));
	arena_close(a);
}

/* Finds, when it runs again, that its ring was overtaken, and must not have missed anything. */
static void fall_behind(struct test_daemon *d, void *arg)
{
	struct scene *sc = arg;
	arena_t *a = client_open(d);
	char *p = (char *)map_it(a), *q;
	arena_shm_t *second = client_shm(a, SECOND, O_RDWR | O_CREAT | O_EXCL, 0600);

	CHECK_OK(arena_shm_truncate(second, (off_t)LEAF));
	q = arena_shm_mmap(second, NULL, LEAF, RW, MAP_SHARED, 0);
	CHECK(q != MAP_FAILED);
	memset(p, 0x22, SIZE);
	memset(q, 0x33, LEAF);
	gate_open(&sc->mapped, 1);
	raise(SIGSTOP);
	gate_pass(&sc->taken);
	expect_taken((uint64_t *)(void *)q, 0, LEAF);
	CHECK_OK(arena_shm_unlink(a, SECOND));
	CHECK(p[0] == 0x22 && p[SIZE - CUTS * PAGE - 1] == 0x22);
	for (unsigned i = 1; i <= CUTS; i++)
		CHECK(try_read(p + SIZE - i * PAGE, NULL) == SIGBUS);
	CHECK_OK(arena_null(a));
	arena_close(a);
}

static void test_ring_overtaken(void **state)
{
	struct test_daemon *d = *state;
	struct scene *sc = scene_make(d, NULL);
	uint64_t posted = daemon_number(d, STATUS_PATH, "flushes_posted");
	pid_t pid = client_start(d, fall_behind, sc);

	gate_pass(&sc->mapped);
	client_wait_stopped(pid);
	daemon_write(d, DEADLINE_PATH, "1");
	client_run(d, overtake, NULL);
	posted = daemon_number(d, STATUS_PATH, "flushes_posted") - posted;
	assert_true(posted > ARENA_FLUSH_ENTRIES);
	kill(pid, SIGCONT);
	assert_true(daemon_await(d, 2000, no_limbo, NULL));
	gate_open(&sc->taken, 1);
	client_wait(pid);
	scene_end(d, sc);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		daemon_test(test_call_waits_for_flush),  daemon_test(test_limbo),
		daemon_test(test_stopped_client),        daemon_test(test_death_ends_waiting),
		daemon_test(test_refill_holds),          daemon_test(test_no_lock_across_call),
		daemon_test(test_refill_without_daemon), daemon_test(test_reuse_addresses),
		daemon_test(test_ring_overtaken),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
