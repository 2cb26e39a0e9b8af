/* SPDX-License-Identifier: MIT */
/*
 * What fails at the wrong moment: the heap at each of its allocations, a handler, a reply. Whatever
 * it is, it is that client's loss alone, and everything comes back.
 */
#include "tests/service_peer.h"

#include <fcntl.h>

#include "base/faultpoint.h"

#define MOST_ALLOCATIONS 2000

static int attr_read(void *ctx, const struct credentials *cred, const char *path, char **out,
		     size_t *len)
{
	(void)ctx, (void)cred;
	*len = strlen(path);
	*out = strdup(path);
	return *out ? 0 : -ENOMEM;
}

static int setup(void **state)
{
	static const struct service_attr_ops attr = {.read = attr_read};

	(void)state;
	return start_service(&attr);
}

static int teardown(void **state)
{
	(void)state;
	return stop_service();
}

/* Everything a client does, going on after failures. True: nothing failed. */
static bool whole_life(void)
{
	struct credentials cred = {
		.pid = bystander, .uid = 7, .nr_groups = 2, .groups = (gid_t[]){1, 2}};
	struct client *c = calloc(1, sizeof(*c));
	int pair[2], r = 0;
	uint64_t at = 0;
	uint32_t handle;

	assert_non_null(c);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	c->fd = pair[0];
	if (service_add_peer(service, pair[1], &cred, &c->peer)) {
		client_end(c);
		return false;
	}
	client_hello(c);
	r |= CALL(c, attr_read, ATTR_READ, msg_.path = (char *)"file", msg_.size = 100);
	r |= CALL(c, attach, ATTACH, msg_.window_base = ARENA_WINDOW_BASE,
		  msg_.window_size = UINT64_C(64) << 30);
	if (!r)
		r |= CALL(c, mmap, MMAP, msg_.length = 4 * MIB, msg_.prot = PROT_READ | PROT_WRITE,
			  msg_.flags = MAP_PRIVATE | MAP_ANONYMOUS);
	if (!r) {
		at = c->reply->address->address;
		r |= CALL(c, fault, FAULT, msg_.address = at, msg_.access = PROT_WRITE);
		r |= CALL(c, mprotect, MPROTECT, msg_.address = at + MIB, msg_.length = 4096);
		r |= CALL(c, alloc_pages, ALLOC_PAGES, msg_.order = 2);
		r |= CALL(c, munmap, MUNMAP, msg_.address = at, msg_.length = 2 * MIB);
	}
	if (!r)
		r |= CALL(c, shm_open, SHM_OPEN, msg_.name = (char *)"f",
			  msg_.oflag = O_CREAT | O_RDWR, msg_.mode = 0600);
	if (!r) {
		handle = c->reply->shm_open->segment;
		r |= CALL(c, shm_truncate, SHM_TRUNCATE, msg_.segment = handle,
			  msg_.size = 2 * MIB);
		r |= CALL(c, mmap, MMAP, msg_.length = 2 * MIB, msg_.prot = PROT_READ | PROT_WRITE,
			  msg_.flags = MAP_SHARED, msg_.segment = handle);
	}
	client_end(c);
	return !r;
}

static void test_heap_fails(void **state)
{
	const struct credentials root = {.uid = 0};
	char spec[32];
	bool whole = false;
	unsigned n;

	(void)state;
	for (n = 1; !whole && n < MOST_ALLOCATIONS; n++) {
		snprintf(spec, sizeof(spec), "mem=fail@%u", n);
		assert_int_equal(faultpoint_arm(spec), 0);
		whole = whole_life() && faultpoint_passages("mem") < n;
		assert_int_equal(faultpoint_arm(NULL), 0);
		segment_unlink(machine.virt, &root, "f");
		assert_int_equal(service_nr_peers(service), 0);
		assert_machine_whole();
	}
	assert_true(whole);
	assert_true(n > 10);
}

static void test_dispatch_fails(void **state)
{
	struct client *c = client_connect();

	(void)state;
	client_attach(c);
	assert_int_equal(faultpoint_arm("service.dispatch=fail@2"), 0);
	assert_int_equal(CALL(c, null, NULL), 0);
	assert_int_equal(CALL(c, null, NULL), ENOMEM);
	assert_int_equal(CALL(c, null, NULL), 0);
	assert_int_equal(faultpoint_arm(NULL), 0);
	client_end(c);
	assert_machine_whole();
}

/* A reply that cannot be stored ends the connection: nobody waits for it for ever. */
static void test_reply_fails(void **state)
{
	struct client *c = client_connect();

	(void)state;
	client_attach(c);
	assert_int_equal(faultpoint_arm("service.reply=fail@1"), 0);
	assert_int_equal(CALL(c, alloc_pages, ALLOC_PAGES, msg_.order = 4), -1);
	assert_int_equal(faultpoint_arm(NULL), 0);
	assert_int_equal(service_nr_peers(service), 0);
	client_end(c);
	assert_machine_whole();
}

/* A process that hangs up and lives on with frames mapped keeps them until it dies. */
static void test_orphan(void **state)
{
	struct credentials cred = {.uid = 1000};
	struct client *c = calloc(1, sizeof(*c));
	uint64_t used;
	char *frames;
	int pair[2], ready[2];
	char byte;

	(void)state;
	assert_non_null(c);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ready), 0);
	cred.pid = fork();
	if (cred.pid == 0) {
		unsigned nr;
		int fd;

		/* The test hands it the arena file over `ready`; it maps that, and says so. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (frame_recv(ready[1], &byte, 1, &fd, 1, &nr, 0) != 1 || nr != 1)
			_exit(1);
		frames = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
		if (frames == MAP_FAILED || write(ready[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	assert_true(cred.pid > 0);
	c->fd = pair[0];
	assert_int_equal(service_add_peer(service, pair[1], &cred, &c->peer), 0);
	client_attach(c);
	assert_int_equal(frame_send(ready[0], "x", 1, &c->fds[3], 1), 0);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(CALL(c, alloc_pages, ALLOC_PAGES, msg_.order = 4), 0);
	used = phys_free_pages(machine.phys);
	client_end(c);
	assert_int_equal(service_nr_peers(service), 1);
	assert_int_equal(phys_free_pages(machine.phys), used);
	kill(cred.pid, SIGKILL);
	assert_int_equal(waitpid(cred.pid, NULL, 0), cred.pid);
	serve_all();
	assert_int_equal(service_nr_peers(service), 0);
	close(ready[0]);
	close(ready[1]);
	assert_machine_whole();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_heap_fails),
		cmocka_unit_test(test_dispatch_fails),
		cmocka_unit_test(test_reply_fails),
		cmocka_unit_test(test_orphan),
	};

	/* Reports of allocations that fail are what this test is about. */
	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, setup, teardown);
}
