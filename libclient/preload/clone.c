/* SPDX-License-Identifier: MIT */
/*
 * clone.c - processes that are made without fork(): by clone(2) without CLONE_VM, by _Fork(), by
 * syscall(SYS_fork). The C library runs no handlers there, so the library's are run here, alone.
 *
 * clone() gives the child a stack, which may be the arena's and is not there before the child is attached.
 * So the child begins on a copy of the caller's, as by fork(), attaches, and changes over then.
 */
#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <unistd.h>

#include "base/util.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

#define PAGE 4096u
#define STACK_PAGES 16u

typedef int start_fn(void *arg);

extern int __clone(start_fn *fn, void *stack, int flags, void *arg, ...);
PRELOAD_EXPORT pid_t _Fork(void);

int64_t preload_raw_fork(int64_t nr, const uint64_t arg[6])
{
	int64_t r;

	preload_fork_prepare();
	r = raw6(nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
	if (r == 0)
		preload_fork_child();
	else
		preload_fork_parent();
	return r;
}

PRELOAD_EXPORT pid_t _Fork(void)
{
	static pid_t (*next)(void);
	pid_t pid;

	if (!next)
		next = (pid_t(*)(void))dlsym(RTLD_NEXT, "_Fork");
	preload_fork_prepare();
	pid = next();
	if (pid == 0)
		preload_fork_child();
	else
		preload_fork_parent();
	return pid;
}

static void __attribute__((noreturn, used)) run(start_fn *fn, void *arg)
{
	_exit(fn(arg));
}

/* Under the signal trap a stack cannot fault: the upper part of it shall be there. */
static void have_stack(uint64_t top)
{
	arena_t *a = preload_arena();
	uint64_t at = ALIGN_DOWN(top - 1, (uint64_t)PAGE);

	if (!a || range_place(at, 1) != RANGE_INSIDE)
		return;
	guard_enter();
	for (unsigned i = 0; i < STACK_PAGES; i++, at -= PAGE)
		if (arena_populate(a, (void *)at, PAGE, 1) < 0)
			break;
	guard_leave();
}

static void __attribute__((noreturn)) run_on(void *stack, start_fn *fn, void *arg)
{
	uintptr_t top = ALIGN_DOWN((uintptr_t)stack, (uintptr_t)16);

	have_stack(top);
	__asm__ volatile("mov %0, %%rsp\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "call *%1\n\t"
			 "hlt"
			 :
			 : "d"(top), "a"(run), "D"(fn), "S"(arg)
			 : "memory");
	__builtin_unreachable();
}

/* A copy of the process, and nothing that would have the child begin otherwise. */
static bool is_copy(int flags)
{
	return !(flags & (CLONE_VM | CLONE_VFORK | CLONE_SETTLS));
}

PRELOAD_EXPORT int clone(start_fn *fn, void *stack, int flags, void *arg, ...)
{
	uint64_t call[6] = {(uint64_t)(unsigned)flags};
	void *parent_tid, *tls, *child_tid;
	va_list args;
	int64_t r;

	va_start(args, arg);
	parent_tid = va_arg(args, void *);
	tls = va_arg(args, void *);
	child_tid = va_arg(args, void *);
	va_end(args);
	if (!fn || !stack || !is_copy(flags) || !preload_arena())
		return __clone(fn, stack, flags, arg, parent_tid, tls, child_tid);
	call[2] = (uintptr_t)parent_tid;
	call[3] = (uintptr_t)child_tid;
	r = preload_raw_fork(SYS_clone, call);
	if (r == 0)
		run_on(stack, fn, arg);
	if (r > 0)
		return (int)r;
	errno = (int)-r;
	return -1;
}

int64_t preload_syscall_clone(int64_t nr, const uint64_t arg[6])
{
	uint64_t flags = arg[0];

	if (nr == SYS_fork || nr == SYS_vfork) {
		static const uint64_t none[6];

		return preload_raw_fork(SYS_fork, none);
	}
	/* struct clone_args: its first word is the flags, its sixth the stack. */
	if (nr == SYS_clone3 && arg[1] >= 64)
		flags = ((const uint64_t *)(uintptr_t)arg[0])[0];
	if (!is_copy((int)flags) || (nr == SYS_clone3 && arg[1] < 64) ||
	    (nr == SYS_clone ? arg[1] : ((const uint64_t *)(uintptr_t)arg[0])[5]) ||
	    !preload_arena())
		return raw6(nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
	return preload_raw_fork(nr, arg);
}
