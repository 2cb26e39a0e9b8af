/* SPDX-License-Identifier: MIT */
/*
 * idle.c - an idle daemon does not poll: CPU time and wake-ups of all its threads while ten
 * clients that each touched memory do nothing, and the same of the clients.
 *
 * Only the host's /proc is read meanwhile; the daemon's own files would wake it.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/bench.h"

#define SECTION "idle"
#define CLIENTS 10

static void idle_child(void *arg, struct child_result *r)
{
	arena_t *a = child_open(r, arg);
	volatile char *p = arena_mmap(a, NULL, 2 * BENCH_LEAF, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		child_fail(r, "arena_mmap: %s", strerror(errno));
	for (uint64_t i = 0; i < 2 * BENCH_LEAF; i += BENCH_PAGE)
		p[i] = 1;
	child_ready(r);
	arena_close(a);
}

static void usage_of_all(const struct daemon *d, const struct child *c, struct usage out[2])
{
	process_usage(d->worker, &out[0]);
	out[1] = (struct usage){0};
	for (unsigned i = 0; i < CLIENTS; i++) {
		struct usage u;

		process_usage(c[i].pid, &u);
		out[1].cpu_ns += u.cpu_ns;
		out[1].wakeups += u.wakeups;
	}
}

static void watch(const struct bench *b, struct daemon *d, const struct child *c)
{
	struct timespec ts = {b->idle_msecs / 1000, b->idle_msecs % 1000 * (long)NSEC_PER_MSEC};
	double per10s = 10000.0 / b->idle_msecs;
	struct usage before[2], after[2];

	daemon_wait_zeroed(d, 0); /* kzerod has finished */
	usage_of_all(d, c, before);
	nanosleep(&ts, NULL); /* the time that is measured */
	usage_of_all(d, c, after);
	series_add(series_get(SECTION, "daemon_cpu", "us/10s", "daemon, CPU time"),
		   (double)(after[0].cpu_ns - before[0].cpu_ns) / NSEC_PER_USEC * per10s);
	series_add(series_get(SECTION, "daemon_wakeups", "/10s", "daemon, wake-ups"),
		   (double)(after[0].wakeups - before[0].wakeups) * per10s);
	series_add(series_get(SECTION, "clients_cpu", "us/10s", "ten clients, CPU time"),
		   (double)(after[1].cpu_ns - before[1].cpu_ns) / NSEC_PER_USEC * per10s);
	series_add(series_get(SECTION, "clients_wakeups", "/10s", "ten clients, wake-ups"),
		   (double)(after[1].wakeups - before[1].wakeups) * per10s);
}

void bench_idle(const struct bench *b)
{
	struct child c[CLIENTS];
	struct daemon d;

	daemon_start(&d, b, 0);
	for (unsigned i = 0; i < CLIENTS; i++)
		child_start(&c[i], idle_child, d.socket);
	for (unsigned i = 0; i < CLIENTS; i++)
		child_wait_ready(&c[i]);
	for (unsigned i = 0; i < b->runs; i++) {
		say("idle: run %u of %u", i + 1, b->runs);
		watch(b, &d, c);
	}
	for (unsigned i = 0; i < CLIENTS; i++)
		child_end(&c[i], NULL);
	daemon_stop(&d);
	goal_at_most(SECTION, "idle daemon: wake-ups in 10 s, after the last look at its files",
		     series_median(series_get(SECTION, "daemon_wakeups", "/10s", "")), 2);
}
