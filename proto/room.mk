# SPDX-License-Identifier: MIT
# arena.proto is translated below $(B)/gen; generated code is not held to our warnings.
PROTO_H := $(B)/gen/proto/arena.pb-c.h
PROTO_C := $(B)/gen/proto/arena.pb-c.c
EXTRA_OBJ_proto := $(B)/obj/gen/arena.pb-c.o

# One run writes both files; the source depends on the header, so that -j runs it once.
$(PROTO_H): proto/arena.proto
	@mkdir -p $(@D)
	@echo "  PROTOC  $@"
	$(Q)$(PROTOC_C) --proto_path=proto --c_out=$(@D) $<
$(PROTO_C): $(PROTO_H) ;

$(EXTRA_OBJ_proto): $(PROTO_C) $(B)/flags
	@mkdir -p $(@D)
	@echo "  CC      $@"
	$(Q)$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -w -MMD -MP -c -o $@ $<

$(call add_room,proto,proto)

# The rooms that may include the generated header.
SPEAKERS := proto/%.c libclient/%.c daemon/machine/%.c daemon/service/%.c daemon/files/%.c \
	tests/%.c bench/%.c fuzz/%.c
$(patsubst %.c,$(B)/obj/%.o,$(filter $(SPEAKERS) $(wildcard daemon/*.c),\
	$(wildcard proto/*.c libclient/*.c daemon/*/*.c daemon/*.c tests/*.c bench/*.c fuzz/*.c))): \
	| $(PROTO_H)
