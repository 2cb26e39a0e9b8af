/* SPDX-License-Identifier: MIT */
/*
 * lib_worker.c - the worker behind a test's daemon, and its deaths.
 *
 * Workers are found as the supervisor's only child and killed through a pidfd, so that no other
 * process is hit that got a dead one's process id.
 */
#include "tests/lib_daemon.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/prng.h"

#define WORKER_MS 20000

/* 0: there is none at the moment. */
static pid_t only_child(pid_t parent)
{
	char path[64], text[64] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)parent, (int)parent);
	f = fopen(path, "re");
	if (!f)
		return 0;
	if (!fgets(text, sizeof(text), f))
		text[0] = '\0';
	fclose(f);
	return (pid_t)strtol(text, NULL, 10);
}

/* A pidfd of the worker, -1: there is none at the moment. */
static int open_worker(pid_t supervisor, pid_t *pid)
{
	int fd;

	*pid = only_child(supervisor);
	fd = *pid ? (int)syscall(SYS_pidfd_open, *pid, 0) : -1;
	/* Still its child: so it was when it was opened. */
	if (fd >= 0 && only_child(supervisor) != *pid) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static int kill_worker(pid_t supervisor, pid_t *pid)
{
	int fd = open_worker(supervisor, pid), r;

	if (fd < 0)
		return -1;
	r = (int)syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0);
	close(fd);
	return r;
}

pid_t daemon_worker_pid(struct test_daemon *d)
{
	uint64_t deadline = test_now() + WORKER_MS * UINT64_C(1000000);
	pid_t pid;

	/* Nothing tells when a process becomes a parent. */
	while (!(pid = only_child(d->pid))) {
		assert_true(test_now() < deadline);
		poll(NULL, 0, 1);
	}
	return pid;
}

/* The connection outlives workers; but not one that had not been heard of yet. */
static void renew_control(struct test_daemon *d)
{
	struct pollfd p = {.fd = d->control.fd, .events = POLLIN};

	if (d->control.fd < 0 || poll(&p, 1, 0) == 0 || !(p.revents & POLLHUP))
		return;
	wire_close(&d->control);
	assert_true(wire_open(&d->control, d->socket));
}

pid_t daemon_kill_worker(struct test_daemon *d)
{
	pid_t pid = daemon_worker_pid(d);
	size_t from;

	daemon_read_log(d);
	from = d->log_len;
	d->expect_deaths = true;
	/* The killer may have been there before us. */
	while (kill_worker(d->pid, &pid) < 0) {
		assert_true(d->killer > 0);
		pid = daemon_worker_pid(d);
	}
	assert_true(daemon_log_wait(d, from, READY_LINE));
	renew_control(d);
	return daemon_worker_pid(d);
}

/* ---- at random moments ----------------------------------------------------------------------- */

#define STEPS 16 /* of a millisecond */

/* As likely to end at any moment as at any other, so that now and then a worker lives long. */
static void sleep_about(struct prng *r, uint64_t mean_us)
{
	uint64_t mean = mean_us * STEPS / 1000, steps = 0, us;
	struct timespec ts;

	while (mean && prng_below(r, mean))
		steps++;
	us = steps * 1000 / STEPS;
	ts = (struct timespec){.tv_sec = (time_t)(us / 1000000),
			       .tv_nsec = (long)(us % 1000000 * 1000)};
	nanosleep(&ts, NULL);
}

/* Until it is killed itself, or the supervisor is gone. */
static void be_killer(pid_t supervisor, pid_t parent, uint64_t mean_us, uint64_t seed)
{
	struct prng r = {.state = seed};
	pid_t pid;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (getppid() == parent && kill(supervisor, 0) == 0) {
		sleep_about(&r, mean_us);
		kill_worker(supervisor, &pid);
	}
	_exit(0);
}

void daemon_start_killer(struct test_daemon *d)
{
	const char *ms = getenv("ARENA_TEST_KILL"), *given = getenv("ARENA_TEST_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 10) : test_now();
	uint64_t mean_us = ms ? (uint64_t)(strtod(ms, NULL) * 1000) : 0;
	pid_t parent = getpid();

	if (!mean_us)
		return;
	print_message("workers are killed about every %s ms, ARENA_TEST_SEED=%llu\n", ms,
		      (unsigned long long)seed);
	d->expect_deaths = true;
	d->killer = fork();
	assert_true(d->killer >= 0);
	if (!d->killer)
		be_killer(d->pid, parent, mean_us, seed);
}

void daemon_stop_killer(struct test_daemon *d)
{
	if (d->killer <= 0)
		return;
	kill(d->killer, SIGKILL);
	assert_int_equal(waitpid(d->killer, NULL, 0), d->killer);
	d->killer = 0;
}

void daemon_kill_all(struct test_daemon *d)
{
	struct pollfd p = {.events = POLLIN};
	pid_t worker;
	int status;

	if (!d->pid)
		return;
	/* Stopped it starts no other one. */
	kill(d->pid, SIGSTOP);
	if (waitpid(d->pid, &status, WUNTRACED) == d->pid && WIFSTOPPED(status)) {
		p.fd = open_worker(d->pid, &worker);
		kill(d->pid, SIGKILL);
		waitpid(d->pid, NULL, 0);
		if (p.fd >= 0) {
			syscall(SYS_pidfd_send_signal, p.fd, SIGKILL, NULL, 0);
			poll(&p, 1, WORKER_MS);
			close(p.fd);
		}
	}
	d->pid = 0;
}
