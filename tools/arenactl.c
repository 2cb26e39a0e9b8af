/* SPDX-License-Identifier: MIT */
/*
 * arenactl.c - command line of the daemon: one table of verbs, one connection, files of the tree.
 *
 * Options may stand before or behind the verb. Exit status: 0 done, 1 refused or failed (one line
 * on stderr), 2 wrong usage.
 */
#include "tools/arenactl.h"

#include <argp.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"

#define MAX_ARGS 4
#define SYSTEM_SOCKET "/run/arenad/socket"

static int verb_get(struct ctl *c, char **args);
static int verb_set(struct ctl *c, char **args);
static int verb_maps(struct ctl *c, char **args);

static const struct ctl_verb verbs[] = {
	{"status", "", "the arena, its nodes and zones, and what happened", 0, CTL_JSON, true,
	 verb_status},
	{"get", "PATH", "a file, as proc/meminfo; of a directory, its names", 1, 0, true, verb_get},
	{"set", "PATH VALUE", "write a file, as proc/sys/vm/min_free_kbytes", 2, 0, true, verb_set},
	{"ps", "", "the clients, with their memory and faults", 0, 0, true, verb_ps},
	{"maps", "PID", "the mappings of one client", 1, 0, true, verb_maps},
	{"segments", "", "the named shared segments", 0, 0, true, verb_segments},
	{"check", "", "have the daemon compare all it knows with itself: ok, or what is wrong", 0,
	 0, true, verb_check},
	{"run", "COMMAND", "run a program on arena memory; its options: arenactl run --help",
	 CTL_REST, 0, false, verb_run},
	{"upgrade", "", "go on with the arenad that is installed now, or --binary; nothing is lost",
	 0, CTL_BINARY, true, verb_upgrade},
	{"host-setup", "", "have the host give the arena hugepages (as root)", 0,
	 CTL_CHECK | CTL_ROOT, false, verb_host_setup},
};

int ctl_fail(const char *fmt, ...)
{
	va_list args;

	fputs("arenactl: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	return CTL_FAILED;
}

/* ---- files of the tree ------------------------------------------------------------------- */

/* The library gives the beginning of a file: ask with more room until there was room to spare. */
char *ctl_read(struct ctl *c, const char *path, size_t *len)
{
	for (size_t size = 64 * 1024;; size *= 4) {
		_cleanup_(freep) char *buf = malloc(size);
		ssize_t n = buf ? arena_attr_read(c->arena, path, buf, size) : -1;

		if (n < 0) {
			ctl_fail("%s: %s", path, strerror(errno));
			return NULL;
		}
		if ((size_t)n < size) {
			buf[n] = '\0';
			*len = (size_t)n;
			return TAKE_PTR(buf);
		}
	}
}

static int print_file(struct ctl *c, const char *path)
{
	size_t len;
	_cleanup_(freep) char *text = ctl_read(c, path, &len);

	if (!text)
		return CTL_FAILED;
	fwrite(text, 1, len, stdout);
	return CTL_DONE;
}

static int verb_get(struct ctl *c, char **args)
{
	return print_file(c, args[0]);
}

static int verb_set(struct ctl *c, char **args)
{
	if (arena_attr_write(c->arena, args[0], args[1]) == 0)
		return CTL_DONE;
	return ctl_fail("cannot set %s to '%s': %s", args[0], args[1], strerror(errno));
}

static int verb_maps(struct ctl *c, char **args)
{
	char path[64];

	if (!*args[0] || strspn(args[0], "0123456789") != strlen(args[0]) || strlen(args[0]) > 10)
		return ctl_fail("'%s' is not a process id", args[0]);
	snprintf(path, sizeof(path), "proc/%s/maps", args[0]);
	return print_file(c, path);
}

/* ---- the command line -------------------------------------------------------------------- */

enum option_key { KEY_SOCKET = 's', KEY_JSON = 256, KEY_CHECK, KEY_ROOT, KEY_BINARY };

static const struct argp_option options[] = {
	{"socket", KEY_SOCKET, "PATH", 0,
	 "the daemon's socket (default: $ARENAD_SOCKET; else /run/arenad/socket, if it is there; "
	 "else that of this user's daemon)",
	 0},
	{"json", KEY_JSON, NULL, 0, "status: one JSON object", 0},
	{"check", KEY_CHECK, NULL, 0, "host-setup: change nothing", 0},
	{"root", KEY_ROOT, "DIR", 0, "host-setup: act on the system below DIR", 0},
	{"binary", KEY_BINARY, "PATH", 0, "upgrade: this program", 0},
	{0},
};

struct command_line {
	struct ctl ctl;
	char *args[MAX_ARGS];
	int nr_args;
};

static bool is_rest(const char *verb)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (strcmp(verbs[i].name, verb) == 0)
			return verbs[i].nr_args == CTL_REST;
	return false;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct command_line *line = state->input;

	switch (key) {
	case KEY_SOCKET:
		line->ctl.socket = arg;
		break;
	case KEY_JSON:
		line->ctl.options |= CTL_JSON;
		break;
	case KEY_CHECK:
		line->ctl.options |= CTL_CHECK;
		break;
	case KEY_ROOT:
		line->ctl.options |= CTL_ROOT;
		line->ctl.root = arg;
		break;
	case KEY_BINARY:
		line->ctl.options |= CTL_BINARY;
		line->ctl.binary = arg;
		break;
	case ARGP_KEY_ARG:
		if (!line->nr_args && is_rest(arg)) {
			line->ctl.rest = &state->argv[state->next - 1];
			state->next = state->argc;
		}
		if (line->nr_args == MAX_ARGS)
			argp_error(state, "too many arguments");
		line->args[line->nr_args++] = arg;
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static char *help_filter(int key, const char *text, void *input __unused_)
{
	_cleanup_(freep) char *help = NULL;
	size_t size = 0;
	FILE *out;

	if (key != ARGP_KEY_HELP_PRE_DOC)
		return (char *)(uintptr_t)text;
	out = open_memstream(&help, &size);
	if (!out)
		return NULL;
	fprintf(out, "%s\n\n", text);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(out, "  %-10s %-10s  %s\n", verbs[i].name, verbs[i].args, verbs[i].help);
	return fclose(out) ? NULL : TAKE_PTR(help);
}

static const struct argp argp = {
	.options = options,
	.parser = parse_option,
	.args_doc = "VERB [ARGUMENT...]",
	.doc = "Look at a running arenad and change its knobs.",
	.help_filter = help_filter,
};

static int __printf_(1, 2) usage(const char *fmt, ...)
{
	va_list args;

	fputs("arenactl: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputs("; see arenactl --help\n", stderr);
	return CTL_USAGE;
}

static int check_usage(const struct command_line *line, const struct ctl_verb **out)
{
	if (!line->nr_args)
		return usage("no verb given");
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		const struct ctl_verb *v = &verbs[i];

		if (strcmp(v->name, line->args[0]) != 0)
			continue;
		if (v->nr_args != CTL_REST && line->nr_args - 1 != v->nr_args)
			return usage("usage: arenactl %s%s%s", v->name, *v->args ? " " : "",
				     v->args);
		if (line->ctl.options & ~v->options)
			return usage("%s does not take that option", v->name);
		*out = v;
		return 0;
	}
	return usage("there is no verb '%s'", line->args[0]);
}

/* ---- the connection ---------------------------------------------------------------------- */

/* For the message alone, by the library's own rule: what is asked for, the system's daemon if there
 * is one, else one of this user's. */
static const char *socket_tried(const struct ctl *c, char *buf, size_t size)
{
	const char *path = c->socket ? c->socket : secure_getenv("ARENAD_SOCKET");
	const char *runtime = secure_getenv("XDG_RUNTIME_DIR");

	if (path && *path)
		return path;
	if (access(SYSTEM_SOCKET, F_OK) == 0)
		return SYSTEM_SOCKET;
	if (runtime && *runtime)
		snprintf(buf, size, "%s/arenad/socket", runtime);
	else
		snprintf(buf, size, "/tmp/arenad-%u/socket", (unsigned)geteuid());
	return buf;
}

static int connect_daemon(struct ctl *c)
{
	struct arena_options opts = {.size = sizeof(opts), .socket = c->socket};
	char buf[512];
	const char *path;
	int err;

	if (arena_open(&opts, &c->arena) == 0)
		return 0;
	err = errno;
	path = socket_tried(c, buf, sizeof(buf));
	if (err == ENOENT || err == ECONNREFUSED)
		return ctl_fail(
			"no daemon at %s (%s); start one with 'arenad --socket %s', or name "
			"another with --socket",
			path, strerror(err), path);
	if (err == EPROTO)
		return ctl_fail("%s: the daemon there speaks another version of the protocol",
				path);
	return ctl_fail("%s: %s", path, strerror(err));
}

const char *argp_program_version = NULL;

int main(int argc, char **argv)
{
	struct command_line line = {.ctl.program = argv[0]};
	const struct ctl_verb *verb = NULL;
	char version[64];
	int status;

	snprintf(version, sizeof(version), "arenactl %s", arena_version());
	argp_program_version = version;
	argp_err_exit_status = CTL_USAGE;
	if (argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &line))
		return CTL_USAGE;
	status = check_usage(&line, &verb);
	if (!status && verb->needs_daemon)
		status = connect_daemon(&line.ctl);
	if (!status)
		status = verb->run(&line.ctl, line.ctl.rest ? line.ctl.rest : line.args + 1);
	arena_close(line.ctl.arena);
	if ((fflush(stdout) || ferror(stdout)) && status == CTL_DONE)
		status = ctl_fail("cannot write: %s", strerror(errno));
	return status;
}
