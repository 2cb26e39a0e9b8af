/* SPDX-License-Identifier: MIT */
/*
 * daemon_mmap.c - mmap, munmap, mprotect, madvise against a whole daemon. Where the kernel has the
 * same call, it is made beside ours on a mapping of the kernel's, and both must say the same.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>

#include "tests/lib_client.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

/* Straight to the kernel: a sanitizer's wrappers do not bear what follows. */
#define k_mmap(addr, len, prot, flags) \
	((void *)syscall(SYS_mmap, addr, (size_t)(len), (long)(prot), (long)(flags), -1l, 0l))
#define k_munmap(addr, len) ((int)syscall(SYS_munmap, addr, (size_t)(len)))
#define k_mprotect(addr, len, prot) ((int)syscall(SYS_mprotect, addr, (size_t)(len), (long)(prot)))
#define k_madvise(addr, len, adv) ((int)syscall(SYS_madvise, addr, (size_t)(len), (long)(adv)))

static char *kernel_map(size_t len)
{
	char *p = k_mmap(NULL, len, RW, ANON);

	CHECK(p != MAP_FAILED);
	return p;
}

/* ---- mapping ------------------------------------------------------------------------------- */

static void do_anonymous(struct test_daemon *d, void *arg)
{
	static const int kinds[] = {ANON, ANON_SHARED, ANON | MAP_NORESERVE, ANON | MAP_STACK};
	arena_t *a = client_open(d);
	uint64_t base, size;
	void *window;

	(void)arg;
	arena_window(a, &window, &size);
	base = (uintptr_t)window;
	for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
		size_t len = 3 * LEAF + 5 * PAGE;
		char *p = arena_mmap(a, NULL, len, RW, kinds[k], -1, 0);

		CHECK(p != MAP_FAILED);
		CHECK((uintptr_t)p >= base && (uintptr_t)p + len <= base + size);
		CHECK((uintptr_t)p % PAGE == 0);
		CHECK(is_zero(p, len));
		pattern_fill(p, len, k);
		CHECK(pattern_is(p, len, k));
		CHECK_OK(arena_munmap(a, p, len));
		CHECK(try_read(p, NULL) == SIGSEGV);
	}
	arena_close(a);
}

static void test_anonymous(void **state)
{
	client_run(*state, do_anonymous, NULL);
}

/* A length that is no multiple of a page means the whole last page, as in Linux. */
static void do_odd_length(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, PAGE + 1);

	(void)arg;
	p[2 * PAGE - 1] = 1;
	CHECK(try_read(p + 2 * PAGE, NULL) == SIGSEGV);
	CHECK_OK(arena_munmap(a, p, PAGE + 1));
	CHECK(try_read(p + 2 * PAGE - 1, NULL) == SIGSEGV);
}

static void test_odd_length(void **state)
{
	client_run(*state, do_odd_length, NULL);
}

static void do_fixed(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 8 * PAGE), *q;

	(void)arg;
	pattern_fill(p, 8 * PAGE, 1);
	q = arena_mmap(a, p + 2 * PAGE, 2 * PAGE, RW, ANON | MAP_FIXED, -1, 0);
	CHECK(q == p + 2 * PAGE);
	CHECK(is_zero(q, 2 * PAGE));
	CHECK(pattern_is(p, 2 * PAGE, 1));
	CHECK(p[4 * PAGE] != 0);
	CHECK_ERRNO(arena_mmap(a, p + PAGE, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
	CHECK_ERRNO(arena_mmap(a, p + 7 * PAGE, 2 * PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0),
		    EEXIST);
	CHECK(pattern_is(p, 2 * PAGE, 1));
	CHECK_OK(arena_munmap(a, p, 8 * PAGE));
	q = arena_mmap(a, p + PAGE, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(q == p + PAGE);
	CHECK(is_zero(q, PAGE));
}

static void test_fixed(void **state)
{
	client_run(*state, do_fixed, NULL);
}

/* A free hint is taken, one that is not free is only a hint. */
static void do_hints(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 64 * LEAF), *q, *r;

	(void)arg;
	CHECK_OK(arena_munmap(a, p + LEAF, LEAF));
	q = arena_mmap(a, p + LEAF, LEAF, RW, ANON, -1, 0);
	CHECK(q == p + LEAF);
	*q = 1;
	r = arena_mmap(a, p + LEAF, LEAF, RW, ANON, -1, 0);
	CHECK(r != MAP_FAILED && r != q);
	*r = 2;
	CHECK(*q == 1);
	CHECK_OK(arena_munmap(a, q, LEAF));
	/* One that is not aligned is rounded. */
	r = arena_mmap(a, p + LEAF + 123, LEAF, RW, ANON, -1, 0);
	CHECK(r != MAP_FAILED && (uintptr_t)r % PAGE == 0);
	CHECK(*r == 0);
}

static void test_hints(void **state)
{
	client_run(*state, do_hints, NULL);
}

static void do_populate(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	size_t len = 4 * LEAF + 3 * PAGE;
	char *p = arena_mmap(a, NULL, len, RW, ANON | MAP_POPULATE, -1, 0), *q = client_map(a, len);

	(void)arg;
	CHECK(p != MAP_FAILED);
	for (size_t at = 0; at < len; at += PAGE)
		CHECK(arena_virt_to_pfn(a, p + at) >= 0);
	CHECK(arena_virt_to_pfn(a, q) == -1);
	CHECK_OK(arena_populate(a, q, len, 1));
	for (size_t at = 0; at < len; at += PAGE)
		CHECK(arena_virt_to_pfn(a, q + at) >= 0);
	CHECK(is_zero(p, len) && is_zero(q, len));
	/* Populated memory is there for a system call, which cannot fault it in. */
	CHECK(read(open("/dev/zero", O_RDONLY), q, len) == (ssize_t)len);
	CHECK_OK(arena_mprotect(a, q, PAGE, PROT_READ));
	CHECK_ERRNO(arena_populate(a, q, PAGE, 1), EFAULT);
	CHECK_OK(arena_populate(a, q, PAGE, 0));
	CHECK_OK(arena_munmap(a, q, PAGE));
	CHECK_ERRNO(arena_populate(a, q, 2 * PAGE, 0), ENOMEM);
	CHECK_ERRNO(arena_populate(a, q + 1, PAGE, 0), EINVAL);
	CHECK_OK(arena_madvise(a, p, len, MADV_DONTNEED));
	CHECK_OK(arena_madvise(a, p, len, MADV_POPULATE_READ));
	CHECK(arena_virt_to_pfn(a, p + len - PAGE) >= 0);
	CHECK_OK(arena_madvise(a, p, len, MADV_POPULATE_WRITE));
	CHECK(is_zero(p, len));
}

static void test_populate(void **state)
{
	client_run(*state, do_populate, NULL);
}

/* ---- unmapping ----------------------------------------------------------------------------- */

#define GRID 12u /* pages, over a boundary of leaves or alone */

/* All ranges of a grid of pages in turn: what is outside stays, what is inside is gone. */
static void unmap_each(arena_t *a, char *p, bool leaf)
{
	size_t step = leaf ? LEAF / 4 : PAGE;

	for (unsigned from = 0; from < GRID; from += leaf ? 3 : 1) {
		for (unsigned to = from + 1; to <= GRID; to += leaf ? 4 : 3) {
			char *q = arena_mmap(a, p, GRID * step, RW, ANON | MAP_FIXED, -1, 0);

			CHECK(q == p);
			for (unsigned i = 0; i < GRID; i++)
				pattern_fill(p + i * step, PAGE, i);
			CHECK_OK(arena_munmap(a, p + from * step, (to - from) * step));
			for (unsigned i = 0; i < GRID; i++) {
				bool gone = i >= from && i < to;

				CHECK(try_read(p + i * step, NULL) == (gone ? SIGSEGV : 0));
				CHECK(gone || pattern_is(p + i * step, PAGE, i));
				CHECK((arena_virt_to_pfn(a, p + i * step) == -1) == gone);
			}
		}
	}
	CHECK_OK(arena_munmap(a, p, GRID * step));
}

static void do_unmap_ranges(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 16 * LEAF);

	(void)arg;
	p = (char *)(((uintptr_t)p + LEAF - 1) & ~(LEAF - 1));
	CHECK_OK(arena_munmap(a, p, 8 * LEAF));
	unmap_each(a, p, true);
	unmap_each(a, p + LEAF - 5 * PAGE, false);
	arena_close(a);
}

static void test_unmap_ranges(void **state)
{
	client_run(*state, do_unmap_ranges, NULL);
}

/* One call over several mappings of different kinds, and holes between them. */
static void do_unmap_several(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 10 * PAGE);

	(void)arg;
	pattern_fill(p, 10 * PAGE, 3);
	CHECK_OK(arena_mprotect(a, p + 2 * PAGE, PAGE, PROT_READ));
	CHECK(arena_mmap(a, p + 4 * PAGE, PAGE, RW, ANON_SHARED | MAP_FIXED, -1, 0) ==
	      p + 4 * PAGE);
	p[4 * PAGE] = 1;
	CHECK_OK(arena_munmap(a, p + 6 * PAGE, PAGE));
	CHECK_OK(arena_munmap(a, p + PAGE, 8 * PAGE));
	for (unsigned i = 1; i < 9; i++)
		CHECK(try_read(p + i * PAGE, NULL) == SIGSEGV);
	CHECK(pattern_is(p, PAGE, 3));
	CHECK(p[9 * PAGE] != 0);
	CHECK_OK(arena_munmap(a, p + PAGE, 8 * PAGE));
}

static void test_unmap_several(void **state)
{
	client_run(*state, do_unmap_several, NULL);
}

/* ---- protection ---------------------------------------------------------------------------- */

static void do_protect(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	size_t len = 2 * LEAF;
	char *p = client_map(a, len);
	struct fault_seen seen;

	(void)arg;
	pattern_fill(p, len, 5);
	CHECK_OK(arena_mprotect(a, p + LEAF, PAGE, PROT_READ));
	CHECK(try_write(p + LEAF + 8, &seen) == SIGSEGV);
	CHECK(seen.code == SEGV_ACCERR);
	CHECK(seen.addr == (uintptr_t)p + LEAF + 8);
	CHECK(try_write(p + LEAF - 1, NULL) == 0);
	CHECK(try_write(p + LEAF + PAGE, NULL) == 0);
	CHECK(try_read(p + LEAF, NULL) == 0);
	CHECK_OK(arena_mprotect(a, p, len, PROT_NONE));
	CHECK(try_read(p, &seen) == SIGSEGV && seen.code == SEGV_ACCERR);
	CHECK_OK(arena_mprotect(a, p, len, RW));
	pattern_fill(p, len, 6);
	CHECK(pattern_is(p, len, 6));
	/* Memory never touched, too. */
	p = arena_mmap(a, NULL, PAGE, PROT_NONE, ANON, -1, 0);
	CHECK(try_read(p, &seen) == SIGSEGV && seen.code == SEGV_ACCERR);
	CHECK_OK(arena_mprotect(a, p, PAGE, PROT_READ));
	CHECK(try_read(p, NULL) == 0);
	CHECK(try_write(p, &seen) == SIGSEGV && seen.code == SEGV_ACCERR);
	/* Linux's x86: what may be written may be read. */
	CHECK_OK(arena_mprotect(a, p, PAGE, PROT_WRITE));
	CHECK(try_write(p, NULL) == 0 && try_read(p, NULL) == 0);
}

static void test_protect(void **state)
{
	client_run(*state, do_protect, NULL);
}

/* Machine code that returns 42. */
static void do_exec(struct test_daemon *d, void *arg)
{
	static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};
	arena_t *a = client_open(d);
	char *p = client_map(a, PAGE);
	int (*f)(void);

	(void)arg;
	memcpy(p, code, sizeof(code));
	memcpy(&f, &p, sizeof(f));
	CHECK_OK(arena_mprotect(a, p, PAGE, PROT_READ | PROT_EXEC));
	CHECK(f() == 42);
	CHECK(try_write(p, NULL) == SIGSEGV);
}

static void test_exec(void **state)
{
	client_run(*state, do_exec, NULL);
}

/* Protection of every other page, and back: contents stay, the mappings are joined again. */
static void do_protect_alternately(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 2 * LEAF);

	(void)arg;
	pattern_fill(p, 2 * LEAF, 9);
	for (unsigned i = 0; i < 64; i += 2)
		CHECK_OK(arena_mprotect(a, p + i * PAGE, PAGE, PROT_READ));
	for (unsigned i = 0; i < 64; i++)
		CHECK(try_write(p + i * PAGE + 1, NULL) == (i % 2 ? 0 : SIGSEGV));
	pattern_fill(p + PAGE, PAGE, 1);
	CHECK_OK(arena_mprotect(a, p, 2 * LEAF, RW));
	for (unsigned i = 0; i < 64; i++)
		CHECK(try_write(p + i * PAGE, NULL) == 0);
	CHECK(pattern_is(p + PAGE + PAGE / 2, 8, 1 + PAGE / 16));
}

static void test_protect_alternately(void **state)
{
	client_run(*state, do_protect_alternately, NULL);
}

/* ---- advice -------------------------------------------------------------------------------- */

static void do_dontneed(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 4 * LEAF);

	(void)arg;
	for (int round = 0; round < 20; round++) {
		size_t from = (size_t)round * 7 % 1000 * PAGE,
		       len = (size_t)(1 + round * 37) * PAGE;

		pattern_fill(p, 4 * LEAF, (uint64_t)round);
		CHECK_OK(arena_madvise(a, p + from, len, MADV_DONTNEED));
		CHECK(is_zero(p + from, len));
		CHECK(pattern_is(p, from, (uint64_t)round));
		CHECK(pattern_is(p + from + len, 4 * LEAF - from - len,
				 (uint64_t)round + (from + len) / 8));
	}
}

static void test_dontneed(void **state)
{
	client_run(*state, do_dontneed, NULL);
}

static void do_grain(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 4 * LEAF), *q = client_map(a, 4 * LEAF);
	pid_t me = getpid();

	(void)arg;
	p = (char *)(((uintptr_t)p + LEAF - 1) & ~(LEAF - 1));
	q = (char *)(((uintptr_t)q + LEAF - 1) & ~(LEAF - 1));
	CHECK_OK(arena_madvise(a, p, LEAF, MADV_NOHUGEPAGE));
	CHECK_OK(arena_madvise(a, p, LEAF, MADV_RANDOM));
	p[0] = 1;
	CHECK(arena_virt_to_pfn(a, p) >= 0 && arena_virt_to_pfn(a, p + 100 * PAGE) == -1);
	CHECK_OK(arena_madvise(a, q, LEAF, MADV_HUGEPAGE));
	q[0] = 1;
	CHECK(arena_virt_to_pfn(a, q) % 512 == 0);
	for (int64_t i = 0; i < 512; i++)
		CHECK(arena_virt_to_pfn(a, q + i * (int64_t)PAGE) == arena_virt_to_pfn(a, q) + i);
	CHECK(me == getpid());
	for (unsigned i = 0; i < 512; i++)
		p[i * PAGE] = (char)i;
	for (unsigned i = 0; i < 512; i++)
		CHECK(p[i * PAGE] == (char)i);
}

static void test_grain(void **state)
{
	client_run(*state, do_grain, NULL);
}

/* ---- errors -------------------------------------------------------------------------------- */

static void do_mmap_errors(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 4 * PAGE), *k = kernel_map(4 * PAGE);
	static const struct {
		size_t len;
		int prot, flags;
		size_t addr; /* added to the mapping's */
	} cases[] = {
		{0, RW, ANON, 0},
		{PAGE, RW, MAP_ANONYMOUS, 0},
		{PAGE, RW, MAP_ANONYMOUS | MAP_SHARED | MAP_PRIVATE, 0},
		{PAGE, RW, ANON | MAP_FIXED, 1},
		{PAGE, RW, ANON | MAP_FIXED, PAGE - 1},
		{PAGE, RW, ANON | MAP_FIXED_NOREPLACE, PAGE},
		{(size_t)-1, RW, ANON, 0},
		{(size_t)-PAGE, RW, ANON, 0},
		{(size_t)1 << 63, RW, ANON, 0},
		{(size_t)1 << 60, RW, ANON, 0},
		{(size_t)-PAGE, RW, ANON | MAP_FIXED, 0},
		{(size_t)1 << 56, RW, ANON | MAP_FIXED, 0},
		{PAGE, RW, ANON | MAP_FIXED, (size_t)1 << 62},
	};

	(void)arg;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		CHECK_SAME_ERRNO(
			arena_mmap(a, p + cases[i].addr, cases[i].len, cases[i].prot,
				   cases[i].flags, -1, 0),
			k_mmap(k + cases[i].addr, cases[i].len, cases[i].prot, cases[i].flags));
	/* Where the kernel knows no window: outside of it is outside of the address space. */
	CHECK_ERRNO(arena_mmap(a, k, PAGE, RW, ANON | MAP_FIXED, -1, 0), ENOMEM);
	CHECK_ERRNO(arena_mmap(a, NULL, PAGE, RW, ANON | MAP_FIXED, -1, 0), ENOMEM);
	CHECK_ERRNO(arena_mmap(a, NULL, PAGE, RW, MAP_PRIVATE, -1, 0), EBADF);
	CHECK_ERRNO(arena_mmap(a, NULL, PAGE, RW, MAP_PRIVATE, 0, 0), ENODEV);
	CHECK_ERRNO(arena_mmap(a, NULL, PAGE, RW, ANON, 0, 0), EINVAL);
	CHECK_ERRNO(arena_mmap(a, NULL, PAGE, RW, ANON | MAP_HUGETLB, -1, 0), ENOTSUP);
	CHECK_ERRNO(arena_mmap(a, NULL, PAGE, RW, ANON_SHARED | MAP_GROWSDOWN, -1, 0), EINVAL);
	CHECK(try_write(p, NULL) == 0);
}

static void test_mmap_errors(void **state)
{
	client_run(*state, do_mmap_errors, NULL);
}

struct range {
	size_t at, len;
};

static const struct range ranges[] = {
	{1, PAGE},
	{PAGE - 1, PAGE},
	{0, 0},
	{1, 0},
	{0, 1},
	{0, PAGE + 1},
	{0, (size_t)-1},
	{0, (size_t)-PAGE},
	{0, (size_t)1 << 63},
	{PAGE, (size_t)-2 * PAGE},
};

static void do_unmap_errors(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	size_t size;
	void *base;

	(void)arg;
	arena_window(a, &base, &size);
	for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		char *p = client_map(a, 4 * PAGE), *k = kernel_map(4 * PAGE);

		CHECK_SAME_ERRNO(arena_munmap(a, p + ranges[i].at, ranges[i].len),
				 k_munmap(k + ranges[i].at, ranges[i].len));
	}
	CHECK_ERRNO(arena_munmap(a, (char *)base - PAGE, PAGE), EINVAL);
	CHECK_ERRNO(arena_munmap(a, (char *)base + size, PAGE), EINVAL);
	CHECK_ERRNO(arena_munmap(a, (char *)base + size - PAGE, 2 * PAGE), EINVAL);
	CHECK_ERRNO(arena_munmap(a, NULL, PAGE), EINVAL);
	CHECK_ERRNO(arena_munmap(a, (void *)-PAGE, PAGE), EINVAL);
}

static void test_unmap_errors(void **state)
{
	client_run(*state, do_unmap_errors, NULL);
}

static void do_protect_errors(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p, *k;

	(void)arg;
	for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		/* The kernel would change whatever lies behind, up to the next hole. */
		if (ranges[i].len == (size_t)1 << 63)
			continue;
		p = client_map(a, 4 * PAGE);
		k = kernel_map(4 * PAGE);
		CHECK_SAME_ERRNO(arena_mprotect(a, p + ranges[i].at, ranges[i].len, PROT_READ),
				 k_mprotect(k + ranges[i].at, ranges[i].len, PROT_READ));
		CHECK_SAME_ERRNO(arena_madvise(a, p + ranges[i].at, ranges[i].len, MADV_DONTNEED),
				 k_madvise(k + ranges[i].at, ranges[i].len, MADV_DONTNEED));
	}
	p = client_map(a, 4 * PAGE);
	k = kernel_map(4 * PAGE);
	/* Past the end of the window, too, what comes first is changed. */
	CHECK_ERRNO(arena_mprotect(a, p, (size_t)1 << 62, PROT_READ), ENOMEM);
	CHECK(try_write(p, NULL) == SIGSEGV);
	CHECK_ERRNO(arena_mprotect(a, p, (size_t)1 << 63, RW), ENOMEM);
	CHECK(try_write(p, NULL) == 0);
	CHECK_SAME_ERRNO(arena_mprotect(a, p, 0, 0x40), k_mprotect(k, 0, 0x40));
	CHECK_SAME_ERRNO(arena_mprotect(a, p, PAGE, 0x8), k_mprotect(k, PAGE, 0x8));
	CHECK_OK(arena_mprotect(a, p, PAGE, RW));
	CHECK_ERRNO(arena_madvise(a, p, (size_t)1 << 63, MADV_NORMAL), ENOMEM);
	CHECK_SAME_ERRNO(arena_mprotect(a, p, PAGE, 0x40), k_mprotect(k, PAGE, 0x40));
	CHECK_SAME_ERRNO(arena_mprotect(a, p, PAGE, -1), k_mprotect(k, PAGE, -1));
	CHECK_SAME_ERRNO(arena_madvise(a, p, PAGE, 9999), k_madvise(k, PAGE, 9999));
	CHECK_SAME_ERRNO(arena_madvise(a, p, PAGE, -1), k_madvise(k, PAGE, -1));
	CHECK_OK(arena_munmap(a, p + PAGE, PAGE));
	CHECK_OK(k_munmap(k + PAGE, PAGE));
	/* What comes before the hole is changed; madvise goes on behind it. */
	CHECK_SAME_ERRNO(arena_mprotect(a, p, 4 * PAGE, PROT_READ),
			 k_mprotect(k, 4 * PAGE, PROT_READ));
	CHECK(try_write(p, NULL) == SIGSEGV);
	CHECK(try_write(p + 3 * PAGE, NULL) == 0);
	CHECK_SAME_ERRNO(arena_madvise(a, p, 4 * PAGE, MADV_DONTNEED),
			 k_madvise(k, 4 * PAGE, MADV_DONTNEED));
	CHECK(p[3 * PAGE] == 0);
	CHECK_SAME_ERRNO(arena_madvise(a, p + PAGE, PAGE, MADV_HUGEPAGE),
			 k_madvise(k + PAGE, PAGE, MADV_HUGEPAGE));
}

static void test_protect_errors(void **state)
{
	client_run(*state, do_protect_errors, NULL);
}

/* ---- what is shown ------------------------------------------------------------------------- */

static void do_maps(struct test_daemon *d, void *arg)
{
	arena_t *a = client_open(d);
	char *p = client_map(a, 4 * PAGE);
	char path[64], text[16384], line[128];

	(void)arg;
	CHECK_OK(arena_mprotect(a, p + PAGE, PAGE, PROT_READ));
	CHECK(arena_mmap(a, p + 3 * PAGE, PAGE, PROT_NONE, ANON_SHARED | MAP_FIXED, -1, 0) ==
	      p + 3 * PAGE);
	snprintf(path, sizeof(path), "proc/%d/maps", (int)getpid());
	CHECK(arena_attr_read(a, path, text, sizeof(text)) > 0);
	snprintf(line, sizeof(line), "%lx-%lx rw-p ", (unsigned long)p, (unsigned long)p + PAGE);
	CHECK(strstr(text, line));
	snprintf(line, sizeof(line), "%lx-%lx r--p ", (unsigned long)p + PAGE,
		 (unsigned long)p + 2 * PAGE);
	CHECK(strstr(text, line));
	snprintf(line, sizeof(line), "%lx-%lx ---s ", (unsigned long)p + 3 * PAGE,
		 (unsigned long)p + 4 * PAGE);
	CHECK(strstr(text, line));
	CHECK_OK(arena_munmap(a, p, 4 * PAGE));
	CHECK(arena_attr_read(a, path, text, sizeof(text)) >= 0);
	CHECK(!strstr(text, line));
	CHECK_ERRNO(arena_attr_read(a, "proc/1/maps", text, sizeof(text)), ENOENT);
	CHECK(arena_attr_read(a, "proc/meminfo", text, 8) == 8 && memcmp(text, "MemTotal", 8) == 0);
	CHECK_ERRNO(arena_attr_write(a, "proc/meminfo", "1"), EACCES);
	CHECK_ERRNO(arena_attr_write(a, "proc/sys/vm/watermark_scale_factor", "0"), EINVAL);
}

static void test_maps(void **state)
{
	client_run(*state, do_maps, NULL);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		daemon_test(test_anonymous),      daemon_test(test_odd_length),
		daemon_test(test_fixed),          daemon_test(test_hints),
		daemon_test(test_populate),       daemon_test(test_unmap_ranges),
		daemon_test(test_unmap_several),  daemon_test(test_protect),
		daemon_test(test_exec),           daemon_test(test_protect_alternately),
		daemon_test(test_dontneed),       daemon_test(test_grain),
		daemon_test(test_mmap_errors),    daemon_test(test_unmap_errors),
		daemon_test(test_protect_errors), daemon_test(test_maps),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
