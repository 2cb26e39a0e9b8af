/* SPDX-License-Identifier: MIT */
/*
 * shm.c - POSIX shared memory by name (--shared).
 *
 * What shm_open() gives is a real descriptor of a file in /dev/shm, so that everything that is done with
 * descriptors works: fstat, fchmod, dup, passing it on, close-on-exec. Its size is the object's size. Nobody ever
 * maps that file. Behind it is a segment of the arena, whose name is the file's number, and that is what a
 * mapping of the descriptor shows:
 *
 *     shm_open("/x")  ->  /dev/shm/arena.<daemon>.x, inode 17, size S  ->  segment "posix.<dev>.17", size S
 *
 * The file's name says which daemon it belongs to. So who is not served, or by another daemon, never finds
 * another object behind a name than the one that is there: it finds none.
 *
 * Segments that this process has open are in a table by inode and access. An entry is dropped, and with it the
 * segment if it was unlinked and nobody maps it, when the process closes its last descriptor of the file; which
 * is looked for when it closes one that shm_open() gave it, or opens another. The child of fork() has a copy.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"
#include "libclient/internal.h"
#include "libclient/preload/files.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

#define SHM_DIR "/dev/shm"
#define MAX_OPEN 1024u

struct open_shm {
	ino_t ino;
	bool writable;
	int fd; /* a descriptor of it, when last looked */
	arena_shm_t *segment;
};

/* The table and its length; under shared_enter(). */
static struct open_shm table[MAX_OPEN];
static unsigned nr_open;

/* Written once, before anybody asks. */
static dev_t shm_dev;
static char prefix[24]; /* of names; empty: nothing is served */

/* The daemon by its socket: the file outlives its workers, and another daemon makes another. */
void shm_start(const char *socket)
{
	struct stat st;
	uint64_t sum = UINT64_C(14695981039346656037);
	uint64_t word[4];

	if (stat(socket, &st) < 0)
		return;
	word[0] = st.st_dev;
	word[1] = st.st_ino;
	word[2] = (uint64_t)st.st_mtim.tv_sec;
	word[3] = (uint64_t)st.st_mtim.tv_nsec;
	for (size_t i = 0; i < sizeof(word); i++)
		sum = (sum ^ ((const unsigned char *)word)[i]) * UINT64_C(1099511628211);
	if (stat(SHM_DIR, &st) < 0)
		return;
	shm_dev = st.st_dev;
	snprintf(prefix, sizeof(prefix), "arena.%08x.", (unsigned)(sum ^ sum >> 32));
}

static arena_t *serving(void)
{
	arena_t *a = preload.options.shared ? preload_arena() : NULL;

	return a && prefix[0] ? a : NULL;
}

/* ---- which descriptors are ours ------------------------------------------------------------------ */

static int64_t stat_fd(int fd, struct stat *st)
{
	return raw3(SYS_fstat, (uint64_t)fd, (uintptr_t)st, 0);
}

static bool has_our_name(int fd)
{
	char link[32], path[64];
	int64_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = raw3(SYS_readlink, (uintptr_t)link, (uintptr_t)path, sizeof(path) - 1);
	if (n < 0)
		return false;
	path[n] = '\0';
	return strncmp(path, SHM_DIR "/", sizeof(SHM_DIR)) == 0 &&
	       strncmp(path + sizeof(SHM_DIR), prefix, strlen(prefix)) == 0;
}

static struct open_shm *find(ino_t ino, bool writable)
{
	for (unsigned i = 0; i < nr_open; i++)
		if (table[i].ino == ino && table[i].writable == writable)
			return &table[i];
	return NULL;
}

/* Is fd one of shm_open()'s? Under shared_enter(). */
static bool is_ours(int fd, struct stat *st)
{
	if (stat_fd(fd, st) < 0 || st->st_dev != shm_dev || !S_ISREG(st->st_mode))
		return false;
	return find(st->st_ino, true) || find(st->st_ino, false) || has_our_name(fd);
}

/* ---- the table ------------------------------------------------------------------------------------- */

/* A descriptor of each file that is still open; the others' are -1. */
static void find_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *e;
	struct stat st;

	if (!dir)
		return;
	for (unsigned i = 0; i < nr_open; i++)
		table[i].fd = -1;
	while ((e = readdir(dir))) {
		int fd = atoi(e->d_name);

		if (e->d_name[0] == '.' || stat_fd(fd, &st) < 0 || st.st_dev != shm_dev)
			continue;
		for (unsigned i = 0; i < nr_open; i++)
			if (table[i].ino == st.st_ino)
				table[i].fd = fd;
	}
	closedir(dir);
}

static void drop_closed(void)
{
	if (!nr_open)
		return;
	find_descriptors();
	for (unsigned i = 0; i < nr_open;) {
		if (table[i].fd >= 0) {
			i++;
			continue;
		}
		arena_shm_close(table[i].segment);
		table[i] = table[--nr_open];
	}
}

void shm_closed(int fd)
{
	bool known = false;

	if (!preload.options.shared || !load_relaxed(&nr_open) || preload_inside)
		return;
	shared_enter();
	for (unsigned i = 0; i < nr_open; i++)
		known |= table[i].fd == fd;
	if (known)
		drop_closed();
	shared_leave();
}

static void segment_name(ino_t ino, char name[64])
{
	snprintf(name, 64, "posix.%llx.%llu", (unsigned long long)shm_dev, (unsigned long long)ino);
}

/* The segment behind a file of ours. 0 and *out, or -errno; -ENODEV: it is not there (any more). */
static int64_t entry_get(arena_t *a, const struct stat *st, int fd, int oflag,
			 struct open_shm **out)
{
	bool writable = (oflag & O_ACCMODE) == O_RDWR;
	struct open_shm *e = find(st->st_ino, writable);
	char name[64];

	if (e && !(oflag & O_TRUNC)) {
		*out = e;
		return 0;
	}
	if (nr_open == MAX_OPEN)
		return -EMFILE;
	segment_name(st->st_ino, name);
	table[nr_open].segment = arena_shm_open(a, name, oflag & ~O_EXCL, st->st_mode & 0777);
	if (!table[nr_open].segment)
		return errno == ENOENT ? -ENODEV : -errno;
	if (e) {
		arena_shm_close(table[nr_open].segment);
		*out = e;
		return 0;
	}
	*out = &table[nr_open++];
	(*out)->ino = st->st_ino;
	(*out)->writable = writable;
	(*out)->fd = fd;
	return 0;
}

static int64_t entry_of_fd(arena_t *a, int fd, const struct stat *st, struct open_shm **out)
{
	int64_t mode = raw3(SYS_fcntl, (uint64_t)fd, F_GETFL, 0);

	return mode < 0 ? mode : entry_get(a, st, fd, (int)mode & O_ACCMODE, out);
}

/* ---- shm_open, shm_unlink ------------------------------------------------------------------------- */

typedef int open_fn(const char *name, int oflag, mode_t mode);
typedef int unlink_fn(const char *name);

PRELOAD_EXPORT int shm_open(const char *name, int oflag, mode_t mode);
PRELOAD_EXPORT int shm_unlink(const char *name);

/* The name in /dev/shm. 0 or -errno. */
static int64_t our_name(const char *name, char out[NAME_MAX + 2])
{
	while (*name == '/')
		name++;
	/* As the C library has it; and what is too long only for us. */
	if (!*name || strchr(name, '/') || strlen(name) >= NAME_MAX)
		return -EINVAL;
	if (strlen(prefix) + strlen(name) > NAME_MAX)
		return -ENAMETOOLONG;
	out[0] = '/';
	strcpy(out + 1, prefix);
	strcat(out, name);
	return 0;
}

static int64_t open_segment(arena_t *a, int fd, int oflag)
{
	struct open_shm *e;
	struct stat st;
	int64_t r;

	r = stat_fd(fd, &st);
	if (r < 0)
		return r;
	shared_enter();
	drop_closed();
	/* Whose file it is may make the segment; the one who made the file is about to. */
	if (st.st_uid == geteuid())
		oflag |= O_CREAT;
	else
		oflag &= ~O_CREAT;
	r = entry_get(a, &st, fd, oflag & (O_ACCMODE | O_CREAT | O_TRUNC), &e);
	shared_leave();
	return r == -ENODEV ? -ENOENT : r;
}

int shm_open(const char *name, int oflag, mode_t mode)
{
	arena_t *a = serving();
	char ours[NAME_MAX + 2];
	static open_fn *next;
	int64_t r;
	int fd;

	if (!next)
		next = (open_fn *)dlsym(RTLD_NEXT, "shm_open");
	if (!next || !a)
		return next ? next(name, oflag, mode) : (errno = ENOSYS, -1);
	r = our_name(name, ours);
	fd = r < 0 ? -1 : next(ours, oflag, mode);
	if (r == 0 && fd < 0)
		return fd;
	if (r == 0)
		r = open_segment(a, fd, oflag);
	if (r == 0)
		return fd;
	if (fd >= 0)
		raw3(SYS_close, (uint64_t)fd, 0, 0);
	errno = (int)-r;
	return -1;
}

int shm_unlink(const char *name)
{
	arena_t *a = serving();
	char ours[NAME_MAX + 2], path[sizeof(SHM_DIR) + NAME_MAX + 2], segment[64];
	static unlink_fn *next;
	struct stat st;
	int64_t r;
	int result;

	if (!next)
		next = (unlink_fn *)dlsym(RTLD_NEXT, "shm_unlink");
	if (!next || !a)
		return next ? next(name) : (errno = ENOSYS, -1);
	r = our_name(name, ours);
	if (r < 0) {
		errno = r == -EINVAL ? ENOENT : (int)-r;
		return -1;
	}
	snprintf(path, sizeof(path), "%s%s", SHM_DIR, ours);
	if (lstat(path, &st) < 0)
		st.st_ino = 0;
	result = next(ours);
	if (result == 0 && st.st_ino) {
		int saved = errno;

		shared_enter();
		segment_name(st.st_ino, segment);
		arena_shm_unlink(a, segment);
		drop_closed();
		shared_leave();
		errno = saved;
	}
	return result;
}

/* ---- what is done with the descriptor --------------------------------------------------------------- */

/* The object has grown by another way than ours. */
static void follow_size(struct open_shm *e, off_t size)
{
	if (e->writable && arena_shm_size(e->segment) < size)
		arena_shm_truncate(e->segment, size);
}

static int64_t map_entry(struct open_shm *e, uint64_t addr, uint64_t len, int prot, int flags,
			 int64_t off)
{
	bool fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
	enum range_place place = range_place(addr, ALIGN_UP(len, UINT64_C(4096)));
	void *p;

	/* What lies outside would show the file. */
	if (fixed && place != RANGE_INSIDE)
		return -ENODEV;
	if ((flags & MAP_TYPE) == MAP_SHARED_VALIDATE)
		flags = (flags & ~MAP_TYPE) | MAP_SHARED;
	p = arena_shm_mmap(e->segment, place == RANGE_INSIDE ? (void *)(uintptr_t)addr : NULL, len,
			   prot, flags & ~(MAP_DENYWRITE | MAP_EXECUTABLE), off);
	return p == MAP_FAILED ? -errno : (int64_t)(uintptr_t)p;
}

bool shm_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, int64_t off, int64_t *out)
{
	arena_t *a = serving();
	struct open_shm *e;
	struct stat st;

	if (!a || fd < 0 || (flags & MAP_ANONYMOUS) || preload_inside)
		return false;
	shared_enter();
	if (!is_ours(fd, &st)) {
		shared_leave();
		return false;
	}
	*out = entry_of_fd(a, fd, &st, &e);
	if (*out == 0) {
		follow_size(e, st.st_size);
		*out = map_entry(e, addr, len, prot, flags, off);
	}
	shared_leave();
	if (*out >= 0)
		report_shared(ALIGN_UP(len, UINT64_C(4096)));
	return true;
}

int64_t preload_ftruncate(int fd, int64_t size)
{
	arena_t *a = serving();
	int64_t r = files_syscall(SYS_ftruncate, (uint64_t)fd, (uint64_t)size, 0, 0, 0, 0);
	struct open_shm *e;
	struct stat st;

	if (r < 0 || !a || preload_inside)
		return r;
	shared_enter();
	if (is_ours(fd, &st)) {
		r = entry_of_fd(a, fd, &st, &e);
		if (r == 0 && arena_shm_truncate(e->segment, size) < 0)
			r = -errno;
	}
	shared_leave();
	return r;
}

static bool look_at(int fd, struct stat *st)
{
	bool ours;

	if (!serving() || preload_inside)
		return false;
	shared_enter();
	ours = is_ours(fd, st);
	shared_leave();
	return ours;
}

/* The file gets no memory: what is asked for is the segment's, and comes when it is touched. */
int64_t preload_fallocate(int fd, int mode, int64_t off, int64_t len)
{
	struct stat st;

	if (!look_at(fd, &st))
		return files_syscall(SYS_fallocate, (uint64_t)fd, (uint64_t)mode, (uint64_t)off,
				     (uint64_t)len, 0, 0);
	if (off < 0 || len <= 0)
		return -EINVAL;
	if (off > INT64_MAX - len)
		return -EFBIG;
	if (mode & ~FALLOC_FL_KEEP_SIZE)
		return -EOPNOTSUPP;
	if ((raw3(SYS_fcntl, (uint64_t)fd, F_GETFL, 0) & O_ACCMODE) == O_RDONLY)
		return -EBADF;
	if (mode || off + len <= st.st_size)
		return 0;
	return preload_ftruncate(fd, off + len);
}

/* Elsewhere the C library may have to write the file full. */
PRELOAD_EXPORT int posix_fallocate(int fd, off_t off, off_t len)
{
	static int (*next)(int fd, off_t off, off_t len);
	struct stat st;

	struct file_key key;
	bool changes;
	int r;

	if (look_at(fd, &st))
		return (int)-preload_fallocate(fd, 0, off, len);
	if (!next)
		next = (int (*)(int, off_t, off_t))dlsym(RTLD_NEXT, "posix_fallocate");
	changes = files_may_change(fd, &key);
	r = next ? next(fd, off, len) : ENOSYS;
	if (changes)
		files_changed(&key);
	return r;
}

PRELOAD_EXPORT int posix_fallocate64(int fd, off64_t off, off64_t len)
{
	return posix_fallocate(fd, off, len);
}
