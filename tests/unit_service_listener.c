/* SPDX-License-Identifier: MIT */
/* The socket in the file system: one daemon a path, dead ones replaced, others left alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "daemon/service/listener.h"

static char dir[] = "/tmp/unit_service_listener.XXXXXX";
static char path[128], lock_path[136], err[512];

static int try_open(struct listener *l, const char *at)
{
	struct listener_params params = {.path = at, .mode = 0666, .directory_mode = 0755};

	err[0] = '\0';
	return listener_open(l, &params, err, sizeof(err));
}

static int try_connect(const char *at, int type)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type, 0), r;

	assert_true(fd >= 0);
	strcpy(sun.sun_path, at);
	r = connect(fd, (struct sockaddr *)&sun, sizeof(sun)) < 0 ? -errno : 0;
	close(fd);
	return r;
}

static int serve_at(const char *at, int type)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type, 0);

	assert_true(fd >= 0);
	strcpy(sun.sun_path, at);
	assert_int_equal(bind(fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
	assert_int_equal(listen(fd, 1), 0);
	return fd;
}

static void test_listens(void **state)
{
	struct listener l;
	struct stat st;

	(void)state;
	assert_int_equal(try_open(&l, path), 0);
	/* Claimed, but nobody can find it before it can answer. */
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(listener_start(&l, err, sizeof(err)), 0);
	assert_int_equal(try_connect(path, SOCK_SEQPACKET), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0666);
	listener_close(&l);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(access(lock_path, F_OK), -1);
}

static void test_second_refused(void **state)
{
	struct listener first, second;
	char pid[32];

	(void)state;
	snprintf(pid, sizeof(pid), "process %ld ", (long)getpid());
	assert_int_equal(try_open(&first, path), 0);
	/* Before it listens, and after. */
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(try_open(&second, path), ARENA_E_BUSY);
		assert_non_null(strstr(err, path));
		assert_non_null(strstr(err, pid));
		assert_null(strchr(err, '\n'));
		if (!i)
			assert_int_equal(listener_start(&first, err, sizeof(err)), 0);
	}
	assert_int_equal(try_connect(path, SOCK_SEQPACKET), 0);
	listener_close(&first);
	assert_int_equal(try_open(&second, path), 0);
	listener_close(&second);
}

/* A server that takes no lock is one all the same, of whatever type. */
static void test_foreign_server(void **state)
{
	static const int types[] = {SOCK_SEQPACKET, SOCK_STREAM};

	(void)state;
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		int fd = serve_at(path, types[i]);
		struct listener l;

		assert_int_equal(try_open(&l, path), ARENA_E_BUSY);
		assert_non_null(strstr(err, path));
		assert_int_equal(try_connect(path, types[i]), 0);
		assert_int_equal(access(lock_path, F_OK), -1);
		close(fd);
		unlink(path);
	}
}

static void test_stale_replaced(void **state)
{
	struct listener l;
	int fd;

	(void)state;
	close(serve_at(path, SOCK_SEQPACKET));
	fd = open(lock_path, O_WRONLY | O_CREAT, 0600);
	assert_int_equal(write(fd, "1\n", 2), 2);
	close(fd);
	assert_int_equal(try_connect(path, SOCK_SEQPACKET), -ECONNREFUSED);
	assert_int_equal(try_open(&l, path), 0);
	assert_int_equal(listener_start(&l, err, sizeof(err)), 0);
	assert_int_equal(try_connect(path, SOCK_SEQPACKET), 0);
	listener_close(&l);
}

static void test_not_a_socket(void **state)
{
	struct listener l;
	int fd = open(path, O_WRONLY | O_CREAT, 0600);

	(void)state;
	close(fd);
	assert_int_equal(try_open(&l, path), ARENA_E_EXISTS);
	assert_non_null(strstr(err, path));
	assert_int_equal(unlink(path), 0);
	/* Nor does a lock by way of a link write to what it leads to. */
	assert_int_equal(symlink("/dev/null", lock_path), 0);
	assert_int_equal(try_open(&l, path), -ELOOP);
	unlink(lock_path);
}

static void test_directories(void **state)
{
	char at[160], parent[140];
	struct listener_params params = {
		.path = at, .mode = 0600, .directory_mode = 0700, .own_directory = true};
	struct listener l;
	struct stat st;

	(void)state;
	snprintf(parent, sizeof(parent), "%s/sub", dir);
	snprintf(at, sizeof(at), "%s/socket", parent);
	assert_int_equal(listener_open(&l, &params, err, sizeof(err)), 0);
	assert_int_equal(stat(parent, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	listener_close(&l);
	/* One that others may write to, or that is a link, is not ours. */
	assert_int_equal(chmod(parent, 0777), 0);
	assert_int_equal(listener_open(&l, &params, err, sizeof(err)), ARENA_E_ACCESS);
	assert_non_null(strstr(err, parent));
	assert_int_equal(rmdir(parent), 0);
	assert_int_equal(symlink("/tmp", parent), 0);
	assert_int_equal(listener_open(&l, &params, err, sizeof(err)), ARENA_E_ACCESS);
	assert_int_equal(unlink(parent), 0);
	snprintf(at, sizeof(at), "%s/a/b/socket", dir);
	assert_int_equal(listener_open(&l, &params, err, sizeof(err)), -ENOENT);
}

static void test_long_path(void **state)
{
	char at[200];
	struct listener l;

	(void)state;
	memset(at, 'a', sizeof(at));
	at[104] = '\0';
	assert_int_equal(try_open(&l, at), ARENA_E_NAME_TOO_LONG);
	assert_int_equal(try_open(&l, ""), ARENA_E_NAME_TOO_LONG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_listens),        cmocka_unit_test(test_second_refused),
		cmocka_unit_test(test_foreign_server), cmocka_unit_test(test_stale_replaced),
		cmocka_unit_test(test_not_a_socket),   cmocka_unit_test(test_directories),
		cmocka_unit_test(test_long_path),
	};
	int failed;

	if (!mkdtemp(dir))
		return 1;
	snprintf(path, sizeof(path), "%s/socket", dir);
	snprintf(lock_path, sizeof(lock_path), "%s.lock", path);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	rmdir(dir);
	return failed;
}
