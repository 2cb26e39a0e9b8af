/* SPDX-License-Identifier: MIT */
/*
 * mailbox.c - calls through the channel.
 *
 * A call takes a mailbox, packs the request into it, and spins a little for the reply before it
 * sleeps: a daemon that is polling answers in about a microsecond, one that has to be woken takes
 * tens. How long to spin follows how long replies took lately; a spin in vain halves it, and every
 * 16th call spins in full to notice that things got better. Who sees that his request was taken spins on for a
 * while: see spin_while_served(). On one CPU nobody spins.
 *
 * A trap may come in the middle of another call of the same thread, so nothing here is a lock:
 * mailboxes are bits of a word, taken by compare-and-swap.
 *
 * Calls may wait for another thread's FILE_RELEASE, all that there is room for. So one mailbox is for that
 * call only.
 */
#include <errno.h>

#include "base/os.h"
#include "base/util.h"
#include "libclient/internal.h"

#define SPIN_MAX 800u
#define SPIN_MIN 20u
#define SPIN_PROBE 16u
#define SPIN_SERVED 3200u

#define RELEASE_MAILBOX (ARENA_NR_MAILBOXES - 2)

void mailboxes_init(struct mailboxes *m, struct arena_mailbox *box)
{
	m->box = box;
	m->free = ~UINT64_C(0);
	m->freed = m->waiting = 0;
	m->next_id = 0;
	m->spin = SPIN_MAX;
	os_nr_cpus(); /* looks them up once, which a trap must not */
}
static_assert(ARENA_NR_MAILBOXES == 64, "a bit of one word per mailbox");

/* may: a bit for each that will do. */
static int try_take(struct mailboxes *m, uint64_t may)
{
	uint64_t free = load_relaxed(&m->free);

	while (free & may) {
		uint64_t one = free & may & -(free & may);

		if (__atomic_compare_exchange_n(&m->free, &free, free & ~one, false,
						__ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			return __builtin_ctzll(one);
	}
	return -EAGAIN;
}

static int take(struct arena *a, bool releases)
{
	struct mailboxes *m = &a->mail;
	uint64_t may = releases ? UINT64_MAX : ~(UINT64_C(1) << RELEASE_MAILBOX);
	uint64_t deadline = 0;
	uint32_t before = 0;
	int nr = try_take(m, may);

	while (nr < 0) {
		uint32_t freed = load_acquire(&m->freed);

		/* As long as others are answered, it is only a long queue. */
		if (!deadline || freed != before)
			deadline = link_deadline(a);
		before = freed;
		__atomic_fetch_add(&m->waiting, 1, __ATOMIC_SEQ_CST);
		nr = try_take(m, may);
		if (nr < 0)
			os_futex_wait(&m->freed, freed, link_slice(deadline));
		__atomic_fetch_sub(&m->waiting, 1, __ATOMIC_SEQ_CST);
		if (nr < 0 && !link_look(a, deadline))
			return -ECONNRESET;
	}
	return nr;
}

static void give_back(struct mailboxes *m, int nr)
{
	__atomic_fetch_or(&m->free, UINT64_C(1) << nr, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&m->waiting, __ATOMIC_SEQ_CST)) {
		__atomic_fetch_add(&m->freed, 1, __ATOMIC_RELEASE);
		os_futex_wake(&m->freed, 1);
	}
}

static bool spin_for_reply(struct mailboxes *m, struct arena_mailbox *box, uint64_t id)
{
	uint32_t usual = load_relaxed(&m->spin);
	uint32_t limit = id % SPIN_PROBE ? MIN(2 * usual + SPIN_MIN, SPIN_MAX) : SPIN_MAX;

	for (uint32_t i = 0; i < limit; i++) {
		if (load_acquire(&box->state) == ARENA_MAILBOX_REPLY) {
			store_relaxed(&m->spin, usual + i / 4 - usual / 4);
			return true;
		}
		__builtin_ia32_pause();
	}
	store_relaxed(&m->spin, usual / 2);
	return false;
}

/*
 * The daemon has taken the request while we were running: so it runs on another CPU and is at it now. To be woken
 * there would take as long again as most calls do.
 */
static bool spin_while_served(const struct arena *a, int nr)
{
	const struct arena_channel_header *ch = a->tlb.channel;
	const struct arena_mailbox *box = &a->mail.box[nr];

	for (uint32_t i = 0; i < SPIN_SERVED; i++) {
		if (load_acquire(&box->state) == ARENA_MAILBOX_REPLY)
			return true;
		if (load_relaxed(&ch->pending) & UINT64_C(1) << nr)
			return false;
		__builtin_ia32_pause();
	}
	return false;
}

static int wait_for_reply(struct arena *a, int nr, uint64_t id)
{
	struct arena_mailbox *box = &a->mail.box[nr];
	uint32_t state = ARENA_MAILBOX_REQUEST;
	uint64_t deadline;

	if (os_nr_cpus() > 1 && (spin_for_reply(&a->mail, box, id) || spin_while_served(a, nr)))
		return 0;
	__atomic_compare_exchange_n(&box->state, &state, ARENA_MAILBOX_REQUEST_WAIT, false,
				    __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
	deadline = link_deadline(a);
	while (load_acquire(&box->state) == ARENA_MAILBOX_REQUEST_WAIT) {
		int r = 0;
		bool more = !link_told(a);

		if (more)
			r = os_futex_wait(&box->state, ARENA_MAILBOX_REQUEST_WAIT,
					  link_slice(deadline));
		if (r == -ETIMEDOUT)
			more = link_look(a, deadline);
		/* The daemon may have answered and then gone. */
		if (!more && load_acquire(&box->state) != ARENA_MAILBOX_REPLY)
			return -ECONNRESET;
	}
	return load_acquire(&box->state) == ARENA_MAILBOX_REPLY ? 0 : -EPROTO;
}

static void send_request(struct arena *a, int nr)
{
	struct arena_channel_header *ch = a->tlb.channel;

	store_release(&a->mail.box[nr].state, ARENA_MAILBOX_REQUEST);
	__atomic_fetch_or(&ch->pending, UINT64_C(1) << nr, __ATOMIC_SEQ_CST);
	/* After the bit: a daemon that goes to sleep clears daemon_poll, then looks at the bits. */
	if (!__atomic_load_n(&ch->daemon_poll, __ATOMIC_SEQ_CST))
		client_ring(a);
}

static int exchange(struct arena *a, int nr, Arena__Request *request, struct mail_reply *m,
		    struct meanwhile w)
{
	struct arena_mailbox *box = &a->mail.box[nr];
	/* cppcheck-suppress ctuuninitvar; memory to be filled */
	struct frame_arena fa = {.buf = m->memory, .size = sizeof(m->memory)};
	uint64_t id = __atomic_add_fetch(&a->mail.next_id, 1, __ATOMIC_RELAXED);
	size_t len;
	int r;

	r = frame_pack_request(request, box->payload, sizeof(box->payload), &len);
	if (r < 0)
		return r;
	box->len = (uint32_t)len;
	box->request_id = id;
	send_request(a, nr);
	if (w.fn)
		w.fn(a, w.arg);
	r = wait_for_reply(a, nr, id);
	if (r < 0)
		return r;
	if (box->request_id != id || box->len > sizeof(box->payload))
		return -EPROTO;
	return frame_unpack_reply(box->payload, box->len, &fa, &m->reply) < 0 ? -EPROTO : 0;
}

int mailbox_call(struct arena *a, Arena__Request *request, struct mail_reply *m, bool blocked)
{
	return mailbox_call_while(a, request, m, blocked, (struct meanwhile){0});
}

int mailbox_call_while(struct arena *a, Arena__Request *request, struct mail_reply *m, bool blocked,
		       struct meanwhile w)
{
	int nr, r;

	ASSERT(!small_lock_held(&a->tlb.lock));
	if (link_state(a) == LINK_DEAD || link_told(a))
		return -ECONNRESET;
	nr = library_thread_serves(a)
		     ? TRAP_MAILBOX
		     : take(a, request->call_case == ARENA__REQUEST__CALL_FILE_RELEASE);
	if (nr < 0)
		return nr;
	r = exchange(a, nr, request, m, w);
	/* A mailbox that the daemon may still answer is never used again. */
	if (r == -ECONNRESET)
		return r;
	store_release(&a->mail.box[nr].state, ARENA_MAILBOX_FREE);
	if (nr != TRAP_MAILBOX || !a->trap.on)
		give_back(&a->mail, nr);
	if (r < 0)
		return r;
	if (m->reply->flush_seq)
		client_flush_upto(a, m->reply->flush_seq, blocked);
	if (m->reply->error > 0)
		return -m->reply->error;
	if (request->call_case != ARENA__REQUEST__CALL_FAULT)
		userfault_trap_forgive(a);
	return 0;
}
