/* SPDX-License-Identifier: MIT */
/*
 * daemon_segment.c - named segments among several clients: one address, one content, names and
 * modes as shm_open(3) has them, and memory that comes and goes with its size.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/lib_client.h"

#define NAME "/segment-test"

/* Sizes of a whole leaf and of some pages take different ways through the daemon. */
static const size_t sizes[] = {16 * PAGE, 3 * LEAF};

static void *map_segment(arena_shm_t *s, size_t len, int prot)
{
	void *p = arena_shm_mmap(s, NULL, len, prot, MAP_SHARED, 0);

	if (p == MAP_FAILED)
		check_errno_failed(__FILE__, __LINE__, "arena_shm_mmap", -1, 0);
	return p;
}

static void unlink_name(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);

	CHECK_OK(arena_shm_unlink(a, arg ? arg : NAME));
	arena_close(a);
}

/* ---- a structure with pointers ------------------------------------------------------------- */

struct node {
	struct node *next;
	uint64_t value;
};

#define CLIENTS 6u
#define NODES 20000u

struct meeting {
	struct gate built, done;
	size_t size;
	void *address; /* where the first client has it */
};

static void build_list(struct test_daemon *d, void *arg)
{
	struct meeting *m = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR | O_CREAT | O_EXCL, 0600);
	struct node *n;

	CHECK_OK(arena_shm_truncate(s, (off_t)m->size));
	CHECK(arena_shm_size(s) == (off_t)m->size);
	n = m->address = map_segment(s, m->size, RW);
	for (unsigned i = 0; i < NODES; i++)
		n[i] = (struct node){&n[(i * 7919u + 1) % NODES], i};
	gate_open(&m->built, CLIENTS - 1);
	for (unsigned i = 1; i < CLIENTS; i++)
		gate_pass(&m->done);
	CHECK(n[NODES].value == CLIENTS - 1);
	CHECK_OK(arena_shm_unlink(a, NAME));
	arena_close(a);
}

static void follow_list(struct test_daemon *d, void *arg)
{
	struct meeting *m = arg;
	arena_t *a;
	arena_shm_t *s;
	struct node *n, *at;
	unsigned steps = 0;
	uint64_t sum = 0;

	gate_pass(&m->built);
	a = client_open(d);
	s = client_shm(a, NAME, O_RDWR, 0);
	n = map_segment(s, m->size, RW);
	at = n;
	do {
		sum += at->value;
		at = at->next;
	} while (++steps < NODES && at != n);
	CHECK(sum > 0 && at >= n && at < n + NODES);
	CHECK(n == m->address);
	__atomic_fetch_add(&n[NODES].value, 1, __ATOMIC_SEQ_CST);
	gate_open(&m->done, 1);
	arena_close(a);
}

static void test_common_address(void **state)
{
	struct meeting *m = shared_alloc(sizeof(*m));
	pid_t pid[CLIENTS];

	*m = (struct meeting){.built = gate_make(), .done = gate_make(), .size = 2 * LEAF};
	for (unsigned i = 0; i < CLIENTS; i++)
		pid[i] = client_start(*state, i ? follow_list : build_list, m);
	for (unsigned i = 0; i < CLIENTS; i++)
		client_wait(pid[i]);
	gate_close(&m->built);
	gate_close(&m->done);
	shared_free(m, sizeof(*m));
}

/* ---- names and flags ----------------------------------------------------------------------- */

static void do_names(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	arena_shm_t *s, *t;
	char name[300];

	(void)arg;
	CHECK_ERRNO(arena_shm_open(a, NAME, O_RDWR, 0), ENOENT);
	CHECK_ERRNO(arena_shm_unlink(a, NAME), ENOENT);
	CHECK_ERRNO(arena_shm_open(a, "", O_RDWR | O_CREAT, 0600), EINVAL);
	CHECK_ERRNO(arena_shm_open(a, "/", O_RDWR | O_CREAT, 0600), EINVAL);
	CHECK_ERRNO(arena_shm_open(a, "/a/b", O_RDWR | O_CREAT, 0600), EINVAL);
	CHECK_ERRNO(arena_shm_open(a, NULL, O_RDWR | O_CREAT, 0600), EINVAL);
	CHECK_ERRNO(arena_shm_open(a, NAME, O_WRONLY | O_CREAT, 0600), EINVAL);
	memset(name, 'n', sizeof(name));
	name[257] = 0;
	name[0] = '/';
	CHECK_ERRNO(arena_shm_open(a, name, O_RDWR | O_CREAT, 0600), ENAMETOOLONG);
	name[256] = 0;
	s = client_shm(a, name, O_RDWR | O_CREAT | O_EXCL, 0600);
	arena_shm_close(s);
	CHECK_OK(arena_shm_unlink(a, name));

	s = client_shm(a, NAME, O_RDWR | O_CREAT | O_EXCL, 0600);
	CHECK(arena_shm_size(s) == 0);
	CHECK_ERRNO(arena_shm_open(a, NAME, O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
	t = client_shm(a, NAME + 1, O_RDWR | O_CREAT, 0600); /* without the slash: the same */
	CHECK_OK(arena_shm_truncate(s, 5 * PAGE));
	CHECK(arena_shm_size(t) == 5 * PAGE);
	CHECK_ERRNO(arena_shm_truncate(s, -1), EINVAL);
	CHECK_ERRNO(arena_shm_truncate(s, INT64_MAX), EFBIG);
	CHECK(arena_shm_size(t) == 5 * PAGE);
	arena_shm_close(t);
	t = client_shm(a, NAME, O_RDONLY, 0);
	CHECK_ERRNO(arena_shm_truncate(t, PAGE), EINVAL);
	arena_shm_close(t);
	t = client_shm(a, NAME, O_RDWR | O_TRUNC, 0);
	CHECK(arena_shm_size(s) == 0);
	CHECK_OK(arena_shm_unlink(a, NAME));
	CHECK_ERRNO(arena_shm_unlink(a, NAME), ENOENT);
	arena_shm_close(s);
	arena_shm_close(t);
	arena_shm_close(NULL);
	arena_close(a);
}

static void test_names(void **state)
{
	client_run(*state, do_names, NULL);
}

static void do_map_errors(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR | O_CREAT, 0600), *r;

	(void)arg;
	CHECK_OK(arena_shm_truncate(s, 4 * PAGE));
	r = client_shm(a, NAME, O_RDONLY, 0);
	CHECK_ERRNO(arena_shm_mmap(s, NULL, 0, RW, MAP_SHARED, 0), EINVAL);
	CHECK_ERRNO(arena_shm_mmap(s, NULL, PAGE, RW, 0, 0), EINVAL);
	CHECK_ERRNO(arena_shm_mmap(s, NULL, PAGE, RW, MAP_SHARED, 1), EINVAL);
	CHECK_ERRNO(arena_shm_mmap(s, NULL, PAGE, RW, MAP_SHARED, -(off_t)PAGE), EINVAL);
	CHECK_ERRNO(arena_shm_mmap(s, NULL, PAGE, RW, MAP_SHARED, INT64_MAX & ~(off_t)(PAGE - 1)),
		    EOVERFLOW);
	CHECK_ERRNO(arena_shm_mmap(s, NULL, (size_t)1 << 60, RW, MAP_SHARED, 0), ENOMEM);
	CHECK_ERRNO(arena_shm_mmap(r, NULL, PAGE, RW, MAP_SHARED, 0), EACCES);
	CHECK(arena_shm_mmap(r, NULL, PAGE, PROT_READ, MAP_SHARED, 0) != MAP_FAILED);
	CHECK_OK(arena_shm_unlink(a, NAME));
	arena_close(a);
}

static void test_map_errors(void **state)
{
	client_run(*state, do_map_errors, NULL);
}

static void do_umask(struct test_daemon *d, void *arg)
{
	arena_t *a;
	char table[65536], mode[16];

	(void)arg;
	umask(027);
	a = client_open(d);
	arena_shm_close(client_shm(a, NAME, O_RDWR | O_CREAT, 0666));
	CHECK(arena_attr_read(a, SEGMENTS_PATH, table, sizeof(table)) > 0);
	CHECK(table_lookup(table, "name", NAME + 1, "mode", mode, sizeof(mode)));
	CHECK(strcmp(mode, "0640") == 0);
	CHECK_OK(arena_shm_unlink(a, NAME));
	umask(0);
	arena_shm_close(client_shm(a, NAME, O_RDWR | O_CREAT, 0606));
	CHECK(arena_attr_read(a, SEGMENTS_PATH, table, sizeof(table)) > 0);
	CHECK(table_lookup(table, "name", NAME + 1, "mode", mode, sizeof(mode)));
	CHECK(strcmp(mode, "0606") == 0);
	CHECK_OK(arena_shm_unlink(a, NAME));
	arena_close(a);
}

static void test_umask(void **state)
{
	client_run(*state, do_umask, NULL);
}

/* ---- without descriptors ------------------------------------------------------------------- */

/* A segment that would need one too many is EMFILE and no more than that. */
static void do_full_table(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	struct rlimit limit;
	char *p = client_map(a, PAGE);
	int last, fd;

	(void)arg;
	*p = 1;
	CHECK_OK(getrlimit(RLIMIT_NOFILE, &limit));
	last = open("/dev/null", O_RDONLY | O_CLOEXEC);
	CHECK(last >= 0);
	limit.rlim_cur = (rlim_t)last + 1;
	CHECK_OK(setrlimit(RLIMIT_NOFILE, &limit));
	while ((fd = dup(last)) >= 0)
		;
	/* For others to open: an arena file of its own. Under userfaultfd its place is not this table. */
	if (client_trap() == ARENA_TRAP_SIGNAL)
		CHECK(!arena_shm_open(a, NAME, O_RDWR | O_CREAT | O_EXCL, 0666) && errno == EMFILE);
	CHECK_OK(arena_null(a));
	close(last);
	arena_shm_close(client_shm(a, NAME, O_RDWR | O_CREAT | O_EXCL, 0666));
	CHECK_OK(arena_shm_unlink(a, NAME));
	arena_close(a);
}

/* As daemons do when they start: the arena comes back by another connection, with all it had. */
static void do_close_all(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR | O_CREAT | O_EXCL, 0666);
	char *p = client_map(a, 64 * PAGE), *seg;

	(void)arg;
	CHECK_OK(arena_shm_truncate(s, 4 * PAGE));
	seg = arena_shm_mmap(s, NULL, 4 * PAGE, RW, MAP_SHARED, 0);
	CHECK(seg != MAP_FAILED);
	CHECK_OK(arena_madvise(a, p, 64 * PAGE, MADV_NOHUGEPAGE));
	*p = *seg = 1;
	CHECK(close_range(3, ~0u, 0) == 0);
	CHECK_OK(arena_null(a));
	p[63 * PAGE] = seg[3 * PAGE] = 2;
	CHECK(*p == 1 && *seg == 1 && p[63 * PAGE] == 2 && seg[3 * PAGE] == 2);
	arena_shm_close(s);
	s = client_shm(a, NAME, O_RDWR, 0);
	CHECK(close_range(3, ~0u, 0) == 0);
	p[62 * PAGE] = seg[2 * PAGE] = 3;
	CHECK_OK(arena_shm_unlink(a, NAME));
	CHECK_OK(arena_munmap(a, p, 64 * PAGE));
	arena_close(a);
}

/* With nothing mapped at the moment it is the same process all the same. */
static void do_close_unmapped(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 2 * LEAF);

	(void)arg;
	CHECK_OK(arena_null(a));
	CHECK(close_range(3, ~0u, 0) == 0);
	*p = 1;
	CHECK(*p == 1);
	arena_close(a);
}

static void test_no_descriptors(void **state)
{
	client_run(*state, do_full_table, NULL);
	client_run(*state, do_close_all, NULL);
	client_run(*state, do_close_unmapped, NULL);
}

/* ---- several mappings ---------------------------------------------------------------------- */

static void do_several_maps(struct test_daemon *d, void *arg)
{
	size_t size = *(const size_t *)arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR | O_CREAT, 0600);
	char *p, *q, *half, *private;

	CHECK_OK(arena_shm_truncate(s, (off_t)size));
	p = map_segment(s, size, RW);
	q = map_segment(s, size, RW);
	CHECK(p != q);
	pattern_fill(p, size, 1);
	CHECK(pattern_is(q, size, 1));
	half = arena_shm_mmap(s, NULL, size / 2, RW, MAP_SHARED, (off_t)(size / 4 & ~(PAGE - 1)));
	CHECK(half != MAP_FAILED);
	half[5] = 77;
	CHECK(p[(size / 4 & ~(PAGE - 1)) + 5] == 77);
	private = arena_shm_mmap(s, NULL, size, RW, MAP_PRIVATE, 0);
	CHECK(private != MAP_FAILED);
	CHECK(pattern_is(private, PAGE, 1));
	pattern_fill(private, PAGE, 2);
	CHECK(pattern_is(p, PAGE, 1) && pattern_is(private, PAGE, 2));
	q[PAGE] = 99;
	CHECK(p[PAGE] == 99);
	CHECK_OK(arena_munmap(a, p, size));
	CHECK(q[PAGE] == 99);
	arena_shm_close(s);
	CHECK(q[PAGE] == 99); /* mappings stay */
	CHECK_OK(arena_shm_unlink(a, NAME));
	q[PAGE] = 100;
	arena_close(a);
}

static void test_several_maps(void **state)
{
	for (size_t i = 0; i < 2; i++)
		client_run(*state, do_several_maps, (void *)(uintptr_t)&sizes[i]);
}

/* ---- size ---------------------------------------------------------------------------------- */

struct shrinking {
	struct gate touched, shrunk, seen, grown, end;
	size_t size;
};

static void watch_shrink(struct test_daemon *d, void *arg)
{
	struct shrinking *m = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR, 0);
	char *p = map_segment(s, m->size, RW);
	struct fault_seen seen;

	pattern_fill(p, m->size, 4);
	gate_open(&m->touched, 1);
	gate_pass(&m->shrunk);
	CHECK(pattern_is(p, 2 * PAGE, 4));
	for (size_t at = 2 * PAGE; at < m->size; at += m->size / 16) {
		CHECK(try_read(p + at + 1, &seen) == SIGBUS);
		CHECK(seen.code == BUS_ADRERR && seen.addr == (uintptr_t)p + at + 1);
		CHECK(try_write(p + at, &seen) == SIGBUS);
	}
	gate_open(&m->seen, 1);
	gate_pass(&m->grown);
	CHECK(pattern_is(p, 2 * PAGE, 4));
	CHECK(is_zero(p + 2 * PAGE, m->size - 2 * PAGE));
	gate_open(&m->end, 1);
	arena_close(a);
}

static void do_shrink(struct test_daemon *d, void *arg)
{
	struct shrinking *m = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR, 0);

	gate_pass(&m->touched);
	CHECK_OK(arena_shm_truncate(s, 2 * PAGE));
	gate_open(&m->shrunk, 1);
	gate_pass(&m->seen);
	CHECK_OK(arena_shm_truncate(s, (off_t)m->size));
	gate_open(&m->grown, 1);
	gate_pass(&m->end);
	arena_close(a);
}

static void create_segment(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR | O_CREAT | O_EXCL, 0600);

	CHECK_OK(arena_shm_truncate(s, (off_t) * (size_t *)arg));
	arena_close(a);
}

/* Shrinking takes the pages away from who has them mapped, at once. */
static void test_shrink(void **state)
{
	for (size_t i = 0; i < 2; i++) {
		struct shrinking m = {.touched = gate_make(),
				      .shrunk = gate_make(),
				      .seen = gate_make(),
				      .grown = gate_make(),
				      .end = gate_make(),
				      .size = sizes[i]};
		pid_t a, b;

		client_run(*state, create_segment, &m.size);
		a = client_start(*state, watch_shrink, &m);
		b = client_start(*state, do_shrink, &m);
		client_wait(b);
		client_wait(a);
		client_run(*state, unlink_name, NULL);
		expect_all_frames_back(*state);
		gate_close(&m.touched), gate_close(&m.shrunk), gate_close(&m.seen);
		gate_close(&m.grown), gate_close(&m.end);
	}
}

/* What was past an end inside a page is zero when it comes back. */
static void do_odd_sizes(struct test_daemon *d, void *arg)
{
	size_t size = *(const size_t *)arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR | O_CREAT, 0600);
	char *p;

	CHECK_OK(arena_shm_truncate(s, (off_t)size));
	p = map_segment(s, size, RW);
	for (size_t cut = size - 13; cut > PAGE; cut = cut / 2 + 11) {
		memset(p, 0x55, size);
		CHECK_OK(arena_shm_truncate(s, (off_t)cut));
		CHECK(arena_shm_size(s) == (off_t)cut);
		CHECK(p[cut - 1] == 0x55);
		CHECK_OK(arena_shm_truncate(s, (off_t)size));
		CHECK(p[cut - 1] == 0x55 && p[cut] == 0);
		for (size_t at = cut; at < size; at++)
			CHECK(p[at] == 0);
		if (cut < 3 * PAGE)
			break;
	}
	CHECK_OK(arena_shm_unlink(a, NAME));
	arena_close(a);
}

static void test_odd_sizes(void **state)
{
	for (size_t i = 0; i < 2; i++)
		client_run(*state, do_odd_sizes, (void *)(uintptr_t)&sizes[i]);
}

/* ---- life ---------------------------------------------------------------------------------- */

static void fill_and_leave(struct test_daemon *d, void *arg)
{
	size_t size = *(const size_t *)arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR | O_CREAT | O_EXCL, 0600);

	CHECK_OK(arena_shm_truncate(s, (off_t)size));
	pattern_fill(map_segment(s, size, RW), size, 8);
	_exit(0); /* without a word */
}

static void find_again(struct test_daemon *d, void *arg)
{
	size_t size = *(const size_t *)arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR, 0);
	char *p = map_segment(s, size, RW);

	CHECK(arena_shm_size(s) == (off_t)size);
	CHECK(pattern_is(p, size, 8));
	/* Unmapped and closed it stays, too. */
	CHECK_OK(arena_munmap(a, p, size));
	arena_shm_close(s);
	s = client_shm(a, NAME, O_RDONLY, 0);
	CHECK(pattern_is(map_segment(s, size, PROT_READ), size, 8));
	arena_close(a);
}

static void test_persistence(void **state)
{
	struct test_daemon *d = *state;

	for (size_t i = 0; i < 2; i++) {
		void *size = (void *)(uintptr_t)&sizes[i];

		client_run(d, fill_and_leave, size);
		for (int k = 0; k < 3; k++)
			client_run(d, find_again, size);
		assert_true(daemon_free_kb(d) <= d->free_before - sizes[i] / 1024);
		client_run(d, unlink_name, NULL);
		expect_all_frames_back(d);
	}
}

static void do_last_close(struct test_daemon *d, void *arg)
{
	size_t size = *(const size_t *)arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR | O_CREAT, 0600), *fresh;
	char *p, *q;

	CHECK_OK(arena_shm_truncate(s, (off_t)size));
	p = map_segment(s, size, RW);
	pattern_fill(p, size, 1);
	client_wait(client_start(d, unlink_name, NULL));
	CHECK(pattern_is(p, size, 1));
	CHECK_ERRNO(arena_shm_open(a, NAME, O_RDWR, 0), ENOENT);
	fresh = client_shm(a, NAME, O_RDWR | O_CREAT | O_EXCL, 0600);
	CHECK(arena_shm_size(fresh) == 0 && arena_shm_size(s) == (off_t)size);
	CHECK_OK(arena_shm_truncate(fresh, (off_t)size));
	q = map_segment(fresh, size, RW);
	CHECK(is_zero(q, size));
	arena_shm_close(s);
	CHECK(pattern_is(p, size, 1));
	CHECK_OK(arena_munmap(a, p, size - PAGE));
	CHECK(pattern_is(p + size - PAGE, PAGE, 1 + (size - PAGE) / 8));
	CHECK_OK(arena_munmap(a, p, size));
	CHECK_OK(arena_shm_unlink(a, NAME));
	arena_shm_close(fresh);
	CHECK(is_zero(q, size));
	arena_close(a);
}

static void test_last_close(void **state)
{
	for (size_t i = 0; i < 2; i++)
		client_run(*state, do_last_close, (void *)(uintptr_t)&sizes[i]);
}

/* Writers in several processes: nothing is lost, whoever faults first. */
struct counting {
	struct gate go;
	size_t words;
};

static void count_up(struct test_daemon *d, void *arg)
{
	struct counting *c = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDWR, 0);
	uint64_t *w = map_segment(s, 3 * LEAF, RW);

	gate_pass(&c->go);
	for (size_t i = 0; i < c->words; i++)
		__atomic_fetch_add(&w[i * 4096 / 8], 1, __ATOMIC_RELAXED);
	arena_close(a);
}

static void check_counts(struct test_daemon *d, void *arg)
{
	struct counting *c = arg;
	arena_t *a = client_open(d);
	arena_shm_t *s = client_shm(a, NAME, O_RDONLY, 0);
	uint64_t *w = map_segment(s, 3 * LEAF, PROT_READ);

	for (size_t i = 0; i < c->words; i++)
		CHECK(w[i * 4096 / 8] == CLIENTS);
	arena_close(a);
}

static void test_counting(void **state)
{
	struct counting c = {.go = gate_make(), .words = 3 * 512};
	size_t size = 3 * LEAF;
	pid_t pid[CLIENTS];

	client_run(*state, create_segment, &size);
	for (unsigned i = 0; i < CLIENTS; i++)
		pid[i] = client_start(*state, count_up, &c);
	gate_open(&c.go, CLIENTS);
	for (unsigned i = 0; i < CLIENTS; i++)
		client_wait(pid[i]);
	client_run(*state, check_counts, &c);
	client_run(*state, unlink_name, NULL);
	gate_close(&c.go);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		daemon_test(test_common_address), daemon_test(test_names),
		daemon_test(test_map_errors),     daemon_test(test_umask),
		daemon_test(test_several_maps),   daemon_test(test_shrink),
		daemon_test(test_odd_sizes),      daemon_test(test_persistence),
		daemon_test(test_last_close),     daemon_test(test_counting),
		daemon_test(test_no_descriptors),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
