/* SPDX-License-Identifier: MIT */
/*
 * preload_files.c - a program that knows nothing of arenad, and both maps files and reads and writes them by system
 * calls. It is run on the kernel's memory, where it must pass, and on the arena's (tests/preload_files.sh).
 *
 * preload_files [PART]...; "peer FILE SEED", "store FILE" and "look FILE" are what it starts as unrelated processes.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/prng.h"
#include "tests/preload_parts.h"

#define SIZE (40 * PAGE + 123)

extern char **environ;
static char *self;
static char path[64];
static char *volatile nowhere = (char *)8;

static char byte_of(size_t at)
{
	return (char)(at * 13 + at / PAGE + 1);
}

static int make_file(size_t size)
{
	static char bytes[SIZE];
	int fd;

	snprintf(path, sizeof(path), "preload-files.%d", (int)getpid());
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = byte_of(i);
	CHECK(write(fd, bytes, size) == (ssize_t)size);
	return fd;
}

static char *map(int fd, size_t len, int prot, int flags)
{
	char *p = mmap(NULL, len, prot, flags, fd, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

static char byte_at(int fd, off_t off)
{
	char c;

	CHECK(pread(fd, &c, 1, off) == 1);
	return c;
}

/* ---- one process ---------------------------------------------------------------------------- */

static void part_reads(void)
{
	int fd = make_file(SIZE);
	char *p = map(fd, SIZE, RW, MAP_SHARED), a[8], b[8];
	struct iovec v[2] = {{a, 4}, {b, 4}};
	FILE *f;

	p[5] = 1;
	CHECK(byte_at(fd, 5) == 1);
	p[6] = 2;
	CHECK(lseek(fd, 4, SEEK_SET) == 4 && read(fd, a, 4) == 4);
	CHECK(a[0] == byte_of(4) && a[1] == 1 && a[2] == 2 && a[3] == byte_of(7));
	p[PAGE + 1] = 3;
	CHECK(lseek(fd, PAGE, SEEK_SET) == PAGE && readv(fd, v, 2) == 8 && a[1] == 3);
	p[PAGE + 2] = 4;
	CHECK(preadv(fd, v, 2, PAGE) == 8 && a[2] == 4);
	p[PAGE + 3] = 5;
	CHECK(preadv2(fd, v, 2, PAGE, 0) == 8 && a[3] == 5);
	p[PAGE + 4] = 6;
	CHECK(syscall(SYS_pread64, fd, a, 8, (off_t)PAGE) == 8 && a[4] == 6);
	p[PAGE + 5] = 7;
	CHECK((f = fopen(path, "r")) && fseek(f, PAGE + 5, SEEK_SET) == 0 && fgetc(f) == 7);
	CHECK(fclose(f) == 0);
	CHECK(pread(fd, nowhere, 10, 0) == -1 && errno == EFAULT);
	CHECK(read(-1, a, 1) == -1 && errno == EBADF);
	CHECK(munmap(p, SIZE) == 0 && close(fd) == 0);
}

static void part_writes(void)
{
	int fd = make_file(SIZE), append;
	char *p = map(fd, SIZE + PAGE, RW, MAP_SHARED), *own = map(fd, SIZE, RW, MAP_PRIVATE);
	char a[5] = "abcd", big[3 * PAGE];
	struct iovec v[2] = {{a, 2}, {a + 2, 2}};
	FILE *f;

	p[9] = 1;
	own[2 * PAGE] = 9;
	CHECK(own[0] == byte_of(0) && p[PAGE] == byte_of(PAGE));
	CHECK(pwrite(fd, "x", 1, 10) == 1 && p[10] == 'x' && p[9] == 1 && p[11] == byte_of(11));
	CHECK(own[10] == 'x');
	memset(big, 'y', sizeof(big));
	CHECK(lseek(fd, PAGE - 5, SEEK_SET) > 0 && write(fd, big, sizeof(big)) == sizeof(big));
	CHECK(p[PAGE - 6] == byte_of(PAGE - 6) && p[PAGE - 5] == 'y' && p[3 * PAGE] == 'y');
	CHECK(p[4 * PAGE - 6] == 'y' && p[4 * PAGE - 5] == byte_of(4 * PAGE - 5));
	CHECK(own[2 * PAGE] == 9 && own[2 * PAGE + 1] == byte_of(2 * PAGE + 1));
	CHECK(lseek(fd, 20, SEEK_SET) == 20 && writev(fd, v, 2) == 4 && !memcmp(p + 20, a, 4));
	CHECK(pwritev(fd, v, 2, 30) == 4 && !memcmp(p + 30, a, 4));
	CHECK(pwritev2(fd, v, 2, 40, 0) == 4 && !memcmp(p + 40, a, 4));
	CHECK(pwritev2(fd, v, 2, -1, 0) == 4 && !memcmp(p + 24, a, 4));
	CHECK(syscall(SYS_pwrite64, fd, a, 4, (off_t)50) == 4 && !memcmp(p + 50, a, 4));
	/* Behind the end, by a descriptor that appends, whatever offset it is given. */
	CHECK((append = open(path, O_WRONLY | O_APPEND | O_CLOEXEC)) >= 0);
	CHECK(p[SIZE - 1] == byte_of(SIZE - 1) && p[SIZE] == 0);
	CHECK(write(append, a, 4) == 4 && !memcmp(p + SIZE, a, 4));
	CHECK(pwrite(append, a, 4, 0) == 4 && !memcmp(p + SIZE + 4, a, 4) && p[0] == byte_of(0));
	CHECK(close(append) == 0);
	CHECK((f = fopen(path, "r+")) && fputc('z', f) == 'z' && fflush(f) == 0 && p[0] == 'z');
	CHECK(fputc('w', f) == 'w' && fclose(f) == 0 && p[1] == 'w');
	CHECK(p[9] == 1 && byte_at(fd, 9) == 1);
	CHECK(pwrite(fd, nowhere, 10, 0) == -1 && errno == EFAULT);
	CHECK(p[0] == 'z');
	CHECK(munmap(p, SIZE + PAGE) == 0 && munmap(own, SIZE) == 0 && close(fd) == 0);
}

static void part_copies(void)
{
	int fd = make_file(SIZE), to = open("preload-files.to", O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *p = map(fd, SIZE, RW, MAP_SHARED), *q, c;
	off64_t in = 0, out = 0;
	int pipes[2];

	CHECK(to >= 0 && ftruncate(to, SIZE) == 0 && pipe(pipes) == 0);
	q = map(to, SIZE, RW, MAP_SHARED);
	CHECK(q[5] == 0 && q[PAGE] == 0);
	p[5] = 1;
	CHECK(copy_file_range(fd, &in, to, &out, SIZE, 0) == SIZE);
	CHECK(q[5] == 1 && q[PAGE] == p[PAGE] && !memcmp(p, q, SIZE));
	q[7] = p[6] = 2;
	in = 6;
	CHECK(lseek(to, 100, SEEK_SET) == 100 && sendfile(to, fd, &in, 10) == 10);
	CHECK(q[100] == 2 && q[7] == 2 && q[101] == byte_of(7));
	in = 6, out = 200;
	CHECK(splice(fd, &in, pipes[1], NULL, 10, 0) == 10);
	CHECK(splice(pipes[0], NULL, to, &out, 10, 0) == 10 && q[200] == 2);
	p[6] = 3;
	in = 6;
	CHECK(sendfile(pipes[1], fd, &in, 1) == 1 && read(pipes[0], &c, 1) == 1 && c == 3);
	/* From a mapping to the file it shows, and from a file into a mapping of it. */
	CHECK(pwrite(fd, p + 10 * PAGE, 3 * PAGE, 20 * PAGE + 5) == 3 * PAGE);
	CHECK(p[20 * PAGE + 5] == byte_of(10 * PAGE) && p[23 * PAGE] == byte_of(13 * PAGE - 5));
	p[PAGE * 30] = 9;
	CHECK(pread(fd, p + 15 * PAGE + 7, 2 * PAGE, 30 * PAGE) == 2 * PAGE);
	CHECK(p[15 * PAGE + 7] == 9 && byte_at(fd, 15 * PAGE + 7) == 9);
	CHECK(!memcmp(p + 15 * PAGE + 8, p + 30 * PAGE + 1, 2 * PAGE - 1));
	CHECK(munmap(p, SIZE) == 0 && munmap(q, SIZE) == 0);
	CHECK(close(fd) == 0 && close(to) == 0 && unlink("preload-files.to") == 0);
	CHECK(close(pipes[0]) == 0 && close(pipes[1]) == 0);
}

static void part_sizes(void)
{
	int fd = make_file(SIZE);
	char *p = map(fd, 64 * PAGE, RW, MAP_SHARED);

	memset(p, 7, SIZE);
	CHECK(ftruncate(fd, 10 * PAGE + 10) == 0);
	CHECK(p[10 * PAGE + 9] == 7 && p[10 * PAGE + 10] == 0 && is_bus(p + 11 * PAGE));
	CHECK(ftruncate(fd, 50 * PAGE) == 0);
	CHECK(p[10 * PAGE + 10] == 0 && p[11 * PAGE] == 0 && p[20 * PAGE] == 0);
	p[20 * PAGE] = 1;
	CHECK(truncate(path, 15 * PAGE) == 0 && truncate(path, 50 * PAGE) == 0);
	CHECK(p[20 * PAGE] == 0 && p[9 * PAGE] == 7);
	/* Cut off by who opens it. */
	CHECK(close(open(path, O_WRONLY | O_TRUNC)) == 0);
	CHECK(ftruncate(fd, 50 * PAGE) == 0 && p[9 * PAGE] == 0);
	p[3 * PAGE] = 1;
	p[4 * PAGE + 5] = 2;
	p[5 * PAGE + 1] = 3;
	CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * PAGE, 2 * PAGE) == 0);
	CHECK(p[3 * PAGE] == 0 && p[4 * PAGE + 5] == 0 && p[5 * PAGE + 1] == 3);
	CHECK(fallocate(fd, 0, 50 * PAGE, PAGE) == 0 && p[50 * PAGE] == 0);
	CHECK(posix_fallocate(fd, 51 * PAGE, PAGE) == 0 && p[51 * PAGE] == 0);
	CHECK(is_bus(p + 52 * PAGE));
	CHECK(pwrite(fd, "e", 1, 60 * PAGE) == 1 && p[60 * PAGE] == 'e' && p[55 * PAGE] == 0);
	CHECK(munmap(p, 64 * PAGE) == 0 && close(fd) == 0);
}

static void part_mappings(void)
{
	int fd = make_file(SIZE), ro, copy;
	char *p = map(fd, SIZE, RW, MAP_SHARED), *q, *r;
	unsigned char core[41];

	/* Short ones show the same as long ones, and what is closed or copied goes on. */
	q = map(fd, PAGE, RW, MAP_SHARED);
	p[1] = 1;
	CHECK(q[1] == 1);
	q[2] = 2;
	CHECK(p[2] == 2 && byte_at(fd, 2) == 2);
	CHECK((copy = dup(fd)) >= 0 && close(fd) == 0);
	CHECK(pwrite(copy, "c", 1, 3) == 1 && p[3] == 'c' && q[3] == 'c');
	/* A private one that is made now shows what is there now. */
	p[4] = 4;
	r = map(copy, PAGE, RW, MAP_PRIVATE);
	CHECK(r[4] == 4);
	r[4] = 5;
	CHECK(p[4] == 4 && byte_at(copy, 4) == 4 && munmap(r, PAGE) == 0);
	CHECK((ro = open(path, O_RDONLY)) >= 0);
	CHECK(mmap(NULL, SIZE, RW, MAP_SHARED, ro, 0) == MAP_FAILED && errno == EACCES);
	r = map(ro, SIZE, PROT_READ, MAP_SHARED);
	CHECK(mprotect(r, SIZE, RW) == -1 && errno == EACCES && r[1] == 1);
	CHECK(munmap(r, SIZE) == 0 && close(ro) == 0);
	/* Moved, grown, mapped over: what was written is in the file. */
	CHECK((r = mremap(q, PAGE, 2 * PAGE, MREMAP_MAYMOVE)) != MAP_FAILED && r[2] == 2);
	r[PAGE] = 6;
	CHECK(p[PAGE] == 6 && byte_at(copy, PAGE) == 6);
	r[PAGE + 1] = 7;
	CHECK((q = mremap(r, 2 * PAGE, PAGE, 0)) == r && byte_at(copy, PAGE + 1) == 7);
	q[5] = 8;
	CHECK(mmap(q, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == q && q[5] == 0);
	CHECK(byte_at(copy, 5) == 8 && p[5] == 8);
	CHECK(mmap(q, PAGE, RW, MAP_SHARED | MAP_FIXED, copy, 3 * PAGE) == q);
	CHECK(q[0] == byte_of(3 * PAGE));
	q[0] = 9;
	CHECK(p[3 * PAGE] == 9 && munmap(q, PAGE) == 0);
	CHECK(msync(p, SIZE, MS_SYNC) == 0 && msync(p, SIZE, MS_ASYNC) == 0);
	CHECK(madvise(p, SIZE, MADV_DONTNEED) == 0 && p[3 * PAGE] == 9 && p[5] == 8);
	CHECK(mincore(p, SIZE, core) == 0 && core[0] & 1);
	CHECK(madvise(p, SIZE, MADV_WILLNEED) == 0);
	p[6] = 10;
	CHECK(fsync(copy) == 0 && fdatasync(copy) == 0 && syncfs(copy) == 0 &&
	      byte_at(copy, 6) == 10);
	CHECK(munmap(p, SIZE) == 0 && byte_at(copy, 6) == 10 && close(copy) == 0);
}

static void part_direct(void)
{
	int fd = make_file(SIZE), direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	char *p = map(fd, SIZE, RW, MAP_SHARED), *buf;

	if (direct < 0) {
		CHECK(errno == EINVAL);
		printf("no O_DIRECT here\n");
		return;
	}
	CHECK(posix_memalign((void **)&buf, PAGE, 4 * PAGE) == 0);
	p[5] = 1;
	CHECK(pread(direct, buf, PAGE, 0) == PAGE && buf[5] == 1 && buf[6] == byte_of(6));
	memset(buf, 'd', 2 * PAGE);
	CHECK(pwrite(direct, buf, 2 * PAGE, PAGE) == 2 * PAGE);
	CHECK(p[PAGE] == 'd' && p[3 * PAGE - 1] == 'd' && p[3 * PAGE] == byte_of(3 * PAGE));
	free(buf);
	CHECK(munmap(p, SIZE) == 0 && close(fd) == 0 && close(direct) == 0);
}

/* ---- others ------------------------------------------------------------------------------------- */

static pid_t start(const char *part, const char *arg, bool alone)
{
	char *args[] = {self, (char *)(uintptr_t)part, path, (char *)(uintptr_t)arg, NULL};
	char *plain[] = {NULL};
	pid_t pid;

	CHECK(posix_spawn(&pid, self, NULL, NULL, args, alone ? plain : environ) == 0);
	return pid;
}

/* One who stores, and ends in the way that is asked for. */
static void store(const char *file, const char *how)
{
	int fd = open(file, O_RDWR);
	char *p = map(fd, SIZE, RW, MAP_SHARED);

	p[PAGE + 1] = *how;
	if (*how == 'k')
		kill(getpid(), SIGKILL);
	if (*how == '_')
		_exit(0);
	if (*how == 's')
		syscall(SYS_exit_group, 0);
	exit(0);
}

/* One who has nothing mapped, and reads. */
static void look(const char *file, const char *what)
{
	int fd = open(file, O_RDONLY);

	CHECK(fd >= 0);
	CHECK(byte_at(fd, PAGE + 1) == *what);
}

static void part_ends(void)
{
	static const char *const ends[] = {"e", "_", "s"};
	int fd = make_file(SIZE), status;
	char *p;
	pid_t pid;

	for (unsigned i = 0; i < 3; i++) {
		ends_well(start("store", ends[i], false));
		/* Seen by who has nothing to do with any of this. */
		ends_well(start("look", ends[i], true));
		CHECK(byte_at(fd, PAGE + 1) == *ends[i]);
	}
	pid = start("store", "k", false);
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
	CHECK(byte_at(fd, PAGE + 1) == 'k');
	p = map(fd, SIZE, RW, MAP_SHARED);
	CHECK(p[PAGE + 1] == 'k');
	/* Of fork. */
	p[PAGE + 1] = 'f';
	pid = fork();
	if (pid == 0) {
		CHECK(p[PAGE + 1] == 'f' && byte_at(fd, PAGE + 1) == 'f');
		CHECK(pwrite(fd, "g", 1, PAGE + 1) == 1 && p[PAGE + 1] == 'g');
		p[PAGE + 1] = 'h';
		_exit(0);
	}
	ends_well(pid);
	CHECK(p[PAGE + 1] == 'h' && byte_at(fd, PAGE + 1) == 'h');
	p[PAGE + 1] = 'i';
	ends_well(start("look", "i", false));
	CHECK(munmap(p, SIZE) == 0);
	ends_well(start("look", "i", true));
	CHECK(close(fd) == 0);
}

/* ---- at random, beside a model --------------------------------------------------------------------- */

#define MODEL_MAX (24 * PAGE)
#define PEERS 3u
#define STEPS 150u

/* In a file of its own, which is only read and written. */
struct model {
	uint64_t size;
	char bytes[MODEL_MAX];
};

struct peer {
	int fd, model_fd;
	char *p, *own; /* NULL: not mapped */
	struct model *m;
	struct prng rng;
};

static uint64_t below(struct peer *x, uint64_t n)
{
	return prng_below(&x->rng, n);
}

static void check_all(struct peer *x)
{
	static char bytes[MODEL_MAX + PAGE];
	struct stat st;

	CHECK(fstat(x->fd, &st) == 0 && (uint64_t)st.st_size == x->m->size);
	CHECK(pread(x->fd, bytes, sizeof(bytes), 0) == (ssize_t)x->m->size);
	CHECK(memcmp(bytes, x->m->bytes, x->m->size) == 0);
	if (x->p)
		CHECK(memcmp(x->p, x->m->bytes, x->m->size) == 0);
	/* Nothing was written to it, so it shows the same. */
	if (x->own)
		CHECK(memcmp(x->own, x->m->bytes, x->m->size) == 0);
}

static void grow(struct model *m, uint64_t size)
{
	if (size > m->size)
		m->size = size;
}

static void one_step(struct peer *x)
{
	struct model *m = x->m;
	uint64_t at = below(x, MODEL_MAX - 2 * PAGE), n = 1 + below(x, 2 * PAGE - 1), size;
	char c = (char)(1 + below(x, 255)), bytes[2 * PAGE];

	memset(bytes, c, n);
	switch (below(x, 12)) {
	case 0:
	case 1:
	case 2:
		/* Store: not behind the end. */
		if (!x->p || at >= m->size)
			break;
		n = n < m->size - at ? n : m->size - at;
		memset(x->p + at, c, n);
		memset(m->bytes + at, c, n);
		break;
	case 3:
	case 4:
		CHECK(pwrite(x->fd, bytes, n, (off_t)at) == (ssize_t)n);
		memset(m->bytes + at, c, n);
		grow(m, at + n);
		break;
	case 5:
		CHECK(lseek(x->fd, (off_t)at, SEEK_SET) == (off_t)at);
		CHECK(write(x->fd, bytes, n) == (ssize_t)n);
		memset(m->bytes + at, c, n);
		grow(m, at + n);
		break;
	case 6:
		if (below(x, 3))
			break;
		size = below(x, MODEL_MAX);
		CHECK(ftruncate(x->fd, (off_t)size) == 0);
		if (size < m->size)
			memset(m->bytes + size, 0, MODEL_MAX - size);
		m->size = size;
		break;
	case 7:
		if (x->p) {
			CHECK(munmap(x->p, MODEL_MAX) == 0);
			x->p = NULL;
		} else {
			x->p = map(x->fd, MODEL_MAX, RW, MAP_SHARED);
		}
		break;
	case 8:
		if (x->own) {
			CHECK(munmap(x->own, MODEL_MAX) == 0);
			x->own = NULL;
		} else {
			x->own = map(x->fd, MODEL_MAX, PROT_READ, MAP_PRIVATE);
		}
		break;
	case 9:
		if (x->p)
			CHECK(msync(x->p, MODEL_MAX, below(x, 2) ? MS_SYNC : MS_ASYNC) == 0);
		break;
	case 10:
		n = at < m->size ? (n < m->size - at ? n : m->size - at) : 0;
		CHECK(pread(x->fd, bytes, n, (off_t)at) == (ssize_t)n);
		CHECK(memcmp(bytes, m->bytes + at, n) == 0);
		break;
	default:
		check_all(x);
		break;
	}
}

/* One peer at a time: whoever has the lock. */
static void peer(const char *file, const char *seed)
{
	char model[80];
	struct peer x = {.rng = {strtoull(seed, NULL, 0)}};
	struct flock lock = {.l_whence = SEEK_SET};

	snprintf(model, sizeof(model), "%s.model", file);
	CHECK((x.fd = open(file, O_RDWR | O_CLOEXEC)) >= 0);
	CHECK((x.model_fd = open(model, O_RDWR | O_CLOEXEC)) >= 0);
	CHECK((x.m = malloc(sizeof(*x.m))));
	for (unsigned i = 0; i < STEPS; i++) {
		lock.l_type = F_WRLCK;
		CHECK(fcntl(x.model_fd, F_SETLKW, &lock) == 0);
		CHECK(pread(x.model_fd, x.m, sizeof(*x.m), 0) == sizeof(*x.m));
		for (unsigned n = 1 + (unsigned)below(&x, 4); n; n--)
			one_step(&x);
		CHECK(pwrite(x.model_fd, x.m, sizeof(*x.m), 0) == sizeof(*x.m));
		lock.l_type = F_UNLCK;
		CHECK(fcntl(x.model_fd, F_SETLK, &lock) == 0);
	}
	exit(0);
}

static void part_random(void)
{
	const char *given = getenv("ARENA_TEST_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0)
			      : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid();
	struct peer x = {.fd = make_file(0)};
	char model[80], text[32];
	pid_t pid[PEERS];

	printf("seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	snprintf(model, sizeof(model), "%s.model", path);
	x.model_fd = open(model, O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(x.model_fd >= 0 && (x.m = calloc(1, sizeof(*x.m))));
	CHECK(pwrite(x.model_fd, x.m, sizeof(*x.m), 0) == sizeof(*x.m));
	for (unsigned i = 0; i < PEERS; i++) {
		snprintf(text, sizeof(text), "%llu", (unsigned long long)seed + i);
		pid[i] = start("peer", text, false);
	}
	for (unsigned i = 0; i < PEERS; i++)
		ends_well(pid[i]);
	CHECK(pread(x.model_fd, x.m, sizeof(*x.m), 0) == sizeof(*x.m));
	check_all(&x);
	CHECK(close(x.fd) == 0 && close(x.model_fd) == 0 && unlink(model) == 0);
	free(x.m);
}

/* ---- threads that write beside one that stores ------------------------------------------------------ */

#define WRITES 300

/* Bytes of its own, in pages that others have bytes in, too. */
static void part_neighbours(void)
{
	int fd = make_file(SIZE);
	char *p = map(fd, SIZE, RW, MAP_SHARED);
	pid_t pid = fork();

	/* The child writes even bytes of each 16, the parent stores odd ones. */
	for (unsigned i = 0; i < WRITES; i++) {
		size_t at = i * 16 % (10 * PAGE);

		if (pid == 0)
			CHECK(pwrite(fd, "E", 1, (off_t)at) == 1);
		else
			p[at + 1] = 'O';
		if (pid == 0)
			CHECK(p[at] == 'E');
		else
			CHECK(byte_at(fd, (off_t)at + 1) == 'O');
	}
	if (pid == 0)
		_exit(0);
	ends_well(pid);
	for (unsigned i = 0; i < WRITES; i++) {
		size_t at = i * 16 % (10 * PAGE);

		CHECK(p[at] == 'E' && p[at + 1] == 'O');
		CHECK(byte_at(fd, (off_t)at) == 'E' && byte_at(fd, (off_t)at + 1) == 'O');
	}
	CHECK(munmap(p, SIZE) == 0 && close(fd) == 0);
}

#define THREADS 100u

struct writer {
	pthread_t thread;
	unsigned nr;
	int fd;
	char *p;
};

/* More threads than can wait for the daemon at one time, all at the same page. */
static void *write_and_read(void *arg)
{
	struct writer *w = arg;

	for (unsigned i = 0; i < 20; i++) {
		off_t at = (off_t)(w->nr * 8 + i % 3);
		char c = (char)(w->nr + i);

		CHECK(pwrite(w->fd, &c, 1, at) == 1 && w->p[at] == c);
		w->p[at + 4] = c;
		CHECK(byte_at(w->fd, at + 4) == c);
	}
	return NULL;
}

static void part_threads(void)
{
	static struct writer w[THREADS];
	int fd = make_file(SIZE);
	char *p = map(fd, SIZE, RW, MAP_SHARED);

	for (unsigned i = 0; i < THREADS; i++) {
		w[i] = (struct writer){.nr = i, .fd = fd, .p = p};
		CHECK(pthread_create(&w[i].thread, NULL, write_and_read, &w[i]) == 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		CHECK(pthread_join(w[i].thread, NULL) == 0);
	for (unsigned i = 0; i < THREADS; i++)
		for (unsigned k = 17; k < 20; k++) {
			off_t at = (off_t)(i * 8 + k % 3);

			CHECK(p[at] == (char)(i + k) && p[at + 4] == (char)(i + k));
			CHECK(byte_at(fd, at) == p[at] && byte_at(fd, at + 4) == p[at]);
		}
	CHECK(munmap(p, SIZE) == 0 && close(fd) == 0);
}

int main(int argc, char **argv)
{
	static const struct part parts[] = {
		{"reads", part_reads},   {"writes", part_writes},         {"copies", part_copies},
		{"sizes", part_sizes},   {"mappings", part_mappings},     {"direct", part_direct},
		{"ends", part_ends},     {"neighbours", part_neighbours}, {"threads", part_threads},
		{"random", part_random},
	};

	self = argv[0];
	if (argc == 4 && strcmp(argv[1], "peer") == 0)
		peer(argv[2], argv[3]);
	if (argc == 4 && strcmp(argv[1], "store") == 0)
		store(argv[2], argv[3]);
	if (argc == 4 && strcmp(argv[1], "look") == 0)
		return look(argv[2], argv[3]), 0;
	run_parts(parts, sizeof(parts) / sizeof(*parts), argc, argv, 1);
	if (path[0])
		unlink(path);
	return 0;
}
