/* SPDX-License-Identifier: MIT */
/*
 * daemon_policy.c - memory from chosen nodes, with real clients: the other nodes' frames are untouched, whoever touches
 * and whatever worker serves.
 */
#include <linux/mempolicy.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "tests/lib_client.h"

#define NODE_MEMINFO "sys/devices/system/node/node%u/meminfo"

/* In a client: MemFree of a node, kB. */
static uint64_t node_free(arena_t *a, unsigned node)
{
	char path[64], text[4096], *at;
	ssize_t n;

	snprintf(path, sizeof(path), NODE_MEMINFO, node);
	n = arena_attr_read(a, path, text, sizeof(text) - 1);
	CHECK(n > 0);
	text[n] = '\0';
	at = strstr(text, "MemFree:");
	CHECK(at);
	return strtoull(at + 8, NULL, 10);
}

static int bind_to(arena_t *a, unsigned long nodes)
{
	return arena_set_mempolicy(a, MPOL_BIND, &nodes, 65);
}

/* Of an arena of 512 MiB and two nodes. */
static unsigned node_of(arena_t *a, const void *p)
{
	int64_t pfn = arena_virt_to_pfn(a, p);

	CHECK(pfn >= 0);
	return pfn >= (int64_t)(256 * 1024 * 1024 / PAGE);
}

static void use_memory(arena_t *a, uint64_t seed, unsigned node)
{
	char *leaves = client_map(a, 8 * LEAF), *pages = client_map(a, LEAF), *copy;

	CHECK_OK(arena_madvise(a, pages, LEAF, MADV_NOHUGEPAGE));
	pattern_fill(leaves, 8 * LEAF, seed);
	pattern_fill(pages, LEAF, seed + 1);
	copy = arena_snapshot(a, leaves, 8 * LEAF);
	CHECK(copy != MAP_FAILED);
	pattern_fill(leaves, 8 * LEAF, seed + 2);
	CHECK(pattern_is(copy, 8 * LEAF, seed) && pattern_is(pages, LEAF, seed + 1));
	CHECK(arena_sbrk(a, LEAF) != (void *)-1);
	pattern_fill((char *)arena_sbrk(a, 0) - LEAF, LEAF, seed + 3);
	CHECK(node_of(a, leaves) == node && node_of(a, copy) == node);
	CHECK(node_of(a, pages) == node && node_of(a, (char *)arena_sbrk(a, 0) - LEAF) == node);
	CHECK_OK(arena_munmap(a, copy, 8 * LEAF));
	CHECK_OK(arena_munmap(a, leaves, 8 * LEAF));
}

static void do_bind(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	uint64_t before[2];
	pid_t pid;

	(void)arg;
	for (unsigned node = 0; node < 2; node++) {
		CHECK_OK(bind_to(a, 1ul << node));
		use_memory(a, 1, node);
		before[0] = node_free(a, 0);
		before[1] = node_free(a, 1);
		use_memory(a, 2, node);
		CHECK(node_free(a, !node) == before[!node]);
	}
	/* A child's memory comes back some time after its end. */
	IN_CHILD(pid)
	{
		use_memory(a, 3, 1);
		CHECK(node_free(a, 0) == before[0]);
	}
	expect_child(pid);
	arena_close(a);
}

static void test_bind(void **state)
{
	client_run(*state, do_bind, NULL);
}

static void do_full(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	uint64_t before;
	unsigned long node = 2;
	char *p = client_map(a, 150 * LEAF);

	(void)arg;
	CHECK_OK(bind_to(a, 2));
	before = node_free(a, 0);
	CHECK_ERRNO(arena_populate(a, p, 150 * LEAF, 1), ENOMEM);
	CHECK(node_free(a, 0) == before);
	CHECK_OK(arena_set_mempolicy(a, MPOL_PREFERRED, &node, 65));
	CHECK_OK(arena_populate(a, p, 150 * LEAF, 1));
	CHECK(node_free(a, 0) < before);
	arena_close(a);
}

static void test_full(void **state)
{
	struct test_daemon *d = *state;

	d->expect_warnings = true; /* the report of memory that ran out */
	client_run(d, do_full, NULL);
}

static void do_refused(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	unsigned long nodes[2] = {1, 1};

	(void)arg;
	CHECK_ERRNO(arena_set_mempolicy(a, MPOL_BIND, NULL, 0), EINVAL);
	CHECK_ERRNO(arena_set_mempolicy(a, MPOL_BIND, nodes, 1), EINVAL);
	CHECK_ERRNO(arena_set_mempolicy(a, MPOL_BIND, nodes, 66), EINVAL);
	CHECK_ERRNO(arena_set_mempolicy(a, MPOL_DEFAULT, nodes, 3), EINVAL);
	CHECK_ERRNO(arena_set_mempolicy(a, MPOL_INTERLEAVE, nodes, 3), EINVAL);
	CHECK_ERRNO(arena_set_mempolicy(a, -1, nodes, 3), EINVAL);
	CHECK_ERRNO(bind_to(a, 4), EINVAL);
	CHECK_OK(arena_set_mempolicy(a, MPOL_BIND, nodes, 65));
	CHECK_OK(arena_set_mempolicy(a, MPOL_DEFAULT, NULL, 0));
	arena_close(a);
}

static void test_refused(void **state)
{
	client_run(*state, do_refused, NULL);
}

struct meeting {
	struct gate ready, go;
};

static void over_a_restart(struct test_daemon *d, void *arg)
{
	struct meeting *m = arg;
	arena_t *a = client_open(d);
	uint64_t before;

	CHECK_OK(bind_to(a, 2));
	use_memory(a, 1, 1);
	gate_open(&m->ready, 1);
	gate_pass(&m->go);
	before = node_free(a, 0);
	use_memory(a, 5, 1);
	CHECK(node_free(a, 0) == before);
	arena_close(a);
}

static void test_restart(void **state)
{
	struct test_daemon *d = *state;
	struct meeting m = {gate_make(), gate_make()};
	pid_t pid = client_start(d, over_a_restart, &m);

	gate_pass(&m.ready);
	daemon_kill_worker(d);
	gate_open(&m.go, 1);
	client_wait(pid);
	gate_close(&m.ready);
	gate_close(&m.go);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		daemon_test(test_bind),
		daemon_test(test_full),
		daemon_test(test_refused),
		daemon_test(test_restart),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
