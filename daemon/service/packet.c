/* SPDX-License-Identifier: MIT */
/*
 * packet.c - requests out of a socket, and the last word into it.
 *
 * A packet stays in the socket until its answer is out, so that the worker's death loses none:
 *
 *	look at it -> serve it -> send the answer -> take it
 *	                  |
 *	                  +-- answered later: meanwhile nothing is read
 *
 * `in_socket` says that the packet being served lies there.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "base/cleanup.h"

int service_take_descriptor(struct service *s)
{
	return TAKE_FD(s->packet_fd);
}

void service_drop_descriptor(struct service *s)
{
	virt_file_close(s->machine->virt, TAKE_FD(s->packet_fd));
}

/* Look at the first packet, and at what comes with it: the kernel makes us a descriptor with each look. */
static ssize_t peek_packet(struct peer *p)
{
	struct service *s = p->service;
	unsigned nr = 0;
	ssize_t n;

	service_drop_descriptor(s);
	n = frame_recv(p->fd, s->packet, sizeof(s->packet), &s->packet_fd, 1, &nr,
		       FRAME_DONTWAIT | FRAME_PEEK);
	if (!nr)
		s->packet_fd = -1;
	return n;
}

/* False: there was nothing to read. */
static bool read_packet(struct peer *p)
{
	struct service *s = p->service;
	ssize_t n = peek_packet(p);

	if (n == -EAGAIN)
		return false;
	p->in_socket = true;
	if (n > 0)
		peer_handle_packet(p, s->packet, (size_t)n);
	else if (n == -EMSGSIZE)
		peer_bad_message(p, "a packet that is too long");
	else if (n == -EPROTO || n == -EMFILE)
		peer_refuse(p, "it sent descriptors");
	else
		peer_close(p);
	/* Those that call_serve() has not seen. */
	if (n < 0)
		peer_packet_done(p);
	service_drop_descriptor(s);
	s->worked = true;
	return true;
}

void peer_packet_done(struct peer *p)
{
	if (!p->in_socket)
		return;
	p->in_socket = false;
	if (peer_is_closed(p))
		return;
	frame_drop(p->fd);
	peer_free_event(&p->hangup_event);
	if (!event_pending(p->socket_event, EV_READ, NULL))
		event_add(p->socket_event, NULL);
}

static void hangup_cb(evutil_socket_t fd, short what, void *data)
{
	(void)fd, (void)what;
	peer_close(data);
}

/* The packet that lies there would wake us again and again: meanwhile we look for a hang-up only. If
 * that cannot be, the pidfd tells of a death, and the deadline of the answer is near. */
void peer_packet_later(struct peer *p)
{
	if (!p->in_socket)
		return;
	event_del(p->socket_event);
	if (p->hangup_event)
		return;
	peer_add_event(p, &p->hangup_event, p->fd, EV_CLOSED, hangup_cb, NULL);
}

size_t peer_find_packet(struct peer *p, uint64_t id)
{
	struct service *s = p->service;
	struct frame_arena fa = {.buf = s->frame, .size = sizeof(s->frame)};
	Arena__Request *request;
	ssize_t n = p->fd < 0 ? 0 : peek_packet(p);

	/* What did not decode was served as number 0. */
	if (n <= 0 ||
	    (frame_unpack_request(s->packet, (size_t)n, &fa, &request) ? 0 : request->id) != id)
		return 0;
	p->in_socket = true;
	return (size_t)n;
}

bool peer_hung_up(const struct peer *p)
{
	struct pollfd pollfd = {.fd = p->fd, .events = POLLRDHUP};

	return p->fd < 0 ||
	       (poll(&pollfd, 1, 0) == 1 && pollfd.revents & (POLLHUP | POLLRDHUP | POLLERR));
}

/* What is left after a round makes the socket readable again at once, after everybody else. */
void peer_socket_cb(evutil_socket_t fd, short what, void *data)
{
	struct peer *p = data;

	(void)fd, (void)what;
	for (unsigned i = 0; i < SERVICE_PACKETS_PER_ROUND && !peer_is_closed(p); i++)
		if (p->in_socket || !read_packet(p))
			return;
}

void send_farewell(int fd, int error)
{
	Arena__Reply reply = ARENA__REPLY__INIT;
	uint8_t packet[32];
	size_t len;

	reply.error = error;
	/* Who does not read his answers misses this one, too. */
	if (!frame_pack_reply(&reply, packet, sizeof(packet), &len))
		frame_send_flags(fd, packet, len, NULL, 0, FRAME_DONTWAIT);
}
