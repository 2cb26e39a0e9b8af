/* SPDX-License-Identifier: MIT */
/*
 * peer.c - a peer's life.
 *
 *	         hello            bye
 *	NEW ------------> READY --------> BYE
 *	 |                  |              |        hang-up, refusal, death
 *	 +------------------+--------------+----------------+
 *	                    | still maps frames             v
 *	                    +------------> ORPHAN -----> CLOSED -> freed by service_reap()
 *	                                    process dies
 *
 * Frames come back when nothing of the process maps them any more: at bye (it says so), at its
 * death, or at a hang-up if its maps show no arena file, and not its own tables or channel. A process
 * that lost its socket, or was refused, and goes on using its mappings is an orphan until its pidfd
 * says that it died, or (reattach.c) until it comes back with another socket.
 *
 * From hello on the store keeps the connection and the pidfd under the peer's number, from attach on
 * the doorbell under its mm's, until the peer is closed and its mm gone. Closing a descriptor
 * here therefore hangs up nothing; shutdown(2) does.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cleanup.h"
#include "base/mem.h"
#include "base/os.h"
#include "base/truth.h"
#include "daemon/store/store.h"

#define MAPS_MAX (1u << 20) /* read at most that much of a process's maps */

bool peer_is_closed(const struct peer *p)
{
	return p->state == PEER_ORPHAN || p->state == PEER_CLOSED;
}

struct mm *peer_mm(struct peer *p)
{
	return p->mm;
}

/* Shown in logs and in files with one line a client: printable ASCII only. */
void peer_set_comm(struct peer *p, const char *comm)
{
	size_t i;

	for (i = 0; i < sizeof(p->comm) - 1 && comm[i]; i++)
		p->comm[i] = comm[i] > ' ' && comm[i] < 0x7f ? comm[i] : '?';
	p->comm[i] = '\0';
	if (!i)
		strcpy(p->comm, "?");
}

/* ---- events ---------------------------------------------------------------------- */

void peer_free_event(struct event **ev)
{
	if (*ev)
		event_free(*ev);
	*ev = NULL;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

int peer_add_event(struct peer *p, struct event **ev, int fd, short what, event_callback_fn cb,
		   const struct timeval *timeout)
{
	*ev = event_new(p->service->base, fd, what, cb, p);
	return *ev && event_add(*ev, timeout) == 0 ? 0 : -ENOMEM;
}

static void doorbell_cb(evutil_socket_t fd, short what, void *data)
{
	struct peer *p = data;

	(void)fd, (void)what;
	service_poll_peer(p->service, p);
}

static void pidfd_cb(evutil_socket_t fd, short what, void *data)
{
	(void)fd, (void)what;
	peer_destroy(data);
}

static void hello_timer_cb(evutil_socket_t fd, short what, void *data)
{
	(void)fd, (void)what;
	peer_refuse(data, "it did not say hello");
}

/* ---- birth ----------------------------------------------------------------------- */

static int copy_groups(struct peer *p, const struct credentials *cred)
{
	gid_t *groups;

	p->cred.groups = NULL;
	p->cred.nr_groups = 0;
	if (!cred->nr_groups)
		return 0;
	groups = mem_array(cred->nr_groups, sizeof(*groups));
	if (!groups)
		return -ENOMEM;
	memcpy(groups, cred->groups, cred->nr_groups * sizeof(*groups));
	p->cred.groups = groups;
	p->cred.nr_groups = cred->nr_groups;
	return 0;
}

/* One that has said hello before this worker's time is not waited for again. */
static int watch(struct peer *p)
{
	const struct timeval hello = {.tv_sec = SERVICE_HELLO_SECONDS};
	int r = 0;

	if (p->fd >= 0)
		r = peer_add_event(p, &p->socket_event, p->fd, EV_READ | EV_PERSIST, peer_socket_cb,
				   NULL);
	if (!r && p->pidfd >= 0)
		r = peer_add_event(p, &p->pidfd_event, p->pidfd, EV_READ, pidfd_cb, NULL);
	if (!r && p->state == PEER_NEW)
		r = peer_add_event(p, &p->hello_timer, -1, 0, hello_timer_cb, &hello);
	return r;
}

static int birth(struct service *s, const struct peer *what, struct peer **out)
{
	struct peer *p = mem_alloc(sizeof(*p));
	int fd = what->fd, pidfd = what->pidfd, r;

	if (!p) {
		close_fd(&fd);
		close_fd(&pidfd);
		return -ENOMEM;
	}
	*p = *what;
	LIST_INIT(&p->later);
	strcpy(p->comm, "?");
	/* From here on peer_destroy() takes it down. */
	LIST_INSERT_HEAD(&s->peers, p, link);
	s->nr_peers++;
	r = copy_groups(p, &what->cred);
	if (!r && p->pidfd < 0 && p->cred.pid > 0)
		p->pidfd = os_pidfd_open(p->cred.pid);
	if (!r)
		r = watch(p);
	if (r) {
		peer_destroy(p);
		return r;
	}
	*out = p;
	return 0;
}

int peer_create(struct service *s, int fd, int pidfd, const struct credentials *cred,
		struct peer **out)
{
	struct peer new = {
		.service = s,
		.fd = fd,
		.pidfd = pidfd,
		.doorbell = -1,
		.userfault = -1,
		.cred = *cred,
	};

	return birth(s, &new, out);
}

int peer_adopt(struct service *s, uint32_t id, int fd, int pidfd, const struct credentials *cred,
	       struct peer **out)
{
	struct peer old = {
		.service = s,
		.id = id,
		.state = fd < 0 ? PEER_ORPHAN : PEER_READY,
		.fd = fd,
		.pidfd = pidfd,
		.doorbell = -1,
		.userfault = -1,
		.cred = *cred,
		.recovered = true,
	};

	return birth(s, &old, out);
}

/* Where the keeper has no room, the worker's death hangs up on this client, and it comes back. */
static void keep(struct peer *p, const char *prefix, uint32_t number, int fd)
{
	int r = fd < 0 ? 0 : store_add_number(prefix, number, fd);

	if (r)
		service_warn(p->service, "cannot have %s-%u of client %d kept: %s", prefix, number,
			     (int)p->cred.pid, error_text(r));
}

void peer_keep(struct peer *p)
{
	struct state_header *h = service_state(p->service)->header;

	p->id = h->next_peer;
	truth_store(&h->next_peer, p->id + 1);
	keep(p, "client", p->id, p->fd);
	keep(p, "pidfd", p->id, p->pidfd);
}

void peer_keep_userfault(struct peer *p, int fd)
{
	if (p->userfault >= 0)
		store_remove_number("uffd", mm_id(p->mm));
	close_fd(&p->userfault);
	p->userfault = fd;
	keep(p, "uffd", mm_id(p->mm), fd);
}

int peer_watch_doorbell(struct peer *p, int doorbell)
{
	int r;

	p->doorbell = doorbell;
	/* Edge-triggered and never read, so that a client cannot make us block on it. */
	r = peer_add_event(p, &p->doorbell_event, doorbell, EV_READ | EV_ET | EV_PERSIST,
			   doorbell_cb, NULL);
	if (r) {
		peer_free_event(&p->doorbell_event);
		close_fd(&p->doorbell);
	}
	return r;
}

int peer_attached(struct peer *p, struct mm *mm, int doorbell)
{
	struct arena_channel_header *ch = mm_channel(mm);
	int r = peer_watch_doorbell(p, doorbell);

	if (r)
		return r;
	keep(p, "doorbell", mm_id(mm), doorbell);
	store_relaxed(&ch->daemon_epoch, service_state(p->service)->header->epoch);
	store_relaxed(&ch->daemon_state, (uint32_t)ARENA_DAEMON_SERVES);
	p->mm = mm;
	return 0;
}

void peer_handle_packet(struct peer *p, const void *packet, size_t len)
{
	if (peer_is_closed(p))
		return;
	call_serve(p, CALL_SOCKET, 0, packet, len);
	if (p->state != PEER_NEW)
		peer_free_event(&p->hello_timer);
}

/* ---- the last word --------------------------------------------------------------- */

void peer_farewell(struct peer *p, enum arena_daemon_state state, int error)
{
	if (p->mm && !mm_is_condemned(p->mm)) {
		struct arena_channel_header *ch = mm_channel(p->mm);

		__atomic_store_n(&ch->daemon_state, (uint32_t)state, __ATOMIC_SEQ_CST);
		channel_wake(p);
	}
	/* Before hello, the answer or the silence says enough. */
	if (p->fd >= 0 && p->state != PEER_NEW)
		send_farewell(p->fd, error);
}

/* ---- death ----------------------------------------------------------------------- */

struct needles {
	unsigned nr;
	char text[3][32];
};

static bool has_needle(const struct needles *needles, const char *text, size_t len)
{
	for (unsigned i = 0; i < needles->nr; i++)
		if (memmem(text, len, needles->text[i], strlen(needles->text[i])))
			return true;
	return false;
}

/* Does the text that `fd` still has hold a needle? Unreadable, endless or empty: as if it did. */
static bool text_has_needle(int fd, const struct needles *needles)
{
	const size_t keep = sizeof(needles->text[0]) - 1;
	char buf[16384];
	size_t have = 0;

	for (size_t total = 0; total < MAPS_MAX;) {
		ssize_t n = read(fd, buf + have, sizeof(buf) - have);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 || total == 0;
		total += (size_t)n;
		have += (size_t)n;
		if (has_needle(needles, buf, have))
			return true;
		/* The needle may lie across two reads. */
		if (have > keep) {
			memmove(buf, buf + have - keep, keep);
			have = keep;
		}
	}
	return true;
}

/*
 * The maps of a process that is dying are empty, or gone: its first thread has none any more. Others may
 * be in the middle of a system call still, when those that had the socket are gone (the userfaultfd
 * trap's), so it is dead when the pidfd says so. One that lives and has no frame mapped at the moment
 * still has its tables and its channel, and may come back, but for one that was refused. The pidfd is
 * looked at last: alive then, the pid was not another process's when the maps were read.
 */
static bool process_maps_frames(const struct peer *p)
{
	_cleanup_(closep) int fd = -1;
	struct needles needles = {.nr = p->refused ? 1 : 3, .text = {"/memfd:arena:"}};
	char path[32];
	bool maps;

	if (p->pidfd < 0)
		return false;
	snprintf(needles.text[1], sizeof(needles.text[1]), "/memfd:mm:%u ", mm_id(p->mm));
	snprintf(needles.text[2], sizeof(needles.text[2]), "/memfd:channel:%u ", mm_id(p->mm));
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)p->cred.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	maps = fd < 0 || text_has_needle(fd, &needles);
	return maps && os_pid_alive(p->pidfd);
}

static void free_snapshots(struct peer *p)
{
	for (unsigned i = 0; i < SERVICE_NR_SNAPSHOTS; i++) {
		free(p->snapshot[i].path);
		free(p->snapshot[i].text);
		p->snapshot[i] = (struct snapshot){0};
	}
}

/* Nobody looks at the channel any more; the address space stays. */
static void end_channel(struct peer *p)
{
	struct later *l;

	while ((l = LIST_FIRST(&p->later))) {
		LIST_REMOVE(l, link);
		later_drop(l);
	}
	service_stop_polling(p->service, p);
	p->taken = p->unanswered = p->found = p->unflushed = 0;
	peer_free_event(&p->doorbell_event);
	close_fd(&p->doorbell);
}

static void end_connection(struct peer *p)
{
	end_channel(p);
	peer_free_event(&p->socket_event);
	peer_free_event(&p->hangup_event);
	peer_free_event(&p->hello_timer);
	if (p->fd >= 0) {
		/* With a packet unread, the other end would read an error before its last answer. */
		if (p->in_socket)
			frame_drop(p->fd);
		shutdown(p->fd, SHUT_RDWR);
	}
	close_fd(&p->fd);
	if (p->id)
		store_remove_number("client", p->id);
	free_snapshots(p);
}

static void end_mm(struct peer *p)
{
	uint32_t id = p->mm ? mm_id(p->mm) : 0;

	p->mm = mm_destroy(p->mm);
	if (id)
		store_remove_number("doorbell", id);
	if (p->userfault >= 0)
		store_remove_number("uffd", id);
	close_fd(&p->userfault);
}

void peer_detach(struct peer *p)
{
	end_channel(p);
}

void peer_forget_mm(struct peer *p)
{
	end_channel(p);
	end_mm(p);
}

void peer_bye(struct peer *p)
{
	peer_forget_mm(p);
	p->state = PEER_BYE;
}

void peer_orphan(struct peer *p)
{
	end_channel(p);
	p->state = PEER_ORPHAN;
}

static void end_process(struct peer *p)
{
	struct service *s = p->service;

	end_mm(p);
	peer_free_event(&p->pidfd_event);
	close_fd(&p->pidfd);
	if (p->id)
		store_remove_number("pidfd", p->id);
	p->state = PEER_CLOSED;
	LIST_REMOVE(p, link);
	LIST_INSERT_HEAD(&s->closed, p, link);
	s->nr_peers--;
	service_accept_again(s);
}

void peer_close(struct peer *p)
{
	if (peer_is_closed(p))
		return;
	end_connection(p);
	log_debug("client %d (%s, uid %u) disconnected%s", (int)p->cred.pid, p->comm,
		  (unsigned)p->cred.uid, p->mm ? " without a word" : "");
	if (p->mm)
		state_event(service_state(p->service), EV_ARENA_CLIENT_DEATH, 1);
	if (p->mm && process_maps_frames(p)) {
		log_debug("client %d (%s) lives on with frames mapped", (int)p->cred.pid, p->comm);
		peer_orphan(p);
		return;
	}
	end_process(p);
}

void peer_destroy(struct peer *p)
{
	if (p->state == PEER_CLOSED)
		return;
	if (p->state != PEER_ORPHAN) {
		if (p->mm)
			state_event(service_state(p->service), EV_ARENA_CLIENT_DEATH, 1);
		end_connection(p);
	}
	end_process(p);
}

void peer_abandon(struct peer *p)
{
	end_channel(p);
	peer_free_event(&p->socket_event);
	peer_free_event(&p->hangup_event);
	peer_free_event(&p->pidfd_event);
	peer_free_event(&p->hello_timer);
	close_fd(&p->fd);
	close_fd(&p->pidfd);
	close_fd(&p->userfault);
	free_snapshots(p);
	LIST_REMOVE(p, link);
	LIST_INSERT_HEAD(&p->service->closed, p, link);
}

void peer_refuse(struct peer *p, const char *why)
{
	if (peer_is_closed(p))
		return;
	p->refused = true;
	state_event(service_state(p->service), EV_ARENA_CLIENT_REFUSED, 1);
	service_warn(p->service, "client %d (%s, uid %u) refused: %s", (int)p->cred.pid, p->comm,
		     (unsigned)p->cred.uid, why);
	/* Another worker shall know, too. */
	if (p->mm)
		mm_set_peer(p->mm, 0);
	peer_farewell(p, ARENA_DAEMON_REFUSES, EPERM);
	peer_close(p);
}

/* The old one's calls that are answered later are asked again: their requests are still there. */
void peer_inherit(struct peer *p, struct peer *from)
{
	if (!peer_is_closed(from))
		end_connection(from);
	mm_set_peer(from->mm, p->id);
	p->once = TAKE_PTR(from->once);
	p->mm = TAKE_PTR(from->mm);
	p->userfault = TAKE_FD(from->userfault);
	end_process(from);
}

/* One that has not even said hello gets no second chance. */
void peer_bad_message(struct peer *p, const char *what)
{
	char why[128];

	state_event(service_state(p->service), EV_ARENA_BAD_REQUEST, 1);
	p->bad_messages++;
	if (p->state == PEER_NEW) {
		peer_refuse(p, what);
	} else if (p->bad_messages >= SERVICE_MAX_BAD_MESSAGES) {
		snprintf(why, sizeof(why), "%u bad messages, the last was %s", p->bad_messages,
			 what);
		peer_refuse(p, why);
	}
}

void service_reap(struct service *s)
{
	struct peer *p;

	while ((p = LIST_FIRST(&s->closed))) {
		LIST_REMOVE(p, link);
		free((void *)p->cred.groups);
		free(p->once);
		free(p);
	}
}
