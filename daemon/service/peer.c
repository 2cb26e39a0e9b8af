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
 * death, or at a hang-up if its maps show no arena file. A process that closed its socket, or was
 * refused, and goes on using its mappings is an orphan until its pidfd says that it died.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cleanup.h"
#include "base/mem.h"
#include "base/os.h"

#define MAPS_MAX (1u << 20) /* read at most that much of a process's maps */
#define MAPS_NEEDLE "memfd:arena:"

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

static void free_event(struct event **ev)
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

/* False: there was nothing to read. */
static bool read_packet(struct peer *p)
{
	struct service *s = p->service;
	ssize_t n = frame_recv(p->fd, s->packet, sizeof(s->packet), NULL, 0, NULL, FRAME_DONTWAIT);

	if (n == -EAGAIN)
		return false;
	if (n > 0)
		peer_handle_packet(p, s->packet, (size_t)n);
	else if (n == -EMSGSIZE)
		peer_bad_message(p, "a packet that is too long");
	else if (n == -EPROTO || n == -EMFILE)
		peer_refuse(p, "it sent descriptors");
	else
		peer_close(p);
	s->worked = true;
	return true;
}

/* What is left after a round makes the socket readable again at once, after everybody else. */
static void socket_cb(evutil_socket_t fd, short what, void *data)
{
	struct peer *p = data;

	(void)fd, (void)what;
	for (unsigned i = 0; i < SERVICE_PACKETS_PER_ROUND && !peer_is_closed(p); i++)
		if (!read_packet(p))
			return;
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

static int add_event(struct peer *p, struct event **ev, int fd, short what, event_callback_fn cb,
		     const struct timeval *timeout)
{
	*ev = event_new(p->service->base, fd, what, cb, p);
	return *ev && event_add(*ev, timeout) == 0 ? 0 : -ENOMEM;
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

static int watch(struct peer *p)
{
	const struct timeval hello = {.tv_sec = SERVICE_HELLO_SECONDS};
	int r;

	r = add_event(p, &p->socket_event, p->fd, EV_READ | EV_PERSIST, socket_cb, NULL);
	if (!r && p->pidfd >= 0)
		r = add_event(p, &p->pidfd_event, p->pidfd, EV_READ, pidfd_cb, NULL);
	if (!r)
		r = add_event(p, &p->hello_timer, -1, 0, hello_timer_cb, &hello);
	return r;
}

int peer_create(struct service *s, int fd, int pidfd, const struct credentials *cred,
		struct peer **out)
{
	struct peer *p = mem_alloc(sizeof(*p));
	int r;

	if (!p) {
		close(fd);
		close_fd(&pidfd);
		return -ENOMEM;
	}
	*p = (struct peer){.service = s, .fd = fd, .pidfd = pidfd, .doorbell = -1, .cred = *cred};
	LIST_INIT(&p->later);
	strcpy(p->comm, "?");
	/* From here on peer_destroy() takes it down. */
	LIST_INSERT_HEAD(&s->peers, p, link);
	s->nr_peers++;
	r = copy_groups(p, cred);
	if (!r && p->pidfd < 0 && cred->pid > 0)
		p->pidfd = os_pidfd_open(cred->pid);
	if (!r)
		r = watch(p);
	if (r) {
		peer_destroy(p);
		return r;
	}
	*out = p;
	return 0;
}

int peer_attached(struct peer *p, struct mm *mm, int doorbell)
{
	int r;

	p->doorbell = doorbell;
	/* Edge-triggered and never read, so that a client cannot make us block on it. */
	r = add_event(p, &p->doorbell_event, doorbell, EV_READ | EV_ET | EV_PERSIST, doorbell_cb,
		      NULL);
	if (r) {
		free_event(&p->doorbell_event);
		close_fd(&p->doorbell);
		return r;
	}
	p->mm = mm;
	return 0;
}

void peer_handle_packet(struct peer *p, const void *packet, size_t len)
{
	if (peer_is_closed(p))
		return;
	call_serve(p, CALL_SOCKET, 0, packet, len);
	if (p->state != PEER_NEW)
		free_event(&p->hello_timer);
}

/* ---- death ----------------------------------------------------------------------- */

/* Does the text that `fd` still has hold the needle? Unreadable or endless: as if it did. */
static bool text_has_needle(int fd)
{
	const size_t keep = strlen(MAPS_NEEDLE) - 1;
	char buf[16384];
	size_t have = 0;

	for (size_t total = 0; total < MAPS_MAX;) {
		ssize_t n = read(fd, buf + have, sizeof(buf) - have);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0;
		total += (size_t)n;
		have += (size_t)n;
		if (memmem(buf, have, MAPS_NEEDLE, strlen(MAPS_NEEDLE)))
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
 * The kernel takes an address space down before it closes descriptors, so the maps of a process
 * that hung up by dying are empty, or gone. The pidfd is looked at last: alive then, the pid was
 * not another process's when the maps were read.
 */
static bool process_maps_frames(const struct peer *p)
{
	_cleanup_(closep) int fd = -1;
	char path[32];
	bool maps;

	if (p->pidfd < 0)
		return false;
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)p->cred.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	maps = fd < 0 || text_has_needle(fd);
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
	p->taken = p->unanswered = 0;
	free_event(&p->doorbell_event);
	close_fd(&p->doorbell);
}

static void end_connection(struct peer *p)
{
	end_channel(p);
	free_event(&p->socket_event);
	free_event(&p->hello_timer);
	close_fd(&p->fd);
	free_snapshots(p);
}

void peer_bye(struct peer *p)
{
	end_channel(p);
	p->mm = mm_destroy(p->mm);
	p->state = PEER_BYE;
}

static void end_process(struct peer *p)
{
	struct service *s = p->service;

	p->mm = mm_destroy(p->mm);
	free_event(&p->pidfd_event);
	close_fd(&p->pidfd);
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
		p->state = PEER_ORPHAN;
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

void peer_refuse(struct peer *p, const char *why)
{
	if (peer_is_closed(p))
		return;
	p->refused = true;
	state_event(service_state(p->service), EV_ARENA_CLIENT_REFUSED, 1);
	service_warn(p->service, "client %d (%s, uid %u) refused: %s", (int)p->cred.pid, p->comm,
		     (unsigned)p->cred.uid, why);
	peer_close(p);
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
		free(p);
	}
}
