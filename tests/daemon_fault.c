/* SPDX-License-Identifier: MIT */
/*
 * daemon_fault.c - faults of a program with many threads and with signal handlers of its own: ours
 * are never seen, the program's come as Linux would send them.
 */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>

#include "base/prng.h"
#include "tests/lib_client.h"

/* ---- many threads -------------------------------------------------------------------------- */

#define THREADS_MAX 64u

struct crowd {
	char *base;
	size_t pages;
	unsigned nr, index;
	pthread_barrier_t *start;
	arena_t *a;
};

/* Every thread writes its own word of every page, all starting at the same page. */
static void *touch_same(void *arg)
{
	struct crowd *c = arg;

	pthread_barrier_wait(c->start);
	for (size_t i = 0; i < c->pages; i++) {
		uint64_t *w = (uint64_t *)(void *)(c->base + i * PAGE) + c->index;

		CHECK(*(volatile uint64_t *)w == 0);
		*(volatile uint64_t *)w = i * 1000 + c->index;
	}
	return NULL;
}

static void *touch_own(void *arg)
{
	struct crowd *c = arg;

	pthread_barrier_wait(c->start);
	for (size_t i = c->index; i < c->pages; i += c->nr) {
		CHECK(is_zero(c->base + i * PAGE, PAGE));
		pattern_fill(c->base + i * PAGE, PAGE, i);
	}
	return NULL;
}

static void run_crowd(arena_t *a, char *base, size_t pages, unsigned nr, void *(*f)(void *))
{
	struct crowd crowd[THREADS_MAX];
	pthread_t thread[THREADS_MAX];
	pthread_barrier_t start;

	CHECK_OK(pthread_barrier_init(&start, NULL, nr));
	for (unsigned i = 0; i < nr; i++) {
		crowd[i] = (struct crowd){base, pages, nr, i, &start, a};
		CHECK_OK(pthread_create(&thread[i], NULL, f, &crowd[i]));
	}
	for (unsigned i = 0; i < nr; i++)
		CHECK_OK(pthread_join(thread[i], NULL));
	CHECK_OK(pthread_barrier_destroy(&start));
}

static void do_threads(struct test_daemon *d, void *arg)
{
	static const unsigned counts[] = {8, 64};
	arena_t *a = client_open(d);
	size_t pages = test_scaled(4096);

	(void)arg;
	for (unsigned k = 0; k < 4; k++) {
		unsigned nr = counts[k % 2];
		char *p = client_map(a, pages * PAGE), *q = client_map(a, pages * PAGE);

		if (k < 2) {
			CHECK_OK(arena_madvise(a, p, pages * PAGE, MADV_NOHUGEPAGE));
			CHECK_OK(arena_madvise(a, q, pages * PAGE, MADV_NOHUGEPAGE));
		}
		run_crowd(a, p, pages, nr, touch_same);
		for (size_t i = 0; i < pages; i++)
			for (unsigned t = 0; t < nr; t++)
				CHECK(((uint64_t *)(void *)(p + i * PAGE))[t] == i * 1000 + t);
		run_crowd(a, q, pages, nr, touch_own);
		for (size_t i = 0; i < pages; i++)
			CHECK(pattern_is(q + i * PAGE, PAGE, i));
		CHECK_OK(arena_munmap(a, p, pages * PAGE));
		CHECK_OK(arena_munmap(a, q, pages * PAGE));
	}
	arena_close(a);
}

static void test_threads(void **state)
{
	client_run(*state, do_threads, NULL);
}

/* Threads map, write, check, protect and unmap memory of their own, all at once. */
static void *churn(void *arg)
{
	struct crowd *c = arg;
	struct prng r = {.state = c->index + 1};

	pthread_barrier_wait(c->start);
	for (size_t i = 0; i < c->pages; i++) {
		size_t len = (1 + prng_below(&r, 700)) * PAGE,
		       cut = prng_below(&r, len / PAGE) * PAGE;
		char *p = client_map(c->a, len);

		pattern_fill(p, len, i);
		CHECK(pattern_is(p, len, i));
		if (cut) {
			CHECK_OK(arena_mprotect(c->a, p, cut, PROT_READ));
			CHECK_OK(arena_madvise(c->a, p + cut, len - cut, MADV_DONTNEED));
			CHECK(pattern_is(p, cut, i));
			CHECK(is_zero(p + cut, len - cut));
			CHECK_OK(arena_munmap(c->a, p, cut));
		}
		CHECK_OK(arena_munmap(c->a, p + cut, len - cut));
	}
	return NULL;
}

static void do_churn(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);

	(void)arg;
	run_crowd(a, NULL, test_scaled(60), 16, churn);
	arena_close(a);
}

static void test_churn(void **state)
{
	client_run(*state, do_churn, NULL);
}

/* ---- the software TLB's limit -------------------------------------------------------------- */

#define SCATTERED ((220ul << 20) / PAGE) /* and as much again for the copies */

static uint64_t evictions_of(arena_t *a)
{
	char text[65536], pid[16], value[32];

	CHECK(arena_attr_read(a, CLIENTS_PATH, text, sizeof(text)) > 0);
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	CHECK(table_lookup(text, "pid", pid, "evictions", value, sizeof(value)));
	return strtoull(value, NULL, 10);
}

/*
 * More pages than the kernel has mappings for, each touched in an order that lets no two
 * neighbours get neighbouring frames, so that no two mappings merge.
 */
static void do_scattered(struct test_daemon *d, void *arg)
{
	size_t pages = SCATTERED, step = 40507; /* no factor of the number of pages */
	arena_t *a = client_open(d);
	char *p = client_map(a, pages * PAGE);
	uint64_t *evictions = arg;

	CHECK_OK(arena_madvise(a, p, pages * PAGE, MADV_NOHUGEPAGE));
	CHECK_OK(arena_madvise(a, p, pages * PAGE, MADV_RANDOM));
	for (size_t i = 0, at = 0; i < pages; i++, at = (at + step) % pages)
		*(uint64_t *)(void *)(p + at * PAGE) = at + 1;
	for (int pass = 0; pass < 2; pass++) {
		for (size_t i = 0, at = 0; i < pages; i++, at = (at + step) % pages)
			CHECK(*(uint64_t *)(void *)(p + at * PAGE) == at + 1);
		evictions[pass] = evictions_of(a);
	}
	arena_close(a);
}

static void test_scattered(void **state)
{
	const struct test_daemon *d = *state;
	uint64_t *evictions = shared_alloc(2 * sizeof(*evictions));

	client_run(*state, do_scattered, evictions);
	/* The whole flush of each worker's recovery makes room, too. */
	assert_true(evictions[0] > 0 || d->killer);
	/* By then the pages were moved together, and all of them can be mapped. */
	assert_true(evictions[1] == evictions[0] || d->killer);
	print_message("%u evictions\n", (unsigned)evictions[0]);
	shared_free(evictions, 2 * sizeof(*evictions));
}

/* ---- filling ahead ------------------------------------------------------------------------- */

static void do_sequential(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	size_t len = test_scaled(96) * LEAF;
	char *p = client_map(a, len);
	uint64_t *faults = arg;
	char text[65536], pid[16], value[32];

	for (size_t at = 0; at < len; at += PAGE) {
		CHECK(*(volatile uint64_t *)(void *)(p + at) == 0);
		*(volatile uint64_t *)(void *)(p + at) = at + 1;
		*(volatile uint64_t *)(void *)(p + at + PAGE - 8) = ~at;
	}
	for (size_t at = 0; at < len; at += PAGE) {
		CHECK(*(uint64_t *)(void *)(p + at) == at + 1);
		CHECK(*(uint64_t *)(void *)(p + at + PAGE - 8) == ~at);
		CHECK(is_zero(p + at + 8, PAGE - 16));
	}
	CHECK(arena_attr_read(a, CLIENTS_PATH, text, sizeof(text)) > 0);
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	CHECK(table_lookup(text, "pid", pid, "faults", value, sizeof(value)));
	*faults = strtoull(value, NULL, 10);
	arena_close(a);
}

static void test_sequential(void **state)
{
	const struct test_daemon *d = *state;
	uint64_t *faults = shared_alloc(sizeof(*faults));

	client_run(*state, do_sequential, faults);
	/* One a leaf would be as many as there are leaves; without leaves, 512 times that. */
	print_message("%u leaves in %llu faults\n", test_scaled(96), (unsigned long long)*faults);
	/* Each worker counts for itself, and begins with small windows. */
	assert_true(d->killer || (*faults > 0 && *faults <= test_scaled(96) + 8));
	shared_free(faults, sizeof(*faults));
}

/* ---- the program's own handlers ------------------------------------------------------------ */

static sigjmp_buf jump;
static volatile sig_atomic_t seen_signal, seen_code, seen_blocked, on_alternate;
static void *volatile seen_addr;
static stack_t alternate;
static volatile char *volatile nowhere = (volatile char *)16;

static bool blocked_now(int sig)
{
	sigset_t set;

	pthread_sigmask(SIG_SETMASK, NULL, &set);
	return sigismember(&set, sig);
}

static void with_info(int sig, siginfo_t *info, void *context)
{
	char here;

	(void)context;
	seen_signal = sig;
	seen_code = info->si_code;
	seen_addr = info->si_addr;
	seen_blocked = blocked_now(SIGSEGV) | blocked_now(SIGUSR1) << 1;
	on_alternate = alternate.ss_sp && &here >= (char *)alternate.ss_sp &&
		       &here < (char *)alternate.ss_sp + alternate.ss_size;
	siglongjmp(jump, 1);
}

static void without_info(int sig)
{
	seen_signal = sig;
	seen_blocked = blocked_now(SIGSEGV);
	siglongjmp(jump, 1);
}

/* True if the write was a fault that a handler saw. */
static bool poke(volatile char *p)
{
	seen_signal = 0;
	seen_addr = NULL;
	if (sigsetjmp(jump, 1))
		return true;
	*p = 1;
	return false;
}

static void set_action(void (*f)(int, siginfo_t *, void *), int flags, int also_blocked)
{
	struct sigaction act = {.sa_sigaction = f, .sa_flags = SA_SIGINFO | flags};

	if (also_blocked)
		sigaddset(&act.sa_mask, also_blocked);
	CHECK_OK(sigaction(SIGSEGV, &act, NULL));
	CHECK_OK(sigaction(SIGBUS, &act, NULL));
}

/* What the handler is told of wild accesses, in the window and outside of it. */
static void check_wild(arena_t *a, char *mapped)
{
	char *outside = mmap(NULL, 2 * PAGE, PROT_READ, ANON, -1, 0);
	size_t size;
	void *base;

	arena_window(a, &base, &size);
	CHECK(poke((char *)base + size - 3 * PAGE + 5));
	CHECK(seen_signal == SIGSEGV && seen_code == SEGV_MAPERR);
	CHECK(seen_addr == (char *)base + size - 3 * PAGE + 5);
	CHECK(poke(outside + 7));
	CHECK(seen_signal == SIGSEGV && seen_code == SEGV_ACCERR && seen_addr == outside + 7);
	munmap(outside, 2 * PAGE);
	CHECK(poke(outside + 9));
	CHECK(seen_signal == SIGSEGV && seen_code == SEGV_MAPERR && seen_addr == outside + 9);
	CHECK(poke(nowhere));
	CHECK(seen_code == SEGV_MAPERR && seen_addr == (void *)16);
	CHECK_OK(arena_mprotect(a, mapped, PAGE, PROT_READ));
	CHECK(poke(mapped + 11));
	CHECK(seen_signal == SIGSEGV && seen_code == SEGV_ACCERR && seen_addr == mapped + 11);
	CHECK_OK(arena_mprotect(a, mapped, PAGE, RW));
	CHECK(!poke(mapped + 11));
	CHECK(!blocked_now(SIGSEGV));
}

static void do_handlers(struct test_daemon *d, void *arg)
{
	bool before = arg;
	struct sigaction old;
	arena_t *a = NULL;
	char *p;

	if (before)
		set_action(with_info, 0, 0);
	a = client_open(d);
	p = client_map(a, 64 * PAGE);
	if (!before)
		set_action(with_info, 0, 0);
	check_wild(a, p);
	CHECK(poke(nowhere) && (seen_blocked == 1 || TEST_TSAN));
	/* What sigaction() tells is the program's own, not the library's. */
	CHECK_OK(sigaction(SIGSEGV, NULL, &old));
	CHECK((old.sa_sigaction == with_info || TEST_TSAN) && (old.sa_flags & SA_SIGINFO));

	set_action(with_info, SA_NODEFER, SIGUSR1);
	CHECK(poke(nowhere) && (seen_blocked == 2 || TEST_TSAN));
	p[PAGE] = 1;

	CHECK(signal(SIGSEGV, without_info) != SIG_ERR);
	CHECK(poke(nowhere) && (seen_blocked == 1 || TEST_TSAN));
	CHECK(signal(SIGSEGV, without_info) == without_info);
	p[2 * PAGE] = 1;

	alternate.ss_size = 1 << 16;
	alternate.ss_sp = malloc(alternate.ss_size);
	CHECK_OK(sigaltstack(&alternate, NULL));
	set_action(with_info, SA_ONSTACK, 0);
	CHECK(poke(nowhere) && on_alternate);
	p[3 * PAGE] = 1;
	CHECK(p[3 * PAGE] == 1);
	alternate.ss_flags = SS_DISABLE;
	CHECK_OK(sigaltstack(&alternate, NULL));

	/* After the library is gone the handler is still the program's. */
	set_action(with_info, 0, 0);
	arena_close(a);
	CHECK(poke(p));
	CHECK(seen_signal == SIGSEGV && seen_addr == p);
}

static void test_handlers(void **state)
{
	client_run(*state, do_handlers, (void *)1);
	client_run(*state, do_handlers, NULL);
}

/* ---- handlers that are called once, and none ----------------------------------------------- */

static void die_of_second(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 64 * LEAF);

	(void)arg;
	set_action(with_info, (int)SA_RESETHAND, 0);
	for (unsigned i = 0; i < 8; i++)
		p[i * 4 * LEAF] = 1; /* ours do not use it up */
	CHECK(poke(nowhere));
	p[LEAF] = 1;
	*nowhere = 1;
}

static void wild_in_window(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, PAGE);

	(void)arg;
	signal(SIGSEGV, SIG_DFL);
	p[0] = 1;
	CHECK_OK(arena_munmap(a, p, PAGE));
	*(volatile char *)p = 1;
}

static void wild_outside(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);

	(void)arg;
	signal(SIGSEGV, SIG_DFL);
	*(char *)client_map(a, PAGE) = 1;
	*nowhere = 1;
}

static void ignored(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);

	(void)arg;
	signal(SIGSEGV, SIG_IGN);
	*(char *)client_map(a, PAGE) = 1;
	raise(SIGSEGV); /* sent, so it can be ignored */
	*nowhere = 1;
}

static void fault_of_another_thread(struct test_daemon *d, void *arg);

static void test_default_action(void **state)
{
	static const client_fn wild[] = {die_of_second, wild_in_window, wild_outside, ignored,
					 fault_of_another_thread};

	for (size_t i = 0; i < sizeof(wild) / sizeof(wild[0]); i++)
		client_wait_signal(client_start(*state, wild[i], NULL), SIGSEGV);
}

static void *wild_thread(void *arg)
{
	*(volatile char *)arg = 1;
	return NULL;
}

static void fault_of_another_thread(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, PAGE);
	pthread_t t;

	(void)arg;
	signal(SIGSEGV, SIG_DFL);
	CHECK_OK(arena_mprotect(a, p, PAGE, PROT_READ));
	CHECK_OK(pthread_create(&t, NULL, wild_thread, p));
	pthread_join(t, NULL);
}

/* Faults inside the program's handlers, and signals in the middle of faults. */
static char *handler_memory;
static volatile unsigned handled;

static void touching_handler(int sig)
{
	(void)sig;
	handler_memory[handled++ % 1024 * PAGE] = 1;
}

static void do_signals_everywhere(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	struct sigaction act = {.sa_handler = touching_handler, .sa_flags = SA_RESTART};
	struct itimerspec often = {.it_value.tv_nsec = 200000, .it_interval.tv_nsec = 200000};
	size_t pages = test_scaled(8192);
	char *p = client_map(a, pages * PAGE);
	timer_t timer;

	(void)arg;
	handler_memory = client_map(a, 1024 * PAGE);
	CHECK_OK(arena_madvise(a, handler_memory, 1024 * PAGE, MADV_NOHUGEPAGE));
	CHECK_OK(arena_madvise(a, p, pages * PAGE, MADV_NOHUGEPAGE));
	CHECK_OK(arena_madvise(a, p, pages * PAGE, MADV_RANDOM));
	CHECK_OK(sigaction(SIGALRM, &act, NULL));
	CHECK_OK(timer_create(CLOCK_MONOTONIC, NULL, &timer));
	CHECK_OK(timer_settime(timer, 0, &often, NULL));
	for (unsigned round = 0; round < 3 || handled < 20; round++) {
		for (size_t i = 0; i < pages; i++)
			*(uint64_t *)(void *)(p + i * PAGE) = i + round;
		for (size_t i = 0; i < pages; i++)
			CHECK(*(uint64_t *)(void *)(p + i * PAGE) == i + round);
		CHECK_OK(arena_madvise(a, p, pages * PAGE, MADV_DONTNEED));
	}
	CHECK_OK(timer_delete(timer));
	arena_close(a);
}

static void test_signals_everywhere(void **state)
{
	if (TEST_TSAN)
		skip();
	client_run(*state, do_signals_everywhere, NULL);
}

/* ---- past the end of a segment ------------------------------------------------------------- */

static void do_bus_error(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, "/fault-bus", O_RDWR | O_CREAT | O_EXCL, 0600);
	char *p;

	(void)arg;
	set_action(with_info, 0, 0);
	CHECK_OK(arena_shm_truncate(s, 3 * PAGE + 1));
	p = arena_shm_mmap(s, NULL, 8 * PAGE, RW, MAP_SHARED, 0);
	CHECK(p != MAP_FAILED);
	/* The rest of the last page is there, and zero; what follows is not. */
	CHECK(!poke(p) && !poke(p + 4 * PAGE - 1));
	CHECK(poke(p + 4 * PAGE + 3));
	CHECK(seen_signal == SIGBUS && seen_code == BUS_ADRERR && seen_addr == p + 4 * PAGE + 3);
	CHECK_OK(arena_shm_truncate(s, PAGE));
	CHECK(!poke(p));
	CHECK(poke(p + PAGE));
	CHECK(seen_signal == SIGBUS && seen_code == BUS_ADRERR && seen_addr == p + PAGE);
	CHECK_OK(arena_shm_truncate(s, 8 * PAGE));
	CHECK(is_zero(p + PAGE, 7 * PAGE));
	CHECK_OK(arena_shm_unlink(a, "/fault-bus"));
	arena_shm_close(s);
	arena_close(a);
}

static void test_bus_error(void **state)
{
	client_run(*state, do_bus_error, NULL);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		daemon_test(test_threads),
		daemon_test(test_churn),
		daemon_test(test_scattered),
		daemon_test(test_sequential),
		daemon_test(test_handlers),
		daemon_test(test_default_action),
		daemon_test(test_signals_everywhere),
		daemon_test(test_bus_error),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
