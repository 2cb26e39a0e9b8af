/* SPDX-License-Identifier: MIT */
/*
 * handlers_userfault.c - what clients need of the daemon for their userfaultfd trap.
 *
 * The device: who may open /dev/userfaultfd can make a userfaultfd that holds accesses of the kernel.
 * The daemon opens it once, and gives copies to root and to members of the configured group.
 *
 * The keeper: a copy of the client's userfaultfd must outlive every thread of its process. Requests carry no
 * descriptors, so the client gets one end of a socket pair and sends it there; nobody reads the
 * other end, and while that is open the kernel holds what lies in it.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/userfault.h"

#define KEEPER_BUFFER 4096 /* bytes that a client can have us hold: the least the kernel allows */

void service_open_userfault(struct service *s)
{
	s->userfault_device = open(USERFAULT_DEVICE, O_RDWR | O_CLOEXEC);
	if (s->userfault_device < 0 && s->machine->config.userfaultfd_group)
		log_warning("userfaultfd-group is of no use: cannot open %s: %s", USERFAULT_DEVICE,
			    strerror(errno));
}

/* `group` as configured: 0 has no members. */
static bool is_member(const struct credentials *cred, uint64_t group)
{
	if ((uint64_t)cred->gid + 1 == group)
		return true;
	for (unsigned i = 0; i < cred->nr_groups; i++)
		if ((uint64_t)cred->groups[i] + 1 == group)
			return true;
	return false;
}

int handle_userfault_device(struct call *call)
{
	const struct peer *p = call->peer;
	struct service *s = p->service;

	if (p->cred.uid != 0 && !is_member(&p->cred, s->machine->config.userfaultfd_group))
		return ARENA_E_PERMISSION;
	if (s->userfault_device < 0)
		return ARENA_E_PERMISSION;
	call_add_fd(call, s->userfault_device, false);
	return 0;
}

int handle_userfault_keep(struct call *call)
{
	const int bytes = KEEPER_BUFFER;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return errno == EMFILE || errno == ENFILE ? ARENA_E_TOO_MANY : -errno;
	setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	/* What it sent after an earlier call it will not miss: it is about to send it again. */
	peer_keep_userfault(call->peer, pair[0]);
	call_add_fd(call, pair[1], true);
	return 0;
}
