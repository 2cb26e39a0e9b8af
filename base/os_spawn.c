/* SPDX-License-Identifier: MIT */
/* os_spawn.c - running another program for what it prints. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/os.h"
#include "base/util.h"

/* No signal of ours is blocked or ignored in it, and its input is empty. */
static int spawn(const char *const argv[], int out, pid_t *pid)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none, pipe;
	int r;

	sigemptyset(&none);
	sigemptyset(&pipe);
	sigaddset(&pipe, SIGPIPE);
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &pipe);
	r = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	if (!r)
		r = posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
	if (!r)
		r = posix_spawn_file_actions_adddup2(&actions, out, STDERR_FILENO);
	if (!r)
		r = posix_spawn(pid, argv[0], &actions, &attr, (char *const *)(uintptr_t)argv,
				environ);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&actions);
	return -r;
}

/* True at the end of what it prints; false at the deadline. What does not fit is dropped. */
static bool read_until(int fd, uint64_t deadline, char *out, size_t size)
{
	size_t len = 0;

	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		uint64_t now = clock_now();
		char rest[256];
		bool full = len + 1 >= size;
		ssize_t n;

		if (now >= deadline ||
		    poll(&p, 1, (int)((deadline - now) / NSEC_PER_MSEC + 1)) == 0)
			return false;
		n = read(fd, full ? rest : out + len, full ? sizeof(rest) : size - len - 1);
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n <= 0)
			return true;
		if (!full)
			len += (size_t)n;
		out[len] = '\0';
	}
}

int os_output(const char *const argv[], unsigned ms, char *out, size_t size)
{
	_cleanup_(closep) int in = -1;
	int fd[2], status, r;
	bool ended;
	pid_t pid;

	out[0] = '\0';
	if (pipe2(fd, O_CLOEXEC) < 0)
		return -errno;
	in = fd[0];
	r = spawn(argv, fd[1], &pid);
	close(fd[1]);
	if (r)
		return r;
	ended = read_until(in, clock_now() + ms * NSEC_PER_MSEC, out, size);
	if (!ended)
		kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	if (!ended)
		return -ETIMEDOUT;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
