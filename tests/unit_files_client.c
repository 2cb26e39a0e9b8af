/* SPDX-License-Identifier: MIT */
/*
 * unit_files_client.c - what the tree says of clients: /proc/PID, the tables of clients and
 * segments, status. The client is an address space made here, with a name that tries to break
 * the lines.
 */
#include <fcntl.h>
#include <sys/mman.h>

#include "tests/files_machine.h"

#define PID 4242
#define UID 1000
#define NAME_COLUMN 73

static struct mm *mm;
static uint64_t anon, shared, segment;

static int map(uint64_t len, uint32_t prot, uint32_t flags, uint32_t handle, uint64_t *out)
{
	const struct vm_mmap_args args = {
		.len = len, .prot = prot, .flags = flags, .segment = handle};

	return vm_mmap(mm, &args, out);
}

static int touch(uint64_t addr)
{
	struct fault_refusal refusal;

	return vm_fault(mm, addr, PROT_WRITE, 0, &refusal) || refusal.signo;
}

static int boot_client(void **state)
{
	const struct credentials cred = {.pid = PID, .uid = UID, .gid = UID};
	const struct mm_params params = {
		.window_base = ARENA_WINDOW_BASE,
		.window_size = UINT64_C(1) << 40,
		.cred = &cred,
		.comm = "a b\nc\\d",
	};
	struct segment_open so = {.name = "two words", .oflag = O_RDWR | O_CREAT, .mode = 0640};

	if (boot(state) || mm_create(machine.virt, &params, &mm))
		return -1;
	if (map(4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0, &anon) ||
	    map(MIB, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, 0, &shared) ||
	    mm_open_segment(mm, &cred, &so) || mm_truncate_segment(mm, so.handle, 3 * MIB, NULL) ||
	    map(2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, so.handle, &segment))
		return -1;
	return touch(anon) || touch(segment) ? -1 : 0;
}

static int shut_down_client(void **state)
{
	const struct credentials cred = {.pid = PID, .uid = UID, .gid = UID};

	mm = mm_destroy(mm);
	if (segment_unlink(machine.virt, &cred, "two words"))
		return -1;
	return shut_down(state);
}

static void test_directory(void **state __unused_)
{
	char *text = text_of("proc");

	assert_non_null(strstr(text, "\n4242/\n"));
	free(text);
	assert_text("proc/4242", "comm\nmaps\nstatm\nstatus\n");
	assert_int_equal(read_as(&root, "proc/4243"), ARENA_E_NOT_FOUND);
	assert_int_equal(read_as(&root, "proc/4242/smaps"), ARENA_E_NOT_FOUND);
	assert_text("proc/4242/comm", "a b\\012c\\134d\n");
}

static void test_access(void **state __unused_)
{
	const struct credentials self = {.pid = PID, .uid = UID};

	assert_int_equal(read_as(&self, "proc/4242/maps"), 0);
	assert_int_equal(read_as(&stranger, "proc/4242/maps"), ARENA_E_ACCESS);
	assert_int_equal(read_as(&stranger, "proc/4242/status"), 0);
	assert_int_equal(read_as(&stranger, "sys/kernel/mm/arena/clients"), 0);
}

/* The line of the mapping at `addr`; NULL: none. */
static char *find_mapping(char *text, uint64_t addr, char *line, size_t size)
{
	char want[32];
	char *at;

	snprintf(want, sizeof(want), "%" PRIx64 "-", addr);
	at = strstr(text, want);
	if (!at)
		return NULL;
	snprintf(line, size, "%.*s", (int)strcspn(at, "\n"), at);
	return line;
}

static void test_maps(void **state __unused_)
{
	char *text = text_of("proc/4242/maps");
	char line[512];
	uint64_t last = 0;

	assert_non_null(find_mapping(text, anon, line, sizeof(line)));
	assert_matches(line, "^[0-9a-f]{12}-[0-9a-f]{12} rw-p 00000000 00:00 0 $");
	assert_non_null(find_mapping(text, shared, line, sizeof(line)));
	assert_matches(
		line,
		"^[0-9a-f]+-[0-9a-f]+ r--s 00000000 00:01 [1-9][0-9]* +/dev/zero \\(deleted\\)$");
	assert_string_equal(line + NAME_COLUMN, "/dev/zero (deleted)");
	assert_non_null(find_mapping(text, segment, line, sizeof(line)));
	assert_matches(line, "^[0-9a-f]+-[0-9a-f]+ rw-s 00000000 00:01 [1-9][0-9]* +/two words$");
	assert_string_equal(line + NAME_COLUMN, "/two words");
	for (char *rest = text, *l; (l = strsep(&rest, "\n")) && *l;) {
		assert_true(strtoull(l, NULL, 16) >= last);
		last = strtoull(strchr(l, '-') + 1, NULL, 16);
	}
	free(text);
}

static uint64_t status_kb(const char *text, const char *label)
{
	char want[64];
	const char *line;

	snprintf(want, sizeof(want), "\n%s:\t", label);
	line = strstr(text, want);
	assert_non_null(line);
	line += strlen(want);
	assert_matches(line, "^ *[0-9]+ kB\n");
	assert_true(strcspn(line, "k") >= 9);
	return strtoull(line, NULL, 10);
}

static void test_status(void **state __unused_)
{
	char *text = text_of("proc/4242/status");
	char *statm = text_of("proc/4242/statm");
	unsigned long size, resident, shared_pages;
	struct mm_stats st;

	mm_get_stats(mm, &st);
	assert_matches(text, "^Name:\ta b\\\\012c\\\\134d\nTgid:\t4242\nPid:\t4242\n"
			     "Uid:\t1000\t1000\t1000\t1000\n");
	assert_non_null(
		strstr(text, "\nMems_allowed:\t00000000,00000003\nMems_allowed_list:\t0-1\n"));
	assert_int_equal(status_kb(text, "VmSize"), st.total_vm * 4);
	assert_int_equal(status_kb(text, "VmRSS"),
			 status_kb(text, "RssAnon") + status_kb(text, "RssShmem"));
	assert_int_equal(status_kb(text, "RssFile"), 0);
	assert_int_equal(status_kb(text, "RssAnon"), st.rss_anon * 4);
	assert_true(st.rss_anon > 0 && st.rss_shmem > 0);
	assert_int_equal(status_kb(text, "VmPTE"), st.tables * 4);
	assert_int_equal(
		sscanf(statm, "%lu %lu %lu %*u 0 %*u 0\n", &size, &resident, &shared_pages), 3);
	assert_int_equal(size, st.total_vm);
	assert_int_equal(resident, st.rss_anon + st.rss_shmem);
	assert_int_equal(shared_pages, st.rss_shmem);
	free(text);
	free(statm);
}

/* Of a file what is present is RssFile, and a private copy RssAnon. */
static void test_file_rss(void **state __unused_)
{
	int fd = memfd_create("test", MFD_CLOEXEC);
	struct vm_mmap_args args = {
		.len = MIB, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE, .file = &fd};
	char *before = text_of("proc/4242/status"), *statm = text_of("proc/4242/statm"), *after;
	struct fault_refusal refusal;
	struct io_wait wait = {0};
	unsigned long resident, shared_pages;
	uint64_t at;

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 3 * ARENA_PAGE_SIZE), 0);
	assert_int_equal(vm_mmap(mm, &args, &at), 0);
	assert_int_equal(vm_fault(mm, at, PROT_READ, 0, &refusal), ARENA_E_WAIT_IO);
	virt_io_wait(machine.virt, &wait);
	while (wait.pending)
		virt_files_collect(machine.virt);
	assert_int_equal(vm_fault(mm, at, PROT_READ, 0, &refusal), 0);
	assert_int_equal(vm_fault(mm, at, PROT_WRITE, 0, &refusal), 0);
	after = text_of("proc/4242/status");
	assert_int_equal(status_kb(after, "RssFile"), 8);
	assert_int_equal(status_kb(after, "RssAnon"), status_kb(before, "RssAnon") + 4);
	assert_int_equal(status_kb(after, "RssShmem"), status_kb(before, "RssShmem"));
	assert_int_equal(status_kb(after, "VmRSS"), status_kb(before, "VmRSS") + 12);
	assert_true(virt_is_valid(machine.virt));
	assert_int_equal(sscanf(statm, "%*u %lu %lu", &resident, &shared_pages), 2);
	free(after);
	after = text_of("proc/4242/statm");
	free(before);
	before = NULL;
	assert_true(asprintf(&before, "%lu %lu ", resident + 3, shared_pages + 2) > 0);
	assert_int_equal(strncmp(strchr(after, ' ') + 1, before, strlen(before)), 0);
	assert_int_equal(vm_munmap(mm, at, MIB), 0);
	free(before);
	free(after);
	free(statm);
}

/* Two lines with as many fields each; the line of values. */
static char *check_table(char *text, unsigned columns)
{
	char *values = strchr(text, '\n') + 1;
	unsigned n[2] = {1, 1};

	for (char *s = text; *s != '\n'; s++)
		n[0] += *s == ' ';
	for (char *s = values; *s != '\n'; s++)
		n[1] += *s == ' ';
	assert_int_equal(n[0], columns);
	assert_int_equal(n[1], columns);
	assert_string_equal(strchr(values, '\n'), "\n");
	return values;
}

static void test_tables(void **state __unused_)
{
	char *text = text_of("sys/kernel/mm/arena/clients");
	char *values = check_table(text, 19);

	assert_matches(text, "^pid uid mm domain vm_kb ");
	assert_matches(values, "^4242 1000 [0-9]+ [0-9]+ ");
	assert_non_null(strstr(values, " a\\040b\\012c\\134d\n"));
	free(text);
	text = text_of("sys/kernel/mm/arena/segments");
	values = check_table(text, 12);
	assert_matches(text, "^id uid gid mode domain size_kb rss_kb address ");
	assert_matches(
		values,
		"^[0-9]+ 1000 1000 0640 [0-9]+ 3072 [0-9]+ 0x[0-9a-f]+ 1 1 0 two\\\\040words\n");
	free(text);
}

/* All keys without a dot come first, then node by node. */
static void test_arena_status(void **state __unused_)
{
	char *text = text_of("sys/kernel/mm/arena/status");
	unsigned dotted = 0;

	assert_int_equal(number_of(text, "arena_bytes"), ARENA_BYTES);
	assert_int_equal(number_of(text, "free_bytes"), phys_free_pages(machine.phys) * 4096);
	assert_int_equal(number_of(text, "clients"), 1);
	assert_int_equal(number_of(text, "segments"), 1);
	assert_int_equal(number_of(text, "faults"), 2);
	assert_int_equal(number_of(text, "nodes"), 2);
	assert_int_equal(number_of(text, "backed_bytes"), phys_backed_bytes(machine.phys));
	assert_true(number_of(text, "metadata_bytes") > 0);
	assert_int_equal(number_of(text, "node.0.total_bytes") +
				 number_of(text, "node.1.total_bytes"),
			 number_of(text, "total_bytes"));
	assert_int_equal(number_of(text, "zone.1.DMA.free_bytes") +
				 number_of(text, "zone.1.Normal.free_bytes") +
				 number_of(text, "zone.1.HighMem.free_bytes"),
			 number_of(text, "node.1.free_bytes"));
	for (char *rest = text, *line; (line = strsep(&rest, "\n")) && *line;) {
		if (matches(line, "^(node\\.[01]|zone\\.[01]\\.[A-Za-z]+)\\.[a-z_]+ [0-9]+$"))
			dotted++;
		else
			assert_false(dotted);
		assert_matches(line, "^[a-zA-Z0-9_.]+ ([0-9.]+|on|off)$");
	}
	assert_int_equal(dotted, 2 * (2 + 3 * 5));
	free(text);
}

/* A second address space of the same process is part of the same files. */
static void test_two_handles(void **state __unused_)
{
	const struct credentials cred = {.pid = PID, .uid = UID, .gid = UID};
	const struct mm_params params = {
		.window_base = ARENA_WINDOW_BASE,
		.window_size = UINT64_C(1) << 40,
		.cred = &cred,
		.comm = "again",
	};
	struct mm *first = mm;
	char *before = text_of("proc/4242/statm"), *after, *list;
	uint64_t addr;

	assert_int_equal(mm_create(machine.virt, &params, &mm), 0);
	assert_int_equal(map(MIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, 0, &addr), 0);
	after = text_of("proc/4242/statm");
	assert_int_equal(strtoull(after, NULL, 10), strtoull(before, NULL, 10) + MIB / 4096);
	list = text_of("proc");
	assert_null(strstr(strstr(list, "4242/") + 1, "4242/"));
	mm_destroy(mm);
	mm = first;
	free(before);
	free(after);
	free(list);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_directory), cmocka_unit_test(test_access),
		cmocka_unit_test(test_maps),      cmocka_unit_test(test_status),
		cmocka_unit_test(test_tables),    cmocka_unit_test(test_arena_status),
		cmocka_unit_test(test_file_rss),  cmocka_unit_test(test_two_handles),
	};

	return cmocka_run_group_tests(tests, boot_client, shut_down_client);
}
