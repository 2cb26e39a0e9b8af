/* SPDX-License-Identifier: MIT */
/*
 * What a worker's end means to the supervisor, and that what it had kept comes back: in order, with
 * names, by thousands. The worker is a fake one (supervised.h).
 */
#include "tests/supervised.h"

#include <sys/un.h>

/* ---- descriptors --------------------------------------------------------------------------- */

/* Each message counts in its order, also those that a worker sends right before it dies. */
static void test_kept_in_order(void **state)
{
	struct supervised t;

	(void)state;
	start(&t, &(struct supervised_params){0});
	expect_start(&t);
	order(&t, "notify READY=1;add mm-1;add mm-2;add state;remove mm-1;add mm-10;add mm-1 again;"
		  "remove mm-2;signal 9");
	expect_start(&t);
	ask(&t, "take mm-2", "mm-2:");
	ask(&t, "take mm-1", "mm-1: again");
	ask(&t, "take mm-10", "mm-10: mm-10");
	ask(&t, "take mm", "mm:");
	/* What was not taken stays kept, and what was taken, too. */
	order(&t, "notify READY=1;signal 9");
	expect_start(&t);
	ask(&t, "take state", "state: state");
	ask(&t, "take mm-1", "mm-1: again");
	ask(&t, "drop", "1");
	ask(&t, "take mm-10", "mm-10:");
	order(&t, "notify READY=1;signal 9");
	expect_start(&t);
	ask(&t, "take mm-10", "mm-10:");
	ask(&t, "take state", "state: state");
	stop(&t);
}

static void test_names_repeat(void **state)
{
	struct supervised t;

	(void)state;
	start(&t, &(struct supervised_params){0});
	expect_start(&t);
	order(&t, "notify READY=1;add x 1;add y 2;add x 3;signal 9");
	expect_start(&t);
	order(&t, "take x");
	hear(&t);
	assert_true(!strcmp(t.packet, "x: 1 3") || !strcmp(t.packet, "x: 3 1"));
	expect(&t, "ok");
	order(&t, "notify READY=1;remove x;signal 9");
	expect_start(&t);
	ask(&t, "take x", "x:");
	ask(&t, "take y", "y: 2");
	stop(&t);
}

/* More than a variable of the environment can name. */
static void test_thousands(void **state)
{
	struct supervised t;
	struct rlimit limit;
	char command[32], text[16];
	unsigned n = 12000;
	uint64_t begin, ms;

	(void)state;
	raise_limit();
	getrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur <= COMMAND_FD_HIGH)
		skip();
	start(&t, &(struct supervised_params){.high = 1});
	expect_start(&t);
	snprintf(command, sizeof(command), "notify READY=1;many %u", n);
	tell(&t, command);
	for (unsigned i = 0; i < 3; i++) {
		begin = clock_now();
		order(&t, "notify READY=1;signal 9");
		expect_start(&t);
		ms = (clock_now() - begin) / NSEC_PER_MSEC;
		print_message("%u descriptors handed down in %llu ms\n", n, (unsigned long long)ms);
		snprintf(text, sizeof(text), "%u", n);
		ask(&t, "count", text);
	}
	stop(&t);
}

/* Nobody but the worker is listened to. */
static void test_strangers(void **state)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	static const char *const lies[] = {"FDSTORE=1\nFDNAME=lie", "READY=1", "STOPPING=1",
					   "FDSTOREREMOVE=1\nFDNAME=state",
					   "X_ARENAD_PROGRAM=/bin/false"};
	struct supervised t;
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), file = make_file("lie");

	(void)state;
	start(&t, &(struct supervised_params){0});
	expect_start(&t);
	tell(&t, "notify READY=1;add state");
	order(&t, "address");
	strcpy(sun.sun_path, hear(&t));
	assert_int_equal(sun.sun_path[0], '@');
	sun.sun_path[0] = '\0';
	expect(&t, "ok");
	for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
		char control[CMSG_SPACE(sizeof(int))] = {0};
		struct iovec iov = {(void *)(uintptr_t)lies[i], strlen(lies[i])};
		struct msghdr msg = {.msg_name = &sun,
				     .msg_namelen =
					     (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
							 1 + strlen(sun.sun_path + 1)),
				     .msg_iov = &iov,
				     .msg_iovlen = 1,
				     .msg_control = control,
				     .msg_controllen = sizeof(control)};
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &file, sizeof(int));
		assert_int_equal(sendmsg(fd, &msg, 0), strlen(lies[i]));
	}
	order(&t, "signal 9");
	expect_start(&t);
	ask(&t, "take lie", "lie:");
	ask(&t, "take state", "state: state");
	stop(&t);
	close(fd);
	close(file);
}

/* What the supervisor itself was started with is the first worker's. */
static void test_adopted(void **state)
{
	struct supervised t;
	int file = make_file("content");

	(void)state;
	start(&t, &(struct supervised_params){.listen_fd = file});
	for (unsigned i = 0; i < 2; i++) {
		expect_start(&t);
		ask(&t, "take given", "given: content");
		if (!i)
			order(&t, "signal 9");
	}
	stop(&t);
	close(file);
}

/* ---- deaths -------------------------------------------------------------------------------- */

/* Whoever kills at random does so also while the next one starts, and that is no reason to end. */
static void test_killed(void **state)
{
	struct supervised t;
	uint64_t worst = 0, best = UINT64_MAX, begin, ns;

	(void)state;
	start(&t, &(struct supervised_params){0});
	for (unsigned i = 0; i < 30; i++) {
		expect_start(&t);
		order(&t, "signal 9");
	}
	expect_start(&t);
	for (unsigned i = 0; i < 30; i++) {
		begin = clock_now();
		order(&t, "notify READY=1;signal 9");
		expect_start(&t);
		ns = clock_now() - begin;
		worst = MAX(worst, ns);
		best = MIN(best, ns);
	}
	print_message("from a kill to the next worker: %.1f to %.1f ms\n", (double)best / 1e6,
		      (double)worst / 1e6);
	/* From outside, and not between two commands. */
	tell(&t, "notify READY=1");
	assert_int_equal(kill(t.worker, SIGKILL), 0);
	expect_start(&t);
	assert_int_equal(log_lines(&t, "SIGKILL"), 61);
	assert_int_equal(log_lines(&t, "giving up"), 0);
	stop(&t);
}

static void test_back_off(void **state)
{
	struct supervised t;
	uint64_t begin;

	(void)state;
	start(&t, &(struct supervised_params){0});
	expect_start(&t);
	tell(&t, "notify READY=1;add state;keep");
	for (unsigned i = 0; i < 4; i++) {
		begin = clock_now();
		/* A crash soon after READY, or an exit before it: both are early. */
		order(&t, i % 2 ? "exit 1" : "notify READY=1;signal 11");
		expect_start(&t);
		assert_true(clock_now() - begin >= NSEC_PER_MSEC << i);
	}
	assert_int_equal(log_lines(&t, "giving up"), 0);
	order(&t, "signal 6");
	await_log(&t, "giving up");
	assert_int_equal(log_lines(&t, "<3>"), 5);
	assert_int_equal(log_lines(&t, "SIGABRT"), 1);
	/* Nobody waits for an answer any more, and what was kept is there to be looked at. */
	assert_int_equal(recv(t.fd, t.packet, 1, 0), 0);
	{
		char path[64], link[64];
		unsigned files = 0;

		for (int fd = 3; fd < 64; fd++) {
			ssize_t n;

			snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)t.pid, fd);
			n = readlink(path, link, sizeof(link) - 1);
			link[n > 0 ? n : 0] = '\0';
			files += strncmp(link, "/memfd:fake", 11) == 0;
		}
		assert_int_equal(files, 1);
	}
	assert_int_equal(kill(t.pid, SIGTERM), 0);
	assert_int_equal(ended(&t), 1);
}

/* One that lived has atoned for those before it. */
static void test_life_forgives(void **state)
{
	struct supervised t;

	(void)state;
	start(&t, &(struct supervised_params){0});
	expect_start(&t);
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < 4; i++) {
			order(&t, "notify READY=1;signal 11");
			expect_start(&t);
		}
		tell(&t, "notify READY=1");
		poll(NULL, 0, 1100); /* the life that is looked at */
		order(&t, "signal 11");
		expect_start(&t);
	}
	assert_int_equal(log_lines(&t, "giving up"), 0);
	stop(&t);
}

/* Nothing was ever served, so there is nothing to keep: its status is the daemon's. */
static void test_never_ready(void **state)
{
	struct supervised t;

	(void)state;
	start(&t, &(struct supervised_params){0});
	expect_start(&t);
	order(&t, "exit 3");
	assert_int_equal(ended(&t), 3);
	assert_string_equal(t.log, "");

	start(&t, &(struct supervised_params){0});
	for (unsigned i = 0; i < 5; i++) {
		expect_start(&t);
		order(&t, "signal 11");
	}
	assert_int_equal(ended(&t), 1);
	assert_int_equal(log_lines(&t, "SIGSEGV"), 5);
	assert_int_equal(log_lines(&t, "not starting another"), 1);
}

/* ---- hanging ------------------------------------------------------------------------------- */

static void test_watchdog(void **state)
{
	struct supervised t;
	uint64_t begin;

	(void)state;
	start(&t, &(struct supervised_params){.watchdog_ms = 400});
	expect_start(&t);
	ask(&t, "watchdog", "400000");
	begin = clock_now();
	tell(&t, "ping 100;notify READY=1");
	while (clock_now() - begin < 1600 * NSEC_PER_MSEC)
		poll(NULL, 0, 100); /* the time in which nothing must happen */
	assert_int_equal(log_lines(&t, "hang"), 0);
	/* Alive, but silent. */
	begin = clock_now();
	tell(&t, "ping 0");
	expect_start(&t);
	assert_true(clock_now() - begin >= 200 * NSEC_PER_MSEC);
	assert_int_equal(log_lines(&t, "SIGABRT"), 1);
	/* Stopped: it does not hear SIGABRT. */
	order(&t, "notify READY=1;signal 19");
	expect_start(&t);
	assert_int_equal(log_lines(&t, "hung and was ended by signal 9"), 1);
	/* Before READY nothing is expected yet. */
	poll(NULL, 0, 800);
	tell(&t, "notify READY=1;ping 100");
	stop(&t);
}

/* ---- stopping ------------------------------------------------------------------------------ */

static void test_stop(void **state)
{
	static const int signals[] = {SIGTERM, SIGINT};
	struct supervised t;
	char text[16];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
		start(&t, &(struct supervised_params){0});
		expect_start(&t);
		tell(&t, "notify READY=1");
		kill(t.pid, SIGHUP);
		expect(&t, "heard 1");
		kill(t.pid, signals[i]);
		snprintf(text, sizeof(text), "heard %d", signals[i]);
		expect(&t, text);
		order(&t, "exit 0");
		assert_int_equal(ended(&t), 0);
		assert_string_equal(t.log, "");
	}
	/* The worker may be told as well. */
	start(&t, &(struct supervised_params){0});
	expect_start(&t);
	tell(&t, "notify READY=1");
	kill(t.worker, SIGTERM);
	expect(&t, "heard 15");
	order(&t, "notify STOPPING=1;exit 0");
	assert_int_equal(ended(&t), 0);
}

/* A signal that comes before the worker can hear it is not lost, and kills nobody. */
static void test_stop_early(void **state)
{
	struct supervised t;

	(void)state;
	for (unsigned i = 0; i < 20; i++) {
		bool heard = false;
		int n;

		start(&t, &(struct supervised_params){0});
		/* The moment is the input: from before the first worker to after. */
		poll(NULL, 0, (int)i / 4);
		kill(t.pid, SIGTERM);
		while ((n = (int)recv(t.fd, t.packet, PACKET_MAX - 1, 0)) > 0) {
			t.packet[n] = '\0';
			if (strcmp(t.packet, "heard 15") != 0)
				continue;
			heard = true;
			order(&t, "exit 0");
		}
		if (heard)
			assert_int_equal(ended(&t), 0);
		else {
			/* It had not even blocked its signals. */
			int status;

			assert_int_equal(waitpid(t.pid, &status, 0), t.pid);
			assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
			close(t.fd);
			close(t.log_fd);
		}
	}
}

/* Killed at its last work, it is followed by one that finishes it. */
static void test_killed_at_stop(void **state)
{
	struct supervised t;

	(void)state;
	start(&t, &(struct supervised_params){0});
	expect_start(&t);
	tell(&t, "notify READY=1;add state");
	kill(t.pid, SIGTERM);
	expect(&t, "heard 15");
	order(&t, "notify STOPPING=1;signal 9");
	expect_start(&t);
	expect(&t, "heard 15");
	ask(&t, "take state", "state: state");
	order(&t, "notify READY=1;notify STOPPING=1;exit 0");
	assert_int_equal(ended(&t), 0);

	/* Crashing at it ends it. */
	start(&t, &(struct supervised_params){0});
	expect_start(&t);
	tell(&t, "notify READY=1");
	kill(t.pid, SIGTERM);
	expect(&t, "heard 15");
	order(&t, "notify STOPPING=1;signal 11");
	assert_int_equal(ended(&t), 1);
}

/* Without its supervisor a worker is told so, and what it wants kept is no error. */
static void test_supervisor_dies(void **state)
{
	struct supervised t;
	int status;

	(void)state;
	start(&t, &(struct supervised_params){0});
	expect_start(&t);
	tell(&t, "notify READY=1;add state");
	kill(t.pid, SIGKILL);
	assert_int_equal(waitpid(t.pid, &status, 0), t.pid);
	ask(&t, "orphaned", "1 0");
	await_log(&t, "has died");
	assert_int_equal(log_lines(&t, "<3>"), 1);
	ask(&t, "kept", "0");
	tell(&t, "add more;remove state;notify WATCHDOG=1");
	assert_int_equal(log_lines(&t, "<3>"), 1);
	order(&t, "exit 0");
	assert_int_equal(recv(t.fd, t.packet, 1, 0), 0);
	close(t.fd);
	close(t.log_fd);
}

/* ---- other programs ------------------------------------------------------------------------ */

static void copy_program(const char *to)
{
	char buf[65536];
	int in = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
	ssize_t n;

	assert_true(in >= 0 && out >= 0);
	while ((n = read(in, buf, sizeof(buf))) > 0)
		assert_int_equal(write(out, buf, (size_t)n), n);
	assert_int_equal(fchmod(out, 0755), 0);
	close(in);
	close(out);
}

static void expect_program(struct supervised *t, const char *path)
{
	char text[1024];

	snprintf(text, sizeof(text), "%s %s", path, path);
	ask(t, "who", text);
}

static void test_upgrade(void **state)
{
	static const char *const bad[] = {"/bin/false", "/etc/passwd"};
	char old[512] = "", new[] = "/tmp/unit_main_supervisor.XXXXXX", command[600];
	struct supervised t;
	int fd = mkstemp(new);

	(void)state;
	assert_true(fd >= 0);
	close(fd);
	copy_program(new);
	assert_true(readlink("/proc/self/exe", old, sizeof(old) - 1) > 0);
	start(&t, &(struct supervised_params){0});
	expect_start(&t);
	tell(&t, "notify READY=1;add state");
	expect_program(&t, old);
	snprintf(command, sizeof(command), "program %s", new);
	ask(&t, command, "0");
	order(&t, "exit 75");
	expect_start(&t);
	expect_program(&t, new);
	ask(&t, "take state", "state: state");
	/* From here on it is the one that is started, whatever becomes of the file. */
	tell(&t, "notify READY=1");
	assert_int_equal(unlink(new), 0);
	order(&t, "signal 9");
	expect_start(&t);
	snprintf(command, sizeof(command), "%s (deleted) %s", new, new);
	ask(&t, "who", command);
	assert_int_equal(log_lines(&t, "<3>"), 0);
	/* One that does not get ready is not tried again. */
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		snprintf(command, sizeof(command), "program %s", bad[i]);
		ask(&t, command, "0");
		order(&t, "notify READY=1;exit 75");
		expect_start(&t);
		snprintf(command, sizeof(command), "%s (deleted) %s", new, new);
		ask(&t, "who", command);
		ask(&t, "take state", "state: state");
		assert_int_equal(log_lines(&t, "does not get ready"), i + 1);
	}
	stop(&t);
}

/* The program's file is replaced or gone: a death is followed by the same program all the same. */
static void test_program_deleted(void **state)
{
	char path[] = "/tmp/unit_main_supervisor.XXXXXX", answer[200];
	struct supervised t;
	int fd = mkstemp(path);

	(void)state;
	assert_true(fd >= 0);
	close(fd);
	copy_program(path);
	start(&t, &(struct supervised_params){.program = path});
	expect_start(&t);
	expect_program(&t, path);
	assert_int_equal(unlink(path), 0);
	order(&t, "notify READY=1;signal 9");
	expect_start(&t);
	snprintf(answer, sizeof(answer), "%s (deleted) %s", path, path);
	ask(&t, "who", answer);
	stop(&t);
}

static void test_faults_once(void **state)
{
	struct supervised t;

	(void)state;
	start(&t, &(struct supervised_params){.environment = "ARENA_FAULTPOINTS=truth=die@3"});
	expect_start(&t);
	ask(&t, "faults", "truth=die@3");
	order(&t, "notify READY=1;signal 9");
	expect_start(&t);
	ask(&t, "faults", "none");
	stop(&t);
}

/* ---- somebody above the supervisor --------------------------------------------------------- */

static void expect_told(int fd, const char *text)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char got[128];
	ssize_t n;

	assert_int_equal(poll(&p, 1, WAIT_MS), 1);
	n = recv(fd, got, sizeof(got) - 1, 0);
	assert_true(n > 0);
	got[n] = '\0';
	assert_string_equal(got, text);
}

static void test_passed_up(void **state)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	char environment[160];
	struct supervised t;

	(void)state;
	snprintf(sun.sun_path, sizeof(sun.sun_path), "/tmp/unit_main_supervisor.%d", (int)getpid());
	assert_int_equal(bind(fd, (void *)&sun, sizeof(sun)), 0);
	snprintf(environment, sizeof(environment), "NOTIFY_SOCKET=%s", sun.sun_path);
	start(&t, &(struct supervised_params){.environment = environment});
	expect_start(&t);
	tell(&t, "add state;notify READY=1;notify STATUS=fine");
	expect_told(fd, "READY=1");
	expect_told(fd, "STATUS=fine");
	kill(t.pid, SIGTERM);
	expect(&t, "heard 15");
	order(&t, "notify STOPPING=1;exit 0");
	expect_told(fd, "STOPPING=1");
	assert_int_equal(ended(&t), 0);
	unlink(sun.sun_path);
	close(fd);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kept_in_order),  cmocka_unit_test(test_names_repeat),
		cmocka_unit_test(test_thousands),      cmocka_unit_test(test_strangers),
		cmocka_unit_test(test_adopted),        cmocka_unit_test(test_killed),
		cmocka_unit_test(test_back_off),       cmocka_unit_test(test_life_forgives),
		cmocka_unit_test(test_never_ready),    cmocka_unit_test(test_watchdog),
		cmocka_unit_test(test_stop),           cmocka_unit_test(test_stop_early),
		cmocka_unit_test(test_killed_at_stop), cmocka_unit_test(test_supervisor_dies),
		cmocka_unit_test(test_upgrade),        cmocka_unit_test(test_program_deleted),
		cmocka_unit_test(test_faults_once),    cmocka_unit_test(test_passed_up),
	};

	be_supervised(argc, argv);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
