/* SPDX-License-Identifier: MIT */
/*
 * supervisor.h - the process that keeps descriptors and restarts the worker.
 *
 * It knows nothing of memory, clients or files: it understands datagrams of its own worker in
 * sd_notify(3)'s format and how a process ended. What it does not do it cannot do wrong.
 */
#ifndef DAEMON_SUPERVISOR_H
#define DAEMON_SUPERVISOR_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/store/store.h"

/* A worker's exit status: "start me again now", for an upgrade. Also for systemd
 * (RestartForceExitStatus=). */
#define EXIT_RESTART 75

struct supervisor_params {
	char **argv;            /* of this program; the worker gets them behind --no-supervisor */
	uint64_t watchdog_usec; /* a worker that is silent for so long hangs; 0: none */
};

/* Run workers until one has ended as it should: the exit status. For a process of one thread,
 * whose signals are blocked from here on. */
int supervisor_run(const struct supervisor_params *params);

/* ---- between supervisor.c and supervisor_shelf.c ------------------------------------------- */

/* Descriptors by name. Names may repeat; a removal takes all of that name. */
struct shelf {
	struct shelf_entry {
		char name[STORE_NAME_MAX];
		int fd;
	} * entry;
	unsigned nr, capacity;
};

/* Takes over fd; one that there is no memory for is closed, with a log line. */
void shelf_add(struct shelf *s, const char *name, int fd);
void shelf_remove(struct shelf *s, const char *name);
/* All that this process was started with itself; after store_open(). */
void shelf_adopt(struct shelf *s);
/* In the child: the descriptors are 3, 4, ... and the environment says so. 0, -errno. */
int shelf_hand_down(struct shelf *s);
/* Nobody will serve them: the other ends of all sockets hear of it. */
void shelf_hang_up(const struct shelf *s);
void shelf_clear(struct shelf *s);

#endif
