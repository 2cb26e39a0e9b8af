/* SPDX-License-Identifier: MIT */
/*
 * reattach.c - an address space whose connection was lost gets another.
 *
 * A connection ends while its process lives where the program closed the descriptor, or a worker died
 * before the keeper had it. The process comes back with the number and the token that attach told
 * it, and nobody else can: the kernel says that it is the same process. It gets descriptors of
 * all the same files; its mappings, tables and mailboxes are what they were, and requests that nobody
 * has served lie in them.
 */
#include "daemon/service/internal.h"

static struct peer *find_owner(const struct service *s, uint32_t id)
{
	struct peer *p;

	LIST_FOREACH(p, &s->peers, link)
		if (p->mm && mm_id(p->mm) == id)
			return p;
	return NULL;
}

/* In a time that does not tell how much of it was right. */
bool service_token_is(const struct mm *mm, const ProtobufCBinaryData *given)
{
	const uint8_t *token = mm_token(mm);
	uint8_t differs = 0;

	if (given->len != SERVICE_TOKEN_BYTES)
		return false;
	for (unsigned i = 0; i < SERVICE_TOKEN_BYTES; i++)
		differs |= (uint8_t)(token[i] ^ given->data[i]);
	return !differs;
}

static int may_take_over(const struct peer *p, const struct peer *owner, const Arena__Attach *m)
{
	if (!owner)
		return ARENA_E_STALE;
	/* Nothing can be compared with, nor taken over. */
	if (mm_is_condemned(owner->mm))
		return ARENA_E_STALE;
	if (!service_token_is(owner->mm, &m->token) || mm_pid(owner->mm) != p->cred.pid ||
	    mm_uid(owner->mm) != p->cred.uid || p->pidfd < 0)
		return ARENA_E_ACCESS;
	if (owner->refused)
		return ARENA_E_PERMISSION;
	if (owner != p && p->mm)
		return ARENA_E_BUSY;
	/* One whose end we have not come to read is over all the same. */
	return owner == p || owner->state == PEER_ORPHAN || peer_hung_up(owner) ? 0 : ARENA_E_BUSY;
}

int reattach(struct call *call)
{
	const Arena__Attach *m = call->request->attach;
	struct peer *p = call->peer, *owner = find_owner(p->service, m->mm_id);
	struct mm *mm;
	int r = may_take_over(p, owner, m);

	if (r)
		return r;
	mm = owner->mm;
	peer_set_comm(p, mm_comm(mm));
	if (owner != p)
		peer_inherit(p, owner);
	r = call_attach(call, mm);
	if (r) {
		/* It keeps what it has, and may try again. */
		peer_detach(p);
		return r;
	}
	log_debug("client %d (%s) is back", (int)p->cred.pid, p->comm);
	channel_scan(p);
	service_poll_peer(p->service, p);
	return 0;
}
