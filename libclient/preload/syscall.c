/* SPDX-License-Identifier: MIT */
/* syscall.c - syscall(2): the numbers of calls that are served, and all others as they are. */
#include <errno.h>
#include <stdarg.h>
#include <unistd.h>

#include "base/util.h"
#include "libclient/preload/files.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

static int64_t memory_call(int64_t nr, const uint64_t a[6])
{
	switch (nr) {
	case SYS_mmap:
		return preload_mmap(a[0], a[1], (int)a[2], (int)a[3], (int)a[4], (int64_t)a[5]);
	case SYS_munmap:
		return preload_munmap(a[0], a[1]);
	case SYS_mprotect:
		return preload_mprotect(a[0], a[1], (int)a[2]);
	case SYS_mremap:
		return preload_mremap(a[0], a[1], a[2], (int)a[3], a[4]);
	case SYS_madvise:
		return preload_madvise(a[0], a[1], (int)a[2]);
	case SYS_msync:
		return preload_msync(a[0], a[1], (int)a[2]);
	case SYS_mincore:
		return preload_mincore(a[0], a[1], (unsigned char *)a[2]);
	case SYS_mlock:
		return preload_mlock(a[0], a[1], 0);
	case SYS_mlock2:
		return preload_mlock(a[0], a[1], (unsigned)a[2]);
	case SYS_munlock:
		return preload_munlock(a[0], a[1]);
	case SYS_mlockall:
		return preload_mlockall((int)a[0]);
	case SYS_munlockall:
		return preload_munlockall();
	case SYS_brk:
		return (int64_t)preload_brk(a[0]);
	default:
		return -ENOSYS;
	}
}

/* What acts on a range, and would act on the library's mappings behind its back. */
static bool is_foreign_to_arena(int64_t nr, const uint64_t a[6])
{
	switch (nr) {
	case SYS_pkey_mprotect:
	case SYS_remap_file_pages:
	case SYS_mbind:
		return range_place(a[0], a[1]) != RANGE_OUTSIDE;
	default:
		return false;
	}
}

static int64_t call(int64_t nr, const uint64_t a[6])
{
	switch (nr) {
	case SYS_mmap:
	case SYS_munmap:
	case SYS_mprotect:
	case SYS_mremap:
	case SYS_madvise:
	case SYS_msync:
	case SYS_mincore:
	case SYS_mlock:
	case SYS_mlock2:
	case SYS_munlock:
	case SYS_mlockall:
	case SYS_munlockall:
	case SYS_brk:
		return memory_call(nr, a);
	case SYS_close:
		return preload_close((int)a[0]);
	case SYS_close_range:
		return preload_close_range((unsigned)a[0], (unsigned)a[1], (unsigned)a[2]);
	case SYS_dup2:
		return dup2((int)a[0], (int)a[1]) < 0 ? -errno : (int)a[1];
	case SYS_dup3:
		return preload_dup3((int)a[0], (int)a[1], (int)a[2]);
	case SYS_ftruncate:
		return preload_ftruncate((int)a[0], (int64_t)a[1]);
	case SYS_fallocate:
		return preload_fallocate((int)a[0], (int)a[1], (int64_t)a[2], (int64_t)a[3]);
	case SYS_shmget:
		return preload_shmget((int)a[0], a[1], (int)a[2]);
	case SYS_shmat:
		return preload_shmat((int)a[0], a[1], (int)a[2]);
	case SYS_shmdt:
		return preload_shmdt(a[0]);
	case SYS_shmctl:
		return preload_shmctl((int)a[0], (int)a[1], (void *)(uintptr_t)a[2]);
	case SYS_fork:
	case SYS_vfork:
	case SYS_clone:
	case SYS_clone3:
		return preload_syscall_clone(nr, a);
	case SYS_exit_group:
		files_at_exit();
		report_at_exit();
		break;
	default:
		break;
	}
	if (is_foreign_to_arena(nr, a))
		return -EINVAL;
	if (files_knows(nr))
		return files_syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
	return raw6(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}

PRELOAD_EXPORT long syscall(long nr, ...)
{
	uint64_t arg[6];
	va_list args;
	int64_t r;

	va_start(args, nr);
	for (unsigned i = 0; i < ARRAY_SIZE(arg); i++)
		arg[i] = va_arg(args, uint64_t);
	va_end(args);
	r = call(nr, arg);
	if (r >= 0 || r < -4095)
		return r;
	errno = (int)-r;
	return -1;
}
