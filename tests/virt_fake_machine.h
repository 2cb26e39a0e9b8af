/* SPDX-License-Identifier: MIT */
/* virt_fake_machine.h - a small machine for the tests of the virt room; its clients: virt_fake.h. */
#ifndef TESTS_VIRT_FAKE_MACHINE_H
#define TESTS_VIRT_FAKE_MACHINE_H

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "arena/arena.h"
#include "base/clock.h"
#include "base/faultpoint.h"
#include "base/log.h"
#include "base/prng.h"
#include "daemon/virt/internal.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define TEST_WINDOW (UINT64_C(64) << 30)
#define PAGE(n) ((uint64_t)(n) << ARENA_PAGE_SHIFT)
#define LEAF(n) ((uint64_t)(n) << ARENA_LEAF_SHIFT)

struct fake_machine {
	struct numa_topology topology;
	struct phys_config config;
	struct state state;
	struct phys *phys;
	struct virt *virt;
	uint64_t boot_free;
};

/* The limits of every client: its process is not there to be asked. */
static uint64_t test_limit[3] = {UINT64_MAX, UINT64_MAX, UINT64_MAX};

static inline uint64_t fake_limit(pid_t pid __unused_, enum vm_limit which)
{
	return test_limit[which];
}

/* Without kzerod: nothing happens that the test did not ask for. */
static inline void machine_up(struct fake_machine *m, uint64_t size, unsigned nodes)
{
	memset(m, 0, sizeof(*m));
	m->config = (struct phys_config){
		.arena_size = size,
		.topology = &m->topology,
		.section_size = UINT64_C(16) << 20,
	};
	assert_int_equal(numa_topology_simulate(&m->topology, nodes, 4), 0);
	assert_int_equal(phys_create(&m->config, &m->state, &m->phys), 0);
	assert_int_equal(virt_create(m->phys, &m->virt), 0);
	virt_set_limits(m->virt, fake_limit);
	/* Tests map far more than their small machine has. */
	m->state.tunables[TUNABLE_OVERCOMMIT_MEMORY] = 1;
	m->boot_free = phys_free_pages(m->phys);
}

/* All mms are gone: so must everything else be that is not a named segment. */
static inline void machine_down(struct fake_machine *m)
{
	assert_true(virt_is_valid(m->virt));
	assert_int_equal(virt_limbo_pages(m->virt), 0);
	assert_false(virt_flush_pending(m->virt));
	m->virt = virt_destroy(m->virt);
	assert_true(phys_is_valid(m->phys));
	assert_int_equal(phys_free_pages(m->phys), m->boot_free);
	m->phys = phys_destroy(m->phys);
}

#endif
