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
 *
 * The worker may die anywhere in here. The state says whose call is being served from before its
 * handler begins until its answer is delivered and, if it was a packet, taken out of the socket:
 *
 *	serving = who -> [journal_begin] -> handler -> [journal_done] -> deliver
 *		-> packet out of the socket -> [journal_clear] -> serving = 0
 *
 * The next worker serves that call before any other, so it may be done again as if nothing had
 * been (METHOD_AGAIN), or has its preparations in the journal (METHOD_ONCE). The answer to a ONCE call, and
 * any that takes the place of its request in a mailbox, is in the journal before it is delivered. It
 * may then be delivered twice: a mailbox that has one is left alone, and of two packets the
 * client drops the second.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/faultpoint.h"
#include "base/mem.h"
#include "base/os.h"
#include "base/truth.h"
#include "daemon/phys/journal.h"
#include "daemon/store/store.h"

static const struct method methods[] = {
#define METHOD(CASE, name, handler, where, needs, repeat) \
	[ARENA__REQUEST__CALL_##                          \
		CASE] = {name, handler, METHOD_##where, METHOD_NEEDS_##needs, METHOD_##repeat},
#include "daemon/service/methods.def"
#undef METHOD
};

const struct method *method_find(unsigned request_case)
{
	return request_case < ARRAY_SIZE(methods) && methods[request_case].name
		       ? &methods[request_case]
		       : NULL;
}

/* ---- whose call it is ------------------------------------------------------------ */

#define SERVING_SOCKET 0xffu

static uint64_t serving_word(const struct peer *p, uint32_t mailbox)
{
	return (uint64_t)p->id << 8 | (mailbox == CALL_SOCKET ? SERVING_SOCKET : mailbox);
}

static void serving_begin(const struct call *call)
{
	struct state_header *h = service_state(call->peer->service)->header;

	truth_store(&h->serving_id, call->id);
	truth_store(&h->serving, serving_word(call->peer, call->mailbox));
}

static void serving_end(struct service *s)
{
	struct state_header *h = service_state(s)->header;

	journal_clear(service_state(s));
	truth_store(&h->serving, UINT64_C(0));
	if (unlikely(h->serving_deaths))
		truth_store(&h->serving_deaths, 0u);
}

/* Its answer is delivered, or will be later: a worker that follows need not look after it. */
static void call_end(struct call *call)
{
	faultpoint("service.delivered");
	if (call->mailbox == CALL_SOCKET)
		peer_packet_done(call->peer);
	faultpoint("service.taken");
	serving_end(call->peer->service);
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
	/* What its first try took away is in the whole flush that recovery has posted. */
	if (mailbox != CALL_SOCKET && unlikely(p->unflushed >> mailbox & 1)) {
		p->unflushed &= ~(UINT64_C(1) << mailbox);
		call->posted = 0;
	}
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

static void packet_reply(struct call *call, const void *bytes, size_t len)
{
	struct peer *p = call->peer;
	int r = frame_send_flags(p->fd, bytes, len, call->fds, call->nr_fds, FRAME_DONTWAIT);

	if (r == -EAGAIN)
		peer_refuse(p, "it does not read its answers");
	else if (r == -EPIPE || r == -ECONNRESET)
		peer_close(p);
	else if (r)
		peer_refuse(p, error_text(r));
}

/* 0 and *len, or it has no room in a packet; a mailbox has room for all it may be asked. */
static int call_pack(struct call *call, size_t *len)
{
	struct service *s = call->peer->service;
	int r;

	if (call->mailbox == CALL_SOCKET) {
		call->reply.id = call->id;
		return frame_pack_reply(&call->reply, s->packet, sizeof(s->packet), len);
	}
	/* Calls with long answers have no business in a mailbox (methods.def). */
	r = frame_pack_reply(&call->reply, s->packet, ARENA_MAILBOX_PAYLOAD, len);
	BUG_ON(r);
	return 0;
}

static void call_deliver(struct call *call)
{
	struct peer *p = call->peer;
	struct service *s = p->service;
	size_t len;
	int r = call_pack(call, &len);

	if (r) {
		peer_refuse(p, error_text(r));
		return;
	}
	if (service_state(s)->journal->phase != JOURNAL_NONE)
		journal_done(service_state(s), s->packet, len);
	else if (call->mailbox != CALL_SOCKET)
		journal_answer(service_state(s), p->id, call->mailbox, call->id, s->packet, len);
	faultpoint("service.done");
	if (call->mailbox == CALL_SOCKET)
		packet_reply(call, s->packet, len);
	else
		mailbox_reply(p, call->mailbox, call->id, s->packet, len);
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
	if (!peer_is_closed(p))
		call_deliver(call);
	call_close_fds(call);
	if (call->close_after && !peer_is_closed(p))
		peer_refuse(p, call->close_why);
	call_end(call);
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
		return p->state == PEER_NEW || p->recovered ? NULL : "a second hello";
	if (p->state != PEER_READY)
		return p->state == PEER_NEW ? "a call before hello" : "a call after bye";
	if (m->needs == METHOD_NEEDS_MM && !p->mm)
		return "a call that needs an address space";
	return NULL;
}

/*
 * A call that is done again goes on with the journal that was open, if it is still the same call: the
 * mailbox it lies in is the client's memory.
 */
static void call_begin_journal(const struct call *call, const struct method *m)
{
	struct state *st = service_state(call->peer->service);
	uint32_t method = (uint32_t)call->request->call_case;

	if (st->journal->phase != JOURNAL_NONE &&
	    (st->journal->method != method || m->repeat != METHOD_ONCE))
		journal_clear(st);
	if (m->repeat == METHOD_ONCE && st->journal->phase == JOURNAL_NONE)
		journal_begin(st, call->peer->id, call->mailbox, method, call->id);
}

/* It was done, and its connection lost before the answer: the client asks by another. */
static bool answered_once(struct call *call)
{
	struct peer *p = call->peer;
	struct once_reply *once = p->once;

	if (!once || call->mailbox != CALL_SOCKET || call->id != once->id)
		return false;
	p->once = NULL;
	call_answer_again(p, CALL_SOCKET, call->id, once->bytes, once->len);
	free(once);
	return true;
}

/* Only one request is worth a descriptor. */
static bool wants_descriptor(const Arena__Request *request)
{
	return request->call_case == ARENA__REQUEST__CALL_MMAP && request->mmap->file;
}

static int call_dispatch(struct call *call, const struct method *m)
{
	struct peer *p = call->peer;
	int r;

	state_event(service_state(p->service), EV_ARENA_RPC, 1);
	call_begin_journal(call, m);
	r = faultpoint("service.dispatch") ? -ENOMEM : m->handler(call);
	if (m->needs != METHOD_NEEDS_NOTHING)
		p->recovered = false;
	if (r < 0 && r != -ENOMEM && r != CALL_LATER)
		service_warn(p->service, "call %s of client %d (%s) failed: %s", m->name,
			     (int)p->cred.pid, p->comm, error_text(r));
	return r;
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
	r = frame_unpack_request(bytes, len, &fa, &request);
	if (mailbox == CALL_SOCKET)
		call.id = r ? 0 : request->id;
	serving_begin(&call);
	if (mailbox == CALL_SOCKET && s->packet_fd >= 0 && (r || !wants_descriptor(request))) {
		peer_refuse(p, "it sent descriptors");
		call_end(&call);
		return;
	}
	if (r) {
		call_bad(&call, "a message that does not decode");
		return;
	}
	call.request = request;
	m = method_find((unsigned)request->call_case);
	forbidden = call_forbidden(&call, m);
	if (forbidden) {
		call_bad(&call, forbidden);
		return;
	}
	if (answered_once(&call))
		return;
	r = call_dispatch(&call, m);
	if (r == CALL_LATER)
		serving_end(s);
	else
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

static void later_io_done(struct io_wait *w)
{
	later_finish(container_of(w, struct later, io));
}

struct later *later_create(struct call *call)
{
	struct later *l = mem_alloc(sizeof(*l));

	if (!l)
		return NULL;
	l->call = *call;
	l->call.request = NULL;
	l->wait.done = later_done;
	l->io.done = later_io_done;
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
	if (l->io.pending || l->io.settle)
		io_wait_cancel(&l->io);
	event_free(l->deadline);
	free(l);
	return NULL;
}

static int answer_later(struct later *l)
{
	struct peer *p = l->call.peer;

	LIST_INSERT_HEAD(&p->later, l, link);
	if (l->call.mailbox != CALL_SOCKET)
		p->unanswered |= UINT64_C(1) << l->call.mailbox;
	else
		peer_packet_later(p);
	return CALL_LATER;
}

int call_later_io(struct later *l)
{
	return answer_later(l);
}

int call_redo_io(struct later *l)
{
	l->redo = true;
	return answer_later(l);
}

int call_wait_io(struct call *call)
{
	struct later *l = later_create(call);

	if (!l)
		return -ENOMEM;
	l->redo = true;
	virt_io_wait(call->peer->service->machine->virt, &l->io);
	return answer_later(l);
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
	return answer_later(l);
}

static void serve_again(struct peer *p, uint32_t mailbox, uint64_t id);

/* What it waited for is there, or never will be: it finds out. Its request is where it was. */
static void later_redo(struct later *l)
{
	struct service *s = l->call.peer->service;
	struct virt *v = s->machine->virt;

	/* The first try may have taken something away. */
	if (l->call.mailbox != CALL_SOCKET)
		l->call.peer->unflushed |= UINT64_C(1) << l->call.mailbox;
	virt_io_retry(v, &l->io);
	s->redoing = true;
	serve_again(l->call.peer, l->call.mailbox, l->call.id);
	s->redoing = false;
	virt_io_retry(v, NULL);
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
		if (l->redo) {
			later_redo(l);
		} else {
			serving_begin(&l->call);
			call_answer(&l->call, l->io.error);
		}
		later_drop(l);
		any = true;
	}
	return any;
}

/* ---- once more ------------------------------------------------------------------- */

/* Descriptors are made from what they stand for; one too many does the client no harm. */
static void call_add_fds_again(struct call *call, const void *bytes, size_t len)
{
	struct peer *p = call->peer;
	struct service *s = p->service;
	struct frame_arena fa = {.buf = s->frame, .size = sizeof(s->frame)};
	Arena__Reply *reply;
	int r = 0;

	if (!p->mm || frame_unpack_reply(bytes, len, &fa, &reply) || reply->error)
		return;
	if (reply->result_case == ARENA__REPLY__RESULT_ATTACH)
		r = call_add_attach_fds(call, p->mm);
	else if (reply->result_case == ARENA__REPLY__RESULT_SHM_OPEN)
		r = call_add_slot_fd(call, p->mm, reply->shm_open->slot);
	if (r)
		service_warn(s, "cannot give client %d its descriptors again: %s", (int)p->cred.pid,
			     error_text(r));
}

void call_answer_again(struct peer *p, uint32_t mailbox, uint64_t id, const void *bytes, size_t len)
{
	struct call call;

	call_init(&call, p, mailbox, id);
	if (mailbox == CALL_SOCKET) {
		call_add_fds_again(&call, bytes, len);
		packet_reply(&call, bytes, len);
		call_close_fds(&call);
	} else if (p->mm && mailbox_holds(p, mailbox, id)) {
		mailbox_reply(p, mailbox, id, bytes, len);
	}
	call_end(&call);
}

static void serve_again(struct peer *p, uint32_t mailbox, uint64_t id)
{
	size_t len;

	if (mailbox == CALL_SOCKET) {
		len = peer_find_packet(p, id);
		if (len)
			peer_handle_packet(p, p->service->packet, len);
	} else if (p->mm && mailbox < ARENA_NR_MAILBOXES && mailbox_holds(p, mailbox, id)) {
		p->taken &= ~(UINT64_C(1) << mailbox);
		mailbox_serve(p, mailbox);
	}
}

static struct peer *peer_of(struct service *s, uint32_t id)
{
	struct peer *p;

	LIST_FOREACH(p, &s->peers, link)
		if (id && p->id == id)
			return p;
	return NULL;
}

/* A client without a connection asks again by its next one; by then the journal is another call's. */
static void keep_for_later(struct peer *p, const struct call_journal *j)
{
	struct once_reply *once = mem_alloc(sizeof(*once));

	if (!once)
		return;
	once->id = j->request_id;
	once->len = MIN(j->reply_len, JOURNAL_REPLY_MAX);
	memcpy(once->bytes, j->reply, once->len);
	p->once = once;
}

static void deliver_again(struct peer *p, uint32_t mailbox, const struct call_journal *j)
{
	struct service *s = p->service;
	size_t len = MIN(j->reply_len, JOURNAL_REPLY_MAX);

	if (mailbox == CALL_SOCKET && p->fd < 0)
		keep_for_later(p, j);
	if (mailbox == CALL_SOCKET && !peer_find_packet(p, j->request_id))
		return;
	memcpy(s->packet, j->reply, len);
	call_answer_again(p, mailbox, j->request_id, s->packet, len);
}

static void finish(struct peer *p, uint32_t mailbox, struct state *st)
{
	const struct call_journal *j = st->journal;
	uint64_t id = st->header->serving_id;
	bool open = j->phase != JOURNAL_NONE && j->request_id == id;

	if (open && j->phase == JOURNAL_DONE) {
		deliver_again(p, mailbox, j);
		return;
	}
	if (open)
		journal_set_resuming(st);
	serve_again(p, mailbox, id);
}

/* A mailbox is served as if the connection that was lost were there: its answer goes there, too. */
static void finish_orphan(struct peer *p, uint32_t mailbox, struct state *st)
{
	p->state = PEER_READY;
	finish(p, mailbox, st);
	if (p->state == PEER_READY)
		peer_orphan(p);
}

/*
 * A call may be what the worker dies of. Its client is then refused rather than everybody's service. A
 * worker that died of something else meanwhile counts only where it died while serving this very call
 * as its first.
 */
void call_finish_interrupted(struct service *s)
{
	struct state *st = service_state(s);
	struct state_header *h = st->header;
	uint32_t max = store_last_was_killed() ? SERVICE_MAX_KILLS : SERVICE_MAX_DEATHS;
	uint32_t mailbox = h->serving & 0xff;
	struct peer *p = peer_of(s, (uint32_t)(h->serving >> 8));

	s->interrupted = false;
	mailbox = mailbox == SERVING_SOCKET ? CALL_SOCKET : mailbox;
	if (p && h->serving_deaths + 1 >= max) {
		peer_refuse(p, "workers die in its call");
	} else if (p) {
		truth_store(&h->serving_deaths, h->serving_deaths + 1);
		if (p->state == PEER_ORPHAN)
			finish_orphan(p, mailbox, st);
		else
			finish(p, mailbox, st);
	}
	serving_end(s);
}
