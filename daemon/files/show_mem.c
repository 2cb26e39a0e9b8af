/* SPDX-License-Identifier: MIT */
/*
 * show_mem.c - meminfo and vmstat of the arena and of one node, from the same sums.
 *
 * What this version has no notion of (block devices, swap, slab, hugetlb) is zero where Linux's tools look for the line. Items ending in THPS or PMDMAPPED count 2 MiB pages.
 */
#include <string.h>

#include "base/util.h"
#include "daemon/files/show.h"

const char *const zone_item_text[NR_ZONE_ITEMS] = {
#define ZONE_ITEM(name, text) [name] = text,
#include "arena/counters.def"
};
const char *const numa_item_text[NR_NUMA_ITEMS] = {
#define NUMA_ITEM(name, text) [name] = text,
#include "arena/counters.def"
};
const char *const node_item_text[NR_NODE_ITEMS] = {
#define NODE_ITEM(name, text) [name] = text,
#include "arena/counters.def"
};
static const char *const event_text[NR_EVENTS] = {
#define EVENT(name, text) [EV_##name] = text,
#define ARENA_EVENT(name, text) [EV_##name] = text,
#include "arena/counters.def"
};

void sum_node(struct node *n, struct mem_sums *sums)
{
	for (unsigned t = 0; t < NR_ZONE_TYPES; t++) {
		const struct zone *z = &n->zone[t];

		sums->present += z->present;
		sums->managed += z->managed;
		sums->free += z->nr_free;
		for (unsigned i = 0; i < NR_ZONE_ITEMS; i++)
			sums->zone[i] += z->stat[i];
	}
	for (unsigned i = 0; i < NR_NUMA_ITEMS; i++)
		sums->numa[i] += n->numa_stat[i];
	for (unsigned i = 0; i < NR_NODE_ITEMS; i++)
		sums->node[i] += n->stat[i];
}

void sum_all(struct phys *p, struct mem_sums *sums)
{
	memset(sums, 0, sizeof(*sums));
	for (unsigned nid = 0; nid < phys_nr_nodes(p); nid++)
		sum_node(phys_node(p, nid), sums);
}

/*
 * What could be allocated without pushing anything out: free memory above the high watermark and
 * the reserve that ordinary allocations must leave, zone by zone.
 */
static uint64_t available_pages(struct phys *p)
{
	uint64_t available = 0;

	for (unsigned nid = 0; nid < phys_nr_nodes(p); nid++) {
		for (unsigned t = 0; t < NR_ZONE_TYPES; t++) {
			const struct zone *z = &phys_node(p, nid)->zone[t];
			uint64_t reserve = 0;

			for (unsigned i = 0; i < NR_ZONE_TYPES; i++)
				reserve = MAX(reserve, z->lowmem_reserve[i]);
			reserve = MIN(reserve + z->watermark[WMARK_HIGH], z->managed);
			available += z->nr_free > reserve ? z->nr_free - reserve : 0;
		}
	}
	return available;
}

/* ---- meminfo ----------------------------------------------------------------------------- */

static void put_kb(FILE *out, const char *prefix, const char *label, uint64_t kb)
{
	char field[32];

	snprintf(field, sizeof(field), "%s:", label);
	fprintf(out, "%s%-16s%8" PRIu64 " kB\n", prefix, field, kb);
}

static uint64_t item_kb(const struct mem_sums *sums, enum node_item item)
{
	return pages_to_kb(gauge(sums->node[item]));
}

static uint64_t items_kb(const struct mem_sums *sums, enum node_item a, enum node_item b)
{
	return item_kb(sums, a) + item_kb(sums, b);
}

static uint64_t huge_kb(const struct mem_sums *sums, enum node_item item)
{
	return gauge(sums->node[item]) << (ARENA_LEAF_SHIFT - 10);
}

/* The lines that /proc/meminfo and a node's meminfo have alike. */
static void put_lru(FILE *out, const char *prefix, const struct mem_sums *s)
{
	put_kb(out, prefix, "Active", items_kb(s, NR_ACTIVE_ANON, NR_ACTIVE_FILE));
	put_kb(out, prefix, "Inactive", items_kb(s, NR_INACTIVE_ANON, NR_INACTIVE_FILE));
	put_kb(out, prefix, "Active(anon)", item_kb(s, NR_ACTIVE_ANON));
	put_kb(out, prefix, "Inactive(anon)", item_kb(s, NR_INACTIVE_ANON));
	put_kb(out, prefix, "Active(file)", item_kb(s, NR_ACTIVE_FILE));
	put_kb(out, prefix, "Inactive(file)", item_kb(s, NR_INACTIVE_FILE));
	put_kb(out, prefix, "Unevictable", item_kb(s, NR_UNEVICTABLE));
	put_kb(out, prefix, "Mlocked", pages_to_kb(gauge(s->zone[NR_MLOCK])));
}

static void put_slab(FILE *out, const char *prefix, const struct mem_sums *s)
{
	put_kb(out, prefix, "KReclaimable", item_kb(s, NR_SLAB_RECLAIMABLE));
	put_kb(out, prefix, "Slab", items_kb(s, NR_SLAB_RECLAIMABLE, NR_SLAB_UNRECLAIMABLE));
	put_kb(out, prefix, "SReclaimable", item_kb(s, NR_SLAB_RECLAIMABLE));
	put_kb(out, prefix, "SUnreclaim", item_kb(s, NR_SLAB_UNRECLAIMABLE));
}

static void put_kernel(FILE *out, const char *prefix, const struct mem_sums *s)
{
	put_kb(out, prefix, "KernelStack", 0);
	put_kb(out, prefix, "PageTables", item_kb(s, NR_PAGETABLE));
	put_kb(out, prefix, "SecPageTables", 0);
	put_kb(out, prefix, "NFS_Unstable", 0);
	put_kb(out, prefix, "Bounce", pages_to_kb(gauge(s->zone[NR_BOUNCE])));
	put_kb(out, prefix, "WritebackTmp", item_kb(s, NR_WRITEBACK_TEMP));
}

static void put_thp(FILE *out, const char *prefix, const struct mem_sums *s)
{
	put_kb(out, prefix, "AnonHugePages", huge_kb(s, NR_ANON_THPS));
	put_kb(out, prefix, "ShmemHugePages", huge_kb(s, NR_SHMEM_THPS));
	put_kb(out, prefix, "ShmemPmdMapped", huge_kb(s, NR_SHMEM_PMDMAPPED));
}

int show_meminfo(struct show *show)
{
	FILE *out = show->out;
	struct mem_sums s;
	uint64_t swapcached, file;

	sum_all(show->phys, &s);
	swapcached = item_kb(&s, NR_SWAPCACHE);
	file = item_kb(&s, NR_FILE_PAGES);
	put_kb(out, "", "MemTotal", pages_to_kb(s.managed));
	put_kb(out, "", "MemFree", pages_to_kb(s.free));
	put_kb(out, "", "MemAvailable", pages_to_kb(available_pages(show->phys)));
	put_kb(out, "", "Buffers", 0);
	put_kb(out, "", "Cached", file > swapcached ? file - swapcached : 0);
	put_kb(out, "", "SwapCached", swapcached);
	put_lru(out, "", &s);
	put_kb(out, "", "SwapTotal", 0);
	put_kb(out, "", "SwapFree", 0);
	put_kb(out, "", "Dirty", item_kb(&s, NR_FILE_DIRTY));
	put_kb(out, "", "Writeback", item_kb(&s, NR_WRITEBACK));
	put_kb(out, "", "AnonPages", item_kb(&s, NR_ANON_MAPPED));
	put_kb(out, "", "Mapped", item_kb(&s, NR_FILE_MAPPED));
	put_kb(out, "", "Shmem", item_kb(&s, NR_SHMEM));
	put_slab(out, "", &s);
	put_kernel(out, "", &s);
	put_kb(out, "", "CommitLimit", pages_to_kb(virt_commit_limit(show->virt)));
	put_kb(out, "", "Committed_AS", pages_to_kb(virt_committed_pages(show->virt)));
	put_kb(out, "", "VmallocTotal", 0);
	put_kb(out, "", "VmallocUsed", 0);
	put_kb(out, "", "VmallocChunk", 0);
	put_kb(out, "", "Percpu", 0);
	fprintf(out, "HardwareCorrupted: %5d kB\n", 0);
	put_thp(out, "", &s);
	put_kb(out, "", "FileHugePages", huge_kb(&s, NR_FILE_THPS));
	put_kb(out, "", "FilePmdMapped", huge_kb(&s, NR_FILE_PMDMAPPED));
	fprintf(out,
		"HugePages_Total:   %5d\nHugePages_Free:    %5d\n"
		"HugePages_Rsvd:    %5d\nHugePages_Surp:    %5d\n",
		0, 0, 0, 0);
	put_kb(out, "", "Hugepagesize", ARENA_LEAF_SIZE >> 10);
	put_kb(out, "", "Hugetlb", 0);
	return 0;
}

int show_node_meminfo(struct show *show)
{
	FILE *out = show->out;
	struct mem_sums s = {0};
	char node[16];

	sum_node(phys_node(show->phys, show->number), &s);
	snprintf(node, sizeof(node), "Node %" PRIu32 " ", show->number);
	put_kb(out, node, "MemTotal", pages_to_kb(s.managed));
	put_kb(out, node, "MemFree", pages_to_kb(s.free));
	put_kb(out, node, "MemUsed", pages_to_kb(s.managed > s.free ? s.managed - s.free : 0));
	put_kb(out, node, "SwapCached", item_kb(&s, NR_SWAPCACHE));
	put_lru(out, node, &s);
	put_kb(out, node, "Dirty", item_kb(&s, NR_FILE_DIRTY));
	put_kb(out, node, "Writeback", item_kb(&s, NR_WRITEBACK));
	put_kb(out, node, "FilePages", item_kb(&s, NR_FILE_PAGES));
	put_kb(out, node, "Mapped", item_kb(&s, NR_FILE_MAPPED));
	put_kb(out, node, "AnonPages", item_kb(&s, NR_ANON_MAPPED));
	put_kb(out, node, "Shmem", item_kb(&s, NR_SHMEM));
	put_kernel(out, node, &s);
	put_slab(out, node, &s);
	put_thp(out, node, &s);
	/* these labels are one column short, as Linux prints them */
	fprintf(out, "%sFileHugePages: %8" PRIu64 " kB\n", node, huge_kb(&s, NR_FILE_THPS));
	fprintf(out, "%sFilePmdMapped: %8" PRIu64 " kB\n", node, huge_kb(&s, NR_FILE_PMDMAPPED));
	fprintf(out, "%sHugePages_Total: %5d\n", node, 0);
	fprintf(out, "%sHugePages_Free:  %5d\n", node, 0);
	fprintf(out, "%sHugePages_Surp:  %5d\n", node, 0);
	return 0;
}

/* ---- vmstat ------------------------------------------------------------------------------ */

static void put_items(FILE *out, const char *const *text, const uint64_t *value, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		fprintf(out, "%s %" PRIu64 "\n", text[i], gauge(value[i]));
}

static void put_vmstat(FILE *out, const struct mem_sums *sums)
{
	put_items(out, zone_item_text, sums->zone, NR_ZONE_ITEMS);
	put_items(out, numa_item_text, sums->numa, NR_NUMA_ITEMS);
	put_items(out, node_item_text, sums->node, NR_NODE_ITEMS);
}

int show_vmstat(struct show *s)
{
	struct mem_sums sums;

	sum_all(s->phys, &sums);
	put_vmstat(s->out, &sums);
	fputs("nr_dirty_threshold 0\nnr_dirty_background_threshold 0\n", s->out);
	put_items(s->out, event_text, phys_state(s->phys)->counters, NR_EVENTS);
	fputs("nr_unstable 0\n", s->out);
	return 0;
}

int show_node_vmstat(struct show *s)
{
	struct mem_sums sums = {0};

	sum_node(phys_node(s->phys, s->number), &sums);
	put_vmstat(s->out, &sums);
	return 0;
}

int show_node_numastat(struct show *s)
{
	/* Linux has other names here than in vmstat */
	static const char *const text[NR_NUMA_ITEMS] = {
		[NUMA_HIT] = "numa_hit",         [NUMA_MISS] = "numa_miss",
		[NUMA_FOREIGN] = "numa_foreign", [NUMA_INTERLEAVE] = "interleave_hit",
		[NUMA_LOCAL] = "local_node",     [NUMA_OTHER] = "other_node",
	};

	put_items(s->out, text, phys_node(s->phys, s->number)->numa_stat, NR_NUMA_ITEMS);
	return 0;
}
