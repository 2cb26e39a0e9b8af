/* SPDX-License-Identifier: MIT */
/*
 * mailbox.c - requests out of a channel and answers into it.
 *
 * Every byte of a channel may change at any moment and hold anything. So each word is read once,
 * a request is copied out before it is looked at, an answer is packed elsewhere before it is
 * copied in, and nothing that was written is read back. A client that breaks the rules of
 * `enum arena_mailbox_state` confuses itself; here it only counts as a bad message.
 */
#include "daemon/service/internal.h"

#include <string.h>

#include "base/os.h"

static struct arena_channel_header *channel_header(const struct peer *p)
{
	return mm_channel(p->mm);
}

static struct arena_mailbox *channel_mailbox(const struct peer *p, uint32_t i)
{
	char *channel = mm_channel(p->mm);

	return (struct arena_mailbox *)(void *)(channel + ARENA_CHANNEL_MAILBOXES) + i;
}

bool channel_pending(const struct peer *p)
{
	return p->mm && (p->taken || load_relaxed(&channel_header(p)->pending));
}

void mailbox_reply(struct peer *p, uint32_t mailbox, uint64_t id, const void *bytes, size_t len)
{
	struct arena_mailbox *mb = channel_mailbox(p, mailbox);

	memcpy(mb->payload, bytes, len);
	store_relaxed(&mb->len, (uint32_t)len);
	store_relaxed(&mb->request_id, id);
	if (__atomic_exchange_n(&mb->state, ARENA_MAILBOX_REPLY, __ATOMIC_SEQ_CST) ==
	    ARENA_MAILBOX_REQUEST_WAIT)
		os_futex_wake(&mb->state, 1);
}

static bool is_request(uint32_t state)
{
	return state == ARENA_MAILBOX_REQUEST || state == ARENA_MAILBOX_REQUEST_WAIT;
}

bool mailbox_holds(const struct peer *p, uint32_t mailbox, uint64_t id)
{
	const struct arena_mailbox *mb = channel_mailbox(p, mailbox);

	return is_request(load_acquire(&mb->state)) && load_relaxed(&mb->request_id) == id &&
	       !(p->unanswered >> mailbox & 1);
}

static void refuse_length(struct peer *p, uint32_t mailbox, uint64_t id)
{
	Arena__Reply reply = ARENA__REPLY__INIT;
	uint8_t bytes[32];
	size_t len;

	reply.error = error_to_errno(ARENA_E_PROTOCOL);
	BUG_ON(frame_pack_reply(&reply, bytes, sizeof(bytes), &len));
	mailbox_reply(p, mailbox, id, bytes, len);
	peer_bad_message(p, "a mailbox with a bad length");
}

void mailbox_serve(struct peer *p, uint32_t i)
{
	struct arena_mailbox *mb = channel_mailbox(p, i);
	uint32_t state = load_acquire(&mb->state);
	uint32_t len = load_relaxed(&mb->len);
	uint64_t id = load_relaxed(&mb->request_id);
	uint8_t payload[ARENA_MAILBOX_PAYLOAD];

	if (!is_request(state) || (p->unanswered >> i & 1)) {
		if (p->found >> i & 1)
			p->found &= ~(UINT64_C(1) << i);
		else
			peer_bad_message(p, "a mailbox that holds no request");
		return;
	}
	if (!len || len > sizeof(payload)) {
		refuse_length(p, i, id);
		return;
	}
	memcpy(payload, mb->payload, len);
	call_serve(p, i, id, payload, len);
}

/* All that is pending is taken at once and served before anything newer, so that no mailbox
 * waits for ever behind others. */
bool channel_serve(struct peer *p)
{
	unsigned i;

	if (peer_is_closed(p) || !channel_pending(p))
		return false;
	if (!p->taken)
		p->taken = __atomic_exchange_n(&channel_header(p)->pending, 0, __ATOMIC_SEQ_CST);
	if (!p->taken)
		return false;
	i = (unsigned)__builtin_ctzll(p->taken);
	p->taken &= p->taken - 1;
	p->service->worked = true;
	mailbox_serve(p, i);
	return true;
}

/*
 * A client stores the state and then sets the bit. So a request may be found here whose bit is set
 * only later, when the mailbox is answered already; that counts for no bad message (`found`).
 */
void channel_scan(struct peer *p)
{
	__atomic_exchange_n(&channel_header(p)->pending, 0, __ATOMIC_SEQ_CST);
	for (uint32_t i = 0; i < ARENA_NR_MAILBOXES; i++)
		if (is_request(load_acquire(&channel_mailbox(p, i)->state)))
			p->found |= UINT64_C(1) << i;
	p->taken |= p->found;
	p->unflushed |= p->found;
}

void channel_wake(struct peer *p)
{
	for (uint32_t i = 0; i < ARENA_NR_MAILBOXES; i++)
		if (load_acquire(&channel_mailbox(p, i)->state) == ARENA_MAILBOX_REQUEST_WAIT)
			os_futex_wake(&channel_mailbox(p, i)->state, 1);
	os_futex_wake(&channel_header(p)->flush_word, 1);
}
