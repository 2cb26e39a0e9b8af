/* SPDX-License-Identifier: MIT */
/*
 * grain.c - 4 KiB grain: what one miss costs when nothing can be mapped ahead.
 *
 * The pages are touched in random order, and their frames lie in the order of the first touch, so
 * that no two neighbours can be mapped by one call. The first round are full faults: the entry is
 * absent. Then the whole mapping loses its rights and gets them back: the kernel mappings are
 * flushed, the entries stay present, and the second round are refills.
 *
 * The floor is what any such trap must do: take a SIGSEGV, map one page of a memfd, touch it. The
 * memfd has its memory, and pages lie in it in the order of the touches, as the arena's do. With and
 * without MAP_POPULATE; the quicker one counts.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/grain.h"

#define SECTION "grain"

void grain_round(const struct grain *g, volatile char *base, struct child_result *r, unsigned value)
{
	double *took = malloc(g->pages * sizeof(*took));
	uint64_t start = clock_now(), last = start, now;

	if (!took)
		child_fail(r, "out of memory");
	for (unsigned i = 0; i < g->pages; i++) {
		took[i] = 0; /* its memory is there before it counts */
		base[g->order[i] * BENCH_PAGE]++;
		now = clock_now();
		took[i] = (double)(now - last);
		last = now;
	}
	r->value[value] = (double)(last - start) / g->pages;
	r->value[value + 1] = quantile(took, g->pages, 0.99);
	free(took);
}

void grain_check(const struct grain *g, const volatile char *base, char expected,
		 struct child_result *r)
{
	for (unsigned i = 0; i < g->pages; i++)
		if (base[i * BENCH_PAGE] != expected)
			child_fail(r, "page %u lost what was written", i);
}

static void drop_mappings(arena_t *a, char *base, uint64_t bytes, struct child_result *r)
{
	if (arena_mprotect(a, base, bytes, PROT_NONE) < 0 ||
	    arena_mprotect(a, base, bytes, PROT_READ | PROT_WRITE) < 0)
		child_fail(r, "arena_mprotect: %s", strerror(errno));
}

static void arena_child(void *arg, struct child_result *r)
{
	const struct grain *g = arg;
	arena_t *a = child_open_trap(r, g->socket, g->trap);
	uint64_t bytes = g->pages * BENCH_PAGE, faults, refills;
	char *base = arena_mmap(a, NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				-1, 0);

	if (base == MAP_FAILED)
		child_fail(r, "arena_mmap: %s", strerror(errno));
	if (arena_madvise(a, base, bytes, MADV_NOHUGEPAGE) < 0)
		child_fail(r, "arena_madvise: %s", strerror(errno));
	grain_round(g, base, r, 0);
	drop_mappings(a, base, bytes, r);
	faults = status_number(a, "faults");
	refills = status_number(a, "refills");
	grain_round(g, base, r, 2);
	r->value[4] = (double)(status_number(a, "faults") - faults) / g->pages;
	r->value[5] = (double)(status_number(a, "refills") - refills) / g->pages;
	grain_check(g, base, 2, r);
	arena_close(a);
}

/* ---- the floor ---- */

static struct {
	char *base;
	uint32_t *place; /* of each page in the file */
	int fd, flags;
} bare;

static void bare_trap(int sig, siginfo_t *info, void *context)
{
	uint64_t page = (uint64_t)((char *)info->si_addr - bare.base) / BENCH_PAGE;

	(void)sig, (void)context;
	if (mmap(bare.base + page * BENCH_PAGE, BENCH_PAGE, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED | bare.flags, bare.fd,
		 (off_t)(bare.place[page] * BENCH_PAGE)) == MAP_FAILED)
		_exit(3);
}

static void floor_child(void *arg, struct child_result *r)
{
	const struct grain *g = arg;
	uint64_t bytes = g->pages * BENCH_PAGE;
	struct sigaction sa = {.sa_sigaction = bare_trap, .sa_flags = SA_SIGINFO};

	bare.fd = memfd_create("floor", MFD_CLOEXEC);
	bare.flags = g->flags;
	bare.place = malloc(g->pages * sizeof(*bare.place));
	if (bare.fd < 0 || !bare.place || fallocate(bare.fd, 0, 0, (off_t)bytes) < 0)
		child_fail(r, "a memfd for the floor: %s", strerror(errno));
	for (unsigned i = 0; i < g->pages; i++)
		bare.place[g->order[i]] = i;
	bare.base =
		mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (bare.base == MAP_FAILED || sigaction(SIGSEGV, &sa, NULL) < 0)
		child_fail(r, "a trap for the floor: %s", strerror(errno));
	grain_round(g, bare.base, r, 0);
	grain_check(g, bare.base, 1, r);
}

static void floor_once(struct grain *g, int flags, struct series *s)
{
	struct child_result r;

	g->flags = flags;
	child_run(floor_child, g, &r);
	series_add(s, r.value[0] / NSEC_PER_USEC);
}

/* ---- both ---- */

void grain_arena(const struct grain *g, double value[4])
{
	struct child_result r;

	child_run(arena_child, (void *)(uintptr_t)g, &r);
	if (r.value[4] > 0.01 || r.value[5] < 0.9)
		die("grain: of each page's second touch %.2f faults and %.2f refills: these are "
		    "not refills of single pages",
		    r.value[4], r.value[5]);
	memcpy(value, r.value, 4 * sizeof(*value));
}

static void arena_once(const struct grain *g, struct series *refill, struct series *fault)
{
	double value[4];

	grain_arena(g, value);
	series_add(fault, value[GRAIN_FAULT] / NSEC_PER_USEC);
	series_add(series_get(SECTION, "fault_p99", "us", "arena, full fault, 99th percentile"),
		   value[GRAIN_FAULT_P99] / NSEC_PER_USEC);
	series_add(refill, value[GRAIN_REFILL] / NSEC_PER_USEC);
	series_add(series_get(SECTION, "refill_p99", "us", "arena, refill, 99th percentile"),
		   value[GRAIN_REFILL_P99] / NSEC_PER_USEC);
}

void bench_grain(const struct bench *b)
{
	struct series *refill = series_get(SECTION, "refill", "us", "arena, refill");
	struct series *plain = series_get(SECTION, "floor", "us", "bare SIGSEGV + mmap + touch");
	struct series *populate = series_get(SECTION, "floor_populate", "us",
					     "bare SIGSEGV + mmap MAP_POPULATE + touch");
	struct series *fault = series_get(SECTION, "fault", "us", "arena, full fault");
	struct daemon d;
	double floor;

	daemon_start(&d, b, (uint64_t)b->grain_pages * BENCH_PAGE * 8);
	for (unsigned i = 0; i < b->runs; i++) {
		struct grain g = {.socket = d.socket, .pages = b->grain_pages, .trap = bench_trap};
		uint32_t *order = permutation(b->grain_pages, i + 1);

		say("grain: run %u of %u", i + 1, b->runs);
		g.order = order;
		arena_once(&g, refill, fault);
		floor_once(&g, 0, plain);
		floor_once(&g, MAP_POPULATE, populate);
		free(order);
	}
	daemon_stop(&d);
	floor = MIN(series_median(plain), series_median(populate));
	goal_at_most(SECTION, "4 KiB refill: times the bare floor", series_median(refill) / floor,
		     1.5);
}
