/* SPDX-License-Identifier: MIT */
/*
 * daemon_access.c - who may see and change what, as real users: modes of segments, descriptors of
 * arena files, files of other processes.
 *
 * A secret is 8 bytes; whether a process could read it is asked of every memfd that it holds, by
 * mapping it and looking at all that the file has.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "tests/lib_client.h"

#define OWNER 54321u
#define OTHER 65534u
#define NAME "/access-test"
#define SECRET UINT64_C(0x5ec4e7abad1dea00)
#define SIZE (2 * LEAF)

/* ---- looking through descriptors ----------------------------------------------------------- */

static bool extent_has(const char *base, off_t from, off_t to, uint64_t word)
{
	for (off_t at = from & ~7; at + 8 <= to; at += 8)
		if (*(const volatile uint64_t *)(const void *)(base + at) == word)
			return true;
	return false;
}

/* Is the word in what the file holds? False, too, if the file cannot be read. */
static bool file_has(int fd, uint64_t word)
{
	off_t end = lseek(fd, 0, SEEK_END), from = 0, to;
	bool has = false;
	char *p;

	if (end <= 0)
		return false;
	p = mmap(NULL, (size_t)end, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return false;
	while (!has && (from = lseek(fd, from, SEEK_DATA)) >= 0) {
		to = lseek(fd, from, SEEK_HOLE);
		has = extent_has(p, from, to, word);
		from = to;
	}
	munmap(p, (size_t)end);
	return has;
}

enum { HOLDS = 1, WRITES = 2, REOPENS = 4 };

/* How this process's memfds reach the word: held, held writable, or writable when opened anew. */
static unsigned reach(uint64_t word)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *e;
	unsigned how = 0;

	CHECK(dir);
	while ((e = readdir(dir))) {
		int fd = atoi(e->d_name), again;
		char path[64], link[128];
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, link, sizeof(link) - 1);
		if (n < 0 || memcmp(link, "/memfd:", 7) != 0 || !file_has(fd, word))
			continue;
		how |= HOLDS;
		if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
			how |= WRITES;
		again = open(path, O_RDWR | O_CLOEXEC);
		if (again >= 0) {
			how |= REOPENS;
			close(again);
		}
	}
	closedir(dir);
	return how;
}

/* ---- what one user leaves ------------------------------------------------------------------ */

struct scene {
	struct gate ready, end;
	mode_t mode;
	uint64_t secret[3]; /* in the segment, in private memory, in pages */
};

static void live_and_hold(struct test_daemon *d, void *arg)
{
	struct scene *sc = arg;
	arena_t *a;
	arena_shm_t *s;
	uint64_t *p, *private, *pages;

	umask(0);
	a = client_open(d);
	s = client_shm(a, NAME, O_RDWR | O_CREAT | O_EXCL, sc->mode);
	CHECK_OK(arena_shm_truncate(s, (off_t)SIZE));
	p = arena_shm_mmap(s, NULL, SIZE, RW, MAP_SHARED, 0);
	CHECK((void *)p != MAP_FAILED);
	private = client_map(a, SIZE);
	pages = arena_alloc_pages(a, ARENA_GFP_KERNEL, 0);
	CHECK(pages);
	p[100] = sc->secret[0];
	private[100] = sc->secret[1];
	pages[100] = sc->secret[2];
	/* That the search finds what is there. */
	for (unsigned i = 0; i < 3; i++)
		CHECK(reach(sc->secret[i]) & HOLDS);
	gate_open(&sc->ready, 1);
	gate_pass(&sc->end);
	CHECK(p[100] == sc->secret[0]);
	CHECK_OK(arena_shm_unlink(a, NAME));
	arena_close(a);
}

static struct scene *scene_make(mode_t mode)
{
	struct scene *sc = shared_alloc(sizeof(*sc));

	*sc = (struct scene){.ready = gate_make(), .end = gate_make(), .mode = mode};
	for (unsigned i = 0; i < 3; i++)
		sc->secret[i] = SECRET + (uint64_t)getpid() * 1000003 + i;
	return sc;
}

/* One user lives and holds, another does `fn`. */
static void with_owner(struct test_daemon *d, mode_t mode, uid_t uid, client_fn fn)
{
	struct scene *sc = scene_make(mode);
	pid_t owner;

	if (geteuid() != 0) {
		fprintf(stderr, "only root can become other users\n");
		skip();
	}
	owner = client_start_as(d, OWNER, live_and_hold, sc);
	gate_pass(&sc->ready);
	client_run_as(d, uid, fn, sc);
	gate_open(&sc->end, 1);
	client_wait(owner);
	gate_close(&sc->ready);
	gate_close(&sc->end);
	shared_free(sc, sizeof(*sc));
}

/* ---- what another user gets ---------------------------------------------------------------- */

/* Takes all memory it can, so that it would be given whatever is left lying about. */
static void take_memory(arena_t *a)
{
	char *p = client_map(a, 64 * LEAF);

	for (unsigned i = 0; i < 64; i++)
		CHECK(is_zero(p + i * LEAF, LEAF));
	for (unsigned i = 0; i < 64; i++)
		p[i * LEAF] = 1;
	CHECK(arena_alloc_pages(a, ARENA_GFP_KERNEL, 0));
}

static void locked_out(struct test_daemon *d, void *arg)
{
	struct scene *sc = arg;
	arena_t *a = client_open(d);

	CHECK_ERRNO(arena_shm_open(a, NAME, O_RDONLY, 0), EACCES);
	CHECK_ERRNO(arena_shm_open(a, NAME, O_RDWR, 0), EACCES);
	CHECK_ERRNO(arena_shm_open(a, NAME, O_RDWR | O_TRUNC, 0), EACCES);
	CHECK_ERRNO(arena_shm_open(a, NAME, O_RDWR | O_CREAT, 0666), EACCES);
	CHECK_ERRNO(arena_shm_open(a, NAME, O_RDWR | O_CREAT | O_EXCL, 0666), EEXIST);
	CHECK_ERRNO(arena_shm_unlink(a, NAME), EACCES);
	take_memory(a);
	for (unsigned i = 0; i < 3; i++)
		CHECK(reach(sc->secret[i]) == 0);
	arena_close(a);
}

static void test_private_segment(void **state)
{
	with_owner(*state, 0600, OTHER, locked_out);
}

static void read_only(struct test_daemon *d, void *arg)
{
	struct scene *sc = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s;
	struct fault_seen seen;
	uint64_t *p;

	CHECK_ERRNO(arena_shm_open(a, NAME, O_RDWR, 0), EACCES);
	s = client_shm(a, NAME, O_RDONLY, 0);
	CHECK_ERRNO(arena_shm_mmap(s, NULL, SIZE, RW, MAP_SHARED, 0), EACCES);
	CHECK_ERRNO(arena_shm_truncate(s, 0), EINVAL);
	p = arena_shm_mmap(s, NULL, SIZE, PROT_READ, MAP_SHARED, 0);
	CHECK((void *)p != MAP_FAILED && p[100] == sc->secret[0]);
	CHECK(try_write(p + 100, &seen) == SIGSEGV && seen.code == SEGV_ACCERR);
	CHECK_ERRNO(arena_mprotect(a, p, SIZE, RW), EACCES);
	/* Around the library: the kernel knows the descriptor was read-only. */
	CHECK_ERRNO(mprotect(p, PAGE, RW), EACCES);
	CHECK(reach(sc->secret[0]) == HOLDS);
	take_memory(a);
	CHECK(reach(sc->secret[1]) == 0 && reach(sc->secret[2]) == 0);
	/* A copy of its own may be written. */
	p = arena_shm_mmap(s, NULL, SIZE, RW, MAP_PRIVATE, 0);
	CHECK((void *)p != MAP_FAILED);
	p[100] = 1;
	arena_close(a);
}

static void test_readable_segment(void **state)
{
	with_owner(*state, 0644, OTHER, read_only);
}

static void read_and_write(struct test_daemon *d, void *arg)
{
	struct scene *sc = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR, 0);
	uint64_t *p = arena_shm_mmap(s, NULL, SIZE, RW, MAP_SHARED, 0);

	CHECK((void *)p != MAP_FAILED);
	CHECK(p[100] == sc->secret[0]);
	p[200] = 7;
	CHECK(reach(sc->secret[0]) & WRITES);
	take_memory(a);
	CHECK(reach(sc->secret[1]) == 0 && reach(sc->secret[2]) == 0);
	CHECK_ERRNO(arena_shm_unlink(a, NAME), EACCES);
	arena_close(a);
}

static void test_writable_segment(void **state)
{
	with_owner(*state, 0666, OTHER, read_and_write);
}

/* A memfd of the daemon's that came read-only stays so: page tables, too. */
static void own_tables(struct test_daemon *d, void *arg)
{
	DIR *dir;
	struct dirent *e;
	arena_t *a = client_open(d);
	unsigned memfds = 0;

	(void)arg;
	*(char *)client_map(a, PAGE) = 1;
	dir = opendir("/proc/self/fd");
	CHECK(dir);
	while ((e = readdir(dir))) {
		char path[64], link[128];
		ssize_t n;
		int fd;

		fd = atoi(e->d_name);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, link, sizeof(link) - 1);
		if (n < 0 || memcmp(link, "/memfd:", 7) != 0)
			continue;
		memfds++;
		/* Neither smaller nor larger, whoever asks. */
		CHECK(ftruncate(fd, 0) < 0);
		CHECK(ftruncate(fd, (off_t)1 << 50) < 0);
		CHECK(open(path, O_RDWR | O_CLOEXEC) < 0 && errno == EACCES);
	}
	CHECK(memfds > 0);
	closedir(dir);
	arena_close(a);
}

static void test_reopen(void **state)
{
	with_owner(*state, 0600, OTHER, own_tables);
}

/* What a user's processes leave behind never comes to another user. */
static void fill_with_secret(struct test_daemon *d, void *arg)
{
	struct scene *sc = arg;
	arena_t *a = client_open(d);
	size_t words = 128 * LEAF / 8;
	uint64_t *p = client_map(a, 128 * LEAF);

	for (size_t i = 0; i < words; i += 8)
		p[i] = sc->secret[0];
	for (unsigned i = 0; i < 64; i++) {
		uint64_t *q = arena_alloc_pages(a, ARENA_GFP_KERNEL, i % 4);

		CHECK(q);
		*q = sc->secret[0];
	}
	if (sc->mode)
		arena_close(a);
	_exit(0);
}

static void search_for_secret(struct test_daemon *d, void *arg)
{
	struct scene *sc = arg;
	arena_t *a = client_open(d);
	uint64_t *p = client_map(a, 160 * LEAF);

	/* Writes a word a page, so that every frame is really given; the rest must be zero. */
	for (size_t i = 0; i < 160 * LEAF / 8; i += PAGE / 8)
		p[i + 1] = 1;
	for (unsigned i = 0; i < 256; i++)
		arena_alloc_pages(a, ARENA_GFP_KERNEL | ARENA_GFP_NOWARN, i % 4);
	CHECK(reach(sc->secret[0]) == 0);
	arena_close(a);
}

static void test_secrets_of_the_dead(void **state)
{
	struct test_daemon *d = *state;

	if (geteuid() != 0)
		skip();
	for (mode_t polite = 0; polite < 2; polite++) {
		struct scene *sc = scene_make(polite);

		client_run_as(d, OWNER, fill_with_secret, sc);
		client_run_as(d, OTHER, search_for_secret, sc);
		/* And not to another process of the same user, but for what it may map. */
		client_run_as(d, OWNER, fill_with_secret, sc);
		expect_all_frames_back(d);
		gate_close(&sc->ready);
		gate_close(&sc->end);
		shared_free(sc, sizeof(*sc));
	}
}

/* ---- files of the tree --------------------------------------------------------------------- */

static void ordinary_user(struct test_daemon *d, void *arg)
{
	static const char *const forbidden[] = {"proc/sys/vm/min_free_kbytes",
						"sys/kernel/mm/arena/poll_usecs"};
	pid_t owner = *(pid_t *)arg;
	arena_t *a = client_open(d);
	char path[64], text[4096];

	for (size_t i = 0; i < 2; i++) {
		CHECK(arena_attr_read(a, forbidden[i], text, sizeof(text)) > 0);
		CHECK_ERRNO(arena_attr_write(a, forbidden[i], "1000"), EACCES);
	}
	CHECK_ERRNO(arena_attr_read(a, CHECK_PATH, text, sizeof(text)), EACCES);
	CHECK_ERRNO(arena_attr_read(a, "proc/pagetypeinfo", text, sizeof(text)), EACCES);
	snprintf(path, sizeof(path), "proc/%d/maps", (int)owner);
	CHECK_ERRNO(arena_attr_read(a, path, text, sizeof(text)), EACCES);
	*(char *)client_map(a, PAGE) = 1;
	snprintf(path, sizeof(path), "proc/%d/maps", (int)getpid());
	CHECK(arena_attr_read(a, path, text, sizeof(text)) > 0);
	arena_close(a);
}

static void test_files(void **state)
{
	struct scene *sc = scene_make(0600);
	pid_t owner;

	if (geteuid() != 0)
		skip();
	owner = client_start_as(*state, OWNER, live_and_hold, sc);
	gate_pass(&sc->ready);
	client_run_as(*state, OTHER, ordinary_user, &owner);
	gate_open(&sc->end, 1);
	client_wait(owner);
	gate_close(&sc->ready);
	gate_close(&sc->end);
	shared_free(sc, sizeof(*sc));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		daemon_test(test_private_segment),     daemon_test(test_readable_segment),
		daemon_test(test_writable_segment),    daemon_test(test_reopen),
		daemon_test(test_secrets_of_the_dead), daemon_test(test_files),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
