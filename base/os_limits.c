/* SPDX-License-Identifier: MIT */
/*
 * os_limits.c - what the kernel lets another process do. prlimit(2) tells whom it may; for others
 * /proc/PID/limits, which everybody may read, says the same.
 */
#include "base/os.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/util.h"

static FILE *open_proc(pid_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	return fopen(path, "re");
}

/* The name of a limit's line in /proc/PID/limits. */
static const char *limit_name(int resource)
{
	switch (resource) {
	case RLIMIT_DATA:
		return "Max data size";
	case RLIMIT_STACK:
		return "Max stack size";
	case RLIMIT_MEMLOCK:
		return "Max locked memory";
	default:
		return NULL;
	}
}

static int limit_from_proc(pid_t pid, int resource, uint64_t *soft)
{
	_cleanup_(fclosep) FILE *f = open_proc(pid, "limits");
	const char *name = limit_name(resource);
	char line[256];

	if (!f || !name)
		return f ? -EINVAL : -errno;
	while (fgets(line, sizeof(line), f)) {
		if (strncmp(line, name, strlen(name)) != 0)
			continue;
		if (sscanf(line + strlen(name), " %" SCNu64, soft) != 1)
			*soft = UINT64_MAX;
		return 0;
	}
	return -ENOENT;
}

int os_process_limit(pid_t pid, int resource, uint64_t *soft)
{
	struct rlimit r;

	if (pid <= 0)
		return -ESRCH;
	if (syscall(SYS_prlimit64, pid, resource, NULL, &r) < 0)
		return errno == EPERM ? limit_from_proc(pid, resource, soft) : -errno;
	*soft = r.rlim_cur == RLIM_INFINITY ? UINT64_MAX : r.rlim_cur;
	return 0;
}

/* Capabilities in another user namespace are nothing here. What cannot be read is not ours. */
static bool same_user_namespace(pid_t pid)
{
	char path[64], theirs[64], ours[64];
	ssize_t n, m;

	snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
	n = readlink(path, theirs, sizeof(theirs));
	m = readlink("/proc/self/ns/user", ours, sizeof(ours));
	return n > 0 && n == m && memcmp(theirs, ours, (size_t)n) == 0;
}

bool os_process_capable(pid_t pid, unsigned capability)
{
	_cleanup_(fclosep) FILE *f = pid > 0 ? open_proc(pid, "status") : NULL;
	uint64_t effective;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "CapEff: %" SCNx64, &effective) == 1)
			return capability < 64 && (effective >> capability & 1) &&
			       same_user_namespace(pid);
	return false;
}
