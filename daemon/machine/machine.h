/* SPDX-License-Identifier: MIT */
/*
 * machine.h - owns everything: configuration, boot order, the pieces and how they end.
 */
#ifndef MACHINE_MACHINE_H
#define MACHINE_MACHINE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/log.h"
#include "daemon/phys/phys.h"
#include "daemon/virt/virt.h"
#include "numa/topology.h"

/*
 * What options and the configuration file say. The keys, their types and accepted values are
 * listed once in daemon/machine/config.def.
 */
struct machine_config {
	char *socket;        /* path; NULL: the default */
	uint64_t arena_size; /* bytes; 0: half of the host's available memory */
	uint32_t nodes;      /* simulated nodes; 0: the host's */
	char *node_sizes;    /* "1G,512M"; NULL: equal shares */
	char *distances;     /* "10 20;20 10"; NULL: 10 and 20 */
	uint64_t zone_dma, zone_normal, section_size; /* 0: defaults */
	char *reserve; /* "SIZE@BASE,..." kept from the buddy; NULL */
	bool process_isolation;
	bool hugepages;
	uint64_t zero_pool; /* bytes; UINT64_MAX: default */
	enum log_level log_level;
	char *mount; /* "none" */
	bool supervisor;
	uint32_t watchdog;          /* seconds; 0: none */
	uint64_t userfaultfd_group; /* gid + 1; 0: none */
};

void machine_config_init(struct machine_config *c);
void machine_config_clear(struct machine_config *c);
/*
 * One key. On a bad value returns ARENA_E_INVALID and writes one line to err: the key, the value
 * and what is accepted. ARENA_E_NOT_FOUND: no such key (the line lists the keys).
 */
int machine_config_set(struct machine_config *c, const char *key, const char *value, char *err,
		       size_t err_size);
/* An INI file (no sections, or [arenad]); err names file, line, key and the accepted values. */
int machine_config_load(struct machine_config *c, const char *path, char *err, size_t err_size);

struct machine {
	struct machine_config config;
	struct numa_topology topology;
	struct state state;
	struct phys *phys;
	struct virt *virt;
	uint64_t boot_time;
	bool hugepages;     /* the host gives them */
	bool recovered;     /* or tried to: an earlier worker left its state */
	bool restart;       /* end, and let the next worker go on: machine_upgrade() said so */
	char upgrade[768];  /* what the last machine_upgrade() came to, one line */
	uint64_t boot_used; /* pages the buddy did not have at boot: as many as at shutdown */
};

/* Boot: topology, state, phys, virt, kzerod. Everything or nothing; err gets one line. */
int machine_boot(struct machine *m, const struct machine_config *config, char *err,
		 size_t err_size);
void machine_shutdown(struct machine *m);
bool machine_is_valid(struct machine *m);
/*
 * Have the next worker be of another program, "": of the one at the path of this, which may have been
 * replaced. It is refused if it cannot go on with these clients and this state, or nobody would
 * start it. 0: m->restart is set. Blocks until the program has said what it is.
 */
int machine_upgrade(struct machine *m, const char *path);

#endif
