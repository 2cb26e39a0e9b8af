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
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/os.h"
#include "base/userfault.h"
#include "base/util.h"
#include "libclient/trap_userfaultfd.h"

#define HOLE_RUN 4u

static struct arena *arena_of(const struct tlb *t)
{
	return container_of(t, struct arena, tlb);
}

static struct userfault_trap *trap_of(const struct tlb *t)
{
	return &arena_of(t)->trap;
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
void userfault_unbar(struct userfault_trap *u, uint64_t start, uint64_t end)
{
	for (uint32_t i = u->nr_barred; i-- > 0;) {
		if (u->barred[i] < start || u->barred[i] >= end)
			continue;
		os_protect(pointer(u->barred[i]), ARENA_PAGE_SIZE, OS_MAP_READ | OS_MAP_WRITE);
		barred_remove(u, i);
	}
}

void userfault_unbar_all(struct arena *a, void *arg)
{
	uint64_t mask = tlb_lock(&a->tlb, false);

	(void)arg;
	userfault_unbar(&a->trap, 0, UINT64_MAX);
	tlb_unlock(&a->tlb, mask, false);
}

void userfault_bar(struct tlb *t, uint64_t addr)
{
	struct userfault_trap *u = trap_of(t);
	uint64_t page = ALIGN_DOWN(addr, ARENA_PAGE_SIZE);

	userfault_unbar(u, page, page + ARENA_PAGE_SIZE);
	if (u->nr_barred == TRAP_MAX_BARRED)
		userfault_unbar(u, u->barred[0], u->barred[0] + ARENA_PAGE_SIZE);
	/* Who may read shall go on reading. */
	if (os_protect(pointer(page), ARENA_PAGE_SIZE,
		       tlb_note_is_mapped(t, page_of(t, page)) ? OS_MAP_READ : 0) < 0)
		return; /* no room for one more mapping: it is held again, and tried again */
	u->barred[u->nr_barred] = page;
	store_relaxed(&u->nr_barred, u->nr_barred + 1);
}

/* ---- what is mapped how; under the lock ---- */

/*
 * The record of the VMA that has all of the range, or NULL. The daemon keeps the records dense: none
 * was used behind one that has no end. They change while we look.
 */
static const struct arena_vma_record *find_record(const struct tlb *t, uint64_t start, uint64_t end)
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
		return r;
	}
	*hint = 0;
	return NULL;
}

bool userfault_one_vma(const struct tlb *t, uint64_t start, uint64_t end)
{
	return find_record(t, start, end);
}

/* Whoever gets more rights zaps what was mapped with less (client_rights_given). */
bool userfault_readonly(const struct tlb *t, uint64_t start, uint64_t end)
{
	const struct arena_vma_record *r = find_record(t, start, end);

	return r && !(load_acquire(&r->prot) & PROT_WRITE);
}

/* A write has the daemon copy it, or is refused by it. */
static bool is_cow(const struct tlb *t, uint64_t start, uint64_t end, uint64_t pte)
{
	return !(pte & ARENA_PTE_WRITE) && !userfault_readonly(t, start, end);
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

	/* A newborn child has nobody to read the event of a move: it has the page copied (trap_serve.c). */
	if (!agent_can_move(a))
		return -EINVAL;
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

/*
 * By an access of our own. Not registered yet: it finds what the file has. Others may be writing there, and
 * what is read is nothing to us.
 */
__attribute__((no_sanitize("thread"))) static void touch_leaves(uint64_t start, uint64_t end)
{
	for (; start < end; start += ARENA_LEAF_SIZE)
		(void)*(const volatile char *)pointer(start);
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
	if (r == 0 && a->trap.ahead.working && (flags & OS_MAP_READ))
		touch_leaves(run->start, run->end);
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
	a->trap.mapped_writable = run->pte & ARENA_PTE_WRITE;
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
	int r;

	/* The only thread of a newborn child is waiting for us, so nobody can see the moment between. */
	if (!agent_can_move(a))
		return userfault_reserve(a->trap.fd, pointer(addr), len, &p);
	r = userfault_reserve(a->trap.fd, NULL, len, &p);
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
	return userfault_ahead_limit(&arena_of(t)->trap, addr, pte,
				     pte & ARENA_PTE_HOLE ? HOLE_RUN : TLB_LEAF_RUN);
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
