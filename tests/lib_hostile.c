/* SPDX-License-Identifier: MIT */
/* lib_hostile.c - see lib_hostile.h. */
#include "tests/lib_hostile.h"

#include <fcntl.h>

struct wire_client peer;
struct wire body;
struct wire_reply reply;

int hostile_setup(void **state)
{
	struct test_daemon *d = *state;

	d->expect_warnings = true;
	peer = (struct wire_client){.fd = -1};
	return daemon_setup(state);
}

int hostile_check(void **state)
{
	wire_close(&peer);
	/* Others are served. */
	assert_true(wire_open(&peer, ((struct test_daemon *)*state)->socket));
	assert_int_equal(wire_call(&peer, WIRE_NULL, NULL, &reply), 0);
	wire_close(&peer);
	return daemon_check(state);
}

void open_attached(struct test_daemon *d)
{
	wire_close(&peer);
	assert_true(wire_open(&peer, d->socket));
	assert_true(wire_attach(&peer));
}

uint64_t refusals(struct test_daemon *d)
{
	return daemon_number(d, STATUS_PATH, "clients_refused");
}

void furnish(struct test_daemon *d)
{
	open_attached(d);
	body.len = 0;
	wire_number(&body, 1, ARENA_WINDOW_BASE);
	wire_number(&body, 2, 8 * LEAF);
	wire_number(&body, 3, RW);
	wire_number(&body, 4, ANON | MAP_FIXED);
	assert_int_equal(wire_call(&peer, WIRE_MMAP, &body, &reply), 0);
	body.len = 0;
	wire_number(&body, 1, ARENA_WINDOW_BASE);
	wire_number(&body, 2, 8 * LEAF);
	wire_number(&body, 3, 1);
	assert_int_equal(wire_call(&peer, WIRE_POPULATE, &body, &reply), 0);
	body.len = 0;
	wire_text(&body, 1, "hostile");
	wire_number(&body, 2, O_RDWR | O_CREAT);
	wire_number(&body, 3, 0600);
	assert_int_equal(wire_call(&peer, WIRE_SHM_OPEN, &body, &reply), 0);
	body.len = 0;
	wire_number(&body, 2, 3);
	assert_int_equal(wire_call(&peer, WIRE_ALLOC_PAGES, &body, &reply), 0);
}

void unfurnish(void)
{
	body.len = 0;
	wire_text(&body, 1, "hostile");
	assert_int_equal(wire_call(&peer, WIRE_SHM_UNLINK, &body, &reply), 0);
}
