/* SPDX-License-Identifier: MIT */
/*
 * arena_bench.c - options, sizes, the order of the measurements. See docs/bench.md.
 */
#include <argp.h>
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/bench.h"

struct options {
	const char *build, *json, *only;
	unsigned runs;
	bool quick;
};

static const struct {
	const char *name;
	void (*run)(const struct bench *b);
} sections[] = {
	{"touch", bench_touch},       {"grain", bench_grain}, {"null", bench_null},
	{"pages", bench_pages},       {"idle", bench_idle},   {"noise", bench_noise},
	{"recovery", bench_recovery}, {"uffd", bench_uffd},   {"cow", bench_cow},
	{"map", bench_map},           {"redis", bench_redis},
};

void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("arena_bench: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(1);
}

void say(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case 'b':
		o->build = arg;
		return 0;
	case 'j':
		o->json = arg;
		return 0;
	case 'o':
		o->only = arg;
		return 0;
	case 'q':
		o->quick = true;
		return 0;
	case 't':
		if (strcmp(arg, "signal") && strcmp(arg, "userfaultfd"))
			argp_error(state, "--trap takes signal or userfaultfd");
		bench_trap = strcmp(arg, "signal") ? ARENA_TRAP_USERFAULTFD : ARENA_TRAP_SIGNAL;
		return 0;
	case 'r':
		o->runs = (unsigned)strtoul(arg, NULL, 10);
		if (!o->runs || o->runs > BENCH_MAX_RUNS)
			argp_error(state, "--runs takes 1 to %d", BENCH_MAX_RUNS);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp_option argp_options[] = {
	{"build", 'b', "DIR", 0, "The build's directory (build)", 0},
	{"json", 'j', "FILE", 0, "Write the results here, too", 0},
	{"only", 'o', "LIST", 0,
	 "Of touch,grain,null,pages,idle,noise,recovery,uffd,cow,map,redis only these", 0},
	{"quick", 'q', NULL, 0, "Everything once and small: does it run?", 0},
	{"runs", 'r', "N", 0, "Runs of each measurement (5)", 0},
	{"trap", 't', "NAME", 0, "Measure with this trap: userfaultfd, or signal, the default", 0},
	{0},
};

/* Three arenas' worth must fit: the big one, a fresh one beside it, and the kernel's own peers. */
static void choose_sizes(struct bench *b)
{
	uint64_t available = machine_memory("MemAvailable");

	b->touch_bytes = b->quick ? BENCH_GIB / 16 : BENCH_GIB;
	while (b->touch_bytes > BENCH_GIB / 16 && b->touch_bytes * 7 > available)
		b->touch_bytes /= 2;
	if (!b->quick && b->touch_bytes < BENCH_GIB)
		say("little memory: first touch of %llu MiB instead of 1 GiB, given per GiB",
		    (unsigned long long)(b->touch_bytes >> 20));
	b->arena_bytes = 3 * b->touch_bytes;
	b->grain_pages = b->quick ? 1024 : 16384;
	b->cold_calls = b->quick ? 50 : 500;
	b->hot_calls = b->quick ? 2000 : 50000;
	b->alloc_msecs = b->quick ? 50 : 500;
	b->idle_msecs = b->quick ? 1000 : 10000;
	b->noise_pages = b->quick ? 512 : 8192;
}

static void find_cpus(struct bench *b)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		die("sched_getaffinity: %s", strerror(errno));
	b->cpu[0] = b->cpu[1] = -1;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &set))
			continue;
		if (b->nr_cpus < 2)
			b->cpu[b->nr_cpus] = cpu;
		b->nr_cpus++;
	}
}

static bool wanted(const char *only, const char *name)
{
	size_t len = strlen(name);

	if (!only)
		return true;
	for (const char *p = only; (p = strstr(p, name)); p += len)
		if ((p == only || p[-1] == ',') && (p[len] == ',' || !p[len]))
			return true;
	return false;
}

static void write_json(const struct bench *b, const char *path)
{
	FILE *f = fopen(path, "w");

	if (!f)
		die("%s: %s", path, strerror(errno));
	report_json(b, f);
	if (fclose(f))
		die("%s: %s", path, strerror(errno));
	say("results in %s", path);
}

int main(int argc, char **argv)
{
	static const struct argp argp = {
		.options = argp_options,
		.parser = parse_option,
		.doc = "Measures arenad against the kernel and against bare loops.",
	};
	struct options o = {.build = "build"};
	struct bench b = {0};

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	b.build = o.build;
	b.quick = o.quick;
	b.runs = o.runs ? o.runs : o.quick ? 2 : 5;
	choose_sizes(&b);
	find_cpus(&b);
	for (size_t i = 0; i < ARRAY_SIZE(sections); i++)
		if (wanted(o.only, sections[i].name))
			sections[i].run(&b);
	report_table(&b, stdout);
	if (o.json)
		write_json(&b, o.json);
	return 0;
}
