/* SPDX-License-Identifier: MIT */
/*
 * main.c - arenad: one program, two processes. The supervisor (supervisor.c) runs the other one, the
 * worker: claims its socket, boots the machine, serves until a signal, takes it all down.
 *
 * The path is claimed before anything is booted, so that a second daemon ends without having
 * touched anything; the socket appears after, when there is somebody to answer. A worker that
 * follows another finds both in the store, and the machine in the state file.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/faultpoint.h"
#include "base/log.h"
#include "base/parse.h"
#include "base/truth.h"
#include "daemon/files/files.h"
#include "daemon/options.h"
#include "daemon/service/service.h"
#include "daemon/store/store.h"
#include "daemon/supervisor.h"

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

static void is_ready(const struct machine *m, const struct listener *l)
{
	char size[32];

	log_notice("ready at %s: arena of %s, %u %s, hugepages %s", l->path,
		   format_size(size, sizeof(size), m->config.arena_size), m->topology.nr_nodes,
		   m->topology.nr_nodes == 1 ? "node" : "nodes", m->hugepages ? "on" : "off");
	store_notify("READY=1");
}

/* Nothing is taken down: the next worker goes on with it. */
_Noreturn static void leave(const char *why, int status)
{
	log_notice("%s", why);
	_exit(status);
}

static int serve_until_told(struct service *s, const struct machine *m, const struct listener *l)
{
	int r = service_watch_keeper(s);

	if (r || (r = service_catch_signals(s)))
		return r;
	is_ready(m, l);
	r = service_run(s);
	if (r)
		return r;
	if (m->restart)
		leave("ends for the next worker", EXIT_RESTART);
	store_notify("STOPPING=1");
	virt_files_write_all(m->virt);
	/* Is this a stop or a restart? systemd knows: it closes what it keeps, or hands it to the next
	 * worker. */
	if (store_kept() && !store_supervisor())
		leave("stopped; what clients have is left to who keeps it", EXIT_SUCCESS);
	return 0;
}

/* What we cannot go on with the next worker may, if there is one. */
static int give_up(const char *err, int r)
{
	if (store_kept()) {
		log_err("%s", err);
		_exit(EXIT_FAILURE);
	}
	return r;
}

static int cannot(const char *what, int r, char *err, size_t size)
{
	snprintf(err, size, "cannot %s: %s", what, error_text(r));
	return give_up(err, r);
}

static int serve_machine(struct machine *m, struct listener *l, struct files *f, char *err,
			 size_t size)
{
	static const struct service_attr_ops ops = {.read = attr_read, .write = attr_write};
	struct service_params params = {.machine = m, .attr = &ops, .attr_ctx = f};
	struct service *s;
	unsigned left;
	int r = listener_start(l, err, size);

	if (r)
		return give_up(err, r);
	params.listen_fd = l->fd;
	r = service_create(&params, &s);
	if (r)
		return cannot("serve", r, err, size);
	left = store_drop_rest();
	if (left)
		log_info("%u descriptors that nothing names any more", left);
	r = serve_until_told(s, m, l);
	if (r)
		cannot("serve", r, err, size);
	else
		phys_retire(m->phys);
	service_destroy(s);
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
		cannot("make the file tree", r, err, size);
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

/* ---- the process --------------------------------------------------------------- */

/* What is opened later must not be taken for them. */
static void open_standard_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
}

/* A core file would hold what clients have, and take long to write: no shared memory in it. */
static void keep_memory_out_of_cores(void)
{
	_cleanup_(closep) int fd = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);

	if (fd >= 0)
		dprintf(fd, "0x31\n");
}

/* A SIGTERM that comes before it can be heard waits; supervisor.c does the same for us. */
static void block_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

/* ARENA_FAULTPOINTS=truth=die@N: as if killed right after the Nth store to the truth. */
static void arm_faults(void)
{
	faultpoint_arm_from_environment();
	truth_stop_after = faultpoint_only("truth");
}

static int work(const struct options *o, char *err, size_t size)
{
	int r;

	block_signals();
	arm_faults();
	r = store_open();
	if (r) {
		snprintf(err, size, "cannot take over descriptors: %s", error_text(r));
		return r;
	}
	prctl(PR_SET_NAME, store_supervisor() ? "arenad-worker" : "arenad");
	return serve(o, err, size);
}

static int supervise(const struct options *o, char **argv)
{
	const struct supervisor_params params = {
		.argv = argv,
		.watchdog_usec = (uint64_t)o->config.watchdog * 1000000,
	};

	return supervisor_run(&params);
}

/* A worker is one whatever its options say. */
static bool is_worker(const struct options *o)
{
	return !o->config.supervisor || getenv("X_ARENAD_SUPERVISOR");
}

int main(int argc, char **argv)
{
	static struct options options;
	char err[1024] = "";
	int r;

	open_standard_descriptors();
	r = options_parse(&options, argc, argv, err, sizeof(err));
	if (!r) {
		log_set_level(options.config.log_level);
		raise_descriptor_limit();
		keep_memory_out_of_cores();
		signal(SIGPIPE, SIG_IGN);
		if (!is_worker(&options))
			return supervise(&options, argv);
		r = work(&options, err, sizeof(err));
		options_clear(&options);
	}
	if (r) {
		fprintf(stderr, "arenad: %s\n", err);
		return EXIT_FAILURE;
	}
	log_notice("stopped");
	return EXIT_SUCCESS;
}
