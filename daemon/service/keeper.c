/* SPDX-License-Identifier: MIT */
/*
 * keeper.c - the supervisor or systemd above us: its signals, our signs of life, and its death.
 *
 * A sign of life is owed within the watchdog's interval and given at half of it, whether there is
 * work or not, by the loop that serves everybody. So an idle daemon wakes every 15 s with the default
 * of 30 s. It is the one thing here that is periodic: whoever is to notice that we were stopped must
 * hear from us while we are not.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "daemon/store/store.h"

/* ---- signals --------------------------------------------------------------------- */

static const int signals[] = {SIGTERM, SIGINT, SIGHUP};

static void block_signals(int how)
{
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(&set, signals[i]);
	pthread_sigmask(how, &set, NULL);
}

static void signal_cb(evutil_socket_t number, short what, void *data)
{
	(void)what;
	if (number == SIGHUP) {
		log_info("SIGHUP: nothing to reload in this version");
		return;
	}
	log_info("SIG%s: stopping", sigabbrev_np(number));
	service_stop(data);
}

int service_catch_signals(struct service *s)
{
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
		s->signal_event[i] = evsignal_new(s->base, signals[i], signal_cb, s);
		if (!s->signal_event[i] || evsignal_add(s->signal_event[i], NULL) < 0)
			return -ENOMEM;
	}
	block_signals(SIG_UNBLOCK);
	return 0;
}

/* What is taken down from here on is not to be torn off by a second one. */
void service_block_signals(struct service *s)
{
	if (s->signal_event[0])
		block_signals(SIG_BLOCK);
}

/* ---- the keeper ------------------------------------------------------------------ */

static void watchdog_cb(evutil_socket_t fd, short what, void *data)
{
	(void)fd, (void)what, (void)data;
	store_notify("WATCHDOG=1");
}

static void supervisor_cb(evutil_socket_t fd, short what, void *data)
{
	(void)fd, (void)what, (void)data;
	store_supervisor_died();
}

int service_watch_keeper(struct service *s)
{
	uint64_t half = store_watchdog_usec() / 2;
	struct timeval tv = {.tv_sec = (time_t)(half / 1000000),
			     .tv_usec = (suseconds_t)(half % 1000000)};
	int fd = store_supervisor_fd();

	if (half) {
		s->watchdog_timer = event_new(s->base, -1, EV_PERSIST, watchdog_cb, s);
		if (!s->watchdog_timer || event_add(s->watchdog_timer, &tv) < 0)
			return -ENOMEM;
	}
	if (fd >= 0) {
		s->supervisor_event = event_new(s->base, fd, EV_READ, supervisor_cb, s);
		if (!s->supervisor_event || event_add(s->supervisor_event, NULL) < 0)
			return -ENOMEM;
	}
	return 0;
}

void service_unwatch_keeper(struct service *s)
{
	if (s->watchdog_timer)
		event_free(s->watchdog_timer);
	if (s->supervisor_event)
		event_free(s->supervisor_event);
	s->watchdog_timer = s->supervisor_event = NULL;
}
