/* SPDX-License-Identifier: MIT */
/*
 * numbers.c - messages of numbers without the library's generality.
 *
 *	Request or Reply        Fault, AddressReply, ...
 *	+----+-----+------+     +--------+--------+-----+
 *	| id | ... | case |---->| number | number | ... |
 *	+----+-----+------+     +--------+--------+-----+
 *
 * A call that does nothing spent two thirds of its instructions in packing and unpacking a dozen
 * bytes: the library first collects the fields of a message in tables, for it does not know
 * that there are no strings, no repetitions, nothing unknown. Here the descriptors that it
 * generated are walked directly. What is not plain is declined, never guessed: unknown fields,
 * wrong types, numbers that do not fit, a second inner message, lengths that do not match.
 *
 * Relies on how Request and Reply are numbered (a test looks): numbers first, then the cases of
 * their one oneof. A field n that is not fields[n - 1], because there is a gap before it, is declined.
 */
#include "proto/numbers.h"

#include <string.h>

#define WIRE_VARINT 0u
#define WIRE_BYTES 2u
#define VARINT_MAX 10
#define TAG_MAX 2    /* bytes of a tag */
#define LENGTH_MAX 5 /* more is an error to the library */

/* ---- packing --------------------------------------------------------------------- */

struct out {
	uint8_t *at, *end;
};

static bool put_varint(struct out *o, uint64_t v)
{
	if (o->end - o->at < VARINT_MAX)
		return false;
	for (; v >= 0x80; v >>= 7)
		*o->at++ = (uint8_t)v | 0x80;
	*o->at++ = (uint8_t)v;
	return true;
}

/* False: not a number that is known here. */
static bool load_number(const ProtobufCFieldDescriptor *f, const void *message, uint64_t *v)
{
	const void *p = (const char *)message + f->offset;

	if (f->label != PROTOBUF_C_LABEL_NONE || f->flags)
		return false;
	switch (f->type) {
	case PROTOBUF_C_TYPE_UINT32:
		*v = *(const uint32_t *)p;
		return true;
	case PROTOBUF_C_TYPE_INT32:
		*v = (uint64_t)(int64_t) * (const int32_t *)p;
		return true;
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_INT64:
		*v = *(const uint64_t *)p;
		return true;
	default:
		return false;
	}
}

static bool put_number(struct out *o, const ProtobufCFieldDescriptor *f, const void *message)
{
	uint64_t v;

	if (!load_number(f, message, &v))
		return false;
	return !v || (put_varint(o, f->id << 3 | WIRE_VARINT) && put_varint(o, v));
}

static bool put_inner(struct out *o, const ProtobufCFieldDescriptor *f, const void *message)
{
	const ProtobufCMessageDescriptor *d = f->descriptor;
	const ProtobufCMessage *inner =
		*(const ProtobufCMessage *const *)(const void *)((const char *)message + f->offset);
	uint8_t *length;

	if (!inner || inner->n_unknown_fields || !put_varint(o, f->id << 3 | WIRE_BYTES) ||
	    o->at == o->end)
		return false;
	length = o->at++;
	for (unsigned i = 0; i < d->n_fields; i++)
		if (!put_number(o, &d->fields[i], inner))
			return false;
	if (o->at - length - 1 >= 0x80)
		return false; /* its length would take two bytes */
	*length = (uint8_t)(o->at - length - 1);
	return true;
}

static bool is_case(const ProtobufCFieldDescriptor *f)
{
	return f->type == PROTOBUF_C_TYPE_MESSAGE && f->flags == PROTOBUF_C_FIELD_FLAG_ONEOF;
}

ptrdiff_t numbers_pack(const ProtobufCMessage *message, uint8_t *buf, size_t size)
{
	const ProtobufCMessageDescriptor *d = message->descriptor;
	struct out o = {buf, buf + size};
	unsigned i, chosen;

	if (message->n_unknown_fields)
		return -1;
	for (i = 0; i < d->n_fields && !is_case(&d->fields[i]); i++)
		if (!put_number(&o, &d->fields[i], message))
			return -1;
	if (i == d->n_fields)
		return o.at - buf;
	chosen = *(const unsigned *)(const void *)((const char *)message +
						   d->fields[i].quantifier_offset);
	if (!chosen)
		return o.at - buf;
	if (chosen > d->n_fields || chosen <= i || d->fields[chosen - 1].id != chosen ||
	    !is_case(&d->fields[chosen - 1]) || !put_inner(&o, &d->fields[chosen - 1], message))
		return -1;
	return o.at - buf;
}

/* ---- unpacking ------------------------------------------------------------------- */

struct in {
	const uint8_t *at, *end;
};

/* Of at most `max` bytes. */
static bool get_varint(struct in *in, unsigned max, uint64_t *v)
{
	*v = 0;
	for (unsigned i = 0; i < max && in->at < in->end; i++) {
		uint8_t byte = *in->at++;

		if (i == VARINT_MAX - 1 && byte > 1)
			return false;
		*v |= (uint64_t)(byte & 0x7f) << (7 * i);
		if (byte < 0x80)
			return true;
	}
	return false;
}

static const ProtobufCFieldDescriptor *get_field(struct in *in, const ProtobufCMessageDescriptor *d,
						 unsigned *wire)
{
	uint64_t tag;

	if (!get_varint(in, TAG_MAX, &tag))
		return NULL;
	*wire = tag & 7;
	tag >>= 3;
	return tag && tag <= d->n_fields && d->fields[tag - 1].id == tag ? &d->fields[tag - 1]
									 : NULL;
}

static bool get_number(struct in *in, const ProtobufCFieldDescriptor *f, unsigned wire,
		       void *message)
{
	void *p = (char *)message + f->offset;
	uint64_t v;

	if (wire != WIRE_VARINT || f->label != PROTOBUF_C_LABEL_NONE || f->flags ||
	    !get_varint(in, VARINT_MAX, &v))
		return false;
	switch (f->type) {
	case PROTOBUF_C_TYPE_UINT32:
		*(uint32_t *)p = (uint32_t)v;
		return v <= UINT32_MAX;
	case PROTOBUF_C_TYPE_INT32:
		*(int32_t *)p = (int32_t)v;
		return v <= INT32_MAX;
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_INT64:
		*(uint64_t *)p = v;
		return true;
	default:
		return false;
	}
}

static void *new_message(const ProtobufCMessageDescriptor *d, const ProtobufCAllocator *allocator)
{
	void *message = allocator->alloc(allocator->allocator_data, d->sizeof_message);

	if (message)
		d->message_init(message);
	return message;
}

static bool get_inner(struct in *in, const ProtobufCFieldDescriptor *f, unsigned wire,
		      void *message, const ProtobufCAllocator *allocator)
{
	unsigned *chosen = (unsigned *)(void *)((char *)message + f->quantifier_offset);
	const ProtobufCMessageDescriptor *d = f->descriptor;
	struct in inner_in;
	uint64_t len;
	void *inner;

	if (wire != WIRE_BYTES || !is_case(f) || *chosen || !get_varint(in, LENGTH_MAX, &len) ||
	    len > (uint64_t)(in->end - in->at))
		return false;
	inner_in = (struct in){in->at, in->at + len};
	in->at += len;
	inner = new_message(d, allocator);
	if (!inner)
		return false;
	while (inner_in.at < inner_in.end) {
		const ProtobufCFieldDescriptor *number = get_field(&inner_in, d, &wire);

		if (!number || !get_number(&inner_in, number, wire, inner))
			return false;
	}
	*(void **)(void *)((char *)message + f->offset) = inner;
	*chosen = f->id;
	return true;
}

ProtobufCMessage *numbers_unpack(const ProtobufCMessageDescriptor *d, const uint8_t *bytes,
				 size_t len, const ProtobufCAllocator *allocator)
{
	struct in in = {bytes, bytes + len};
	void *message = new_message(d, allocator);

	while (message && in.at < in.end) {
		const ProtobufCFieldDescriptor *f;
		unsigned wire;

		f = get_field(&in, d, &wire);
		if (!f || !(f->type == PROTOBUF_C_TYPE_MESSAGE
				    ? get_inner(&in, f, wire, message, allocator)
				    : get_number(&in, f, wire, message)))
			return NULL;
	}
	return message;
}
