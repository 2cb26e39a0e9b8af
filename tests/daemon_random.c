/* SPDX-License-Identifier: MIT */
/*
 * daemon_random.c - random calls of several clients against a naive model: for each page of a region
 * whether it is mapped, how it is protected, and what was last written to it.
 *
 * From the environment: SOAK_STEPS calls of each client, SOAK_SEED where they start.
 */
#include <signal.h>
#include <stdlib.h>

#include "base/prng.h"
#include "tests/lib_client.h"

#define PAGES (5u * 512u)
#define PROCESSES 3u

struct page {
	bool mapped;
	int prot;
	uint64_t value; /* first word */
};

struct model {
	arena_t *a;
	char *base;
	struct prng r;
	uint64_t seed, step;
	struct page page[PAGES];
};

static uint64_t number_from(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

#define EXPECT(m, cond)                                                                     \
	do {                                                                                \
		if (!(cond)) {                                                              \
			dprintf(2, "seed %llu, step %llu\n", (unsigned long long)(m)->seed, \
				(unsigned long long)(m)->step);                             \
			check_failed(__FILE__, __LINE__, #cond);                            \
		}                                                                           \
	} while (0)

static char *at(struct model *m, unsigned i)
{
	return m->base + (size_t)i * PAGE;
}

/* Short ranges, whole leaves, and everything. */
static void pick(struct model *m, unsigned *from, unsigned *to)
{
	unsigned n;

	*from = (unsigned)prng_below(&m->r, PAGES);
	switch (prng_below(&m->r, 4)) {
	case 0:
		*from &= ~511u;
		n = 512 * (1 + (unsigned)prng_below(&m->r, 3));
		break;
	case 1:
		n = 1 + (unsigned)prng_below(&m->r, 1500);
		break;
	default:
		n = 1 + (unsigned)prng_below(&m->r, 20);
	}
	*to = *from + n < PAGES ? *from + n : PAGES;
}

static int random_prot(struct model *m)
{
	static const int prots[] = {RW, RW, RW, PROT_READ, PROT_NONE, PROT_WRITE};

	return prots[prng_below(&m->r, 6)];
}

/* ---- what one access must do --------------------------------------------------------------- */

static void expect_fault(struct model *m, unsigned i, const struct fault_seen *seen, bool write)
{
	const struct page *p = &m->page[i];
	bool permitted = p->mapped && (write ? p->prot & PROT_WRITE : p->prot != PROT_NONE);

	if (permitted) {
		EXPECT(m, seen->signo == 0);
		return;
	}
	EXPECT(m, seen->signo == SIGSEGV);
	EXPECT(m, seen->code == (p->mapped ? SEGV_ACCERR : SEGV_MAPERR));
	EXPECT(m, seen->addr == (uintptr_t)at(m, i));
}

static void check_page(struct model *m, unsigned i)
{
	struct fault_seen seen;
	volatile uint64_t *w = (volatile uint64_t *)(void *)at(m, i);

	try_read(w, &seen);
	expect_fault(m, i, &seen, false);
	if (seen.signo)
		return;
	EXPECT(m, w[0] == m->page[i].value);
	EXPECT(m, w[511] == m->page[i].value);
}

static void write_page(struct model *m, unsigned i)
{
	volatile uint64_t *w = (volatile uint64_t *)(void *)at(m, i);
	struct fault_seen seen;

	try_write(w, &seen);
	expect_fault(m, i, &seen, true);
	if (!seen.signo)
		w[0] = w[511] = m->page[i].value = prng_next(&m->r) | 1;
}

/* ---- calls --------------------------------------------------------------------------------- */

static void do_map(struct model *m, unsigned from, unsigned to)
{
	int prot = random_prot(m), flags = prng_below(&m->r, 4) ? ANON : ANON_SHARED;

	if (prng_below(&m->r, 8) == 0)
		flags |= MAP_POPULATE;
	EXPECT(m, arena_mmap(m->a, at(m, from), (to - from) * PAGE, prot, flags | MAP_FIXED, -1,
			     0) == at(m, from));
	for (unsigned i = from; i < to; i++)
		m->page[i] = (struct page){true, prot, 0};
}

static void do_unmap(struct model *m, unsigned from, unsigned to)
{
	EXPECT(m, arena_munmap(m->a, at(m, from), (to - from) * PAGE) == 0);
	for (unsigned i = from; i < to; i++)
		m->page[i] = (struct page){0};
}

static void do_protect(struct model *m, unsigned from, unsigned to)
{
	int prot = random_prot(m), r = arena_mprotect(m->a, at(m, from), (to - from) * PAGE, prot);
	unsigned i;

	for (i = from; i < to && m->page[i].mapped; i++)
		m->page[i].prot = prot;
	EXPECT(m, (r == 0) == (i == to));
	EXPECT(m, r == 0 || errno == ENOMEM);
}

static void do_advise(struct model *m, unsigned from, unsigned to)
{
	static const int advices[] = {MADV_DONTNEED, MADV_DONTNEED, MADV_HUGEPAGE,  MADV_NOHUGEPAGE,
				      MADV_RANDOM,   MADV_NORMAL,   MADV_SEQUENTIAL};
	int advice = advices[prng_below(&m->r, 7)];
	bool hole = false;
	int r;

	/* Of shared memory DONTNEED only takes the mapping, so the model would need to know. */
	if (advice == MADV_DONTNEED) {
		unsigned i;

		EXPECT(m, arena_mmap(m->a, at(m, from), (to - from) * PAGE, RW, ANON | MAP_FIXED,
				     -1, 0) == at(m, from));
		for (i = from; i < to; i++)
			m->page[i] = (struct page){true, RW, 0};
		for (i = from; i < to; i += 1 + (unsigned)prng_below(&m->r, 9))
			write_page(m, i);
		for (i = from; i < to; i++)
			m->page[i].value = 0;
	}
	r = arena_madvise(m->a, at(m, from), (to - from) * PAGE, advice);
	for (unsigned i = from; i < to; i++)
		hole |= !m->page[i].mapped;
	EXPECT(m, (r == 0) == !hole);
	EXPECT(m, r == 0 || errno == ENOMEM);
}

static void do_populate(struct model *m, unsigned from, unsigned to)
{
	bool write = prng_below(&m->r, 2), whole = true;
	int r = arena_populate(m->a, at(m, from), (to - from) * PAGE, write);

	for (unsigned i = from; i < to; i++)
		whole &= m->page[i].mapped &&
			 (write ? m->page[i].prot & PROT_WRITE : m->page[i].prot != PROT_NONE);
	EXPECT(m, (r == 0) == whole);
	EXPECT(m, r == 0 || errno == ENOMEM || errno == EFAULT);
	if (r == 0)
		EXPECT(m, arena_virt_to_pfn(m->a, at(m, to - 1)) >= 0);
}

static void step(struct model *m)
{
	static void (*const calls[])(struct model *, unsigned, unsigned) = {
		do_map, do_unmap, do_protect, do_advise, do_populate,
	};
	unsigned from, to;

	pick(m, &from, &to);
	calls[prng_below(&m->r, 5)](m, from, to);
	for (unsigned k = 0; k < 12; k++) {
		unsigned i = (unsigned)prng_below(&m->r, PAGES);

		if (k % 3)
			i = from + (unsigned)prng_below(&m->r, to - from);
		if (k % 2)
			check_page(m, i);
		else
			write_page(m, i);
	}
	if (m->step % 200 == 199)
		for (unsigned i = 0; i < PAGES; i++)
			check_page(m, i);
}

static void run_model(struct test_daemon *d, void *arg)
{
	struct model *m = calloc(1, sizeof(*m));
	uint64_t steps = number_from("SOAK_STEPS", test_scaled(1500));
	char *p;

	m->seed = *(uint64_t *)arg;
	m->r.state = m->seed;
	m->a = client_open(d);
	/* Anywhere in the window where there is room, at the beginning of a leaf. */
	p = client_map(m->a, PAGES * PAGE + LEAF);
	CHECK_OK(arena_munmap(m->a, p, PAGES * PAGE + LEAF));
	m->base = (char *)(((uintptr_t)p + LEAF - 1) & ~(LEAF - 1));
	for (m->step = 0; m->step < steps; m->step++)
		step(m);
	if (m->seed % 2)
		arena_close(m->a);
}

static void test_model(void **state)
{
	uint64_t first = number_from("SOAK_SEED", 1), seed[PROCESSES];
	pid_t pid[PROCESSES];

	print_message("seeds %llu to %llu\n", (unsigned long long)first,
		      (unsigned long long)first + PROCESSES - 1);
	for (unsigned i = 0; i < PROCESSES; i++) {
		seed[i] = first + i;
		pid[i] = client_start(*state, run_model, &seed[i]);
	}
	for (unsigned i = 0; i < PROCESSES; i++)
		client_wait(pid[i]);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		daemon_test(test_model),
	};

	return cmocka_run_group_tests(tests, daemon_group_setup, daemon_group_teardown);
}
