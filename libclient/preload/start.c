/* SPDX-License-Identifier: MIT */
/*
 * start.c - options from the environment, and the one arena of the process.
 *
 * It is opened at the first mapping that it may serve, which is the heap's first: long before main().
 * Where that fails the program runs on the kernel's memory, with one warning in all that it
 * starts; or, strict, does not run.
 *
 * fork() handlers run in the order of their registration in the child, and before fork() in the opposite
 * one. The library's must be first: its copy of memory is made after all others have taken their locks,
 * and it is there before any of them runs in the child. So whoever registers has the arena opened before.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/parse.h"
#include "base/util.h"
#include "libclient/internal.h"
#include "libclient/preload/files.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

#define ENV "ARENA_PRELOAD_"
#define ENV_WARNED ENV "WARNED"
#define MIN_SIZE_DEFAULT (64u << 10)

struct preload preload = {.report_fd = -1};
static pthread_once_t once = PTHREAD_ONCE_INIT;

void preload_say(const char *fmt, ...)
{
	char line[512];
	va_list args;
	int n = snprintf(line, sizeof(line), "arena: %s[%d]: ", preload.options.name,
			 (int)getpid());

	va_start(args, fmt);
	n += vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, args);
	va_end(args);
	n = MIN(n, (int)sizeof(line) - 2);
	line[n++] = '\n';
	raw3(SYS_write, STDERR_FILENO, (uintptr_t)line, (uint64_t)n);
}

static bool is_set(const char *name)
{
	const char *value = secure_getenv(name);

	return value && *value && strcmp(value, "0") != 0;
}

/* What cannot be read was set by hand: arenactl has checked it. */
static void read_options(struct preload_options *o)
{
	const char *trap = secure_getenv(ENV "TRAP"), *size = secure_getenv(ENV "MIN_SIZE");
	const char *nodes = secure_getenv(ENV "NODE");
	uint64_t bytes, map[1] = {0};

	o->trap = ARENA_TRAP_AUTO;
	if (trap && strcmp(trap, "signal") == 0)
		o->trap = ARENA_TRAP_SIGNAL;
	else if (trap && strcmp(trap, "userfaultfd") == 0)
		o->trap = ARENA_TRAP_USERFAULTFD;
	o->min_size = MIN_SIZE_DEFAULT;
	if (size && parse_size(size, &bytes) == 0)
		o->min_size = bytes;
	if (nodes && bitmap_parse_list(nodes, map, 64) == 0)
		o->nodes = map[0];
	o->files = is_set(ENV "FILES");
	o->shared = is_set(ENV "SHARED");
	o->mergeable = is_set(ENV "MERGEABLE");
	o->strict = is_set(ENV "STRICT");
	o->verbose = is_set(ENV "VERBOSE");
	/* Copied: a program may write its title over its environment. */
	if (secure_getenv(ENV "REPORT"))
		o->report = strdup(secure_getenv(ENV "REPORT"));
	snprintf(o->name, sizeof(o->name), "%s", program_invocation_short_name);
}

static void __printf_(1, 2) warn(const char *fmt, ...)
{
	char text[400];
	va_list args;

	if (is_set(ENV_WARNED))
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	preload_say("%s", text);
	setenv(ENV_WARNED, "1", 1);
}

static int try_open(enum arena_trap trap, arena_t **out)
{
	struct arena_options o = {.size = sizeof(o), .trap = trap};
	void *base;
	size_t size;

	if (arena_open(&o, out) < 0)
		return -errno;
	/* Now, while descriptors and the way to the daemon are there. */
	arena_window(*out, &base, &size);
	if (size == 0) {
		int r = -errno;

		arena_close(*out);
		return r;
	}
	if (preload.options.nodes &&
	    arena_set_mempolicy(*out, MPOL_BIND, &preload.options.nodes, 65) < 0) {
		int r = -errno;

		arena_close(*out);
		return r;
	}
	preload.base = (uintptr_t)base;
	preload.size = size;
	return 0;
}

static int open_by_choice(arena_t **out)
{
	int r;

	if (preload.options.trap != ARENA_TRAP_AUTO)
		return try_open(preload.options.trap, out);
	r = try_open(ARENA_TRAP_USERFAULTFD, out);
	if (r != -EPERM && r != -ENOTSUP)
		return r;
	r = try_open(ARENA_TRAP_SIGNAL, out);
	if (r == 0)
		warn("%s. By the signal trap, system calls on untouched memory fail with EFAULT",
		     arena_trap_reason());
	return r;
}

static void start(void)
{
	arena_t *a = NULL;
	int r;

	guard_enter();
	preload.pid = getpid();
	read_options(&preload.options);
	/* A program closes its stderr before it ends, or sends it elsewhere. */
	if (preload.options.verbose && !preload.options.report)
		preload.report_fd = client_high_fd(fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
	r = open_by_choice(&a);
	if (r == 0) {
		if (preload.options.shared)
			shm_start(a->address.sun_path);
		if (preload.options.files)
			files_start();
		store_release(&preload.arena, a);
	} else if (preload.options.strict) {
		preload_say("no arena: %s",
			    r == -EPERM && preload.options.trap == ARENA_TRAP_USERFAULTFD
				    ? arena_trap_reason()
				    : strerror(-r));
		_exit(1);
	} else {
		warn("no arena (%s): this program runs on the kernel's memory", strerror(-r));
	}
	guard_leave();
}

arena_t *preload_arena(void)
{
	arena_t *a = load_acquire(&preload.arena);

	if (likely(a != NULL))
		return unlikely(load_relaxed(&a->foreign)) ? NULL : a;
	if (preload_inside)
		return NULL;
	pthread_once(&once, start);
	return load_acquire(&preload.arena);
}

__attribute__((constructor)) static void begin(void)
{
	malloc_start();
	file_calls_start();
	preload_arena();
	threads_start();
}

__attribute__((destructor)) static void end(void)
{
	files_at_exit();
	report_at_exit();
}

/* ---- fork handlers of others --------------------------------------------------------------- */

typedef int register_fn(void (*prepare)(void), void (*parent)(void), void (*child)(void),
			void *dso);

PRELOAD_EXPORT int __register_atfork(void (*prepare)(void), void (*parent)(void),
				     void (*child)(void), void *dso);

PRELOAD_EXPORT int __register_atfork(void (*prepare)(void), void (*parent)(void),
				     void (*child)(void), void *dso)
{
	static register_fn *next;

	if (!next)
		next = (register_fn *)dlsym(RTLD_NEXT, "__register_atfork");
	preload_arena();
	return next ? next(prepare, parent, child, dso) : ENOMEM;
}
