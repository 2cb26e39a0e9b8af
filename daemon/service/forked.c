/* SPDX-License-Identifier: MIT */
/*
 * forked.c - copies of address spaces that wait for the child they were made for.
 *
 *	fork call:  mm_create(parent)  ->  struct forked, a deadline
 *	attach{id, token} by the child ->  the mm is the child's peer's
 *	deadline                       ->  there will be no child: freed
 *
 * The parent may end meanwhile, as a program does that goes into the background. A child is known by
 * the token, which only the parent was told, and has to be of the parent's uid.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/os.h"

#define FORKED_SECONDS 30
#define FORKED_MAX 256u /* of a uid that wait at a time */

struct forked {
	LIST_ENTRY(forked) link;
	struct service *service;
	struct mm *mm;
	struct event *deadline;
};

static void forked_free(struct forked *f)
{
	LIST_REMOVE(f, link);
	event_free(f->deadline);
	free(f);
}

static void forked_deadline(evutil_socket_t fd, short what, void *data)
{
	struct forked *f = data;

	(void)fd, (void)what;
	log_debug("nobody came for the copy that is mm %u", mm_id(f->mm));
	mm_destroy(f->mm);
	forked_free(f);
}

int service_expect_child(struct service *s, struct mm *mm)
{
	const struct timeval tv = {.tv_sec = FORKED_SECONDS};
	struct forked *f;

	LIST_FOREACH(f, &s->forked, link)
		if (f->mm == mm)
			return 0;
	f = mem_alloc(sizeof(*f));
	if (!f)
		return -ENOMEM;
	*f = (struct forked){.service = s, .mm = mm};
	f->deadline = evtimer_new(s->base, forked_deadline, f);
	if (!f->deadline || evtimer_add(f->deadline, &tv) < 0) {
		if (f->deadline)
			event_free(f->deadline);
		free(f);
		return -ENOMEM;
	}
	LIST_INSERT_HEAD(&s->forked, f, link);
	return 0;
}

void service_forget_children(struct service *s, bool free_memory)
{
	struct forked *f;

	while ((f = LIST_FIRST(&s->forked))) {
		if (free_memory)
			mm_destroy(f->mm);
		forked_free(f);
	}
}

static bool too_many(const struct service *s, uid_t uid)
{
	const struct forked *f;
	unsigned n = 0;

	LIST_FOREACH(f, &s->forked, link)
		n += mm_uid(f->mm) == uid;
	return n >= FORKED_MAX;
}

int handle_fork(struct call *call)
{
	struct peer *p = call->peer;
	struct credentials cred = p->cred;
	struct mm_params params = {.parent = p->mm, .cred = &cred, .comm = p->comm};
	Arena__ForkReply *reply;
	struct mm *mm;
	int r;

	if (too_many(p->service, cred.uid))
		return ARENA_E_AGAIN;
	cred.pid = 0;
	r = mm_create(p->service->machine->virt, &params, &mm);
	if (r)
		return r;
	r = service_expect_child(p->service, mm);
	if (r) {
		mm_destroy(mm);
		return r;
	}
	call_flush_all(call);
	state_event(service_state(p->service), EV_ARENA_FORK, 1);
	reply = CALL_RESULT(call, fork, FORK);
	reply->mm_id = mm_id(mm);
	reply->token.data = (uint8_t *)mm_token(mm);
	reply->token.len = SERVICE_TOKEN_BYTES;
	return 0;
}

static struct forked *forked_of(const struct service *s, uint32_t mm)
{
	struct forked *f;

	LIST_FOREACH(f, &s->forked, link)
		if (mm_id(f->mm) == mm)
			return f;
	return NULL;
}

/* The copy of that number, if it waits for a child; *r then says whether this peer may have it. */
bool attach_forked(struct call *call, int *r)
{
	const Arena__Attach *m = call->request->attach;
	struct peer *p = call->peer;
	struct forked *f = forked_of(p->service, m->mm_id);

	if (!f)
		return false;
	*r = ARENA_E_ACCESS;
	if (!service_token_is(f->mm, &m->token) || p->pidfd < 0)
		return true;
	*r = p->mm ? ARENA_E_BUSY
		   : mm_adopt(f->mm, &p->cred, p->comm, p->id, os_process_start(p->cred.pid));
	if (*r)
		return true;
	/* From here on it is the process's, whether it hears of it by this answer or the next. */
	*r = call_attach(call, f->mm);
	forked_free(f);
	return true;
}

int handle_snapshot(struct call *call)
{
	const Arena__Snapshot *m = call->request->snapshot;
	struct peer *p = call->peer;
	uint64_t out;
	int r = vm_snapshot(p->mm, m->address, m->length, &out);

	if (r == ARENA_E_WAIT_IO)
		return call_wait_io(call);
	if (r)
		return r;
	call_flush_all(call);
	state_event(service_state(p->service), EV_ARENA_SNAPSHOT, 1);
	CALL_RESULT(call, address, ADDRESS)->address = out;
	return 0;
}
