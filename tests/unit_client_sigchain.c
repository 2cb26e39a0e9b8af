/* SPDX-License-Identifier: MIT */
/*
 * The program's SIGSEGV and SIGBUS beside the trap: what it sets is what it gets back, and a fault
 * that is not the trap's reaches it as the kernel would have sent it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/os.h"
#include "libclient/internal.h"

static sigjmp_buf out;
static volatile siginfo_t seen;
static volatile int seen_sig, calls;
static sigset_t seen_mask;
static char *forbidden; /* a PROT_NONE page */

static void leave(int sig, siginfo_t *info, void *context)
{
	(void)context;
	seen_sig = sig;
	calls++;
	seen = *info;
	sigprocmask(SIG_SETMASK, NULL, &seen_mask);
	siglongjmp(out, 1);
}

/* Makes the page accessible, so that the instruction succeeds when it runs again. */
static void repair(int sig)
{
	seen_sig = sig;
	calls++;
	mprotect(forbidden, 4096, PROT_READ | PROT_WRITE);
}

static struct sigaction handler_action(int flags)
{
	struct sigaction act = {.sa_sigaction = leave, .sa_flags = SA_SIGINFO | flags};

	sigemptyset(&act.sa_mask);
	sigaddset(&act.sa_mask, SIGUSR1);
	return act;
}

/* The test library has handlers of its own around each test. */
static void default_actions(void)
{
	signal(SIGSEGV, SIG_DFL);
	signal(SIGBUS, SIG_DFL);
}

static int setup(void **state)
{
	(void)state;
	calls = 0;
	forbidden = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(forbidden != MAP_FAILED);
	return trap_install();
}

static int teardown(void **state)
{
	(void)state;
	trap_uninstall();
	munmap(forbidden, 4096);
	return 0;
}

static __attribute__((noinline, noipa)) void touch(volatile char *p)
{
	*p = 1;
}

static void handler_gets_address_and_code(void **state)
{
	struct sigaction act = handler_action(0);

	(void)state;
	assert_int_equal(sigaction(SIGSEGV, &act, NULL), 0);
	if (!sigsetjmp(out, 1))
		touch(forbidden + 123);
	assert_int_equal(seen_sig, SIGSEGV);
	assert_ptr_equal(seen.si_addr, forbidden + 123);
	assert_int_equal(seen.si_code, SEGV_ACCERR);
	/* As the kernel would have it: sa_mask and the signal itself. */
	assert_true(sigismember(&seen_mask, SIGUSR1));
	assert_true(sigismember(&seen_mask, SIGSEGV));
	assert_false(sigismember(&seen_mask, SIGUSR2));
	if (!sigsetjmp(out, 1))
		touch((char *)64);
	assert_ptr_equal(seen.si_addr, 64);
	assert_int_equal(seen.si_code, SEGV_MAPERR);
	assert_int_equal(calls, 2);
	/* And afterwards nothing is blocked. */
	sigprocmask(SIG_SETMASK, NULL, &seen_mask);
	assert_false(sigismember(&seen_mask, SIGSEGV));
}

static void flags_are_obeyed(void **state)
{
	struct sigaction act = handler_action((int)(SA_NODEFER | SA_RESETHAND)), old;

	(void)state;
	assert_int_equal(sigaction(SIGSEGV, &act, NULL), 0);
	if (!sigsetjmp(out, 1))
		touch(forbidden);
	assert_int_equal(calls, 1);
	assert_false(sigismember(&seen_mask, SIGSEGV));
	assert_true(sigismember(&seen_mask, SIGUSR1));
	assert_int_equal(sigaction(SIGSEGV, NULL, &old), 0);
	assert_ptr_equal(old.sa_handler, SIG_DFL);
}

static void simple_handlers_return_to_the_instruction(void **state)
{
	(void)state;
	default_actions();
	assert_ptr_equal(signal(SIGSEGV, repair), SIG_DFL);
	errno = 77;
	touch(forbidden + 5);
	assert_int_equal(errno, 77);
	assert_int_equal(calls, 1);
	assert_int_equal(forbidden[5], 1);
	assert_ptr_equal(signal(SIGSEGV, SIG_DFL), repair);
}

static void old_actions_are_the_programs(void **state)
{
	struct sigaction act = handler_action(SA_NODEFER), old;

	(void)state;
	default_actions();
	assert_int_equal(sigaction(SIGBUS, NULL, &old), 0);
	assert_ptr_equal(old.sa_handler, SIG_DFL);
	assert_int_equal(sigaction(SIGBUS, &act, &old), 0);
	assert_int_equal(sigaction(SIGBUS, NULL, &old), 0);
	assert_true(old.sa_sigaction == leave);
	assert_int_equal(old.sa_flags & SA_NODEFER, SA_NODEFER);
	assert_true(sigismember(&old.sa_mask, SIGUSR1));
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
	assert_ptr_equal(sigset(SIGBUS, SIG_HOLD), leave);
	assert_ptr_equal(sigset(SIGBUS, SIG_DFL), SIG_HOLD);
#pragma GCC diagnostic pop
	assert_ptr_equal(signal(SIGBUS, SIG_IGN), SIG_DFL);
	assert_ptr_equal(signal(SIGBUS, SIG_DFL), SIG_IGN);
	/* Other signals pass. */
	assert_ptr_equal(signal(SIGUSR2, repair), SIG_DFL);
	assert_int_equal(raise(SIGUSR2), 0);
	assert_int_equal(calls, 1);
	assert_ptr_equal(signal(SIGUSR2, SIG_DFL), repair);
	errno = 0;
	assert_ptr_equal(signal(SIGKILL, repair), SIG_ERR);
	assert_int_equal(errno, EINVAL);
}

static void bus_errors_arrive(void **state)
{
	struct sigaction act = handler_action(0);
	int fd = os_memfd("empty", 0);
	char *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);

	(void)state;
	assert_int_equal(sigaction(SIGBUS, &act, NULL), 0);
	if (!sigsetjmp(out, 1))
		seen_sig = *(volatile char *)(p + 8);
	assert_int_equal(seen_sig, SIGBUS);
	assert_ptr_equal(seen.si_addr, p + 8);
	assert_int_equal(seen.si_code, BUS_ADRERR);
	munmap(p, 4096);
	close(fd);
}

static void earlier_handlers_are_chained(void **state)
{
	struct sigaction act = handler_action(0), now;

	(void)state;
	trap_uninstall();
	assert_int_equal(sigaction(SIGSEGV, &act, NULL), 0);
	assert_int_equal(trap_install(), 0);
	if (!sigsetjmp(out, 1))
		touch(forbidden);
	assert_int_equal(calls, 1);
	/* And it is there when the trap is gone. */
	trap_uninstall();
	assert_int_equal(sigaction(SIGSEGV, NULL, &now), 0);
	assert_true(now.sa_sigaction == leave);
	if (!sigsetjmp(out, 1))
		touch(forbidden);
	assert_int_equal(calls, 2);
	assert_int_equal(trap_install(), 0);
}

static void sent_signals_are_not_faults(void **state)
{
	struct sigaction act = handler_action(0);

	(void)state;
	assert_int_equal(sigaction(SIGSEGV, &act, NULL), 0);
	if (!sigsetjmp(out, 1))
		raise(SIGSEGV);
	assert_int_equal(calls, 1);
	assert_int_equal(seen.si_code, SI_TKILL);
	assert_int_equal(seen.si_pid, getpid());
	signal(SIGSEGV, SIG_IGN);
	raise(SIGSEGV);
	assert_int_equal(calls, 1);
}

enum death { BY_DEFAULT, IGNORED, BLOCKED, SENT, REFUSED_IN_HANDLER };

static void die(enum death how)
{
	struct rlimit no_core = {0};
	struct sigaction act = handler_action(0);
	sigset_t set;

	setrlimit(RLIMIT_CORE, &no_core);
	switch (how) {
	case IGNORED:
		signal(SIGSEGV, SIG_IGN);
		break;
	case BLOCKED:
		sigaction(SIGSEGV, &act, NULL);
		sigemptyset(&set);
		sigaddset(&set, SIGSEGV);
		sigprocmask(SIG_BLOCK, &set, NULL);
		break;
	case SENT:
		raise(SIGSEGV);
		break;
	case REFUSED_IN_HANDLER:
		sigaction(SIGSEGV, &act, NULL);
		if (sigsetjmp(out, 0)) /* SIGSEGV stays blocked */
			touch(forbidden);
		break;
	default:
		break;
	}
	touch(forbidden);
	_exit(0);
}

static void default_action_kills(void **state)
{
	(void)state;
	default_actions();
	for (enum death how = BY_DEFAULT; how <= REFUSED_IN_HANDLER; how++) {
		pid_t pid = fork();
		int status;

		if (pid == 0) {
			/* No arena was opened, so fork.c has not taken the trap away. */
			die(how);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		assert_int_equal(WTERMSIG(status), SIGSEGV);
	}
}

#define CHAIN_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CHAIN_TEST(handler_gets_address_and_code),
		CHAIN_TEST(flags_are_obeyed),
		CHAIN_TEST(simple_handlers_return_to_the_instruction),
		CHAIN_TEST(old_actions_are_the_programs),
		CHAIN_TEST(bus_errors_arrive),
		CHAIN_TEST(earlier_handlers_are_chained),
		CHAIN_TEST(sent_signals_are_not_faults),
		CHAIN_TEST(default_action_kills),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
