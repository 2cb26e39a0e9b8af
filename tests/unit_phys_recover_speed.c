/* SPDX-License-Identifier: MIT */
/*
 * How long recovery of physical memory takes: a large arena of which little is used, and one of which
 * every frame is in use by itself. Figures of docs/recovery.md are measured on the whole daemon; the
 * bounds here are wide, against what grows faster than the memory in use.
 */
#include "tests/sanitized.h"
#include "phys_world.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOWER 20
#else
#define SLOWER 1
#endif

static struct world world;

/* CPU time, ns. */
struct times {
	uint64_t adopt, recover, refs, finish;
};

/* This process's own time: what else the machine does is not recovery's. */
static uint64_t cpu_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

static uint64_t lap(uint64_t *since)
{
	uint64_t now = cpu_now(), t = now - *since;

	*since = now;
	return t;
}

static uint64_t report(const char *what, const struct times *t)
{
	uint64_t total = t->adopt + t->recover + t->finish;

	printf("%s: adopt %.2f ms, recover %.2f ms, finish %.2f ms (references %.2f ms)\n", what,
	       (double)t->adopt / 1e6, (double)t->recover / 1e6, (double)t->finish / 1e6,
	       (double)t->refs / 1e6);
	fflush(stdout);
	return total;
}

/* As a new process would; `every`: how far apart the frames are that are referred to. */
static void recover_timed(struct world *w, uint64_t nr_frames, unsigned every, struct times *t)
{
	uint64_t since;
	char err[200];
	int fd;

	store_fake_restart();
	fd = store_take("state");
	must(fd >= 0);
	w->state = calloc(1, sizeof(*w->state));
	must(w->state);
	since = cpu_now();
	must(state_adopt(fd, w->state, err, sizeof(err)) == 0);
	t->adopt = lap(&since);
	phys_recover_topology(w->state, &w->topology);
	must(phys_recover(&w->config, w->state, &w->phys) == 0);
	t->recover = lap(&since);
	for (uint64_t pfn = 0; pfn < nr_frames; pfn += every)
		phys_recover_ref(w->phys, (pfn_t)pfn, true);
	t->refs = lap(&since);
	must(phys_recover_finish(w->phys, NULL, NULL, &w->stats) == 0);
	t->finish = lap(&since);
	must(!w->stats.damaged);
}

static void sparse(void *unused)
{
	struct world *w = &world;
	struct times t;

	(void)unused;
	world_init(w, 1024 * GIB, 4, 0, 1);
	world_boot(w);
	world_domain(w, 0);
	for (unsigned i = 0; i < 100; i++)
		must(world_alloc(w, 0, GFP_USER_MOVABLE | GFP_HOLE_OK, i % 2 ? 9 : 0, i % 4));
	recover_timed(w, 0, 1, &t);
	/* Nothing referred to them. */
	must(w->stats.freed_pages == 50 * 513 && !w->stats.used_pages);
	must(phys_metadata_bytes(w->phys) < 64 * MIB);
	must(report("1 TiB, 100 blocks", &t) < 300 * SLOWER * NSEC_PER_MSEC);
	must(phys_is_valid(w->phys));
}

/* What 8 GiB of single frames look like, without the host having to have them. */
static void use_all(struct world *w)
{
	struct phys *p = w->phys;

	for (unsigned s = 0; s < p->nr_sections; s++)
		if (!p->state->sections[s].initialised)
			section_fill(p, s);
	for (uint64_t pfn = 0; pfn < p->nr_frames; pfn++) {
		struct page *page = &p->mem_map[pfn];

		pfn_block(p, (pfn_t)pfn)->domain = w->domain[0].id;
		pfn_block(p, (pfn_t)pfn)->flags = PB_BACKED;
		page->flags = page_place(page) | PG_ANON;
		page->refcount = page->mapcount = 1;
	}
}

static void single_frames(void *unused)
{
	struct world *w = &world;
	struct times t;

	(void)unused;
	world_init(w, 8 * GIB, 1, 0, 1);
	world_boot(w);
	world_domain(w, 0);
	use_all(w);
	recover_timed(w, w->phys->nr_frames, 1, &t);
	must(w->stats.used_pages == 8 * GIB >> 12);
	must(report("8 GiB in single frames", &t) < 600 * SLOWER * NSEC_PER_MSEC);
	/* Every second one lost: the worst there is to put on lists. */
	use_all(w);
	recover_timed(w, w->phys->nr_frames, 2, &t);
	must(w->stats.freed_pages == 4 * GIB >> 12);
	must(report("8 GiB, every other frame lost", &t) < 1200 * SLOWER * NSEC_PER_MSEC);
	must(phys_is_valid(w->phys));
}

static void leaves(void *unused)
{
	struct world *w = &world;
	struct alloc_request rq = {.gfp = GFP_USER_MOVABLE | GFP_HOLE_OK,
				   .order = 10,
				   .hint = PFN_NONE,
				   .owner = PG_ANON};
	struct alloc_result got;
	struct times t;

	(void)unused;
	world_init(w, 24 * GIB, 1, 0, 1);
	world_boot(w);
	world_domain(w, 0);
	rq.domain = w->domain[0].d;
	/* Holes: the host need not have them. */
	for (unsigned n = 0; n < 2048; n++)
		must(alloc_pages(w->phys, &rq, &got) == 0 && got.hole);
	recover_timed(w, w->phys->nr_frames, 1024, &t);
	must(w->stats.used_pages >= 8 * GIB >> 12);
	must(report("8 GiB in blocks of 4 MiB", &t) < 400 * SLOWER * NSEC_PER_MSEC);
	must(phys_is_valid(w->phys));
}

static void a_sparse_terabyte_recovers_at_once(void **state)
{
	(void)state;
	if (TEST_TSAN) {
		print_message("skipped: ThreadSanitizer leaves no room for a terabyte twice\n");
		skip();
	}
	assert_int_equal(in_child(sparse, NULL), 0);
}

static void single_frames_recover_fast(void **state)
{
	(void)state;
	assert_int_equal(in_child(single_frames, NULL), 0);
}

static void leaves_recover_fast(void **state)
{
	(void)state;
	assert_int_equal(in_child(leaves, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_sparse_terabyte_recovers_at_once),
		cmocka_unit_test(single_frames_recover_fast),
		cmocka_unit_test(leaves_recover_fast),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
