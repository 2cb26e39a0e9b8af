/* SPDX-License-Identifier: MIT */
/*
 * accept.c - connections and whose they are.
 *
 * What is known of a client is what the kernel says of the process that connected: pid, uid and
 * gid, supplementary groups, and a pidfd. There are at most SERVICE_MAX_PEERS, of which one
 * uid may have half, and descriptors may run out before: then nothing is accepted until one comes
 * back, or a second has passed.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cleanup.h"
#include "base/mem.h"
#include "base/os.h"

#define ACCEPTS_PER_ROUND 16
#define MAX_GROUPS 65536u /* NGROUPS_MAX */
#define WARNINGS_PER_SECOND 10u

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* Groups are left out where the kernel does not tell them: fewer rights, not more. */
static int peer_groups(int fd, struct credentials *cred, gid_t **groups)
{
	socklen_t len = 0;

	cred->nr_groups = 0;
	cred->groups = NULL;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &len) == 0 || errno != ERANGE)
		return 0;
	if (len > MAX_GROUPS * sizeof(gid_t))
		return 0;
	*groups = mem_alloc(len);
	if (!*groups)
		return -ENOMEM;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, *groups, &len) < 0)
		return 0;
	cred->groups = *groups;
	cred->nr_groups = (unsigned)(len / sizeof(gid_t));
	return 0;
}

/* The pidfd of the very process that connected, if the kernel knows it (6.5); -1: go by pid. */
static int peer_pidfd(int fd)
{
	socklen_t len = sizeof(int);
	int pidfd = -1;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len) < 0)
		return -1;
	return pidfd;
}

static bool too_many(const struct service *s, uid_t uid)
{
	unsigned of_uid = 0;
	struct peer *p;

	if (s->nr_peers >= SERVICE_MAX_PEERS)
		return true;
	if (uid == 0 || uid == geteuid() || s->nr_peers < SERVICE_MAX_PEERS / 2)
		return false;
	LIST_FOREACH(p, &s->peers, link)
		of_uid += p->cred.uid == uid;
	return of_uid >= SERVICE_MAX_PEERS / 2;
}

int peer_credentials(int fd, struct credentials *cred, gid_t **groups)
{
	struct ucred ucred;
	socklen_t len = sizeof(ucred);

	*cred = (struct credentials){0};
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &ucred, &len) < 0)
		return -errno;
	cred->pid = ucred.pid;
	cred->uid = ucred.uid;
	cred->gid = ucred.gid;
	return peer_groups(fd, cred, groups);
}

/* Takes over fd. */
static int admit(struct service *s, int fd)
{
	_cleanup_(freep) gid_t *groups = NULL;
	struct credentials cred;
	struct peer *p;
	int r = peer_credentials(fd, &cred, &groups);

	if (!r && too_many(s, cred.uid)) {
		state_event(service_state(s), EV_ARENA_CLIENT_REFUSED, 1);
		service_warn(s, "client %d (uid %u) refused: too many clients", (int)cred.pid,
			     (unsigned)cred.uid);
		r = ARENA_E_TOO_MANY;
		send_farewell(fd, error_to_errno(r));
	}
	if (r) {
		close(fd);
		return r;
	}
	return peer_create(s, fd, peer_pidfd(fd), &cred, &p);
}

static void pause_accepting(struct service *s, int error)
{
	const struct timeval second = {.tv_sec = 1};

	service_warn(s, "cannot accept clients: %s", error_text(-error));
	event_del(s->listen_event);
	evtimer_add(s->listen_retry, &second);
}

void service_accept_again(struct service *s)
{
	if (s->listen_retry && evtimer_pending(s->listen_retry, NULL)) {
		evtimer_del(s->listen_retry);
		event_add(s->listen_event, NULL);
	}
}

void service_accept_cb(evutil_socket_t listen_fd, short what, void *data)
{
	struct service *s = data;

	(void)what;
	for (unsigned i = 0; i < ACCEPTS_PER_ROUND; i++) {
		int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0) {
			if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
			    errno == ENOMEM)
				pause_accepting(s, errno);
			return;
		}
		s->worked = true;
		admit(s, fd);
	}
}

int service_add_peer(struct service *s, int fd, const struct credentials *cred, struct peer **out)
{
	return peer_create(s, fd, -1, cred, out);
}

void service_warn(struct service *s, const char *fmt, ...)
{
	uint64_t now = clock_now();
	char text[512];
	va_list ap;

	if (now - s->warned.since >= NSEC_PER_SEC) {
		if (s->warned.dropped)
			log_warning("%u more lines like these", s->warned.dropped);
		s->warned.since = now;
		s->warned.lines = s->warned.dropped = 0;
	}
	if (s->warned.lines >= WARNINGS_PER_SECOND) {
		s->warned.dropped++;
		return;
	}
	s->warned.lines++;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	log_warning("%s", text);
}
