/* SPDX-License-Identifier: MIT */
/*
 * flush_thread.c - one thread per address space that applies what the daemon takes away while no
 * call of ours is under way. It sleeps on flush_word. The daemon wakes it only when an acknowledgement is
 * late; we do when the connection was lost, which it makes anew (reconnect.c), passing by the ring all
 * the while. It also takes the tlb lock for threads that must not (client_locked()).
 */
#include <limits.h>

#include "base/faultpoint.h"
#include "base/os.h"
#include "base/util.h"
#include "libclient/internal.h"

static void flush_and_ack(struct arena *a, bool blocked)
{
	uint64_t seq = tlb_flush(&a->tlb, blocked);

	if (!faultpoint("client.ack") && tlb_ack(&a->tlb, seq))
		client_ring(a);
}

static void flush_job(struct arena *a, void *arg)
{
	flush_and_ack(a, *(bool *)arg);
}

void client_flush_upto(struct arena *a, uint64_t seq, bool blocked)
{
	/* Applied is not enough: a refill applies too, and leaves the acknowledgement to us. */
	if (load_acquire(&a->tlb.channel->flush_ack) >= seq || faultpoint("client.flush.call"))
		return;
	client_locked(a, flush_job, &blocked);
}

void flush_thread_pass(struct arena *a)
{
	if (a->tlb.channel && !load_acquire(&a->flush_stop) &&
	    load_acquire(&a->tlb.channel->flush_ack) < load_acquire(&a->tlb.channel->flush_head) &&
	    !faultpoint("client.flush"))
		flush_and_ack(a, true);
	if (library_thread_is_of(a))
		jobs_do(a, &a->flush_jobs);
}

static void *flush_main(void *arg)
{
	struct arena *a = arg;
	struct arena_channel_header *ch = a->tlb.channel;

	library_thread_enter(a, "arena-flush", false);
	for (;;) {
		uint32_t word = load_acquire(&ch->flush_word);
		uint64_t pause = 0;

		if (load_acquire(&a->flush_stop))
			return NULL;
		flush_thread_pass(a);
		if (__atomic_exchange_n(&a->look, 0, __ATOMIC_SEQ_CST))
			link_check(a);
		if (link_state(a) == LINK_LOST)
			pause = link_restore(a);
		os_futex_wait(&ch->flush_word, word, pause);
	}
}

int flush_thread_start(struct arena *a)
{
	int r = library_thread_start(&a->flush_thread, flush_main, a);

	store_release(&a->flush_running, r == 0);
	return r;
}

/*
 * Move the word, so that the thread does not go to sleep on the value it has read; by a step that
 * neither the daemon's next numbers nor other nudges undo.
 */
void flush_thread_nudge(struct arena *a)
{
	__atomic_fetch_add(&a->tlb.channel->flush_word, UINT32_C(1) << 20, __ATOMIC_SEQ_CST);
	os_futex_wake(&a->tlb.channel->flush_word, INT_MAX);
}

void flush_thread_run(struct arena *a, job_fn *fn, void *arg)
{
	struct job j = {.fn = fn, .arg = arg};

	job_add(&a->flush_jobs, &j);
	flush_thread_nudge(a);
	job_wait(&j);
}

void flush_thread_stop(struct arena *a)
{
	if (!a->flush_running)
		return;
	store_release(&a->flush_stop, 1);
	flush_thread_nudge(a);
	pthread_join(a->flush_thread, NULL);
	store_release(&a->flush_running, false);
}
