/* SPDX-License-Identifier: MIT */
/*
 * Packets of two clients: decoder, method table, every handler behind it.
 *
 * Record ops: 0 a packet; 1 all flushes acknowledged; 2 a round of the service; 3 the client hangs
 * up and comes again; 4 the same without hello and attach.
 */
#include "fuzz/fuzz_service.h"

enum { OP_PACKET, OP_ACK, OP_ROUND, OP_AGAIN, OP_NEW, NR_OPS };

static size_t some_record(struct prng *r, uint8_t *op, uint8_t *payload, size_t max)
{
	*op = prng_below(r, 10) ? OP_PACKET : (uint8_t)prng_below(r, NR_OPS);
	return *op == OP_PACKET ? some_request(r, payload, max) : 0;
}

static void acknowledge(unsigned i)
{
	struct peer *p = fuzz_peer(i);
	struct arena_channel_header *h = p && peer_mm(p) ? mm_channel(peer_mm(p)) : NULL;

	if (h)
		h->flush_ack = h->flush_head;
}

static void hang_up(unsigned i)
{
	if (fz.client[i].fd >= 0)
		close(fz.client[i].fd);
	fz.client[i].fd = -1;
	/* The service finds out by itself. */
	service_round(fz.service);
	FUZZ_CHECK(!fz.client[i].peer || service_nr_peers(fz.service) < FUZZ_PEERS);
	fz.client[i].peer = NULL;
}

static void play(const struct record *rec)
{
	switch (rec->op % NR_OPS) {
	case OP_PACKET:
		fuzz_packet(rec->client, rec->payload, rec->len);
		break;
	case OP_ACK:
		acknowledge(rec->client);
		break;
	case OP_ROUND:
		service_round(fz.service);
		break;
	case OP_AGAIN:
	case OP_NEW:
		hang_up(rec->client);
		fuzz_connect(rec->client);
		if (rec->op % NR_OPS == OP_AGAIN)
			fuzz_attach(rec->client);
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
	fuzz_finish();
	return 0;
}
