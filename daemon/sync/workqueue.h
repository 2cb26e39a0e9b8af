/* SPDX-License-Identifier: MIT */
/*
 * workqueue.h - content workers: threads that read and write the bytes of frames which the control
 * thread has set aside for them, and nothing else. The control thread queues items and takes
 * them back when done; it is told by an eventfd, so nobody polls. One thread makes all the calls
 * here, and only flush and destroy ever wait for the worker.
 */
#ifndef SYNC_WORKQUEUE_H
#define SYNC_WORKQUEUE_H

#include <stdbool.h>
#include <stdint.h>

struct workqueue;

struct work {
	void (*run)(struct work *w); /* in the worker's thread; must not touch truth or indexes */
	struct work *next;           /* the list's, while queued or finished */
};

/* One background thread `name`. 0 or -errno. */
int workqueue_create(const char *name, struct workqueue **out);
struct workqueue_params {
	const char *name; /* at most 15 bytes, and outlives the thread */
	bool waited_for;  /* somebody waits for what it does: not at the lowest priority */
	int eventfd;      /* is rung, and may be several queues'; the owner's. 0: one of its own */
};
int workqueue_create_for(const struct workqueue_params *params, struct workqueue **out);
/* Runs what is queued, joins the thread; NULL is allowed; returns NULL. Items not yet taken back
 * with workqueue_completed() must be taken before. */
struct workqueue *workqueue_destroy(struct workqueue *q);
void workqueue_queue(struct workqueue *q, struct work *w);
/* The finished items as a list, oldest first; NULL if none. */
struct work *workqueue_completed(struct workqueue *q);
/* Readable while finished items wait; now and then once more: watch it edge-triggered. */
int workqueue_eventfd(const struct workqueue *q);
/* Queued and not yet taken back. */
unsigned workqueue_pending(const struct workqueue *q);
/* Wait until every queued item has finished. */
void workqueue_flush(struct workqueue *q);
/* CPU time the thread has used, ns. */
uint64_t workqueue_cpu_time(struct workqueue *q);

#endif
