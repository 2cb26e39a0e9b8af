/* SPDX-License-Identifier: MIT */
/*
 * report.c - series of values and goals, as a table and as JSON.
 *
 * Names and texts are string constants of the measurements: nothing in them needs escaping.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/bench.h"

#define MAX_SERIES 160
#define MAX_GOALS 32

struct series {
	const char *section, *name, *unit, *text;
	double value[BENCH_MAX_RUNS];
	unsigned nr;
};

struct goal {
	const char *section, *text;
	double ratio, limit;
	bool at_least;
};

static struct series all[MAX_SERIES];
static unsigned nr_series;
static struct goal goals[MAX_GOALS];
static unsigned nr_goals;

struct series *series_get(const char *section, const char *name, const char *unit, const char *text)
{
	for (unsigned i = 0; i < nr_series; i++)
		if (!strcmp(all[i].section, section) && !strcmp(all[i].name, name))
			return &all[i];
	if (nr_series == MAX_SERIES)
		die("more than %d series", MAX_SERIES);
	all[nr_series] =
		(struct series){.section = section, .name = name, .unit = unit, .text = text};
	return &all[nr_series++];
}

void series_add(struct series *s, double value)
{
	if (!isfinite(value) || value < 0)
		die("%s/%s: %f is not a measurement", s->section, s->name, value);
	if (s->nr == BENCH_MAX_RUNS)
		die("%s/%s: more than %d runs", s->section, s->name, BENCH_MAX_RUNS);
	s->value[s->nr++] = value;
}

/* min, median and max of the runs */
static void series_sum(const struct series *s, double out[3])
{
	double v[BENCH_MAX_RUNS];

	if (!s->nr)
		die("%s/%s was not measured", s->section, s->name);
	memcpy(v, s->value, sizeof(v));
	out[1] = quantile(v, s->nr, 0.5);
	out[0] = v[0];
	out[2] = v[s->nr - 1];
}

double series_median(const struct series *s)
{
	double sum[3];

	series_sum(s, sum);
	return sum[1];
}

static void add_goal(const char *section, const char *text, double ratio, double limit,
		     bool at_least)
{
	if (!isfinite(ratio))
		die("%s: no ratio for \"%s\"", section, text);
	if (nr_goals == MAX_GOALS)
		die("more than %d goals", MAX_GOALS);
	goals[nr_goals++] = (struct goal){section, text, ratio, limit, at_least};
}

void goal_at_least(const char *section, const char *text, double ratio, double limit)
{
	add_goal(section, text, ratio, limit, true);
}

void goal_at_most(const char *section, const char *text, double ratio, double limit)
{
	add_goal(section, text, ratio, limit, false);
}

static bool goal_met(const struct goal *g)
{
	return g->at_least ? g->ratio >= g->limit : g->ratio <= g->limit;
}

void report_table(const struct bench *b, FILE *out)
{
	const char *section = "";

	machine_describe(out, false);
	fprintf(out, "\n%-56s %12s %12s %12s  %s\n", b->quick ? "QUICK: NOT FIGURES" : "", "median",
		"min", "max", "unit");
	for (unsigned i = 0; i < nr_series; i++) {
		const struct series *s = &all[i];
		double sum[3];

		if (strcmp(section, s->section))
			fprintf(out, "%s\n", s->section);
		section = s->section;
		series_sum(s, sum);
		fprintf(out, "  %-54s %12.2f %12.2f %12.2f  %s\n", s->text, sum[1], sum[0], sum[2],
			s->unit);
	}
	fprintf(out, "\n%-64s %8s  %-9s\n", "goals", "ratio", "wanted");
	for (unsigned i = 0; i < nr_goals; i++) {
		const struct goal *g = &goals[i];

		fprintf(out, "  %-62s %8.2f  %s %-6.2f %s\n", g->text, g->ratio,
			g->at_least ? ">=" : "<=", g->limit, goal_met(g) ? "met" : "MISSED");
	}
}

void report_json(const struct bench *b, FILE *out)
{
	time_t now = time(NULL);
	char when[32];

	strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
	fprintf(out, "{\n\"mode\": \"%s\",\n\"time\": \"%s\",\n\"version\": \"%s\",\n",
		b->quick ? "quick" : "full", when, arena_version());
	fprintf(out, "\"touch_bytes\": %llu,\n\"grain_pages\": %u,\n",
		(unsigned long long)b->touch_bytes, b->grain_pages);
	fputs("\"machine\": ", out);
	machine_describe(out, true);
	fputs(",\n\"series\": [", out);
	for (unsigned i = 0; i < nr_series; i++) {
		const struct series *s = &all[i];
		double sum[3];

		series_sum(s, sum);
		fprintf(out,
			"%s\n{\"section\": \"%s\", \"name\": \"%s\", \"unit\": \"%s\", "
			"\"median\": %.6g, \"min\": %.6g, \"max\": %.6g, \"runs\": [",
			i ? "," : "", s->section, s->name, s->unit, sum[1], sum[0], sum[2]);
		for (unsigned j = 0; j < s->nr; j++)
			fprintf(out, "%s%.6g", j ? ", " : "", s->value[j]);
		fputs("]}", out);
	}
	fputs("\n],\n\"goals\": [", out);
	for (unsigned i = 0; i < nr_goals; i++) {
		const struct goal *g = &goals[i];

		fprintf(out,
			"%s\n{\"section\": \"%s\", \"text\": \"%s\", \"ratio\": %.6g, "
			"\"sense\": \"%s\", \"limit\": %g, \"met\": %s}",
			i ? "," : "", g->section, g->text, g->ratio,
			g->at_least ? ">=" : "<=", g->limit, goal_met(g) ? "true" : "false");
	}
	fputs("\n]\n}\n", out);
}
