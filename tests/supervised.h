/* SPDX-License-Identifier: MIT */
/*
 * supervised.h - a supervisor with a worker that does what the test says.
 *
 * The test program is started again as "PROGRAM --supervise" and runs supervisor_run() there; that
 * starts it once more, and as a worker it takes packets of commands from a socket, answers each,
 * and knows nothing else (fake_worker()). The socket's two ends are in all of them, so it is the
 * same one for every worker.
 */
#ifndef TESTS_SUPERVISED_H
#define TESTS_SUPERVISED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "daemon/store/store.h"
#include "daemon/supervisor.h"

#define COMMAND_FD 1000 /* above all that is handed down in most tests */
#define COMMAND_FD_HIGH 15000
#define PACKET_MAX 65536
#define WAIT_MS 30000

const char *__asan_default_options(void);
const char *__tsan_default_options(void);

/* Workers die here by the signals they are told to die by. */
const char *__asan_default_options(void)
{
	return "handle_segv=0:handle_abort=0:detect_leaks=0";
}

const char *__tsan_default_options(void)
{
	return "handle_segv=0:handle_abort=0:die_after_fork=0";
}

/* ---- the worker ---------------------------------------------------------------------------- */

struct fake {
	int fd;
	char notify[64], faults[64];
	uint64_t ping_ns; /* 0: no signs of life */
};

static void answer(struct fake *f, const char *fmt, ...)
{
	static char text[PACKET_MAX];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (send(f->fd, text, MIN((size_t)n, sizeof(text) - 1), MSG_NOSIGNAL) < 0)
		_exit(99);
}

/* A file that holds its name, or the other text given. */
static int make_file(const char *text)
{
	int fd = memfd_create("fake", MFD_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		_exit(98);
	return fd;
}

static void read_file(int fd, char *text, size_t size)
{
	ssize_t n = pread(fd, text, size - 1, 0);

	text[n > 0 ? n : 0] = '\0';
}

/* "take NAME" answers "NAME:CONTENT CONTENT ...", all of that name. */
static void take(struct fake *f, const char *name)
{
	char all[1024], text[64];
	size_t len = (size_t)snprintf(all, sizeof(all), "%s:", name);
	int fd;

	while ((fd = store_take(name)) >= 0) {
		bool open = !(fcntl(fd, F_GETFD) & FD_CLOEXEC);

		read_file(fd, text, sizeof(text));
		len += (size_t)snprintf(all + len, sizeof(all) - len, " %s%s", text,
					open ? "(not close-on-exec)" : "");
		close(fd);
	}
	answer(f, "%s", all);
}

static void add(const char *name, const char *content)
{
	int fd = make_file(content ? content : name);

	if (store_add(name, fd))
		_exit(97);
	close(fd);
}

/* "many N": files "channel-1" to "channel-N", each holding its number. */
static void add_many(unsigned n)
{
	char text[32];

	for (unsigned i = 1; i <= n; i++) {
		int fd;

		snprintf(text, sizeof(text), "%u", i);
		fd = make_file(text);
		if (store_add_number("channel", i, fd))
			_exit(97);
		close(fd);
	}
}

/* How many of them are there, each with what it should hold. */
static void count_many(struct fake *f)
{
	char text[32];
	uint32_t i = 0;
	unsigned n = 0;

	while (store_next("channel", &i)) {
		int fd = store_take_number("channel", i);

		read_file(fd, text, sizeof(text));
		n += strtoul(text, NULL, 10) == i;
		close(fd);
	}
	answer(f, "%u", n);
}

static void set_program(struct fake *f, const char *path)
{
	int fd = open(path, O_PATH | O_CLOEXEC);

	answer(f, "%d", store_set_program(path, fd));
	close(fd);
}

static void answer_program(struct fake *f)
{
	char path[512] = "";

	if (readlink("/proc/self/exe", path, sizeof(path) - 1) < 0)
		_exit(96);
	answer(f, "%s %s", path, store_program());
}

static void answer_orphaned(struct fake *f)
{
	struct pollfd p = {.fd = store_supervisor_fd(), .events = POLLIN};
	int fd = make_file("x");

	poll(&p, 1, WAIT_MS);
	/* Whether it noticed or not. */
	answer(f, "%d %d", (p.revents & POLLIN) != 0, store_add("late", fd));
	close(fd);
}

static void obey(struct fake *f, char *line)
{
	char *word = strsep(&line, " "), *arg = strsep(&line, " ");

	if (strcmp(word, "notify") == 0)
		store_notify(arg);
	else if (strcmp(word, "add") == 0)
		add(arg, strsep(&line, " "));
	else if (strcmp(word, "remove") == 0)
		store_remove(arg);
	else if (strcmp(word, "many") == 0)
		add_many((unsigned)atoi(arg));
	else if (strcmp(word, "signal") == 0)
		kill(getpid(), atoi(arg));
	else if (strcmp(word, "exit") == 0)
		_exit(atoi(arg));
	else if (strcmp(word, "ping") == 0)
		f->ping_ns = (uint64_t)atoi(arg) * NSEC_PER_MSEC;
	else if (strcmp(word, "take") == 0)
		take(f, arg);
	else if (strcmp(word, "count") == 0)
		count_many(f);
	else if (strcmp(word, "drop") == 0)
		answer(f, "%u", store_drop_rest());
	else if (strcmp(word, "keep") == 0) /* the command socket itself */
		store_add("client-1", f->fd);
	else if (strcmp(word, "program") == 0)
		set_program(f, arg);
	else if (strcmp(word, "who") == 0)
		answer_program(f);
	else if (strcmp(word, "address") == 0)
		answer(f, "%s", f->notify);
	else if (strcmp(word, "faults") == 0)
		answer(f, "%s", f->faults);
	else if (strcmp(word, "watchdog") == 0)
		answer(f, "%llu", (unsigned long long)store_watchdog_usec());
	else if (strcmp(word, "orphaned") == 0)
		answer_orphaned(f);
	else if (strcmp(word, "kept") == 0)
		answer(f, "%d", store_kept());
	else
		_exit(95);
}

static void copy_environment(char *to, size_t size, const char *name)
{
	const char *value = getenv(name);

	snprintf(to, size, "%s", value ? value : "none");
}

/* Commands of one packet are separated by ';'. One that is not there any more sends no "ok". */
static void serve_packet(struct fake *f)
{
	static char packet[PACKET_MAX];
	ssize_t n = recv(f->fd, packet, sizeof(packet) - 1, 0);
	char *s = packet, *line;

	if (n <= 0)
		_exit(n ? 94 : 0);
	packet[n] = '\0';
	while ((line = strsep(&s, ";")))
		obey(f, line);
	answer(f, "ok");
}

static int fake_worker(int command_fd)
{
	struct fake f = {.fd = command_fd};
	struct pollfd p[2] = {{.fd = command_fd, .events = POLLIN}, {.events = POLLIN}};
	sigset_t set;

	copy_environment(f.notify, sizeof(f.notify), "NOTIFY_SOCKET");
	copy_environment(f.faults, sizeof(f.faults), "ARENA_FAULTPOINTS");
	if (store_open())
		return 93;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	p[1].fd = signalfd(-1, &set, SFD_CLOEXEC);
	answer(&f, "start %d", (int)getpid());
	for (;;) {
		struct signalfd_siginfo info;
		int n = poll(p, 2, f.ping_ns ? (int)(f.ping_ns / NSEC_PER_MSEC) : -1);

		if (n == 0)
			store_notify("WATCHDOG=1");
		if (p[1].revents && read(p[1].fd, &info, sizeof(info)) == sizeof(info))
			answer(&f, "heard %u", info.ssi_signo);
		if (p[0].revents)
			serve_packet(&f);
	}
}

/* ---- the test's side ----------------------------------------------------------------------- */

struct supervised {
	pid_t pid;    /* the supervisor's */
	pid_t worker; /* of the last "start" */
	int fd, log_fd;
	char packet[PACKET_MAX]; /* the last one */
	char log[PACKET_MAX];
	size_t log_len;
};

struct supervised_params {
	const char *program; /* NULL: this one */
	unsigned watchdog_ms;
	const char *environment; /* "NAME=value" more, or NULL */
	int high;                /* the command socket stays out of the way of thousands */
	int listen_fd;           /* handed down to the supervisor as "given"; 0: none */
};

static void exec_supervisor(const struct supervised_params *p, int fd, int log_fd)
{
	char watchdog[16], number[16];
	const char *program = p->program ? p->program : "/proc/self/exe";
	int at = p->high ? COMMAND_FD_HIGH : COMMAND_FD;

	/* A test that failed leaves nobody behind: workers end with the socket. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(fd, at);
	dup2(log_fd, 2);
	unsetenv("NOTIFY_SOCKET");
	if (p->environment)
		putenv((char *)(uintptr_t)p->environment);
	if (p->listen_fd) {
		if (p->listen_fd == 3)
			fcntl(3, F_SETFD, 0);
		else
			dup2(p->listen_fd, 3);
		snprintf(number, sizeof(number), "%d", (int)getpid());
		setenv("LISTEN_PID", number, 1);
		setenv("LISTEN_FDS", "1", 1);
		setenv("LISTEN_FDNAMES", "given", 1);
	}
	snprintf(watchdog, sizeof(watchdog), "%u", p->watchdog_ms);
	snprintf(number, sizeof(number), "%d", at);
	execl(program, "fake-arenad", "--supervise", number, watchdog, (char *)NULL);
	_exit(92);
}

static void raise_limit(void)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = limit.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static void start(struct supervised *t, const struct supervised_params *p)
{
	int fd[2], log_fd[2];

	raise_limit();
	*t = (struct supervised){.worker = 0};
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd), 0);
	assert_int_equal(pipe2(log_fd, O_CLOEXEC | O_NONBLOCK), 0);
	assert_int_equal(fcntl(log_fd[1], F_SETFL, 0), 0);
	t->pid = fork();
	assert_true(t->pid >= 0);
	if (!t->pid)
		exec_supervisor(p, fd[1], log_fd[1]);
	close(fd[1]);
	close(log_fd[1]);
	t->fd = fd[0];
	t->log_fd = log_fd[0];
}

static void read_log(struct supervised *t)
{
	ssize_t n;

	while ((n = read(t->log_fd, t->log + t->log_len, sizeof(t->log) - t->log_len - 1)) > 0)
		t->log_len += (size_t)n;
	t->log[t->log_len] = '\0';
}

/* The next packet, or the test fails. */
static const char *hear(struct supervised *t)
{
	struct pollfd p = {.fd = t->fd, .events = POLLIN};
	ssize_t n = poll(&p, 1, WAIT_MS) == 1 ? recv(t->fd, t->packet, PACKET_MAX - 1, 0) : -1;

	if (n <= 0) {
		read_log(t);
		fail_msg("nothing heard (%zd); the log: %s", n, t->log);
	}
	t->packet[n] = '\0';
	return t->packet;
}

static void expect(struct supervised *t, const char *text)
{
	const char *heard = hear(t);

	if (strcmp(heard, text) != 0) {
		read_log(t);
		fail_msg("'%s' instead of '%s'; the log: %s", heard, text, t->log);
	}
}

static void expect_start(struct supervised *t)
{
	pid_t before = t->worker;

	assert_int_equal(sscanf(hear(t), "start %d", &t->worker), 1);
	assert_int_not_equal(t->worker, before);
}

/* Commands that are the worker's last. */
static void order(struct supervised *t, const char *commands)
{
	assert_int_equal(send(t->fd, commands, strlen(commands), MSG_NOSIGNAL), strlen(commands));
}

/* Commands without answers of their own. */
static void tell(struct supervised *t, const char *commands)
{
	order(t, commands);
	expect(t, "ok");
}

/* One that has an answer: that is left in t->packet. */
static void ask(struct supervised *t, const char *command, const char *answer)
{
	order(t, command);
	expect(t, answer);
	expect(t, "ok");
}

/* Wait for the supervisor's end: its exit status. */
static int ended(struct supervised *t)
{
	uint64_t deadline = clock_now() + WAIT_MS * NSEC_PER_MSEC;
	struct pollfd p = {.fd = t->log_fd, .events = 0};
	int status;

	/* The log's other end closes with the last process. */
	while (!(p.revents & POLLHUP) && clock_now() < deadline) {
		read_log(t);
		poll(&p, 1, 100);
	}
	if (!(p.revents & POLLHUP))
		kill(t->pid, SIGKILL);
	assert_int_equal(waitpid(t->pid, &status, 0), t->pid);
	read_log(t);
	close(t->fd);
	close(t->log_fd);
	assert_true(p.revents & POLLHUP);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* Stop it all: the worker hears of it, says so, and ends. */
static void stop(struct supervised *t)
{
	assert_int_equal(kill(t->pid, SIGTERM), 0);
	expect(t, "heard 15");
	order(t, "notify STOPPING=1;exit 0");
	assert_int_equal(ended(t), 0);
}

static unsigned log_lines(struct supervised *t, const char *text)
{
	unsigned n = 0;

	read_log(t);
	for (const char *s = t->log; (s = strstr(s, text)); s++)
		n++;
	return n;
}

static void await_log(struct supervised *t, const char *text)
{
	uint64_t deadline = clock_now() + WAIT_MS * NSEC_PER_MSEC;
	struct pollfd p = {.fd = t->log_fd, .events = POLLIN};

	while (!log_lines(t, text)) {
		if (clock_now() > deadline)
			fail_msg("not in the log: %s; but: %s", text, t->log);
		poll(&p, 1, 100);
	}
}

/* For main(): does not return in a supervisor or a worker. */
static void be_supervised(int argc, char **argv)
{
	struct supervisor_params params = {.argv = argv};

	if (argc == 5 && strcmp(argv[1], "--no-supervisor") == 0)
		exit(fake_worker(atoi(argv[3])));
	if (argc != 4 || strcmp(argv[1], "--supervise") != 0)
		return;
	params.watchdog_usec = (uint64_t)atoi(argv[3]) * 1000;
	exit(supervisor_run(&params));
}

#endif
