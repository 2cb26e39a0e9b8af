# SPDX-License-Identifier: MIT
#
# One make for the whole tree. Each room has a fragment ROOM/room.mk that names it; sources are
# found by wildcard, so that adding a file to a room changes no makefile. Everything made lies
# below $(B). See `make help`.

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:

VERSION := 0.1.0
SONAME := libarena.so.0

ifeq ($(origin CC),default)
CC := gcc
endif
AR ?= ar
CLANG ?= clang
PROTOC_C ?= protoc-c
V ?= 0
Q := $(if $(filter 1,$(V)),,@)

comma := ,
empty :=
space := $(empty) $(empty)

# ---- configurations: each has its own directory ----

OPT := -O2 -g
ifneq ($(SAN),)
B := build/san-$(subst $(comma),-,$(SAN))
DEBUG := 1
OPT := -O1 -g
SANFLAGS := -fsanitize=$(SAN) -fno-omit-frame-pointer
ifneq ($(filter undefined,$(subst $(comma),$(space),$(SAN))),)
SANFLAGS += -fno-sanitize-recover=undefined
endif
else ifneq ($(FUZZ),)
B := build/fuzz
DEBUG := 1
CC := $(CLANG)
OPT := -O1 -g
SANFLAGS := -fsanitize=fuzzer-no-link,address -fno-omit-frame-pointer
else ifeq ($(DEBUG),1)
B := build/debug
OPT := -O1 -g
else
B := build
endif

CFLAGS ?= $(OPT)
WARNINGS := -Wall -Wextra -Werror -Wundef -Wstrict-prototypes -Wmissing-prototypes
ifneq ($(FUZZ),)
WARNINGS := $(filter-out -Werror,$(WARNINGS)) # written for gcc
endif
ALL_CPPFLAGS = -D_GNU_SOURCE -Iinclude -I. -I$(B)/gen $(if $(filter 1,$(DEBUG)),-DARENA_DEBUG) \
	$(CPPFLAGS)
ALL_CFLAGS = -std=gnu11 -fPIC -pthread $(CFLAGS) $(SANFLAGS)
ALL_LDFLAGS = -pthread -Wl,--as-needed $(SANFLAGS) $(LDFLAGS)
LIBS := -levent -lprotobuf-c -linih -lnuma

# ---- what the build needs is there before anything is compiled ----

SETUP_FOR := $(if $(filter lint format,$(MAKECMDGOALS)),lint) $(if $(filter fuzz,$(MAKECMDGOALS)),fuzz)
ifneq ($(filter-out clean help setup uninstall,$(or $(MAKECMDGOALS),all)),)
ifneq ($(shell build-aux/setup.sh $(SETUP_FOR) >&2 && echo ready),ready)
$(error what the build needs is not installed, see above)
endif
endif

all: # the default goal, whatever the fragments define first

# ---- rooms ----

# $(call add_room,NAME,DIRECTORY): DIRECTORY/*.c (and EXTRA_OBJ_NAME) make $(B)/lib/room-NAME.a.
# A room without sources has no archive and is left out of every link.
define room_rules
SRC_$(1) := $$(wildcard $(2)/*.c)
OBJ_$(1) := $$(SRC_$(1):%.c=$$(B)/obj/%.o) $$(EXTRA_OBJ_$(1))
LIB_$(1) := $$(if $$(strip $$(OBJ_$(1))),$$(B)/lib/room-$(1).a)
$$(B)/lib/room-$(1).a: $$(OBJ_$(1))
	@mkdir -p $$(@D)
	@echo "  AR      $$@"
	$$(Q)rm -f $$@ && $$(AR) rcs $$@ $$(OBJ_$(1))
room-$(1): $$(LIB_$(1))
.PHONY: room-$(1)
endef
add_room = $(eval $(call room_rules,$(1),$(2)))

# Lowest first. A room's unit tests link the archives up to it, so that a call upward fails; proto
# stands beside and joins where messages are spoken.
ROOM_ORDER := base numa sync store phys virt machine service files
PROTO_ROOMS := proto machine service files
rooms_to = $(if $(filter $(1),$(ROOM_ORDER)),$(call take_to,$(1),$(ROOM_ORDER)),base)
take_to = $(firstword $(2)) $(if $(filter-out $(1),$(firstword $(2))),$(call take_to,$(1),$(wordlist 2,99,$(2))))
reverse = $(if $(1),$(call reverse,$(wordlist 2,99,$(1))) $(firstword $(1)))
room_libs = $(foreach r,$(call reverse,$(call rooms_to,$(1))),\
	$(if $(filter base,$(r)),$(if $(filter $(1),$(PROTO_ROOMS)),$(LIB_proto))) $(LIB_$(r)))

# Programs, libraries and tests that fragments add to `all` and `test`.
PROGRAMS :=
LIBRARIES :=
UNIT_TESTS :=
DAEMON_TESTS :=
SHELL_TESTS :=
BENCHES :=

include base/room.mk proto/room.mk numa/room.mk
include daemon/sync/room.mk daemon/store/room.mk daemon/phys/room.mk daemon/virt/room.mk
include daemon/machine/room.mk daemon/service/room.mk daemon/files/room.mk
include libclient/room.mk libclient/preload/room.mk daemon/room.mk tools/room.mk examples/room.mk
include tests/room.mk bench/room.mk fuzz/room.mk
include build-aux/install.mk

# ---- compiling and linking ----

# Changes when the command line of the compiler does.
$(B)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) $(ALL_LDFLAGS)' | cmp -s - $@ || \
		echo '$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) $(ALL_LDFLAGS)' > $@

$(B)/obj/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	@echo "  CC      $@"
	$(Q)$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) $(WARNINGS) -MMD -MP -c -o $@ $<

# $(call link,EXTRA FLAGS,LIBRARIES): a recipe that links $^'s objects and archives into $@.
define link
	@mkdir -p $(@D)
	@echo "  LD      $@"
	$(Q)$(CC) $(ALL_LDFLAGS) $(1) -o $@ $(filter %.o %.a,$^) $(2)
endef

-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)

# ---- targets ----

all: $(PROGRAMS) $(LIBRARIES)

run: $(PROGRAMS) $(LIBRARIES)
	@ARENA_BUILD=$(abspath $(B)) build-aux/run.sh

test: all $(UNIT_TESTS) $(DAEMON_TESTS) $(KEEP_CLIENT) $(if $(SAN),,$(BENCHES) $(PRELOAD_PROGRAM))
	@ARENA_BUILD=$(abspath $(B)) tests/run.sh $(filter-out $(ALONE_TESTS),$(UNIT_TESTS) \
		$(SHELL_TESTS) $(DAEMON_TESTS)) --alone $(ALONE_TESTS)

# The unit tests of one room: make test-phys
test-%: FORCE
	@test -n "$(filter $(B)/tests/unit_$*_%,$(UNIT_TESTS))" || { echo "no unit tests of $*"; exit 1; }
	@$(MAKE) --no-print-directory $(filter $(B)/tests/unit_$*_%,$(UNIT_TESTS))
	@ARENA_BUILD=$(abspath $(B)) tests/run.sh $(filter $(B)/tests/unit_$*_%,$(UNIT_TESTS))

soak: $(PROGRAMS) $(LIBRARIES)
	@ARENA_BUILD=$(abspath $(B)) tests/soak.sh

bench: $(PROGRAMS) $(LIBRARIES) $(BENCHES)
	@ARENA_BUILD=$(abspath $(B)) bench/run.sh

lint:
	@build-aux/lint.sh

format:
	@git ls-files -z --cached --others --exclude-standard -- '*.c' '*.h' | xargs -0 clang-format -i

fuzz:
	@$(MAKE) --no-print-directory FUZZ=1 fuzz-targets

setup:
	@build-aux/setup.sh

clean:
	rm -rf build

help:
	@echo 'make                 programs and libraries, optimised, below build/'
	@echo 'make run             a demonstration: a daemon, clients, its status; FILES="a b" counts yours'
	@echo 'make test            build everything and run all tests'
	@echo 'make test-ROOM       the unit tests of one room (base, numa, sync, phys, virt, ...)'
	@echo 'make room-ROOM       the archive of one room'
	@echo 'make soak            random load, SOAK_MINUTES long (30)'
	@echo 'make bench           measure; BENCH_ARGS=--quick only shows that it runs'
	@echo 'make lint            format, static analysis, include order of the rooms, scripts'
	@echo 'make format          format all sources in place'
	@echo 'make fuzz            fuzz targets below build/fuzz/ (clang)'
	@echo 'make install         DESTDIR=, PREFIX=/usr/local, ... (build-aux/install.mk); uninstall undoes it'
	@echo 'make setup           install what the build needs (Debian packages)'
	@echo 'make clean           remove build/'
	@echo 'DEBUG=1              assertions, below build/debug/'
	@echo 'SAN=address,undefined or SAN=thread   sanitizers, below build/san-.../'
	@echo 'V=1                  show the commands'

FORCE:
.PHONY: all run test soak bench lint format fuzz fuzz-targets install uninstall setup clean help FORCE
