# SPDX-License-Identifier: MIT
$(call add_room,numa,numa)
