# SPDX-License-Identifier: MIT
BENCHES := $(patsubst bench/%.c,$(B)/bench/%,$(wildcard bench/*.c))
$(BENCHES): $(B)/bench/%: $(B)/obj/bench/%.o $(LIB_base) | $(LIBARENA_SO)
	$(call link,-L$(B)/lib -Wl$(comma)-rpath$(comma)'$$ORIGIN/../lib',-larena)
