/* SPDX-License-Identifier: MIT */
/*
 * sysv.c - System V shared memory (--shared).
 *
 * Keys, identifiers, permissions, limits, the count of attachments and the end of it all are the kernel's: each
 * call is made to it, too. Its segments are attached but never touched, so they have no memory. What the
 * program sees is a segment of the arena, "sysv.<ipc namespace>.<id>", made by who made the kernel's.
 *
 * A segment whose maker was not served is the kernel's. One that is marked for removal has no name
 * any more: who has it attached keeps it, also over fork(), others get EIDRM.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

#define PAGE UINT64_C(4096)
#define MAX_ATTACHED 4096u
#define HUGE_BITS (SHM_HUGETLB | (0x3fu << 26))
/* Who has just got an identifier may be quicker than the one who makes the segment. */
#define MAKER_NS (200 * NSEC_PER_MSEC)

struct attached {
	uint64_t addr, len; /* the arena's */
	uint64_t kernel;    /* the kernel's, untouched */
};

/* Under shared_enter(). */
static struct attached table[MAX_ATTACHED];
static unsigned nr_attached;

static arena_t *serving(void)
{
	return preload.options.shared && !preload_inside ? preload_arena() : NULL;
}

static int64_t stat_id(int id, struct shmid_ds *ds)
{
	return raw3(SYS_shmctl, (uint64_t)id, IPC_STAT, (uintptr_t)ds);
}

static void segment_name(int id, char name[96])
{
	char ns[48];
	int64_t n =
		raw3(SYS_readlink, (uintptr_t) "/proc/self/ns/ipc", (uintptr_t)ns, sizeof(ns) - 1);

	ns[MAX(n, 0)] = '\0';
	snprintf(name, 96, "sysv.%llu.%d",
		 strchr(ns, '[') ? strtoull(strchr(ns, '[') + 1, NULL, 10) : 0, id);
}

/* ---- shmget ---- */

/* With IPC_CREAT: has this call made it? */
static int64_t kernel_shmget(int key, uint64_t size, int flags, bool *made)
{
	int64_t r;

	*made = false;
	if (key != IPC_PRIVATE && !(flags & IPC_CREAT))
		return raw3(SYS_shmget, (uint64_t)key, size, (uint64_t)flags);
	for (;;) {
		r = raw3(SYS_shmget, (uint64_t)key, size, (uint64_t)(flags | IPC_CREAT | IPC_EXCL));
		*made = r >= 0;
		if (r != -EEXIST || (flags & IPC_EXCL))
			return r;
		r = raw3(SYS_shmget, (uint64_t)key, size, (uint64_t)(flags & ~IPC_CREAT));
		if (r != -ENOENT)
			return r;
	}
}

static int64_t make_segment(arena_t *a, int id, uint64_t size, int flags)
{
	arena_shm_t *s;
	char name[96];
	int64_t r = 0;

	segment_name(id, name);
	/* One of that name is left over from an identifier that was removed by others. */
	arena_shm_unlink(a, name);
	s = arena_shm_open(a, name, O_RDWR | O_CREAT | O_EXCL, (mode_t)flags & 0777);
	if (!s || arena_shm_truncate(s, (off_t)ALIGN_UP(size, PAGE)) < 0)
		r = -errno;
	arena_shm_close(s);
	if (r < 0)
		raw3(SYS_shmctl, (uint64_t)id, IPC_RMID, 0);
	return r;
}

int64_t preload_shmget(int key, uint64_t size, int flags)
{
	arena_t *a = serving();
	int64_t id, r = 0;
	bool made;

	if (!a)
		return raw3(SYS_shmget, (uint64_t)key, size, (uint64_t)flags);
	/* The arena's memory is in hugepages anyway; the kernel shall not set any aside. */
	flags = (int)((unsigned)flags & ~HUGE_BITS) | SHM_NORESERVE;
	id = kernel_shmget(key, size, flags, &made);
	if (id < 0 || !made)
		return id;
	shared_enter();
	r = make_segment(a, (int)id, size, flags);
	shared_leave();
	return r < 0 ? r : id;
}

/* ---- shmat, shmdt ---- */

static void let_maker_run(void)
{
	struct timespec ts = {.tv_nsec = NSEC_PER_MSEC};

	nanosleep(&ts, NULL);
}

/* NULL and *error: 0 where it is the kernel's. */
static arena_shm_t *open_segment(arena_t *a, int id, const struct shmid_ds *ds, int flags,
				 int64_t *error)
{
	uint64_t deadline = clock_now() + MAKER_NS;
	bool fresh = time(NULL) - ds->shm_ctime <= 2;
	arena_shm_t *s;
	char name[96];

	segment_name(id, name);
	*error = 0;
	while (!(s = arena_shm_open(a, name, flags & SHM_RDONLY ? O_RDONLY : O_RDWR, 0))) {
		if (errno != ENOENT) {
			*error = -errno;
			return NULL;
		}
		if (ds->shm_perm.mode & SHM_DEST) {
			*error = -EIDRM;
			return NULL;
		}
		if (!fresh || clock_now() > deadline)
			return NULL;
		let_maker_run();
	}
	return s;
}

static int64_t map_segment(arena_shm_t *s, uint64_t addr, uint64_t len, int flags)
{
	int prot = PROT_READ | (flags & SHM_RDONLY ? 0 : PROT_WRITE) |
		   (flags & SHM_EXEC ? PROT_EXEC : 0);
	int how = MAP_SHARED;
	void *p;

	if (addr && (flags & SHM_RND))
		addr = ALIGN_DOWN(addr, PAGE);
	if (addr && (!IS_ALIGNED(addr, PAGE) || range_place(addr, len) != RANGE_INSIDE))
		return -EINVAL;
	if (!addr && (flags & SHM_REMAP))
		return -EINVAL;
	if (addr)
		how |= flags & SHM_REMAP ? MAP_FIXED : MAP_FIXED_NOREPLACE;
	p = arena_shm_mmap(s, (void *)(uintptr_t)addr, len, prot, how, 0);
	if (p == MAP_FAILED)
		return errno == EEXIST ? -EINVAL : -errno;
	return (int64_t)(uintptr_t)p;
}

/* Whole attachments in [addr, addr + len) were unmapped or replaced, not detached: that is the end of them, too. */
static void forget_range(uint64_t addr, uint64_t len)
{
	for (unsigned i = nr_attached; i-- > 0;) {
		struct attached t = table[i];

		if (t.addr < addr || t.addr + t.len > addr + len)
			continue;
		raw3(SYS_shmdt, t.kernel, 0, 0);
		table[i] = table[--nr_attached];
	}
}

void sysv_unmapped(uint64_t addr, uint64_t len)
{
	if (!load_relaxed(&nr_attached) || !serving())
		return;
	shared_enter();
	forget_range(addr, len);
	shared_leave();
}

/* The kernel counts it, and knows whether it is permitted. */
static int64_t attach(arena_t *a, int id, uint64_t addr, int flags)
{
	struct shmid_ds ds;
	arena_shm_t *s;
	int64_t r, kernel;
	uint64_t len;

	r = stat_id(id, &ds);
	if (r < 0)
		return r == -EACCES || r == -EIDRM ? r : -EINVAL;
	s = open_segment(a, id, &ds, flags, &r);
	if (!s)
		return r < 0 ? r : raw3(SYS_shmat, (uint64_t)id, addr, (uint64_t)flags);
	if (nr_attached == MAX_ATTACHED) {
		arena_shm_close(s);
		return -EMFILE;
	}
	len = ALIGN_UP((uint64_t)ds.shm_segsz, PAGE);
	kernel = raw3(SYS_shmat, (uint64_t)id, 0, (uint64_t)(flags & SHM_RDONLY));
	r = kernel < 0 && kernel > -4096 ? kernel : map_segment(s, addr, len, flags);
	arena_shm_close(s);
	if (r < 0 && !(kernel < 0 && kernel > -4096))
		raw3(SYS_shmdt, (uint64_t)kernel, 0, 0);
	if (r < 0)
		return r;
	forget_range((uint64_t)r, len);
	table[nr_attached++] = (struct attached){(uint64_t)r, len, (uint64_t)kernel};
	report_shared(len);
	return r;
}

int64_t preload_shmat(int id, uint64_t addr, int flags)
{
	arena_t *a = serving();
	int64_t r;

	if (!a)
		return raw3(SYS_shmat, (uint64_t)id, addr, (uint64_t)flags);
	shared_enter();
	r = attach(a, id, addr, flags);
	shared_leave();
	return r;
}

static int64_t detach(arena_t *a, uint64_t addr)
{
	struct attached t;

	for (unsigned i = 0; i < nr_attached; i++) {
		if (table[i].addr != addr)
			continue;
		t = table[i];
		table[i] = table[--nr_attached];
		if (arena_munmap(a, (void *)(uintptr_t)addr, t.len) == 0)
			report_unmapped(t.len);
		return raw3(SYS_shmdt, t.kernel, 0, 0);
	}
	return raw3(SYS_shmdt, addr, 0, 0);
}

int64_t preload_shmdt(uint64_t addr)
{
	arena_t *a = serving();
	int64_t r;

	if (!a)
		return raw3(SYS_shmdt, addr, 0, 0);
	shared_enter();
	r = detach(a, addr);
	shared_leave();
	return r;
}

/* ---- shmctl ---- */

int64_t preload_shmctl(int id, int cmd, void *buf)
{
	arena_t *a = serving();
	int64_t r = raw3(SYS_shmctl, (uint64_t)id, (uint64_t)cmd, (uintptr_t)buf);
	char name[96];

	if (r < 0 || cmd != IPC_RMID || !a)
		return r;
	shared_enter();
	segment_name(id, name);
	arena_shm_unlink(a, name);
	shared_leave();
	return r;
}
