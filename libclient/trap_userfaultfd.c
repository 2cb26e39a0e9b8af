/* SPDX-License-Identifier: MIT */
/*
 * trap_userfaultfd.c - accesses held by the kernel as TLB misses.
 *
 * The whole window is registered with a userfaultfd: an access to a page that is not mapped, be it
 * a program's or a system call's, waits until the fault thread has mapped it. That thread alone maps.
 *
 *     reservation      empty memory, registered      | every access
 *     mapped           arena file, registered        | none
 *     mapped, COW      arena file, write-protected   | writes        VMA permits them, the entry not
 *     unmapped again   arena file, registered, zapped| every access  until mapped over, or evicted
 *     barred           no rights                     | none: SIGSEGV, or EFAULT
 *
 * What must not happen is that an access finds none of these, for a moment only:
 * - Memory that is not registered is zeros, so no mapping is ever replaced by a reservation: a flush
 *   zaps (MADV_DONTNEED), and what is registered for minor faults then holds accesses though its file
 *   has the pages. It needs no descriptor, so any thread can do it.
 * - A mapping is made, then registered. In between it is what it should be, but for one that is to
 *   be write-protected: that is made elsewhere and moved here, with mremap(2). The kernel tells of the
 *   move by an event and has the mover wait until it is read, by the bell thread (agent.h).
 * - A flush leaves kernel mappings behind (tlb.nr_stale). Eviction moves new reservation over all.
 * - Rights are not taken from a mapping of a VMA that has them (the system call would fail).
 *
 * An access that is refused must fail as the kernel would have it fail, but there is no way to say so:
 * the page is barred, the access repeated, and the SIGSEGV handler of trap_signal.c, or the system call,
 * finds it so. It is barred until the handler has been there, a call may have made it valid, or a
 * moment has passed: repeated too early, the access is only held and refused again.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/faultpoint.h"
#include "base/os.h"
#include "base/userfault.h"
#include "base/util.h"
#include "libclient/internal.h"

#define MAX_TRIES 1000
#define HOLE_RUN 4u
#define BARRED_MS 20
#define SPIN_MAX (50 * NSEC_PER_USEC)
#define SPIN_MIN (4 * NSEC_PER_USEC)

static const struct fault_signal bus_error = {.signo = SIGBUS, .code = BUS_ADRERR};

static void *pointer(uint64_t addr)
{
	return (void *)(uintptr_t)addr;
}

static struct arena *arena_of(const struct tlb *t)
{
	return container_of(t, struct arena, tlb);
}

static struct userfault_trap *trap_of(const struct tlb *t)
{
	return &arena_of(t)->trap;
}

static uint64_t page_of(const struct tlb *t, uint64_t addr)
{
	return (addr - t->base) >> ARENA_PAGE_SHIFT;
}

/* ---- barred pages; under the lock ---- */

static void barred_remove(struct userfault_trap *u, uint32_t i)
{
	uint32_t nr = u->nr_barred - 1;

	memmove(&u->barred[i], &u->barred[i + 1], (nr - i) * sizeof(u->barred[0]));
	store_relaxed(&u->nr_barred, nr);
}

/* Their range is about to get other mappings, or has got other rights. */
static void barred_forget(struct userfault_trap *u, uint64_t start, uint64_t end)
{
	for (uint32_t i = u->nr_barred; i-- > 0;)
		if (u->barred[i] >= start && u->barred[i] < end)
			barred_remove(u, i);
}

/* Each was registered or write-protected memory that may be written to, and is again. */
static void unbar(struct userfault_trap *u, uint64_t start, uint64_t end)
{
	for (uint32_t i = u->nr_barred; i-- > 0;) {
		if (u->barred[i] < start || u->barred[i] >= end)
			continue;
		os_protect(pointer(u->barred[i]), ARENA_PAGE_SIZE, OS_MAP_READ | OS_MAP_WRITE);
		barred_remove(u, i);
	}
}

static void bar(struct tlb *t, uint64_t addr)
{
	struct userfault_trap *u = trap_of(t);
	uint64_t page = ALIGN_DOWN(addr, ARENA_PAGE_SIZE);

	unbar(u, page, page + ARENA_PAGE_SIZE);
	if (u->nr_barred == TRAP_MAX_BARRED)
		unbar(u, u->barred[0], u->barred[0] + ARENA_PAGE_SIZE);
	/* Who may read shall go on reading. */
	if (os_protect(pointer(page), ARENA_PAGE_SIZE,
		       tlb_note_is_mapped(t, page_of(t, page)) ? OS_MAP_READ : 0) < 0)
		return; /* no room for one more mapping: it is held again, and tried again */
	u->barred[u->nr_barred] = page;
	store_relaxed(&u->nr_barred, u->nr_barred + 1);
}

/* ---- what is mapped how; under the lock ---- */

/*
 * Is all of the range in one VMA that cannot be written to? The daemon keeps the records dense: none
 * was used behind one that has no end. They change while we look; whoever gets more rights
 * zaps what was mapped with less (client_rights_given).
 */
static bool in_readonly_vma(const struct tlb *t, uint64_t start, uint64_t end)
{
	const struct arena_vma_record *records =
		(const struct arena_vma_record *)(const void *)((const char *)t->header +
								ARENA_MM_VMAS_OFFSET);
	uint32_t *hint = &trap_of(t)->record;

	for (uint32_t i = 0, nr = *hint; i <= ARENA_MM_MAX_VMAS; nr = i++) {
		const struct arena_vma_record *r = &records[nr];
		uint64_t to;

		if (nr >= ARENA_MM_MAX_VMAS || (to = load_acquire(&r->end)) == 0)
			break;
		if (load_acquire(&r->state) != ARENA_VMA_LIVE || load_acquire(&r->start) > start ||
		    to < end)
			continue;
		*hint = nr;
		return !(load_acquire(&r->prot) & PROT_WRITE);
	}
	*hint = 0;
	return false;
}

/* A write has the daemon copy it, or is refused by it. */
static bool is_cow(const struct tlb *t, uint64_t start, uint64_t end, uint64_t pte)
{
	return !(pte & ARENA_PTE_WRITE) && !in_readonly_vma(t, start, end);
}

/* Only what may be written to by somebody can be registered, or a copy of one's own. */
static unsigned sharing(int fd)
{
	long flags = syscall(SYS_fcntl, fd, F_GETFL);

	return flags >= 0 && (flags & O_ACCMODE) == O_RDONLY ? OS_MAP_PRIVATE : 0;
}

/* Beside the window: mapped as `run` needs it, write-protected. *p is to be unmapped in any case. */
static int stage_cow(struct arena *a, const struct tlb_run *run, int fd, unsigned flags, void **p)
{
	uint64_t len = run->end - run->start;
	int r = os_map(fd, arena_pte_pfn(run->pte) << ARENA_PAGE_SHIFT, len,
		       OS_MAP_READ | OS_MAP_WRITE | OS_MAP_DONTFORK | sharing(fd) |
			       (flags & OS_MAP_EXEC),
		       p);

	if (r < 0)
		*p = NULL;
	if (r == 0)
		r = userfault_register(a->trap.fd, *p, len, true);
	return r < 0 ? r : userfault_map_protected(a->trap.fd, *p, len);
}

static void unstage(const struct tlb_run *run, void *p)
{
	if (p)
		os_unmap(p, run->end - run->start);
}

/* What is a hole in the file gets its memory. */
static int fill_file(const struct tlb_run *run, int fd)
{
	uint64_t len = run->end - run->start;
	void *p;
	int r = os_map(fd, arena_pte_pfn(run->pte) << ARENA_PAGE_SHIFT, len, OS_MAP_READ, &p);

	if (r < 0)
		return r;
	r = userfault_touch(p, len, false);
	os_unmap(p, len);
	return r;
}

static int map_cow(struct arena *a, const struct tlb_run *run, int fd, unsigned flags)
{
	void *p;
	int r;

	agent_moving_soon(a);
	r = stage_cow(a, run, fd, flags, &p);
	if (r == -EFAULT) {
		unstage(run, p);
		p = NULL;
		r = fill_file(run, fd);
		if (r == 0)
			r = stage_cow(a, run, fd, flags, &p);
	}
	if (r == 0) {
		agent_moving_now(a);
		r = userfault_move(p, run->end - run->start, pointer(run->start));
		a->trap.lost |= r < 0;
	}
	agent_moved(a);
	if (r < 0)
		unstage(run, p);
	return r;
}

static int map_plain(struct arena *a, const struct tlb_run *run, int fd, unsigned flags)
{
	void *p = pointer(run->start);
	uint64_t len = run->end - run->start;
	int r;

	if (!(flags & OS_MAP_WRITE))
		flags |= sharing(fd);
	r = os_map_fixed(p, len, fd, arena_pte_pfn(run->pte) << ARENA_PAGE_SHIFT, flags);
	/*
	 * A hole gets its memory here: registered, it would hold each touch. And populating keeps
	 * failures to itself.
	 */
	if (r == 0 && (!(flags & OS_MAP_POPULATE) || a->trap.careful))
		r = userfault_touch(p, len, flags & OS_MAP_WRITE);
	if (r == 0)
		r = userfault_register(a->trap.fd, p, len, false);
	a->trap.lost |= r < 0;
	return r;
}

static int trap_map(struct tlb *t, const struct tlb_run *run, int fd, unsigned flags)
{
	struct arena *a = arena_of(t);
	int r;

	if (is_cow(t, run->start, run->end, run->pte))
		r = map_cow(a, run, fd, flags);
	else
		r = map_plain(a, run, fd, flags);
	if (r < 0)
		return r;
	barred_forget(&a->trap, run->start, run->end);
	stale_replaced(t, page_of(t, run->start), page_of(t, run->end));
	a->trap.mapped_start = run->start;
	a->trap.mapped_end = run->end;
	return 0;
}

/* Zapped, it holds accesses whatever its rights are; then it may have those that a reservation has. */
static void zap(struct tlb *t, uint64_t start, uint64_t end)
{
	/* Without that the acknowledgement would be a lie, and there is nothing else. */
	BUG_ON(userfault_zap(pointer(start), end - start) < 0);
	os_protect(pointer(start), end - start, OS_MAP_READ | OS_MAP_WRITE);
	barred_forget(trap_of(t), start, end);
}

static int trap_unmap(struct tlb *t, uint64_t start, uint64_t end)
{
	zap(t, start, end);
	stale_add(t, page_of(t, start), page_of(t, end));
	return 0;
}

/* Fresh reservation in the place of all that is mapped there. */
static int move_reservation(struct arena *a, uint64_t addr, uint64_t len)
{
	void *p;
	int r = userfault_reserve(a->trap.fd, NULL, len, &p);

	if (r < 0)
		return r;
	agent_moving_soon(a);
	agent_moving_now(a);
	r = userfault_move(p, len, pointer(addr));
	agent_moved(a);
	if (r < 0)
		os_unmap(p, len);
	return r;
}

static int trap_restore(struct tlb *t, uint64_t start, uint64_t end)
{
	struct userfault_trap *u = trap_of(t);

	if (!u->lost)
		return 0;
	u->lost = false;
	barred_forget(u, start, end);
	return move_reservation(arena_of(t), start, end - start);
}

static int trap_drop(struct tlb *t)
{
	zap(t, t->base, t->base + t->size);
	stale_add_all(t);
	return 0;
}

/* In one step, or in as few as address space beside the window lasts for. */
static int trap_evict(struct tlb *t)
{
	struct arena *a = arena_of(t);
	uint64_t at = t->base, end = t->base + t->size, len = t->size;
	void *p;

	barred_forget(&a->trap, at, end);
	stale_forget(t);
	a->trap.lost = false;
	while (at < end) {
		int r = move_reservation(a, at, MIN(len, end - at));

		if (r == 0) {
			at += MIN(len, end - at);
		} else if (r == -ENOMEM && len > ARENA_LEAF_SIZE) {
			len = ALIGN_UP(len / 2, ARENA_LEAF_SIZE);
		} else {
			/* Nothing can be made beside. An access in this moment fails. */
			return userfault_reserve(a->trap.fd, pointer(t->base), t->size, &p);
		}
	}
	return 0;
}

/* Protected leaves are mapped page by page, holes are zeroed here: others shall not wait for more. */
static unsigned trap_max_leaves(const struct tlb *t, uint64_t addr, uint64_t pte)
{
	uint64_t leaf = ALIGN_DOWN(addr, ARENA_LEAF_SIZE);

	if (is_cow(t, leaf, leaf + ARENA_LEAF_SIZE, pte))
		return 1;
	return pte & ARENA_PTE_HOLE ? HOLE_RUN : TLB_LEAF_RUN;
}

static const struct tlb_ops trap_ops = {
	.map = trap_map,
	.unmap = trap_unmap,
	.restore = trap_restore,
	.drop = trap_drop,
	.evict = trap_evict,
	.max_leaves = trap_max_leaves,
	.wrprotects = false,
};

/* ---- the fault thread ---- */

static __thread const struct arena *serving __attribute__((tls_model("initial-exec")));

bool userfault_trap_serving(const struct arena *a)
{
	return serving == a;
}

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
	r = tlb_refill(t, e->address, access, NULL);
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
	if (!(e->write || e->protected) || !in_readonly_vma(t, page, end) ||
	    tlb_refill(t, e->address, PROT_READ, NULL) != TLB_DONE)
		bar(t, e->address);
	tlb_unlock(t, 0, true);
	wake(a, page, end);
}

static void serve(struct arena *a, const struct userfault_event *e)
{
	unsigned access = e->write || e->protected ? PROT_WRITE : PROT_READ;
	struct fault_signal refused;

	for (int i = 0; i < MAX_TRIES; i++) {
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
	} done[TRAP_BATCH];
	int nr_done = 0;

	for (int i = 0; i < n; i++) {
		bool known = e[i].moved;

		/* Woken already, together with another of this batch; a write may need more. */
		for (int k = 0; k < nr_done && !known && !e[i].protected; k++)
			known = e[i].address >= done[k].start && e[i].address < done[k].end;
		if (known)
			continue;
		a->trap.mapped_start = a->trap.mapped_end = 0;
		serve(a, &e[i]);
		done[nr_done].start = a->trap.mapped_start;
		done[nr_done++].end = a->trap.mapped_end;
	}
}

/*
 * The next events. Where they come densely, looking for them costs less than being woken: a thread that
 * finds none within its time looks half as long the next time, and not at all in the end.
 */
static int look(struct userfault_trap *u, struct userfault_event *e)
{
	uint64_t until;
	int n = userfault_read(u->fd, e, TRAP_BATCH);

	if (n || !u->spin_ns || os_nr_cpus() == 1)
		return n;
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

static void unbar_all(struct arena *a, void *arg)
{
	uint64_t mask = tlb_lock(&a->tlb, false);

	(void)arg;
	unbar(&a->trap, 0, UINT64_MAX);
	tlb_unlock(&a->tlb, mask, false);
}

/* Sleep until there is something. False: the end. */
static bool sleep_until_event(struct arena *a)
{
	struct userfault_trap *u = &a->trap;
	struct pollfd p[] = {{.fd = u->fd, .events = POLLIN}, {.fd = u->stop_fd, .events = POLLIN}};
	uint64_t since = clock_now();
	long n = syscall(SYS_poll, p, 2, load_relaxed(&u->nr_barred) ? BARRED_MS : -1);

	if (n == 0)
		unbar_all(a, NULL);
	/* Woken so soon, it would have been better awake. */
	if (n > 0 && clock_now() - since < 2 * SPIN_MAX)
		u->spin_ns = SPIN_MAX;
	return !(p[1].revents & POLLIN);
}

static void *fault_main(void *arg)
{
	struct arena *a = arg;
	struct userfault_event e[TRAP_BATCH];

	library_thread_enter(a, "arena-fault");
	serving = a;
	for (;;) {
		int n = look(&a->trap, e);

		if (n > 0)
			serve_all(a, e, n);
		else if (n < 0 || !sleep_until_event(a))
			return NULL;
	}
}

/* ---- begin and end ---- */

int userfault_trap_reserve(struct arena *a)
{
	void *p;

	int r = stale_init(&a->tlb);

	if (r < 0)
		return r;
	a->tlb.ops = &trap_ops;
	return userfault_reserve(a->trap.fd, pointer(a->tlb.base), a->tlb.size, &p);
}

int userfault_trap_start(struct arena *a)
{
	struct userfault_trap *u = &a->trap;
	int r;

	__atomic_fetch_and(&a->mail.free, ~(UINT64_C(1) << TRAP_MAILBOX), __ATOMIC_RELAXED);
	u->stop_fd = os_eventfd();
	if (u->stop_fd < 0)
		return u->stop_fd;
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

/* ---- in threads of the program ---- */

struct signal_job {
	uint64_t addr;
	unsigned access;
};

/*
 * The page is barred, or was mapped with less than its entry permits now: let it be held at the next
 * access, whose event the fault thread answers.
 */
static void release_job(struct arena *a, void *arg)
{
	struct signal_job job = *(struct signal_job *)arg;
	uint64_t page = ALIGN_DOWN(job.addr, ARENA_PAGE_SIZE);
	struct tlb *t = &a->tlb;
	uint64_t mask = tlb_lock(t, false);
	struct tlb_walk w;

	unbar(&a->trap, page, page + ARENA_PAGE_SIZE);
	if (tlb_note_is_mapped(t, page_of(t, page)) && tlb_walk(t, job.addr, &w) &&
	    tlb_permits(w.pte, job.access))
		tlb_unmap(t, page, page + ARENA_PAGE_SIZE);
	tlb_unlock(t, mask, false);
}

int userfault_trap_signal(struct arena *a, uint64_t addr, unsigned access,
			  struct fault_signal *refused)
{
	struct signal_job job = {.addr = addr, .access = access};
	void *page = pointer(ALIGN_DOWN(addr, ARENA_PAGE_SIZE));

	for (int i = 0; i < MAX_TRIES; i++) {
		int r;

		client_locked(a, release_job, &job);
		/* As a system call, so that a refusal is no signal. */
		r = userfault_touch(page, ARENA_PAGE_SIZE, access == PROT_WRITE);
		if (r == 0 && access != PROT_EXEC)
			return 0;
		if (client_ask_daemon(a, addr, access, refused)) {
			/* This one knows; the next shall ask again. */
			client_locked(a, release_job, &job);
			return 1;
		}
		if (r == 0)
			return 0;
	}
	*refused = bus_error;
	return 1;
}

void userfault_trap_forgive(struct arena *a)
{
	if (a->trap.on && load_relaxed(&a->trap.nr_barred))
		client_locked(a, unbar_all, NULL);
}

/* ---- for both traps ---- */

bool client_on_window_stack(const struct arena *a)
{
	uint64_t here = (uintptr_t)__builtin_frame_address(0);

	return a->trap.on && here >= a->tlb.base && here - a->tlb.base < a->tlb.size;
}

void client_locked(struct arena *a, void (*fn)(struct arena *a, void *arg), void *arg)
{
	if (client_on_window_stack(a))
		flush_thread_run(a, fn, arg);
	else
		fn(a, arg);
}

void client_map_range(struct arena *a, uint64_t start, uint64_t end, unsigned access)
{
	/* Of what is not mapped, the fault thread hears. */
	if (a->trap.on)
		userfault_touch(pointer(start), ALIGN_UP(end, ARENA_PAGE_SIZE) - start,
				access == PROT_WRITE);
	else
		tlb_refill_range(&a->tlb, start, end, access);
}

struct rights_job {
	uint64_t start, end;
	unsigned prot;
};

static bool all_writable(const struct tlb *t, uint64_t first, uint64_t end)
{
	uint64_t page = tlb_note_next(t, first, end, false);

	while (page < end) {
		if (tlb_note_next(t, page, end, true) != page)
			return false;
		page = tlb_note_next(t, tlb_note_writable_end(t, page, end), end, false);
	}
	return true;
}

static void rights_job(struct arena *a, void *arg)
{
	struct rights_job job = *(struct rights_job *)arg;
	struct tlb *t = &a->tlb;
	uint64_t mask = tlb_lock(t, false);

	if ((job.prot & PROT_EXEC) || !all_writable(t, page_of(t, job.start), page_of(t, job.end)))
		tlb_unmap(t, job.start, job.end);
	tlb_unlock(t, mask, false);
}

void client_rights_given(struct arena *a, uint64_t start, uint64_t len, unsigned prot)
{
	struct rights_job job = {
		.start = start,
		.end = start + ALIGN_UP(len, ARENA_PAGE_SIZE),
		.prot = prot,
	};

	if (!a->trap.on || !(prot & (PROT_WRITE | PROT_EXEC)) || job.start >= job.end)
		return;
	client_locked(a, rights_job, &job);
	/* Not held, fetching an instruction is a signal: it shall find the page mapped. */
	if (prot & PROT_EXEC)
		client_map_range(a, job.start, job.end, PROT_READ);
}
