/* SPDX-License-Identifier: MIT */
/*
 * file_map.c - which mappings of files are the arena's (--files).
 *
 * A mapping is the arena's if its file is a regular one of a file system with real files, is not to be executed,
 * and is shared, or at least --min-size long. Shared ones of any length are, for all mappings of one file must
 * show the same.
 */
#include "libclient/preload/files.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/util.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

#define PAGE 4096u

static dev_t shm_dev; /* of /dev/shm; written once */

/* File systems whose files are not what they seem: no pages, or devices, or memory of another kind. */
static bool is_real(long type)
{
	switch ((unsigned long)type) {
	case PROC_SUPER_MAGIC:
	case SYSFS_MAGIC:
	case DEBUGFS_MAGIC:
	case TRACEFS_MAGIC:
	case SECURITYFS_MAGIC:
	case CGROUP_SUPER_MAGIC:
	case CGROUP2_SUPER_MAGIC:
	case HUGETLBFS_MAGIC:
	case BPF_FS_MAGIC:
	case PSTOREFS_MAGIC:
	case EFIVARFS_MAGIC:
	case DEVPTS_SUPER_MAGIC:
		return false;
	default:
		return true;
	}
}

/* Memory with a descriptor is memory already, and meant to be shared with whom it is passed to. */
static bool is_memory(int fd, const struct stat *st)
{
	char link[32], path[16];

	if (st->st_dev == shm_dev)
		return true;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	return st->st_nlink == 0 &&
	       raw3(SYS_readlink, (uintptr_t)link, (uintptr_t)path, sizeof(path)) >= 7 &&
	       memcmp(path, "/memfd:", 7) == 0;
}

static bool is_servable(int fd)
{
	struct statfs fs;
	struct stat st;

	if (raw3(SYS_fstat, (uint64_t)fd, (uintptr_t)&st, 0) < 0 || !S_ISREG(st.st_mode) ||
	    raw3(SYS_fstatfs, (uint64_t)fd, (uintptr_t)&fs, 0) < 0)
		return false;
	return is_real(fs.f_type) && !is_memory(fd, &st);
}

static bool may_serve(uint64_t addr, uint64_t len, int prot, int flags)
{
	int type = flags & MAP_TYPE;
	bool fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
	bool inside = range_place(addr, ALIGN_UP(len, (uint64_t)PAGE)) == RANGE_INSIDE;

	if ((type != MAP_PRIVATE && type != MAP_SHARED && type != MAP_SHARED_VALIDATE) ||
	    !map_flags_served(flags) || (fixed && !inside))
		return false;
	/* In the window there is nobody else to serve it. */
	if (fixed)
		return true;
	return !(prot & PROT_EXEC) && (type != MAP_PRIVATE || len >= preload.options.min_size);
}

/* Where they are, as far as they fit: for the report, which wants to know what was mapped when one grows. Under
 * shared_enter(). */
static struct place {
	uint64_t start, end;
} places[256];
static unsigned nr_places;

static void remember(uint64_t start, uint64_t len)
{
	shared_enter();
	if (nr_places < ARRAY_SIZE(places)) {
		places[nr_places] = (struct place){start, start + len};
		store_relaxed(&nr_places, nr_places + 1);
	}
	shared_leave();
}

void files_unmapped(uint64_t addr, uint64_t len)
{
	if (!load_relaxed(&nr_places) || preload_inside)
		return;
	shared_enter();
	for (unsigned i = nr_places; i-- > 0;)
		if (places[i].start >= addr && places[i].end <= addr + len) {
			store_relaxed(&nr_places, nr_places - 1);
			places[i] = places[nr_places];
		}
	shared_leave();
}

void files_moved(uint64_t from, uint64_t to, uint64_t len)
{
	if (!load_relaxed(&nr_places) || preload_inside)
		return;
	shared_enter();
	for (unsigned i = 0; i < nr_places; i++)
		if (from >= places[i].start && from < places[i].end) {
			places[i] = (struct place){to, to + len};
			report_was_file(len);
			break;
		}
	shared_leave();
}

bool files_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, int64_t off, int64_t *out)
{
	arena_t *a = files_serving();
	void *p;

	if (!a || fd < 0 || flags & MAP_ANONYMOUS || !may_serve(addr, len, prot, flags) ||
	    !is_servable(fd))
		return false;
	if ((flags & MAP_TYPE) == MAP_SHARED_VALIDATE)
		flags = (flags & ~MAP_TYPE) | MAP_SHARED;
	/* A wish, which cannot be granted. */
	if (range_place(addr, len) != RANGE_INSIDE)
		addr = 0;
	guard_enter();
	p = arena_mmap(a, (void *)(uintptr_t)addr, len, prot, flags & ~map_idle_flags, fd, off);
	*out = p == MAP_FAILED ? -errno : (int64_t)(uintptr_t)p;
	guard_leave();
	if (*out < 0)
		/* What is refused for another reason the kernel refuses as well, or serves. */
		return *out == -ENOMEM || *out == -EAGAIN || *out == -EEXIST;
	report_served(SERVED_mmap);
	report_mapped(ALIGN_UP(len, (uint64_t)PAGE));
	report_was_file(ALIGN_UP(len, (uint64_t)PAGE));
	remember((uint64_t)*out, ALIGN_UP(len, (uint64_t)PAGE));
	if (flags & MAP_FIXED)
		sysv_unmapped((uint64_t)*out, ALIGN_UP(len, (uint64_t)PAGE));
	return true;
}

void files_start(void)
{
	struct stat st;

	if (raw3(SYS_stat, (uintptr_t) "/dev/shm", (uintptr_t)&st, 0) == 0)
		shm_dev = st.st_dev;
}
