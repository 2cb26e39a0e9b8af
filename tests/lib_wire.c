/* SPDX-License-Identifier: MIT */
/* lib_wire.c - protobuf's wire format, packets with descriptors, mailboxes; see lib_wire.h. */
#include "tests/lib_wire.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define WAIT_MS 10000
#define TYPE_VARINT 0
#define TYPE_64 1
#define TYPE_BYTES 2
#define TYPE_32 5

/* ---- writing ------------------------------------------------------------------------------- */

static void put(struct wire *w, const void *p, size_t len)
{
	if (len > sizeof(w->bytes) - w->len)
		abort();
	if (len)
		memcpy(w->bytes + w->len, p, len);
	w->len += len;
}

void wire_varint(struct wire *w, uint64_t v)
{
	uint8_t b[10];
	size_t n = 0;

	while (v >= 0x80) {
		b[n++] = (uint8_t)(v | 0x80);
		v >>= 7;
	}
	b[n++] = (uint8_t)v;
	put(w, b, n);
}

void wire_number(struct wire *w, unsigned field, uint64_t v)
{
	wire_varint(w, field << 3 | TYPE_VARINT);
	wire_varint(w, v);
}

void wire_bytes(struct wire *w, unsigned field, const void *p, size_t len)
{
	wire_varint(w, field << 3 | TYPE_BYTES);
	wire_varint(w, len);
	put(w, p, len);
}

void wire_text(struct wire *w, unsigned field, const char *text)
{
	wire_bytes(w, field, text, strlen(text));
}

void wire_request(struct wire *w, uint64_t id, unsigned call, const struct wire *body)
{
	w->len = 0;
	if (id)
		wire_number(w, 1, id);
	wire_bytes(w, call, body ? body->bytes : NULL, body ? body->len : 0);
}

/* ---- reading ------------------------------------------------------------------------------- */

static int get_varint(const uint8_t *p, size_t len, size_t *at, uint64_t *v)
{
	*v = 0;
	for (unsigned shift = 0; shift < 64 && *at < len; shift += 7) {
		uint8_t b = p[(*at)++];

		*v |= (uint64_t)(b & 0x7f) << shift;
		if (!(b & 0x80))
			return 0;
	}
	return -1;
}

/* Step over one field: its number, what it holds. */
static int get_field(const uint8_t *p, size_t n, size_t *at, unsigned *field, uint64_t *number,
		     const uint8_t **bytes, size_t *len)
{
	uint64_t key, size = 0;

	*bytes = NULL;
	*len = 0;
	*number = 0;
	if (get_varint(p, n, at, &key))
		return -1;
	*field = (unsigned)(key >> 3);
	switch (key & 7) {
	case TYPE_VARINT:
		return get_varint(p, n, at, number);
	case TYPE_64:
		size = 8;
		break;
	case TYPE_32:
		size = 4;
		break;
	case TYPE_BYTES:
		if (get_varint(p, n, at, &size))
			return -1;
		break;
	default:
		return -1;
	}
	if (size > n - *at)
		return -1;
	*bytes = p + *at;
	*len = size;
	*at += size;
	return 0;
}

int wire_find(const uint8_t *msg, size_t msg_len, unsigned field, uint64_t *number,
	      const uint8_t **bytes, size_t *len)
{
	const uint8_t *b;
	size_t at = 0, n;
	uint64_t v;
	unsigned f;

	while (at < msg_len) {
		if (get_field(msg, msg_len, &at, &f, &v, &b, &n))
			return -1;
		if (f != field)
			continue;
		if (number)
			*number = v;
		if (bytes)
			*bytes = b;
		if (len)
			*len = n;
		return 0;
	}
	return -1;
}

uint64_t wire_result(const struct wire_reply *r, unsigned result, unsigned field)
{
	const uint8_t *body;
	uint64_t v = 0;
	size_t len;

	if (wire_find(r->bytes, r->len, result, NULL, &body, &len) == 0 && body)
		wire_find(body, len, field, &v, NULL, NULL);
	return v;
}

static int parse_reply(struct wire_reply *r)
{
	uint64_t v = 0;

	r->id = r->flush_seq = 0;
	wire_find(r->bytes, r->len, 1, &r->id, NULL, NULL);
	wire_find(r->bytes, r->len, 3, &r->flush_seq, NULL, NULL);
	wire_find(r->bytes, r->len, 2, &v, NULL, NULL);
	r->error = (int)v;
	return r->error;
}

/* ---- packets ------------------------------------------------------------------------------- */

int wire_connect(const char *path)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	strncpy(sa.sun_path, path, sizeof(sa.sun_path) - 1);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0)
		return fd;
	close(fd);
	return -1;
}

int wire_send(int fd, const void *bytes, size_t len, const int *fds, unsigned nr_fds)
{
	struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
	char control[CMSG_SPACE(64 * sizeof(int))] = {0};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	if (nr_fds) {
		struct cmsghdr *c;

		m.msg_control = control;
		m.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, nr_fds * sizeof(int));
	}
	return sendmsg(fd, &m, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void keep_fds(struct wire_client *c, struct msghdr *m)
{
	for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h; h = CMSG_NXTHDR(m, h)) {
		unsigned n = (unsigned)((h->cmsg_len - CMSG_LEN(0)) / sizeof(int));

		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
			continue;
		for (unsigned i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(h) + i * sizeof(int), sizeof(fd));
			if (c->nr_fds < ARENA_SOCKET_MAX_FDS)
				c->fds[c->nr_fds++] = fd;
			else
				close(fd);
		}
	}
}

ssize_t wire_recv(struct wire_client *c, void *bytes, size_t size)
{
	struct iovec iov = {.iov_base = bytes, .iov_len = size};
	char control[CMSG_SPACE(ARENA_SOCKET_MAX_FDS * sizeof(int))];
	struct msghdr m = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct pollfd p = {.fd = c->fd, .events = POLLIN};
	ssize_t n;

	if (poll(&p, 1, WAIT_MS) != 1)
		return -ETIMEDOUT;
	n = recvmsg(c->fd, &m, MSG_CMSG_CLOEXEC);
	if (n < 0)
		return errno == ECONNRESET ? 0 : -errno;
	keep_fds(c, &m);
	return n;
}

bool wire_hung_up(struct wire_client *c, int ms)
{
	struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};

	return poll(&p, 1, ms) == 1 && p.revents & (POLLHUP | POLLRDHUP | POLLERR);
}

int wire_call(struct wire_client *c, unsigned call, const struct wire *body,
	      struct wire_reply *reply)
{
	struct wire *w = malloc(sizeof(*w));
	ssize_t n;
	int r;

	wire_request(w, ++c->next_id, call, body);
	r = wire_send(c->fd, w->bytes, w->len, NULL, 0);
	free(w);
	if (r)
		return -1;
	/* A worker that follows another may say once more what that one had said. */
	do {
		n = wire_recv(c, reply->bytes, sizeof(reply->bytes));
		if (n <= 0)
			return -1;
		reply->len = (size_t)n;
		r = parse_reply(reply);
	} while (reply->id && reply->id < c->next_id);
	return r;
}

/* ---- sessions ------------------------------------------------------------------------------ */

bool wire_hello(struct wire_client *c, uint32_t major, uint32_t minor, int *error)
{
	struct wire *w = calloc(1, sizeof(*w));
	struct wire_reply *reply = malloc(sizeof(*reply));

	wire_number(w, 1, major);
	wire_number(w, 2, minor);
	wire_text(w, 3, "by hand");
	wire_text(w, 4, "wire");
	*error = wire_call(c, WIRE_HELLO, w, reply);
	free(w);
	free(reply);
	return *error == 0;
}

bool wire_open(struct wire_client *c, const char *path)
{
	int error;

	*c = (struct wire_client){.fd = wire_connect(path)};
	return c->fd >= 0 && wire_hello(c, ARENA_ABI_MAJOR, ARENA_ABI_MINOR, &error);
}

bool wire_attach(struct wire_client *c)
{
	struct wire *w = calloc(1, sizeof(*w));
	struct wire_reply *reply = malloc(sizeof(*reply));
	int r;

	c->window_base = ARENA_WINDOW_BASE;
	c->window_size = ARENA_WINDOW_SIZE_DEFAULT_HERE / 16;
	wire_number(w, 1, c->window_base);
	wire_number(w, 2, c->window_size);
	r = wire_call(c, WIRE_ATTACH, w, reply);
	c->mm_id = (uint32_t)wire_result(reply, 5, 1);
	free(w);
	free(reply);
	if (r || c->nr_fds != 4)
		return false;
	c->channel =
		mmap(NULL, ARENA_CHANNEL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, c->fds[1], 0);
	if (c->channel == MAP_FAILED)
		c->channel = NULL;
	return c->channel != NULL;
}

void wire_close(struct wire_client *c)
{
	if (c->channel)
		munmap(c->channel, ARENA_CHANNEL_SIZE);
	for (unsigned i = 0; i < c->nr_fds; i++)
		close(c->fds[i]);
	if (c->fd >= 0)
		close(c->fd);
	*c = (struct wire_client){.fd = -1};
}

/* ---- mailboxes ----------------------------------------------------------------------------- */

struct arena_channel_header *wire_channel(struct wire_client *c)
{
	return (struct arena_channel_header *)(void *)c->channel;
}

struct arena_mailbox *wire_mailbox(struct wire_client *c, unsigned box)
{
	return (struct arena_mailbox *)(void *)(c->channel + ARENA_CHANNEL_MAILBOXES) + box;
}

void wire_ring(struct wire_client *c)
{
	uint64_t one = 1;

	if (write(c->fds[2], &one, sizeof(one)) < 0 && errno != EAGAIN)
		abort();
}

ssize_t wire_mail_bytes(struct wire_client *c, unsigned box, const void *bytes, size_t len,
			uint32_t claimed_len, uint8_t *reply)
{
	struct arena_mailbox *mb = wire_mailbox(c, box);
	struct timespec tick = {.tv_nsec = 20000000};
	uint32_t state;

	memcpy(mb->payload, bytes, len);
	mb->len = claimed_len;
	mb->request_id = ++c->next_id;
	__atomic_store_n(&mb->state, ARENA_MAILBOX_REQUEST_WAIT, __ATOMIC_SEQ_CST);
	__atomic_fetch_or(&wire_channel(c)->pending, UINT64_C(1) << box, __ATOMIC_SEQ_CST);
	wire_ring(c);
	for (int i = 0; i < WAIT_MS / 20; i++) {
		state = __atomic_load_n(&mb->state, __ATOMIC_SEQ_CST);
		if (state == ARENA_MAILBOX_REPLY)
			break;
		syscall(SYS_futex, &mb->state, FUTEX_WAIT, state, &tick, NULL, 0);
		if (wire_hung_up(c, 0) &&
		    __atomic_load_n(&mb->state, __ATOMIC_SEQ_CST) != ARENA_MAILBOX_REPLY)
			return -1;
	}
	if (state != ARENA_MAILBOX_REPLY || mb->len > ARENA_MAILBOX_PAYLOAD ||
	    mb->request_id != c->next_id)
		return -1;
	memcpy(reply, mb->payload, mb->len);
	__atomic_store_n(&mb->state, ARENA_MAILBOX_FREE, __ATOMIC_SEQ_CST);
	return (ssize_t)mb->len;
}

int wire_mail(struct wire_client *c, unsigned box, unsigned call, const struct wire *body,
	      struct wire_reply *reply)
{
	struct wire *w = malloc(sizeof(*w));
	ssize_t n;

	wire_request(w, 0, call, body);
	n = wire_mail_bytes(c, box, w->bytes, w->len, (uint32_t)w->len, reply->bytes);
	free(w);
	if (n < 0)
		return -1;
	reply->len = (size_t)n;
	return parse_reply(reply);
}
