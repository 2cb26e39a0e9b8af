/* SPDX-License-Identifier: MIT */
/*
 * redis.c - redis-benchmark of redis-server on arena memory (arenactl run) and on its own, in turn.
 *
 * Both servers run all the time, and one load goes to either of them, so soon after another that both see the same
 * machine. The servers have one CPU and redis-benchmark another: left to the scheduler, the two share them in one
 * of two ways for seconds at a time, whose rates are 1.4 times apart, and a ratio says which was met more often.
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

/* Loads of a run that go to each server. */
#define TURNS 3u

struct server {
	pid_t pid;
	char socket[96], log[96];
};

enum { SERVER_PLAIN, SERVER_ARENA, SERVER_NR };

struct redis {
	const struct bench *b;
	const struct daemon *d;
	struct server server[SERVER_NR];
	char report[96], arenactl[4096];
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

/* -1, which is anywhere, where there is only one. */
static int cpu_of(const struct redis *r, unsigned nr)
{
	return r->b->nr_cpus > 1 ? r->b->cpu[nr] : -1;
}

static void become_server(const struct redis *r, bool arena, pid_t parent)
{
	const struct server *server = &r->server[arena];
	const char *args[32];
	unsigned n = 0;
	int fd = open(server->log, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd < 0 || dup2(fd, STDOUT_FILENO) < 0 || dup2(fd, STDERR_FILENO) < 0)
		_exit(126);
	close(fd);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(1);
	pin_self(cpu_of(r, 0));
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
	args[n++] = server->socket;
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

static void server_start(struct redis *r, bool arena)
{
	uint64_t deadline = clock_now() + SERVER_SECONDS * NSEC_PER_SEC;
	struct timespec ts = {.tv_nsec = 10 * NSEC_PER_MSEC};
	struct server *server = &r->server[arena];
	pid_t parent = getpid();
	int status;

	unlink(server->socket);
	fflush(NULL);
	server->pid = fork();
	if (server->pid < 0)
		die("fork: %s", strerror(errno));
	if (!server->pid)
		become_server(r, arena, parent);
	while (!answers(server->socket)) {
		if (waitpid(server->pid, &status, WNOHANG) == server->pid)
			die("redis-server did not start (status 0x%x); its log: %s",
			    (unsigned)status, server->log);
		if (clock_now() > deadline) {
			kill(server->pid, SIGKILL);
			die("redis-server does not answer; its log: %s", server->log);
		}
		nanosleep(&ts, NULL);
	}
}

static void server_stop(const struct server *server)
{
	int status;

	kill(server->pid, SIGTERM);
	while (waitpid(server->pid, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid: %s", strerror(errno));
	if (status)
		die("redis-server ended with status 0x%x; its log: %s", (unsigned)status,
		    server->log);
	unlink(server->socket);
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

static void load(const struct redis *r, bool arena, unsigned pipeline, double out[TEST_NR])
{
	unsigned requests = (r->b->quick ? 1000 : 25000) * (pipeline > 1 ? 5 : 1);
	char command[512];
	FILE *f;

	snprintf(command, sizeof(command),
		 "exec redis-benchmark -s '%s' -t set,get -r 100000 -d 100 -n %u -P %u --csv 2>&1",
		 r->server[arena].socket, requests, pipeline);
	out[TEST_SET] = out[TEST_GET] = 0;
	/* Who is started runs where who starts it may. */
	pin_self(cpu_of(r, 1));
	f = popen(command, "re");
	pin_self(-1);
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

static void turn(const struct redis *r, bool arena, double sum[ARRAY_SIZE(rows)])
{
	double rate[2][TEST_NR];

	load(r, arena, 1, rate[0]);
	load(r, arena, PIPELINE, rate[1]);
	for (size_t i = 0; sum && i < ARRAY_SIZE(rows); i++)
		sum[i] += rate[rows[i].pipeline > 1][rows[i].test];
}

static void redis_once(struct redis *r)
{
	double sum[SERVER_NR][ARRAY_SIZE(rows)] = {0};

	for (unsigned arena = 0; arena < SERVER_NR; arena++)
		server_start(r, arena);
	/* Which makes the keys. */
	for (unsigned arena = 0; arena < SERVER_NR; arena++)
		turn(r, arena, NULL);
	for (unsigned i = 0; i < TURNS; i++) {
		turn(r, i % 2, sum[i % 2]);
		turn(r, !(i % 2), sum[!(i % 2)]);
	}
	for (unsigned arena = 0; arena < SERVER_NR; arena++) {
		server_stop(&r->server[arena]);
		for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
			series_add(row_series(i, arena), sum[arena][i] / TURNS);
	}
	check_served(r);
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
		for (unsigned arena = 0; arena < SERVER_NR; arena++)
			row_series(i, arena);
	daemon_start(&d, b, BENCH_GIB / 2);
	for (unsigned i = 0; i < SERVER_NR; i++) {
		snprintf(r.server[i].socket, sizeof(r.server[i].socket), "%s/redis%u", d.dir, i);
		snprintf(r.server[i].log, sizeof(r.server[i].log), "%s/redis%u.log", d.dir, i);
	}
	snprintf(r.report, sizeof(r.report), "%s/report", d.dir);
	snprintf(r.arenactl, sizeof(r.arenactl), "%s/bin/arenactl", b->build);
	for (unsigned i = 0; i < b->runs; i++) {
		say("redis: run %u of %u", i + 1, b->runs);
		redis_once(&r);
	}
	for (unsigned i = 0; i < SERVER_NR; i++)
		unlink(r.server[i].log);
	daemon_stop(&d);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		goal_at_least(SECTION, rows[i].goal,
			      series_median(row_series(i, true)) /
				      series_median(row_series(i, false)),
			      0.95);
}
