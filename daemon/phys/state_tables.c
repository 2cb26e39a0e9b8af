/* SPDX-License-Identifier: MIT */
/*
 * state_tables.c - counters, tunables and NUMA counts by name, so that workers with other lists of
 * them take over each other's.
 *
 * The file has two copies. What changes by itself (a counter, a knob) is one store to the one in
 * use; new names are written to the other one, and header.tables switches.
 */
#include <string.h>

#include "base/log.h"
#include "base/truth.h"
#include "base/util.h"
#include "daemon/phys/state_file.h"

static const char *const counter_names[NR_EVENTS] = {
#define EVENT(name, text) [EV_##name] = (text),
#define ARENA_EVENT(name, text) [EV_##name] = (text),
#include "arena/counters.def"
};
static const char *const numa_names[NR_NUMA_ITEMS] = {
#define NUMA_ITEM(name, text) [name] = (text),
#include "arena/counters.def"
};
static const struct {
	const char *name;
	uint64_t def, min, max;
} knobs[NR_TUNABLES] = {
#define TUNABLE(name, path, def, min, max, text) [TUNABLE_##name] = {#name, def, min, max},
#include "arena/tunables.def"
#undef TUNABLE
};
static_assert(NR_EVENTS <= STATE_MAX_COUNTERS && NR_TUNABLES <= STATE_MAX_TUNABLES &&
		      NR_NUMA_ITEMS <= STATE_MAX_NUMA_ITEMS,
	      "the tables are full: a new major");

static void set_name(char to[STATE_NAME_SIZE], const char *name)
{
	char padded[STATE_NAME_SIZE] = {0};

	BUG_ON(strlen(name) >= STATE_NAME_SIZE);
	memcpy(padded, name, strlen(name));
	truth_fill(to, padded, sizeof(padded));
}

void state_tables_init(struct state_tables *t)
{
	for (unsigned i = 0; i < NR_EVENTS; i++)
		set_name(t->counter_name[i], counter_names[i]);
	for (unsigned i = 0; i < NR_NUMA_ITEMS; i++)
		set_name(t->numa_name[i], numa_names[i]);
	for (unsigned i = 0; i < NR_TUNABLES; i++) {
		set_name(t->tunable_name[i], knobs[i].name);
		truth_store(&t->tunable[i], knobs[i].def);
	}
	truth_store(&t->nr_counters, (uint32_t)NR_EVENTS);
	truth_store(&t->nr_numa_items, (uint32_t)NR_NUMA_ITEMS);
	truth_store(&t->nr_tunables, (uint32_t)NR_TUNABLES);
}

bool state_tables_current(const struct state_tables *t)
{
	if (t->nr_counters != NR_EVENTS || t->nr_tunables != NR_TUNABLES ||
	    t->nr_numa_items != NR_NUMA_ITEMS)
		return false;
	for (unsigned i = 0; i < NR_EVENTS; i++)
		if (strncmp(t->counter_name[i], counter_names[i], STATE_NAME_SIZE) != 0)
			return false;
	for (unsigned i = 0; i < NR_NUMA_ITEMS; i++)
		if (strncmp(t->numa_name[i], numa_names[i], STATE_NAME_SIZE) != 0)
			return false;
	for (unsigned i = 0; i < NR_TUNABLES; i++)
		if (strncmp(t->tunable_name[i], knobs[i].name, STATE_NAME_SIZE) != 0)
			return false;
	return true;
}

/* Where `name` stands in a table, looked for first where it stands in ours. `nr`: it is not there. */
static unsigned find(const char (*names)[STATE_NAME_SIZE], unsigned nr, const char *name,
		     unsigned first)
{
	for (unsigned i = 0; i < nr; i++) {
		unsigned at = (first + i) % nr;

		if (strncmp(names[at], name, STATE_NAME_SIZE) == 0)
			return at;
	}
	return nr;
}

void state_tables_migrate(struct state_tables *to, const struct state_tables *from)
{
	unsigned nr_counters = MIN(from->nr_counters, STATE_MAX_COUNTERS);
	unsigned nr_tunables = MIN(from->nr_tunables, STATE_MAX_TUNABLES);
	unsigned nr_numa = MIN(from->nr_numa_items, STATE_MAX_NUMA_ITEMS), at;

	truth_zero(to, sizeof(*to));
	state_tables_init(to);
	for (unsigned i = 0; i < NR_EVENTS; i++) {
		at = find(from->counter_name, nr_counters, counter_names[i], i);
		if (at < nr_counters)
			truth_store(&to->counter[i], from->counter[at]);
	}
	for (unsigned i = 0; i < NR_TUNABLES; i++) {
		at = find(from->tunable_name, nr_tunables, knobs[i].name, i);
		if (at < nr_tunables)
			truth_store(&to->tunable[i], from->tunable[at]);
	}
	for (unsigned i = 0; i < NR_NUMA_ITEMS; i++) {
		at = find(from->numa_name, nr_numa, numa_names[i], i);
		for (unsigned n = 0; at < nr_numa && n < ARRAY_SIZE(to->numa); n++)
			truth_store(&to->numa[n][i], from->numa[n][at]);
	}
}

unsigned state_tables_repair(struct state_tables *t)
{
	unsigned n = 0;

	for (unsigned i = 0; i < NR_TUNABLES; i++) {
		uint64_t v = t->tunable[i];

		if (v == knobs[i].def || (v >= knobs[i].min && v <= knobs[i].max))
			continue;
		log_warning("state: %s is %llu, which it cannot be: %llu again", knobs[i].name,
			    (unsigned long long)v, (unsigned long long)knobs[i].def);
		truth_store(&t->tunable[i], knobs[i].def);
		n++;
	}
	return n;
}
