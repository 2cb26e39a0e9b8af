/* SPDX-License-Identifier: MIT */
/*
 * workqueue.c - one background thread with a list of items to run and a list of finished ones.
 *
 *	 workqueue_queue()                        workqueue_completed()
 *	        |                                          ^
 *	        v            the worker's thread           |
 *	    todo: w -> w -> w  ---- run(w) ---->  done: w -> w
 *
 * An item is on `todo`, with the worker, or on `done`. Both lists are pushed by one side and taken
 * whole by the other, newest first, each with one atomic operation: there is no lock, because the
 * worker runs at the lowest priority. It may lose its CPU anywhere, for as long as anything else
 * wants to run, and the control thread must not be found waiting for it to let go of something.
 * (It was: the ring that says that work is done wakes the control thread, which then takes the CPU
 * of a worker that has not left the lock yet.)
 *
 * The eventfd is rung after `done` got its first item and drained before the list is taken, so it is
 * readable while items wait. Where the taking came between the first item and its ring, it is
 * readable once with nothing to take.
 */
#include "daemon/sync/workqueue.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/faultpoint.h"
#include "base/mem.h"
#include "base/os.h"

struct workqueue {
	/* the owner's: the one thread that queues and takes back */
	uint32_t nr_queued; /* ever; compared with `finished` */
	unsigned pending;
	struct workqueue_params params;
	int eventfd;
	pthread_t thread;
	/* between the two, atomic */
	struct work *todo, *done; /* newest first */
	uint32_t queued;          /* futex: counts what may wake the worker */
	uint32_t sleeping;        /* the worker waits for `queued` to change, or is about to */
	uint32_t stopping;
	uint32_t finished; /* futex: items ever run */
	uint32_t tid;      /* the worker's; 0: not yet there */
	uint32_t urged;    /* its priority was raised */
	uint32_t flushing; /* the owner waits for `finished` to change, or is about to */
};

/* True if the list was empty. */
static bool list_push(struct work **list, struct work *w)
{
	struct work *head = load_relaxed(list);

	do
		w->next = head;
	while (!__atomic_compare_exchange_n(list, &head, w, false, __ATOMIC_SEQ_CST,
					    __ATOMIC_RELAXED));
	return !head;
}

/* All of it, oldest first. */
static struct work *list_take(struct work **list)
{
	struct work *w = __atomic_exchange_n(list, NULL, __ATOMIC_SEQ_CST), *out = NULL;

	while (w) {
		struct work *next = w->next;

		w->next = out;
		out = w;
		w = next;
	}
	return out;
}

/* Items to run, waiting for some; NULL when the queue stops and nothing is left. */
static struct work *next_work(struct workqueue *q)
{
	for (;;) {
		uint32_t seen = __atomic_load_n(&q->queued, __ATOMIC_SEQ_CST);
		bool stopping = load_acquire(&q->stopping);
		struct work *list = list_take(&q->todo);

		if (list || stopping)
			return list;
		/* Pairs with wake_worker(): set `sleeping`, then look at `queued`, in the kernel. */
		__atomic_store_n(&q->sleeping, 1, __ATOMIC_SEQ_CST);
		os_futex_wait(&q->queued, seen, 0);
		store_relaxed(&q->sleeping, 0);
	}
}

static void wake_worker(struct workqueue *q)
{
	__atomic_fetch_add(&q->queued, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&q->sleeping, __ATOMIC_SEQ_CST))
		os_futex_wake(&q->queued, 1);
}

static void finish_work(struct workqueue *q, struct work *w)
{
	bool first = list_push(&q->done, w); /* the owner may have it back from here on */

	faultpoint("workqueue.finish");
	if (first)
		os_eventfd_ring(q->eventfd);
	__atomic_fetch_add(&q->finished, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&q->flushing, __ATOMIC_SEQ_CST))
		os_futex_wake(&q->finished, 1);
}

static void *worker(void *arg)
{
	struct workqueue *q = arg;
	struct work *w, *next;

	prctl(PR_SET_NAME, q->params.name);
	if (!q->params.waited_for)
		os_thread_background(0, true);
	store_release(&q->tid, (uint32_t)gettid());
	while ((w = next_work(q))) {
		if (__atomic_exchange_n(&q->urged, 0, __ATOMIC_ACQ_REL))
			os_thread_background(0, true);
		for (; w; w = next) {
			next = w->next;
			w->run(w);
			finish_work(q, w);
		}
	}
	return NULL;
}

/* Signals are the main thread's business: the worker starts with all of them blocked. */
static int start_thread(struct workqueue *q)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&q->thread, NULL, worker, q);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -r;
}

static void free_queue(struct workqueue *q)
{
	if (q->eventfd >= 0 && !q->params.eventfd)
		close(q->eventfd);
	free(q);
}

int workqueue_create(const char *name, struct workqueue **out)
{
	const struct workqueue_params params = {.name = name};

	return workqueue_create_for(&params, out);
}

int workqueue_create_for(const struct workqueue_params *params, struct workqueue **out)
{
	struct workqueue *q = mem_alloc(sizeof(*q));
	int r;

	if (!q)
		return -ENOMEM;
	q->params = *params;
	q->eventfd = params->eventfd ? params->eventfd : os_eventfd();
	r = q->eventfd < 0 ? q->eventfd : start_thread(q);
	if (r < 0) {
		free_queue(q);
		return r;
	}
	*out = q;
	return 0;
}

/*
 * Somebody waits for the worker, so it is no background work now. Without the right to that (sched(7):
 * RLIMIT_NICE) it takes as long as it takes.
 */
static void urge(struct workqueue *q)
{
	uint32_t tid = load_acquire(&q->tid);

	if (q->params.waited_for || !tid)
		return;
	store_release(&q->urged, 1);
	os_thread_background((pid_t)tid, false);
}

struct workqueue *workqueue_destroy(struct workqueue *q)
{
	if (!q)
		return NULL;
	store_release(&q->stopping, 1);
	wake_worker(q);
	urge(q);
	pthread_join(q->thread, NULL);
	free_queue(q);
	return NULL;
}

void workqueue_queue(struct workqueue *q, struct work *w)
{
	ASSERT(!q->stopping);
	q->nr_queued++;
	q->pending++;
	list_push(&q->todo, w);
	wake_worker(q);
}

struct work *workqueue_completed(struct workqueue *q)
{
	struct work *list;

	if (!load_relaxed(&q->done))
		return NULL;
	os_eventfd_drain(q->eventfd);
	list = list_take(&q->done);
	for (const struct work *w = list; w; w = w->next)
		q->pending--;
	return list;
}

int workqueue_eventfd(const struct workqueue *q)
{
	return q->eventfd;
}

unsigned workqueue_pending(const struct workqueue *q)
{
	return q->pending;
}

void workqueue_flush(struct workqueue *q)
{
	uint32_t finished;

	/* Pairs with finish_work(): set `flushing`, then look at `finished`, and again in the kernel. */
	__atomic_store_n(&q->flushing, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&q->finished, __ATOMIC_SEQ_CST) != q->nr_queued)
		urge(q);
	while ((finished = __atomic_load_n(&q->finished, __ATOMIC_SEQ_CST)) != q->nr_queued)
		os_futex_wait(&q->finished, finished, 0);
	store_relaxed(&q->flushing, 0);
}

uint64_t workqueue_cpu_time(struct workqueue *q)
{
	struct timespec ts;
	clockid_t clock;

	if (pthread_getcpuclockid(q->thread, &clock) != 0 || clock_gettime(clock, &ts) != 0)
		return 0;
	return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}
