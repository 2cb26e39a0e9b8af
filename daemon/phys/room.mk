# SPDX-License-Identifier: MIT
$(call add_room,phys,daemon/phys)
