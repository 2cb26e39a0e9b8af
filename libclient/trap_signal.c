/* SPDX-License-Identifier: MIT */
/*
 * trap_signal.c - SIGSEGV as a TLB miss.
 *
 * The handler runs on the faulting thread with all signals blocked. It looks the window up by the
 * fault's address, refills from the page table, or asks the daemon and looks again. What is not
 * ours, and what the daemon refuses, goes to the program as the kernel would have sent it. Nothing
 * is held when the program's handler is called: it may leave by siglongjmp().
 *
 * Where userfaultfd is the trap, what comes here are accesses that are refused, or that a mapping
 * forbids which was made when it had to.
 */
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "base/faultpoint.h"
#include "base/os.h"
#include "base/util.h"
#include "libclient/internal.h"

#if !defined(__x86_64__)
#error "the signal trap reads the access from the fault's error code: teach it this machine's"
#endif

#define PAGE_FAULT 14 /* exception number */
#define ERROR_WRITE 0x2
#define ERROR_FETCH 0x10

/* The daemon says yes, but the entry says no: another thread is changing the mapping. */
#define MAX_TRIES 1000
/* Descriptors come again, and with a worker that dies meanwhile once more. */
#define MAX_LOST 16

static const struct fault_signal bus_error = {.signo = SIGBUS, .code = BUS_ADRERR};

int client_ask_daemon(struct arena *a, uint64_t addr, unsigned access, struct fault_signal *refused)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Fault fault = ARENA__FAULT__INIT;
	struct mail_reply m;
	int r;

	*refused = bus_error;
	if (faultpoint("client.fault"))
		return 1;
	fault.address = addr;
	fault.access = access;
	fault.cpu = os_current_cpu();
	request.call_case = ARENA__REQUEST__CALL_FAULT;
	request.fault = &fault;
	__atomic_fetch_add(&a->tlb.channel->faults, 1, __ATOMIC_RELAXED);
	r = mailbox_call(a, &request, &m, true);
	if (r == -EAGAIN)
		return 0;
	if (r < 0)
		return 1;
	if (m.reply->result_case != ARENA__REPLY__RESULT_FAULT || m.reply->fault->signo == 0)
		return 0;
	if (m.reply->fault->signo == SIGSEGV || m.reply->fault->signo == SIGBUS) {
		refused->signo = (int)m.reply->fault->signo;
		refused->code = m.reply->fault->code;
	}
	return 1;
}

/* The program has closed our descriptors, perhaps opened others: they come with a new connection. */
static bool descriptors_again(struct arena *a, int r)
{
	if (r != -EBADF && r != -ENODEV && r != -EACCES)
		return false;
	link_lost(a);
	return link_await(a, link_deadline(a));
}

int client_fault(struct arena *a, uint64_t addr, unsigned access, struct fault_signal *refused)
{
	unsigned lost = 0;

	if (a->trap.on)
		return userfault_trap_signal(a, addr, access, refused);
	for (int i = 0; i < MAX_TRIES; i++) {
		struct tlb_span holes = {0};
		int r;

		fork_gate(a);
		if (i == 0)
			client_gather(a, addr);
		tlb_lock(&a->tlb, true);
		r = tlb_refill(&a->tlb, addr, access, &holes);
		tlb_unlock(&a->tlb, 0, true);
		if (r == TLB_DONE) {
			tlb_back_holes(holes);
			if (i == 0)
				__atomic_fetch_add(&a->tlb.channel->refills, 1, __ATOMIC_RELAXED);
			return 0;
		}
		if (r < 0 && (lost++ >= MAX_LOST || !descriptors_again(a, r)))
			break;
		if (r < 0)
			continue;
		if (client_ask_daemon(a, addr, access, refused))
			return 1;
	}
	*refused = bus_error;
	return 1;
}

static unsigned access_of(const ucontext_t *uc)
{
	uint64_t error = (uint64_t)uc->uc_mcontext.gregs[REG_ERR];

	if (error & ERROR_FETCH)
		return PROT_EXEC;
	return error & ERROR_WRITE ? PROT_WRITE : PROT_READ;
}

/* A page fault that the kernel reported, not a signal that somebody sent? */
static bool is_miss(int sig, const siginfo_t *info, const ucontext_t *uc)
{
	return sig == SIGSEGV && (info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR) &&
	       uc->uc_mcontext.gregs[REG_TRAPNO] == PAGE_FAULT;
}

static void trap(int sig, siginfo_t *info, void *context)
{
	int saved_errno = errno;
	uint64_t addr = (uintptr_t)info->si_addr;
	struct arena *a = NULL;
	unsigned hold;

	if (is_miss(sig, info, context))
		a = client_get_window(addr, &hold);
	if (a) {
		struct fault_signal refused;
		int r = client_fault(a, addr, access_of(context), &refused);

		client_put_window(hold);
		if (r == 0) {
			errno = saved_errno;
			return;
		}
		sig = info->si_signo = refused.signo;
		info->si_code = refused.code;
	}
	errno = saved_errno;
	sigchain_deliver(sig, info, context);
}

static unsigned nr_traps;

int trap_install(void)
{
	int r = nr_traps ? 0 : sigchain_install(trap);

	if (r == 0)
		nr_traps++;
	return r;
}

void trap_uninstall(void)
{
	if (--nr_traps == 0)
		sigchain_uninstall(trap);
}

void trap_forget(void)
{
	if (nr_traps)
		sigchain_uninstall(trap);
	nr_traps = 0;
}
