/* SPDX-License-Identifier: MIT */
/*
 * preload.h - libarena-preload.so: a program that knows nothing of arenad runs on arena memory.
 *
 *   program      malloc ----------> malloc.c ----> jemalloc (its own copy, renamed)
 *                mmap, mremap, ...                    |  mmap, munmap, madvise
 *                      |                              v
 *                symbols.c, syscall.c  --->  map.c lock.c heap.c  the window: libarena
 *                                              |                    else: the kernel
 *                close, dup2, ...  ---------> fds.c
 *                shm_open, shmget, ... -----> shm.c sysv.c
 *                read, write, fsync, ... ---> file_calls.c ---> files.c
 *
 *   start.c     options, the one arena of the process, what fork() needs
 *   guard.c     which thread is inside the library; the library's own threads
 *   threads.c   the program's threads, whose last one ends the process
 *   private.c   memory of the library itself
 *   report.c    what was served, at exit
 *
 * The library is linked in, so there is one copy of it in the process; its public functions are
 * exported for programs that use them, too. It makes its own system calls directly (base/os.h), so an
 * interposer never sees them.
 *
 * Three heaps:
 *
 *   arena      jemalloc, chunks from the arena            what the program allocates
 *   kernel     jemalloc, an arena of its own, kernel      what the C library allocates for itself
 *   private    private.c, kernel                          what libarena allocates
 *
 * Why the second: fork() of the C library touches its own allocations (streams, name service,
 * thread-specific data) in the child before anything of ours runs there, and in the parent while our
 * locks are held. Who calls is told by the return address. Why the third: libarena allocates while
 * jemalloc waits for it, and in a child whose jemalloc is not back to life yet.
 *
 * Functions here return 0, a value or -errno, as system calls do.
 */
#ifndef LIBCLIENT_PRELOAD_PRELOAD_H
#define LIBCLIENT_PRELOAD_PRELOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "arena/arena.h"

#define PRELOAD_EXPORT __attribute__((visibility("default")))

/* ---- start.c ---- */

struct preload_options {
	enum arena_trap trap;
	unsigned long nodes; /* its memory is to come from these; 0: all */
	size_t min_size;     /* smaller mappings are the kernel's */
	bool files;          /* mappings of files are the arena's, too */
	bool shared;         /* System V and POSIX shared memory are the arena's, too */
	bool mergeable;      /* MADV_MERGEABLE for all that is served */
	bool strict;         /* no arena, no program */
	bool verbose;        /* a line at exit */
	char name[64];       /* of the program, which may rename itself */
	char *report;        /* the file it is appended to; NULL: stderr */
};

struct preload {
	struct preload_options options;
	arena_t *arena;      /* set once; NULL: the program runs on plain memory */
	uint64_t base, size; /* its window */
	pid_t pid;           /* whose this is: not that of a vfork() child */
	int report_fd;       /* where the line at exit goes: stderr as it was at the begin; or -1 */
};

extern struct preload preload;

/* The arena that serves, opened if it was not yet; NULL: the kernel does. */
arena_t *preload_arena(void);
/* One line on stderr. */
void preload_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- guard.c ---- */

/* Above 0: the thread is in the library, what it allocates is the library's. */
extern __thread unsigned preload_inside
	__attribute__((tls_model("initial-exec"), visibility("hidden")));

static inline void guard_enter(void)
{
	preload_inside++;
}

static inline void guard_leave(void)
{
	preload_inside--;
}

/* The library's fork handlers, which fork() runs by itself. */
void preload_fork_prepare(void);
void preload_fork_parent(void);
void preload_fork_child(void);

/* ---- threads.c ---- */

/* In main()'s thread, at the begin. */
void threads_start(void);
/* In the child: it has one. */
void threads_after_fork(void);
/* One of the library's begins, or ends. */
void threads_library(int change);

/* ---- private.c ---- */

#define PRIVATE_SIZE (UINT64_C(64) << 20)

extern uintptr_t private_base; /* 0: nothing was allocated yet */

static inline bool private_has(const void *p)
{
	return (uintptr_t)p - private_base < PRIVATE_SIZE;
}

/* Zeroed, aligned to its size rounded up to a power of two, at most a page; NULL: too much. */
void *private_alloc(size_t size);
void private_free(void *p);
size_t private_usable_size(const void *p);
void private_before_fork(void);
void private_after_fork(bool child);

/* ---- malloc.c ---- */

/* Before the first allocation, or any time later. */
void malloc_start(void);

/* ---- map.c: the calls, split into what lies in the window and what does not ---- */

int64_t preload_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, int64_t off);
/* Flags that mean nothing here; and are these flags such as the arena serves? */
extern const int map_idle_flags;
bool map_flags_served(int flags);
int64_t preload_munmap(uint64_t addr, uint64_t len);
int64_t preload_mprotect(uint64_t addr, uint64_t len, int prot);
int64_t preload_madvise(uint64_t addr, uint64_t len, int advice);
int64_t preload_mremap(uint64_t old, uint64_t old_len, uint64_t new_len, int flags, uint64_t to);
int64_t preload_msync(uint64_t addr, uint64_t len, int flags);
int64_t preload_mincore(uint64_t addr, uint64_t len, unsigned char *vec);

enum range_place { RANGE_OUTSIDE, RANGE_INSIDE, RANGE_MIXED };

/* Where [addr, addr + len) lies; OUTSIDE as well where there is no arena, or the sum overflows. */
enum range_place range_place(uint64_t addr, uint64_t len);

/*
 * Call inside() and outside() on the parts of [addr, addr + len), in order of address. One that
 * fails ends it; unless `on`, when the first failure is remembered.
 */
struct range_ops {
	int64_t (*inside)(uint64_t addr, uint64_t len, uint64_t arg);
	int64_t (*outside)(uint64_t addr, uint64_t len, uint64_t arg);
	bool on;
};
int64_t range_do(const struct range_ops *ops, uint64_t addr, uint64_t len, uint64_t arg);

/* ---- lock.c ---- */

int64_t preload_mlock(uint64_t addr, uint64_t len, unsigned flags);
int64_t preload_munlock(uint64_t addr, uint64_t len);
int64_t preload_mlockall(int flags);
int64_t preload_munlockall(void);
/* MCL_FUTURE, for a mapping that the kernel has made. */
void lock_new_mapping(uint64_t addr, uint64_t len);

/* ---- heap.c ---- */

/* brk(2) as the system call: the break that holds afterwards. */
uint64_t preload_brk(uint64_t end);
/* sbrk(3): the old break, or (void *)-1 with errno. */
void *preload_sbrk(intptr_t delta);

/* ---- shm.c, sysv.c: shared memory by name, where it was asked for ---- */

/* Their tables' lock, taken before any of libarena's, in the library's own business (guard.c). */
void shared_enter(void);
void shared_leave(void);

/* The daemon's socket. */
void shm_start(const char *socket);
/* A mapping of a descriptor of shm_open()'s: true, and *out is the address or -errno. */
bool shm_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, int64_t off, int64_t *out);
void shm_closed(int fd);
int64_t preload_ftruncate(int fd, int64_t size);
int64_t preload_fallocate(int fd, int mode, int64_t off, int64_t len);

int64_t preload_shmget(int key, uint64_t size, int flags);
int64_t preload_shmat(int id, uint64_t addr, int flags);
int64_t preload_shmdt(uint64_t addr);
int64_t preload_shmctl(int id, int cmd, void *buf);
/* What was there is not any more, by another way than shmdt(). */
void sysv_unmapped(uint64_t addr, uint64_t len);

/* ---- fds.c ---- */

int64_t preload_close(int fd);
int64_t preload_close_range(unsigned first, unsigned last, unsigned flags);
int64_t preload_dup3(int from, int to, int flags);

/* ---- clone.c ---- */

/* A system call that copies the process, with the library's handlers around it. */
int64_t preload_raw_fork(int64_t nr, const uint64_t arg[6]);
/* fork, vfork, clone and clone3 by number. */
int64_t preload_syscall_clone(int64_t nr, const uint64_t arg[6]);

/* ---- report.c ---- */

#define SERVED_CALLS(X) \
	X(mmap)         \
	X(munmap)       \
	X(mprotect)     \
	X(mremap)       \
	X(madvise)      \
	X(mlock)        \
	X(msync)        \
	X(sync)         \
	X(write)        \
	X(mincore)      \
	X(brk)

enum served_call {
#define X(name) SERVED_##name,
	SERVED_CALLS(X)
#undef X
		NR_SERVED
};

void report_served(enum served_call call);
void report_mapped(uint64_t bytes);
void report_shared(uint64_t bytes);   /* of a segment by name; mapped, too */
void report_was_file(uint64_t bytes); /* what of that was a file */
void report_unmapped(uint64_t bytes);
void report_kernel(uint64_t bytes); /* a mapping that might have been the arena's */
void report_at_exit(void);
void report_after_fork(void);

#endif
