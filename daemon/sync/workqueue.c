/* SPDX-License-Identifier: MIT */
/*
 * workqueue.c - one background thread with a list of items to run and a list of finished ones.
 *
 *	 workqueue_queue()                        workqueue_completed()
 *	        |                                          ^
 *	        v            the worker's thread           |
 *	    todo: w -> w -> w  ---- run(w) ---->  done: w -> w
 *
 * An item is on `todo`, running, or on `done`; `unfinished` counts the first two and `pending` all
 * three. The eventfd is readable exactly while `done` is not empty: it is rung when `done` gets its
 * first item and drained when it is taken, both under the lock.
 */
#include "daemon/sync/workqueue.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/os.h"
#include "daemon/sync/lock.h"

struct work_list {
	struct work *head;
	struct work **tail;
};

struct workqueue {
	struct lock lock;        /* guards all below but what does not change */
	pthread_cond_t queued;   /* todo is not empty, or stopping */
	pthread_cond_t finished; /* unfinished has become 0 */
	struct work_list todo;
	struct work_list done;
	unsigned unfinished;
	unsigned pending;
	bool stopping;
	const char *name; /* does not change; the caller's, or a literal */
	int eventfd;      /* does not change */
	pthread_t thread; /* does not change */
};

static void list_init(struct work_list *l)
{
	l->head = NULL;
	l->tail = &l->head;
}

static void list_append(struct work_list *l, struct work *w)
{
	w->next = NULL;
	*l->tail = w;
	l->tail = &w->next;
}

static struct work *list_take_first(struct work_list *l)
{
	struct work *w = l->head;

	l->head = w->next;
	if (!l->head)
		l->tail = &l->head;
	w->next = NULL;
	return w;
}

/* An item to run, waiting for one; NULL when the queue stops and nothing is left. */
static struct work *next_work(struct workqueue *q)
{
	LOCK_GUARD(&q->lock);

	while (!q->todo.head && !q->stopping)
		pthread_cond_wait(&q->queued, &q->lock.mutex);
	return q->todo.head ? list_take_first(&q->todo) : NULL;
}

static void finish_work(struct workqueue *q, struct work *w)
{
	LOCK_GUARD(&q->lock);

	if (!q->done.head)
		os_eventfd_ring(q->eventfd);
	list_append(&q->done, w);
	if (--q->unfinished == 0)
		pthread_cond_broadcast(&q->finished);
}

static void *worker(void *arg)
{
	struct workqueue *q = arg;
	struct work *w;

	os_thread_background(q->name);
	while ((w = next_work(q))) {
		w->run(w);
		finish_work(q, w);
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
	if (q->eventfd >= 0)
		close(q->eventfd);
	pthread_cond_destroy(&q->queued);
	pthread_cond_destroy(&q->finished);
	lock_destroy(&q->lock);
	free(q);
}

int workqueue_create(const char *name, struct workqueue **out)
{
	struct workqueue *q = mem_alloc(sizeof(*q));
	int r;

	if (!q)
		return -ENOMEM;
	lock_init(&q->lock, LOCK_CLASS_WORKQUEUE);
	pthread_cond_init(&q->queued, NULL);
	pthread_cond_init(&q->finished, NULL);
	list_init(&q->todo);
	list_init(&q->done);
	q->name = name;
	q->eventfd = os_eventfd();
	r = q->eventfd < 0 ? q->eventfd : start_thread(q);
	if (r < 0) {
		free_queue(q);
		return r;
	}
	*out = q;
	return 0;
}

struct workqueue *workqueue_destroy(struct workqueue *q)
{
	if (!q)
		return NULL;
	lock_acquire(&q->lock);
	q->stopping = true;
	pthread_cond_signal(&q->queued);
	lock_release(&q->lock);
	pthread_join(q->thread, NULL);
	free_queue(q);
	return NULL;
}

void workqueue_queue(struct workqueue *q, struct work *w)
{
	LOCK_GUARD(&q->lock);

	ASSERT(!q->stopping);
	list_append(&q->todo, w);
	q->unfinished++;
	q->pending++;
	pthread_cond_signal(&q->queued);
}

struct work *workqueue_completed(struct workqueue *q)
{
	LOCK_GUARD(&q->lock);
	struct work *list = q->done.head;

	if (!list)
		return NULL;
	for (const struct work *w = list; w; w = w->next)
		q->pending--;
	list_init(&q->done);
	os_eventfd_drain(q->eventfd);
	return list;
}

int workqueue_eventfd(const struct workqueue *q)
{
	return q->eventfd;
}

unsigned workqueue_pending(struct workqueue *q)
{
	LOCK_GUARD(&q->lock);
	return q->pending;
}

void workqueue_flush(struct workqueue *q)
{
	LOCK_GUARD(&q->lock);

	while (q->unfinished)
		pthread_cond_wait(&q->finished, &q->lock.mutex);
}

uint64_t workqueue_cpu_time(struct workqueue *q)
{
	struct timespec ts;
	clockid_t clock;

	if (pthread_getcpuclockid(q->thread, &clock) != 0 || clock_gettime(clock, &ts) != 0)
		return 0;
	return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}
