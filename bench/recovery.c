/* SPDX-License-Identifier: MIT */
/*
 * recovery.c - how long clients wait when the worker dies: from its kill to the end of the first fault
 * that another one serves, with a hundred clients that hold memory; and what a refill costs while
 * there is no worker at all.
 *
 * One client of the hundred measures: it kills the worker, waits until it is dead, and touches
 * memory that has no page yet. For the refill the supervisor is stopped first: the client's mappings
 * went with the whole flush that followed the recovery before, the page table has its entries.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/bench.h"

#define SECTION "recovery"
#define CLIENTS 100u
#define FRESH_PAGES 4096u
#define FRESH_STEP 521u /* no fault fills ahead that far, and the order meets every page */

/* Shared with the children. */
struct plan {
	char socket[96];
	uint64_t share; /* bytes that each client holds */
	pid_t worker;   /* that is to be killed; 0: that is dead */
	bool over;
};

struct client {
	arena_t *a;
	volatile char *held, *fresh;
	unsigned touched;
};

static volatile char *map(struct client *c, struct child_result *r, uint64_t bytes)
{
	char *p = arena_mmap(c->a, NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1, 0);

	if (p == MAP_FAILED)
		child_fail(r, "arena_mmap: %s", strerror(errno));
	return p;
}

static void hold(struct client *c, const struct plan *plan, struct child_result *r)
{
	c->a = child_open(r, plan->socket);
	c->held = map(c, r, plan->share);
	for (uint64_t i = 0; i < plan->share; i += BENCH_PAGE)
		c->held[i] = 1;
}

static void holder(void *arg, struct child_result *r)
{
	struct client c = {0};

	hold(&c, arg, r);
	child_ready(r);
	for (uint64_t i = 0; i < ((struct plan *)arg)->share; i += BENCH_PAGE)
		if (c.held[i] != 1)
			child_fail(r, "a byte was lost");
	arena_close(c.a);
}

static void kill_and_wait(pid_t pid, struct child_result *r)
{
	struct pollfd p = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};

	if (p.fd < 0 || kill(pid, SIGKILL) < 0)
		child_fail(r, "killing worker %d: %s", (int)pid, strerror(errno));
	if (poll(&p, 1, 10000) != 1)
		child_fail(r, "worker %d does not die", (int)pid);
	close(p.fd);
}

static double time_fault(struct client *c, struct plan *plan, struct child_result *r)
{
	uint64_t start = clock_now();

	kill_and_wait(plan->worker, r);
	c->fresh[c->touched++ * FRESH_STEP % FRESH_PAGES * BENCH_PAGE] = 1;
	return (double)(clock_now() - start) / NSEC_PER_MSEC;
}

static double time_refill(struct client *c, struct child_result *r)
{
	uint64_t start = clock_now();

	if (*c->held != 1)
		child_fail(r, "a byte was lost");
	return (double)(clock_now() - start) / NSEC_PER_USEC;
}

static void prober(void *arg, struct child_result *r)
{
	struct plan *plan = arg;
	struct client c = {0};

	hold(&c, plan, r);
	c.fresh = map(&c, r, FRESH_PAGES * BENCH_PAGE);
	if (arena_madvise(c.a, (void *)(uintptr_t)c.fresh, FRESH_PAGES * BENCH_PAGE,
			  MADV_NOHUGEPAGE) < 0)
		child_fail(r, "arena_madvise: %s", strerror(errno));
	for (;;) {
		child_ready(r);
		if (plan->over)
			break;
		if (plan->worker)
			r->value[0] = time_fault(&c, plan, r);
		else
			r->value[1] = time_refill(&c, r);
	}
	arena_close(c.a);
}

/* As far as the driver can see: another one, and it answers. */
static void await_next_worker(struct daemon *d)
{
	d->worker = (pid_t)daemon_status(d, "worker_pid");
}

static void kill_without_follower(struct daemon *d, struct child_result *r)
{
	kill(d->pid, SIGSTOP);
	kill_and_wait(d->worker, r);
}

/* What is held, and what that is called. */
struct size {
	uint64_t bytes;
	double limit; /* of the first fault, ms; 0: none */
	const char *name, *fault_key, *fault_text, *refill_key, *refill_text, *goal;
};

static const struct size sizes[] = {
	{CLIENTS * BENCH_LEAF, 0, "200 MiB", "first_fault_200m",
	 "kill to first served fault, 200 MiB held", "refill_200m",
	 "refill without a worker, a leaf", NULL},
	{BENCH_GIB, 100, "1 GiB", "first_fault_1g", "kill to first served fault, 1 GiB held",
	 "refill_1g", "refill without a worker, 6 leaves",
	 "kill to first served fault, 1 GiB and 100 clients: ms"},
	{8 * BENCH_GIB, 300, "8 GiB", "first_fault_8g", "kill to first served fault, 8 GiB held",
	 "refill_8g", "refill without a worker, 41 leaves",
	 "kill to first served fault, 8 GiB and 100 clients: ms"},
};

static struct series *fault_series(const struct size *size)
{
	return series_get(SECTION, size->fault_key, "ms", size->fault_text);
}

static void one_run(struct daemon *d, struct plan *plan, struct child *probe,
		    const struct size *size)
{
	struct child_result failed = {0};

	plan->worker = d->worker;
	child_step(probe);
	child_wait_ready(probe);
	series_add(fault_series(size), probe->r->value[0]);
	await_next_worker(d);

	kill_without_follower(d, &failed);
	plan->worker = 0;
	child_step(probe);
	child_wait_ready(probe);
	kill(d->pid, SIGCONT);
	series_add(series_get(SECTION, size->refill_key, "us", size->refill_text),
		   probe->r->value[1]);
	await_next_worker(d);
}

static void with_size(const struct bench *b, const struct size *size)
{
	struct child c[CLIENTS];
	struct plan *plan;
	struct daemon d;

	daemon_start(&d, b, size->bytes + size->bytes / 4 + BENCH_GIB / 4);
	plan = mmap(NULL, sizeof(*plan), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (plan == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	*plan = (struct plan){.share = ALIGN_UP(size->bytes / CLIENTS, BENCH_LEAF)};
	strcpy(plan->socket, d.socket);
	for (unsigned i = 0; i < CLIENTS; i++)
		child_start(&c[i], i ? holder : prober, plan);
	for (unsigned i = 0; i < CLIENTS; i++)
		child_wait_ready(&c[i]);
	for (unsigned i = 0; i < b->runs; i++) {
		say("recovery: %s, run %u of %u", size->name, i + 1, b->runs);
		one_run(&d, plan, &c[0], size);
	}
	plan->over = true;
	for (unsigned i = 0; i < CLIENTS; i++)
		child_end(&c[i], NULL);
	daemon_stop(&d);
	munmap(plan, sizeof(*plan));
	if (size->limit > 0)
		goal_at_most(SECTION, size->goal, series_median(fault_series(size)), size->limit);
}

void bench_recovery(const struct bench *b)
{
	if (b->quick) {
		with_size(b, &sizes[0]);
		return;
	}
	with_size(b, &sizes[1]);
	if (machine_memory("MemAvailable") > 11 * BENCH_GIB)
		with_size(b, &sizes[2]);
	else
		say("recovery: not enough memory for 8 GiB, left out");
}
