/* SPDX-License-Identifier: MIT */
/*
 * call.c - a request from bytes to answer.
 *
 *	bytes -> Request -> row of methods.def -> handler -> Reply -> packet or mailbox
 *	                                             |                     ^
 *	                                             +-- struct later -----+
 *
 * The request lives in the service's one decoding buffer until its handler returns; a call that is
 * answered later keeps nothing of it. While one waits, its `flush_wait` may become done inside
 * virt at any time, so `done` only queues it: answers go out from service_answer_finished(), where
 * closing a peer is harmless.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/faultpoint.h"
#include "base/mem.h"

static const struct method methods[] = {
#define METHOD(CASE, name, handler, where, needs) \
	[ARENA__REQUEST__CALL_##CASE] = {name, handler, METHOD_##where, METHOD_NEEDS_##needs},
#include "daemon/service/methods.def"
#undef METHOD
};

const struct method *method_find(unsigned request_case)
{
	return request_case < ARRAY_SIZE(methods) && methods[request_case].name
		       ? &methods[request_case]
		       : NULL;
}

/* ---- answers --------------------------------------------------------------------- */

static void call_init(struct call *call, struct peer *p, uint32_t mailbox, uint64_t id)
{
	call->peer = p;
	call->mailbox = mailbox;
	call->id = id;
	call->posted = p->mm ? mm_flush_posted(p->mm) : 0;
	call->request = NULL;
	arena__reply__init(&call->reply);
	call->nr_fds = 0;
	call->close_after = false;
}

void call_add_fd(struct call *call, int fd, bool owned)
{
	BUG_ON(call->nr_fds == ARENA_SOCKET_MAX_FDS);
	call->own_fd[call->nr_fds] = owned;
	call->fds[call->nr_fds++] = fd;
}

static void call_close_fds(struct call *call)
{
	for (unsigned i = 0; i < call->nr_fds; i++)
		if (call->own_fd[i])
			close(call->fds[i]);
	call->nr_fds = 0;
}

static void packet_reply(struct call *call)
{
	struct peer *p = call->peer;
	struct service *s = p->service;
	size_t len;
	int r;

	call->reply.id = call->id;
	r = frame_pack_reply(&call->reply, s->packet, sizeof(s->packet), &len);
	if (!r)
		r = frame_send_flags(p->fd, s->packet, len, call->fds, call->nr_fds,
				     FRAME_DONTWAIT);
	if (r == -EAGAIN)
		peer_refuse(p, "it does not read its answers");
	else if (r == -EPIPE || r == -ECONNRESET)
		peer_close(p);
	else if (r)
		peer_refuse(p, error_text(r));
}

/* `r` is what the handler returned. */
static void call_answer(struct call *call, int r)
{
	struct peer *p = call->peer;
	uint64_t posted = p->mm ? mm_flush_posted(p->mm) : 0;

	call->reply.error = error_to_errno(r);
	/* A refused hello still says what the daemon speaks. */
	if (r && !call->close_after)
		call->reply.result_case = ARENA__REPLY__RESULT__NOT_SET;
	if (posted != call->posted)
		call->reply.flush_seq = posted;
	if (faultpoint("service.reply"))
		peer_close(p);
	if (!peer_is_closed(p)) {
		if (call->mailbox == CALL_SOCKET)
			packet_reply(call);
		else
			mailbox_reply(p, call->mailbox, call->id, &call->reply);
	}
	call_close_fds(call);
	if (call->close_after && !peer_is_closed(p))
		peer_refuse(p, call->close_why);
}

/* What is no request gets an answer, for whoever waits for one, and counts. */
static void call_bad(struct call *call, const char *what)
{
	struct peer *p = call->peer;

	call_answer(call, ARENA_E_PROTOCOL);
	if (!peer_is_closed(p))
		peer_bad_message(p, what);
}

/* ---- requests -------------------------------------------------------------------- */

/* NULL if the peer may make this call from there, else why not. */
static const char *call_forbidden(const struct call *call, const struct method *m)
{
	const struct peer *p = call->peer;
	bool socket = call->mailbox == CALL_SOCKET;

	/* All members of the union are pointers to messages. */
	if (!m || !call->request->null)
		return "a request without a call";
	if (socket && !call->id)
		return "a request without a number";
	if (!(m->where & (socket ? METHOD_SOCKET : METHOD_MAILBOX)))
		return "a call that does not go there";
	if (m->needs == METHOD_NEEDS_NOTHING)
		return p->state == PEER_NEW ? NULL : "a second hello";
	if (p->state != PEER_READY)
		return p->state == PEER_NEW ? "a call before hello" : "a call after bye";
	if (m->needs == METHOD_NEEDS_MM && !p->mm)
		return "a call that needs an address space";
	return NULL;
}

void call_serve(struct peer *p, uint32_t mailbox, uint64_t id, const void *bytes, size_t len)
{
	struct service *s = p->service;
	struct frame_arena fa = {
		.buf = s->frame,
		.size = mailbox == CALL_SOCKET ? sizeof(s->frame) : FRAME_ARENA_MAILBOX,
	};
	const struct method *m;
	const char *forbidden;
	Arena__Request *request;
	struct call call;
	int r;

	call_init(&call, p, mailbox, id);
	if (frame_unpack_request(bytes, len, &fa, &request)) {
		call_bad(&call, "a message that does not decode");
		return;
	}
	call.request = request;
	if (mailbox == CALL_SOCKET)
		call.id = request->id;
	m = method_find((unsigned)request->call_case);
	forbidden = call_forbidden(&call, m);
	if (forbidden) {
		call_bad(&call, forbidden);
		return;
	}
	state_event(service_state(s), EV_ARENA_RPC, 1);
	r = faultpoint("service.dispatch") ? -ENOMEM : m->handler(&call);
	if (r == CALL_LATER)
		return;
	if (r < 0 && r != -ENOMEM)
		service_warn(s, "call %s of client %d (%s) failed: %s", m->name, (int)p->cred.pid,
			     p->comm, error_text(r));
	call_answer(&call, r);
}

/* ---- answered later -------------------------------------------------------------- */

static void later_finish(struct later *l)
{
	if (l->finished)
		return;
	l->finished = true;
	TAILQ_INSERT_TAIL(&l->call.peer->service->finished, l, finished_link);
}

static void later_done(struct flush_wait *w)
{
	later_finish(container_of(w, struct later, wait));
}

/* Who has not acknowledged by now keeps the frames in limbo; the caller need not wait for it. */
static void later_deadline(evutil_socket_t fd, short what, void *data)
{
	struct later *l = data;

	(void)fd, (void)what;
	if (!l->finished)
		flush_wait_cancel(&l->wait);
	later_finish(l);
}

struct later *later_create(struct call *call)
{
	struct later *l = mem_alloc(sizeof(*l));

	if (!l)
		return NULL;
	l->call = *call;
	l->call.request = NULL;
	l->wait.done = later_done;
	l->deadline = evtimer_new(call->peer->service->base, later_deadline, l);
	if (!l->deadline) {
		free(l);
		return NULL;
	}
	return l;
}

/* Not in the peer's list (any more). */
struct later *later_drop(struct later *l)
{
	if (!l)
		return NULL;
	if (l->finished)
		TAILQ_REMOVE(&l->call.peer->service->finished, l, finished_link);
	else if (l->wait.pending)
		flush_wait_cancel(&l->wait);
	event_free(l->deadline);
	free(l);
	return NULL;
}

int call_later(struct later *l)
{
	struct peer *p = l->call.peer;
	uint64_t msecs = state_tunable(service_state(p->service), TUNABLE_FLUSH_DEADLINE_MSECS);
	struct timeval tv = {
		.tv_sec = (time_t)(msecs / 1000),
		.tv_usec = (suseconds_t)(msecs % 1000 * 1000),
	};

	if (evtimer_add(l->deadline, &tv) < 0) {
		later_drop(l);
		return -ENOMEM;
	}
	LIST_INSERT_HEAD(&p->later, l, link);
	if (l->call.mailbox != CALL_SOCKET)
		p->unanswered |= UINT64_C(1) << l->call.mailbox;
	return CALL_LATER;
}

bool service_answer_finished(struct service *s)
{
	struct later *l;
	bool any = false;

	while ((l = TAILQ_FIRST(&s->finished))) {
		struct peer *p = l->call.peer;

		LIST_REMOVE(l, link);
		if (l->call.mailbox != CALL_SOCKET)
			p->unanswered &= ~(UINT64_C(1) << l->call.mailbox);
		call_answer(&l->call, 0);
		later_drop(l);
		any = true;
	}
	return any;
}
