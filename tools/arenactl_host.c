/* SPDX-License-Identifier: MIT */
/*
 * arenactl_host.c - host-setup: the one setting of the host that arenad gains most from.
 *
 * The arena is shared memory that asks for hugepages mapping by mapping. The kernel grants that
 * when shmem_enabled is advise or more, and advise changes nothing for programs that do not ask.
 * Its default is never.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "tools/arenactl.h"

#define SHMEM_ENABLED "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
#define MAX_MAP_COUNT "/proc/sys/vm/max_map_count"

static int open_file(const struct ctl *c, const char *path, int flags)
{
	char full[4096];

	if (snprintf(full, sizeof(full), "%s%s", c->root ? c->root : "", path) >=
	    (int)sizeof(full)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	return open(full, flags | O_CLOEXEC);
}

/* A file of one line, without its newline. 0, or -1 and errno. */
static int read_line(const struct ctl *c, const char *path, char *buf, size_t size)
{
	_cleanup_(closep) int fd = open_file(c, path, O_RDONLY);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = read(fd, buf, size - 1);
	if (n < 0)
		return -1;
	buf[n] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return 0;
}

static int write_line(const struct ctl *c, const char *path, const char *value)
{
	_cleanup_(closep) int fd = open_file(c, path, O_WRONLY | O_TRUNC);
	size_t len = strlen(value);

	if (fd < 0)
		return -1;
	return write(fd, value, len) == (ssize_t)len ? 0 : -1;
}

/* "always [advise] never": cut to what stands in brackets. */
static char *chosen(char *line)
{
	char *open = strchr(line, '[');
	char *close = open ? strchr(open, ']') : NULL;

	if (!close)
		return line;
	*close = '\0';
	return open + 1;
}

static void explain_map_count(const struct ctl *c)
{
	char line[64], size[32];
	uint64_t n;

	if (read_line(c, MAX_MAP_COUNT, line, sizeof(line)) || parse_u64(line, &n))
		return;
	printf("vm.max_map_count is %s: a client can map that many separate pieces, %s where every "
	       "page "
	       "lies alone.\n"
	       "  Near it a client drops its mappings and goes on, slower (the evictions of "
	       "'arenactl ps'). "
	       "More: sysctl -w vm.max_map_count=1048576\n",
	       line, format_size(size, sizeof(size), n * 4096));
}

static int turn_on(struct ctl *c, const char *now)
{
	if (c->options & CTL_CHECK) {
		printf("shmem_enabled is %s: arenad runs on 4 KiB pages, slower. This turns "
		       "hugepages on: "
		       "sudo %s host-setup\n",
		       now, c->program);
		return CTL_DONE;
	}
	if (write_line(c, SHMEM_ENABLED, "advise"))
		return ctl_fail("cannot write advise to %s%s: %s", c->root ? c->root : "",
				SHMEM_ENABLED, strerror(errno));
	printf("shmem_enabled was %s, is now advise: an arenad started from now on has hugepages.\n"
	       "  It lasts until the next boot. To keep it, put this line into "
	       "/etc/tmpfiles.d/arenad-hugepages.conf (an installed service has it already):\n"
	       "  w %s - - - - advise\n",
	       now, SHMEM_ENABLED);
	return CTL_DONE;
}

int verb_host_setup(struct ctl *c, char **args __unused_)
{
	char line[256];
	const char *now;
	int status = CTL_DONE;

	if (!(c->options & (CTL_CHECK | CTL_ROOT)) && geteuid() != 0)
		return ctl_fail("host-setup needs root: sudo %s host-setup", c->program);
	if (read_line(c, SHMEM_ENABLED, line, sizeof(line)))
		return ctl_fail(
			"%s%s: %s; this kernel has no transparent hugepages for shared memory",
			c->root ? c->root : "", SHMEM_ENABLED, strerror(errno));
	now = chosen(line);
	if (strcmp(now, "never") == 0 || strcmp(now, "deny") == 0)
		status = turn_on(c, now);
	else
		printf("shmem_enabled is %s: arenad gets hugepages. Nothing to do.\n", now);
	if (status == CTL_DONE)
		explain_map_count(c);
	return status;
}
