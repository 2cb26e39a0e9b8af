/* SPDX-License-Identifier: MIT */
/*
 * fork.c - the child of fork() has none of the parent's arenas.
 *
 * Everything that libarena maps is MADV_DONTFORK, so the child has neither windows nor channels.
 * It closes what it inherited of descriptors, marks the handles, and puts the program's signal
 * actions back. Calls on such a handle fail with EBADF, arena_close() frees it, a touch of its
 * memory is a plain SIGSEGV, and arena_open() starts anew.
 *
 * The locks of all that the child goes on to use are taken before fork() and let go after it, so that
 * it finds nothing half-done. The two mutexes that are held while the daemon is waited for are not:
 * fork() does not wait for it, and in the child they are made anew. (A thread on a stack of arena memory
 * leaves out the tlb lock: its child ends at once, without a stack.)
 */
#include <errno.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "libclient/internal.h"

static uint64_t mask_before;

static void lock_tlb(struct arena *a)
{
	if (!client_on_window_stack(a))
		small_lock_acquire(&a->tlb.lock);
}

static void unlock_tlb(struct arena *a)
{
	if (!client_on_window_stack(a))
		small_lock_release(&a->tlb.lock);
}

static void disown(struct arena *a)
{
	/* With an agent the numbers are not of this process's table. */
	if (a->agent.running) {
		tlb_slots_forget(&a->tlb);
		a->sock = a->doorbell = -1;
	}
	closep(&a->sock);
	closep(&a->doorbell);
	tlb_slots_close(&a->tlb);
	a->sock = a->doorbell = -1;
	agent_forget(a);
	a->trap = (struct userfault_trap){.fd = -1, .stop_fd = -1};
	/* What these pointed to did not come along. */
	a->mm_map = a->channel_map = NULL;
	a->tlb.notes = NULL;
	a->tlb.size = 0;
	a->tlb.lock = (struct small_lock){0};
	a->flush_running = false;
	a->trapped = false;
	a->foreign = 1;
	pthread_mutex_init(&a->sock_mutex, NULL);
	pthread_mutex_init(&a->open_mutex, NULL);
}

static void prepare(void)
{
	pthread_mutex_lock(&client_mutex);
	mask_before = signals_block_all();
	client_for_each(lock_tlb);
	sigchain_before_fork();
}

static void parent(void)
{
	sigchain_after_fork(false);
	client_for_each(unlock_tlb);
	signals_restore(mask_before);
	pthread_mutex_unlock(&client_mutex);
}

static void child(void)
{
	sigchain_after_fork(true);
	client_for_each(disown);
	client_forget_windows();
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
