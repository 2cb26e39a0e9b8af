/* SPDX-License-Identifier: MIT */
/*
 * lib_daemon.c - starting, watching and stopping a daemon.
 *
 * Its log comes through a pipe that is made as large as the kernel allows, so that it never waits
 * for a test that has no time to read. The daemon dies with the test's process.
 */
#include "tests/lib_daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define READY_MS 20000
#define LOG_WAIT_MS 10000
#define STOP_MS 15000

const char *__asan_default_options(void);
const char *__tsan_default_options(void);

/* Faults of the arena are ours to handle, and a wild one must end as it does without a sanitizer. */
const char *__asan_default_options(void)
{
	return "handle_segv=0:handle_sigbus=0:detect_leaks=0:abort_on_error=0";
}

const char *__tsan_default_options(void)
{
	return "handle_segv=0:handle_sigbus=0:die_after_fork=0";
}

#if defined(__SANITIZE_THREAD__)
#define SLOWNESS 8
#elif defined(__SANITIZE_ADDRESS__)
#define SLOWNESS 4
#else
#define SLOWNESS 1
#endif

unsigned test_scaled(unsigned n)
{
	return n / SLOWNESS ? n / SLOWNESS : 1;
}

unsigned test_slowness(void)
{
	return SLOWNESS;
}

uint64_t test_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

const char *test_program(const char *name)
{
	static char path[4][512];
	static unsigned next;
	const char *build = getenv("ARENA_BUILD");
	char *p = path[next++ % 4];

	snprintf(p, sizeof(path[0]), "%s/bin/%s", build && *build ? build : "build", name);
	return p;
}

/* ---- the log ------------------------------------------------------------------------------- */

/* False at the end of the log. */
static bool log_read_some(struct test_daemon *d)
{
	for (;;) {
		ssize_t n;

		if (d->log_size - d->log_len < 4096) {
			d->log_size = d->log_size * 2 + 65536;
			d->log = realloc(d->log, d->log_size);
			assert_non_null(d->log);
			d->log[d->log_len] = '\0';
		}
		n = read(d->log_fd, d->log + d->log_len, d->log_size - d->log_len - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 && errno == EAGAIN;
		d->log_len += (size_t)n;
		d->log[d->log_len] = '\0';
	}
}

void daemon_read_log(struct test_daemon *d)
{
	if (d->log_fd >= 0)
		log_read_some(d);
}

static bool log_wait(struct test_daemon *d, size_t from, const char *text, unsigned ms)
{
	uint64_t deadline = test_now() + ms * UINT64_C(1000000);

	for (;;) {
		bool more = d->log_fd >= 0 && log_read_some(d);
		struct pollfd p = {.fd = d->log_fd, .events = POLLIN};

		if (d->log && from <= d->log_len && strstr(d->log + from, text))
			return true;
		if (!more || test_now() >= deadline)
			return false;
		poll(&p, 1, (int)((deadline - test_now()) / 1000000 + 1));
	}
}

bool daemon_log_wait(struct test_daemon *d, size_t from, const char *text)
{
	return log_wait(d, from, text, LOG_WAIT_MS);
}

unsigned daemon_log_count(struct test_daemon *d, size_t from, const char *text)
{
	unsigned n = 0;
	const char *line;

	daemon_read_log(d);
	for (line = d->log ? d->log + from : NULL; line && *line;) {
		const char *hit = strstr(line, text);

		if (!hit)
			break;
		n++;
		line = strchr(hit, '\n');
		line = line ? line + 1 : NULL;
	}
	return n;
}

static void show_log(struct test_daemon *d)
{
	daemon_read_log(d);
	if (d->log)
		fprintf(stderr, "---- log of the daemon ----\n%s---------------------------\n",
			d->log);
}

/* Why the line is one that no daemon should ever say, or NULL. */
static const char *alarm_of(const struct test_daemon *d, const char *line)
{
	static const char *const always[] = {
		"BUG",
		"damaged",
		"runtime error:",
		"AddressSanitizer",
		"ThreadSanitizer",
		"LeakSanitizer",
		"lock order",
	};

	for (size_t i = 0; i < sizeof(always) / sizeof(always[0]); i++)
		if (strstr(line, always[i]))
			return always[i];
	if (!d->expect_errors && strncmp(line, "<3>", 3) == 0)
		return "a line of level 3";
	if (!d->expect_warnings && strncmp(line, "<4>", 3) == 0 &&
	    !(d->expect_deaths && strstr(line, "was killed by signal 9")))
		return "a line of level 4";
	return NULL;
}

static const char *alarming_line(struct test_daemon *d)
{
	const char *alarm = NULL;

	for (char *line = d->log, *end; *line && !alarm; line = end + 1) {
		end = strchr(line, '\n');
		if (!end)
			return alarm_of(d, line);
		*end = '\0';
		alarm = alarm_of(d, line);
		*end = '\n';
	}
	return alarm;
}

/* ---- start and stop ------------------------------------------------------------------------ */

static void make_directory(struct test_daemon *d)
{
	const char *tmp = getenv("TMPDIR");

	if (d->dir[0])
		return;
	snprintf(d->dir, sizeof(d->dir), "%.40s/arena-test.XXXXXX", tmp && *tmp ? tmp : "/tmp");
	assert_non_null(mkdtemp(d->dir));
	assert_int_equal(chmod(d->dir, 0755), 0);
	snprintf(d->socket, sizeof(d->socket), "%s/socket", d->dir);
}

static void exec_daemon(struct test_daemon *d, const char *const *args, int err, pid_t parent)
{
	const char *argv[DAEMON_MAX_ARGS + 1] = {
		test_program("arenad"), "--socket", d->socket, "--arena-size", "512M",
	};
	unsigned n = 5;
	int null;

	while (args && *args && n < DAEMON_MAX_ARGS)
		argv[n++] = *args++;
	argv[n] = NULL;
	/* Its supervisor stops its worker then; killed it would leave it behind. */
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(126);
	null = open("/dev/null", O_RDWR);
	dup2(null, 0);
	dup2(null, 1);
	dup2(err, 2);
	execv(argv[0], (char *const *)(uintptr_t)argv);
	dprintf(2, "cannot run %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

void daemon_spawn(struct test_daemon *d, const char *const *args)
{
	pid_t parent = getpid();
	int fd[2];

	make_directory(d);
	assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
	fcntl(fd[1], F_SETPIPE_SZ, 1 << 20);
	assert_int_equal(fcntl(fd[0], F_SETFL, O_NONBLOCK), 0);
	d->log_fd = fd[0];
	d->log_len = 0;
	if (d->log)
		*d->log = '\0';
	d->pid = fork();
	if (d->pid == 0)
		exec_daemon(d, args, fd[1], parent);
	close(fd[1]);
	assert_true(d->pid > 0);
}

void daemon_start(struct test_daemon *d, const char *const *args)
{
	daemon_spawn(d, args);
	if (!log_wait(d, 0, READY_LINE, READY_MS)) {
		show_log(d);
		fail_msg("the daemon does not get ready");
	}
	assert_true(wire_open(&d->control, d->socket));
	daemon_start_killer(d);
}

/* The deadline is the pipe's: its other end closes with the process. */
int daemon_wait(struct test_daemon *d)
{
	uint64_t deadline = test_now() + STOP_MS * UINT64_C(1000000);
	int status = -1;

	while (log_read_some(d)) {
		struct pollfd p = {.fd = d->log_fd, .events = POLLIN};

		if (test_now() >= deadline) {
			show_log(d);
			daemon_kill_all(d);
			fail_msg("the daemon does not stop");
		}
		poll(&p, 1, 100);
	}
	assert_int_equal(waitpid(d->pid, &status, 0), d->pid);
	d->pid = 0;
	return status;
}

void daemon_stop(struct test_daemon *d)
{
	const char *alarm;
	int status;

	daemon_stop_killer(d);
	wire_close(&d->control);
	assert_int_equal(kill(d->pid, SIGTERM), 0);
	status = daemon_wait(d);
	alarm = alarming_line(d);
	if (!WIFEXITED(status) || WEXITSTATUS(status) || alarm) {
		show_log(d);
		fail_msg("the daemon ended with status %#x; in its log: %s", (unsigned)status,
			 alarm ? alarm : "nothing alarming");
	}
}

void daemon_destroy(struct test_daemon *d)
{
	daemon_stop_killer(d);
	wire_close(&d->control);
	daemon_kill_all(d);
	if (d->log_fd >= 0)
		close(d->log_fd);
	free(d->log);
	if (d->dir[0]) {
		unlink(d->socket);
		rmdir(d->dir);
	}
	*d = (struct test_daemon){.log_fd = -1, .control.fd = -1};
}

/* ---- fixtures ------------------------------------------------------------------------------ */

int daemon_group_setup(void **state)
{
	static struct test_daemon d = {.log_fd = -1, .control.fd = -1};

	signal(SIGPIPE, SIG_IGN);
	daemon_start(&d, NULL);
	*state = &d;
	return 0;
}

int daemon_group_teardown(void **state)
{
	struct test_daemon *d = *state;

	daemon_stop(d);
	daemon_destroy(d);
	return 0;
}

int daemon_setup(void **state)
{
	struct test_daemon *d = *state;

	daemon_read_log(d);
	d->free_before = daemon_free_kb(d);
	return 0;
}

void expect_all_frames_back(struct test_daemon *d)
{
	/* Workers that are killed on a busy machine may each live too short to let go of much. */
	unsigned patience = d->killer > 0 ? 10 : 1;
	char *check;

	if (daemon_await_free(d, d->free_before, 2000 * SLOWNESS * patience) == UINT64_MAX) {
		char *clients = daemon_read(d, CLIENTS_PATH);
		char *segments = daemon_read(d, SEGMENTS_PATH);

		show_log(d);
		fprintf(stderr, "%s\n%s\n", clients, segments);
		free(clients);
		free(segments);
		fail_msg("MemFree is %llu kB, it was %llu kB",
			 (unsigned long long)daemon_free_kb(d), (unsigned long long)d->free_before);
	}
	assert_int_equal(daemon_free_kb(d), d->free_before);
	check = daemon_read(d, CHECK_PATH);
	if (strcmp(check, "ok\n") != 0)
		show_log(d);
	assert_string_equal(check, "ok\n");
	free(check);
}

int daemon_check(void **state)
{
	expect_all_frames_back(*state);
	return 0;
}
