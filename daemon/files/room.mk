# SPDX-License-Identifier: MIT
$(call add_room,files,daemon/files)
