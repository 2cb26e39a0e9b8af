/* SPDX-License-Identifier: MIT */
/* agent.c - the agent and the bell; how threads of the library begin. */
#include "libclient/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/os.h"
#include "base/userfault.h"
#include "base/util.h"
#include "libclient/internal.h"

#define STACK_SIZE (128u << 10)
#define EVENTS 16u

/* ---- threads ---- */

/* Its own arena, by a model that needs no memory at the first access. */
static __thread struct {
	const struct arena *of;
	bool serves;
} self __attribute__((tls_model("initial-exec")));

bool library_thread_is_of(const struct arena *a)
{
	return self.of == a;
}

bool library_thread_serves(const struct arena *a)
{
	return self.of == a && self.serves;
}

void library_thread_enter(struct arena *a, const char *name, bool serves)
{
	self.of = a;
	self.serves = serves;
	prctl(PR_SET_NAME, name);
}

const void *library_thread_local(void)
{
	return &self;
}

/*
 * The program's handlers shall not run here. But 32 and 33 are the C library's own: a setuid() of
 * the program waits until every thread has taken its 33.
 */
int library_thread_start(pthread_t *thread, void *(*fn)(void *), void *arg)
{
	uint64_t all_but = ~(UINT64_C(3) << 31), before = signals_block_all();
	pthread_attr_t attr;
	int r = pthread_attr_init(&attr);

	if (r == 0) {
		signals_restore(all_but);
		pthread_attr_setstacksize(&attr,
					  MAX((size_t)STACK_SIZE, (size_t)PTHREAD_STACK_MIN));
		r = pthread_create(thread, &attr, fn, arg);
		/* A program with large thread-local data has no room for it on a small stack. */
		if (r == EINVAL)
			r = pthread_create(thread, NULL, fn, arg);
		pthread_attr_destroy(&attr);
	}
	signals_restore(before);
	return -r;
}

/* ---- jobs ---- */

void job_add(struct job_list *l, struct job *j)
{
	j->done = 0;
	j->next = load_relaxed(&l->newest);
	while (!__atomic_compare_exchange_n(&l->newest, &j->next, j, false, __ATOMIC_RELEASE,
					    __ATOMIC_RELAXED))
		;
}

/* By address: the job may lie in memory whose frame changes. */
void job_wait(struct job *j)
{
	while (!load_acquire(&j->done))
		os_futex_wait_private(&j->done, 0, 0);
}

void jobs_do(struct arena *a, struct job_list *l)
{
	struct job *newest = __atomic_exchange_n(&l->newest, NULL, __ATOMIC_ACQUIRE);
	struct job *oldest = NULL;

	while (newest) {
		struct job *next = newest->next;

		newest->next = oldest;
		oldest = newest;
		newest = next;
	}
	while (oldest) {
		struct job *j = oldest;

		oldest = j->next;
		j->fn(a, j->arg);
		store_release(&j->done, 1);
		/* It may be gone already: then this wakes nobody. */
		os_futex_wake_private(&j->done, 1);
	}
}

static void change(uint32_t *word)
{
	__atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
	os_futex_wake_private(word, INT_MAX);
}

/* ---- the bell ---- */

static uint32_t state_of(uint32_t moving)
{
	return moving % AGENT_NR_STATES;
}

/* Pages whose accesses were taken by somebody who cannot answer them. */
struct span {
	uint64_t start, end;
};

static void span_add(struct span *s, uint64_t addr)
{
	uint64_t page = ALIGN_DOWN(addr, ARENA_PAGE_SIZE);

	s->start = MIN(s->start, page);
	s->end = MAX(s->end, page + ARENA_PAGE_SIZE);
}

/*
 * A thread that moves a mapping waits until somebody has read of it. The kernel reports accesses first, so
 * those that come meanwhile are read, too. They are nobody's yet: their threads try again, and are reported
 * to the fault thread. But not before the move was read of. Woken at once, threads enough would be back
 * before the last of them was read, again and again, and the mover would wait for seconds.
 */
static void read_move(struct arena *a)
{
	struct userfault_event e[EVENTS];
	struct pollfd p = {.fd = a->trap.fd, .events = POLLIN};
	struct span held = {.start = UINT64_MAX};
	uint32_t *moving = &a->agent.moving, now;

	while (state_of(load_acquire(moving)) == AGENT_SOON)
		sched_yield();
	while (state_of(now = load_acquire(moving)) == AGENT_NOW) {
		bool moved = false;
		int n;

		if (syscall(SYS_poll, &p, 1, 1) != 1 || load_acquire(moving) != now)
			continue;
		n = userfault_read(p.fd, e, EVENTS);
		for (int i = 0; i < n; i++) {
			moved |= e[i].moved;
			if (!e[i].moved)
				span_add(&held, e[i].address);
		}
		/* The mover may be in its next move already. */
		if (moved)
			__atomic_compare_exchange_n(moving, &now, now - AGENT_NOW + AGENT_STILL,
						    false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
	}
	if (held.end)
		userfault_wake(p.fd, (void *)(uintptr_t)held.start, held.end - held.start);
}

static void *bell_main(void *arg)
{
	struct arena *a = arg;
	struct agent *g = &a->agent;

	library_thread_enter(a, "arena-bell", false);
	for (;;) {
		uint32_t word = load_acquire(&g->bell_word);

		if (load_acquire(&g->stop))
			return NULL;
		if (__atomic_exchange_n(&g->ring, 0, __ATOMIC_SEQ_CST))
			os_eventfd_ring(load_relaxed(&a->doorbell));
		if (__atomic_exchange_n(&g->wake, 0, __ATOMIC_SEQ_CST))
			userfault_wake(a->trap.fd, (void *)(uintptr_t)load_relaxed(&g->wake_base),
				       load_relaxed(&g->wake_size));
		read_move(a);
		os_futex_wait_private(&g->bell_word, word, 0);
	}
}

void client_ring(struct arena *a)
{
	if (!a->agent.running || library_thread_is_of(a)) {
		os_eventfd_ring(load_relaxed(&a->doorbell));
		return;
	}
	__atomic_store_n(&a->agent.ring, 1, __ATOMIC_SEQ_CST);
	change(&a->agent.bell_word);
}

void agent_wake_window(struct arena *a)
{
	store_relaxed(&a->agent.wake_base, a->tlb.base);
	store_relaxed(&a->agent.wake_size, a->tlb.size);
	__atomic_store_n(&a->agent.wake, 1, __ATOMIC_SEQ_CST);
	change(&a->agent.bell_word);
}

bool agent_can_move(const struct arena *a)
{
	return load_acquire(&a->agent.bell_running);
}

/* One mover at a time, which counts its moves. */
void agent_moving_soon(struct arena *a)
{
	uint32_t next =
		ALIGN_DOWN(load_relaxed(&a->agent.moving), AGENT_NR_STATES) + AGENT_NR_STATES;

	store_release(&a->agent.moving, next + AGENT_SOON);
	change(&a->agent.bell_word);
}

void agent_moving_now(struct arena *a)
{
	store_release(&a->agent.moving,
		      ALIGN_DOWN(load_relaxed(&a->agent.moving), AGENT_NR_STATES) + AGENT_NOW);
}

void agent_moved(struct arena *a)
{
	store_release(&a->agent.moving,
		      ALIGN_DOWN(load_relaxed(&a->agent.moving), AGENT_NR_STATES) + AGENT_STILL);
}

/* ---- the agent ---- */

struct start {
	struct arena *arena;
	const int *fds;
	unsigned nr;
	int r;
	uint32_t done;
};

/* So that descriptors that come in have no number with a meaning. */
static void occupy_low_numbers(void)
{
	long fd;

	do
		fd = syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
	while (fd >= 0 && fd < STDERR_FILENO);
	if (fd > STDERR_FILENO)
		syscall(SYS_close, fd);
}

static int make_table(const int *fds, unsigned nr)
{
	int sorted[AGENT_MAX_FDS + 1];
	unsigned n = 0;

#ifdef ARENA_DEBUG
	sorted[n++] = STDERR_FILENO; /* what checks and sanitizers have to say */
#endif
	for (unsigned i = 0; i < nr; i++) {
		unsigned at = n++;

		for (; at && sorted[at - 1] > fds[i]; at--)
			sorted[at] = sorted[at - 1];
		sorted[at] = fds[i];
	}
	return userfault_own_table(sorted, n);
}

static int make_bell(struct arena *a)
{
	int r = library_thread_start(&a->agent.bell_thread, bell_main, a);

	store_release(&a->agent.bell_running, r == 0);
	return r;
}

static void *agent_main(void *arg)
{
	struct start *s = arg;
	struct arena *a = s->arena;
	struct agent *g = &a->agent;
	int r;

	library_thread_enter(a, "arena-agent", false);
	r = make_table(s->fds, s->nr);
	if (r == 0) {
		occupy_low_numbers();
		r = make_bell(a);
	}
	s->r = r;
	store_release(&s->done, 1);
	os_futex_wake_private(&s->done, 1);
	while (r == 0) {
		uint32_t word = load_acquire(&g->word);

		jobs_do(a, &g->jobs);
		if (load_acquire(&g->stop))
			break;
		os_futex_wait_private(&g->word, word, 0);
	}
	return NULL;
}

int agent_start(struct arena *a, const int *fds, unsigned nr)
{
	struct start s = {.arena = a, .fds = fds, .nr = nr};
	int r;

	ASSERT(nr <= AGENT_MAX_FDS);
	r = library_thread_start(&a->agent.thread, agent_main, &s);
	if (r < 0)
		return r;
	while (!load_acquire(&s.done))
		os_futex_wait_private(&s.done, 0, 0);
	if (s.r < 0) {
		pthread_join(a->agent.thread, NULL);
		return s.r;
	}
	store_release(&a->agent.running, true);
	return 0;
}

void agent_stop(struct arena *a)
{
	struct agent *g = &a->agent;

	if (!g->running)
		return;
	store_release(&g->stop, 1);
	change(&g->bell_word);
	change(&g->word);
	if (g->bell_running)
		pthread_join(g->bell_thread, NULL);
	pthread_join(g->thread, NULL);
	store_release(&g->running, false);
}

void agent_forget(struct arena *a)
{
	a->agent = (struct agent){0};
}

void agent_run(struct arena *a, job_fn *fn, void *arg)
{
	struct job j = {.fn = fn, .arg = arg};

	if (!load_acquire(&a->agent.running) || library_thread_is_of(a)) {
		fn(a, arg);
		return;
	}
	job_add(&a->agent.jobs, &j);
	change(&a->agent.word);
	job_wait(&j);
}
