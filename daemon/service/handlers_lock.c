/* SPDX-License-Identifier: MIT */
/* handlers_lock.c - memory that stays, where it comes from, and memory that is looked at: mlock, pin,
 * set_mempolicy, msync, mincore. */
#include "daemon/service/internal.h"

#include <string.h>
#include <sys/mman.h>

int handle_mlock(struct call *call)
{
	const Arena__Mlock *m = call->request->mlock;

	if (m->flags & ~(uint32_t)MLOCK_ONFAULT)
		return ARENA_E_INVALID;
	return vm_mlock(call->peer->mm, m->address, m->length, m->flags & MLOCK_ONFAULT);
}

int handle_munlock(struct call *call)
{
	const Arena__Munlock *m = call->request->munlock;

	return vm_munlock(call->peer->mm, m->address, m->length);
}

int handle_mlockall(struct call *call)
{
	return vm_mlockall(call->peer->mm, call->request->mlockall->flags);
}

int handle_munlockall(struct call *call)
{
	return vm_munlockall(call->peer->mm);
}

int handle_set_mempolicy(struct call *call)
{
	const Arena__SetMempolicy *m = call->request->set_mempolicy;

	return vm_set_mempolicy(call->peer->mm, m->mode, m->nodes);
}

int handle_msync(struct call *call)
{
	const Arena__Msync *m = call->request->msync;

	struct later *l = later_create(call);
	int r;

	if (!l)
		return -ENOMEM;
	r = vm_msync(call->peer->mm, m->address, m->length, m->flags, &l->io);
	if (!r && l->io.pending)
		return call_later_io(l);
	later_drop(l);
	return r;
}

int handle_mincore(struct call *call)
{
	const Arena__Mincore *m = call->request->mincore;
	uint64_t next = m->address, pages;
	Arena__MincoreReply *reply;
	int r;

	memset(call->bits, 0, sizeof(call->bits));
	r = vm_mincore(call->peer->mm, m->address, m->length, call->bits, SERVICE_MINCORE_BYTES * 8,
		       &next);
	if (r && r != ARENA_E_NOT_MAPPED)
		return r;
	/* What lies before the hole is told all the same. */
	pages = (next - m->address) >> ARENA_PAGE_SHIFT;
	if (r && !pages)
		return r;
	reply = CALL_RESULT(call, mincore, MINCORE);
	reply->bits.data = call->bits;
	reply->bits.len = (pages + 7) / 8;
	reply->next = next;
	reply->hole = r != 0;
	return 0;
}

int handle_pin(struct call *call)
{
	const Arena__Pin *m = call->request->pin;
	uint64_t len = m->length, next = m->address;
	int r;

	if (!page_aligned(m->address) || !round_range(m->address, &len) || m->write > 1)
		return ARENA_E_INVALID;
	r = vm_pin(call->peer->mm, m->address, len, m->write, call_cpu(call, m->cpu), &next);
	if (r == ARENA_E_WAIT_IO)
		return call_wait_io(call);
	if (r)
		return call_flush_again(call, r);
	CALL_RESULT(call, populate, POPULATE)->next = next;
	return 0;
}

int handle_unpin(struct call *call)
{
	const Arena__Unpin *m = call->request->unpin;
	uint64_t len = m->length;

	if (!page_aligned(m->address) || !round_range(m->address, &len))
		return ARENA_E_INVALID;
	return vm_unpin(call->peer->mm, m->address, len);
}
