/* SPDX-License-Identifier: MIT */
/*
 * daemon_supervisor.c - arenad as two processes: who may be killed, hung or told to stop, and what
 * becomes of the socket and of those who connect meanwhile.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "tests/lib_client.h"

#define NO_DAEMON ((struct test_daemon){.log_fd = -1, .control.fd = -1})

static void expect_nothing_left(struct test_daemon *d)
{
	struct stat st;

	assert_int_equal(stat(d->socket, &st), -1);
	assert_int_equal(rmdir(d->dir), 0);
	d->dir[0] = '\0';
}

/* ---- who is who ---------------------------------------------------------------------------- */

static void expect_comm(pid_t pid, const char *name)
{
	char path[64], text[64] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_non_null(fgets(text, sizeof(text), f));
	fclose(f);
	text[strcspn(text, "\n")] = '\0';
	assert_string_equal(text, name);
}

static void test_two_processes(void **state)
{
	struct test_daemon d = NO_DAEMON;
	pid_t worker, next;

	(void)state;
	daemon_start(&d, NULL);
	worker = daemon_worker_pid(&d);
	assert_int_equal(daemon_number(&d, STATUS_PATH, "pid"), d.pid);
	assert_int_equal(daemon_number(&d, STATUS_PATH, "supervisor_pid"), d.pid);
	assert_int_equal(daemon_number(&d, STATUS_PATH, "worker_pid"), worker);
	expect_comm(d.pid, "arenad");
	expect_comm(worker, "arenad-worker");
	next = daemon_kill_worker(&d);
	assert_int_not_equal(next, worker);
	assert_int_equal(daemon_number(&d, STATUS_PATH, "pid"), d.pid);
	assert_int_equal(daemon_number(&d, STATUS_PATH, "worker_pid"), next);
	daemon_stop(&d);
	expect_nothing_left(&d);
	daemon_destroy(&d);
}

static void test_worker_alone(void **state)
{
	static const char *const args[][3] = {{"--no-supervisor", NULL},
					      {"--supervisor", "no", NULL}};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct test_daemon d = NO_DAEMON;

		daemon_start(&d, args[i]);
		assert_int_equal(daemon_number(&d, STATUS_PATH, "pid"), d.pid);
		assert_int_equal(daemon_number(&d, STATUS_PATH, "supervisor_pid"), 0);
		assert_int_equal(daemon_number(&d, STATUS_PATH, "worker_pid"), d.pid);
		expect_comm(d.pid, "arenad");
		daemon_stop(&d);
		expect_nothing_left(&d);
		daemon_destroy(&d);
	}
}

/* ---- the socket ---------------------------------------------------------------------------- */

/* Runs arenad on the same socket to its end; what it says is left in `text`. */
static int run_second(struct test_daemon *d, char *text, size_t size)
{
	int fd[2], status;
	size_t len = 0;
	ssize_t n;
	pid_t pid;

	assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		dup2(fd[1], 2);
		execl(test_program("arenad"), "arenad", "--socket", d->socket, "--arena-size",
		      "64M", (char *)NULL);
		_exit(127);
	}
	close(fd[1]);
	while (len + 1 < size && (n = read(fd[0], text + len, size - len - 1)) > 0)
		len += (size_t)n;
	text[len] = '\0';
	close(fd[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Neither between two workers is there room for another daemon, nor is a client turned away. */
static void test_socket_outlives_workers(void **state)
{
	struct test_daemon d = NO_DAEMON;
	char text[4096], name[64];

	(void)state;
	daemon_start(&d, NULL);
	d.expect_deaths = true;
	snprintf(name, sizeof(name), "process %d already serves", (int)d.pid);
	for (unsigned i = 0; i < 10; i++) {
		static struct wire_client c;
		pid_t worker = daemon_worker_pid(&d);
		size_t from;

		daemon_read_log(&d);
		from = d.log_len;
		kill(worker, SIGKILL);
		if (i % 2) {
			assert_int_equal(run_second(&d, text, sizeof(text)), 1);
			assert_non_null(strstr(text, name));
		}
		assert_true(wire_open(&c, d.socket));
		wire_close(&c);
		assert_true(daemon_log_wait(&d, from, READY_LINE));
	}
	daemon_stop(&d);
	expect_nothing_left(&d);
	daemon_destroy(&d);
}

static void use_some(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 4 * PAGE);

	(void)arg;
	pattern_fill(p, 4 * PAGE, 1);
	CHECK(pattern_is(p, 4 * PAGE, 1));
	arena_close(a);
}

/* ---- signals ------------------------------------------------------------------------------- */

static void test_stop_worker(void **state)
{
	static const int signals[] = {SIGTERM, SIGINT};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct test_daemon d = NO_DAEMON;
		int status;

		daemon_start(&d, NULL);
		kill(d.pid, SIGHUP);
		assert_true(daemon_log_wait(&d, 0, "SIGHUP"));
		kill(daemon_worker_pid(&d), signals[i]);
		status = daemon_wait(&d);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		assert_int_equal(daemon_log_count(&d, 0, "stopping"), 1);
		assert_int_equal(daemon_log_count(&d, 0, "<5>stopped"), 1);
		assert_int_equal(daemon_log_count(&d, 0, "<3>"), 0);
		assert_int_equal(daemon_log_count(&d, 0, "<4>"), 0);
		wire_close(&d.control);
		expect_nothing_left(&d);
		daemon_destroy(&d);
	}
}

/* A stop that is asked for while there is no worker is as clean as any. */
static void test_stop_between_workers(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		struct test_daemon d = NO_DAEMON;
		int status;

		daemon_start(&d, NULL);
		kill(daemon_worker_pid(&d), SIGKILL);
		poll(NULL, 0, (int)i * 3); /* the moment is the input */
		kill(d.pid, SIGTERM);
		status = daemon_wait(&d);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		assert_int_equal(daemon_log_count(&d, 0, "<3>"), 0);
		wire_close(&d.control);
		expect_nothing_left(&d);
		daemon_destroy(&d);
	}
}

/* Its worker has all there is; it says what that means, and goes on. */
static void test_supervisor_killed(void **state)
{
	struct test_daemon d = NO_DAEMON;
	char text[4096];
	pid_t worker;

	(void)state;
	daemon_start(&d, NULL);
	worker = daemon_worker_pid(&d);
	kill(d.pid, SIGKILL);
	assert_int_equal(waitpid(d.pid, NULL, 0), d.pid);
	assert_true(daemon_log_wait(&d, 0, "<3>the supervisor has died"));
	client_run(&d, use_some, NULL);
	assert_int_equal(daemon_number(&d, STATUS_PATH, "worker_pid"), worker);
	assert_int_equal(daemon_number(&d, STATUS_PATH, "supervisor_pid"), 0);
	assert_int_equal(run_second(&d, text, sizeof(text)), 1);
	assert_int_equal(daemon_log_count(&d, 0, "<3>"), 1);
	wire_close(&d.control);
	kill(worker, SIGTERM);
	assert_true(daemon_log_wait(&d, 0, "<5>stopped"));
	while (daemon_log_wait(&d, d.log_len, "\n")) /* to the end of the log: it has closed */
		;
	d.pid = 0;
	expect_nothing_left(&d);
	daemon_destroy(&d);
}

static void test_watchdog(void **state)
{
	struct test_daemon d = NO_DAEMON;
	pid_t worker;
	size_t from;

	(void)state;
	daemon_start(&d, (const char *const[]){"--watchdog", "1", NULL});
	d.expect_errors = true;
	worker = daemon_worker_pid(&d);
	/* Idle it is heard of all the same. */
	poll(NULL, 0, 2500); /* the time in which nothing must happen */
	assert_int_equal(daemon_worker_pid(&d), worker);
	daemon_read_log(&d);
	from = d.log_len;
	kill(worker, SIGSTOP);
	assert_true(daemon_log_wait(&d, from, READY_LINE));
	assert_int_equal(daemon_log_count(&d, from, "hangs"), 1);
	assert_int_not_equal(daemon_worker_pid(&d), worker);
	wire_close(&d.control);
	client_run(&d, use_some, NULL);
	daemon_stop(&d);
	daemon_destroy(&d);
}

/* ---- systemd's socket ------------------------------------------------------------------------ */

static int listen_at(const char *path, int type)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type, 0);

	strcpy(sun.sun_path, path);
	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
	assert_int_equal(listen(fd, 8), 0);
	return fd;
}

/* As systemd starts a service whose socket it made: the name may be the unit's. */
static void start_activated(struct test_daemon *d, int fd, const char *name, const char *how)
{
	int log[2];

	assert_int_equal(pipe2(log, O_CLOEXEC), 0);
	fcntl(log[0], F_SETFL, O_NONBLOCK);
	d->log_fd = log[0];
	d->pid = fork();
	if (d->pid == 0) {
		char pid[16];

		dup2(log[1], 2);
		if (fd != 3)
			dup2(fd, 3);
		snprintf(pid, sizeof(pid), "%d", (int)getpid());
		setenv("LISTEN_PID", pid, 1);
		setenv("LISTEN_FDS", "1", 1);
		if (name)
			setenv("LISTEN_FDNAMES", name, 1);
		execl(test_program("arenad"), "arenad", "--arena-size", "64M", how, (char *)NULL);
		_exit(127);
	}
	close(log[1]);
}

static void test_activated(void **state)
{
	static const char *const names[] = {"listen", "arenad.socket", NULL};
	static const char *const how[] = {"--no-supervisor", "--supervisor=yes"};

	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		struct test_daemon d = NO_DAEMON;
		struct stat st;
		char ready[160];
		int fd;

		strcpy(d.dir, "/tmp/arena-test.XXXXXX");
		assert_non_null(mkdtemp(d.dir));
		snprintf(d.socket, sizeof(d.socket), "%s/socket", d.dir);
		fd = listen_at(d.socket, SOCK_SEQPACKET);
		start_activated(&d, fd, names[i / 2], how[i % 2]);
		close(fd);
		snprintf(ready, sizeof(ready), "ready at %s", d.socket);
		assert_true(daemon_log_wait(&d, 0, ready));
		client_run(&d, use_some, NULL);
		if (i % 2) {
			daemon_kill_worker(&d);
			client_run(&d, use_some, NULL);
		}
		daemon_stop(&d);
		/* It is not ours to remove, and nothing was put beside it. */
		assert_int_equal(stat(d.socket, &st), 0);
		assert_int_equal(unlink(d.socket), 0);
		expect_nothing_left(&d);
		daemon_destroy(&d);
	}
}

static void test_activated_wrongly(void **state)
{
	struct test_daemon d = NO_DAEMON;
	int fd, status;

	(void)state;
	strcpy(d.dir, "/tmp/arena-test.XXXXXX");
	assert_non_null(mkdtemp(d.dir));
	snprintf(d.socket, sizeof(d.socket), "%s/socket", d.dir);
	fd = listen_at(d.socket, SOCK_STREAM);
	start_activated(&d, fd, "arenad.socket", "--no-supervisor");
	close(fd);
	status = daemon_wait(&d);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
	assert_int_equal(daemon_log_count(&d, 0, "ListenSequentialPacket="), 1);
	assert_int_equal(unlink(d.socket), 0);
	daemon_destroy(&d);
}

/* ---- deaths at a store to the truth ---------------------------------------------------------- */

static void test_die_at_store(void **state)
{
	struct test_daemon d = NO_DAEMON;

	(void)state;
	setenv("ARENA_FAULTPOINTS", "truth=die@10", 1);
	daemon_spawn(&d, NULL);
	unsetenv("ARENA_FAULTPOINTS");
	d.expect_deaths = true;
	assert_true(daemon_log_wait(&d, 0, READY_LINE));
	assert_true(wire_open(&d.control, d.socket));
	client_run(&d, use_some, NULL);
	/* The first one died of it, and only that one. */
	assert_int_equal(daemon_log_count(&d, 0, "was killed by signal 9"), 1);
	daemon_stop(&d);
	daemon_destroy(&d);
}

/* What all whole-daemon tests can be run with. */
static void test_random_kills(void **state)
{
	struct test_daemon d = NO_DAEMON;
	size_t from = 0;

	(void)state;
	setenv("ARENA_TEST_KILL", "5", 1);
	daemon_start(&d, NULL);
	unsetenv("ARENA_TEST_KILL");
	for (unsigned i = 0; i < 30; i++) {
		assert_true(daemon_log_wait(&d, from, "was killed by signal 9"));
		from = (size_t)(strstr(d.log + from, "was killed by signal 9") - d.log) + 10;
	}
	daemon_stop(&d);
	expect_nothing_left(&d);
	daemon_destroy(&d);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_two_processes),
		cmocka_unit_test(test_worker_alone),
		cmocka_unit_test(test_socket_outlives_workers),
		cmocka_unit_test(test_stop_worker),
		cmocka_unit_test(test_stop_between_workers),
		cmocka_unit_test(test_supervisor_killed),
		cmocka_unit_test(test_watchdog),
		cmocka_unit_test(test_activated),
		cmocka_unit_test(test_activated_wrongly),
		cmocka_unit_test(test_die_at_store),
		cmocka_unit_test(test_random_kills),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
