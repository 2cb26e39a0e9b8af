/* SPDX-License-Identifier: MIT */
/*
 * topology.h - nodes, their distances and their CPUs, simulated or the host's.
 *
 * Simulated: `nodes=N`; distances default to 10 on the diagonal and 20 elsewhere, or come from a
 * matrix; host CPUs are spread over the nodes round-robin in blocks (cpu * N / cpus). Host: read
 * through libnuma. Distances follow ACPI SLIT: 10 is local, others are above 10 and below 255.
 */
#ifndef NUMA_TOPOLOGY_H
#define NUMA_TOPOLOGY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bitmap.h"

#define NUMA_MAX_NODES 64
#define NUMA_MAX_CPUS 1024
#define NUMA_LOCAL_DISTANCE 10

struct numa_topology {
	unsigned nr_nodes;
	unsigned nr_cpus;
	bool simulated;
	uint8_t distance[NUMA_MAX_NODES][NUMA_MAX_NODES];
	uint8_t cpu_node[NUMA_MAX_CPUS];
};

/* 0, or ARENA_E_INVALID for nr_nodes 0 or above NUMA_MAX_NODES. */
int numa_topology_simulate(struct numa_topology *t, unsigned nr_nodes, unsigned nr_cpus);
/* The host's nodes; ARENA_E_UNSUPPORTED where the host has no NUMA. */
int numa_topology_host(struct numa_topology *t);
/* "10 20; 20 10": rows by ';' or newline, nr_nodes each. ARENA_E_INVALID leaves *t as it was. */
int numa_parse_distances(struct numa_topology *t, const char *text);
/* Node of a CPU; CPUs beyond the table wrap around. */
unsigned numa_cpu_to_node(const struct numa_topology *t, unsigned cpu);
/* All nodes by distance from `node`, itself first, ties by number. */
void numa_fallback_order(const struct numa_topology *t, unsigned node,
			 uint8_t order[NUMA_MAX_NODES]);
/* Have the host take the memory behind [addr, addr + len) of a shared mapping from `node` (mbind(2),
 * MPOL_BIND; it holds for every mapping of the file). Nothing to do for simulated nodes. -errno. */
int numa_bind_range(const struct numa_topology *t, void *addr, uint64_t len, unsigned node);
/* The CPUs of a node as a bitmap of NUMA_MAX_CPUS bits. */
void numa_node_cpus(const struct numa_topology *t, unsigned node, uint64_t *cpus);

#endif
