/* SPDX-License-Identifier: MIT */
/*
 * The loop with real processes: the service runs in a child behind a listening socket, this
 * process is the client and speaks the protocol by hand. No call is lost between polling and
 * sleeping, idle means asleep, and who hangs up or dies gives everything back.
 */
#include "tests/service_peer.h"

#include <sys/un.h>

#include "base/cleanup.h"
#include "base/os.h"
#include "base/prng.h"

#define CALLS 20000

struct link {
	int fd;
	struct arena_channel_header *channel;
	int doorbell;
	int fds[ARENA_SOCKET_MAX_FDS];
	unsigned nr_fds;
	char frame[FRAME_ARENA_SOCKET];
	uint8_t packet[ARENA_SOCKET_MAX_MESSAGE];
};

static pid_t server;
static struct sockaddr_un address = {.sun_family = AF_UNIX};

/* Says by its exit status whether the machine was whole when all clients had gone. */
static void serve(int fd)
{
	struct service_params params = {.machine = &machine, .listen_fd = fd};
	struct machine_config config;
	char err[256];
	bool whole;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	machine_config_init(&config);
	config.arena_size = 64 * MIB;
	config.hugepages = false;
	config.zero_pool =
		0; /* kzerod wakes the loop when it gets to run: here only calls should */
	if (machine_boot(&machine, &config, err, sizeof(err)) ||
	    service_create(&params, &service) || service_catch_signals(service) ||
	    service_run(service))
		_exit(3);
	whole = service_nr_peers(service) == 0 && machine_is_valid(&machine) &&
		phys_total_pages(machine.phys) - phys_free_pages(machine.phys) == machine.boot_used;
	service_destroy(service);
	machine_shutdown(&machine);
	_exit(whole ? 0 : 1);
}

/* An abstract address: nothing to clean up. */
static int setup(void **state)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	(void)state;
	snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "unit_service_loop.%d",
		 (int)getpid());
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    listen(fd, 16) < 0)
		return -1;
	server = fork();
	if (server == 0)
		serve(fd);
	close(fd);
	return server < 0;
}

static int teardown(void **state)
{
	int status;

	(void)state;
	kill(server, SIGTERM);
	if (waitpid(server, &status, 0) != server || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

static Arena__Reply *packet_call(struct link *l, Arena__Request *rq)
{
	struct frame_arena fa = {.buf = l->frame, .size = sizeof(l->frame)};
	Arena__Reply *reply;
	size_t len;
	ssize_t n;

	rq->id = 1;
	assert_int_equal(frame_pack_request(rq, l->packet, sizeof(l->packet), &len), 0);
	assert_int_equal(frame_send(l->fd, l->packet, len, NULL, 0), 0);
	n = frame_recv(l->fd, l->packet, sizeof(l->packet), l->fds, ARENA_SOCKET_MAX_FDS,
		       &l->nr_fds, 0);
	assert_true(n > 0);
	assert_int_equal(frame_unpack_reply(l->packet, (size_t)n, &fa, &reply), 0);
	assert_int_equal(reply->error, 0);
	return reply;
}

static struct link *link_open(void)
{
	struct link *l = calloc(1, sizeof(*l));
	Arena__Request rq = ARENA__REQUEST__INIT;
	Arena__Hello hello = ARENA__HELLO__INIT;
	Arena__Attach attach = ARENA__ATTACH__INIT;
	void *channel;

	assert_non_null(l);
	l->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(l->fd, (struct sockaddr *)&address, sizeof(address)), 0);
	rq.call_case = ARENA__REQUEST__CALL_HELLO;
	rq.hello = &hello;
	hello.abi_major = ARENA_ABI_MAJOR;
	hello.abi_minor = ARENA_ABI_MINOR;
	packet_call(l, &rq);
	rq.call_case = ARENA__REQUEST__CALL_ATTACH;
	rq.attach = &attach;
	attach.window_base = ARENA_WINDOW_BASE;
	attach.window_size = UINT64_C(64) << 30;
	packet_call(l, &rq);
	assert_int_equal(l->nr_fds, 4);
	l->doorbell = l->fds[2];
	assert_int_equal(os_map(l->fds[1], 0, ARENA_CHANNEL_BITS, OS_MAP_WRITE, &channel), 0);
	l->channel = channel;
	return l;
}

static void link_close(struct link *l)
{
	for (unsigned i = 0; i < l->nr_fds; i++)
		close(l->fds[i]);
	os_unmap(l->channel, ARENA_CHANNEL_BITS);
	close(l->fd);
	free(l);
}

static struct arena_mailbox *link_mailbox(struct link *l, unsigned i)
{
	char *channel = (char *)l->channel;

	return (struct arena_mailbox *)(void *)(channel + ARENA_CHANNEL_MAILBOXES) + i;
}

/* A request as docs/protocol.md has it; true if the doorbell had to be rung. */
static bool post(struct link *l, unsigned i, Arena__Request *rq)
{
	struct arena_mailbox *mb = link_mailbox(l, i);
	size_t len;

	assert_int_equal(frame_pack_request(rq, mb->payload, sizeof(mb->payload), &len), 0);
	mb->len = (uint32_t)len;
	mb->request_id++;
	store_release(&mb->state, (uint32_t)ARENA_MAILBOX_REQUEST);
	__atomic_fetch_or(&l->channel->pending, UINT64_C(1) << i, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&l->channel->daemon_poll, __ATOMIC_SEQ_CST))
		return false;
	assert_int_equal(os_eventfd_ring(l->doorbell), 0);
	return true;
}

/* Wait for the answer; a lost call fails the test after ten seconds. */
static void await(struct link *l, unsigned i, unsigned spins)
{
	struct arena_mailbox *mb = link_mailbox(l, i);
	uint32_t state = ARENA_MAILBOX_REQUEST;

	while (spins-- && load_acquire(&mb->state) != ARENA_MAILBOX_REPLY)
		;
	__atomic_compare_exchange_n(&mb->state, &state, ARENA_MAILBOX_REQUEST_WAIT, false,
				    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	while (load_acquire(&mb->state) != ARENA_MAILBOX_REPLY)
		if (os_futex_wait(&mb->state, ARENA_MAILBOX_REQUEST_WAIT, 10 * NSEC_PER_SEC) ==
		    -ETIMEDOUT)
			fail_msg("a call was lost");
	store_release(&mb->state, (uint32_t)ARENA_MAILBOX_FREE);
}

static void null_request(Arena__Request *rq)
{
	static Arena__Null null = ARENA__NULL__INIT;

	arena__request__init(rq);
	rq->call_case = ARENA__REQUEST__CALL_NULL;
	rq->null = &null;
}

static void pause_for(uint64_t ns)
{
	uint64_t until = clock_now() + ns;

	while (clock_now() < until)
		;
}

/* Gaps of every length around the budget, so that calls meet the daemon at each step to sleep. */
static void test_no_call_lost(void **state)
{
	struct prng rng = {.state = client_seed()};
	struct link *l = link_open();
	Arena__Request rq;
	unsigned rung = 0;

	(void)state;
	null_request(&rq);
	for (unsigned n = 0; n < CALLS; n++) {
		unsigned i = n % ARENA_NR_MAILBOXES;

		rung += post(l, i, &rq);
		await(l, i, (unsigned)prng_below(&rng, 2000));
		if (n % 4 == 0)
			pause_for(prng_below(&rng, 80 * NSEC_PER_USEC));
	}
	assert_true(rung > 0);
	link_close(l);
}

/* Two clients at once, with all mailboxes of one full. */
static void test_fair(void **state)
{
	struct link *busy = link_open(), *other = link_open();
	Arena__Request rq;

	(void)state;
	null_request(&rq);
	for (unsigned n = 0; n < 500; n++) {
		for (unsigned i = 0; i < ARENA_NR_MAILBOXES; i++)
			post(busy, i, &rq);
		post(other, 0, &rq);
		await(other, 0, 100);
		for (unsigned i = 0; i < ARENA_NR_MAILBOXES; i++)
			await(busy, i, 100);
	}
	link_close(busy);
	link_close(other);
}

static unsigned long wakeups(void)
{
	_cleanup_(fclosep) FILE *f = NULL;
	char path[64], line[128];
	unsigned long n = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)server);
	f = fopen(path, "re");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "voluntary_ctxt_switches: %lu", &n) == 1)
			break;
	return n;
}

/* Until the server has not woken for a while. */
static void await_quiet(void)
{
	unsigned long before;

	do {
		before = wakeups();
		usleep(50000);
	} while (wakeups() != before);
}

static void test_idle_sleeps(void **state)
{
	struct link *l = link_open(), *silent = link_open();
	unsigned long before;
	Arena__Request rq;

	(void)state;
	null_request(&rq);
	for (unsigned i = 0; i < 100; i++) {
		post(l, 0, &rq);
		await(l, 0, 1000);
	}
	await_quiet();
	assert_int_equal(load_relaxed(&l->channel->daemon_poll), 0);
	before = wakeups();
	usleep(500000);
	assert_int_equal(wakeups(), before);
	link_close(l);
	link_close(silent);
}

/* A client that never acknowledges is asked twice, and then it is quiet again. */
static void test_debt_sleeps(void **state)
{
	struct link *l = link_open();
	Arena__Request rq = ARENA__REQUEST__INIT;
	Arena__Mmap m = ARENA__MMAP__INIT;
	Arena__Populate populate = ARENA__POPULATE__INIT;
	Arena__Munmap munmap = ARENA__MUNMAP__INIT;
	unsigned long before;
	unsigned woken = 0;

	(void)state;
	rq.call_case = ARENA__REQUEST__CALL_MMAP;
	rq.mmap = &m;
	m.length = 8192;
	m.prot = PROT_READ | PROT_WRITE;
	m.flags = MAP_PRIVATE | MAP_ANONYMOUS;
	munmap.address = populate.address = packet_call(l, &rq)->address->address;
	munmap.length = populate.length = 8192;
	populate.write = 1;
	rq.call_case = ARENA__REQUEST__CALL_POPULATE;
	rq.populate = &populate;
	packet_call(l, &rq);
	rq.call_case = ARENA__REQUEST__CALL_MUNMAP;
	rq.munmap = &munmap;
	assert_int_not_equal(packet_call(l, &rq)->flush_seq, 0);
	/* After 5 and 50 ms the flush thread, if there were one, is woken; then no more. On a busy
	 * machine the first may be over before this thread waits for it. */
	for (unsigned asked = 0; asked < 2; asked++)
		woken += os_futex_wait(&l->channel->flush_word, (uint32_t)l->channel->flush_head,
				       NSEC_PER_SEC) == 0;
	assert_in_range(woken, 1, 2);
	assert_int_equal(load_relaxed(&l->channel->flush_kick), 1);
	await_quiet();
	before = wakeups();
	usleep(300000);
	assert_int_equal(wakeups(), before);
	/* Paying late is possible; the daemon hears of it by the doorbell. */
	store_release(&l->channel->flush_ack, load_acquire(&l->channel->flush_head));
	os_eventfd_ring(l->doorbell);
	link_close(l);
}

/* Killed in the middle of calls; teardown finds out whether anything was left behind. */
static void test_death(void **state)
{
	struct prng rng = {.state = client_seed()};

	(void)state;
	for (unsigned n = 0; n < 20; n++) {
		pid_t child = fork();

		if (child == 0) {
			struct link *l = link_open();
			Arena__Request rq = ARENA__REQUEST__INIT;
			Arena__AllocPages alloc = ARENA__ALLOC_PAGES__INIT;

			rq.call_case = ARENA__REQUEST__CALL_ALLOC_PAGES;
			rq.alloc_pages = &alloc;
			for (unsigned i = 0;; i++) {
				post(l, i % ARENA_NR_MAILBOXES, &rq);
				await(l, i % ARENA_NR_MAILBOXES, 100);
			}
		}
		assert_true(child > 0);
		usleep((useconds_t)prng_below(&rng, 5000));
		kill(child, SIGKILL);
		assert_int_equal(waitpid(child, NULL, 0), child);
	}
	/* It has heard of all of them before it is told to stop. */
	await_quiet();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_call_lost), cmocka_unit_test(test_fair),
		cmocka_unit_test(test_idle_sleeps),  cmocka_unit_test(test_debt_sleeps),
		cmocka_unit_test(test_death),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, setup, teardown);
}
