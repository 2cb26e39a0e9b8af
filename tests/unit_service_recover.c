/* SPDX-License-Identifier: MIT */
/*
 * A worker that died, as far as this room goes: the service is abandoned, at rest or by a jump out of
 * a store to the truth, and another is made over the same machine and what the store has. No
 * request is lost, none comes about twice, and a connection that was lost can be made anew.
 */
#include "tests/service_peer.h"

#include <fcntl.h>

#include "base/truth.h"
#include "daemon/phys/journal.h"
#include "daemon/store/store.h"

static jmp_buf out;

void truth_store_reached(void)
{
	longjmp(out, 1);
}

static unsigned kept_without_clients;

/* What the daemon keeps for itself stays: uids' domains, too. */
static void come_and_go(uid_t uid)
{
	struct client *c = client_connect_as(uid);

	client_attach(c);
	client_end(c);
}

static int setup(void **state)
{
	(void)state;
	store_fake();
	if (start_service(NULL))
		return -1;
	come_and_go(1000);
	come_and_go(getuid());
	kept_without_clients = store_fake_count();
	return 0;
}

static int teardown(void **state)
{
	int r;

	(void)state;
	truth_stop_after = 0;
	r = stop_service();
	store_fake_end();
	return r;
}

static void drop_rest(const char *prefix)
{
	uint32_t n = 0;

	while (store_next(prefix, &n)) {
		close(store_take_number(prefix, n));
		store_remove_number(prefix, n);
	}
}

/* Another worker. */
static void restart(void)
{
	struct service_params params = {.machine = &machine, .listen_fd = -1};

	service = service_abandon(service);
	store_fake_restart();
	assert_int_equal(service_create(&params, &service), 0);
	/* What the store has besides is the machine's, which has not ended. */
	drop_rest("client");
	drop_rest("pidfd");
	drop_rest("doorbell");
}

static struct peer *peer_numbered(uint32_t id)
{
	struct peer *p;

	LIST_FOREACH(p, &service->peers, link)
		if (p->id == id)
			return p;
	return NULL;
}

/* The same for these two clients, whose peers are others then; the second may be NULL. */
static void restart_for_two(struct client *c, struct client *other)
{
	uint32_t id = c->peer->id, other_id = other ? other->peer->id : 0;

	restart();
	c->peer = peer_numbered(id);
	assert_non_null(c->peer);
	if (other)
		other->peer = peer_numbered(other_id);
}

static void restart_for(struct client *c)
{
	restart_for_two(c, NULL);
}

static uint64_t direct_pages(struct client *c)
{
	struct mm_stats stats;

	mm_get_stats(peer_mm(c->peer), &stats);
	return stats.direct_pages;
}

/* ---- at rest --------------------------------------------------------------------- */

static void test_taken_over(void **state)
{
	struct client *c = client_connect(), *bare = client_connect(), *new = client_connect();
	unsigned kept;
	uint64_t at;

	(void)state;
	client_attach(c);
	client_hello(bare);
	kept = store_fake_count();
	assert_int_equal(CALL(c, mmap, MMAP, msg_.length = MIB, msg_.prot = PROT_READ | PROT_WRITE,
			      msg_.flags = MAP_PRIVATE | MAP_ANONYMOUS),
			 0);
	at = c->reply->address->address;
	restart_for(c);
	assert_int_equal(service_nr_peers(service), 2);
	assert_int_equal(store_fake_count(), kept);
	assert_int_equal(client_channel(c)->restarts, 1);
	assert_int_equal(CALL(c, fault, FAULT, msg_.address = at, msg_.access = PROT_WRITE), 0);
	assert_int_equal(CALL(bare, null, NULL), 0);
	assert_int_equal(CALL(bare, hello, HELLO, msg_.abi_major = ARENA_ABI_MAJOR), EPROTO);
	/* One that had not said hello is told nothing, and comes again. */
	assert_false(client_receive(new));
	client_end(new);
	client_end(bare);
	client_end(c);
	assert_int_equal(store_fake_count(), kept_without_clients);
	assert_machine_whole();
}

static void test_hello_repeated(void **state)
{
	struct client *c = client_connect();

	(void)state;
	client_hello(c);
	restart_for(c);
	client_hello(c);
	assert_int_equal(CALL(c, null, NULL), 0);
	assert_int_equal(CALL(c, hello, HELLO, msg_.abi_major = ARENA_ABI_MAJOR), EPROTO);
	client_end(c);
}

static void alloc_request(Arena__Request *rq, Arena__AllocPages *m)
{
	arena__request__init(rq);
	arena__alloc_pages__init(m);
	m->order = 2;
	rq->call_case = ARENA__REQUEST__CALL_ALLOC_PAGES;
	rq->alloc_pages = m;
}

/* Requests whose bits are gone, and one whose bit comes only after it was answered. */
static void test_mailboxes_found(void **state)
{
	struct client *c = client_connect();
	uint64_t bad = machine.state.counters[EV_ARENA_BAD_REQUEST];
	Arena__AllocPages m;
	Arena__Request rq;

	(void)state;
	client_attach(c);
	alloc_request(&rq, &m);
	mailbox_post(c, 0, &rq);
	mailbox_post(c, 63, &rq);
	client_mailbox(c, 63)->state = ARENA_MAILBOX_REQUEST_WAIT;
	client_channel(c)->pending = 0;
	client_channel(c)->daemon_poll = 1;
	restart_for(c);
	serve_all();
	assert_int_equal(mailbox_answer(c, 0), 0);
	assert_int_equal(mailbox_answer(c, 63), 0);
	client_channel(c)->pending = 1;
	serve_all();
	assert_int_equal(machine.state.counters[EV_ARENA_BAD_REQUEST], bad);
	client_channel(c)->pending = 1;
	assert_true(channel_serve(c->peer));
	assert_int_equal(machine.state.counters[EV_ARENA_BAD_REQUEST], bad + 1);
	client_end(c);
	assert_machine_whole();
}

/* A packet that was sent while nobody read, and one that was read and not answered. */
static void test_packets_found(void **state)
{
	struct client *c = client_connect(), *other;
	Arena__ShmTruncate truncate = ARENA__SHM_TRUNCATE__INIT;
	Arena__Request rq;
	Arena__AllocPages m;
	size_t len;

	(void)state;
	machine.state.tunables[TUNABLE_FLUSH_DEADLINE_MSECS] = 60000;
	client_attach(c);
	alloc_request(&rq, &m);
	rq.id = ++c->next_id;
	assert_int_equal(frame_pack_request(&rq, c->packet, sizeof(c->packet), &len), 0);
	assert_int_equal(frame_send(c->fd, c->packet, len, NULL, 0), 0);
	restart_for(c);
	assert_true(client_receive(c));
	assert_non_null(c->reply);
	assert_int_equal(c->reply->id, c->next_id);
	assert_int_equal(direct_pages(c), 4);

	other = client_connect();
	client_attach(other);
	assert_int_equal(CALL(other, shm_open, SHM_OPEN, msg_.name = (char *)"/s",
			      msg_.oflag = O_CREAT | O_RDWR, msg_.mode = 0600),
			 0);
	truncate.segment = other->reply->shm_open->segment;
	truncate.size = 2 * MIB;
	assert_int_equal(CALL(other, shm_truncate, SHM_TRUNCATE, msg_ = truncate), 0);
	assert_int_equal(CALL(other, mmap, MMAP, msg_.length = 2 * MIB,
			      msg_.prot = PROT_READ | PROT_WRITE, msg_.flags = MAP_SHARED,
			      msg_.segment = truncate.segment),
			 0);
	assert_int_equal(CALL(other, fault, FAULT, msg_.address = other->reply->address->address,
			      msg_.access = PROT_WRITE),
			 0);
	assert_int_equal(CALL(c, shm_open, SHM_OPEN, msg_.name = (char *)"/s", msg_.oflag = O_RDWR),
			 0);
	truncate.size = 0;
	truncate.segment = c->reply->shm_open->segment;
	/* Waits for the other client's flush; nothing behind it is read meanwhile. */
	assert_int_equal(CALL(c, shm_truncate, SHM_TRUNCATE, msg_ = truncate), -1);
	assert_int_equal(CALL(c, null, NULL), -1);
	restart_for_two(c, other);
	client_channel(other)->flush_ack = client_channel(other)->flush_head;
	assert_true(client_receive(c));
	assert_non_null(c->reply);
	assert_int_equal(c->reply->id, c->next_id - 1);
	assert_int_equal(c->reply->error, 0);
	assert_true(client_receive(c));
	assert_non_null(c->reply);
	assert_int_equal(c->reply->id, c->next_id);
	assert_int_equal(CALL(c, shm_unlink, SHM_UNLINK, msg_.name = (char *)"s"), 0);
	client_end(c);
	client_end(other);
	assert_machine_whole();
}

static void test_orphans(void **state)
{
	struct client *c = client_connect_from(getpid(), 1000), *dead;
	uint32_t id;
	pid_t pid;

	(void)state;
	client_attach(c);
	id = c->peer->id;
	close(c->fd);
	serve_all();
	assert_int_equal(service_nr_peers(service), 1);
	restart();
	assert_int_equal(service_nr_peers(service), 1);
	assert_int_equal(peer_numbered(id)->state, PEER_ORPHAN);
	/* Without a pidfd of it: the same process by its start time, or another one. */
	store_remove_number("pidfd", id);
	restart();
	assert_int_equal(peer_numbered(id)->state, PEER_ORPHAN);
	store_remove_number("pidfd", id);
	machine.state.mms[0].start_time++;
	restart();
	assert_int_equal(service_nr_peers(service), 0);
	assert_machine_whole();
	client_close_fds(c);
	free(c);

	/* It dies while no worker runs. */
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	dead = client_connect_from(pid, 1000);
	client_attach(dead);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	restart_for(dead);
	serve_all();
	assert_int_equal(service_nr_peers(service), 0);
	assert_int_equal(store_fake_count(), kept_without_clients);
	client_end(dead);
	assert_machine_whole();
}

/* ---- in a call ------------------------------------------------------------------- */

/* Serve mailbox 7, or the packet `len` bytes long, up to the nth store; true: it got there. */
static bool serve_until(struct client *c, uint64_t n, size_t len)
{
	truth_stores = 0;
	truth_stop_after = n;
	if (setjmp(out) == 0) {
		if (len)
			peer_handle_packet(c->peer, c->packet, len);
		else
			assert_true(channel_serve(c->peer));
		truth_stop_after = 0;
		return false;
	}
	truth_stop_after = 0;
	return true;
}

/* The first one makes more, for the block that the pages come from. */
static uint64_t stores_of_alloc(struct client *c)
{
	Arena__AllocPages m;
	Arena__Request rq;
	uint64_t n = 0;

	for (unsigned i = 0; i < 2; i++) {
		alloc_request(&rq, &m);
		mailbox_post(c, 7, &rq);
		serve_until(c, UINT64_MAX, 0);
		n = truth_stores;
		assert_int_equal(mailbox_answer(c, 7), 0);
		assert_int_equal(CALL(c, free_pages, FREE_PAGES,
				      msg_.address = c->reply->alloc_pages->address,
				      msg_.order = 2),
				 0);
	}
	return n;
}

/* After its handler an answer is in the journal or not asked for any more. */
static void test_once_by_mailbox(void **state)
{
	struct client *c = client_connect();
	Arena__AllocPages m;
	Arena__Request rq;
	uint64_t n, addr;

	(void)state;
	client_attach(c);
	n = stores_of_alloc(c);
	/* ..., phase DONE, <answer>, phase NONE, serving 0 */
	for (uint64_t stop = n - 2; stop <= n; stop++) {
		uint64_t before = direct_pages(c);

		alloc_request(&rq, &m);
		mailbox_post(c, 7, &rq);
		assert_true(serve_until(c, stop, 0));
		assert_int_equal(direct_pages(c), before + 4);
		if (stop == n - 2) {
			/* The answer may have been half written over the request. */
			assert_int_equal(client_mailbox(c, 7)->state, ARENA_MAILBOX_REQUEST);
			memset(client_mailbox(c, 7)->payload, 0xff, 100);
			client_mailbox(c, 7)->len = 3;
		}
		restart_for(c);
		serve_all();
		assert_int_equal(mailbox_answer(c, 7), 0);
		addr = c->reply->alloc_pages->address;
		assert_int_equal(direct_pages(c), before + 4);
		serve_all();
		assert_int_equal(client_mailbox(c, 7)->state, ARENA_MAILBOX_FREE);
		assert_int_equal(machine.state.header->serving, 0);
		assert_int_equal(machine.state.journal->phase, JOURNAL_NONE);
		assert_int_equal(
			CALL(c, free_pages, FREE_PAGES, msg_.address = addr, msg_.order = 2), 0);
	}
	client_end(c);
	assert_machine_whole();
}

/* Before its handler it is begun again, however often, and done once. */
static void test_begun_again(void **state)
{
	struct client *c = client_connect();
	Arena__AllocPages m;
	Arena__Request rq;
	uint64_t before;

	(void)state;
	client_attach(c);
	/* serving_id, serving, who, phase BEGUN */
	for (uint64_t stop = 1; stop <= 4; stop++) {
		before = direct_pages(c);
		alloc_request(&rq, &m);
		mailbox_post(c, 7, &rq);
		assert_true(serve_until(c, stop, 0));
		restart_for(c);
		serve_all();
		assert_int_equal(mailbox_answer(c, 7), 0);
		assert_int_equal(direct_pages(c), before + 4);
	}
	client_end(c);
	assert_machine_whole();
}

/* Any other call through a mailbox: its answer takes the place of its request, too. */
static void test_again_by_mailbox(void **state)
{
	struct client *c = client_connect();
	Arena__Null null = ARENA__NULL__INIT;
	Arena__Request rq = ARENA__REQUEST__INIT;

	(void)state;
	client_attach(c);
	rq.call_case = ARENA__REQUEST__CALL_NULL;
	rq.null = &null;
	/* serving_id, serving, reply, phase DONE, <answer>, phase NONE, serving 0 */
	for (uint64_t stop = 1; stop <= 6; stop++) {
		mailbox_post(c, 7, &rq);
		assert_true(serve_until(c, stop, 0));
		if (stop == 4)
			memset(client_mailbox(c, 7)->payload, 0xff, 100);
		restart_for(c);
		serve_all();
		assert_int_equal(mailbox_answer(c, 7), 0);
	}
	client_end(c);
}

/* It is served before anything else, for what it does may depend on it. */
static void test_interrupted_first(void **state)
{
	struct client *c = client_connect();
	Arena__Munmap m = ARENA__MUNMAP__INIT;
	Arena__Mmap again = ARENA__MMAP__INIT;
	Arena__Request rq = ARENA__REQUEST__INIT;
	uint64_t at;

	(void)state;
	client_attach(c);
	assert_int_equal(CALL(c, mmap, MMAP, msg_.length = MIB, msg_.prot = PROT_READ | PROT_WRITE,
			      msg_.flags = MAP_PRIVATE | MAP_ANONYMOUS),
			 0);
	at = c->reply->address->address;
	/* Mailbox 2 would be served before 7, and takes the place that 7 makes free. */
	again.address = at;
	again.length = MIB;
	again.prot = PROT_READ;
	again.flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
	m.address = at;
	m.length = MIB;
	rq.call_case = ARENA__REQUEST__CALL_MUNMAP;
	rq.munmap = &m;
	mailbox_post(c, 7, &rq);
	assert_true(serve_until(c, 2, 0));
	rq.call_case = ARENA__REQUEST__CALL_MMAP;
	rq.mmap = &again;
	mailbox_post(c, 2, &rq);
	restart_for(c);
	serve_all();
	assert_int_equal(mailbox_answer(c, 7), 0);
	assert_int_equal(mailbox_answer(c, 2), 0);
	assert_int_equal(CALL(c, fault, FAULT, msg_.address = at, msg_.access = PROT_READ), 0);
	assert_int_equal(c->reply->fault->signo, 0);
	client_end(c);
	assert_machine_whole();
}

/* What its first try took away has been told to nobody: the answer to the second says to flush. */
static void test_flush_named_again(void **state)
{
	struct client *c = client_connect();
	Arena__Munmap m = ARENA__MUNMAP__INIT;
	Arena__Request rq = ARENA__REQUEST__INIT;
	uint64_t n = 0;

	(void)state;
	client_attach(c);
	m.length = MIB;
	rq.call_case = ARENA__REQUEST__CALL_MUNMAP;
	rq.munmap = &m;
	for (unsigned dies = 0; dies < 2; dies++) {
		assert_int_equal(CALL(c, mmap, MMAP, msg_.length = MIB, msg_.prot = PROT_READ,
				      msg_.flags = MAP_PRIVATE | MAP_ANONYMOUS),
				 0);
		m.address = c->reply->address->address;
		assert_int_equal(
			CALL(c, fault, FAULT, msg_.address = m.address, msg_.access = PROT_READ),
			0);
		mailbox_post(c, 7, &rq);
		/* <handler>, reply, phase DONE, phase NONE, serving 0 */
		assert_int_equal(serve_until(c, dies ? n - 3 : UINT64_MAX, 0), dies);
		n = truth_stores;
		if (dies)
			restart_for(c);
		serve_all();
		assert_int_equal(mailbox_answer(c, 7), 0);
		assert_int_equal(c->reply->flush_seq, mm_flush_posted(peer_mm(c->peer)));
		assert_int_not_equal(c->reply->flush_seq, 0);
		client_acknowledge(c);
	}
	client_end(c);
	assert_machine_whole();
}

static size_t send_open(struct client *c)
{
	Arena__ShmOpen m = ARENA__SHM_OPEN__INIT;
	Arena__Request rq = ARENA__REQUEST__INIT;
	size_t len;

	m.name = (char *)"/once";
	m.oflag = O_CREAT | O_EXCL | O_RDWR;
	m.mode = 0666;
	rq.call_case = ARENA__REQUEST__CALL_SHM_OPEN;
	rq.shm_open = &m;
	rq.id = ++c->next_id;
	assert_int_equal(frame_pack_request(&rq, c->packet, sizeof(c->packet), &len), 0);
	assert_int_equal(frame_send(c->fd, c->packet, len, NULL, 0), 0);
	c->peer->in_socket = true;
	return len;
}

/* A call that would fail if it were done twice, and whose answer carries a descriptor. */
static void test_once_by_socket(void **state)
{
	struct client *c = client_connect();
	uint64_t n;
	size_t len;

	(void)state;
	client_attach(c);
	len = send_open(c);
	serve_until(c, UINT64_MAX, len);
	n = truth_stores;
	assert_true(client_receive(c));
	assert_int_equal(CALL(c, shm_close, SHM_CLOSE, msg_.segment = 1), 0);
	assert_int_equal(CALL(c, shm_unlink, SHM_UNLINK, msg_.name = (char *)"once"), 0);
	/* ..., phase DONE, <answer, packet taken>, phase NONE, serving 0 */
	for (uint64_t stop = n - 2; stop <= n; stop++) {
		unsigned answers = 0;
		uint64_t id;

		len = send_open(c);
		id = c->next_id;
		assert_true(serve_until(c, stop, len));
		restart_for(c);
		while (client_receive(c) && c->reply) {
			answers++;
			assert_int_equal(c->reply->id, id);
			assert_int_equal(c->reply->error, 0);
			assert_int_equal(c->reply->shm_open->segment, 1);
			assert_int_equal(c->nr_fds, 1);
		}
		assert_int_equal(answers, 1);
		assert_int_equal(CALL(c, shm_close, SHM_CLOSE, msg_.segment = 1), 0);
		assert_int_equal(CALL(c, shm_unlink, SHM_UNLINK, msg_.name = (char *)"once"), 0);
	}
	client_end(c);
	assert_machine_whole();
}

/* Its connection is lost as well: the answer waits for the next one. */
static void test_once_by_another_socket(void **state)
{
	struct client *c = client_connect_from(getpid(), 1000), *next;
	Arena__Request rq = ARENA__REQUEST__INIT;
	Arena__ShmOpen m = ARENA__SHM_OPEN__INIT;
	uint8_t token[SERVICE_TOKEN_BYTES];
	uint64_t n;
	uint32_t mm;
	size_t len;

	(void)state;
	client_attach(c);
	mm = mm_id(peer_mm(c->peer));
	memcpy(token, mm_token(peer_mm(c->peer)), sizeof(token));
	len = send_open(c);
	serve_until(c, UINT64_MAX, len);
	n = truth_stores;
	assert_true(client_receive(c));
	assert_int_equal(CALL(c, shm_close, SHM_CLOSE, msg_.segment = 1), 0);
	assert_int_equal(CALL(c, shm_unlink, SHM_UNLINK, msg_.name = (char *)"once"), 0);
	len = send_open(c);
	assert_true(serve_until(c, n - 2, len));
	store_remove_number("client", c->peer->id);
	restart();
	serve_all();
	next = client_connect_from(getpid(), 1000);
	client_hello(next);
	assert_int_equal(CALL(next, attach, ATTACH, msg_.mm_id = mm, msg_.token.data = token,
			      msg_.token.len = sizeof(token)),
			 0);
	assert_int_equal(next->nr_fds, 4);
	m.name = (char *)"/once";
	m.oflag = O_CREAT | O_EXCL | O_RDWR;
	rq.call_case = ARENA__REQUEST__CALL_SHM_OPEN;
	rq.shm_open = &m;
	next->next_id = c->next_id - 1;
	assert_int_equal(client_call(next, &rq), 0);
	assert_int_equal(next->reply->shm_open->segment, 1);
	assert_int_equal(next->nr_fds, 1);
	assert_int_equal(client_call(next, &rq), EEXIST);
	assert_int_equal(CALL(next, shm_unlink, SHM_UNLINK, msg_.name = (char *)"once"), 0);
	assert_int_equal(CALL(next, bye, BYE), 0);
	client_end(next);
	client_end(c);
	assert_machine_whole();
}

/* An attach that made an address space and could not say so, up to every store of it. */
static void test_attach_interrupted(void **state)
{
	Arena__Request rq = ARENA__REQUEST__INIT;
	Arena__Attach m = ARENA__ATTACH__INIT;
	uint64_t n = 0;

	(void)state;
	m.window_base = ARENA_WINDOW_BASE;
	m.window_size = UINT64_C(64) << 30;
	rq.call_case = ARENA__REQUEST__CALL_ATTACH;
	rq.attach = &m;
	/* The first makes the domain, the second is counted. */
	for (uint64_t try = 0; try <= 8; try++) {
		struct client *c = client_connect();
		unsigned answers = 0;
		size_t len;

		client_hello(c);
		rq.id = ++c->next_id;
		assert_int_equal(frame_pack_request(&rq, c->packet, sizeof(c->packet), &len), 0);
		assert_int_equal(frame_send(c->fd, c->packet, len, NULL, 0), 0);
		c->peer->in_socket = true;
		if (try < 2) {
			serve_until(c, UINT64_MAX, len);
			n = truth_stores;
		} else {
			assert_true(serve_until(c, n + 2 - try, len));
			restart_for(c);
		}
		while (client_receive(c) && c->reply) {
			answers++;
			assert_int_equal(c->reply->error, 0);
			assert_int_equal(c->nr_fds, 4);
		}
		assert_int_equal(answers, 1);
		assert_int_equal(CALL(c, alloc_pages, ALLOC_PAGES, msg_.order = 1), 0);
		client_end(c);
		assert_int_equal(store_fake_count(), kept_without_clients);
		assert_machine_whole();
	}
}

/* A call in which every worker dies ends its client, not the service. */
static void test_deadly_call(void **state)
{
	struct client *c = client_connect(), *other = client_connect();
	Arena__AllocPages m;
	Arena__Request rq;
	uint32_t id;

	(void)state;
	client_attach(c);
	client_attach(other);
	id = c->peer->id;
	alloc_request(&rq, &m);
	mailbox_post(c, 7, &rq);
	assert_true(serve_until(c, 4, 0));
	for (unsigned deaths = 1; deaths < SERVICE_MAX_DEATHS; deaths++) {
		restart_for(c);
		assert_false(client_refused(c));
		/* Deaths before it is served again are not its fault. */
		restart_for(c);
		restart_for(c);
		truth_stores = 0;
		truth_stop_after = 3; /* deaths, serving_id, serving */
		if (setjmp(out) == 0) {
			service_round(service);
			fail_msg("it was not served");
		}
		truth_stop_after = 0;
	}
	restart_for(c);
	service_round(service);
	assert_int_equal(machine.state.header->serving_deaths, 0);
	assert_null(peer_numbered(id));
	assert_int_equal(CALL(other, null, NULL), 0);
	client_end(c);
	client_end(other);
	assert_machine_whole();
}

/* ---- another connection ---------------------------------------------------------- */

static int come_back(struct client *c, uint32_t mm, const uint8_t *token)
{
	return CALL(c, attach, ATTACH, msg_.mm_id = mm, msg_.token.data = (uint8_t *)token,
		    msg_.token.len = SERVICE_TOKEN_BYTES);
}

static void test_reattach(void **state)
{
	struct client *c = client_connect_from(getpid(), 1000), *next, *wrong;
	uint8_t token[SERVICE_TOKEN_BYTES], bad[SERVICE_TOKEN_BYTES] = {0};
	Arena__AllocPages m;
	Arena__Request rq;
	uint32_t id, slot;

	(void)state;
	client_attach(c);
	id = mm_id(peer_mm(c->peer));
	memcpy(token, mm_token(peer_mm(c->peer)), sizeof(token));
	assert_int_equal(CALL(c, shm_open, SHM_OPEN, msg_.name = (char *)"/r",
			      msg_.oflag = O_CREAT | O_RDWR, msg_.mode = 0666),
			 0);
	slot = c->reply->shm_open->slot;
	next = client_connect_from(getpid(), 1000);
	client_hello(next);
	assert_int_equal(come_back(next, id, token), EBUSY);
	alloc_request(&rq, &m);
	mailbox_post(c, 9, &rq);
	client_channel(c)->pending = 0;
	/* Whether or not we have heard of its end. */
	close(c->fd);
	wrong = client_connect();
	client_hello(wrong);
	assert_int_equal(come_back(wrong, id, token), EACCES);
	client_end(wrong);
	wrong = client_connect_from(getpid(), 1001);
	client_hello(wrong);
	assert_int_equal(come_back(wrong, id, token), EACCES);
	client_end(wrong);
	assert_int_equal(come_back(next, id, bad), EACCES);
	assert_int_equal(come_back(next, id + 1, token), ESTALE);
	assert_int_equal(come_back(next, id, token), 0);
	assert_int_equal(next->nr_fds, 4);
	assert_int_equal(next->reply->attach->mm_id, id);
	assert_int_equal(service_nr_peers(service), 1);
	serve_all();
	c->peer = next->peer;
	assert_int_equal(mailbox_answer(c, 9), 0);
	assert_int_equal(CALL(next, slot, SLOT, msg_.number = slot), 0);
	assert_int_equal(next->nr_fds, 1);
	assert_int_equal(CALL(next, slot, SLOT, msg_.number = slot + 1), ENOENT);
	assert_int_equal(CALL(next, slot, SLOT, msg_.number = UINT32_MAX), ENOENT);
	/* Once more by the same connection, and after a death by the one that a worker took over. */
	assert_int_equal(come_back(next, id, token), 0);
	restart_for(next);
	assert_int_equal(come_back(next, id, token), 0);
	assert_int_equal(CALL(next, shm_unlink, SHM_UNLINK, msg_.name = (char *)"r"), 0);
	assert_int_equal(CALL(next, bye, BYE), 0);
	client_end(next);
	client_close_fds(c);
	free(c);
	assert_int_equal(store_fake_count(), kept_without_clients);
	assert_machine_whole();
}

/* An address space that is taken over is not the less so because the worker dies meanwhile. */
static void test_reattach_interrupted(void **state)
{
	struct client *c = client_connect_from(getpid(), getuid());
	Arena__Request rq = ARENA__REQUEST__INIT;
	Arena__Attach m = ARENA__ATTACH__INIT;
	uint8_t token[SERVICE_TOKEN_BYTES];
	uint64_t stop = 1;
	bool died = true;

	(void)state;
	client_attach(c);
	m.mm_id = mm_id(peer_mm(c->peer));
	memcpy(token, mm_token(peer_mm(c->peer)), sizeof(token));
	m.token.data = token;
	m.token.len = sizeof(token);
	rq.call_case = ARENA__REQUEST__CALL_ATTACH;
	rq.attach = &m;
	assert_int_equal(CALL(c, alloc_pages, ALLOC_PAGES, msg_.order = 2), 0);
	for (; died; stop++) {
		struct client *next;
		unsigned answers = 0;
		size_t len;

		close(c->fd);
		client_close_fds(c);
		free(c);
		next = client_connect_from(getpid(), getuid());
		client_hello(next);
		rq.id = ++next->next_id;
		assert_int_equal(frame_pack_request(&rq, next->packet, sizeof(next->packet), &len),
				 0);
		assert_int_equal(frame_send(next->fd, next->packet, len, NULL, 0), 0);
		next->peer->in_socket = true;
		died = serve_until(next, stop, len);
		if (died) {
			uint32_t id = next->peer->id;

			restart();
			next->peer = peer_numbered(id);
			assert_non_null(next->peer);
		}
		while (client_receive(next) && next->reply) {
			answers++;
			assert_int_equal(next->reply->error, 0);
			assert_int_equal(next->nr_fds, 4);
		}
		assert_int_equal(answers, 1);
		assert_int_equal(direct_pages(next), 4);
		c = next;
	}
	assert_true(stop > 8);
	assert_int_equal(CALL(c, bye, BYE), 0);
	client_end(c);
	assert_int_equal(store_fake_count(), kept_without_clients);
	assert_machine_whole();
}

/* Who was refused stays so, for this worker and the next. */
static void test_refused_stays_out(void **state)
{
	struct client *c = client_connect_from(getpid(), 1000), *next;
	uint8_t token[SERVICE_TOKEN_BYTES];
	uint32_t id;

	(void)state;
	client_attach(c);
	id = mm_id(peer_mm(c->peer));
	memcpy(token, mm_token(peer_mm(c->peer)), sizeof(token));
	peer_refuse(c->peer, "a test");
	assert_int_equal(client_channel(c)->daemon_state, ARENA_DAEMON_REFUSES);
	assert_false(client_receive(c));
	assert_int_equal(c->farewell, EPERM);
	for (unsigned worker = 0; worker < 2; worker++) {
		next = client_connect_from(getpid(), 1000);
		client_hello(next);
		assert_int_equal(come_back(next, id, token), EPERM);
		client_end(next);
		restart();
		assert_int_equal(service_nr_peers(service), 1);
	}
	close(c->fd);
	free(c);
}

/* A process offers the same place again: what an earlier attach of it made there is of no use. */
static void test_replaced(void **state)
{
	struct client *c = client_connect_from(getpid(), 1000);

	(void)state;
	client_attach(c);
	assert_int_equal(CALL(c, alloc_pages, ALLOC_PAGES, msg_.order = 2), 0);
	close(c->fd);
	serve_all();
	assert_int_equal(service_nr_peers(service), 1);
	client_close_fds(c);
	free(c);
	c = client_connect_from(getpid(), 1000);
	client_attach(c);
	assert_int_equal(service_nr_peers(service), 1);
	assert_int_equal(direct_pages(c), 0);
	assert_int_equal(CALL(c, bye, BYE), 0);
	client_end(c);
	assert_machine_whole();
}

static void test_clean_stop(void **state)
{
	struct client *c = client_connect(), *bare = client_connect();
	void *channel;

	(void)state;
	client_attach(c);
	client_hello(bare);
	channel = mmap(NULL, ARENA_CHANNEL_BITS, PROT_READ, MAP_SHARED, c->fds[1], 0);
	assert_ptr_not_equal(channel, MAP_FAILED);
	service = service_destroy(service);
	assert_int_equal(((struct arena_channel_header *)channel)->daemon_state,
			 ARENA_DAEMON_STOPPED);
	assert_int_equal(store_fake_count(), kept_without_clients);
	for (unsigned i = 0; i < 2; i++) {
		struct client *it = i ? bare : c;
		struct frame_arena fa = {.buf = it->frame, .size = sizeof(it->frame)};
		ssize_t n = frame_recv(it->fd, it->packet, sizeof(it->packet), NULL, 0, NULL,
				       FRAME_DONTWAIT);

		assert_true(n > 0);
		assert_int_equal(frame_unpack_reply(it->packet, (size_t)n, &fa, &it->reply), 0);
		assert_int_equal(it->reply->id, 0);
		assert_int_equal(it->reply->error, ESHUTDOWN);
		assert_int_equal(frame_recv(it->fd, it->packet, sizeof(it->packet), NULL, 0, NULL,
					    FRAME_DONTWAIT),
				 0);
		client_close_fds(it);
		close(it->fd);
		free(it);
	}
	munmap(channel, ARENA_CHANNEL_BITS);
	assert_machine_whole();
}

#define RECOVER_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		RECOVER_TEST(test_taken_over),
		RECOVER_TEST(test_hello_repeated),
		RECOVER_TEST(test_mailboxes_found),
		RECOVER_TEST(test_packets_found),
		RECOVER_TEST(test_orphans),
		RECOVER_TEST(test_once_by_mailbox),
		RECOVER_TEST(test_begun_again),
		RECOVER_TEST(test_again_by_mailbox),
		RECOVER_TEST(test_interrupted_first),
		RECOVER_TEST(test_flush_named_again),
		RECOVER_TEST(test_once_by_socket),
		RECOVER_TEST(test_once_by_another_socket),
		RECOVER_TEST(test_attach_interrupted),
		RECOVER_TEST(test_deadly_call),
		RECOVER_TEST(test_reattach),
		RECOVER_TEST(test_reattach_interrupted),
		RECOVER_TEST(test_refused_stays_out),
		RECOVER_TEST(test_replaced),
		RECOVER_TEST(test_clean_stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
