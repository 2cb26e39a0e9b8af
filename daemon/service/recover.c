/* SPDX-License-Identifier: MIT */
/*
 * recover.c - clients taken over from a worker that died.
 *
 * The store has client-N and pidfd-N of each connection that had said hello, and doorbell-M of
 * each address space; the machine has the address spaces, and each says by the number of its
 * connection whose it is:
 *
 *	client-N   mm of peer N   the peer is
 *	   +           +          READY, and its channel is looked through
 *	   +           -          READY, without an address space
 *	   -           +          ORPHAN until it comes back (reattach.c), or its process is dead
 *	   -           -          nobody: main drops what is left in the store
 *
 * One whose address space is damaged is refused; virt keeps what it may have mapped until its
 * process is dead.
 *
 * A process without a connection is known by its pidfd, or by pid and start time. Nothing is served
 * here: the first that is served, by the loop, is the call in which the last worker died.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/os.h"
#include "daemon/store/store.h"

/* The process whose address space this is; -1: it is dead, or cannot be told from a later one. */
static int find_process(const struct mm *mm)
{
	_cleanup_(closep) int pidfd = store_take_number("pidfd", mm_peer(mm));

	if (pidfd < 0 && mm_start_time(mm)) {
		pidfd = os_pidfd_open(mm_pid(mm));
		/* Alive at the end, it was the same all the while. */
		if (pidfd >= 0 && os_process_start(mm_pid(mm)) != mm_start_time(mm))
			return -1;
	}
	return pidfd >= 0 && os_pid_alive(pidfd) ? TAKE_FD(pidfd) : -1;
}

static struct mm *mm_of(const struct service *s, uint32_t peer)
{
	struct mm *mm = NULL;

	while ((mm = mm_next(s->machine->virt, mm)))
		if (mm_peer(mm) == peer)
			return mm;
	return NULL;
}

static struct mm *condemned_of(const struct service *s, uint32_t peer)
{
	struct mm *mm = NULL;

	while ((mm = mm_next_condemned(s->machine->virt, mm)))
		if (mm_peer(mm) == peer)
			return mm;
	return NULL;
}

static void take_channel(struct peer *p)
{
	struct arena_channel_header *ch = mm_channel(p->mm);

	store_relaxed(&ch->daemon_poll, 0u);
	store_relaxed(&ch->restarts, load_relaxed(&ch->restarts) + 1);
	store_relaxed(&ch->daemon_epoch, service_state(p->service)->header->epoch);
	channel_scan(p);
	/* Looked at once whether it rings or not: it may have rung while nobody heard. */
	service_poll_peer(p->service, p);
}

/* An attach that was being served when the worker died will make one. */
static bool attach_is_interrupted(const struct peer *p)
{
	const struct state *st = service_state(p->service);

	return st->header->serving >> 8 == p->id && st->journal->phase != JOURNAL_NONE &&
	       st->journal->method == ARENA__REQUEST__CALL_ATTACH;
}

static int take_mm(struct peer *p, struct mm *mm)
{
	int doorbell = store_take_number("doorbell", mm_id(mm));

	peer_set_comm(p, mm_comm(mm));
	p->mm = mm;
	p->userfault = store_take_number("uffd", mm_id(mm));
	if (doorbell >= 0) {
		int r = peer_watch_doorbell(p, doorbell);

		if (r)
			return r;
		take_channel(p);
	} else if (!attach_is_interrupted(p)) {
		/* It would ring where nobody hears. With a new connection it gets another. */
		shutdown(p->fd, SHUT_RDWR);
	}
	return 0;
}

static int take_connection(struct service *s, uint32_t id)
{
	_cleanup_(freep) gid_t *groups = NULL;
	int fd = store_take_number("client", id), pidfd = store_take_number("pidfd", id);
	struct credentials cred;
	struct mm *mm = mm_of(s, id);
	struct peer *p;
	int r = peer_credentials(fd, &cred, &groups);

	/* As it was when it attached. */
	if (mm)
		cred.pid = mm_pid(mm), cred.uid = mm_uid(mm), cred.gid = mm_gid(mm);
	if (!r)
		r = peer_adopt(s, id, fd, pidfd, &cred, &p);
	else if (pidfd >= 0)
		close(pidfd);
	if (!r && !mm) {
		/* What its process may have mapped stays with the peer until the process is dead. */
		p->mm = condemned_of(s, id);
		if (p->mm)
			peer_refuse(p, "its address space is damaged");
		return 0;
	}
	return r ? r : take_mm(p, mm);
}

static bool is_taken(const struct service *s, const struct mm *mm)
{
	const struct peer *p;

	LIST_FOREACH(p, &s->peers, link)
		if (p->mm == mm)
			return true;
	return false;
}

/* Its connection's names in the store are taken, or nobody's. */
static void end_mm(struct mm *mm)
{
	uint32_t id = mm_id(mm), peer = mm_peer(mm);

	mm_destroy(mm);
	store_remove_number("doorbell", id);
	store_remove_number("pidfd", peer);
}

static int take_orphan(struct service *s, struct mm *mm)
{
	struct credentials cred = {.pid = mm_pid(mm), .uid = mm_uid(mm), .gid = mm_gid(mm)};
	int pidfd = find_process(mm);
	struct peer *p;
	int r;

	if (pidfd < 0) {
		log_debug("client %d (%s) died meanwhile", (int)mm_pid(mm), mm_comm(mm));
		state_event(service_state(s), EV_ARENA_CLIENT_DEATH, 1);
		end_mm(mm);
		return 0;
	}
	r = peer_adopt(s, mm_peer(mm), -1, pidfd, &cred, &p);
	if (r)
		return r;
	peer_set_comm(p, mm_comm(mm));
	p->mm = mm;
	p->userfault = store_take_number("uffd", mm_id(mm));
	p->refused = !mm_peer(mm) || mm_is_condemned(mm);
	return 0;
}

/* Those whose connection was lost too. Whose process cannot be told stays for ever. */
static int take_condemned(struct service *s)
{
	struct mm *mm, *next;
	int r = 0;

	for (mm = mm_next_condemned(s->machine->virt, NULL); mm && !r; mm = next) {
		next = mm_next_condemned(s->machine->virt, mm);
		if (mm_record_is_sound(mm) && !is_taken(s, mm))
			r = take_orphan(s, mm);
	}
	return r;
}

int service_recover(struct service *s)
{
	const struct state *st = service_state(s);
	struct mm *mm, *next;
	uint32_t id = 0;
	int r = 0;

	while (!r && store_next("client", &id))
		r = take_connection(s, id);
	for (mm = mm_next(s->machine->virt, NULL); mm && !r; mm = next) {
		next = mm_next(s->machine->virt, mm);
		if (mm_is_forked(mm))
			r = service_expect_child(s, mm);
		else if (!is_taken(s, mm))
			r = take_orphan(s, mm);
	}
	if (!r)
		r = take_condemned(s);
	s->interrupted = st->header->serving || st->journal->phase != JOURNAL_NONE;
	return r;
}
