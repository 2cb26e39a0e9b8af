# SPDX-License-Identifier: MIT
# libarena, shared and static: libclient with base and proto inside. arena.map says what is
# exported; everything else of the shared library is local.
SRC_libclient := $(wildcard libclient/*.c)
OBJ_libclient := $(SRC_libclient:%.c=$(B)/obj/%.o)
OBJ_libarena := $(OBJ_libclient) $(OBJ_base) $(OBJ_proto)

ifneq ($(SRC_libclient),)
LIBARENA_SO := $(B)/lib/libarena.so
LIBARENA_A := $(B)/lib/libarena.a
LIBRARIES += $(LIBARENA_SO) $(LIBARENA_A)
endif

# A sanitizer's run-time library is in the program, so its symbols stay open here.
$(B)/lib/libarena.so.$(VERSION): $(OBJ_libarena) libclient/arena.map
	$(call link,-shared -Wl$(comma)-soname$(comma)$(SONAME) -Wl$(comma)-Bsymbolic-functions \
		-Wl$(comma)--version-script=libclient/arena.map \
		$(if $(SANFLAGS),,-Wl$(comma)-z$(comma)defs),-lprotobuf-c)

$(B)/lib/libarena.so: $(B)/lib/libarena.so.$(VERSION)
	$(Q)ln -sf $(<F) $(@D)/$(SONAME)
	$(Q)ln -sf $(SONAME) $@

$(B)/lib/libarena.a: $(OBJ_libarena)
	@mkdir -p $(@D)
	@echo "  AR      $@"
	$(Q)rm -f $@ && $(AR) rcs $@ $(OBJ_libarena)

libarena: $(LIBARENA_SO) $(LIBARENA_A)
.PHONY: libarena
