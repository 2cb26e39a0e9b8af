# SPDX-License-Identifier: MIT
EXAMPLES := $(patsubst examples/%.c,$(B)/bin/examples/%,$(wildcard examples/*.c))
$(EXAMPLES): $(B)/bin/examples/%: $(B)/obj/examples/%.o | $(LIBARENA_SO)
	$(call link,-L$(B)/lib -Wl$(comma)-rpath$(comma)'$$ORIGIN/../../lib',-larena)
PROGRAMS += $(EXAMPLES)
