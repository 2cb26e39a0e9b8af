/* SPDX-License-Identifier: MIT */
/*
 * uffd.c - the userfaultfd trap: what a miss costs with it, against a thread that does no more than such a
 * trap must, and against the signal trap.
 *
 * The same touches as in grain.c. The bare thread reads an event, maps one page of a memfd over the
 * place, and wakes who waits: what any trap does that maps frames where they are needed. It sleeps until
 * there is an event, or looks for them all the time; the quicker one counts. UFFDIO_CONTINUE, which cannot
 * map another frame than the one at the place, is shown beside it.
 *
 * Beside that, refills of 2 MiB leaves in random order, and forks of a client.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include "base/clock.h"
#include "base/userfault.h"
#include "bench/grain.h"

#define SECTION "uffd"
#define LEAVES 128u
#define FORKS 40u
#define FORK_BYTES (UINT64_C(64) << 20)

/* ---- the floor ---- */

enum floor_kind { FLOOR_SLEEPS, FLOOR_LOOKS, FLOOR_CONTINUES, FLOOR_NR };

static struct {
	const struct grain *grain;
	enum floor_kind kind;
	char *base;
	uint32_t *place; /* of each page in the file */
	int uffd, fd;
	struct child_result *r;
} bare;

static void resolve(uint64_t address)
{
	char *p = (char *)(uintptr_t)address;
	uint64_t page = (uint64_t)(p - bare.base) / BENCH_PAGE;
	struct uffdio_continue arg = {.range = {.start = address, .len = BENCH_PAGE}};

	if (bare.kind == FLOOR_CONTINUES) {
		if (ioctl(bare.uffd, UFFDIO_CONTINUE, &arg) < 0 && errno != EEXIST)
			child_fail(bare.r, "UFFDIO_CONTINUE: %s", strerror(errno));
		return;
	}
	if (mmap(p, BENCH_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE,
		 bare.fd, (off_t)(bare.place[page] * BENCH_PAGE)) == MAP_FAILED)
		child_fail(bare.r, "mmap: %s", strerror(errno));
	userfault_wake(bare.uffd, p, BENCH_PAGE);
}

static void *bare_thread(void *arg)
{
	struct userfault_event e[16];
	struct pollfd p = {.fd = bare.uffd, .events = POLLIN};

	(void)arg;
	for (;;) {
		int n = userfault_read(bare.uffd, e, ARRAY_SIZE(e));

		for (int i = 0; i < n; i++)
			resolve(e[i].address);
		if (n == 0 && bare.kind != FLOOR_LOOKS)
			poll(&p, 1, -1);
		else if (n == 0)
			__builtin_ia32_pause();
	}
	return NULL;
}

static void floor_child(void *arg, struct child_result *r)
{
	const struct grain *g = arg;
	uint64_t bytes = g->pages * BENCH_PAGE;
	bool own = bare.kind != FLOOR_CONTINUES;
	pthread_t thread;

	bare.grain = g;
	bare.r = r;
	bare.uffd = userfault_open(-1);
	bare.fd = memfd_create("floor", MFD_CLOEXEC);
	bare.place = malloc(g->pages * sizeof(*bare.place));
	if (bare.uffd < 0 || bare.fd < 0 || !bare.place ||
	    fallocate(bare.fd, 0, 0, (off_t)bytes) < 0)
		child_fail(r, "a userfaultfd and a memfd for the floor: %s", strerror(errno));
	for (unsigned i = 0; i < g->pages; i++)
		bare.place[g->order[i]] = i;
	bare.base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_NORESERVE | (own ? MAP_ANONYMOUS : 0), own ? -1 : bare.fd,
			 0);
	if (bare.base == MAP_FAILED || userfault_register(bare.uffd, bare.base, bytes, false) < 0 ||
	    pthread_create(&thread, NULL, bare_thread, NULL))
		child_fail(r, "a trap for the floor: %s", strerror(errno));
	grain_round(g, bare.base, r, 0);
	grain_check(g, bare.base, 1, r);
}

static const struct {
	const char *name, *text;
} floors[FLOOR_NR] = {
	[FLOOR_SLEEPS] = {"floor_sleeps", "bare userfaultfd thread + mmap, sleeps between"},
	[FLOOR_LOOKS] = {"floor_looks", "bare userfaultfd thread + mmap, never sleeps"},
	[FLOOR_CONTINUES] = {"floor_continue", "bare userfaultfd thread + UFFDIO_CONTINUE"},
};

static struct series *floor_series(enum floor_kind kind)
{
	return series_get(SECTION, floors[kind].name, "us", floors[kind].text);
}

static void floor_once(const struct grain *g, enum floor_kind kind)
{
	struct child_result r;

	bare.kind = kind;
	child_run(floor_child, (void *)(uintptr_t)g, &r);
	series_add(floor_series(kind), r.value[0] / NSEC_PER_USEC);
}

/* ---- leaves, and forks ---- */

static void leaves_child(void *arg, struct child_result *r)
{
	const struct grain *g = arg;
	arena_t *a = child_open_trap(r, g->socket, g->trap);
	uint64_t bytes = LEAVES * BENCH_LEAF, start;
	uint32_t *order = permutation(LEAVES, 1);
	volatile char *p = arena_mmap(a, NULL, bytes, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || arena_populate(a, (void *)(uintptr_t)p, bytes, 1) < 0)
		child_fail(r, "memory for leaves: %s", strerror(errno));
	for (unsigned i = 0; i < LEAVES; i++) {
		void *leaf = (void *)(uintptr_t)(p + order[i] * BENCH_LEAF);

		p[order[i] * BENCH_LEAF] = 1;
		if (arena_mprotect(a, leaf, BENCH_LEAF, PROT_NONE) < 0 ||
		    arena_mprotect(a, leaf, BENCH_LEAF, PROT_READ | PROT_WRITE) < 0)
			child_fail(r, "arena_mprotect: %s", strerror(errno));
		start = clock_now();
		p[order[i] * BENCH_LEAF]++;
		r->value[0] += (double)(clock_now() - start) / LEAVES;
		if (p[order[i] * BENCH_LEAF] != 2)
			child_fail(r, "leaf %u lost what was written", i);
	}
	arena_close(a);
}

static void forks_child(void *arg, struct child_result *r)
{
	const struct grain *g = arg;
	arena_t *a = child_open_trap(r, g->socket, g->trap);
	char *p = arena_mmap(a, NULL, FORK_BYTES, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		child_fail(r, "arena_mmap: %s", strerror(errno));
	memset(p, 1, FORK_BYTES);
	for (unsigned i = 0; i < FORKS; i++) {
		uint64_t start = clock_now();
		pid_t pid = fork();
		int status;

		if (pid == 0)
			_exit(p[i * BENCH_LEAF % FORK_BYTES] != 1);
		r->value[0] += (double)(clock_now() - start) / FORKS;
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			child_fail(r, "a child that does not see the memory");
		r->value[1] += (double)(clock_now() - start) / FORKS;
	}
	arena_close(a);
}

/* ---- all ---- */

static const struct {
	enum arena_trap trap;
	const char *refill, *fault, *leaf, *fork, *child;
	const char *refill_text, *fault_text, *leaf_text, *fork_text, *child_text;
} traps[] = {
	{ARENA_TRAP_USERFAULTFD, "refill", "fault", "leaf", "fork", "child",
	 "userfaultfd trap, refill of 4 KiB", "userfaultfd trap, full fault of 4 KiB",
	 "userfaultfd trap, refill of a 2 MiB leaf", "userfaultfd trap, fork() of 64 MiB",
	 "the same until the child has read and ended"},
	{ARENA_TRAP_SIGNAL, "signal_refill", "signal_fault", "signal_leaf", "signal_fork",
	 "signal_child", "signal trap, refill of 4 KiB", "signal trap, full fault of 4 KiB",
	 "signal trap, refill of a 2 MiB leaf", "signal trap, fork() of 64 MiB",
	 "the same until the child has read and ended"},
};

static void trap_once(struct grain *g, size_t i)
{
	struct child_result r;
	double value[4];

	g->trap = traps[i].trap;
	grain_arena(g, value);
	series_add(series_get(SECTION, traps[i].refill, "us", traps[i].refill_text),
		   value[GRAIN_REFILL] / NSEC_PER_USEC);
	series_add(series_get(SECTION, traps[i].fault, "us", traps[i].fault_text),
		   value[GRAIN_FAULT] / NSEC_PER_USEC);
	child_run(leaves_child, g, &r);
	series_add(series_get(SECTION, traps[i].leaf, "us", traps[i].leaf_text),
		   r.value[0] / NSEC_PER_USEC);
	child_run(forks_child, g, &r);
	series_add(series_get(SECTION, traps[i].fork, "us", traps[i].fork_text),
		   r.value[0] / NSEC_PER_USEC);
	series_add(series_get(SECTION, traps[i].child, "us", traps[i].child_text),
		   r.value[1] / NSEC_PER_USEC);
}

static double median_of(const char *name)
{
	return series_median(series_get(SECTION, name, "us", ""));
}

void bench_uffd(const struct bench *b)
{
	struct daemon d;
	int fd = userfault_open(-1);

	if (fd < 0) {
		say("uffd: not permitted here: %s", strerror(-fd));
		return;
	}
	close(fd);
	daemon_start(&d, b,
		     MAX((uint64_t)b->grain_pages * BENCH_PAGE * 8, 4 * LEAVES * BENCH_LEAF));
	for (unsigned i = 0; i < b->runs; i++) {
		struct grain g = {.socket = d.socket, .pages = b->grain_pages};
		uint32_t *order = permutation(b->grain_pages, i + 1);

		say("uffd: run %u of %u", i + 1, b->runs);
		g.order = order;
		for (size_t t = 0; t < ARRAY_SIZE(traps); t++)
			trap_once(&g, t);
		for (unsigned kind = 0; kind < FLOOR_NR; kind++)
			floor_once(&g, kind);
		free(order);
	}
	daemon_stop(&d);
	goal_at_most(SECTION, "userfaultfd trap, 4 KiB refill: times a bare userfaultfd thread",
		     median_of("refill") / MIN(median_of("floor_sleeps"), median_of("floor_looks")),
		     1.5);
}
