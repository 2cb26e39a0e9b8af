/* SPDX-License-Identifier: MIT */
/* handlers_session.c - hello, attach, null, bye: a connection and its address space. */
#include "daemon/service/internal.h"

#include <errno.h>
#include <unistd.h>

#include "arena/arena.h"
#include "base/cleanup.h"
#include "base/os.h"
#include "daemon/store/store.h"

#define USER_ADDRESS_END (UINT64_C(1) << 47)

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define DAEMON_VERSION \
	TEXT(ARENA_VERSION_MAJOR) "." TEXT(ARENA_VERSION_MINOR) "." TEXT(ARENA_VERSION_PATCH)

int handle_hello(struct call *call)
{
	const Arena__Hello *m = call->request->hello;
	struct peer *p = call->peer;
	struct phys *phys = p->service->machine->phys;
	Arena__HelloReply *reply = CALL_RESULT(call, hello, HELLO);

	reply->abi_major = ARENA_ABI_MAJOR;
	reply->abi_minor = ARENA_ABI_MINOR;
	reply->daemon = (char *)DAEMON_VERSION;
	reply->arena_size = phys_nr_frames(phys) << ARENA_PAGE_SHIFT;
	reply->nr_nodes = phys_nr_nodes(phys);
	peer_set_comm(p, m->comm);
	if (m->abi_major != ARENA_ABI_MAJOR || m->abi_minor > ARENA_ABI_MINOR) {
		call->close_after = true;
		call->close_why = "it speaks another version of the protocol";
		return ARENA_E_PROTOCOL;
	}
	/* An earlier worker knew it already, and died before it could say so. */
	if (p->recovered)
		return 0;
	p->state = PEER_READY;
	peer_keep(p);
	state_event(service_state(p->service), EV_ARENA_CLIENT_OPEN, 1);
	log_debug("client %d (%s, uid %u) connected, libarena %.32s", (int)p->cred.pid, p->comm,
		  (unsigned)p->cred.uid, m->library);
	return 0;
}

static bool window_acceptable(uint64_t base, uint64_t size)
{
	uint64_t end;

	return size >= ARENA_WINDOW_SIZE_MIN && IS_ALIGNED(size, ARENA_WINDOW_ALIGN) && base &&
	       IS_ALIGNED(base, ARENA_WINDOW_ALIGN) && !__builtin_add_overflow(base, size, &end) &&
	       end <= USER_ADDRESS_END;
}

int call_add_attach_fds(struct call *call, struct mm *mm)
{
	int table = os_reopen_readonly(mm_file(mm));

	if (table < 0)
		return table;
	call_add_fd(call, table, true);
	call_add_fd(call, mm_channel_file(mm), false);
	call_add_fd(call, call->peer->doorbell, false);
	call_add_fd(call, domain_fd(mm_domain(mm)), false);
	return 0;
}

int call_attach(struct call *call, struct mm *mm)
{
	_cleanup_(closep) int doorbell = os_eventfd();
	Arena__AttachReply *reply;
	int r;

	/* The one that it may have had is not told to anybody any more. */
	peer_detach(call->peer);
	store_remove_number("doorbell", mm_id(mm));
	r = doorbell < 0 ? doorbell : peer_attached(call->peer, mm, TAKE_FD(doorbell));
	if (!r)
		r = call_add_attach_fds(call, mm);
	if (r)
		return r;
	reply = CALL_RESULT(call, attach, ATTACH);
	reply->mm_id = mm_id(mm);
	reply->token.data = (uint8_t *)mm_token(mm);
	reply->token.len = SERVICE_TOKEN_BYTES;
	return 0;
}

/* Does an earlier connection of the same process, refused by us, still hold frames? */
static bool process_was_refused(const struct peer *p)
{
	const struct peer *other;

	LIST_FOREACH(other, &p->service->peers, link)
		if (other->state == PEER_ORPHAN && other->refused && other->cred.pid == p->cred.pid)
			return true;
	return false;
}

/*
 * An address space of the same process in the same place: the process has unmapped it, or it could
 * not offer the place again. It never heard of it, or lost it.
 */
static void end_replaced(const struct peer *p, const Arena__Attach *m)
{
	struct peer *other, *next;
	uint64_t base, size;

	LIST_FOREACH_SAFE(other, &p->service->peers, link, next) {
		if (other->state != PEER_ORPHAN || other->cred.pid != p->cred.pid)
			continue;
		mm_window(other->mm, &base, &size);
		if (m->window_base < base + size && base < m->window_base + m->window_size)
			peer_destroy(other);
	}
}

/* Has this very call, by an earlier worker, got as far as p->mm? Then mm_create() gives that. */
static bool attach_was_interrupted(const struct peer *p)
{
	const struct state *st = service_state(p->service);

	return st->resuming && st->journal->phase == JOURNAL_PREPARED;
}

int handle_attach(struct call *call)
{
	const Arena__Attach *m = call->request->attach;
	struct peer *p = call->peer;
	struct mm_params params = {
		.window_base = m->window_base,
		.window_size = m->window_size,
		.cred = &p->cred,
		.comm = p->comm,
		.peer = p->id,
		.start_time = os_process_start(p->cred.pid),
		.process_domain = p->service->machine->config.process_isolation,
	};
	struct mm *mm;
	int r;

	if (m->mm_id)
		return attach_forked(call, &r) ? r : reattach(call);
	if (p->mm && !attach_was_interrupted(p))
		return ARENA_E_BUSY;
	/* Frames must not be given to a process whose death we would not hear of. */
	if (p->pidfd < 0)
		return ARENA_E_PERMISSION;
	/* What it was refused with stays its own until it dies: it shall not gather more. */
	if (process_was_refused(p))
		return ARENA_E_PERMISSION;
	if (!window_acceptable(m->window_base, m->window_size))
		return ARENA_E_INVALID;
	end_replaced(p, m);
	r = mm_create(p->service->machine->virt, &params, &mm);
	if (r)
		return r;
	r = call_attach(call, mm);
	if (r && p->mm)
		peer_forget_mm(p);
	else if (r)
		mm_destroy(mm);
	return r;
}

int handle_null(struct call *call)
{
	(void)call;
	return 0;
}

int handle_bye(struct call *call)
{
	peer_bye(call->peer);
	return 0;
}
