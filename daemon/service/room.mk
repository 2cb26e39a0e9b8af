# SPDX-License-Identifier: MIT
$(call add_room,service,daemon/service)
