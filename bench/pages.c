/* SPDX-License-Identifier: MIT */
/*
 * pages.c - arena_alloc_pages() and arena_free_pages() in pairs, against mmap and munmap of as much.
 *
 * Each pair writes once to each 4 KiB in between. Order 9 of the kernel is an aligned mapping with
 * MADV_HUGEPAGE at an address found beforehand. The kernel's pages come zeroed, so the arena is asked
 * for zeroed ones, too; without that flag a second series, as a kernel's own alloc_pages() gives them.
 * Two clients run at once and their rates are added.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/bench.h"

#define SECTION "pages"
#define CLIENTS_MAX 2

struct worker {
	const char *socket; /* NULL: the kernel */
	unsigned order, gfp;
	unsigned msecs;
};

static void touch_all(volatile char *p, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i += BENCH_PAGE)
		p[i] = 1;
}

static void arena_pair(arena_t *a, const struct worker *w, struct child_result *r)
{
	char *p = arena_alloc_pages(a, w->gfp, w->order);

	if (!p)
		child_fail(r, "arena_alloc_pages: %s", strerror(errno));
	touch_all(p, BENCH_PAGE << w->order);
	if (arena_free_pages(a, p, w->order) < 0)
		child_fail(r, "arena_free_pages: %s", strerror(errno));
}

/* An address where as much can be mapped aligned; nothing else of this process maps there. */
static char *find_place(uint64_t bytes, struct child_result *r)
{
	char *p = mmap(NULL, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		       0);

	if (p == MAP_FAILED || munmap(p, 2 * bytes) < 0)
		child_fail(r, "mmap: %s", strerror(errno));
	return (char *)ALIGN_UP((uintptr_t)p, bytes);
}

static void kernel_pair(char *place, const struct worker *w, struct child_result *r)
{
	uint64_t bytes = BENCH_PAGE << w->order;
	char *p = mmap(place, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	if (p == MAP_FAILED)
		child_fail(r, "mmap: %s", strerror(errno));
	if (bytes >= BENCH_LEAF && madvise(p, bytes, MADV_HUGEPAGE) < 0)
		child_fail(r, "madvise: %s", strerror(errno));
	touch_all(p, bytes);
	if (munmap(p, bytes) < 0)
		child_fail(r, "munmap: %s", strerror(errno));
}

static void worker_child(void *arg, struct child_result *r)
{
	const struct worker *w = arg;
	arena_t *a = w->socket ? child_open(r, w->socket) : NULL;
	char *place = a ? NULL : find_place(BENCH_PAGE << w->order, r);
	uint64_t start, now, pairs = 0;

	if (a)
		arena_pair(a, w, r);
	child_ready(r);
	start = now = clock_now();
	while (now - start < w->msecs * NSEC_PER_MSEC) {
		for (unsigned i = 0; i < 16; i++, pairs++) {
			if (a)
				arena_pair(a, w, r);
			else
				kernel_pair(place, w, r);
		}
		now = clock_now();
	}
	r->value[0] = (double)pairs * NSEC_PER_SEC / (double)(now - start);
}

static double rate(const struct bench *b, const char *socket, unsigned order, unsigned gfp,
		   unsigned clients)
{
	struct worker w = {socket, order, gfp, b->alloc_msecs};
	struct child c[CLIENTS_MAX];
	double sum = 0;

	for (unsigned i = 0; i < clients; i++)
		child_start(&c[i], worker_child, &w);
	for (unsigned i = 0; i < clients; i++)
		child_wait_ready(&c[i]);
	for (unsigned i = 0; i < clients; i++)
		child_go(&c[i]);
	for (unsigned i = 0; i < clients; i++) {
		struct child_result r;

		child_end(&c[i], &r);
		sum += r.value[0];
	}
	return sum;
}

static const struct {
	unsigned order, clients;
	const char *name[3], *text[3];
} rows[] = {
	{0,
	 1,
	 {"order0_1", "order0_1_dirty", "kernel0_1"},
	 {"order 0, one client, zeroed", "order 0, one client", "kernel 4 KiB, one process"}},
	{0,
	 2,
	 {"order0_2", "order0_2_dirty", "kernel0_2"},
	 {"order 0, two clients, zeroed", "order 0, two clients", "kernel 4 KiB, two processes"}},
	{9,
	 1,
	 {"order9_1", "order9_1_dirty", "kernel9_1"},
	 {"order 9, one client, zeroed", "order 9, one client", "kernel 2 MiB, one process"}},
	{9,
	 2,
	 {"order9_2", "order9_2_dirty", "kernel9_2"},
	 {"order 9, two clients, zeroed", "order 9, two clients", "kernel 2 MiB, two processes"}},
};

void bench_pages(const struct bench *b)
{
	struct daemon d;

	daemon_start(&d, b, 256 * BENCH_LEAF);
	for (unsigned i = 0; i < b->runs; i++) {
		say("pages: run %u of %u", i + 1, b->runs);
		for (size_t k = 0; k < ARRAY_SIZE(rows); k++) {
			for (unsigned j = 0; j < 3; j++) {
				unsigned gfp = ARENA_GFP_HIGHMEM | (j ? 0 : ARENA_GFP_ZERO);

				series_add(series_get(SECTION, rows[k].name[j], "pairs/s",
						      rows[k].text[j]),
					   rate(b, j < 2 ? d.socket : NULL, rows[k].order, gfp,
						rows[k].clients));
			}
		}
	}
	daemon_stop(&d);
}
