/* SPDX-License-Identifier: MIT */
/*
 * lib_wire.h - the protocol by hand: messages written field by field, so that they can be wrong.
 *
 * A wire_client is a connection without libarena: it can say hello, attach, call through socket
 * and mailboxes, and do all of it badly. It never maps the window.
 */
#ifndef TESTS_LIB_WIRE_H
#define TESTS_LIB_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "arena/abi.h"

#define WIRE_MAX (ARENA_SOCKET_MAX_MESSAGE + 4096u)

/* Numbers of the calls in Request. */
enum wire_call {
	WIRE_HELLO = 2,
	WIRE_ATTACH,
	WIRE_NULL,
	WIRE_BYE,
	WIRE_FAULT,
	WIRE_MMAP,
	WIRE_MUNMAP,
	WIRE_MPROTECT,
	WIRE_MADVISE,
	WIRE_POPULATE,
	WIRE_SHM_OPEN,
	WIRE_SHM_TRUNCATE,
	WIRE_SHM_CLOSE,
	WIRE_SHM_UNLINK,
	WIRE_SHM_STAT,
	WIRE_ALLOC_PAGES,
	WIRE_FREE_PAGES,
	WIRE_ATTR_READ,
	WIRE_ATTR_WRITE,
	WIRE_LAST = WIRE_ATTR_WRITE,
	WIRE_MMAP_PFN = 60,
};

/* ---- writing ------------------------------------------------------------------------------- */

struct wire {
	size_t len;
	uint8_t bytes[WIRE_MAX];
};

void wire_varint(struct wire *w, uint64_t v);
void wire_number(struct wire *w, unsigned field, uint64_t v); /* also negative ones */
void wire_bytes(struct wire *w, unsigned field, const void *p, size_t len);
void wire_text(struct wire *w, unsigned field, const char *text);
/* Request{id (0: left out), call{body}}; body NULL: empty. */
void wire_request(struct wire *w, uint64_t id, unsigned call, const struct wire *body);

/* ---- reading ------------------------------------------------------------------------------- */

/* The field of a message: 0 and *number, or *bytes and *len; -1: there is none, or nonsense. */
int wire_find(const uint8_t *msg, size_t msg_len, unsigned field, uint64_t *number,
	      const uint8_t **bytes, size_t *len);

struct wire_reply {
	uint64_t id, flush_seq;
	int error;
	size_t len;
	uint8_t bytes[WIRE_MAX];
};

/* Field `field` of the result message that is field `result` of the reply; 0 if it is not there. */
uint64_t wire_result(const struct wire_reply *r, unsigned result, unsigned field);

/* ---- connections --------------------------------------------------------------------------- */

struct wire_client {
	int fd;
	uint64_t next_id;
	/* after wire_attach(): */
	int fds[ARENA_SOCKET_MAX_FDS]; /* mm, channel, doorbell, arena; later ones of shm_open */
	unsigned nr_fds;
	char *channel; /* all of it, mapped */
	uint64_t window_base, window_size;
	uint32_t mm_id;
};

/* -1 if there is nobody. Descriptors are close-on-exec. */
int wire_connect(const char *path);
/* 0 or -errno. */
int wire_send(int fd, const void *bytes, size_t len, const int *fds, unsigned nr_fds);
/* Waits 10 s. The length; 0: the daemon hung up; -errno. Descriptors are appended to c's. */
ssize_t wire_recv(struct wire_client *c, void *bytes, size_t size);

/* Connect and say hello; false if that fails. */
bool wire_open(struct wire_client *c, const char *path);
bool wire_hello(struct wire_client *c, uint32_t major, uint32_t minor, int *error);
bool wire_attach(struct wire_client *c); /* a window of 1 TiB (less with a sanitizer) */
void wire_close(struct wire_client *c);
/* One call over the socket: 0 or errno of the reply; -1: the daemon hung up or did not answer. */
int wire_call(struct wire_client *c, unsigned call, const struct wire *body,
	      struct wire_reply *reply);
/* The same through mailbox `box`. */
int wire_mail(struct wire_client *c, unsigned box, unsigned call, const struct wire *body,
	      struct wire_reply *reply);
/* Put bytes into a mailbox and ring; wait for the reply: its length, or -1 after 10 s or a
 * hang-up. */
ssize_t wire_mail_bytes(struct wire_client *c, unsigned box, const void *bytes, size_t len,
			uint32_t claimed_len, uint8_t *reply);
/* Has the daemon hung up? Waits up to `ms` for it. */
bool wire_hung_up(struct wire_client *c, int ms);

struct arena_channel_header *wire_channel(struct wire_client *c);
struct arena_mailbox *wire_mailbox(struct wire_client *c, unsigned box);
void wire_ring(struct wire_client *c);

#endif
