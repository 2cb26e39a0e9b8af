/* SPDX-License-Identifier: MIT */
/*
 * faultpoint.c - the armed fault points, a small table found by name.
 *
 * The table changes only under table_lock, and a passage is counted under it; what a point does is
 * done after letting it go, so that a stopped or delayed thread holds nobody up. The lock is held
 * across fork(), for a child must be able to pass a point.
 */
#include "base/faultpoint.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/parse.h"

#define MAX_POINTS 16
#define MAX_NAME 48
#define DIE_STATUS 66

enum action { ACTION_FAIL, ACTION_DELAY, ACTION_STOP, ACTION_DIE, ACTION_KILL };

struct point {
	char name[MAX_NAME];
	enum action action;
	uint64_t delay_us;
	uint64_t only;     /* act at this passage; 0: at each */
	uint64_t passages; /* since armed */
};

bool faultpoints_armed;

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct point points[MAX_POINTS];
static unsigned nr_points;

static void lock_table(void)
{
	pthread_mutex_lock(&table_lock);
}

static void unlock_table(void)
{
	pthread_mutex_unlock(&table_lock);
}

static void hold_table_over_fork(void)
{
	pthread_atfork(lock_table, unlock_table, unlock_table);
}

static struct point *find_point(const char *name)
{
	for (unsigned i = 0; i < nr_points; i++)
		if (strcmp(points[i].name, name) == 0)
			return &points[i];
	return NULL;
}

static void delay(uint64_t us)
{
	struct timespec ts = {
		.tv_sec = (time_t)(us / 1000000),
		.tv_nsec = (long)(us % 1000000 * NSEC_PER_USEC),
	};

	nanosleep(&ts, NULL);
}

bool faultpoint_hit(const char *name)
{
	struct point hit = {.action = ACTION_FAIL};
	struct point *p;
	bool acts = false;

	lock_table();
	p = find_point(name);
	if (p) {
		p->passages++;
		acts = !p->only || p->only == p->passages;
		hit = *p;
	}
	unlock_table();
	if (!acts)
		return false;

	switch (hit.action) {
	case ACTION_FAIL:
		return true;
	case ACTION_DELAY:
		delay(hit.delay_us);
		return false;
	case ACTION_STOP:
		raise(SIGSTOP);
		return false;
	case ACTION_DIE:
		_exit(DIE_STATUS);
	case ACTION_KILL:
		raise(SIGKILL);
		return false;
	}
	return false;
}

/* `s` is "action[:arg]". */
static int parse_action(char *s, struct point *p)
{
	static const char *const names[] = {
		[ACTION_FAIL] = "fail", [ACTION_DELAY] = "delay", [ACTION_STOP] = "stop",
		[ACTION_DIE] = "die",   [ACTION_KILL] = "kill",
	};
	char *arg = strchr(s, ':');

	if (arg)
		*arg++ = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (strcmp(s, names[i]) != 0)
			continue;
		p->action = (enum action)i;
		if (p->action == ACTION_DELAY)
			return arg ? parse_u64(arg, &p->delay_us) : ARENA_E_INVALID;
		return arg ? ARENA_E_INVALID : 0;
	}
	return ARENA_E_INVALID;
}

/* `s` is "name=action[:arg][@N]". */
static int parse_point(char *s, struct point *p)
{
	char *action = strchr(s, '=');
	char *at;

	*p = (struct point){.action = ACTION_FAIL};
	if (!action || action == s || (size_t)(action - s) >= sizeof(p->name))
		return ARENA_E_INVALID;
	*action++ = '\0';
	memcpy(p->name, s, strlen(s));
	at = strchr(action, '@');
	if (at) {
		*at++ = '\0';
		if (parse_u64(at, &p->only) || !p->only)
			return ARENA_E_INVALID;
	}
	return parse_action(action, p);
}

static int parse_spec(char *s, struct point *out, unsigned *nr)
{
	char *item;

	*nr = 0;
	while ((item = strsep(&s, ","))) {
		if (*nr == MAX_POINTS || parse_point(item, &out[*nr]))
			return ARENA_E_INVALID;
		(*nr)++;
	}
	return 0;
}

/* A spec that is not valid changes nothing. */
int faultpoint_arm(const char *spec)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct point parsed[MAX_POINTS] = {0};
	unsigned nr = 0;
	int r = 0;

	pthread_once(&once, hold_table_over_fork);
	if (spec && *spec) {
		/* Not mem_strdup(): arming must work while "mem" is armed. */
		char *copy = strdup(spec);

		r = copy ? parse_spec(copy, parsed, &nr) : ARENA_E_NO_MEMORY;
		free(copy);
	}
	if (r)
		return r;

	lock_table();
	memcpy(points, parsed, nr * sizeof(points[0]));
	nr_points = nr;
	store_relaxed(&faultpoints_armed, nr > 0);
	unlock_table();
	return 0;
}

void faultpoint_arm_from_environment(void)
{
	const char *spec = secure_getenv("ARENA_FAULTPOINTS");

	if (spec && faultpoint_arm(spec))
		log_warning("ARENA_FAULTPOINTS is not a list of name=action[:arg][@N]: %s", spec);
}

uint64_t faultpoint_passages(const char *name)
{
	uint64_t passages;
	struct point *p;

	lock_table();
	p = find_point(name);
	passages = p ? p->passages : 0;
	unlock_table();
	return passages;
}

uint64_t faultpoint_only(const char *name)
{
	uint64_t only;
	struct point *p;

	lock_table();
	p = find_point(name);
	only = p ? p->only : 0;
	unlock_table();
	return only;
}
