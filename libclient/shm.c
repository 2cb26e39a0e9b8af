/* SPDX-License-Identifier: MIT */
/*
 * shm.c - named segments. A handle is the daemon's number for an open segment; the descriptor of
 * the arena file it lives in goes into the slot that its entries will name.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/mem.h"
#include "base/util.h"
#include "libclient/calls.h"
#include "libclient/internal.h"

static int check_name(const char *name)
{
	if (!name)
		return -EINVAL;
	return strlen(name) > 4096 ? -ENAMETOOLONG : 0;
}

static void close_segment(struct arena *a, uint32_t segment)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__ShmClose call = ARENA__SHM_CLOSE__INIT;
	struct mail_reply m;

	call.segment = segment;
	request.call_case = ARENA__REQUEST__CALL_SHM_CLOSE;
	request.shm_close = &call;
	mailbox_call(a, &request, &m, false);
}

/* The slot's descriptor, if one came. */
static int take_slot(struct arena *a, uint32_t slot, unsigned nr_fds, int fd)
{
	int r;

	if (!nr_fds)
		return 0;
	fd = client_high_fd(fd);
	r = tlb_slot_set(&a->tlb, slot, fd);
	if (r < 0)
		close(fd);
	return r;
}

static int exchange_open(struct arena *a, Arena__ShmOpen *call, uint32_t *segment)
{
	_cleanup_(freep) struct sock_buffer *b = malloc(sizeof(*b));
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Reply *reply;
	unsigned nr = 0;
	int fd = -1, r;

	if (!b)
		return -ENOMEM;
	request.call_case = ARENA__REQUEST__CALL_SHM_OPEN;
	request.shm_open = call;
	r = socket_call(a, &request, b, &reply, &fd, 1, &nr);
	if (r < 0)
		return r;
	if (reply->result_case != ARENA__REPLY__RESULT_SHM_OPEN) {
		if (nr)
			close(fd);
		return -EPROTO;
	}
	*segment = reply->shm_open->segment;
	r = take_slot(a, reply->shm_open->slot, nr, fd);
	if (r < 0)
		close_segment(a, *segment);
	return r;
}

struct open_job {
	Arena__ShmOpen *call;
	uint32_t *segment;
	int result;
};

static void open_job(struct arena *a, void *arg)
{
	struct open_job *o = arg;

	o->result = exchange_open(a, o->call, o->segment);
}

/*
 * From the request until its descriptor is in place no other thread opens a segment: the same
 * slot would be nothing new for it, and it would use the number before we have filled it.
 */
static int shm_open_rpc(struct arena *a, Arena__ShmOpen *call, uint32_t *segment)
{
	struct open_job job = {.call = call, .segment = segment};
	int cancel;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	pthread_mutex_lock(&a->open_mutex);
	agent_run(a, open_job, &job);
	pthread_mutex_unlock(&a->open_mutex);
	pthread_setcancelstate(cancel, NULL);
	return job.result;
}

arena_shm_t *arena_shm_open(arena_t *a, const char *name, int oflag, mode_t mode)
{
	_cleanup_(freep) arena_shm_t *s = NULL;
	_cleanup_(freep) char *copy = NULL; /* the name may be arena memory, which faults */
	Arena__ShmOpen call = ARENA__SHM_OPEN__INIT;
	int r = check_name(name);

	if (r == 0)
		r = client_enter_attached(a);
	if (r == 0) {
		s = mem_alloc(sizeof(*s));
		copy = mem_strdup(name);
		r = s && copy ? 0 : -ENOMEM;
	}
	if (r == 0) {
		if (oflag & O_CREAT)
			mode &= ~(mode_t)client_umask();
		call.name = copy;
		/* What shm_open(3) sets by itself says nothing here. */
		call.oflag = (uint32_t)(oflag & ~(O_CLOEXEC | O_NOFOLLOW));
		call.mode = mode & 07777;
		s->arena = a;
		r = shm_open_rpc(a, &call, &s->segment);
	}
	return client_return(r) < 0 ? NULL : TAKE_PTR(s);
}

static int enter_shm(const arena_shm_t *s)
{
	return s ? client_enter_attached(s->arena) : -EINVAL;
}

int arena_shm_truncate(arena_shm_t *s, off_t size)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__ShmTruncate call = ARENA__SHM_TRUNCATE__INIT;
	struct mail_reply m;
	int r = enter_shm(s);

	if (r == 0) {
		call.segment = s->segment;
		call.size = size;
		request.call_case = ARENA__REQUEST__CALL_SHM_TRUNCATE;
		request.shm_truncate = &call;
		r = mailbox_call(s->arena, &request, &m, false);
	}
	return client_return(r);
}

void *arena_shm_mmap(arena_shm_t *s, void *addr, size_t len, int prot, int flags, off_t off)
{
	struct mmap_args args = {
		.addr = addr, .len = len, .prot = prot, .flags = flags, .off = off};
	void *out;
	int r = enter_shm(s);

	if (r == 0 && (flags & MAP_ANONYMOUS))
		r = -EINVAL;
	if (r == 0) {
		args.segment = s->segment;
		r = client_mmap(s->arena, &args, &out);
	}
	return client_return(r) < 0 ? MAP_FAILED : out;
}

void arena_shm_close(arena_shm_t *s)
{
	if (enter_shm(s) == 0)
		close_segment(s->arena, s->segment);
	free(s);
}

off_t arena_shm_size(arena_shm_t *s)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__ShmStat call = ARENA__SHM_STAT__INIT;
	struct mail_reply m;
	int r = enter_shm(s);

	if (r == 0) {
		call.segment = s->segment;
		request.call_case = ARENA__REQUEST__CALL_SHM_STAT;
		request.shm_stat = &call;
		r = mailbox_call(s->arena, &request, &m, false);
	}
	if (r == 0 && m.reply->result_case != ARENA__REPLY__RESULT_SHM_STAT)
		r = -EPROTO;
	return client_return(r) < 0 ? -1 : (off_t)m.reply->shm_stat->size;
}

int arena_shm_unlink(arena_t *a, const char *name)
{
	_cleanup_(freep) struct sock_buffer *b = NULL;
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__ShmUnlink call = ARENA__SHM_UNLINK__INIT;
	Arena__Reply *reply;
	int r = check_name(name);

	if (r == 0)
		r = client_enter(a);
	if (r == 0) {
		b = malloc(sizeof(*b));
		r = b ? 0 : -ENOMEM;
	}
	if (r == 0) {
		call.name = (char *)name;
		request.call_case = ARENA__REQUEST__CALL_SHM_UNLINK;
		request.shm_unlink = &call;
		r = socket_call(a, &request, b, &reply, NULL, 0, NULL);
	}
	return client_return(r);
}
