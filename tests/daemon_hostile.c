/* SPDX-License-Identifier: MIT */
/*
 * daemon_hostile.c - the protocol broken on the socket in every way one can think of: the daemon
 * answers with an errno or hangs up with a line in its log, goes on serving others, and loses no
 * frame. What comes through a channel, and numbers: daemon_hostile_calls.c.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "tests/lib_hostile.h"

/* A line for each, with who and why. Before all others, because of the limit on such lines. */
static void test_log_lines(void **state)
{
	struct test_daemon *d = *state;
	static struct wire w;
	char who[64];
	int fd = eventfd(0, EFD_CLOEXEC), error;

	snprintf(who, sizeof(who), "client %d (", (int)getpid());
	peer = (struct wire_client){.fd = wire_connect(d->socket)};
	assert_int_equal(wire_send(peer.fd, "nonsense", 8, NULL, 0), 0);
	assert_true(daemon_log_wait(d, 0, "refused: a message that does not decode"));
	assert_true(daemon_log_wait(d, 0, who));
	wire_close(&peer);
	assert_true(wire_open(&peer, d->socket));
	wire_request(&w, 1, WIRE_NULL, NULL);
	assert_int_equal(wire_send(peer.fd, w.bytes, w.len, &fd, 1), 0);
	assert_true(daemon_log_wait(d, 0, "refused: it sent descriptors"));
	wire_close(&peer);
	peer = (struct wire_client){.fd = wire_connect(d->socket)};
	assert_false(wire_hello(&peer, ARENA_ABI_MAJOR + 1, 0, &error));
	assert_true(daemon_log_wait(d, 0, "refused: it speaks another version"));
	assert_true(daemon_log_count(d, 0, "<4>client ") >= 3);
	close(fd);
}

/* ---- before hello -------------------------------------------------------------------------- */

struct packet {
	const char *what;
	size_t len;
	const char *bytes;
};

static const struct packet garbage[] = {
	{"one zero byte", 1, "\0"},
	{"text", 18, "GET / HTTP/1.0\r\n\r\n"},
	{"a length past the end", 4, "\x12\xff\x7f\x01"},
	{"an endless varint", 12, "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"},
	{"a field of number 0", 2, "\x00\x01"},
	{"a group", 2, "\x0b\x0c"},
	{"an unknown call", 5, "\x08\x01\xfa\x07\x00"},
	{"no call", 2, "\x08\x01"},
	{"a call of the wrong type", 4, "\x08\x01\x10\x05"},
	{"bad text in hello", 8, "\x08\x01\x12\x04\x1a\x02\xff\xfe"},
};

static void send_and_expect_refusal(struct test_daemon *d, const void *bytes, size_t len,
				    const char *what)
{
	uint64_t before = refusals(d);

	peer = (struct wire_client){.fd = wire_connect(d->socket)};
	assert_true(peer.fd >= 0);
	assert_int_equal(wire_send(peer.fd, bytes, len, NULL, 0), 0);
	if (!wire_hung_up(&peer, 5000))
		fail_msg("%s: not refused", what);
	assert_int_equal(refusals(d), before + 1);
	wire_close(&peer);
}

static void test_garbage_instead_of_hello(void **state)
{
	struct test_daemon *d = *state;
	static char big[ARENA_SOCKET_MAX_MESSAGE + 1];

	for (size_t i = 0; i < 8; i++)
		send_and_expect_refusal(d, garbage[i].bytes, garbage[i].len, garbage[i].what);
	send_and_expect_refusal(d, big, sizeof(big), "a packet that is too large");
}

static void test_calls_before_hello(void **state)
{
	struct test_daemon *d = *state;
	static struct wire w;

	for (unsigned call = WIRE_HELLO + 1; call <= WIRE_LAST; call++) {
		peer = (struct wire_client){.fd = wire_connect(d->socket)};
		wire_request(&w, 1, call, NULL);
		assert_int_equal(wire_send(peer.fd, w.bytes, w.len, NULL, 0), 0);
		assert_true(wire_hung_up(&peer, 5000));
		wire_close(&peer);
	}
}

static void test_versions(void **state)
{
	struct test_daemon *d = *state;
	static const struct {
		uint32_t major, minor;
	} wrong[] = {
		{ARENA_ABI_MAJOR + 1, 0},
		{0, 0},
		{UINT32_MAX, UINT32_MAX},
		{ARENA_ABI_MAJOR, ARENA_ABI_MINOR + 1},
	};
	int error;

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		peer = (struct wire_client){.fd = wire_connect(d->socket)};
		assert_false(wire_hello(&peer, wrong[i].major, wrong[i].minor, &error));
		assert_int_equal(error, EPROTO);
		assert_true(wire_hung_up(&peer, 5000));
		wire_close(&peer);
	}
	/* Twice is once too often, but not yet the end. */
	assert_true(wire_open(&peer, d->socket));
	assert_false(wire_hello(&peer, ARENA_ABI_MAJOR, ARENA_ABI_MINOR, &error));
	assert_int_equal(error, EPROTO);
	assert_int_equal(wire_call(&peer, WIRE_NULL, NULL, &reply), 0);
}

/* ---- after hello --------------------------------------------------------------------------- */

static void test_garbage_after_hello(void **state)
{
	struct test_daemon *d = *state;

	for (size_t i = 0; i < sizeof(garbage) / sizeof(garbage[0]); i++) {
		unsigned n;

		assert_true(wire_open(&peer, d->socket));
		for (n = 0; n < 40 && !wire_hung_up(&peer, 0); n++) {
			wire_send(peer.fd, garbage[i].bytes, garbage[i].len, NULL, 0);
			if (wire_recv(&peer, reply.bytes, sizeof(reply.bytes)) <= 0)
				break;
		}
		assert_true(n >= 1 && n < 40);
		wire_close(&peer);
	}
}

static void test_oversized(void **state)
{
	struct test_daemon *d = *state;
	static char big[ARENA_SOCKET_MAX_MESSAGE + 100];

	assert_true(wire_open(&peer, d->socket));
	assert_int_equal(wire_send(peer.fd, big, sizeof(big), NULL, 0), 0);
	/* One is forgiven: the next call is answered. */
	assert_int_equal(wire_call(&peer, WIRE_NULL, NULL, &reply), 0);
	/* As large as allowed, and all of it one name. */
	body.len = 0;
	memset(big, 'x', sizeof(big));
	wire_bytes(&body, 1, big, ARENA_SOCKET_MAX_MESSAGE - 64);
	assert_int_equal(wire_call(&peer, WIRE_ATTR_READ, &body, &reply), ENAMETOOLONG);
	assert_int_equal(wire_call(&peer, WIRE_SHM_UNLINK, &body, &reply), ENAMETOOLONG);
}

static void test_descriptors(void **state)
{
	struct test_daemon *d = *state;
	static struct wire w;
	int fds[20];

	for (unsigned i = 0; i < 20; i++)
		fds[i] = eventfd(0, EFD_CLOEXEC);
	for (unsigned n = 1; n <= 20; n += 19) {
		uint64_t before = refusals(d);

		assert_true(wire_open(&peer, d->socket));
		wire_request(&w, 77, WIRE_NULL, NULL);
		assert_int_equal(wire_send(peer.fd, w.bytes, w.len, fds, n), 0);
		assert_true(wire_hung_up(&peer, 5000));
		assert_int_equal(refusals(d), before + 1);
		wire_close(&peer);
	}
	for (unsigned i = 0; i < 20; i++)
		close(fds[i]);
}

/* ---- attach -------------------------------------------------------------------------------- */

static void test_windows(void **state)
{
	struct test_daemon *d = *state;
	static const struct {
		uint64_t base, size;
	} wrong[] = {
		{0, 0},
		{ARENA_WINDOW_BASE, 0},
		{ARENA_WINDOW_BASE, ARENA_WINDOW_SIZE_MIN - 4096},
		{ARENA_WINDOW_BASE + 4096, ARENA_WINDOW_SIZE_MIN},
		{ARENA_WINDOW_BASE, UINT64_MAX},
		{UINT64_MAX & ~(ARENA_WINDOW_ALIGN - 1), ARENA_WINDOW_ALIGN},
		{UINT64_MAX & ~(ARENA_WINDOW_ALIGN - 1), 2 * ARENA_WINDOW_ALIGN},
		{UINT64_C(1) << 63, UINT64_C(1) << 63},
		{UINT64_C(1) << 48, ARENA_WINDOW_SIZE_MIN},
		{ARENA_WINDOW_BASE, UINT64_C(1) << 62},
	};
	const uint64_t good[] = {ARENA_WINDOW_BASE, ARENA_WINDOW_SIZE_MIN};

	assert_true(wire_open(&peer, d->socket));
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		int r;

		body.len = 0;
		wire_number(&body, 1, wrong[i].base);
		wire_number(&body, 2, wrong[i].size);
		r = wire_call(&peer, WIRE_ATTACH, &body, &reply);
		if (r != EINVAL && r != ENOMEM)
			fail_msg("window %zu: %d", i, r);
	}
	body.len = 0;
	wire_number(&body, 1, good[0]);
	wire_number(&body, 2, good[1]);
	assert_int_equal(wire_call(&peer, WIRE_ATTACH, &body, &reply), 0);
	assert_int_equal(peer.nr_fds, 4);
	/* At most one address space. */
	assert_true(wire_call(&peer, WIRE_ATTACH, &body, &reply) > 0);
	assert_int_equal(peer.nr_fds, 4);
}

/* ---- names and paths --------------------------------------------------------------------------- */

static void test_names(void **state)
{
	static const char *const names[] = {"", "/", "..", ".", "/..", "a/b", "//", "/a/"};
	struct test_daemon *d = *state;
	char name[300];

	open_attached(d);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		body.len = 0;
		wire_text(&body, 1, names[i]);
		wire_number(&body, 2, O_RDWR | O_CREAT);
		wire_number(&body, 3, 0600);
		assert_int_equal(wire_call(&peer, WIRE_SHM_OPEN, &body, &reply), EINVAL);
		assert_true(wire_call(&peer, WIRE_SHM_UNLINK, &body, &reply) != 0);
	}
	/* A NUL inside ends it or is refused; newlines do not forge lines of tables. */
	memset(name, 'y', sizeof(name));
	memcpy(name, "n\nforged 1 2 3", 14);
	body.len = 0;
	wire_bytes(&body, 1, name, 200);
	wire_number(&body, 2, O_RDWR | O_CREAT);
	wire_number(&body, 3, 0600);
	if (wire_call(&peer, WIRE_SHM_OPEN, &body, &reply) == 0) {
		char *table = daemon_read(d, SEGMENTS_PATH);

		assert_null(strstr(table, "\nforged"));
		free(table);
		assert_int_equal(wire_call(&peer, WIRE_SHM_UNLINK, &body, &reply), 0);
	}
}

static void test_attributes(void **state)
{
	static const char *const paths[] = {
		"",
		"/",
		"..",
		"../../etc/passwd",
		"proc/../proc/meminfo",
		"proc//meminfo/x",
		"proc/-1/maps",
		"proc/4294967297/maps",
		"proc/%u/maps",
		"sys/devices/system/node/node99/meminfo",
		"sys/devices/system/memory/memory18446744073709551616/state"};
	static const uint64_t sizes[] = {0, 1, UINT32_MAX};

	assert_true(wire_open(&peer, ((struct test_daemon *)*state)->socket));
	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
		for (size_t k = 0; k < 3; k++) {
			int r;

			body.len = 0;
			wire_text(&body, 1, paths[i]);
			wire_number(&body, 2, k ? UINT64_MAX : 0);
			wire_number(&body, 3, sizes[k]);
			r = wire_call(&peer, WIRE_ATTR_READ, &body, &reply);
			assert_true(r >= 0 && r != EPROTO);
		}
		body.len = 0;
		wire_text(&body, 1, paths[i]);
		wire_text(&body, 2, "99999999999999999999999999");
		assert_true(wire_call(&peer, WIRE_ATTR_WRITE, &body, &reply) > 0);
	}
}

/* ---- crowds -------------------------------------------------------------------------------- */

static void test_half_open(void **state)
{
	struct test_daemon *d = *state;
	unsigned n = 300;
	int *fd = calloc(n, sizeof(*fd));

	/* Connected, and not a word: others are served meanwhile. */
	for (unsigned i = 0; i < n; i++)
		fd[i] = wire_connect(d->socket);
	assert_true(wire_open(&peer, d->socket));
	assert_int_equal(wire_call(&peer, WIRE_NULL, NULL, &reply), 0);
	for (unsigned i = 0; i < n; i++) {
		if (fd[i] < 0)
			continue;
		if (i % 3)
			shutdown(fd[i], i % 2 ? SHUT_WR : SHUT_RD);
		close(fd[i]);
	}
	free(fd);
}

/* Many calls, and none of the answers read: either they fit, or the daemon hangs up. */
static void test_answers_not_read(void **state)
{
	struct test_daemon *d = *state;
	static struct wire w;
	bool refused = false;

	assert_true(wire_open(&peer, d->socket));
	assert_int_equal(fcntl(peer.fd, F_SETFL, O_NONBLOCK), 0);
	body.len = 0;
	wire_text(&body, 1, "proc/zoneinfo");
	wire_number(&body, 3, 60000);
	for (unsigned i = 1; i < 100000 && !refused; i++) {
		struct timespec tick = {.tv_nsec = 100000};
		int r;

		wire_request(&w, i, WIRE_ATTR_READ, &body);
		r = wire_send(peer.fd, w.bytes, w.len, NULL, 0);
		refused = r && r != -EAGAIN;
		if (r == -EAGAIN) {
			refused = wire_hung_up(&peer, 0);
			ppoll(NULL, 0, &tick, NULL);
		}
	}
	assert_true(refused);
}

static void test_connection_storm(void **state)
{
	struct test_daemon *d = *state;

	for (unsigned i = 0; i < test_scaled(1000); i++) {
		peer = (struct wire_client){.fd = wire_connect(d->socket)};
		assert_true(peer.fd >= 0);
		if (i % 3 == 1)
			wire_send(peer.fd, "\x08", 1, NULL, 0);
		if (i % 3 == 2) {
			int error;

			wire_hello(&peer, ARENA_ABI_MAJOR, ARENA_ABI_MINOR, &error);
			if (i % 2)
				wire_attach(&peer);
		}
		wire_close(&peer);
	}
}

/* Refused while it maps frames, and back at once for more. */
static void refused_and_back(struct test_daemon *d, void *arg)
{
	static struct wire_client c, again;

	(void)arg;
	CHECK(wire_open(&c, d->socket) && wire_attach(&c));
	CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, c.fds[3], 0) != MAP_FAILED);
	for (unsigned i = 0; i < 32; i++)
		wire_send(c.fd, "nonsense", 8, NULL, 0);
	CHECK(wire_hung_up(&c, 10000));
	CHECK(wire_open(&again, d->socket));
	CHECK(!wire_attach(&again));
	wire_close(&again);
}

static void nothing_refused(struct test_daemon *d, void *arg)
{
	static struct wire_client c;

	(void)arg;
	CHECK(wire_open(&c, d->socket) && wire_attach(&c));
	wire_close(&c);
}

static void test_refused_gathers_nothing(void **state)
{
	struct test_daemon *d = *state;

	client_wait(client_start(d, refused_and_back, NULL));
	/* It is dead, and its like are welcome. */
	client_wait(client_start(d, nothing_refused, NULL));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		hostile_test(test_log_lines),
		hostile_test(test_garbage_instead_of_hello),
		hostile_test(test_calls_before_hello),
		hostile_test(test_versions),
		hostile_test(test_garbage_after_hello),
		hostile_test(test_oversized),
		hostile_test(test_descriptors),
		hostile_test(test_windows),
		hostile_test(test_names),
		hostile_test(test_attributes),
		hostile_test(test_half_open),
		hostile_test(test_answers_not_read),
		hostile_test(test_connection_storm),
		hostile_test(test_refused_gathers_nothing),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
