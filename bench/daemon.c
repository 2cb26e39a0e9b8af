/* SPDX-License-Identifier: MIT */
/*
 * daemon.c - daemons of the benchmark's own, and what can be seen of them from outside.
 *
 * What is awaited (a full pool, freed memory) is visible only in the status file, so it is read
 * every few milliseconds until it says so; everything has a deadline.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "bench/bench.h"

#define STATUS "sys/kernel/mm/arena/status"
#define LOOK_EVERY_NS (10 * NSEC_PER_MSEC)
#define DEADLINE_NS (60 * NSEC_PER_SEC)
#define CALM_LOOKS 10 /* so often the same: nothing goes on */
#define MAX_DAEMONS 4
#define ARENA_MIN (128 * BENCH_LEAF)

static struct daemon *running[MAX_DAEMONS];
static pid_t driver;

static void look_later(void)
{
	struct timespec ts = {.tv_nsec = LOOK_EVERY_NS};

	nanosleep(&ts, NULL);
}

static void remove_dir(const struct daemon *d)
{
	char path[128];

	unlink(d->socket);
	snprintf(path, sizeof(path), "%s/lock", d->dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/socket.lock", d->dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/log", d->dir);
	unlink(path);
	if (rmdir(d->dir) < 0)
		say("%s is left: %s", d->dir, strerror(errno));
}

/* The driver ends early: its daemons end with it. */
static void stop_all(void)
{
	if (getpid() != driver)
		return;
	for (unsigned i = 0; i < MAX_DAEMONS; i++) {
		if (!running[i])
			continue;
		kill(running[i]->pid, SIGTERM);
		waitpid(running[i]->pid, NULL, 0);
		remove_dir(running[i]);
	}
}

static void remember(struct daemon *d)
{
	if (!driver) {
		driver = getpid();
		atexit(stop_all);
	}
	for (unsigned i = 0; i < MAX_DAEMONS; i++) {
		if (!running[i]) {
			running[i] = d;
			return;
		}
	}
	die("more than %d daemons at once", MAX_DAEMONS);
}

static void forget(const struct daemon *d)
{
	for (unsigned i = 0; i < MAX_DAEMONS; i++)
		if (running[i] == d)
			running[i] = NULL;
}

static void run_arenad(const struct daemon *d, const char *program, uint64_t arena_bytes,
		       pid_t parent)
{
	char size[32], log[96];
	int fd;

	snprintf(size, sizeof(size), "%" PRIu64 "M", MAX(arena_bytes, ARENA_MIN) >> 20);
	snprintf(log, sizeof(log), "%s/log", d->dir);
	fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || dup2(fd, STDERR_FILENO) < 0)
		_exit(126);
	close(fd);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(1);
	execl(program, program, "--socket", d->socket, "--arena-size", size, "--nodes", "1",
	      "--mount", "none", "--log-level", "notice", (char *)NULL);
	_exit(127);
}

void daemon_start(struct daemon *d, const struct bench *b, uint64_t arena_bytes)
{
	const char *tmp = getenv("TMPDIR");
	uint64_t deadline = clock_now() + DEADLINE_NS;
	struct arena_options options = {.size = sizeof(options), .socket = d->socket};
	pid_t parent = getpid();
	char program[4096];
	int status;

	snprintf(d->dir, sizeof(d->dir), "%s/arena-bench.XXXXXX",
		 tmp && strlen(tmp) < 32 ? tmp : "/tmp");
	if (!mkdtemp(d->dir))
		die("%s: %s", d->dir, strerror(errno));
	snprintf(d->socket, sizeof(d->socket), "%s/socket", d->dir);
	snprintf(program, sizeof(program), "%s/bin/arenad", b->build);
	fflush(NULL);
	d->pid = fork();
	if (d->pid < 0)
		die("fork: %s", strerror(errno));
	if (!d->pid)
		run_arenad(d, program, arena_bytes, parent);
	remember(d);
	while (arena_open(&options, &d->monitor) < 0) {
		if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
			forget(d);
			die("%s did not start (status %d); its log: %s/log", program,
			    WIFEXITED(status) ? WEXITSTATUS(status) : -1, d->dir);
		}
		if ((errno != ENOENT && errno != ECONNREFUSED) || clock_now() > deadline)
			die("%s: %s", d->socket, strerror(errno));
		look_later();
	}
	d->worker = (pid_t)daemon_status(d, "worker_pid");
}

void daemon_stop(struct daemon *d)
{
	int status;

	arena_close(d->monitor);
	kill(d->pid, SIGTERM);
	while (waitpid(d->pid, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid: %s", strerror(errno));
	forget(d);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		die("arenad ended with status 0x%x; its log: %s/log", (unsigned)status, d->dir);
	remove_dir(d);
}

/* ---- status ---- */

uint64_t status_number(arena_t *a, const char *key)
{
	size_t len = strlen(key);
	char text[16384];
	ssize_t n = arena_attr_read(a, STATUS, text, sizeof(text) - 1);

	if (n < 0)
		die("%s: %s", STATUS, strerror(errno));
	text[n] = '\0';
	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, key, len) && line[len] == ' ')
			return strtoull(line + len, NULL, 10);
	}
	die("%s has no %s", STATUS, key);
}

uint64_t daemon_status(struct daemon *d, const char *key)
{
	return status_number(d->monitor, key);
}

void daemon_wait_zeroed(struct daemon *d, uint64_t bytes)
{
	uint64_t deadline = clock_now() + DEADLINE_NS, before = UINT64_MAX;
	unsigned calm = 0;

	while (calm < CALM_LOOKS) {
		uint64_t cpu = daemon_status(d, "kzerod_cpu_ns");

		calm = cpu == before && daemon_status(d, "zeroed_ready_bytes") >= bytes ? calm + 1
											: 0;
		before = cpu;
		if (clock_now() > deadline)
			die("the pool has only %" PRIu64 " of %" PRIu64 " MiB after a minute",
			    daemon_status(d, "zeroed_ready_bytes") >> 20, bytes >> 20);
		look_later();
	}
}

void daemon_wait_free(struct daemon *d, uint64_t bytes)
{
	uint64_t deadline = clock_now() + DEADLINE_NS;

	while (daemon_status(d, "free_bytes") < bytes) {
		if (clock_now() > deadline)
			die("memory of dead clients did not come back: %" PRIu64 " of %" PRIu64
			    " KiB are free",
			    daemon_status(d, "free_bytes") >> 10, bytes >> 10);
		look_later();
	}
}

/* ---- its threads ---- */

static void each_thread(pid_t pid, void (*f)(pid_t pid, pid_t tid, void *arg), void *arg)
{
	struct dirent *e;
	char path[64];
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	if (!dir)
		die("%s: %s", path, strerror(errno));
	while ((e = readdir(dir)))
		if (e->d_name[0] != '.')
			f(pid, (pid_t)strtol(e->d_name, NULL, 10), arg);
	closedir(dir);
}

static void pin_thread(pid_t pid, pid_t tid, void *arg)
{
	int cpu = *(const int *)arg;
	cpu_set_t set;

	(void)pid;
	CPU_ZERO(&set);
	if (cpu < 0)
		memset(&set, 0xff, sizeof(set));
	else
		CPU_SET(cpu, &set);
	if (sched_setaffinity(tid, sizeof(set), &set) < 0)
		die("sched_setaffinity of the daemon: %s", strerror(errno));
}

void daemon_pin(const struct daemon *d, int cpu)
{
	each_thread(d->worker, pin_thread, &cpu);
}

static void add_usage(pid_t pid, pid_t tid, void *arg)
{
	struct usage *u = arg;
	char path[64], line[256];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", (int)pid, (int)tid);
	if (machine_line(path, line, sizeof(line))[0] == '?')
		die("%s cannot be read", path);
	u->cpu_ns += strtoull(line, NULL, 10);
	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", (int)pid, (int)tid);
	f = fopen(path, "re");
	if (!f)
		die("%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, "voluntary_ctxt_switches:", 24))
			u->wakeups += strtoull(line + 24, NULL, 10);
	fclose(f);
}

void process_usage(pid_t pid, struct usage *out)
{
	*out = (struct usage){0};
	each_thread(pid, add_usage, out);
}
