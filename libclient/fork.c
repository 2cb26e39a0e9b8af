/* SPDX-License-Identifier: MIT */
/*
 * fork.c - the child of fork() has a copy of each of the parent's arenas.
 *
 *	prepare   the daemon copies the address space, copy-on-write (daemon/virt/fork.c)
 *	          gate closed: no thread gets a right until the child is made
 *	fork()
 *	parent    gate open
 *	child     new connection, attach to the copy, flush thread: before anything else runs
 *
 * Everything that libarena maps is MADV_DONTFORK, so that the child never shares a mapping with the
 * parent by accident, and never sees one without its flushes: until it has attached its window is not
 * even reserved. Handles stay valid, and segments stay open.
 *
 * The copy is the memory at the moment of the flush that comes with it. Another thread that goes on
 * writes to what is write-protected from then on, and its trap waits at the gate. So what the child has
 * of other memory, as the kernel copies it a little later, is no older; but a thread may hold what
 * prepare handlers of others wait for, therefore nobody waits there for ever.
 *
 * An arena whose trap is userfaultfd is not copied yet. Where the daemon does not make a copy, or the child cannot attach, the child has none of the arena:
 * calls fail with EBADF, a touch of its memory is a SIGSEGV, arena_close() frees the handle.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/os.h"
#include "base/util.h"
#include "libclient/internal.h"

#define GATE_WAIT NSEC_PER_SEC

static uint64_t mask_before;

static pid_t thread_id(void)
{
	return (pid_t)syscall(SYS_gettid);
}

void fork_gate(struct arena *a)
{
	uint64_t deadline = 0, now;

	while (unlikely(load_acquire(&a->forking)) && load_relaxed(&a->forker) != thread_id()) {
		now = clock_now();
		if (!deadline)
			deadline = now + GATE_WAIT;
		if (now >= deadline)
			return;
		os_futex_wait(&a->forking, 1, deadline - now);
	}
}

/* ---- before ------------------------------------------------------------------------------------ */

static void copy_space(struct arena *a)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Fork call = ARENA__FORK__INIT;
	struct mail_reply m;

	a->child_id = 0;
	if (!load_acquire(&a->attached) || load_acquire(&a->closing) || a->foreign ||
	    link_state(a) == LINK_DEAD || a->trap.on)
		return;
	store_relaxed(&a->forker, thread_id());
	store_release(&a->forking, 1);
	request.call_case = ARENA__REQUEST__CALL_FORK;
	request.fork = &call;
	if (mailbox_call(a, &request, &m, false) < 0 ||
	    m.reply->result_case != ARENA__REPLY__RESULT_FORK ||
	    m.reply->fork->token.len != sizeof(a->child_token))
		return;
	a->child_id = m.reply->fork->mm_id;
	memcpy(a->child_token, m.reply->fork->token.data, sizeof(a->child_token));
}

/* A thread on a stack of arena memory leaves out the tlb lock: its child ends at once, without a
 * stack. */
static void lock_tlb(struct arena *a)
{
	if (!client_on_window_stack(a))
		small_lock_acquire(&a->tlb.lock);
}

static void prepare(void)
{
	pthread_mutex_lock(&client_mutex);
	client_for_each(copy_space);
	mask_before = signals_block_all();
	client_for_each(lock_tlb);
	sigchain_before_fork();
}

/* ---- the parent ---------------------------------------------------------------------------------- */

static void let_go(struct arena *a)
{
	if (!client_on_window_stack(a))
		small_lock_release(&a->tlb.lock);
	if (!load_relaxed(&a->forking))
		return;
	store_release(&a->forking, 0);
	os_futex_wake(&a->forking, INT_MAX);
}

static void parent(void)
{
	sigchain_after_fork(false);
	client_for_each(let_go);
	signals_restore(mask_before);
	pthread_mutex_unlock(&client_mutex);
}

/* ---- the child ------------------------------------------------------------------------------------ */

/* What did not come along, or is the parent's. Descriptors of arena files are as good as its own. */
static void forget_parent(struct arena *a)
{
	struct tlb t = {.base = a->tlb.base, .size = a->tlb.size};

	/* With an agent the numbers are not of this process's table. */
	if (a->agent.running) {
		tlb_slots_forget(&a->tlb);
		a->sock = a->doorbell = -1;
	}
	memcpy(t.slots, a->tlb.slots, sizeof(t.slots));
	a->tlb = t;
	closep(&a->sock);
	closep(&a->doorbell);
	a->sock = a->doorbell = -1;
	agent_forget(a);
	a->trap = (struct userfault_trap){.fd = -1, .stop_fd = -1};
	a->mm_map = a->channel_map = NULL;
	a->flush_running = a->trapped = false;
	a->flush_stop = a->attached = a->forking = 0;
	a->retry = (struct link_retry){0};
	pthread_mutex_init(&a->sock_mutex, NULL);
	pthread_mutex_init(&a->open_mutex, NULL);
}

static void disown(struct arena *a)
{
	tlb_slots_close(&a->tlb);
	a->tlb.size = 0;
	a->foreign = 1;
}

static int attach_patiently(struct arena *a)
{
	uint64_t deadline = link_deadline(a);
	struct timespec pause = {.tv_nsec = NSEC_PER_MSEC};
	int r;

	while ((r = link_attach_child(a, deadline)) < 0) {
		/* A full backlog, or a worker that died with the connection in its hands. */
		if ((r != -EAGAIN && r != -ENOTCONN) || clock_now() >= deadline)
			break;
		nanosleep(&pause, NULL);
		pause.tv_nsec = MIN(2 * pause.tv_nsec, (long)(100 * NSEC_PER_MSEC));
	}
	return r;
}

static int come_to_life(struct arena *a)
{
	void *p;
	int r;

	a->mm_id = a->child_id;
	memcpy(a->token, a->child_token, sizeof(a->token));
	store_release(&a->link, LINK_LOST);
	r = os_reserve((void *)(uintptr_t)a->tlb.base, a->tlb.size, false, &p);
	if (r < 0)
		return r;
	r = tlb_notes_init(&a->tlb);
	if (r == 0)
		r = attach_patiently(a);
	if (r == 0)
		r = flush_thread_start(a);
	if (r == 0) {
		r = trap_install();
		a->trapped = r == 0;
	}
	if (r < 0) {
		flush_thread_stop(a);
		tlb_notes_exit(&a->tlb);
		os_unmap((void *)(uintptr_t)a->tlb.base, a->tlb.size);
		return r;
	}
	client_publish(a);
	store_release(&a->attached, 1);
	return 0;
}

static void be_born(struct arena *a)
{
	bool had = load_relaxed(&a->attached) && a->child_id;

	/* One that had no address space yet needs no more than a connection of its own. */
	forget_parent(a);
	if (!had || come_to_life(a) < 0)
		disown(a);
}

static void child(void)
{
	sigchain_after_fork(true);
	client_forget_windows();
	client_for_each(be_born);
	signals_restore(mask_before);
	pthread_mutex_unlock(&client_mutex);
}

static int registered;

static void register_once(void)
{
	registered = -pthread_atfork(prepare, parent, child);
}

int fork_handlers_register(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, register_once);
	return registered;
}
