/* SPDX-License-Identifier: MIT */
/*
 * upgrade.c - may another program go on with this state and these clients?
 *
 * It is asked itself, by --print-abi. Clients hold layouts of one ABI major, the state is of one
 * major: what speaks others is refused while this worker still serves. Minors may differ: the new
 * worker migrates.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "arena/abi.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/os.h"
#include "base/why.h"
#include "daemon/machine/machine.h"
#include "daemon/store/store.h"

#define ANSWER_MS 2000 /* meanwhile clients wait, and so does the watchdog */

/* Is a line of the text "KEY MAJOR.MINOR"? */
static bool find_version(const char *text, const char *key, unsigned *major, unsigned *minor)
{
	size_t n = strlen(key);

	for (const char *s = text; s; s = strchr(s, '\n')) {
		s += *s == '\n';
		if (strncmp(s, key, n) == 0 && s[n] == ' ' &&
		    sscanf(s + n, " %u.%u", major, minor) == 2)
			return true;
	}
	return false;
}

static int compare(const char *text, const struct why *why)
{
	unsigned abi, state, minor;

	if (!find_version(text, "abi", &abi, &minor) ||
	    !find_version(text, "state", &state, &minor))
		return fail(why, ARENA_E_PROTOCOL, "it is no arenad that can take over");
	if (abi != ARENA_ABI_MAJOR)
		return fail(why, ARENA_E_PROTOCOL,
			    "it speaks version %u of the protocol, the clients have version %u",
			    abi, ARENA_ABI_MAJOR);
	if (state != STATE_MAJOR)
		return fail(why, ARENA_E_PROTOCOL,
			    "it reads states of version %u, this one is of version %u", state,
			    STATE_MAJOR);
	return 0;
}

static int ask(const char *path, const struct why *why)
{
	const char *const argv[] = {path, "--print-abi", NULL};
	uint64_t watchdog_ms = store_watchdog_usec() / 1000;
	unsigned ms = watchdog_ms ? (unsigned)MIN(watchdog_ms / 4, ANSWER_MS) : ANSWER_MS;
	char text[1024];
	int r = os_output(argv, ms, text, sizeof(text));

	if (r == -ETIMEDOUT)
		return fail(why, ARENA_E_PROTOCOL, "it did not say within %u ms what it is", ms);
	if (r < 0)
		return fail(why, ARENA_E_INVALID, "cannot run it: %s", error_text(r));
	if (r > 0)
		return fail(why, ARENA_E_PROTOCOL, "it does not know --print-abi (status %d): %.*s",
			    r, (int)strcspn(text, "\n"), text);
	return compare(text, why);
}

static int upgrade(struct machine *m, const char *path, const struct why *why)
{
	_cleanup_(closep) int fd = -1;
	int r;

	if (!store_kept())
		return fail(why, ARENA_E_UNSUPPORTED,
			    "there is neither a supervisor nor systemd to start another worker");
	if (path[0] != '/')
		return fail(why, ARENA_E_INVALID, "not an absolute path");
	fd = open(path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return fail(why, errno == ENOENT ? ARENA_E_NOT_FOUND : ARENA_E_INVALID, "%s",
			    error_text(-errno));
	r = ask(path, why);
	if (r)
		return r;
	if (store_supervisor())
		r = store_set_program(path, fd);
	else if (strcmp(path, store_program()) != 0)
		return fail(why, ARENA_E_UNSUPPORTED,
			    "systemd starts what the unit says, which is %s", store_program());
	if (r)
		return fail(why, r, "cannot tell the supervisor: %s", error_text(r));
	m->restart = true;
	return 0;
}

int machine_upgrade(struct machine *m, const char *path)
{
	char text[512] = "";
	const struct why why = {.text = text, .size = sizeof(text)};
	int r;

	if (!*path)
		path = store_program();
	r = upgrade(m, path, &why);
	if (r) {
		snprintf(m->upgrade, sizeof(m->upgrade), "%s refused: %s", path, text);
		log_warning("upgrade: %s", m->upgrade);
	} else {
		snprintf(m->upgrade, sizeof(m->upgrade), "%s accepted", path);
		log_notice("upgrade: going on as %s", path);
	}
	return r;
}
