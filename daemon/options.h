/* SPDX-License-Identifier: MIT */
/* options.h - command line, configuration file and environment: what this daemon shall be. */
#ifndef DAEMON_OPTIONS_H
#define DAEMON_OPTIONS_H

#include "daemon/machine/machine.h"
#include "daemon/service/listener.h"

#define EXIT_USAGE 2

struct options {
	struct machine_config config;
	struct listener_params listener; /* path: config.socket or `path` */
	char path[4096];
};

/*
 * The command line wins over the file, the file over the defaults. Ends the program at --help,
 * --version (0) and wrong usage (2). Else 0, or one line in err.
 */
int options_parse(struct options *o, int argc, char **argv, char *err, size_t err_size);
void options_clear(struct options *o);

#endif
