/* SPDX-License-Identifier: MIT */
/*
 * supervisor.c - one worker at a time, and what its end means.
 *
 *	how it ended                                what follows
 *	exit 0                                      the supervisor ends with 0
 *	exit 75 after READY                         the next worker, at once
 *	exit N, and no worker was ever READY        the supervisor ends with N: it has said why
 *	SIGKILL that we did not send                the next, at once; before READY after a moment
 *	crash, exit N or hang later than 1 s        the next, at once
 *	after READY
 *	the same before that: an early death        the next, after 1, 2, 4, ... ms up to 1 s; after
 *	                                            the fifth in a row we give up
 *
 * Giving up: the descriptors stay open in this process, so that somebody can look at what the
 * workers died of, the other ends of all sockets are hung up on, and SIGTERM ends it with 1.
 *
 * A worker is asked to stop by the signal we got. If somebody kills it at that, another one is
 * started with the signal already pending, so that the stop is a clean one nevertheless.
 *
 * Messages are read before a death is looked at, all of them: a worker that dies right after it has
 * had a descriptor kept, or after it changed its mind, is followed by one that knows.
 */
#include "daemon/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

#define EARLY_NS NSEC_PER_SEC   /* a death so soon after READY is an early one */
#define EARLY_DEATHS 5u         /* so many in a row, and we give up */
#define DELAY_MIN NSEC_PER_MSEC /* before the next, doubling with each early death */
#define DELAY_MAX NSEC_PER_SEC
#define KILLED_DELAY_MAX (8 * NSEC_PER_MSEC)
#define START_LIMIT (90 * NSEC_PER_SEC) /* to READY, where there is a watchdog */
#define STOP_LIMIT (90 * NSEC_PER_SEC)  /* from STOPPING to the end */
#define ABORT_LIMIT NSEC_PER_SEC        /* from SIGABRT to SIGKILL */
#define LATE NSEC_PER_SEC               /* when we come too late ourselves to judge */

#define MESSAGE_MAX 8192
#define MESSAGE_FDS 253 /* the kernel's limit */

struct supervisor {
	char **argv;
	uint64_t watchdog; /* ns; 0: none */
	sigset_t signals;
	int notify_fd, signal_fd;
	char notify_name[16]; /* as NOTIFY_SOCKET */
	struct shelf shelf;
	/* What is started: a descriptor, for the file may have been replaced; and what it is called. */
	struct program {
		int fd;
		char path[4096];
	} program, next,
		fallback; /* fd -1: none; there is a fallback until the program was READY */

	pid_t worker;         /* 0: none */
	bool ready, stopping; /* it said so */
	bool hung;            /* we are killing it */
	bool last_killed;     /* the last one died of a SIGKILL that was not ours */
	uint64_t ready_at;
	uint64_t deadline; /* it hangs then; 0: never */

	bool ever_ready;
	bool stop_asked;
	bool gave_up;
	unsigned early,
		killed; /* deaths in a row that were early, and that were SIGKILLs before READY */
	uint64_t start_at; /* when the next one starts; 0: there is one, or will be none */
	bool ended;
	int status;
};

static void end(struct supervisor *s, int status)
{
	s->ended = true;
	s->status = status;
}

/* ---- starting a worker ----------------------------------------------------------- */

/* Does not return. argv[1] is for those who look at the list of processes. */
static void exec_worker(struct supervisor *s)
{
	unsigned n = 0;
	char **argv, text[32];
	int fd, r;

	/* What the worker must hear stays pending until it can; the rest is as ever. */
	sigdelset(&s->signals, SIGCHLD);
	sigprocmask(SIG_SETMASK, &s->signals, NULL);
	while (s->argv[n])
		n++;
	argv = calloc(n + 2, sizeof(*argv));
	fd = fcntl(s->program.fd, F_DUPFD_CLOEXEC, (int)s->shelf.nr + 4);
	if (!argv || fd < 0)
		_exit(EXIT_FAILURE);
	argv[0] = s->argv[0];
	argv[1] = (char *)"--no-supervisor";
	memcpy(argv + 2, s->argv + 1, (n - 1) * sizeof(*argv));
	snprintf(text, sizeof(text), "%d", (int)getppid());
	setenv("X_ARENAD_SUPERVISOR", text, 1);
	setenv("X_ARENAD_PROGRAM", s->program.path, 1);
	if (s->last_killed)
		setenv("X_ARENAD_KILLED", "1", 1);
	setenv("NOTIFY_SOCKET", s->notify_name, 1);
	if (s->watchdog) {
		snprintf(text, sizeof(text), "%llu", (unsigned long long)(s->watchdog / 1000));
		setenv("WATCHDOG_USEC", text, 1);
		snprintf(text, sizeof(text), "%d", (int)getpid());
		setenv("WATCHDOG_PID", text, 1);
	}
	r = shelf_hand_down(&s->shelf);
	if (!r) {
		execveat(fd, "", argv, environ, AT_EMPTY_PATH);
		r = -errno;
	}
	log_err("cannot start %s: %s", s->program.path, error_text(r));
	_exit(EXIT_FAILURE);
}

static void close_program(struct program *p)
{
	if (p->fd >= 0)
		close(TAKE_FD(p->fd));
}

/* Start this one from the next time on; the old one again if it does not get READY. */
static void set_program(struct supervisor *s, const char *path, int fd)
{
	close_program(&s->next);
	s->next.fd = fd;
	snprintf(s->next.path, sizeof(s->next.path), "%s", path);
}

static void use_next_program(struct supervisor *s)
{
	if (s->next.fd < 0)
		return;
	if (s->fallback.fd < 0)
		s->fallback = s->program;
	else
		close_program(&s->program);
	s->program = s->next;
	s->next.fd = -1;
}

static void start_worker(struct supervisor *s)
{
	pid_t pid;

	use_next_program(s);
	pid = fork();
	if (pid < 0) {
		log_err("cannot start a worker: %s", error_text(-errno));
		s->start_at = clock_now() + DELAY_MAX;
		return;
	}
	if (pid == 0)
		exec_worker(s);
	/* Fault points are for the first worker: the next must show what becomes of what it did. */
	if (!getenv("ARENA_FAULTPOINTS_KEEP"))
		unsetenv("ARENA_FAULTPOINTS");
	s->start_at = 0;
	s->worker = pid;
	s->ready = s->stopping = s->hung = false;
	s->deadline = s->watchdog ? clock_now() + START_LIMIT : 0;
	if (s->stop_asked)
		kill(pid, SIGTERM);
}

static void fall_back(struct supervisor *s)
{
	if (s->fallback.fd < 0)
		return;
	log_err("%s does not get ready; going on with %s", s->program.path, s->fallback.path);
	close_program(&s->program);
	s->program = s->fallback;
	s->fallback.fd = -1;
	s->early = 1;
}

/* ---- messages -------------------------------------------------------------------- */

/* What is said in one message. The descriptors that came with it are closed unless taken. */
struct message {
	bool store, remove;
	const char *name, *program;
	int fds[MESSAGE_FDS];
	unsigned nr_fds;
};

static void became_ready(struct supervisor *s)
{
	if (s->ready)
		return;
	s->ready = s->ever_ready = true;
	s->ready_at = clock_now();
	s->killed = 0;
	close_program(&s->fallback);
	if (!s->hung)
		s->deadline = s->watchdog ? s->ready_at + s->watchdog : 0;
}

static void read_state(struct supervisor *s, const char *line)
{
	if (strcmp(line, "READY=1") == 0) {
		became_ready(s);
	} else if (strcmp(line, "STOPPING=1") == 0) {
		s->stopping = s->stop_asked = true;
		if (!s->hung)
			s->deadline = clock_now() + STOP_LIMIT;
	} else if (strcmp(line, "WATCHDOG=1") == 0) {
		if (s->watchdog && s->ready && !s->stopping && !s->hung)
			s->deadline = clock_now() + s->watchdog;
	} else if (strncmp(line, "STATUS=", 7) != 0) {
		return;
	}
	/* To whoever keeps us. */
	store_notify(line);
}

/* The value if the line is "KEY=value" with this key, which ends in '='. */
static const char *value_of(const char *line, const char *key)
{
	size_t n = strlen(key);

	return strncmp(line, key, n) == 0 ? line + n : NULL;
}

static void read_line(struct supervisor *s, const char *line, struct message *m)
{
	const char *value;

	if ((value = value_of(line, "FDNAME="))) {
		if (*value && strlen(value) < STORE_NAME_MAX && !strchr(value, ':'))
			m->name = value;
	} else if ((value = value_of(line, "X_ARENAD_PROGRAM="))) {
		m->program = value;
	} else if (strcmp(line, "FDSTORE=1") == 0) {
		m->store = true;
	} else if (strcmp(line, "FDSTOREREMOVE=1") == 0) {
		m->remove = true;
	} else {
		read_state(s, line);
	}
}

static void read_message(struct supervisor *s, char *text, struct message *m)
{
	char *line;

	m->name = "stored"; /* systemd's for what has none */
	while ((line = strsep(&text, "\n")))
		read_line(s, line, m);
	if (m->remove) {
		shelf_remove(&s->shelf, m->name);
	} else if (m->store) {
		while (m->nr_fds)
			shelf_add(&s->shelf, m->name, m->fds[--m->nr_fds]);
	} else if (m->program && m->nr_fds == 1) {
		set_program(s, m->program, m->fds[--m->nr_fds]);
	}
}

/* The sender, whose descriptors go to `m`; 0: it is not known. */
static pid_t read_control(struct msghdr *msg, struct message *m)
{
	pid_t sender = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_RIGHTS) {
			m->nr_fds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(m->fds, CMSG_DATA(c), m->nr_fds * sizeof(int));
		} else if (c->cmsg_type == SCM_CREDENTIALS) {
			struct ucred cred;

			memcpy(&cred, CMSG_DATA(c), sizeof(cred));
			sender = cred.pid;
		}
	}
	return sender;
}

/* False: there was none. */
static bool receive(struct supervisor *s)
{
	char text[MESSAGE_MAX];
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(struct ucred)) +
			   CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
	} control;
	struct iovec iov = {.iov_base = text, .iov_len = sizeof(text) - 1};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};
	struct message m = {.nr_fds = 0};
	ssize_t n = recvmsg(s->notify_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	pid_t sender;

	if (n < 0)
		return errno == EINTR;
	text[n] = '\0';
	sender = read_control(&msg, &m);
	if (!s->worker || sender != s->worker)
		log_debug("a message from process %d, which is not the worker", (int)sender);
	else if (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		log_err("a message of the worker could not be read whole; descriptors are "
			"short, or it is too long");
	else
		read_message(s, text, &m);
	while (m.nr_fds)
		close(m.fds[--m.nr_fds]);
	return true;
}

static void drain(struct supervisor *s)
{
	while (receive(s))
		;
}

/* ---- the end of a worker --------------------------------------------------------- */

static void give_up(struct supervisor *s, const char *how)
{
	s->gave_up = true;
	log_err("worker %s, the last of %u that died early in a row; giving up: the %u descriptors "
		"that were kept stay open for inspection in /proc/%d/fd until SIGTERM",
		how, s->early, s->shelf.nr, (int)getpid());
	store_notify("STATUS=Gave up: workers die early; what they had kept is still here");
	shelf_hang_up(&s->shelf);
}

static uint64_t doubled(unsigned times, uint64_t max)
{
	return MIN(DELAY_MIN << MIN(times, 20u), max);
}

static void early_death(struct supervisor *s, const char *how)
{
	s->early++;
	if (!s->ready)
		fall_back(s);
	if (s->stop_asked || (s->early >= EARLY_DEATHS && !s->ever_ready)) {
		log_err("worker %s; not starting another", how);
		end(s, EXIT_FAILURE);
	} else if (s->early >= EARLY_DEATHS) {
		give_up(s, how);
	} else {
		uint64_t delay = doubled(s->early - 1, DELAY_MAX);

		log_err("worker %s; starting the next in %llu ms", how,
			(unsigned long long)(delay / NSEC_PER_MSEC));
		s->start_at = clock_now() + delay;
	}
}

static void killed(struct supervisor *s, const char *how)
{
	uint64_t now = clock_now();

	log_warning("worker %s; starting the next", how);
	s->start_at = s->ready ? now : now + doubled(s->killed++, KILLED_DELAY_MAX);
}

static void died(struct supervisor *s, const siginfo_t *info)
{
	uint64_t now = clock_now();
	bool exited = info->si_code == CLD_EXITED;
	bool lived = s->ready && now - s->ready_at >= EARLY_NS;
	const char *name = exited ? NULL : sigabbrev_np(info->si_status);
	char how[96];

	if (exited)
		snprintf(how, sizeof(how), "%d exited with status %d", (int)s->worker,
			 info->si_status);
	else
		snprintf(how, sizeof(how), "%d %s signal %d (SIG%s)", (int)s->worker,
			 s->hung ? "hung and was ended by" : "was killed by", info->si_status,
			 name ? name : "?");
	s->worker = 0;
	s->deadline = 0;
	s->last_killed = !exited && info->si_status == SIGKILL && !s->hung;
	if (lived)
		s->early = 0;
	if (exited && info->si_status == EXIT_SUCCESS) {
		end(s, EXIT_SUCCESS);
	} else if (exited && info->si_status == EXIT_RESTART && s->ready) {
		s->start_at = now;
	} else if (exited && !s->ever_ready) {
		end(s, info->si_status);
	} else if (s->last_killed) {
		killed(s, how);
	} else if (lived && !s->stop_asked) {
		log_err("worker %s; starting the next", how);
		s->start_at = now;
	} else {
		early_death(s, how);
	}
}

static void reap(struct supervisor *s)
{
	siginfo_t info = {0};

	if (!s->worker)
		return;
	if (waitid(P_PID, (id_t)s->worker, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || !info.si_pid)
		return;
	/* It can send no more, and its process id is nobody else's before it is waited for. */
	drain(s);
	waitid(P_PID, (id_t)s->worker, &info, WEXITED);
	died(s, &info);
}

/* ---- signals and time ------------------------------------------------------------ */

static void asked_to_stop(struct supervisor *s, int signo)
{
	s->stop_asked = true;
	if (s->worker)
		kill(s->worker, signo);
	else if (s->gave_up)
		end(s, EXIT_FAILURE);
	else if (!s->ever_ready)
		end(s, EXIT_SUCCESS);
	else /* one that stops cleanly */
		s->start_at = clock_now();
}

static void read_signals(struct supervisor *s)
{
	struct signalfd_siginfo info;

	while (read(s->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
			asked_to_stop(s, (int)info.ssi_signo);
		else if (info.ssi_signo == SIGHUP && s->worker)
			kill(s->worker, SIGHUP);
	}
}

/* A stopped process does not hear SIGABRT, and a dump of memory may take too long. */
static void look_at_time(struct supervisor *s)
{
	uint64_t now = clock_now();

	if (s->start_at && now >= s->start_at)
		start_worker(s);
	if (!s->deadline || now < s->deadline)
		return;
	if (!s->hung && now - s->deadline > LATE) {
		/* We were stopped as well, or starved: it may be about to speak. */
		s->deadline = now + s->watchdog / 2;
		return;
	}
	if (!s->hung)
		log_err("worker %d hangs: it has not been heard of in time", (int)s->worker);
	kill(s->worker, s->hung ? SIGKILL : SIGABRT);
	s->deadline = now + ABORT_LIMIT;
	s->hung = true;
}

static void await(struct supervisor *s)
{
	struct pollfd p[] = {{.fd = s->notify_fd, .events = POLLIN},
			     {.fd = s->signal_fd, .events = POLLIN}};
	uint64_t next = s->start_at ? s->start_at : s->deadline, now = clock_now();
	uint64_t ns = next > now ? next - now : 0;
	struct timespec timeout = {.tv_sec = (time_t)(ns / NSEC_PER_SEC),
				   .tv_nsec = (long)(ns % NSEC_PER_SEC)};

	ppoll(p, 2, next ? &timeout : NULL, NULL);
}

/* ---- beginning and end ----------------------------------------------------------- */

static int open_notify_socket(struct supervisor *s)
{
	_cleanup_(closep) int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	socklen_t len = sizeof(sun);
	int one = 1;

	/* Bound without a name it gets one that is nobody's, as "\0" and five hex digits. */
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)) < 0 ||
	    bind(fd, (const void *)&sun, sizeof(sa_family_t)) < 0 ||
	    getsockname(fd, (void *)&sun, &len) < 0)
		return -errno;
	snprintf(s->notify_name, sizeof(s->notify_name), "@%.*s",
		 (int)(len - offsetof(struct sockaddr_un, sun_path) - 1), sun.sun_path + 1);
	s->notify_fd = TAKE_FD(fd);
	return 0;
}

static int open_program(struct program *p)
{
	ssize_t n = readlink("/proc/self/exe", p->path, sizeof(p->path) - 1);

	if (n < 0)
		return -errno;
	p->path[n] = '\0';
	p->fd = open("/proc/self/exe", O_PATH | O_CLOEXEC);
	return p->fd < 0 ? -errno : 0;
}

static int open_signals(struct supervisor *s)
{
	sigemptyset(&s->signals);
	sigaddset(&s->signals, SIGCHLD);
	sigaddset(&s->signals, SIGTERM);
	sigaddset(&s->signals, SIGINT);
	sigaddset(&s->signals, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &s->signals, NULL) < 0)
		return -errno;
	s->signal_fd = signalfd(-1, &s->signals, SFD_CLOEXEC | SFD_NONBLOCK);
	return s->signal_fd < 0 ? -errno : 0;
}

/* Where somebody watches over us, what we pass on must be early enough for him, too. */
static uint64_t choose_watchdog(uint64_t usec)
{
	uint64_t above = store_watchdog_usec() / 2;

	return (above && (!usec || usec > above) ? above : usec) * NSEC_PER_USEC;
}

int supervisor_run(const struct supervisor_params *params)
{
	struct supervisor s = {.argv = params->argv,
			       .notify_fd = -1,
			       .signal_fd = -1,
			       .program.fd = -1,
			       .next.fd = -1,
			       .fallback.fd = -1,
			       .status = EXIT_FAILURE};
	int r = open_signals(&s);

	if (!r)
		r = open_notify_socket(&s);
	if (!r)
		r = open_program(&s.program);
	if (!r)
		r = store_open();
	if (r) {
		log_err("cannot supervise: %s", error_text(r));
		s.ended = true;
	}
	s.watchdog = choose_watchdog(params->watchdog_usec);
	shelf_adopt(&s.shelf);
	s.start_at = 1;
	while (!s.ended) {
		look_at_time(&s);
		await(&s);
		drain(&s);
		read_signals(&s);
		reap(&s);
	}
	shelf_clear(&s.shelf);
	close_program(&s.program);
	close_program(&s.next);
	close_program(&s.fallback);
	if (s.notify_fd >= 0)
		close(s.notify_fd);
	if (s.signal_fd >= 0)
		close(s.signal_fd);
	return s.status;
}
