//! A futex lock (0 free, 1 held, 2 held and somebody waits).

const std = @import("std");
const linux = std.os.linux;

pub const Lock = struct {
    state: std.atomic.Value(u32) = .init(0),

    pub fn acquire(self: *Lock) void {
        if (self.state.cmpxchgStrong(0, 1, .acquire, .monotonic) == null) return;
        while (self.state.swap(2, .acquire) != 0) {
            _ = linux.futex_4arg(&self.state.raw, .{ .cmd = .WAIT, .private = true }, 2, null);
        }
    }

    pub fn release(self: *Lock) void {
        if (self.state.swap(0, .release) == 2) {
            _ = linux.futex_3arg(&self.state.raw, .{ .cmd = .WAKE, .private = true }, 1);
        }
    }
};
