//! The vault: sealed storage, and WASI preview 1 over it, as a native library for Python and the pump.
//!
//! The format is docs/spec/sealed-store.md. ReleaseSafe, because this code handles what a host that is
//! not trusted hands in: an index out of range ends the process instead of corrupting it.

const std = @import("std");

pub const store = @import("store/store.zig");

comptime {
    _ = @import("store/exports.zig");
    _ = @import("wasi/exports.zig");
}

pub const panic = std.debug.FullPanic(panicNow);

fn panicNow(message: []const u8, _: ?usize) noreturn {
    const prefix = "avow vault: ";
    _ = std.os.linux.write(2, prefix.ptr, prefix.len);
    _ = std.os.linux.write(2, message.ptr, message.len);
    _ = std.os.linux.write(2, "\n", 1);
    @trap();
}

/// Changes with every change of what is exported here.
const INTERFACE_VERSION = 1;

export fn avow_vault_interface_version() callconv(.c) u64 {
    return INTERFACE_VERSION;
}
