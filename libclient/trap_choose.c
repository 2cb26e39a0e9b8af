/* SPDX-License-Identifier: MIT */
/*
 * trap_choose.c - which trap an arena has.
 *
 * userfaultfd for accesses of the kernel is not everybody's: a process has the right itself, or it
 * gets a descriptor of /dev/userfaultfd from the daemon; arena_trap_reason() says why it got none.
 * ARENA_TRAP_AUTO takes it where it is to be had, and the signal trap else.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/faultpoint.h"
#include "base/userfault.h"
#include "base/util.h"
#include "libclient/internal.h"

static __thread const char *reason;

static const char not_permitted[] =
	"userfaultfd for system calls is not permitted to this process: it takes CAP_SYS_PTRACE, "
	"or "
	"vm.unprivileged_userfaultfd=1, or access to /dev/userfaultfd, or membership in the group "
	"that arenad's userfaultfd-group names";
static const char not_supported[] = "this kernel has no userfaultfd for shared memory with "
				    "write-protection: it takes Linux 5.19 "
				    "with CONFIG_USERFAULTFD";
static const char failed[] = "userfaultfd is permitted, but making one failed: see errno";

/* A call without arguments whose reply carries one descriptor: that, or -errno. */
static int ask_for_descriptor(struct arena *a, Arena__Request *request)
{
	_cleanup_(freep) struct sock_buffer *b = malloc(sizeof(*b));
	Arena__Reply *reply;
	unsigned nr = 0;
	int fd = -1, r;

	if (!b)
		return -ENOMEM;
	r = socket_call(a, request, b, &reply, &fd, 1, &nr);
	if (r < 0)
		return r;
	return nr ? fd : -EPROTO;
}

static int ask_for_device(struct arena *a)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__UserfaultDevice call = ARENA__USERFAULT_DEVICE__INIT;

	request.call_case = ARENA__REQUEST__CALL_USERFAULT_DEVICE;
	request.userfault_device = &call;
	return ask_for_descriptor(a, &request);
}

void trap_keep(struct arena *a)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__UserfaultKeep call = ARENA__USERFAULT_KEEP__INIT;
	int fd;

	request.call_case = ARENA__REQUEST__CALL_USERFAULT_KEEP;
	request.userfault_keep = &call;
	fd = ask_for_descriptor(a, &request);
	/* Without it only what a dying process does is at stake. */
	if (fd >= 0)
		frame_send(fd, "", 1, &a->trap.fd, 1);
	closep(&fd);
}

int trap_open_own(void)
{
	return faultpoint("client.userfault") ? -EPERM : userfault_open(-1);
}

int trap_open_device(int device)
{
	int fd = userfault_open(device);

	close(device);
	return fd;
}

static int obtain(struct arena *a)
{
	int fd = trap_open_own(), device;

	if (fd != -EPERM)
		return fd;
	device = ask_for_device(a);
	return device < 0 ? device : trap_open_device(device);
}

static void explain(int r)
{
	if (r >= 0)
		reason = NULL;
	else if (r == -EOPNOTSUPP)
		reason = not_supported;
	else
		reason = r == -EPERM || r == -EACCES ? not_permitted : failed;
}

static int use_userfaultfd(struct arena *a)
{
	int fd = obtain(a), r;
	unsigned nr = 0;
	int fds[2];

	if (fd >= 0)
		fd = client_high_fd(fd);
	explain(fd);
	if (fd < 0)
		return fd == -EACCES || fd == -EPROTO ? -EPERM : fd;
	fds[nr++] = fd;
	/* A child of fork() has no connection yet; then the agent makes it. */
	if (a->sock >= 0)
		fds[nr++] = a->sock;
	a->trap.fd = fd; /* its threads look at it */
	r = agent_start(a, fds, nr);
	if (r < 0) {
		a->trap.fd = -1;
		close(fd);
		reason = failed;
		return r;
	}
	while (nr)
		close(fds[--nr]);
	a->trap.on = true;
	return 0;
}

int trap_choose(struct arena *a)
{
	int r;

	if (a->trap.on || a->trap_wanted == ARENA_TRAP_SIGNAL)
		return 0;
	r = use_userfaultfd(a);
	return a->trap_wanted == ARENA_TRAP_AUTO ? 0 : r;
}

const char *arena_trap_reason(void)
{
	return reason ? reason : "";
}

const char *arena_trap_name(arena_t *a)
{
	int r = client_enter_attached(a);

	if (client_return(r) < 0)
		return NULL;
	return a->trap.on ? "userfaultfd" : "signal";
}
