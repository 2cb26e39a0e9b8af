/* SPDX-License-Identifier: MIT */
/*
 * os.h - the operating system behind one header. Rooms above call nothing of mmap, memfd,
 * futex or pidfd themselves, so that tests can stand in for it at link time. All functions
 * return 0 or a descriptor or a pointer, or -errno (pointers: NULL with *err set); all are
 * async-signal-safe except those that say otherwise, because libclient calls them in traps.
 * They use raw system calls where a sanitizer's or a preload's wrapper would stand between.
 */
#ifndef BASE_OS_H
#define BASE_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* ---- files of memory ---- */

/* A memfd of exactly `size` bytes, sealed against shrink, grow and further seals, mode 0400 (a
 * peer of the same uid cannot reopen it writable by a plain open), close-on-exec. */
int os_memfd(const char *name, uint64_t size);
/* The same, and nobody can write to it, ever: it reads as zeros. */
int os_memfd_zeros(const char *name, uint64_t size);
/* The size of a file that cannot shrink under us, as os_memfd() makes them; -EINVAL: it could. */
int os_memfd_size(int fd, uint64_t *size);
/* The name os_memfd() was given, at most size - 1 bytes; -EINVAL: it is none. Not signal-safe. */
int os_memfd_name(int fd, char *name, size_t size);
/* The first part of the file at or after `from` that the host has backed; it may be longer than what was
 * written. False: there is none. Moves the file's offset. */
bool os_file_data(int fd, uint64_t from, uint64_t *start, uint64_t *end);
/* A second, read-only descriptor of the same file. */
int os_reopen_readonly(int fd);
/* Give the range back to the host: it reads as zeros afterwards. */
int os_punch_hole(int fd, uint64_t offset, uint64_t len);
/* Bytes of the file that the host has backed (st_blocks). */
int os_file_backed(int fd, uint64_t *bytes);

/* ---- files of others ---- */

struct os_file_id {
	uint64_t dev, ino, size;
	bool regular;
};
/* What a descriptor is open on, as far as that is known without asking a server. 0, -errno. */
int os_file_id(int fd, struct os_file_id *id);
int os_file_size(int fd, uint64_t *size); /* the same */
/* O_* that it is open with (F_GETFL), -errno. */
int os_file_flags(int fd);
/* F_SEAL_*; 0 where there can be none. */
unsigned os_file_seals(int fd);
/* Where it is, shortened at the front to fit: for showing only. */
void os_file_path(int fd, char *path, size_t size);
/* pread(2), pwrite(2), fdatasync(2), whatever O_APPEND and O_DIRECT say. Wait; not signal-safe. */
ssize_t os_file_read(int fd, void *to, size_t n, uint64_t offset);
ssize_t os_file_write(int fd, const void *from, size_t n, uint64_t offset);
int os_file_sync(int fd);

/* ---- mappings ---- */

enum os_map_flags {
	OS_MAP_WRITE = 1 << 0,
	OS_MAP_HUGE = 1 << 1, /* MADV_HUGEPAGE */
	OS_MAP_POPULATE = 1 << 2,
	OS_MAP_READ = 1 << 3,
	OS_MAP_EXEC = 1 << 4,
	OS_MAP_DONTFORK = 1 << 5,
	OS_MAP_PRIVATE = 1 << 6, /* not shared: for files that are open for reading only */
};

/* Map a shared file anywhere; *out is page aligned, 2 MiB aligned if OS_MAP_HUGE. */
int os_map(int fd, uint64_t offset, uint64_t len, unsigned flags, void **out);
int os_unmap(void *addr, uint64_t len);
/* Replace [addr, addr+len) by a shared mapping of the file (MAP_FIXED). */
int os_map_fixed(void *addr, uint64_t len, int fd, uint64_t offset, unsigned flags);
/* Reserve address space (PROT_NONE, MAP_NORESERVE, MADV_DONTFORK). `fixed`: replace what is there;
 * else -EEXIST if [addr, addr+len) is not free. addr NULL: anywhere. */
int os_reserve(void *addr, uint64_t len, bool fixed, void **out);
/* Memory of this process, zeroed; a child of fork() has a copy of it. */
int os_anonymous(uint64_t len, void **out);
int os_protect(void *addr, uint64_t len, unsigned flags);
/* Have the host back [addr, addr+len) with zeroed memory now (MADV_POPULATE_WRITE). */
int os_populate(void *addr, uint64_t len);
int os_page_size(void);
/* Is shmem_enabled at least advise, so that OS_MAP_HUGE mappings get hugepages? Not signal-safe. */
bool os_hugepages_available(void);
/* Bytes of memory the host can give without swapping (MemAvailable). Not signal-safe. */
uint64_t os_memory_available(void);
unsigned os_nr_cpus(void);
unsigned os_current_cpu(void);
uint64_t os_max_map_count(void); /* Not signal-safe. */

/* ---- waiting ---- */

/* Sleep while *word == expected; shared between processes. 0, -EAGAIN, -EINTR, -ETIMEDOUT.
 * timeout_ns 0: for ever. */
int os_futex_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns);
int os_futex_wake(uint32_t *word, int n);
/* The same between threads of one process: by address, whatever memory is mapped there. */
int os_futex_wait_private(uint32_t *word, uint32_t expected, uint64_t timeout_ns);
int os_futex_wake_private(uint32_t *word, int n);
int os_eventfd(void);        /* non-blocking, close-on-exec */
int os_eventfd_ring(int fd); /* add 1; never blocks on a descriptor of our own */
int os_eventfd_drain(int fd);

/* ---- processes ---- */

int os_pidfd_open(pid_t pid);
bool os_pid_alive(int pidfd);
/*
 * Run argv[0] to its end: its exit status (128 + signal), and what it printed, on both of its
 * outputs, with a NUL behind it. -ETIMEDOUT: it took longer and was killed. Not signal-safe.
 */
int os_output(const char *const argv[], unsigned ms, char *out, size_t size);
/* When the process began, in clock ticks since boot: with its pid it is that process and no later one.
 * 0: it is not there, or cannot be seen. Not signal-safe. */
uint64_t os_process_start(pid_t pid);
/* The soft limit (getrlimit(2): RLIMIT_*) of another process, UINT64_MAX if it has none. 0, -errno.
 * Not signal-safe. */
int os_process_limit(pid_t pid, int resource, uint64_t *soft);
/* Has the process this capability (CAP_*), in our own user namespace? Not signal-safe. */
bool os_process_capable(pid_t pid, unsigned capability);
/* The lowest scheduling priority (SCHED_IDLE) for a thread that does background work, 0: the calling one; or the
 * usual one again, if we may. */
void os_thread_background(pid_t tid, bool background);

#endif
