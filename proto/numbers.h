/* SPDX-License-Identifier: MIT */
/*
 * numbers.h - the same bytes as the library's for the messages that calls through a mailbox are made
 * of: numbers, and at most one inner message of nothing but numbers. For frame.c.
 *
 * Both functions may decline: the library then does it, or says what is wrong with it.
 */
#ifndef PROTO_NUMBERS_H
#define PROTO_NUMBERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

/* Bytes written to buf; -1: declined, with anything in buf. */
ptrdiff_t numbers_pack(const ProtobufCMessage *message, uint8_t *buf, size_t size);
/* The message, in memory of `allocator`; NULL: declined, with something taken from it. */
ProtobufCMessage *numbers_unpack(const ProtobufCMessageDescriptor *d, const uint8_t *bytes,
				 size_t len, const ProtobufCAllocator *allocator);

#endif
