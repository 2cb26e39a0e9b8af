/* SPDX-License-Identifier: MIT */
/*
 * unit_files_tree.c - paths, directories, who may, tunables, and the files of nodes and memory
 * blocks.
 */
#include "tests/files_machine.h"

static const struct {
	const char *path;
	uint64_t def, min, max;
} tunables[] = {
#define TUNABLE(name, path, def, min, max, text) {path, def, min, max},
#include "arena/tunables.def"
#undef TUNABLE
};

/* ---- directories ------------------------------------------------------------------------- */

static void test_directories(void **state __unused_)
{
	assert_text("", "proc/\nsys/\n");
	assert_text("/", "proc/\nsys/\n");
	assert_text("proc/sys", "vm/\n");
	assert_text("proc/sys/", "vm/\n");
	assert_text("//proc//sys/vm/",
		    "min_free_kbytes\nwatermark_scale_factor\npercpu_pagelist_high_fraction\n"
		    "dirty_writeback_centisecs\ndirty_expire_centisecs\nmax_map_count\novercommit_"
		    "memory\novercommit_ratio\novercommit_kbytes\n"
		    "admin_reserve_kbytes\nuser_reserve_kbytes\n");
	assert_text("proc", "meminfo\nvmstat\nbuddyinfo\nzoneinfo\npagetypeinfo\nsys/\n");
	assert_text("sys/devices/system/node", "possible\nonline\nhas_cpu\nhas_memory\n"
					       "has_normal_memory\nnode0/\nnode1/\n");
	assert_text("sys/devices/system/node/node1",
		    "cpulist\ncpumap\ndistance\nmeminfo\nnumastat\nvmstat\n");
}

/* Every name of every directory is a directory or can be read. Returns how many files there are. */
static unsigned walk(const char *path)
{
	char *text = text_of(path);
	char *rest = text, *name;
	unsigned files_seen = 0;

	while ((name = strsep(&rest, "\n")) && *name) {
		char child[256];
		int n = snprintf(child, sizeof(child), "%s%s", path, name);

		assert_true(n > 0 && (size_t)n < sizeof(child));
		if (name[strlen(name) - 1] == '/') {
			files_seen += walk(child);
		} else {
			assert_int_equal(read_as(&root, child), 0);
			files_seen++;
		}
	}
	free(text);
	return files_seen;
}

static void test_walk(void **state __unused_)
{
	unsigned sections = ARENA_BYTES / SECTION_BYTES;

	/* 5 of /proc, 5 and 2 * 6 of nodes, 1 and 6 a section, 2 of memblock, 2 of THP, 5 our own */
	assert_int_equal(walk(""),
			 5 + 5 + 12 + 1 + 6 * sections + 2 + 2 + 5 + ARRAY_SIZE(tunables));
}

static void test_unknown(void **state __unused_)
{
	static const char *const paths[] = {
		"meminfo",
		"proc/meminf",
		"proc/meminfoo",
		"proc/meminfo/",
		"proc/meminfo/x",
		"proc/self/maps",
		"proc/1/maps",
		"proc/01/maps",
		"proc/-1",
		"proc/4294967297",
		"..",
		"proc/../proc/meminfo",
		".",
		"proc/%u/maps",
		"sys/devices/system/node/node",
		"sys/devices/system/node/node2",
		"sys/devices/system/node/node2/meminfo",
		"sys/devices/system/node/node00/meminfo",
		"sys/devices/system/node/node%u",
		"sys/devices/system/node/node0x/meminfo",
		"sys/devices/system/memory/memory32/state",
		"sys/devices/system/memory/memory99999999999/state",
		"sys/kernel/mm/arena/statu",
	};

	for (unsigned i = 0; i < ARRAY_SIZE(paths); i++) {
		assert_int_equal(read_as(&root, paths[i]), ARENA_E_NOT_FOUND);
		assert_int_equal(store(paths[i], "1"), ARENA_E_NOT_FOUND);
	}
}

/* ---- who may ----------------------------------------------------------------------------- */

static void test_access(void **state __unused_)
{
	const struct credentials own = {.uid = geteuid()};

	assert_int_equal(read_as(&stranger, "proc/meminfo"), 0);
	assert_int_equal(read_as(&stranger, "proc"), 0);
	assert_int_equal(read_as(&stranger, "proc/pagetypeinfo"), ARENA_E_ACCESS);
	assert_int_equal(read_as(&stranger, "sys/kernel/mm/arena/check"), ARENA_E_ACCESS);
	assert_int_equal(read_as(&own, "proc/pagetypeinfo"), 0);
	assert_int_equal(files_write(files, &stranger, tunables[0].path, "4096", 4),
			 ARENA_E_ACCESS);
	assert_int_equal(files_write(files, &own, "sys/kernel/mm/arena/poll_usecs", "51", 2), 0);
	assert_int_equal(files_write(files, &own, "sys/kernel/mm/arena/poll_usecs", "50", 2), 0);
	assert_int_equal(store("proc/meminfo", "1"), ARENA_E_ACCESS);
	assert_int_equal(store("proc", "1"), ARENA_E_INVALID);
	assert_int_equal(store("", "1"), ARENA_E_INVALID);
}

static void test_check(void **state __unused_)
{
	struct page *page = &machine.state.mem_map[phys_node(machine.phys, 0)->zone[0].start];

	assert_text("sys/kernel/mm/arena/check", "ok\n");
	page->refcount += 7;
	assert_text("sys/kernel/mm/arena/check", "damaged\n");
	page->refcount -= 7;
	assert_text("sys/kernel/mm/arena/check", "ok\n");
}

/* ---- tunables ---------------------------------------------------------------------------- */

static void store_number(const char *path, uint64_t n, int want)
{
	char value[32];

	snprintf(value, sizeof(value), "%" PRIu64 "\n", n);
	assert_int_equal(store(path, value), want);
	if (want == 0 && n)
		assert_text(path, value);
}

static void test_tunables(void **state __unused_)
{
	static const char *const bad[] = {"",    " ",  "\n", "x",       "-1",
					  "1 2", "1x", "0x", "10\n\n1", "99999999999999999999"};

	for (unsigned i = 0; i < ARRAY_SIZE(tunables); i++) {
		const char *path = tunables[i].path;
		char *before = text_of(path);

		store_number(path, tunables[i].max, 0);
		store_number(path, tunables[i].max + 1, ARENA_E_INVALID);
		store_number(path, tunables[i].min, 0);
		if (tunables[i].min)
			store_number(path, tunables[i].min - 1, ARENA_E_INVALID);
		assert_int_equal(store(path, before), 0);
		for (unsigned j = 0; j < ARRAY_SIZE(bad); j++)
			assert_int_equal(store(path, bad[j]), ARENA_E_INVALID);
		assert_int_equal(files_write(files, &root, path, "5\0006", 3), ARENA_E_INVALID);
		assert_text(path, before);
		free(before);
	}
}

static void test_long_value(void **state __unused_)
{
	_cleanup_(freep) char *value = malloc(1 << 20);

	memset(value, '1', 1 << 20);
	assert_int_equal(files_write(files, &root, tunables[0].path, value, 1 << 20),
			 ARENA_E_INVALID);
	/* leading zeros and blanks are no matter */
	memset(value, '0', 4000);
	memcpy(value + 4000, "50", 3);
	assert_int_equal(store("sys/kernel/mm/arena/poll_usecs", value), 0);
	assert_text("sys/kernel/mm/arena/poll_usecs", "50\n");
}

static void test_watermarks_follow(void **state __unused_)
{
	const struct zone *z = &phys_node(machine.phys, 1)->zone[ZONE_HIGHMEM];
	uint64_t min = z->watermark[WMARK_MIN], gap = z->watermark[WMARK_LOW] - min;
	char *kbytes = text_of("proc/sys/vm/min_free_kbytes");
	char twice[32];

	snprintf(twice, sizeof(twice), "%llu", 2 * strtoull(kbytes, NULL, 10));
	assert_int_equal(store("proc/sys/vm/min_free_kbytes", twice), 0);
	assert_in_range(z->watermark[WMARK_MIN], 2 * min, 2 * min + 1);
	assert_int_equal(store("proc/sys/vm/min_free_kbytes", kbytes), 0);
	assert_int_equal(z->watermark[WMARK_MIN], min);
	assert_int_equal(store("proc/sys/vm/watermark_scale_factor", "1000"), 0);
	assert_true(z->watermark[WMARK_LOW] - min > gap);
	assert_int_equal(store("proc/sys/vm/watermark_scale_factor", "10"), 0);
	assert_int_equal(z->watermark[WMARK_LOW] - min, gap);
	free(kbytes);
}

/* ---- nodes ------------------------------------------------------------------------------- */

static void test_nodes(void **state __unused_)
{
	uint64_t cpus[2][BITMAP_WORDS(NUMA_MAX_CPUS)];
	char want[4096];

	assert_text("sys/devices/system/node/possible", "0-1\n");
	assert_text("sys/devices/system/node/online", "0-1\n");
	assert_text("sys/devices/system/node/has_memory", "0-1\n");
	assert_text("sys/devices/system/node/has_normal_memory", "0-1\n");
	assert_text("sys/devices/system/node/node0/distance", "10 20\n");
	assert_text("sys/devices/system/node/node1/distance", "20 10\n");
	for (unsigned nid = 0; nid < 2; nid++) {
		char path[64];
		size_t len;

		numa_node_cpus(&machine.topology, nid, cpus[nid]);
		snprintf(path, sizeof(path), "sys/devices/system/node/node%u/cpulist", nid);
		bitmap_print_list(want, sizeof(want) - 1, cpus[nid], NUMA_MAX_CPUS);
		len = strlen(want);
		memcpy(want + len, "\n", 2);
		assert_text(path, want);
	}
}

/* A topology with fixed CPUs: a node without one, and masks of more than 32 bits. */
static void test_cpus(void **state __unused_)
{
	struct numa_topology saved = machine.topology;

	machine.topology.nr_cpus = 40;
	memset(machine.topology.cpu_node, 1, 40);
	assert_text("sys/devices/system/node/has_cpu", "1\n");
	assert_text("sys/devices/system/node/node0/cpulist", "\n");
	assert_text("sys/devices/system/node/node0/cpumap", "00,00000000\n");
	assert_text("sys/devices/system/node/node1/cpulist", "0-39\n");
	assert_text("sys/devices/system/node/node1/cpumap", "ff,ffffffff\n");
	machine.topology.nr_cpus = 2;
	machine.topology.cpu_node[0] = 0;
	assert_text("sys/devices/system/node/has_cpu", "0-1\n");
	assert_text("sys/devices/system/node/node0/cpumap", "1\n");
	assert_text("sys/devices/system/node/node1/cpumap", "2\n");
	machine.topology = saved;
}

/* ---- memory blocks ----------------------------------------------------------------------- */

static void test_sections(void **state __unused_)
{
	uint64_t total = number_in("proc/meminfo", "MemTotal");
	unsigned last = ARENA_BYTES / SECTION_BYTES - 1;
	char state_path[80], online_path[80], path[80], want[32];

	snprintf(state_path, sizeof(state_path), "sys/devices/system/memory/memory%u/state", last);
	snprintf(online_path, sizeof(online_path), "sys/devices/system/memory/memory%u/online",
		 last);
	snprintf(path, sizeof(path), "sys/devices/system/memory/memory%u/phys_index", last);
	snprintf(want, sizeof(want), "%08x\n", last);
	assert_text(path, want);
	assert_text("sys/devices/system/memory/block_size_bytes", "800000\n");
	assert_text("sys/devices/system/memory/memory0/removable", "1\n");
	assert_text("sys/devices/system/memory/memory0/phys_device", "0\n");
	snprintf(path, sizeof(path), "sys/devices/system/memory/memory%u/valid_zones", last);
	assert_text(path, "HighMem\n");
	assert_text("sys/devices/system/memory/memory0/valid_zones", "none\n");

	assert_text(state_path, "online\n");
	assert_int_equal(store(state_path, "offline"), 0);
	assert_text(state_path, "offline\n");
	assert_text(online_path, "0\n");
	assert_int_equal(number_in("proc/meminfo", "MemTotal"), total - (SECTION_BYTES >> 10));
	assert_int_equal(store(state_path, "offline"), ARENA_E_INVALID);
	assert_int_equal(store(online_path, "1\n"), 0);
	assert_text(state_path, "online\n");
	assert_int_equal(number_in("proc/meminfo", "MemTotal"), total);
	assert_int_equal(store(state_path, "online_movable"), ARENA_E_INVALID);
	assert_int_equal(store(state_path, ""), ARENA_E_INVALID);
	assert_int_equal(store(online_path, "2"), ARENA_E_INVALID);
	assert_int_equal(files_write(files, &stranger, state_path, "offline", 7), ARENA_E_ACCESS);
}

static void test_memblock(void **state __unused_)
{
	char *text = text_of("sys/kernel/debug/memblock/memory");
	char *rest = text, *line;
	unsigned n = 0;

	assert_non_null(strstr(text, "..0x000000000fffffff ")); /* the arena's last byte */
	while ((line = strsep(&rest, "\n")) && *line) {
		assert_matches(line, "^ +[0-9]+: 0x[0-9a-f]{16}\\.\\.0x[0-9a-f]{16}");
		assert_int_equal(strtoul(line, NULL, 10), n++);
	}
	assert_true(n >= 1);
	free(text);
}

static void test_thp(void **state __unused_)
{
	assert_text("sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "2097152\n");
	assert_text("sys/kernel/mm/transparent_hugepage/shmem_enabled",
		    "always within_size advise [never] deny force\n");
	machine.hugepages = true;
	assert_text("sys/kernel/mm/transparent_hugepage/shmem_enabled",
		    "always within_size [advise] never deny force\n");
	machine.hugepages = false;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_directories), cmocka_unit_test(test_walk),
		cmocka_unit_test(test_unknown),     cmocka_unit_test(test_access),
		cmocka_unit_test(test_check),       cmocka_unit_test(test_tunables),
		cmocka_unit_test(test_long_value),  cmocka_unit_test(test_watermarks_follow),
		cmocka_unit_test(test_nodes),       cmocka_unit_test(test_cpus),
		cmocka_unit_test(test_sections),    cmocka_unit_test(test_memblock),
		cmocka_unit_test(test_thp),
	};

	return cmocka_run_group_tests(tests, boot, shut_down);
}
