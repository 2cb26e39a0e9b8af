/* SPDX-License-Identifier: MIT */
/*
 * daemon_restart_load.c - workers killed at random moments, again and again, under many clients that
 * know what their memory must hold, under clients that come and go, and under clients that die.
 *
 * SOAK_KILLS (environment): so many kills instead of as many as come about in the time of a test.
 * ARENA_TEST_SEED repeats the moments.
 */
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/lib_witness.h"

#define WITNESSES 50u
#define NEWCOMERS 4u
#define VICTIMS 2u
#define LOAD_MS 25000u
#define KILLS 300u

struct load {
	struct gate ready;
	uint32_t *stop; /* shared: 1: come to an end */
	uint64_t *steps, *opened;
	unsigned number;
	uint64_t seed;
};

static bool told_to_stop(const struct load *l)
{
	return __atomic_load_n(l->stop, __ATOMIC_ACQUIRE);
}

static void bear_witness(struct test_daemon *d, void *arg)
{
	struct load *l = arg;
	struct witness *w = witness_open(d, l->number, l->seed + l->number);

	gate_open(&l->ready, 1);
	while (!told_to_stop(l)) {
		witness_step(w);
		__atomic_fetch_add(l->steps, 1, __ATOMIC_RELAXED);
	}
	witness_check(w);
	witness_close(w);
}

/* Open, use, close; every time from the beginning. */
static void come_and_go(struct test_daemon *d, void *arg)
{
	struct load *l = arg;

	gate_open(&l->ready, 1);
	while (!told_to_stop(l)) {
		arena_t *a = client_open(d);
		char *p = client_map(a, 64 * PAGE);

		pattern_fill(p, 64 * PAGE, l->number);
		CHECK_OK(arena_null(a));
		CHECK(pattern_is(p, 64 * PAGE, l->number));
		arena_close(a);
		__atomic_fetch_add(l->opened, 1, __ATOMIC_RELAXED);
	}
}

/* Open, use, and die of it; another follows. */
static void die_and_come_back(struct test_daemon *d, void *arg)
{
	struct load *l = arg;

	gate_open(&l->ready, 1);
	while (!told_to_stop(l)) {
		pid_t pid = fork();

		CHECK(pid >= 0);
		if (pid == 0) {
			arena_t *a = client_open(d);

			memset(client_map(a, 8 * LEAF), 1, 3 * LEAF);
			CHECK(arena_alloc_pages(a, 0, 3));
			raise(SIGKILL);
		}
		CHECK(waitpid(pid, NULL, 0) == pid);
		__atomic_fetch_add(l->opened, 1, __ATOMIC_RELAXED);
	}
}

static void start_all(struct test_daemon *d, struct load *l, client_fn fn, unsigned n, pid_t *pid)
{
	for (unsigned i = 0; i < n; i++) {
		l->number = i;
		pid[i] = client_start(d, fn, l);
	}
	for (unsigned i = 0; i < n; i++)
		gate_pass(&l->ready);
}

/* One in two as it comes up or anywhere else, the other when it has served for a moment. */
static void kill_one(struct test_daemon *d, struct prng *r)
{
	struct timespec ts = {.tv_nsec = (long)prng_below(r, 40000000)};
	size_t from = d->log_len;

	if (prng_below(r, 2))
		daemon_log_wait(d, from, READY_LINE);
	nanosleep(&ts, NULL); /* the moment of death is the test's random input */
	daemon_read_log(d);
	kill(daemon_worker_pid(d), SIGKILL);
}

static unsigned kill_for_a_while(struct test_daemon *d, struct prng *r, unsigned most)
{
	const char *soak = getenv("SOAK_KILLS");
	uint64_t end = test_now() + LOAD_MS * UINT64_C(1000000);
	unsigned kills = 0;

	most = soak ? (unsigned)atoi(soak) : most;
	for (; kills < most && (soak || test_now() < end); kills++)
		kill_one(d, r);
	return kills;
}

static void test_load(void **state)
{
	struct test_daemon *d = *state;
	const char *given = getenv("ARENA_TEST_SEED");
	struct load l = {.ready = gate_make(),
			 .seed = given ? strtoull(given, NULL, 0) : test_now()};
	pid_t pid[WITNESSES + NEWCOMERS + VICTIMS];
	unsigned witnesses = test_slowness() > 1 ? WITNESSES / 5 : WITNESSES, n, kills;
	struct prng r = {.state = l.seed};
	uint64_t *shared = shared_alloc(4096), start;

	l.stop = (uint32_t *)(void *)shared;
	l.steps = shared + 1;
	l.opened = shared + 2;
	d->expect_deaths = true;
	print_message("ARENA_TEST_SEED=%llu\n", (unsigned long long)l.seed);
	start_all(d, &l, bear_witness, witnesses, pid);
	start_all(d, &l, come_and_go, NEWCOMERS, pid + witnesses);
	start_all(d, &l, die_and_come_back, VICTIMS, pid + witnesses + NEWCOMERS);
	n = witnesses + NEWCOMERS + VICTIMS;
	start = test_now();
	kills = kill_for_a_while(d, &r, KILLS);
	__atomic_store_n(l.stop, 1, __ATOMIC_RELEASE);
	for (unsigned i = 0; i < n; i++)
		client_wait(pid[i]);
	print_message("%u kills in %.1f s: %u clients made %llu steps, others came %llu times\n",
		      kills, (double)(test_now() - start) / 1e9, witnesses,
		      (unsigned long long)*l.steps, (unsigned long long)*l.opened);
	assert_true(kills >= test_scaled(30));
	assert_true(*l.opened > 0 && *l.steps > witnesses);
	assert_int_equal(daemon_number(d, STATUS_PATH, "clients"), 0);
	assert_int_equal(daemon_number(d, STATUS_PATH, "segments"), 0);
	shared_free(shared, 4096);
	gate_close(&l.ready);
}

/* ---- nobody registers in a frenzy ------------------------------------------------------------ */

static void wait_quietly(struct test_daemon *d, void *arg)
{
	struct load *l = arg;
	arena_t *a = client_open(d);
	char *p = client_map(a, PAGE);

	*p = 1;
	gate_open(&l->ready, 1);
	while (!told_to_stop(l))
		CHECK_OK(arena_null(a));
	CHECK(*p == 1);
	arena_close(a);
}

/* Clients whose workers die keep their connections; nobody says hello a second time. */
static void test_no_frenzy(void **state)
{
	enum { CLIENTS = 10, DEATHS = 8 };
	struct test_daemon *d = *state;
	struct load l = {.ready = gate_make()};
	uint64_t *shared = shared_alloc(4096), before, reconnects = 0;
	pid_t pid[CLIENTS];

	l.stop = (uint32_t *)(void *)shared;
	start_all(d, &l, wait_quietly, CLIENTS, pid);
	before = daemon_number(d, STATUS_PATH, "clients_opened");
	for (unsigned i = 0; i < DEATHS; i++)
		daemon_kill_worker(d);
	for (unsigned i = 0; i < CLIENTS; i++) {
		reconnects += client_number(d, pid[i], "reconnects");
		assert_int_equal(client_number(d, pid[i], "restarts"), DEATHS);
	}
	assert_int_equal(reconnects, 0);
	assert_int_equal(daemon_number(d, STATUS_PATH, "clients_opened"), before);
	__atomic_store_n(l.stop, 1, __ATOMIC_RELEASE);
	for (unsigned i = 0; i < CLIENTS; i++)
		client_wait(pid[i]);
	shared_free(shared, 4096);
	gate_close(&l.ready);
}

/* Memory for all of them, wherever in their rounds they are: none must fail for want of it. */
static int setup_large(void **state)
{
	static struct test_daemon d = {.log_fd = -1, .control.fd = -1};

	signal(SIGPIPE, SIG_IGN);
	daemon_start(&d, (const char *const[]){"--arena-size", "2G", NULL});
	*state = &d;
	return 0;
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		daemon_test(test_no_frenzy),
		daemon_test(test_load),
	};

	return cmocka_run_group_tests(tests, setup_large, daemon_group_teardown);
}
