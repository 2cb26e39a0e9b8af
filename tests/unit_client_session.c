/* SPDX-License-Identifier: MIT */
/* A whole libarena, from arena_open() to arena_close(), against the small daemon of client_mini.h. */
#include "tests/client_mini.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "arena/arena.h"

/* ---- the client's side ---- */

static arena_t *open_client(size_t window)
{
	struct arena_options o = {
		.size = sizeof(o), .socket = d.path, .trap = ARENA_TRAP_SIGNAL, .window = window};
	arena_t *a = NULL;

	assert_int_equal(arena_open(&o, &a), 0);
	assert_non_null(a);
	return a;
}

static char *map(arena_t *a, size_t len, int prot)
{
	char *p = arena_mmap(a, NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(p != MAP_FAILED);
	return p;
}

static sigjmp_buf out;
static volatile siginfo_t seen;

static void leave(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	seen = *info;
	siglongjmp(out, 1);
}

static void catch_faults(void)
{
	struct sigaction act = {.sa_sigaction = leave, .sa_flags = SA_SIGINFO};

	sigaction(SIGSEGV, &act, NULL);
	sigaction(SIGBUS, &act, NULL);
}

static bool fails(volatile char *p, bool write)
{
	memset((void *)&seen, 0, sizeof(seen));
	if (sigsetjmp(out, 1)) {
		assert_ptr_equal(seen.si_addr, p);
		return true;
	}
	if (write)
		*p = 1;
	else
		(void)*p;
	return false;
}

static void options_are_checked(void **state)
{
	struct {
		struct arena_options o;
		char more[8];
	} later = {0};
	struct arena_options o = {
		.size = sizeof(o), .socket = "/nonexistent/socket", .trap = ARENA_TRAP_SIGNAL};
	arena_t *a = NULL;

	(void)state;
	assert_int_equal(arena_open(&o, &a), -1);
	assert_int_equal(errno, ENOENT);
	assert_int_equal(arena_open(NULL, NULL), -1);
	assert_int_equal(errno, EINVAL);
	o.socket = d.path;
	o.trap = (enum arena_trap)3;
	assert_int_equal(arena_open(&o, &a), -1);
	assert_int_equal(errno, EINVAL);
	o.trap = ARENA_TRAP_SIGNAL;
	o.window = (size_t)65 << 40;
	assert_int_equal(arena_open(&o, &a), -1);
	assert_int_equal(errno, EINVAL);
	o.window = 0;
	o.size = offsetof(struct arena_options, wait_ms) - 1;
	assert_int_equal(arena_open(&o, &a), -1);
	assert_int_equal(errno, EINVAL);
	/* As a program of an earlier version says it: what lies behind is none of it. */
	o.size = offsetof(struct arena_options, wait_ms);
	o.wait_ms = 1;
	assert_int_equal(arena_open(&o, &a), 0);
	arena_close(a);
	o.wait_ms = 0;
	store_relaxed(&d.byes, 0);
	o.size = 8;
	assert_int_equal(arena_open(&o, &a), -1);
	assert_int_equal(errno, EINVAL);
	later.o = o;
	later.o.size = sizeof(later);
	later.more[3] = 1;
	assert_int_equal(arena_open(&later.o, &a), -1);
	assert_int_equal(errno, EINVAL);
	later.more[3] = 0;
	assert_int_equal(arena_open(&later.o, &a), 0);
	arena_close(a);
	assert_int_equal(load_relaxed(&d.byes), 1);
	store_relaxed(&d.hello_error, EPROTO);
	o.size = sizeof(o);
	assert_int_equal(arena_open(&o, &a), -1);
	assert_int_equal(errno, EPROTO);
	arena_close(NULL);
}

static void memory_is_memory(void **state)
{
	arena_t *a = open_client(0);
	size_t len = 3000 * 4096, size;
	char *p, *q;
	void *base;

	(void)state;
	arena_window(a, &base, &size);
	assert_ptr_equal(base, ARENA_WINDOW_BASE);
	assert_true(size == ARENA_WINDOW_SIZE_DEFAULT_HERE);
	p = map(a, len, PROT_READ | PROT_WRITE);
	errno = 1234;
	for (size_t i = 0; i < len; i += 4096) {
		assert_int_equal(p[i], 0);
		memset(p + i, (int)(i >> 12) % 251, 4096);
	}
	assert_int_equal(errno, 1234);
	for (size_t i = 0; i < len; i++)
		if (p[i] != (char)((i >> 12) % 251))
			fail();
	assert_true(arena_virt_to_pfn(a, p + 5 * 4096) >= 0);
	catch_faults();
	assert_int_equal(arena_munmap(a, p, len), 0);
	assert_true(fails(p + 77, false));
	assert_int_equal(seen.si_signo, SIGSEGV);
	assert_int_equal(seen.si_code, SEGV_MAPERR);
	assert_int_equal(arena_virt_to_pfn(a, p), -1);
	q = map(a, len, PROT_READ | PROT_WRITE);
	q[0] = 1;
	assert_int_equal(arena_mprotect(a, q, len, PROT_READ), 0);
	assert_false(fails(q, false));
	assert_true(fails(q, true));
	assert_int_equal(seen.si_code, SEGV_ACCERR);
	assert_int_equal(arena_mprotect(a, q, len, PROT_READ | PROT_WRITE), 0);
	assert_false(fails(q, true));
	assert_int_equal(arena_munmap(a, p, 4096), -1);
	assert_int_equal(errno, ENOMEM);
	assert_int_equal(arena_null(a), 0);
	arena_close(a);
	assert_int_equal(load_relaxed(&d.byes), 1);
	/* The handle and the memory are gone. */
	assert_int_equal(arena_null(a), -1);
	assert_int_equal(errno, EINVAL);
	assert_true(fails(q, false));
	assert_int_equal(seen.si_code, SEGV_MAPERR);
	arena_close(a);
}

static void populated_memory_serves_system_calls(void **state)
{
	arena_t *a = open_client(0);
	char *p = map(a, 300 * 4096, PROT_READ | PROT_WRITE), *q;
	unsigned faults;
	int fd[2];

	(void)state;
	assert_int_equal(pipe(fd), 0);
	assert_int_equal(write(fd[1], p, 1), -1);
	assert_int_equal(errno, EFAULT);
	faults = load_relaxed(&d.faults);
	assert_int_equal(arena_populate(a, p, 300 * 4096, 1), 0);
	for (size_t i = 0; i < 300; i++) {
		assert_int_equal(write(fd[1], p + i * 4096, 1), 1);
		assert_int_equal(read(fd[0], p + i * 4096, 1), 1);
	}
	q = arena_mmap(a, NULL, 4 * 4096, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	assert_int_equal(write(fd[1], q + 3 * 4096, 1), 1);
	assert_int_equal(load_relaxed(&d.faults), faults);
	assert_ptr_equal(
		arena_mmap(a, NULL, SIZE_MAX, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
		MAP_FAILED);
	assert_int_equal(errno, ENOMEM);
	close(fd[0]);
	close(fd[1]);
	arena_close(a);
}

static void wait_for_ack(uint64_t seq)
{
	struct arena_channel_header *c = channel();

	os_futex_wake(&c->flush_word, 1);
	while (load_acquire(&c->flush_ack) < seq)
		sched_yield();
}

/* The daemon moves a page: the client's flush thread lets the old frame go. */
static void pages_are_taken_away(void **state)
{
	arena_t *a = open_client(0);
	char *p = map(a, 16 * 4096, PROT_READ | PROT_WRITE);
	uint64_t addr = (uintptr_t)p, seq;

	(void)state;
	strcpy(p, "old");
	pthread_mutex_lock(&d.mutex);
	store_release(entry_of(addr), (UINT64_C(60000) << ARENA_PTE_PFN_SHIFT) | ARENA_PTE_PRESENT |
					      ARENA_PTE_READ | ARENA_PTE_WRITE);
	seq = post(addr, addr + 4096, ARENA_FLUSH_UNMAP);
	pthread_mutex_unlock(&d.mutex);
	wait_for_ack(seq);
	assert_int_equal(p[0], 0);
	strcpy(p, "new");
	assert_int_equal(arena_virt_to_pfn(a, p), 60000);
	/* Every mailbox call may find that a flush was posted meanwhile; none is lost. */
	for (int i = 0; i < 2000; i++) {
		pthread_mutex_lock(&d.mutex);
		seq = post(addr, addr + 4096, ARENA_FLUSH_UNMAP);
		pthread_mutex_unlock(&d.mutex);
		if (i % 3 == 0)
			wait_for_ack(seq);
		assert_string_equal(p, "new");
	}
	arena_close(a);
}

static void *hammer(void *arg)
{
	volatile char *p = arg;

	for (int round = 0; round < 3; round++)
		for (size_t i = 0; i < 1000; i++)
			__atomic_fetch_add((int *)(void *)(p + i * 4096), 1, __ATOMIC_RELAXED);
	return NULL;
}

static void threads_fault_together(void **state)
{
	arena_t *a = open_client(0);
	char *p = map(a, 1000 * 4096, PROT_READ | PROT_WRITE);
	pthread_t threads[8];
	uint64_t seq;

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, hammer, p), 0);
	for (int i = 0; i < 200; i++) {
		pthread_mutex_lock(&d.mutex);
		seq = post((uintptr_t)p, (uintptr_t)p + 1000 * 4096, ARENA_FLUSH_UNMAP);
		pthread_mutex_unlock(&d.mutex);
		wait_for_ack(seq);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_join(threads[i], NULL);
	for (size_t i = 0; i < 1000; i++)
		assert_int_equal(*(int *)(void *)(p + i * 4096), 24);
	arena_close(a);
}

static int child_status(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static void children_have_nothing(void **state)
{
	arena_t *a = open_client(0);
	char *p = map(a, 4096, PROT_READ | PROT_WRITE);
	pid_t pid;
	int status;

	(void)state;
	*p = 5;
	pid = fork();
	if (pid == 0) {
		int r = arena_null(a), error = errno;

		arena_close(a);
		_exit(r == -1 && error == EBADF && arena_null(a) == -1 && errno == EINVAL ? 0 : 1);
	}
	status = child_status(pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	pid = fork();
	if (pid == 0) {
		signal(SIGSEGV, SIG_DFL);
		_exit(*(volatile char *)p);
	}
	status = child_status(pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	assert_int_equal(*p, 5);
	assert_int_equal(arena_null(a), 0);
	arena_close(a);
}

/* A reservation of the program's own is in the way, so the kernel chooses. */
static void windows_go_elsewhere(void **state)
{
	arena_t *a;
	void *taken, *base;
	size_t size;

	(void)state;
	assert_int_equal(os_reserve((void *)(ARENA_WINDOW_BASE + 4096), 4096, false, &taken), 0);
	a = open_client(((size_t)1 << 30) + 1);
	arena_window(a, &base, &size);
	assert_true((uintptr_t)base != ARENA_WINDOW_BASE);
	assert_true(IS_ALIGNED((uintptr_t)base, ARENA_WINDOW_ALIGN));
	assert_true(size == (size_t)2 << 30);
	*map(a, 4096, PROT_WRITE | PROT_READ) = 1;
	arena_close(a);
	os_unmap(taken, 4096);
}

/* 6 GiB of address space for everything. A sanitizer alone needs more. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
static void windows_fit_into_limits(void **state)
{
	arena_t *a;
	void *base;
	size_t size;
	pid_t pid;
	int status;

	(void)state;
	pid = fork();
	if (pid == 0) {
		struct rlimit limit = {(rlim_t)6 << 30, (rlim_t)6 << 30};

		if (setrlimit(RLIMIT_AS, &limit) < 0)
			_exit(2);
		a = open_client(0);
		arena_window(a, &base, &size);
		if (!base || size < ARENA_WINDOW_SIZE_MIN || size > (size_t)5 << 30)
			_exit(3);
		*map(a, 4096, PROT_WRITE | PROT_READ) = 1;
		arena_close(a);
		_exit(0);
	}
	status = child_status(pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}
#endif

static void attributes_come_in_pieces(void **state)
{
	arena_t *a = open_client(0);
	char *buf = malloc(300000);

	(void)state;
	memset(buf, 'b', 300000);
	assert_int_equal(arena_attr_read(a, "proc/text", buf, 300000), 200000);
	assert_memory_equal(buf, attr_text, 200000);
	assert_int_equal(buf[200000], 0);
	assert_int_equal(buf[200001], 'b');
	memset(buf, 'b', 300000);
	assert_int_equal(arena_attr_read(a, "proc/text", buf, 100001), 100001);
	assert_int_equal(buf[100001], 'b');
	assert_int_equal(arena_attr_read(a, "proc/none", buf, 10), -1);
	assert_int_equal(errno, ENOENT);
	/* Nothing of this needed an address space. */
	assert_null(channel());
	free(buf);
	arena_close(a);
}

/* mmap(2) of the host fails once: everything is dropped, and the page comes all the same. */
static void refills_survive_a_full_host(void **state)
{
	arena_t *a = open_client(0);
	char *p = map(a, 64 * 4096, PROT_READ | PROT_WRITE);

	(void)state;
	*p = 1;
	assert_int_equal(faultpoint_arm("client.refill=fail@1"), 0);
	p[20 * 4096] = 2;
	assert_int_equal(faultpoint_passages("client.refill"), 2);
	assert_int_equal(*p, 1);
	assert_int_equal(p[20 * 4096], 2);
	assert_int_equal(channel()->evictions, 1);
	assert_int_equal(faultpoint_arm("client.refill=fail"), 0);
	catch_faults();
	assert_true(fails(p + 40 * 4096, true));
	assert_int_equal(seen.si_signo, SIGBUS);
	arena_close(a);
}

#define SESSION_TEST(test) cmocka_unit_test_setup_teardown(test, start, finish)

int main(void)
{
	const struct CMUnitTest tests[] = {
		SESSION_TEST(options_are_checked),
		SESSION_TEST(memory_is_memory),
		SESSION_TEST(populated_memory_serves_system_calls),
		SESSION_TEST(pages_are_taken_away),
		SESSION_TEST(threads_fault_together),
		SESSION_TEST(children_have_nothing),
		SESSION_TEST(windows_go_elsewhere),
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
		SESSION_TEST(windows_fit_into_limits),
#endif
		SESSION_TEST(attributes_come_in_pieces),
		SESSION_TEST(refills_survive_a_full_host),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
