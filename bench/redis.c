/* SPDX-License-Identifier: MIT */
/*
 * redis.c - redis-benchmark of redis-server on arena memory (arenactl run) and on its own, in turn.
 *
 * By a unix socket, because less of a request is the network's then; one request at a time of each of the 50 clients,
 * and 16 at a time (-P 16). 100,000 keys of 100 bytes in random order, so that the memory matters. Requests a
 * second as redis-benchmark counts them. A server that arenad did not serve is no measurement: its report says.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "bench/bench.h"

#define SECTION "redis"
#define SERVER_SECONDS 30
#define SERVED_LEAST (UINT64_C(8) << 20)
#define PIPELINE 16

struct redis {
	const struct bench *b;
	const struct daemon *d;
	char socket[96], report[96], log[96], arenactl[4096];
};

static bool in_path(const char *program)
{
	char path[4096];
	const char *dirs = getenv("PATH");

	for (const char *dir = dirs ? dirs : ""; *dir;) {
		size_t len = strcspn(dir, ":");

		snprintf(path, sizeof(path), "%.*s/%s", (int)len, dir, program);
		if (access(path, X_OK) == 0)
			return true;
		dir += len + (dir[len] == ':');
	}
	return false;
}

/* ---- the server ---- */

static void become_server(const struct redis *r, bool arena, pid_t parent)
{
	const char *args[32];
	unsigned n = 0;
	int fd = open(r->log, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd < 0 || dup2(fd, STDOUT_FILENO) < 0 || dup2(fd, STDERR_FILENO) < 0)
		_exit(126);
	close(fd);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(1);
	if (arena) {
		args[n++] = r->arenactl;
		args[n++] = "run";
		args[n++] = "--socket";
		args[n++] = r->d->socket;
		args[n++] = "--strict";
		args[n++] = "--report";
		args[n++] = r->report;
		args[n++] = "--";
	}
	args[n++] = "redis-server";
	args[n++] = "--port";
	args[n++] = "0";
	args[n++] = "--unixsocket";
	args[n++] = r->socket;
	args[n++] = "--save";
	args[n++] = "";
	args[n++] = "--dir";
	args[n++] = r->d->dir;
	args[n] = NULL;
	execvp(args[0], (char **)(uintptr_t)args);
	_exit(127);
}

static bool answers(const char *path)
{
	_cleanup_(closep) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	return fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0;
}

static pid_t server_start(const struct redis *r, bool arena)
{
	uint64_t deadline = clock_now() + SERVER_SECONDS * NSEC_PER_SEC;
	struct timespec ts = {.tv_nsec = 10 * NSEC_PER_MSEC};
	pid_t parent = getpid(), pid;
	int status;

	unlink(r->socket);
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (!pid)
		become_server(r, arena, parent);
	while (!answers(r->socket)) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			die("redis-server did not start (status 0x%x); its log: %s",
			    (unsigned)status, r->log);
		if (clock_now() > deadline) {
			kill(pid, SIGKILL);
			die("redis-server does not answer; its log: %s", r->log);
		}
		nanosleep(&ts, NULL);
	}
	return pid;
}

static void server_stop(const struct redis *r, pid_t pid)
{
	int status;

	kill(pid, SIGTERM);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid: %s", strerror(errno));
	if (status)
		die("redis-server ended with status 0x%x; its log: %s", (unsigned)status, r->log);
	unlink(r->socket);
}

/* The server's line in the report: what was served at the most. */
static void check_served(const struct redis *r)
{
	char line[512];
	const char *peak = strstr(machine_line(r->report, line, sizeof(line)), " peak=");

	if (!peak || strtoull(peak + 6, NULL, 10) < SERVED_LEAST)
		die("redis-server was not served by arenad: %s", line);
	unlink(r->report);
}

/* ---- the load ---- */

enum { TEST_SET, TEST_GET, TEST_NR };

/* Lines of "NAME","requests a second",... */
static void parse_csv(FILE *f, double out[TEST_NR])
{
	static const char *const names[TEST_NR] = {"\"SET\",\"", "\"GET\",\""};
	char line[512];

	while (fgets(line, sizeof(line), f))
		for (unsigned i = 0; i < TEST_NR; i++)
			if (!strncmp(line, names[i], strlen(names[i])))
				out[i] = strtod(line + strlen(names[i]), NULL);
}

static void load(const struct redis *r, unsigned pipeline, double out[TEST_NR])
{
	unsigned requests = (r->b->quick ? 2000 : 100000) * (pipeline > 1 ? 5 : 1);
	char command[512];
	FILE *f;

	snprintf(command, sizeof(command),
		 "exec redis-benchmark -s '%s' -t set,get -r 100000 -d 100 -n %u -P %u --csv 2>&1",
		 r->socket, requests, pipeline);
	out[TEST_SET] = out[TEST_GET] = 0;
	f = popen(command, "re");
	if (!f)
		die("redis-benchmark: %s", strerror(errno));
	parse_csv(f, out);
	if (pclose(f) || !out[TEST_SET] || !out[TEST_GET])
		die("redis-benchmark failed");
}

/* ---- all ---- */

static const struct {
	unsigned pipeline, test;
	const char *name[2], *text[2], *goal;
} rows[] = {
	{1,
	 TEST_SET,
	 {"plain_set", "arena_set"},
	 {"SET, the kernel's memory", "SET, arenactl run"},
	 "redis-benchmark SET: times the plain server's rate"},
	{1,
	 TEST_GET,
	 {"plain_get", "arena_get"},
	 {"GET, the kernel's memory", "GET, arenactl run"},
	 "redis-benchmark GET: times the plain server's rate"},
	{PIPELINE,
	 TEST_SET,
	 {"plain_set_16", "arena_set_16"},
	 {"SET -P 16, the kernel's memory", "SET -P 16, arenactl run"},
	 "redis-benchmark SET -P 16: times the plain server's rate"},
	{PIPELINE,
	 TEST_GET,
	 {"plain_get_16", "arena_get_16"},
	 {"GET -P 16, the kernel's memory", "GET -P 16, arenactl run"},
	 "redis-benchmark GET -P 16: times the plain server's rate"},
};

static struct series *row_series(size_t row, bool arena)
{
	return series_get(SECTION, rows[row].name[arena], "requests/s", rows[row].text[arena]);
}

static void redis_once(const struct redis *r, bool arena)
{
	pid_t pid = server_start(r, arena);
	double rate[2][TEST_NR];

	load(r, 1, rate[0]);
	load(r, PIPELINE, rate[1]);
	server_stop(r, pid);
	if (arena)
		check_served(r);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		series_add(row_series(i, arena), rate[rows[i].pipeline > 1][rows[i].test]);
}

void bench_redis(const struct bench *b)
{
	struct daemon d;
	struct redis r = {.b = b, .d = &d};

	if (!in_path("redis-server") || !in_path("redis-benchmark")) {
		say("redis: not installed here (build-aux/setup.sh programs)");
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		for (unsigned arena = 0; arena < 2; arena++)
			row_series(i, arena);
	daemon_start(&d, b, BENCH_GIB / 2);
	snprintf(r.socket, sizeof(r.socket), "%s/redis", d.dir);
	snprintf(r.report, sizeof(r.report), "%s/report", d.dir);
	snprintf(r.log, sizeof(r.log), "%s/redis.log", d.dir);
	snprintf(r.arenactl, sizeof(r.arenactl), "%s/bin/arenactl", b->build);
	for (unsigned i = 0; i < b->runs; i++) {
		say("redis: run %u of %u", i + 1, b->runs);
		redis_once(&r, i % 2);
		redis_once(&r, !(i % 2));
	}
	unlink(r.log);
	daemon_stop(&d);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		goal_at_least(SECTION, rows[i].goal,
			      series_median(row_series(i, true)) /
				      series_median(row_series(i, false)),
			      0.95);
}
