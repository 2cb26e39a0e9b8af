/* SPDX-License-Identifier: MIT */
/*
 * lib_daemon.h - a whole daemon for a test: started on a socket of its own, watched by its log,
 * looked at through a control connection, stopped by SIGTERM.
 *
 * One daemon serves one cmocka group. The control connection belongs to the test's process, uses
 * files of the tree only, and is written by hand (lib_wire.h), so that libarena is used in
 * children alone (lib_client.h): each of them finds it fresh. After each test all frames must have come back:
 *
 *     daemon_setup()  before each test: remembers MemFree
 *     daemon_check()  after each: MemFree is what it was, and the daemon's own check says ok
 */
#ifndef TESTS_LIB_DAEMON_H
#define TESTS_LIB_DAEMON_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <sys/types.h>

#include <cmocka.h>

#include "arena/arena.h"
#include "tests/lib_wire.h"
#include "tests/sanitized.h"

#define DAEMON_MAX_ARGS 32
#define CHECK_PATH "sys/kernel/mm/arena/check"
#define STATUS_PATH "sys/kernel/mm/arena/status"
#define CLIENTS_PATH "sys/kernel/mm/arena/clients"
#define SEGMENTS_PATH "sys/kernel/mm/arena/segments"

struct test_daemon {
	char dir[64]; /* below $TMPDIR, searchable by every uid */
	char socket[96];
	pid_t pid;    /* the supervisor, or the worker alone; 0: not running */
	pid_t killer; /* the process that kills workers; 0: none */
	int log_fd;   /* the daemon's stderr */
	char *log;    /* all of it that was read, NUL-terminated */
	size_t log_len, log_size;
	bool expect_warnings; /* level 4 lines are no reason to fail daemon_stop() */
	bool expect_errors;   /* level 3 lines are not, either */
	bool expect_deaths; /* of workers: the supervisor's line about one that was killed is not */
	struct wire_client control;
	uint64_t free_before; /* MemFree, kB */
};

/* The test's name for programs: $ARENA_BUILD/bin/NAME. */
const char *test_program(const char *name);
/* Sanitizers make everything slower and larger: n, or a fraction of it that is at least 1. */
unsigned test_scaled(unsigned n);
/* How much longer than a plain build's a promised time may take here. */
unsigned test_slowness(void);
uint64_t test_now(void); /* ns */

/*
 * Start arenad with `args` (NULL-terminated, may be NULL) behind --socket and the defaults
 * (arena of 512 MiB, 2 nodes), and wait for the log line that says it is ready. With
 * ARENA_TEST_KILL=MS in the environment, workers are killed at random moments from then on, about
 * every MS milliseconds, until daemon_stop(); ARENA_TEST_SEED repeats the moments.
 */
void daemon_start(struct test_daemon *d, const char *const *args);
/* The same without waiting: for daemons that are to fail. */
void daemon_spawn(struct test_daemon *d, const char *const *args);
/* SIGTERM; exit status 0 and nothing alarming in the log, or the test fails. */
void daemon_stop(struct test_daemon *d);
/* End it whatever it does, and forget all. */
void daemon_destroy(struct test_daemon *d);
/* Wait for its end: waitpid(2)'s status. */
int daemon_wait(struct test_daemon *d);

/* ---- the worker (lib_worker.c) --------------------------------------------------------------- */

/* The worker of a supervised daemon; waits for it where there is none at the moment. */
pid_t daemon_worker_pid(struct test_daemon *d);
/* kill -9 it and wait until the next one is ready: its process id. */
pid_t daemon_kill_worker(struct test_daemon *d);
/* What ARENA_TEST_KILL does, if it is set; and its end. */
void daemon_start_killer(struct test_daemon *d);
void daemon_stop_killer(struct test_daemon *d);
/* The end of both processes, whatever they do. */
void daemon_kill_all(struct test_daemon *d);

/* ---- the log --------------------------------------------------------------------------------- */

#define READY_LINE ">ready at"

/* Read what is there of the log. */
void daemon_read_log(struct test_daemon *d);
/* Wait until the log holds `text` at or behind `from`; false after 10 s or at its end. */
bool daemon_log_wait(struct test_daemon *d, size_t from, const char *text);
/* Lines at or behind `from` that hold the text. */
unsigned daemon_log_count(struct test_daemon *d, size_t from, const char *text);

/* ---- files of the tree --------------------------------------------------------------------- */

/* All of a file; free() it. The test fails if it cannot be read. */
char *daemon_read(struct test_daemon *d, const char *path);
/* The number behind `key` at the start of a line ("MemFree:", "arena_rpc"). */
uint64_t text_number(const char *text, const char *key);
uint64_t daemon_number(struct test_daemon *d, const char *path, const char *key);
uint64_t daemon_free_kb(struct test_daemon *d);
void daemon_write(struct test_daemon *d, const char *path, const char *value);
/*
 * A table with one line of headings: the field below `column` in the line whose field below `key`
 * is `value`. False if there is none.
 */
bool table_lookup(const char *table, const char *key, const char *value, const char *column,
		  char *out, size_t size);
/* A number of the client `pid` in the table of clients; the test fails if it is not there. */
uint64_t client_number(struct test_daemon *d, pid_t pid, const char *column);

/* Wait until f(d, arg) is true; false after `ms`. Others must act, so it looks again and again. */
bool daemon_await(struct test_daemon *d, unsigned ms, bool (*f)(struct test_daemon *d, void *arg),
		  void *arg);
/* Wait until MemFree is at least `kb`: the time that took in ns, or UINT64_MAX after `ms`. */
uint64_t daemon_await_free(struct test_daemon *d, uint64_t kb, unsigned ms);

/* ---- cmocka fixtures; *state is a struct test_daemon --------------------------------------- */

int daemon_group_setup(void **state); /* starts with the defaults */
int daemon_group_teardown(void **state);
int daemon_setup(void **state);
int daemon_check(void **state);
/* What daemon_check() does, at any time. */
void expect_all_frames_back(struct test_daemon *d);

#define daemon_test(f) cmocka_unit_test_setup_teardown(f, daemon_setup, daemon_check)

#endif
