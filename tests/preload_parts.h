/* SPDX-License-Identifier: MIT */
/*
 * preload_parts.h - for programs that know nothing of arenad: checks, patterns, and parts by name. A program has
 * a table `parts`.
 */
#ifndef TESTS_PRELOAD_PARTS_H
#define TESTS_PRELOAD_PARTS_H

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define MB (1ul << 20)
#define PAGE 4096ul
#define RW (PROT_READ | PROT_WRITE)

#define CHECK(x)                                                                          \
	((x) ? (void)0                                                                    \
	     : (fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #x, errno), \
		_Exit(1)))

static inline void fill(char *p, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i += 512)
		p[i] = (char)(seed + i / 512 * 7);
}

static inline bool holds(const char *p, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i += 512)
		if (p[i] != (char)(seed + i / 512 * 7))
			return false;
	return true;
}

static inline void ends_well(pid_t pid)
{
	int status;

	CHECK(pid > 0);
	while (waitpid(pid, &status, 0) < 0)
		CHECK(errno == EINTR);
	CHECK(status == 0);
}

static sigjmp_buf on_bus __attribute__((unused));

static inline void bus(int sig)
{
	(void)sig;
	siglongjmp(on_bus, 1);
}

/* A read of *p is a SIGBUS. */
static inline bool is_bus(volatile char *p)
{
	struct sigaction act = {.sa_handler = bus}, old;
	volatile bool got = true;

	CHECK(sigaction(SIGBUS, &act, &old) == 0);
	if (sigsetjmp(on_bus, 1) == 0) {
		(void)*p;
		got = false;
	}
	CHECK(sigaction(SIGBUS, &old, NULL) == 0);
	return got;
}

struct part {
	const char *name;
	void (*run)(void);
};

/* Those that argv[first] and so on name, in the table's order; all where there is none. */
static inline void run_parts(const struct part *parts, size_t nr_parts, int argc, char **argv,
			     int first)
{
	int nr = 0;

	for (size_t i = 0; i < nr_parts; i++) {
		bool wanted = argc <= first;

		for (int k = first; k < argc; k++)
			wanted |= strcmp(argv[k], parts[i].name) == 0;
		if (!wanted)
			continue;
		parts[i].run();
		nr++;
	}
	CHECK(nr > 0);
}

#endif
