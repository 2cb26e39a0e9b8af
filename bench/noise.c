/* SPDX-License-Identifier: MIT */
/*
 * noise.c - a client's faults beside bad neighbours: 99th percentile of 4 KiB faults in random order.
 *
 *   alone     nobody else
 *   stopped   a client that was stopped (SIGSTOP) with memory in use
 *   busy      a process that only burns CPU: what the next one takes without the daemon's part in it
 *   garbage   a client that writes random bytes all over its mailboxes, marks them pending and rings,
 *             as fast as it can, also after it was thrown out
 *   returning the same, which connects again and again; no goal: connecting is work that is served
 *
 * The garbage client finds its channel and its doorbell where any program can: in its own
 * /proc/self.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arena/abi.h"
#include "base/clock.h"
#include "base/prng.h"
#include "bench/bench.h"

#define SECTION "noise"

struct victim {
	const char *socket;
	const uint32_t *order;
	unsigned pages;
};

static void victim_child(void *arg, struct child_result *r)
{
	const struct victim *v = arg;
	arena_t *a = child_open(r, v->socket);
	uint64_t bytes = v->pages * BENCH_PAGE, last, now;
	double *took = malloc(v->pages * sizeof(*took));
	volatile char *p = arena_mmap(a, NULL, bytes, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || !took || arena_madvise(a, (char *)p, bytes, MADV_NOHUGEPAGE) < 0)
		child_fail(r, "memory for the victim: %s", strerror(errno));
	memset(took, 0, v->pages * sizeof(*took));
	last = clock_now();
	for (unsigned i = 0; i < v->pages; i++) {
		p[v->order[i] * BENCH_PAGE] = 1;
		now = clock_now();
		took[i] = (double)(now - last);
		last = now;
	}
	r->value[0] = quantile(took, v->pages, 0.5);
	r->value[1] = quantile(took, v->pages, 0.99);
	arena_close(a);
}

/* ---- the neighbours ---- */

static arena_t *connect_and_map(struct child_result *r, const char *socket, bool must)
{
	struct arena_options options = {
		.size = sizeof(options), .socket = socket, .trap = ARENA_TRAP_SIGNAL};
	arena_t *a;

	if (arena_open(&options, &a) < 0) {
		if (must)
			child_fail(r, "arena_open: %s", strerror(errno));
		return NULL;
	}
	if (arena_mmap(a, NULL, BENCH_LEAF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0) != MAP_FAILED)
		return a;
	if (must)
		child_fail(r, "arena_mmap: %s", strerror(errno));
	arena_close(a);
	return NULL;
}

static void stopped_child(void *arg, struct child_result *r)
{
	arena_t *a = child_open(r, arg);
	volatile char *p = arena_mmap(a, NULL, BENCH_LEAF, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		child_fail(r, "arena_mmap: %s", strerror(errno));
	*p = 1;
	child_ready(r);
}

static void busy_child(void *arg, struct child_result *r)
{
	(void)arg;
	child_ready(r);
	for (;;)
		__builtin_ia32_pause();
}

static char *find_channel(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned long start = 0, at;
	char line[512];

	while (f && fgets(line, sizeof(line), f))
		if (strstr(line, "/memfd:channel") && sscanf(line, "%lx-", &at) == 1)
			start = at; /* the last one is the youngest if old ones are left */
	if (f)
		fclose(f);
	return start ? (char *)start : NULL;
}

static int find_doorbell(void)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *e;
	int fd = -1;

	while (dir && (e = readdir(dir))) {
		char target[64];
		ssize_t n = readlinkat(dirfd(dir), e->d_name, target, sizeof(target) - 1);

		if (n > 0 && !strncmp(target, "anon_inode:[eventfd]", (size_t)n))
			fd = (int)strtol(e->d_name, NULL, 10);
	}
	if (dir)
		closedir(dir);
	return fd;
}

static void scribble(char *channel, int doorbell, struct prng *rng)
{
	uint64_t *mailboxes = (uint64_t *)(void *)(channel + ARENA_CHANNEL_MAILBOXES), one = 1;
	struct arena_channel_header *header = (struct arena_channel_header *)(void *)channel;

	for (unsigned i = 0; i < ARENA_NR_MAILBOXES * ARENA_MAILBOX_SIZE / sizeof(uint64_t); i++)
		store_relaxed(&mailboxes[i], prng_next(rng));
	store_release(&header->pending, prng_next(rng));
	if (write(doorbell, &one, sizeof(one)) < 0 && errno != EAGAIN)
		_exit(3);
}

/* Until it is thrown out and, as far as it can tell, for ever. */
static void garbage_child(void *arg, struct child_result *r)
{
	arena_t *a = connect_and_map(r, arg, true);
	char *channel = find_channel();
	int doorbell = find_doorbell();
	struct prng rng = {42};

	if (!a || !channel || doorbell < 0)
		child_fail(r, "no channel or no doorbell found");
	child_ready(r);
	for (;;)
		scribble(channel, doorbell, &rng);
}

/* Without touching anything: frames of a client that was thrown out stay while its process lives. */
static void returning_child(void *arg, struct child_result *r)
{
	struct prng rng = {43};

	child_ready(r);
	for (;;) {
		arena_t *a = connect_and_map(r, arg, false);
		char *channel = a ? find_channel() : NULL;
		int doorbell = a ? find_doorbell() : -1;

		for (unsigned i = 0; channel && doorbell >= 0 && i < 10; i++)
			scribble(channel, doorbell, &rng);
		arena_close(a);
	}
}

/* ---- the comparison ---- */

static void with_neighbour(const struct bench *b, struct daemon *d, const char *name,
			   const char *text, child_fn *neighbour, const uint32_t *order)
{
	struct victim v = {d->socket, order, b->noise_pages};
	struct child_result r;
	struct child c;

	if (neighbour) {
		child_start(&c, neighbour, d->socket);
		child_wait_ready(&c);
		if (neighbour == stopped_child)
			kill(c.pid, SIGSTOP);
		else
			child_go(&c);
	}
	child_run(victim_child, &v, &r);
	if (neighbour)
		child_kill(&c);
	series_add(series_get(SECTION, name, "us", text), r.value[1] / NSEC_PER_USEC);
}

void bench_noise(const struct bench *b)
{
	uint64_t bad;
	struct daemon d;

	daemon_start(&d, b, (uint64_t)b->noise_pages * BENCH_PAGE * 8);
	for (unsigned i = 0; i < b->runs; i++) {
		uint32_t *order = permutation(b->noise_pages, i + 1);

		say("noise: run %u of %u", i + 1, b->runs);
		with_neighbour(b, &d, "alone", "fault p99, alone", NULL, order);
		with_neighbour(b, &d, "stopped", "fault p99, a stopped client beside it",
			       stopped_child, order);
		with_neighbour(b, &d, "busy", "fault p99, a busy process beside it", busy_child,
			       order);
		bad = daemon_status(&d, "bad_requests");
		with_neighbour(b, &d, "garbage", "fault p99, a client that sends garbage",
			       garbage_child, order);
		with_neighbour(b, &d, "returning",
			       "fault p99, a garbage client that connects again and again",
			       returning_child, order);
		if (daemon_status(&d, "bad_requests") == bad)
			die("noise: the daemon saw no garbage");
		free(order);
	}
	daemon_stop(&d);
	goal_at_most(SECTION, "fault p99 beside a stopped client: times that alone",
		     series_median(series_get(SECTION, "stopped", "us", "")) /
			     series_median(series_get(SECTION, "alone", "us", "")),
		     1.5);
	goal_at_most(SECTION, "fault p99 beside a garbage client: times that beside a busy process",
		     series_median(series_get(SECTION, "garbage", "us", "")) /
			     series_median(series_get(SECTION, "busy", "us", "")),
		     1.5);
}
