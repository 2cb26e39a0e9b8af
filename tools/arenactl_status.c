/* SPDX-License-Identifier: MIT */
/*
 * arenactl_status.c - the status file, "key value" lines, for people or as JSON.
 *
 * Keys "node.N.KEY" and "zone.N.NAME.KEY" follow the others, node by node. JSON carries every key
 * the daemon has, also those that this program knows nothing of:
 *     {"version":"0.1.0",...,"node":[{"id":0,"total_bytes":...,"zone":[{"name":"DMA",...},...]}]}
 */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "tools/arenactl.h"

#define STATUS_PATH "sys/kernel/mm/arena/status"
#define MAX_LINES 1024

struct line {
	char *key, *value;
	/* of a dotted key: node.N.leaf, zone.N.zone.leaf; NULL else */
	char *node, *zone, *leaf;
};

struct status {
	char *text;
	size_t nr;
	struct line line[MAX_LINES];
};

/* Dotted keys keep only their last part in `leaf`; `text` is cut up in place. */
static void parse_key(struct line *l)
{
	char *s = l->key;
	bool is_zone = strncmp(s, "zone.", 5) == 0;

	if (!is_zone && strncmp(s, "node.", 5) != 0)
		return;
	strsep(&s, ".");
	l->node = strsep(&s, ".");
	if (is_zone)
		l->zone = strsep(&s, ".");
	l->leaf = s ? s : l->key;
}

static int read_status(struct ctl *c, struct status *st)
{
	size_t len;
	char *s, *line;

	st->text = ctl_read(c, STATUS_PATH, &len);
	if (!st->text)
		return CTL_FAILED;
	s = st->text;
	while ((line = strsep(&s, "\n")) && st->nr < MAX_LINES) {
		struct line *l = &st->line[st->nr];

		l->value = line;
		l->key = strsep(&l->value, " ");
		if (!l->value)
			continue;
		parse_key(l);
		st->nr++;
	}
	return CTL_DONE;
}

/* ---- JSON -------------------------------------------------------------------------------- */

/* A byte above 0x7e may be half of a character: as JSON it is that code point. */
static void json_string(const char *s)
{
	putchar('"');
	for (; *s; s++) {
		unsigned char ch = (unsigned char)*s;

		if (ch == '"' || ch == '\\')
			printf("\\%c", ch);
		else if (ch < ' ' || ch > 0x7e)
			printf("\\u%04x", ch);
		else
			putchar(ch);
	}
	putchar('"');
}

/* What JSON takes as a number as it stands: 0, 12, 0.413. */
static bool is_json_number(const char *s)
{
	size_t whole = strspn(s, "0123456789");

	if (!whole || (s[0] == '0' && whole > 1))
		return false;
	s += whole;
	if (*s == '.') {
		size_t part = strspn(++s, "0123456789");

		if (!part)
			return false;
		s += part;
	}
	return !*s;
}

static void json_member(const char *key, const char *value, const char *separator)
{
	fputs(separator, stdout);
	json_string(key);
	putchar(':');
	if (is_json_number(value))
		fputs(value, stdout);
	else
		json_string(value);
}

/* The lines from *i on that belong to the node or zone of line *i. */
static void json_zone(const struct status *st, size_t *i)
{
	const struct line *first = &st->line[*i];

	fputs("{\"name\":", stdout);
	json_string(first->zone);
	for (; *i < st->nr; ++*i) {
		const struct line *l = &st->line[*i];

		if (!l->zone || strcmp(l->zone, first->zone) != 0 ||
		    strcmp(l->node, first->node) != 0)
			break;
		json_member(l->leaf, l->value, ",");
	}
	putchar('}');
}

static void json_node(const struct status *st, size_t *i)
{
	const struct line *first = &st->line[*i];
	const char *separator = "";

	fputc('{', stdout);
	json_member("id", first->node, "");
	for (; *i < st->nr && st->line[*i].node && !st->line[*i].zone; ++*i) {
		if (strcmp(st->line[*i].node, first->node) != 0)
			break;
		json_member(st->line[*i].leaf, st->line[*i].value, ",");
	}
	fputs(",\"zone\":[", stdout);
	while (*i < st->nr && st->line[*i].zone && strcmp(st->line[*i].node, first->node) == 0) {
		fputs(separator, stdout);
		json_zone(st, i);
		separator = ",";
	}
	fputs("]}", stdout);
}

static void print_json(const struct status *st)
{
	const char *separator = "{";
	size_t i = 0;

	for (; i < st->nr && !st->line[i].node; i++) {
		json_member(st->line[i].key, st->line[i].value, separator);
		separator = ",";
	}
	printf("%s\"node\":[", separator);
	for (separator = ""; i < st->nr && st->line[i].node; separator = ",") {
		fputs(separator, stdout);
		json_node(st, &i);
	}
	fputs("]}\n", stdout);
}

/* ---- for people -------------------------------------------------------------------------- */

static const char *find(const struct status *st, const char *key)
{
	for (size_t i = 0; i < st->nr; i++)
		if (!st->line[i].node && strcmp(st->line[i].key, key) == 0)
			return st->line[i].value;
	return "?";
}

static const char *size_text(const char *value, char *buf, size_t size)
{
	uint64_t bytes;

	return parse_u64(value, &bytes) ? value : format_size(buf, size, bytes);
}

enum unit { UNIT_BYTES, UNIT_COUNT, UNIT_NS };

static const struct {
	const char *label, *key;
	enum unit unit;
	const char *note;
} rows[] = {
	{"arena", "arena_bytes", UNIT_BYTES, ""},
	{"free", "free_bytes", UNIT_BYTES, ""},
	{"anonymous", "anon_bytes", UNIT_BYTES, ""},
	{"segments' pages", "shmem_bytes", UNIT_BYTES, ""},
	{"limbo", "limbo_bytes", UNIT_BYTES, "waits for clients' flushes"},
	{"zeroed pool", "zeroed_ready_bytes", UNIT_BYTES, "ready for faults"},
	{"host memory", "backed_bytes", UNIT_BYTES, "behind the arena"},
	{"metadata", "metadata_bytes", UNIT_BYTES, ""},
	{NULL, NULL, UNIT_COUNT, ""},
	{"clients", "clients", UNIT_COUNT, ""},
	{"segments", "segments", UNIT_COUNT, ""},
	{"calls", "rpc", UNIT_COUNT, ""},
	{"faults", "faults", UNIT_COUNT, "asked the daemon"},
	{"refills", "refills", UNIT_COUNT, "served by the client's own page table"},
	{"filled ahead", "fill_ahead_bytes", UNIT_BYTES, "installed before it was touched"},
	{"fill-ahead hits", "fill_ahead_hits", UNIT_COUNT,
	 "leaves or pages of it that were then touched"},
	{"flushes posted", "flushes_posted", UNIT_COUNT, ""},
	{"flushes acked", "flushes_acked", UNIT_COUNT, ""},
	{"kzerod", "kzerod_cpu_ns", UNIT_NS, "of CPU time, zeroing ahead"},
};

static void print_row(const struct status *st, size_t i)
{
	const char *value;
	char buf[32];
	uint64_t n;

	if (!rows[i].label) {
		putchar('\n');
		return;
	}
	value = find(st, rows[i].key);
	if (rows[i].unit == UNIT_BYTES) {
		value = size_text(value, buf, sizeof(buf));
	} else if (rows[i].unit == UNIT_NS && !parse_u64(value, &n)) {
		snprintf(buf, sizeof(buf), "%.3f s", (double)n / 1e9);
		value = buf;
	}
	printf("%-18s %12s", rows[i].label, value);
	if (strcmp(rows[i].key, "metadata_bytes") == 0)
		printf("  %s %% of the arena", find(st, "metadata_percent"));
	else if (*rows[i].note)
		printf("  %s", rows[i].note);
	putchar('\n');
}

/* The value of `leaf` among the lines that follow line `i` and belong with it. */
static const char *find_leaf(const struct status *st, size_t i, const char *leaf)
{
	const struct line *first = &st->line[i];

	for (; i < st->nr; i++) {
		const struct line *l = &st->line[i];

		if (strcmp(l->node, first->node) != 0 || !l->zone != !first->zone ||
		    (l->zone && strcmp(l->zone, first->zone) != 0))
			break;
		if (strcmp(l->leaf, leaf) == 0)
			return l->value;
	}
	return "";
}

/* One line for each group of lines about one node or one zone. */
static void print_nodes(const struct status *st)
{
	static const char *const leaves[] = {"total_bytes", "free_bytes", "min_bytes", "low_bytes",
					     "high_bytes"};
	char buf[32];

	printf("\n%-4s  %-8s  %10s  %10s  %10s  %10s  %10s\n", "node", "zone", "size", "free",
	       "min", "low", "high");
	for (size_t i = 0; i < st->nr; i++) {
		const struct line *l = &st->line[i];

		if (!l->node || strcmp(l->leaf, "total_bytes") != 0)
			continue;
		printf("%4s  %-8s", l->node, l->zone ? l->zone : "all");
		for (size_t k = 0; k < ARRAY_SIZE(leaves); k++) {
			const char *value = find_leaf(st, i, leaves[k]);

			if (*value)
				printf("  %10s", size_text(value, buf, sizeof(buf)));
		}
		putchar('\n');
	}
}

static const char *ordinal(uint64_t n)
{
	static const char *const suffix[] = {"th", "st", "nd", "rd"};

	return n / 10 % 10 == 1 || n % 10 > 3 ? suffix[0] : suffix[n % 10];
}

static void print_table(const struct status *st)
{
	uint64_t up = 0, nth = 0;

	if (parse_u64(find(st, "epoch"), &nth) == 0)
		nth++;
	printf("arenad %s, pid %s", find(st, "version"), find(st, "pid"));
	if (strcmp(find(st, "supervisor_pid"), "0") != 0)
		printf(" (worker %s, the %" PRIu64 "%s)", find(st, "worker_pid"), nth,
		       ordinal(nth));
	if (parse_u64(find(st, "uptime_seconds"), &up) == 0)
		printf(", up %" PRIu64 " h %02" PRIu64 " min %02" PRIu64 " s", up / 3600,
		       up / 60 % 60, up % 60);
	printf(", hugepages %s\n\n", find(st, "hugepages"));
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		print_row(st, i);
	print_nodes(st);
}

int verb_status(struct ctl *c, char **args __unused_)
{
	_cleanup_(freep) struct status *st = calloc(1, sizeof(*st));
	int status;

	if (!st)
		return ctl_fail("no memory");
	status = read_status(c, st);
	if (status == CTL_DONE) {
		if (c->options & CTL_JSON)
			print_json(st);
		else
			print_table(st);
	}
	free(st->text);
	return status;
}
