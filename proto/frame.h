/* SPDX-License-Identifier: MIT */
/*
 * frame.h - messages as bytes, and packets of bytes with descriptors. Daemon and client share it.
 *
 * A packet of the unix socket (SOCK_SEQPACKET) is one packed Request or Reply of at most
 * ARENA_SOCKET_MAX_MESSAGE bytes; a mailbox holds one of at most ARENA_MAILBOX_PAYLOAD bytes.
 *
 * Unpacking takes its memory from a struct frame_arena, a bump pointer over a buffer of the
 * caller's: no malloc, so it is allowed in a signal handler, nothing is to be freed, and a
 * message that would need more memory than it is worth does not unpack. The unpacked message
 * lives as long as the buffer and does not point into the bytes it was made from. Copy a mailbox
 * out before you unpack it: its other owner may be writing to it.
 *
 * All functions return 0 (frame_recv: a length) or -errno, and are async-signal-safe.
 */
#ifndef PROTO_FRAME_H
#define PROTO_FRAME_H

#include <stddef.h>
#include <sys/types.h>

#include "arena/abi.h"
#include "proto/arena.pb-c.h"

/* Buffers that hold any honest message of a mailbox, or of the socket, unpacked. */
#define FRAME_ARENA_MAILBOX (4u * ARENA_MAILBOX_SIZE)
#define FRAME_ARENA_SOCKET (2u * ARENA_SOCKET_MAX_MESSAGE)

struct frame_arena {
	char *buf;
	size_t size, used;
};

/*
 * An allocator that takes from `fa`, 16-byte aligned, and gives NULL when it is full; freeing
 * does nothing. It refers to `fa`, which must outlive it.
 */
ProtobufCAllocator frame_allocator(struct frame_arena *fa);

/* Pack into buf: 0 and *len, or -EMSGSIZE if it takes more than `size` bytes. */
int frame_pack_request(const Arena__Request *request, void *buf, size_t size, size_t *len);
int frame_pack_reply(const Arena__Reply *reply, void *buf, size_t size, size_t *len);

/*
 * Unpack `len` bytes: 0 and *out, which lives in `fa`, or -EBADMSG: not a message, or too large
 * for `fa`. The case of its oneof may be NOT_SET: the caller's to refuse.
 */
int frame_unpack_request(const void *buf, size_t len, struct frame_arena *fa, Arena__Request **out);
int frame_unpack_reply(const void *buf, size_t len, struct frame_arena *fa, Arena__Reply **out);

enum frame_flags {
	FRAME_DONTWAIT = 1 << 0, /* -EAGAIN instead of waiting, whatever the socket's mode */
	FRAME_PEEK = 1 << 1,     /* frame_recv: the packet stays where it is */
};

/*
 * Send one packet with nr_fds descriptors, which stay the caller's. Never raises SIGPIPE.
 * -EAGAIN (non-blocking and no room), -EPIPE or -ECONNRESET (the peer is gone), -EMSGSIZE,
 * -EINVAL (more than ARENA_SOCKET_MAX_FDS, or nothing to send). -EINTR is retried here.
 */
int frame_send_flags(int sock, const void *buf, size_t len, const int *fds, unsigned nr_fds,
		     unsigned flags);
/* The same in the socket's own mode. */
int frame_send(int sock, const void *buf, size_t len, const int *fds, unsigned nr_fds);

/*
 * Receive one packet: its length, and 0 when the peer hung up (an empty packet counts as that).
 * Descriptors arrive close-on-exec in fds[0 .. *nr_fds), the caller's from then on. `fds` and
 * `nr_fds` may be NULL if max_fds is 0. On failure nothing is left open and *nr_fds is 0:
 *   -EAGAIN    nothing there (FRAME_DONTWAIT, or a non-blocking socket)
 *   -EMSGSIZE  the packet was longer than `size`
 *   -EPROTO    it carried more than max_fds descriptors
 *   -EMFILE    this process has no room for its descriptors
 *   -ECONNRESET and the like, of recvmsg(2). -EINTR is retried here.
 */
ssize_t frame_recv(int sock, void *buf, size_t size, int *fds, unsigned max_fds, unsigned *nr_fds,
		   unsigned flags);

/* Take the first packet out of the socket unseen, with what it carries. Never waits. */
void frame_drop(int sock);
/* The id of a packed Request or Reply, without unpacking it; 0: it has none. */
uint64_t frame_peek_id(const void *buf, size_t len);

#endif
