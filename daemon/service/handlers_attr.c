/* SPDX-License-Identifier: MIT */
/*
 * handlers_attr.c - files of the tree by RPC, piece by piece.
 *
 * A read at offset 0 makes the text and keeps it, so that a reader of several pieces sees one
 * state. A peer keeps the texts of the last few paths; what was dropped in between is made anew.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/mem.h"

#define ATTR_PATH_MAX 4095
#define ATTR_VALUE_MAX 4096

static struct snapshot *snapshot_find(struct peer *p, const char *path)
{
	for (unsigned i = 0; i < SERVICE_NR_SNAPSHOTS; i++)
		if (p->snapshot[i].path && strcmp(p->snapshot[i].path, path) == 0)
			return &p->snapshot[i];
	return NULL;
}

/* An unused place, or the one used longest ago. */
static struct snapshot *snapshot_oldest(struct peer *p)
{
	struct snapshot *oldest = &p->snapshot[0];

	for (unsigned i = 0; i < SERVICE_NR_SNAPSHOTS; i++)
		if (p->snapshot[i].used < oldest->used)
			oldest = &p->snapshot[i];
	return oldest;
}

static int snapshot_make(struct peer *p, const char *path, struct snapshot **out)
{
	struct service *s = p->service;
	_cleanup_(freep) char *text = NULL;
	_cleanup_(freep) char *name = NULL;
	struct snapshot *shot = snapshot_find(p, path);
	size_t len;
	int r = s->attr->read(s->attr_ctx, &p->cred, path, &text, &len);

	if (r)
		return r;
	name = mem_strdup(path);
	if (!name)
		return -ENOMEM;
	if (!shot)
		shot = snapshot_oldest(p);
	free(shot->path);
	free(shot->text);
	*shot = (struct snapshot){.path = TAKE_PTR(name), .text = TAKE_PTR(text), .len = len};
	*out = shot;
	return 0;
}

static int check_path(const struct service *s, const char *path)
{
	if (strlen(path) > ATTR_PATH_MAX)
		return ARENA_E_NAME_TOO_LONG;
	return s->attr ? 0 : ARENA_E_NOT_FOUND;
}

int handle_attr_read(struct call *call)
{
	const Arena__AttrRead *m = call->request->attr_read;
	struct peer *p = call->peer;
	struct snapshot *shot = NULL;
	Arena__AttrReadReply *reply;
	uint64_t from;
	int r = check_path(p->service, m->path);

	if (r)
		return r;
	if (m->offset)
		shot = snapshot_find(p, m->path);
	if (!shot && (r = snapshot_make(p, m->path, &shot)))
		return r;
	shot->used = ++p->service->uses;
	from = MIN(m->offset, shot->len);
	reply = CALL_RESULT(call, attr_read, ATTR_READ);
	reply->data.data = (uint8_t *)shot->text + from;
	reply->data.len = MIN(MIN(m->size, SERVICE_ATTR_PIECE), shot->len - from);
	reply->eof = from + reply->data.len == shot->len;
	return 0;
}

int handle_attr_write(struct call *call)
{
	const Arena__AttrWrite *m = call->request->attr_write;
	struct service *s = call->peer->service;
	_cleanup_(freep) char *value = NULL;
	int r = check_path(s, m->path);

	if (r)
		return r;
	if (m->value.len > ATTR_VALUE_MAX)
		return ARENA_E_INVALID;
	/* With a NUL behind it, for those who parse it. */
	value = mem_alloc(m->value.len + 1);
	if (!value)
		return -ENOMEM;
	if (m->value.len)
		memcpy(value, m->value.data, m->value.len);
	return s->attr->write(s->attr_ctx, &call->peer->cred, m->path, value, m->value.len);
}
