"""Intel TDX, through Linux's configfs-tsm."""
