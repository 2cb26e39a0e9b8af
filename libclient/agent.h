/* SPDX-License-Identifier: MIT */
/*
 * agent.h - threads of the library that act for callers, and descriptors out of the program's reach.
 *
 * Under the userfaultfd trap the library's descriptors are in none of the program's tables: whoever
 * closes all descriptors, or uses their numbers again, does not meet them. They are in a table of
 * the library's own threads, which the first of them, the agent, makes:
 *
 *     program's table    0 1 2 3 ...              every thread of the program
 *     own table          socket, doorbell,        agent: runs what uses descriptors and may wait
 *                        userfaultfd, slots       bell: rings the doorbell, reads while a mapping moves
 *                                                 flush, fault: as ever
 *
 * So a descriptor's number is used by these threads only, or within agent_run(). Without an agent
 * (the signal trap) agent_run() just calls.
 *
 * A thread of the program whose stack or thread-local data lies in the window must not hold the tlb lock: the
 * very flush that it applies may take that away. It has flush_thread_run() do that; see client_locked().
 */
#ifndef LIBCLIENT_AGENT_H
#define LIBCLIENT_AGENT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "arena/abi.h"

struct arena;

typedef void job_fn(struct arena *a, void *arg);

/* In the caller's frame until it is done. */
struct job {
	struct job *next;
	job_fn *fn;
	void *arg;
	uint32_t done; /* futex */
};

/* Jobs for one thread, which takes all at once; anybody may add one. */
struct job_list {
	struct job *newest;
};

struct agent {
	bool running; /* there is a table of our own */
	uint32_t stop;
	pthread_t thread, bell_thread;
	bool bell_running;
	struct job_list jobs;
	uint32_t word; /* futex: changes with each job */
	/* the bell */
	uint32_t bell_word; /* futex: changes with each of these */
	uint32_t ring;      /* the doorbell is to be rung */
	uint32_t wake;      /* all accesses that are held in the window are to be repeated */
	uint64_t wake_base, wake_size; /* which may be gone when the bell comes to it */
	uint32_t moving; /* enum agent_moving, and the number of the move times AGENT_NR_STATES */
};

/* A socket, a doorbell, a userfaultfd, the end of who reads it, and what slots a child inherits. */
#define AGENT_MAX_FDS (ARENA_MAX_SLOTS + 4u)

enum agent_moving {
	AGENT_STILL = 0,
	AGENT_SOON = 1, /* a mapping is going to be moved */
	AGENT_NOW = 2,  /* the mover waits until its event has been read */
	AGENT_NR_STATES = 4,
};

/*
 * The descriptors (numbers in the program's table) are in a table of our own from here on, under the same
 * numbers. Those of the program's table stay, for the caller to close. Signals are blocked in the new
 * threads.
 */
int agent_start(struct arena *a, const int *fds, unsigned nr);
/* After everything else of the arena: the table goes with its last thread. */
void agent_stop(struct arena *a);
/* In the child of fork(): it has none of this. */
void agent_forget(struct arena *a);
/* Call fn(a, arg) where the descriptors are, and wait until it has returned. */
void agent_run(struct arena *a, job_fn *fn, void *arg);

/* Ring the daemon's doorbell. Any thread; it is done soon. */
void client_ring(struct arena *a);
/* Have all accesses that are held repeated, and reported again. */
void agent_wake_window(struct arena *a);
/* Have the event of a moved mapping read: around the move, if there is somebody to. Under the tlb lock. */
bool agent_can_move(const struct arena *a);
void agent_moving_soon(struct arena *a);
void agent_moving_now(struct arena *a);
void agent_moved(struct arena *a);

/* ---- for the threads that do jobs ---- */

void job_add(struct job_list *l, struct job *j);
void job_wait(struct job *j);
/* Do what is there, oldest first. */
void jobs_do(struct arena *a, struct job_list *l);

/* A thread of the library: small stack, signals blocked but for those the C library needs. */
int library_thread_start(pthread_t *thread, void *(*fn)(void *), void *arg);
/* At its begin: it is one of this arena's, and called so; the one that `serves` is the fault thread. */
void library_thread_enter(struct arena *a, const char *name, bool serves);
bool library_thread_serves(const struct arena *a);
/* The thread-local data that all this is in. */
const void *library_thread_local(void);
/* Is the calling thread one of them? */
bool library_thread_is_of(const struct arena *a);

#endif
