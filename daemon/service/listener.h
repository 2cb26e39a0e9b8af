/* SPDX-License-Identifier: MIT */
/*
 * listener.h - the daemon's socket in the file system, and that there is one daemon behind it.
 *
 * Socket and lock outlive the worker: a keeper (daemon/store) holds them under the names "listen"
 * and "lock", so that clients can connect and a second daemon is refused while no worker runs.
 */
#ifndef SERVICE_LISTENER_H
#define SERVICE_LISTENER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct listener {
	char *path, *lock_path, *new_path;
	int lock_fd, fd;
	mode_t mode;
	bool given; /* systemd made the socket, and removes it */
};

struct listener_params {
	const char *path;
	mode_t mode;           /* of the socket */
	mode_t directory_mode; /* of its directory, if it has to be made */
	bool own_directory;    /* it must be ours, and nobody else may write to it */
};

/*
 * Take over what an earlier worker or systemd left us. Else claim the path: makes the directory,
 * takes the lock file. Nothing listens yet. ARENA_E_BUSY: another daemon has it. On failure err
 * gets one line.
 */
int listener_open(struct listener *l, const struct listener_params *params, char *err,
		  size_t err_size);
/* Listen: the socket appears when it is ready, and takes the place of a dead daemon's. */
int listener_start(struct listener *l, char *err, size_t err_size);
/* Remove the socket, if it is ours, and give the path up. */
void listener_close(struct listener *l);

#endif
