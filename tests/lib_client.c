/* SPDX-License-Identifier: MIT */
/* lib_client.c - children that are clients, gates, and accesses that may fault. */
#include "tests/lib_client.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define GATE_MS 30000
#define CLIENT_MS 60000

static bool in_client;

void check_failed(const char *file, int line, const char *what)
{
	dprintf(2, "%s:%d: client %d: %s\n", file, line, (int)getpid(), what);
	_exit(1);
}

void check_errno_failed(const char *file, int line, const char *what, intptr_t r, int expected)
{
	dprintf(2, "%s:%d: client %d: %s: result %#lx, errno %s, expected %s\n", file, line,
		(int)getpid(), what, (unsigned long)r, strerrorname_np(errno),
		strerrorname_np(expected));
	_exit(1);
}

void check_same_failed(const char *file, int line, const char *what, int ours, int theirs)
{
	dprintf(2, "%s:%d: client %d: %s: errno %s, the kernel's is %s\n", file, line,
		(int)getpid(), what, strerrorname_np(ours), strerrorname_np(theirs));
	_exit(1);
}

/* ---- processes ----------------------------------------------------------------------------- */

static void become(uid_t uid)
{
	if (!uid)
		return;
	CHECK(setgroups(0, NULL) == 0);
	CHECK(setresgid(uid, uid, uid) == 0);
	CHECK(setresuid(uid, uid, uid) == 0);
	/* So that its own /proc/self is its own. */
	CHECK(prctl(PR_SET_DUMPABLE, 1) == 0);
}

pid_t client_start_as(struct test_daemon *d, uid_t uid, client_fn fn, void *arg)
{
	pid_t parent = getpid();
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid)
		return pid;
	in_client = true;
	become(uid);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	CHECK(getppid() == parent);
	fn(d, arg);
	_exit(0);
}

pid_t client_start(struct test_daemon *d, client_fn fn, void *arg)
{
	return client_start_as(d, 0, fn, arg);
}

static int wait_for(pid_t pid, int options)
{
	int status = 0;

	assert_int_equal(waitpid(pid, &status, options), pid);
	return status;
}

void client_wait(pid_t pid)
{
	int status = wait_for(pid, 0);

	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail_msg("client %d ended with %s %d", (int)pid,
			 WIFEXITED(status) ? "status" : "signal",
			 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

void client_wait_signal(pid_t pid, int sig)
{
	int status = wait_for(pid, 0);

	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), sig);
}

void client_wait_stopped(pid_t pid)
{
	int status = wait_for(pid, WUNTRACED);

	assert_true(WIFSTOPPED(status));
}

void client_wait_ended(pid_t pid)
{
	siginfo_t info;

	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
}

void client_run_as(struct test_daemon *d, uid_t uid, client_fn fn, void *arg)
{
	client_wait(client_start_as(d, uid, fn, arg));
}

void client_run(struct test_daemon *d, client_fn fn, void *arg)
{
	client_run_as(d, 0, fn, arg);
}

void client_faultpoints(const char *spec)
{
	CHECK(setenv("ARENA_FAULTPOINTS", spec, 1) == 0);
}

enum arena_trap client_trap(void)
{
	const char *trap = getenv("ARENA_TEST_TRAP");

	if (!trap || strcmp(trap, "auto") == 0)
		return ARENA_TRAP_AUTO;
	if (strcmp(trap, "signal") == 0)
		return ARENA_TRAP_SIGNAL;
	CHECK(strcmp(trap, "userfaultfd") == 0);
	/* Others may have it, or not. */
	return geteuid() ? ARENA_TRAP_AUTO : ARENA_TRAP_USERFAULTFD;
}

arena_t *client_open_trap(struct test_daemon *d, enum arena_trap trap)
{
	struct arena_options options = {.size = sizeof(options), .socket = d->socket, .trap = trap};
	arena_t *a;

	CHECK_OK(arena_open(&options, &a));
	return a;
}

arena_t *client_open(struct test_daemon *d)
{
	return client_open_trap(d, client_trap());
}

void *client_map(arena_t *a, size_t len)
{
	void *p = arena_mmap(a, NULL, len, RW, ANON, -1, 0);

	if (p == MAP_FAILED)
		check_errno_failed(__FILE__, __LINE__, "arena_mmap", -1, 0);
	return p;
}

arena_shm_t *client_shm(arena_t *a, const char *name, int oflag, mode_t mode)
{
	arena_shm_t *s = arena_shm_open(a, name, oflag, mode);

	if (!s)
		check_errno_failed(__FILE__, __LINE__, name, 0, 0);
	return s;
}

void expect_child(pid_t pid)
{
	int status;

	CHECK(pid > 0);
	CHECK(waitpid(pid, &status, 0) == pid);
	if (WIFSIGNALED(status))
		dprintf(2, "a child ended with signal %d\n", WTERMSIG(status));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* ---- meeting ------------------------------------------------------------------------------- */

struct gate gate_make(void)
{
	int fd[2];

	assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
	return (struct gate){.r = fd[0], .w = fd[1]};
}

void gate_open(const struct gate *g, unsigned n)
{
	while (n--)
		if (write(g->w, "", 1) != 1)
			check_failed(__FILE__, __LINE__, "gate_open");
}

void gate_pass(const struct gate *g)
{
	struct pollfd p = {.fd = g->r, .events = POLLIN};
	char c;
	int r;

	do
		r = poll(&p, 1, GATE_MS);
	while (r < 0 && errno == EINTR);
	if (r == 1 && read(g->r, &c, 1) == 1)
		return;
	if (in_client)
		check_failed(__FILE__, __LINE__, "nobody opens the gate");
	fail_msg("nobody opens the gate");
}

void gate_close(struct gate *g)
{
	close(g->r);
	close(g->w);
}

void *shared_alloc(size_t size)
{
	void *p = mmap(NULL, size, RW, ANON_SHARED, -1, 0);

	assert_true(p != MAP_FAILED);
	return p;
}

void shared_free(void *p, size_t size)
{
	munmap(p, size);
}

/* ---- touching ------------------------------------------------------------------------------ */

static sigjmp_buf jump;
static volatile sig_atomic_t trying;
static struct fault_seen last;

static void jump_out(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (!trying) {
		signal(sig, SIG_DFL);
		return;
	}
	last = (struct fault_seen){
		.signo = sig,
		.code = info->si_code,
		.addr = (uintptr_t)info->si_addr,
	};
	siglongjmp(jump, 1);
}

static void catch_faults(void)
{
	static bool done;
	struct sigaction act = {.sa_sigaction = jump_out, .sa_flags = SA_SIGINFO};

	if (done)
		return;
	CHECK_OK(sigaction(SIGSEGV, &act, NULL));
	CHECK_OK(sigaction(SIGBUS, &act, NULL));
	done = true;
}

static int try_access(volatile char *p, bool write, struct fault_seen *seen)
{
	catch_faults();
	last = (struct fault_seen){0};
	trying = 1;
	if (sigsetjmp(jump, 1) == 0) {
		if (write)
			*p = 1;
		else
			(void)*p;
	}
	trying = 0;
	if (seen)
		*seen = last;
	return last.signo;
}

int try_read(const volatile void *p, struct fault_seen *seen)
{
	return try_access((volatile char *)(uintptr_t)p, false, seen);
}

int try_write(volatile void *p, struct fault_seen *seen)
{
	return try_access(p, true, seen);
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 31)) * UINT64_C(0x9e3779b97f4a7c15);
	return x ^ (x >> 29);
}

void pattern_fill(void *p, size_t len, uint64_t seed)
{
	uint64_t *w = p;

	for (size_t i = 0; i < len / 8; i++)
		w[i] = mix(seed + i) | 1;
}

bool pattern_is(const void *p, size_t len, uint64_t seed)
{
	const uint64_t *w = p;

	for (size_t i = 0; i < len / 8; i++)
		if (w[i] != (mix(seed + i) | 1))
			return false;
	return true;
}

bool is_zero(const void *p, size_t len)
{
	const char *c = p;

	return len == 0 || (*c == 0 && memcmp(c, c + 1, len - 1) == 0);
}
