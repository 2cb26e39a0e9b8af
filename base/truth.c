/* SPDX-License-Identifier: MIT */
/*
 * truth.c - the counter of stores to the truth.
 *
 * truth_store_reached() is weak, so that a test may copy the files or jump out instead of dying.
 * SIGKILL is the default because nothing after the store may run, no handler and no destructor.
 */
#include "base/truth.h"

#include <signal.h>
#include <stdlib.h>

uint64_t truth_stop_after;
uint64_t truth_stores;

__attribute__((weak)) void truth_store_reached(void)
{
	raise(SIGKILL);
	abort();
}
