/* SPDX-License-Identifier: MIT */
/*
 * os_linux.c - os.h on Linux.
 *
 * Everything that a trap handler calls goes straight to the kernel by syscall(2): the C library's
 * wrapper may be a sanitizer's interceptor or a preload that looks after the program's own memory
 * calls, and neither may see those of the library. syscall(2) sets errno; a trap handler saves it.
 */
#include "base/os.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"

#define PMD_SIZE (UINT64_C(2) << 20)

/* Newer than the C library's headers may be. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* ---- files of memory ---- */

static int set_seals(int fd, int more)
{
	if (fchmod(fd, 0400) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | more) < 0)
		return -errno;
	return 0;
}

static int sealed_memfd(const char *name, uint64_t size, int seals)
{
	unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	_cleanup_(closep) int fd = -1;
	int r;

	if (size > INT64_MAX)
		return -EFBIG;
	/* A host may demand NOEXEC_SEAL (vm.memfd_noexec), a kernel before 6.3 does not know it. */
	fd = (int)syscall(SYS_memfd_create, name, flags | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL)
		fd = (int)syscall(SYS_memfd_create, name, flags);
	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		return -errno;
	r = set_seals(fd, seals);
	return r < 0 ? r : TAKE_FD(fd);
}

int os_memfd(const char *name, uint64_t size)
{
	return sealed_memfd(name, size, 0);
}

int os_memfd_zeros(const char *name, uint64_t size)
{
	return sealed_memfd(name, size, F_SEAL_WRITE);
}

int os_memfd_size(int fd, uint64_t *size)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (seals < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!(seals & F_SEAL_SHRINK))
		return -EINVAL;
	*size = (uint64_t)st.st_size;
	return 0;
}

int os_memfd_name(int fd, char *name, size_t size)
{
	static const char prefix[] = "/memfd:", suffix[] = " (deleted)";
	char path[64], link[300];
	ssize_t n, len;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, link, sizeof(link) - 1);
	if (n < 0)
		return -errno;
	link[n] = '\0';
	len = n - (ssize_t)(sizeof(prefix) - 1) - (ssize_t)(sizeof(suffix) - 1);
	if (len < 0 || strncmp(link, prefix, sizeof(prefix) - 1) != 0 ||
	    strcmp(link + n - (sizeof(suffix) - 1), suffix) != 0)
		return -EINVAL;
	snprintf(name, size, "%.*s", (int)len, link + sizeof(prefix) - 1);
	return 0;
}

bool os_file_data(int fd, uint64_t from, uint64_t *start, uint64_t *end)
{
	off_t data = lseek(fd, (off_t)from, SEEK_DATA), hole;

	if (data < 0)
		return false;
	hole = lseek(fd, data, SEEK_HOLE);
	if (hole <= data)
		return false;
	*start = (uint64_t)data;
	*end = (uint64_t)hole;
	return true;
}

int os_reopen_readonly(int fd)
{
	char path[32] = "/proc/self/fd/";
	char *p = path + strlen(path);
	int digits = 1;
	int r;

	if (fd < 0)
		return -EBADF;
	for (int n = fd; n >= 10; n /= 10)
		digits++;
	for (int n = fd, i = digits; i-- > 0; n /= 10)
		p[i] = (char)('0' + n % 10);
	p[digits] = '\0';
	r = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	return r < 0 ? -errno : r;
}

int os_punch_hole(int fd, uint64_t offset, uint64_t len)
{
	int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	/* A signal may interrupt a long one; what is punched already stays so. */
	for (;;) {
		if (syscall(SYS_fallocate, fd, mode, (off_t)offset, (off_t)len) == 0)
			return 0;
		if (errno != EINTR)
			return -errno;
	}
}

int os_file_backed(int fd, uint64_t *bytes)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	*bytes = (uint64_t)st.st_blocks * 512;
	return 0;
}

/* ---- mappings ---- */

static int to_prot(unsigned flags)
{
	return (flags & OS_MAP_READ ? PROT_READ : 0) | (flags & OS_MAP_WRITE ? PROT_WRITE : 0) |
	       (flags & OS_MAP_EXEC ? PROT_EXEC : 0);
}

/* A private mapping that is not written to needs no memory of its own. */
static int sharing(unsigned flags)
{
	return flags & OS_MAP_PRIVATE ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED;
}

static int raw_mmap(void *addr, uint64_t len, int prot, int flags, int fd, uint64_t offset,
		    void **out)
{
	long r = syscall(SYS_mmap, addr, len, prot, flags, fd, offset);

	if (r == -1)
		return -errno;
	*out = (void *)r; /* NOLINT: an address */
	return 0;
}

static int raw_madvise(void *addr, uint64_t len, int advice)
{
	return syscall(SYS_madvise, addr, len, advice) < 0 ? -errno : 0;
}

/* Hugepages are wished for, not demanded: a host without them says EINVAL. */
static int advise_mapping(void *addr, uint64_t len, unsigned flags)
{
	if (flags & OS_MAP_HUGE)
		raw_madvise(addr, len, MADV_HUGEPAGE);
	return flags & OS_MAP_DONTFORK ? raw_madvise(addr, len, MADV_DONTFORK) : 0;
}

/* Reserve `len` bytes at a multiple of 2 MiB by reserving more and giving back both ends. */
static int reserve_aligned(uint64_t len, void **out)
{
	uint64_t base, start;
	void *p = NULL;
	int r;

	if (len > UINT64_MAX - PMD_SIZE)
		return -ENOMEM;
	r = raw_mmap(NULL, len + PMD_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		     -1, 0, &p);
	if (r < 0)
		return r;
	base = (uintptr_t)p;
	start = ALIGN_UP(base, PMD_SIZE);
	if (start > base)
		os_unmap(p, start - base);
	if (start < base + PMD_SIZE)
		os_unmap((char *)p + (start - base) + len, base + PMD_SIZE - start);
	*out = (char *)p + (start - base);
	return 0;
}

/* Without the right to write, populating is no promise: an old kernel may not know how. */
static int populate_mapping(void *addr, uint64_t len, unsigned flags)
{
	int r;

	if (flags & OS_MAP_WRITE)
		return os_populate(addr, len);
	r = raw_madvise(addr, len, MADV_POPULATE_READ);
	return r == -EINVAL ? 0 : r;
}

int os_map(int fd, uint64_t offset, uint64_t len, unsigned flags, void **out)
{
	uint64_t bytes = ALIGN_UP(len, (uint64_t)os_page_size());
	int where = sharing(flags);
	void *p = NULL;
	int r;

	if (flags & OS_MAP_HUGE) {
		r = reserve_aligned(bytes, &p);
		if (r < 0)
			return r;
		where |= MAP_FIXED;
	}
	r = raw_mmap(p, bytes, to_prot(flags) | PROT_READ, where, fd, offset, &p);
	if (!r)
		r = advise_mapping(p, bytes, flags);
	/* Only now, so that what it brings in comes as hugepages. */
	if (!r && (flags & OS_MAP_POPULATE))
		r = populate_mapping(p, bytes, flags);
	if (r < 0) {
		if (p)
			os_unmap(p, bytes);
		return r;
	}
	*out = p;
	return 0;
}

int os_unmap(void *addr, uint64_t len)
{
	return syscall(SYS_munmap, addr, len) < 0 ? -errno : 0;
}

/* OS_MAP_POPULATE maps the pages that the file has already, so it may come before the advice. */
int os_map_fixed(void *addr, uint64_t len, int fd, uint64_t offset, unsigned flags)
{
	int populate = flags & OS_MAP_POPULATE ? MAP_POPULATE : 0;
	void *p;
	int r = raw_mmap(addr, len, to_prot(flags), sharing(flags) | MAP_FIXED | populate, fd,
			 offset, &p);

	return r < 0 ? r : advise_mapping(addr, len, flags);
}

int os_reserve(void *addr, uint64_t len, bool fixed, void **out)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	void *p = NULL;
	int r;

	if (addr)
		flags |= fixed ? MAP_FIXED : MAP_FIXED_NOREPLACE;
	r = raw_mmap(addr, len, PROT_NONE, flags, -1, 0, &p);
	if (r < 0)
		return r;
	/* A kernel before 4.17 takes NOREPLACE for a hint. */
	if (addr && p != addr)
		r = -EEXIST;
	else
		r = raw_madvise(p, len, MADV_DONTFORK);
	if (r < 0) {
		os_unmap(p, len);
		return r;
	}
	*out = p;
	return 0;
}

int os_anonymous(uint64_t len, void **out)
{
	return raw_mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, out);
}

int os_protect(void *addr, uint64_t len, unsigned flags)
{
	return syscall(SYS_mprotect, addr, len, to_prot(flags)) < 0 ? -errno : 0;
}

int os_populate(void *addr, uint64_t len)
{
	uint64_t page = (uint64_t)os_page_size();
	int r = raw_madvise(addr, len, MADV_POPULATE_WRITE);

	/* Of no bytes at all, only a kernel before 5.14 refuses the advice. */
	if (r != -EINVAL || raw_madvise(NULL, 0, MADV_POPULATE_WRITE) == 0)
		return r;
	if (!IS_ALIGNED((uintptr_t)addr, page))
		return -EINVAL;
	/* An atomic or with nothing is a write that changes no byte, whoever else writes there. */
	for (uint64_t i = 0; i < len; i += page)
		__atomic_fetch_or((char *)addr + i, 0, __ATOMIC_RELAXED);
	return 0;
}

/* ---- the host ---- */

int os_page_size(void)
{
	return (int)sysconf(_SC_PAGESIZE);
}

bool os_hugepages_available(void)
{
	static const char *const good[] = {"[always]", "[within_size]", "[advise]", "[force]"};
	_cleanup_(fclosep)
		FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "re");
	char line[256];

	if (!f || !fgets(line, sizeof(line), f))
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		if (strstr(line, good[i]))
			return true;
	return false;
}

uint64_t os_memory_available(void)
{
	_cleanup_(fclosep) FILE *f = fopen("/proc/meminfo", "re");
	unsigned long long kib;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
			return (uint64_t)kib << 10;
	return 0;
}

unsigned os_nr_cpus(void)
{
	static unsigned cached;
	unsigned n = load_relaxed(&cached);

	if (!n) {
		long online = sysconf(_SC_NPROCESSORS_ONLN);

		n = online > 0 ? (unsigned)online : 1;
		store_relaxed(&cached, n);
	}
	return n;
}

/* Always below os_nr_cpus(), also where the numbers of the host's CPUs have holes. */
unsigned os_current_cpu(void)
{
	int cpu = sched_getcpu();

	return cpu < 0 ? 0 : (unsigned)cpu % os_nr_cpus();
}

uint64_t os_max_map_count(void)
{
	_cleanup_(fclosep) FILE *f = fopen("/proc/sys/vm/max_map_count", "re");
	unsigned long long n;

	return f && fscanf(f, "%llu", &n) == 1 ? n : 65530;
}

/* ---- waiting ---- */

static int futex_wait(uint32_t *word, int op, uint32_t expected, uint64_t timeout_ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(timeout_ns / NSEC_PER_SEC),
		.tv_nsec = (long)(timeout_ns % NSEC_PER_SEC),
	};
	long r = syscall(SYS_futex, word, op, expected, timeout_ns ? &ts : NULL, NULL, 0);

	return r < 0 ? -errno : 0;
}

static int futex_wake(uint32_t *word, int op, int n)
{
	long r = syscall(SYS_futex, word, op, n, NULL, NULL, 0);

	return r < 0 ? -errno : (int)r;
}

int os_futex_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns)
{
	return futex_wait(word, FUTEX_WAIT, expected, timeout_ns);
}

int os_futex_wake(uint32_t *word, int n)
{
	return futex_wake(word, FUTEX_WAKE, n);
}

int os_futex_wait_private(uint32_t *word, uint32_t expected, uint64_t timeout_ns)
{
	return futex_wait(word, FUTEX_WAIT_PRIVATE, expected, timeout_ns);
}

int os_futex_wake_private(uint32_t *word, int n)
{
	return futex_wake(word, FUTEX_WAKE_PRIVATE, n);
}

int os_eventfd(void)
{
	int fd = (int)syscall(SYS_eventfd2, 0, EFD_NONBLOCK | EFD_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* EAGAIN is a counter that is full (ring) or empty (drain): what was asked for holds already. */
int os_eventfd_ring(int fd)
{
	uint64_t one = 1;

	return syscall(SYS_write, fd, &one, sizeof(one)) < 0 && errno != EAGAIN ? -errno : 0;
}

int os_eventfd_drain(int fd)
{
	uint64_t count;

	return syscall(SYS_read, fd, &count, sizeof(count)) < 0 && errno != EAGAIN ? -errno : 0;
}

/* ---- processes ---- */

int os_pidfd_open(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	return fd < 0 ? -errno : fd;
}

/* A pidfd turns readable when its process ends. */
bool os_pid_alive(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};
	struct timespec now = {0};

	return syscall(SYS_ppoll, &p, 1, &now, NULL, 0) == 0;
}

/* Field 22 of stat, counted from behind the program's name, which may hold anything. */
uint64_t os_process_start(pid_t pid)
{
	_cleanup_(fclosep) FILE *f = NULL;
	char path[32], text[1024], *at;
	unsigned long long start = 0;
	size_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return 0;
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	at = strrchr(text, ')');
	for (unsigned field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at && sscanf(at, " %llu", &start) == 1 ? start : 0;
}

void os_thread_background(pid_t tid, bool background)
{
	struct sched_param param = {0};

	sched_setscheduler(tid, background ? SCHED_IDLE : SCHED_OTHER, &param);
}
