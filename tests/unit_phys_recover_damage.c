/* SPDX-License-Identifier: MIT */
/*
 * What a crash cannot have done to the stored files: cut off, flipped bits, another version, files
 * in each other's place. Each is refused or repaired with a line in the log, and what was not
 * damaged lives on. Besides: files of other minors, which are migrated, at whatever store one dies.
 */
#include <fcntl.h>
#include <sys/mman.h>

#include "phys_world.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FLIPS 60
#else
#define FLIPS 250
#endif

static struct world world;

/* ---- a worker that died, and its files --------------------------------------------------- */

static void live_a_little(struct world *w)
{
	for (unsigned d = 0; d < 3; d++)
		world_domain(w, d);
	for (unsigned i = 0; i < 30; i++)
		must(world_alloc(w, i % 3, i % 2 ? GFP_USER_MOVABLE : 0, i % 5, i % 4));
	must(world_alloc(w, 0, GFP_USER_MOVABLE | GFP_HOLE_OK, 9, 0));
	must(world_alloc(w, 1, GFP_USER_MOVABLE, 9, 0));
	for (unsigned i = w->nr_held; i-- > 0;)
		if (i % 3 == 0)
			world_put(w, &w->held[i]);
		else if (i % 3 == 1)
			world_map(w, &w->held[i]);
}

static void die(struct world *w, uint64_t size, unsigned nodes)
{
	world_init(w, size, nodes, nodes > 1 ? 4 * MIB : 0, 7);
	world_boot(w);
	live_a_little(w);
	store_fake_restart();
}

/* A state file like the stored one, `size` bytes of it (0: all), in its place; mapped. */
static struct state_header *replace_state(uint64_t size, uint64_t *mapped)
{
	int old = store_take("state"), fd;
	uint64_t whole, start, end = 0;
	char *to, *from;

	must(old >= 0 && os_memfd_size(old, &whole) == 0);
	size = size ? size : whole;
	fd = os_memfd("state", size);
	from = mmap(NULL, whole, PROT_READ, MAP_SHARED, old, 0);
	to = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	must(from != MAP_FAILED && to != MAP_FAILED);
	while (os_file_data(old, end, &start, &end) && start < size)
		memcpy(to + start, from + start, MIN(end, size) - start);
	munmap(from, whole);
	close(old);
	store_remove("state");
	must(store_add("state", fd) == 0);
	close(fd);
	store_fake_restart();
	if (mapped)
		*mapped = size;
	return (struct state_header *)(void *)to;
}

static void *region(struct state_header *h, enum state_region r)
{
	return (char *)h + h->region[r].offset;
}

static struct state_tables *tables(struct state_header *h)
{
	return (struct state_tables *)region(h, STATE_TABLES) + h->tables;
}

static int adopt(struct world *w, char err[200])
{
	int fd = store_take("state"), r;

	must(fd >= 0);
	w->state = calloc(1, sizeof(*w->state));
	must(w->state);
	err[0] = '\0';
	r = state_adopt(fd, w->state, err, 200);
	must(!r || (r == ARENA_E_INVALID && err[0] && w->state->fd < 0));
	if (r)
		must(fcntl(fd, F_GETFD) >= 0); /* still ours */
	return r;
}

static void refused(struct world *w, const char *why)
{
	char err[200];

	must(adopt(w, err) == ARENA_E_INVALID);
	if (!strstr(err, why))
		fprintf(stderr, "%s\n", err);
	must(strstr(err, why));
}

/* What still has a reference to give; the rest its holders lose. */
static void count_what_is_there(struct world *w)
{
	for (unsigned i = w->nr_held; i-- > 0;) {
		struct held *h = &w->held[i];
		const struct page *page = pfn_to_page(w->phys, h->pfn);
		const struct domain *d = pfn_domain(w->phys, h->pfn);

		if (!page || !d || compound_head(w->phys, h->pfn) != h->pfn ||
		    !phys_recover_ref(w->phys, h->pfn, h->maps)) {
			held_drop(w, h);
			continue;
		}
		for (unsigned k = 1; k < h->refs; k++)
			must(phys_recover_ref(w->phys, h->pfn, k < h->maps));
		h->order = page_order(page);
		h->domain = domain_id(d);
		h->owner = page->flags & PG_OWNER;
		h->mapping = page->mapping;
		h->index = page->index;
	}
}

/* Recover whatever can be, and live on with it. */
static void recover_damaged(struct world *w)
{
	must(phys_recover(&w->config, w->state, &w->phys) == 0);
	for (unsigned i = 0; i < WORLD_DOMAINS; i++) {
		if (!w->domain[i].d)
			continue;
		w->domain[i].d = domain_by_id(w->phys, w->domain[i].id);
		if (w->domain[i].d)
			domain_get(w->domain[i].d);
	}
	count_what_is_there(w);
	must(phys_recover_finish(w->phys, NULL, NULL, &w->stats) == 0);
	domain_end_unused(w->phys);
	store_drop_rest();
}

static void live_on(struct world *w)
{
	uint64_t used = 0;

	must(phys_is_valid(w->phys));
	for (unsigned i = 0; i < w->nr_held; i++)
		used += UINT64_C(1) << w->held[i].order;
	must(phys_total_pages(w->phys) - phys_free_pages(w->phys) == used);
	check_store(w);
	for (unsigned d = 0; d < 3; d++)
		world_domain(w, d);
	for (unsigned i = 0; i < 40; i++)
		world_alloc(w, i % 3, i % 2 ? GFP_USER_MOVABLE : 0, i % 6, 0);
	must(phys_is_valid(w->phys));
	world_end(w);
}

static void recover_quietly(struct world *w)
{
	char err[200];

	must(adopt(w, err) == 0);
	phys_recover_topology(w->state, &w->topology);
	recover_damaged(w);
}

/* ---- files that are no state file -------------------------------------------------------------- */

static void cut_off(void *unused)
{
	static const uint64_t keep[] = {4096, 8192, 65536, MIB, 18 * MIB};

	(void)unused;
	for (unsigned i = 0; i < ARRAY_SIZE(keep); i++) {
		die(&world, 64 * MIB, 2);
		replace_state(keep[i], NULL);
		refused(&world, "cut off");
		store_fake_end();
	}
}

static void not_a_state(void *unused)
{
	uint64_t magic = ARENA_MM_MAGIC;
	int fd;

	(void)unused;
	die(&world, 64 * MIB, 2);
	store_remove("state");
	fd = os_memfd("mm:1", 8 * MIB);
	must(pwrite(fd, &magic, sizeof(magic), 0) == sizeof(magic));
	must(store_add("state", fd) == 0);
	store_fake_restart();
	refused(&world, "not a finished state file");
	/* A file that its sender could cut off later. */
	store_remove("state");
	fd = memfd_create("state", MFD_CLOEXEC);
	must(ftruncate(fd, 8 << 20) == 0 && store_add("state", fd) == 0);
	store_fake_restart();
	refused(&world, "keeps its size");
	store_remove("state");
	fd = os_memfd("state", 100);
	must(store_add("state", fd) == 0);
	store_fake_restart();
	refused(&world, "100 bytes");
	store_remove("state");
	must(pipe(&(int[2]){0, 0}[0]) == 0);
	must(store_add("state", STDERR_FILENO) == 0);
	store_fake_restart();
	refused(&world, "not a state file");
}

static void other_versions(void *unused)
{
	struct state_header *h;

	(void)unused;
	die(&world, 64 * MIB, 2);
	h = replace_state(0, NULL);
	h->major++;
	refused(&world, "major 2");
	store_fake_restart();
	h->major--;
	h->magic = 0;
	refused(&world, "not a finished");
	store_fake_restart();
	h->magic = STATE_MAGIC;
	h->nr_regions = STATE_MAX_REGIONS + 1;
	refused(&world, "header");
	store_fake_restart();
	h->nr_regions = STATE_NEEDED_REGIONS - 1;
	refused(&world, "header");
	store_fake_restart();
	h->nr_regions = NR_STATE_REGIONS;
	h->tables = 2;
	refused(&world, "header");
	store_fake_restart();
	h->tables = 0;
	((struct state_geometry *)region(h, STATE_GEOMETRY))->distance[0][1]++;
	refused(&world, "checksum");
}

/* ---- flipped bits ----------------------------------------------------------------------------------- */

static uint64_t flip_at; /* bit of the file */

static void flipped(void *unused)
{
	struct world *w = &world;
	struct state_header *h;
	char err[200];

	(void)unused;
	w_death = flip_at;
	h = replace_state(0, NULL);
	((uint8_t *)h)[flip_at / 8] ^= (uint8_t)(1u << flip_at % 8);
	if (adopt(w, err))
		return;
	phys_recover_topology(w->state, &w->topology);
	recover_damaged(w);
	live_on(w);
}

/* Where there is something to damage, each part as often as the others. */
static uint64_t random_bit(const struct world *w, struct prng *prng)
{
	static const uint8_t parts[] = {STATE_GEOMETRY, STATE_TABLES,     STATE_DOMAINS,
					STATE_SECTIONS, STATE_PAGEBLOCKS, STATE_MEM_MAP};
	const struct state_header *h = w->state->header;
	uint64_t part = prng_below(prng, ARRAY_SIZE(parts) + 2), base, size;

	if (part >= ARRAY_SIZE(parts)) {
		base = 0;
		size = sizeof(*h);
	} else {
		base = h->region[parts[part]].offset;
		size = h->region[parts[part]].size;
		if (parts[part] == STATE_DOMAINS)
			size = 5 * sizeof(struct domain_record);
		if (parts[part] == STATE_MEM_MAP && prng_below(prng, 2)) {
			base += w->held[prng_below(prng, w->nr_held)].pfn * sizeof(struct page);
			size = sizeof(struct page);
		}
	}
	return (base + prng_below(prng, size)) * 8 + prng_below(prng, 8);
}

static void flip_bits(uint64_t size, unsigned nodes, struct prng *prng)
{
	struct state *dead;

	die(&world, size, nodes);
	dead = world.state;
	for (unsigned i = 0; i < FLIPS; i++) {
		int status;

		flip_at = random_bit(&world, prng);
		status = in_child(flipped, NULL);
		if (status)
			fail_msg("bit %llu of byte %llu: status %#x",
				 (unsigned long long)flip_at % 8, (unsigned long long)flip_at / 8,
				 status);
	}
	phys_destroy(world.phys);
	free(dead);
	store_fake_end();
}

static void flipped_bits_are_refused_or_repaired(void **state)
{
	uint64_t seed = test_seed();
	struct prng prng = {.state = seed};

	(void)state;
	log_set_level(LOG_LEVEL_ERR);
	flip_bits(64 * MIB, 2, &prng);
	flip_bits(GIB + 32 * MIB, 1, &prng);
	log_set_level(LOG_LEVEL_NOTICE);
}

/* ---- domains' files ------------------------------------------------------------------------------------- */

static uint32_t id_of(unsigned dom)
{
	return world.domain[dom].id;
}

/* The domains `gone` (bits) are lost, and nothing of the others. */
static void lost(struct world *w, unsigned gone)
{
	unsigned held = 0, kept;

	for (unsigned i = 0; i < w->nr_held; i++)
		for (unsigned d = 0; d < 3; d++)
			held += w->held[i].domain == id_of(d) && !(gone & 1u << d);
	recover_quietly(w);
	must(w->stats.lost_domains == (unsigned)__builtin_popcount(gone) && !w->stats.damaged);
	must(w->nr_held == held);
	for (unsigned d = 0; d < 3; d++)
		must(!w->domain[d].d == !!(gone & 1u << d));
	for (unsigned i = 0; i < w->nr_held; i++)
		check_held(w, &w->held[i]);
	kept = w->nr_held;
	must(kept);
	live_on(w);
}

static void missing_file(void *unused)
{
	(void)unused;
	die(&world, 64 * MIB, 2);
	store_remove_number("arena", id_of(1));
	store_fake_restart();
	lost(&world, 2);
}

static void swapped_files(void *unused)
{
	int a, b;

	(void)unused;
	die(&world, 64 * MIB, 2);
	a = store_take_number("arena", id_of(0));
	b = store_take_number("arena", id_of(2));
	store_remove_number("arena", id_of(0));
	store_remove_number("arena", id_of(2));
	must(store_add_number("arena", id_of(0), b) == 0);
	must(store_add_number("arena", id_of(2), a) == 0);
	store_fake_restart();
	lost(&world, 5);
}

static void other_file(void *arg)
{
	int fd = *(int *)arg;

	die(&world, 64 * MIB, 2);
	store_remove_number("arena", id_of(2));
	must(store_add_number("arena", id_of(2), fd) == 0);
	store_fake_restart();
	lost(&world, 4);
}

static void file_of_another_domain(void **state)
{
	int fd;

	(void)state;
	fd = os_memfd("arena:3", 12 * MIB);
	assert_int_equal(in_child(other_file, &fd), 0);
	close(fd);
	fd = os_memfd("mm:3", 64 * MIB);
	assert_int_equal(in_child(other_file, &fd), 0);
	close(fd);
	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	assert_int_equal(in_child(other_file, &fd), 0);
	close(fd);
}

static void half_forgotten(void *unused)
{
	struct world *w = &world;
	static uint64_t stop = 1;

	(void)unused;
	die(w, 64 * MIB, 2);
	store_remove_number("arena", id_of(1));
	/* The worker dies as it puts the lost domain's blocks away, again and again. */
	while (setjmp(w_grave)) {
		stop++;
		w->phys = NULL;
	}
	store_fake_restart();
	world_die_after(stop);
	recover_quietly(w);
	truth_stop_after = 0;
	must(stop > 5);
	for (unsigned i = 0; i < w->nr_held; i++)
		check_held(w, &w->held[i]);
	must(!domain_by_id(w->phys, id_of(1)));
	live_on(w);
}

/* ---- other minors ------------------------------------------------------------------------------------------ */

static void swap_bytes(void *a, void *b, size_t n)
{
	char *x = a, *y = b;

	for (size_t i = 0; i < n; i++) {
		char t = x[i];

		x[i] = y[i];
		y[i] = t;
	}
}

/* What a worker with other lists would have left: another order, one more and two fewer of each. */
static void other_lists(struct state_tables *t)
{
	/* Our last two do not exist there, but two that we do not know. */
	strcpy(t->counter_name[t->nr_counters - 1], "of_another_minor");
	t->counter[t->nr_counters - 1] = 12345;
	strcpy(t->counter_name[t->nr_counters - 2], "neither");
	strcpy(t->tunable_name[t->nr_tunables - 1], "KNOB_OF_ANOTHER_MINOR");
	for (uint32_t i = 0; i + 1 < t->nr_counters; i += 2) {
		swap_bytes(t->counter_name[i], t->counter_name[i + 1], STATE_NAME_SIZE);
		swap_bytes(&t->counter[i], &t->counter[i + 1], sizeof(uint64_t));
	}
	swap_bytes(t->tunable_name[0], t->tunable_name[3], STATE_NAME_SIZE);
	swap_bytes(&t->tunable[0], &t->tunable[3], sizeof(uint64_t));
	swap_bytes(t->numa_name[0], t->numa_name[4], STATE_NAME_SIZE);
	for (unsigned n = 0; n < 64; n++)
		swap_bytes(&t->numa[n][0], &t->numa[n][4], sizeof(uint64_t));
	strcpy(t->counter_name[t->nr_counters], "one_more");
	t->counter[t->nr_counters++] = 1;
}

/* Values that name themselves: 1000 and the number in our list. */
static void number_counters(struct state_tables *t)
{
	for (uint32_t i = 0; i < t->nr_counters; i++)
		t->counter[i] = 1000 + i;
	for (uint32_t n = 0; n < 64; n++)
		for (uint32_t i = 0; i < t->nr_numa_items; i++)
			t->numa[n][i] = 100 * n + i;
	t->tunable[TUNABLE_FILL_AHEAD_LEAVES] = 77;
	t->tunable[TUNABLE_WATERMARK_SCALE_FACTOR] = 33;
	t->tunable[NR_TUNABLES - 1] = 1;
}

static void check_numbers(const struct state *s)
{
	for (uint32_t i = 0; i + 2 < NR_EVENTS; i++)
		must(s->counters[i] == 1000 + i);
	must(!s->counters[NR_EVENTS - 1] && !s->counters[NR_EVENTS - 2]);
	for (uint32_t n = 0; n < 64; n++)
		for (uint32_t i = 0; i < NR_NUMA_ITEMS; i++)
			must(s->tables->numa[n][i] == 100 * n + i);
	must(s->tunables[TUNABLE_FILL_AHEAD_LEAVES] == 77);
	must(s->tunables[TUNABLE_WATERMARK_SCALE_FACTOR] == 33);
	must(s->tunables[NR_TUNABLES - 1] != 1); /* its default */
	must(s->tables->nr_counters == NR_EVENTS);
}

static void migrated(void *unused)
{
	struct world *w = &world;
	struct state_header *h;
	struct call_journal *j;
	static uint64_t stop = 1;
	char err[200];
	uint32_t epoch;

	(void)unused;
	die(w, 64 * MIB, 2);
	h = replace_state(0, NULL);
	number_counters(tables(h));
	other_lists(tables(h));
	h->minor = STATE_MINOR + 3;
	/* It had no journal, and something else lies where ours comes. */
	j = region(h, STATE_JOURNAL);
	memset(j, 0xa5, sizeof(*j));
	memset(&h->region[STATE_JOURNAL], 0, sizeof(h->region[0]));
	h->nr_regions = STATE_JOURNAL;
	epoch = h->epoch;
	while (setjmp(w_grave))
		stop++;
	store_fake_restart();
	world_die_after(stop);
	must(adopt(w, err) == 0);
	truth_stop_after = 0;
	must(stop > 100);
	check_numbers(w->state);
	must(state_is_valid(w->state) && w->state->header->epoch == epoch + 1);
	must(w->state->journal->phase == JOURNAL_NONE && !w->state->journal->request_id);
	phys_recover_topology(w->state, &w->topology);
	recover_damaged(w);
	must(!w->stats.damaged);
	for (unsigned i = 0; i < w->nr_held; i++)
		check_held(w, &w->held[i]);
	live_on(w);
}

static void newer_regions(void *unused)
{
	struct state_header *h;
	char err[200];

	(void)unused;
	die(&world, 64 * MIB, 2);
	h = replace_state(0, NULL);
	h->minor = STATE_MINOR + 1;
	h->region[NR_STATE_REGIONS].offset = h->region[NR_STATE_REGIONS - 1].offset + 4096;
	h->region[NR_STATE_REGIONS].size = 100;
	h->nr_regions = NR_STATE_REGIONS + 1;
	must(adopt(&world, err) == 0);
	must(h->minor == STATE_MINOR && h->nr_regions == NR_STATE_REGIONS);
	phys_recover_topology(world.state, &world.topology);
	recover_damaged(&world);
	live_on(&world);
}

static void no_room(void *unused)
{
	struct state_header *h;

	(void)unused;
	die(&world, 64 * MIB, 2);
	h = replace_state(world.state->header->region[STATE_JOURNAL].offset, NULL);
	h->nr_regions = STATE_JOURNAL;
	refused(&world, "no room");
}

static void wild_tunables(void *unused)
{
	struct state_header *h;
	char err[200];

	(void)unused;
	die(&world, 64 * MIB, 2);
	h = replace_state(0, NULL);
	tables(h)->tunable[TUNABLE_FILL_AHEAD_LEAVES] = 1u << 20;
	tables(h)->tunable[TUNABLE_POLL_USECS] = 99;
	must(adopt(&world, err) == 0);
	must(world.state->tunables[TUNABLE_FILL_AHEAD_LEAVES] == 256);
	must(world.state->tunables[TUNABLE_POLL_USECS] == 99);
}

/* ---- the end of an arena ------------------------------------------------------------------------------------- */

/* A recovered arena is let go of for the next worker, unless it was retired. */
static void let_go(void *unused)
{
	struct world *w = &world;
	uint64_t hits;

	(void)unused;
	die(w, 64 * MIB, 2);
	hits = phys_node(w->phys, 0)->numa_stat[NUMA_HIT];
	must(hits);
	recover_quietly(w);
	w->phys = phys_destroy(w->phys);
	store_fake_restart();
	recover_quietly(w);
	must(w->state->header->epoch == 2);
	must(phys_node(w->phys, 0)->numa_stat[NUMA_HIT] == hits);
	for (unsigned i = 0; i < w->nr_held; i++)
		check_held(w, &w->held[i]);
	live_on(w);
}

/* A worker that dies on its way down: what clients still read is kept, and the truth holds. */
static void dies_retired(void *unused)
{
	struct world *w = &world;
	struct domain *d;
	uint64_t *leaf;
	struct held *h;

	(void)unused;
	die(w, 64 * MIB, 2);
	h = world_alloc(w, 1, GFP_USER_MOVABLE, 9, 0);
	must(h);
	fill_held(w, h);
	leaf = contents(w, h);
	d = w->domain[1].d;
	phys_retire(w->phys);
	for (unsigned i = w->nr_held; i-- > 0;)
		if (w->held[i].domain == id_of(1))
			world_put(w, &w->held[i]);
	world_domain_end(w, 1);
	must(leaf[7 * 512] && domain_owned_blocks(d));
	must(phys_is_valid(w->phys));
	store_fake_restart();
	recover_quietly(w);
	/* What nobody has is ended now, and its memory went to the host. */
	must(!domain_by_id(w->phys, id_of(1)));
	for (unsigned i = 0; i < w->nr_held; i++)
		check_held(w, &w->held[i]);
	live_on(w);
}

/* ---- all of them ------------------------------------------------------------------------------------------------ */

#define IN_CHILD(fn)                                     \
	static void test_##fn(void **state)              \
	{                                                \
		(void)state;                             \
		assert_int_equal(in_child(fn, NULL), 0); \
	}
IN_CHILD(cut_off)
IN_CHILD(not_a_state)
IN_CHILD(other_versions)
IN_CHILD(missing_file)
IN_CHILD(swapped_files)
IN_CHILD(half_forgotten)
IN_CHILD(migrated)
IN_CHILD(newer_regions)
IN_CHILD(no_room)
IN_CHILD(wild_tunables)
IN_CHILD(let_go)
IN_CHILD(dies_retired)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cut_off),
		cmocka_unit_test(test_not_a_state),
		cmocka_unit_test(test_other_versions),
		cmocka_unit_test(flipped_bits_are_refused_or_repaired),
		cmocka_unit_test(test_missing_file),
		cmocka_unit_test(test_swapped_files),
		cmocka_unit_test(file_of_another_domain),
		cmocka_unit_test(test_half_forgotten),
		cmocka_unit_test(test_migrated),
		cmocka_unit_test(test_newer_regions),
		cmocka_unit_test(test_no_room),
		cmocka_unit_test(test_wild_tunables),
		cmocka_unit_test(test_let_go),
		cmocka_unit_test(test_dies_retired),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
