/* SPDX-License-Identifier: MIT */
/*
 * tunables.c - one show and one store for every row of tunables.def: a number between its limits,
 * kept as a word of the state file, and what must be worked out anew when it changes.
 */
#include "base/parse.h"
#include "base/truth.h"
#include "daemon/files/show.h"

static const struct {
	uint64_t min, max;
} limits[NR_TUNABLES] = {
#define TUNABLE(name, path, def, min, max, text) [TUNABLE_##name] = {min, max},
#include "arena/tunables.def"
#undef TUNABLE
};

int show_tunable(struct show *s)
{
	fprintf(s->out, "%" PRIu64 "\n", state_tunable(phys_state(s->phys), s->row->tunable));
	return 0;
}

static void tunable_changed(struct phys *p, enum tunable t)
{
	switch (t) {
	case TUNABLE_MIN_FREE_KBYTES:
	case TUNABLE_WATERMARK_SCALE_FACTOR:
	case TUNABLE_PERCPU_PAGELIST_HIGH_FRACTION:
		phys_setup_watermarks(p);
		break;
	case TUNABLE_ZERO_POOL_KBYTES:
		kzerod_collect(p);
		break;
	/* As in Linux one of the two says it, and the other shows 0. */
	case TUNABLE_OVERCOMMIT_RATIO:
		truth_store(&phys_state(p)->tunables[TUNABLE_OVERCOMMIT_KBYTES], UINT64_C(0));
		break;
	case TUNABLE_OVERCOMMIT_KBYTES:
		truth_store(&phys_state(p)->tunables[TUNABLE_OVERCOMMIT_RATIO], UINT64_C(0));
		break;
	default: /* read where it is used */
		break;
	}
}

int store_tunable(struct show *s, const char *value)
{
	enum tunable t = s->row->tunable;
	uint64_t n;

	if (parse_u64(value, &n) || n < limits[t].min || n > limits[t].max)
		return ARENA_E_INVALID;
	truth_store(&phys_state(s->phys)->tunables[t], n);
	tunable_changed(s->phys, t);
	return 0;
}
