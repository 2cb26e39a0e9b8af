/* SPDX-License-Identifier: MIT */
/* The worker's side of the descriptor store: what it finds by name and number, what it tells. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "daemon/store/store.h"

static int file_of(const char *text)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	return fd;
}

static void keep(const char *name)
{
	int fd = file_of(name);

	assert_int_equal(store_add(name, fd), 0);
	close(fd);
}

/* Takes it, and it is the one that was kept under that name. */
static void expect_taken(const char *name)
{
	int fd = store_take(name);
	char text[STORE_NAME_MAX] = "";

	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_true(pread(fd, text, sizeof(text) - 1, 0) > 0);
	assert_string_equal(text, name);
	close(fd);
}

/* ---- names --------------------------------------------------------------------------------- */

static void test_names_and_numbers(void **state)
{
	static const char *const names[] = {
		"mm-10",     "mm-9",       "listen",        "mm",
		"mm-2",      "mm-1x",      "mm-010",        "mm-4294967295",
		"mmm-1",     "m-1",        "mm-4294967296", "mm-2-3",
		"client-12", "channel-10", "lock",          "state",
		"-5",        "7",
	};
	static const uint32_t numbers[] = {2, 9, 10, UINT32_MAX};
	uint32_t n = 0;

	(void)state;
	store_fake();
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		keep(names[i]);
	assert_int_equal(store_fake_count(), ARRAY_SIZE(names));
	store_fake_restart();
	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
		assert_true(store_next("mm", &n));
		assert_int_equal(n, numbers[i]);
	}
	assert_false(store_next("mm", &n));
	/* What is taken is not gone through again. */
	expect_taken("mm-9");
	assert_int_equal(store_take("mm-9"), -1);
	assert_int_equal(store_take_number("mm", 9), -1);
	n = 2;
	assert_true(store_next("mm", &n));
	assert_int_equal(n, 10);
	n = 0;
	assert_true(store_next("mm-2", &n));
	assert_int_equal(n, 3);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (strcmp(names[i], "mm-9") == 0)
			continue;
		assert_true(store_has(names[i]));
		if (strcmp(names[i], "state") != 0)
			expect_taken(names[i]);
	}
	assert_int_equal(store_take("nothing"), -1);
	assert_int_equal(store_take("mm-11"), -1);
	/* One is left, and is forgotten by the keeper with this. */
	assert_int_equal(store_drop_rest(), 1);
	assert_int_equal(store_fake_count(), ARRAY_SIZE(names) - 1);
	store_fake_restart();
	assert_false(store_has("state"));
	assert_true(store_has("lock"));
	store_fake_end();
}

/* Thousands, in any order: each is found, none twice. */
static void test_many(void **state)
{
	static const char *const prefixes[] = {"mm", "channel", "client", "pidfd", "doorbell"};
	unsigned n = 600, found = 0;
	int fd = file_of("x");

	(void)state;
	store_fake();
	for (unsigned i = 0; i < n; i++)
		for (size_t k = 0; k < ARRAY_SIZE(prefixes); k++)
			if ((k + i) % 3)
				assert_int_equal(
					store_add_number(prefixes[k], (i * 7919) % n + 1, fd), 0);
	close(fd);
	store_fake_restart();
	for (size_t k = 0; k < ARRAY_SIZE(prefixes); k++) {
		uint32_t number = 0, last = 0;

		while (store_next(prefixes[k], &number)) {
			assert_true(number > last);
			fd = store_take_number(prefixes[k], number);
			assert_true(fd >= 0);
			close(fd);
			last = number;
			found++;
		}
	}
	assert_int_equal(found, store_fake_count());
	assert_int_equal(store_drop_rest(), 0);
	assert_int_equal(store_fake_count(), found);
	store_fake_end();
}

static void test_without_keeper(void **state)
{
	int fd = file_of("x");

	(void)state;
	assert_false(store_kept());
	assert_int_equal(store_add("x", fd), 0);
	store_remove("x");
	store_notify("READY=1");
	assert_int_equal(store_watchdog_usec(), 0);
	assert_int_equal(store_supervisor(), 0);
	assert_int_equal(store_set_program("/bin/true", fd), -EOPNOTSUPP);
	close(fd);
}

/* ---- systemd as the keeper; each in a process of its own ------------------------------------- */

static struct sockaddr_un keeper = {.sun_family = AF_UNIX};
static int keeper_fd;

static int listen_as_keeper(void **state)
{
	(void)state;
	snprintf(keeper.sun_path, sizeof(keeper.sun_path), "/tmp/unit_store_names.%d",
		 (int)getpid());
	keeper_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	return bind(keeper_fd, (void *)&keeper, sizeof(keeper));
}

static int stop_listening(void **state)
{
	(void)state;
	close(keeper_fd);
	return unlink(keeper.sun_path);
}

static void expect_message(const char *text, bool with_file)
{
	char got[256], control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = {got, sizeof(got) - 1};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control,
			     .msg_controllen = sizeof(control)};
	struct pollfd p = {.fd = keeper_fd, .events = POLLIN};
	struct cmsghdr *c;
	ssize_t n;

	assert_int_equal(poll(&p, 1, 10000), 1);
	n = recvmsg(keeper_fd, &msg, MSG_CMSG_CLOEXEC);
	assert_true(n > 0);
	got[n] = '\0';
	assert_string_equal(got, text);
	c = CMSG_FIRSTHDR(&msg);
	assert_int_equal(c != NULL, with_file);
	if (c)
		close(*(int *)(void *)CMSG_DATA(c));
}

#define WORKER(cond)                                                               \
	do {                                                                       \
		if (!(cond)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); \
			_exit(1);                                                  \
		}                                                                  \
	} while (0)

static void run_worker(void (*worker)(void))
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		setenv("NOTIFY_SOCKET", keeper.sun_path, 1);
		worker();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void set_number(const char *name, long n)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", n);
	setenv(name, text, 1);
}

static void tell_all(void)
{
	int fd = memfd_create("x", MFD_CLOEXEC);

	set_number("WATCHDOG_PID", getpid());
	set_number("WATCHDOG_USEC", 1000000);
	WORKER(store_open() == 0);
	WORKER(store_kept());
	WORKER(store_supervisor() == 0 && store_supervisor_fd() == -1);
	WORKER(store_watchdog_usec() == 1000000);
	WORKER(!getenv("NOTIFY_SOCKET") && !getenv("WATCHDOG_USEC"));
	WORKER(store_add("lock", fd) == 0);
	WORKER(store_add_number("mm", 7, fd) == 0);
	store_remove_number("mm", 7);
	store_notify("READY=1");
	/* It starts what its unit says. */
	WORKER(store_set_program("/bin/true", fd) == -EOPNOTSUPP);
}

static void test_told(void **state)
{
	(void)state;
	run_worker(tell_all);
	expect_message("FDSTORE=1\nFDNAME=lock\nFDPOLL=0", true);
	expect_message("FDSTORE=1\nFDNAME=mm-7\nFDPOLL=0", true);
	expect_message("FDSTOREREMOVE=1\nFDNAME=mm-7", false);
	expect_message("READY=1", false);
}

static void take_handed(void)
{
	char name[STORE_NAME_MAX];
	int pair[2];

	WORKER(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
	for (int fd = 3; fd < 7; fd++)
		WORKER(dup2(fd == 5 ? keeper_fd : pair[0], fd) == fd);
	set_number("LISTEN_PID", getpid());
	set_number("LISTEN_FDS", 4);
	setenv("LISTEN_FDNAMES", "lock:mm-3::state", 1);
	WORKER(store_open() == 0);
	WORKER(!getenv("LISTEN_FDS") && !getenv("LISTEN_FDNAMES"));
	WORKER(store_take("lock") == 3);
	WORKER(store_take_number("mm", 3) == 4);
	WORKER(fcntl(4, F_GETFD) == FD_CLOEXEC);
	/* None of them listens. */
	WORKER(store_take_listener(name) == -1);
	WORKER(store_take("state") == 6);
	WORKER(store_take_any(name) == 5 && strcmp(name, "unknown") == 0);
	WORKER(store_take_any(name) == -1);
}

/* They were somebody else's: a process that knew nothing of them started this one. */
static void leave_others(void)
{
	set_number("LISTEN_PID", getppid());
	set_number("LISTEN_FDS", 2);
	set_number("WATCHDOG_PID", getppid());
	set_number("WATCHDOG_USEC", 1000);
	WORKER(store_open() == 0);
	WORKER(!store_has("unknown"));
	WORKER(store_watchdog_usec() == 0);
}

static void find_listener(void)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX, .sun_path = "\0unit_store_names"};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	char name[STORE_NAME_MAX];

	WORKER(bind(fd, (void *)&sun, sizeof(sun)) == 0 && listen(fd, 1) == 0);
	WORKER(dup2(keeper_fd, 3) == 3 && dup2(fd, 4) == 4);
	set_number("LISTEN_PID", getpid());
	set_number("LISTEN_FDS", 2);
	setenv("LISTEN_FDNAMES", "state:arenad.socket", 1);
	WORKER(store_open() == 0);
	WORKER(store_take_listener(name) == 4 && strcmp(name, "arenad.socket") == 0);
	WORKER(store_take_listener(name) == -1);
	WORKER(store_take("state") == 3);
}

static void find_listeners(void)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX, .sun_path = "\0unit_store_names"};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	char name[STORE_NAME_MAX];

	WORKER(bind(fd, (void *)&sun, sizeof(sun)) == 0 && listen(fd, 1) == 0);
	WORKER(dup2(fd, 3) == 3 && dup2(fd, 4) == 4);
	set_number("LISTEN_PID", getpid());
	set_number("LISTEN_FDS", 2);
	WORKER(store_open() == 0);
	WORKER(store_take_listener(name) == -EEXIST);
}

static void test_handed(void **state)
{
	(void)state;
	run_worker(take_handed);
	run_worker(leave_others);
	run_worker(find_listener);
	run_worker(find_listeners);
}

static void read_all(void)
{
	char text[256];

	while (recv(keeper_fd, text, sizeof(text), 0) > 0 && memcmp(text, "STATUS", 6) != 0)
		;
}

/* As many names as fit into a variable, and none more: the rest would be lost at the next start. */
static void fill_names(void)
{
	int fd = memfd_create("x", MFD_CLOEXEC), r = 0;
	char name[STORE_NAME_MAX] = "";
	size_t bytes = 0;
	unsigned n = 0;

	memset(name, 'n', sizeof(name) - 8);
	WORKER(store_open() == 0);
	while (!(r = store_add_number(name, ++n, fd)))
		bytes += sizeof(name) - 8 + 1 + (size_t)snprintf(NULL, 0, "-%u", n);
	WORKER(r == -ENOSPC);
	WORKER(bytes <= STORE_NAMES_MAX && bytes > STORE_NAMES_MAX - 100);
	store_remove_number(name, 1);
	WORKER(store_add_number(name, 1, fd) == 0);
	WORKER(store_add_number(name, 2, fd) == -ENOSPC);
	store_notify("STATUS=full");
}

static void test_names_limit(void **state)
{
	pid_t pid;

	(void)state;
	/* The keeper reads beside it. */
	pid = fork();
	if (!pid) {
		read_all();
		_exit(0);
	}
	run_worker(fill_names);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void lose_keeper(int gate)
{
	int fd = memfd_create("x", MFD_CLOEXEC);
	char c;

	close(keeper_fd);
	setenv("NOTIFY_SOCKET", keeper.sun_path, 1);
	WORKER(store_open() == 0 && store_kept());
	store_notify("READY=1");
	WORKER(read(gate, &c, 1) == 0);
	WORKER(store_add("x", fd) == 0);
	WORKER(!store_kept());
	WORKER(store_add("y", fd) == 0);
	_exit(0);
}

/* A keeper that is gone is no error, but is not taken for one either. */
static void test_keeper_gone(void **state)
{
	int status, gate[2];
	pid_t pid;

	assert_int_equal(pipe(gate), 0);
	pid = fork();
	if (!pid) {
		close(gate[1]);
		lose_keeper(gate[0]);
	}
	expect_message("READY=1", false);
	stop_listening(state);
	/* Another one at the same address is not the one that was trusted. */
	listen_as_keeper(state);
	close(gate[0]);
	close(gate[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(recv(keeper_fd, &status, sizeof(status), MSG_DONTWAIT), -1);
}

static void find_no_keeper(void)
{
	setenv("NOTIFY_SOCKET", "/nonexistent/socket", 1);
	WORKER(store_open() == 0);
	WORKER(!store_kept());
}

static void test_keeper_never_there(void **state)
{
	(void)state;
	run_worker(find_no_keeper);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names_and_numbers),
		cmocka_unit_test(test_many),
		cmocka_unit_test(test_without_keeper),
		cmocka_unit_test_setup_teardown(test_told, listen_as_keeper, stop_listening),
		cmocka_unit_test_setup_teardown(test_handed, listen_as_keeper, stop_listening),
		cmocka_unit_test_setup_teardown(test_names_limit, listen_as_keeper, stop_listening),
		cmocka_unit_test_setup_teardown(test_keeper_gone, listen_as_keeper, stop_listening),
		cmocka_unit_test(test_keeper_never_there),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
