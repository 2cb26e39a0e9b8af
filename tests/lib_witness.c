/* SPDX-License-Identifier: MIT */
/* lib_witness.c - the witness's steps; each page holds its stamp at its start and at its end. */
#include "tests/lib_witness.h"

#include <fcntl.h>
#include <stdlib.h>

static void stamp_page(char *p, uint64_t stamp)
{
	*(volatile uint64_t *)(void *)p = stamp;
	*(volatile uint64_t *)(void *)(p + PAGE - 8) = ~stamp;
}

static void check_page(const char *what, unsigned i, const char *p, uint64_t has)
{
	uint64_t first = *(const volatile uint64_t *)(const void *)p;
	uint64_t last = *(const volatile uint64_t *)(const void *)(p + PAGE - 8);

	if (first == has && last == (has ? ~has : 0))
		return;
	dprintf(2, "client %d: %s %u: %llx %llx, it should be %llx\n", (int)getpid(), what, i,
		(unsigned long long)first, (unsigned long long)last, (unsigned long long)has);
	check_failed(__FILE__, __LINE__, what);
}

static uint64_t next_stamp(struct witness *w)
{
	return ++w->stamp << 20 | ((uint64_t)getpid() & 0xfffff);
}

/* ---- private memory ------------------------------------------------------------------------ */

static char *map_small(struct witness *w, char *at, unsigned pages)
{
	int fixed = at ? MAP_FIXED : 0;
	char *p = arena_mmap(w->a, at, pages * PAGE, RW, ANON | fixed, -1, 0);

	CHECK(p != MAP_FAILED && (!at || p == at));
	CHECK_OK(arena_madvise(w->a, p, pages * PAGE, MADV_NOHUGEPAGE));
	return p;
}

static void touch_small(struct witness *w)
{
	unsigned i = prng_below(&w->prng, WITNESS_SMALL);

	check_page("small page", i, w->small + i * PAGE, w->small_has[i]);
	if (prng_below(&w->prng, 2))
		stamp_page(w->small + i * PAGE, w->small_has[i] = next_stamp(w));
}

static void touch_large(struct witness *w)
{
	unsigned i = prng_below(&w->prng, WITNESS_LEAVES * 512);

	check_page("page of a leaf", i, w->large + i * PAGE, w->large_has[i]);
	if (prng_below(&w->prng, 2))
		stamp_page(w->large + i * PAGE, w->large_has[i] = next_stamp(w));
}

/* A piece of the small pages: given up and mapped anew, or emptied, or its rights taken and given. */
static void change_small(struct witness *w)
{
	unsigned first = prng_below(&w->prng, WITNESS_SMALL), n = 1 + prng_below(&w->prng, 20);
	char *p = w->small + first * PAGE;

	n = first + n > WITNESS_SMALL ? WITNESS_SMALL - first : n;
	switch (prng_below(&w->prng, 4)) {
	case 0:
		CHECK_OK(arena_munmap(w->a, p, n * PAGE));
		map_small(w, p, n);
		break;
	case 1:
		map_small(w, p, n);
		break;
	case 2:
		CHECK_OK(arena_madvise(w->a, p, n * PAGE, MADV_DONTNEED));
		break;
	default:
		CHECK_OK(arena_mprotect(w->a, p, n * PAGE, PROT_READ));
		for (unsigned i = 0; i < n; i++)
			check_page("read-only page", first + i, p + i * PAGE,
				   w->small_has[first + i]);
		CHECK_OK(arena_mprotect(w->a, p, n * PAGE, RW));
		return;
	}
	memset(&w->small_has[first], 0, n * sizeof(w->small_has[0]));
}

static void populate_some(struct witness *w)
{
	unsigned first = prng_below(&w->prng, WITNESS_SMALL);

	CHECK_OK(arena_populate(w->a, w->small + first * PAGE, (WITNESS_SMALL - first) * PAGE,
				prng_below(&w->prng, 2)));
}

/* ---- segments ------------------------------------------------------------------------------ */

static void touch_shared(struct witness *w)
{
	unsigned i = prng_below(&w->prng, WITNESS_SHARED);

	check_page("page of the segment", i, w->shared + i * PAGE, w->shared_has[i]);
	stamp_page(w->shared + i * PAGE, w->shared_has[i] = next_stamp(w));
}

static void cut_shared(struct witness *w)
{
	unsigned keep = prng_below(&w->prng, WITNESS_SHARED);

	CHECK_OK(arena_shm_truncate(w->shm, (off_t)(keep * PAGE)));
	CHECK(arena_shm_size(w->shm) == (off_t)(keep * PAGE));
	CHECK_OK(arena_shm_truncate(w->shm, (off_t)(WITNESS_SHARED * PAGE)));
	memset(&w->shared_has[keep], 0, (WITNESS_SHARED - keep) * sizeof(w->shared_has[0]));
}

/* Twice done, the second open would find the name, and the second unlink would not. */
static void name_once(struct witness *w)
{
	arena_shm_t *s;
	char name[48];

	snprintf(name, sizeof(name), "%s-once", w->name);
	s = client_shm(w->a, name, O_RDWR | O_CREAT | O_EXCL,
		       prng_below(&w->prng, 2) ? 0600 : 0666);
	CHECK(!arena_shm_open(w->a, name, O_RDWR | O_CREAT | O_EXCL, 0600) && errno == EEXIST);
	CHECK_OK(arena_shm_truncate(s, PAGE));
	CHECK_OK(arena_shm_unlink(w->a, name));
	CHECK(arena_shm_unlink(w->a, name) == -1 && errno == ENOENT);
	CHECK(arena_shm_size(s) == (off_t)PAGE);
	arena_shm_close(s);
}

/* ---- pages --------------------------------------------------------------------------------- */

static void change_block(struct witness *w)
{
	unsigned i = prng_below(&w->prng, WITNESS_BLOCKS);
	char *p = w->block[i].p;

	if (!p) {
		w->block[i].order = prng_below(&w->prng, 4);
		p = arena_alloc_pages(w->a, ARENA_GFP_HIGHMEM | ARENA_GFP_ZERO, w->block[i].order);
		CHECK(p);
		w->block[i].p = p;
		check_page("new block", i, p, 0);
		stamp_page(p, w->block[i].has = next_stamp(w));
		return;
	}
	check_page("block", i, p, w->block[i].has);
	CHECK_OK(arena_free_pages(w->a, p, w->block[i].order));
	CHECK(arena_free_pages(w->a, p, w->block[i].order) == -1 && errno == EINVAL);
	w->block[i].p = NULL;
}

static void read_attribute(struct witness *w)
{
	char text[4096];

	CHECK(arena_attr_read(w->a, "proc/meminfo", text, sizeof(text)) > 100);
	CHECK(strncmp(text, "MemTotal:", 9) == 0);
}

/* ---- interface ----------------------------------------------------------------------------- */

struct witness *witness_open(struct test_daemon *d, unsigned number, uint64_t seed)
{
	struct witness *w = calloc(1, sizeof(*w));

	CHECK(w);
	w->prng.state = seed;
	w->a = client_open(d);
	snprintf(w->name, sizeof(w->name), "/witness-%u", number);
	w->small = map_small(w, NULL, WITNESS_SMALL);
	w->large = client_map(w->a, WITNESS_LEAVES * LEAF);
	w->shm = client_shm(w->a, w->name, O_RDWR | O_CREAT | O_EXCL, number % 2 ? 0600 : 0666);
	CHECK_OK(arena_shm_truncate(w->shm, (off_t)(WITNESS_SHARED * PAGE)));
	w->shared = arena_shm_mmap(w->shm, NULL, WITNESS_SHARED * PAGE, RW, MAP_SHARED, 0);
	CHECK(w->shared != MAP_FAILED);
	return w;
}

void witness_step(struct witness *w)
{
	unsigned what = prng_below(&w->prng, 32);

	if (what < 10)
		touch_small(w);
	else if (what < 16)
		touch_large(w);
	else if (what < 20)
		touch_shared(w);
	else if (what < 24)
		change_small(w);
	else if (what < 28)
		change_block(w);
	else if (what == 28)
		populate_some(w);
	else if (what == 29)
		cut_shared(w);
	else if (what == 30)
		name_once(w);
	else
		read_attribute(w);
}

void witness_check(struct witness *w)
{
	for (unsigned i = 0; i < WITNESS_SMALL; i++)
		check_page("small page", i, w->small + i * PAGE, w->small_has[i]);
	for (unsigned i = 0; i < WITNESS_LEAVES * 512; i++)
		check_page("page of a leaf", i, w->large + i * PAGE, w->large_has[i]);
	for (unsigned i = 0; i < WITNESS_SHARED; i++)
		check_page("page of the segment", i, w->shared + i * PAGE, w->shared_has[i]);
	for (unsigned i = 0; i < WITNESS_BLOCKS; i++)
		if (w->block[i].p)
			check_page("block", i, w->block[i].p, w->block[i].has);
}

void witness_close(struct witness *w)
{
	CHECK_OK(arena_shm_unlink(w->a, w->name));
	arena_shm_close(w->shm);
	arena_close(w->a);
	free(w);
}
