/* SPDX-License-Identifier: MIT */
/*
 * store.c - the worker's side of the descriptor store.
 *
 * Handed down: an array sorted by nobody, searched by name; it is short-lived, for recovery takes
 * what it knows and drops the rest. Kept: nothing is remembered here, the keeper does that, but
 * for the fake one of tests, whose shelf is the second array.
 */
#include "daemon/store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/mem.h"
#include "base/util.h"

struct kept {
	char name[STORE_NAME_MAX];
	int fd; /* -1: taken */
};

struct shelf {
	struct kept *kept;
	unsigned nr, capacity;
};

static struct shelf handed; /* what the keeper gave us */
static struct shelf fake;   /* what the fake keeper keeps */
static bool faking;

static int shelf_add(struct shelf *s, const char *name, int fd)
{
	if (s->nr == s->capacity) {
		unsigned n = s->capacity ? s->capacity * 2 : 64;
		struct kept *grown = mem_grow(s->kept, s->capacity, n, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		s->kept = grown;
		s->capacity = n;
	}
	snprintf(s->kept[s->nr].name, STORE_NAME_MAX, "%s", name);
	s->kept[s->nr++].fd = fd;
	return 0;
}

static struct kept *shelf_find(const struct shelf *s, const char *name)
{
	for (unsigned i = 0; i < s->nr; i++)
		if (s->kept[i].fd >= 0 && strcmp(s->kept[i].name, name) == 0)
			return &s->kept[i];
	return NULL;
}

static void shelf_clear(struct shelf *s)
{
	for (unsigned i = 0; i < s->nr; i++)
		if (s->kept[i].fd >= 0)
			close(s->kept[i].fd);
	free(s->kept);
	*s = (struct shelf){0};
}

/* ---- the keeper -------------------------------------------------------------------- */

int store_open(void)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(1, &names), r = 0;

	if (n < 0)
		return n;
	for (int i = 0; i < n; i++) {
		/* One that cannot be noted stays with the keeper, and is missed by name. */
		if (!r)
			r = shelf_add(&handed, names[i], SD_LISTEN_FDS_START + i);
		free(names[i]);
	}
	free(names);
	return r;
}

bool store_kept(void)
{
	const char *socket = getenv("NOTIFY_SOCKET");

	return faking || (socket && *socket);
}

int store_add(const char *name, int fd)
{
	char text[STORE_NAME_MAX + 64];
	int r;

	if (!store_kept())
		return 0;
	if (faking) {
		int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

		return copy < 0 ? -errno : shelf_add(&fake, name, copy);
	}
	snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);
	r = sd_pid_notify_with_fds(0, 0, text, &fd, 1);
	return r < 0 ? r : 0;
}

void store_remove(const char *name)
{
	char text[STORE_NAME_MAX + 64];

	if (faking) {
		struct kept *k = shelf_find(&fake, name);

		if (k) {
			close(k->fd);
			*k = fake.kept[--fake.nr];
		}
	} else if (store_kept()) {
		snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
		sd_notify(0, text);
	}
}

void store_notify(const char *state)
{
	if (!faking && store_kept())
		sd_notify(0, state);
}

uint64_t store_watchdog_usec(void)
{
	uint64_t usec = 0;

	return !faking && sd_watchdog_enabled(0, &usec) > 0 ? usec : 0;
}

/* ---- what was handed down ---------------------------------------------------------- */

int store_take(const char *name)
{
	struct kept *k = shelf_find(&handed, name);

	return k ? TAKE_FD(k->fd) : -1;
}

static unsigned number_of(const char *name, const char *prefix)
{
	size_t n = strlen(prefix);

	if (strncmp(name, prefix, n) != 0 || name[n] != '-')
		return 0;
	return (unsigned)strtoul(name + n + 1, NULL, 10);
}

bool store_next(const char *prefix, uint32_t *number)
{
	uint32_t best = 0;

	for (unsigned i = 0; i < handed.nr; i++) {
		uint32_t n = handed.kept[i].fd < 0 ? 0 : number_of(handed.kept[i].name, prefix);

		if (n > *number && (!best || n < best))
			best = n;
	}
	*number = best;
	return best;
}

unsigned store_drop_rest(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < handed.nr; i++) {
		if (handed.kept[i].fd < 0)
			continue;
		store_remove(handed.kept[i].name);
		n++;
	}
	shelf_clear(&handed);
	return n;
}

/* ---- names with numbers ------------------------------------------------------------ */

static const char *numbered(char name[STORE_NAME_MAX], const char *prefix, uint32_t number)
{
	snprintf(name, STORE_NAME_MAX, "%s-%u", prefix, number);
	return name;
}

int store_add_number(const char *prefix, uint32_t number, int fd)
{
	char name[STORE_NAME_MAX];

	return store_add(numbered(name, prefix, number), fd);
}

void store_remove_number(const char *prefix, uint32_t number)
{
	char name[STORE_NAME_MAX];

	store_remove(numbered(name, prefix, number));
}

int store_take_number(const char *prefix, uint32_t number)
{
	char name[STORE_NAME_MAX];

	return store_take(numbered(name, prefix, number));
}

/* ---- the fake keeper --------------------------------------------------------------- */

void store_fake(void)
{
	faking = true;
}

void store_fake_restart(void)
{
	shelf_clear(&handed);
	for (unsigned i = 0; i < fake.nr; i++) {
		int copy = fcntl(fake.kept[i].fd, F_DUPFD_CLOEXEC, 0);

		BUG_ON(copy < 0 || shelf_add(&handed, fake.kept[i].name, copy));
	}
}

unsigned store_fake_count(void)
{
	return fake.nr;
}

void store_fake_end(void)
{
	shelf_clear(&handed);
	shelf_clear(&fake);
	faking = false;
}
