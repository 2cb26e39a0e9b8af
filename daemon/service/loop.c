/* SPDX-License-Identifier: MIT */
/*
 * loop.c - the control thread: what it looks at, and when it sleeps.
 *
 *	       doorbell, socket, pidfd, kzerod, timer, signal
 *	  +--------------------------------------------------------+
 *	  v                                                        |
 *	POLL one mailbox of each polled channel, again and again   |
 *	  |   (events in between, every 64 calls or 100 us)        |
 *	  | nothing came for as long as it is worth waiting        |
 *	  v                                                        |
 *	clear daemon_poll of the polled channels, full fence,      |
 *	look once more ---- something there: back to POLL          |
 *	  | nothing                                                |
 *	  v                                                        |
 *	SLEEP in the event loop -----------------------------------+
 *
 * A channel is polled from the ring of its doorbell until the next sleep, or until it was quiet
 * for a while beside busier ones. Whether polling is worth it is decided by the mean gap between a
 * call and the next one: above the budget (poll_usecs) the loop sleeps at once. Only polling can
 * tell a gap: a poll in vain counts as a long one, also where it was the poll itself that kept the
 * client from its CPU. What came after a sleep tells nothing, so every 16th call is polled for in
 * any case, to notice that times have changed.
 *
 * Nothing here is periodic: an idle daemon with idle clients does not wake, but for the watchdog's
 * sign of life (keeper.c). Clients that owe an acknowledgement are asked to ring when they give it;
 * their flush threads are woken after 5 ms and again after 50 ms, and then nothing more is done
 * until another flush is posted. kzerod gets its next batch when there was no call for 20 ms, or
 * when a pool is nearly empty.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/faultpoint.h"
#include "base/mem.h"
#include "base/os.h"
#include "daemon/sync/lock.h"

#define EVENTS_EVERY_CALLS 64
#define EVENTS_EVERY_NS (100 * NSEC_PER_USEC)
#define GAP_IN_VAIN 4            /* a poll in vain counts as so many budgets */
#define PROBE_EVERY 16           /* of so many calls one is polled for, though it is not worth it */
#define LOOKS_PER_CLOCK 8        /* reading the clock takes longer than looking for a call */
#define QUIET_BUDGETS 10         /* a channel quiet for so many budgets is not polled */
#define KZEROD_QUIET_USECS 20000 /* without a call before kzerod gets more to do */
#define FLUSH_SOON_USECS 5000
#define FLUSH_LATE_USECS 50000
#define FLUSH_ASK_LIMIT 2

/* ---- which channels are polled --------------------------------------------------- */

static uint32_t *poll_word(const struct peer *p)
{
	return &((struct arena_channel_header *)mm_channel(p->mm))->daemon_poll;
}

void service_poll_peer(struct service *s, struct peer *p)
{
	if (p->polled || !p->mm)
		return;
	p->polled = true;
	p->last_call = clock_now();
	TAILQ_INSERT_TAIL(&s->polled, p, polled_link);
	store_relaxed(poll_word(p), 1);
}

void service_stop_polling(struct service *s, struct peer *p)
{
	if (!p->polled)
		return;
	p->polled = false;
	TAILQ_REMOVE(&s->polled, p, polled_link);
	store_relaxed(poll_word(p), 0);
}

static bool polled_pending(const struct service *s)
{
	const struct peer *p;

	TAILQ_FOREACH(p, &s->polled, polled_link)
		if (channel_pending(p))
			return true;
	return false;
}

/* From here on every polled client rings; true if one set its bit before it could know. */
static bool call_came_while_leaving(struct service *s)
{
	struct peer *p;

	TAILQ_FOREACH(p, &s->polled, polled_link)
		store_relaxed(poll_word(p), 0);
	/* Pairs with the client's: set the bit, then read daemon_poll. */
	fence_full();
	return polled_pending(s);
}

static void resume_polling(struct service *s)
{
	struct peer *p;

	TAILQ_FOREACH(p, &s->polled, polled_link)
		store_relaxed(poll_word(p), 1);
}

static uint64_t poll_budget(struct service *s)
{
	if (os_nr_cpus() < 2)
		return 0;
	return state_tunable(service_state(s), TUNABLE_POLL_USECS) * NSEC_PER_USEC;
}

/* A busy neighbour must not keep us looking at everybody who ever called. */
static void drop_quiet_channels(struct service *s, uint64_t now)
{
	uint64_t quiet = QUIET_BUDGETS * poll_budget(s);
	struct peer *p, *next;

	TAILQ_FOREACH_SAFE(p, &s->polled, polled_link, next) {
		if (now - p->last_call <= MAX(quiet, EVENTS_EVERY_NS))
			continue;
		store_relaxed(poll_word(p), 0);
		fence_full();
		if (channel_pending(p))
			store_relaxed(poll_word(p), 1);
		else
			service_stop_polling(s, p);
	}
}

/* ---- polling --------------------------------------------------------------------- */

static inline void relax_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield" ::: "memory");
#endif
}

/* A call has come: what that says about gaps, and how long to poll for the next one. */
static void note_call(struct service *s, uint64_t now)
{
	uint64_t budget = poll_budget(s);
	uint64_t gap = s->in_vain ? GAP_IN_VAIN * budget : now - s->last_call;

	if (!s->in_vain && !s->slept && s->mean_gap > budget)
		s->mean_gap = gap; /* a probe that paid */
	else if (s->in_vain || !s->slept)
		s->mean_gap += gap / 8 - s->mean_gap / 8;
	s->in_vain = s->slept = false;
	s->budget = budget;
	if (s->mean_gap > budget && ++s->skipped < PROBE_EVERY)
		s->budget = 0;
	else
		s->skipped = 0;
}

/* One mailbox of each polled channel. True: there was one. */
static bool serve_polled(struct service *s, uint64_t now)
{
	struct peer *p, *next;
	bool any = false;

	TAILQ_FOREACH_SAFE(p, &s->polled, polled_link, next) {
		if (!channel_pending(p))
			continue;
		if (!any)
			note_call(s, now);
		any = true;
		p->last_call = now;
		channel_serve(p);
	}
	if (any)
		s->last_call = clock_now();
	return any;
}

static int look_at_events(struct service *s, int flags)
{
	int r = event_base_loop(s->base, flags);

	service_settle(s);
	return r;
}

static void poll_channels(struct service *s)
{
	uint64_t now = clock_now(), looked = now, busy = now;
	unsigned calls = 0;

	while (!s->stopping && !TAILQ_EMPTY(&s->polled)) {
		if (serve_polled(s, now)) {
			calls++;
			now = busy = s->last_call;
		} else {
			if (now - busy >= s->budget) {
				s->in_vain = s->budget;
				return;
			}
			for (int i = 0; i < LOOKS_PER_CLOCK && !polled_pending(s); i++)
				relax_cpu();
			now = clock_now();
		}
		if (calls < EVENTS_EVERY_CALLS && now - looked < EVENTS_EVERY_NS)
			continue;
		look_at_events(s, EVLOOP_NONBLOCK);
		drop_quiet_channels(s, now);
		calls = 0;
		now = looked = clock_now();
	}
}

/* ---- flushes that nobody asked for twice ----------------------------------------- */

static void flush_timer_cb(evutil_socket_t fd, short what, void *data)
{
	struct service *s = data;
	struct peer *p;

	(void)fd, (void)what;
	s->flush_running = false;
	LIST_FOREACH(p, &s->peers, link) {
		if (!p->mm || !mm_flush_pending(p->mm) || p->flush_asked >= FLUSH_ASK_LIMIT)
			continue;
		mm_flush_want(p->mm, true);
		p->flush_asked++;
	}
}

void service_hurry_flushes(struct service *s, const struct peer *except)
{
	struct peer *p;

	LIST_FOREACH(p, &s->peers, link)
		if (p != except && p->mm && mm_flush_pending(p->mm))
			mm_flush_want(p->mm, true);
}

/* Have acknowledgements ring, and note how patient to be: microseconds, 0: nobody to wake. */
static long want_acknowledgements(struct service *s)
{
	long delay = 0;
	struct peer *p;

	LIST_FOREACH(p, &s->peers, link) {
		uint64_t posted;

		if (!p->mm || !mm_flush_pending(p->mm))
			continue;
		posted = mm_flush_posted(p->mm);
		if (p->flush_seen != posted) {
			p->flush_seen = posted;
			p->flush_asked = 0;
		}
		mm_flush_want(p->mm, false);
		if (p->flush_asked == 0)
			delay = FLUSH_SOON_USECS;
		else if (p->flush_asked == 1 && !delay)
			delay = FLUSH_LATE_USECS;
	}
	return delay;
}

static void ask_for_flushes(struct service *s)
{
	struct virt *v = s->machine->virt;
	struct timeval tv = {0};
	bool soon;

	if (virt_flush_pending(v)) {
		tv.tv_usec = want_acknowledgements(s);
		/* Pairs with the client's: store the ack, then read flush_kick. */
		fence_full();
		virt_flush_collect(v);
	}
	soon = tv.tv_usec == FLUSH_SOON_USECS;
	if (tv.tv_usec && (!s->flush_running || (soon && !s->flush_soon))) {
		s->flush_running = evtimer_add(s->flush_timer, &tv) == 0;
	} else if (!tv.tv_usec && s->flush_running) {
		evtimer_del(s->flush_timer);
		s->flush_running = false;
	}
	s->flush_soon = soon;
}

/* ---- zeroing ahead --------------------------------------------------------------- */

/* In a burst of calls kzerod waits until it is over, unless a pool runs dry. */
static void tend_kzerod(struct service *s)
{
	static const struct timeval quiet = {.tv_usec = KZEROD_QUIET_USECS};
	struct phys *p = s->machine->phys;
	enum kzerod_need need;

	kzerod_take_back(p);
	need = kzerod_need(p);
	if (need == KZEROD_NONE)
		return;
	if (need == KZEROD_NOW || clock_now() >= s->last_call + KZEROD_QUIET_USECS * NSEC_PER_USEC)
		kzerod_collect(p);
	else if (!s->kzerod_waits)
		s->kzerod_waits = evtimer_add(s->kzerod_timer, &quiet) == 0;
}

static void kzerod_timer_cb(evutil_socket_t fd, short what, void *data)
{
	struct service *s = data;

	(void)fd, (void)what;
	s->kzerod_waits = false; /* service_settle() looks again */
}

/* ---- files ----------------------------------------------------------------------- */

static void files_timer_cb(evutil_socket_t fd, short what, void *data)
{
	struct service *s = data;

	(void)fd, (void)what;
	s->files_deadline = UINT64_MAX; /* service_settle() looks again */
}

/* What was read or written, and what is due; ring when the next is. */
static void tend_files(struct service *s)
{
	struct virt *v = s->machine->virt;
	uint64_t now, at;
	struct timeval tv;

	virt_files_collect(v);
	if (!virt_has_deadlines(v))
		return;
	now = clock_now();
	virt_files_tick(v, now);
	at = virt_files_deadline(v);
	if (at >= s->files_deadline)
		return;
	tv.tv_sec = (time_t)((at - MIN(at, now)) / NSEC_PER_SEC);
	tv.tv_usec = (suseconds_t)((at - MIN(at, now)) % NSEC_PER_SEC / NSEC_PER_USEC) + 1;
	if (evtimer_add(s->files_timer, &tv) == 0)
		s->files_deadline = at;
}

/* ---- the loop -------------------------------------------------------------------- */

void service_settle(struct service *s)
{
	virt_flush_collect(s->machine->virt);
	tend_files(s);
	service_answer_finished(s);
	tend_kzerod(s);
	service_reap(s);
	/* Whoever asked for it has his answer by now. */
	if (s->machine->restart)
		s->stopping = true;
}

static bool may_sleep(struct service *s)
{
	struct peer *p;

	service_settle(s);
	if (call_came_while_leaving(s)) {
		resume_polling(s);
		return false;
	}
	while ((p = TAILQ_FIRST(&s->polled)))
		service_stop_polling(s, p);
	ask_for_flushes(s);
	return !s->stopping && TAILQ_EMPTY(&s->finished);
}

int service_run(struct service *s)
{
	CONTROL_THREAD();
	if (s->interrupted)
		call_finish_interrupted(s);
	while (!s->stopping) {
		poll_channels(s);
		if (!may_sleep(s))
			continue;
		s->slept = true;
		if (look_at_events(s, EVLOOP_ONCE) < 0 || faultpoint("service.loop"))
			return -EIO;
	}
	service_block_signals(s);
	return 0;
}

bool service_round(struct service *s)
{
	CONTROL_THREAD();
	s->worked = s->interrupted;
	if (s->interrupted)
		call_finish_interrupted(s);
	look_at_events(s, EVLOOP_NONBLOCK);
	if (serve_polled(s, clock_now()))
		service_settle(s);
	return s->worked;
}

void service_stop(struct service *s)
{
	s->stopping = true;
	event_base_loopbreak(s->base);
}

/* ---- beginning and end ----------------------------------------------------------- */

static void kzerod_cb(evutil_socket_t fd, short what, void *data)
{
	(void)fd, (void)what, (void)data; /* service_settle() takes back what is done */
}

static void listen_retry_cb(evutil_socket_t fd, short what, void *data)
{
	struct service *s = data;

	(void)fd, (void)what;
	event_add(s->listen_event, NULL);
}

static struct event_base *create_base(void)
{
	struct event_config *config = event_config_new();
	struct event_base *base = NULL;

	if (!config)
		return NULL;
	/* Doorbells need edges, and one thread needs no locks. */
	if (event_config_require_features(config, EV_FEATURE_ET) == 0 &&
	    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK) == 0)
		base = event_base_new_with_config(config);
	event_config_free(config);
	return base;
}

static int create_events(struct service *s)
{
	int kzerod = kzerod_eventfd(s->machine->phys);
	int files = virt_files_eventfd(s->machine->virt);

	s->base = create_base();
	if (!s->base)
		return -ENOMEM;
	s->flush_timer = evtimer_new(s->base, flush_timer_cb, s);
	s->kzerod_timer = evtimer_new(s->base, kzerod_timer_cb, s);
	s->files_timer = evtimer_new(s->base, files_timer_cb, s);
	s->files_deadline = UINT64_MAX;
	if (!s->flush_timer || !s->kzerod_timer || !s->files_timer)
		return -ENOMEM;
	if (files >= 0) {
		s->files_event =
			event_new(s->base, files, EV_READ | EV_PERSIST | EV_ET, kzerod_cb, s);
		if (!s->files_event || event_add(s->files_event, NULL) < 0)
			return -ENOMEM;
	}
	if (kzerod >= 0) {
		s->kzerod_event =
			event_new(s->base, kzerod, EV_READ | EV_PERSIST | EV_ET, kzerod_cb, s);
		if (!s->kzerod_event || event_add(s->kzerod_event, NULL) < 0)
			return -ENOMEM;
	}
	if (s->listen_fd >= 0) {
		s->listen_retry = evtimer_new(s->base, listen_retry_cb, s);
		s->listen_event = event_new(s->base, s->listen_fd, EV_READ | EV_PERSIST,
					    service_accept_cb, s);
		if (!s->listen_retry || !s->listen_event || event_add(s->listen_event, NULL) < 0)
			return -ENOMEM;
	}
	return 0;
}

int service_create(const struct service_params *params, struct service **out)
{
	struct service *s = mem_alloc(sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->machine = params->machine;
	s->attr = params->attr;
	s->attr_ctx = params->attr_ctx;
	s->listen_fd = params->listen_fd;
	s->packet_fd = -1;
	LIST_INIT(&s->peers);
	LIST_INIT(&s->closed);
	LIST_INIT(&s->forked);
	TAILQ_INIT(&s->polled);
	TAILQ_INIT(&s->finished);
	service_open_userfault(s);
	r = create_events(s);
	if (!r)
		r = service_recover(s);
	if (r) {
		service_abandon(s);
		return r;
	}
	*out = s;
	return 0;
}

static void free_event(struct event *ev)
{
	if (ev)
		event_free(ev);
}

static void free_service(struct service *s)
{
	service_reap(s);
	closep(&s->packet_fd);
	free_event(s->listen_retry);
	free_event(s->listen_event);
	service_unwatch_keeper(s);
	free_event(s->flush_timer);
	free_event(s->kzerod_timer);
	free_event(s->kzerod_event);
	free_event(s->files_timer);
	free_event(s->files_event);
	for (size_t i = 0; i < ARRAY_SIZE(s->signal_event); i++)
		free_event(s->signal_event[i]);
	if (s->base)
		event_base_free(s->base);
	closep(&s->userfault_device);
	free(s);
}

struct service *service_destroy(struct service *s)
{
	struct peer *p;

	if (!s)
		return NULL;
	LIST_FOREACH(p, &s->peers, link)
		peer_farewell(p, ARENA_DAEMON_STOPPED, ESHUTDOWN);
	/* Closing them must not start accepting again. */
	free_event(s->listen_retry);
	s->listen_retry = NULL;
	while ((p = LIST_FIRST(&s->peers)))
		peer_destroy(p);
	service_forget_children(s, true);
	free_service(s);
	return NULL;
}

struct service *service_abandon(struct service *s)
{
	struct peer *p;

	if (!s)
		return NULL;
	while ((p = LIST_FIRST(&s->peers)))
		peer_abandon(p);
	service_forget_children(s, false);
	free_service(s);
	return NULL;
}

unsigned service_nr_peers(const struct service *s)
{
	return s->nr_peers;
}
