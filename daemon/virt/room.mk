# SPDX-License-Identifier: MIT
$(call add_room,virt,daemon/virt)
