/* SPDX-License-Identifier: MIT */
/*
 * report.c - what arenad really did for this process: one line at its end.
 *
 *     arena: COMM[PID]: mapped=B peak=B resident=B faults=N refills=N calls=N kernel=B shared=B files=B trap=NAME
 *
 * mapped is the sum of all mappings that were the arena's, peak the most at one time, resident what was
 * present at the end; kernel the sum of anonymous mappings that were not the arena's; shared what of
 * `mapped` were segments by name, and files what were files. A process that
 * has no arena says so. One that is killed, or becomes another by exec, says nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "libclient/internal.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

#define PAGE 4096u

static struct {
	uint64_t calls[NR_SERVED];
	uint64_t mapped, now, peak;
	uint64_t shared, files;
	uint64_t kernel;
} count;

static void add(uint64_t *to, uint64_t n)
{
	__atomic_fetch_add(to, n, __ATOMIC_RELAXED);
}

void report_served(enum served_call call)
{
	add(&count.calls[call], 1);
}

void report_mapped(uint64_t bytes)
{
	uint64_t now = __atomic_add_fetch(&count.now, bytes, __ATOMIC_RELAXED);
	uint64_t peak = load_relaxed(&count.peak);

	add(&count.mapped, bytes);
	while (now < UINT64_MAX / 2 && now > peak &&
	       !__atomic_compare_exchange_n(&count.peak, &peak, now, true, __ATOMIC_RELAXED,
					    __ATOMIC_RELAXED))
		;
}

void report_shared(uint64_t bytes)
{
	report_mapped(bytes);
	add(&count.shared, bytes);
}

void report_was_file(uint64_t bytes)
{
	add(&count.files, bytes);
}

/* Of holes, too: an estimate, which shall not fall below nothing. */
void report_unmapped(uint64_t bytes)
{
	uint64_t now = load_relaxed(&count.now);

	while (!__atomic_compare_exchange_n(&count.now, &now, now - MIN(now, bytes), true,
					    __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

void report_kernel(uint64_t bytes)
{
	add(&count.kernel, bytes);
}

/* The child's own from here on; what it has mapped it has mapped. */
void report_after_fork(void)
{
	uint64_t now = count.now;

	memset(&count, 0, sizeof(count));
	count.now = count.peak = now;
	preload.pid = getpid();
}

static uint64_t resident(arena_t *a)
{
	char path[64], text[128];
	unsigned long total, pages;

	snprintf(path, sizeof(path), "proc/%d/statm", (int)preload.pid);
	if (link_state(a) != LINK_UP || arena_attr_read(a, path, text, sizeof(text)) <= 0)
		return 0;
	return sscanf(text, "%lu %lu", &total, &pages) == 2 ? pages * (uint64_t)PAGE : 0;
}

static int write_line(char *line, size_t size)
{
	arena_t *a = preload.arena;
	uint64_t calls = 0;
	int n = snprintf(line, size, "arena: %s[%d]: ", preload.options.name, (int)preload.pid);

	for (unsigned i = 0; i < NR_SERVED; i++)
		calls += load_relaxed(&count.calls[i]);
	if (!a || a->foreign)
		return n + snprintf(line + n, size - (size_t)n, "no arena kernel=%llu\n",
				    (unsigned long long)count.kernel);
	return n +
	       snprintf(line + n, size - (size_t)n,
			"mapped=%llu peak=%llu resident=%llu faults=%llu refills=%llu calls=%llu "
			"kernel=%llu shared=%llu files=%llu trap=%s\n",
			(unsigned long long)count.mapped, (unsigned long long)count.peak,
			(unsigned long long)resident(a),
			(unsigned long long)load_relaxed(&a->tlb.channel->faults),
			(unsigned long long)load_relaxed(&a->tlb.channel->refills),
			(unsigned long long)calls, (unsigned long long)count.kernel,
			(unsigned long long)count.shared, (unsigned long long)count.files,
			a->trap.on ? "userfaultfd" : "signal");
}

void report_at_exit(void)
{
	static uint32_t done;
	const struct preload_options *o = &preload.options;
	char line[512];
	int64_t fd = preload.report_fd;
	int n;

	/* Not in the child of vfork(), which is not this process. */
	if ((!o->verbose && !o->report) || getpid() != preload.pid ||
	    __atomic_exchange_n(&done, 1, __ATOMIC_RELAXED))
		return;
	guard_enter();
	n = write_line(line, sizeof(line));
	if (o->report)
		fd = raw3(SYS_open, (uintptr_t)o->report, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC,
			  0600);
	if (fd >= 0)
		raw3(SYS_write, (uint64_t)fd, (uintptr_t)line, (uint64_t)n);
	if (o->report && fd >= 0)
		raw3(SYS_close, (uint64_t)fd, 0, 0);
	guard_leave();
}
