/* SPDX-License-Identifier: MIT */
/*
 * daemon_condemned.c - a client's stored tables are damaged and the worker dies: that client is told,
 * the others do not notice, and its frames are back when it is dead.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>

#include "arena/abi.h"
#include "tests/lib_client.h"

struct meeting {
	struct gate mapped, damaged, checked, end;
};

static void hold(struct test_daemon *d, struct meeting *m, bool survives)
{
	arena_t *a = client_open(d);
	unsigned char *p = client_map(a, 4 * LEAF);
	struct fault_seen seen;

	pattern_fill(p, LEAF, 1);
	gate_open(&m->mapped, 1);
	gate_pass(&m->damaged);
	if (survives) {
		CHECK(pattern_is(p, LEAF, 1));
		pattern_fill(p + LEAF, LEAF, 2);
		CHECK(pattern_is(p + LEAF, LEAF, 2));
	} else {
		CHECK(arena_mmap(a, NULL, PAGE, RW, ANON, -1, 0) == MAP_FAILED);
		CHECK(try_write(p + 3 * LEAF, &seen) == SIGBUS);
		/* What it has mapped is its own as long as it lives. */
		p[5] ^= 0xff;
	}
	gate_open(&m->checked, 1);
	gate_pass(&m->end);
	arena_close(a);
}

static void survivor(struct test_daemon *d, void *arg)
{
	hold(d, arg, true);
}

static void loser(struct test_daemon *d, void *arg)
{
	hold(d, arg, false);
}

/* The worker's descriptor of the mm file of that client, opened anew. */
static int open_mm_file(struct test_daemon *d, uint64_t mm)
{
	char dir[64], path[96], link[128], want[64];
	struct dirent *e;
	DIR *fds;
	int fd = -1;

	snprintf(want, sizeof(want), "/memfd:mm:%u (deleted)", (unsigned)mm);
	snprintf(dir, sizeof(dir), "/proc/%d/fd", (int)daemon_worker_pid(d));
	fds = opendir(dir);
	assert_non_null(fds);
	while (fd < 0 && (e = readdir(fds))) {
		ssize_t n;

		snprintf(path, sizeof(path), "%s/%.20s", dir, e->d_name);
		n = readlink(path, link, sizeof(link) - 1);
		if (n < 0)
			continue;
		link[n] = '\0';
		if (strcmp(link, want) == 0)
			fd = open(path, O_RDWR | O_CLOEXEC);
	}
	closedir(fds);
	return fd;
}

static void damage(struct test_daemon *d, pid_t client)
{
	const uint64_t magic = 1;
	int fd = open_mm_file(d, client_number(d, client, "mm"));

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, &magic, sizeof(magic), offsetof(struct arena_mm_header, magic)),
			 sizeof(magic));
	close(fd);
}

static void test_condemned(void **state)
{
	struct test_daemon *d = *state;
	struct meeting m = {gate_make(), gate_make(), gate_make(), gate_make()};
	size_t from = d->log_len;
	pid_t one, two;

	if (geteuid() != 0)
		skip();
	d->expect_warnings = d->expect_deaths = true;
	one = client_start(d, survivor, &m);
	two = client_start(d, loser, &m);
	gate_pass(&m.mapped);
	gate_pass(&m.mapped);
	damage(d, two);
	daemon_kill_worker(d);
	gate_open(&m.damaged, 2);
	gate_pass(&m.checked);
	gate_pass(&m.checked);
	daemon_read_log(d);
	assert_int_equal(daemon_log_count(d, from, "is dropped: its mm file is not its own"), 1);
	/* Nothing of it was given to anybody, and the next worker knows it, too. */
	assert_true(daemon_free_kb(d) + 2 * LEAF / 1024 <= d->free_before);
	daemon_kill_worker(d);
	assert_true(daemon_free_kb(d) + 2 * LEAF / 1024 <= d->free_before);
	gate_open(&m.end, 2);
	client_wait(one);
	client_wait(two);
	gate_close(&m.mapped);
	gate_close(&m.damaged);
	gate_close(&m.checked);
	gate_close(&m.end);
}

int main(void)
{
	const struct CMUnitTest tests[] = {daemon_test(test_condemned)};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
