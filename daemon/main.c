/* SPDX-License-Identifier: MIT */
/*
 * main.c - arenad: claims its socket, boots the machine, serves until a signal, takes it all down.
 *
 * The path is claimed before anything is booted, so that a second daemon ends without having
 * touched anything; the socket appears after, when there is somebody to answer.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/faultpoint.h"
#include "base/log.h"
#include "base/parse.h"
#include "daemon/files/files.h"
#include "daemon/options.h"
#include "daemon/service/service.h"

static int attr_read(void *ctx, const struct credentials *cred, const char *path, char **out,
		     size_t *len)
{
	return files_read(ctx, cred, path, out, len);
}

static int attr_write(void *ctx, const struct credentials *cred, const char *path,
		      const char *value, size_t len)
{
	return files_write(ctx, cred, path, value, len);
}

/* Each client takes a handful of descriptors. */
static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == limit.rlim_max)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

static void log_ready(const struct machine *m, const struct listener *l)
{
	char size[32];

	log_notice("ready at %s: arena of %s, %u %s, hugepages %s", l->path,
		   format_size(size, sizeof(size), m->config.arena_size), m->topology.nr_nodes,
		   m->topology.nr_nodes == 1 ? "node" : "nodes", m->hugepages ? "on" : "off");
}

static int serve_machine(struct machine *m, struct listener *l, struct files *f, char *err,
			 size_t size)
{
	static const struct service_attr_ops ops = {.read = attr_read, .write = attr_write};
	struct service_params params = {.machine = m, .attr = &ops, .attr_ctx = f};
	struct service *s;
	int r = listener_start(l, err, size);

	if (r)
		return r;
	params.listen_fd = l->fd;
	r = service_create(&params, &s);
	if (!r) {
		r = service_catch_signals(s);
		if (!r) {
			log_ready(m, l);
			r = service_run(s);
			phys_retire(m->phys);
		}
		service_destroy(s);
	}
	if (r)
		snprintf(err, size, "cannot serve: %s", error_text(r));
	return r;
}

static int serve_listener(const struct machine_config *config, struct listener *l, char *err,
			  size_t size)
{
	struct machine m;
	struct files *f;
	int r = machine_boot(&m, config, err, size);

	if (r)
		return r;
	r = files_create(&m, &f);
	if (r) {
		snprintf(err, size, "cannot make the file tree: %s", error_text(r));
	} else {
		r = serve_machine(&m, l, f, err, size);
		files_destroy(f);
	}
	machine_shutdown(&m);
	return r;
}

static int serve(const struct options *o, char *err, size_t size)
{
	struct listener l;
	int r = listener_open(&l, &o->listener, err, size);

	if (r)
		return r;
	r = serve_listener(&o->config, &l, err, size);
	listener_close(&l);
	return r;
}

int main(int argc, char **argv)
{
	static struct options options;
	char err[1024] = "";
	int r = options_parse(&options, argc, argv, err, sizeof(err));

	if (!r) {
		log_set_level(options.config.log_level);
		faultpoint_arm_from_environment();
		raise_descriptor_limit();
		signal(SIGPIPE, SIG_IGN);
		r = serve(&options, err, sizeof(err));
		options_clear(&options);
	}
	if (r) {
		fprintf(stderr, "arenad: %s\n", err);
		return EXIT_FAILURE;
	}
	log_notice("stopped");
	return EXIT_SUCCESS;
}
