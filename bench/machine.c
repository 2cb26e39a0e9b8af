/* SPDX-License-Identifier: MIT */
/* machine.c - on what the figures were measured. */
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "bench/bench.h"

#define THP "/sys/kernel/mm/transparent_hugepage/"

/* The value of "KEY : value" of a /proc file, into buf; false if there is none. */
static bool proc_value(const char *path, const char *key, char *buf, size_t size)
{
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	size_t len = strlen(key);
	char line[512];

	while (f && fgets(line, sizeof(line), f)) {
		char *value = strchr(line, ':');

		if (!value || strncmp(line, key, len) || strspn(line + len, " \t:") == 0)
			continue;
		value += strspn(value, ": \t");
		value[strcspn(value, "\n")] = '\0';
		snprintf(buf, size, "%s", value);
		return true;
	}
	return false;
}

uint64_t machine_memory(const char *meminfo_key)
{
	char value[64];

	if (!proc_value("/proc/meminfo", meminfo_key, value, sizeof(value)))
		die("/proc/meminfo has no %s", meminfo_key);
	return strtoull(value, NULL, 10) << 10;
}

const char *machine_line(const char *path, char *buf, size_t size)
{
	_cleanup_(fclosep) FILE *f = fopen(path, "re");

	if (!f || !fgets(buf, (int)size, f))
		snprintf(buf, size, "?");
	buf[strcspn(buf, "\n")] = '\0';
	return buf;
}

/* The one in brackets of "always [madvise] never". */
static const char *chosen(const char *path, char *buf, size_t size)
{
	char *open, *close;

	machine_line(path, buf, size);
	open = strchr(buf, '[');
	close = open ? strchr(open, ']') : NULL;
	if (!close)
		return buf;
	*close = '\0';
	return open + 1;
}

static void item(FILE *out, bool json, const char *key, const char *value)
{
	static unsigned n;

	if (!json) {
		fprintf(out, "%-16s %s\n", key, value);
		return;
	}
	fprintf(out, "%s\"%s\": \"", n++ ? ", " : "", key);
	for (; *value; value++)
		if (*value != '"' && *value != '\\' && (unsigned char)*value >= ' ')
			fputc(*value, out);
	fputc('"', out);
}

void machine_describe(FILE *out, bool json)
{
	struct utsname u;
	char text[256];

	if (json)
		fputc('{', out);
	if (!proc_value("/proc/cpuinfo", "model name", text, sizeof(text)))
		snprintf(text, sizeof(text), "?");
	item(out, json, "cpu", text);
	snprintf(text, sizeof(text), "%ld", sysconf(_SC_NPROCESSORS_ONLN));
	item(out, json, "cores", text);
	snprintf(text, sizeof(text), "?");
	if (uname(&u) == 0)
		snprintf(text, sizeof(text), "%s %s %s", u.sysname, u.release, u.machine);
	item(out, json, "kernel", text);
	snprintf(text, sizeof(text), "%llu MiB",
		 (unsigned long long)(machine_memory("MemTotal") >> 20));
	item(out, json, "memory", text);
	item(out, json, "shmem_enabled", chosen(THP "shmem_enabled", text, sizeof(text)));
	item(out, json, "thp_enabled", chosen(THP "enabled", text, sizeof(text)));
	item(out, json, "thp_defrag", chosen(THP "defrag", text, sizeof(text)));
	item(out, json, "max_map_count",
	     machine_line("/proc/sys/vm/max_map_count", text, sizeof(text)));
	item(out, json, "load", machine_line("/proc/loadavg", text, sizeof(text)));
	if (json)
		fputc('}', out);
}
