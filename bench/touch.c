/* SPDX-License-Identifier: MIT */
/*
 * touch.c - first touch: one write to each 4 KiB of 1 GiB that was mapped and never touched.
 *
 *   ready      the arena with a full pool of zeroed blocks
 *   fresh      a daemon just started, zero_pool_kbytes = 0: frames that the host must still back
 *   recycled   the same daemon once more: frames that a dead client left dirty
 *   thp, 4k    anonymous memory of the kernel, MADV_HUGEPAGE and MADV_NOHUGEPAGE
 *   mapped     a memfd's hugepages, filled by another process and mapped with MAP_POPULATE before
 *              the time: what no way of getting memory can beat on this machine
 *
 * The time is that of the writes alone: mapping, connecting and ending are outside, for all.
 * A keeper, a client that touched one page and waits, has the domain and its pool live on.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/bench.h"

#define SECTION "touch"

struct touch {
	const char *socket; /* NULL: the kernel's memory */
	uint64_t bytes;
	int advice; /* 0: none */
	int fd;     /* of a filled memfd, 0: none */
};

static void *map_touch(const struct touch *t, struct child_result *r)
{
	char *p;

	if (t->fd) {
		p = mmap(NULL, t->bytes + BENCH_LEAF, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		p = (char *)ALIGN_UP((uintptr_t)p, BENCH_LEAF);
		p = mmap(p, t->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE,
			 t->fd, 0);
		if (p == MAP_FAILED)
			child_fail(r, "mmap: %s", strerror(errno));
		return p;
	}
	if (t->socket) {
		p = arena_mmap(child_open(r, t->socket), NULL, t->bytes, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			child_fail(r, "arena_mmap: %s", strerror(errno));
		return p;
	}
	p = mmap(NULL, t->bytes + BENCH_LEAF, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		child_fail(r, "mmap: %s", strerror(errno));
	p = (char *)ALIGN_UP((uintptr_t)p, BENCH_LEAF);
	if (madvise(p, t->bytes, t->advice) < 0)
		child_fail(r, "madvise: %s", strerror(errno));
	return p;
}

static void touch_child(void *arg, struct child_result *r)
{
	const struct touch *t = arg;
	volatile char *p = map_touch(t, r);
	uint64_t start = clock_now();

	for (uint64_t i = 0; i < t->bytes; i += BENCH_PAGE)
		p[i] = 1;
	r->value[0] = (double)(clock_now() - start);
	for (uint64_t i = 0; i < t->bytes; i += BENCH_PAGE)
		if (p[i] != 1 || p[i + 1] || p[i + BENCH_PAGE - 1])
			child_fail(r, "page %" PRIu64 " did not hold what it should", i);
}

static double touch_time(struct touch *t)
{
	struct child_result r;

	child_run(touch_child, t, &r);
	return r.value[0] / NSEC_PER_MSEC * ((double)BENCH_GIB / (double)t->bytes);
}

static double touch_once(const char *socket, uint64_t bytes, int advice)
{
	struct touch t = {.socket = socket, .bytes = bytes, .advice = advice};

	return touch_time(&t);
}

static void fill_child(void *arg, struct child_result *r)
{
	const struct touch *t = arg;
	char *p = mmap(NULL, t->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0);

	if (p == MAP_FAILED || madvise(p, t->bytes, MADV_HUGEPAGE) < 0)
		child_fail(r, "mmap: %s", strerror(errno));
	memset(p, 0, t->bytes);
}

static void mapped_runs(const struct bench *b, struct series *out)
{
	struct touch t = {.bytes = b->touch_bytes, .fd = memfd_create("bench", MFD_CLOEXEC)};
	struct child_result r;

	if (t.fd <= 0 || ftruncate(t.fd, (off_t)t.bytes) < 0)
		die("memfd: %s", strerror(errno));
	child_run(fill_child, &t, &r);
	for (unsigned i = 0; i < b->runs; i++)
		series_add(out, touch_time(&t));
	close(t.fd);
}

static void keeper_child(void *arg, struct child_result *r)
{
	const struct touch *t = arg;
	volatile char *p = map_touch(t, r);

	*p = 1;
	child_ready(r);
}

static void keeper_start(struct child *c, const char *socket)
{
	struct touch t = {.socket = socket, .bytes = BENCH_PAGE};

	child_start(c, keeper_child, &t);
	child_wait_ready(c);
}

static double ready_once(struct daemon *d, const struct bench *b)
{
	uint64_t cpu, pages, free = daemon_status(d, "free_bytes");
	uint64_t full = daemon_status(d, "zeroed_ready_bytes");
	uint64_t ready = daemon_status(d, "zeroed_ready");
	double ms, zeroing;

	cpu = daemon_status(d, "kzerod_cpu_ns");
	pages = daemon_status(d, "zeroed_background");
	ms = touch_once(d->socket, b->touch_bytes, 0);
	ready = (daemon_status(d, "zeroed_ready") - ready) * BENCH_PAGE;
	if (ready < b->touch_bytes)
		die("only %" PRIu64 " of %" PRIu64 " MiB were ready-zeroed", ready >> 20,
		    b->touch_bytes >> 20);
	daemon_wait_free(d, free);
	/* Blocks of 4 MiB may not fill it to the same byte. */
	daemon_wait_zeroed(d, MAX(b->touch_bytes, full - 4 * BENCH_LEAF));
	pages = daemon_status(d, "zeroed_background") - pages;
	if (!pages)
		die("nothing was zeroed in the background");
	zeroing = (double)(daemon_status(d, "kzerod_cpu_ns") - cpu) / (double)pages;
	series_add(series_get(SECTION, "zeroing_cpu", "ms/GiB", "CPU time of background zeroing"),
		   zeroing * (double)(BENCH_GIB / BENCH_PAGE) / NSEC_PER_MSEC);
	return ms;
}

/* A daemon whose pool never filled. */
static void unready_once(const struct bench *b, struct series *fresh, struct series *recycled)
{
	struct daemon d;
	struct child keeper;
	uint64_t free;

	daemon_start(&d, b, b->arena_bytes);
	if (arena_attr_write(d.monitor, "sys/kernel/mm/arena/zero_pool_kbytes", "0") < 0)
		die("zero_pool_kbytes: %s", strerror(errno));
	keeper_start(&keeper, d.socket);
	if (daemon_status(&d, "zeroed_background"))
		die("the pool is off and something was zeroed in the background");
	free = daemon_status(&d, "free_bytes");
	series_add(fresh, touch_once(d.socket, b->touch_bytes, 0));
	daemon_wait_free(&d, free);
	series_add(recycled, touch_once(d.socket, b->touch_bytes, 0));
	child_go(&keeper);
	child_end(&keeper, NULL);
	daemon_stop(&d);
}

/*
 * In a virtual machine, memory that was never used costs the host a fault of its own. As much as
 * will be used is used once before anything counts.
 */
static void warm_up(const struct bench *b)
{
	say("touch: warming up");
	touch_once(NULL, 6 * b->touch_bytes, MADV_HUGEPAGE);
}

static void touch_goals(const struct series *ready, const struct series *fresh,
			const struct series *thp, const struct series *thp_again)
{
	goal_at_least(SECTION, "first touch, ready-zeroed: times the kernel's hugepage speed",
		      series_median(thp) / series_median(ready), 8);
	goal_at_least(SECTION, "first touch, not zeroed: times the kernel's hugepage speed",
		      series_median(thp_again) / series_median(fresh), 0.9);
}

void bench_touch(const struct bench *b)
{
	struct series *ready = series_get(SECTION, "arena_ready", "ms/GiB", "arena, ready-zeroed");
	struct series *fresh = series_get(SECTION, "arena_fresh", "ms/GiB", "arena, not zeroed");
	struct series *recycled =
		series_get(SECTION, "arena_recycled", "ms/GiB", "arena, dirty from another client");
	struct series *thp = series_get(SECTION, "kernel_thp", "ms/GiB", "kernel, MADV_HUGEPAGE");
	struct series *thp_again = series_get(SECTION, "kernel_thp_again", "ms/GiB",
					      "kernel, MADV_HUGEPAGE, beside not zeroed");
	struct series *mapped =
		series_get(SECTION, "mapped_before", "ms/GiB", "mapped before, only the writes");
	struct series *small = series_get(SECTION, "kernel_4k", "ms/GiB", "kernel, 4 KiB");
	struct child keeper;
	struct daemon d;

	warm_up(b);
	say("touch: waiting for a full pool");
	daemon_start(&d, b, b->arena_bytes);
	keeper_start(&keeper, d.socket);
	daemon_wait_zeroed(&d, b->touch_bytes);
	/* Its two sides turn by turn and close together: a host that lends its memory takes idle
	 * pages back, and neither side should wait longer than the other. */
	for (unsigned i = 0; i < b->runs; i++) {
		say("touch: ready and kernel, run %u of %u", i + 1, b->runs);
		series_add(ready, ready_once(&d, b));
		series_add(thp, touch_once(NULL, b->touch_bytes, MADV_HUGEPAGE));
	}
	say("touch: mapped before");
	mapped_runs(b, mapped);
	for (unsigned i = 0; i < b->runs; i++) {
		say("touch: not ready and kernel, run %u of %u", i + 1, b->runs);
		unready_once(b, fresh, recycled);
		series_add(thp_again, touch_once(NULL, b->touch_bytes, MADV_HUGEPAGE));
	}
	/* Last, because it leaves the host's memory in small pieces. */
	for (unsigned i = 0; i < b->runs; i++)
		series_add(small, touch_once(NULL, b->touch_bytes, MADV_NOHUGEPAGE));
	child_go(&keeper);
	child_end(&keeper, NULL);
	daemon_stop(&d);
	touch_goals(ready, fresh, thp, thp_again);
}
