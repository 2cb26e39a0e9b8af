# SPDX-License-Identifier: MIT
#
# tests/unit_ROOM_X.c   cmocka, linked with ROOM and the rooms below it (ROOM client: libarena.a;
#                       ROOM main: the supervisor's files)
# tests/daemon_X.c      cmocka against a whole daemon; linked with tests/lib*.c and libarena
# tests/X.sh            run as they are
# tests/keep_client.c   a client that shell tests run
# tests/preload_*.c     programs that are none of ours, for the preload library
UNIT_NAMES := $(patsubst tests/%.c,%,$(wildcard tests/unit_*.c))
UNIT_TESTS := $(UNIT_NAMES:%=$(B)/tests/%)
room_of = $(word 2,$(subst _, ,$(1)))
unit_libs = $(if $(filter client libclient,$(call room_of,$(1))),$(LIBARENA_A),\
	$(if $(filter main,$(call room_of,$(1))),$(filter $(B)/obj/daemon/supervisor%,$(OBJ_main)) \
	$(call room_libs,store),$(call room_libs,$(call room_of,$(1)))))

define unit_rule
$$(B)/tests/$(1): $$(B)/obj/tests/$(1).o $$(call unit_libs,$(1))
	$$(call link,,-lcmocka $$(LIBS))
endef
$(foreach t,$(UNIT_NAMES),$(eval $(call unit_rule,$(t))))

DAEMON_TESTS := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/daemon_*.c))
TEST_HELPERS := $(patsubst tests/%.c,$(B)/obj/tests/%.o,$(wildcard tests/lib*.c))
$(DAEMON_TESTS): $(B)/tests/%: $(B)/obj/tests/%.o $(TEST_HELPERS) $(LIB_base) | $(LIBARENA_SO) \
		$(ARENAD) $(ARENACTL)
	$(call link,-L$(B)/lib -Wl$(comma)-rpath$(comma)'$$ORIGIN/../lib',-larena -lcmocka)

SHELL_TESTS := $(filter-out tests/run.sh tests/soak.sh,$(wildcard tests/*.sh))

# Tests that hold somebody to a time.
ALONE_TESTS := $(addprefix $(B)/tests/daemon_,death invariants restart restart_load supervisor) \
	$(patsubst %,tests/%.sh,bench_quick systemd_system systemd_user)
ifneq ($(filter-out $(DAEMON_TESTS) $(SHELL_TESTS),$(ALONE_TESTS)),)
$(error no such test: $(filter-out $(DAEMON_TESTS) $(SHELL_TESTS),$(ALONE_TESTS)))
endif

KEEP_CLIENT := $(B)/tests/keep_client
$(KEEP_CLIENT): $(B)/obj/tests/keep_client.o | $(LIBARENA_SO)
	$(call link,-L$(B)/lib -Wl$(comma)-rpath$(comma)'$$ORIGIN/../lib',-larena)

PRELOAD_PROGRAM := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/preload_*.c))
$(PRELOAD_PROGRAM): $(B)/tests/%: $(B)/obj/tests/%.o
	$(call link)
