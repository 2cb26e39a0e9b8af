/* SPDX-License-Identifier: MIT */
/*
 * daemon_hostile_calls.c - every number of every call at its extremes, by mailbox and by socket,
 * and channels in which nothing is as it should be.
 */
#include <fcntl.h>
#include <stdlib.h>

#include "base/prng.h"
#include "tests/lib_hostile.h"

/* ---- every field at its extremes ----------------------------------------------------------- */

static const uint64_t extremes[] = {
	0,
	1,
	2,
	0xfff,
	0x1000,
	0x1fffff,
	0x200000,
	INT32_MAX,
	UINT64_C(1) << 31,
	UINT32_MAX,
	UINT64_C(1) << 32,
	ARENA_WINDOW_BASE - 4096,
	ARENA_WINDOW_BASE,
	ARENA_WINDOW_BASE + 1,
	ARENA_WINDOW_BASE + (UINT64_C(1) << 30),
	UINT64_C(1) << 47,
	UINT64_C(1) << 48,
	INT64_MAX,
	UINT64_C(1) << 63,
	UINT64_MAX - 4095,
	UINT64_MAX,
};

/* How many fields of numbers a call has. */
static const struct {
	unsigned call, fields;
} numeric[] = {
	{WIRE_FAULT, 3},    {WIRE_MMAP, 6},        {WIRE_MUNMAP, 2},       {WIRE_MPROTECT, 3},
	{WIRE_MADVISE, 3},  {WIRE_POPULATE, 4},    {WIRE_SHM_TRUNCATE, 2}, {WIRE_SHM_CLOSE, 1},
	{WIRE_SHM_STAT, 1}, {WIRE_ALLOC_PAGES, 3}, {WIRE_FREE_PAGES, 2},   {WIRE_MMAP_PFN, 5},
};

static bool linux_errno(int r)
{
	static const int allowed[] = {0,       EINVAL, ENOMEM, EEXIST, EACCES, EOVERFLOW, ENODEV,
				      ENOTSUP, EFAULT, EFBIG,  EPERM,  ENOENT, EAGAIN};

	for (size_t i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++)
		if (r == allowed[i])
			return true;
	return false;
}

static void call_anyhow(unsigned call, bool mailbox, unsigned box)
{
	int r = mailbox ? wire_mail(&peer, box, call, &body, &reply)
			: wire_call(&peer, call, &body, &reply);

	if (!linux_errno(r))
		fail_msg("call %u: errno %d", call, r);
}

static void test_extremes(void **state)
{
	size_t n = sizeof(extremes) / sizeof(extremes[0]);

	furnish(*state);
	for (size_t c = 0; c < sizeof(numeric) / sizeof(numeric[0]); c++) {
		/* Two fields at a time at all pairs of extremes, the others at something usual. */
		for (unsigned f = 0; f < numeric[c].fields; f++) {
			for (size_t i = 0; i < n * n; i++) {
				unsigned g = (f + 1) % numeric[c].fields;
				bool mailbox = (i + f) % 2;

				if (test_slowness() > 1 && i % 5 != f % 5)
					continue;
				body.len = 0;
				for (unsigned k = 0; k < numeric[c].fields; k++)
					wire_number(&body, k + 1,
						    k == f   ? extremes[i / n]
						    : k == g ? extremes[i % n]
						    : k == 0 ? ARENA_WINDOW_BASE
						    : k == 1 ? LEAF
							     : 3);
				call_anyhow(numeric[c].call, mailbox, (unsigned)(i % 64));
			}
		}
	}
	unfurnish();
}

static void test_random_numbers(void **state)
{
	struct prng r = {.state = 42};

	furnish(*state);
	for (unsigned i = 0; i < test_scaled(20000); i++) {
		unsigned c = (unsigned)prng_below(&r, sizeof(numeric) / sizeof(numeric[0]));

		body.len = 0;
		for (unsigned k = 1; k <= numeric[c].fields; k++) {
			uint64_t v =
				extremes[prng_below(&r, sizeof(extremes) / sizeof(extremes[0]))];

			if (prng_below(&r, 2))
				v += (prng_below(&r, 64) - 32) * 4096;
			if (prng_below(&r, 2))
				v = prng_below(&r, 40) * (k < 3 ? PAGE : 1);
			if (k == 1 && prng_below(&r, 2))
				v = ARENA_WINDOW_BASE + prng_below(&r, 9 * 512) * PAGE;
			wire_number(&body, k, v);
		}
		call_anyhow(numeric[c].call, prng_below(&r, 2), (unsigned)prng_below(&r, 64));
	}
	unfurnish();
}

/* ---- mailboxes ----------------------------------------------------------------------------- */

static void test_mailbox_garbage(void **state)
{
	static uint8_t bytes[ARENA_MAILBOX_PAYLOAD], answer[ARENA_MAILBOX_PAYLOAD];
	static const uint32_t lengths[] = {0, ARENA_MAILBOX_PAYLOAD, ARENA_MAILBOX_PAYLOAD + 1,
					   INT32_MAX, UINT32_MAX};
	struct test_daemon *d = *state;
	struct prng r = {.state = 3};

	/* Each is answered; after some too many the client is refused. */
	for (size_t i = 0; i < 5; i++) {
		uint64_t before = refusals(d);
		unsigned n;

		open_attached(d);
		for (n = 0; n < 40; n++) {
			for (size_t k = 0; k < sizeof(bytes); k++)
				bytes[k] = (uint8_t)prng_next(&r);
			bytes[0] = 0xff; /* no valid beginning */
			if (wire_mail_bytes(&peer, n, bytes, sizeof(bytes), lengths[i], answer) < 0)
				break;
		}
		assert_true(n > 0 && n < 40);
		assert_true(wire_hung_up(&peer, 5000));
		assert_int_equal(refusals(d), before + 1);
	}
	/* Calls that belong on the socket. */
	open_attached(d);
	assert_int_equal(wire_mail(&peer, 0, WIRE_HELLO, NULL, &reply), EPROTO);
	assert_int_equal(wire_mail(&peer, 1, WIRE_SHM_OPEN, NULL, &reply), EPROTO);
	assert_int_equal(wire_mail(&peer, 2, WIRE_ATTR_READ, NULL, &reply), EPROTO);
	assert_int_equal(wire_mail(&peer, 3, WIRE_NULL, NULL, &reply), 0);
}

/* States that no client has any business with, and bits without requests. */
static void test_mailbox_states(void **state)
{
	static const uint32_t states[] = {ARENA_MAILBOX_FREE, ARENA_MAILBOX_REPLY, 4, UINT32_MAX};
	struct test_daemon *d = *state;

	for (size_t i = 0; i < 4; i++) {
		open_attached(d);
		for (unsigned b = 0; b < ARENA_NR_MAILBOXES; b++)
			wire_mailbox(&peer, b)->state = states[i];
		__atomic_store_n(&wire_channel(&peer)->pending, UINT64_MAX, __ATOMIC_SEQ_CST);
		wire_ring(&peer);
		assert_true(wire_hung_up(&peer, 5000));
	}
}

/* Numbers of the channel that a client may write: acks of flushes that were never posted. */
static void test_channel_words(void **state)
{
	static const uint64_t acks[] = {1, UINT32_MAX, UINT64_MAX / 2, UINT64_MAX - 1, UINT64_MAX};

	for (size_t i = 0; i < 5; i++) {
		struct arena_channel_header *ch;

		furnish(*state);
		ch = wire_channel(&peer);
		__atomic_store_n(&ch->flush_ack, acks[i], __ATOMIC_SEQ_CST);
		ch->flush_head = acks[4 - i];
		ch->flush_word = (uint32_t)acks[i];
		ch->flush_kick = 77;
		ch->daemon_poll = 99;
		ch->magic = 0;
		ch->refills = ch->faults = ch->evictions = UINT64_MAX;
		memset(peer.channel + ARENA_CHANNEL_BITS, 0xff, 65536);
		body.len = 0;
		wire_number(&body, 1, ARENA_WINDOW_BASE + LEAF);
		wire_number(&body, 2, 3 * LEAF + PAGE);
		assert_int_equal(wire_mail(&peer, 5, WIRE_MUNMAP, &body, &reply), 0);
		__atomic_store_n(&ch->flush_ack, 0, __ATOMIC_SEQ_CST);
		assert_int_equal(wire_mail(&peer, 6, WIRE_NULL, NULL, &reply), 0);
		free(daemon_read(*state, CLIENTS_PATH));
		free(daemon_read(*state, STATUS_PATH));
		unfurnish();
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		hostile_test(test_extremes),        hostile_test(test_random_numbers),
		hostile_test(test_mailbox_garbage), hostile_test(test_mailbox_states),
		hostile_test(test_channel_words),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
