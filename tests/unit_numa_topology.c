/* SPDX-License-Identifier: MIT */
/* topology: simulated nodes, parsed distances, fallback order, the host's nodes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <numaif.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/util.h"
#include "numa/topology.h"

/* What must hold of any topology. */
static void check_topology(const struct numa_topology *t)
{
	assert_in_range(t->nr_nodes, 1, NUMA_MAX_NODES);
	assert_in_range(t->nr_cpus, 1, NUMA_MAX_CPUS);
	for (unsigned from = 0; from < t->nr_nodes; from++)
		for (unsigned to = 0; to < t->nr_nodes; to++) {
			if (from == to)
				assert_int_equal(t->distance[from][to], NUMA_LOCAL_DISTANCE);
			else
				assert_in_range(t->distance[from][to], NUMA_LOCAL_DISTANCE + 1,
						254);
		}
	for (unsigned cpu = 0; cpu < t->nr_cpus; cpu++)
		assert_true(t->cpu_node[cpu] < t->nr_nodes);
}

static void test_simulate(void **state)
{
	struct numa_topology t;

	(void)state;
	assert_int_equal(numa_topology_simulate(&t, 0, 4), ARENA_E_INVALID);
	assert_int_equal(numa_topology_simulate(&t, NUMA_MAX_NODES + 1, 4), ARENA_E_INVALID);
	assert_int_equal(numa_topology_simulate(&t, NUMA_MAX_NODES, 100000), 0);
	check_topology(&t);
	assert_int_equal(t.nr_cpus, NUMA_MAX_CPUS);
	assert_int_equal(numa_topology_simulate(&t, 3, 0), 0);
	check_topology(&t);

	assert_int_equal(numa_topology_simulate(&t, 2, 5), 0);
	check_topology(&t);
	assert_true(t.simulated);
	assert_int_equal(t.distance[0][1], 20);
	assert_int_equal(numa_cpu_to_node(&t, 0), 0);
	assert_int_equal(numa_cpu_to_node(&t, 2), 0);
	assert_int_equal(numa_cpu_to_node(&t, 3), 1);
	assert_int_equal(numa_cpu_to_node(&t, 4), 1);
	assert_int_equal(numa_cpu_to_node(&t, 5), 0);
	assert_int_equal(numa_cpu_to_node(&t, 8), 1);
}

static void test_node_cpus(void **state)
{
	uint64_t cpus[BITMAP_WORDS(NUMA_MAX_CPUS)];
	struct numa_topology t;
	char list[64];

	(void)state;
	assert_int_equal(numa_topology_simulate(&t, 4, 200), 0);
	numa_node_cpus(&t, 1, cpus);
	bitmap_print_list(list, sizeof(list), cpus, NUMA_MAX_CPUS);
	assert_string_equal(list, "50-99");

	/* More nodes than CPUs: some have none. */
	assert_int_equal(numa_topology_simulate(&t, 4, 2), 0);
	memset(cpus, 0xff, sizeof(cpus));
	numa_node_cpus(&t, 1, cpus);
	assert_int_equal(bitmap_weight(cpus, NUMA_MAX_CPUS), 0);
	numa_node_cpus(&t, 2, cpus);
	bitmap_print_list(list, sizeof(list), cpus, NUMA_MAX_CPUS);
	assert_string_equal(list, "1");
}

static void test_distances(void **state)
{
	static const char *const bad[] = {
		"",
		"10 20",
		"10 20; 20",
		"10 20; 20 10 30",
		"10 20; 20 10; 10 20",
		"10 20; 20 11",
		"10 10; 20 10",
		"10 9; 20 10",
		"10 255; 20 10",
		"10 -20; 20 10",
		"10 20, 20 10",
		"10 20; 20 10 x",
		"10 20;; 20 10",
		"10 20 20 10",
	};
	struct numa_topology t, before;

	(void)state;
	assert_int_equal(numa_topology_simulate(&t, 2, 2), 0);
	assert_int_equal(numa_parse_distances(&t, "10 31; 42 10"), 0);
	check_topology(&t);
	assert_int_equal(t.distance[0][1], 31);
	assert_int_equal(t.distance[1][0], 42);
	before = t;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(numa_parse_distances(&t, bad[i]), ARENA_E_INVALID);
		assert_memory_equal(&t, &before, sizeof(t));
	}
	assert_int_equal(numa_parse_distances(&t, " 10\t254 \n11 10 ;\n"), 0);
	assert_int_equal(t.distance[0][1], 254);
	assert_int_equal(t.distance[1][0], 11);
}

static void check_order(const struct numa_topology *t, unsigned node, const uint8_t *expected)
{
	uint8_t order[NUMA_MAX_NODES];

	numa_fallback_order(t, node, order);
	assert_memory_equal(order, expected, t->nr_nodes);
}

static void test_fallback_order(void **state)
{
	struct numa_topology t;

	(void)state;
	assert_int_equal(numa_topology_simulate(&t, 4, 4), 0);
	check_order(&t, 0, (uint8_t[]){0, 1, 2, 3});
	check_order(&t, 2, (uint8_t[]){2, 0, 1, 3});
	assert_int_equal(
		numa_parse_distances(&t, "10 40 20 30; 40 10 30 20; 20 30 10 40; 30 20 30 10"), 0);
	check_order(&t, 0, (uint8_t[]){0, 2, 3, 1});
	check_order(&t, 1, (uint8_t[]){1, 3, 2, 0});
	check_order(&t, 3, (uint8_t[]){3, 1, 0, 2});
}

static void test_host(void **state)
{
	struct numa_topology t;
	int r;

	(void)state;
	memset(&t, 0xff, sizeof(t));
	r = numa_topology_host(&t);
	if (r == ARENA_E_UNSUPPORTED)
		skip();
	assert_int_equal(r, 0);
	assert_false(t.simulated);
	check_topology(&t);
}

/* Binding needs nodes of the host; simulated ones leave memory where it is. */
static void test_bind(void **state)
{
	struct numa_topology t;
	unsigned long mask = 0;
	int mode = -1;
	char *map;

	(void)state;
	if (numa_topology_host(&t))
		skip();
	map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(numa_bind_range(&t, map, 4096, 0), 0);
	assert_int_equal(get_mempolicy(&mode, &mask, 65, map, MPOL_F_ADDR), 0);
	assert_int_equal(mode, MPOL_BIND);
	assert_int_equal(mask, 1);
	assert_true(t.nr_nodes == NUMA_MAX_NODES ||
		    numa_bind_range(&t, map, 4096, NUMA_MAX_NODES - 1) < 0);
	t.simulated = true;
	assert_int_equal(numa_bind_range(&t, map, 4096, NUMA_MAX_NODES - 1), 0);
	munmap(map, 4096);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_simulate),  cmocka_unit_test(test_node_cpus),
		cmocka_unit_test(test_distances), cmocka_unit_test(test_fallback_order),
		cmocka_unit_test(test_host),      cmocka_unit_test(test_bind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
