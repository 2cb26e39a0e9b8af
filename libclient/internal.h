/* SPDX-License-Identifier: MIT */
/*
 * internal.h - what an arena_t is, and who in libclient does what.
 *
 *   arena.c         open, attach, close; the registry of handles and windows
 *   connect.c       the socket: finding it, hello, calls over it
 *   link.c          is the daemon there; how long to wait for it
 *   reconnect.c     another connection for the same address space
 *   mailbox.c       calls through the channel; allowed in traps
 *   tlb.h           page table walk, notes, refill, flush
 *   flush_thread.c  applies what the daemon takes away
 *   trap.h          a miss: refill or FAULT; by SIGSEGV or by userfaultfd
 *   agent.h         where descriptors are that the program cannot close
 *   sigchain.c      the program's own SIGSEGV and SIGBUS actions
 *   calls.c calls_lock.c file.c shm.c pages.c attr.c   the public calls
 *   fork.c          a copy of all this for the child of fork(); catch.h, bare.h: how it is there in time
 *   join.c          pthread_join() where a thread's stack may move
 *   own.h           memory that is not the program's heap
 *
 * Locks, in the order they are taken: an arena's open_mutex (attach, shm_open), client_mutex (open, close,
 * fork), an arena's sock_mutex, its tlb lock, the lock of sigchain.c. The last two are small_locks that
 * traps take; no thread sends or waits for the daemon with one of them, or with client_mutex.
 *
 * Functions return 0 or -errno; the public ones turn that into errno.
 */
#ifndef LIBCLIENT_INTERNAL_H
#define LIBCLIENT_INTERNAL_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/un.h>

#include "arena/abi.h"
#include "arena/arena.h"
#include "libclient/agent.h"
#include "libclient/bare.h"
#include "libclient/tlb.h"
#include "libclient/trap.h"
#include "proto/frame.h"

#define CLIENT_VERSION "0.1.0"
#define CLIENT_MAX_ARENAS 64u

/* Memory to unpack a mailbox's reply: small, for a trap may be on a small stack. */
#define CLIENT_REPLY_ARENA 512u

struct mailboxes {
	struct arena_mailbox *box;
	uint64_t free;    /* bit per mailbox */
	uint32_t freed;   /* futex: counts while somebody waits for one */
	uint32_t waiting; /* threads that do */
	uint64_t next_id;
	uint32_t spin; /* how long replies took lately, in pauses */
};

enum link_state { LINK_UP, LINK_LOST, LINK_DEAD };

/* The flush thread's: when to try again to make a connection that was lost. */
struct link_retry {
	uint64_t deadline;     /* 0: nothing was tried yet */
	uint64_t next, pause;  /* not before; the pause after that */
	uint64_t nobody_since; /* nobody has listened; 0: somebody has */
	uint64_t restored; /* when it came back last: a connection that does not last is no haste */
};

struct arena {
	pthread_mutex_t
		open_mutex; /* attach, shm_open: what they make is in place when it is let go */
	/* the socket; under sock_mutex, but for who only looks whether it hung up */
	int sock;
	ino_t sock_ino; /* is that number still ours? */
	pthread_mutex_t sock_mutex;
	uint64_t sock_id; /* of the last request, over all connections */
	struct sockaddr_un address;
	bool own_path;
	char comm[32];
	int refusal;      /* -errno that the daemon gave as its last word */
	uint32_t link;    /* futex: enum link_state */
	uint32_t look;    /* somebody waits: the flush thread is to check the socket */
	unsigned wait_ms; /* UINT_MAX: for ever */
	struct link_retry retry;
	uint32_t closing; /* nobody waits any more */
	uint32_t foreign; /* a copy in the child of fork(): every call is EBADF */

	/* the address space; valid once `attached` is seen set */
	uint32_t attached;
	uint32_t attaching;
	uint32_t mm_id;
	uint8_t token[16];
	struct sock_buffer *spare; /* for reconnection, which must not allocate */
	uint64_t window_wanted;
	int doorbell;
	void *mm_map, *channel_map;
	uint64_t mm_len, channel_len;
	struct mailboxes mail;
	struct tlb tlb;
	pthread_t flush_thread;
	bool flush_running;
	uint32_t flush_stop;
	struct job_list flush_jobs;
	bool trapped; /* counted by trap_install() */

	uint64_t refused
		[64]; /* gather.c: leaves, by the lowest bits of their numbers; without a lock */

	/* fork.c */
	uint32_t forking;    /* futex: 1 between the copy and the child */
	pid_t forker;        /* thread */
	uint64_t fork_since; /* clock_now() */
	uint32_t gated;      /* an access waits for the gate to open */
	uint32_t child_id;   /* of the copy; 0: none, the child has no arena */
	uint8_t child_token[16];
	enum arena_trap child_trap;
	bool carries_thread; /* the stack or the thread-local data of who forks lie in it */
	bool newborn;        /* attached to the copy, served by the nurse: it has no threads yet */
	struct bare nurse;   /* where the thread runs that serves it until then */
	enum arena_trap trap_wanted;
	struct userfault_trap trap;
	struct agent agent;
};

struct arena_shm {
	struct arena *arena;
	uint32_t segment;
};

/* ---- arena.c ---- */

/* For open, attach, close and fork. */
extern pthread_mutex_t client_mutex;
/* 0 if `a` is an open handle of this process; -EINVAL, -EBADF. */
int client_enter(const struct arena *a);
/* The same, and its address space exists from here on. */
int client_enter_attached(struct arena *a);
/* Run on every handle, also one being closed; under client_mutex. */
void client_for_each(void (*f)(struct arena *a));
/*
 * The arena whose window has `addr`, held until client_put_window(*hold): it is not closed
 * meanwhile. NULL if there is none. For traps.
 */
struct arena *client_get_window(uint64_t addr, unsigned *hold);
void client_put_window(unsigned hold);
/* Map the mm file and the channel that attach brought. */
int client_map_shared(struct arena *a, int mm_fd, int channel_fd);
/* The window is there for traps (again). */
void client_publish(struct arena *a);
/* fork.c: the child has no windows and no trap. */
void client_forget_windows(void);
/* errno and -1 for a negative r, else r. */
int client_return(int r);

/* What attach's reply carries. */
enum { FD_MM, FD_CHANNEL, FD_DOORBELL, FD_ARENA, NR_ATTACH_FDS };

/* ---- connect.c ---- */

/* A socket call's packets; large, so from the heap. */
struct sock_buffer {
	uint64_t id;
	size_t len;
	int fd;                                /* goes with the request; -1: none */
	char packet[ARENA_SOCKET_MAX_MESSAGE]; /* the request, to be sent again if need be */
	char reply[ARENA_SOCKET_MAX_MESSAGE];
	char arena[FRAME_ARENA_SOCKET];
};

int connect_daemon(struct arena *a, const char *path);
/*
 * One call over the socket. 0 and *reply (in `b`), or -errno, which may be the reply's own error.
 * Descriptors that came, at most max_fds, are the caller's.
 */
int socket_call(struct arena *a, Arena__Request *request, struct sock_buffer *b,
		Arena__Reply **reply, int *fds, unsigned max_fds, unsigned *nr_fds);
/* The same for a request that carries a descriptor, which stays the caller's. */
int socket_call_with(struct arena *a, Arena__Request *request, int fd, struct sock_buffer *b,
		     Arena__Reply **reply);
/* The same descriptor at a high number, out of the program's way; `fd` is consumed. */
int client_high_fd(int fd);
uint32_t client_umask(void);

/* Its pieces, for reconnect.c. All allocate nothing; deadlines are clock_now()'s. */
int sock_connect(const struct arena *a, int *out);
void sock_set(struct arena *a, int fd);
int sock_hello(struct arena *a, int sock, struct sock_buffer *b, uint64_t deadline);
int sock_pack(Arena__Request *request, struct sock_buffer *b);
/* Send b->packet, and wait for its reply: the length of b->reply, or -errno; -ENOTCONN: lost. */
ssize_t sock_exchange(struct arena *a, int sock, struct sock_buffer *b, uint64_t deadline, int *fds,
		      unsigned max_fds, unsigned *nr_fds);
/* 0 and *reply; -EBADMSG: it is none; the reply's own -errno. Then the descriptors are closed. */
int sock_unpack(struct sock_buffer *b, size_t len, Arena__Reply **reply, int *fds,
		unsigned *nr_fds);

/* ---- link.c: all of it is allowed in traps ---- */

enum link_state link_state(const struct arena *a);
/* When a wait that begins now has been long enough, and how long to sleep until the next look. */
uint64_t link_deadline(const struct arena *a);
uint64_t link_slice(uint64_t deadline);
/* Look around: is there still something to wait for? */
bool link_look(struct arena *a, uint64_t deadline);
/* The daemon said that there is nothing to wait for. Cheap; also in link_look(). */
bool link_told(struct arena *a);
/* Look at the socket: has it hung up, or the program closed it? */
void link_check(struct arena *a);
void link_lost(struct arena *a);
void link_die(struct arena *a);
void link_restored(struct arena *a);
/* Wait until the connection is there again. False: it will not be. */
bool link_await(struct arena *a, uint64_t deadline);
/* Is our socket's number still our socket's? */
bool link_owns_socket(const struct arena *a);

/* ---- reconnect.c ---- */

/* One attempt. 0 or -errno. */
int link_reconnect(struct arena *a, uint64_t deadline);
/*
 * In the child of fork(): attach to its own copy, whose number and token are in place. `userfault`: its
 * trap is that; -EPERM, -EOPNOTSUPP: it is not to be had, and nothing has happened. With nothing
 * but system calls.
 */
int link_attach_child(struct arena *a, uint64_t deadline, bool userfault);
/* The flush thread: try, if it is time to. 0: the link is not lost any more; else ns to sleep. */
uint64_t link_restore(struct arena *a);

/* ---- mailbox.c ---- */

struct mail_reply {
	Arena__Reply *reply;
	_Alignas(16) char memory[CLIENT_REPLY_ARENA];
};

void mailboxes_init(struct mailboxes *m, struct arena_mailbox *box);
/*
 * One call through a mailbox; flushes that the reply asks for are done on return. 0 or -errno,
 * which may be the reply's own error. `blocked`: as tlb_lock. Async-signal-safe.
 */
int mailbox_call(struct arena *a, Arena__Request *request, struct mail_reply *m, bool blocked);
/* What its caller does while the daemon is at work on it: nothing that waits for the daemon. fn NULL: nothing. */
struct meanwhile {
	void (*fn)(struct arena *a, void *arg);
	void *arg;
};
int mailbox_call_while(struct arena *a, Arena__Request *request, struct mail_reply *m, bool blocked,
		       struct meanwhile w);

/* ---- gather.c ---- */

/* A miss at addr, near the limit of mappings: see to it that fewer are needed. Without the tlb lock. */
void client_gather(struct arena *a, uint64_t addr);

/* ---- zero.c ---- */

/* When attached. Without it, what is read gets frames as what is written does. */
void client_ask_zero(struct arena *a);

/* ---- flush_thread.c ---- */

int flush_thread_start(struct arena *a);
void flush_thread_stop(struct arena *a);
/* Have it look at the link. */
void flush_thread_nudge(struct arena *a);
/* While it waits for something else: apply what is in the ring. */
void flush_thread_pass(struct arena *a);
/* Have it call fn(a, arg), which takes the tlb lock and nothing else; wait for that. */
void flush_thread_run(struct arena *a, job_fn *fn, void *arg);
/* In a calling thread: apply the ring at least up to `seq`. */
void client_flush_upto(struct arena *a, uint64_t seq, bool blocked);

/* ---- sigchain.c ---- */

typedef void (*sigchain_handler)(int, siginfo_t *, void *);

int sigchain_install(sigchain_handler handler);
void sigchain_uninstall(sigchain_handler handler);
/* As the kernel would: call the program's handler, or arrange its death. Called by the handler. */
void sigchain_deliver(int sig, siginfo_t *info, void *context);
void sigchain_before_fork(void);
void sigchain_after_fork(bool child);

/* ---- fork.c ---- */

int fork_handlers_register(void);
/* In a trap: another thread is in fork(), whose child shall have the memory of one moment. */
void fork_gate(struct arena *a);
/* The same for the access of a thread that is held: not now? Then it is repeated when the gate opens. */
bool fork_gate_holds(struct arena *a, pid_t thread);

#endif
