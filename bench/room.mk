# SPDX-License-Identifier: MIT
# One program of all bench/*.c.
ARENA_BENCH := $(B)/bench/arena_bench
OBJ_bench := $(patsubst %.c,$(B)/obj/%.o,$(wildcard bench/*.c))
BENCHES := $(ARENA_BENCH)
$(ARENA_BENCH): $(OBJ_bench) $(LIB_base) | $(LIBARENA_SO)
	$(call link,-L$(B)/lib -Wl$(comma)-rpath$(comma)'$$ORIGIN/../lib',-larena)
