/* SPDX-License-Identifier: MIT */
/*
 * bench.h - what the parts of arena_bench share.
 *
 * The driver starts daemons of its own on private sockets, runs every measurement in a fresh child
 * process, and notes one value a run in a series. Peers of a series (the kernel, a bare loop) are
 * measured in the same run, one after the other, so that noise of the machine meets all of them.
 * The driver itself never maps arena memory: it only reads and writes attributes.
 *
 * Anything that goes wrong ends the benchmark with one line on stderr: a figure of something that
 * did not happen as it should is worse than none.
 */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "arena/arena.h"
#include "base/util.h"

#define BENCH_PAGE UINT64_C(4096)
#define BENCH_LEAF (UINT64_C(2) << 20)
#define BENCH_GIB (UINT64_C(1) << 30)
#define BENCH_MAX_RUNS 25

struct bench {
	const char *build; /* where bin/arenad is */
	bool quick;
	unsigned runs;
	uint64_t touch_bytes; /* first touch: 1 GiB, less on a small machine */
	uint64_t arena_bytes; /* three times as much */
	unsigned grain_pages; /* below vm.max_map_count with room to spare */
	unsigned cold_calls, hot_calls;
	unsigned alloc_msecs;
	unsigned idle_msecs;
	unsigned noise_pages;
	unsigned nr_cpus; /* that the driver may run on */
	int cpu[2];       /* the first two of them */
};

void die(const char *fmt, ...) __printf_(1, 2) __attribute__((noreturn));
/* What is being measured, to stderr. */
void say(const char *fmt, ...) __printf_(1, 2);

/* ---- report.c ---- */

struct series;

/* Made at the first call. `name` is the key in the JSON, `text` what the table says. */
struct series *series_get(const char *section, const char *name, const char *unit,
			  const char *text);
void series_add(struct series *s, double value);
double series_median(const struct series *s);

/* `ratio` is to be at least (at most) `limit`. */
void goal_at_least(const char *section, const char *text, double ratio, double limit);
void goal_at_most(const char *section, const char *text, double ratio, double limit);

void report_table(const struct bench *b, FILE *out);
void report_json(const struct bench *b, FILE *out);

/* ---- machine.c ---- */

uint64_t machine_memory(const char *meminfo_key); /* bytes */
/* First line of a file without its end, "?" if it cannot be read. */
const char *machine_line(const char *path, char *buf, size_t size);
void machine_describe(FILE *out, bool json);

/* ---- daemon.c ---- */

struct daemon {
	pid_t pid, worker; /* the one to be stopped, and the one that works */
	char dir[64], socket[96];
	arena_t *monitor; /* attributes only: it has no address space */
};

/* With an arena of at least so many bytes. */
void daemon_start(struct daemon *d, const struct bench *b, uint64_t arena_bytes);
void daemon_stop(struct daemon *d);
/* A number of sys/kernel/mm/arena/status. */
uint64_t daemon_status(struct daemon *d, const char *key);
uint64_t status_number(arena_t *a, const char *key);
/* Until `bytes` are zeroed and kzerod has nothing more to do. */
void daemon_wait_zeroed(struct daemon *d, uint64_t bytes);
/* Until `bytes` are free: what dead clients had has come back. */
void daemon_wait_free(struct daemon *d, uint64_t bytes);
/* All its threads to one CPU, -1: anywhere. */
void daemon_pin(const struct daemon *d, int cpu);

struct usage {
	uint64_t cpu_ns;
	uint64_t wakeups; /* voluntary context switches: it slept and was woken */
};

/* Of all threads of a process. */
void process_usage(pid_t pid, struct usage *out);

/* ---- child.c ---- */

#define CHILD_VALUES 8

/* What a child hands back. */
struct child_result {
	double value[CHILD_VALUES];
	char error[160];
	bool done;
};

typedef void child_fn(void *arg, struct child_result *r);

/* In a child: give up. */
void child_fail(struct child_result *r, const char *fmt, ...) __printf_(2, 3)
	__attribute__((noreturn));
/* Run in a fresh process and wait for it; dies if it fails. */
void child_run(child_fn *fn, void *arg, struct child_result *out);

/* Children that run at once. */
struct child {
	pid_t pid;
	struct child_result *r; /* shared with it */
	int ready_fd;           /* readable when it calls child_ready(), or is dead */
	int go_fd;              /* a byte in it: it goes on */
};

/* In the child: say that the preparations are over, and wait for child_go(). */
void child_ready(struct child_result *r);
void child_start(struct child *c, child_fn *fn, void *arg);
void child_wait_ready(struct child *c);
void child_go(struct child *c);
/* The same to one that will say again that it is ready. */
void child_step(struct child *c);
void child_end(struct child *c, struct child_result *out); /* waits for it */
void child_kill(struct child *c);

void pin_self(int cpu); /* -1: anywhere */
/* The trap of arenas that child_open() opens: --trap. */
extern enum arena_trap bench_trap;
/* A connection and nothing else; fails the child. */
arena_t *child_open(struct child_result *r, const char *socket);
arena_t *child_open_trap(struct child_result *r, const char *socket, enum arena_trap trap);
/* Sorts. p in 0..1 */
double quantile(double *v, size_t n, double p);
/* 0 .. n - 1 in random order; from malloc. */
uint32_t *permutation(uint32_t n, uint64_t seed);

/* ---- the measurements ---- */

void bench_touch(const struct bench *b);
void bench_grain(const struct bench *b);
void bench_null(const struct bench *b);
void bench_pages(const struct bench *b);
void bench_idle(const struct bench *b);
void bench_noise(const struct bench *b);
void bench_recovery(const struct bench *b);
void bench_uffd(const struct bench *b);
void bench_cow(const struct bench *b);
void bench_map(const struct bench *b);
void bench_redis(const struct bench *b);

#endif
