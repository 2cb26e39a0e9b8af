/* SPDX-License-Identifier: MIT */
/*
 * file.c - mmap(2) of a file: the one call whose request carries a descriptor, so it goes by the socket. And what a
 * process tells that reads and writes files which are mapped, by system calls.
 *
 * The program's descriptor is in the program's table, the socket may be in the library's own (agent.h). Who
 * sends there fetches a copy first.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/mem.h"
#include "base/util.h"
#include "libclient/calls.h"
#include "libclient/internal.h"

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

struct file_job {
	Arena__Request *request;
	int fd; /* in the program's table */
	uint64_t *address;
	bool *locked;
	int result;
};

/* In the table of who calls: a copy of a descriptor of the program's. */
static int import_descriptor(const struct arena *a, int fd)
{
	_cleanup_(closep) int pidfd = -1;
	int copy;

	if (!load_acquire(&a->agent.running))
		copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	else if ((pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0)) < 0)
		return -errno;
	else
		copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	return copy < 0 ? -errno : copy;
}

static int exchange(struct arena *a, struct file_job *j)
{
	_cleanup_(freep) struct sock_buffer *b = malloc(sizeof(*b));
	_cleanup_(closep) int fd = -1;
	Arena__Reply *reply;
	int r;

	if (!b)
		return -ENOMEM;
	fd = import_descriptor(a, j->fd);
	if (fd < 0)
		return fd;
	r = socket_call_with(a, j->request, fd, b, &reply);
	if (r < 0)
		return r;
	if (reply->result_case != ARENA__REPLY__RESULT_ADDRESS)
		return -EPROTO;
	*j->address = reply->address->address;
	*j->locked = reply->address->populate;
	return 0;
}

static void run_job(struct arena *a, void *arg)
{
	struct file_job *j = arg;

	j->result = exchange(a, j);
}

int client_file_call(struct arena *a, Arena__Request *request, int fd, uint64_t *address,
		     bool *locked)
{
	struct file_job job = {.request = request, .fd = fd, .address = address, .locked = locked};
	int cancel;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	agent_run(a, run_job, &job);
	pthread_setcancelstate(cancel, NULL);
	return job.result;
}

/* ---- files beside their mappings ------------------------------------------------------------- */

static int sync_call(struct arena *a, Arena__FileSync *call)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	struct mail_reply m;

	request.call_case = ARENA__REQUEST__CALL_FILE_SYNC;
	request.file_sync = call;
	return mailbox_call(a, &request, &m, false);
}

int client_file_sync(struct arena *a, const struct file_key *key, uint64_t off, uint64_t len)
{
	Arena__FileSync call = ARENA__FILE_SYNC__INIT;

	call.dev = key->dev;
	call.ino = key->ino;
	call.offset = off;
	call.length = len;
	return sync_call(a, &call);
}

int client_file_sync_all(struct arena *a)
{
	Arena__FileSync call = ARENA__FILE_SYNC__INIT;

	call.all = 1;
	return sync_call(a, &call);
}

static Arena__FileWrite write_of(const struct file_key *key, uint64_t off, uint64_t len)
{
	Arena__FileWrite call = ARENA__FILE_WRITE__INIT;

	call.dev = key->dev;
	call.ino = key->ino;
	call.thread = (uint32_t)syscall(SYS_gettid);
	call.offset = off;
	call.length = len;
	return call;
}

int client_file_hold(struct arena *a, const struct file_key *key, uint64_t off, uint64_t len)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__FileWrite call = write_of(key, off, len);
	struct mail_reply m;

	request.call_case = ARENA__REQUEST__CALL_FILE_HOLD;
	request.file_hold = &call;
	return mailbox_call(a, &request, &m, false);
}

int client_file_release(struct arena *a, const struct file_key *key, uint64_t off, uint64_t len)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__FileWrite call = write_of(key, off, len);
	struct mail_reply m;

	request.call_case = ARENA__REQUEST__CALL_FILE_RELEASE;
	request.file_release = &call;
	return mailbox_call(a, &request, &m, false);
}
