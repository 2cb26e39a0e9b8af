/* SPDX-License-Identifier: MIT */
/*
 * arenactl_upgrade.c - have the worker replaced by one of another program, and see that it is there.
 *
 * The daemon judges whether the program can go on (sys/kernel/mm/arena/upgrade) and says why not.
 * It is done when somebody else answers; who that is says the status file.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "tools/arenactl.h"

#define UPGRADE_PATH "sys/kernel/mm/arena/upgrade"
#define STATUS_PATH "sys/kernel/mm/arena/status"
#define CHECK_PATH "sys/kernel/mm/arena/check"
#define DEADLINE_MS 60000
#define LOOK_MS 5

struct worker {
	uint64_t pid;
	char version[64], program[4096];
};

/* A file that is short; NULL if nobody answers. */
static const char *read_file(struct ctl *c, const char *path)
{
	static char text[16384];
	ssize_t n = c->arena ? arena_attr_read(c->arena, path, text, sizeof(text) - 1) : -1;

	if (n < 0)
		return NULL;
	text[n < (ssize_t)sizeof(text) ? n : (ssize_t)sizeof(text) - 1] = '\0';
	return text;
}

static void take_value(const char *text, const char *key, char *out, size_t size)
{
	size_t n = strlen(key);

	*out = '\0';
	for (const char *s = text; s; s = strchr(s, '\n')) {
		s += *s == '\n';
		if (strncmp(s, key, n) == 0 && s[n] == ' ') {
			s += n + 1;
			snprintf(out, size, "%.*s", (int)strcspn(s, "\n"), s);
			return;
		}
	}
}

/* Quietly: false if nobody answers. */
static bool look(struct ctl *c, struct worker *w)
{
	const char *text = read_file(c, STATUS_PATH);
	char pid[32];

	if (!text)
		return false;
	take_value(text, "worker_pid", pid, sizeof(pid));
	take_value(text, "version", w->version, sizeof(w->version));
	return parse_u64(pid, &w->pid) == 0;
}

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

/* The connection outlives the worker, or a new one is made. False: nobody else came in time. */
static bool await_next(struct ctl *c, const struct worker *old, struct worker *new)
{
	struct arena_options opts = {.size = sizeof(opts), .socket = c->socket};
	uint64_t deadline = now_us() + DEADLINE_MS * UINT64_C(1000);

	while (now_us() < deadline) {
		if (look(c, new)) {
			if (new->pid != old->pid)
				return true;
		} else {
			arena_close(c->arena);
			c->arena = NULL;
			if (arena_open(&opts, &c->arena) < 0)
				c->arena = NULL;
		}
		poll(NULL, 0, LOOK_MS);
	}
	return false;
}

/* The file says why, to those who may ask. */
static int refused(struct ctl *c, int err)
{
	const char *text = read_file(c, UPGRADE_PATH);
	char last[1024];

	if (!text)
		return ctl_fail("cannot upgrade: %s", strerror(err));
	take_value(text, "last", last, sizeof(last));
	return ctl_fail("%s", last);
}

/* What the daemon runs as. */
static void look_at_program(struct ctl *c, struct worker *w)
{
	const char *text = read_file(c, UPGRADE_PATH);

	take_value(text ? text : "", "program", w->program, sizeof(w->program));
}

int verb_upgrade(struct ctl *c, char **args __unused_)
{
	_cleanup_(freep) char *path = c->binary ? realpath(c->binary, NULL) : strdup("");
	_cleanup_(freep) struct worker *old = calloc(1, sizeof(*old));
	_cleanup_(freep) struct worker *new = calloc(1, sizeof(*new));
	uint64_t start, took;

	if (!old || !new || !path)
		return ctl_fail("%s: %s", c->binary ? c->binary : "upgrade", strerror(errno));
	if (!look(c, old))
		return ctl_fail("%s: %s", STATUS_PATH, strerror(errno));
	look_at_program(c, old);
	if (arena_attr_write(c->arena, UPGRADE_PATH, path) < 0)
		return refused(c, errno);
	start = now_us();
	if (!await_next(c, old, new))
		return ctl_fail("the daemon accepted %s, but no other worker answers; see its log",
				*path ? path : old->program);
	took = now_us() - start;
	look_at_program(c, new);
	if (strcmp(new->program, *path ? path : old->program) != 0)
		return ctl_fail("the new program did not get ready; worker %" PRIu64
				" went on with %s; see the daemon's log",
				new->pid, new->program);
	printf("arenad %s (worker %" PRIu64 ") was followed by arenad %s (worker %" PRIu64
	       ") within %.1f ms\n",
	       old->version, old->pid, new->version, new->pid, (double)took / 1000);
	return CTL_DONE;
}

int verb_check(struct ctl *c, char **args __unused_)
{
	size_t len;
	_cleanup_(freep) char *text = ctl_read(c, CHECK_PATH, &len);

	if (!text)
		return CTL_FAILED;
	fputs(text, stdout);
	return strcmp(text, "ok\n") == 0 ? CTL_DONE
					 : ctl_fail("the daemon's state contradicts itself");
}
