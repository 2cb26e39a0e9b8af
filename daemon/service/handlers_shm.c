/* SPDX-License-Identifier: MIT */
/*
 * handlers_shm.c - named segments.
 *
 * Names come from clients and reach logs, maps and other clients: they are checked here, once.
 * Truncating takes pages from every client that maps them, so its answer waits until those have
 * let go, or the deadline has passed.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/faultpoint.h"
#include "base/os.h"

#define SEGMENT_NAME_MAX 255
#define OPEN_FLAGS (O_ACCMODE | O_CREAT | O_EXCL | O_TRUNC)

/* *name loses its slash. */
static int check_name(const char **name)
{
	const char *s = *name + (**name == '/');
	size_t n = strlen(s);

	if (n > SEGMENT_NAME_MAX)
		return ARENA_E_NAME_TOO_LONG;
	if (!n || strchr(s, '/') || strcmp(s, ".") == 0 || strcmp(s, "..") == 0)
		return ARENA_E_INVALID;
	*name = s;
	return 0;
}

int call_add_slot_fd(struct call *call, struct mm *mm, uint32_t slot)
{
	bool readonly;
	int fd;

	if (!mm_slot(mm, slot, &fd, &readonly))
		return ARENA_E_NOT_FOUND;
	if (readonly) {
		fd = os_reopen_readonly(fd);
		if (fd < 0)
			return fd;
	}
	call_add_fd(call, fd, readonly);
	return 0;
}

int handle_shm_open(struct call *call)
{
	const Arena__ShmOpen *m = call->request->shm_open;
	struct peer *p = call->peer;
	struct segment_open open = {
		.name = m->name,
		.oflag = (int)(m->oflag & ~(uint32_t)O_CLOEXEC),
		.mode = m->mode & 0777,
	};
	Arena__ShmOpenReply *reply;
	int r = check_name(&open.name);

	faultpoint("service.shm_open");
	if (r)
		return r;
	/* Other flags of open(2) mean nothing here, as they mean nothing to shm_open(3). */
	open.oflag &= OPEN_FLAGS;
	if ((open.oflag & O_ACCMODE) != O_RDONLY && (open.oflag & O_ACCMODE) != O_RDWR)
		return ARENA_E_INVALID;
	r = mm_open_segment(p->mm, &p->cred, &open);
	if (r)
		return r;
	/* Only where it is new to the client. */
	r = open.slot_new ? call_add_slot_fd(call, p->mm, open.slot) : 0;
	if (r) {
		mm_close_segment(p->mm, open.handle);
		return r;
	}
	reply = CALL_RESULT(call, shm_open, SHM_OPEN);
	reply->segment = open.handle;
	reply->slot = open.slot;
	reply->size = open.size;
	return 0;
}

int handle_shm_truncate(struct call *call)
{
	const Arena__ShmTruncate *m = call->request->shm_truncate;
	struct peer *p = call->peer;
	struct later *l;
	int r;

	if (m->size < 0)
		return ARENA_E_INVALID;
	l = later_create(call);
	if (!l)
		return -ENOMEM;
	r = mm_truncate_segment(p->mm, m->segment, m->size, &l->wait);
	if (r == ARENA_E_WAIT_IO) {
		later_drop(l);
		return call_wait_io(call);
	}
	if (r || !l->wait.pending) {
		later_drop(l);
		return r;
	}
	service_hurry_flushes(p->service, p);
	return call_later(l);
}

int handle_shm_close(struct call *call)
{
	return mm_close_segment(call->peer->mm, call->request->shm_close->segment);
}

int handle_shm_unlink(struct call *call)
{
	struct peer *p = call->peer;
	const char *name = call->request->shm_unlink->name;
	int r = check_name(&name);

	/* What cannot be a name is nobody's. */
	if (r == ARENA_E_INVALID)
		return ARENA_E_NOT_FOUND;
	return r ? r : segment_unlink(p->service->machine->virt, &p->cred, name);
}

int handle_shm_stat(struct call *call)
{
	int64_t size = 0;
	int r = mm_stat_segment(call->peer->mm, call->request->shm_stat->segment, &size);

	if (r)
		return r;
	CALL_RESULT(call, shm_stat, SHM_STAT)->size = size;
	return 0;
}

static int call_add_zero_fd(struct call *call)
{
	int fd = vm_zero_file(call->peer->mm);

	if (fd >= 0)
		fd = os_reopen_readonly(fd);
	if (fd < 0)
		return fd == -ENOENT ? ARENA_E_NOT_FOUND : fd;
	call_add_fd(call, fd, true);
	return 0;
}

int handle_slot(struct call *call)
{
	if (call->request->slot->number == ARENA_SLOT_ZERO)
		return call_add_zero_fd(call);
	return call_add_slot_fd(call, call->peer->mm, call->request->slot->number);
}
