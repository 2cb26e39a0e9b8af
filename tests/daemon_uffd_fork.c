/* SPDX-License-Identifier: MIT */
/*
 * daemon_uffd_fork.c - fork() under the userfaultfd trap: from stacks in arena memory, with all signals
 * blocked, in the middle of a handler, from many threads, generation after generation, while workers
 * die; and what the child's system calls find in pages that it shares with its parent.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>

#include "base/util.h"
#include "tests/lib_uffd.h"

#define STACK (2 * LEAF)

/* It keeps data about stacks; and a child inherits its allocator as locked by a thread that it does not have. */
static void not_for_sanitizers(void)
{
	if (!TEST_SANITIZED)
		return;
	print_message("skipped: a sanitizer cannot follow it\n");
	skip();
}

/* ---- stacks -------------------------------------------------------------------------------- */

struct forker {
	arena_t *a;
	char *stack;
	uint64_t *words; /* one a generation */
	pthread_barrier_t *start;
	unsigned generations, width;
};

/* Frames above the fork hold what they held; deeper ones, and thread-local data, work. */
static unsigned generation(struct forker *f, unsigned depth)
{
	volatile char frame[3000];
	unsigned sum = 0;

	for (size_t i = 0; i < sizeof(frame); i++)
		frame[i] = (char)(i * 7 + depth);
	for (unsigned i = 0; i < depth; i++)
		CHECK(f->words[i] == i + 1);
	if (depth == f->generations)
		return 0;
	f->words[depth] = depth + 1;
	for (unsigned i = 0; i < f->width; i++) {
		pid_t pid;

		errno = 77;
		IN_CHILD(pid)
		{
			CHECK(errno == 77);
			CHECK((pid_t)syscall(SYS_gettid) == getpid());
			generation(f, depth + 1);
			f->words[0] = 99;
		}
		expect_child(pid);
		CHECK(f->words[0] == 1);
		sum++;
	}
	for (size_t i = 0; i < sizeof(frame); i++)
		CHECK(frame[i] == (char)(i * 7 + depth));
	return sum;
}

static void *fork_on_stack(void *arg)
{
	struct forker *f = arg;
	char here;

	CHECK(&here > f->stack && &here < f->stack + STACK);
	if (f->start)
		pthread_barrier_wait(f->start);
	CHECK(generation(f, 0) == f->width);
	return NULL;
}

static pthread_t start_on_stack(struct forker *f)
{
	pthread_attr_t attr;
	pthread_t thread;

	f->stack = client_map(f->a, STACK);
	f->words = client_map(f->a, PAGE);
	CHECK_OK(pthread_attr_init(&attr));
	CHECK_OK(pthread_attr_setstack(&attr, f->stack, STACK));
	CHECK_OK(pthread_create(&thread, &attr, fork_on_stack, f));
	CHECK_OK(pthread_attr_destroy(&attr));
	return thread;
}

/* The thread's stack, its thread-local data, and the C library's data about it lie in the arena. */
static void do_thread(struct test_daemon *d, void *arg)
{
	struct forker f = {.a = uffd_open(d), .generations = 5, .width = 2};

	(void)arg;
	CHECK_OK(pthread_join(start_on_stack(&f), NULL));
	arena_close(f.a);
}

static void test_thread(void **state)
{
	if (TEST_SANITIZED)
		skip(); /* a sanitizer wants to know every stack */
	uffd_run(*state, do_thread, NULL);
}

/* Several at once: each child sees the others' data, too, as the C library looks after all. */
static void do_threads(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);
	pthread_barrier_t start;
	struct forker f[4];
	pthread_t thread[4];

	(void)arg;
	CHECK_OK(pthread_barrier_init(&start, NULL, 4));
	for (int i = 0; i < 4; i++) {
		f[i] = (struct forker){.a = a, .start = &start, .generations = 2, .width = 4};
		thread[i] = start_on_stack(&f[i]);
	}
	for (int i = 0; i < 4; i++)
		CHECK_OK(pthread_join(thread[i], NULL));
	arena_close(a);
}

static void test_threads(void **state)
{
	not_for_sanitizers();
	uffd_run(*state, do_threads, NULL);
}

/* The stack's mappings, and those of the thread's data on it, go again and again while it forks. */
struct flusher {
	arena_t *a;
	char *stack;
	uint32_t stop;
};

static void *flush_on(void *arg)
{
	struct flusher *f = arg;

	while (!load_relaxed(&f->stop)) {
		void *copy = arena_snapshot(f->a, f->stack, STACK);

		CHECK(copy != MAP_FAILED);
		CHECK_OK(arena_munmap(f->a, copy, STACK));
	}
	return NULL;
}

static void do_flushed(struct test_daemon *d, void *arg)
{
	struct forker f = {.a = uffd_open(d), .generations = 1, .width = test_scaled(100)};
	struct flusher other = {.a = f.a};
	pthread_t thread, flusher;

	(void)arg;
	thread = start_on_stack(&f);
	other.stack = f.stack;
	CHECK_OK(pthread_create(&flusher, NULL, flush_on, &other));
	CHECK_OK(pthread_join(thread, NULL));
	store_relaxed(&other.stop, 1);
	CHECK_OK(pthread_join(flusher, NULL));
	arena_close(f.a);
}

static void test_flushed(void **state)
{
	not_for_sanitizers();
	uffd_run(*state, do_flushed, NULL);
}

/* A coroutine: another stack, the same thread. */
static ucontext_t outside, inside;
static struct forker *in_coroutine;

static void coroutine(void)
{
	fork_on_stack(in_coroutine);
}

static void do_coroutine(struct test_daemon *d, void *arg)
{
	struct forker f = {.a = uffd_open(d), .generations = 4, .width = 2};

	(void)arg;
	f.stack = client_map(f.a, STACK);
	f.words = client_map(f.a, PAGE);
	in_coroutine = &f;
	CHECK_OK(getcontext(&inside));
	inside.uc_stack.ss_sp = f.stack;
	inside.uc_stack.ss_size = STACK;
	inside.uc_link = &outside;
	makecontext(&inside, coroutine, 0);
	CHECK_OK(swapcontext(&outside, &inside));
	arena_close(f.a);
}

static void test_coroutine(void **state)
{
	not_for_sanitizers();
	uffd_run(*state, do_coroutine, NULL);
}

static struct forker *in_handler;

static void fork_in_handler(int sig)
{
	(void)sig;
	fork_on_stack(in_handler);
}

static void do_handler(struct test_daemon *d, void *arg)
{
	struct forker f = {.a = uffd_open(d), .generations = 3, .width = 2};
	struct sigaction act = {.sa_handler = fork_in_handler, .sa_flags = SA_ONSTACK};
	stack_t stack = {.ss_size = STACK}, off = {.ss_flags = SS_DISABLE};

	(void)arg;
	sigfillset(&act.sa_mask);
	f.stack = client_map(f.a, STACK);
	f.words = client_map(f.a, PAGE);
	in_handler = &f;
	stack.ss_sp = f.stack;
	CHECK_OK(sigaltstack(&stack, NULL));
	CHECK_OK(sigaction(SIGUSR1, &act, NULL));
	CHECK_OK(raise(SIGUSR1));
	CHECK_OK(sigaltstack(&off, NULL));
	arena_close(f.a);
}

static void test_handler(void **state)
{
	not_for_sanitizers();
	uffd_run(*state, do_handler, NULL);
}

/* ---- signals -------------------------------------------------------------------------------- */

static void touch_everything(arena_t *a)
{
	for (int s = 0; s < UFFD_NR_STATES; s++) {
		struct uffd_pages pages;

		uffd_make(a, (enum uffd_state)s, 8 * PAGE, &pages);
		uffd_check_rest(&pages, 0, 0);
		pattern_fill(pages.p, 8 * PAGE, (uint64_t)s);
		CHECK(pattern_is(pages.p, 8 * PAGE, (uint64_t)s));
		uffd_end(a, &pages);
	}
}

static void do_blocked(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);
	char *p = client_map(a, LEAF);
	sigset_t all, now, before;
	struct sigaction act;
	pid_t pid;

	(void)arg;
	/* cmocka has a handler of its own. */
	CHECK(signal(SIGSYS, SIG_DFL) != SIG_ERR);
	pattern_fill(p, LEAF, 3);
	sigfillset(&all);
	CHECK_OK(sigprocmask(SIG_BLOCK, &all, NULL));
	CHECK_OK(sigprocmask(SIG_BLOCK, NULL, &before));
	/* What is sent to the parent is the parent's; the child has a mask of the same kind. */
	CHECK_OK(raise(SIGTERM));
	CHECK_OK(raise(SIGSYS));
	IN_CHILD(pid)
	{
		CHECK(pattern_is(p, LEAF, 3));
		CHECK_OK(sigprocmask(SIG_BLOCK, NULL, &now));
		CHECK(memcmp(&now, &before, sizeof(uint64_t)) == 0);
		CHECK_OK(sigpending(&now));
		CHECK(!sigismember(&now, SIGTERM));
		touch_everything(a);
	}
	expect_child(pid);
	CHECK_OK(sigprocmask(SIG_BLOCK, NULL, &now));
	CHECK(memcmp(&now, &before, sizeof(uint64_t)) == 0);
	CHECK_OK(sigpending(&now));
	CHECK(sigismember(&now, SIGTERM) && sigismember(&now, SIGSYS));
	CHECK_OK(sigaction(SIGSYS, NULL, &act));
	CHECK(act.sa_handler == SIG_DFL);
	arena_close(a);
}

static void test_blocked(void **state)
{
	uffd_run(*state, do_blocked, NULL);
}

/* ---- system calls ---------------------------------------------------------------------------- */

#define FROM 1000ul
#define TO (5 * PAGE + 77)

static char bytes[TO - FROM];

static void fill_by_call(char *p, size_t len, bool datagram)
{
	int fd[2];

	CHECK_OK(socketpair(AF_UNIX, datagram ? SOCK_DGRAM : SOCK_STREAM, 0, fd));
	CHECK(send(fd[1], bytes, len, 0) == (ssize_t)len);
	if (datagram)
		CHECK(recv(fd[0], p, len, 0) == (ssize_t)len);
	else
		CHECK(recv(fd[0], p, len, MSG_WAITALL) == (ssize_t)len);
	close(fd[0]);
	close(fd[1]);
}

static void write_and_compare(const struct uffd_pages *pages, char *copy)
{
	size_t done = 0, got = 0;
	int fd[2];

	CHECK_OK(pipe(fd));
	while (done < pages->len) {
		ssize_t n = write(fd[1], pages->p + done, MIN(pages->len - done, 16 * PAGE));

		CHECK(n > 0);
		done += (size_t)n;
		while (got < done) {
			n = read(fd[0], copy + got, done - got);
			CHECK(n > 0);
			got += (size_t)n;
		}
	}
	CHECK(pages->zero ? is_zero(copy, pages->len) : pattern_is(copy, pages->len, 7));
	close(fd[0]);
	close(fd[1]);
}

/* What one side does by system calls to pages that the other has as well; neither sees the other's. */
static void use_side(const struct uffd_pages *pages, bool writes, bool datagram)
{
	char *copy = malloc(pages->len);

	CHECK(copy);
	if (writes) {
		fill_by_call(pages->p + FROM, TO - FROM, datagram);
		CHECK(memcmp(pages->p + FROM, bytes, TO - FROM) == 0);
		uffd_check_rest(pages, FROM, TO);
	} else {
		write_and_compare(pages, copy);
	}
	free(copy);
}

/* ways: which side begins, and with what. */
static void fork_with_pages(struct test_daemon *d, unsigned way)
{
	arena_t *a = uffd_open(d);

	for (int s = 0; s < UFFD_NR_STATES; s++) {
		struct uffd_pages pages;
		pid_t pid;

		uffd_make(a, (enum uffd_state)s, 8 * PAGE, &pages);
		IN_CHILD(pid)
		{
			use_side(&pages, way & 1, way & 2);
			if (way & 4)
				close_range(3, ~0U, 0);
			use_side(&pages, true, !(way & 2));
		}
		if (way & 8)
			use_side(&pages, true, way & 2);
		expect_child(pid);
		if (!(way & 8))
			use_side(&pages, false, false);
		else
			CHECK(memcmp(pages.p + FROM, bytes, TO - FROM) == 0);
		uffd_end(a, &pages);
	}
	arena_close(a);
}

static void do_calls(struct test_daemon *d, void *arg)
{
	(void)arg;
	CHECK(getrandom(bytes, sizeof(bytes), 0) == (ssize_t)sizeof(bytes));
	for (unsigned way = 0; way < 16; way++)
		fork_with_pages(d, way);
}

static void test_calls(void **state)
{
	not_for_sanitizers();
	uffd_run(*state, do_calls, NULL);
}

/* The same after arena_snapshot(): both ranges are to be copied at the first write. */
static void do_snapshot(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);

	(void)arg;
	CHECK(getrandom(bytes, sizeof(bytes), 0) == (ssize_t)sizeof(bytes));
	for (int s = 0; s < UFFD_NR_STATES; s++)
		for (unsigned way = 0; way < 8; way++) {
			struct uffd_pages pages, copy;

			if (s == UFFD_COW || s == UFFD_COW_FRESH)
				continue;
			uffd_make(a, (enum uffd_state)s, 8 * PAGE, &pages);
			copy = pages;
			copy.p = arena_snapshot(a, pages.p, 8 * PAGE);
			CHECK(copy.p != MAP_FAILED);
			use_side(way & 4 ? &copy : &pages, way & 1, way & 2);
			use_side(way & 4 ? &pages : &copy, false, false);
			use_side(way & 4 ? &pages : &copy, true, way & 2);
			CHECK_OK(arena_munmap(a, copy.p, 8 * PAGE));
			uffd_end(a, &pages);
		}
	arena_close(a);
}

static void test_snapshot(void **state)
{
	uffd_run(*state, do_snapshot, NULL);
}

/* ---- descriptors ------------------------------------------------------------------------------- */

static void do_closed(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);
	char *p = client_map(a, LEAF);
	pid_t pid, next;

	(void)arg;
	pattern_fill(p, LEAF, 5);
	CHECK_OK((int)syscall(SYS_close_range, 3, ~0U, 0));
	IN_CHILD(pid)
	{
		/* None of the library's is in the child's table. */
		for (int fd = 3; fd < 8192; fd++)
			CHECK(fcntl(fd, F_GETFD) == -1);
		CHECK_OK((int)syscall(SYS_close_range, 0, ~0U, 0));
		CHECK(pattern_is(p, LEAF, 5));
		touch_everything(a);
		IN_CHILD(next)
		{
			CHECK(pattern_is(p, LEAF, 5));
			touch_everything(a);
			CHECK_OK(arena_null(a));
		}
		expect_child(next);
	}
	expect_child(pid);
	touch_everything(a);
	arena_close(a);
}

static void test_closed(void **state)
{
	uffd_run(*state, do_closed, NULL);
}

/* ---- handles ------------------------------------------------------------------------------------- */

/* Opened before, used in children only; two arenas of different traps beside each other. */
static void do_handles(struct test_daemon *d, void *arg)
{
	arena_t *late = client_open_trap(d, ARENA_TRAP_USERFAULTFD);
	arena_t *a = uffd_open(d), *b = client_open_trap(d, ARENA_TRAP_SIGNAL);
	char *p = client_map(a, LEAF), *q = client_map(b, LEAF);
	pid_t pid;

	(void)arg;
	pattern_fill(p, LEAF, 1);
	pattern_fill(q, LEAF, 2);
	for (int i = 0; i < 2; i++) {
		IN_CHILD(pid)
		{
			CHECK(pattern_is(p, LEAF, 1));
			CHECK(pattern_is(q, LEAF, 2));
			CHECK(strcmp(arena_trap_name(a), "userfaultfd") == 0);
			CHECK(strcmp(arena_trap_name(b), "signal") == 0);
			pattern_fill(client_map(late, LEAF), LEAF, 3);
			touch_everything(late);
			touch_everything(a);
			arena_close(late);
			CHECK(pattern_is(p, LEAF, 1));
			arena_close(a);
			CHECK(pattern_is(q, LEAF, 2));
			arena_close(b);
		}
		expect_child(pid);
	}
	CHECK(try_write(p, NULL) == 0);
	arena_close(a);
	arena_close(b);
	arena_close(late);
}

static void test_handles(void **state)
{
	if (TEST_TSAN)
		skip(); /* it does not forget the threads of the parent */
	uffd_run(*state, do_handles, NULL);
}

/* Where the call cannot be caught, the handlers do it. */
static void do_uncaught(struct test_daemon *d, void *arg)
{
	arena_t *a;
	char *p;
	pid_t pid, next;

	(void)arg;
	client_faultpoints("client.catch=fail");
	a = uffd_open(d);
	p = client_map(a, LEAF);
	pattern_fill(p, LEAF, 8);
	IN_CHILD(pid)
	{
		CHECK(pattern_is(p, LEAF, 8));
		touch_everything(a);
		CHECK(strcmp(arena_trap_name(a), "userfaultfd") == 0);
		IN_CHILD(next) touch_everything(a);
		expect_child(next);
	}
	expect_child(pid);
	arena_close(a);
}

static void test_uncaught(void **state)
{
	uffd_run(*state, do_uncaught, NULL);
}

/* ---- a tree --------------------------------------------------------------------------------------- */

/* Wide and five deep: each process counts itself in shared memory, writes to its copy, checks it. */
struct tree {
	uint64_t *counter; /* in a shared mapping */
	char *p;
	unsigned width[5];
};

static void grow(struct tree *t, unsigned depth, uint64_t seed)
{
	pid_t pid[16];

	__atomic_fetch_add(t->counter, 1, __ATOMIC_SEQ_CST);
	CHECK(pattern_is(t->p, 2 * LEAF, seed));
	if (depth == ARRAY_SIZE(t->width))
		return;
	for (unsigned i = 0; i < t->width[depth]; i++) {
		IN_CHILD(pid[i])
		{
			CHECK(pattern_is(t->p, 2 * LEAF, seed));
			pattern_fill(t->p, 2 * LEAF, seed * 16 + i);
			grow(t, depth + 1, seed * 16 + i);
		}
	}
	for (unsigned i = 0; i < t->width[depth]; i++)
		expect_child(pid[i]);
	CHECK(pattern_is(t->p, 2 * LEAF, seed));
}

static void do_tree(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);
	struct tree t = {.p = client_map(a, 2 * LEAF), .width = {4, 3, 2, 2, 1}};
	uint64_t expected = 1;

	(void)arg;
	/* The more clients, the longer a recovery takes. */
	if (getenv("ARENA_TEST_KILL"))
		memcpy(t.width, (unsigned[5]){2, 2, 1, 1, 1}, sizeof(t.width));
	for (unsigned i = ARRAY_SIZE(t.width); i-- > 0;)
		expected = 1 + t.width[i] * expected;
	t.counter = arena_mmap(a, NULL, PAGE, RW, ANON_SHARED, -1, 0);
	CHECK(t.counter != MAP_FAILED);
	pattern_fill(t.p, 2 * LEAF, 1);
	grow(&t, 0, 1);
	CHECK(*t.counter == expected);
	arena_close(a);
}

static void test_tree(void **state)
{
	not_for_sanitizers();
	client_run(*state, do_tree, NULL);
}

/* ---- workers die ------------------------------------------------------------------------------------ */

struct deaths {
	unsigned children;
	volatile uint32_t *done;
};

static void fork_on(struct test_daemon *d, void *arg)
{
	struct deaths *deaths = arg;
	arena_t *a = uffd_open(d);
	struct forker f = {.a = a, .generations = 3, .width = 2};
	char *p = client_map(a, LEAF + 5 * PAGE);
	pid_t pid;

	for (unsigned i = 0; i < deaths->children; i++) {
		pattern_fill(p, LEAF + 5 * PAGE, i);
		IN_CHILD(pid)
		{
			CHECK(pattern_is(p, LEAF + 5 * PAGE, i));
			fill_by_call(p, TO - FROM, true);
			CHECK(memcmp(p, bytes, TO - FROM) == 0);
			touch_everything(a);
		}
		expect_child(pid);
		CHECK(pattern_is(p, LEAF + 5 * PAGE, i));
		if (!TEST_SANITIZED) {
			CHECK_OK(pthread_join(start_on_stack(&f), NULL));
			CHECK_OK(arena_munmap(a, f.stack, STACK));
			CHECK_OK(arena_munmap(a, f.words, PAGE));
		}
	}
	store_release(deaths->done, 1);
	arena_close(a);
}

static void test_deaths(void **state)
{
	struct test_daemon *d = *state;
	struct deaths deaths = {.children = test_scaled(16), .done = shared_alloc(PAGE)};
	unsigned seed = 1, nr = 0;
	pid_t pid;

	d->expect_deaths = true;
	pid = client_start(d, fork_on, &deaths);
	while (!load_acquire(deaths.done) && kill(pid, 0) == 0 && nr < 25) {
		siginfo_t info = {0};

		/* From just after the last one was ready to some milliseconds later. */
		usleep(rand_r(&seed) % 12000);
		daemon_kill_worker(d);
		nr++;
		if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
		    info.si_pid == pid)
			break;
	}
	client_wait(pid);
	printf("%u workers died\n", nr);
	assert_true(nr > 5);
	shared_free((void *)(uintptr_t)deaths.done, PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		daemon_test(test_thread),    daemon_test(test_flushed),  daemon_test(test_threads),
		daemon_test(test_coroutine), daemon_test(test_handler),  daemon_test(test_blocked),
		daemon_test(test_calls),     daemon_test(test_snapshot), daemon_test(test_closed),
		daemon_test(test_handles),   daemon_test(test_uncaught), daemon_test(test_tree),
		daemon_test(test_deaths),
	};

	return cmocka_run_group_tests(tests, uffd_group_setup, daemon_group_teardown);
}
