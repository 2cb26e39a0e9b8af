/* SPDX-License-Identifier: MIT */
/*
 * connect.c - the unix socket: finding it, hello, and calls over it.
 *
 * One call at a time holds sock_mutex from its request to its reply. It cannot be cancelled in
 * between, and it neither packs nor unpacks there: what it packs may lie in arena memory, whose
 * faults are the program's to leave by siglongjmp(). The socket never blocks: who waits looks around
 * (link.c), and sends the same request again, under the same number, by a connection that was
 * made anew. -ENOTCONN is the connection's loss, here and nowhere else.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"
#include "libclient/internal.h"

#define SYSTEM_SOCKET "/run/arenad/socket"
#define NEW_SOCKET_SLICE (20 * NSEC_PER_MSEC)
#define ATTACH_PAUSE (10 * NSEC_PER_MSEC)

/* *own: a path in a directory that anybody may make, so look who listens there. */
static int socket_path(const char *wanted, struct sockaddr_un *sa, bool *own)
{
	const char *env = secure_getenv("ARENAD_SOCKET");
	const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
	size_t size = sizeof(sa->sun_path);
	int n;

	*own = false;
	sa->sun_family = AF_UNIX;
	if (!wanted && env && *env)
		wanted = env;
	if (!wanted && access(SYSTEM_SOCKET, F_OK) == 0)
		wanted = SYSTEM_SOCKET;
	if (wanted) {
		n = snprintf(sa->sun_path, size, "%s", wanted);
	} else if (runtime && *runtime) {
		n = snprintf(sa->sun_path, size, "%s/arenad/socket", runtime);
	} else {
		n = snprintf(sa->sun_path, size, "/tmp/arenad-%u/socket", (unsigned)geteuid());
		*own = true;
	}
	if (n == 0)
		return -ENOENT;
	return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

/* Never waits: a full backlog is -EAGAIN. */
int sock_connect(const struct arena *a, int *out)
{
	_cleanup_(closep) int fd =
		socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int r;

	if (fd < 0)
		return -errno;
	do
		r = connect(fd, (const struct sockaddr *)&a->address, sizeof(a->address));
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return errno == ENOTDIR ? -ENOENT : -errno;
	if (a->own_path) {
		struct ucred peer;
		socklen_t len = sizeof(peer);

		if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
			return -errno;
		if (peer.uid != 0 && peer.uid != geteuid())
			return -EACCES;
	}
	*out = client_high_fd(TAKE_FD(fd));
	return 0;
}

void sock_set(struct arena *a, int fd)
{
	struct stat st;

	a->sock_ino = fstat(fd, &st) == 0 ? st.st_ino : 0;
	store_relaxed(&a->sock, fd);
}

int client_high_fd(int fd)
{
	struct rlimit limit;
	int high;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return fd;
	high = fcntl(fd, F_DUPFD_CLOEXEC, (int)MIN(limit.rlim_cur / 2, (rlim_t)4096));
	if (high < 0)
		return fd;
	close(fd);
	return high;
}

/* The umask cannot be asked for without setting it, which other threads would see. */
uint32_t client_umask(void)
{
	_cleanup_(fclosep) FILE *f = fopen("/proc/self/status", "re");
	char line[256];
	unsigned mask;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "Umask: %o", &mask) == 1)
			return mask & 0777;
	return 022;
}

static void close_all(const int *fds, unsigned *nr)
{
	for (unsigned i = 0; nr && i < *nr; i++)
		close(fds[i]);
	if (nr)
		*nr = 0;
}

/*
 * Keep room for what the reply may bring: where the descriptor table is full the call must fail
 * before the daemon has done it, for a descriptor that finds no place is gone.
 */
static int hold_fds(int sock, int *held, unsigned nr, unsigned *nr_held)
{
	for (*nr_held = 0; *nr_held < nr; ++*nr_held) {
		held[*nr_held] = fcntl(sock, F_DUPFD_CLOEXEC, 0);
		if (held[*nr_held] < 0) {
			int r = errno == EMFILE ? -EMFILE : -ENOTCONN;

			close_all(held, nr_held);
			return r;
		}
	}
	return 0;
}

/* In the flush thread, which must not neglect its flushes, or before there are any. */
static int await_new_socket(struct arena *a, uint64_t deadline)
{
	flush_thread_pass(a);
	if (clock_now() >= deadline || load_acquire(&a->flush_stop))
		return -ETIMEDOUT;
	return link_state(a) == LINK_DEAD || link_told(a) ? -ECONNRESET : 0;
}

/* Wait until the socket may be written to or read from. 0; -ENOTCONN; others: no longer. */
static int await_socket(struct arena *a, int sock, short events, uint64_t deadline)
{
	struct pollfd p = {.fd = sock, .events = events};
	bool new = sock != load_relaxed(&a->sock);
	uint64_t slice = MIN(link_slice(deadline), new ? NEW_SOCKET_SLICE : UINT64_MAX);
	int r = poll(&p, 1, (int)((slice + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC));

	if (r > 0 && !(p.revents & POLLNVAL))
		return 0;
	if (r > 0 || (r < 0 && errno != EINTR))
		return -ENOTCONN;
	if (new)
		return await_new_socket(a, deadline);
	if (!link_look(a, deadline))
		return -ECONNRESET;
	return link_state(a) == LINK_UP ? 0 : -ENOTCONN;
}

static int send_packet(struct arena *a, int sock, const struct sock_buffer *b, uint64_t deadline)
{
	int r;

	while ((r = frame_send_flags(sock, b->packet, b->len, &b->fd, b->fd >= 0,
				     FRAME_DONTWAIT)) == -EAGAIN) {
		r = await_socket(a, sock, POLLOUT, deadline);
		if (r < 0)
			return r;
	}
	return r < 0 && r != -EMSGSIZE ? -ENOTCONN : r;
}

/* The daemon's last word on this connection. */
static int farewell(struct arena *a, struct sock_buffer *b, size_t len)
{
	struct frame_arena fa = {.buf = b->arena, .size = sizeof(b->arena)};
	Arena__Reply *reply;

	if (frame_unpack_reply(b->reply, len, &fa, &reply) == 0 && reply->error > 0 &&
	    reply->error != ESHUTDOWN)
		a->refusal = -reply->error;
	link_die(a);
	return -ECONNRESET;
}

/* An answer that came twice, because a worker died after it had sent it, is passed over. */
static ssize_t receive_packet(struct arena *a, int sock, struct sock_buffer *b, uint64_t deadline,
			      int *fds, unsigned max_fds, unsigned *nr_fds)
{
	int all[ARENA_SOCKET_MAX_FDS];
	unsigned nr;

	for (;;) {
		ssize_t n = frame_recv(sock, b->reply, sizeof(b->reply), all, ARENA_SOCKET_MAX_FDS,
				       &nr, FRAME_DONTWAIT);
		uint64_t id = n > 0 ? frame_peek_id(b->reply, (size_t)n) : 0;

		if (n == -EAGAIN) {
			int r = await_socket(a, sock, POLLIN, deadline);

			if (r < 0)
				return r;
			continue;
		}
		if (n <= 0)
			return -ENOTCONN;
		if (id == b->id && nr <= max_fds) {
			if (nr)
				memcpy(fds, all, nr * sizeof(*fds));
			if (nr_fds)
				*nr_fds = nr;
			return n;
		}
		close_all(all, &nr);
		if (id == 0)
			return farewell(a, b, (size_t)n);
	}
}

int sock_pack(Arena__Request *request, struct sock_buffer *b)
{
	b->id = request->id;
	b->fd = -1;
	return frame_pack_request(request, b->packet, sizeof(b->packet), &b->len);
}

ssize_t sock_exchange(struct arena *a, int sock, struct sock_buffer *b, uint64_t deadline, int *fds,
		      unsigned max_fds, unsigned *nr_fds)
{
	int held[ARENA_SOCKET_MAX_FDS];
	unsigned nr_held;
	int r = hold_fds(sock, held, max_fds, &nr_held);

	if (r < 0)
		return r;
	r = send_packet(a, sock, b, deadline);
	close_all(held, &nr_held);
	return r < 0 ? r : receive_packet(a, sock, b, deadline, fds, max_fds, nr_fds);
}

int sock_unpack(struct sock_buffer *b, size_t len, Arena__Reply **reply, int *fds, unsigned *nr_fds)
{
	struct frame_arena fa = {.buf = b->arena, .size = sizeof(b->arena)};

	if (frame_unpack_reply(b->reply, len, &fa, reply) < 0) {
		close_all(fds, nr_fds);
		return -EBADMSG;
	}
	if ((*reply)->error > 0) {
		close_all(fds, nr_fds);
		return -(*reply)->error;
	}
	return 0;
}

int sock_hello(struct arena *a, int sock, struct sock_buffer *b, uint64_t deadline)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Hello hello = ARENA__HELLO__INIT;
	Arena__Reply *reply;
	ssize_t n;
	int r;

	hello.abi_major = ARENA_ABI_MAJOR;
	hello.abi_minor = ARENA_ABI_MINOR;
	hello.library = (char *)CLIENT_VERSION;
	hello.comm = a->comm;
	request.call_case = ARENA__REQUEST__CALL_HELLO;
	request.hello = &hello;
	request.id = __atomic_add_fetch(&a->sock_id, 1, __ATOMIC_RELAXED);
	r = sock_pack(&request, b);
	if (r < 0)
		return r;
	n = sock_exchange(a, sock, b, deadline, NULL, 0, NULL);
	if (n < 0)
		return (int)n;
	r = sock_unpack(b, (size_t)n, &reply, NULL, NULL);
	if (r < 0)
		return r;
	return reply->result_case == ARENA__REPLY__RESULT_HELLO &&
			       reply->hello->abi_major == ARENA_ABI_MAJOR
		       ? 0
		       : -EPROTO;
}

/* ---- calls ---- */

/* A connection with nothing but hello said. */
static int connect_once(struct arena *a, struct sock_buffer *b, uint64_t deadline)
{
	int fd = -1, r = sock_connect(a, &fd);

	if (r == 0)
		r = sock_hello(a, fd, b, deadline);
	if (r < 0) {
		closep(&fd);
		return r;
	}
	if (a->sock >= 0 && link_owns_socket(a))
		close(a->sock);
	sock_set(a, fd);
	link_restored(a);
	return 0;
}

static void longer_pause(struct timespec *pause)
{
	nanosleep(pause, NULL);
	pause->tv_nsec =
		MIN(2 * pause->tv_nsec + 10 * (long)NSEC_PER_MSEC, 500 * (long)NSEC_PER_MSEC);
}

/*
 * A connection without an address space is made (anew) by who needs it: the worker may have died
 * before its keeper had it. Where nobody listens there is nobody to wait for.
 */
static int connect_patiently(struct arena *a, uint64_t deadline, struct timespec *pause)
{
	_cleanup_(freep) struct sock_buffer *b = malloc(sizeof(*b));

	if (!b)
		return -ENOMEM;
	for (;;) {
		int r = connect_once(a, b, deadline);

		if (r != -EAGAIN && r != -ENOTCONN)
			return r == -ETIMEDOUT ? -ECONNRESET : r;
		if (clock_now() >= deadline || load_acquire(&a->closing))
			return -ECONNRESET;
		longer_pause(pause);
	}
}

/*
 * Is a lost connection this call's to make anew? With an address space it is the flush thread's; while
 * one is being made it is only attach's own, for by any other it would be lost.
 */
static bool may_connect(const struct arena *a, bool is_attach)
{
	return !load_acquire(&a->attached) && (is_attach || !load_acquire(&a->attaching));
}

static ssize_t call_locked(struct arena *a, struct sock_buffer *b, bool is_attach,
			   uint64_t deadline, int *fds, unsigned max_fds, unsigned *nr_fds)
{
	struct timespec pause = {0};

	for (;;) {
		ssize_t n = -ENOTCONN;

		if (link_state(a) == LINK_DEAD)
			return -ECONNRESET;
		if (link_state(a) == LINK_UP)
			n = sock_exchange(a, a->sock, b, deadline, fds, max_fds, nr_fds);
		if (n != -ENOTCONN)
			return n;
		link_lost(a);
		if (!may_connect(a, is_attach))
			return n;
		longer_pause(&pause);
		n = connect_patiently(a, deadline, &pause);
		if (n == -ENOMEM || n == -EMFILE || n == -ENFILE)
			return n;
		if (n < 0) {
			link_die(a);
			return -ECONNRESET;
		}
	}
}

/* Until the connection is there again, or another thread's attach has come to its end. */
static bool await_connection(struct arena *a, uint64_t deadline)
{
	const struct timespec pause = {.tv_nsec = ATTACH_PAUSE};

	if (load_acquire(&a->attached))
		return link_await(a, deadline);
	nanosleep(&pause, NULL);
	return link_look(a, deadline);
}

struct socket_job {
	struct sock_buffer *b;
	bool is_attach;
	int *fds;
	unsigned max_fds, *nr_fds;
	ssize_t result;
};

static void call_until_answered(struct arena *a, void *arg)
{
	struct socket_job *j = arg;
	uint64_t deadline = link_deadline(a);
	ssize_t n;

	do {
		pthread_mutex_lock(&a->sock_mutex);
		n = call_locked(a, j->b, j->is_attach, deadline, j->fds, j->max_fds, j->nr_fds);
		pthread_mutex_unlock(&a->sock_mutex);
	} while (n == -ENOTCONN && await_connection(a, deadline));
	j->result = n == -ENOTCONN ? -ECONNRESET : n;
}

/* Where the socket is, and not to be cancelled between request and reply. */
static ssize_t run_call(struct arena *a, struct socket_job *j)
{
	int cancel;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	agent_run(a, call_until_answered, j);
	pthread_setcancelstate(cancel, NULL);
	return j->result;
}

static int call_with(struct arena *a, Arena__Request *request, int fd, struct sock_buffer *b,
		     Arena__Reply **reply, int *fds, unsigned max_fds, unsigned *nr_fds)
{
	struct socket_job job = {
		.b = b,
		.is_attach = request->call_case == ARENA__REQUEST__CALL_ATTACH,
		.fds = fds,
		.max_fds = max_fds,
		.nr_fds = nr_fds,
	};
	int r;
	ssize_t n;

	ASSERT(!small_lock_held(&a->tlb.lock));
	request->id = __atomic_add_fetch(&a->sock_id, 1, __ATOMIC_RELAXED);
	r = sock_pack(request, b);
	if (r < 0)
		return r;
	b->fd = fd;
	n = run_call(a, &job);
	if (n < 0)
		return (int)n;
	r = sock_unpack(b, (size_t)n, reply, fds, nr_fds);
	if (r == -EBADMSG) {
		link_die(a);
		return -EPROTO;
	}
	if ((*reply)->flush_seq && load_acquire(&a->attached))
		client_flush_upto(a, (*reply)->flush_seq, false);
	return r;
}

int socket_call(struct arena *a, Arena__Request *request, struct sock_buffer *b,
		Arena__Reply **reply, int *fds, unsigned max_fds, unsigned *nr_fds)
{
	return call_with(a, request, -1, b, reply, fds, max_fds, nr_fds);
}

int socket_call_with(struct arena *a, Arena__Request *request, int fd, struct sock_buffer *b,
		     Arena__Reply **reply)
{
	return call_with(a, request, fd, b, reply, NULL, 0, NULL);
}

int connect_daemon(struct arena *a, const char *path)
{
	struct timespec pause = {0};
	int r;

	/* Later it may lie where no newborn child can read. */
	snprintf(a->comm, sizeof(a->comm), "%s", program_invocation_short_name);
	r = socket_path(path, &a->address, &a->own_path);

	if (r == 0)
		r = connect_patiently(a, link_deadline(a), &pause);
	return r == -ECONNRESET && a->refusal ? a->refusal : r;
}
