/* SPDX-License-Identifier: MIT */
/*
 * arenactl_run.c - run: a program that knows nothing of arenad, on arena memory.
 *
 * It becomes the program, with libarena-preload.so before it and what was asked for in the
 * environment (ARENA_PRELOAD_*), so that what the program starts inherits it. What can be refused is refused
 * here, before that. Exit status: the program's; 126 and 127 as a shell's where it cannot be run.
 */
#include <argp.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/parse.h"
#include "tools/arenactl.h"

#define LIBRARY "libarena-preload.so"
#define ENV "ARENA_PRELOAD_"

enum { CTL_NOT_EXECUTABLE = 126, CTL_NOT_FOUND = 127 };

enum run_key {
	RUN_SOCKET = 's',
	RUN_TRAP = 256,
	RUN_MIN_SIZE,
	RUN_FILES,
	RUN_SHARED,
	RUN_MERGEABLE,
	RUN_NODE,
	RUN_STRICT,
	RUN_REPORT
};

static const struct argp_option run_options[] = {
	{"socket", RUN_SOCKET, "PATH", 0, "the daemon's socket, as before the verb", 0},
	{"trap", RUN_TRAP, "TRAP", 0,
	 "auto, userfaultfd or signal (auto: userfaultfd, where it is permitted)", 0},
	{"min-size", RUN_MIN_SIZE, "SIZE", 0, "leave smaller mappings to the kernel (64K)", 0},
	{"files", RUN_FILES, NULL, 0, "serve mappings of files, too", 0},
	{"shared", RUN_SHARED, NULL, 0, "serve System V and POSIX shared memory, too", 0},
	{"mergeable", RUN_MERGEABLE, NULL, 0, "offer all memory for merging (MADV_MERGEABLE)", 0},
	{"node", RUN_NODE, "LIST", 0, "take memory from these nodes only", 0},
	{"strict", RUN_STRICT, NULL, 0, "do not run without the daemon", 0},
	{"verbose", 'v', NULL, 0, "have each process say at its end what was served", 0},
	{"report", RUN_REPORT, "FILE", 0, "append that to FILE instead of stderr", 0},
	{0},
};

struct run {
	const char *socket, *trap, *min_size, *report, *node;
	unsigned long nodes; /* what `node` says */
	bool files, shared, mergeable, strict, verbose;
	char **command;
};

static error_t parse_run_option(int key, char *arg, struct argp_state *state)
{
	struct run *run = state->input;
	uint64_t bytes, map[1];

	switch (key) {
	case RUN_SOCKET:
		run->socket = arg;
		break;
	case RUN_TRAP:
		if (strcmp(arg, "auto") && strcmp(arg, "signal") && strcmp(arg, "userfaultfd"))
			argp_error(state, "there is no trap '%s'", arg);
		run->trap = arg;
		break;
	case RUN_MIN_SIZE:
		if (parse_size(arg, &bytes))
			argp_error(state, "'%s' is no size", arg);
		run->min_size = arg;
		break;
	case RUN_FILES:
		run->files = true;
		break;
	case RUN_SHARED:
		run->shared = true;
		break;
	case RUN_MERGEABLE:
		run->mergeable = true;
		break;
	case RUN_NODE:
		if (bitmap_parse_list(arg, map, 64) || !map[0])
			argp_error(state, "'%s' is no list of nodes", arg);
		run->node = arg;
		run->nodes = map[0];
		break;
	case RUN_STRICT:
		run->strict = true;
		break;
	case 'v':
		run->verbose = true;
		break;
	case RUN_REPORT:
		run->report = arg;
		break;
	case ARGP_KEY_ARG:
		/* The command's own options are the command's. */
		run->command = &state->argv[state->next - 1];
		state->next = state->argc;
		break;
	case ARGP_KEY_END:
		if (!run->command)
			argp_error(state, "no command given");
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static const struct argp run_argp = {
	.options = run_options,
	.parser = parse_run_option,
	.args_doc = "[--] COMMAND [ARGUMENT...]",
	.doc = "Run a program on arena memory.",
};

/* ---- is it to be had? ---------------------------------------------------------------------- */

static enum arena_trap trap_of(const struct run *run)
{
	return run->trap && strcmp(run->trap, "signal") == 0 ? ARENA_TRAP_SIGNAL
							     : ARENA_TRAP_USERFAULTFD;
}

static int try_mergeable(arena_t *a)
{
	void *p = arena_mmap(a, NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || arena_madvise(a, p, 4096, MADV_MERGEABLE) < 0)
		return ctl_fail("--mergeable: this daemon does not merge: %s", strerror(errno));
	return CTL_DONE;
}

static int try_nodes(arena_t *a, const struct run *run)
{
	if (arena_set_mempolicy(a, MPOL_BIND, &run->nodes, 65) < 0)
		return ctl_fail("--node %s: %s", run->node,
				errno == EINVAL ? "the daemon has no such node" : strerror(errno));
	return CTL_DONE;
}

/* A client of the same kind, for a moment. Who may be served is told from the first one. */
static int look(const struct ctl *c, const struct run *run, bool *served)
{
	struct arena_options o = {.size = sizeof(o), .socket = c->socket, .trap = trap_of(run)};
	bool wanted = run->trap && strcmp(run->trap, "userfaultfd") == 0;
	arena_t *a = NULL;
	int status = CTL_DONE, r = arena_open(&o, &a);

	*served = false;
	if (r < 0 && (errno == EPERM || errno == ENOTSUP) && o.trap == ARENA_TRAP_USERFAULTFD) {
		if (wanted)
			return ctl_fail("%s", arena_trap_reason());
		fprintf(stderr,
			"arenactl: %s; by the signal trap, system calls on untouched memory fail "
			"with EFAULT\n",
			arena_trap_reason());
		setenv(ENV "WARNED", "1", 1);
		o.trap = ARENA_TRAP_SIGNAL;
		r = arena_open(&o, &a);
	}
	if (r < 0 && run->strict)
		return ctl_fail("no arena: %s", strerror(errno));
	if (r < 0) {
		fprintf(stderr, "arenactl: no arena (%s): %s runs on the kernel's memory\n",
			strerror(errno), run->command[0]);
		return CTL_DONE;
	}
	*served = true;
	if (run->node)
		status = try_nodes(a, run);
	if (!status && run->mergeable)
		status = try_mergeable(a);
	arena_close(a);
	return status;
}

/* ---- the environment ------------------------------------------------------------------------ */

/* Beside the library that this program uses; else where the loader looks. */
static int find_library(char *path, size_t size)
{
	_cleanup_(freep) char *real = NULL;
	Dl_info info;
	char *slash;

	if (dladdr((void *)(uintptr_t)arena_open, &info) && info.dli_fname)
		real = realpath(info.dli_fname, NULL);
	slash = real ? strrchr(real, '/') : NULL;
	if (!slash) {
		snprintf(path, size, "%s", LIBRARY);
		return CTL_DONE;
	}
	snprintf(path, size, "%.*s/%s", (int)(slash - real), real, LIBRARY);
	if (access(path, R_OK) < 0)
		return ctl_fail("%s: %s", path, strerror(errno));
	if (strpbrk(path, " :"))
		return ctl_fail("%s: the loader takes no path with a space or a colon", path);
	return CTL_DONE;
}

static int preload_library(void)
{
	const char *others = getenv("LD_PRELOAD");
	char path[PATH_MAX], all[2 * PATH_MAX];
	int status = find_library(path, sizeof(path));

	if (status)
		return status;
	if (snprintf(all, sizeof(all), "%s%s%s", path, others && *others ? ":" : "",
		     others ? others : "") >= (int)sizeof(all))
		return ctl_fail("LD_PRELOAD is too long");
	setenv("LD_PRELOAD", all, 1);
	return CTL_DONE;
}

/* The program may change its directory. */
static void set_path(const char *name, const char *path)
{
	_cleanup_(freep) char *real = path && *path ? realpath(path, NULL) : NULL;
	_cleanup_(freep) char *directory = NULL, *absolute = NULL;

	if (!path || !*path)
		return;
	if (!real && *path != '/' && (directory = getcwd(NULL, 0)) &&
	    asprintf(&absolute, "%s/%s", directory, path) < 0)
		absolute = NULL;
	setenv(name, real ? real : absolute ? absolute : path, 1);
}

static void set_flag(const char *name, bool on)
{
	if (on)
		setenv(name, "1", 1);
	else
		unsetenv(name);
}

static int set_environment(const struct ctl *c, const struct run *run)
{
	set_path("ARENAD_SOCKET", c->socket ? c->socket : getenv("ARENAD_SOCKET"));
	set_path(ENV "REPORT", run->report);
	if (run->trap)
		setenv(ENV "TRAP", run->trap, 1);
	if (run->min_size)
		setenv(ENV "MIN_SIZE", run->min_size, 1);
	if (run->node)
		setenv(ENV "NODE", run->node, 1);
	set_flag(ENV "FILES", run->files);
	set_flag(ENV "SHARED", run->shared);
	set_flag(ENV "MERGEABLE", run->mergeable);
	set_flag(ENV "STRICT", run->strict);
	set_flag(ENV "VERBOSE", run->verbose);
	return preload_library();
}

int verb_run(struct ctl *c, char **args)
{
	static char name[] = "arenactl run";
	struct run run = {0};
	bool served;
	int status, argc = 0;

	while (args[argc])
		argc++;
	args[0] = name;
	argp_parse(&run_argp, argc, args, ARGP_IN_ORDER, NULL, &run);
	if (run.socket)
		c->socket = run.socket;
	status = look(c, &run, &served);
	if (!status && served)
		status = set_environment(c, &run);
	if (status)
		return status;
	execvp(run.command[0], run.command);
	status = errno == ENOENT ? CTL_NOT_FOUND : CTL_NOT_EXECUTABLE;
	ctl_fail("%s: %s", run.command[0], strerror(errno));
	return status;
}
