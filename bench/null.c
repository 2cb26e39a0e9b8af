/* SPDX-License-Identifier: MIT */
/*
 * null.c - what a call costs that does nothing, against two processes that only say hello.
 *
 *   cold   about 1 ms between calls, so that both sides sleep; peer: a futex each way
 *   hot    back to back; peer: two processes that spin on shared words
 *
 * The one side and the other are bound to CPUs in the same way for both: each to its own, and for
 * the cold calls also both to one. A value is the median of a run's calls.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/bench.h"

#define SECTION "null"
#define COLD_GAP_NS NSEC_PER_MSEC

struct words {
	_Alignas(64) uint32_t asked;
	_Alignas(64) uint32_t answered;
	_Alignas(64) uint32_t over;
};

struct caller {
	const char *socket; /* NULL: bare */
	arena_t *arena;
	struct words *words;
	int cpu;
	bool cold;
	unsigned calls;
};

static void wait_change(uint32_t *word, uint32_t old)
{
	while (load_acquire(word) == old)
		syscall(SYS_futex, word, FUTEX_WAIT, old, NULL, NULL, 0);
}

static void wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* The bare peer's other half. */
static void answer_child(void *arg, struct child_result *r)
{
	const struct caller *c = arg;
	uint32_t seen = 0;

	pin_self(c->cpu);
	child_ready(r);
	for (;;) {
		if (c->cold)
			wait_change(&c->words->asked, seen);
		while (load_acquire(&c->words->asked) == seen)
			__builtin_ia32_pause();
		seen = load_acquire(&c->words->asked);
		if (load_relaxed(&c->words->over))
			return;
		store_release(&c->words->answered, seen);
		if (c->cold)
			wake(&c->words->answered);
	}
}

static void call_bare(struct words *w, bool cold)
{
	uint32_t n = w->asked + 1;

	store_release(&w->asked, n);
	if (!cold) {
		while (load_acquire(&w->answered) != n)
			__builtin_ia32_pause();
		return;
	}
	wake(&w->asked);
	wait_change(&w->answered, n - 1);
}

static void call_once(const struct caller *c, struct child_result *r)
{
	if (!c->arena)
		call_bare(c->words, c->cold);
	else if (arena_null(c->arena) < 0)
		child_fail(r, "arena_null: %s", strerror(errno));
}

static void calling_child(void *arg, struct child_result *r)
{
	struct caller *c = arg;
	double *took = malloc(c->calls * sizeof(*took));
	struct timespec gap = {.tv_nsec = COLD_GAP_NS};

	if (!took)
		child_fail(r, "out of memory");
	pin_self(c->cpu);
	if (c->socket) {
		void *p;

		/* A call goes by a mailbox when there is an address space. */
		c->arena = child_open(r, c->socket);
		p = arena_mmap(c->arena, NULL, BENCH_PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			child_fail(r, "arena_mmap: %s", strerror(errno));
	}
	for (unsigned i = 0; i < c->calls / 10; i++)
		call_once(c, r);
	for (unsigned i = 0; i < c->calls; i++) {
		uint64_t start;

		if (c->cold)
			nanosleep(&gap, NULL);
		start = clock_now();
		call_once(c, r);
		took[i] = (double)(clock_now() - start);
	}
	r->value[0] = quantile(took, c->calls, 0.5);
}

static double arena_once(const struct bench *b, struct daemon *d, int cpu, bool cold)
{
	struct caller c = {
		.socket = d->socket,
		.cpu = b->cpu[0],
		.cold = cold,
		.calls = cold ? b->cold_calls : b->hot_calls,
	};
	struct child_result r;

	daemon_pin(d, cpu);
	child_run(calling_child, &c, &r);
	return r.value[0] / NSEC_PER_USEC;
}

static double bare_once(const struct bench *b, struct words *w, int cpu, bool cold)
{
	struct caller asks = {
		.words = w,
		.cpu = b->cpu[0],
		.cold = cold,
		.calls = cold ? b->cold_calls : b->hot_calls,
	};
	struct caller answers = asks;
	struct child_result r;
	struct child c;

	memset(w, 0, sizeof(*w));
	answers.cpu = cpu;
	child_start(&c, answer_child, &answers);
	child_wait_ready(&c);
	child_go(&c);
	child_run(calling_child, &asks, &r);
	store_relaxed(&w->over, 1);
	store_release(&w->asked, w->asked + 1);
	wake(&w->asked);
	child_end(&c, NULL);
	return r.value[0] / NSEC_PER_USEC;
}

struct pair {
	const char *name[2], *text[2], *goal;
	int cpu;
	bool cold;
	double limit;
};

static void measure_pair(const struct bench *b, struct daemon *d, struct words *w,
			 const struct pair *p)
{
	struct series *arena = series_get(SECTION, p->name[0], "us", p->text[0]);
	struct series *bare = series_get(SECTION, p->name[1], "us", p->text[1]);

	for (unsigned i = 0; i < b->runs; i++) {
		series_add(arena, arena_once(b, d, p->cpu, p->cold));
		series_add(bare, bare_once(b, w, p->cpu, p->cold));
	}
	goal_at_most(SECTION, p->goal, series_median(arena) / series_median(bare), p->limit);
}

void bench_null(const struct bench *b)
{
	const struct pair pairs[] = {
		{{"cold_other", "futex_other"},
		 {"arena, cold, two CPUs", "bare futex, cold, two CPUs"},
		 "null call, cold, two CPUs: times the bare futex round trip",
		 b->cpu[1],
		 true,
		 1.5},
		{{"cold_same", "futex_same"},
		 {"arena, cold, one CPU", "bare futex, cold, one CPU"},
		 "null call, cold, one CPU: times the bare futex round trip",
		 b->cpu[0],
		 true,
		 1.5},
		{{"hot", "spin"},
		 {"arena, hot, two CPUs", "bare spinning, two CPUs"},
		 "null call, hot: times the bare spinning round trip",
		 b->cpu[1],
		 false,
		 3},
	};
	struct words *w =
		mmap(NULL, sizeof(*w), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct daemon d;

	if (w == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	daemon_start(&d, b, 0);
	for (size_t i = 0; i < ARRAY_SIZE(pairs); i++) {
		say("null: %s", pairs[i].text[0]);
		if (pairs[i].cpu >= 0)
			measure_pair(b, &d, w, &pairs[i]);
		else
			say("null: left out, there is one CPU");
	}
	daemon_stop(&d);
	munmap(w, sizeof(*w));
}
