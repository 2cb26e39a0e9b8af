/* SPDX-License-Identifier: MIT */
/*
 * trap_serve.c - the fault thread: takes the accesses that the kernel holds, maps what they need, has them
 * go on.
 */
#include <errno.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/os.h"
#include "base/userfault.h"
#include "base/util.h"
#include "libclient/trap_userfaultfd.h"

#define BARRED_MS 20
#define GATED_MS 100
#define SPIN_MAX (50 * NSEC_PER_USEC)
#define SPIN_MIN (4 * NSEC_PER_USEC)

static void wake(struct arena *a, uint64_t start, uint64_t end)
{
	userfault_wake(a->trap.fd, pointer(start), end - start);
}

/*
 * One attempt. The page of an access that is no write to a protected one is thought to be mapped: its leaf
 * has lost its place in the kernel's tables (a part of it was zapped). So the leaf is done anew.
 */
static int try_refill(struct arena *a, const struct userfault_event *e, unsigned access, bool first)
{
	struct tlb *t = &a->tlb;
	int r;

	tlb_lock(t, true);
	a->trap.careful = first && !e->protected && tlb_note_is_mapped(t, page_of(t, e->address));
	if (a->trap.careful)
		tlb_unmap(t, ALIGN_DOWN(e->address, ARENA_LEAF_SIZE),
			  ALIGN_DOWN(e->address, ARENA_LEAF_SIZE) + ARENA_LEAF_SIZE);
	userfault_ahead_begin(a, e->address);
	r = tlb_refill(t, e->address, access, NULL);
	if (r == TLB_DONE)
		userfault_ahead_note(a, e->address, access);
	tlb_unlock(t, 0, true);
	return r;
}

/*
 * Have the access fail. Where the mapping that the page is due does that by itself, it is made; else it
 * is barred.
 */
static void refuse(struct arena *a, const struct userfault_event *e)
{
	uint64_t page = ALIGN_DOWN(e->address, ARENA_PAGE_SIZE), end = page + ARENA_PAGE_SIZE;
	struct tlb *t = &a->tlb;

	tlb_lock(t, true);
	if (!(e->write || e->protected) || !userfault_readonly(t, page, end) ||
	    tlb_refill(t, e->address, PROT_READ, NULL) != TLB_DONE)
		userfault_bar(t, e->address);
	tlb_unlock(t, 0, true);
	wake(a, page, end);
}

static void serve(struct arena *a, const struct userfault_event *e)
{
	unsigned access = e->write || e->protected ? PROT_WRITE : PROT_READ;
	struct fault_signal refused;

	client_gather(a, e->address);
	for (int i = 0; i < USERFAULT_MAX_TRIES; i++) {
		int r = try_refill(a, e, access, i == 0);

		if (r == TLB_DONE) {
			if (i == 0)
				__atomic_fetch_add(&a->tlb.channel->refills, 1, __ATOMIC_RELAXED);
			wake(a, a->trap.mapped_start, a->trap.mapped_end);
			return;
		}
		/* A kernel that cannot map it write-protected: have it copied. */
		if (r == -EINVAL && access == PROT_READ)
			access = PROT_WRITE;
		else if (r < 0)
			break;
		if (client_ask_daemon(a, e->address, access, &refused))
			break;
	}
	refuse(a, e);
}

static void serve_all(struct arena *a, const struct userfault_event *e, int n)
{
	struct {
		uint64_t start, end;
		bool writable;
	} done[TRAP_BATCH];
	int nr_done = 0;

	for (int i = 0; i < n; i++) {
		bool known = e[i].moved;

		known |= fork_gate_holds(a, (pid_t)e[i].thread);
		/*
		 * Woken already, together with another of this batch: it has tried again, and if that was
		 * not enough it is reported anew. A write needs what may be written to.
		 */
		for (int k = 0; k < nr_done && !known; k++)
			known = e[i].address >= done[k].start && e[i].address < done[k].end &&
				(done[k].writable || !e[i].protected);
		if (known)
			continue;
		a->trap.mapped_start = a->trap.mapped_end = 0;
		serve(a, &e[i]);
		done[nr_done].start = a->trap.mapped_start;
		done[nr_done].end = a->trap.mapped_end;
		done[nr_done++].writable = a->trap.mapped_writable;
	}
}

/*
 * The next events. Where they come densely, looking for them costs less than being woken: a thread that
 * finds none within its time looks half as long the next time, and not at all in the end.
 */
static int look(struct userfault_trap *u, struct userfault_event *e)
{
	uint64_t until;
	int n;

	if (!u->spin_ns || os_nr_cpus() == 1)
		return 0;
	until = clock_now() + u->spin_ns;
	do {
		for (int i = 0; i < 20; i++)
			__builtin_ia32_pause();
		n = userfault_read(u->fd, e, TRAP_BATCH);
	} while (!n && clock_now() < until);
	if (n)
		u->spin_ns = SPIN_MAX;
	else
		u->spin_ns = u->spin_ns / 2 < SPIN_MIN ? 0 : u->spin_ns / 2;
	return n;
}

/* Sleep until there is something. False: the end. */
static bool sleep_until_event(struct arena *a)
{
	struct userfault_trap *u = &a->trap;
	struct pollfd p[] = {{.fd = u->fd, .events = POLLIN}, {.fd = u->stop_fd, .events = POLLIN}};
	uint64_t since = clock_now();
	long n = syscall(SYS_poll, p, 2,
			 load_relaxed(&u->nr_barred) ? BARRED_MS
			 : load_relaxed(&a->gated)   ? GATED_MS
						     : -1);

	if (n == 0) {
		userfault_unbar_all(a, NULL);
		/* Who stands at the gate for that long shall not any longer. */
		if (load_relaxed(&a->gated))
			wake(a, a->tlb.base, a->tlb.base + a->tlb.size);
	}
	/* Woken so soon, it would have been better awake. */
	if (n > 0 && clock_now() - since < 2 * SPIN_MAX)
		u->spin_ns = SPIN_MAX;
	return !(p[1].revents & POLLIN);
}

static void serve_until_stopped(struct arena *a)
{
	struct userfault_event e[TRAP_BATCH];

	for (;;) {
		int n = userfault_read(a->trap.fd, e, TRAP_BATCH);

		if (n == 0 && userfault_ahead_step(a))
			continue;
		if (n == 0)
			n = look(&a->trap, e);
		if (n > 0)
			serve_all(a, e, n);
		else if (n < 0 || !sleep_until_event(a))
			return;
	}
}

static void *fault_main(void *arg)
{
	struct arena *a = arg;

	library_thread_enter(a, "arena-fault", true);
	/* What is reported meanwhile waits. */
	userfault_trap_dismiss(a);
	store_release(&a->trap.serves, 1);
	os_futex_wake_private(&a->trap.serves, 1);
	serve_until_stopped(a);
	return NULL;
}

/* ---- the nurse: as the fault thread, before there can be one ---- */

static void nurse_main(void *arg)
{
	struct arena *a = arg;

	library_thread_enter(a, "arena-nurse", true);
	serve_until_stopped(a);
}

/* Its mailbox, and how it is stopped. */
static int prepare(struct arena *a)
{
	struct userfault_trap *u = &a->trap;

	if (u->stop_fd >= 0)
		return 0;
	__atomic_fetch_and(&a->mail.free, ~(UINT64_C(1) << TRAP_MAILBOX), __ATOMIC_RELAXED);
	u->stop_fd = os_eventfd();
	return MIN(u->stop_fd, 0);
}

int userfault_trap_nurse(struct arena *a)
{
	int r = prepare(a);

	return r < 0 ? r : bare_thread(&a->nurse, nurse_main, a);
}

void userfault_trap_dismiss(struct arena *a)
{
	if (!load_acquire(&a->nurse.tid))
		return;
	os_eventfd_ring(a->trap.stop_fd);
	bare_join(&a->nurse);
	os_eventfd_drain(a->trap.stop_fd);
}

/*
 * Not for the nurse's end itself: the kernel wakes one who waits for that. If it were not the fault thread,
 * who else it is could need that thread to get back from the kernel, with a page of its stack or data away.
 */
void userfault_trap_await(struct arena *a)
{
	while (!load_acquire(&a->trap.serves))
		os_futex_wait_private(&a->trap.serves, 0, 0);
}

/* ---- begin and end ---- */

int userfault_trap_start(struct arena *a)
{
	struct userfault_trap *u = &a->trap;
	int r = prepare(a);

	if (r < 0)
		return r;
	r = library_thread_start(&u->thread, fault_main, a);
	u->running = r == 0;
	return r;
}

void userfault_trap_stop(struct arena *a)
{
	struct userfault_trap *u = &a->trap;

	if (u->running) {
		os_eventfd_ring(u->stop_fd);
		pthread_join(u->thread, NULL);
	}
	closep(&u->stop_fd);
	u->stop_fd = -1;
	u->running = false;
}
