/* SPDX-License-Identifier: MIT */
/*
 * options.c - argp's table is made from the keys of the configuration, so that each key is an
 * option and neither can be forgotten.
 *
 * The command line is parsed twice: once to find mistakes and --config, once more over what the
 * file said.
 */
#include "daemon/options.h"

#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arena/abi.h"
#include "arena/arena.h"
#include "daemon/machine/config.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

#define KEY_FIRST 0x100 /* of config_keys */
#define KEY_CONFIG 0x80
#define KEY_NO_SUPERVISOR 0x81
#define KEY_PRINT_ABI 0x82
#define MAX_OPTIONS 32
#define DOC_SIZE 256

const char *argp_program_version = "arenad " TEXT(ARENA_VERSION_MAJOR) "." TEXT(
	ARENA_VERSION_MINOR) "." TEXT(ARENA_VERSION_PATCH);

static const char doc[] =
	"Memory management as a user-space service: owns an arena of memory and serves it to "
	"clients."
	"\vEvery long option but --config, --no-supervisor and --print-abi is also a key of the "
	"configuration file (key = value). Sizes take K, M, G and T.\n\n"
	"It runs as two processes: a supervisor, which keeps what clients have, and its worker, "
	"named arenad-worker, which may die or be replaced (arenactl upgrade) at any moment. "
	"SIGTERM "
	"and SIGINT to either stop both; SIGHUP is passed on. With --no-supervisor, as under "
	"systemd, which keeps and restarts as well, there is the worker alone.\n\n"
	"The socket is $ARENAD_SOCKET if that is set; else /run/arenad/socket for root; else "
	"$XDG_RUNTIME_DIR/arenad/socket; else /tmp/arenad-UID/socket. Anybody may connect to "
	"root's "
	"socket and to one named by --socket or $ARENAD_SOCKET (mode 0666: what a client can reach "
	"depends on its uid, and the directory can keep others out); to a user's default socket "
	"only that user (0600).\n\n"
	"Exit status: 0 stopped by a signal, 1 failed, 2 wrong usage; of a worker also 75: start "
	"it again now (RestartForceExitStatus=75).";

struct parse {
	struct machine_config *config;
	const char *file;
};

/* What `arenactl upgrade` compares before it replaces a running one. */
static void print_abi(void)
{
	printf("abi %u.%u\nstate %u.%u\nversion %d.%d.%d\n", ARENA_ABI_MAJOR, ARENA_ABI_MINOR,
	       STATE_MAJOR, STATE_MINOR, ARENA_VERSION_MAJOR, ARENA_VERSION_MINOR,
	       ARENA_VERSION_PATCH);
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct parse *p = state->input;
	const char *name;
	char err[1024];

	if (key == KEY_PRINT_ABI) {
		print_abi();
		exit(EXIT_SUCCESS);
	}
	if (key == KEY_CONFIG) {
		p->file = arg;
		return 0;
	}
	if (key == KEY_NO_SUPERVISOR) {
		name = "supervisor";
		arg = (char *)"no";
	} else if (key >= KEY_FIRST && key < KEY_FIRST + (int)nr_config_keys) {
		name = config_keys[key - KEY_FIRST].name;
	} else if (key == ARGP_KEY_ARG) {
		argp_error(state, "there are no arguments: '%s'", arg);
		return EINVAL;
	} else {
		return ARGP_ERR_UNKNOWN;
	}
	if (machine_config_set(p->config, name, arg, err, sizeof(err)))
		argp_failure(state, EXIT_USAGE, 0, "--%s", err);
	return 0;
}

/* Static, because argp keeps pointers. */
static const struct argp_option *make_options(void)
{
	static struct argp_option options[MAX_OPTIONS];
	static char docs[MAX_OPTIONS][DOC_SIZE];
	unsigned n = 0;

	BUG_ON(nr_config_keys + 4 > MAX_OPTIONS);
	options[n++] = (struct argp_option){
		"config", KEY_CONFIG, "FILE", 0, "Read this configuration file first", 0};
	for (unsigned i = 0; i < nr_config_keys; i++) {
		snprintf(docs[i], DOC_SIZE, "%s (%s)", config_keys[i].help,
			 config_keys[i].accepted);
		options[n++] = (struct argp_option){config_keys[i].name,
						    KEY_FIRST + (int)i,
						    config_keys[i].argument,
						    0,
						    docs[i],
						    0};
	}
	options[n++] = (struct argp_option){
		"no-supervisor", KEY_NO_SUPERVISOR, NULL, 0, "The same as --supervisor=no", 0};
	options[n++] = (struct argp_option){
		"print-abi",
		KEY_PRINT_ABI,
		NULL,
		0,
		"Print the versions of protocol and state that this program speaks, and end",
		0};
	options[n] = (struct argp_option){0};
	return options;
}

static void parse_command_line(int argc, char **argv, struct parse *p)
{
	const struct argp argp = {.options = make_options(), .parser = parse_option, .doc = doc};

	argp_err_exit_status = EXIT_USAGE;
	/* It ends the program where it does not succeed. */
	if (argp_parse(&argp, argc, argv, 0, NULL, p))
		exit(EXIT_USAGE);
}

/* ---- where to listen ------------------------------------------------------------- */

static void choose_socket(struct options *o)
{
	const char *environment = secure_getenv("ARENAD_SOCKET");
	const char *runtime = secure_getenv("XDG_RUNTIME_DIR");

	o->listener =
		(struct listener_params){.mode = 0666, .directory_mode = 0755, .path = o->path};
	if (o->config.socket) {
		o->listener.path = o->config.socket;
		return;
	}
	if (environment && *environment) {
		snprintf(o->path, sizeof(o->path), "%s", environment);
		return;
	}
	if (geteuid() == 0) {
		snprintf(o->path, sizeof(o->path), "/run/arenad/socket");
		return;
	}
	o->listener.mode = 0600;
	o->listener.directory_mode = 0700;
	o->listener.own_directory = true;
	if (runtime && *runtime)
		snprintf(o->path, sizeof(o->path), "%s/arenad/socket", runtime);
	else
		snprintf(o->path, sizeof(o->path), "/tmp/arenad-%u/socket", (unsigned)geteuid());
}

int options_parse(struct options *o, int argc, char **argv, char *err, size_t err_size)
{
	struct machine_config scratch;
	struct parse check = {.config = &scratch};
	struct parse real = {.config = &o->config};
	int r = 0;

	machine_config_init(&scratch);
	parse_command_line(argc, argv, &check);
	machine_config_clear(&scratch);
	machine_config_init(&o->config);
	if (check.file)
		r = machine_config_load(&o->config, check.file, err, err_size);
	if (r) {
		machine_config_clear(&o->config);
		return r;
	}
	parse_command_line(argc, argv, &real);
	choose_socket(o);
	return 0;
}

void options_clear(struct options *o)
{
	machine_config_clear(&o->config);
}
