# SPDX-License-Identifier: MIT
$(call add_room,store,daemon/store)
