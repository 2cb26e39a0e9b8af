# SPDX-License-Identifier: MIT
# libarena-preload.so: the interposers with libarena and a renamed jemalloc inside. The linker's --wrap
# gives the library system calls, close() and memory that are not the interposers'.
JEMALLOC_A ?= $(firstword $(wildcard /usr/lib/x86_64-linux-gnu/libjemalloc_pic.a /usr/lib/libjemalloc_pic.a))
JEMALLOC_NAMES := malloc calloc realloc free aligned_alloc posix_memalign memalign valloc \
	malloc_usable_size mallocx rallocx xallocx sallocx dallocx sdallocx nallocx mallctl \
	mallctlnametomib mallctlbymib malloc_stats_print malloc_conf malloc_conf_2_conf_harder \
	malloc_message
PRELOAD_WRAPS := syscall close dup3 read write pread pwrite ftruncate fdatasync malloc calloc realloc free strdup pthread_create pthread_atfork

SRC_preload := $(wildcard libclient/preload/*.c)
OBJ_preload := $(SRC_preload:%.c=$(B)/obj/%.o)

# A sanitizer has its own malloc family and interposers.
ifeq ($(SANFLAGS),)
LIBARENA_PRELOAD := $(B)/lib/libarena-preload.so
LIBRARIES += $(LIBARENA_PRELOAD)
endif

$(B)/obj/jemalloc.a: $(JEMALLOC_A) libclient/preload/room.mk
	@mkdir -p $(@D)
	$(Q)objcopy $(foreach n,$(JEMALLOC_NAMES),--redefine-sym $(n)=je_$(n)) $< $@

$(B)/lib/libarena-preload.so: $(OBJ_preload) $(OBJ_libarena) $(B)/obj/jemalloc.a libclient/preload/preload.map
	$(call link,-shared -Wl$(comma)-Bsymbolic-functions -Wl$(comma)-z$(comma)defs \
		-Wl$(comma)--version-script=libclient/preload/preload.map \
		$(foreach n,$(PRELOAD_WRAPS),-Wl$(comma)--wrap=$(n)),-lprotobuf-c -lm)

libarena-preload: $(LIBARENA_PRELOAD)
.PHONY: libarena-preload
