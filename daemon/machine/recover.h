/* SPDX-License-Identifier: MIT */
/* recover.h - boot over a stored state; machine.c's other way to boot. */
#ifndef MACHINE_RECOVER_H
#define MACHINE_RECOVER_H

#include "base/why.h"
#include "daemon/machine/machine.h"

/* Takes over state_fd. On failure what was made is there for machine_shutdown(). */
int machine_recover(struct machine *m, int state_fd, const struct why *why);

#endif
