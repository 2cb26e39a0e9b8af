/* SPDX-License-Identifier: MIT */
/*
 * files.c - from a path to a row of the table, or to a directory that rows imply.
 *
 * A path is walked against each row's path component by component: a literal component must be the
 * same, one with %u must carry the decimal number of something that exists (a client's pid, a
 * node, a section). A path that ends where a row's goes on is a directory. Nothing is cached: pids
 * come and go.
 */
#include "daemon/files/files.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/mem.h"
#include "base/util.h"
#include "daemon/files/show.h"

#define VALUE_MAX 4096

struct files {
	struct machine *machine;
	uid_t uid; /* the daemon's own */
};

static const struct file_row rows[] = {
#define FILE_ROW(path, key, mode, show_fn) {path, key, mode, show_fn, NULL, 0},
#define FILE_ROW_STORE(path, key, mode, show_fn, store_fn) {path, key, mode, show_fn, store_fn, 0},
#include "daemon/files/files.def"
#define TUNABLE(name, path, def, min, max, text) \
	{path, KEY_NONE, 0644, show_tunable, store_tunable, TUNABLE_##name},
#include "arena/tunables.def"
#undef TUNABLE
};

int files_create(struct machine *m, struct files **out)
{
	struct files *f = mem_alloc(sizeof(*f));

	if (!f)
		return -ENOMEM;
	f->machine = m;
	f->uid = geteuid();
	*out = f;
	return 0;
}

struct files *files_destroy(struct files *f)
{
	free(f);
	return NULL;
}

/* ---- paths ------------------------------------------------------------------------------- */

/* The next component: *len bytes from the return, *s moves behind it and its slashes. */
static const char *next_component(const char **s, size_t *len)
{
	const char *start = *s;

	*len = strcspn(start, "/");
	*s = start + *len;
	*s += strspn(*s, "/");
	return start;
}

static bool number_exists(const struct files *f, enum file_key key, uint32_t number)
{
	struct machine *m = f->machine;

	switch (key) {
	case KEY_PID:
		return number && mm_find_pid(m->virt, (pid_t)number);
	case KEY_NODE:
		return number < phys_nr_nodes(m->phys);
	case KEY_SECTION:
		return number < phys_nr_sections(m->phys) &&
		       section_state(m->phys, number) != SECTION_ABSENT;
	case KEY_NONE:
		break;
	}
	return false;
}

/* Decimal digits that fill [s, s + len), as the kernel prints them: no sign, no leading zero. */
static bool component_number(const char *s, size_t len, uint32_t *out)
{
	uint32_t n = 0;

	if (!len || len > 9 || (s[0] == '0' && len > 1))
		return false;
	for (size_t i = 0; i < len; i++) {
		if (s[i] < '0' || s[i] > '9')
			return false;
		n = n * 10 + (uint32_t)(s[i] - '0');
	}
	*out = n;
	return true;
}

static bool component_matches(const struct files *f, const struct file_row *row, const char *want,
			      size_t want_len, const char *have, size_t have_len, uint32_t *number)
{
	const char *percent = memchr(want, '%', want_len);
	size_t prefix;

	if (!percent)
		return want_len == have_len && memcmp(want, have, want_len) == 0;
	prefix = (size_t)(percent - want);
	return have_len > prefix && memcmp(want, have, prefix) == 0 &&
	       component_number(have + prefix, have_len - prefix, number) &&
	       number_exists(f, row->key, *number);
}

enum match { MATCH_NONE, MATCH_FILE, MATCH_DIRECTORY };

/* MATCH_DIRECTORY: *rest is what follows of the row's path. */
static enum match match_row(const struct files *f, const struct file_row *row, const char *path,
			    uint32_t *number, const char **rest)
{
	const char *pattern = row->path;

	while (*path) {
		size_t want_len, have_len;
		const char *want = next_component(&pattern, &want_len);
		const char *have = next_component(&path, &have_len);

		if (!component_matches(f, row, want, want_len, have, have_len, number))
			return MATCH_NONE;
	}
	*rest = pattern;
	return *pattern ? MATCH_DIRECTORY : MATCH_FILE;
}

static const char *skip_slashes(const char *path)
{
	return path + strspn(path, "/");
}

/* A file is not named with a slash behind it. */
static const struct file_row *find_row(const struct files *f, const char *path, uint32_t *number)
{
	size_t len = strlen(path);

	if (len && path[len - 1] == '/')
		return NULL;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		const char *rest;

		if (match_row(f, &rows[i], path, number, &rest) == MATCH_FILE)
			return &rows[i];
	}
	return NULL;
}

static bool is_directory(const struct files *f, const char *path)
{
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		uint32_t number;
		const char *rest;

		if (match_row(f, &rows[i], path, &number, &rest) == MATCH_DIRECTORY)
			return true;
	}
	return false;
}

/* ---- directories ------------------------------------------------------------------------- */

/* All names that `len` bytes of a row's path stand for. */
static void list_component(const struct files *f, enum file_key key, const char *name, size_t len,
			   FILE *out)
{
	const char *percent = memchr(name, '%', len);
	const char *slash = name[len] == '/' ? "/" : "";
	int prefix = percent ? (int)(percent - name) : (int)len;
	struct machine *m = f->machine;

	if (!percent) {
		fprintf(out, "%.*s%s\n", prefix, name, slash);
	} else if (key == KEY_PID) {
		/* a process with two handles is one directory */
		for (struct mm *mm = mm_next(m->virt, NULL); mm; mm = mm_next(m->virt, mm))
			if (mm_find_pid(m->virt, mm_pid(mm)) == mm)
				fprintf(out, "%.*s%d%s\n", prefix, name, (int)mm_pid(mm), slash);
	} else {
		uint32_t end = key == KEY_NODE ? phys_nr_nodes(m->phys) : phys_nr_sections(m->phys);

		for (uint32_t n = 0; n < end; n++)
			if (number_exists(f, key, n))
				fprintf(out, "%.*s%" PRIu32 "%s\n", prefix, name, n, slash);
	}
}

/* A name is listed for the first row that has it. Patterns are compared, not their numbers. */
static bool list_directory(const struct files *f, const char *path, FILE *out)
{
	const char *listed[ARRAY_SIZE(rows)] = {NULL};
	size_t nr = 0;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		uint32_t number;
		const char *rest;
		size_t len, j;

		if (match_row(f, &rows[i], path, &number, &rest) != MATCH_DIRECTORY)
			continue;
		len = strcspn(rest, "/");
		for (j = 0; j < nr; j++)
			if (strcspn(listed[j], "/") == len && memcmp(listed[j], rest, len) == 0)
				break;
		if (j < nr)
			continue;
		listed[nr++] = rest;
		list_component(f, rows[i].key, rest, len, out);
	}
	return nr > 0;
}

/* ---- access ------------------------------------------------------------------------------ */

static bool is_privileged(const struct files *f, const struct credentials *cred)
{
	return cred->uid == 0 || cred->uid == f->uid;
}

/* Every address space of the process must be the caller's to look into. */
static bool may_ptrace(const struct files *f, const struct credentials *cred, uint32_t pid)
{
	struct virt *v = f->machine->virt;

	for (struct mm *mm = mm_next(v, NULL); mm; mm = mm_next(v, mm))
		if (mm_pid(mm) == (pid_t)pid && mm_uid(mm) != cred->uid)
			return false;
	return true;
}

static bool may_read(const struct files *f, const struct credentials *cred,
		     const struct file_row *row, uint32_t number)
{
	if (is_privileged(f, cred))
		return row->mode & 0444;
	if (row->mode & FILE_PTRACE)
		return may_ptrace(f, cred, number);
	return row->mode & 0004;
}

static struct show make_show(const struct files *f, const struct file_row *row, uint32_t number)
{
	return (struct show){
		.machine = f->machine,
		.phys = f->machine->phys,
		.virt = f->machine->virt,
		.row = row,
		.number = number,
	};
}

int files_read(struct files *f, const struct credentials *cred, const char *path, char **out,
	       size_t *len)
{
	_cleanup_(freep) char *text = NULL;
	const struct file_row *row;
	uint32_t number = 0;
	struct show s;
	size_t size = 0;
	int r = 0;

	path = skip_slashes(path);
	row = find_row(f, path, &number);
	if (row && !may_read(f, cred, row, number))
		return ARENA_E_ACCESS;
	s = make_show(f, row, number);
	s.out = open_memstream(&text, &size);
	if (!s.out)
		return -ENOMEM;
	if (row)
		r = row->show(&s);
	else if (!list_directory(f, path, s.out))
		r = ARENA_E_NOT_FOUND;
	if (ferror(s.out) && !r)
		r = -ENOMEM;
	/* fclose(3) makes `text` valid, whatever happened before */
	if (fclose(s.out) && !r)
		r = -ENOMEM;
	if (r)
		return r;
	*len = size;
	*out = TAKE_PTR(text);
	return 0;
}

int files_write(struct files *f, const struct credentials *cred, const char *path,
		const char *value, size_t len)
{
	char text[VALUE_MAX];
	const struct file_row *row;
	uint32_t number = 0;
	struct show s;

	path = skip_slashes(path);
	row = find_row(f, path, &number);
	if (!row)
		return is_directory(f, path) ? ARENA_E_INVALID : ARENA_E_NOT_FOUND;
	if (!row->store || !(row->mode & 0222) || !is_privileged(f, cred))
		return ARENA_E_ACCESS;
	if (len >= sizeof(text) || memchr(value, '\0', len))
		return ARENA_E_INVALID;
	memcpy(text, value, len);
	if (len && text[len - 1] == '\n')
		len--;
	text[len] = '\0';
	s = make_show(f, row, number);
	return row->store(&s, text);
}
