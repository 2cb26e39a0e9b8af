/* SPDX-License-Identifier: MIT */
/* bare.c - bare.h for x86-64, where thread-local data lies below the thread pointer. */
#include "libclient/bare.h"

#include <asm/prctl.h>
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/os.h"
#include "base/util.h"
#include "libclient/internal.h"

#define GUARD 4096u
#define STACK (256u << 10)
#define ABOVE 8192u         /* what the C library keeps at its thread pointer, and more */
#define DEEPEST (16u << 20) /* thread-local data of a program */

/* Words at the thread pointer that its code, or the compiler's, looks at. */
enum { WORD_SELF = 0, WORD_THREAD = 2, WORD_CANARY = 5, WORD_POINTER_GUARD = 6 };

long bare_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long r;

	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return r;
}

uintptr_t bare_thread_pointer(void)
{
	uintptr_t p;

	__asm__("movq %%fs:0, %0" : "=r"(p));
	return p;
}

static void set_thread_pointer(const void *p)
{
	bare_syscall(SYS_arch_prctl, ARCH_SET_FS, (long)(uintptr_t)p, 0, 0, 0, 0);
}

/* bare_switch(top, fn, arg): fn(arg) on another stack. */
void bare_switch(void *top, void (*fn)(void *arg), void *arg);
__asm__(".text\n"
	".hidden bare_switch\n"
	".globl bare_switch\n"
	".type bare_switch, @function\n"
	"bare_switch:\n"
	"	.cfi_startproc\n"
	"	pushq %rbp\n"
	"	.cfi_def_cfa_offset 16\n"
	"	.cfi_offset %rbp, -16\n"
	"	movq %rsp, %rbp\n"
	"	.cfi_def_cfa_register %rbp\n"
	"	movq %rdi, %rsp\n"
	"	movq %rdx, %rdi\n"
	"	callq *%rsi\n"
	"	movq %rbp, %rsp\n"
	"	popq %rbp\n"
	"	.cfi_def_cfa %rsp, 8\n"
	"	ret\n"
	"	.cfi_endproc\n"
	".size bare_switch, .-bare_switch\n");

/* How far below the thread pointer the variables lie that are used there. */
static size_t depth(void)
{
	uintptr_t p = bare_thread_pointer();
	uintptr_t lowest = MIN((uintptr_t)&errno, (uintptr_t)library_thread_local());

	return lowest < p ? ALIGN_UP(p - lowest + 64, (size_t)GUARD) : SIZE_MAX;
}

int bare_make(struct bare *b)
{
	size_t below = depth();
	void *p;
	int r;

	if (b->memory)
		return 0;
	if (below > DEEPEST)
		return -EOPNOTSUPP;
	b->len = GUARD + STACK + below + ABOVE;
	r = os_anonymous(b->len, &p);
	if (r < 0)
		return r;
	b->memory = p;
	b->stack_top = b->memory + GUARD + STACK;
	b->thread_pointer = b->stack_top + below;
	return os_protect(b->memory, GUARD, 0);
}

void bare_free(struct bare *b)
{
	if (b->memory)
		os_unmap(b->memory, b->len);
	*b = (struct bare){0};
}

static void fill_thread(struct bare *b)
{
	const uintptr_t *callers = (const uintptr_t *)bare_thread_pointer();
	uintptr_t *word = (uintptr_t *)(void *)b->thread_pointer;

	word[WORD_SELF] = word[WORD_THREAD] = (uintptr_t)b->thread_pointer;
	word[WORD_CANARY] = callers[WORD_CANARY];
	word[WORD_POINTER_GUARD] = callers[WORD_POINTER_GUARD];
}

static void run(void *arg)
{
	struct bare *b = arg;

	set_thread_pointer(b->thread_pointer);
	b->fn(b->arg);
	set_thread_pointer(b->callers);
}

void bare_call(struct bare *b, void (*fn)(void *arg), void *arg)
{
	b->fn = fn;
	b->arg = arg;
	b->callers = (void *)bare_thread_pointer();
	fill_thread(b);
	bare_switch(b->stack_top, run, b);
}

/* The new thread finds its function and argument on its stack, and never returns. */
static long start_thread(void *top, unsigned long flags, uint32_t *tid, void *thread_pointer)
{
	register void *r10 __asm__("r10") = tid;
	register void *r8 __asm__("r8") = thread_pointer;
	long r;

	__asm__ volatile("syscall\n"
			 "	testq %%rax, %%rax\n"
			 "	jnz 1f\n"
			 "	xorl %%ebp, %%ebp\n"
			 "	popq %%rax\n"
			 "	popq %%rdi\n"
			 "	callq *%%rax\n"
			 "	movl %[exit], %%eax\n"
			 "	xorl %%edi, %%edi\n"
			 "	syscall\n"
			 "	hlt\n"
			 "1:\n"
			 : "=a"(r)
			 : "a"((long)SYS_clone), "D"(flags), "S"(top), "d"(tid), "r"(r10),
			   "r"(r8), [exit] "i"(SYS_exit)
			 : "rcx", "r11", "memory");
	return r;
}

int bare_thread(struct bare *b, void (*fn)(void *arg), void *arg)
{
	const unsigned long flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND |
				    CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
				    CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	uintptr_t *top = (uintptr_t *)(void *)b->stack_top;
	uint64_t mask = signals_block_all();
	long r;

	fill_thread(b);
	top[-2] = (uintptr_t)fn;
	top[-1] = (uintptr_t)arg;
	r = start_thread(top - 2, flags, &b->tid, b->thread_pointer);
	signals_restore(mask);
	return r < 0 ? (int)r : 0;
}

void bare_join(struct bare *b)
{
	uint32_t tid;

	while ((tid = load_acquire(&b->tid)))
		os_futex_wait(&b->tid, tid, 0);
}
