/* SPDX-License-Identifier: MIT */
/*
 * daemon_pfn.c - arena_mmap_pfn() with real clients: DMA frames at an address of choice, which stay the
 * same frames whatever is done to the block, the client or the worker.
 */
#include <signal.h>
#include <sys/wait.h>

#include "tests/lib_client.h"

#define ORDER 4u
#define LEN (PAGE << ORDER)

struct block {
	char *p;
	int64_t pfn;
};

static struct block alloc_block(arena_t *a)
{
	struct block b = {.p = arena_alloc_pages(a, ARENA_GFP_DMA | ARENA_GFP_ZERO, ORDER)};

	CHECK(b.p);
	b.pfn = arena_virt_to_pfn(a, b.p);
	CHECK(b.pfn >= 0);
	return b;
}

static void do_share(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	struct block b = alloc_block(a);
	char *p = arena_mmap_pfn(a, NULL, (uint64_t)b.pfn, LEN, RW, 0), *q;

	(void)arg;
	CHECK(p != MAP_FAILED && p != b.p);
	pattern_fill(b.p, LEN, 1);
	CHECK(pattern_is(p, LEN, 1));
	p[5 * PAGE] ^= 1;
	CHECK(b.p[5 * PAGE] == p[5 * PAGE]);
	CHECK(arena_virt_to_pfn(a, p + 3 * PAGE) == b.pfn + 3);
	/* Some of it in the place of other memory, for reading only, and back. */
	q = client_map(a, LEN);
	pattern_fill(q, LEN, 2);
	CHECK(arena_mmap_pfn(a, q + PAGE, (uint64_t)b.pfn + 5, PAGE, PROT_READ, MAP_FIXED) ==
	      q + PAGE);
	CHECK(q[PAGE] == p[5 * PAGE]);
	CHECK(try_write(q + PAGE, NULL) == SIGSEGV);
	CHECK_OK(arena_mprotect(a, q + PAGE, PAGE, RW));
	q[PAGE] ^= 1;
	CHECK(pattern_is(b.p, LEN, 1));
	CHECK_OK(arena_munmap(a, q, LEN));
	CHECK(try_read(q + PAGE, NULL) == SIGSEGV);
	CHECK_OK(arena_munmap(a, p, LEN));
	CHECK_OK(arena_free_pages(a, b.p, ORDER));
	arena_close(a);
}

static void do_refusals(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d), *other = client_open(d);
	struct block b = alloc_block(a);
	char *p = arena_mmap_pfn(a, NULL, (uint64_t)b.pfn, LEN, RW, 0), *q;
	uint64_t pfn = (uint64_t)b.pfn;

	(void)arg;
	CHECK(p != MAP_FAILED);
	CHECK_ERRNO(arena_mmap_pfn(other, NULL, pfn, LEN, RW, 0), EPERM);
	CHECK_ERRNO(arena_mmap_pfn(a, NULL, pfn, 2 * LEN, RW, 0), EPERM);
	CHECK_ERRNO(arena_mmap_pfn(a, NULL, pfn, 0, RW, 0), EINVAL);
	CHECK_ERRNO(arena_mmap_pfn(a, NULL, UINT64_MAX, PAGE, RW, 0), EINVAL);
	CHECK_ERRNO(arena_mmap_pfn(a, NULL, pfn, SIZE_MAX, RW, 0), EINVAL);
	CHECK_ERRNO(arena_mmap_pfn(a, NULL, pfn, PAGE, RW, MAP_SHARED), EINVAL);
	CHECK_ERRNO(arena_mmap_pfn(a, p, pfn, PAGE, RW, MAP_FIXED_NOREPLACE), EEXIST);
	CHECK_ERRNO(arena_mremap(a, p, LEN, 2 * LEN, MREMAP_MAYMOVE, NULL), EFAULT);
	CHECK_ERRNO(arena_madvise(a, p, LEN, MADV_DONTNEED), EINVAL);
	CHECK_ERRNO(arena_pin(a, p, LEN, 1), EFAULT);
	CHECK_ERRNO(arena_snapshot(a, p, LEN), EINVAL);
	CHECK_OK(arena_mlock(a, p, LEN));
	/* By pages they can be pinned, and nothing else is other. */
	q = arena_mmap_pfn(a, NULL, pfn, LEN, RW, ARENA_MAP_MIXED);
	CHECK(q != MAP_FAILED);
	CHECK_ERRNO(arena_mremap(a, q, LEN, 2 * LEN, MREMAP_MAYMOVE, NULL), EFAULT);
	CHECK_OK(arena_pin(a, q, 2 * PAGE, 1));
	CHECK_OK(arena_munmap(a, q, LEN));
	CHECK_OK(arena_unpin(a, q, 2 * PAGE));
	arena_close(other);
	arena_close(a);
}

/* Given back and mapped all the same: nobody else may get them, whoever asks for all there is. */
static void do_outlive(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d), *other = client_open(d);
	struct block b = alloc_block(a);
	char *p = arena_mmap_pfn(a, NULL, (uint64_t)b.pfn, LEN, RW, 0), *q;
	uint64_t n = 0;

	(void)arg;
	CHECK(p != MAP_FAILED);
	pattern_fill(p, LEN, 3);
	CHECK_OK(arena_free_pages(a, b.p, ORDER));
	CHECK(try_read(b.p, NULL) == SIGSEGV);
	while (n < 20000 && (q = arena_alloc_pages(other, ARENA_GFP_DMA | ARENA_GFP_NOWARN, 0))) {
		int64_t got = arena_virt_to_pfn(other, q);

		CHECK(got < b.pfn || got >= b.pfn + (1 << ORDER));
		*q = 9;
		n++;
	}
	CHECK(n > 0);
	CHECK(pattern_is(p, LEN, 3));
	if (!d->killer)
		daemon_kill_worker(d);
	CHECK(pattern_is(p, LEN, 3));
	CHECK_ERRNO(arena_mmap_pfn(a, NULL, (uint64_t)b.pfn, LEN, RW, 0), EPERM);
	/* Moved, and half of it ended. */
	q = arena_mremap(a, p, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, client_map(a, LEN));
	CHECK(q != MAP_FAILED);
	CHECK_OK(arena_munmap(a, q, LEN / 2));
	pattern_fill(q + LEN / 2, LEN / 2, 4);
	CHECK(pattern_is(q + LEN / 2, LEN / 2, 4));
	arena_close(other);
	arena_close(a);
}

static void do_fork(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	struct block b = alloc_block(a);
	char *p = arena_mmap_pfn(a, NULL, (uint64_t)b.pfn, LEN, RW, 0);
	int status;
	pid_t pid;

	(void)arg;
	CHECK(p != MAP_FAILED);
	*p = 1;
	pid = fork();
	if (pid == 0) {
		CHECK(try_read(p, NULL) == SIGSEGV);
		CHECK_ERRNO(arena_mmap_pfn(a, NULL, (uint64_t)b.pfn, LEN, RW, 0), EPERM);
		_exit(0);
	}
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(*p == 1);
	arena_close(a);
}

static void test_share(void **state)
{
	client_run(*state, do_share, NULL);
}

static void test_refusals(void **state)
{
	client_run(*state, do_refusals, NULL);
}

static void test_outlive(void **state)
{
	struct test_daemon *d = *state;

	d->expect_deaths = true;
	client_run(d, do_outlive, NULL);
}

static void test_fork(void **state)
{
	client_run(*state, do_fork, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		daemon_test(test_share),
		daemon_test(test_refusals),
		daemon_test(test_outlive),
		daemon_test(test_fork),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
