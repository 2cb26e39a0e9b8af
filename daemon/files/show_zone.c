/* SPDX-License-Identifier: MIT */
/*
 * show_zone.c - buddyinfo, zoneinfo and pagetypeinfo: zone by zone in node order.
 *
 * Counters are exact, so the threshold that Linux keeps per CPU is 0. Events of NUMA policy are
 * counted per node: they stand with the node's first zone, so that the sum over zones is right.
 */
#include "daemon/files/show.h"

static bool zone_populated(const struct zone *z)
{
	return z->present > 0;
}

/* The next zone after `z` in node order, NULL: the first; all of them or those with memory. */
static struct zone *next_zone(struct phys *p, const struct zone *z, bool populated)
{
	unsigned index = z ? z->index + 1u : 0;

	for (; index < phys_nr_nodes(p) * NR_ZONE_TYPES; index++) {
		struct zone *next =
			&phys_node(p, index / NR_ZONE_TYPES)->zone[index % NR_ZONE_TYPES];

		if (!populated || zone_populated(next))
			return next;
	}
	return NULL;
}

int show_buddyinfo(struct show *s)
{
	for (struct zone *z = next_zone(s->phys, NULL, true); z; z = next_zone(s->phys, z, true)) {
		fprintf(s->out, "Node %u, zone %8s ", z->node, zone_type_name(z->type));
		for (unsigned order = 0; order < NR_ORDERS; order++) {
			uint64_t n = 0;

			for (unsigned t = 0; t < NR_MIGRATETYPES; t++)
				n += zone_free_blocks(z, order, t);
			fprintf(s->out, "%6" PRIu64 " ", n);
		}
		fputc('\n', s->out);
	}
	return 0;
}

/* ---- pagetypeinfo ------------------------------------------------------------------------ */

static void put_free_blocks(FILE *out, struct node *n)
{
	fprintf(out, "%-43s ", "Free pages count per migrate type at order");
	for (unsigned order = 0; order < NR_ORDERS; order++)
		fprintf(out, "%6u ", order);
	fputc('\n', out);
	for (unsigned zt = 0; zt < NR_ZONE_TYPES; zt++) {
		const struct zone *z = &n->zone[zt];

		for (unsigned t = 0; t < NR_MIGRATETYPES && zone_populated(z); t++) {
			fprintf(out, "Node %4u, zone %8s, type %12s ", n->id, zone_type_name(zt),
				migratetype_name(t));
			for (unsigned order = 0; order < NR_ORDERS; order++)
				fprintf(out, "%6" PRIu64 " ", zone_free_blocks(z, order, t));
			fputc('\n', out);
		}
	}
}

static void put_pageblocks(FILE *out, struct node *n)
{
	fprintf(out, "\n%-23s", "Number of blocks type ");
	for (unsigned t = 0; t < NR_MIGRATETYPES; t++)
		fprintf(out, "%12s ", migratetype_name(t));
	fputc('\n', out);
	for (unsigned zt = 0; zt < NR_ZONE_TYPES; zt++) {
		const struct zone *z = &n->zone[zt];

		if (!zone_populated(z))
			continue;
		fprintf(out, "Node %u, zone %8s ", n->id, zone_type_name(zt));
		for (unsigned t = 0; t < NR_MIGRATETYPES; t++)
			fprintf(out, "%12" PRIu64 " ", zone_pageblocks(z, t));
		fputc('\n', out);
	}
}

int show_pagetypeinfo(struct show *s)
{
	for (unsigned nid = 0; nid < phys_nr_nodes(s->phys); nid++) {
		struct node *n = phys_node(s->phys, nid);
		struct mem_sums sums = {0};

		sum_node(n, &sums);
		if (!sums.managed)
			continue;
		fprintf(s->out, "Page block order: %d\nPages per block:  %u\n\n", PAGEBLOCK_ORDER,
			PAGEBLOCK_PAGES);
		put_free_blocks(s->out, n);
		put_pageblocks(s->out, n);
	}
	return 0;
}

/* ---- zoneinfo ---------------------------------------------------------------------------- */

static bool is_first_populated(const struct node *n, const struct zone *z)
{
	for (unsigned t = 0; t < z->type; t++)
		if (zone_populated(&n->zone[t]))
			return false;
	return zone_populated(z);
}

static void put_items(FILE *out, const char *const *text, const uint64_t *value, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		fprintf(out, "\n      %-12s %" PRIu64, text[i], value ? gauge(value[i]) : 0);
}

static void put_pages(FILE *out, const struct zone *z)
{
	fprintf(out,
		"\n  pages free     %" PRIu64 "\n        boost    0"
		"\n        min      %" PRIu64 "\n        low      %" PRIu64
		"\n        high     %" PRIu64 "\n        spanned  %" PRIu64
		"\n        present  %" PRIu64 "\n        managed  %" PRIu64
		"\n        cma      %" PRIu64,
		z->nr_free, z->watermark[WMARK_MIN], z->watermark[WMARK_LOW],
		z->watermark[WMARK_HIGH], (uint64_t)z->end - z->start, z->present, z->managed,
		zone_pageblocks(z, MIGRATE_CMA) << PAGEBLOCK_ORDER);
	fputs("\n        protection: (", out);
	for (unsigned t = 0; t < NR_ZONE_TYPES; t++)
		fprintf(out, "%s%" PRIu64, t ? ", " : "", z->lowmem_reserve[t]);
	fputc(')', out);
}

static void put_pagesets(FILE *out, const struct zone *z, unsigned nr_cpus)
{
	fputs("\n  pagesets", out);
	for (unsigned cpu = 0; cpu < nr_cpus; cpu++) {
		struct pcp_info pcp;

		zone_pcp_info(z, cpu, &pcp);
		fprintf(out,
			"\n    cpu: %u\n              count: %u\n              high:  %u"
			"\n              batch: %u\n  vm stats threshold: 0",
			cpu, pcp.count, pcp.high, pcp.batch);
	}
}

int show_zoneinfo(struct show *s)
{
	FILE *out = s->out;

	for (struct zone *z = next_zone(s->phys, NULL, false); z;
	     z = next_zone(s->phys, z, false)) {
		struct node *n = phys_node(s->phys, z->node);
		bool first = is_first_populated(n, z);

		fprintf(out, "Node %u, zone %8s", z->node, zone_type_name(z->type));
		if (first) {
			fputs("\n  per-node stats", out);
			put_items(out, node_item_text, n->stat, NR_NODE_ITEMS);
		}
		put_pages(out, z);
		if (zone_populated(z)) {
			put_items(out, zone_item_text, z->stat, NR_ZONE_ITEMS);
			put_items(out, numa_item_text, first ? n->numa_stat : NULL, NR_NUMA_ITEMS);
			put_pagesets(out, z, phys_topology(s->phys)->nr_cpus);
			fprintf(out,
				"\n  node_unreclaimable:  0"
				"\n  start_pfn:           %" PRIu32,
				z->start);
		}
		fputc('\n', out);
	}
	return 0;
}
