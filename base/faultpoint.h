/* SPDX-License-Identifier: MIT */
/*
 * faultpoint.h - named places where a test makes things go wrong.
 *
 * $ARENA_FAULTPOINTS (not in set-uid programs; of workers the first, with $ARENA_FAULTPOINTS_KEEP each),
 * or faultpoint_arm() in a test:
 *     name=action[:arg][@N][,...]
 * Actions: fail (the place reports failure), delay:MICROSECONDS, stop (raise SIGSTOP), die
 * (_exit(66)), kill (raise SIGKILL). @N: only at the Nth passage, counted from 1; without: at each.
 * Unarmed, a fault point costs one predictable branch.
 */
#ifndef BASE_FAULTPOINT_H
#define BASE_FAULTPOINT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/util.h"

extern bool faultpoints_armed;
bool faultpoint_hit(const char *name); /* true: behave as failed */
/* 0 or ARENA_E_INVALID; NULL or "" disarms all. */
int faultpoint_arm(const char *spec);
void faultpoint_arm_from_environment(void);
/* The N of an armed name=action@N; 0: it is not armed, or without one. */
uint64_t faultpoint_only(const char *name);
/* Passages of `name` since it was armed. */
uint64_t faultpoint_passages(const char *name);

static inline bool faultpoint(const char *name)
{
	return unlikely(load_relaxed(&faultpoints_armed)) && faultpoint_hit(name);
}

#endif
