/* SPDX-License-Identifier: MIT */
/* lib_attr.c - the daemon's files, as a test wants them: whole, as numbers, awaited. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib_daemon.h"

#define PIECE 32768u

enum { RESULT_ATTR_READ = 12, ATTR_READ_DATA = 1, ATTR_READ_EOF = 2 };

/* One piece of the file behind what `out` has: 1 at its end, 0 if there is more, or -errno. */
static int read_piece(struct test_daemon *d, const char *path, uint64_t offset, FILE *out)
{
	struct wire *w = calloc(1, sizeof(*w));
	struct wire_reply *reply = malloc(sizeof(*reply));
	const uint8_t *result, *data;
	size_t result_len, len;
	uint64_t eof = 0;
	int r;

	wire_text(w, 1, path);
	wire_number(w, 2, offset);
	wire_number(w, 3, PIECE);
	r = wire_call(&d->control, WIRE_ATTR_READ, w, reply);
	if (r == 0 && wire_find(reply->bytes, reply->len, RESULT_ATTR_READ, NULL, &result,
				&result_len) == 0) {
		if (wire_find(result, result_len, ATTR_READ_DATA, NULL, &data, &len) == 0)
			fwrite(data, 1, len, out);
		wire_find(result, result_len, ATTR_READ_EOF, &eof, NULL, NULL);
	}
	free(w);
	free(reply);
	return r ? -r : (int)eof;
}

char *daemon_read(struct test_daemon *d, const char *path)
{
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);
	int r;

	do {
		fflush(out);
		r = read_piece(d, path, size, out);
	} while (r == 0);
	fclose(out);
	if (r < 0) {
		free(text);
		fail_msg("%s: %s", path, strerror(-r));
	}
	return text;
}

uint64_t text_number(const char *text, const char *key)
{
	const char *start = text;
	size_t len = strlen(key);

	while (text && *text) {
		if (strncmp(text, key, len) == 0 && strchr(" \t", text[len]))
			return strtoull(text + len, NULL, 10);
		text = strchr(text, '\n');
		text = text ? text + 1 : NULL;
	}
	fail_msg("no line with %s in: %s", key, start);
	return 0;
}

uint64_t daemon_number(struct test_daemon *d, const char *path, const char *key)
{
	char *text = daemon_read(d, path);
	uint64_t n = text_number(text, key);

	free(text);
	return n;
}

uint64_t daemon_free_kb(struct test_daemon *d)
{
	return daemon_number(d, "proc/meminfo", "MemFree:");
}

void daemon_write(struct test_daemon *d, const char *path, const char *value)
{
	struct wire *w = calloc(1, sizeof(*w));
	struct wire_reply *reply = malloc(sizeof(*reply));
	int r;

	wire_text(w, 1, path);
	wire_text(w, 2, value);
	r = wire_call(&d->control, WIRE_ATTR_WRITE, w, reply);
	free(w);
	free(reply);
	if (r)
		fail_msg("%s = %s: %s", path, value, strerror(r));
}

/* ---- tables -------------------------------------------------------------------------------- */

/* Field number i of the line, or NULL. */
static const char *field(const char *line, unsigned i, size_t *len)
{
	for (;;) {
		line += strspn(line, " ");
		*len = strcspn(line, " \n");
		if (!*len)
			return NULL;
		if (!i--)
			return line;
		line += *len;
	}
}

static int column_of(const char *headings, const char *name)
{
	size_t len;

	for (unsigned i = 0;; i++) {
		const char *f = field(headings, i, &len);

		if (!f)
			return -1;
		if (len == strlen(name) && memcmp(f, name, len) == 0)
			return (int)i;
	}
}

bool table_lookup(const char *table, const char *key, const char *value, const char *column,
		  char *out, size_t size)
{
	int k = column_of(table, key), c = column_of(table, column);
	const char *line = table;

	assert_true(k >= 0 && c >= 0);
	while ((line = strchr(line, '\n')) && *++line) {
		size_t len;
		const char *f = field(line, (unsigned)k, &len);

		if (!f || len != strlen(value) || memcmp(f, value, len) != 0)
			continue;
		f = field(line, (unsigned)c, &len);
		assert_true(f && len < size);
		memcpy(out, f, len);
		out[len] = '\0';
		return true;
	}
	return false;
}

uint64_t client_number(struct test_daemon *d, pid_t pid, const char *column)
{
	char *table = daemon_read(d, CLIENTS_PATH);
	char number[16], value[32];
	bool found;

	snprintf(number, sizeof(number), "%d", (int)pid);
	found = table_lookup(table, "pid", number, column, value, sizeof(value));
	if (!found)
		fprintf(stderr, "%s", table);
	free(table);
	assert_true(found);
	return strtoull(value, NULL, 10);
}

/* ---- waiting for others -------------------------------------------------------------------- */

bool daemon_await(struct test_daemon *d, unsigned ms, bool (*f)(struct test_daemon *d, void *arg),
		  void *arg)
{
	uint64_t deadline = test_now() + ms * UINT64_C(1000000);
	struct timespec pause = {.tv_nsec = 500000};

	while (!f(d, arg)) {
		if (test_now() >= deadline)
			return false;
		ppoll(NULL, 0, &pause, NULL);
	}
	return true;
}

static bool free_is_back(struct test_daemon *d, void *arg)
{
	return daemon_free_kb(d) >= *(uint64_t *)arg;
}

uint64_t daemon_await_free(struct test_daemon *d, uint64_t kb, unsigned ms)
{
	uint64_t start = test_now();

	return daemon_await(d, ms, free_is_back, &kb) ? test_now() - start : UINT64_MAX;
}
