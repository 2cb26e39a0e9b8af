/* SPDX-License-Identifier: MIT */
/*
 * trap.h - how misses reach the library: two traps behind one interface.
 *
 *   trap_signal.c       SIGSEGV, on the thread that faults
 *   trap_userfaultfd.c  events, on a thread of the library's; with trap_serve.c, trap_program.c
 *   trap_choose.c       which of them, and what to tell people
 */
#ifndef LIBCLIENT_TRAP_H
#define LIBCLIENT_TRAP_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "arena/arena.h"

struct arena;

struct fault_signal {
	int signo, code;
};

#define TRAP_MAX_BARRED 64u
#define TRAP_BATCH 16u
#define TRAP_MAILBOX 63 /* the last */

/* Working ahead of a program that walks through memory; the fault thread's own. trap_ahead.c has the drawing. */
struct ahead {
	uint64_t expect; /* where the last mapping of leaves ended */
	uint64_t trip;   /* the leaf that is left out; 0: nothing is to be done */
	uint64_t next, end;
	unsigned access, depth;
	bool tripped; /* the last access was at the trip, and the daemon has not been asked since */
	bool walking; /* the access being served goes on where one was expected */
	bool working; /* nobody waits for what is being mapped */
};

/* trap_userfaultfd.c has the drawing. */
struct userfault_trap {
	bool on; /* this arena's trap; does not change once it is attached */
	int fd;
	int stop_fd; /* readable: the fault thread ends */
	pthread_t thread;
	bool running;
	uint32_t serves; /* futex: the fault thread does, and no nurse any more */
	uint32_t record; /* VMA record that was of use last */
	bool lost;       /* a range was unmapped, and nothing put in its place */
	bool careful;    /* what is mapped now was, and did not stay */
	/* what the last mapping covered */
	uint64_t mapped_start, mapped_end;
	bool mapped_writable;
	/* pages whose accesses fail on purpose, oldest first; under the tlb lock */
	uint64_t barred[TRAP_MAX_BARRED];
	uint32_t nr_barred; /* read without it, too */
	/* the fault thread's own */
	uint64_t spin_ns; /* how long to look for the next event before sleeping */
	struct ahead ahead;
};

/* ---- trap_choose.c ---- */

/* A userfaultfd by this process's own rights, or -errno. */
int trap_open_own(void);
/* The same by a descriptor of the device; it is closed. */
int trap_open_device(int device);

/*
 * Decide on the trap that was asked for: before the arena is attached, under client_mutex or before
 * anybody else has it. -EPERM, -EOPNOTSUPP: userfaultfd was asked for and is not to be had.
 */
int trap_choose(struct arena *a);

/*
 * Have the daemon hold a copy of the userfaultfd: with its last one the kernel forgets what is
 * registered, and a system call of a thread that is being killed would read zeros.
 */
void trap_keep(struct arena *a);

/* ---- trap_signal.c: also where userfaultfd is the trap, for what is a signal there ---- */

int trap_install(void); /* counted; under client_mutex */
void trap_uninstall(void);
void trap_forget(void); /* in the child of fork(): nobody needs it any more */
/* Make [addr] accessible. 0, or 1 and the signal that refuses it. */
int client_fault(struct arena *a, uint64_t addr, unsigned access, struct fault_signal *refused);
/* Ask for what no entry permits. 0: look again; 1: refused. */
int client_ask_daemon(struct arena *a, uint64_t addr, unsigned access,
		      struct fault_signal *refused);

/* ---- trap_userfaultfd.c ---- */

/* The window is reserved and nobody uses it: have it trap. */
int userfault_trap_reserve(struct arena *a);
/* Start serving; and end, when nobody uses the window any more. In the own descriptor table. */
int userfault_trap_start(struct arena *a);
void userfault_trap_stop(struct arena *a);
/* client_fault() for this trap: what reached the thread as a signal. */
int userfault_trap_signal(struct arena *a, uint64_t addr, unsigned access,
			  struct fault_signal *refused);
/*
 * In a newborn child: serve in a thread that the C library knows nothing of, until userfault_trap_start()'s
 * takes its place, or it is dismissed.
 */
int userfault_trap_nurse(struct arena *a);
void userfault_trap_dismiss(struct arena *a);
/* Wait until the fault thread has taken the nurse's place. */
void userfault_trap_await(struct arena *a);
/* A call succeeded that may have made valid what was refused before. */
void userfault_trap_forgive(struct arena *a);

/* ---- both ---- */

/* Does the caller run on arena memory, by its stack or its thread-local data? Then it must not hold the tlb
 * lock. */
bool client_on_window_memory(const struct arena *a);
/* fn(a, arg), which takes the tlb lock and nothing else: on a stack that is no arena memory. */
void client_locked(struct arena *a, void (*fn)(struct arena *a, void *arg), void *arg);
/* Map what is present of a range and permits `access`. No promise. */
void client_map_range(struct arena *a, uint64_t start, uint64_t end, unsigned access);
/* The daemon has given the range these rights: see to it that system calls have them, too. */
void client_rights_given(struct arena *a, uint64_t start, uint64_t len, unsigned prot);

#endif
