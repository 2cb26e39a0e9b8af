/* SPDX-License-Identifier: MIT */
/*
 * daemon_vs_kernel.c - the same calls on arena memory and on the kernel's own, side by side: results,
 * errnos and bytes must be the same.
 *
 * Both sides have a range of as many pages, all of it unmapped at first. Each step makes one call on
 * both, at the same page of either range; calls that choose an address themselves are made to choose
 * inside it (MAP_FIXED), or what they chose is moved there. After each step some pages are written,
 * and some read: the same signal or the same word. The kernel's hugepages are off in its range, and
 * nothing here depends on who merges which VMAs.
 *
 * From the environment: SOAK_STEPS steps of each client, SOAK_SEED where they start, SOAK_EVERY how often
 * every page is compared, SOAK_TRACE=1 to see the calls.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>

#include "base/prng.h"
#include "tests/lib_client.h"

#define PAGES (3u * 512u)
#define PROCESSES 2u

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

struct duel {
	arena_t *a;
	char *ours, *theirs; /* the ranges */
	struct prng r;
	uint64_t seed, step;
	char last[160]; /* the call */
};

static uint64_t number_from(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

static uint64_t below(struct duel *d, uint64_t n)
{
	return prng_below(&d->r, n);
}

static bool chance(struct duel *d, unsigned percent)
{
	return below(d, 100) < percent;
}

__attribute__((noreturn)) static void differ(struct duel *d, const char *what, long ours,
					     long theirs)
{
	dprintf(2, "seed %llu, step %llu, %s: %s: arena %ld, kernel %ld\n",
		(unsigned long long)d->seed, (unsigned long long)d->step, d->last, what, ours,
		theirs);
	_exit(1);
}

/* ---- one call, twice ----------------------------------------------------------------------- */

static void pick(struct duel *d, unsigned *from, unsigned *n)
{
	unsigned kind = (unsigned)below(d, 10);

	*from = (unsigned)below(d, PAGES);
	*n = 1 + (unsigned)below(d, kind < 6 ? 20 : kind < 9 ? 300 : 1200);
	if (kind == 3 || kind == 9)
		*from &= ~511u;
	if (*from + *n > PAGES)
		*n = PAGES - *from;
}

/* `r` are -1 or an address (or 0); compared as offsets in the two ranges. */
static void same(struct duel *d, intptr_t ours, int ours_errno, intptr_t theirs, int theirs_errno)
{
	if ((ours == -1) != (theirs == -1))
		differ(d, "result", ours == -1 ? -ours_errno : 0, theirs == -1 ? -theirs_errno : 0);
	if (ours == -1) {
		if (ours_errno != theirs_errno)
			differ(d, "errno", ours_errno, theirs_errno);
		return;
	}
	if (ours && ours - (intptr_t)d->ours != theirs - (intptr_t)d->theirs)
		differ(d, "address", ours - (intptr_t)d->ours, theirs - (intptr_t)d->theirs);
}

#define BOTH(d, ours_call, theirs_call)                                          \
	do {                                                                     \
		intptr_t ours_, theirs_;                                         \
		int e_;                                                          \
		errno = 0;                                                       \
		ours_ = (intptr_t)(ours_call);                                   \
		e_ = errno;                                                      \
		errno = 0;                                                       \
		theirs_ = (intptr_t)(theirs_call);                               \
		same(d, ours_, e_, theirs_, errno);                              \
		if (getenv("SOAK_TRACE"))                                        \
			dprintf(2, "%s: %d\n", (d)->last, ours_ == -1 ? e_ : 0); \
	} while (0)

#define SAY(d, ...) snprintf((d)->last, sizeof((d)->last), __VA_ARGS__)

static char *ours(struct duel *d, unsigned page)
{
	return d->ours + (size_t)page * PAGE;
}

static char *theirs(struct duel *d, unsigned page)
{
	return d->theirs + (size_t)page * PAGE;
}

static int random_prot(struct duel *d)
{
	static const int prots[] = {RW, RW, RW, RW, PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC};

	return prots[below(d, 7)];
}

static void do_mmap(struct duel *d)
{
	static const int extra[] = {0, 0, 0, 0, MAP_POPULATE, MAP_NORESERVE, MAP_LOCKED, MAP_STACK};
	unsigned from, n;
	int prot = random_prot(d), flags = chance(d, 70) ? ANON : ANON_SHARED;
	size_t odd = chance(d, 3) ? 100 : 0, len;

	pick(d, &from, &n);
	flags |= extra[below(d, 8)] | (chance(d, 70) ? MAP_FIXED : MAP_FIXED_NOREPLACE);
	if (chance(d, 2))
		flags &= ~(MAP_PRIVATE | MAP_SHARED);
	len = chance(d, 2) ? 0 : (size_t)n * PAGE - below(d, 2) * 10;
	SAY(d, "mmap page %u+%zu, %zu bytes, prot %d, flags %#x", from, odd, len, prot, flags);
	BOTH(d, arena_mmap(d->a, ours(d, from) + odd, len, prot, flags, -1, 0),
	     mmap(theirs(d, from) + odd, len, prot, flags, -1, 0));
	madvise(d->theirs, PAGES * PAGE, MADV_NOHUGEPAGE);
}

static void do_munmap(struct duel *d)
{
	unsigned from, n;
	size_t odd = chance(d, 3) ? 100 : 0, len;

	pick(d, &from, &n);
	len = chance(d, 2) ? 0 : (size_t)n * PAGE - below(d, 100);
	SAY(d, "munmap page %u+%zu, %zu bytes", from, odd, len);
	BOTH(d, arena_munmap(d->a, ours(d, from) + odd, len), munmap(theirs(d, from) + odd, len));
}

static void do_mprotect(struct duel *d)
{
	static const int odd_bits[] = {0, 0, 0, 0, 0, 0, 0x10, PROT_GROWSDOWN, PROT_GROWSUP, 8};
	unsigned from, n;
	int prot = random_prot(d) | odd_bits[below(d, 10)];
	size_t odd = chance(d, 3) ? 1 : 0, len;

	pick(d, &from, &n);
	len = chance(d, 2) ? 0 : (size_t)n * PAGE - below(d, 100);
	SAY(d, "mprotect page %u+%zu, %zu bytes, %#x", from, odd, len, prot);
	BOTH(d, arena_mprotect(d->a, ours(d, from) + odd, len, prot),
	     mprotect(theirs(d, from) + odd, len, prot));
}

/* ---- VMAs, where they matter: only mremap's answer depends on who merges them ---------------- */

/* End of the mapping that has `addr`, by a text like /proc/PID/maps; 0: nothing is there. */
static uintptr_t mapping_end(const char *maps, uintptr_t addr)
{
	for (const char *line = maps; line && *line; line = strchr(line, '\n')) {
		uintptr_t start, end;

		line += *line == '\n';
		if (sscanf(line, "%lx-%lx", &start, &end) != 2)
			break;
		if (addr >= start && addr < end)
			return end;
	}
	return 0;
}

static size_t read_arena_maps(struct duel *d, char *text, size_t size)
{
	char path[64];
	ssize_t n;

	snprintf(path, sizeof(path), "proc/%d/maps", (int)getpid());
	n = arena_attr_read(d->a, path, text, size - 1);
	CHECK(n >= 0 && (size_t)n < size - 1);
	text[n] = 0;
	return (size_t)n;
}

static size_t read_kernel_maps(char *text, size_t size)
{
	FILE *f = fopen("/proc/self/maps", "r");
	size_t n;

	CHECK(f);
	n = fread(text, 1, size - 1, f);
	CHECK(n < size - 1);
	fclose(f);
	text[n] = 0;
	return n;
}

/* As many pages from `from` on as both sides have cut alike; `one`: of one VMA. */
static unsigned cut_alike(struct duel *d, unsigned from, unsigned n, bool one)
{
	static char ours_maps[1 << 20], theirs_maps[1 << 23];
	unsigned at = from;

	read_arena_maps(d, ours_maps, sizeof(ours_maps));
	read_kernel_maps(theirs_maps, sizeof(theirs_maps));
	while (at < from + n) {
		uintptr_t a = mapping_end(ours_maps, (uintptr_t)ours(d, at));
		uintptr_t b = mapping_end(theirs_maps, (uintptr_t)theirs(d, at));
		unsigned stop, other;

		if (!a || !b) {
			if (!a != !b)
				differ(d, "mapped page", at, a != 0);
			at++;
			continue;
		}
		stop = (unsigned)((a - (uintptr_t)d->ours) / PAGE);
		other = (unsigned)((b - (uintptr_t)d->theirs) / PAGE);
		if (stop != other || one) {
			at = stop < other ? stop : other;
			break;
		}
		at = stop;
	}
	return at < from + n ? at - from : n;
}

/* Addresses that the kernel chooses are not those that the arena chooses: both come back by a move. */
static void do_mremap(struct duel *d)
{
	unsigned from, n, to, other;
	int flags = chance(d, 75) ? MREMAP_MAYMOVE | MREMAP_FIXED : 0;
	size_t odd = chance(d, 2) ? 8 : 0, old_len, new_len;

	pick(d, &from, &n);
	pick(d, &to, &other);
	n = cut_alike(d, from, n, chance(d, 70));
	if (chance(d, 50))
		other = n;
	if (to + other > PAGES)
		to = PAGES - other;
	if (chance(d, 30) && to >= 512 && (to & ~511u) + (from & 511u) + other <= PAGES)
		to = (to & ~511u) + (from & 511u);
	if (flags && other == n && chance(d, 20))
		flags |= MREMAP_DONTUNMAP;
	if (chance(d, 3))
		flags ^= chance(d, 50) ? MREMAP_MAYMOVE : 8;
	/* The kernel unlocks what lies around such a source, too: it does not cut it out. */
	if (flags & MREMAP_DONTUNMAP)
		BOTH(d, arena_munlockall(d->a), (int)syscall(SYS_munlockall));
	/* Growing in place must not leave the range, where the two sides differ. */
	if (!(flags & MREMAP_FIXED) && from + other > PAGES)
		other = PAGES - from;
	/* A plain move within or out of the range ends where nobody can compare. */
	if ((flags & (MREMAP_MAYMOVE | MREMAP_FIXED)) == MREMAP_MAYMOVE)
		flags = 0;
	old_len = chance(d, 5) ? 0 : (size_t)n * PAGE - below(d, 2) * 5;
	new_len = chance(d, 2) ? 0 : (size_t)other * PAGE;
	SAY(d, "mremap page %u+%zu, %zu to %zu bytes, flags %#x, page %u", from, odd, old_len,
	    new_len, flags, to);
	BOTH(d, arena_mremap(d->a, ours(d, from) + odd, old_len, new_len, flags, ours(d, to)),
	     syscall(SYS_mremap, theirs(d, from) + odd, old_len, new_len, flags, theirs(d, to)));
}

/* FREE of written memory may or may not keep it: what follows writes it, or takes it away. */
static void do_madvise(struct duel *d)
{
	static const int advices[] = {
		MADV_NORMAL,
		MADV_RANDOM,
		MADV_SEQUENTIAL,
		MADV_WILLNEED,
		MADV_DONTNEED,
		MADV_DONTNEED,
		MADV_DONTNEED,
		MADV_REMOVE,
		MADV_REMOVE,
		MADV_DONTFORK,
		MADV_DOFORK,
		MADV_MERGEABLE,
		MADV_DONTDUMP,
		MADV_DODUMP,
		MADV_WIPEONFORK,
		MADV_KEEPONFORK,
		MADV_COLD,
		MADV_PAGEOUT,
		MADV_POPULATE_READ,
		MADV_POPULATE_WRITE,
		MADV_DONTNEED_LOCKED,
		MADV_UNMERGEABLE,
		12345,
		-1,
	};
	int advice = advices[below(d, sizeof(advices) / sizeof(*advices))];
	unsigned from, n;
	size_t odd = chance(d, 3) ? 8 : 0, len;

	pick(d, &from, &n);
	len = chance(d, 2) ? 0 : (size_t)n * PAGE - below(d, 2) * 5;
	SAY(d, "madvise page %u+%zu, %zu bytes, %d", from, odd, len, advice);
	BOTH(d, arena_madvise(d->a, ours(d, from) + odd, len, advice),
	     madvise(theirs(d, from) + odd, len, advice));
}

static void do_lock(struct duel *d)
{
	unsigned from, n, kind = (unsigned)below(d, 12);
	size_t odd = below(d, 100), len;

	pick(d, &from, &n);
	len = chance(d, 2) ? 0 : (size_t)n * PAGE - 100;
	/* Without the C library's mlock() and munlock(): a sanitizer's do nothing. */
	SAY(d, "lock %u of page %u+%zu, %zu bytes", kind, from, odd, len);
	switch (kind) {
	case 0 ... 3:
		BOTH(d, arena_mlock(d->a, ours(d, from) + odd, len),
		     (int)syscall(SYS_mlock, theirs(d, from) + odd, len));
		break;
	case 4 ... 5:
		BOTH(d, arena_mlock2(d->a, ours(d, from) + odd, len, MLOCK_ONFAULT),
		     mlock2(theirs(d, from) + odd, len, MLOCK_ONFAULT));
		break;
	case 6:
		BOTH(d, arena_mlock2(d->a, ours(d, from), len, 6), mlock2(theirs(d, from), len, 6));
		break;
	default:
		BOTH(d, arena_munlock(d->a, ours(d, from) + odd, len),
		     (int)syscall(SYS_munlock, theirs(d, from) + odd, len));
	}
}

static void do_sync(struct duel *d)
{
	static const int kinds[] = {MS_SYNC, MS_ASYNC, MS_INVALIDATE,     MS_SYNC | MS_INVALIDATE,
				    0,       8,        MS_SYNC | MS_ASYNC};
	int flags = kinds[below(d, 7)];
	unsigned from, n;
	size_t odd = chance(d, 5) ? 1 : 0;

	pick(d, &from, &n);
	SAY(d, "msync page %u+%zu, %u pages, %#x", from, odd, n, flags);
	BOTH(d, arena_msync(d->a, ours(d, from) + odd, n * PAGE, flags),
	     msync(theirs(d, from) + odd, n * PAGE, flags));
}

/* What is resident in the kernel was touched, so it is here; the arena may have filled more. */
static void do_mincore(struct duel *d)
{
	static unsigned char v[PAGES], w[PAGES];
	unsigned from, n;
	size_t odd = chance(d, 5) ? 1 : 0;

	pick(d, &from, &n);
	memset(v, 0x55, sizeof(v));
	memset(w, 0x55, sizeof(w));
	SAY(d, "mincore page %u+%zu, %u pages", from, odd, n);
	BOTH(d, arena_mincore(d->a, ours(d, from) + odd, n * PAGE, v),
	     mincore(theirs(d, from) + odd, n * PAGE, w));
	for (unsigned i = 0; i < n; i++)
		if ((w[i] & 0x55) == 1 && !(v[i] & 1))
			differ(d, "resident page", from + i, v[i]);
	BOTH(d, arena_mincore(d->a, ours(d, from), n * PAGE, (unsigned char *)16),
	     mincore(theirs(d, from), n * PAGE, (unsigned char *)16));
}

/* ---- bytes --------------------------------------------------------------------------------- */

static void touch(struct duel *d, unsigned page, bool write)
{
	volatile uint64_t *p = (volatile uint64_t *)(void *)ours(d, page);
	volatile uint64_t *q = (volatile uint64_t *)(void *)theirs(d, page);
	unsigned word = (unsigned)below(d, 512);
	struct fault_seen seen, other;

	if (write)
		try_write(p + word, &seen), try_write(q + word, &other);
	else
		try_read(p + word, &seen), try_read(q + word, &other);
	if (seen.signo != other.signo || seen.code != other.code)
		differ(d, write ? "signal of a write" : "signal of a read",
		       seen.signo * 1000 + seen.code, other.signo * 1000 + other.code);
	if (seen.signo)
		return;
	if (p[word] != q[word])
		differ(d, "word", (long)p[word], (long)q[word]);
	if (write)
		p[word] = q[word] = prng_next(&d->r);
}

/* Which pages are locked: these msync(MS_INVALIDATE) refuses. Holes are told apart, too. */
static void compare_locked(struct duel *d)
{
	for (unsigned i = 0; i < PAGES; i++) {
		int a = arena_msync(d->a, ours(d, i), PAGE, MS_INVALIDATE) ? errno : 0;
		int b = msync(theirs(d, i), PAGE, MS_INVALIDATE) ? errno : 0;

		if (a != b)
			differ(d, "locked or not, page", (long)i * 1000 + a, (long)i * 1000 + b);
	}
}

static void compare_all(struct duel *d)
{
	compare_locked(d);
	for (unsigned i = 0; i < PAGES; i++) {
		struct fault_seen seen, other;

		try_read(ours(d, i), &seen);
		try_read(theirs(d, i), &other);
		if (seen.signo != other.signo || seen.code != other.code)
			differ(d, "signal of page", seen.signo * 1000 + seen.code,
			       other.signo * 1000 + other.code);
		if (!seen.signo && memcmp(ours(d, i), theirs(d, i), PAGE) != 0)
			differ(d, "bytes of page", i, i);
	}
}

static void step(struct duel *d)
{
	static void (*const calls[])(struct duel *) = {
		do_mmap,   do_mmap,    do_mmap,    do_munmap,  do_mprotect, do_mremap, do_mremap,
		do_mremap, do_madvise, do_madvise, do_madvise, do_lock,     do_sync,   do_mincore,
	};
	unsigned from, n;

	calls[below(d, sizeof(calls) / sizeof(*calls))](d);
	pick(d, &from, &n);
	for (unsigned i = 0; i < 8; i++)
		touch(d, i % 2 ? (unsigned)below(d, PAGES) : from + (unsigned)below(d, n), i < 5);
	if (d->step % number_from("SOAK_EVERY", 250) == 0)
		compare_all(d);
}

static void run_duel(struct test_daemon *t, void *arg)
{
	struct duel *d = calloc(1, sizeof(*d));
	uint64_t steps = number_from("SOAK_STEPS", test_scaled(6000));
	size_t size = PAGES * PAGE;
	char *p;

	d->seed = *(uint64_t *)arg;
	d->r.state = d->seed;
	d->a = client_open(t);
	/* Both begin at a leaf, with room around that stays unmapped. */
	p = client_map(d->a, size + 3 * LEAF);
	CHECK_OK(arena_munmap(d->a, p, size + 3 * LEAF));
	d->ours = (char *)(((uintptr_t)p + 2 * LEAF - 1) & ~(LEAF - 1));
	p = mmap(NULL, size + 3 * LEAF, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);
	CHECK(p != MAP_FAILED);
	CHECK_OK(munmap(p, size + 3 * LEAF));
	d->theirs = (char *)(((uintptr_t)p + 2 * LEAF - 1) & ~(LEAF - 1));
	for (d->step = 0; d->step < steps; d->step++)
		step(d);
	compare_all(d);
	arena_close(d->a);
}

static void test_same_as_kernel(void **state)
{
	uint64_t first = number_from("SOAK_SEED", 1), seed[PROCESSES];
	pid_t pid[PROCESSES];

	if (TEST_SANITIZED) {
		print_message("skipped: a sanitizer's allocator maps where the kernel's range has "
			      "holes\n");
		skip();
	}
	print_message("seeds %llu to %llu\n", (unsigned long long)first,
		      (unsigned long long)first + PROCESSES - 1);
	for (unsigned i = 0; i < PROCESSES; i++) {
		seed[i] = first + i;
		pid[i] = client_start(*state, run_duel, &seed[i]);
	}
	for (unsigned i = 0; i < PROCESSES; i++)
		client_wait(pid[i]);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		daemon_test(test_same_as_kernel),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
