/* SPDX-License-Identifier: MIT */
/*
 * listener.c - the socket in the file system.
 *
 * Whoever holds the lock of SOCKET.lock owns SOCKET. The lock file is removed while it is locked,
 * so after taking the lock one looks whether the name still leads to the file that was locked. A
 * socket somebody answers at, though the lock was free, belongs to a program that knows nothing of
 * the lock: it is left alone. Any other socket there is a dead one, and is replaced by rename(2) of
 * a listening one, so that a client that finds the socket can connect.
 *
 * The keeper's lock is a copy of ours, so it is held as long as one of the two lives. A lock that
 * was handed down says that the path is ours and that the socket beside it, if there is one, was
 * made by an earlier worker; a socket without a lock is systemd's.
 */
#include "daemon/service/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/util.h"
#include "base/why.h"
#include "daemon/store/store.h"

#define LOCK_SUFFIX ".lock"
#define NEW_SUFFIX ".new"
#define BACKLOG 128

static char *join(const char *path, const char *suffix)
{
	size_t n = strlen(path) + strlen(suffix) + 1;
	char *s = mem_alloc(n);

	if (s)
		snprintf(s, n, "%s%s", path, suffix);
	return s;
}

/* NULL if it does not fit. */
static const struct sockaddr_un *address(struct sockaddr_un *sun, const char *path)
{
	*sun = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(sun->sun_path))
		return NULL;
	strcpy(sun->sun_path, path);
	return sun;
}

/* ---- the directory --------------------------------------------------------------- */

static int make_directory(const struct listener_params *params, const struct why *why)
{
	_cleanup_(freep) char *directory = mem_strdup(params->path);
	char *slash = directory ? strrchr(directory, '/') : NULL;
	struct stat st;
	int r;

	if (!directory)
		return fail(why, -ENOMEM, "%s", error_text(-ENOMEM));
	if (!slash || slash == directory)
		return 0;
	*slash = '\0';
	if (mkdir(directory, params->directory_mode) < 0 && errno != EEXIST) {
		r = -errno;
		return fail(why, r, "cannot make directory %s: %s", directory, error_text(r));
	}
	if (!params->own_directory)
		return 0;
	/* In a directory of everybody's, somebody else may have been first. */
	if (lstat(directory, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() ||
	    (st.st_mode & (S_IWGRP | S_IWOTH)))
		return fail(why, ARENA_E_ACCESS,
			    "%s is not a directory of our own that only we can write to",
			    directory);
	return 0;
}

/* ---- the lock -------------------------------------------------------------------- */

static int refuse_second(const struct listener *l, long pid, const struct why *why)
{
	if (pid > 0)
		return fail(why, ARENA_E_BUSY, "process %ld already serves %s", pid, l->path);
	return fail(why, ARENA_E_BUSY, "another process already serves %s", l->path);
}

static long lock_holder(int fd)
{
	char text[32] = "";
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	return n > 0 ? strtol(text, NULL, 10) : 0;
}

/* True: the name leads to the file that is open. */
static bool still_there(int fd, const char *path)
{
	struct stat a, b;

	return fstat(fd, &a) == 0 && lstat(path, &b) == 0 && a.st_dev == b.st_dev &&
	       a.st_ino == b.st_ino;
}

static int take_lock(struct listener *l, const struct why *why)
{
	pid_t supervisor = store_supervisor();

	for (;;) {
		_cleanup_(closep) int fd =
			open(l->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		int r = fd < 0 ? -errno : 0;

		if (fd < 0)
			return fail(why, r, "cannot open %s: %s", l->lock_path, error_text(r));
		if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
			r = -errno;
			if (r == -EWOULDBLOCK)
				return refuse_second(l, lock_holder(fd), why);
			return fail(why, r, "cannot lock %s: %s", l->lock_path, error_text(r));
		}
		if (!still_there(fd, l->lock_path))
			continue;
		/* For whoever comes second; without it he learns less. */
		if (ftruncate(fd, 0) == 0)
			dprintf(fd, "%ld\n", (long)(supervisor ? supervisor : getpid()));
		r = store_add("lock", fd);
		if (r)
			return fail(why, r, "cannot have %s kept: %s", l->lock_path, error_text(r));
		l->lock_fd = TAKE_FD(fd);
		return 0;
	}
}

/* Somebody may answer there without holding the lock. */
static int look_for_server(const struct listener *l, const struct why *why)
{
	_cleanup_(closep) int fd =
		socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un sun;
	struct ucred cred = {0};
	socklen_t len = sizeof(cred);
	struct stat st;

	if (fd < 0)
		return fail(why, -errno, "cannot make a socket: %s", error_text(-errno));
	if (lstat(l->path, &st) < 0)
		return 0;
	if (!S_ISSOCK(st.st_mode))
		return fail(why, ARENA_E_EXISTS, "%s exists and is not a socket", l->path);
	/* EAGAIN: served, with a full backlog. EPROTOTYPE: served, by another type of socket. */
	if (connect(fd, (const void *)address(&sun, l->path), sizeof(sun)) < 0 && errno != EAGAIN &&
	    errno != EPROTOTYPE)
		return 0;
	getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
	return refuse_second(l, cred.pid, why);
}

/* ---- what was handed down -------------------------------------------------------- */

/* Where a socket that systemd made is; as it was configured if that cannot be told. */
static int find_path(struct listener *l)
{
	struct sockaddr_un sun = {0};
	socklen_t len = sizeof(sun);
	char *path;

	if (getsockname(l->fd, (void *)&sun, &len) < 0 || !sun.sun_path[0])
		return 0;
	path = mem_alloc(sizeof(sun.sun_path) + 1);
	if (!path)
		return -ENOMEM;
	memcpy(path, sun.sun_path, sizeof(sun.sun_path));
	free(l->path);
	l->path = path;
	return 0;
}

static int take_given(struct listener *l, const struct why *why)
{
	char name[STORE_NAME_MAX] = "listen";
	socklen_t len = sizeof(int);
	int fd = store_take_listener(name), type = 0, r;

	if (fd == -EEXIST)
		return fail(why, ARENA_E_EXISTS, "started with more than one listening socket");
	if (fd < 0)
		return 0;
	l->fd = fd;
	l->given = true;
	r = find_path(l);
	if (r)
		return fail(why, r, "%s", error_text(r));
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_SEQPACKET)
		return fail(why, ARENA_E_INVALID,
			    "started with the socket %s (%s) of another type: it must be "
			    "ListenSequentialPacket=",
			    l->path, name);
	/* Whoever made it may have thought of a blocking accept. */
	if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
		return fail(why, -errno, "%s: %s", l->path, error_text(-errno));
	return 0;
}

/* l->lock_fd or l->fd is set if there was something. */
static int take_over(struct listener *l, const struct why *why)
{
	l->lock_fd = store_take("lock");
	if (l->lock_fd < 0)
		return take_given(l, why);
	l->fd = store_take("listen");
	return 0;
}

/* ---- interface ------------------------------------------------------------------- */

int listener_open(struct listener *l, const struct listener_params *params, char *err,
		  size_t err_size)
{
	const struct why why = {.text = err, .size = err_size};
	struct sockaddr_un sun;
	int r;

	*l = (struct listener){
		.path = mem_strdup(params->path),
		.lock_path = join(params->path, LOCK_SUFFIX),
		.new_path = join(params->path, NEW_SUFFIX),
		.lock_fd = -1,
		.fd = -1,
		.mode = params->mode,
	};
	if (!l->path || !l->lock_path || !l->new_path)
		r = fail(&why, -ENOMEM, "%s", error_text(-ENOMEM));
	else if (!*l->path || !address(&sun, l->new_path))
		r = fail(&why, ARENA_E_NAME_TOO_LONG, "%s is too long for a socket", l->path);
	else if (!(r = take_over(l, &why)) && l->lock_fd < 0 && l->fd < 0 &&
		 !(r = make_directory(params, &why)) && !(r = take_lock(l, &why)))
		r = look_for_server(l, &why);
	if (r)
		listener_close(l);
	return r;
}

/* Until it is renamed nobody looks for it, and it is born with no rights for others. */
static int bind_new(struct listener *l, int fd)
{
	struct sockaddr_un sun;
	mode_t old;
	int r;

	if (unlink(l->new_path) < 0 && errno != ENOENT)
		return -errno;
	old = umask(0177);
	r = bind(fd, (const void *)address(&sun, l->new_path), sizeof(sun));
	umask(old);
	if (r < 0)
		return -errno;
	if (chmod(l->new_path, l->mode) < 0 || listen(fd, BACKLOG) < 0 ||
	    rename(l->new_path, l->path) < 0) {
		r = -errno;
		unlink(l->new_path);
		return r;
	}
	return 0;
}

int listener_start(struct listener *l, char *err, size_t err_size)
{
	const struct why why = {.text = err, .size = err_size};
	_cleanup_(closep) int fd = -1;
	int r;

	if (l->fd >= 0)
		return 0;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	r = fd < 0 ? -errno : bind_new(l, fd);
	if (!r)
		r = store_add("listen", fd);
	if (r)
		return fail(&why, r, "cannot listen at %s: %s", l->path, error_text(r));
	l->fd = TAKE_FD(fd);
	return 0;
}

void listener_close(struct listener *l)
{
	/* A worker that ended in here has left the path to others: they have another lock file. */
	bool ours = l->lock_fd >= 0 && still_there(l->lock_fd, l->lock_path);

	if (l->fd >= 0) {
		if (ours)
			unlink(l->path);
		close(l->fd);
	}
	if (l->lock_fd >= 0) {
		if (ours)
			unlink(l->lock_path);
		close(l->lock_fd);
	}
	free(l->path);
	free(l->lock_path);
	free(l->new_path);
	*l = (struct listener){.lock_fd = -1, .fd = -1};
}
