/* SPDX-License-Identifier: MIT */
/*
 * map.c - mmap and munmap in pairs: of memory that nobody touches, and with one page touched in between; against the
 * kernel's.
 *
 * 64 KiB, the smallest mapping that a program which knows nothing of arenad has from it, and 4 MiB, where the touch
 * brings a leaf. The kernel's hugepages are asked for there.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "bench/bench.h"

#define SECTION "map"

struct map {
	const char *socket; /* NULL: the kernel */
	uint64_t bytes;
	bool touch;
	unsigned msecs;
};

static void arena_pair(arena_t *a, const struct map *m, struct child_result *r)
{
	volatile char *p = arena_mmap(a, NULL, m->bytes, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		child_fail(r, "arena_mmap: %s", strerror(errno));
	if (m->touch)
		*p = 1;
	if (arena_munmap(a, (void *)(uintptr_t)p, m->bytes) < 0)
		child_fail(r, "arena_munmap: %s", strerror(errno));
}

static void kernel_pair(const struct map *m, struct child_result *r)
{
	volatile char *p =
		mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		child_fail(r, "mmap: %s", strerror(errno));
	if (m->touch && m->bytes >= BENCH_LEAF &&
	    madvise((void *)(uintptr_t)p, m->bytes, MADV_HUGEPAGE) < 0)
		child_fail(r, "madvise: %s", strerror(errno));
	if (m->touch)
		*p = 1;
	if (munmap((void *)(uintptr_t)p, m->bytes) < 0)
		child_fail(r, "munmap: %s", strerror(errno));
}

static void map_child(void *arg, struct child_result *r)
{
	const struct map *m = arg;
	arena_t *a = m->socket ? child_open(r, m->socket) : NULL;
	uint64_t start, now, pairs = 0;

	if (a)
		arena_pair(a, m, r);
	start = now = clock_now();
	while (now - start < m->msecs * NSEC_PER_MSEC) {
		for (unsigned i = 0; i < 16; i++, pairs++) {
			if (a)
				arena_pair(a, m, r);
			else
				kernel_pair(m, r);
		}
		now = clock_now();
	}
	r->value[0] = (double)(now - start) / (double)pairs / NSEC_PER_USEC;
	arena_close(a);
}

static const struct {
	uint64_t bytes;
	bool touch;
	const char *name[2], *text[2];
} rows[] = {
	{64 << 10,
	 false,
	 {"arena_64k", "kernel_64k"},
	 {"mmap and munmap of 64 KiB", "the kernel's"}},
	{64 << 10,
	 true,
	 {"arena_64k_touched", "kernel_64k_touched"},
	 {"mmap and munmap of 64 KiB, one page touched", "the kernel's"}},
	{4 << 20, false, {"arena_4m", "kernel_4m"}, {"mmap and munmap of 4 MiB", "the kernel's"}},
	{4 << 20,
	 true,
	 {"arena_4m_touched", "kernel_4m_touched"},
	 {"mmap and munmap of 4 MiB, one page touched", "the kernel's, MADV_HUGEPAGE"}},
};

void bench_map(const struct bench *b)
{
	struct daemon d;

	daemon_start(&d, b, 256 * BENCH_LEAF);
	for (unsigned i = 0; i < b->runs; i++) {
		say("map: run %u of %u", i + 1, b->runs);
		for (size_t k = 0; k < ARRAY_SIZE(rows); k++) {
			for (unsigned kernel = 0; kernel < 2; kernel++) {
				struct map m = {kernel ? NULL : d.socket, rows[k].bytes,
						rows[k].touch, b->alloc_msecs};
				struct child_result r;

				child_run(map_child, &m, &r);
				series_add(series_get(SECTION, rows[k].name[kernel], "us",
						      rows[k].text[kernel]),
					   r.value[0]);
			}
		}
	}
	daemon_stop(&d);
}
