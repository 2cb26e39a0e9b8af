/* SPDX-License-Identifier: MIT */
/* workqueue: order, the eventfd's promise, counting, flush and destroy. */
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/faultpoint.h"
#include "base/util.h"
#include "daemon/sync/workqueue.h"

#define NR_ITEMS 1000

struct item {
	struct work work;
	unsigned number;
	unsigned ran_as; /* 1 for the first that ran */
};

static struct item items[NR_ITEMS];
static unsigned nr_ran;
static pthread_t ran_in;

static void run_item(struct work *w)
{
	struct item *it = container_of(w, struct item, work);

	it->ran_as = ++nr_ran;
	ran_in = pthread_self();
}

static struct workqueue *start(void)
{
	struct workqueue *q = NULL;

	nr_ran = 0;
	for (unsigned i = 0; i < NR_ITEMS; i++)
		items[i] = (struct item){.work.run = run_item, .number = i};
	assert_int_equal(workqueue_create("test", &q), 0);
	return q;
}

static bool readable(const struct workqueue *q, int timeout_ms)
{
	struct pollfd p = {.fd = workqueue_eventfd(q), .events = POLLIN};

	return poll(&p, 1, timeout_ms) == 1;
}

static void test_order(void **state)
{
	struct workqueue *q = start();
	unsigned n = 0;

	(void)state;
	for (unsigned i = 0; i < NR_ITEMS; i++)
		workqueue_queue(q, &items[i].work);
	while (n < NR_ITEMS) {
		assert_true(readable(q, 10000));
		for (struct work *w = workqueue_completed(q); w; w = w->next, n++) {
			assert_ptr_equal(w, &items[n].work);
			assert_int_equal(items[n].ran_as, n + 1);
		}
	}
	assert_null(workqueue_completed(q));
	assert_int_equal(workqueue_pending(q), 0);
	assert_false(readable(q, 0));
	assert_false(pthread_equal(ran_in, pthread_self()));
	assert_null(workqueue_destroy(q));
}

static sem_t gate, entered;

static void run_gated(struct work *w)
{
	(void)w;
	sem_post(&entered);
	while (sem_wait(&gate) < 0)
		;
}

static void test_pending_and_eventfd(void **state)
{
	struct workqueue *q = start();
	struct work gated[3] = {{.run = run_gated}, {.run = run_gated}, {.run = run_gated}};
	struct work *w;

	(void)state;
	sem_init(&gate, 0, 0);
	sem_init(&entered, 0, 0);
	assert_int_equal(workqueue_pending(q), 0);
	for (int i = 0; i < 3; i++)
		workqueue_queue(q, &gated[i]);
	sem_wait(&entered);
	assert_int_equal(workqueue_pending(q), 3);
	assert_null(workqueue_completed(q));
	assert_false(readable(q, 0));

	/* The second runs: the first has finished, and counts until it is taken. */
	sem_post(&gate);
	sem_wait(&entered);
	assert_true(readable(q, 0));
	assert_int_equal(workqueue_pending(q), 3);
	w = workqueue_completed(q);
	assert_ptr_equal(w, &gated[0]);
	assert_null(w->next);
	assert_int_equal(workqueue_pending(q), 2);
	assert_false(readable(q, 0));

	sem_post(&gate);
	sem_post(&gate);
	workqueue_flush(q);
	assert_true(readable(q, 0));
	w = workqueue_completed(q);
	assert_ptr_equal(w, &gated[1]);
	assert_ptr_equal(w->next, &gated[2]);
	assert_int_equal(workqueue_pending(q), 0);
	workqueue_destroy(q);
	sem_destroy(&gate);
	sem_destroy(&entered);
}

/* An item may be queued again as soon as it is taken back. */
static void test_requeue(void **state)
{
	struct workqueue *q = start();

	(void)state;
	for (unsigned i = 0; i < 200; i++) {
		workqueue_queue(q, &items[0].work);
		assert_true(readable(q, 10000));
		assert_ptr_equal(workqueue_completed(q), &items[0].work);
	}
	assert_int_equal(nr_ran, 200);
	workqueue_destroy(q);
}

static void test_flush_waits_for_all(void **state)
{
	struct workqueue *q = start();

	(void)state;
	workqueue_flush(q);
	for (unsigned i = 0; i < NR_ITEMS; i++)
		workqueue_queue(q, &items[i].work);
	workqueue_flush(q);
	assert_int_equal(nr_ran, NR_ITEMS);
	assert_int_equal(workqueue_pending(q), NR_ITEMS);
	workqueue_destroy(q);
}

static void test_destroy_runs_what_is_queued(void **state)
{
	struct workqueue *q = start();

	(void)state;
	for (unsigned i = 0; i < NR_ITEMS; i++)
		workqueue_queue(q, &items[i].work);
	assert_null(workqueue_destroy(q));
	assert_int_equal(nr_ran, NR_ITEMS);
	assert_null(workqueue_destroy(NULL));
}

static void run_busy(struct work *w)
{
	uint64_t until = clock_thread_cpu() + 5 * NSEC_PER_MSEC;

	(void)w;
	while (clock_thread_cpu() < until)
		;
}

static void test_cpu_time(void **state)
{
	struct workqueue *q = start();
	struct work busy = {.run = run_busy};

	(void)state;
	workqueue_queue(q, &busy);
	workqueue_flush(q);
	assert_true(workqueue_cpu_time(q) >= 5 * NSEC_PER_MSEC);
	workqueue_destroy(q);
}

static sigset_t worker_mask;

static void run_read_mask(struct work *w)
{
	(void)w;
	pthread_sigmask(SIG_SETMASK, NULL, &worker_mask);
}

static void test_signals_stay_with_the_creator(void **state)
{
	struct workqueue *q = start();
	struct work read_mask = {.run = run_read_mask};
	sigset_t mine;

	(void)state;
	workqueue_queue(q, &read_mask);
	workqueue_flush(q);
	assert_true(sigismember(&worker_mask, SIGTERM));
	pthread_sigmask(SIG_SETMASK, NULL, &mine);
	assert_false(sigismember(&mine, SIGTERM));
	workqueue_destroy(q);
}

/* The worker may stop anywhere for as long as it likes, also where it hands its work over. */
static void test_the_owner_never_waits(void **state)
{
	struct workqueue *q = start();
	struct work *w = NULL;
	uint64_t began;

	(void)state;
	assert_int_equal(faultpoint_arm("workqueue.finish=delay:2000000@1"), 0);
	workqueue_queue(q, &items[0].work);
	do {
		began = clock_now();
		w = workqueue_completed(q);
	} while (!w);
	assert_ptr_equal(w, &items[0].work);
	assert_null(w->next);
	workqueue_queue(q, &items[1].work);
	workqueue_queue(q, w);
	assert_null(workqueue_completed(q));
	assert_int_equal(workqueue_pending(q), 2);
	assert_true(clock_now() - began < NSEC_PER_SEC);
	workqueue_flush(q);
	assert_int_equal(faultpoint_passages("workqueue.finish"), 3);
	faultpoint_arm(NULL);
	assert_true(readable(q, 0));
	w = workqueue_completed(q);
	assert_ptr_equal(w, &items[1].work);
	assert_ptr_equal(w->next, &items[0].work);
	assert_null(w->next->next);
	assert_int_equal(nr_ran, 3);
	workqueue_destroy(q);
}

static void test_no_memory(void **state)
{
	struct workqueue *q = NULL;

	(void)state;
	assert_int_equal(faultpoint_arm("mem=fail@1"), 0);
	assert_int_equal(workqueue_create("test", &q), -ENOMEM);
	assert_null(q);
	faultpoint_arm(NULL);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_pending_and_eventfd),
		cmocka_unit_test(test_requeue),
		cmocka_unit_test(test_flush_waits_for_all),
		cmocka_unit_test(test_destroy_runs_what_is_queued),
		cmocka_unit_test(test_cpu_time),
		cmocka_unit_test(test_signals_stay_with_the_creator),
		cmocka_unit_test(test_the_owner_never_waits),
		cmocka_unit_test(test_no_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
