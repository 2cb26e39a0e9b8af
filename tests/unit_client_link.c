/* SPDX-License-Identifier: MIT */
/*
 * A libarena whose daemon goes away, comes back, does not answer, does not know it any more, or says that
 * it ends; and a program that closes descriptors which are not its own.
 */
#include "tests/client_mini.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <sys/wait.h>

#include "arena/arena.h"
#include "base/clock.h"

/* A child of this process, which has threads, makes one of its own. */
const char *__tsan_default_options(void);

const char *__tsan_default_options(void)
{
	return "die_after_fork=0";
}

static arena_t *open_waiting(unsigned wait_ms)
{
	struct arena_options o = {
		.size = sizeof(o), .socket = d.path, .trap = ARENA_TRAP_SIGNAL, .wait_ms = wait_ms};
	arena_t *a = NULL;

	assert_int_equal(arena_open(&o, &a), 0);
	return a;
}

static char *map(arena_t *a, size_t len)
{
	char *p = arena_mmap(a, NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			     0);

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

/* The store is refused with a SIGBUS. */
static bool is_bus_error(volatile char *p)
{
	struct sigaction act = {.sa_sigaction = leave, .sa_flags = SA_SIGINFO};

	sigaction(SIGSEGV, &act, NULL);
	sigaction(SIGBUS, &act, NULL);
	memset((void *)&seen, 0, sizeof(seen));
	if (sigsetjmp(out, 1) == 0)
		*p = 1;
	return seen.si_signo == SIGBUS && seen.si_code == BUS_ADRERR && seen.si_addr == p;
}

static void with_mini(void (*f)(void))
{
	pthread_mutex_lock(&d.mutex);
	f();
	pthread_mutex_unlock(&d.mutex);
	/* It looks at what it waits for anew. */
	tell_mini(1);
}

static void falls_asleep(void)
{
	d.sleeps = true;
}

static void wakes_up(void)
{
	d.sleeps = false;
}

static void loses_connection(void)
{
	hang_up();
}

static unsigned count(const unsigned *what)
{
	unsigned n;

	pthread_mutex_lock(&d.mutex);
	n = *what;
	pthread_mutex_unlock(&d.mutex);
	return n;
}

static void assert_lost(int r)
{
	assert_int_equal(r, -1);
	assert_int_equal(errno, ECONNRESET);
}

static uint64_t ms_since(uint64_t start)
{
	return (clock_now() - start) / NSEC_PER_MSEC;
}

/* ---- the connection is lost -------------------------------------------------------- */

static void hang_up_is_mended(void **state)
{
	arena_t *a = open_waiting(0);
	char *p = map(a, 64 * 4096), buf[8];
	arena_shm_t *shm = arena_shm_open(a, "s", O_RDWR | O_CREAT, 0600);

	(void)state;
	assert_non_null(shm);
	*p = 9;
	with_mini(loses_connection);
	/* By the socket, by a mailbox, in a trap. */
	assert_int_equal(arena_attr_read(a, "proc/text", buf, sizeof(buf)), 8);
	assert_int_equal(count(&d.connections), 2);
	assert_int_equal(count(&d.slots), 1);
	with_mini(loses_connection);
	assert_int_equal(arena_null(a), 0);
	assert_int_equal(count(&d.connections), 3);
	with_mini(loses_connection);
	p[40 * 4096] = 1;
	assert_int_equal(count(&d.connections), 4);
	/* One that is lost before all descriptors came counts together with the next. */
	assert_true(load_relaxed(&channel()->reconnects) >= 1);
	assert_int_equal(*p, 9);
	arena_shm_close(shm);
	arena_close(a);
	assert_int_equal(load_relaxed(&d.byes), 1);
}

static void leaves_once(void)
{
	d.leaves = true;
}

static void waiters_are_answered(void **state)
{
	arena_t *a = open_waiting(0);

	(void)state;
	assert_int_equal(arena_null(a), 0);
	with_mini(leaves_once);
	assert_int_equal(arena_null(a), 0);
	assert_int_equal(count(&d.connections), 2);
	assert_int_equal(count(&d.attaches), 2);
	arena_close(a);
}

static void leaves_sockets(void)
{
	d.leaves_socket = 3;
}

/* A worker that dies before its keeper had the connection. */
static void opening_is_tried_again(void **state)
{
	arena_t *a;
	char buf[8];

	(void)state;
	with_mini(leaves_sockets);
	a = open_waiting(0);
	assert_int_equal(count(&d.connections), 4);
	with_mini(leaves_sockets);
	assert_int_equal(arena_attr_read(a, "proc/text", buf, sizeof(buf)), 8);
	with_mini(leaves_sockets);
	assert_int_equal(*map(a, 4096), 0);
	assert_int_equal(count(&d.attaches), 1);
	arena_close(a);
}

static void leaves_always(void)
{
	d.leaves_socket = UINT_MAX;
}

/* A daemon that hangs up again and again is not asked in a frenzy, and not for ever. */
static void a_flapping_daemon_is_left_alone(void **state)
{
	struct arena_options o = {
		.size = sizeof(o), .socket = d.path, .trap = ARENA_TRAP_SIGNAL, .wait_ms = 700};
	uint64_t start = clock_now();
	arena_t *a = open_waiting(700);
	char buf[8];

	(void)state;
	map(a, 4096);
	with_mini(leaves_always);
	assert_lost((int)arena_attr_read(a, "proc/text", buf, sizeof(buf)));
	assert_true(ms_since(start) >= 700);
	assert_true(count(&d.connections) <= 20);
	assert_lost(arena_null(a));
	arena_close(a);
	assert_lost(arena_open(&o, &a));
	assert_true(count(&d.connections) <= 40);
}

static void forgets(void)
{
	d.forgets = true;
	loses_connection();
}

/* Another daemon, which knows nothing of us: at once, and once. */
static void a_stranger_is_no_daemon(void **state)
{
	arena_t *a = open_waiting(0);
	char *p = map(a, 64 * 4096), buf[8];
	uint64_t start = clock_now();

	(void)state;
	*p = 9;
	with_mini(forgets);
	assert_lost(arena_null(a));
	assert_lost((int)arena_attr_read(a, "proc/text", buf, sizeof(buf)));
	assert_true(ms_since(start) < 10000);
	assert_int_equal(count(&d.attaches), 2);
	assert_int_equal(count(&d.connections), 2);
	/* What is mapped stays, and what the tables have can be mapped. */
	assert_int_equal(*p, 9);
	assert_int_equal(p[7 * 4096], 0);
	assert_true(is_bus_error(p + 40 * 4096));
	arena_close(a);
}

/* Nobody listens any more: there is nothing to wait for. */
static void nobody_is_no_daemon(void **state)
{
	arena_t *a = open_waiting(0), *bare = NULL;
	uint64_t start;

	(void)state;
	map(a, 4096);
	pthread_mutex_lock(&d.mutex);
	unlink(d.path);
	loses_connection();
	pthread_mutex_unlock(&d.mutex);
	start = clock_now();
	assert_lost(arena_null(a));
	assert_true(ms_since(start) < 20000);
	assert_int_equal(arena_open(&(struct arena_options){.size = sizeof(struct arena_options),
							    .socket = d.path},
				    &bare),
			 -1);
	assert_int_equal(errno, ENOENT);
	arena_close(a);
}

/* ---- the daemon is silent ---------------------------------------------------------- */

static void *null_call(void *arg)
{
	return (void *)(intptr_t)(arena_null(arg) == 0 ? 0 : errno);
}

static void *attr_call(void *arg)
{
	char buf[8];

	return (void *)(intptr_t)(arena_attr_read(arg, "proc/text", buf, 8) == 8 ? 0 : errno);
}

static void *touch(void *arg)
{
	*(volatile char *)arg = 1;
	return NULL;
}

static void silence_is_waited_out(void **state)
{
	arena_t *a = open_waiting(UINT_MAX);
	char *p = map(a, 64 * 4096);
	pthread_t t[3];
	void *r;

	(void)state;
	*p = 1;
	with_mini(falls_asleep);
	assert_int_equal(pthread_create(&t[0], NULL, null_call, a), 0);
	assert_int_equal(pthread_create(&t[1], NULL, attr_call, a), 0);
	assert_int_equal(pthread_create(&t[2], NULL, touch, p + 40 * 4096), 0);
	/* A refill needs nobody. */
	assert_int_equal(p[7 * 4096], 0);
	usleep(600000);
	assert_int_equal(pthread_tryjoin_np(t[0], NULL), EBUSY);
	assert_int_equal(pthread_tryjoin_np(t[1], NULL), EBUSY);
	assert_int_equal(pthread_tryjoin_np(t[2], NULL), EBUSY);
	with_mini(wakes_up);
	for (unsigned i = 0; i < 3; i++) {
		pthread_join(t[i], &r);
		assert_null(r);
	}
	assert_int_equal(p[40 * 4096], 1);
	assert_int_equal(count(&d.connections), 1);
	arena_close(a);
}

static void patience_has_a_limit(void **state)
{
	arena_t *a = open_waiting(300), *other = NULL;
	char *p = map(a, 64 * 4096);
	uint64_t start;

	(void)state;
	*p = 1;
	with_mini(falls_asleep);
	start = clock_now();
	assert_true(is_bus_error(p + 40 * 4096));
	assert_true(ms_since(start) >= 300);
	start = clock_now();
	assert_lost(arena_null(a));
	assert_true(is_bus_error(p + 41 * 4096));
	assert_true(ms_since(start) < 300);
	assert_int_equal(p[7 * 4096], 0);
	start = clock_now();
	assert_lost(arena_open(&(struct arena_options){.size = sizeof(struct arena_options),
						       .socket = d.path,
						       .wait_ms = 300},
			       &other));
	assert_true(ms_since(start) >= 300 && ms_since(start) < 20000);
	/* Its handle is dead for good. */
	with_mini(wakes_up);
	assert_lost(arena_null(a));
	start = clock_now();
	arena_close(a);
	assert_true(ms_since(start) < 900);
}

static void closing_does_not_wait(void **state)
{
	arena_t *a = open_waiting(UINT_MAX);
	pthread_t t;
	uint64_t start;
	void *r;

	(void)state;
	*map(a, 4096) = 1;
	with_mini(falls_asleep);
	start = clock_now();
	arena_close(a);
	assert_true(ms_since(start) < 10000);
	/* It hears of it when it wakes up. */
	with_mini(wakes_up);
	while (count(&d.byes) == 0)
		sched_yield();

	/* With the connection lost it says so by another. */
	a = open_waiting(UINT_MAX);
	map(a, 4096);
	with_mini(loses_connection);
	assert_int_equal(pthread_create(&t, NULL, attr_call, a), 0);
	pthread_join(t, &r);
	assert_null(r);
	with_mini(loses_connection);
	arena_close(a);
}

/* fork() asks for a copy as any call asks; where none comes in time the child has no arena. */
static void forking_waits_so_long(void **state)
{
	arena_t *a = open_waiting(300);
	pid_t pid;
	int status;

	(void)state;
	map(a, 4096);
	with_mini(falls_asleep);
	pid = fork();
	if (pid == 0) {
		int n = arena_null(a), error = errno;

		arena_close(a);
		_exit(n == -1 && error == EBADF ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	with_mini(wakes_up);
	assert_int_equal(arena_null(a), -1);
	assert_int_equal(errno, ECONNRESET);
	arena_close(a);
}

/* ---- the daemon says something ------------------------------------------------------- */

static void a_stop_is_told(void **state)
{
	static const uint32_t states[] = {ARENA_DAEMON_STOPPED, ARENA_DAEMON_REFUSES};

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		arena_t *a = open_waiting(UINT_MAX);
		struct arena_mailbox *box;
		char *p = map(a, 64 * 4096);
		unsigned before = count(&d.connections);
		pthread_t t;
		void *r;

		*p = 7;
		with_mini(falls_asleep);
		box = (void *)((char *)channel() + ARENA_CHANNEL_MAILBOXES);
		assert_int_equal(pthread_create(&t, NULL, null_call, a), 0);
		while (load_acquire(&box[0].state) != ARENA_MAILBOX_REQUEST_WAIT)
			sched_yield();
		store_release(&channel()->daemon_state, states[i]);
		os_futex_wake(&box[0].state, 1);
		pthread_mutex_lock(&d.mutex);
		loses_connection();
		pthread_mutex_unlock(&d.mutex);
		pthread_join(t, &r);
		assert_int_equal((intptr_t)r, ECONNRESET);
		assert_lost(arena_null(a));
		assert_int_equal(*p, 7);
		assert_true(is_bus_error(p + 40 * 4096));
		arena_close(a);
		with_mini(wakes_up);
		assert_int_equal(count(&d.connections), before);
	}
}

static void says_last_word(void)
{
	d.last_word = ESHUTDOWN;
}

static void refuses(void)
{
	d.last_word = EMFILE;
}

static void last_words_are_heard(void **state)
{
	struct arena_options o = {.size = sizeof(o), .socket = d.path, .trap = ARENA_TRAP_SIGNAL};
	arena_t *a = open_waiting(0);
	char buf[8];

	(void)state;
	with_mini(says_last_word);
	assert_lost((int)arena_attr_read(a, "proc/text", buf, sizeof(buf)));
	assert_lost((int)arena_attr_read(a, "proc/text", buf, sizeof(buf)));
	assert_int_equal(count(&d.connections), 1);
	arena_close(a);
	assert_lost(arena_open(&o, &a));
	with_mini(refuses);
	assert_int_equal(arena_open(&o, &a), -1);
	assert_int_equal(errno, EMFILE);
	assert_int_equal(count(&d.connections), 3);
}

static unsigned open_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static void says_all_twice(void)
{
	d.twice = true;
}

/* Answers that come twice, because a worker died after it had sent one. */
static void repetitions_are_passed_over(void **state)
{
	arena_t *a = open_waiting(0);
	unsigned fds = 0;
	char buf[8];

	(void)state;
	with_mini(says_all_twice);
	map(a, 4096);
	for (unsigned i = 0; i < 10; i++) {
		arena_shm_t *s = arena_shm_open(a, "s", O_RDWR | O_CREAT, 0600);

		assert_non_null(s);
		assert_int_equal(arena_attr_read(a, "proc/text", buf, sizeof(buf)), 8);
		assert_int_equal(buf[0], 'a');
		if (i == 0)
			fds = open_descriptors();
		arena_shm_close(s);
	}
	assert_int_equal(open_descriptors(), fds);
	with_mini(loses_connection);
	assert_int_equal(arena_attr_read(a, "proc/text", buf, sizeof(buf)), 8);
	assert_int_equal(arena_null(a), 0);
	arena_close(a);
}

/* ---- the program closes descriptors -------------------------------------------------- */

/* Numbers of descriptors at or above `from`, in `nr`. */
static unsigned list_descriptors(int from, int *fd, unsigned max)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *e;
	unsigned n = 0;

	while ((e = readdir(dir)))
		if (atoi(e->d_name) >= from && atoi(e->d_name) != dirfd(dir) && n < max)
			fd[n++] = atoi(e->d_name);
	closedir(dir);
	return n;
}

#define MUST(cond)                                             \
	do {                                                   \
		if (!(cond)) {                                 \
			fprintf(stderr, "child: %s\n", #cond); \
			_exit(1);                              \
		}                                              \
	} while (0)

static void close_what_is_not_ours(bool use_numbers)
{
	int fd[64], pipes[2] = {-1, -1}, high;
	unsigned n, before;
	arena_t *a = NULL;
	char *p, buf[8];
	struct arena_options o = {.size = sizeof(o), .socket = d.path, .trap = ARENA_TRAP_SIGNAL};

	before = list_descriptors(3, fd, 64);
	for (unsigned i = 0; i < before; i++)
		close(fd[i]);
	MUST(arena_open(&o, &a) == 0);
	p = arena_mmap(a, NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);
	MUST(p != MAP_FAILED);
	MUST(arena_shm_open(a, "s", O_RDWR | O_CREAT, 0600));
	*p = 5;
	n = list_descriptors(3, fd, 64);
	MUST(n == 4); /* socket, doorbell, two arena files */
	closefrom(3);
	if (use_numbers) {
		MUST(pipe(pipes) == 0);
		for (unsigned i = 0; i < n; i++)
			MUST(dup2(pipes[1], fd[i]) == fd[i]);
	}
	/* Present and not mapped, not present, and calls. */
	MUST(p[7 * 4096] == 0);
	p[40 * 4096] = 6;
	MUST(arena_null(a) == 0);
	MUST(arena_attr_read(a, "proc/text", buf, 8) == 8);
	MUST(*p == 5 && p[40 * 4096] == 6);
	high = list_descriptors(3, fd, 64);
	MUST(high == (use_numbers ? 10 : 4));
	arena_close(a);
	/* What it has opened meanwhile is still open. */
	MUST(list_descriptors(3, fd, 64) == (use_numbers ? 6u : 0u));
	_exit(0);
}

static void closed_descriptors_come_back(void **state)
{
	(void)state;
	for (unsigned use_numbers = 0; use_numbers < 2; use_numbers++) {
		pid_t pid = fork();
		int status;

		if (pid == 0)
			close_what_is_not_ours(use_numbers);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		while (count(&d.byes) != use_numbers + 1)
			sched_yield();
	}
}

#define LINK_TEST(test) cmocka_unit_test_setup_teardown(test, start, finish)

int main(void)
{
	const struct CMUnitTest tests[] = {
		LINK_TEST(hang_up_is_mended),
		LINK_TEST(waiters_are_answered),
		LINK_TEST(opening_is_tried_again),
		LINK_TEST(a_flapping_daemon_is_left_alone),
		LINK_TEST(a_stranger_is_no_daemon),
		LINK_TEST(nobody_is_no_daemon),
		LINK_TEST(silence_is_waited_out),
		LINK_TEST(patience_has_a_limit),
		LINK_TEST(closing_does_not_wait),
		LINK_TEST(forking_waits_so_long),
		LINK_TEST(a_stop_is_told),
		LINK_TEST(last_words_are_heard),
		LINK_TEST(repetitions_are_passed_over),
		LINK_TEST(closed_descriptors_come_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
