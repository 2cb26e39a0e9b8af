/* SPDX-License-Identifier: MIT */
/*
 * trap_program.c - what threads of the program do themselves where userfaultfd is the trap: what reached
 * them as a signal, and what follows calls that give rights.
 */
#include <signal.h>
#include <sys/mman.h>

#include "base/os.h"
#include "base/userfault.h"
#include "base/util.h"
#include "libclient/trap_userfaultfd.h"

static const struct fault_signal bus_error = {.signo = SIGBUS, .code = BUS_ADRERR};

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

	userfault_unbar(&a->trap, page, page + ARENA_PAGE_SIZE);
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

	for (int i = 0; i < USERFAULT_MAX_TRIES; i++) {
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
		client_locked(a, userfault_unbar_all, NULL);
}

/* ---- for both traps ---- */

/*
 * The kernel itself writes to the thread-local data, on the way back from anywhere (rseq(2)).
 */
bool client_on_window_memory(const struct arena *a)
{
	uint64_t stack = (uintptr_t)__builtin_frame_address(0);

	return a->trap.on && (stack - a->tlb.base < a->tlb.size ||
			      bare_thread_pointer() - a->tlb.base < a->tlb.size);
}

void client_locked(struct arena *a, void (*fn)(struct arena *a, void *arg), void *arg)
{
	if (client_on_window_memory(a))
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
