/* SPDX-License-Identifier: MIT */
/*
 * child.c - measurements run in processes of their own: what one left behind in page tables,
 * mappings and caches of the C library does not reach the next.
 *
 * A child dies with the driver. Results come back through a shared page.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/prng.h"
#include "bench/bench.h"

#define CHILD_SECONDS 120

/* In a child: its ends of the pipes. */
static int ready_end = -1, go_end = -1;

void child_fail(struct child_result *r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(r->error, sizeof(r->error), fmt, ap);
	va_end(ap);
	_exit(1);
}

static void child_main(child_fn *fn, void *arg, struct child_result *r, pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	alarm(CHILD_SECONDS);
	fn(arg, r);
	r->done = true;
	_exit(0);
}

void child_start(struct child *c, child_fn *fn, void *arg)
{
	pid_t parent = getpid();
	int ready[2], go[2];

	signal(SIGPIPE, SIG_IGN); /* a child that is dead needs no go */
	c->r = mmap(NULL, sizeof(*c->r), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (c->r == MAP_FAILED || pipe2(ready, O_CLOEXEC) < 0 || pipe2(go, O_CLOEXEC) < 0)
		die("starting a child: %s", strerror(errno));
	fflush(NULL);
	c->pid = fork();
	if (c->pid < 0)
		die("fork: %s", strerror(errno));
	if (!c->pid) {
		close(ready[0]);
		close(go[1]);
		ready_end = ready[1];
		go_end = go[0];
		child_main(fn, arg, c->r, parent);
	}
	close(ready[1]);
	close(go[0]);
	c->ready_fd = ready[0];
	c->go_fd = go[1];
}

void child_ready(struct child_result *r)
{
	char byte = 0;

	if (write(ready_end, &byte, 1) != 1)
		child_fail(r, "the driver is gone");
	while (read(go_end, &byte, 1) < 0 && errno == EINTR)
		;
}

void child_wait_ready(struct child *c)
{
	char byte;

	if (read(c->ready_fd, &byte, 1) == 1)
		return;
	child_end(c, NULL); /* dies with its reason */
	die("a child ended before it was ready");
}

void child_step(struct child *c)
{
	char byte = 0;

	while (write(c->go_fd, &byte, 1) < 0 && errno == EINTR)
		;
}

void child_go(struct child *c)
{
	if (c->go_fd < 0)
		return;
	/* Not by closing alone: children started later have the descriptor, too. */
	child_step(c);
	close(c->go_fd);
	c->go_fd = -1;
}

static int child_reap(struct child *c)
{
	int status;

	child_go(c); /* it may have been waiting for it */
	close(c->ready_fd);
	while (waitpid(c->pid, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid: %s", strerror(errno));
	return status;
}

void child_end(struct child *c, struct child_result *out)
{
	int status = child_reap(c);

	if (WIFSIGNALED(status))
		die("a measurement was ended by signal %d (%s)", WTERMSIG(status),
		    strsignal(WTERMSIG(status)));
	if (!c->r->done)
		die("a measurement failed: %s", c->r->error[0] ? c->r->error : "without a word");
	if (out)
		*out = *c->r;
	munmap(c->r, sizeof(*c->r));
}

void child_kill(struct child *c)
{
	kill(c->pid, SIGKILL);
	child_reap(c);
	munmap(c->r, sizeof(*c->r));
}

void child_run(child_fn *fn, void *arg, struct child_result *out)
{
	struct child c;

	child_start(&c, fn, arg);
	child_go(&c);
	child_end(&c, out);
}

/* ---- for children ---- */

void pin_self(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	if (cpu < 0)
		memset(&set, 0xff, sizeof(set));
	else
		CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0)
		die("sched_setaffinity: %s", strerror(errno));
}

enum arena_trap bench_trap = ARENA_TRAP_SIGNAL;

arena_t *child_open(struct child_result *r, const char *socket)
{
	return child_open_trap(r, socket, bench_trap);
}

arena_t *child_open_trap(struct child_result *r, const char *socket, enum arena_trap trap)
{
	struct arena_options options = {.size = sizeof(options), .socket = socket, .trap = trap};
	arena_t *a;

	if (arena_open(&options, &a) < 0)
		child_fail(r, "arena_open: %s", strerror(errno));
	return a;
}

static int by_size(const void *x, const void *y)
{
	double a = *(const double *)x, b = *(const double *)y;

	return (a > b) - (a < b);
}

double quantile(double *v, size_t n, double p)
{
	double at = p * (double)(n - 1);
	size_t i = (size_t)at;

	qsort(v, n, sizeof(*v), by_size);
	return i + 1 < n ? v[i] + (at - (double)i) * (v[i + 1] - v[i]) : v[i];
}

uint32_t *permutation(uint32_t n, uint64_t seed)
{
	struct prng rng = {seed};
	uint32_t *order = malloc(n * sizeof(*order));

	if (!order)
		die("out of memory");
	for (uint32_t i = 0; i < n; i++)
		order[i] = i;
	for (uint32_t i = n; i > 1; i--) {
		uint32_t j = (uint32_t)prng_below(&rng, i), swap = order[i - 1];

		order[i - 1] = order[j];
		order[j] = swap;
	}
	return order;
}
