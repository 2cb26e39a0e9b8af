/* SPDX-License-Identifier: MIT */
/* The method table has a row for every call of arena.proto; what each call does when it works. */
#include "tests/service_peer.h"

#include <fcntl.h>
#include <sys/stat.h>

static unsigned nr_texts; /* made by attr_read */
static char written[128];

static int attr_read(void *ctx, const struct credentials *cred, const char *path, char **out,
		     size_t *len)
{
	(void)ctx;
	if (strcmp(path, "secret") == 0)
		return cred->uid ? ARENA_E_ACCESS : 0;
	if (strncmp(path, "file", 4) != 0)
		return ARENA_E_NOT_FOUND;
	nr_texts++;
	*len = 100000;
	*out = malloc(*len);
	assert_non_null(*out);
	memset(*out, 'a' + (int)nr_texts % 26, *len);
	return 0;
}

static int attr_write(void *ctx, const struct credentials *cred, const char *path,
		      const char *value, size_t len)
{
	(void)ctx, (void)cred;
	assert_int_equal(strlen(value), len);
	snprintf(written, sizeof(written), "%s=%s", path, value);
	return 0;
}

static int setup(void **state)
{
	static const struct service_attr_ops attr = {.read = attr_read, .write = attr_write};

	(void)state;
	return start_service(&attr);
}

static int teardown(void **state)
{
	(void)state;
	return stop_service();
}

static void test_table_complete(void **state)
{
	const ProtobufCMessageDescriptor *d = &arena__request__descriptor;
	unsigned calls = 0;

	(void)state;
	for (unsigned i = 0; i < d->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &d->fields[i];
		const struct method *m;

		if (f->type != PROTOBUF_C_TYPE_MESSAGE)
			continue;
		calls++;
		m = method_find(f->id);
		assert_non_null(m);
		assert_string_equal(m->name, f->name);
	}
	assert_int_equal(calls, 39);
	assert_null(method_find(ARENA__REQUEST__CALL__NOT_SET));
	assert_null(method_find(1));
	assert_null(method_find(39));
	assert_null(method_find(UINT32_MAX));
}

static void test_session(void **state)
{
	struct client *c = client_connect();
	struct stat st;
	uint64_t opened = machine.state.counters[EV_ARENA_CLIENT_OPEN];

	(void)state;
	client_hello(c);
	assert_int_equal(c->reply->hello->arena_size, 64 * MIB);
	assert_int_equal(c->reply->hello->nr_nodes, 2);
	assert_string_equal(c->reply->hello->daemon, "0.1.0");
	assert_int_equal(machine.state.counters[EV_ARENA_CLIENT_OPEN], opened + 1);
	assert_int_equal(CALL(c, null, NULL), 0);
	assert_int_equal(CALL(c, attach, ATTACH, msg_.window_base = ARENA_WINDOW_BASE,
			      msg_.window_size = UINT64_C(64) << 30),
			 0);
	assert_int_equal(c->reply->attach->token.len, 16);
	assert_memory_equal(c->reply->attach->token.data, mm_token(peer_mm(c->peer)), 16);
	assert_int_equal(c->nr_fds, 4);
	assert_int_equal(fcntl(c->fds[0], F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(fstat(c->fds[0], &st), 0);
	assert_int_equal(st.st_size, ARENA_MM_FILE_SIZE);
	assert_int_equal(fstat(c->fds[1], &st), 0);
	assert_int_equal(st.st_size, ARENA_CHANNEL_SIZE);
	assert_int_equal(fstat(c->fds[3], &st), 0);
	assert_int_equal(st.st_size, 64 * MIB);
	/* A connection has at most one. */
	assert_int_equal(CALL(c, attach, ATTACH, msg_.window_base = ARENA_WINDOW_BASE,
			      msg_.window_size = UINT64_C(64) << 30),
			 EBUSY);
	assert_int_equal(CALL(c, bye, BYE), 0);
	assert_null(peer_mm(c->peer));
	assert_int_equal(CALL(c, null, NULL), EPROTO);
	client_end(c);
	assert_int_equal(service_nr_peers(service), 0);
	assert_machine_whole();
}

static void test_windows(void **state)
{
	static const struct {
		uint64_t base, size;
	} bad[] = {
		{0, UINT64_C(1) << 30},
		{ARENA_WINDOW_BASE, 0},
		{ARENA_WINDOW_BASE, UINT64_C(1) << 29},
		{ARENA_WINDOW_BASE + 4096, UINT64_C(1) << 30},
		{ARENA_WINDOW_BASE, (UINT64_C(1) << 30) + 4096},
		{UINT64_C(0) - (UINT64_C(1) << 30), UINT64_C(2) << 30},
		{(UINT64_C(1) << 47) - (UINT64_C(1) << 30), UINT64_C(2) << 30},
		{ARENA_WINDOW_BASE, UINT64_MAX & ~(ARENA_WINDOW_ALIGN - 1)},
	};
	struct client *c = client_connect();

	(void)state;
	client_hello(c);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(CALL(c, attach, ATTACH, msg_.window_base = bad[i].base,
				      msg_.window_size = bad[i].size),
				 EINVAL);
		assert_null(peer_mm(c->peer));
		assert_int_equal(c->nr_fds, 0);
	}
	client_end(c);
	assert_machine_whole();
}

static uint64_t mapped(struct client *c, uint64_t len)
{
	assert_int_equal(CALL(c, mmap, MMAP, msg_.length = len, msg_.prot = PROT_READ | PROT_WRITE,
			      msg_.flags = MAP_PRIVATE | MAP_ANONYMOUS),
			 0);
	return c->reply->address->address;
}

static void test_memory(void **state)
{
	struct client *c = client_connect();
	struct mm_stats stats;
	uint64_t at;

	(void)state;
	client_attach(c);
	at = mapped(c, 4 * MIB);
	assert_int_equal(CALL(c, fault, FAULT, msg_.address = at, msg_.access = PROT_WRITE,
			      msg_.cpu = UINT32_MAX),
			 0);
	assert_int_equal(c->reply->fault->signo, 0);
	mm_get_stats(peer_mm(c->peer), &stats);
	assert_true(stats.rss_anon > 0);
	assert_int_equal(
		CALL(c, fault, FAULT, msg_.address = at - ARENA_PAGE_SIZE, msg_.access = PROT_READ),
		0);
	assert_int_equal(c->reply->fault->signo, SIGSEGV);
	assert_int_equal(CALL(c, fault, FAULT, msg_.address = at, msg_.access = 0), EINVAL);
	assert_int_equal(CALL(c, fault, FAULT, msg_.address = at, msg_.access = 3), EINVAL);
	for (uint64_t next = at; next < at + 4 * MIB - 100; next = c->reply->populate->next)
		assert_int_equal(
			CALL(c, populate, POPULATE, msg_.address = next,
			     msg_.length = at + 4 * MIB - 100 - ALIGN_DOWN(next, ARENA_PAGE_SIZE),
			     msg_.write = 1),
			0);
	assert_int_equal(c->reply->populate->next, at + 4 * MIB - 100);
	assert_int_equal(CALL(c, mprotect, MPROTECT, msg_.address = at, msg_.length = 100,
			      msg_.prot = PROT_READ),
			 0);
	/* What was taken away is named, so that the caller flushes it itself. */
	assert_int_equal(c->reply->flush_seq, mm_flush_posted(peer_mm(c->peer)));
	assert_int_not_equal(c->reply->flush_seq, 0);
	assert_int_equal(CALL(c, null, NULL), 0);
	assert_int_equal(c->reply->flush_seq, 0);
	assert_int_equal(
		CALL(c, madvise, MADVISE, msg_.address = at, msg_.length = 1, msg_.advice = 12345),
		EINVAL);
	assert_int_equal(CALL(c, munmap, MUNMAP, msg_.address = at + 1, msg_.length = 1), EINVAL);
	assert_int_equal(CALL(c, munmap, MUNMAP, msg_.address = at, msg_.length = 0), EINVAL);
	assert_int_equal(CALL(c, munmap, MUNMAP, msg_.address = at, msg_.length = UINT64_MAX),
			 EINVAL);
	assert_int_equal(CALL(c, munmap, MUNMAP, msg_.address = at, msg_.length = 4 * MIB), 0);
	client_acknowledge(c);
	mm_get_stats(peer_mm(c->peer), &stats);
	assert_int_equal(stats.rss_anon, 0);
	assert_int_equal(stats.limbo, 0);
	client_end(c);
	assert_machine_whole();
}

static void test_pages(void **state)
{
	struct client *c = client_connect();
	uint64_t at;

	(void)state;
	client_attach(c);
	assert_int_equal(CALL(c, alloc_pages, ALLOC_PAGES, msg_.order = 3), 0);
	at = c->reply->alloc_pages->address;
	assert_int_equal(CALL(c, alloc_pages, ALLOC_PAGES, msg_.order = 11), EINVAL);
	/* The daemon's own flags are not for clients. */
	assert_int_equal(CALL(c, alloc_pages, ALLOC_PAGES, msg_.gfp = GFP_NO_ZERO), EINVAL);
	assert_int_equal(CALL(c, alloc_pages, ALLOC_PAGES, msg_.gfp = GFP_HOLE_OK), EINVAL);
	assert_int_equal(CALL(c, free_pages, FREE_PAGES, msg_.address = at, msg_.order = 2),
			 EINVAL);
	assert_int_equal(CALL(c, free_pages, FREE_PAGES, msg_.address = at + 1, msg_.order = 3),
			 EINVAL);
	assert_int_equal(CALL(c, free_pages, FREE_PAGES, msg_.address = at, msg_.order = 3), 0);
	client_end(c);
	assert_machine_whole();
}

static void test_segment_names(void **state)
{
	struct client *c = client_connect();
	char name[300];

	(void)state;
	client_attach(c);
	memset(name, 'n', sizeof(name));
	name[256] = '\0';
	assert_int_equal(
		CALL(c, shm_open, SHM_OPEN, msg_.name = name, msg_.oflag = O_CREAT | O_RDWR),
		ENAMETOOLONG);
	assert_int_equal(CALL(c, shm_unlink, SHM_UNLINK, msg_.name = name), ENAMETOOLONG);
	name[255] = '\0';
	assert_int_equal(CALL(c, shm_open, SHM_OPEN, msg_.name = name,
			      msg_.oflag = O_CREAT | O_RDWR, msg_.mode = 0600),
			 0);
	assert_int_equal(CALL(c, shm_unlink, SHM_UNLINK, msg_.name = name), 0);
	for (const char *const *bad =
		     (const char *const[]){"", "/", "//x", "a/b", ".", "/..", "x/", NULL};
	     *bad; bad++) {
		assert_int_equal(CALL(c, shm_open, SHM_OPEN, msg_.name = (char *)*bad,
				      msg_.oflag = O_CREAT | O_RDWR),
				 EINVAL);
		assert_int_equal(CALL(c, shm_unlink, SHM_UNLINK, msg_.name = (char *)*bad), ENOENT);
	}
	assert_int_equal(
		CALL(c, shm_open, SHM_OPEN, msg_.name = (char *)"x", msg_.oflag = O_WRONLY),
		EINVAL);
	assert_int_equal(CALL(c, shm_open, SHM_OPEN, msg_.name = (char *)"x",
			      msg_.oflag = O_RDWR | O_APPEND),
			 ENOENT);
	assert_int_equal(CALL(c, shm_open, SHM_OPEN, msg_.name = (char *)"/x", msg_.oflag = O_RDWR),
			 ENOENT);
	client_end(c);
	assert_machine_whole();
}

static uint32_t open_segment(struct client *c, uint32_t oflag)
{
	assert_int_equal(CALL(c, shm_open, SHM_OPEN, msg_.name = (char *)"/shared",
			      msg_.oflag = oflag, msg_.mode = 0666),
			 0);
	return c->reply->shm_open->segment;
}

/* A segment of one leaf that both clients map and `c` has touched; c's handle of it. */
static uint32_t share(struct client *c, struct client *other)
{
	uint32_t handle;

	client_attach(c);
	client_attach(other);
	handle = open_segment(c, O_CREAT | O_RDWR);
	assert_int_equal(
		CALL(c, shm_truncate, SHM_TRUNCATE, msg_.segment = handle, msg_.size = 2 * MIB), 0);
	assert_int_equal(CALL(c, mmap, MMAP, msg_.length = 2 * MIB,
			      msg_.prot = PROT_READ | PROT_WRITE, msg_.flags = MAP_SHARED,
			      msg_.segment = handle),
			 0);
	assert_int_equal(CALL(c, fault, FAULT, msg_.address = c->reply->address->address,
			      msg_.access = PROT_WRITE),
			 0);
	return handle;
}

/* Truncating answers when the other client has let go of the pages, not before. */
static void test_truncate_waits(void **state)
{
	struct client *c = client_connect(), *other = client_connect();
	uint32_t mine, theirs;

	(void)state;
	machine.state.tunables[TUNABLE_FLUSH_DEADLINE_MSECS] = 60000;
	theirs = share(other, c);
	mine = open_segment(c, O_RDWR);
	assert_int_equal(CALL(c, shm_truncate, SHM_TRUNCATE, msg_.segment = mine, msg_.size = 0),
			 -1);
	assert_null(c->reply);
	/* An honest client's doorbell is rung now: it was asked to. */
	assert_int_equal(client_channel(other)->flush_kick, 1);
	client_acknowledge(other);
	assert_true(client_receive(c));
	assert_non_null(c->reply);
	assert_int_equal(c->reply->id, c->next_id);
	assert_int_equal(c->reply->error, 0);
	assert_int_equal(CALL(other, shm_stat, SHM_STAT, msg_.segment = theirs), 0);
	assert_int_equal(c->reply->error, 0);
	assert_int_equal(other->reply->shm_stat->size, 0);
	assert_int_equal(CALL(c, shm_unlink, SHM_UNLINK, msg_.name = (char *)"shared"), 0);
	client_end(c);
	client_end(other);
	assert_machine_whole();
}

/* Who does not acknowledge holds nobody up for longer than the deadline. */
static void test_truncate_deadline(void **state)
{
	struct client *c = client_connect(), *other = client_connect();
	uint64_t began;
	uint32_t mine;

	(void)state;
	machine.state.tunables[TUNABLE_FLUSH_DEADLINE_MSECS] = 20;
	share(other, c);
	mine = open_segment(c, O_RDWR);
	began = clock_now();
	assert_int_equal(CALL(c, shm_truncate, SHM_TRUNCATE, msg_.segment = mine, msg_.size = 0),
			 -1);
	while (!c->reply)
		assert_true(client_receive(c));
	assert_int_equal(c->reply->error, 0);
	assert_true(clock_now() - began >= 15 * NSEC_PER_MSEC);
	assert_int_not_equal(virt_limbo_pages(machine.virt), 0);
	assert_int_equal(CALL(c, shm_unlink, SHM_UNLINK, msg_.name = (char *)"shared"), 0);
	client_end(c);
	client_end(other);
	assert_machine_whole();
}

/* The caller, or who it waits for, may die meanwhile. */
static void test_truncate_death(void **state)
{
	struct client *c, *other;
	uint32_t mine;

	(void)state;
	machine.state.tunables[TUNABLE_FLUSH_DEADLINE_MSECS] = 60000;
	for (unsigned caller_dies = 0; caller_dies < 2; caller_dies++) {
		c = client_connect();
		other = client_connect();
		share(other, c);
		mine = open_segment(c, O_RDWR);
		assert_int_equal(
			CALL(c, shm_truncate, SHM_TRUNCATE, msg_.segment = mine, msg_.size = 0),
			-1);
		assert_int_equal(CALL(other, shm_unlink, SHM_UNLINK, msg_.name = (char *)"shared"),
				 0);
		if (caller_dies) {
			client_end(c);
			client_acknowledge(other);
			client_end(other);
		} else {
			client_end(other);
			assert_true(client_receive(c));
			assert_non_null(c->reply);
			assert_int_equal(c->reply->error, 0);
			client_end(c);
		}
		assert_machine_whole();
	}
}

/* The same by mailbox: it belongs to the daemon until the answer is in it. */
static void test_truncate_mailbox(void **state)
{
	struct client *c = client_connect(), *other = client_connect();
	Arena__Request rq = ARENA__REQUEST__INIT;
	Arena__ShmTruncate m = ARENA__SHM_TRUNCATE__INIT;
	uint64_t bad;

	(void)state;
	machine.state.tunables[TUNABLE_FLUSH_DEADLINE_MSECS] = 60000;
	share(other, c);
	m.segment = open_segment(c, O_RDWR);
	rq.call_case = ARENA__REQUEST__CALL_SHM_TRUNCATE;
	rq.shm_truncate = &m;
	mailbox_post(c, 5, &rq);
	assert_true(channel_serve(c->peer));
	assert_int_equal(mailbox_answer(c, 5), -1);
	bad = machine.state.counters[EV_ARENA_BAD_REQUEST];
	client_channel(c)->pending = UINT64_C(1) << 5;
	assert_true(channel_serve(c->peer));
	assert_int_equal(machine.state.counters[EV_ARENA_BAD_REQUEST], bad + 1);
	assert_int_equal(mailbox_answer(c, 5), -1);
	client_acknowledge(other);
	assert_int_equal(mailbox_answer(c, 5), 0);
	assert_int_equal(CALL(c, shm_unlink, SHM_UNLINK, msg_.name = (char *)"shared"), 0);
	client_end(c);
	client_end(other);
	assert_machine_whole();
}

static void test_attributes(void **state)
{
	struct client *c = client_connect();
	uint64_t offset = 0;
	char path[16];

	(void)state;
	nr_texts = 0;
	client_hello(c);
	do {
		assert_int_equal(CALL(c, attr_read, ATTR_READ, msg_.path = (char *)"file",
				      msg_.offset = offset, msg_.size = UINT32_MAX),
				 0);
		assert_true(c->reply->attr_read->data.len <= 48 << 10);
		for (size_t i = 0; i < c->reply->attr_read->data.len; i++)
			assert_int_equal(c->reply->attr_read->data.data[i], 'b');
		offset += c->reply->attr_read->data.len;
	} while (!c->reply->attr_read->eof);
	assert_int_equal(offset, 100000);
	assert_int_equal(nr_texts, 1);
	/* Beyond the end of the same text; and a new text at the start. */
	assert_int_equal(CALL(c, attr_read, ATTR_READ, msg_.path = (char *)"file",
			      msg_.offset = UINT64_MAX, msg_.size = 1),
			 0);
	assert_int_equal(c->reply->attr_read->data.len, 0);
	assert_true(c->reply->attr_read->eof);
	assert_int_equal(nr_texts, 1);
	assert_int_equal(CALL(c, attr_read, ATTR_READ, msg_.path = (char *)"file", msg_.size = 10),
			 0);
	assert_int_equal(c->reply->attr_read->data.len, 10);
	assert_int_equal(nr_texts, 2);
	/* Four paths are kept, the fifth takes the place of the one used longest ago. */
	for (unsigned i = 0; i < 4; i++) {
		snprintf(path, sizeof(path), "file%u", i);
		assert_int_equal(CALL(c, attr_read, ATTR_READ, msg_.path = path, msg_.size = 1), 0);
	}
	assert_int_equal(nr_texts, 6);
	assert_int_equal(
		CALL(c, attr_read, ATTR_READ, msg_.path = path, msg_.offset = 5, msg_.size = 1), 0);
	assert_int_equal(nr_texts, 6);
	assert_int_equal(CALL(c, attr_read, ATTR_READ, msg_.path = (char *)"file", msg_.offset = 5),
			 0);
	assert_int_equal(nr_texts, 7);
	assert_int_equal(CALL(c, attr_read, ATTR_READ, msg_.path = (char *)"nothing"), ENOENT);
	assert_int_equal(CALL(c, attr_read, ATTR_READ, msg_.path = (char *)"secret"), EACCES);
	assert_int_equal(CALL(c, attr_write, ATTR_WRITE, msg_.path = (char *)"key",
			      msg_.value.data = (uint8_t *)"value", msg_.value.len = 5),
			 0);
	assert_string_equal(written, "key=value");
	client_end(c);
	assert_machine_whole();
}

static void run_kzerod(void)
{
	struct phys *p = machine.phys;

	service->last_call = 0;
	for (service_settle(service); !kzerod_idle(p); service_settle(service))
		assert_int_equal(event_base_loop(service->base, EVLOOP_ONCE), 0);
}

/* In a burst of calls nothing is zeroed ahead, and when it is over, without anybody calling. */
static void test_kzerod_waits_for_quiet(void **state)
{
	struct client *c = client_connect();
	struct phys *p = machine.phys;
	uint64_t start, full;

	(void)state;
	client_attach(c);
	assert_int_equal(CALL(c, mmap, MMAP, msg_.length = 2 * MIB,
			      msg_.prot = PROT_READ | PROT_WRITE,
			      msg_.flags = MAP_PRIVATE | MAP_ANONYMOUS),
			 0);
	start = c->reply->address->address;
	assert_int_equal(CALL(c, fault, FAULT, msg_.address = start, msg_.access = PROT_WRITE), 0);
	run_kzerod();
	full = phys_zeroed_pages(p, NULL);
	assert_true(full >= 4 * MIB / ARENA_PAGE_SIZE);
	assert_false(service->kzerod_waits);
	assert_int_equal(CALL(c, mmap, MMAP, msg_.length = 2 * MIB,
			      msg_.prot = PROT_READ | PROT_WRITE,
			      msg_.flags = MAP_PRIVATE | MAP_ANONYMOUS),
			 0);
	start = c->reply->address->address;
	service->last_call = clock_now() + NSEC_PER_SEC; /* as if all this took no time */
	assert_int_equal(CALL(c, fault, FAULT, msg_.address = start, msg_.access = PROT_WRITE), 0);
	assert_true(phys_zeroed_pages(p, NULL) < full);
	assert_int_equal(kzerod_need(p), KZEROD_LATER);
	assert_true(service->kzerod_waits);
	service->last_call = clock_now() - NSEC_PER_SEC;
	/* Its timer alone: nobody settles but the loop after the event. */
	while (phys_zeroed_pages(p, NULL) < full) {
		assert_int_equal(event_base_loop(service->base, EVLOOP_ONCE), 0);
		service_settle(service);
	}
	assert_true(kzerod_idle(p));
	client_end(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_table_complete),
		cmocka_unit_test(test_session),
		cmocka_unit_test(test_windows),
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_pages),
		cmocka_unit_test(test_segment_names),
		cmocka_unit_test(test_truncate_waits),
		cmocka_unit_test(test_truncate_deadline),
		cmocka_unit_test(test_truncate_death),
		cmocka_unit_test(test_truncate_mailbox),
		cmocka_unit_test(test_attributes),
		cmocka_unit_test(test_kzerod_waits_for_quiet),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, setup, teardown);
}
