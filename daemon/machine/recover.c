/* SPDX-License-Identifier: MIT */
/*
 * recover.c - boot over the truth that an earlier worker left with the keeper.
 *
 *	state file -> geometry -> phys (domains, frames) -> virt (objects, address spaces) -> kzerod
 *
 * What the configuration says of the arena's shape counts only for a new arena: a living one keeps
 * its shape, and a difference is worth a line. Damage to the state file itself ends the boot: the
 * keeper goes on keeping everything, for inspection. Damage to one client's files costs that client.
 */
#include "daemon/machine/recover.h"

#include <inttypes.h>

#include "base/clock.h"
#include "base/parse.h"
#include "daemon/store/store.h"

/* A size that was configured, and is not what the arena has. */
static void note_size(const char *key, uint64_t configured, uint64_t living)
{
	char want[32], have[32];

	if (!configured || configured == living)
		return;
	format_size(want, sizeof(want), configured);
	format_size(have, sizeof(have), living);
	log_notice("%s: %s is configured, the living arena has %s until it is stopped", key, want,
		   have);
}

static void note_differences(struct machine *m)
{
	const struct state_header *h = m->state.header;
	uint64_t size = h->nr_frames << ARENA_PAGE_SHIFT;

	note_size("arena-size", m->config.arena_size, size);
	note_size("section-size", m->config.section_size, h->section_pages << ARENA_PAGE_SHIFT);
	if (m->config.nodes && m->config.nodes != h->nr_nodes)
		log_notice("nodes: %u is configured, the living arena has %u until it is stopped",
			   m->config.nodes, h->nr_nodes);
	m->config.arena_size = size;
	m->config.nodes = h->nr_nodes;
}

int machine_recover(struct machine *m, int state_fd, const struct why *why)
{
	struct phys_config pc = {.topology = &m->topology, .hugepages = m->hugepages};
	struct virt_recover_stats stats = {0};
	int r = state_adopt(state_fd, &m->state, why->text, why->size);

	if (r)
		return r;
	phys_recover_topology(&m->state, &m->topology);
	r = phys_recover(&pc, &m->state, &m->phys);
	if (r)
		return fail(why, r, "cannot recover physical memory: %s", error_text(r));
	r = virt_recover(m->phys, &m->virt, &stats);
	if (r)
		return fail(why, r, "cannot recover virtual memory: %s", error_text(r));
	note_differences(m);
	log_notice("recovered in %" PRIu64 " ms", (clock_now() - m->boot_time) / NSEC_PER_MSEC);
	return 0;
}
