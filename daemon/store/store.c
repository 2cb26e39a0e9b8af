/* SPDX-License-Identifier: MIT */
/*
 * store.c - the worker's side of the descriptor store.
 *
 * Handed down: an array sorted by prefix and number, so that thousands are found as fast as a few.
 * Kept: nothing is remembered here, the keeper does that, but for the fake one of tests, whose
 * shelf is the second array.
 *
 * The keeper is spoken to by one socket, connected at start: an address could be another
 * process's after the keeper's death, a connected socket leads nowhere then.
 *
 * This is libsystemd's side of the protocol, which is a promise of systemd's, without libsystemd:
 * the six libraries it brings along would cost every start of a worker, for which clients wait, a
 * fifth to a third of its time.
 */
#include "daemon/store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "base/parse.h"
#include "base/util.h"

#define FIRST_FD 3           /* of those that are handed down */
#define DELETED " (deleted)" /* what the kernel adds to the path of a program that was replaced */

/* "mm-7" is prefix_len 2 and number 7; what has no number of that form has number 0. */
struct kept {
	char name[STORE_NAME_MAX];
	uint32_t prefix_len, number;
	int fd; /* -1: taken */
};

struct shelf {
	struct kept *kept;
	unsigned nr, capacity;
};

static struct shelf handed; /* what the keeper gave us; sorted */
static struct shelf fake;   /* what the fake keeper keeps */
static bool faking;

static struct {
	int fd;            /* connected to the keeper; -1: there is none, or it died */
	pid_t supervisor;  /* the keeper, if it is arenad's own */
	int supervisor_fd; /* its pidfd */
	bool last_killed;
	uint64_t watchdog_usec;
	size_t names; /* bytes that the names of all that is kept take, each with a separator */
	char *program;
} keeper = {.fd = -1, .supervisor_fd = -1};

/* ---- names ------------------------------------------------------------------------- */

static void set_name(struct kept *k, const char *name)
{
	size_t len = strnlen(name, STORE_NAME_MAX - 1), digits = 0;

	memcpy(k->name, name, len);
	k->name[len] = '\0';
	k->prefix_len = (uint32_t)len;
	k->number = 0;
	while (digits < len && k->name[len - 1 - digits] >= '0' && k->name[len - 1 - digits] <= '9')
		digits++;
	/* One number has one name: no leading zero, nothing too large. */
	if (digits && digits < 11 && len > digits && k->name[len - digits - 1] == '-' &&
	    k->name[len - digits] != '0') {
		uint64_t n = strtoull(k->name + len - digits, NULL, 10);

		if (n <= UINT32_MAX) {
			k->number = (uint32_t)n;
			k->prefix_len = (uint32_t)(len - digits - 1);
		}
	}
}

/* Equal means the same name. */
static int compare(const struct kept *a, const struct kept *b)
{
	int r = memcmp(a->name, b->name, MIN(a->prefix_len, b->prefix_len));

	if (!r && a->prefix_len != b->prefix_len)
		r = a->prefix_len < b->prefix_len ? -1 : 1;
	if (!r && a->number != b->number)
		r = a->number < b->number ? -1 : 1;
	return r;
}

static int compare_kept(const void *a, const void *b)
{
	return compare(a, b);
}

/* ---- shelves ----------------------------------------------------------------------- */

static int shelf_add(struct shelf *s, const char *name, int fd)
{
	if (s->nr == s->capacity) {
		unsigned n = s->capacity ? s->capacity * 2 : 64;
		struct kept *grown = mem_grow(s->kept, s->capacity, n, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		s->kept = grown;
		s->capacity = n;
	}
	set_name(&s->kept[s->nr], name);
	s->kept[s->nr++].fd = fd;
	return 0;
}

static void shelf_clear(struct shelf *s)
{
	for (unsigned i = 0; i < s->nr; i++)
		if (s->kept[i].fd >= 0)
			close(s->kept[i].fd);
	free(s->kept);
	*s = (struct shelf){0};
}

static void sort_handed(void)
{
	if (handed.nr)
		qsort(handed.kept, handed.nr, sizeof(*handed.kept), compare_kept);
}

/* The first of `handed` that is not below the key. */
static unsigned lower_bound(const struct kept *key)
{
	unsigned low = 0, high = handed.nr;

	while (low < high) {
		unsigned middle = low + (high - low) / 2;

		if (compare(&handed.kept[middle], key) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* One of that name that nobody has taken, or NULL. */
static struct kept *find_handed(const char *name)
{
	struct kept key;

	set_name(&key, name);
	for (unsigned i = lower_bound(&key); i < handed.nr; i++) {
		if (compare(&handed.kept[i], &key) != 0)
			break;
		if (handed.kept[i].fd >= 0)
			return &handed.kept[i];
	}
	return NULL;
}

/* ---- talking to the keeper --------------------------------------------------------- */

static int connect_keeper(const char *path)
{
	_cleanup_(closep) int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	size_t len = strlen(path);

	if (fd < 0)
		return -errno;
	if (len < 2 || len >= sizeof(sun.sun_path) || (path[0] != '/' && path[0] != '@'))
		return -EINVAL;
	memcpy(sun.sun_path, path, len);
	if (path[0] == '@')
		sun.sun_path[0] = '\0';
	if (connect(fd, (const void *)&sun,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0)
		return -errno;
	keeper.fd = TAKE_FD(fd);
	return 0;
}

static void lose_keeper(const char *who)
{
	if (keeper.fd < 0)
		return;
	close(TAKE_FD(keeper.fd));
	log_err("%s has died: this worker serves on, but after its own death nobody will start "
		"another, and what clients have will be lost; stop arenad and start it anew when "
		"that can be borne",
		who);
}

/* One message, with a descriptor or -1. A keeper that is gone keeps nothing and is no error. */
static int tell(const char *text, int fd)
{
	struct iovec iov = {.iov_base = (void *)(uintptr_t)text, .iov_len = strlen(text)};
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (fd >= 0) {
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control.space);
		control.header = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
						  .cmsg_type = SCM_RIGHTS,
						  .cmsg_len = CMSG_LEN(sizeof(int))};
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(int));
	}
	do
		n = sendmsg(keeper.fd, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return 0;
	if (errno != ECONNREFUSED && errno != ECONNRESET && errno != EPIPE && errno != ENOTCONN)
		return -errno;
	lose_keeper("what kept this worker's descriptors");
	return 0;
}

/* ---- start ------------------------------------------------------------------------- */

static void read_program(void)
{
	const char *given = keeper.supervisor ? getenv("X_ARENAD_PROGRAM") : NULL;
	char path[4096] = "";
	ssize_t n = given ? 0 : readlink("/proc/self/exe", path, sizeof(path) - 1);
	size_t len, tail = strlen(DELETED);

	if (!given)
		given = path;
	len = given == path && n > 0 ? (size_t)n : strlen(given);
	if (len > tail && strcmp(given + len - tail, DELETED) == 0)
		len -= tail;
	keeper.program = strndup(given, len);
}

/* A number in the environment that is below 2^31; -1: there is none. */
static long environment_number(const char *name)
{
	const char *text = getenv(name);
	uint64_t n;

	return text && !parse_u64(text, &n) && n <= INT32_MAX ? (long)n : -1;
}

/* Is it for us? A process that knows nothing of it may have passed it on. */
static bool is_ours(const char *pid_variable)
{
	return environment_number(pid_variable) == getpid();
}

static void read_supervisor(void)
{
	long pid = environment_number("X_ARENAD_SUPERVISOR");

	if (pid <= 0)
		return;
	keeper.last_killed = getenv("X_ARENAD_KILLED");
	keeper.supervisor = (pid_t)pid;
	keeper.supervisor_fd = os_pidfd_open((pid_t)pid);
	/* Asked last: now the socket and the pidfd are its, whatever its process id comes to be. */
	if (keeper.supervisor_fd < 0 || getppid() != keeper.supervisor) {
		if (keeper.supervisor_fd >= 0)
			close(TAKE_FD(keeper.supervisor_fd));
		keeper.supervisor = 0;
		lose_keeper("the supervisor");
	}
}

static void read_watchdog(void)
{
	const char *text = getenv("WATCHDOG_USEC");

	if (!text || parse_u64(text, &keeper.watchdog_usec) ||
	    (getenv("WATCHDOG_PID") && !is_ours("WATCHDOG_PID")))
		keeper.watchdog_usec = 0;
}

/* malloc()ed, or NULL. Names that are too long for a variable come in a file. */
static int read_names(char **out)
{
	_cleanup_(closep) int fd = (int)environment_number("X_ARENAD_FDNAMES");
	const char *variable = getenv("LISTEN_FDNAMES");
	_cleanup_(freep) char *names = NULL;
	struct stat st;

	*out = NULL;
	if (fd < 0) {
		*out = variable ? mem_strdup(variable) : NULL;
		return variable && !*out ? -ENOMEM : 0;
	}
	if (fstat(fd, &st) < 0)
		return -errno;
	names = mem_alloc((size_t)st.st_size + 1);
	if (!names)
		return -ENOMEM;
	if (pread(fd, names, (size_t)st.st_size, 0) != st.st_size)
		return -EIO;
	*out = TAKE_PTR(names);
	return 0;
}

static int read_handed(void)
{
	long n = is_ours("LISTEN_PID") ? environment_number("LISTEN_FDS") : 0;
	_cleanup_(freep) char *names = NULL;
	char *rest;
	int r = read_names(&names);

	rest = names;
	for (int fd = FIRST_FD; fd < FIRST_FD + n && !r; fd++) {
		const char *name = strsep(&rest, ":");

		if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
			return -errno;
		if (!name || !*name)
			name = "unknown";
		r = shelf_add(&handed, name, fd);
		keeper.names += strlen(name) + 1;
	}
	sort_handed();
	return r;
}

static void clear_environment(void)
{
	static const char *const names[] = {
		"NOTIFY_SOCKET",    "WATCHDOG_USEC",   "WATCHDOG_PID",     "LISTEN_PID",
		"LISTEN_FDS",       "LISTEN_FDNAMES",  "X_ARENAD_FDNAMES", "X_ARENAD_SUPERVISOR",
		"X_ARENAD_PROGRAM", "X_ARENAD_KILLED",
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		unsetenv(names[i]);
}

int store_open(void)
{
	const char *socket = getenv("NOTIFY_SOCKET");
	int r;

	if (socket && *socket && (r = connect_keeper(socket)))
		log_warning("nobody keeps descriptors: cannot reach NOTIFY_SOCKET %s: %s", socket,
			    error_text(r));
	read_supervisor();
	read_program();
	read_watchdog();
	r = read_handed();
	clear_environment();
	return r;
}

/* ---- the keeper -------------------------------------------------------------------- */

bool store_kept(void)
{
	return faking || keeper.fd >= 0;
}

pid_t store_supervisor(void)
{
	return keeper.supervisor;
}

bool store_last_was_killed(void)
{
	return keeper.last_killed;
}

int store_supervisor_fd(void)
{
	return keeper.supervisor_fd;
}

void store_supervisor_died(void)
{
	lose_keeper("the supervisor");
	keeper.supervisor = 0;
}

int store_add(const char *name, int fd)
{
	char text[STORE_NAME_MAX + 64];
	size_t names = keeper.names + strlen(name) + 1;
	int r;

	if (faking) {
		int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

		return copy < 0 ? -errno : shelf_add(&fake, name, copy);
	}
	if (!store_kept())
		return 0;
	if (!keeper.supervisor && names > STORE_NAMES_MAX)
		return -ENOSPC;
	snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);
	r = tell(text, fd);
	if (!r)
		keeper.names = names;
	return r;
}

void store_remove(const char *name)
{
	char text[STORE_NAME_MAX + 64];

	if (faking) {
		for (unsigned i = 0; i < fake.nr; i++) {
			if (strcmp(fake.kept[i].name, name) != 0)
				continue;
			close(fake.kept[i].fd);
			fake.kept[i] = fake.kept[--fake.nr];
			break;
		}
	} else if (store_kept()) {
		snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
		tell(text, -1);
		keeper.names -= MIN(keeper.names, strlen(name) + 1);
	}
}

void store_notify(const char *state)
{
	if (keeper.fd >= 0)
		tell(state, -1);
}

uint64_t store_watchdog_usec(void)
{
	return keeper.watchdog_usec;
}

const char *store_program(void)
{
	return keeper.program ? keeper.program : "";
}

int store_set_program(const char *path, int fd)
{
	_cleanup_(freep) char *text = NULL;

	if (!keeper.supervisor || keeper.fd < 0)
		return -EOPNOTSUPP;
	if (asprintf(&text, "X_ARENAD_PROGRAM=%s", path) < 0)
		return -ENOMEM;
	return tell(text, fd);
}

/* ---- what was handed down ---------------------------------------------------------- */

int store_take(const char *name)
{
	struct kept *k = find_handed(name);

	return k ? TAKE_FD(k->fd) : -1;
}

bool store_has(const char *name)
{
	return find_handed(name);
}

int store_take_any(char name[STORE_NAME_MAX])
{
	for (unsigned i = 0; i < handed.nr; i++) {
		struct kept *k = &handed.kept[i];

		if (k->fd < 0)
			continue;
		memcpy(name, k->name, STORE_NAME_MAX);
		return TAKE_FD(k->fd);
	}
	return -1;
}

static bool is_listener(int fd)
{
	socklen_t len = sizeof(int);
	int domain = 0, listens = 0;

	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX &&
	       getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) == 0 && listens;
}

int store_take_listener(char name[STORE_NAME_MAX])
{
	struct kept *found = NULL;

	for (unsigned i = 0; i < handed.nr; i++) {
		struct kept *k = &handed.kept[i];

		if (k->fd < 0 || !is_listener(k->fd))
			continue;
		if (found)
			return -EEXIST;
		found = k;
	}
	if (!found)
		return -1;
	memcpy(name, found->name, STORE_NAME_MAX);
	return TAKE_FD(found->fd);
}

bool store_next(const char *prefix, uint32_t *number)
{
	struct kept key;

	if (*number == UINT32_MAX)
		return false;
	snprintf(key.name, STORE_NAME_MAX, "%s", prefix);
	key.prefix_len = (uint32_t)strlen(key.name);
	key.number = *number + 1;
	for (unsigned i = lower_bound(&key); i < handed.nr; i++) {
		const struct kept *k = &handed.kept[i];

		if (k->prefix_len != key.prefix_len ||
		    memcmp(k->name, key.name, key.prefix_len) != 0)
			break;
		if (k->fd < 0)
			continue;
		*number = k->number;
		return true;
	}
	return false;
}

/* Removing goes by name: of several with one name none is removed while one of them is in use. */
static bool one_is_taken(unsigned i)
{
	for (unsigned k = i; k-- > 0 && compare(&handed.kept[k], &handed.kept[i]) == 0;)
		if (handed.kept[k].fd < 0)
			return true;
	for (unsigned k = i + 1; k < handed.nr; k++) {
		if (compare(&handed.kept[k], &handed.kept[i]) != 0)
			break;
		if (handed.kept[k].fd < 0)
			return true;
	}
	return false;
}

unsigned store_drop_rest(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < handed.nr; i++) {
		if (handed.kept[i].fd < 0)
			continue;
		if (!one_is_taken(i))
			store_remove(handed.kept[i].name);
		n++;
	}
	shelf_clear(&handed);
	return n;
}

/* ---- names with numbers ------------------------------------------------------------ */

static const char *numbered(char name[STORE_NAME_MAX], const char *prefix, uint32_t number)
{
	snprintf(name, STORE_NAME_MAX, "%s-%u", prefix, number);
	return name;
}

int store_add_number(const char *prefix, uint32_t number, int fd)
{
	char name[STORE_NAME_MAX];

	return store_add(numbered(name, prefix, number), fd);
}

void store_remove_number(const char *prefix, uint32_t number)
{
	char name[STORE_NAME_MAX];

	store_remove(numbered(name, prefix, number));
}

int store_take_number(const char *prefix, uint32_t number)
{
	char name[STORE_NAME_MAX];

	return store_take(numbered(name, prefix, number));
}

/* ---- the fake keeper --------------------------------------------------------------- */

void store_fake(void)
{
	faking = true;
}

void store_fake_restart(void)
{
	shelf_clear(&handed);
	for (unsigned i = 0; i < fake.nr; i++) {
		int copy = fcntl(fake.kept[i].fd, F_DUPFD_CLOEXEC, 0);

		BUG_ON(copy < 0 || shelf_add(&handed, fake.kept[i].name, copy));
	}
	sort_handed();
}

unsigned store_fake_count(void)
{
	return fake.nr;
}

void store_fake_end(void)
{
	shelf_clear(&handed);
	shelf_clear(&fake);
	faking = false;
}
