/* SPDX-License-Identifier: MIT */
/*
 * unit_files_mem.c - meminfo, vmstat, buddyinfo, zoneinfo and pagetypeinfo: every line has Linux's
 * place and shape, and the numbers of one file agree with those of the others.
 */
#include "tests/files_machine.h"

static const char *const meminfo_labels[] = {
	"MemTotal",       "MemFree",
	"MemAvailable",   "Buffers",
	"Cached",         "SwapCached",
	"Active",         "Inactive",
	"Active(anon)",   "Inactive(anon)",
	"Active(file)",   "Inactive(file)",
	"Unevictable",    "Mlocked",
	"SwapTotal",      "SwapFree",
	"Dirty",          "Writeback",
	"AnonPages",      "Mapped",
	"Shmem",          "KReclaimable",
	"Slab",           "SReclaimable",
	"SUnreclaim",     "KernelStack",
	"PageTables",     "SecPageTables",
	"NFS_Unstable",   "Bounce",
	"WritebackTmp",   "CommitLimit",
	"Committed_AS",   "VmallocTotal",
	"VmallocUsed",    "VmallocChunk",
	"Percpu",         "HardwareCorrupted",
	"AnonHugePages",  "ShmemHugePages",
	"ShmemPmdMapped", "FileHugePages",
	"FilePmdMapped",  "HugePages_Total",
	"HugePages_Free", "HugePages_Rsvd",
	"HugePages_Surp", "Hugepagesize",
	"Hugetlb",
};

static const char *const node_labels[] = {
	"MemTotal",       "MemFree",       "MemUsed",        "SwapCached",      "Active",
	"Inactive",       "Active(anon)",  "Inactive(anon)", "Active(file)",    "Inactive(file)",
	"Unevictable",    "Mlocked",       "Dirty",          "Writeback",       "FilePages",
	"Mapped",         "AnonPages",     "Shmem",          "KernelStack",     "PageTables",
	"SecPageTables",  "NFS_Unstable",  "Bounce",         "WritebackTmp",    "KReclaimable",
	"Slab",           "SReclaimable",  "SUnreclaim",     "AnonHugePages",   "ShmemHugePages",
	"ShmemPmdMapped", "FileHugePages", "FilePmdMapped",  "HugePages_Total", "HugePages_Free",
	"HugePages_Surp",
};

static const char *const zone_items[] = {
#define ZONE_ITEM(name, text) text,
#include "arena/counters.def"
};
static const char *const numa_items[] = {
#define NUMA_ITEM(name, text) text,
#include "arena/counters.def"
};
static const char *const node_items[] = {
#define NODE_ITEM(name, text) text,
#include "arena/counters.def"
};
static const char *const events[] = {
#define EVENT(name, text) text,
#define ARENA_EVENT(name, text) text,
#include "arena/counters.def"
};

/* Something is allocated in these tests, so that the numbers are not those of an empty machine. */
static struct domain *domain;
static pfn_t held[64];

static int boot_busy(void **state)
{
	struct phys *p;

	if (boot(state))
		return -1;
	p = machine.phys;
	if (domain_create(p, DOMAIN_UID, 1000, &domain))
		return -1;
	for (unsigned i = 0; i < ARRAY_SIZE(held); i++) {
		struct alloc_request rq = {
			.domain = domain,
			.gfp = i % 3 ? GFP_USER_MOVABLE : ARENA_GFP_KERNEL,
			.order = i % 4,
			.cpu = i % 2,
			.hint = PFN_NONE,
			.owner = PG_KERNEL,
		};
		struct alloc_result result;

		if (alloc_pages(p, &rq, &result))
			return -1;
		held[i] = result.pfn;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(held); i += 2) {
		put_page(p, held[i]);
		held[i] = PFN_NONE;
	}
	return 0;
}

static int shut_down_busy(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
		if (held[i] != PFN_NONE)
			put_page(machine.phys, held[i]);
	domain = domain_put(domain);
	return shut_down(state);
}

/* Lines of one text in order; the last asked for must be the last there is. */
struct lines {
	char *text, *rest;
};

static struct lines open_lines(const char *path)
{
	struct lines l = {.text = text_of(path)};

	l.rest = l.text;
	assert_int_equal(l.text[strlen(l.text) - 1], '\n');
	return l;
}

static char *next(struct lines *l)
{
	char *line = strsep(&l->rest, "\n");

	assert_non_null(l->rest); /* else the text ended before */
	return line;
}

static void close_lines(struct lines *l)
{
	assert_string_equal(l->rest, "");
	free(l->text);
}

/* "Label:" to 16 columns, 8 columns of number, " kB"; all behind `prefix`. */
static void check_kb_line(const char *line, const char *prefix, const char *label)
{
	char want[64];
	size_t skip = strlen(prefix);

	assert_memory_equal(line, prefix, skip);
	line += skip;
	if (strncmp(label, "HugePages_", 10) == 0) {
		snprintf(want, sizeof(want), "^%s: +[0-9]+$", label);
		assert_matches(line, want);
		assert_int_equal(strlen(line), skip ? 22 : 24);
	} else if (strcmp(label, "HardwareCorrupted") == 0) {
		assert_string_equal(line, "HardwareCorrupted:     0 kB");
	} else {
		/* in a node's file these two are a column short */
		bool is_short = skip && (strcmp(label, "FileHugePages") == 0 ||
					 strcmp(label, "FilePmdMapped") == 0);
		size_t width = is_short ? 15 : 16;

		snprintf(want, sizeof(want), "%s:", label);
		assert_memory_equal(line, want, strlen(want));
		assert_int_equal(strlen(line), width + 11);
		assert_matches(line + strlen(want), "^ +[0-9]+ kB$");
	}
}

static void test_meminfo(void **state __unused_)
{
	struct lines l = open_lines("proc/meminfo");
	struct phys *p = machine.phys;

	for (unsigned i = 0; i < ARRAY_SIZE(meminfo_labels); i++)
		check_kb_line(next(&l), "", meminfo_labels[i]);
	close_lines(&l);
	assert_int_equal(number_in("proc/meminfo", "MemTotal"), phys_total_pages(p) * 4);
	assert_int_equal(number_in("proc/meminfo", "MemFree"), phys_free_pages(p) * 4);
	assert_true(number_in("proc/meminfo", "MemFree") < number_in("proc/meminfo", "MemTotal"));
	assert_true(number_in("proc/meminfo", "MemAvailable") > 0);
	assert_true(number_in("proc/meminfo", "MemAvailable") <
		    number_in("proc/meminfo", "MemFree"));
	assert_int_equal(number_in("proc/meminfo", "Hugepagesize"), 2048);
}

static void test_gauges(void **state __unused_)
{
	struct node *n = phys_node(machine.phys, 1);
	const struct node saved = *n;

	n->stat[NR_SHMEM] = (uint64_t)-5;
	n->stat[NR_FILE_PAGES] = 3;
	n->stat[NR_SWAPCACHE] = 7;
	assert_int_equal(number_in("proc/meminfo", "Shmem"), 0);
	assert_int_equal(number_in("proc/meminfo", "Cached"), 0);
	assert_int_equal(number_in("proc/meminfo", "SwapCached"), 28);
	assert_int_equal(number_in("proc/vmstat", "nr_shmem"), 0);
	n->stat[NR_ANON_THPS] = 2;
	assert_int_equal(number_in("proc/meminfo", "AnonHugePages"), 4096);
	assert_int_equal(number_in("proc/vmstat", "nr_anon_transparent_hugepages"), 2);
	*n = saved;
}

static void test_node_meminfo(void **state __unused_)
{
	static const char *const summed[] = {"MemTotal", "MemFree",    "Shmem",        "AnonPages",
					     "Mapped",   "PageTables", "AnonHugePages"};

	for (unsigned nid = 0; nid < 2; nid++) {
		char path[64], prefix[16];
		struct lines l;

		snprintf(path, sizeof(path), "sys/devices/system/node/node%u/meminfo", nid);
		snprintf(prefix, sizeof(prefix), "Node %u ", nid);
		l = open_lines(path);
		for (unsigned i = 0; i < ARRAY_SIZE(node_labels); i++)
			check_kb_line(next(&l), prefix, node_labels[i]);
		close_lines(&l);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(summed); i++) {
		char label[2][64];

		for (unsigned nid = 0; nid < 2; nid++)
			snprintf(label[nid], sizeof(label[nid]), "Node %u %s", nid, summed[i]);
		assert_int_equal(
			number_in("sys/devices/system/node/node0/meminfo", label[0]) +
				number_in("sys/devices/system/node/node1/meminfo", label[1]),
			number_in("proc/meminfo", summed[i]));
	}
	assert_int_equal(
		number_in("sys/devices/system/node/node0/meminfo", "Node 0 MemUsed"),
		number_in("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal") -
			number_in("sys/devices/system/node/node0/meminfo", "Node 0 MemFree"));
}

static void check_names(struct lines *l, const char *const *names, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		char want[128];

		snprintf(want, sizeof(want), "^%s [0-9]+$", names[i]);
		assert_matches(next(l), want);
	}
}

static void test_vmstat(void **state __unused_)
{
	struct lines l = open_lines("proc/vmstat");

	check_names(&l, zone_items, ARRAY_SIZE(zone_items));
	check_names(&l, numa_items, ARRAY_SIZE(numa_items));
	check_names(&l, node_items, ARRAY_SIZE(node_items));
	assert_string_equal(next(&l), "nr_dirty_threshold 0");
	assert_string_equal(next(&l), "nr_dirty_background_threshold 0");
	check_names(&l, events, ARRAY_SIZE(events));
	assert_string_equal(next(&l), "nr_unstable 0");
	close_lines(&l);
	assert_int_equal(number_in("proc/vmstat", "nr_free_pages"), phys_free_pages(machine.phys));
	assert_true(number_in("proc/vmstat", "pgfree") > 0);
	assert_int_equal(number_in("sys/devices/system/node/node0/vmstat", "nr_free_pages") +
				 number_in("sys/devices/system/node/node1/vmstat", "nr_free_pages"),
			 phys_free_pages(machine.phys));
	l = open_lines("sys/devices/system/node/node0/vmstat");
	check_names(&l, zone_items, ARRAY_SIZE(zone_items));
	check_names(&l, numa_items, ARRAY_SIZE(numa_items));
	check_names(&l, node_items, ARRAY_SIZE(node_items));
	close_lines(&l);
}

static void test_numastat(void **state __unused_)
{
	static const char *const names[] = {"numa_hit",       "numa_miss",  "numa_foreign",
					    "interleave_hit", "local_node", "other_node"};
	struct lines l = open_lines("sys/devices/system/node/node0/numastat");

	check_names(&l, names, ARRAY_SIZE(names));
	close_lines(&l);
	assert_int_equal(number_in("sys/devices/system/node/node0/numastat", "numa_hit"),
			 number_in("sys/devices/system/node/node0/vmstat", "numa_hit"));
	assert_true(number_in("sys/devices/system/node/node0/numastat", "numa_hit") > 0);
}

/* The numbers of NR_ORDERS columns, weighed by their orders. */
static uint64_t sum_orders(const char *columns)
{
	uint64_t pages = 0;
	char *end;

	for (unsigned order = 0; order < NR_ORDERS; order++) {
		pages += strtoull(columns, &end, 10) << order;
		assert_ptr_not_equal(end, columns);
		assert_true(end - columns == (order ? 7 : 6) || end - columns > 7);
		columns = end;
	}
	assert_string_equal(columns, " ");
	return pages;
}

static void test_buddyinfo(void **state __unused_)
{
	static const char *const zones[] = {"     DMA", "  Normal", " HighMem"};
	struct lines l = open_lines("proc/buddyinfo");
	uint64_t pages = 0;

	for (unsigned i = 0; i < 6; i++) {
		char want[64];
		const char *line = next(&l);

		snprintf(want, sizeof(want), "Node %u, zone %s ", i / 3, zones[i % 3]);
		assert_memory_equal(line, want, strlen(want));
		pages += sum_orders(line + strlen(want));
	}
	close_lines(&l);
	assert_int_equal(pages * 4, number_in("proc/meminfo", "MemFree"));
}

static uint64_t check_type_table(struct lines *l, unsigned nid)
{
	static const char *const types[] = {"Unmovable",  "Movable", "Reclaimable",
					    "HighAtomic", "CMA",     "Isolate"};
	static const char *const zones[] = {"DMA", "Normal", "HighMem"};
	uint64_t pages = 0;

	for (unsigned z = 0; z < 3; z++) {
		for (unsigned t = 0; t < ARRAY_SIZE(types); t++) {
			const char *line = next(l);
			char want[64];

			snprintf(want, sizeof(want), "Node %4u, zone %8s, type %12s ", nid,
				 zones[z], types[t]);
			assert_memory_equal(line, want, strlen(want));
			pages += sum_orders(line + strlen(want));
		}
	}
	return pages;
}

static void test_pagetypeinfo(void **state __unused_)
{
	struct lines l = open_lines("proc/pagetypeinfo");
	uint64_t pages = 0, blocks = 0;

	for (unsigned nid = 0; nid < 2; nid++) {
		assert_string_equal(next(&l), "Page block order: 9");
		assert_string_equal(next(&l), "Pages per block:  512");
		assert_string_equal(next(&l), "");
		assert_string_equal(next(&l),
				    "Free pages count per migrate type at order       0      "
				    "1      2      3      4      5      6      7      8      "
				    "9     10 ");
		pages += check_type_table(&l, nid);
		assert_string_equal(next(&l), "");
		assert_string_equal(
			next(&l), "Number of blocks type     Unmovable      Movable  Reclaimable   "
				  "HighAtomic          CMA      Isolate ");
		for (unsigned z = 0; z < 3; z++) {
			const char *s = next(&l);

			assert_matches(s, "^Node [01], zone +(DMA|Normal|HighMem) ( +[0-9]+ ){6}$");
			assert_int_equal(strlen(s), 22 + 6 * 13);
			for (s += 22; *s; s += 13)
				blocks += strtoull(s, NULL, 10);
		}
	}
	close_lines(&l);
	assert_int_equal(pages, phys_free_pages(machine.phys));
	assert_int_equal(blocks * PAGEBLOCK_PAGES, phys_total_pages(machine.phys));
}

static void check_items(struct lines *l, const char *const *names, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		char want[64];
		const char *line = next(l);
		int len = snprintf(want, sizeof(want), "      %-12s ", names[i]);

		assert_memory_equal(line, want, (size_t)len);
		assert_matches(line + len, "^[0-9]+$");
	}
}

/* One "  label   number" line; the number. */
static uint64_t check_number(struct lines *l, const char *label)
{
	const char *line = next(l);

	assert_memory_equal(line, label, strlen(label));
	assert_matches(line + strlen(label), "^[0-9]+$");
	return strtoull(line + strlen(label), NULL, 10);
}

static void check_zone(struct lines *l, const struct zone *z, unsigned nr_cpus)
{
	char want[64];
	uint64_t min, low;

	snprintf(want, sizeof(want), "Node %u, zone %8s", z->node, zone_type_name(z->type));
	assert_string_equal(next(l), want);
	if (z->type == ZONE_DMA) {
		assert_string_equal(next(l), "  per-node stats");
		check_items(l, node_items, ARRAY_SIZE(node_items));
	}
	assert_int_equal(check_number(l, "  pages free     "), z->nr_free);
	assert_int_equal(check_number(l, "        boost    "), 0);
	min = check_number(l, "        min      ");
	low = check_number(l, "        low      ");
	assert_true(min <= low);
	assert_true(low <= check_number(l, "        high     "));
	assert_int_equal(check_number(l, "        spanned  "), z->end - z->start);
	assert_int_equal(check_number(l, "        present  "), z->present);
	assert_int_equal(check_number(l, "        managed  "), z->managed);
	assert_int_equal(check_number(l, "        cma      "), 0);
	assert_matches(next(l), "^        protection: \\([0-9]+, [0-9]+, [0-9]+\\)$");
	check_items(l, zone_items, ARRAY_SIZE(zone_items));
	check_items(l, numa_items, ARRAY_SIZE(numa_items));
	assert_string_equal(next(l), "  pagesets");
	for (unsigned cpu = 0; cpu < nr_cpus; cpu++) {
		assert_int_equal(check_number(l, "    cpu: "), cpu);
		check_number(l, "              count: ");
		check_number(l, "              high:  ");
		check_number(l, "              batch: ");
		check_number(l, "  vm stats threshold: ");
	}
	assert_int_equal(check_number(l, "  node_unreclaimable:  "), 0);
	assert_int_equal(check_number(l, "  start_pfn:           "), z->start);
}

static void test_zoneinfo(void **state __unused_)
{
	struct lines l = open_lines("proc/zoneinfo");

	for (unsigned nid = 0; nid < 2; nid++)
		for (unsigned t = 0; t < NR_ZONE_TYPES; t++)
			check_zone(&l, &phys_node(machine.phys, nid)->zone[t],
				   machine.topology.nr_cpus);
	close_lines(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_meminfo),      cmocka_unit_test(test_gauges),
		cmocka_unit_test(test_node_meminfo), cmocka_unit_test(test_vmstat),
		cmocka_unit_test(test_numastat),     cmocka_unit_test(test_buddyinfo),
		cmocka_unit_test(test_pagetypeinfo), cmocka_unit_test(test_zoneinfo),
	};

	return cmocka_run_group_tests(tests, boot_busy, shut_down_busy);
}
