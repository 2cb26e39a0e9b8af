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
 * Under the userfaultfd trap the stack, the heap and the C library's own data may lie in arena memory, and
 * the child uses them before any handler of ours can run. So copies are made at the system call itself
 * (catch.h), by code that uses no such memory (bare.h), in two steps:
 *
 *	the call  copy, gate, clone(2); child: attached, window registered with a userfaultfd of its own, and
 *	          a nurse that serves it, a thread without the C library
 *	child     descriptors to a table of our own, the usual threads; the nurse goes
 *
 * Where the call cannot be caught it is done in the handlers, for programs that have no such memory.
 *
 * Where the daemon does not make a copy, or the child cannot attach, the child has none of the arena:
 * calls fail with EBADF, a touch of its memory is a SIGSEGV, arena_close() frees the handle. If that were
 * the end of it at once, because it runs on that memory, fork() fails with ENOMEM instead.
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
#include "libclient/catch.h"
#include "libclient/internal.h"
#include "libclient/own.h"

#define GATE_WAIT NSEC_PER_SEC

static uint64_t mask_before;
static bool caught; /* arenas under the userfaultfd trap are copied at the call */

static void *pointer_to(uint64_t addr)
{
	return (void *)(uintptr_t)addr;
}

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

bool fork_gate_holds(struct arena *a, pid_t thread)
{
	if (likely(!load_acquire(&a->forking)) || load_relaxed(&a->forker) == thread ||
	    clock_now() - load_relaxed(&a->fork_since) >= GATE_WAIT)
		return false;
	__atomic_store_n(&a->gated, 1, __ATOMIC_SEQ_CST);
	/* It may have been opened by someone who did not see us. */
	return __atomic_load_n(&a->forking, __ATOMIC_SEQ_CST);
}

static void open_gate(struct arena *a)
{
	if (!load_relaxed(&a->forking))
		return;
	__atomic_store_n(&a->forking, 0, __ATOMIC_SEQ_CST);
	os_futex_wake(&a->forking, INT_MAX);
	if (__atomic_exchange_n(&a->gated, 0, __ATOMIC_SEQ_CST))
		agent_wake_window(a);
}

/* ---- before ------------------------------------------------------------------------------------ */

static bool is_copied(const struct arena *a)
{
	return load_acquire(&a->attached) && !load_acquire(&a->closing) && !a->foreign &&
	       link_state(a) != LINK_DEAD;
}

static bool at_call(const struct arena *a)
{
	return caught && a->trap.on;
}

static void copy_space(struct arena *a)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Fork call = ARENA__FORK__INIT;
	struct mail_reply m;

	a->child_id = 0;
	if (!is_copied(a))
		return;
	store_relaxed(&a->forker, thread_id());
	store_relaxed(&a->fork_since, clock_now());
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

/*
 * No mapping is half made in the child. Under the userfaultfd trap only at the call: before it, who forks may
 * need the fault thread.
 */
static void lock_tlb(struct arena *a)
{
	small_lock_acquire(&a->tlb.lock);
}

static void let_go(struct arena *a)
{
	small_lock_release(&a->tlb.lock);
	open_gate(a);
}

static unsigned nr_at_call, nr_prepared, nr_carry;

static void prepare_nurse(struct arena *a)
{
	a->carries_thread = false;
	a->newborn = false;
	a->child_trap = a->trap.on ? ARENA_TRAP_USERFAULTFD : ARENA_TRAP_SIGNAL;
	if (!a->trap.on || !is_copied(a))
		return;
	nr_at_call++;
	nr_prepared += bare_make(&a->nurse) == 0;
	a->carries_thread = client_on_window_memory(a);
	nr_carry += a->carries_thread;
}

static void copy_early(struct arena *a)
{
	if (!at_call(a))
		copy_space(a);
}

static void lock_early(struct arena *a)
{
	if (!a->trap.on)
		lock_tlb(a);
}

static long make_child(void);

static void prepare(void)
{
	int saved_errno = errno;

	pthread_mutex_lock(&client_mutex);
	nr_at_call = nr_prepared = nr_carry = 0;
	client_for_each(prepare_nurse);
	caught = nr_at_call && nr_prepared == nr_at_call && catch_fork(make_child, nr_carry) == 0;
	client_for_each(copy_early);
	mask_before = signals_block_all();
	client_for_each(lock_early);
	sigchain_before_fork();
	errno = saved_errno;
	if (caught)
		catch_begin();
}

/* ---- the parent ---------------------------------------------------------------------------------- */

static void let_go_early(struct arena *a)
{
	if (!a->trap.on)
		let_go(a);
	else if (!caught)
		open_gate(a);
}

static void parent(void)
{
	int saved_errno = errno;

	if (caught)
		catch_end();
	sigchain_after_fork(false);
	client_for_each(let_go_early);
	signals_restore(mask_before);
	pthread_mutex_unlock(&client_mutex);
	errno = saved_errno;
}

/* ---- the child ------------------------------------------------------------------------------------ */

/* What did not come along, or is the parent's. Descriptors of arena files are as good as its own. */
static void forget_parent(struct arena *a)
{
	struct tlb t = {.base = a->tlb.base, .size = a->tlb.size, .max_maps = a->tlb.max_maps};

	/* With an agent the numbers are not of this process's table. */
	if (a->agent.running) {
		tlb_slots_lose(&a->tlb);
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
	a->flush_jobs = (struct job_list){0};
	a->flush_stop = a->attached = a->attaching = a->forking = a->gated = a->look = 0;
	a->retry = (struct link_retry){0};
	pthread_mutex_init(&a->sock_mutex, NULL);
	pthread_mutex_init(&a->open_mutex, NULL);
}

static int attach_patiently(struct arena *a, bool userfault)
{
	uint64_t deadline = link_deadline(a);
	struct timespec pause = {.tv_nsec = NSEC_PER_MSEC};
	int r;

	while ((r = link_attach_child(a, deadline, userfault)) < 0) {
		/* A full backlog, or a worker that died with the connection in its hands. */
		if ((r != -EAGAIN && r != -ENOTCONN) || clock_now() >= deadline)
			break;
		nanosleep(&pause, NULL);
		pause.tv_nsec = MIN(2 * pause.tv_nsec, (long)(100 * NSEC_PER_MSEC));
	}
	return r;
}

static void close_all(struct arena *a)
{
	int *fds[] = {&a->sock, &a->doorbell, &a->trap.fd, &a->trap.stop_fd};

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		closep(fds[i]);
		*fds[i] = -1;
	}
	tlb_slots_close(&a->tlb);
}

static void unmap_all(struct arena *a)
{
	tlb_notes_exit(&a->tlb);
	stale_exit(&a->tlb);
	os_unmap(pointer_to(a->tlb.base), a->tlb.size);
	if (a->mm_map)
		os_unmap(a->mm_map, a->mm_len);
	if (a->channel_map)
		os_unmap(a->channel_map, a->channel_len);
	a->mm_map = a->channel_map = NULL;
}

/* Everything but threads. On failure nothing has happened. */
static int attach_copy(struct arena *a, bool userfault)
{
	void *p;
	int r;

	a->mm_id = a->child_id;
	memcpy(a->token, a->child_token, sizeof(a->token));
	store_release(&a->link, LINK_LOST);
	store_release(&a->attaching, 1);
	r = os_reserve(pointer_to(a->tlb.base), a->tlb.size, false, &p);
	if (r < 0)
		return r;
	r = tlb_notes_init(&a->tlb);
	if (r == 0)
		r = attach_patiently(a, userfault);
	if (r == 0)
		return 0;
	if (a->trap.fd >= 0)
		close(a->trap.fd);
	a->trap = (struct userfault_trap){.fd = -1, .stop_fd = -1};
	unmap_all(a);
	a->tlb.ops = NULL;
	return r;
}

/* ---- its threads ---- */

static unsigned list_fds(const struct arena *a, int *fds)
{
	const int some[] = {a->sock, a->doorbell, a->trap.fd, a->trap.stop_fd};
	unsigned nr = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(some); i++)
		if (some[i] >= 0)
			fds[nr++] = some[i];
	for (unsigned slot = 0; slot < ARENA_MAX_SLOTS; slot++)
		if (tlb_slot_fd(&a->tlb, slot) >= 0)
			fds[nr++] = tlb_slot_fd(&a->tlb, slot);
	return nr;
}

static void start_threads(struct arena *a, void *arg)
{
	int r = flush_thread_start(a);

	if (r == 0 && a->trap.on) {
		trap_keep(a);
		r = userfault_trap_start(a);
	}
	*(int *)arg = r;
}

static void stop_threads(struct arena *a, void *arg)
{
	(void)arg;
	flush_thread_stop(a);
	userfault_trap_stop(a);
}

static int use_own_table(struct arena *a)
{
	static int fds[AGENT_MAX_FDS];
	unsigned nr = list_fds(a, fds);
	int r = agent_start(a, fds, nr);

	if (r < 0)
		return r;
	agent_run(a, start_threads, &r);
	if (r < 0)
		return r;
	/* The nurse was of the program's table. */
	userfault_trap_await(a);
	while (nr)
		close(fds[--nr]);
	return 0;
}

static int grow_up(struct arena *a)
{
	int r = 0;

	if (a->trap.on)
		r = use_own_table(a);
	else
		start_threads(a, &r);
	if (r == 0) {
		r = trap_install();
		a->trapped = r == 0;
	}
	if (r < 0)
		return r;
	client_publish(a);
	store_release(&a->attached, 1);
	store_release(&a->attaching, 0);
	if (link_state(a) == LINK_LOST)
		flush_thread_nudge(a);
	return 0;
}

static void disown(struct arena *a)
{
	userfault_trap_dismiss(a);
	agent_run(a, stop_threads, NULL);
	/* Where there is a table of our own, these are the program's copies still, or the last. */
	close_all(a);
	if (a->tlb.channel)
		unmap_all(a);
	agent_stop(a);
	agent_forget(a);
	a->tlb.size = 0;
	a->foreign = 1;
}

/* ---- at the call; on a bare stack ---- */

static void copy_late(struct arena *a)
{
	if (at_call(a))
		copy_space(a);
}

static void lock_late(struct arena *a)
{
	if (at_call(a))
		lock_tlb(a);
}

static void let_go_late(struct arena *a)
{
	if (at_call(a))
		let_go(a);
}

static void open_late(struct arena *a)
{
	if (at_call(a))
		open_gate(a);
}

static void attach_late(struct arena *a)
{
	if (!at_call(a) || !a->child_id)
		return;
	forget_parent(a);
	if (attach_copy(a, true) < 0)
		return;
	a->newborn = userfault_trap_nurse(a) == 0;
	if (!a->newborn)
		disown(a);
}

static unsigned nr_carry_copied;

static void count_carriers(struct arena *a)
{
	nr_carry_copied += a->carries_thread && a->child_id;
}

static long make_child(void)
{
	long r;

	nr_carry_copied = 0;
	client_for_each(copy_late);
	client_for_each(count_carriers);
	if (nr_carry_copied < nr_carry) {
		client_for_each(open_late);
		return -ENOMEM;
	}
	client_for_each(lock_late);
	r = catch_clone();
	if (r == 0)
		client_for_each(attach_late);
	else
		client_for_each(let_go_late);
	return r;
}

/* ---- in the handler ---- */

static int come_to_life(struct arena *a)
{
	int r = attach_copy(a, a->child_trap == ARENA_TRAP_USERFAULTFD);

	/* It may have lost the right to it. */
	if (a->child_trap == ARENA_TRAP_USERFAULTFD && (r == -EPERM || r == -EOPNOTSUPP))
		r = attach_copy(a, false);
	return r < 0 ? r : grow_up(a);
}

/* One that has no address space yet needs no more than a connection of its own. */
static void stay_unattached(struct arena *a)
{
	forget_parent(a);
	a->tlb = (struct tlb){0};
	if (link_state(a) == LINK_UP)
		store_release(&a->link, LINK_LOST);
}

static void be_born(struct arena *a)
{
	int r;

	if (load_relaxed(&a->foreign))
		return;
	if (a->newborn) {
		a->newborn = false;
		r = grow_up(a);
	} else if (!load_relaxed(&a->attached) && !a->child_id && !load_relaxed(&a->closing)) {
		stay_unattached(a);
		return;
	} else {
		/* At the call that was done already, and its trap was not to be had. */
		if (load_relaxed(&a->attached))
			forget_parent(a);
		r = a->child_id ? come_to_life(a) : -EBADF;
	}
	if (r < 0)
		disown(a);
}

static void child(void)
{
	int saved_errno = errno;

	if (caught)
		catch_end();
	sigchain_after_fork(true);
	client_forget_windows();
	client_for_each(be_born);
	signals_restore(mask_before);
	pthread_mutex_unlock(&client_mutex);
	errno = saved_errno;
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
