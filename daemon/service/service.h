/* SPDX-License-Identifier: MIT */
/*
 * service.h - clients and their calls: what main, tests and fuzz targets see of this room.
 *
 * A peer is one connection. Its requests come as packets of the socket and, once it has an address
 * space, through the mailboxes of its channel; both end in the same table of methods
 * (methods.def). Everything runs in the control thread, inside service_run() or service_round().
 */
#ifndef SERVICE_SERVICE_H
#define SERVICE_SERVICE_H

#include <stdbool.h>
#include <stddef.h>

#include "daemon/machine/machine.h"

struct service;
struct peer;

/* The file tree, which belongs to a room beside this one. Returns as files.h says. */
struct service_attr_ops {
	int (*read)(void *ctx, const struct credentials *cred, const char *path, char **out,
		    size_t *len);
	int (*write)(void *ctx, const struct credentials *cred, const char *path, const char *value,
		     size_t len);
};

struct service_params {
	struct machine *machine;             /* outlives the service */
	const struct service_attr_ops *attr; /* NULL: there are no files */
	void *attr_ctx;
	int listen_fd; /* borrowed; -1: peers come by service_add_peer() only */
};

/* Takes over the clients that the store and the machine know of from an earlier worker. */
int service_create(const struct service_params *params, struct service **out);
/* Ends every connection and address space, and says so. NULL allowed, returns NULL. */
struct service *service_destroy(struct service *s);
/* Forget all as if the worker had died: clients and address spaces stay as they are. */
struct service *service_abandon(struct service *s);

/* SIGTERM and SIGINT stop the service, SIGHUP is logged; they are unblocked here, and blocked again
 * before service_run() returns. For main, not for tests. */
int service_catch_signals(struct service *s);
/* The keeper of descriptors (daemon/store): be heard of in time, and notice its death. */
int service_watch_keeper(struct service *s);
/* Serve until service_stop(), or a signal: 0, -errno. */
int service_run(struct service *s);
void service_stop(struct service *s);
/* Serve what is there now and return without waiting. True: there was something. */
bool service_round(struct service *s);

/*
 * A connection whose other end is told to be `cred` (copied). Takes over `fd`, also on failure.
 * *out is the service's, valid until it hangs up or is refused and the next service_round().
 */
int service_add_peer(struct service *s, int fd, const struct credentials *cred, struct peer **out);
unsigned service_nr_peers(const struct service *s);

/* One packet from the peer, as if read from its socket. */
void peer_handle_packet(struct peer *p, const void *packet, size_t len);
/* Serve at most one mailbox of the peer's channel. True: there was a request. */
bool channel_serve(struct peer *p);
/* Its address space, NULL before attach. */
struct mm *peer_mm(struct peer *p);
/* The connection is over; the peer is waiting to be freed, or for its process to die. */
bool peer_is_closed(const struct peer *p);

#endif
