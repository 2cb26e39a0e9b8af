/* SPDX-License-Identifier: MIT */
/*
 * daemon_uffd_program.c - what programs do that know nothing of the arena: block all signals, run on
 * stacks that lie in it, close every descriptor, change their user, fork, end in the middle. Under the
 * userfaultfd trap all of it works, and no byte is ever read as a zero that was not one.
 */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/lib_uffd.h"

extern char **environ;

/* ---- signals ------------------------------------------------------------------------------- */

static void touch_everything(arena_t *a)
{
	for (int s = 0; s < UFFD_NR_STATES; s++) {
		struct uffd_pages pages;

		uffd_make(a, (enum uffd_state)s, 64 * PAGE, &pages);
		uffd_check_rest(&pages, 0, 0);
		pattern_fill(pages.p, 64 * PAGE, (uint64_t)s);
		CHECK(pattern_is(pages.p, 64 * PAGE, (uint64_t)s));
		uffd_end(a, &pages);
	}
}

static void *with_signals_blocked(void *arg)
{
	sigset_t all;

	sigfillset(&all);
	CHECK_OK(pthread_sigmask(SIG_BLOCK, &all, NULL));
	touch_everything(arg);
	return NULL;
}

static void do_blocked(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);
	pthread_t thread;

	(void)arg;
	CHECK_OK(pthread_create(&thread, NULL, with_signals_blocked, a));
	CHECK_OK(pthread_join(thread, NULL));
	/* In the only thread of the program, too; ignored ones are no better. */
	signal(SIGSEGV, SIG_IGN);
	with_signals_blocked(a);
	arena_close(a);
}

static void test_blocked(void **state)
{
	uffd_run(*state, do_blocked, NULL);
}

/* ---- stacks -------------------------------------------------------------------------------- */

#define STACK (2 * LEAF)

struct on_stack {
	arena_t *a;
	char *stack;
	unsigned depth;
};

static unsigned recurse(struct on_stack *o, unsigned depth)
{
	volatile char frame[2000];
	unsigned below;

	frame[0] = (char)depth;
	frame[sizeof(frame) - 1] = (char)(depth >> 1);
	if (depth == 0)
		return 0;
	/* On the way down, calls that flush and fault, with what is below untouched. */
	if (depth % 97 == 0) {
		char *p = client_map(o->a, 8 * PAGE);

		p[PAGE] = 1;
		CHECK_OK(arena_populate(o->a, p, 8 * PAGE, 1));
		CHECK(arena_virt_to_pfn(o->a, p) >= 0);
		CHECK_OK(arena_mprotect(o->a, p, PAGE, PROT_READ));
		CHECK_OK(arena_munmap(o->a, p, 8 * PAGE));
	}
	below = recurse(o, depth - 1);
	CHECK(frame[0] == (char)depth && frame[sizeof(frame) - 1] == (char)(depth >> 1));
	return below + 1;
}

static void *run_on_stack(void *arg)
{
	struct on_stack *o = arg;
	char here;

	CHECK(&here > o->stack && &here < o->stack + STACK);
	CHECK(recurse(o, o->depth) == o->depth);
	return NULL;
}

static void do_stacks(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);

	(void)arg;
	for (int huge = 0; huge < 2; huge++) {
		struct on_stack o[4];
		pthread_t thread[4];
		pthread_attr_t attr;

		for (int i = 0; i < 4; i++) {
			o[i] = (struct on_stack){a, client_map(a, STACK), 1500};
			CHECK_OK(arena_madvise(a, o[i].stack, STACK,
					       huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE));
			CHECK_OK(pthread_attr_init(&attr));
			CHECK_OK(pthread_attr_setstack(&attr, o[i].stack, STACK));
			CHECK_OK(pthread_create(&thread[i], &attr, run_on_stack, &o[i]));
			CHECK_OK(pthread_attr_destroy(&attr));
		}
		for (int i = 0; i < 4; i++) {
			CHECK_OK(pthread_join(thread[i], NULL));
			CHECK_OK(arena_munmap(a, o[i].stack, STACK));
		}
	}
	arena_close(a);
}

static void test_stacks(void **state)
{
	if (TEST_SANITIZED)
		skip(); /* a sanitizer wants to know every stack */
	uffd_run(*state, do_stacks, NULL);
}

/* The whole window is unmapped again and again, with the stack of who is told to do it. */
static void *flush_own_stack(void *arg)
{
	struct on_stack *o = arg;
	volatile char above[3 * PAGE];

	for (size_t i = 0; i < sizeof(above); i += 100)
		above[i] = (char)i;
	for (unsigned i = 0; i < 200; i++) {
		/* What lies below is of nobody: it goes, and this very frame's leaf with it. */
		CHECK_OK(arena_madvise(o->a, o->stack, STACK / 2, MADV_DONTNEED));
		CHECK(recurse(o, 20) == 20);
	}
	for (size_t i = 0; i < sizeof(above); i += 100)
		CHECK(above[i] == (char)i);
	return NULL;
}

static void do_flushed_stack(struct test_daemon *d, void *arg)
{
	struct on_stack o = {.a = uffd_open(d)};
	pthread_attr_t attr;
	pthread_t thread;

	(void)arg;
	o.stack = client_map(o.a, STACK);
	CHECK_OK(pthread_attr_init(&attr));
	CHECK_OK(pthread_attr_setstack(&attr, o.stack, STACK));
	CHECK_OK(pthread_create(&thread, &attr, flush_own_stack, &o));
	CHECK_OK(pthread_join(thread, NULL));
	arena_close(o.a);
}

static void test_flushed_stack(void **state)
{
	if (TEST_SANITIZED)
		skip();
	uffd_run(*state, do_flushed_stack, NULL);
}

/* ---- a handler's stack --------------------------------------------------------------------- */

static char *handler_stack;
static volatile sig_atomic_t handled;

static void on_signal(int sig, siginfo_t *info, void *context)
{
	char here;

	(void)context;
	CHECK(&here > handler_stack && &here < handler_stack + 16 * PAGE);
	if (sig == SIGSEGV) {
		/* Wild, on purpose: mend it, on this stack. */
		CHECK(info->si_code == SEGV_ACCERR);
		CHECK_OK(arena_mprotect(*(arena_t **)(void *)handler_stack,
					(char *)((uintptr_t)info->si_addr & ~(PAGE - 1)), PAGE,
					RW));
	}
	handled++;
}

static void do_altstack(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);
	struct sigaction act = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	char *p = client_map(a, 4 * PAGE);
	stack_t stack = {.ss_size = 16 * PAGE}, off = {.ss_flags = SS_DISABLE};

	(void)arg;
	handler_stack = client_map(a, 16 * PAGE);
	CHECK_OK(arena_madvise(a, handler_stack, 16 * PAGE, MADV_NOHUGEPAGE));
	*(arena_t **)(void *)handler_stack = a;
	stack.ss_sp = handler_stack;
	CHECK_OK(sigaltstack(&stack, NULL));
	CHECK_OK(sigaction(SIGUSR1, &act, NULL));
	CHECK_OK(sigaction(SIGSEGV, &act, NULL));
	/* The kernel writes the frame into a page that nobody has touched. */
	CHECK_OK(raise(SIGUSR1));
	CHECK(handled == 1);
	pattern_fill(p, 4 * PAGE, 3);
	CHECK_OK(arena_mprotect(a, p, 4 * PAGE, PROT_READ));
	CHECK_OK(arena_mprotect(a, handler_stack + PAGE, 15 * PAGE, PROT_NONE));
	CHECK_OK(arena_mprotect(a, handler_stack + PAGE, 15 * PAGE, RW));
	p[PAGE] = 77;
	CHECK(handled == 2 && p[PAGE] == 77);
	CHECK(pattern_is(p, PAGE, 3));
	CHECK_OK(sigaltstack(&off, NULL));
	arena_close(a);
}

static void test_altstack(void **state)
{
	if (TEST_SANITIZED)
		skip();
	uffd_run(*state, do_altstack, NULL);
}

/* ---- descriptors --------------------------------------------------------------------------- */

static void close_by_range(void)
{
	CHECK_OK((int)syscall(SYS_close_range, 3, ~0U, 0));
}

static void close_one_by_one(void)
{
	struct rlimit limit;

	CHECK_OK(getrlimit(RLIMIT_NOFILE, &limit));
	for (int fd = 3; fd < (int)(limit.rlim_cur > 70000 ? 70000 : limit.rlim_cur); fd++)
		close(fd);
}

static void close_those_open(void)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *e;

	CHECK(dir);
	while ((e = readdir(dir))) {
		int fd = atoi(e->d_name);

		if (fd > 2 && fd != dirfd(dir))
			close(fd);
	}
	closedir(dir);
}

static void (*const closers[])(void) = {close_by_range, close_one_by_one, close_those_open};

static unsigned descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	CHECK(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static void use_all(arena_t *a)
{
	arena_shm_t *s = client_shm(a, "/uffd-closed", O_RDWR | O_CREAT | O_EXCL, 0666);
	char text[4096];
	char *p;

	touch_everything(a);
	CHECK_OK(arena_null(a));
	CHECK_OK(arena_shm_truncate(s, 4 * PAGE));
	p = arena_shm_mmap(s, NULL, 4 * PAGE, RW, MAP_SHARED, 0);
	CHECK(p != MAP_FAILED);
	pattern_fill(p, 4 * PAGE, 5);
	CHECK(pattern_is(p, 4 * PAGE, 5));
	CHECK_OK(arena_munmap(a, p, 4 * PAGE));
	CHECK(arena_attr_read(a, "proc/meminfo", text, sizeof(text)) > 0);
	CHECK_OK(arena_shm_unlink(a, "/uffd-closed"));
	arena_shm_close(s);
}

static void do_closed(struct test_daemon *d, void *arg)
{
	(void)arg;
	for (size_t i = 0; i < sizeof(closers) / sizeof(closers[0]); i++) {
		unsigned before = descriptors(), nr = 0;
		arena_t *a = uffd_open(d);
		char *p = client_map(a, LEAF);
		int fd[5000];

		/* Nothing of the library's is in this table. */
		CHECK(descriptors() == before);
		pattern_fill(p, LEAF / 2, 9);
		closers[i]();
		use_all(a);
		/* All numbers that it may have had are the program's now, and written to by it alone. */
		while (nr < 5000 && (fd[nr] = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0)
			nr++;
		use_all(a);
		while (nr)
			close(fd[--nr]);
		CHECK(pattern_is(p, LEAF / 2, 9) && is_zero(p + LEAF / 2, LEAF / 2));
		arena_close(a);
		CHECK(descriptors() <= before);
	}
}

static void test_closed(void **state)
{
	uffd_run(*state, do_closed, NULL);
}

/* Opened, and closed before the first use. */
static void do_closed_at_once(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open_trap(d, ARENA_TRAP_USERFAULTFD);

	(void)arg;
	close_by_range();
	use_all(a);
	arena_close(a);
}

static void test_closed_at_once(void **state)
{
	uffd_run(*state, do_closed_at_once, NULL);
}

/* What the program closes is closed: no thread of the library holds a copy. */
static void do_eof(struct test_daemon *d, void *arg)
{
	int before[2], after[2];
	arena_t *a;
	char c;

	(void)arg;
	CHECK_OK(pipe(before));
	a = uffd_open(d);
	*(char *)client_map(a, PAGE) = 1;
	CHECK_OK(pipe(after));
	close(before[1]);
	close(after[1]);
	CHECK(read(before[0], &c, 1) == 0);
	CHECK(read(after[0], &c, 1) == 0);
	arena_close(a);
}

static void test_eof(void **state)
{
	uffd_run(*state, do_eof, NULL);
}

/* ---- users --------------------------------------------------------------------------------- */

/* The C library has every thread change its user, and waits for all of them. */
static void do_setuid(struct test_daemon *d, void *arg)
{
	enum arena_trap trap = *(const enum arena_trap *)arg;
	arena_t *a = client_open_trap(d, trap);
	char *p = client_map(a, LEAF);

	p[0] = 1;
	alarm(30);
	CHECK_OK(setgid(UFFD_STRANGER));
	CHECK_OK(setuid(UFFD_STRANGER));
	alarm(0);
	CHECK(geteuid() == UFFD_STRANGER);
	pattern_fill(p, LEAF, 4);
	CHECK(pattern_is(p, LEAF, 4));
	if (trap == ARENA_TRAP_USERFAULTFD)
		touch_everything(a);
	arena_close(a);
}

static void test_setuid(void **state)
{
	static enum arena_trap traps[] = {ARENA_TRAP_SIGNAL, ARENA_TRAP_USERFAULTFD};

	client_run(*state, do_setuid, &traps[0]);
	client_run(*state, do_setuid, &traps[1]);
}

/* ---- fork, spawn, exec --------------------------------------------------------------------- */

static int wait_status(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid);
	return status;
}

static void do_fork(struct test_daemon *d, void *arg)
{
	arena_t *a = uffd_open(d);
	char *p = client_map(a, LEAF), *fresh = client_map(a, LEAF);
	char *const argv[] = {(char *)"true", NULL};
	pid_t pid;

	(void)arg;
	pattern_fill(p, LEAF, 6);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		arena_t *mine;

		CHECK(pattern_is(p, LEAF, 6));
		CHECK(is_zero(fresh, LEAF));
		use_all(a);
		close_by_range();
		use_all(a);
		arena_close(a);
		mine = uffd_open(d);
		touch_everything(mine);
		arena_close(mine);
		_exit(0);
	}
	CHECK(wait_status(pid) == 0);
	/* A child without memory of its own, whose arguments lie in the arena. */
	strcpy(fresh, "/bin/true");
	CHECK_OK(posix_spawn(&pid, fresh, NULL, NULL, argv, environ));
	CHECK(wait_status(pid) == 0);
	CHECK(pattern_is(p, LEAF, 6));
	touch_everything(a);
	arena_close(a);
}

/* A child that cannot have a copy has nothing: what is mapped and what is not reads as nothing. */
static void do_orphan(struct test_daemon *d, void *arg)
{
	struct arena_options options = {.size = sizeof(options),
					.socket = d->socket,
					.trap = ARENA_TRAP_USERFAULTFD,
					.wait_ms = 100};
	arena_t *a;
	char *p[2];
	int fd[2], status;
	pid_t pid;

	(void)arg;
	CHECK_OK(pipe2(fd, O_CLOEXEC));
	CHECK_OK(arena_open(&options, &a));
	p[0] = client_map(a, LEAF);
	p[1] = client_map(a, LEAF);
	pattern_fill(p[0], LEAF, 6);
	/* The daemon answers no more. */
	CHECK_OK(kill(daemon_worker_pid(d), SIGSTOP));
	CHECK_ERRNO(arena_null(a), ECONNRESET);
	for (int i = 0; i < 2; i++) {
		pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			signal(SIGSEGV, SIG_DFL);
			_exit(*(volatile char *)p[i]);
		}
		status = wait_status(pid);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
		pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			CHECK(write(fd[1], p[i], 1) == -1 && errno == EFAULT);
			CHECK_ERRNO(arena_null(a), EBADF);
			arena_close(a);
			_exit(0);
		}
		CHECK(wait_status(pid) == 0);
	}
	CHECK_OK(kill(daemon_worker_pid(d), SIGCONT));
	arena_close(a);
}

static void test_orphan(void **state)
{
	if (getenv("ARENA_TEST_KILL"))
		skip(); /* the one that is stopped would be */
	client_run(*state, do_orphan, NULL);
}

static void test_fork(void **state)
{
	if (TEST_TSAN)
		skip(); /* it does not forget the threads of the parent */
	uffd_run(*state, do_fork, NULL);
}

/* ---- the end ------------------------------------------------------------------------------- */

#define END_BYTES (512 * PAGE)

struct last_words {
	const char *p;
	int fd;
};

static void *write_for_ever(void *arg)
{
	struct last_words *w = arg;
	size_t at = 0;
	ssize_t n;

	while ((n = write(w->fd, w->p + at, END_BYTES - at)) != 0)
		at = n < 0 ? at : (at + (size_t)n) % END_BYTES;
	return NULL;
}

/*
 * Ends while a thread is in write(2), from memory that is unmapped all the time. What the reader gets is
 * what was written there, up to the last byte.
 */
static void do_end(struct test_daemon *d, void *arg)
{
	struct last_words w = {.fd = *(const int *)arg};
	pthread_t thread;
	arena_t *a;
	char *p;

	/* Each miss unmaps all else, so that nothing is there but empty reservation. */
	client_faultpoints("client.evict=fail");
	a = uffd_open(d);
	p = client_map(a, END_BYTES);

	CHECK_OK(arena_madvise(a, p, END_BYTES, MADV_NOHUGEPAGE));
	memset(p, 'x', END_BYTES);
	w.p = p;
	CHECK_OK(arena_mprotect(a, p, END_BYTES, PROT_NONE));
	CHECK_OK(arena_mprotect(a, p, END_BYTES, RW));
	CHECK_OK(pthread_create(&thread, NULL, write_for_ever, &w));
	usleep((useconds_t)(getpid() % 7) * 100);
	_exit(0);
}

static void test_end(void **state)
{
	for (unsigned i = 0; i < test_scaled(40); i++) {
		char buf[65536];
		size_t total = 0;
		int fd[2];
		ssize_t n;
		pid_t pid;

		assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
		pid = client_start(*state, do_end, &fd[1]);
		close(fd[1]);
		while ((n = read(fd[0], buf, sizeof(buf))) > 0) {
			for (ssize_t k = 0; k < n; k++)
				assert_int_equal(buf[k], 'x');
			total += (size_t)n;
		}
		client_wait(pid);
		close(fd[0]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		daemon_test(test_blocked),       daemon_test(test_stacks),
		daemon_test(test_flushed_stack), daemon_test(test_altstack),
		daemon_test(test_closed),        daemon_test(test_closed_at_once),
		daemon_test(test_eof),           daemon_test(test_setuid),
		daemon_test(test_fork),          daemon_test(test_orphan),
		daemon_test(test_end),
	};

	return cmocka_run_group_tests(tests, uffd_group_setup, daemon_group_teardown);
}
