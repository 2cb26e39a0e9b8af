/* SPDX-License-Identifier: MIT */
/*
 * daemon_pages.c - frames by number: orders, zones, what is in them, running out of them, and that
 * what one process freed is never seen by the next.
 */
#include <signal.h>
#include <stdlib.h>

#include "base/prng.h"
#include "tests/lib_client.h"

static size_t bytes_of(unsigned order)
{
	return PAGE << order;
}

static void do_orders(struct test_daemon *d, void *arg)
{
	static const unsigned flags[] = {
		ARENA_GFP_KERNEL,      ARENA_GFP_DMA,
		ARENA_GFP_HIGHMEM,     ARENA_GFP_HIGHMEM | ARENA_GFP_MOVABLE,
		ARENA_GFP_RECLAIMABLE, ARENA_GFP_ZERO,
		ARENA_GFP_ATOMIC,      ARENA_GFP_NOWARN | ARENA_GFP_ZERO,
		ARENA_GFP_THISNODE,
	};
	arena_t *a = client_open(d);

	(void)arg;
	for (size_t f = 0; f < sizeof(flags) / sizeof(flags[0]); f++) {
		/* Zone DMA is small and holds the largest blocks only if nobody else was there. */
		unsigned max = flags[f] & ARENA_GFP_DMA ? 5 : ARENA_MAX_ORDER;

		for (unsigned order = 0; order <= max; order++) {
			char *p = arena_alloc_pages(a, flags[f], order), *q;
			int64_t pfn;

			CHECK(p);
			pfn = arena_virt_to_pfn(a, p);
			CHECK(pfn >= 0 && pfn % (1 << order) == 0);
			for (int64_t i = 0; i < 1 << order; i++)
				CHECK(arena_virt_to_pfn(a, p + i * (int64_t)PAGE) == pfn + i);
			CHECK(!(flags[f] & ARENA_GFP_ZERO) || is_zero(p, bytes_of(order)));
			pattern_fill(p, bytes_of(order), order);
			/* Another one beside it, of the next frames or others: no overlap. */
			q = arena_alloc_pages(a, flags[f], order);
			CHECK(q && q != p);
			pattern_fill(q, bytes_of(order), 77);
			CHECK(pattern_is(p, bytes_of(order), order));
			CHECK(pattern_is(q, bytes_of(order), 77));
			CHECK((q - p) / (ptrdiff_t)PAGE ==
			      arena_virt_to_pfn(a, q) - arena_virt_to_pfn(a, p));
			CHECK_OK(arena_free_pages(a, q, order));
			CHECK_OK(arena_free_pages(a, p, order));
			CHECK(try_read(p, NULL) == SIGSEGV);
			CHECK(arena_virt_to_pfn(a, p) == -1);
		}
	}
	arena_close(a);
}

static void test_orders(void **state)
{
	client_run(*state, do_orders, NULL);
}

/* GFP_ZERO gives zeros also where this process wrote before. */
static void do_zero(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);

	(void)arg;
	for (unsigned order = 0; order <= ARENA_MAX_ORDER; order++) {
		for (unsigned i = 0; i < 4; i++) {
			char *p = arena_alloc_pages(a, ARENA_GFP_ZERO, order);

			CHECK(p && is_zero(p, bytes_of(order)));
			memset(p, 0xff, bytes_of(order));
			CHECK_OK(arena_free_pages(a, p, order));
		}
	}
	arena_close(a);
}

static void test_zero(void **state)
{
	client_run(*state, do_zero, NULL);
}

static void do_errors(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *mapped = client_map(a, 4 * PAGE), *p, *q;
	int on_stack;

	(void)arg;
	*mapped = 1;
	CHECK_ERRNO(arena_alloc_pages(a, ARENA_GFP_KERNEL, ARENA_MAX_ORDER + 1), EINVAL);
	CHECK_ERRNO(arena_alloc_pages(a, ARENA_GFP_KERNEL, 64), EINVAL);
	CHECK_ERRNO(arena_alloc_pages(a, ARENA_GFP_KERNEL, UINT32_MAX), EINVAL);
	CHECK_ERRNO(arena_alloc_pages(a, 1u << 31, 0), EINVAL);
	CHECK_ERRNO(arena_alloc_pages(a, 1u << 2, 0), EINVAL);
	p = arena_alloc_pages(a, ARENA_GFP_KERNEL, 3);
	q = arena_alloc_pages(a, ARENA_GFP_KERNEL, 9);
	CHECK(p && q);
	CHECK_ERRNO(arena_free_pages(a, p, 2), EINVAL);
	CHECK_ERRNO(arena_free_pages(a, p, 4), EINVAL);
	CHECK_ERRNO(arena_free_pages(a, p, 64 + 3), EINVAL);
	CHECK_ERRNO(arena_free_pages(a, p + PAGE, 0), EINVAL);
	CHECK_ERRNO(arena_free_pages(a, p + 4 * PAGE, 2), EINVAL);
	CHECK_ERRNO(arena_free_pages(a, p + 1, 3), EINVAL);
	CHECK_ERRNO(arena_free_pages(a, q + PAGE, 9), EINVAL);
	CHECK_ERRNO(arena_free_pages(a, q, 8), EINVAL);
	CHECK_ERRNO(arena_free_pages(a, mapped, 0), EINVAL);
	CHECK_ERRNO(arena_free_pages(a, &on_stack, 0), EINVAL);
	CHECK_ERRNO(arena_free_pages(a, NULL, 0), EINVAL);
	CHECK_ERRNO(arena_free_pages(a, (void *)-PAGE, 0), EINVAL);
	/* They are not the business of munmap() and the like. */
	CHECK_ERRNO(arena_munmap(a, p, PAGE), EINVAL);
	CHECK_ERRNO(arena_mprotect(a, p, PAGE, PROT_READ), EINVAL);
	CHECK_ERRNO(arena_madvise(a, p, PAGE, MADV_DONTNEED), EINVAL);
	p[0] = q[0] = 1;
	CHECK_OK(arena_free_pages(a, p, 3));
	CHECK_ERRNO(arena_free_pages(a, p, 3), EINVAL);
	CHECK_OK(arena_free_pages(a, q, 9));
	CHECK_ERRNO(arena_free_pages(a, q, 9), EINVAL);
	CHECK(*mapped == 1);
	arena_close(a);
}

static void test_errors(void **state)
{
	client_run(*state, do_errors, NULL);
}

/* ---- none left ----------------------------------------------------------------------------- */

#define HELD_MAX 600000u

static void do_exhaust(struct test_daemon *d, void *arg)
{
	unsigned order = *(unsigned *)arg;
	arena_t *a = client_open(d);
	void **held = calloc(HELD_MAX, sizeof(*held));
	unsigned rounds, n = 0;
	unsigned first = 0;

	CHECK(held);
	for (rounds = 0; rounds < 2; rounds++) {
		n = 0;
		while (n < HELD_MAX && (held[n] = arena_alloc_pages(
						a, ARENA_GFP_HIGHMEM | ARENA_GFP_NOWARN, order)))
			*(unsigned *)held[n] = n, n++;
		CHECK(n < HELD_MAX && errno == ENOMEM);
		CHECK(n * bytes_of(order) >= 128ul << 20);
		for (unsigned i = 0; i < n; i++)
			CHECK(*(unsigned *)held[i] == i);
		CHECK(rounds == 0 || n >= first - first / 10);
		first = n;
		for (unsigned i = 0; i < n; i++)
			CHECK_OK(arena_free_pages(a, held[i], order));
	}
	arena_close(a);
}

static void test_exhaust(void **state)
{
	struct test_daemon *d = *state;
	static const unsigned orders[] = {9, 4, 10};

	d->expect_warnings = true;
	for (size_t i = 0; i < 3; i++) {
		client_run(d, do_exhaust, (void *)(uintptr_t)&orders[i]);
		expect_all_frames_back(d);
	}
}

/* Memory by fault, until there is none: a SIGBUS, and all comes back with the mapping. */
static void do_fault_exhaust(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	size_t len = 1ul << 30, at;
	char *p = arena_mmap(a, NULL, len, RW, ANON | MAP_NORESERVE, -1, 0);
	struct fault_seen seen = {0};

	(void)arg;
	CHECK(p != MAP_FAILED);
	for (at = 0; at < len; at += PAGE)
		if (try_write(p + at, &seen))
			break;
	CHECK(at < len && at >= 256ul << 20);
	CHECK(seen.signo == SIGBUS && seen.addr == (uintptr_t)p + at);
	CHECK_ERRNO(arena_populate(a, p, len, 1), ENOMEM);
	CHECK_OK(arena_madvise(a, p, len, MADV_DONTNEED));
	CHECK(try_write(p + at, NULL) == 0);
	arena_close(a);
}

static void test_fault_exhaust(void **state)
{
	struct test_daemon *d = *state;

	d->expect_warnings = true;
	client_run(d, do_fault_exhaust, NULL);
}

static void fail_loudly(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);

	(void)arg;
	for (unsigned i = 0; i < HELD_MAX; i++)
		if (!arena_alloc_pages(a, ARENA_GFP_DMA, 5))
			break;
	CHECK(errno == ENOMEM);
	arena_close(a);
}

/* The log says of a failed allocation which zone had what. */
static void test_failure_report(void **state)
{
	struct test_daemon *d = *state;
	size_t from;

	d->expect_warnings = true;
	daemon_read_log(d);
	from = d->log_len;
	client_run(d, fail_loudly, NULL);
	assert_true(daemon_log_wait(d, from, "page allocation failure: order:5,"));
	assert_true(daemon_log_wait(d, from, "node 0 DMA: free "));
	assert_true(daemon_log_wait(d, from, "node 1 HighMem: free "));
}

/* ---- what others had ----------------------------------------------------------------------- */

#define SECRET UINT64_C(0x0ddba11c0ffee5ec)

struct relay {
	struct gate freed, next;
	bool zero;
};

static void leave_secrets(struct test_daemon *d, void *arg)
{
	struct relay *m = arg;
	arena_t *a = client_open(d);
	struct prng r = {.state = 5};
	char *map = client_map(a, 32 * LEAF);

	for (unsigned round = 0; round < 60; round++) {
		unsigned order = (unsigned)prng_below(&r, 10);
		uint64_t *p = arena_alloc_pages(a, ARENA_GFP_KERNEL, order);

		CHECK(p);
		for (size_t i = 0; i < bytes_of(order) / 8; i += 16)
			p[i] = SECRET;
		CHECK_OK(arena_free_pages(a, p, order));
	}
	for (size_t i = 0; i < 32 * LEAF / 8; i += 16)
		((uint64_t *)(void *)map)[i] = SECRET;
	for (unsigned i = 0; i < 32; i += 2)
		CHECK_OK(arena_madvise(a, map + i * LEAF, i % 4 ? LEAF : LEAF - PAGE,
				       MADV_DONTNEED));
	gate_open(&m->freed, 1);
	gate_pass(&m->next);
	arena_close(a);
}

static void find_secrets(struct test_daemon *d, void *arg)
{
	struct relay *m = arg;
	arena_t *a = client_open(d);
	struct prng r = {.state = 6};
	char *map = client_map(a, 48 * LEAF);
	unsigned gfp = ARENA_GFP_KERNEL | ARENA_GFP_NOWARN | (m->zero ? ARENA_GFP_ZERO : 0);

	/* All of it while the other lives, and in the same domain. */
	for (unsigned round = 0; round < 300; round++) {
		unsigned order = (unsigned)prng_below(&r, 10);
		uint64_t *p = arena_alloc_pages(a, gfp, order);

		if (!p)
			break;
		for (size_t i = 0; i < bytes_of(order) / 8; i++)
			CHECK(p[i] != SECRET);
	}
	CHECK(is_zero(map, 48 * LEAF));
	arena_close(a);
}

static void test_secrets(void **state)
{
	for (unsigned zero = 0; zero < 2; zero++) {
		struct relay m = {.freed = gate_make(), .next = gate_make(), .zero = zero};
		pid_t a = client_start(*state, leave_secrets, &m);

		gate_pass(&m.freed);
		client_run(*state, find_secrets, &m);
		gate_open(&m.next, 1);
		client_wait(a);
		client_run(*state, find_secrets, &m);
		gate_close(&m.freed);
		gate_close(&m.next);
	}
}

/* ---- at random ----------------------------------------------------------------------------- */

#define SLOTS 200u

static void do_random(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	struct prng r = {.state = (uintptr_t)arg};
	struct {
		char *p;
		unsigned order;
		uint64_t seed;
	} slot[SLOTS] = {0};

	for (unsigned i = 0; i < test_scaled(6000); i++) {
		unsigned s = (unsigned)prng_below(&r, SLOTS);
		unsigned order = (unsigned)prng_below(&r, 7);

		if (slot[s].p) {
			CHECK(pattern_is(slot[s].p, PAGE, slot[s].seed));
			CHECK(pattern_is(slot[s].p + bytes_of(slot[s].order) - PAGE, PAGE,
					 slot[s].seed + (slot[s].order ? 1 : 0)));
			CHECK_OK(arena_free_pages(a, slot[s].p, slot[s].order));
			slot[s].p = NULL;
			continue;
		}
		slot[s].p = arena_alloc_pages(a, ARENA_GFP_HIGHMEM, order);
		CHECK(slot[s].p);
		slot[s].order = order;
		slot[s].seed = prng_next(&r);
		pattern_fill(slot[s].p, PAGE, slot[s].seed);
		if (order)
			pattern_fill(slot[s].p + bytes_of(order) - PAGE, PAGE, slot[s].seed + 1);
	}
	if ((uintptr_t)arg % 2)
		arena_close(a);
}

static void test_random(void **state)
{
	pid_t pid[4];

	for (uintptr_t i = 0; i < 4; i++)
		pid[i] = client_start(*state, do_random, (void *)(i + 1));
	for (unsigned i = 0; i < 4; i++)
		client_wait(pid[i]);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		daemon_test(test_failure_report), /* first: there is one report a second at most */
		daemon_test(test_orders),         daemon_test(test_zero),
		daemon_test(test_errors),         daemon_test(test_exhaust),
		daemon_test(test_fault_exhaust),  daemon_test(test_secrets),
		daemon_test(test_random),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
