/* SPDX-License-Identifier: MIT */
/*
 * Hostile clients: packets and mailboxes that hold anything. When the client is gone every frame is
 * back and the machine is valid. Random parts print their seed; ARENA_TEST_SEED repeats one.
 */
#include "tests/service_peer.h"

#include <fcntl.h>

#include "base/prng.h"

static int attr_read(void *ctx, const struct credentials *cred, const char *path, char **out,
		     size_t *len)
{
	(void)ctx, (void)cred;
	*out = strdup(path);
	*len = strlen(path);
	return *out ? 0 : -ENOMEM;
}

static int attr_write(void *ctx, const struct credentials *cred, const char *path,
		      const char *value, size_t len)
{
	(void)ctx, (void)cred, (void)path;
	return strlen(value) <= len ? 0 : ARENA_E_INVALID;
}

static int setup(void **state)
{
	static const struct service_attr_ops attr = {.read = attr_read, .write = attr_write};

	(void)state;
	return start_service(&attr);
}

static int teardown(void **state)
{
	(void)state;
	return stop_service();
}

/* Sends bytes as they are. False: the service hung up on us. */
static bool send_raw(struct client *c, const void *bytes, size_t len)
{
	if (send(c->fd, bytes, len, MSG_NOSIGNAL) != (ssize_t)len)
		return false;
	return client_receive(c);
}

static uint64_t event(enum event_item item)
{
	return machine.state.counters[item];
}

static size_t pack_hello(uint8_t *buf, size_t size, uint32_t major, uint32_t minor)
{
	Arena__Request rq = ARENA__REQUEST__INIT;
	Arena__Hello hello = ARENA__HELLO__INIT;
	size_t len;

	rq.id = 1;
	rq.call_case = ARENA__REQUEST__CALL_HELLO;
	rq.hello = &hello;
	hello.abi_major = major;
	hello.abi_minor = minor;
	hello.comm = (char *)"evil\n\x1b[31m";
	hello.library = (char *)"\n";
	assert_int_equal(frame_pack_request(&rq, buf, size, &len), 0);
	return len;
}

/* ---- packets --------------------------------------------------------------------- */

static void test_before_hello(void **state)
{
	const ProtobufCMessageDescriptor *d = &arena__request__descriptor;

	(void)state;
	for (unsigned i = 0; i < d->n_fields; i++) {
		/* An empty message of each kind: tag, length 0; with an id. */
		uint8_t bytes[] = {8, 1, (uint8_t)(d->fields[i].id << 3 | 2), 0, 0};
		size_t len = 4;
		struct client *c;

		if (d->fields[i].type != PROTOBUF_C_TYPE_MESSAGE ||
		    d->fields[i].id == ARENA__REQUEST__CALL_HELLO)
			continue;
		if (d->fields[i].id > 15) {
			bytes[2] = (uint8_t)(d->fields[i].id << 3 | 2) | 0x80;
			bytes[3] = (uint8_t)(d->fields[i].id >> 4);
			len = 5;
		}
		c = client_connect();
		send_raw(c, bytes, len);
		assert_int_equal(service_nr_peers(service), 0);
		client_end(c);
	}
	assert_machine_whole();
}

static void test_other_versions(void **state)
{
	static const uint32_t versions[][2] = {
		{0, 0},
		{ARENA_ABI_MAJOR + 1, 0},
		{ARENA_ABI_MAJOR, ARENA_ABI_MINOR + 1},
		{UINT32_MAX, UINT32_MAX},
	};
	uint8_t bytes[256];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(versions); i++) {
		size_t len = pack_hello(bytes, sizeof(bytes), versions[i][0], versions[i][1]);
		struct client *c = client_connect();

		assert_true(send_raw(c, bytes, len));
		assert_non_null(c->reply);
		assert_int_equal(c->reply->error, EPROTO);
		/* It is told what would have been right. */
		assert_int_equal(c->reply->hello->abi_major, ARENA_ABI_MAJOR);
		assert_int_equal(service_nr_peers(service), 0);
		assert_int_equal(recv(c->fd, bytes, sizeof(bytes), MSG_DONTWAIT), 0);
		client_end(c);
	}
}

static void test_truncated(void **state)
{
	uint8_t bytes[256];
	size_t len = pack_hello(bytes, sizeof(bytes), ARENA_ABI_MAJOR, ARENA_ABI_MINOR);

	(void)state;
	for (size_t n = 0; n < len; n++) {
		struct client *c = client_connect();

		if (n)
			send_raw(c, bytes, n);
		else
			peer_handle_packet(c->peer, bytes, 0);
		service_reap(service);
		/* Whatever a prefix of hello is, it is not hello. */
		assert_int_equal(service_nr_peers(service), 0);
		client_end(c);
	}
	assert_machine_whole();
}

static void test_oversized(void **state)
{
	static uint8_t big[ARENA_SOCKET_MAX_MESSAGE + 1];
	struct client *c = client_connect();
	unsigned sent = 0;

	(void)state;
	client_hello(c);
	while (!client_refused(c) && send_raw(c, big, sizeof(big)))
		sent++;
	assert_in_range(sent, SERVICE_MAX_BAD_MESSAGES - 2, SERVICE_MAX_BAD_MESSAGES);
	client_end(c);
	c = client_connect();
	assert_false(send_raw(c, big, sizeof(big)));
	client_end(c);
	assert_machine_whole();
}

static void test_descriptors(void **state)
{
	int fds[ARENA_SOCKET_MAX_FDS];
	uint8_t bytes[256];
	size_t len = pack_hello(bytes, sizeof(bytes), ARENA_ABI_MAJOR, ARENA_ABI_MINOR);
	uint64_t before = event(EV_ARENA_CLIENT_REFUSED);
	int lowest, now;

	(void)state;
	for (unsigned n = 1; n <= ARENA_SOCKET_MAX_FDS; n++) {
		struct client *c = client_connect();

		lowest = dup(0);
		close(lowest);
		for (unsigned i = 0; i < n; i++)
			fds[i] = 2;
		assert_int_equal(frame_send(c->fd, bytes, len, fds, n), 0);
		assert_false(client_receive(c));
		/* The surplus ones are closed, and so is the service's end. */
		now = dup(0);
		close(now);
		assert_true(now <= lowest);
		client_end(c);
	}
	assert_int_equal(event(EV_ARENA_CLIENT_REFUSED), before + ARENA_SOCKET_MAX_FDS);
	assert_int_equal(service_nr_peers(service), 0);
}

static size_t random_bytes(struct prng *rng, uint8_t *buf, size_t size)
{
	size_t len = 1 + prng_below(rng, size - 1);

	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)prng_next(rng);
	return len;
}

/* Valid requests with some bytes changed, and noise. */
static void test_mutated_packets(void **state)
{
	struct prng rng = {.state = client_seed()};
	struct client *c = NULL;
	uint8_t bytes[300];

	(void)state;
	for (unsigned round = 0; round < 3000; round++) {
		size_t len;

		if (!c) {
			c = client_connect();
			if (prng_below(&rng, 2))
				client_attach(c);
		}
		len = pack_hello(bytes, 200, ARENA_ABI_MAJOR, ARENA_ABI_MINOR);
		if (prng_below(&rng, 4) == 0)
			len = random_bytes(&rng, bytes, sizeof(bytes));
		for (unsigned flips = (unsigned)prng_below(&rng, 8); flips; flips--)
			bytes[prng_below(&rng, len)] = (uint8_t)prng_next(&rng);
		if (!send_raw(c, bytes, len)) {
			client_end(c);
			c = NULL;
		}
	}
	if (c)
		client_end(c);
	assert_machine_whole();
}

static void test_flood_without_reading(void **state)
{
	struct client *c = client_connect();
	Arena__Request rq = ARENA__REQUEST__INIT;
	Arena__AttrRead m = ARENA__ATTR_READ__INIT;
	uint8_t bytes[ARENA_SOCKET_MAX_MESSAGE];
	char path[4000];
	unsigned sent;
	size_t len;

	(void)state;
	client_hello(c);
	memset(path, 'p', sizeof(path));
	path[sizeof(path) - 1] = '\0';
	rq.id = 7;
	rq.call_case = ARENA__REQUEST__CALL_ATTR_READ;
	rq.attr_read = &m;
	m.path = path;
	m.size = 4000;
	assert_int_equal(frame_pack_request(&rq, bytes, sizeof(bytes), &len), 0);
	for (sent = 0; sent < 100000 && service_nr_peers(service); sent++) {
		if (frame_send_flags(c->fd, bytes, len, NULL, 0, FRAME_DONTWAIT) < 0)
			break;
		service_round(service);
	}
	serve_all();
	assert_true(sent < 100000);
	assert_int_equal(service_nr_peers(service), 0);
	client_end(c);
	assert_machine_whole();
}

/* ---- mailboxes: the words -------------------------------------------------------- */

static void test_mailbox_words(void **state)
{
	static const uint32_t states[] = {0, 3, 4, 5, INT32_MAX, UINT32_MAX};
	static const uint32_t lengths[] = {0, ARENA_MAILBOX_PAYLOAD + 1, ARENA_MAILBOX_SIZE,
					   INT32_MAX, UINT32_MAX};
	struct client *c = client_connect();
	uint64_t bad = event(EV_ARENA_BAD_REQUEST);

	(void)state;
	client_attach(c);
	for (size_t i = 0; i < ARRAY_SIZE(states); i++) {
		client_mailbox(c, 3)->state = states[i];
		client_channel(c)->pending = 1 << 3;
		assert_true(channel_serve(c->peer));
		assert_int_equal(client_mailbox(c, 3)->state, states[i]);
		assert_int_equal(event(EV_ARENA_BAD_REQUEST), ++bad);
	}
	for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
		client_mailbox(c, 63)->state = ARENA_MAILBOX_REQUEST_WAIT;
		client_mailbox(c, 63)->len = lengths[i];
		client_channel(c)->pending = UINT64_C(1) << 63;
		assert_true(channel_serve(c->peer));
		assert_int_equal(mailbox_answer(c, 63), EPROTO);
		assert_int_equal(event(EV_ARENA_BAD_REQUEST), ++bad);
	}
	assert_false(client_refused(c));
	/* All bits at once, nothing in any: sixteen in all are enough. */
	client_channel(c)->pending = UINT64_MAX;
	while (channel_serve(c->peer))
		bad++;
	assert_true(client_refused(c));
	assert_int_equal(event(EV_ARENA_BAD_REQUEST), bad);
	client_end(c);
	assert_int_equal(service_nr_peers(service), 0);
	assert_machine_whole();
}

static void test_mailbox_garbage(void **state)
{
	struct prng rng = {.state = client_seed()};
	struct client *c = NULL;

	(void)state;
	for (unsigned round = 0; round < 3000; round++) {
		uint8_t bytes[ARENA_MAILBOX_PAYLOAD];
		size_t len = 1 + prng_below(&rng, prng_below(&rng, 4) ? 16 : sizeof(bytes));
		unsigned i = (unsigned)prng_below(&rng, ARENA_NR_MAILBOXES);

		if (!c) {
			c = client_connect();
			client_attach(c);
		}
		for (size_t b = 0; b < len; b++)
			bytes[b] = (uint8_t)prng_next(&rng);
		/* Often enough a call's tag, so that more than the decoder is reached. */
		if (prng_below(&rng, 2))
			bytes[0] = (uint8_t)((2 + prng_below(&rng, 14)) << 3 | 2);
		if (len > 1 && prng_below(&rng, 2))
			bytes[1] = (uint8_t)(len - 2);
		mailbox_post_bytes(c, i, bytes, len);
		assert_true(channel_serve(c->peer));
		if (client_refused(c)) {
			client_end(c);
			c = NULL;
		}
	}
	if (c)
		client_end(c);
	assert_machine_whole();
}

/* Words of the channel that the daemon reads besides: acknowledgements of anything. */
static void test_channel_words(void **state)
{
	static const uint64_t acks[] = {1, UINT64_MAX, 0, INT64_MAX, 2, UINT64_MAX - 1};
	struct client *c = client_connect();

	(void)state;
	client_attach(c);
	for (size_t i = 0; i < ARRAY_SIZE(acks); i++) {
		uint64_t at;

		assert_int_equal(CALL(c, mmap, MMAP, msg_.length = 8192,
				      msg_.prot = PROT_READ | PROT_WRITE,
				      msg_.flags = MAP_PRIVATE | MAP_ANONYMOUS),
				 0);
		at = c->reply->address->address;
		assert_int_equal(CALL(c, fault, FAULT, msg_.address = at, msg_.access = PROT_WRITE),
				 0);
		client_channel(c)->flush_ack = acks[i];
		client_channel(c)->flush_head = acks[i];
		client_channel(c)->daemon_poll = (uint32_t)acks[i];
		client_channel(c)->flush_kick = (uint32_t)acks[i];
		client_channel(c)->magic = acks[i];
		assert_int_equal(CALL(c, munmap, MUNMAP, msg_.address = at, msg_.length = 8192), 0);
		serve_all();
		assert_true(machine_is_valid(&machine));
	}
	client_end(c);
	assert_machine_whole();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_before_hello),
		cmocka_unit_test(test_other_versions),
		cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_oversized),
		cmocka_unit_test(test_descriptors),
		cmocka_unit_test(test_mutated_packets),
		cmocka_unit_test(test_flood_without_reading),
		cmocka_unit_test(test_mailbox_words),
		cmocka_unit_test(test_mailbox_garbage),
		cmocka_unit_test(test_channel_words),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, setup, teardown);
}
