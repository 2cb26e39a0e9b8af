# SPDX-License-Identifier: MIT
SRC_main := $(wildcard daemon/*.c)
OBJ_main := $(SRC_main:%.c=$(B)/obj/%.o)
ifneq ($(SRC_main),)
ARENAD := $(B)/bin/arenad
PROGRAMS += $(ARENAD)
endif
$(B)/bin/arenad: $(OBJ_main) $(call room_libs,files)
	$(call link,,$(LIBS))

arenad: $(ARENAD)
.PHONY: arenad
