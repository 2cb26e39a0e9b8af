/* SPDX-License-Identifier: MIT */
/*
 * internal.h - what the files of this room share.
 *
 *	loop.c      the loop: sockets, doorbells, adaptive polling, going to sleep, timers
 *	listener.c  the listening socket (listener.h)
 *	accept.c    connections and whose they are
 *	keeper.c    the supervisor or systemd above us
 *	peer.c      a peer's life from hello to the last frame
 *	packet.c    requests out of a socket
 *	mailbox.c   requests out of a channel, replies into it
 *	call.c      decoding, the method table, replies, calls that are answered later
 *	recover.c   connections taken over from a worker that died, and the call it died in
 *	reattach.c  an address space whose connection was lost gets another
 *	handlers_*  a family of calls each; handlers_userfault.c also opens the device
 *
 * Lifetime of a peer: the struct is freed by service_reap() only, between calls, so whoever holds
 * a pointer may go on to ask peer_is_closed() after anything that may have closed it.
 */
#ifndef SERVICE_INTERNAL_H
#define SERVICE_INTERNAL_H

#include <bsd/sys/queue.h>
#include <event2/event.h>

#include "daemon/service/service.h"
#include "proto/frame.h"

#define SERVICE_MAX_PEERS 4096u
#define SERVICE_HELLO_SECONDS 10
#define SERVICE_MAX_BAD_MESSAGES 16u
#define SERVICE_PACKETS_PER_ROUND 16u
#define SERVICE_NR_SNAPSHOTS 4u
#define SERVICE_MINCORE_BYTES 256u
#define SERVICE_ATTR_PIECE (48u << 10)
#define SERVICE_MAX_COMM 32
#define SERVICE_TOKEN_BYTES 16u
#define SERVICE_MAX_DEATHS 3u /* so many workers may die in one call */
#define SERVICE_MAX_KILLS 30u /* of kills, which are hardly ever the call's doing */

/* ---- peers ----------------------------------------------------------------------- */

enum peer_state {
	PEER_NEW,    /* has not said hello */
	PEER_READY,  /* has */
	PEER_BYE,    /* said bye: nothing of it is mapped any more */
	PEER_ORPHAN, /* connection over, but the process lives and still maps frames */
	PEER_CLOSED, /* over; waits for service_reap() */
};

/* What one read of an attribute at offset 0 gave; later offsets of the path read from it. */
struct snapshot {
	char *path, *text;
	size_t len;
	uint64_t used; /* service's clock of uses, for taking the oldest */
};

LIST_HEAD(later_list, later);

/* The answer to a call that must not happen twice, whose connection was lost before it came. */
struct once_reply {
	uint64_t id; /* 0: there is none */
	uint32_t len;
	uint8_t bytes[JOURNAL_REPLY_MAX];
};

struct peer {
	struct service *service;
	uint32_t id;           /* client-ID and pidfd-ID of the store; 0: not kept there (yet) */
	LIST_ENTRY(peer) link; /* service's peers, or its closed ones */
	TAILQ_ENTRY(peer) polled_link; /* while `polled` */
	enum peer_state state;
	struct credentials cred; /* groups: ours */
	char comm[SERVICE_MAX_COMM];
	int fd, pidfd, doorbell; /* -1: none */
	int userfault;           /* holds the process's userfaultfd, unread; -1: none */
	struct event *socket_event, *hangup_event, *pidfd_event, *doorbell_event, *hello_timer;
	struct mm *mm;
	unsigned bad_messages;
	bool refused;        /* closed by us, for what it did */
	bool recovered;      /* said hello to an earlier worker, and may have got no answer */
	bool in_socket;      /* the packet being served lies in the socket until it is answered */
	bool polled;         /* daemon_poll is set and the loop looks at the channel by itself */
	uint64_t last_call;  /* when a mailbox of it was served */
	uint64_t taken;      /* mailboxes taken out of `pending`, not served yet */
	uint64_t unanswered; /* mailboxes whose call is answered later */
	uint64_t unflushed;  /* mailboxes whose next answer names all flushes there are */
	uint64_t found; /* mailboxes taken though their bit was not set yet: it may still come */
	struct once_reply *once; /* NULL: none */
	uint64_t flush_seen;     /* flush last asked about, and how often: see flush timer */
	unsigned flush_asked;
	struct snapshot snapshot[SERVICE_NR_SNAPSHOTS];
	struct later_list later; /* calls to be answered later */
};

/* A peer for a connection; takes over fd and pidfd (-1: by cred->pid), also on failure. */
int peer_create(struct service *s, int fd, int pidfd, const struct credentials *cred,
		struct peer **out);
/* It said that nothing is mapped any more: the frames come back, the connection stays. */
void peer_bye(struct peer *p);
/* The connection is over for whatever reason; frames stay while the process may map them. */
void peer_close(struct peer *p);
/* The same, and the frames come back whatever the process maps. */
void peer_destroy(struct peer *p);
/* Forget it, and nothing else: what a worker's death does. */
void peer_abandon(struct peer *p);
/* Close with a log line: it does not speak the protocol, or not as a client may. */
void peer_refuse(struct peer *p, const char *why);
/* One more message that is not one. */
void peer_bad_message(struct peer *p, const char *what);
/* The process maps the window's files from here on: doorbell is watched. Takes over doorbell. */
int peer_attached(struct peer *p, struct mm *mm, int doorbell);
/* The part of it that another worker has to do again. */
int peer_watch_doorbell(struct peer *p, int doorbell);
/* What holds its userfaultfd, which outlives this worker, too. Takes over fd. */
void peer_keep_userfault(struct peer *p, int fd);
/* It has said hello: from here on its connection outlives this worker. */
void peer_keep(struct peer *p);
/* Taken over from the store: as peer_create(), but it has said hello as number `id` already. fd -1:
 * the process of an address space without a connection. */
int peer_adopt(struct service *s, uint32_t id, int fd, int pidfd, const struct credentials *cred,
	       struct peer **out);
/* It takes over the address space of `from`, which is closed. */
void peer_inherit(struct peer *p, struct peer *from);
/* Nobody looks at its channel any more; it keeps the address space. */
void peer_detach(struct peer *p);
/* Its address space ends, the connection goes on as before attach. */
void peer_forget_mm(struct peer *p);
/* Nobody serves it any more; the address space stays. */
void peer_orphan(struct peer *p);
/* Have the process do without us at once: it is told that no more answers come, and why. */
void peer_farewell(struct peer *p, enum arena_daemon_state state, int error);
/* Fill p->comm from what the client says. */
void peer_set_comm(struct peer *p, const char *comm);

/* For peer.c and packet.c. */
int peer_add_event(struct peer *p, struct event **ev, int fd, short what, event_callback_fn cb,
		   const struct timeval *timeout);
void peer_free_event(struct event **ev);

/* ---- packets --------------------------------------------------------------------- */

void peer_socket_cb(evutil_socket_t fd, short what, void *data);
/* The descriptor that came with the packet being served; -1: none. The caller's. */
int service_take_descriptor(struct service *s);
void service_drop_descriptor(struct service *s);
/* The packet in the socket is answered, and may go; others may come. */
void peer_packet_done(struct peer *p);
/* Read no more until peer_packet_done(). */
void peer_packet_later(struct peer *p);
/* The length of the packet that lies in the socket, now in service.packet, if it is request `id`; 0:
 * it is not. */
size_t peer_find_packet(struct peer *p, uint64_t id);
/* The connection was closed at its other end, whether or not we have read that yet. */
bool peer_hung_up(const struct peer *p);
/* The last word to whoever is at the other end. */
void send_farewell(int fd, int error);

/* ---- calls ----------------------------------------------------------------------- */

#define CALL_SOCKET UINT32_MAX

/* A request being served: where its answer goes and what it will be. */
struct call {
	struct peer *peer;
	uint32_t mailbox; /* CALL_SOCKET: a packet */
	uint64_t id;
	uint64_t posted; /* mm_flush_posted() when it came */
	const Arena__Request *request;
	Arena__Reply reply;
	union {
		Arena__HelloReply hello;
		Arena__AttachReply attach;
		Arena__FaultReply fault;
		Arena__AddressReply address;
		Arena__PopulateReply populate;
		Arena__ShmOpenReply shm_open;
		Arena__ShmStatReply shm_stat;
		Arena__AllocPagesReply alloc_pages;
		Arena__AttrReadReply attr_read;
		Arena__ForkReply fork;
		Arena__MincoreReply mincore;
	} result;
	uint8_t bits[SERVICE_MINCORE_BYTES]; /* of result.mincore */
	int fds[ARENA_SOCKET_MAX_FDS];
	bool own_fd[ARENA_SOCKET_MAX_FDS]; /* closed when the reply is out */
	unsigned nr_fds;
	bool close_after; /* refuse the peer when it has the answer */
	const char *close_why;
};

/* Answer with this member of the union; evaluates to a pointer to it, initialised. */
#define CALL_RESULT(call, member, CASE)                                  \
	({                                                               \
		arena__##member##_reply__init(&(call)->result.member);   \
		(call)->reply.result_case = ARENA__REPLY__RESULT_##CASE; \
		(call)->reply.member = &(call)->result.member;           \
		&(call)->result.member;                                  \
	})

/* A handler's return: the reply is not due yet, call_later() has the call. */
#define CALL_LATER INT32_MIN

/* 0, ARENA_E_*, -errno: what the client gets; or CALL_LATER. */
typedef int handler_fn(struct call *call);

enum method_where { METHOD_SOCKET = 1, METHOD_MAILBOX = 2, METHOD_BOTH = 3 };
enum method_needs { METHOD_NEEDS_NOTHING, METHOD_NEEDS_HELLO, METHOD_NEEDS_MM };

/*
 * Done again after a worker died in it, an AGAIN call comes to the same end, for nothing else is
 * served in between. A ONCE call would not: the journal has its answer before it is delivered.
 */
enum method_repeat { METHOD_AGAIN, METHOD_ONCE };

struct method {
	const char *name; /* NULL: no such call */
	handler_fn *handler;
	enum method_where where;
	enum method_needs needs;
	enum method_repeat repeat;
};
/* NULL for a case without a row. */
const struct method *method_find(unsigned request_case);

#define METHOD(CASE, name, handler, where, needs, repeat) handler_fn handler;
#include "daemon/service/methods.def"
#undef METHOD

/* Decode, serve and answer what came by `mailbox`, or CALL_SOCKET. */
void call_serve(struct peer *p, uint32_t mailbox, uint64_t id, const void *bytes, size_t len);
/* Descriptors travel with the reply in the order of these calls; owned ones are closed then. */
void call_add_fd(struct call *call, int fd, bool owned);

/*
 * A call that waits for other clients' flushes. Make one, hand `wait` to the operation, then
 * either drop it (nobody to wait for) or return call_later(), which answers when all have
 * acknowledged or the deadline has passed.
 */
struct later {
	LIST_ENTRY(later) link;           /* the peer's */
	TAILQ_ENTRY(later) finished_link; /* the service's, while `finished` */
	struct flush_wait wait;
	struct io_wait io;
	struct call call;
	struct event *deadline;
	bool finished;
	bool redo; /* served again instead, when io is over */
};
struct later *later_create(struct call *call);
struct later *later_drop(struct later *l);
int call_later(struct later *l);
/* The same, for a call that waits for files, however long they take: l->io is handed to the operation, and
 * its error answered. */
int call_later_io(struct later *l);
/* The same, and the call is served once more then (service.redoing). */
int call_redo_io(struct later *l);
/*
 * Before part of the address space is replaced or unmapped, what is dirty there goes into its files: so a worker that
 * follows in the middle finds it to do. How writing went is not told. CALL_LATER: the call is served again after that,
 * when call_writes_first() is false. 0: there is nothing to wait for.
 */
struct file_piece {
	uint64_t addr, len;
};
bool call_writes_first(const struct call *call);
int call_write_back(struct call *call, const struct file_piece *pieces, unsigned nr);
/* An operation answered ARENA_E_WAIT_IO: have the call served again when that is over. */
int call_wait_io(struct call *call);
/* Answer the calls whose wait is over. True: there were some. */
bool service_answer_finished(struct service *s);

/* The descriptors that a reply to attach and to shm_open carries. 0, -errno. */
int call_add_attach_fds(struct call *call, struct mm *mm);
int call_add_slot_fd(struct call *call, struct mm *mm, uint32_t slot);
/* A doorbell for the peer, and an answer that carries all of attach's descriptors. */
int call_attach(struct call *call, struct mm *mm);
/* attach for an address space that is there already. */
int reattach(struct call *call);
/* The call that was being served when the last worker died: finish or repeat it. */
void call_finish_interrupted(struct service *s);
/* A stored answer goes out again. */
void call_answer_again(struct peer *p, uint32_t mailbox, uint64_t id, const void *bytes,
		       size_t len);

/* Stores the packed answer; wakes the caller. */
void mailbox_reply(struct peer *p, uint32_t mailbox, uint64_t id, const void *bytes, size_t len);
/* Does the mailbox (still) hold the request with this number, and nobody serves it? */
bool mailbox_holds(const struct peer *p, uint32_t mailbox, uint64_t id);
void mailbox_serve(struct peer *p, uint32_t mailbox);
/* Find requests by the mailboxes' states: who took their bits did not serve them. */
void channel_scan(struct peer *p);
/* Who waits in the channel looks at daemon_state. */
void channel_wake(struct peer *p);
/* The peer's channel has requests that nobody has looked at. */
bool channel_pending(const struct peer *p);

/* ---- the service ----------------------------------------------------------------- */

LIST_HEAD(peer_list, peer);
TAILQ_HEAD(polled_list, peer);
TAILQ_HEAD(finished_list, later);
LIST_HEAD(forked_list, forked);

struct service {
	struct machine *machine;
	const struct service_attr_ops *attr;
	void *attr_ctx;
	int listen_fd;
	int userfault_device; /* -1: it cannot be had */
	struct event_base *base;
	struct event *listen_event, *listen_retry, *kzerod_event, *kzerod_timer, *flush_timer;
	struct event *files_event, *files_timer;
	uint64_t files_deadline; /* the timer's; UINT64_MAX: it does not run */
	struct event *signal_event[3];
	struct event *watchdog_timer, *supervisor_event;
	struct peer_list peers;
	struct peer_list closed; /* for service_reap() */
	unsigned nr_peers;
	struct polled_list polled;
	struct finished_list finished;
	struct forked_list forked; /* copies that wait for a child */
	bool stopping;
	bool interrupted;   /* the last worker died in a call that nobody has looked after */
	bool worked;        /* since last asked: something was served */
	uint64_t last_call; /* when a mailbox was served last */
	uint64_t mean_gap;  /* average time from a call's end to the next call, ns */
	uint64_t budget;    /* how long to poll for the next call, ns */
	unsigned skipped;   /* calls since one was polled for though it was not worth it */
	bool in_vain;       /* the last poll ended without a call */
	bool slept;         /* since the last call */
	bool kzerod_waits;  /* its timer runs */
	bool flush_running; /* the flush timer runs; asking libevent is dearer */
	bool flush_soon;    /* with its short delay */
	uint64_t uses;      /* clock of snapshots */
	struct {
		uint64_t since;
		unsigned lines, dropped;
	} warned;
	/* One request is decoded at a time. */
	bool redoing;  /* the call being served has waited for files, and is served once more */
	int packet_fd; /* that came with it, ours; -1: none */
	char packet[ARENA_SOCKET_MAX_MESSAGE];
	char frame[FRAME_ARENA_SOCKET];
};

static inline struct state *service_state(struct service *s)
{
	return phys_state(s->machine->phys);
}

/* A CPU number is a hint of the client's: whatever it says, it is one of ours. */
static inline unsigned call_cpu(const struct call *call, uint32_t cpu)
{
	return cpu % call->peer->service->machine->topology.nr_cpus;
}

/* Again: the client shall acknowledge what is posted before it asks once more. */
static inline int call_flush_again(struct call *call, int r)
{
	if (r == ARENA_E_AGAIN)
		call->posted = UINT64_MAX;
	return r;
}

/*
 * A copy of memory is that of the moment when the client has lost the right to write. Another call may have
 * taken that before, by a flush that nobody has applied yet: then this one posted none, and its caller shall
 * apply the other's.
 */
static inline void call_flush_all(struct call *call)
{
	call->posted = UINT64_MAX;
}

/* Round *len up to pages; false if address + length leaves 64 bits. */
static inline bool round_range(uint64_t addr, uint64_t *len)
{
	uint64_t end;

	if (*len > ARENA_PAGE_MASK)
		return false;
	*len = ALIGN_UP(*len, ARENA_PAGE_SIZE);
	return !__builtin_add_overflow(addr, *len, &end);
}

static inline bool page_aligned(uint64_t addr)
{
	return IS_ALIGNED(addr, ARENA_PAGE_SIZE);
}

/* A warning about what clients did; a hostile one cannot fill the log with it. */
void service_warn(struct service *s, const char *fmt, ...) __printf_(2, 3);
/* The channel was active: look at it without being told, for a while. */
void service_poll_peer(struct service *s, struct peer *p);
void service_stop_polling(struct service *s, struct peer *p);
/* Wake the flush threads of all other clients that have something to acknowledge. */
void service_hurry_flushes(struct service *s, const struct peer *except);
/* After any batch of work: acknowledgements, finished calls, zeroed blocks, closed peers. */
void service_settle(struct service *s);
void service_reap(struct service *s);
/* Take over what an earlier worker left in the store and in the machine. 0, -errno. */
int service_recover(struct service *s);

/* The kernel's word on who connected; groups are malloc'ed. 0, -errno. */
int peer_credentials(int fd, struct credentials *cred, gid_t **groups);
/* A copy of an address space waits for its child, for a while. */
int service_expect_child(struct service *s, struct mm *mm);
void service_forget_children(struct service *s, bool free_memory);
bool attach_forked(struct call *call, int *r);
bool service_token_is(const struct mm *mm, const ProtobufCBinaryData *given);
/* Into userfault_device, if this process may. */
void service_open_userfault(struct service *s);

void service_accept_cb(evutil_socket_t fd, short what, void *data);
void service_unwatch_keeper(struct service *s);
void service_block_signals(struct service *s);
void service_accept_again(struct service *s); /* a descriptor was given back */

#endif
