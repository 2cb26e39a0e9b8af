/* SPDX-License-Identifier: MIT */
/*
 * daemon_cli.c - arenad and arenactl as programs: options, configuration, starting twice, stopping
 * under clients, exit statuses and what they print.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "tests/lib_client.h"

/* ---- running programs ---------------------------------------------------------------------- */

struct output {
	int status; /* exit status, or 256 + signal */
	char out[65536], err[65536];
};

static void read_all(int fd, char *buf, size_t size)
{
	size_t len = 0;
	ssize_t n;

	lseek(fd, 0, SEEK_SET);
	while (len + 1 < size && (n = read(fd, buf + len, size - len - 1)) > 0)
		len += (size_t)n;
	buf[len] = '\0';
	close(fd);
}

static int temporary(void)
{
	char path[] = "/tmp/arena-out.XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);

	assert_true(fd >= 0);
	unlink(path);
	return fd;
}

/* Runs bin/argv[0] to its end; it has 20 s. */
static struct output *run(const char *const *argv)
{
	static struct output o;
	int out = temporary(), err = temporary(), status;
	pid_t pid = fork();

	if (pid == 0) {
		dup2(out, 1);
		dup2(err, 2);
		alarm(20);
		execv(test_program(argv[0]), (char *const *)(uintptr_t)argv);
		_exit(127);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	o.status = WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
	read_all(out, o.out, sizeof(o.out));
	read_all(err, o.err, sizeof(o.err));
	return &o;
}

#define RUN(...) run((const char *const[]){__VA_ARGS__, NULL})

static void expect_in(const char *text, const char *part)
{
	if (!strstr(text, part))
		fail_msg("'%s' is not in '%s'", part, text);
}

static unsigned lines_of(const char *text)
{
	unsigned n = 0;

	while ((text = strchr(text, '\n')))
		n++, text++;
	return n;
}

/* ---- options and configuration ------------------------------------------------------------- */

static void test_usage(void **state)
{
	struct output *o;

	(void)state;
	o = RUN("arenad", "--version");
	assert_int_equal(o->status, 0);
	assert_string_equal(o->out, "arenad 0.1.0\n");
	o = RUN("arenad", "--help");
	assert_int_equal(o->status, 0);
	expect_in(o->out, "--arena-size");
	expect_in(o->out, "--no-supervisor");
	assert_int_equal(RUN("arenad", "--no-such-option")->status, 2);
	assert_int_equal(RUN("arenad", "surplus")->status, 2);
	assert_int_equal(RUN("arenad", "--arena-size")->status, 2);
	o = RUN("arenad", "--arena-size", "many");
	assert_int_equal(o->status, 2);
	expect_in(o->err, "arena-size");
	expect_in(o->err, "many");
	expect_in(o->err, "64M to 8T");
	o = RUN("arenad", "--log-level", "loud");
	assert_int_equal(o->status, 2);
	expect_in(o->err, "error, warning, notice, info or debug");
	assert_int_equal(RUN("arenad", "--nodes", "-1")->status, 2);
	assert_int_equal(RUN("arenad", "--nodes", "65")->status, 2);
	assert_int_equal(RUN("arenad", "--mount", "/tmp")->status, 2);
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static void test_bad_configuration(void **state)
{
	struct test_daemon *d = *state;
	static const struct {
		const char *text, *line, *key, *accepted;
	} cases[] = {
		{"nodes = 2\narena-size = huge\n", ":2:", "arena-size", "a size from 64M to 8T"},
		{"\n\nisolation = none\n", ":3:", "isolation", "uid or process"},
		{"hugepages = perhaps", ":1:", "hugepages", "yes or no"},
		{"colour = blue\n", ":1:", "colour", "arena-size"},
		{"[arenad]\nnodes=1\nzone-dma = -4K\n", ":3:", "zone-dma", "a size"},
		{"no equals sign\n", ":1:", "", "key = value"},
		{"[other]\n", ":1:", "", "[arenad]"},
	};
	char path[128];

	snprintf(path, sizeof(path), "%s/arenad.conf", d->dir);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct output *o;

		write_file(path, cases[i].text);
		o = RUN("arenad", "--config", path, "--socket", "/nonexistent/socket");
		assert_int_equal(o->status, 1);
		expect_in(o->err, path);
		expect_in(o->err, cases[i].line);
		expect_in(o->err, cases[i].key);
		expect_in(o->err, cases[i].accepted);
		assert_int_equal(lines_of(o->err), 1);
	}
	unlink(path);
	assert_int_equal(RUN("arenad", "--config", path)->status, 1);
}

/* What the file says is done, and the command line is stronger. */
static void test_configuration(void **state)
{
	struct test_daemon own = {.log_fd = -1, .control.fd = -1};
	char path[128], *memory;

	(void)state;
	daemon_spawn(&own, (const char *const[]){"--version", NULL}); /* makes the directory */
	assert_int_equal(daemon_wait(&own), 0);
	snprintf(path, sizeof(path), "%s/arenad.conf", own.dir);
	write_file(path, "# a comment\n[arenad]\narena-size = 64M\nnodes = 3\nlog-level = debug\n");
	daemon_start(&own, (const char *const[]){"--config", path, "--arena-size", "96M", NULL});
	assert_int_equal(daemon_number(&own, STATUS_PATH, "arena_bytes"), 96 << 20);
	assert_int_equal(daemon_number(&own, STATUS_PATH, "nodes"), 3);
	memory = daemon_read(&own, "sys/devices/system/node/online");
	assert_string_equal(memory, "0-2\n");
	free(memory);
	assert_true(daemon_log_wait(&own, 0, "<7>"));
	daemon_stop(&own);
	unlink(path);
	daemon_destroy(&own);
}

/* ---- one daemon a socket ------------------------------------------------------------------- */

static void test_second_instance(void **state)
{
	struct test_daemon *d = *state;
	struct output *o = RUN("arenad", "--socket", d->socket, "--arena-size", "64M");

	assert_int_equal(o->status, 1);
	expect_in(o->err, d->socket);
	expect_in(o->err, "already serves");
	/* The first one has noticed nothing. */
	assert_int_equal(RUN("arenactl", "--socket", d->socket, "ps")->status, 0);
	assert_true(daemon_free_kb(d) > 0);
}

static void test_stale_socket(void **state)
{
	struct test_daemon own = {.log_fd = -1, .control.fd = -1};
	struct stat st;

	(void)state;
	daemon_start(&own, NULL);
	daemon_kill_all(&own);
	assert_int_equal(stat(own.socket, &st), 0);
	wire_close(&own.control);
	close(own.log_fd);
	daemon_start(&own, NULL);
	assert_true(daemon_free_kb(&own) > 0);
	daemon_stop(&own);
	/* Nothing is left behind. */
	assert_int_equal(stat(own.socket, &st), -1);
	assert_int_equal(rmdir(own.dir), 0);
	daemon_destroy(&own);
}

/* Something that is no socket is left alone. */
static void test_file_in_the_way(void **state)
{
	struct test_daemon *d = *state;
	char path[128];
	struct stat st;

	snprintf(path, sizeof(path), "%s/file", d->dir);
	write_file(path, "precious");
	assert_int_equal(RUN("arenad", "--socket", path, "--arena-size", "64M")->status, 1);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, 8);
	unlink(path);
}

/* ---- stopping under clients ---------------------------------------------------------------- */

struct ending {
	struct gate ready, stopped;
};

static void survive_daemon(struct test_daemon *d, void *arg)
{
	struct ending *e = arg;
	arena_t *a = client_open(d);
	char *p = client_map(a, 4 * LEAF);
	struct fault_seen seen;

	p = (char *)(((uintptr_t)p + LEAF - 1) & ~(LEAF - 1));
	CHECK_OK(arena_madvise(a, p + LEAF, LEAF, MADV_NOHUGEPAGE));
	pattern_fill(p, LEAF, 1);
	CHECK_OK(arena_null(a));
	gate_open(&e->ready, 1);
	gate_pass(&e->stopped);
	CHECK_ERRNO(arena_null(a), ECONNRESET);
	CHECK_ERRNO(arena_mmap(a, NULL, PAGE, RW, ANON, -1, 0), ECONNRESET);
	CHECK_ERRNO(arena_munmap(a, p, PAGE), ECONNRESET);
	CHECK_ERRNO(arena_shm_open(a, "/x", O_RDWR | O_CREAT, 0600), ECONNRESET);
	CHECK(pattern_is(p, LEAF, 1));
	pattern_fill(p, LEAF, 2);
	CHECK(pattern_is(p, LEAF, 2));
	CHECK(try_read(p + LEAF + 5, &seen) == SIGBUS);
	CHECK(seen.addr == (uintptr_t)p + LEAF + 5 && seen.code == BUS_ADRERR);
	arena_close(a);
	CHECK_ERRNO(arena_open(&(struct arena_options){.size = sizeof(struct arena_options),
						       .socket = d->socket},
			       &a),
		    ENOENT);
}

static void hang_in_call(struct test_daemon *d, void *arg)
{
	struct ending *e = arg;
	arena_t *a = client_open(d);

	CHECK_OK(arena_null(a));
	gate_open(&e->ready, 1);
	while (arena_null(a) == 0)
		;
	CHECK(errno == ECONNRESET);
}

static void test_stop(void **state)
{
	static const int signals[] = {SIGTERM, SIGINT};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct test_daemon own = {.log_fd = -1, .control.fd = -1};
		struct ending e = {.ready = gate_make(), .stopped = gate_make()};
		pid_t pid[3];
		int status;

		daemon_start(&own, NULL);
		for (unsigned k = 0; k < 3; k++)
			pid[k] = client_start(&own, k ? hang_in_call : survive_daemon, &e);
		for (unsigned k = 0; k < 3; k++)
			gate_pass(&e.ready);
		kill(own.pid, signals[i]);
		status = daemon_wait(&own);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		assert_int_equal(daemon_log_count(&own, 0, "stopping"), 1);
		assert_int_equal(daemon_log_count(&own, 0, ">stopped"), 1);
		gate_open(&e.stopped, 1);
		for (unsigned k = 0; k < 3; k++)
			client_wait(pid[k]);
		daemon_destroy(&own);
		gate_close(&e.ready);
		gate_close(&e.stopped);
	}
}

/* ---- arenactl's views of a living client (the rest: arenactl*.sh) -------------------------- */

static void be_seen(struct test_daemon *d, void *arg)
{
	struct ending *e = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, "/a name", O_RDWR | O_CREAT, 0640);

	CHECK_OK(arena_shm_truncate(s, 3 * PAGE));
	CHECK(arena_shm_mmap(s, NULL, 3 * PAGE, RW, MAP_SHARED, 0) != MAP_FAILED);
	*(char *)client_map(a, LEAF) = 1;
	CHECK(arena_alloc_pages(a, ARENA_GFP_KERNEL, 2));
	gate_open(&e->ready, 1);
	gate_pass(&e->stopped);
	CHECK_OK(arena_shm_unlink(a, "/a name"));
	arena_close(a);
}

static void test_views(void **state)
{
	struct test_daemon *d = *state;
	struct ending e = {.ready = gate_make(), .stopped = gate_make()};
	pid_t pid = client_start(d, be_seen, &e);
	struct output *o;
	char number[16];

	gate_pass(&e.ready);
	snprintf(number, sizeof(number), "%d", (int)pid);
	o = RUN("arenactl", "--socket", d->socket, "ps");
	assert_int_equal(o->status, 0);
	expect_in(o->out, number);
	expect_in(o->out, "daemon_cli");
	o = RUN("arenactl", "--socket", d->socket, "maps", number);
	assert_int_equal(o->status, 0);
	expect_in(o->out, " rw-s ");
	expect_in(o->out, " rw-p ");
	expect_in(o->out, "a name");
	o = RUN("arenactl", "--socket", d->socket, "segments");
	assert_int_equal(o->status, 0);
	expect_in(o->out, "0640");
	expect_in(o->out, "name");
	gate_open(&e.stopped, 1);
	client_wait(pid);
	assert_int_equal(RUN("arenactl", "--socket", d->socket, "maps", number)->status, 1);
	gate_close(&e.ready);
	gate_close(&e.stopped);
}

/* Every line has a level, and the levels below the one asked for are left out. */
static void test_log_levels(void **state)
{
	static const char *const levels[] = {"error", "notice", "debug"};
	static const unsigned numbers[] = {3, 5, 7};

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		struct test_daemon own = {.log_fd = -1, .control.fd = -1};
		bool loud = numbers[i] >= 5;
		struct wire_client c;

		daemon_spawn(&own, (const char *const[]){"--log-level", levels[i], NULL});
		if (loud)
			assert_true(daemon_log_wait(&own, 0, "<5>ready at"));
		else
			while (!wire_open(&c, own.socket))
				poll(NULL, 0, 1);
		kill(own.pid, SIGTERM);
		assert_int_equal(daemon_wait(&own), 0);
		for (char *line = own.log; line && *line;) {
			char *end = strchr(line, '\n');

			assert_non_null(end);
			assert_true(line[0] == '<' && line[2] == '>');
			assert_true(line[1] >= '0' && (unsigned)(line[1] - '0') <= numbers[i]);
			line = end + 1;
		}
		assert_true(loud ? own.log_len > 0 : own.log_len == 0);
		daemon_destroy(&own);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_usage),         cmocka_unit_test(test_bad_configuration),
		cmocka_unit_test(test_configuration), daemon_test(test_second_instance),
		cmocka_unit_test(test_stale_socket),  cmocka_unit_test(test_file_in_the_way),
		cmocka_unit_test(test_stop),          daemon_test(test_views),
		cmocka_unit_test(test_log_levels),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
