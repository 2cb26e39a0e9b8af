/* SPDX-License-Identifier: MIT */
/*
 * catch.c - syscall user dispatch, for the few system calls between our prepare handler and fork(2).
 *
 * All of this is one thread's, under client_mutex: what the dispatch needs is in static memory. Where
 * something else than a fork makes a new thread or process meanwhile, it is let through, and the fork after
 * it, too. A sanitizer that instruments this code cannot live with it, so it is not used there.
 */
#include "libclient/catch.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include "base/faultpoint.h"
#include "base/util.h"
#include "libclient/bare.h"
#include "libclient/internal.h"

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_OFF 0
#define PR_SYS_DISPATCH_ON 1
#endif
#ifndef SYS_USER_DISPATCH
#define SYS_USER_DISPATCH 2
#endif
enum { LET_THROUGH = 0, CATCH = 1 }; /* of the kernel */

/* rt_sigaction(2)'s. */
struct kernel_action {
	void (*handler)(int sig, siginfo_t *info, void *context);
	unsigned long flags;
	void (*restorer)(void);
	uint64_t mask;
};
#define SA_RESTORER_FLAG 0x04000000ul

static struct {
	long (*make)(void);
	struct bare stack;
	volatile char selector;
	bool armed;
	struct kernel_action before; /* the program's for SIGSYS */
	long call[7];                /* number and arguments of the fork */
	long result;
	bool shy;
	long thread;
	siginfo_t sent; /* a SIGSYS that somebody sent to the thread meanwhile; 0: none */
} now;

/* The handler returns by a call that is never caught: it lies between these two. */
extern const char catch_return[], catch_return_end[];
__asm__(".text\n"
	".hidden catch_return, catch_return_end\n"
	".globl catch_return, catch_return_end\n"
	"	nop\n"
	"catch_return:\n"
	"	movl $15, %eax\n" /* rt_sigreturn */
	"	syscall\n"
	"	hlt\n"
	"catch_return_end:\n");

static long thread_id(void)
{
	return bare_syscall(SYS_gettid, 0, 0, 0, 0, 0, 0);
}

static int change_action(const struct kernel_action *act, struct kernel_action *old)
{
	return (int)bare_syscall(SYS_rt_sigaction, SIGSYS, (long)(uintptr_t)act,
				 (long)(uintptr_t)old, sizeof(act->mask), 0, 0);
}

static int dispatch(int mode)
{
	bool on = mode == PR_SYS_DISPATCH_ON;
	long at = on ? (long)(uintptr_t)catch_return : 0;
	long len = on ? (long)((uintptr_t)catch_return_end - (uintptr_t)catch_return) : 0;
	long selector = on ? (long)(uintptr_t)&now.selector : 0;

	return (int)bare_syscall(SYS_prctl, PR_SET_SYSCALL_USER_DISPATCH, mode, at, len, selector,
				 0);
}

/* ---- the restartable sequence that the C library has registered in its data about the thread ---- */

/* From 2.35 on; the kernel writes there whenever it has moved the thread to another CPU. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));
#define RSEQ_LEN 32
#define RSEQ_SIG 0x53053053
#define RSEQ_UNREGISTER 1

static long rseq(int flags)
{
	uintptr_t at = (uintptr_t)now.stack.callers;

	if (!&__rseq_size || !__rseq_size)
		return -ENOSYS;
	at += (uintptr_t)__rseq_offset;
	return bare_syscall(SYS_rseq, (long)at, RSEQ_LEN, flags, RSEQ_SIG, 0, 0);
}

/* ---- the fork ----------------------------------------------------------------------------------- */

long catch_clone(void)
{
	long r = bare_syscall(now.call[0], now.call[1], now.call[2], now.call[3], now.call[4],
			      now.call[5], now.call[6]);
	if (r == 0)
		now.armed = false; /* the kernel turned it off */
	return r;
}

static void make(void *arg)
{
	bool had_rseq = now.shy && rseq(RSEQ_UNREGISTER) == 0;

	(void)arg;
	now.result = now.make();
	if (had_rseq)
		rseq(0);
}

/* Where the C library keeps the thread's number; the kernel may have had no memory there. */
static void write_thread_id(void)
{
	uint32_t *tid = (uint32_t *)(uintptr_t)now.call[4];

	if (now.call[0] == SYS_clone && (now.call[1] & CLONE_CHILD_SETTID))
		*tid = (uint32_t)thread_id();
}

/* ---- the handler ----------------------------------------------------------------------------------- */

static bool makes_process(const long *call)
{
	return call[0] == SYS_fork ||
	       (call[0] == SYS_clone && !(call[1] & (CLONE_VM | CLONE_THREAD)) && !call[2]);
}

/* What does not come back to where it was called, or comes back twice. */
static bool is_beyond_us(const long *call)
{
	return call[0] == SYS_vfork || call[0] == SYS_clone || call[0] == SYS_clone3 ||
	       call[0] == SYS_rt_sigreturn;
}

/* The mask is restored from the context when the handler returns, so that is where it is changed. */
static long change_mask(const long *call, ucontext_t *uc)
{
	uint64_t mask, set, sigsys = UINT64_C(1) << (SIGSYS - 1);
	long r;

	/* With the thread's own mask, for what the kernel has to say to the arguments. */
	signals_restore(*(uint64_t *)(void *)&uc->uc_sigmask);
	r = bare_syscall(call[0], call[1], call[2], call[3], call[4], 0, 0);
	mask = signals_block_all();
	set = mask & ~sigsys;
	*(uint64_t *)(void *)&uc->uc_sigmask = set;
	return r;
}

static void caught(ucontext_t *uc)
{
	greg_t *reg = uc->uc_mcontext.gregs;
	const long call[7] = {reg[REG_RAX], reg[REG_RDI], reg[REG_RSI], reg[REG_RDX],
			      reg[REG_R10], reg[REG_R8],  reg[REG_R9]};

	now.selector = LET_THROUGH;
	if (makes_process(call)) {
		for (unsigned i = 0; i < ARRAY_SIZE(call); i++)
			now.call[i] = call[i];
		bare_call(&now.stack, make, NULL);
		if (now.result == 0)
			write_thread_id();
		reg[REG_RAX] = now.result;
	} else if (is_beyond_us(call)) {
		reg[REG_RIP] -= 2; /* once more, past us */
	} else {
		reg[REG_RAX] = call[0] == SYS_rt_sigprocmask
				       ? change_mask(call, uc)
				       : bare_syscall(call[0], call[1], call[2], call[3], call[4],
						      call[5], call[6]);
		now.selector = CATCH;
	}
}

static void send_self(const siginfo_t *info)
{
	bare_syscall(SYS_rt_tgsigqueueinfo, bare_syscall(SYS_getpid, 0, 0, 0, 0, 0, 0), thread_id(),
		     SIGSYS, (long)(uintptr_t)info, 0, 0);
}

/* Not ours: as if we were not here. */
static void pass_on(int sig, siginfo_t *info, void *context)
{
	struct kernel_action none = {.flags = SA_RESTORER_FLAG};

	if ((uintptr_t)now.before.handler > 1) {
		now.before.handler(sig, info, context);
		return;
	}
	if ((uintptr_t)now.before.handler == 1 && info->si_code <= 0)
		return;
	none.restorer = (void (*)(void))(uintptr_t)catch_return;
	change_action(&none, NULL);
	send_self(info);
}

static void on_system_call(int sig, siginfo_t *info, void *context)
{
	int saved_errno = errno;

	if (info->si_code == SYS_USER_DISPATCH && now.armed)
		caught(context);
	else if (info->si_code <= 0 && now.armed && thread_id() == now.thread)
		now.sent = *info; /* the program may have it blocked: later */
	else
		pass_on(sig, info, context);
	errno = saved_errno;
}

/* ---- begin and end ----------------------------------------------------------------------------------- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define INSTRUMENTED true
#else
#define INSTRUMENTED false
#endif

int catch_fork(long (*fn)(void), bool shy)
{
	const struct kernel_action ours = {
		.handler = on_system_call,
		.flags = SA_SIGINFO | SA_RESTORER_FLAG,
		.restorer = (void (*)(void))(uintptr_t)catch_return,
		.mask = ~UINT64_C(0),
	};
	int r = INSTRUMENTED || faultpoint("client.catch") ? -EOPNOTSUPP : bare_make(&now.stack);

	if (r < 0)
		return r;
	now.make = fn;
	now.shy = shy;
	now.thread = thread_id();
	now.sent.si_signo = 0;
	now.selector = LET_THROUGH;
	r = change_action(&ours, &now.before);
	if (r < 0)
		return r;
	r = dispatch(PR_SYS_DISPATCH_ON);
	if (r < 0) {
		change_action(&now.before, NULL);
		return r;
	}
	now.armed = true;
	return 0;
}

void catch_begin(void)
{
	signals_restore(~(UINT64_C(1) << (SIGSYS - 1)));
	now.selector = CATCH;
}

void catch_end(void)
{
	struct kernel_action act;

	now.selector = LET_THROUGH;
	if (!now.make)
		return;
	now.make = NULL;
	if (now.armed)
		dispatch(PR_SYS_DISPATCH_OFF);
	now.armed = false;
	signals_block_all();
	if (change_action(NULL, &act) == 0 && act.handler == on_system_call)
		change_action(&now.before, NULL);
	if (now.sent.si_signo && thread_id() == now.thread)
		send_self(&now.sent);
}
