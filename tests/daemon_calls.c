/* SPDX-License-Identifier: MIT */
/*
 * daemon_calls.c - mremap, the heap, mlock, pins, stacks, collapse and holes as a program has them
 * through libarena: bytes, signals, errnos, and what the daemon's files say of it.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "tests/lib_client.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* kB of a line of this client's status, or of meminfo. */
static unsigned long shown_kb(arena_t *a, const char *path, const char *label)
{
	char text[16384], own[64], *line;
	ssize_t n;

	if (strcmp(path, "status") == 0) {
		snprintf(own, sizeof(own), "proc/%d/status", (int)getpid());
		path = own;
	}
	n = arena_attr_read(a, path, text, sizeof(text) - 1);
	CHECK(n > 0);
	text[n] = 0;
	line = strstr(text, label);
	CHECK(line);
	return strtoul(line + strlen(label), NULL, 10);
}

/* ---- mremap -------------------------------------------------------------------------------- */

static void do_mremap(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	size_t len = 4 * LEAF + 30 * PAGE;
	char *p = client_map(a, len), *q, *r;
	int64_t pfn;

	(void)arg;
	pattern_fill(p, len, 1);
	pfn = arena_virt_to_pfn(a, p + LEAF);
	q = arena_mremap(a, p, len, 2 * len, MREMAP_MAYMOVE, NULL);
	CHECK(q != MAP_FAILED && pattern_is(q, len, 1) && is_zero(q + len, len));
	/* Not a byte was copied, and the old place is gone for this thread at once. */
	if (q != p) {
		CHECK(arena_virt_to_pfn(a, q + LEAF) == pfn);
		CHECK(try_read(p, NULL) == SIGSEGV && try_write(p + len - 1, NULL) == SIGSEGV);
	}
	r = (char *)client_map(a, 2 * len) + 5 * PAGE;
	CHECK(arena_mremap(a, q, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, r) == r);
	CHECK(pattern_is(r, len, 1) && try_read(q, NULL) == SIGSEGV);
	CHECK(arena_mremap(a, r, len, PAGE, 0, NULL) == r);
	CHECK(pattern_is(r, PAGE, 1) && try_read(r + PAGE, NULL) == SIGSEGV);
	q = arena_mremap(a, r, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	CHECK(q != MAP_FAILED && pattern_is(q, PAGE, 1) && is_zero(r, PAGE));
	CHECK_ERRNO(arena_mremap(a, q, PAGE, PAGE, MREMAP_FIXED, r), EINVAL);
	CHECK_ERRNO(arena_mremap(a, q + 1, PAGE, PAGE, 0, NULL), EINVAL);
	CHECK_ERRNO(arena_mremap(a, q, PAGE, 0, MREMAP_MAYMOVE, NULL), EINVAL);
	CHECK_ERRNO(arena_mremap(a, q, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, q), EINVAL);
	CHECK_ERRNO(arena_mremap(a, (void *)16, PAGE, PAGE, MREMAP_MAYMOVE, NULL), EINVAL);
	CHECK_ERRNO(arena_mremap(a, (void *)(PAGE * 16), PAGE, PAGE, MREMAP_MAYMOVE, NULL), EFAULT);
	/* A second mapping of shared memory. */
	p = arena_mmap(a, NULL, LEAF, RW, ANON_SHARED, -1, 0);
	p[PAGE] = 7;
	q = arena_mremap(a, p, 0, LEAF, MREMAP_MAYMOVE, NULL);
	CHECK(q != MAP_FAILED && q[PAGE] == 7);
	q[PAGE] = 8;
	CHECK(p[PAGE] == 8);
	arena_close(a);
}

static void test_mremap(void **state)
{
	client_run(*state, do_mremap, NULL);
}

/* Threads write at both ends of what is moved to and fro: each finds its own last word. */
struct mover {
	arena_t *a;
	char *at[2];
	unsigned stop;
};

static void *write_elsewhere(void *arg)
{
	struct mover *m = arg;
	char *p = client_map(m->a, 64 * PAGE);
	uint64_t n = 0;

	while (!__atomic_load_n(&m->stop, __ATOMIC_ACQUIRE)) {
		*(volatile uint64_t *)(void *)(p + n % 64 * PAGE) = n;
		CHECK(*(volatile uint64_t *)(void *)(p + n % 64 * PAGE) == n);
		if (++n % 256 == 0)
			CHECK_OK(arena_madvise(m->a, p, 64 * PAGE, MADV_DONTNEED));
	}
	return NULL;
}

static void do_mremap_threads(struct test_daemon *d, void *arg)
{
	struct mover m = {.a = client_open(d)};
	unsigned rounds = test_scaled(300);
	pthread_t t;

	(void)arg;
	m.at[0] = client_map(m.a, 6 * LEAF);
	m.at[1] = m.at[0] + 3 * LEAF + 7 * PAGE;
	CHECK_OK(arena_munmap(m.a, m.at[0] + LEAF, 5 * LEAF));
	CHECK(pthread_create(&t, NULL, write_elsewhere, &m) == 0);
	for (unsigned i = 0; i < rounds; i++) {
		uint64_t *w = (uint64_t *)(void *)(m.at[i % 2] + i % 512 * PAGE);

		*w = i + 1;
		CHECK(arena_mremap(m.a, m.at[i % 2], LEAF, LEAF, MREMAP_MAYMOVE | MREMAP_FIXED,
				   m.at[(i + 1) % 2]) == m.at[(i + 1) % 2]);
		w = (uint64_t *)(void *)(m.at[(i + 1) % 2] + i % 512 * PAGE);
		CHECK(*w == i + 1);
		*w = i + 2;
		CHECK(try_read(m.at[i % 2], NULL) == SIGSEGV);
	}
	__atomic_store_n(&m.stop, 1, __ATOMIC_RELEASE);
	pthread_join(t, NULL);
	arena_close(m.a);
}

static void test_mremap_threads(void **state)
{
	client_run(*state, do_mremap_threads, NULL);
}

/* ---- the heap ------------------------------------------------------------------------------ */

static void do_heap(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *start = arena_sbrk(a, 0), *p;
	struct rlimit limit = {64 * PAGE, 64 * PAGE};

	(void)arg;
	CHECK(start != (void *)-1 && try_read(start, NULL) == SIGSEGV);
	for (unsigned i = 0; i < 200; i++) {
		p = arena_sbrk(a, 3000);
		CHECK(p == start + i * 3000);
		memset(p, (int)i + 1, 3000);
	}
	for (unsigned i = 0; i < 200; i++)
		CHECK(start[i * 3000] == (char)(i + 1) && start[i * 3000 + 2999] == (char)(i + 1));
	CHECK_OK(arena_brk(a, start + 100));
	CHECK(start[99] == 1 && try_read(start + PAGE, NULL) == SIGSEGV);
	CHECK_OK(arena_brk(a, start + LEAF));
	CHECK(is_zero(start + PAGE, LEAF - PAGE)); /* what was given back does not come again */
	CHECK(shown_kb(a, "status", "VmData:") == LEAF >> 10);
	CHECK_ERRNO(arena_brk(a, start - 1), ENOMEM);
	CHECK_ERRNO(arena_brk(a, NULL), ENOMEM);
	CHECK_ERRNO(arena_sbrk(a, INTPTR_MAX), ENOMEM);
	CHECK_OK(arena_brk(a, start));
	if (TEST_SANITIZED) { /* its allocator would be out of data, too */
		arena_close(a);
		return;
	}
	CHECK_OK(setrlimit(RLIMIT_DATA, &limit));
	CHECK_ERRNO(arena_brk(a, start + 65 * PAGE), ENOMEM);
	CHECK_OK(arena_brk(a, start + 64 * PAGE));
	CHECK_ERRNO(arena_mmap(a, NULL, PAGE, RW, ANON, -1, 0), ENOMEM);
	arena_close(a);
}

static void test_heap(void **state)
{
	client_run(*state, do_heap, NULL);
}

/* ---- mlock --------------------------------------------------------------------------------- */

static void do_mlock(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	unsigned long mlocked = shown_kb(a, "proc/meminfo", "Mlocked:");
	char *p = client_map(a, 8 * LEAF);
	unsigned char vec[8 * 512];

	(void)arg;
	CHECK_OK(arena_mlock(a, p + 100, 3 * LEAF));
	CHECK_OK(arena_mincore(a, p, 3 * LEAF + PAGE, vec));
	for (unsigned i = 0; i < 3 * 512 + 1; i++)
		CHECK(vec[i] & 1);
	CHECK(shown_kb(a, "status", "VmLck:") == (3 * LEAF + PAGE) >> 10);
	CHECK(shown_kb(a, "proc/meminfo", "Mlocked:") == mlocked + ((3 * LEAF + PAGE) >> 10));
	CHECK_ERRNO(arena_madvise(a, p, PAGE, MADV_DONTNEED), EINVAL);
	CHECK_OK(arena_munlock(a, p, 8 * LEAF));
	CHECK(shown_kb(a, "status", "VmLck:") == 0);
	CHECK(shown_kb(a, "proc/meminfo", "Mlocked:") == mlocked);
	/* On fault: locked, and not there. */
	CHECK_OK(arena_mlock2(a, p + 5 * LEAF, LEAF, MLOCK_ONFAULT));
	CHECK_OK(arena_mincore(a, p + 5 * LEAF, LEAF, vec));
	CHECK(!(vec[0] & 1));
	p[5 * LEAF] = 1;
	CHECK(shown_kb(a, "proc/meminfo", "Mlocked:") > mlocked);
	CHECK_OK(arena_mprotect(a, p + 7 * LEAF, PAGE, PROT_NONE));
	CHECK_ERRNO(arena_mlock(a, p + 7 * LEAF, PAGE), ENOMEM);
	CHECK_OK(arena_mlockall(a, MCL_CURRENT | MCL_FUTURE));
	CHECK_OK(arena_mincore(a, p, 8 * LEAF, vec));
	CHECK((vec[0] & 1) && (vec[6 * 512] & 1) && !(vec[7 * 512] & 1));
	p = client_map(a, LEAF);
	CHECK_OK(arena_mincore(a, p, LEAF, vec));
	CHECK(vec[0] & vec[511] & 1);
	CHECK_OK(arena_munlockall(a));
	p = arena_mmap(a, NULL, 4 * PAGE, RW, ANON | MAP_LOCKED, -1, 0);
	CHECK(p != MAP_FAILED);
	CHECK_OK(arena_mincore(a, p, 4 * PAGE, vec));
	CHECK(vec[0] & vec[3] & 1);
	CHECK_ERRNO(arena_mlockall(a, 0), EINVAL);
	CHECK_ERRNO(arena_mlock2(a, p, PAGE, 4), EINVAL);
	arena_close(a);
}

/* As another user, whose own limit the daemon asks the kernel for. */
static void do_mlock_limited(struct test_daemon *d, void *arg)
{
	struct rlimit limit = {8 * PAGE, 8 * PAGE};
	arena_t *a = client_open(d);
	char *p = client_map(a, LEAF);

	(void)arg;
	CHECK_OK(setrlimit(RLIMIT_MEMLOCK, &limit));
	CHECK_OK(arena_mlock(a, p, 8 * PAGE));
	CHECK_ERRNO(arena_mlock(a, p + 10 * PAGE, PAGE), ENOMEM);
	CHECK_ERRNO(arena_mmap(a, NULL, PAGE, RW, ANON | MAP_LOCKED, -1, 0), EAGAIN);
	CHECK_ERRNO(arena_mlockall(a, MCL_CURRENT), ENOMEM);
	CHECK_OK(arena_munlock(a, p, LEAF));
	CHECK_ERRNO(arena_pin(a, p, 9 * PAGE, 1), ENOMEM);
	limit.rlim_cur = 0;
	CHECK_OK(setrlimit(RLIMIT_MEMLOCK, &limit));
	CHECK_ERRNO(arena_mlock(a, p, PAGE), EPERM);
	CHECK_ERRNO(arena_mlockall(a, MCL_FUTURE), EPERM);
	arena_close(a);
}

static void test_mlock(void **state)
{
	client_run(*state, do_mlock, NULL);
	client_run_as(*state, 1234, do_mlock_limited, NULL);
}

/* ---- pins ---------------------------------------------------------------------------------- */

static void do_pin(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 12 * LEAF), buf[64] = "through the kernel";
	int pipes[2];

	(void)arg;
	/* A system call into fresh memory, as the signal trap wants it. */
	CHECK_OK(arena_pin(a, p, 12 * LEAF, 1));
	CHECK(shown_kb(a, "status", "VmPin:") == 12 * LEAF >> 10);
	CHECK(pipe(pipes) == 0 && write(pipes[1], buf, sizeof(buf)) == sizeof(buf));
	CHECK(read(pipes[0], p + 11 * LEAF, sizeof(buf)) == sizeof(buf));
	CHECK(memcmp(p + 11 * LEAF, buf, sizeof(buf)) == 0);
	CHECK_OK(arena_munmap(a, p, 12 * LEAF));
	CHECK(shown_kb(a, "status", "VmRSS:") == 0);
	CHECK(shown_kb(a, "status", "VmPin:") == 12 * LEAF >> 10);
	CHECK_OK(arena_unpin(a, p, 12 * LEAF));
	CHECK(shown_kb(a, "status", "VmPin:") == 0);
	CHECK_ERRNO(arena_unpin(a, p, PAGE), EINVAL);
	CHECK_ERRNO(arena_pin(a, p, PAGE, 0), ENOMEM);
	p = client_map(a, LEAF);
	CHECK_OK(arena_mprotect(a, p + PAGE, PAGE, PROT_READ));
	CHECK_ERRNO(arena_pin(a, p, 2 * PAGE, 1), EFAULT);
	CHECK(shown_kb(a, "status", "VmPin:") == 0);
	CHECK_OK(arena_pin(a, p, 2 * PAGE, 0)); /* ends with the client */
	arena_close(a);
}

static void test_pin(void **state)
{
	client_run(*state, do_pin, NULL);
}

/* ---- stacks, advice ------------------------------------------------------------------------ */

static void do_stack(struct test_daemon *d, void *arg)
{
	struct rlimit limit = {LEAF, LEAF};
	arena_t *a = client_open(d);
	char *room = client_map(a, 8 * LEAF), *top = room + 8 * LEAF, *p;

	(void)arg;
	CHECK_OK(arena_munmap(a, room, 8 * LEAF));
	CHECK_OK(setrlimit(RLIMIT_STACK, &limit));
	p = arena_mmap(a, top - PAGE, PAGE, RW, ANON | MAP_FIXED | MAP_GROWSDOWN | MAP_STACK, -1,
		       0);
	CHECK(p == top - PAGE);
	for (p = top - 8; p >= top - LEAF; p -= 1000)
		CHECK(try_write(p, NULL) == 0);
	CHECK(try_write(top - LEAF - 1, NULL) == SIGSEGV);
	CHECK(shown_kb(a, "status", "VmStk:") == LEAF >> 10);
	arena_close(a);
}

static void test_stack(void **state)
{
	client_run(*state, do_stack, NULL);
}

struct collapser {
	arena_t *a;
	volatile uint64_t *word;
	unsigned stop;
	uint64_t written;
};

static void *keep_writing(void *arg)
{
	struct collapser *c = arg;

	while (!__atomic_load_n(&c->stop, __ATOMIC_ACQUIRE)) {
		CHECK(*c->word == c->written);
		*c->word = ++c->written;
	}
	return NULL;
}

/* Small pages become a leaf under a thread that writes: not a store is lost. */
static void do_collapse(struct test_daemon *d, void *arg)
{
	struct collapser c = {.a = client_open(d)};
	unsigned rounds = test_scaled(40), done = 0;
	uint64_t first;
	pthread_t t;

	(void)arg;
	for (unsigned i = 0; i < rounds; i++) {
		char *p = client_map(c.a, 2 * LEAF);
		char *leaf = (char *)(((uintptr_t)p + LEAF - 1) & ~(LEAF - 1));

		CHECK_OK(arena_madvise(c.a, p, 2 * LEAF, MADV_NOHUGEPAGE));
		pattern_fill(leaf, LEAF, i);
		CHECK_OK(arena_madvise(c.a, p, 2 * LEAF, MADV_HUGEPAGE));
		c.word = (uint64_t *)(void *)(leaf + i % 512 * PAGE);
		c.written = first = *c.word;
		c.stop = 0;
		CHECK(pthread_create(&t, NULL, keep_writing, &c) == 0);
		if (arena_madvise(c.a, leaf, LEAF, MADV_COLLAPSE) == 0)
			done++;
		else
			CHECK(errno == EAGAIN);
		__atomic_store_n(&c.stop, 1, __ATOMIC_RELEASE);
		pthread_join(t, NULL);
		CHECK(*c.word == c.written);
		CHECK_OK(arena_madvise(c.a, leaf, LEAF, MADV_COLLAPSE));
		CHECK(*c.word == c.written);
		CHECK(arena_virt_to_pfn(c.a, leaf) % 512 == 0);
		*c.word = first;
		CHECK(pattern_is(leaf, LEAF, i));
		CHECK_OK(arena_munmap(c.a, p, 2 * LEAF));
	}
	print_message("%u of %u at the first try\n", done, rounds);
	arena_close(c.a);
}

static void test_collapse(void **state)
{
	client_run(*state, do_collapse, NULL);
}

/* A hole punched by one client, for all who map the segment. */
struct hole {
	struct gate mapped, punched;
};

static void see_hole(struct test_daemon *d, void *arg)
{
	struct hole *h = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, "hole", O_RDWR, 0);
	char *p = arena_shm_mmap(s, NULL, 2 * LEAF, RW, MAP_SHARED, 0);

	CHECK(p != MAP_FAILED && p[5 * PAGE] == 1 && p[LEAF] == 2);
	gate_open(&h->mapped, 1);
	gate_pass(&h->punched);
	CHECK(p[4 * PAGE] == 1 && p[5 * PAGE] == 0 && p[LEAF] == 0);
	p[5 * PAGE] = 3;
	arena_close(a);
}

static void punch_hole(struct test_daemon *d, void *arg)
{
	struct hole *h = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, "hole", O_RDWR | O_CREAT, 0600);
	char *p;
	pid_t other;

	CHECK_OK(arena_shm_truncate(s, 2 * LEAF));
	p = arena_shm_mmap(s, NULL, 2 * LEAF, RW, MAP_SHARED, 0);
	CHECK(p != MAP_FAILED);
	p[4 * PAGE] = p[5 * PAGE] = 1;
	p[LEAF] = 2;
	other = client_start(d, see_hole, h);
	gate_pass(&h->mapped);
	CHECK_OK(arena_madvise(a, p + 5 * PAGE, PAGE, MADV_REMOVE));
	CHECK_OK(arena_madvise(a, p + LEAF, LEAF, MADV_REMOVE));
	gate_open(&h->punched, 1);
	client_wait(other);
	CHECK(p[5 * PAGE] == 3 && p[LEAF] == 0);
	CHECK_OK(arena_shm_unlink(a, "hole"));
	arena_close(a);
}

static void test_hole(void **state)
{
	struct hole h = {.mapped = gate_make(), .punched = gate_make()};

	client_run(*state, punch_hole, &h);
	gate_close(&h.mapped);
	gate_close(&h.punched);
}

static void do_overcommit(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	size_t total = shown_kb(a, "proc/meminfo", "MemTotal:") << 10;
	unsigned long before = shown_kb(a, "proc/meminfo", "Committed_AS:");
	char *p = client_map(a, LEAF);

	(void)arg;
	CHECK(shown_kb(a, "proc/meminfo", "Committed_AS:") == before + (LEAF >> 10));
	CHECK(shown_kb(a, "proc/meminfo", "CommitLimit:") == total / 2 >> 10);
	CHECK_ERRNO(arena_mmap(a, NULL, total + PAGE, RW, ANON, -1, 0), ENOMEM);
	CHECK(arena_mmap(a, NULL, total + PAGE, RW, ANON | MAP_NORESERVE, -1, 0) != MAP_FAILED);
	CHECK_OK(arena_attr_write(a, "proc/sys/vm/overcommit_memory", "2"));
	CHECK_OK(arena_attr_write(a, "proc/sys/vm/overcommit_kbytes", "16384"));
	CHECK(shown_kb(a, "proc/meminfo", "CommitLimit:") == 16384);
	CHECK_ERRNO(arena_mmap(a, NULL, 16 * LEAF, RW, ANON, -1, 0), ENOMEM);
	CHECK_OK(arena_attr_write(a, "proc/sys/vm/overcommit_memory", "1"));
	CHECK(arena_mmap(a, NULL, total + PAGE, RW, ANON, -1, 0) != MAP_FAILED);
	CHECK_OK(arena_attr_write(a, "proc/sys/vm/overcommit_ratio", "50"));
	CHECK_OK(arena_attr_write(a, "proc/sys/vm/overcommit_memory", "0"));
	CHECK_OK(arena_munmap(a, p, LEAF));
	arena_close(a);
}

static void test_overcommit(void **state)
{
	client_run(*state, do_overcommit, NULL);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		daemon_test(test_mremap),     daemon_test(test_mremap_threads),
		daemon_test(test_heap),       daemon_test(test_mlock),
		daemon_test(test_pin),        daemon_test(test_stack),
		daemon_test(test_collapse),   daemon_test(test_hole),
		daemon_test(test_overcommit),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
