/* SPDX-License-Identifier: MIT */
/*
 * store.h - descriptors that outlive the worker.
 *
 * Somebody (arenad's supervisor, or systemd) keeps copies of the descriptors that hold the truth
 * and the connections, each under a name, and hands all of them to the next worker. The protocol
 * is systemd's: sd_notify(3) with FDSTORE=1, FDNAME=, FDPOLL=0 and FDSTOREREMOVE=1, and
 * sd_listen_fds_with_names(3) at start. Without a keeper everything here succeeds and keeps
 * nothing.
 *
 *   listen        the listening socket          state         the state file
 *   arena-ID      a domain's file               client-PEER   a client's connection
 *   mm-ID         an address space's tables     pidfd-PEER    its process
 *   channel-ID    its channel                   doorbell-ID   its channel's doorbell
 *
 * Order: a descriptor is added before the truth names it, and removed after the truth has
 * forgotten it; so what the truth names is there, and what it does not name is left over.
 * Messages are delivered in order even if the worker dies right after sending them.
 */
#ifndef STORE_STORE_H
#define STORE_STORE_H

#include <stdbool.h>
#include <stdint.h>

#define STORE_NAME_MAX 64

/* Take over what the keeper handed down (LISTEN_FDS of the environment, which is cleared).
 * Once, at start. 0, -errno. */
int store_open(void);
/* Is there a keeper? */
bool store_kept(void);

/* Have a copy of `fd` kept under a name that is not in use. 0, -errno. */
int store_add(const char *name, int fd);
void store_remove(const char *name);
/* The same with a number: store_add_number("mm", 7, fd) is store_add("mm-7", fd). */
int store_add_number(const char *prefix, uint32_t number, int fd);
void store_remove_number(const char *prefix, uint32_t number);

/* A descriptor that was handed down, close-on-exec; the caller's from here on. -1: there is none,
 * or it was taken. */
int store_take(const char *name);
int store_take_number(const char *prefix, uint32_t number);
/*
 * What was handed down and nobody has taken: the next number above *number (start with 0, which
 * is no number) of a prefix. False: no more.
 */
bool store_next(const char *prefix, uint32_t *number);
/* Close and remove all that was handed down and nobody has taken; the count. */
unsigned store_drop_rest(void);

/* "READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=..." to the keeper; no keeper: nothing. */
void store_notify(const char *state);
/* Microseconds within which WATCHDOG=1 is expected again and again; 0: not expected. */
uint64_t store_watchdog_usec(void);

/*
 * For tests: be the keeper in this process. store_fake_restart() is what a worker's death and
 * rebirth are to the store: everything kept is as if just handed down.
 */
void store_fake(void);
void store_fake_restart(void);
unsigned store_fake_count(void); /* kept now */
void store_fake_end(void);       /* close all */

#endif
