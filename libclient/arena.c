/* SPDX-License-Identifier: MIT */
/*
 * arena.c - handles: opened, attached at the first call that needs memory, closed.
 *
 * The registry is a fixed array, so that a trap can search it without a lock. A slot's window is
 * published last and withdrawn first; a trap that found it counts itself in `users` and looks
 * again, and close waits until `users` is 0:
 *
 *     trap                          close
 *     users++                       end = 0
 *     addr in [base, end)?          users == 0?  else wait
 */
#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/faultpoint.h"
#include "base/os.h"
#include "base/util.h"
#include "libclient/internal.h"
#include "libclient/own.h"

#define WAIT_DEFAULT_MS 60000u
#define CLOSE_WAIT NSEC_PER_SEC /* for the answer to bye */

struct registry_slot {
	struct arena *arena;
	uint32_t closing; /* no longer a handle, still an arena */
	uint32_t users;   /* futex: traps inside */
	uint64_t base, end;
};

pthread_mutex_t client_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct registry_slot registry[CLIENT_MAX_ARENAS];
static uint32_t registry_used; /* slots that were ever used */

int client_return(int r)
{
	if (r >= 0)
		return r;
	errno = -r;
	return -1;
}

/* ---- the registry ---- */

static struct registry_slot *slot_of(const struct arena *a)
{
	uint32_t used = load_acquire(&registry_used);

	for (uint32_t i = 0; a && i < used; i++)
		if (load_acquire(&registry[i].arena) == a && !load_acquire(&registry[i].closing))
			return &registry[i];
	return NULL;
}

static int registry_add(struct arena *a)
{
	for (uint32_t i = 0; i < CLIENT_MAX_ARENAS; i++) {
		if (registry[i].arena)
			continue;
		registry[i].closing = 0;
		store_release(&registry[i].arena, a);
		if (i >= registry_used)
			store_release(&registry_used, i + 1);
		return 0;
	}
	return -EMFILE;
}

static void publish_window(struct registry_slot *s, const struct tlb *t)
{
	store_release(&s->base, t->base);
	store_release(&s->end, t->base + t->size);
}

static void withdraw_window(struct registry_slot *s)
{
	uint32_t users;

	__atomic_store_n(&s->end, 0, __ATOMIC_SEQ_CST);
	while ((users = __atomic_load_n(&s->users, __ATOMIC_SEQ_CST)))
		os_futex_wait(&s->users, users, 0);
}

static bool slot_has(const struct registry_slot *s, uint64_t addr)
{
	return addr >= __atomic_load_n(&s->base, __ATOMIC_SEQ_CST) &&
	       addr < __atomic_load_n(&s->end, __ATOMIC_SEQ_CST);
}

struct arena *client_get_window(uint64_t addr, unsigned *hold)
{
	uint32_t used = load_acquire(&registry_used);

	for (unsigned i = 0; i < used; i++) {
		if (!slot_has(&registry[i], addr))
			continue;
		__atomic_fetch_add(&registry[i].users, 1, __ATOMIC_SEQ_CST);
		if (slot_has(&registry[i], addr)) {
			*hold = i;
			return load_acquire(&registry[i].arena);
		}
		client_put_window(i);
	}
	return NULL;
}

void client_put_window(unsigned hold)
{
	struct registry_slot *s = &registry[hold];

	__atomic_fetch_sub(&s->users, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&s->end, __ATOMIC_SEQ_CST) == 0)
		os_futex_wake(&s->users, INT_MAX);
}

void client_for_each(void (*f)(struct arena *a))
{
	for (uint32_t i = 0; i < registry_used; i++)
		if (registry[i].arena)
			f(registry[i].arena);
}

void client_forget_windows(void)
{
	for (uint32_t i = 0; i < registry_used; i++)
		registry[i].users = 0, registry[i].end = 0;
	trap_forget();
}

/* ---- attach ---- */

static uint32_t tables_for(uint64_t window)
{
	/* Twice what the window can use at once: tables wait in limbo before they are used again. */
	return (uint32_t)MIN(2 * (window >> ARENA_LEAF_SHIFT) + 4096,
			     (uint64_t)ARENA_MM_MAX_TABLES);
}

static uint64_t mm_bytes(uint64_t window)
{
	return ARENA_MM_TABLES_OFFSET + tables_for(window) * ARENA_PAGE_SIZE;
}

static uint64_t channel_bytes(uint64_t window)
{
	return ARENA_CHANNEL_BITS + tables_for(window) * sizeof(struct arena_table_bits);
}

static uint64_t address_space_used(void)
{
	_cleanup_(fclosep) FILE *f = fopen("/proc/self/statm", "re");
	unsigned long long pages;

	return f && fscanf(f, "%llu", &pages) == 1 ? pages * (uint64_t)os_page_size() : 0;
}

/* Under RLIMIT_AS: what the library may take, a quarter of the limit left to the program. */
static uint64_t address_space_left(void)
{
	struct rlimit limit;
	uint64_t used;

	if (getrlimit(RLIMIT_AS, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY)
		return UINT64_MAX;
	used = address_space_used() + limit.rlim_cur / 4;
	return used < limit.rlim_cur ? limit.rlim_cur - used : 0;
}

static int reserve_anywhere(uint64_t size, void **out)
{
	uint64_t start, base;
	void *p;
	int r = os_reserve(NULL, size + ARENA_WINDOW_ALIGN, false, &p);

	if (r < 0)
		return r;
	start = (uintptr_t)p;
	base = ALIGN_UP(start, ARENA_WINDOW_ALIGN);
	if (base > start)
		os_unmap(p, base - start);
	os_unmap((char *)p + (base - start) + size, ARENA_WINDOW_ALIGN - (base - start));
	*out = (char *)p + (base - start);
	return 0;
}

static int reserve_window(struct arena *a)
{
	uint64_t left = address_space_left(), size = a->window_wanted;
	int r = -ENOMEM;

	for (; size >= ARENA_WINDOW_SIZE_MIN; size = ALIGN_DOWN(size / 2, ARENA_WINDOW_ALIGN)) {
		uint64_t beside = mm_bytes(size) + channel_bytes(size) + ARENA_WINDOW_ALIGN / 16;
		void *p;

		if (left != UINT64_MAX && (left < beside || left - beside < size))
			continue;
		r = os_reserve((void *)ARENA_WINDOW_BASE, size, false, &p);
		if (r == -EEXIST)
			r = reserve_anywhere(size, &p);
		if (r == 0) {
			a->tlb.base = (uintptr_t)p;
			a->tlb.size = size;
			return 0;
		}
		if (r != -ENOMEM)
			return r;
	}
	return r;
}

static void release_window(struct arena *a)
{
	flush_thread_stop(a);
	userfault_trap_stop(a);
	tlb_notes_exit(&a->tlb);
	stale_exit(&a->tlb);
	if (a->tlb.size)
		os_unmap((void *)(uintptr_t)a->tlb.base, a->tlb.size);
	a->tlb.size = 0;
}

/* Undo what attach has made, in any state of it, but for the socket and the registry. */
static void release_space(struct arena *a)
{
	_cleanup_(closep) int doorbell = a->doorbell;

	release_window(a);
	if (a->mm_map)
		os_unmap(a->mm_map, a->mm_len);
	if (a->channel_map)
		os_unmap(a->channel_map, a->channel_len);
	a->mm_map = a->channel_map = NULL;
	/* The bell may still be about to ring it. */
	store_relaxed(&a->doorbell, -1);
	tlb_slots_close(&a->tlb);
	memset(&a->tlb, 0, sizeof(a->tlb));
	own_free(a->spare, sizeof(*a->spare));
	a->spare = NULL;
}

static int attach_rpc(struct arena *a, int fds[NR_ATTACH_FDS])
{
	_cleanup_(freep) struct sock_buffer *b = malloc(sizeof(*b));
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Attach attach = ARENA__ATTACH__INIT;
	Arena__Reply *reply;
	unsigned nr = 0;
	int r;

	if (!b)
		return -ENOMEM;
	attach.window_base = a->tlb.base;
	attach.window_size = a->tlb.size;
	request.call_case = ARENA__REQUEST__CALL_ATTACH;
	request.attach = &attach;
	r = socket_call(a, &request, b, &reply, fds, NR_ATTACH_FDS, &nr);
	if (r < 0)
		return r;
	if (nr == NR_ATTACH_FDS && reply->result_case == ARENA__REPLY__RESULT_ATTACH &&
	    reply->attach->token.len == sizeof(a->token)) {
		a->mm_id = reply->attach->mm_id;
		memcpy(a->token, reply->attach->token.data, sizeof(a->token));
		return 0;
	}
	while (nr)
		close(fds[--nr]);
	return -EPROTO;
}

int client_map_shared(struct arena *a, int mm_fd, int channel_fd)
{
	struct tlb *t = &a->tlb;
	char *channel;
	int r;

	a->mm_len = mm_bytes(t->size);
	a->channel_len = channel_bytes(t->size);
	r = os_map(mm_fd, 0, a->mm_len, OS_MAP_READ | OS_MAP_DONTFORK, &a->mm_map);
	if (r < 0)
		return r;
	r = os_map(channel_fd, 0, a->channel_len, OS_MAP_READ | OS_MAP_WRITE | OS_MAP_DONTFORK,
		   &a->channel_map);
	if (r < 0)
		return r;
	channel = a->channel_map;
	t->header = a->mm_map;
	t->tables = (const uint64_t *)((char *)a->mm_map + ARENA_MM_TABLES_OFFSET);
	t->nr_tables = tables_for(t->size);
	t->channel = a->channel_map;
	t->ring = (struct arena_flush_entry *)(channel + ARENA_CHANNEL_FLUSH);
	t->bits = (struct arena_table_bits *)(channel + ARENA_CHANNEL_BITS);
	if (t->header->magic != ARENA_MM_MAGIC || t->channel->magic != ARENA_CHANNEL_MAGIC ||
	    t->header->abi_major != ARENA_ABI_MAJOR || t->channel->abi_major != ARENA_ABI_MAJOR ||
	    t->header->window_base != t->base || t->header->window_size != t->size)
		return -EPROTO;
	t->applied = load_acquire(&t->channel->flush_head);
	/* The first flush, which others wait for, shall not have to wait for its page. */
	(void)load_acquire(&t->ring[(t->applied + 1) % ARENA_FLUSH_ENTRIES].seq);
	/* In the child of fork() it is known already, and may not be looked up. */
	if (!t->max_maps)
		t->max_maps = os_max_map_count() / 4 * 3;
	mailboxes_init(&a->mail, (struct arena_mailbox *)(channel + ARENA_CHANNEL_MAILBOXES));
	return 0;
}

static int take_over(struct arena *a, int fds[NR_ATTACH_FDS])
{
	_cleanup_(closep) int mm_fd = fds[FD_MM];
	_cleanup_(closep) int channel_fd = fds[FD_CHANNEL];
	_cleanup_(closep) int arena_fd = client_high_fd(fds[FD_ARENA]);
	int r;

	a->doorbell = client_high_fd(fds[FD_DOORBELL]);
	r = tlb_slot_set(&a->tlb, 0, arena_fd);
	if (r < 0)
		return r;
	TAKE_FD(arena_fd);
	r = client_map_shared(a, mm_fd, channel_fd);
	if (r < 0)
		return r;
	r = flush_thread_start(a);
	if (r == 0 && a->trap.on) {
		trap_keep(a);
		r = userfault_trap_start(a);
	}
	if (r < 0)
		return r;
	pthread_mutex_lock(&client_mutex);
	r = trap_install();
	a->trapped = r == 0;
	pthread_mutex_unlock(&client_mutex);
	return r;
}

/* Under open_mutex. What fails before the daemon has attached may be tried again. */
static int attach(struct arena *a)
{
	int fds[NR_ATTACH_FDS];
	int r;

	if (load_acquire(&a->attached))
		return 0;
	if (link_state(a) == LINK_DEAD)
		return -ECONNRESET;
	store_release(&a->attaching, 1);
	if (!a->spare)
		a->spare = own_alloc(sizeof(*a->spare));
	r = a->spare ? reserve_window(a) : -ENOMEM;
	if (r == 0 && a->trap.on)
		r = userfault_trap_reserve(a);
	if (r == 0)
		r = tlb_notes_init(&a->tlb);
	if (r == 0)
		r = attach_rpc(a, fds);
	if (r == 0) {
		r = take_over(a, fds);
		if (r < 0)
			link_die(a);
	}
	if (r < 0) {
		release_space(a);
		store_release(&a->attaching, 0);
		return r;
	}
	publish_window(slot_of(a), &a->tlb);
	store_release(&a->attached, 1);
	store_release(&a->attaching, 0);
	/* It may have been lost while nobody was to be told. */
	if (link_state(a) == LINK_LOST)
		flush_thread_nudge(a);
	client_ask_zero(a);
	return 0;
}

void client_publish(struct arena *a)
{
	publish_window(slot_of(a), &a->tlb);
}

static void attach_job(struct arena *a, void *arg)
{
	*(int *)arg = attach(a);
}

static int choose_and_attach(struct arena *a)
{
	int r = trap_choose(a);

	if (r == 0)
		agent_run(a, attach_job, &r);
	return r;
}

int client_enter(const struct arena *a)
{
	if (!slot_of(a))
		return -EINVAL;
	return load_acquire(&a->foreign) ? -EBADF : 0;
}

int client_enter_attached(struct arena *a)
{
	int r = client_enter(a);

	if (r < 0 || load_acquire(&a->attached))
		return r;
	pthread_mutex_lock(&a->open_mutex);
	r = client_enter(a);
	if (r == 0)
		r = choose_and_attach(a);
	pthread_mutex_unlock(&a->open_mutex);
	return r;
}

/* ---- open and close ---- */

/*
 * The options as this version knows them: those that an earlier version did not know are 0, and what
 * a later one may have added must be.
 */
static int take_options(const struct arena_options *options, struct arena_options *o)
{
	*o = (struct arena_options){.size = sizeof(*o)};
	if (!options)
		return 0;
	if (options->size < offsetof(struct arena_options, wait_ms) ||
	    options->size > ARENA_PAGE_SIZE)
		return -EINVAL;
	for (size_t i = sizeof(*o); i < options->size; i++)
		if (((const char *)options)[i])
			return -EINVAL;
	memcpy(o, options, MIN(options->size, sizeof(*o)));
	if (o->trap != ARENA_TRAP_AUTO && o->trap != ARENA_TRAP_SIGNAL &&
	    o->trap != ARENA_TRAP_USERFAULTFD)
		return -EINVAL;
	return o->window > WINDOW_SIZE_MAX ? -EINVAL : 0;
}

static uint64_t wanted_window(uint64_t asked)
{
	if (asked == 0)
		return ARENA_WINDOW_SIZE_DEFAULT_HERE;
	return MAX(ALIGN_UP(asked, ARENA_WINDOW_ALIGN), ARENA_WINDOW_SIZE_MIN);
}

static void free_arena(struct arena *a)
{
	if (a->agent.running)
		agent_stop(a); /* and the descriptors with it */
	else
		closep(&a->sock);
	pthread_mutex_destroy(&a->sock_mutex);
	pthread_mutex_destroy(&a->open_mutex);
	bare_free(&a->nurse);
	own_free(a, sizeof(*a));
}

static int open_arena(const struct arena_options *options, struct arena **out)
{
	struct arena_options o;
	struct arena *a;
	int r = take_options(options, &o);

	if (r < 0)
		return r;
	r = fork_handlers_register();
	if (r < 0)
		return r;
	a = own_alloc(sizeof(*a));
	if (!a)
		return -ENOMEM;
	a->sock = a->doorbell = -1;
	a->trap.fd = a->trap.stop_fd = -1;
	a->trap_wanted = o.trap;
	a->window_wanted = wanted_window(o.window);
	a->wait_ms = o.wait_ms ? o.wait_ms : WAIT_DEFAULT_MS;
	a->link = LINK_LOST;
	pthread_mutex_init(&a->sock_mutex, NULL);
	pthread_mutex_init(&a->open_mutex, NULL);
	r = connect_daemon(a, o.socket);
	/* Who insists hears it now, and may close all descriptors from here on. */
	if (r == 0 && o.trap == ARENA_TRAP_USERFAULTFD)
		r = trap_choose(a);
	if (r == 0) {
		pthread_mutex_lock(&client_mutex);
		r = registry_add(a);
		pthread_mutex_unlock(&client_mutex);
	}
	if (r < 0) {
		free_arena(a);
		return r;
	}
	*out = a;
	return 0;
}

int arena_open(const struct arena_options *options, arena_t **out)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	if (!out)
		return client_return(-EINVAL);
	pthread_once(&once, faultpoint_arm_from_environment);
	return client_return(open_arena(options, out));
}

/*
 * The window is gone, and no other thread is in here any more. What the daemon does not hear it has in
 * the socket when it gets to read; where that is lost, it hears it by another, or sees our death.
 */
static void say_bye(struct arena *a)
{
	_cleanup_(freep) struct sock_buffer *b = malloc(sizeof(*b));
	uint64_t deadline = MIN(link_deadline(a), clock_now() + CLOSE_WAIT);
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Bye bye = ARENA__BYE__INIT;

	if (link_state(a) == LINK_LOST && a->mm_id && a->spare)
		link_reconnect(a, deadline);
	if (!b || !link_owns_socket(a))
		return;
	/* One that has given up does not wait for the answer, either. */
	if (link_state(a) == LINK_DEAD)
		deadline = 0;
	request.id = ++a->sock_id;
	request.call_case = ARENA__REQUEST__CALL_BYE;
	request.bye = &bye;
	if (sock_pack(&request, b) == 0)
		sock_exchange(a, a->sock, b, deadline, NULL, 0, NULL);
}

/* Where the program has closed the socket it has closed all: the numbers are its own now. */
static void forget_closed(struct arena *a)
{
	if (a->sock < 0 || link_owns_socket(a))
		return;
	tlb_slots_forget(&a->tlb);
	a->doorbell = a->sock = -1;
}

static void close_job(struct arena *a, void *arg)
{
	(void)arg;
	release_window(a);
	store_release(&a->closing, 0);
	say_bye(a);
}

static void release_job(struct arena *a, void *arg)
{
	(void)arg;
	forget_closed(a);
	release_space(a);
}

void arena_close(arena_t *a)
{
	struct registry_slot *s;

	pthread_mutex_lock(&client_mutex);
	s = slot_of(a);
	if (s)
		store_release(&s->closing, 1);
	pthread_mutex_unlock(&client_mutex);
	if (!s)
		return;

	if (!a->foreign) {
		store_release(&a->closing, 1);
		withdraw_window(s);
		store_release(&a->attached, 0);
		agent_run(a, close_job, NULL);
	}
	pthread_mutex_lock(&client_mutex);
	if (a->trapped)
		trap_uninstall();
	agent_run(a, release_job, NULL);
	store_release(&s->arena, NULL);
	pthread_mutex_unlock(&client_mutex);
	free_arena(a);
}

void arena_window(arena_t *a, void **base, size_t *size)
{
	int r = client_enter_attached(a);

	if (base)
		*base = r < 0 ? NULL : (void *)(uintptr_t)a->tlb.base;
	if (size)
		*size = r < 0 ? 0 : a->tlb.size;
}

const char *arena_version(void)
{
	return CLIENT_VERSION;
}
