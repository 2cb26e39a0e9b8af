/* SPDX-License-Identifier: MIT */
/*
 * lib_hostile.h - what the tests of bad input share: one connection written by hand, and fixtures
 * that look, after each test, whether others are still served and all frames came back.
 */
#ifndef TESTS_LIB_HOSTILE_H
#define TESTS_LIB_HOSTILE_H

#include "tests/lib_client.h"

extern struct wire_client peer; /* closed after each test */
extern struct wire body;        /* a call's, being written */
extern struct wire_reply reply; /* the last one */

int hostile_setup(void **state);
int hostile_check(void **state);
#define hostile_test(f) cmocka_unit_test_setup_teardown(f, hostile_setup, hostile_check)

/* `peer` anew, with an address space. */
void open_attached(struct test_daemon *d);
/* The same, with mappings at the window's base, a segment "hostile" and pages to be hit. */
void furnish(struct test_daemon *d);
void unfurnish(void);
/* The log has at most ten lines a second about such clients; this counts all of them. */
uint64_t refusals(struct test_daemon *d);

#endif
