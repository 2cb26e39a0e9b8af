# SPDX-License-Identifier: MIT
$(call add_room,sync,daemon/sync)
