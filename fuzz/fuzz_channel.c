/* SPDX-License-Identifier: MIT */
/*
 * The channel files of two attached clients: every byte of them is the client's to write.
 *
 * Record ops: 0 a mailbox with a request (2 bytes: which, and its state; then the request); 1 bytes
 * anywhere in the channel (4 bytes: offset); 2 flush_ack (8 bytes, none: what was posted); 3 bits
 * of `pending` (8 bytes); 4 the daemon serves what it finds; 5 a round of the service; 6 a length
 * and an id of a mailbox (1, 4 and 8 bytes); 7 a packet.
 */
#include "fuzz/fuzz_service.h"

enum { OP_MAILBOX, OP_BYTES, OP_ACK, OP_PENDING, OP_SERVE, OP_ROUND, OP_LENGTH, OP_PACKET, NR_OPS };

static size_t some_record(struct prng *r, uint8_t *op, uint8_t *payload, size_t max)
{
	static const uint64_t words[] = {0,
					 1,
					 2,
					 3,
					 ARENA_MAILBOX_PAYLOAD,
					 ARENA_MAILBOX_PAYLOAD + 1,
					 UINT32_MAX,
					 UINT64_MAX,
					 INT64_MAX};
	uint64_t word = pick(r, words, ARRAY_SIZE(words));
	unsigned kind = (unsigned)prng_below(r, 20);

	*op = kind < 11 ? OP_MAILBOX : kind < 17 ? OP_SERVE : (uint8_t)prng_below(r, NR_OPS);
	switch (*op) {
	case OP_MAILBOX:
		payload[0] = (uint8_t)prng_below(r, ARENA_NR_MAILBOXES);
		payload[1] =
			(uint8_t)(prng_below(r, 8) ? ARENA_MAILBOX_REQUEST : prng_below(r, 256));
		return 2 +
		       some_request(r, payload + 2, MIN(max - 2, (size_t)ARENA_MAILBOX_PAYLOAD));
	case OP_BYTES: {
		uint32_t offset =
			(uint32_t)prng_below(r, prng_below(r, 2) ? 512 : ARENA_CHANNEL_SIZE);

		memcpy(payload, &offset, sizeof(offset));
		memcpy(payload + 4, &word, sizeof(word));
		return 12;
	}
	case OP_ACK:
		memcpy(payload, &word, sizeof(word));
		return prng_below(r, 2) ? 0 : 8;
	case OP_PENDING:
		word = prng_below(r, 2) ? word : prng_next(r);
		memcpy(payload, &word, sizeof(word));
		return 8;
	case OP_LENGTH:
		payload[0] = (uint8_t)prng_below(r, ARENA_NR_MAILBOXES);
		memcpy(payload + 1, &word, 4);
		memcpy(payload + 5, &word, 8);
		return 13;
	case OP_PACKET:
		return some_request(r, payload, max);
	default:
		return 0;
	}
}

static uint64_t word_of(const struct record *rec, size_t from, size_t n)
{
	uint64_t v = 0;

	if (rec->len > from)
		memcpy(&v, rec->payload + from, MIN(n, (size_t)rec->len - from));
	return v;
}

static void serve(unsigned i)
{
	unsigned n;

	for (n = 0; n < 2 * ARENA_NR_MAILBOXES && fuzz_peer(i) && channel_serve(fuzz_peer(i)); n++)
		fuzz_drain(i);
}

static void put_request(uint8_t *channel, const struct record *rec)
{
	uint64_t which = word_of(rec, 0, 1) % ARENA_NR_MAILBOXES;
	struct arena_mailbox *mb =
		(struct arena_mailbox *)(void *)(channel + ARENA_CHANNEL_MAILBOXES) + which;
	size_t len = rec->len > 2 ? MIN((size_t)rec->len - 2, (size_t)ARENA_MAILBOX_PAYLOAD) : 0;

	memcpy(mb->payload, rec->payload + 2, len);
	mb->len = (uint32_t)len;
	mb->request_id = 7;
	mb->state = (uint32_t)word_of(rec, 1, 1);
	((struct arena_channel_header *)(void *)channel)->pending |= UINT64_C(1) << which;
}

static void scribble(uint8_t *channel, const struct record *rec)
{
	uint64_t offset = word_of(rec, 0, 4) % ARENA_CHANNEL_SIZE;
	size_t n = rec->len > 4 ? (size_t)rec->len - 4 : 0;

	memcpy(channel + offset, rec->payload + 4, MIN(n, (size_t)(ARENA_CHANNEL_SIZE - offset)));
}

static void put_length(uint8_t *channel, const struct record *rec)
{
	struct arena_mailbox *mb =
		(struct arena_mailbox *)(void *)(channel + ARENA_CHANNEL_MAILBOXES) +
		word_of(rec, 0, 1) % ARENA_NR_MAILBOXES;

	mb->len = (uint32_t)word_of(rec, 1, 4);
	mb->request_id = word_of(rec, 5, 8);
}

static void play(const struct record *rec)
{
	struct peer *p = fuzz_peer(rec->client);
	uint8_t *channel = p && peer_mm(p) ? mm_channel(peer_mm(p)) : NULL;
	struct arena_channel_header *h = (struct arena_channel_header *)(void *)channel;

	if (!channel)
		return;
	switch (rec->op % NR_OPS) {
	case OP_MAILBOX:
		if (rec->len > 2)
			put_request(channel, rec);
		break;
	case OP_BYTES:
		scribble(channel, rec);
		break;
	case OP_ACK:
		h->flush_ack = rec->len ? word_of(rec, 0, 8) : mm_flush_posted(peer_mm(p));
		break;
	case OP_PENDING:
		h->pending |= word_of(rec, 0, 8);
		break;
	case OP_SERVE:
		serve(rec->client);
		break;
	case OP_ROUND:
		service_round(fz.service);
		break;
	case OP_LENGTH:
		put_length(channel, rec);
		break;
	case OP_PACKET:
		fuzz_packet(rec->client, rec->payload, rec->len);
		break;
	}
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_boot();
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *at = data;
	struct record rec;
	unsigned i;

	for (i = 0; i < FUZZ_PEERS; i++) {
		fuzz_connect(i);
		fuzz_attach(i);
		fuzz_open_segment(i);
	}
	while (record_next(&at, data + size, &rec)) {
		play(&rec);
		/* A peer that was closed is freed by the next round: forget it now. */
		for (i = 0; i < FUZZ_PEERS; i++)
			fuzz_peer(i);
	}
	for (i = 0; i < FUZZ_PEERS; i++)
		serve(i);
	fuzz_finish();
	return 0;
}
