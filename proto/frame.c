/* SPDX-License-Identifier: MIT */
/*
 * frame.c - packing, unpacking and packets; frame.h says what they promise.
 *
 * protobuf-c packs into a buffer without looking at its end, and measuring first walks the message
 * twice; so it packs into a ProtobufCBuffer that knows its size.
 * Its unpacker asks the allocator for the message, its strings and its unknown fields; with the
 * bump allocator the cost of a message is bounded by the caller's buffer.
 * The messages of most calls are a few numbers; numbers.c has a short way for them.
 */
#include "proto/frame.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/util.h"
#include "proto/numbers.h"

#define FRAME_ARENA_ALIGN 16

static void *frame_alloc(void *data, size_t size)
{
	struct frame_arena *fa = data;
	uintptr_t at = ALIGN_UP((uintptr_t)fa->buf + fa->used, FRAME_ARENA_ALIGN);
	size_t skip = at - (uintptr_t)fa->buf;

	if (skip > fa->size || size > fa->size - skip)
		return NULL;
	fa->used = skip + size;
	return fa->buf + skip;
}

static void frame_free(void *data, void *p)
{
	(void)data;
	(void)p;
}

ProtobufCAllocator frame_allocator(struct frame_arena *fa)
{
	return (ProtobufCAllocator){
		.alloc = frame_alloc,
		.free = frame_free,
		.allocator_data = fa,
	};
}

/* Where a message is packed to; what does not fit is only counted. */
struct frame_room {
	ProtobufCBuffer base;
	uint8_t *buf;
	size_t size, used;
};

static void room_append(ProtobufCBuffer *base, size_t len, const uint8_t *data)
{
	struct frame_room *room = container_of(base, struct frame_room, base);

	if (room->used <= room->size && len <= room->size - room->used)
		memcpy(room->buf + room->used, data, len);
	room->used += len;
}

static int pack(const ProtobufCMessage *message, void *buf, size_t size, size_t *len)
{
	struct frame_room room = {.base = {.append = room_append}, .buf = buf, .size = size};
	ptrdiff_t n = numbers_pack(message, buf, size);

	if (n >= 0) {
		*len = (size_t)n;
		return 0;
	}
	protobuf_c_message_pack_to_buffer(message, &room.base);
	if (room.used > size)
		return -EMSGSIZE;
	*len = room.used;
	return 0;
}

int frame_pack_request(const Arena__Request *request, void *buf, size_t size, size_t *len)
{
	return pack(&request->base, buf, size, len);
}

int frame_pack_reply(const Arena__Reply *reply, void *buf, size_t size, size_t *len)
{
	return pack(&reply->base, buf, size, len);
}

static int unpack(const ProtobufCMessageDescriptor *descriptor, const void *buf, size_t len,
		  struct frame_arena *fa, ProtobufCMessage **out)
{
	ProtobufCAllocator allocator = frame_allocator(fa);
	size_t used = fa->used;

	*out = numbers_unpack(descriptor, buf, len, &allocator);
	if (!*out) {
		fa->used = used;
		*out = protobuf_c_message_unpack(descriptor, &allocator, len, buf);
	}
	return *out ? 0 : -EBADMSG;
}

int frame_unpack_request(const void *buf, size_t len, struct frame_arena *fa, Arena__Request **out)
{
	ProtobufCMessage *message;
	int r = unpack(&arena__request__descriptor, buf, len, fa, &message);

	*out = (Arena__Request *)message;
	return r;
}

int frame_unpack_reply(const void *buf, size_t len, struct frame_arena *fa, Arena__Reply **out)
{
	ProtobufCMessage *message;
	int r = unpack(&arena__reply__descriptor, buf, len, fa, &message);

	*out = (Arena__Reply *)message;
	return r;
}

/* Room for the descriptors of one packet; a second control message does not fit beside it. */
union frame_control {
	char buf[CMSG_SPACE(ARENA_SOCKET_MAX_FDS * sizeof(int))];
	struct cmsghdr align;
};

int frame_send_flags(int sock, const void *buf, size_t len, const int *fds, unsigned nr_fds,
		     unsigned flags)
{
	union frame_control control = {0};
	struct iovec iov = {.iov_base = (void *)buf, .iov_len = len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (len == 0 || nr_fds > ARENA_SOCKET_MAX_FDS)
		return -EINVAL;
	if (len > ARENA_SOCKET_MAX_MESSAGE)
		return -EMSGSIZE;
	if (nr_fds) {
		struct cmsghdr *c;

		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, nr_fds * sizeof(int));
	}
	do
		n = sendmsg(sock, &msg, MSG_NOSIGNAL | (flags & FRAME_DONTWAIT ? MSG_DONTWAIT : 0));
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return 0;
}

int frame_send(int sock, const void *buf, size_t len, const int *fds, unsigned nr_fds)
{
	return frame_send_flags(sock, buf, len, fds, nr_fds, 0);
}

/* The descriptors of a received packet, all of them ours now. */
static unsigned received_fds(struct msghdr *msg, int fds[ARENA_SOCKET_MAX_FDS])
{
	unsigned nr = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		n = MIN(n, (size_t)(ARENA_SOCKET_MAX_FDS - nr));
		memcpy(fds + nr, CMSG_DATA(c), n * sizeof(int));
		nr += n;
	}
	return nr;
}

ssize_t frame_recv(int sock, void *buf, size_t size, int *fds, unsigned max_fds, unsigned *nr_fds,
		   unsigned flags)
{
	union frame_control control;
	struct iovec iov = {.iov_base = buf, .iov_len = size};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	int got[ARENA_SOCKET_MAX_FDS];
	unsigned nr;
	ssize_t n;

	if (nr_fds)
		*nr_fds = 0;
	do
		n = recvmsg(sock, &msg,
			    MSG_CMSG_CLOEXEC | (flags & FRAME_DONTWAIT ? MSG_DONTWAIT : 0) |
				    (flags & FRAME_PEEK ? MSG_PEEK : 0));
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	nr = received_fds(&msg, got);
	if (msg.msg_flags & MSG_CTRUNC)
		/* The kernel stops early either because our buffer or because our table is full. */
		n = nr == ARENA_SOCKET_MAX_FDS ? -EPROTO : -EMFILE;
	else if (nr > max_fds)
		n = -EPROTO;
	else if (msg.msg_flags & MSG_TRUNC)
		n = -EMSGSIZE;
	if (n <= 0) {
		for (unsigned i = 0; i < nr; i++)
			close(got[i]);
		return n;
	}
	if (nr)
		memcpy(fds, got, nr * sizeof(int));
	if (nr_fds)
		*nr_fds = nr;
	return n;
}

void frame_drop(int sock)
{
	char byte;

	while (recv(sock, &byte, 1, MSG_DONTWAIT) < 0 && errno == EINTR)
		;
}

/* Fields are packed in the order of their numbers, and id is field 1 of both messages. */
uint64_t frame_peek_id(const void *buf, size_t len)
{
	const uint8_t *at = buf, *end = at + len;
	uint64_t id = 0;

	if (at == end || *at++ != (1u << 3))
		return 0;
	for (unsigned shift = 0; at < end && shift < 64; shift += 7) {
		id |= (uint64_t)(*at & 0x7f) << shift;
		if (!(*at++ & 0x80))
			return id;
	}
	return 0;
}
