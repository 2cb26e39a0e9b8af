/* SPDX-License-Identifier: MIT */
/*
 * link.c - whether the daemon is there.
 *
 *	      the socket hung up, or the program closed it
 *	UP ----------------------------------------------> LOST --+ reconnect.c, in the flush thread
 *	 |  <-------------------------------------------------+---+
 *	 | it said that it ends, or that it wants us no more  | nobody answers any more, or it does not
 *	 | a call waited too long                             | know us, or not in time
 *	 +------------------------> DEAD <--------------------+
 *
 * A worker that dies hangs up nothing: its keeper has our socket, the next worker takes it, and who
 * waits just waits longer. So waiting itself tells nothing. Whoever waits, for a reply in a mailbox
 * or by the socket, for a free mailbox or for the connection, has a deadline (wait_ms) and looks
 * around every 200 ms: link_look(). At the socket itself the flush thread looks then, which is also
 * the one that will make another.
 *
 * Everything here is called in traps: a word, a futex and system calls. DEAD is for ever.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/os.h"
#include "base/util.h"
#include "libclient/internal.h"

#define LOOK_AROUND (200 * NSEC_PER_MSEC)

enum link_state link_state(const struct arena *a)
{
	return load_acquire(&a->link);
}

uint64_t link_deadline(const struct arena *a)
{
	return a->wait_ms == UINT_MAX ? UINT64_MAX : clock_now() + a->wait_ms * NSEC_PER_MSEC;
}

uint64_t link_slice(uint64_t deadline)
{
	uint64_t now = clock_now();

	return now >= deadline ? 1 : MIN(deadline - now, LOOK_AROUND);
}

static bool leave(struct arena *a, uint32_t from, uint32_t to)
{
	if (!__atomic_compare_exchange_n(&a->link, &from, to, false, __ATOMIC_SEQ_CST,
					 __ATOMIC_SEQ_CST))
		return false;
	os_futex_wake(&a->link, INT_MAX);
	return true;
}

void link_die(struct arena *a)
{
	if (__atomic_exchange_n(&a->link, LINK_DEAD, __ATOMIC_SEQ_CST) != LINK_DEAD)
		os_futex_wake(&a->link, INT_MAX);
}

void link_lost(struct arena *a)
{
	if (leave(a, LINK_UP, LINK_LOST) && load_acquire(&a->flush_running))
		flush_thread_nudge(a);
}

void link_restored(struct arena *a)
{
	leave(a, LINK_LOST, LINK_UP);
}

bool link_owns_socket(const struct arena *a)
{
	struct stat st;

	return fstat(load_relaxed(&a->sock), &st) == 0 && S_ISSOCK(st.st_mode) &&
	       st.st_ino == a->sock_ino;
}

/* poll(2) goes straight to the kernel: the C library's is a cancellation point. */
static bool hung_up(const struct arena *a)
{
	struct pollfd p = {.fd = load_relaxed(&a->sock), .events = POLLRDHUP};

	return syscall(SYS_poll, &p, 1, 0) == 1 &&
	       (p.revents & (POLLHUP | POLLRDHUP | POLLERR | POLLNVAL));
}

/* What the daemon left in the channel before it hung up. */
static bool told(const struct arena *a)
{
	return load_acquire(&a->attached) &&
	       load_acquire(&a->tlb.channel->daemon_state) != ARENA_DAEMON_SERVES;
}

bool link_told(struct arena *a)
{
	if (!told(a))
		return false;
	link_die(a);
	return true;
}

bool link_look(struct arena *a, uint64_t deadline)
{
	if (link_state(a) == LINK_DEAD || link_told(a) || load_acquire(&a->closing))
		return false;
	if (clock_now() >= deadline) {
		link_die(a);
		return false;
	}
	if (link_state(a) != LINK_UP)
		return true;
	/* With an address space it is the flush thread's to look, whoever waits. */
	if (!load_acquire(&a->attached))
		link_check(a);
	else if (!__atomic_exchange_n(&a->look, 1, __ATOMIC_SEQ_CST))
		flush_thread_nudge(a);
	return true;
}

void link_check(struct arena *a)
{
	if (link_state(a) == LINK_UP && (hung_up(a) || !link_owns_socket(a)))
		link_lost(a);
}

bool link_await(struct arena *a, uint64_t deadline)
{
	uint32_t state;

	while ((state = load_acquire(&a->link)) == LINK_LOST) {
		os_futex_wait(&a->link, state, link_slice(deadline));
		if (load_acquire(&a->link) == LINK_LOST && !link_look(a, deadline))
			return false;
	}
	return state == LINK_UP;
}
