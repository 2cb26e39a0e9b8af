/* SPDX-License-Identifier: MIT */
/* supervisor_shelf.c - the descriptors that are kept, and how the next worker gets them. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "daemon/supervisor.h"

#define FIRST 3
#define NAMES_MAX (100u << 10) /* more does not fit into a variable of the environment */

void shelf_add(struct shelf *s, const char *name, int fd)
{
	if (s->nr == s->capacity) {
		unsigned n = s->capacity ? s->capacity * 2 : 64;
		struct shelf_entry *grown = mem_grow(s->entry, s->capacity, n, sizeof(*grown));

		if (!grown) {
			log_err("no memory to keep descriptor %s", name);
			close(fd);
			return;
		}
		s->entry = grown;
		s->capacity = n;
	}
	snprintf(s->entry[s->nr].name, STORE_NAME_MAX, "%s", name);
	s->entry[s->nr++].fd = fd;
}

void shelf_remove(struct shelf *s, const char *name)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < s->nr; i++) {
		if (strcmp(s->entry[i].name, name) == 0)
			close(s->entry[i].fd);
		else
			s->entry[kept++] = s->entry[i];
	}
	s->nr = kept;
}

void shelf_adopt(struct shelf *s)
{
	char name[STORE_NAME_MAX];
	int fd;

	while ((fd = store_take_any(name)) >= 0)
		shelf_add(s, name, fd);
}

void shelf_hang_up(const struct shelf *s)
{
	/* Of what is no socket it does nothing. */
	for (unsigned i = 0; i < s->nr; i++)
		shutdown(s->entry[i].fd, SHUT_RDWR);
}

void shelf_clear(struct shelf *s)
{
	for (unsigned i = 0; i < s->nr; i++)
		close(s->entry[i].fd);
	free(s->entry);
	*s = (struct shelf){0};
}

/* ---- handing down ---------------------------------------------------------------- */

static int compare_fds(const void *a, const void *b)
{
	return ((const struct shelf_entry *)a)->fd - ((const struct shelf_entry *)b)->fd;
}

/*
 * In ascending order no descriptor is overwritten before it was moved: they are different and
 * from 3 up, so the one that goes to 3 + i is 3 + i or above.
 */
static int move_down(struct shelf *s)
{
	if (s->nr)
		qsort(s->entry, s->nr, sizeof(*s->entry), compare_fds);
	for (unsigned i = 0; i < s->nr; i++) {
		int to = FIRST + (int)i;

		if (s->entry[i].fd == to ? fcntl(to, F_SETFD, 0) < 0 : dup2(s->entry[i].fd, to) < 0)
			return -errno;
	}
	return 0;
}

static char *join_names(const struct shelf *s, size_t *len)
{
	char *text = mem_alloc((size_t)s->nr * STORE_NAME_MAX + 1), *end = text;

	for (unsigned i = 0; text && i < s->nr; i++) {
		if (i)
			*end++ = ':';
		end = stpcpy(end, s->entry[i].name);
	}
	*len = text ? (size_t)(end - text) : 0;
	return text;
}

static int set_number(const char *name, unsigned value)
{
	char text[16];

	snprintf(text, sizeof(text), "%u", value);
	return setenv(name, text, 1) < 0 ? -errno : 0;
}

/* Names that fill no variable go into a file behind the descriptors. */
static int write_names(const struct shelf *s, const char *names, size_t len)
{
	int to = FIRST + (int)s->nr, fd = os_memfd("fdnames", len);

	if (fd < 0)
		return fd;
	if (pwrite(fd, names, len, 0) != (ssize_t)len)
		return -EIO;
	if (fd == to ? fcntl(fd, F_SETFD, 0) < 0 : dup2(fd, to) < 0)
		return -errno;
	return set_number("X_ARENAD_FDNAMES", (unsigned)to);
}

int shelf_hand_down(struct shelf *s)
{
	_cleanup_(freep) char *names = NULL;
	size_t len;
	int r = move_down(s);

	if (r || !s->nr)
		return r;
	names = join_names(s, &len);
	if (!names)
		return -ENOMEM;
	if (len > NAMES_MAX)
		r = write_names(s, names, len);
	else if (setenv("LISTEN_FDNAMES", names, 1) < 0)
		r = -errno;
	if (!r)
		r = set_number("LISTEN_FDS", s->nr);
	return r ? r : set_number("LISTEN_PID", (unsigned)getpid());
}
