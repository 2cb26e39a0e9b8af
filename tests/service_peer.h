/* SPDX-License-Identifier: MIT */
/*
 * service_peer.h - what the tests of the service room share: a small machine, and clients that are
 * the other end of a socketpair and a pointer to their own channel.
 *
 * The clients' pid is that of a child which does nothing, forked before the machine was booted:
 * it has no frames mapped, so what a client had comes back when it hangs up.
 */
#ifndef TESTS_SERVICE_PEER_H
#define TESTS_SERVICE_PEER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arena/arena.h"
#include "base/clock.h"
#include "base/util.h"
#include "daemon/service/internal.h"

#define MIB (UINT64_C(1) << 20)
#define CALL(fd_, member_, CASE_, ...)                        \
	({                                                    \
		Arena__Request rq_ = ARENA__REQUEST__INIT;    \
		__typeof__(*rq_.member_) msg_;                \
		arena__##member_##__init(&msg_);              \
		__VA_ARGS__;                                  \
		rq_.call_case = ARENA__REQUEST__CALL_##CASE_; \
		rq_.member_ = &msg_;                          \
		client_call((fd_), &rq_);                     \
	})

struct client {
	int fd;
	struct peer *peer;
	uint64_t next_id;
	int fds[ARENA_SOCKET_MAX_FDS]; /* of the last reply */
	unsigned nr_fds;
	int farewell;        /* why the service hung up, if it said so */
	Arena__Reply *reply; /* the last one, NULL if there was none; lives in `frame` */
	char frame[FRAME_ARENA_SOCKET];
	uint8_t packet[ARENA_SOCKET_MAX_MESSAGE];
};

static struct machine machine;
static struct service *service;
static pid_t bystander __unused_;

static inline int start_service(const struct service_attr_ops *attr)
{
	struct service_params params = {.machine = &machine, .attr = attr, .listen_fd = -1};
	struct machine_config config;
	char err[256] = "";

	bystander = fork();
	if (bystander == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	machine_config_init(&config);
	config.arena_size = 64 * MIB;
	config.hugepages = false;
	config.zero_pool = 4 * MIB;
	if (bystander < 0 || machine_boot(&machine, &config, err, sizeof(err))) {
		fprintf(stderr, "boot: %s\n", err);
		return -1;
	}
	return service_create(&params, &service);
}

static inline int stop_service(void)
{
	service = service_destroy(service);
	machine_shutdown(&machine);
	kill(bystander, SIGKILL);
	return waitpid(bystander, NULL, 0) == bystander ? 0 : -1;
}

/* Nothing is lost: every frame that was ever given out has come back, and all tables agree. */
static inline void assert_machine_whole(void)
{
	/* Copies whose child nobody made would be freed in half a minute. */
	if (service)
		service_forget_children(service, true);
	assert_int_equal(phys_total_pages(machine.phys) - phys_free_pages(machine.phys),
			 machine.boot_used);
	assert_true(machine_is_valid(&machine));
}

static inline void serve_all(void)
{
	while (service_round(service))
		;
}

static inline struct client *client_connect_from(pid_t pid, uid_t uid)
{
	struct credentials cred = {.pid = pid, .uid = uid, .gid = uid};
	struct client *c = calloc(1, sizeof(*c));
	int pair[2];

	assert_non_null(c);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	c->fd = pair[0];
	assert_int_equal(service_add_peer(service, pair[1], &cred, &c->peer), 0);
	return c;
}

static inline struct client *client_connect_as(uid_t uid)
{
	return client_connect_from(bystander, uid);
}

static inline struct client *client_connect(void)
{
	return client_connect_as(1000);
}

static inline void client_close_fds(struct client *c)
{
	for (unsigned i = 0; i < c->nr_fds; i++)
		close(c->fds[i]);
	c->nr_fds = 0;
}

/* Let the service work, and take its answer if there is one. False: it hung up. */
static inline bool client_receive(struct client *c)
{
	struct frame_arena fa = {.buf = c->frame, .size = sizeof(c->frame)};
	ssize_t n;

	client_close_fds(c);
	c->reply = NULL;
	serve_all();
	n = frame_recv(c->fd, c->packet, sizeof(c->packet), c->fds, ARENA_SOCKET_MAX_FDS,
		       &c->nr_fds, FRAME_DONTWAIT);
	if (n == -EAGAIN)
		return true;
	if (n <= 0)
		return false;
	assert_int_equal(frame_unpack_reply(c->packet, (size_t)n, &fa, &c->reply), 0);
	if (c->reply->id)
		return true;
	c->farewell = c->reply->error;
	c->reply = NULL;
	return false;
}

/* One call through the socket: the errno of its answer, -1 if the service hung up. */
static inline int client_call(struct client *c, Arena__Request *rq)
{
	size_t len;

	rq->id = ++c->next_id;
	assert_int_equal(frame_pack_request(rq, c->packet, sizeof(c->packet), &len), 0);
	if (frame_send(c->fd, c->packet, len, NULL, 0) < 0 || !client_receive(c))
		return -1;
	if (!c->reply)
		return -1;
	assert_int_equal(c->reply->id, rq->id);
	return c->reply->error;
}

static inline void client_hello(struct client *c)
{
	assert_int_equal(CALL(c, hello, HELLO, msg_.abi_major = ARENA_ABI_MAJOR,
			      msg_.abi_minor = ARENA_ABI_MINOR, msg_.comm = (char *)"test"),
			 0);
}

static inline void client_attach(struct client *c)
{
	client_hello(c);
	assert_int_equal(CALL(c, attach, ATTACH, msg_.window_base = ARENA_WINDOW_BASE,
			      msg_.window_size = UINT64_C(64) << 30),
			 0);
	assert_int_equal(c->nr_fds, 4);
	assert_non_null(peer_mm(c->peer));
}

/* The client is gone. */
static inline void client_end(struct client *c)
{
	client_close_fds(c);
	close(c->fd);
	serve_all();
	free(c);
}

/* The connection is over. To be asked before the service's next round, which frees the peer. */
static inline bool client_refused(struct client *c)
{
	return peer_is_closed(c->peer);
}

/* $ARENA_TEST_SEED, or a new one; printed, so that a failure can be repeated. */
static inline uint64_t client_seed(void)
{
	const char *given = getenv("ARENA_TEST_SEED");
	uint64_t n = given ? strtoull(given, NULL, 0) : clock_now();

	print_message("ARENA_TEST_SEED=%llu\n", (unsigned long long)n);
	return n;
}

/* ---- mailboxes ------------------------------------------------------------------- */

static inline struct arena_channel_header *client_channel(struct client *c)
{
	return mm_channel(peer_mm(c->peer));
}

static inline struct arena_mailbox *client_mailbox(struct client *c, unsigned i)
{
	char *channel = mm_channel(peer_mm(c->peer));

	return (struct arena_mailbox *)(void *)(channel + ARENA_CHANNEL_MAILBOXES) + i;
}

static inline void mailbox_post_bytes(struct client *c, unsigned i, const void *bytes, size_t len)
{
	struct arena_mailbox *mb = client_mailbox(c, i);

	memcpy(mb->payload, bytes, MIN(len, sizeof(mb->payload)));
	mb->len = (uint32_t)len;
	mb->request_id = ++c->next_id;
	mb->state = ARENA_MAILBOX_REQUEST;
	client_channel(c)->pending |= UINT64_C(1) << i;
}

static inline void mailbox_post(struct client *c, unsigned i, Arena__Request *rq)
{
	uint8_t bytes[ARENA_MAILBOX_PAYLOAD];
	size_t len;

	assert_int_equal(frame_pack_request(rq, bytes, sizeof(bytes), &len), 0);
	mailbox_post_bytes(c, i, bytes, len);
}

/* The errno of the answer, -1 if there is none yet. */
static inline int mailbox_answer(struct client *c, unsigned i)
{
	struct frame_arena fa = {.buf = c->frame, .size = sizeof(c->frame)};
	struct arena_mailbox *mb = client_mailbox(c, i);

	c->reply = NULL;
	if (mb->state != ARENA_MAILBOX_REPLY)
		return -1;
	assert_true(mb->len <= sizeof(mb->payload));
	assert_int_equal(frame_unpack_reply(mb->payload, mb->len, &fa, &c->reply), 0);
	mb->state = ARENA_MAILBOX_FREE;
	return c->reply->error;
}

/* Acknowledge every flush, as a client does that has nothing mapped. */
static inline void client_acknowledge(struct client *c)
{
	client_channel(c)->flush_ack = client_channel(c)->flush_head;
	serve_all();
}

#endif
