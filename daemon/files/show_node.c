/* SPDX-License-Identifier: MIT */
/* show_node.c - lists of nodes, and a node's CPUs and distances. All nodes are online. */
#include "base/bitmap.h"
#include "daemon/files/show.h"

/* Room for the longest list or mask of NUMA_MAX_CPUS bits: every other CPU, "0,2,...,1022". */
#define TEXT_MAX (NUMA_MAX_CPUS * 3)

static int put_list(FILE *out, const uint64_t *map, size_t nbits)
{
	char text[TEXT_MAX];

	bitmap_print_list(text, sizeof(text), map, nbits);
	fprintf(out, "%s\n", text);
	return 0;
}

typedef bool node_predicate(struct phys *p, struct node *n);

static int put_nodes(struct show *s, node_predicate *has)
{
	uint64_t map[BITMAP_WORDS(NUMA_MAX_NODES)] = {0};

	for (unsigned nid = 0; nid < phys_nr_nodes(s->phys); nid++)
		if (!has || has(s->phys, phys_node(s->phys, nid)))
			bitmap_set(map, nid);
	return put_list(s->out, map, NUMA_MAX_NODES);
}

static bool has_cpu(struct phys *p, struct node *n)
{
	uint64_t cpus[BITMAP_WORDS(NUMA_MAX_CPUS)];

	numa_node_cpus(phys_topology(p), n->id, cpus);
	return bitmap_next_set(cpus, NUMA_MAX_CPUS, 0) < NUMA_MAX_CPUS;
}

static bool has_memory(struct phys *p __unused_, struct node *n)
{
	for (unsigned t = 0; t < NR_ZONE_TYPES; t++)
		if (n->zone[t].present)
			return true;
	return false;
}

/* Memory that any allocation of the daemon may use: a zone up to NORMAL. */
static bool has_normal_memory(struct phys *p __unused_, struct node *n)
{
	return n->zone[ZONE_DMA].present || n->zone[ZONE_NORMAL].present;
}

int show_node_possible(struct show *s)
{
	return put_nodes(s, NULL);
}

int show_node_online(struct show *s)
{
	return put_nodes(s, NULL);
}

int show_node_has_cpu(struct show *s)
{
	return put_nodes(s, has_cpu);
}

int show_node_has_memory(struct show *s)
{
	return put_nodes(s, has_memory);
}

int show_node_has_normal_memory(struct show *s)
{
	return put_nodes(s, has_normal_memory);
}

int show_node_cpulist(struct show *s)
{
	uint64_t cpus[BITMAP_WORDS(NUMA_MAX_CPUS)];

	numa_node_cpus(phys_topology(s->phys), s->number, cpus);
	return put_list(s->out, cpus, NUMA_MAX_CPUS);
}

int show_node_cpumap(struct show *s)
{
	const struct numa_topology *t = phys_topology(s->phys);
	uint64_t cpus[BITMAP_WORDS(NUMA_MAX_CPUS)];
	char text[TEXT_MAX];

	numa_node_cpus(t, s->number, cpus);
	bitmap_print_mask(text, sizeof(text), cpus, t->nr_cpus);
	fprintf(s->out, "%s\n", text);
	return 0;
}

int show_node_distance(struct show *s)
{
	const struct numa_topology *t = phys_topology(s->phys);

	for (unsigned to = 0; to < t->nr_nodes; to++)
		fprintf(s->out, "%s%u", to ? " " : "", t->distance[s->number][to]);
	fputc('\n', s->out);
	return 0;
}
