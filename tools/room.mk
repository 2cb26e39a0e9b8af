# SPDX-License-Identifier: MIT
SRC_arenactl := $(wildcard tools/arenactl*.c)
ifneq ($(SRC_arenactl),)
ARENACTL := $(B)/bin/arenactl
PROGRAMS += $(ARENACTL)
endif
$(B)/bin/arenactl: $(SRC_arenactl:%.c=$(B)/obj/%.o) $(LIB_base) | $(LIBARENA_SO)
	$(call link,-L$(B)/lib -Wl$(comma)-rpath$(comma)'$$ORIGIN/../lib',-larena)

arenactl: $(ARENACTL)
.PHONY: arenactl
