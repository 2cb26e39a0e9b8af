/* SPDX-License-Identifier: MIT */
/*
 * daemon_restart.c - what clients see of workers that die, hang, or are not there: at rest, in each
 * kind of call, at stores to the truth; of a stop, of the death of everything; and clients that die
 * or close meanwhile.
 */
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "tests/lib_witness.h"

#define NO_DAEMON ((struct test_daemon){.log_fd = -1, .control.fd = -1})

struct meeting {
	struct gate ready, go;
	unsigned steps, number;
};

static arena_t *open_waiting(struct test_daemon *d, unsigned wait_ms)
{
	struct arena_options options = {
		.size = sizeof(options), .socket = d->socket, .wait_ms = wait_ms};
	arena_t *a;

	CHECK_OK(arena_open(&options, &a));
	return a;
}

static uint64_t ms_since(uint64_t start)
{
	return (test_now() - start) / 1000000;
}

/* ---- at rest ------------------------------------------------------------------------------- */

static void rest_over_restarts(struct test_daemon *d, void *arg)
{
	struct meeting *m = arg;
	struct witness *w = witness_open(d, m->number, m->number);

	for (unsigned i = 0; i < 300; i++)
		witness_step(w);
	for (unsigned i = 0; i < m->steps; i++) {
		gate_open(&m->ready, 1);
		gate_pass(&m->go);
		witness_check(w);
		for (unsigned k = 0; k < 50; k++)
			witness_step(w);
	}
	witness_check(w);
	witness_close(w);
}

static void test_idle(void **state)
{
	enum { CLIENTS = 5, KILLS = 6 };
	struct test_daemon *d = *state;
	struct gate ready = gate_make();
	struct meeting m[CLIENTS];
	pid_t pid[CLIENTS];

	/* A gate each: the fastest would take another one's turn as well. */
	for (unsigned i = 0; i < CLIENTS; i++) {
		m[i] = (struct meeting){
			.ready = ready, .go = gate_make(), .steps = KILLS, .number = i};
		pid[i] = client_start(d, rest_over_restarts, &m[i]);
	}
	for (unsigned k = 0; k < KILLS; k++) {
		for (unsigned i = 0; i < CLIENTS; i++)
			gate_pass(&ready);
		assert_int_equal(client_number(d, pid[0], "restarts"), k);
		daemon_kill_worker(d);
		for (unsigned i = 0; i < CLIENTS; i++)
			gate_open(&m[i].go, 1);
	}
	for (unsigned i = 0; i < CLIENTS; i++) {
		client_wait(pid[i]);
		gate_close(&m[i].go);
	}
	gate_close(&ready);
}

/* ---- in calls ------------------------------------------------------------------------------ */

static void live(struct test_daemon *d, void *arg)
{
	struct meeting *m = arg;
	struct witness *w = witness_open(d, m->number, m->number + 77);

	for (unsigned i = 0; i < m->steps; i++)
		witness_step(w);
	witness_check(w);
	witness_close(w);
}

/* In each worker of the daemon, and in no client. */
static void start_armed(struct test_daemon *d, const char *where)
{
	assert_int_equal(setenv("ARENA_FAULTPOINTS", where, 1), 0);
	assert_int_equal(setenv("ARENA_FAULTPOINTS_KEEP", "1", 1), 0);
	daemon_start(d, NULL);
	unsetenv("ARENA_FAULTPOINTS");
	unsetenv("ARENA_FAULTPOINTS_KEEP");
	d->expect_deaths = true;
}

static void live_with_deaths(const char *where)
{
	enum { CLIENTS = 3 };
	struct test_daemon d = NO_DAEMON;
	struct meeting m = {.steps = test_scaled(400)};
	pid_t pid[CLIENTS];
	unsigned deaths;
	char *check;

	start_armed(&d, where);
	for (unsigned i = 0; i < CLIENTS; i++) {
		m.number = i;
		pid[i] = client_start(&d, live, &m);
	}
	for (unsigned i = 0; i < CLIENTS; i++)
		client_wait(pid[i]);
	daemon_read_log(&d);
	deaths = daemon_log_count(&d, 0, "SIGKILL");
	print_message("%-28s %u deaths\n", where, deaths);
	assert_true(deaths >= (m.steps < 400 ? 1 : 2));
	assert_int_equal(daemon_number(&d, STATUS_PATH, "clients"), 0);
	assert_int_equal(daemon_number(&d, STATUS_PATH, "segments"), 0);
	check = daemon_read(&d, CHECK_PATH);
	assert_string_equal(check, "ok\n");
	free(check);
	daemon_kill_all(&d);
	daemon_destroy(&d);
}

/*
 * Each worker dies at the Nth passage, in whatever call that is; the numbers share no divisor. Of stores
 * to the truth a call may need a thousand and more: if it met its death first each time, it would be
 * refused.
 */
static void test_in_calls(void **state)
{
	static const char *const where[] = {
		"service.dispatch=kill@23", "service.reply=kill@31",
		"service.done=kill@29",     "service.delivered=kill@37",
		"service.taken=kill@41",    "truth=die@5003",
		"truth=die@7919",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(where) / sizeof(where[0]); i++)
		live_with_deaths(where[i]);
}

/* A worker that cannot go on leaves what there is to the next one. */
static void test_failure(void **state)
{
	struct test_daemon d = NO_DAEMON;
	struct meeting m = {.steps = test_scaled(400)};

	(void)state;
	assert_int_equal(setenv("ARENA_FAULTPOINTS", "service.loop=fail@61", 1), 0);
	daemon_start(&d, NULL);
	unsetenv("ARENA_FAULTPOINTS");
	d.expect_deaths = d.expect_warnings = true;
	client_run(&d, live, &m);
	daemon_read_log(&d);
	assert_int_equal(daemon_log_count(&d, 0, "cannot serve: "), 1);
	assert_int_equal(daemon_log_count(&d, 0, "exited with status 1"), 1);
	daemon_kill_all(&d);
	daemon_destroy(&d);
}

static void make_deadly_call(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, PAGE);

	(void)arg;
	*p = 3;
	/* Every worker dies in it, until it is refused. */
	CHECK_ERRNO(arena_shm_open(a, "/deadly", O_RDWR | O_CREAT, 0600), ECONNRESET);
	CHECK_ERRNO(arena_null(a), ECONNRESET);
	arena_close(a);
}

static void die_of_a_call(const char *where, const char *how, unsigned deaths)
{
	struct test_daemon d = NO_DAEMON;

	start_armed(&d, where);
	d.expect_warnings = true;
	client_run(&d, make_deadly_call, NULL);
	daemon_read_log(&d);
	assert_int_equal(daemon_log_count(&d, 0, "refused: workers die in its call"), 1);
	assert_int_equal(daemon_log_count(&d, 0, how), deaths);
	assert_int_equal(daemon_number(&d, STATUS_PATH, "clients"), 0);
	/* Its log holds alarming lines, but it ends as ever. */
	wire_close(&d.control);
	assert_int_equal(kill(d.pid, SIGTERM), 0);
	assert_int_equal(daemon_wait(&d), 0);
	daemon_destroy(&d);
}

static void test_deadly_call(void **state)
{
	(void)state;
	die_of_a_call("service.shm_open=die", "exited with status 66", 3);
	/* A kill is hardly ever the call's doing. */
	die_of_a_call("service.shm_open=kill", "SIGKILL", 30);
}

/* ---- there is no worker -------------------------------------------------------------------- */

/* The supervisor is stopped, so that nobody follows the worker that is killed. */
static void leave_no_worker(struct test_daemon *d)
{
	pid_t worker = daemon_worker_pid(d);

	d->expect_deaths = true;
	kill(d->pid, SIGSTOP);
	kill(worker, SIGKILL);
}

static void let_worker_come(struct test_daemon *d)
{
	size_t from;

	daemon_read_log(d);
	from = d->log_len;
	kill(d->pid, SIGCONT);
	assert_true(daemon_log_wait(d, from, READY_LINE));
}

static void *touch_one(void *arg)
{
	*(volatile char *)arg = 1;
	return NULL;
}

/* What the tables have needs nobody; the rest waits, and gives up where it was told to. */
static void do_without(struct test_daemon *d, void *arg)
{
	struct meeting *m = arg;
	arena_t *a = open_waiting(d, UINT_MAX), *hasty;
	char *p = client_map(a, 16 * LEAF), *q;
	struct fault_seen seen;
	uint64_t start;
	pthread_t t;

	p = (char *)(((uintptr_t)p + LEAF - 1) & ~(LEAF - 1));
	CHECK_OK(arena_madvise(a, p + 8 * LEAF, 4 * LEAF, MADV_NOHUGEPAGE));
	CHECK_OK(arena_populate(a, p, 8 * LEAF, 1));
	pattern_fill(p, 8 * LEAF, 5);
	hasty = open_waiting(d, 300);
	q = client_map(hasty, 2 * LEAF);
	CHECK_OK(arena_madvise(hasty, q, 2 * LEAF, MADV_NOHUGEPAGE));
	*q = 1;
	gate_open(&m->ready, 1);
	gate_pass(&m->go);

	CHECK(pattern_is(p, 8 * LEAF, 5));
	start = test_now();
	CHECK(try_write(q + LEAF, &seen) == SIGBUS && seen.code == BUS_ADRERR);
	CHECK(ms_since(start) >= 300);
	CHECK_ERRNO(arena_null(hasty), ECONNRESET);
	CHECK(*q == 1);
	CHECK(pthread_create(&t, NULL, touch_one, p + 8 * LEAF + 5) == 0);
	start = test_now();
	arena_close(hasty);
	CHECK(ms_since(start) < 5000 * test_slowness());
	gate_open(&m->ready, 1);
	CHECK(pthread_join(t, NULL) == 0);
	CHECK(p[8 * LEAF + 5] == 1);
	CHECK_OK(arena_null(a));
	CHECK(pattern_is(p, 8 * LEAF, 5));
	arena_close(a);
}

static bool has_flushed(struct test_daemon *d, void *arg)
{
	return client_number(d, *(pid_t *)arg, "flushes") > 0;
}

static void test_no_worker(void **state)
{
	struct test_daemon *d = *state;
	struct meeting m = {.ready = gate_make(), .go = gate_make()};
	pid_t pid;

	for (unsigned hangs = 0; hangs < 2; hangs++) {
		pid = client_start(d, do_without, &m);
		gate_pass(&m.ready);
		/* The whole flush after a recovery takes its mappings: it reads by refills. */
		daemon_kill_worker(d);
		assert_true(daemon_await(d, 10000 * test_slowness(), has_flushed, &pid));
		if (hangs)
			kill(daemon_worker_pid(d), SIGSTOP);
		else
			leave_no_worker(d);
		gate_open(&m.go, 1);
		gate_pass(&m.ready);
		if (hangs)
			kill(daemon_worker_pid(d), SIGCONT);
		else
			let_worker_come(d);
		client_wait(pid);
	}
	gate_close(&m.ready);
	gate_close(&m.go);
}

static void hold_and_die(struct test_daemon *d, void *arg)
{
	struct meeting *m = arg;
	struct witness *w = witness_open(d, m->number, m->number);

	for (unsigned i = 0; i < 200; i++)
		witness_step(w);
	gate_open(&m->ready, 1);
	for (;;)
		if (m->number % 2)
			witness_step(w);
		else
			pause();
}

static void remove_names(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);

	(void)arg;
	for (unsigned i = 0; i < 4; i++) {
		char name[48];

		snprintf(name, sizeof(name), "/witness-%u", i);
		CHECK(arena_shm_unlink(a, name) == 0 || errno == ENOENT);
		snprintf(name, sizeof(name), "/witness-%u-once", i);
		CHECK(arena_shm_unlink(a, name) == 0 || errno == ENOENT);
	}
	arena_close(a);
}

/* They die while nobody looks: the next worker gives back what they had. */
static void test_deaths_unseen(void **state)
{
	struct test_daemon *d = *state;
	struct meeting m = {.ready = gate_make()};
	pid_t pid[4];

	for (unsigned i = 0; i < 4; i++) {
		m.number = i;
		pid[i] = client_start(d, hold_and_die, &m);
		gate_pass(&m.ready);
	}
	leave_no_worker(d);
	for (unsigned i = 0; i < 4; i++) {
		kill(pid[i], SIGKILL);
		assert_int_equal(waitpid(pid[i], NULL, 0), pid[i]);
	}
	let_worker_come(d);
	client_run(d, remove_names, NULL);
	gate_close(&m.ready);
}

static void close_meanwhile(struct test_daemon *d, void *arg)
{
	struct meeting *m = arg;
	arena_t *a = client_open(d), *bare = client_open(d);
	char *p = client_map(a, 2 * LEAF);
	uint64_t start;

	memset(p, 1, 2 * LEAF);
	gate_open(&m->ready, 1);
	gate_pass(&m->go);
	start = test_now();
	arena_close(a);
	arena_close(bare);
	CHECK(ms_since(start) < 10000 * test_slowness());
	gate_open(&m->ready, 1);
	/* It lives on, so its death is not what gives the memory back. */
	gate_pass(&m->go);
}

static void test_close_meanwhile(void **state)
{
	struct test_daemon *d = *state;
	struct meeting m = {.ready = gate_make(), .go = gate_make()};
	pid_t pid = client_start(d, close_meanwhile, &m);

	gate_pass(&m.ready);
	leave_no_worker(d);
	gate_open(&m.go, 1);
	gate_pass(&m.ready);
	let_worker_come(d);
	assert_int_not_equal(daemon_await_free(d, d->free_before, 5000 * test_slowness()),
			     UINT64_MAX);
	gate_open(&m.go, 1);
	client_wait(pid);
	gate_close(&m.ready);
	gate_close(&m.go);
}

/* ---- the end ------------------------------------------------------------------------------- */

static void see_the_end(struct test_daemon *d, void *arg)
{
	struct meeting *m = arg;
	arena_t *a = open_waiting(d, UINT_MAX), *bare = open_waiting(d, UINT_MAX), *next;
	char *p = client_map(a, 4 * LEAF), text[64];
	struct fault_seen seen;
	uint64_t start;

	p = (char *)(((uintptr_t)p + LEAF - 1) & ~(LEAF - 1));
	CHECK_OK(arena_madvise(a, p + LEAF, LEAF, MADV_NOHUGEPAGE));
	pattern_fill(p, LEAF, 1);
	gate_open(&m->ready, 1);
	gate_pass(&m->go);
	start = test_now();
	CHECK_ERRNO(arena_null(a), ECONNRESET);
	CHECK_ERRNO(arena_attr_read(bare, "proc/meminfo", text, sizeof(text)), ECONNRESET);
	/* Told, at once; untold, when nobody has listened for a second. */
	CHECK(ms_since(start) < 10000 * test_slowness());
	CHECK(try_read(p + LEAF + 5, &seen) == SIGBUS);
	CHECK(pattern_is(p, LEAF, 1));
	pattern_fill(p, LEAF, 2);
	gate_open(&m->ready, 1);
	gate_pass(&m->go);
	/* Another daemon is there: that changes nothing for the old handle. */
	next = open_waiting(d, 0);
	*(char *)client_map(next, PAGE) = 1;
	CHECK_ERRNO(arena_null(a), ECONNRESET);
	CHECK(pattern_is(p, LEAF, 2));
	arena_close(a);
	arena_close(bare);
	CHECK_OK(arena_null(next));
	arena_close(next);
}

static void test_the_end(void **state)
{
	(void)state;
	for (unsigned killed = 0; killed < 2; killed++) {
		struct test_daemon d = NO_DAEMON;
		struct meeting m = {.ready = gate_make(), .go = gate_make()};
		pid_t pid;

		daemon_start(&d, NULL);
		pid = client_start(&d, see_the_end, &m);
		gate_pass(&m.ready);
		if (killed)
			daemon_kill_all(&d);
		else
			daemon_stop(&d);
		gate_open(&m.go, 1);
		gate_pass(&m.ready);
		wire_close(&d.control);
		d.expect_warnings = true;
		daemon_start(&d, NULL);
		gate_open(&m.go, 1);
		client_wait(pid);
		daemon_stop(&d);
		daemon_destroy(&d);
		gate_close(&m.ready);
		gate_close(&m.go);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		daemon_test(test_idle),
		daemon_test(test_no_worker),
		daemon_test(test_deaths_unseen),
		daemon_test(test_close_meanwhile),
		cmocka_unit_test(test_in_calls),
		cmocka_unit_test(test_failure),
		cmocka_unit_test(test_deadly_call),
		cmocka_unit_test(test_the_end),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
