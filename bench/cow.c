/* SPDX-License-Identifier: MIT */
/*
 * cow.c - copies of 1 GiB that copy nothing yet: arena_snapshot() and fork(), against fork() of a process that has
 * as much of the kernel's memory, in 4 KiB pages and in hugepages; and what the first writes after them cost.
 *
 * A copy is the first of a fresh process, made of memory that is mapped and was written to. The first writes go to
 * pages in random order, in the original, while the copy lives; nothing but the write is in its time. After
 * them the copy must be what it was.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/bench.h"

#define SECTION "cow"

enum cow_kind { COW_SNAPSHOT, COW_FORK, COW_KERNEL_THP, COW_KERNEL_4K, COW_NR };

struct cow {
	enum cow_kind kind;
	const char *socket;
	uint64_t bytes;
	unsigned writes;
	const uint32_t *order; /* of all pages */
};

enum { COPY_NS, WRITE_P50, WRITE_P99, WRITE_MOST };

static volatile char *kernel_memory(const struct cow *c, struct child_result *r)
{
	char *p = mmap(NULL, c->bytes + BENCH_LEAF, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		child_fail(r, "mmap: %s", strerror(errno));
	p = (char *)ALIGN_UP((uintptr_t)p, BENCH_LEAF);
	if (madvise(p, c->bytes, c->kind == COW_KERNEL_THP ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) < 0)
		child_fail(r, "madvise: %s", strerror(errno));
	return p;
}

static volatile char *arena_memory(arena_t *a, const struct cow *c, struct child_result *r)
{
	char *p = arena_mmap(a, NULL, c->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1, 0);

	if (p == MAP_FAILED)
		child_fail(r, "arena_mmap: %s", strerror(errno));
	return p;
}

static void first_writes(const struct cow *c, volatile char *base, struct child_result *r)
{
	double *took = malloc(c->writes * sizeof(*took));
	uint64_t last, now;

	if (!took)
		child_fail(r, "out of memory");
	memset(took, 0, c->writes * sizeof(*took));
	last = clock_now();
	for (unsigned i = 0; i < c->writes; i++) {
		base[c->order[i] * BENCH_PAGE] = 2;
		now = clock_now();
		took[i] = (double)(now - last);
		last = now;
	}
	r->value[WRITE_P50] = quantile(took, c->writes, 0.5);
	r->value[WRITE_P99] = quantile(took, c->writes, 0.99);
	r->value[WRITE_MOST] = took[c->writes - 1];
	free(took);
}

/* Of the pages written to, the first differing one; -1: the copy is as it was. */
static int64_t differs(const struct cow *c, const volatile char *copy)
{
	for (unsigned i = 0; i < c->writes; i++)
		if (copy[c->order[i] * BENCH_PAGE] != 1)
			return c->order[i];
	return -1;
}

static void snapshot(arena_t *a, const struct cow *c, volatile char *base, struct child_result *r)
{
	uint64_t start = clock_now();
	char *copy = arena_snapshot(a, (void *)(uintptr_t)base, c->bytes);

	r->value[COPY_NS] = (double)(clock_now() - start);
	if (copy == MAP_FAILED)
		child_fail(r, "arena_snapshot: %s", strerror(errno));
	first_writes(c, base, r);
	if (differs(c, copy) >= 0)
		child_fail(r, "the snapshot changed at page %" PRIi64, differs(c, copy));
}

/* The child lives until all is written, and looks at what it has. */
static void forked(const struct cow *c, volatile char *base, struct child_result *r)
{
	int gate[2], status;
	uint64_t start;
	char byte;
	pid_t pid;

	if (pipe(gate) < 0)
		child_fail(r, "pipe: %s", strerror(errno));
	start = clock_now();
	pid = fork();
	if (pid == 0) {
		close(gate[1]);
		while (read(gate[0], &byte, 1) < 0 && errno == EINTR)
			;
		_exit(differs(c, base) >= 0);
	}
	r->value[COPY_NS] = (double)(clock_now() - start);
	if (pid < 0)
		child_fail(r, "fork: %s", strerror(errno));
	close(gate[0]);
	first_writes(c, base, r);
	close(gate[1]);
	if (waitpid(pid, &status, 0) != pid || status)
		child_fail(r, "the child did not see what was there at fork()");
}

static void cow_child(void *arg, struct child_result *r)
{
	const struct cow *c = arg;
	arena_t *a = c->kind <= COW_FORK ? child_open(r, c->socket) : NULL;
	volatile char *base = a ? arena_memory(a, c, r) : kernel_memory(c, r);
	/* Who has used its CPU up to now is made to wait by a scheduler with others to run. */
	struct timespec settle = {.tv_nsec = 5 * NSEC_PER_MSEC};

	for (uint64_t i = 0; i < c->bytes; i += BENCH_PAGE)
		base[i] = 1;
	nanosleep(&settle, NULL);
	if (c->kind == COW_SNAPSHOT)
		snapshot(a, c, base, r);
	else
		forked(c, base, r);
	arena_close(a);
}

/* ---- all ---- */

static const struct {
	const char *name, *text;
} kinds[COW_NR] = {
	[COW_SNAPSHOT] = {"snapshot", "arena_snapshot() of 1 GiB"},
	[COW_FORK] = {"client_fork", "fork() of a client with 1 GiB"},
	[COW_KERNEL_THP] = {"fork_thp", "fork() with 1 GiB of the kernel's, hugepages"},
	[COW_KERNEL_4K] = {"fork_4k", "fork() with 1 GiB of the kernel's, 4 KiB"},
};

static const struct {
	const char *suffix, *text;
} writes[] = {
	[WRITE_P50] = {"write_p50", "  first writes after it, median"},
	[WRITE_P99] = {"write_p99", "  first writes after it, 99th percentile"},
	[WRITE_MOST] = {"write_max", "  first writes after it, longest"},
};

static char write_names[COW_NR][WRITE_MOST + 1][40];

static void cow_once(const struct bench *b, struct cow *c, enum cow_kind kind)
{
	struct child_result r;

	c->kind = kind;
	child_run(cow_child, c, &r);
	series_add(series_get(SECTION, kinds[kind].name, "us", kinds[kind].text),
		   r.value[COPY_NS] / NSEC_PER_USEC * ((double)BENCH_GIB / (double)b->touch_bytes));
	for (unsigned i = WRITE_P50; i <= WRITE_MOST; i++) {
		char *name = write_names[kind][i];

		snprintf(name, sizeof(write_names[kind][i]), "%s_%s", kinds[kind].name,
			 writes[i].suffix);
		series_add(series_get(SECTION, name, "us", writes[i].text),
			   r.value[i] / NSEC_PER_USEC);
	}
}

static double median_of(enum cow_kind kind)
{
	return series_median(series_get(SECTION, kinds[kind].name, "us", ""));
}

void bench_cow(const struct bench *b)
{
	struct cow c = {.bytes = b->touch_bytes, .writes = b->quick ? 256 : 4096};
	uint64_t free_bytes;
	struct daemon d;

	daemon_start(&d, b, b->arena_bytes);
	c.socket = d.socket;
	free_bytes = daemon_status(&d, "free_bytes");
	for (unsigned i = 0; i < b->runs; i++) {
		uint32_t *order = permutation((uint32_t)(c.bytes / BENCH_PAGE), i + 1);

		say("cow: run %u of %u", i + 1, b->runs);
		c.order = order;
		for (unsigned kind = 0; kind < COW_NR; kind++) {
			cow_once(b, &c, kind);
			daemon_wait_free(&d, free_bytes);
		}
		free(order);
	}
	daemon_stop(&d);
	goal_at_least(SECTION, "snapshot of 1 GiB: times faster than fork() with 4 KiB pages",
		      median_of(COW_KERNEL_4K) / median_of(COW_SNAPSHOT), 100);
	goal_at_least(SECTION, "snapshot of 1 GiB: times faster than fork() with hugepages",
		      median_of(COW_KERNEL_THP) / median_of(COW_SNAPSHOT), 3);
}
