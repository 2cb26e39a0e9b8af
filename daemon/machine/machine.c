/* SPDX-License-Identifier: MIT */
/*
 * machine.c - boot and shutdown, in one order and its reverse:
 *
 *	configuration -> topology -> phys (with the state file) -> virt -> kzerod, threads for files
 *
 * or, where an earlier worker left its state with the keeper, over that (recover.c).
 *
 * A step that fails says why in one line, and what came before it is taken down again. The machine
 * owns its configuration and its topology, which phys points into: it does not move while it runs.
 */
#include "daemon/machine/machine.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/os.h"
#include "base/parse.h"
#include "base/truth.h"
#include "base/why.h"
#include "daemon/machine/config.h"
#include "daemon/machine/recover.h"
#include "daemon/store/store.h"

#define PAGEBLOCK_BYTES ((uint64_t)PAGEBLOCK_PAGES << ARENA_PAGE_SHIFT)

/* ---- configuration --------------------------------------------------------------- */

static int copy_string(char **to, const char *from)
{
	*to = from ? mem_strdup(from) : NULL;
	return from && !*to ? -ENOMEM : 0;
}

/* On failure `to` is complete enough for machine_config_clear(). */
static int copy_config(struct machine_config *to, const struct machine_config *from)
{
	int r;

	*to = *from;
	to->socket = to->node_sizes = to->distances = to->reserve = to->mount = NULL;
	if ((r = copy_string(&to->socket, from->socket)) ||
	    (r = copy_string(&to->node_sizes, from->node_sizes)) ||
	    (r = copy_string(&to->distances, from->distances)) ||
	    (r = copy_string(&to->reserve, from->reserve)) ||
	    (r = copy_string(&to->mount, from->mount)))
		return r;
	return 0;
}

static int choose_topology(struct machine *m, const struct why *why)
{
	const struct machine_config *c = &m->config;
	int r;

	if (c->nodes) {
		r = numa_topology_simulate(&m->topology, c->nodes, os_nr_cpus());
		if (r)
			return fail(why, r, "nodes: %s", error_text(r));
	} else if ((r = numa_topology_host(&m->topology))) {
		return fail(why, r,
			    "nodes: this host shows no NUMA nodes to take over; set 1 or more");
	}
	if (c->distances && (r = numa_parse_distances(&m->topology, c->distances)))
		return fail(why, r, "distances: '%s' is not a matrix of %u nodes", c->distances,
			    m->topology.nr_nodes);
	return 0;
}

/* Sizes of the nodes, and with them the arena's if nothing else says it. */
static int size_nodes(struct machine *m, struct phys_config *pc, const struct why *why)
{
	unsigned nr, nr_nodes = m->topology.nr_nodes;
	uint64_t sum = 0;
	int r;

	if (!m->config.node_sizes)
		return 0;
	r = config_parse_sizes(m->config.node_sizes, pc->node_size, NUMA_MAX_NODES, &nr);
	if (r || nr != nr_nodes)
		return fail(why, r ? r : ARENA_E_INVALID,
			    "node-sizes: '%s' is not a size for each of %u nodes",
			    m->config.node_sizes, nr_nodes);
	for (unsigned n = 0; n < nr; n++)
		if (__builtin_add_overflow(sum, pc->node_size[n], &sum))
			return fail(why, ARENA_E_INVALID, "node-sizes: more than there can be");
	if (!pc->arena_size)
		pc->arena_size = sum;
	if (pc->arena_size != sum)
		return fail(why, ARENA_E_INVALID,
			    "node-sizes: they come to %" PRIu64 " bytes, arena-size is %" PRIu64,
			    sum, pc->arena_size);
	return 0;
}

static int size_arena(struct machine *m, struct phys_config *pc, const struct why *why)
{
	uint64_t available = os_memory_available();
	char size[32], least[32];
	int r;

	pc->arena_size = ALIGN_DOWN(m->config.arena_size, PAGEBLOCK_BYTES);
	r = size_nodes(m, pc, why);
	if (r)
		return r;
	if (!pc->arena_size)
		pc->arena_size =
			ALIGN_DOWN(MIN(available / 2, MACHINE_ARENA_SIZE_MAX), PAGEBLOCK_BYTES);
	format_size(size, sizeof(size), pc->arena_size);
	format_size(least, sizeof(least), MACHINE_ARENA_SIZE_MIN);
	if (pc->arena_size < MACHINE_ARENA_SIZE_MIN)
		return fail(why, ARENA_E_INVALID, "an arena of %s is too small: at least %s", size,
			    least);
	if (pc->arena_size > MACHINE_ARENA_SIZE_MAX)
		return fail(why, ARENA_E_INVALID, "an arena of %s is too large: at most 8 TiB",
			    size);
	if (available && pc->arena_size > available) {
		format_size(least, sizeof(least), available);
		log_warning(
			"the arena of %s is larger than the %s of memory this host has available",
			size, least);
	}
	m->config.arena_size = pc->arena_size;
	return 0;
}

static int reserve_ranges(struct machine *m, struct phys_config *pc, const struct why *why)
{
	int r;

	if (!m->config.reserve)
		return 0;
	r = config_parse_ranges(m->config.reserve, pc->reserved, PHYS_MAX_RANGES, &pc->nr_reserved);
	if (r)
		return fail(why, r, "reserve: '%s' is not a list of ranges", m->config.reserve);
	for (unsigned i = 0; i < pc->nr_reserved; i++) {
		const struct phys_range *range = &pc->reserved[i];

		if (range->base >= pc->arena_size || range->size > pc->arena_size - range->base)
			return fail(why, ARENA_E_INVALID, "reserve: '%s' leaves the arena",
				    m->config.reserve);
	}
	return 0;
}

/* ---- boot ------------------------------------------------------------------------ */

static int boot_phys(struct machine *m, const struct why *why)
{
	struct phys_config pc = {
		.topology = &m->topology,
		.zone_dma = m->config.zone_dma,
		.zone_normal = m->config.zone_normal,
		.section_size = m->config.section_size,
		.hugepages = m->hugepages,
	};
	char size[32];
	int r;

	if ((r = size_arena(m, &pc, why)) || (r = reserve_ranges(m, &pc, why)))
		return r;
	format_size(size, sizeof(size), pc.arena_size);
	r = phys_create(&pc, &m->state, &m->phys);
	if (r == ARENA_E_INVALID)
		return fail(why, r,
			    "an arena of %s with %u nodes does not fit its node, zone, section "
			    "or reserve sizes",
			    size, m->topology.nr_nodes);
	if (r)
		return fail(why, r, "cannot reserve an arena of %s: %s", size, error_text(r));
	if (m->config.zero_pool != UINT64_MAX)
		truth_store(&m->state.tunables[TUNABLE_ZERO_POOL_KBYTES],
			    m->config.zero_pool >> 10);
	m->boot_used = phys_total_pages(m->phys) - phys_free_pages(m->phys);
	return 0;
}

static void look_for_hugepages(struct machine *m)
{
	m->hugepages = m->config.hugepages && os_hugepages_available();
	if (m->config.hugepages && !m->hugepages)
		log_notice("this host gives shared memory no hugepages, so the arena runs on 4 KiB "
			   "pages; turn them on with: sudo arenactl host-setup");
}

static int boot_fresh(struct machine *m, const struct why *why)
{
	int r = choose_topology(m, why);

	if (!r)
		r = boot_phys(m, why);
	if (r)
		return r;
	r = virt_create(m->phys, &m->virt);
	return r ? fail(why, r, "cannot set up virtual memory: %s", error_text(r)) : 0;
}

static int boot(struct machine *m, const struct machine_config *config, const struct why *why)
{
	int r = copy_config(&m->config, config), state = store_take("state");

	if (r)
		return fail(why, r, "%s", error_text(r));
	m->recovered = state >= 0;
	look_for_hugepages(m);
	r = state < 0 ? boot_fresh(m, why) : machine_recover(m, state, why);
	if (r)
		return r;
	r = kzerod_start(m->phys);
	if (r)
		return fail(why, r, "cannot start kzerod: %s", error_text(r));
	r = virt_files_start(m->virt);
	if (r)
		return fail(why, r, "cannot read and write files: %s", error_text(r));
	return 0;
}

int machine_boot(struct machine *m, const struct machine_config *config, char *err, size_t err_size)
{
	const struct why why = {.text = err, .size = err_size};
	int r;

	*m = (struct machine){.boot_time = clock_now()};
	machine_config_init(&m->config);
	r = boot(m, config, &why);
	/* A state that could not be taken over stays as it is, for inspection: shutting down would give
	 * up what the keeper keeps of it. */
	if (r && !m->recovered)
		machine_shutdown(m);
	return r;
}

/* All address spaces are gone by now. */
void machine_shutdown(struct machine *m)
{
	if (m->phys) {
		kzerod_stop(m->phys);
		/* Nobody maps them any more. */
		if (m->virt)
			virt_files_stop(m->virt);
		ASSERT_VALID(!m->virt || machine_is_valid(m));
		m->virt = m->virt ? virt_destroy(m->virt) : NULL;
		/* Whatever clients did, what they had came back. */
		ASSERT(phys_total_pages(m->phys) - phys_free_pages(m->phys) == m->boot_used);
		m->phys = phys_destroy(m->phys);
	}
	machine_config_clear(&m->config);
}

bool machine_is_valid(struct machine *m)
{
	return virt_is_valid(m->virt);
}
