# SPDX-License-Identifier: MIT
$(call add_room,base,base)
