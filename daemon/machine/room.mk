# SPDX-License-Identifier: MIT
$(call add_room,machine,daemon/machine)
