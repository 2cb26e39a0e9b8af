# SPDX-License-Identifier: MIT
# `make fuzz` calls make again with FUZZ=1: all rooms compiled by clang below build/fuzz.
FUZZERS := $(patsubst fuzz/%.c,$(B)/%,$(wildcard fuzz/fuzz_*.c))
$(FUZZERS): $(B)/%: $(B)/obj/fuzz/%.o $(call room_libs,files)
	$(call link,-fsanitize=fuzzer$(comma)address,$(LIBS))
fuzz-targets: $(FUZZERS)
