/* SPDX-License-Identifier: MIT */
/*
 * show_arena.c - what Linux has no file for: the service as a whole, its clients, its segments.
 *
 * status is "key value" lines. Keys of a node are node.N.KEY, those of a zone zone.N.NAME.KEY, and
 * they come after all others, node by node. clients and segments are tables with one line of
 * headings; the last column, a name, has its blanks in octal. New keys and columns may be added.
 */
#include <unistd.h>

#include "arena/arena.h"
#include "base/clock.h"
#include "base/util.h"
#include "daemon/files/show.h"
#include "daemon/store/store.h"

int show_arena_check(struct show *s)
{
	fprintf(s->out, "%s\n", machine_is_valid(s->machine) ? "ok" : "damaged");
	return 0;
}

/* What program this is, and what the last attempt came to. */
int show_arena_upgrade(struct show *s)
{
	fprintf(s->out, "program %s\n", store_program());
	if (*s->machine->upgrade)
		fprintf(s->out, "last %s\n", s->machine->upgrade);
	return 0;
}

/* The path of a program, or nothing: the one that is at the path of this. */
int store_arena_upgrade(struct show *s, const char *value)
{
	return machine_upgrade(s->machine, value);
}

int show_hpage_pmd_size(struct show *s)
{
	fprintf(s->out, "%" PRIu64 "\n", ARENA_LEAF_SIZE);
	return 0;
}

/* The arena asks for hugepages mapping by mapping, where the host gives them. */
int show_shmem_enabled(struct show *s)
{
	fputs(s->machine->hugepages ? "always within_size [advise] never deny force\n"
				    : "always within_size advise [never] deny force\n",
	      s->out);
	return 0;
}

/* ---- status ------------------------------------------------------------------------------ */

static void put(struct show *s, const char *key, uint64_t value)
{
	fprintf(s->out, "%s %" PRIu64 "\n", key, value);
}

static void put_bytes(struct show *s, const char *key, uint64_t pages)
{
	put(s, key, pages << ARENA_PAGE_SHIFT);
}

static void put_event(struct show *s, const char *key, enum event_item item)
{
	put(s, key, phys_state(s->phys)->counters[item]);
}

static void put_service(struct show *s)
{
	uint64_t now = clock_now();
	uint64_t boot = s->machine->boot_time;
	pid_t supervisor = store_supervisor();

	fprintf(s->out, "version %d.%d.%d\n", ARENA_VERSION_MAJOR, ARENA_VERSION_MINOR,
		ARENA_VERSION_PATCH);
	/* The process that stands for the daemon; its supervisor, or 0; who is speaking; how many have
	 * served this state before. */
	put(s, "pid", (uint64_t)(supervisor ? supervisor : getpid()));
	put(s, "supervisor_pid", (uint64_t)supervisor);
	put(s, "worker_pid", (uint64_t)getpid());
	put(s, "epoch", phys_state(s->phys)->header->epoch);
	put(s, "uptime_seconds", now > boot ? (now - boot) / NSEC_PER_SEC : 0);
	put(s, "restarts", phys_state(s->phys)->header->epoch);
	fprintf(s->out, "hugepages %s\n", s->machine->hugepages ? "on" : "off");
}

static void put_memory(struct show *s)
{
	uint64_t arena = phys_nr_frames(s->phys) << ARENA_PAGE_SHIFT;
	uint64_t metadata = phys_metadata_bytes(s->phys);
	uint64_t limbo = virt_limbo_pages(s->virt);
	struct mem_sums sums;

	sum_all(s->phys, &sums);
	put(s, "arena_bytes", arena);
	put_bytes(s, "total_bytes", sums.managed);
	put_bytes(s, "free_bytes", sums.free);
	put_bytes(s, "anon_bytes", gauge(sums.node[NR_ANON_MAPPED]));
	put_bytes(s, "shmem_bytes", gauge(sums.node[NR_SHMEM]));
	put_bytes(s, "limbo_bytes", limbo);
	put_bytes(s, "zeroed_ready_bytes", phys_zeroed_pages(s->phys, NULL));
	put(s, "backed_bytes", phys_backed_bytes(s->phys));
	put(s, "metadata_bytes", metadata);
	fprintf(s->out, "metadata_percent %.3f\n",
		arena ? 100.0 * (double)metadata / (double)arena : 0.0);
	put(s, "pages_total", sums.managed);
	put(s, "pages_free", sums.free);
	put(s, "pages_limbo", limbo);
}

static void put_clients_sum(struct show *s)
{
	uint64_t clients = 0, segments = 0;
	struct virt_client_counts counts;
	struct segment_info segment;

	for (struct mm *mm = mm_next(s->virt, NULL); mm; mm = mm_next(s->virt, mm))
		clients++;
	virt_get_client_counts(s->virt, &counts);
	for (uint32_t id = 0; segment_next(s->virt, id, &segment); id = segment.id)
		segments++;
	put(s, "clients", clients);
	put(s, "segments", segments);
	/* as the clients count them */
	put(s, "refills", counts.refills);
	put(s, "fill_ahead_hits", counts.ahead_hits);
	put(s, "evictions", counts.evictions);
}

static void put_events(struct show *s)
{
	/* What owes nothing is not looked at otherwise; the counts below should be of this moment. */
	for (struct mm *mm = mm_next(s->virt, NULL); mm; mm = mm_next(s->virt, mm))
		mm_flush_collect(mm);
	put_event(s, "faults", EV_PGFAULT);
	put_bytes(s, "fill_ahead_bytes", phys_state(s->phys)->counters[EV_ARENA_FILL_AHEAD]);
	put_event(s, "flushes_posted", EV_ARENA_FLUSH_POSTED);
	put_event(s, "flushes_acked", EV_ARENA_FLUSH_ACKED);
	put_event(s, "zeroed_ready", EV_ARENA_ZEROED_READY);
	put_event(s, "zeroed_background", EV_ARENA_ZEROED_BACKGROUND);
	put_event(s, "zeroed_inline", EV_ARENA_ZEROED_INLINE);
	put(s, "kzerod_cpu_ns", kzerod_cpu_time(s->phys));
	put_event(s, "rpc", EV_ARENA_RPC);
	put_event(s, "bad_requests", EV_ARENA_BAD_REQUEST);
	put_event(s, "clients_opened", EV_ARENA_CLIENT_OPEN);
	put_event(s, "clients_died", EV_ARENA_CLIENT_DEATH);
	put_event(s, "clients_refused", EV_ARENA_CLIENT_REFUSED);
}

static void put_zone(FILE *out, const struct zone *z)
{
	const char *name = zone_type_name(z->type);
	const struct {
		const char *key;
		uint64_t pages;
	} value[] = {
		{"total_bytes", z->managed},
		{"free_bytes", z->nr_free},
		{"min_bytes", z->watermark[WMARK_MIN]},
		{"low_bytes", z->watermark[WMARK_LOW]},
		{"high_bytes", z->watermark[WMARK_HIGH]},
	};

	for (unsigned i = 0; i < ARRAY_SIZE(value); i++)
		fprintf(out, "zone.%u.%s.%s %" PRIu64 "\n", z->node, name, value[i].key,
			value[i].pages << ARENA_PAGE_SHIFT);
}

static void put_node(struct show *s, unsigned nid)
{
	struct node *n = phys_node(s->phys, nid);
	struct mem_sums sums = {0};

	sum_node(n, &sums);
	fprintf(s->out, "node.%u.total_bytes %" PRIu64 "\n", nid, sums.managed << ARENA_PAGE_SHIFT);
	fprintf(s->out, "node.%u.free_bytes %" PRIu64 "\n", nid, sums.free << ARENA_PAGE_SHIFT);
	for (unsigned t = 0; t < NR_ZONE_TYPES; t++)
		if (n->zone[t].present)
			put_zone(s->out, &n->zone[t]);
}

int show_arena_status(struct show *s)
{
	put_service(s);
	put_memory(s);
	put(s, "nodes", phys_nr_nodes(s->phys));
	put_clients_sum(s);
	put_events(s);
	for (unsigned nid = 0; nid < phys_nr_nodes(s->phys); nid++)
		put_node(s, nid);
	return 0;
}

/* ---- clients and segments ---------------------------------------------------------------- */

int show_arena_clients(struct show *s)
{
	fputs("pid uid mm domain vm_kb anon_kb shmem_kb direct_kb leaves vmas limbo_kb faults "
	      "refills ahead_hits flushes evictions restarts reconnects comm\n",
	      s->out);
	for (struct mm *mm = mm_next(s->virt, NULL); mm; mm = mm_next(s->virt, mm)) {
		struct mm_stats st;

		mm_get_stats(mm, &st);
		fprintf(s->out, "%d %u %" PRIu32 " %" PRIu32, (int)mm_pid(mm), mm_uid(mm),
			mm_id(mm), domain_id(mm_domain(mm)));
		fprintf(s->out, " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64,
			pages_to_kb(st.total_vm), pages_to_kb(st.rss_anon),
			pages_to_kb(st.rss_shmem), pages_to_kb(st.direct_pages), st.leaves);
		fprintf(s->out, " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64,
			st.nr_vmas, pages_to_kb(st.limbo), st.faults, st.refills, st.ahead_hits);
		fprintf(s->out, " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " ", st.flushes,
			st.evictions, st.restarts, st.reconnects);
		put_name(s->out, mm_comm(mm), true);
		fputc('\n', s->out);
	}
	return 0;
}

int show_arena_segments(struct show *s)
{
	struct segment_info info;

	fputs("id uid gid mode domain size_kb rss_kb address handles vmas unlinked name\n", s->out);
	for (uint32_t id = 0; segment_next(s->virt, id, &info); id = info.id) {
		fprintf(s->out, "%" PRIu32 " %" PRIu32 " %" PRIu32 " %04" PRIo32 " %" PRIu32,
			info.id, info.uid, info.gid, info.mode, info.domain);
		fprintf(s->out, " %" PRIu64 " %" PRIu64 " 0x%" PRIx64 " %u %u %d ",
			(info.size + 1023) >> 10, pages_to_kb(info.pages), info.address,
			info.nr_handles, info.nr_vmas, info.unlinked);
		put_name(s->out, info.name, true);
		fputc('\n', s->out);
	}
	return 0;
}
