/* SPDX-License-Identifier: MIT */
/*
 * sigchain.c - SIGSEGV and SIGBUS are the trap's and the program's at once.
 *
 * While the trap is installed the kernel has our handler for both. What the program sets is kept
 * here, given back to it as the old action, and obeyed when a signal turns out to be the
 * program's. So sigaction() and its older kin are defined here, in front of the C library's, and
 * pass on whatever is not about these two signals.
 *
 * The actions are guarded by a small_lock: a trap reads them. Nothing of the program's memory
 * is touched under it, for that may be the very memory that faults.
 */
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/util.h"
#include "libclient/internal.h"

/* The C library's own, under the name that it exports for this. */
extern int __sigaction(int sig, const struct sigaction *act, struct sigaction *old);
extern sighandler_t __sysv_signal(int sig, sighandler_t handler);
extern sighandler_t bsd_signal(int sig, sighandler_t handler);

static const int chained[] = {SIGSEGV, SIGBUS};

static struct small_lock chain_lock;
static bool installed;
static struct sigaction program[ARRAY_SIZE(chained)];

/*
 * Before this library's constructor nothing is installed and there is one thread. A sanitizer calls
 * sigaction() then, and can bear no code that it has instrumented.
 */
#define UNSANITIZED __attribute__((no_sanitize("thread")))
static bool loaded;

__attribute__((constructor)) static void note_loaded(void)
{
	loaded = true;
}

UNSANITIZED static int index_of(int sig)
{
	for (unsigned i = 0; i < ARRAY_SIZE(chained); i++)
		if (chained[i] == sig)
			return (int)i;
	return -1;
}

static uint64_t signal_bit(int sig)
{
	return UINT64_C(1) << (sig - 1);
}

/* The kernel's mask is the first word of the C library's. */
static uint64_t read_mask(const sigset_t *set)
{
	uint64_t mask;

	memcpy(&mask, set, sizeof(mask));
	return mask;
}

static void write_mask(sigset_t *set, uint64_t mask)
{
	memcpy(set, &mask, sizeof(mask));
}

int sigchain_install(sigchain_handler handler)
{
	struct sigaction ours = {
		.sa_sigaction = handler,
		.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART,
	};
	uint64_t mask = signals_block_all();
	int r = 0;

	sigfillset(&ours.sa_mask);
	small_lock_acquire(&chain_lock);
	for (unsigned i = 0; i < ARRAY_SIZE(chained); i++)
		if (__sigaction(chained[i], &ours, &program[i]) < 0)
			r = -errno;
	installed = true;
	small_lock_release(&chain_lock);
	signals_restore(mask);
	return r;
}

void sigchain_uninstall(sigchain_handler handler)
{
	uint64_t mask = signals_block_all();

	small_lock_acquire(&chain_lock);
	for (unsigned i = 0; i < ARRAY_SIZE(chained); i++) {
		struct sigaction now;

		/* Somebody may have gone to the kernel directly; that is theirs, then. */
		if (__sigaction(chained[i], NULL, &now) == 0 && now.sa_sigaction == handler)
			__sigaction(chained[i], &program[i], NULL);
	}
	installed = false;
	small_lock_release(&chain_lock);
	signals_restore(mask);
}

void sigchain_before_fork(void)
{
	small_lock_acquire(&chain_lock);
}

/* The child is another thread than the one that took it. */
void sigchain_after_fork(bool child)
{
	if (child)
		chain_lock = (struct small_lock){0};
	else
		small_lock_release(&chain_lock);
}

/* ---- delivery ---- */

/*
 * Let the kernel do what it does by default: put the default action in place and queue the signal
 * again, as it came. It is blocked until the handler returns and then ends the process, before
 * the faulting instruction runs again.
 */
static void die_of(int sig, siginfo_t *info, ucontext_t *uc)
{
	struct sigaction dfl = {.sa_handler = SIG_DFL};

	write_mask(&uc->uc_sigmask, read_mask(&uc->uc_sigmask) & ~signal_bit(sig));
	__sigaction(sig, &dfl, NULL);
	syscall(SYS_rt_tgsigqueueinfo, getpid(), (pid_t)syscall(SYS_gettid), sig, info);
}

static struct sigaction take_action(int i)
{
	struct sigaction act;

	small_lock_acquire(&chain_lock);
	act = program[i];
	if ((act.sa_flags & SA_RESETHAND) && act.sa_handler != SIG_IGN) {
		program[i].sa_handler = SIG_DFL;
		program[i].sa_flags &= ~SA_SIGINFO;
	}
	small_lock_release(&chain_lock);
	return act;
}

void sigchain_deliver(int sig, siginfo_t *info, void *context)
{
	int saved_errno = errno;
	ucontext_t *uc = context;
	uint64_t mask = read_mask(&uc->uc_sigmask);
	struct sigaction act = take_action(index_of(sig));
	bool forced = info->si_code > 0; /* a fault: cannot be ignored or blocked */

	if (act.sa_handler == SIG_IGN && !forced)
		return;
	if (act.sa_handler == SIG_DFL || act.sa_handler == SIG_IGN ||
	    (forced && (mask & signal_bit(sig)))) {
		die_of(sig, info, uc);
		errno = saved_errno;
		return;
	}
	mask |= read_mask(&act.sa_mask);
	if (!(act.sa_flags & SA_NODEFER))
		mask |= signal_bit(sig);
	signals_restore(mask);
	errno = saved_errno;
	if (act.sa_flags & SA_SIGINFO)
		act.sa_sigaction(sig, info, context);
	else
		act.sa_handler(sig);
}

/* ---- what the program calls ---- */

static int change_action(int sig, const struct sigaction *act, struct sigaction *old)
{
	int i = index_of(sig);
	int r = 0, error;
	uint64_t mask;

	if (i < 0)
		return __sigaction(sig, act, old);
	mask = signals_block_all();
	small_lock_acquire(&chain_lock);
	if (!installed) {
		r = __sigaction(sig, act, old);
	} else {
		*old = program[i];
		if (act)
			program[i] = *act;
	}
	error = errno;
	small_lock_release(&chain_lock);
	signals_restore(mask);
	errno = error;
	return r;
}

static int chained_sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	struct sigaction new_act, old_act;
	int r;

	if (act)
		new_act = *act;
	r = change_action(sig, act ? &new_act : NULL, &old_act);
	if (r == 0 && old)
		*old = old_act;
	return r;
}

UNSANITIZED int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	if (!loaded || index_of(sig) < 0)
		return __sigaction(sig, act, old);
	return chained_sigaction(sig, act, old);
}

static sighandler_t simple_signal(int sig, sighandler_t handler, int flags)
{
	struct sigaction act = {.sa_handler = handler, .sa_flags = flags}, old;

	if (handler == SIG_ERR) {
		errno = EINVAL;
		return SIG_ERR;
	}
	if (!(flags & SA_NODEFER))
		sigaddset(&act.sa_mask, sig);
	return change_action(sig, &act, &old) < 0 ? SIG_ERR : old.sa_handler;
}

/* BSD semantics. For other signals ssignal(): the C library's signal() under another name. */
sighandler_t signal(int sig, sighandler_t handler)
{
	return index_of(sig) < 0 ? ssignal(sig, handler) : simple_signal(sig, handler, SA_RESTART);
}

sighandler_t bsd_signal(int sig, sighandler_t handler)
{
	return signal(sig, handler);
}

/* What signal() is in a program compiled for System V semantics; there is no more to it than this. */
sighandler_t __sysv_signal(int sig, sighandler_t handler)
{
	return simple_signal(sig, handler, (int)(SA_RESETHAND | SA_NODEFER));
}

/* sigset(3): the C library has no other name for its own, so this is all of it. */
sighandler_t sigset(int sig, sighandler_t disposition)
{
	struct sigaction act = {.sa_handler = disposition}, old;
	sigset_t one, before;

	sigemptyset(&one);
	if (sigaddset(&one, sig) < 0)
		return SIG_ERR;
	if (disposition == SIG_HOLD) {
		if (sigprocmask(SIG_BLOCK, &one, &before) < 0 || change_action(sig, NULL, &old) < 0)
			return SIG_ERR;
	} else {
		if (change_action(sig, &act, &old) < 0 ||
		    sigprocmask(SIG_UNBLOCK, &one, &before) < 0)
			return SIG_ERR;
	}
	return sigismember(&before, sig) ? SIG_HOLD : old.sa_handler;
}
