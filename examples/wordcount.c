/* SPDX-License-Identifier: MIT */
/*
 * wordcount.c - several processes work on one structure with pointers in shared memory.
 *
 * The parent loads text files into a named segment, as a list of documents, each with its text and
 * a table of pointers to pieces of it. Then it starts workers: separate programs that open the
 * segment by its name, map it at the common address, and so follow the pointers as they stand. They
 * take pieces by an atomic counter and add up what they find in the segment. At the end wc -w
 * counts the same files.
 *
 *     base of the segment
 *     +------------+     +-----------+     +-----------+
 *     | struct job |---->| document  |---->| document  |----> NULL
 *     |  work[] ---+-+   |  text ----+->   |  pieces[] +-> piece, piece, ...
 *     +------------+ |   +-----------+     +-----------+     ^ text, len
 *                    +---------------------------------------+
 *
 * A word is what wc counts in the C locale: a run without white space that holds a printable
 * character. Pieces end behind white space, so no word lies in two of them.
 */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <arena/arena.h>

#include "examples/wordcount_files.h"

#define PIECE_SIZE ((size_t)256 << 10)
#define READ_SIZE ((size_t)1 << 20)
#define MAX_WORKERS 256

struct piece {
	const char *text;
	size_t len;
	struct document *document;
};

struct document {
	struct document *next;
	const char *name;
	const char *text;
	size_t size;
	struct piece **pieces; /* nr_pieces pointers */
	size_t nr_pieces;
	uint64_t words; /* atomic */
};

struct worker_report {
	uint64_t words, pieces, faults, refills;
};

struct job {
	struct job *self; /* where the parent mapped it */
	struct document *documents;
	struct piece **work; /* nr_work pointers */
	uint64_t nr_work;
	uint64_t next;  /* atomic: the next piece nobody has taken */
	uint64_t words; /* atomic */
	struct worker_report worker[MAX_WORKERS];
};

/* ---- the command line -------------------------------------------------------------------- */

struct options {
	const char *socket, *fallback;
	int workers;
	const char *segment; /* a worker: the segment's name */
	int worker_id;
	char **files;
	size_t nr_files;
};

enum { KEY_SOCKET = 's', KEY_JOBS = 'j', KEY_FALLBACK = 256, KEY_WORKER };

static const struct argp_option option_table[] = {
	{"jobs", KEY_JOBS, "WORKERS", 0, "processes that count (default: one a CPU, at least 2)",
	 0},
	{"socket", KEY_SOCKET, "PATH", 0, "the daemon's socket", 0},
	{"fallback", KEY_FALLBACK, "FILE", 0, "count this if the system has no documentation", 0},
	{"worker", KEY_WORKER, "ID:SEGMENT", OPTION_HIDDEN, NULL, 0},
	{0},
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;
	char *end;

	switch (key) {
	case KEY_JOBS:
		o->workers = (int)strtol(arg, &end, 10);
		if (*end || o->workers < 1 || o->workers > MAX_WORKERS)
			argp_error(state, "WORKERS is a number from 1 to %d", MAX_WORKERS);
		return 0;
	case KEY_SOCKET:
		o->socket = arg;
		return 0;
	case KEY_FALLBACK:
		o->fallback = arg;
		return 0;
	case KEY_WORKER:
		o->worker_id = (int)strtol(arg, &end, 10);
		if (*end != ':' || o->worker_id < 0 || o->worker_id >= MAX_WORKERS)
			argp_error(state, "bad worker");
		o->segment = end + 1;
		return 0;
	case ARGP_KEY_ARGS:
		o->files = state->argv + state->next;
		o->nr_files = (size_t)(state->argc - state->next);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp argp = {
	.options = option_table,
	.parser = parse_option,
	.args_doc = "[FILE...]",
	.doc = "Count words in files with several processes on one structure in shared arena "
	       "memory, "
	       "and compare with wc -w. Without files: the system's documentation.",
};

static volatile sig_atomic_t interrupted;

static void interrupt(int signo)
{
	interrupted = signo;
}

/* ---- counting ---------------------------------------------------------------------------- */

static bool is_space(unsigned char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

static uint64_t count_words(const char *text, size_t len)
{
	bool in_word = false;
	uint64_t words = 0;

	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (is_space(c)) {
			words += in_word;
			in_word = false;
		} else if (c > ' ' && c < 0x7f) {
			in_word = true;
		}
	}
	return words + in_word;
}

/* The field of `line` that stands below `name` in the line of headings. */
static uint64_t table_field(const char *headings, const char *line, const char *name)
{
	size_t len = strlen(name);

	while (*headings && *headings != '\n') {
		if (strcspn(headings, " \n") == len && memcmp(headings, name, len) == 0)
			return strtoull(line, NULL, 10);
		headings += strcspn(headings, " \n");
		headings += strspn(headings, " ");
		line += strcspn(line, " \n");
		line += strspn(line, " ");
	}
	return 0;
}

/* What the daemon's table of clients says of this process. */
static void read_own_counts(arena_t *a, struct worker_report *report)
{
	static char text[1 << 20];
	ssize_t n = arena_attr_read(a, "sys/kernel/mm/arena/clients", text, sizeof(text) - 1);
	const char *line = text;

	text[n > 0 ? n : 0] = '\0';
	while (line && table_field(text, line, "pid") != (uint64_t)getpid()) {
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	if (line) {
		report->faults = table_field(text, line, "faults");
		report->refills = table_field(text, line, "refills");
	}
}

static void work(struct job *job, struct worker_report *report)
{
	uint64_t i;

	while ((i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->nr_work) {
		struct piece *piece = job->work[i];
		uint64_t words = count_words(piece->text, piece->len);

		__atomic_fetch_add(&piece->document->words, words, __ATOMIC_RELAXED);
		__atomic_fetch_add(&job->words, words, __ATOMIC_RELAXED);
		report->words += words;
		report->pieces++;
	}
}

static int worker_main(arena_t *a, const struct options *o)
{
	arena_shm_t *s = arena_shm_open(a, o->segment, O_RDWR, 0);
	struct job *job;

	if (!s)
		return fail(o->segment);
	job = arena_shm_mmap(s, NULL, (size_t)arena_shm_size(s), PROT_READ | PROT_WRITE, MAP_SHARED,
			     0);
	if (job == MAP_FAILED)
		return fail("cannot map the segment");
	if (job->self != job) {
		fprintf(stderr, "wordcount: the segment is at %p here and at %p in the parent\n",
			(void *)job, (void *)job->self);
		return 1;
	}
	work(job, &job->worker[o->worker_id]);
	read_own_counts(a, &job->worker[o->worker_id]);
	arena_shm_close(s);
	return 0;
}

/* ---- loading ----------------------------------------------------------------------------- */

/* The segment is filled from its start up; what is taken is never given back. */
struct loader {
	char *base;
	size_t size, used;
	struct job *job;
	char *buffer; /* READ_SIZE bytes outside the arena */
};

static void *take(struct loader *l, size_t size)
{
	void *p = l->base + l->used;

	size = (size + 15) & ~(size_t)15;
	if (size > l->size - l->used)
		return NULL;
	l->used += size;
	return p;
}

/* What the files need at most, with the structure around them. */
static size_t segment_size(void)
{
	size_t size = sizeof(struct job);

	for (size_t i = 0; i < found.nr; i++)
		size += sizeof(struct document) + strlen(found.path[i]) + 64;
	size += found.bytes;
	size += (found.bytes / PIECE_SIZE + found.nr + 1) *
		(sizeof(struct piece) + 2 * sizeof(struct piece *) + 32);
	return size + (1 << 20);
}

/*
 * Read one file behind what is loaded. A system call cannot fault arena memory in, so the bytes
 * come through a buffer and are copied; what grew since it was looked at is cut off by the size.
 */
static int load_text(struct loader *l, struct document *d)
{
	int fd = open(d->name, O_RDONLY | O_CLOEXEC);
	char *text = l->base + l->used;
	ssize_t n = 0;

	if (fd < 0)
		return fail(d->name);
	while (d->size < l->size - l->used && (n = read(fd, l->buffer, READ_SIZE)) > 0) {
		size_t room = l->size - l->used - d->size;
		size_t len = (size_t)n < room ? (size_t)n : room;

		memcpy(text + d->size, l->buffer, len);
		d->size += len;
	}
	close(fd);
	if (n < 0)
		return fail(d->name);
	d->text = take(l, d->size);
	return 0;
}

/* The end of the piece that starts at `start`: behind white space, or the end of the text. */
static size_t piece_end(const struct document *d, size_t start)
{
	size_t end = start + PIECE_SIZE;

	if (end >= d->size)
		return d->size;
	while (end < d->size && !is_space((unsigned char)d->text[end - 1]))
		end++;
	return end;
}

static int cut_pieces(struct loader *l, struct document *d)
{
	size_t most = d->size / PIECE_SIZE + 1;

	d->pieces = take(l, most * sizeof(*d->pieces));
	if (!d->pieces)
		return -1;
	for (size_t start = 0, end; start < d->size; start = end) {
		struct piece *piece = take(l, sizeof(*piece));

		if (!piece)
			return -1;
		end = piece_end(d, start);
		*piece = (struct piece){d->text + start, end - start, d};
		d->pieces[d->nr_pieces++] = piece;
	}
	l->job->nr_work += d->nr_pieces;
	return 0;
}

/* One table of all pieces, for the counter to run over. */
static int make_work(struct loader *l)
{
	struct job *job = l->job;
	uint64_t n = 0;

	job->work = take(l, (job->nr_work + 1) * sizeof(*job->work));
	if (!job->work)
		return -1;
	for (struct document *d = job->documents; d; d = d->next)
		for (size_t i = 0; i < d->nr_pieces; i++)
			job->work[n++] = d->pieces[i];
	return 0;
}

static int load_files(struct loader *l)
{
	struct document **link;

	l->job = take(l, sizeof(*l->job));
	l->job->self = l->job;
	link = &l->job->documents;
	for (size_t i = 0; i < found.nr && !interrupted; i++) {
		struct document *d = take(l, sizeof(*d));
		char *name = d ? take(l, strlen(found.path[i]) + 1) : NULL;

		if (!name)
			return -1;
		d->name = strcpy(name, found.path[i]);
		if (load_text(l, d))
			return 1;
		if (cut_pieces(l, d))
			return -1;
		*link = d;
		link = &d->next;
	}
	return make_work(l);
}

/* ---- running the workers ----------------------------------------------------------------- */

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int run_workers(const struct options *o, const char *segment)
{
	pid_t pid[MAX_WORKERS];
	int started, failed = 0;

	for (started = 0; started < o->workers; started++) {
		char arg[300];
		char socket[] = "--socket";
		char program[] = "wordcount", worker[] = "--worker";
		char *argv[] = {program,
				worker,
				arg,
				o->socket ? socket : NULL,
				(char *)(uintptr_t)o->socket,
				NULL};
		int err;

		snprintf(arg, sizeof(arg), "%d:%s", started, segment);
		err = posix_spawn(&pid[started], "/proc/self/exe", NULL, NULL, argv, environ);
		if (err) {
			errno = err;
			failed = fail("cannot start a worker");
			break;
		}
	}
	for (int i = 0; i < started; i++) {
		int status;

		while (waitpid(pid[i], &status, 0) < 0 && errno == EINTR)
			;
		if (!WIFEXITED(status) || WEXITSTATUS(status)) {
			fprintf(stderr, "wordcount: worker %d ended with %s %d\n", i,
				WIFEXITED(status) ? "status" : "signal",
				WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
			failed = 1;
		}
	}
	return failed;
}

/* ---- the parent -------------------------------------------------------------------------- */

struct timing {
	double load, count, wc;
};

static void print_row(const char *label, uint64_t value, const char *note)
{
	printf("  %-10s %14" PRIu64 "  %s\n", label, value, note);
}

static void report(const struct job *job, const struct options *o, const struct timing *t,
		   uint64_t wc_words)
{
	struct worker_report sum = {0};
	uint64_t bytes = 0, busy = 0;
	char note[128];

	for (const struct document *d = job->documents; d; d = d->next)
		bytes += d->size;
	for (int i = 0; i < o->workers; i++) {
		sum.faults += job->worker[i].faults;
		sum.refills += job->worker[i].refills;
		busy += job->worker[i].pieces > 0;
	}
	snprintf(note, sizeof(note), "loaded at %.0f MB/s", (double)bytes / 1e6 / t->load);
	print_row("files", found.nr, "");
	print_row("bytes", bytes, note);
	snprintf(note, sizeof(note), "in %" PRIu64 " pieces, counted at %.0f MB/s", job->nr_work,
		 (double)bytes / 1e6 / t->count);
	print_row("words", job->words, note);
	snprintf(note, sizeof(note), "counted at %.0f MB/s%s", (double)bytes / 1e6 / t->wc,
		 wc_words == job->words ? ", the same" : "");
	print_row("wc -w", wc_words, note);
	snprintf(note, sizeof(note), "processes, %" PRIu64 " of them got work; segment at %p", busy,
		 (const void *)job);
	print_row("workers", (uint64_t)o->workers, note);
	print_row("faults", sum.faults, "of the workers: asked the daemon");
	print_row("refills", sum.refills, "of the workers: served from their page tables");
}

static int run_job(struct loader *l, const struct options *o, const char *segment)
{
	struct timing t = {.load = seconds()};
	uint64_t wc_words;
	int r;

	r = load_files(l);
	if (r < 0) {
		fprintf(stderr, "wordcount: the files grew while they were read\n");
		return 1;
	}
	if (r || interrupted)
		return 1;
	t.count = seconds();
	t.load = t.count - t.load;
	if (run_workers(o, segment))
		return 1;
	t.wc = seconds();
	t.count = t.wc - t.count;
	if (run_wc(&wc_words))
		return 1;
	t.wc = seconds() - t.wc;
	report(l->job, o, &t, wc_words);
	if (wc_words == l->job->words)
		return 0;
	fprintf(stderr, "wordcount: counted %" PRIu64 " words, wc %" PRIu64 "\n", l->job->words,
		wc_words);
	return 1;
}

static int parent_main(arena_t *a, const struct options *o)
{
	struct loader l = {.size = segment_size(), .buffer = malloc(READ_SIZE)};
	char name[64];
	arena_shm_t *s;
	int r = 1;

	snprintf(name, sizeof(name), "wordcount-%ld", (long)getpid());
	s = arena_shm_open(a, name, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (!s || !l.buffer) {
		r = fail("cannot make a segment");
		goto out;
	}
	if (arena_shm_truncate(s, (off_t)l.size)) {
		r = fail("cannot size the segment");
		goto unlink;
	}
	l.base = arena_shm_mmap(s, NULL, l.size, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	if (l.base == MAP_FAILED)
		r = fail("cannot map the segment");
	else if (arena_populate(a, l.base, l.size,
				1)) /* else an arena too small is a SIGBUS later */
		r = fail("the arena has no room for the files");
	else
		r = run_job(&l, o, name);
unlink:
	if (arena_shm_unlink(a, name))
		r = fail("cannot unlink the segment");
out:
	arena_shm_close(s);
	free(l.buffer);
	return r;
}

int main(int argc, char **argv)
{
	struct options o = {0};
	struct arena_options open_options = {.size = sizeof(open_options)};
	struct sigaction sa = {.sa_handler = interrupt};
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	arena_t *a;
	int r;

	argp_err_exit_status = 2;
	if (argp_parse(&argp, argc, argv, 0, NULL, &o))
		return 2;
	if (!o.workers)
		o.workers = cpus < 2 ? 2 : cpus > MAX_WORKERS ? MAX_WORKERS : (int)cpus;
	if (!o.segment && (o.nr_files ? take_files(o.files, o.nr_files) : find_files(o.fallback)))
		return 1;
	open_options.socket = o.socket;
	if (arena_open(&open_options, &a))
		return fail("no arenad to connect to, see README");
	if (o.segment) {
		r = worker_main(a, &o);
	} else {
		/* an interrupted parent still unlinks its segment */
		sigaction(SIGINT, &sa, NULL);
		sigaction(SIGTERM, &sa, NULL);
		r = parent_main(a, &o);
	}
	arena_close(a);
	for (size_t i = 0; i < found.nr; i++)
		free(found.path[i]);
	free(found.path);
	return r;
}
