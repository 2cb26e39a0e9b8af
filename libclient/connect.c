/* SPDX-License-Identifier: MIT */
/*
 * connect.c - the unix socket: finding it, hello, and calls over it.
 *
 * One call at a time holds sock_mutex from its request to its reply. It cannot be cancelled in
 * between, and it neither packs nor unpacks there: what it packs may lie in arena memory, whose
 * faults are the program's to leave by siglongjmp().
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "libclient/internal.h"

#define SYSTEM_SOCKET "/run/arenad/socket"

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

static int connect_socket(const char *path, int *out)
{
	struct sockaddr_un sa = {0};
	_cleanup_(closep) int fd = -1;
	bool own;
	int r = socket_path(path, &sa, &own);

	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	do
		r = connect(fd, (const struct sockaddr *)&sa, sizeof(sa));
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return errno == ENOTDIR ? -ENOENT : -errno;
	if (own) {
		struct ucred peer;
		socklen_t len = sizeof(peer);

		if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
			return -errno;
		if (peer.uid != 0 && peer.uid != geteuid())
			return -EACCES;
	}
	*out = TAKE_FD(fd);
	return 0;
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

/* The daemon hung up, or talks nonsense: nothing more comes of this connection. */
static int lost(struct arena *a, int r)
{
	store_release(&a->dead, 1);
	shutdown(a->sock, SHUT_RDWR);
	return r == -EPIPE || r == 0 ? -ECONNRESET : r;
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
static int hold_fds(const struct arena *a, int *held, unsigned nr, unsigned *nr_held)
{
	for (*nr_held = 0; *nr_held < nr; ++*nr_held) {
		held[*nr_held] = fcntl(a->sock, F_DUPFD_CLOEXEC, 0);
		if (held[*nr_held] < 0) {
			int r = errno == EMFILE ? -EMFILE : -ECONNRESET;

			close_all(held, nr_held);
			return r;
		}
	}
	return 0;
}

static ssize_t send_and_receive(struct arena *a, struct sock_buffer *b, size_t len, int *fds,
				unsigned max_fds, unsigned *nr_fds)
{
	int held[ARENA_SOCKET_MAX_FDS];
	unsigned nr_held;
	ssize_t n;
	int r;

	if (load_acquire(&a->dead))
		return -ECONNRESET;
	r = hold_fds(a, held, max_fds, &nr_held);
	if (r < 0)
		return r == -EMFILE ? r : lost(a, r);
	r = frame_send(a->sock, b->packet, len, NULL, 0);
	close_all(held, &nr_held);
	if (r < 0)
		return lost(a, r);
	n = frame_recv(a->sock, b->packet, sizeof(b->packet), fds, max_fds, nr_fds, 0);
	return n <= 0 ? lost(a, (int)n) : n;
}

int socket_call(struct arena *a, Arena__Request *request, struct sock_buffer *b,
		Arena__Reply **reply, int *fds, unsigned max_fds, unsigned *nr_fds)
{
	struct frame_arena fa = {.buf = b->arena, .size = sizeof(b->arena)};
	int cancel, r;
	size_t len;
	ssize_t n;

	ASSERT(!small_lock_held(&a->tlb.lock));
	request->id = __atomic_add_fetch(&a->sock_id, 1, __ATOMIC_RELAXED);
	r = frame_pack_request(request, b->packet, sizeof(b->packet), &len);
	if (r < 0)
		return r;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	pthread_mutex_lock(&a->sock_mutex);
	n = send_and_receive(a, b, len, fds, max_fds, nr_fds);
	pthread_mutex_unlock(&a->sock_mutex);
	pthread_setcancelstate(cancel, NULL);
	if (n < 0)
		return (int)n;
	if (frame_unpack_reply(b->packet, (size_t)n, &fa, reply) < 0 ||
	    (*reply)->id != request->id) {
		close_all(fds, nr_fds);
		return lost(a, -EPROTO);
	}
	if ((*reply)->flush_seq && load_acquire(&a->attached))
		client_flush_upto(a, (*reply)->flush_seq, false);
	if ((*reply)->error > 0) {
		close_all(fds, nr_fds);
		return -(*reply)->error;
	}
	return 0;
}

static int say_hello(struct arena *a)
{
	_cleanup_(freep) struct sock_buffer *b = malloc(sizeof(*b));
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Hello hello = ARENA__HELLO__INIT;
	Arena__Reply *reply;
	int r;

	if (!b)
		return -ENOMEM;
	hello.abi_major = ARENA_ABI_MAJOR;
	hello.abi_minor = ARENA_ABI_MINOR;
	hello.library = (char *)CLIENT_VERSION;
	hello.comm = program_invocation_short_name;
	request.call_case = ARENA__REQUEST__CALL_HELLO;
	request.hello = &hello;
	r = socket_call(a, &request, b, &reply, NULL, 0, NULL);
	if (r < 0)
		return r;
	if (reply->result_case != ARENA__REPLY__RESULT_HELLO ||
	    reply->hello->abi_major != ARENA_ABI_MAJOR)
		return -EPROTO;
	return 0;
}

int connect_daemon(struct arena *a, const char *path)
{
	int r = connect_socket(path, &a->sock);

	if (r < 0)
		return r;
	a->sock = client_high_fd(a->sock);
	return say_hello(a);
}
