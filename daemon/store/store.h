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
 *   lock          SOCKET.lock, locked           client-PEER   a client's connection
 *   arena-ID      a domain's file               pidfd-PEER    its process
 *   mm-ID         an address space's tables     doorbell-ID   its channel's doorbell
 *   channel-ID    its channel                   uffd-ID       what holds its userfaultfd
 *   file-ID       a mapped file, for reading    filew-ID      the same, of the first who may write
 *   zero          the file of zeros, ARENA_SLOT_ZERO of all clients
 *
 * Order: a descriptor is added before the truth names it, and removed after the truth has
 * forgotten it; so what the truth names is there, and what it does not name is left over.
 * Messages are delivered in order even if the worker dies right after sending them.
 *
 * Ours beside systemd's protocol, in the environment: X_ARENAD_SUPERVISOR=PID says that the
 * keeper is arenad's supervisor; X_ARENAD_PROGRAM=PATH which program it started;
 * X_ARENAD_KILLED=1 that the worker before was killed by somebody, rather than died of what it did;
 * X_ARENAD_FDNAMES=FD a file with LISTEN_FDNAMES, which are more than a variable can hold. And as
 * a message: X_ARENAD_PROGRAM=PATH with a descriptor of that program: start it next time.
 */
#ifndef STORE_STORE_H
#define STORE_STORE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define STORE_NAME_MAX 64

/* Names joined by ':' in one variable of the environment, which the kernel limits to 128 KiB.
 * systemd has no other way, so there store_add() fails with -ENOSPC where more would be. */
#define STORE_NAMES_MAX (124u << 10)

/* Take over what the keeper handed down, and clear the environment of what it says to us alone.
 * Once, at start; the supervisor does the same with a keeper of its own. 0, -errno. */
int store_open(void);
/* Is there a keeper? False again once it died. */
bool store_kept(void);
/* The process id of arenad's supervisor, if this process is its worker; else 0. */
pid_t store_supervisor(void);
/* Did the worker before this one die of a SIGKILL? Only a supervisor tells. */
bool store_last_was_killed(void);
/* A descriptor that becomes readable when the supervisor has died, borrowed; -1: none. */
int store_supervisor_fd(void);
/* The supervisor has died: says so in the log, once; nothing is kept from here on. */
void store_supervisor_died(void);

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
/* Was it handed down, and has nobody taken it? */
bool store_has(const char *name);
/*
 * The listening unix socket that systemd made for us: named "listen", or as its unit, so any name
 * will do if there is only one. *name gets it. -1: none; -EEXIST: several.
 */
int store_take_listener(char name[STORE_NAME_MAX]);
/* Whatever was handed down and nobody has taken, with its name; -1: nothing is left. */
int store_take_any(char name[STORE_NAME_MAX]);
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
 * The program that a keeper starts: the path under which this one was started, though it may have
 * been replaced there since.
 */
const char *store_program(void);
/* Have the supervisor start another one next time: `fd` is open on it. 0, -errno; -EOPNOTSUPP
 * under systemd, which starts what its unit says. */
int store_set_program(const char *path, int fd);

/*
 * For tests: be the keeper in this process. store_fake_restart() is what a worker's death and
 * rebirth are to the store: everything kept is as if just handed down.
 */
void store_fake(void);
void store_fake_restart(void);
unsigned store_fake_count(void); /* kept now */
void store_fake_end(void);       /* close all */

#endif
