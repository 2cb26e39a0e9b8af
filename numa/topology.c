/* SPDX-License-Identifier: MIT */
/*
 * topology.c - a table of distances and the node of each CPU, filled by simulation, by text, or by
 * libnuma.
 *
 * Whatever filled it: nodes are 0 .. nr_nodes-1, the diagonal of `distance` is
 * NUMA_LOCAL_DISTANCE, every other entry lies between MIN_REMOTE and MAX_REMOTE, cpu_node[] is
 * below nr_nodes, and there is at least one CPU.
 */
#include "numa/topology.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <string.h>

#include "base/error.h"
#include "base/util.h"

#define REMOTE_DISTANCE 20
#define MIN_REMOTE (NUMA_LOCAL_DISTANCE + 1)
#define MAX_REMOTE 254

int numa_topology_simulate(struct numa_topology *t, unsigned nr_nodes, unsigned nr_cpus)
{
	if (!nr_nodes || nr_nodes > NUMA_MAX_NODES)
		return ARENA_E_INVALID;
	memset(t, 0, sizeof(*t));
	t->nr_nodes = nr_nodes;
	t->nr_cpus = MIN(MAX(nr_cpus, 1), NUMA_MAX_CPUS);
	t->simulated = true;
	for (unsigned from = 0; from < nr_nodes; from++)
		for (unsigned to = 0; to < nr_nodes; to++)
			t->distance[from][to] = from == to ? NUMA_LOCAL_DISTANCE : REMOTE_DISTANCE;
	for (unsigned cpu = 0; cpu < t->nr_cpus; cpu++)
		t->cpu_node[cpu] = (uint8_t)(cpu * nr_nodes / t->nr_cpus);
	return 0;
}

/* Firmware may report nonsense; the table's promise holds all the same. */
static uint8_t sane_distance(unsigned from, unsigned to, int reported)
{
	if (from == to)
		return NUMA_LOCAL_DISTANCE;
	return reported <= 0 ? REMOTE_DISTANCE
			     : (uint8_t)MIN(MAX(reported, MIN_REMOTE), MAX_REMOTE);
}

/* Nodes here are numbered without holes and carry the host's numbers, for binding: a host whose
 * numbers have holes is not served. */
int numa_topology_host(struct numa_topology *t)
{
	struct numa_topology host = {0};
	int nodes, cpus;

	if (numa_available() < 0)
		return ARENA_E_UNSUPPORTED;
	nodes = numa_max_node() + 1;
	cpus = numa_num_configured_cpus();
	if (nodes < 1 || nodes > NUMA_MAX_NODES || numa_num_configured_nodes() != nodes)
		return ARENA_E_UNSUPPORTED;
	host.nr_nodes = (unsigned)nodes;
	host.nr_cpus = (unsigned)MIN(MAX(cpus, 1), NUMA_MAX_CPUS);
	for (unsigned from = 0; from < host.nr_nodes; from++)
		for (unsigned to = 0; to < host.nr_nodes; to++)
			host.distance[from][to] =
				sane_distance(from, to, numa_distance((int)from, (int)to));
	for (unsigned cpu = 0; cpu < host.nr_cpus; cpu++) {
		int node = numa_node_of_cpu((int)cpu);

		host.cpu_node[cpu] = (uint8_t)(node >= 0 && node < nodes ? node : 0);
	}
	*t = host;
	return 0;
}

/* One distance at *s; *s moves behind it and the blanks that follow. */
static bool read_distance(const char **s, unsigned *out)
{
	unsigned n = 0;

	if (!isdigit((unsigned char)**s))
		return false;
	for (; isdigit((unsigned char)**s); (*s)++) {
		n = n * 10 + (unsigned)(**s - '0');
		if (n > MAX_REMOTE)
			return false;
	}
	*s += strspn(*s, " \t\r");
	*out = n;
	return true;
}

/* Rows end in ';' or newline; the last one may, too. */
int numa_parse_distances(struct numa_topology *t, const char *text)
{
	uint8_t parsed[NUMA_MAX_NODES][NUMA_MAX_NODES];
	const char *s = text + strspn(text, " \t\r\n");

	for (unsigned from = 0; from < t->nr_nodes; from++) {
		for (unsigned to = 0; to < t->nr_nodes; to++) {
			unsigned n;

			if (!read_distance(&s, &n) || (from == to) != (n == NUMA_LOCAL_DISTANCE) ||
			    n < NUMA_LOCAL_DISTANCE)
				return ARENA_E_INVALID;
			parsed[from][to] = (uint8_t)n;
		}
		if (*s == ';' || *s == '\n')
			s++;
		else if (*s)
			return ARENA_E_INVALID;
		s += strspn(s, " \t\r\n");
	}
	if (*s)
		return ARENA_E_INVALID;
	for (unsigned from = 0; from < t->nr_nodes; from++)
		memcpy(t->distance[from], parsed[from], t->nr_nodes);
	return 0;
}

unsigned numa_cpu_to_node(const struct numa_topology *t, unsigned cpu)
{
	return t->cpu_node[cpu % t->nr_cpus];
}

/* An insertion sort, stable by going up in number; the local distance is the least there is, so
 * `node` comes first. Entries beyond nr_nodes are left alone. */
void numa_fallback_order(const struct numa_topology *t, unsigned node,
			 uint8_t order[NUMA_MAX_NODES])
{
	const uint8_t *distance = t->distance[node];

	for (unsigned n = 0; n < t->nr_nodes; n++) {
		unsigned at = n;

		for (; at > 0 && distance[order[at - 1]] > distance[n]; at--)
			order[at] = order[at - 1];
		order[at] = (uint8_t)n;
	}
}

void numa_node_cpus(const struct numa_topology *t, unsigned node, uint64_t *cpus)
{
	memset(cpus, 0, BITMAP_WORDS(NUMA_MAX_CPUS) * sizeof(*cpus));
	for (unsigned cpu = 0; cpu < t->nr_cpus; cpu++)
		if (t->cpu_node[cpu] == node)
			bitmap_set(cpus, cpu);
}

int numa_bind_range(const struct numa_topology *t, void *addr, uint64_t len, unsigned node)
{
	unsigned long mask = 1ul << node;

	static_assert(NUMA_MAX_NODES <= 8 * sizeof(mask), "one word of nodes");
	if (t->simulated || !len)
		return 0;
	/* The kernel reads one bit less than it is told. */
	return mbind(addr, len, MPOL_BIND, &mask, 8 * sizeof(mask) + 1, 0) < 0 ? -errno : 0;
}
