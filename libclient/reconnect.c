/* SPDX-License-Identifier: MIT */
/*
 * reconnect.c - another connection for an address space that lost its own: connect, hello, attach with
 * its number and token, and all descriptors again.
 *
 * Whoever needs the connection waits (link.c); the flush thread makes it, between flushes, for a
 * trap must not. Nothing here allocates: a thread that waits for us may hold the C library's
 * lock. The new descriptors take the old ones' numbers, so that nobody ever uses a number that
 * was closed; where the program has closed the old ones their numbers are the program's, and left
 * alone.
 *
 * Mappings, tables and the channel are what they were: requests lie in their mailboxes, and the daemon
 * looks through them all.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/os.h"
#include "base/util.h"
#include "libclient/internal.h"

#define RETRY_FIRST (10 * NSEC_PER_MSEC)
#define RETRY_MAX (500 * NSEC_PER_MSEC)
#define LASTING (2 * NSEC_PER_SEC)
/* A keeper that lives listens: where nobody does there is nothing left to come back to. */
#define NOBODY_FOR NSEC_PER_SEC

struct attempt {
	struct arena *arena;
	int sock;
	uint64_t deadline;
	struct sock_buffer *b;
	Arena__Reply *reply;
	int fds[NR_ATTACH_FDS];
	unsigned nr_fds;
};

static int ask(struct attempt *t, Arena__Request *request, int *fds, unsigned max_fds,
	       unsigned *nr_fds)
{
	struct arena *a = t->arena;
	ssize_t n;
	int r;

	request->id = __atomic_add_fetch(&a->sock_id, 1, __ATOMIC_RELAXED);
	r = sock_pack(request, t->b);
	if (r < 0)
		return r;
	n = sock_exchange(a, t->sock, t->b, t->deadline, fds, max_fds, nr_fds);
	return n < 0 ? (int)n : sock_unpack(t->b, (size_t)n, &t->reply, fds, nr_fds);
}

static int ask_attach(struct attempt *t)
{
	struct arena *a = t->arena;
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Attach attach = ARENA__ATTACH__INIT;
	int r;

	attach.window_base = a->tlb.base;
	attach.window_size = a->tlb.size;
	attach.mm_id = a->mm_id;
	attach.token.data = a->token;
	attach.token.len = sizeof(a->token);
	request.call_case = ARENA__REQUEST__CALL_ATTACH;
	request.attach = &attach;
	r = ask(t, &request, t->fds, NR_ATTACH_FDS, &t->nr_fds);
	if (r < 0)
		return r;
	return t->nr_fds == NR_ATTACH_FDS && t->reply->result_case == ARENA__REPLY__RESULT_ATTACH &&
			       t->reply->attach->mm_id == a->mm_id
		       ? 0
		       : -EPROTO;
}

/* 0 and the descriptor of a slot above 0, or -ENOENT: it is not in use any more. */
static int ask_slot(struct attempt *t, uint32_t number, int *fd)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Slot slot = ARENA__SLOT__INIT;
	unsigned nr = 0;
	int r;

	slot.number = number;
	request.call_case = ARENA__REQUEST__CALL_SLOT;
	request.slot = &slot;
	r = ask(t, &request, fd, 1, &nr);
	return r < 0 || nr == 1 ? r : -EPROTO;
}

static void replace_slot(struct arena *a, unsigned slot, int fd)
{
	int left = tlb_slot_replace(&a->tlb, slot, client_high_fd(fd));

	closep(&left);
}

static int ask_slots(struct attempt *t)
{
	struct arena *a = t->arena;

	for (unsigned slot = 1; slot < ARENA_MAX_SLOTS; slot++) {
		int fd, r;

		if (!tlb_slot_is_known(&a->tlb, slot))
			continue;
		r = ask_slot(t, slot, &fd);
		if (r == 0)
			replace_slot(a, slot, fd);
		else if (r == -ENOENT)
			tlb_slot_is_gone(&a->tlb, slot);
		else
			return r;
	}
	return 0;
}

/* `fd` under the number `old`, if that is still ours; else under its own. */
static int put_in_place(int fd, int old, bool ours)
{
	if (!ours || dup3(fd, old, O_CLOEXEC) < 0)
		return fd;
	close(fd);
	return old;
}

static bool is_eventfd(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == 0;
}

/* Takes over the descriptors of the attempt. */
static void install(struct attempt *t)
{
	struct arena *a = t->arena;
	bool ours = link_owns_socket(a);
	int doorbell = client_high_fd(t->fds[FD_DOORBELL]);

	close(t->fds[FD_MM]);
	close(t->fds[FD_CHANNEL]);
	replace_slot(a, 0, t->fds[FD_ARENA]);
	t->nr_fds = 0;
	pthread_mutex_lock(&a->sock_mutex);
	store_relaxed(&a->doorbell,
		      put_in_place(doorbell, a->doorbell, ours && is_eventfd(a->doorbell)));
	sock_set(a, put_in_place(TAKE_FD(t->sock), a->sock, ours));
	pthread_mutex_unlock(&a->sock_mutex);
}

static void give_up(struct attempt *t)
{
	for (unsigned i = 0; i < t->nr_fds; i++)
		close(t->fds[i]);
	closep(&t->sock);
}

int link_reconnect(struct arena *a, uint64_t deadline)
{
	struct attempt t = {.arena = a, .sock = -1, .deadline = deadline, .b = a->spare};
	int r;

	/* It may be whole, and other descriptors lost: two connections are one too many for the daemon. */
	if (link_owns_socket(a))
		shutdown(a->sock, SHUT_RDWR);
	r = sock_connect(a, &t.sock);

	if (r == 0)
		r = sock_hello(a, t.sock, t.b, deadline);
	if (r == 0)
		r = ask_attach(&t);
	if (r == 0)
		r = ask_slots(&t);
	if (r == 0)
		install(&t);
	give_up(&t);
	if (r < 0)
		return r;
	__atomic_fetch_add(&a->tlb.channel->reconnects, 1, __ATOMIC_RELAXED);
	link_restored(a);
	/* Whoever rang the old doorbell meanwhile has set his bit before: it is looked at now. */
	os_eventfd_ring(a->doorbell);
	return 0;
}

static int ask_device(struct attempt *t)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__UserfaultDevice call = ARENA__USERFAULT_DEVICE__INIT;
	unsigned nr = 0;
	int fd = -1, r;

	request.call_case = ARENA__REQUEST__CALL_USERFAULT_DEVICE;
	request.userfault_device = &call;
	r = ask(t, &request, &fd, 1, &nr);
	return r < 0 ? r : nr ? fd : -EPERM;
}

/* A userfaultfd of this process, and the window registered with it. */
static int make_trap(struct attempt *t)
{
	struct arena *a = t->arena;
	int fd = trap_open_own();

	if (fd == -EPERM) {
		fd = ask_device(t);
		if (fd >= 0)
			fd = trap_open_device(fd);
	}
	if (fd < 0)
		return fd;
	a->trap.fd = client_high_fd(fd);
	a->trap.on = true;
	return userfault_trap_reserve(a);
}

int link_attach_child(struct arena *a, uint64_t deadline, bool userfault)
{
	struct attempt t = {.arena = a, .sock = -1, .deadline = deadline, .b = a->spare};
	int r = sock_connect(a, &t.sock);

	if (r == 0)
		r = sock_hello(a, t.sock, t.b, deadline);
	if (r == 0 && userfault && !a->trap.on)
		r = make_trap(&t);
	if (r == 0)
		r = ask_attach(&t);
	/* Perhaps not the first attempt. */
	if (r == 0 && !a->tlb.channel)
		r = client_map_shared(a, t.fds[FD_MM], t.fds[FD_CHANNEL]);
	if (r == 0) {
		install(&t);
		t.sock = a->sock;
		link_restored(a);
		r = ask_slots(&t);
		t.sock = -1;
	}
	give_up(&t);
	return r;
}

/* Whatever else goes wrong may go right the next time. */
static bool is_final(struct arena *a, int r, uint64_t now)
{
	struct link_retry *retry = &a->retry;

	if (r == -ESTALE || r == -EACCES || r == -EPERM || r == -EPROTO || now >= retry->deadline)
		return true;
	if (r != -ENOENT && r != -ECONNREFUSED)
		retry->nobody_since = 0;
	else if (!retry->nobody_since)
		retry->nobody_since = now;
	return retry->nobody_since && now - retry->nobody_since >= NOBODY_FOR;
}

/* The pause before the first attempt: none, unless the last connection did not last. */
static uint64_t begin_outage(struct arena *a, uint64_t now)
{
	struct link_retry *retry = &a->retry;

	retry->deadline = link_deadline(a);
	retry->nobody_since = 0;
	if (retry->restored && now - retry->restored < LASTING) {
		retry->pause = MIN(2 * retry->pause, RETRY_MAX);
		retry->next = now + retry->pause;
		return retry->pause;
	}
	retry->pause = RETRY_FIRST;
	retry->next = now;
	return 0;
}

uint64_t link_restore(struct arena *a)
{
	struct link_retry *retry = &a->retry;
	uint64_t now = clock_now(), pause = 0;
	int r;

	if (!retry->deadline)
		pause = begin_outage(a, now);
	else if (now < retry->next)
		pause = retry->next - now;
	if (pause)
		return pause;
	r = link_told(a) ? -EPERM : link_reconnect(a, retry->deadline);
	now = clock_now();
	if (r < 0 && !is_final(a, r, now)) {
		retry->next = now + retry->pause;
		retry->pause = MIN(2 * retry->pause, RETRY_MAX);
		return retry->next - now;
	}
	if (r < 0)
		link_die(a);
	retry->deadline = 0;
	retry->restored = now;
	return 0;
}
