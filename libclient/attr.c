/* SPDX-License-Identifier: MIT */
/*
 * attr.c - files of the tree, over the socket. A read at offset 0 makes the daemon keep a snapshot
 * for this connection, from which the following pieces come.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/util.h"
#include "libclient/internal.h"

/* Leaves room in a packet for everything but the data. */
#define PIECE (ARENA_SOCKET_MAX_MESSAGE - 4096u)

static int read_piece(struct arena *a, Arena__AttrRead *call, struct sock_buffer *b,
		      Arena__AttrReadReply **out)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Reply *reply;
	int r;

	request.call_case = ARENA__REQUEST__CALL_ATTR_READ;
	request.attr_read = call;
	r = socket_call(a, &request, b, &reply, NULL, 0, NULL);
	if (r < 0)
		return r;
	if (reply->result_case != ARENA__REPLY__RESULT_ATTR_READ ||
	    reply->attr_read->data.len > call->size)
		return -EPROTO;
	*out = reply->attr_read;
	return 0;
}

static ssize_t attr_read(struct arena *a, const char *path, char *buf, size_t size)
{
	_cleanup_(freep) struct sock_buffer *b = malloc(sizeof(*b));
	Arena__AttrRead call = ARENA__ATTR_READ__INIT;
	Arena__AttrReadReply *piece;
	size_t done = 0;

	if (!b)
		return -ENOMEM;
	call.path = (char *)path;
	do {
		int r;

		call.offset = done;
		call.size = (uint32_t)MIN(size - done, (size_t)PIECE);
		r = read_piece(a, &call, b, &piece);
		if (r < 0)
			return r;
		if (piece->data.len)
			memcpy(buf + done, piece->data.data, piece->data.len);
		done += piece->data.len;
	} while (!piece->eof && piece->data.len && done < size);
	if (done < size)
		buf[done] = '\0';
	return (ssize_t)done;
}

static int check(const struct arena *a, const char *path, const char *buf)
{
	if (!path || !buf)
		return -EINVAL;
	if (strlen(path) > 4096)
		return -ENAMETOOLONG;
	return client_enter(a);
}

ssize_t arena_attr_read(arena_t *a, const char *path, char *buf, size_t size)
{
	int r = check(a, path, buf);
	ssize_t n = r < 0 ? r : attr_read(a, path, buf, MIN(size, (size_t)SSIZE_MAX));

	return n < 0 ? client_return((int)n) : n;
}

int arena_attr_write(arena_t *a, const char *path, const char *value)
{
	_cleanup_(freep) struct sock_buffer *b = NULL;
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__AttrWrite call = ARENA__ATTR_WRITE__INIT;
	Arena__Reply *reply;
	int r = check(a, path, value);

	if (r == 0) {
		b = malloc(sizeof(*b));
		r = b ? 0 : -ENOMEM;
	}
	if (r == 0) {
		call.path = (char *)path;
		call.value.data = (uint8_t *)value;
		call.value.len = strlen(value);
		request.call_case = ARENA__REQUEST__CALL_ATTR_WRITE;
		request.attr_write = &call;
		r = socket_call(a, &request, b, &reply, NULL, 0, NULL);
		if (r == -EMSGSIZE)
			r = -EINVAL;
	}
	return client_return(r);
}
