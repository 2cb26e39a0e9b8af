/* SPDX-License-Identifier: MIT */
/*
 * files.c - system calls on files that are mapped on arena memory (--files).
 *
 * The arena has a page cache of its own. In Linux a shared mapping and read(2) and write(2) of its file see the same
 * bytes; so what reads a file has what is dirty of it written first, and what writes one holds the arena's
 * write-back meanwhile and has what it wrote read (daemon/virt/file_hold.c). That concerns files that are cached, by whatever
 * process: the address space's header has a bit for each (arena_file_bit()). Where no bit is set a call costs two looks at
 * eight words; where some are, an fstat(2) more.
 *
 *                          its file is                    read(2) ...     write(2) ...
 *     not cached           -                              as ever         as ever; and a look afterwards
 *     cached               clean                          as ever         hold, write, release
 *     cached               has dirty pages                sync, read      hold, write, release
 *
 * Between hold and release no signal is taken and the thread is not cancelled.
 */
#include "libclient/preload/files.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/os.h"
#include "base/util.h"
#include "libclient/internal.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

#define PAGE 4096u
#define WHOLE UINT64_MAX
#define HERE (-1) /* an offset: where the descriptor stands */

arena_t *files_serving(void)
{
	return preload.options.files && !preload_inside ? preload_arena() : NULL;
}

static bool any(const uint64_t *words)
{
	uint64_t all = 0;

	for (unsigned i = 0; i < ARENA_FILE_WORDS; i++)
		all |= load_relaxed(&words[i]);
	return all;
}

static bool has(const uint64_t *words, const struct file_key *key)
{
	unsigned bit = arena_file_bit(key->dev, key->ino);

	return load_relaxed(&words[bit / 64]) >> bit % 64 & 1;
}

static bool key_of(int fd, struct file_key *key)
{
	struct stat st;

	if (fd < 0 || raw3(SYS_fstat, (uint64_t)fd, (uintptr_t)&st, 0) < 0 || !S_ISREG(st.st_mode))
		return false;
	*key = (struct file_key){st.st_dev, st.st_ino};
	return true;
}

static bool key_of_path(uint64_t path, struct file_key *key)
{
	struct stat st;

	if (raw3(SYS_stat, path, (uintptr_t)&st, 0) < 0 || !S_ISREG(st.st_mode))
		return false;
	*key = (struct file_key){st.st_dev, st.st_ino};
	return true;
}

/* ---- what reads ------------------------------------------------------------------------------ */

static int64_t position(int fd)
{
	return raw3(SYS_lseek, (uint64_t)fd, 0, SEEK_CUR);
}

/* 0, or why what is dirty cannot be written: then the file has not what was stored. */
static int64_t sync_before(int fd, int64_t off, uint64_t len)
{
	arena_t *a = files_serving();
	struct file_key key;
	int r;

	if (!a || !any(a->tlb.header->files_dirty) || !key_of(fd, &key) ||
	    !has(a->tlb.header->files_dirty, &key))
		return 0;
	if (off == HERE)
		off = position(fd);
	if (off < 0)
		return 0;
	guard_enter();
	r = client_file_sync(a, &key, (uint64_t)off, len);
	guard_leave();
	report_served(SERVED_sync);
	return r == -ECONNRESET ? 0 : r;
}

static int64_t sync_all(void)
{
	arena_t *a = files_serving();
	int r;

	if (!a || !any(a->tlb.header->files_dirty))
		return 0;
	guard_enter();
	r = client_file_sync_all(a);
	guard_leave();
	return r == -ECONNRESET ? 0 : r;
}

/* Some modes move what comes behind. */
static bool moves(const struct file_call *c)
{
	return c->nr == SYS_fallocate &&
	       (int)c->arg[1] &
		       ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
}

/* Before the call. Offsets that it is given by pointers are not looked at: they need not be good. */
static int64_t sync_for(const struct file_call *c)
{
	int64_t r;

	switch (c->nr) {
	case SYS_read:
		r = sync_before((int)c->arg[0], HERE, c->arg[2]);
		break;
	case SYS_pread64:
		r = sync_before((int)c->arg[0], (int64_t)c->arg[3], c->arg[2]);
		break;
	case SYS_readv:
		r = sync_before((int)c->arg[0], HERE, WHOLE);
		break;
	case SYS_preadv:
	case SYS_preadv2:
		r = sync_before((int)c->arg[0], (int64_t)c->arg[3], WHOLE);
		break;
	case SYS_copy_file_range:
	case SYS_splice:
		r = sync_before((int)c->arg[0], 0, WHOLE);
		break;
	case SYS_sendfile:
		r = sync_before((int)c->arg[1], 0, WHOLE);
		break;
	case SYS_fsync:
	case SYS_fdatasync:
	case SYS_sync_file_range:
		return sync_before((int)c->arg[0], 0, WHOLE);
	case SYS_sync:
	case SYS_syncfs:
		return sync_all();
	case SYS_fallocate:
		/* What is dirty would stay where it was. */
		return moves(c) ? sync_before((int)c->arg[0], 0, WHOLE) : 0;
	default:
		return 0;
	}
	return r < 0 ? -EIO : 0;
}

/* ---- what writes ------------------------------------------------------------------------------ */

#define NOTHING (-1)
#define BY_PATH (-2)

/* Which argument is the descriptor of what the call writes to. */
static int written_argument(int64_t nr)
{
	switch (nr) {
	case SYS_write:
	case SYS_pwrite64:
	case SYS_writev:
	case SYS_pwritev:
	case SYS_pwritev2:
	case SYS_sendfile:
	case SYS_ftruncate:
	case SYS_fallocate:
		return 0;
	case SYS_copy_file_range:
	case SYS_splice:
		return 2;
	case SYS_truncate:
		return BY_PATH;
	default:
		return NOTHING;
	}
}

static bool writes(int64_t nr)
{
	return written_argument(nr) != NOTHING;
}

static bool find_written(struct file_call *c)
{
	int i = written_argument(c->nr);

	if (i >= 0)
		c->looked = key_of((int)c->arg[i], &c->key);
	else if (i == BY_PATH)
		c->looked = key_of_path(c->arg[0], &c->key);
	return c->looked;
}

struct written {
	uint64_t off, len;
};

static struct written at(int64_t off, int64_t len)
{
	if (off < 0)
		return (struct written){0, FILE_LENGTH_UNKNOWN};
	return (struct written){(uint64_t)off, len > 0 ? (uint64_t)len : 0};
}

static const struct written unknown = {0, FILE_LENGTH_UNKNOWN};

static bool appends(int fd)
{
	return raw3(SYS_fcntl, (uint64_t)fd, F_GETFL, 0) & O_APPEND;
}

static int64_t size_of(int fd)
{
	struct stat st;

	return raw3(SYS_fstat, (uint64_t)fd, (uintptr_t)&st, 0) < 0 ? -1 : (int64_t)st.st_size;
}

/* What is about to be written. Of what is behind pointers that is not known: they need not be good. */
static struct written what_will_be_written(const struct file_call *c)
{
	const uint64_t *a = c->arg;
	int fd = (int)a[0];

	switch (c->nr) {
	case SYS_write:
		return at(appends(fd) ? size_of(fd) : position(fd), (int64_t)a[2]);
	case SYS_pwrite64:
		return at(appends(fd) ? size_of(fd) : (int64_t)a[3], (int64_t)a[2]);
	case SYS_ftruncate:
	case SYS_truncate:
		return at(0, 0);
	default:
		return unknown;
	}
}

/* With O_APPEND an offset means nothing: it is the end of the file. */
static struct written at_offset(const struct file_call *c, int64_t off, int flags)
{
	int fd = (int)c->arg[0];

	if (flags & RWF_APPEND || appends(fd))
		return at(size_of(fd) - c->result, c->result);
	return at(off == HERE ? position(fd) - c->result : off, c->result);
}

static struct written by_pointer(int fd, uint64_t pointer, int64_t len)
{
	return at((pointer ? *(const int64_t *)(uintptr_t)pointer : position(fd)) - len, len);
}

/* What a call that succeeded has changed, beside the size. */
static struct written what_was_written(const struct file_call *c)
{
	const uint64_t *a = c->arg;

	switch (c->nr) {
	case SYS_write:
	case SYS_writev:
	case SYS_sendfile:
		/* It ends where the descriptor stands. */
		return at(position((int)a[0]) - c->result, c->result);
	case SYS_pwrite64:
	case SYS_pwritev:
		return at_offset(c, (int64_t)a[3], 0);
	case SYS_pwritev2:
		return at_offset(c, (int64_t)a[3], (int)a[5]);
	case SYS_copy_file_range:
	case SYS_splice:
		return by_pointer((int)a[2], a[3], c->result);
	case SYS_fallocate:
		return moves(c) ? unknown : at((int64_t)a[2], (int64_t)a[3]);
	default:
		return at(0, 0);
	}
}

static void release(arena_t *a, const struct file_call *c)
{
	struct written w = c->result < 0 ? at(0, 0) : what_was_written(c);

	guard_enter();
	client_file_release(a, &c->key, w.off, w.len);
	guard_leave();
	report_served(SERVED_write);
}

static void held_call(arena_t *a, struct file_call *c)
{
	uint64_t mask = signals_block_all();
	struct written w = what_will_be_written(c);
	int cancel;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	guard_enter();
	client_file_hold(a, &c->key, w.off, w.len);
	guard_leave();
	c->result = raw6(c->nr, c->arg[0], c->arg[1], c->arg[2], c->arg[3], c->arg[4], c->arg[5]);
	/* Also where it was not cached: it may be by now. */
	release(a, c);
	pthread_setcancelstate(cancel, NULL);
	signals_restore(mask);
}

bool files_before(struct file_call *c)
{
	arena_t *a = files_serving();

	if (likely(!a))
		return false;
	c->result = sync_for(c);
	if (c->result < 0)
		return true;
	if (!writes(c->nr) || !any(a->tlb.header->files_cached) || !find_written(c) ||
	    !has(a->tlb.header->files_cached, &c->key))
		return false;
	held_call(a, c);
	/* files_after() has nothing to do. */
	c->nr = -1;
	return true;
}

/* Was it mapped meanwhile? Then what was read of it may be of before. */
void files_after(struct file_call *c)
{
	arena_t *a = files_serving();

	if (likely(!a) || c->result < 0 || !writes(c->nr))
		return;
	fence_full();
	if (!any(a->tlb.header->files_cached) || (!c->looked && !find_written(c)) ||
	    !has(a->tlb.header->files_cached, &c->key))
		return;
	release(a, c);
}

int64_t files_syscall(int64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
		      uint64_t f)
{
	struct file_call call = FILE_CALL(nr, a, b, c, d, e, f);

	if (!files_before(&call))
		call.result = raw6(nr, a, b, c, d, e, f);
	files_after(&call);
	return call.result;
}

bool files_knows(int64_t nr)
{
	switch (nr) {
	case SYS_read:
	case SYS_pread64:
	case SYS_readv:
	case SYS_preadv:
	case SYS_preadv2:
	case SYS_fsync:
	case SYS_fdatasync:
	case SYS_sync_file_range:
	case SYS_sync:
	case SYS_syncfs:
		return true;
	default:
		return writes(nr);
	}
}

/* ---- streams ------------------------------------------------------------------------------------------ */

static bool is_cached(arena_t *a, int fd, struct file_key *key)
{
	return a && any(a->tlb.header->files_cached) && key_of(fd, key) &&
	       has(a->tlb.header->files_cached, key);
}

static void changed(arena_t *a, const struct file_key *key, uint64_t len)
{
	guard_enter();
	client_file_release(a, key, 0, len);
	guard_leave();
}

void files_opened(int fd)
{
	arena_t *a = files_serving();
	struct file_key key;

	if (!is_cached(a, fd, &key))
		return;
	/* It may have cut the file off. */
	if (files_may_change(fd, &key))
		changed(a, &key, 0);
	else
		sync_before(fd, 0, WHOLE);
}

bool files_may_change(int fd, struct file_key *key)
{
	if (!is_cached(files_serving(), fd, key) ||
	    (raw3(SYS_fcntl, (uint64_t)fd, F_GETFL, 0) & O_ACCMODE) == O_RDONLY)
		return false;
	/* What is dirty now is not what will have been written. */
	sync_before(fd, 0, WHOLE);
	return true;
}

void files_changed(const struct file_key *key)
{
	arena_t *a = files_serving();

	if (a)
		changed(a, key, FILE_LENGTH_UNKNOWN);
}

/* ---- for file_map.c, and at the end ------------------------------------------------------------ */

void files_before_kernel_mmap(int fd, uint64_t off, uint64_t len)
{
	sync_before(fd, (int64_t)off, len);
}

void files_at_exit(void)
{
	if (getpid() == preload.pid)
		sync_all();
}
