//! The pump: the native data plane between sockets (plain or TLS) and the core's linear memory.
//!
//! Build, from the root of the repository, with no system compiler and no libc (hatch_build.py does
//! this; MACHINE is x86_64 or aarch64):
//!
//!     python -m ziglang build-lib pump/src/main.zig -dynamic -O ReleaseSafe -fstrip \
//!         -target MACHINE-linux-gnu.2.28 -mcpu baseline \
//!         -femit-bin=src/avow/_native/libavow_pump.so
//!
//! ReleaseSafe, because this code sits outside of the sandbox and handles what strangers send:
//! an index out of range ends the process with a message instead of corrupting it.
//!
//! One thread calls `run`; `add`, `command`, `stop`, the counters and the journal may be asked for
//! by any thread at any time. No function here may be called after `destroy`.

const std = @import("std");
const sys = @import("sys.zig");
const tls = @import("tls.zig");
const loop = @import("loop.zig");
const inbox = @import("inbox.zig");
const Pump = loop.Pump;

/// Changes with every change of `Setup` or of a function here.
const INTERFACE_VERSION = 2;

const allocator = std.heap.page_allocator;

pub const panic = std.debug.FullPanic(panicNow);

fn panicNow(message: []const u8, _: ?usize) noreturn {
    const prefix = "avow pump: ";
    _ = std.os.linux.write(2, prefix.ptr, prefix.len);
    _ = std.os.linux.write(2, message.ptr, message.len);
    _ = std.os.linux.write(2, "\n", 1);
    @trap();
}

export fn avow_pump_interface_version() callconv(.c) u64 {
    return INTERFACE_VERSION;
}

/// Null when the pump cannot start; `message` then holds the reason and a zero byte.
export fn avow_pump_create(setup: *const loop.Setup, message: [*]u8, message_max_bytes: usize) callconv(.c) ?*Pump {
    const reason = message[0..message_max_bytes];
    if (setup.interface_version != INTERFACE_VERSION) {
        explain(reason, "the library and its Python binding are of different versions");
        return null;
    }
    const pump = allocator.create(Pump) catch {
        explain(reason, "no memory");
        return null;
    };
    pump.init(allocator, setup.*) catch |err| {
        switch (err) {
            error.CoreBroken => explain(reason, pump.core.message[0..pump.core.message_bytes]),
            error.OutOfMemory => explain(reason, "no memory"),
            error.StorageFailed => explain(reason, "the store failed"),
            error.Unavailable => explain(reason, "no file descriptor for epoll and eventfd"),
        }
        allocator.destroy(pump);
        return null;
    };
    return pump;
}

fn explain(into: []u8, text: []const u8) void {
    const count = @min(text.len, into.len - 1);
    @memcpy(into[0..count], text[0..count]);
    into[count] = 0;
}

export fn avow_pump_destroy(pump: *Pump) callconv(.c) void {
    pump.deinit();
    allocator.destroy(pump);
}

/// Takes over the socket and the TLS session (three zeros: none) when it succeeds. Returns the
/// connection number, or a negative refusal as `avow_pump_command` does.
export fn avow_pump_add(
    pump: *Pump,
    fd: i32,
    ssl: usize,
    bio_in: usize,
    bio_out: usize,
    information: [*]const u8,
    information_bytes: usize,
) callconv(.c) i64 {
    const session: tls.Session = .{
        .ssl = @ptrFromInt(ssl),
        .input = @ptrFromInt(bio_in),
        .output = @ptrFromInt(bio_out),
    };
    const number = pump.inbox.add(allocator, fd, session, information[0..information_bytes]) catch |err| return refusal(err);
    sys.wake(pump.waker);
    return number;
}

/// 0, or -1 stopped, -2 too much is waiting already, -3 larger than the arena, -4 no memory.
export fn avow_pump_command(pump: *Pump, blob: [*]const u8, blob_bytes: usize) callconv(.c) i64 {
    pump.inbox.command(allocator, blob[0..blob_bytes]) catch |err| return refusal(err);
    sys.wake(pump.waker);
    return 0;
}

fn refusal(err: inbox.Error) i64 {
    return switch (err) {
        error.Stopped => -1,
        error.Full => -2,
        error.TooLarge => -3,
        error.OutOfMemory => -4,
    };
}

/// A `Status`; with `events` the bytes that are valid until the next call of `run`.
export fn avow_pump_run(pump: *Pump, events: *?[*]const u8, events_bytes: *usize) callconv(.c) i32 {
    var status = pump.run();
    if (status == .events) {
        if (pump.takeEvents()) |bytes| {
            events.* = bytes.ptr;
            events_bytes.* = bytes.len;
        } else |_| {
            pump.breakOff();
            status = .broken;
        }
    }
    return @backingInt(status);
}

export fn avow_pump_stop(pump: *Pump) callconv(.c) void {
    pump.stop();
}

/// Why the pump broke; returns its length.
export fn avow_pump_message(pump: *Pump, into: [*]u8, into_bytes: usize) callconv(.c) usize {
    const count = @min(pump.core.message_bytes, into_bytes);
    @memcpy(into[0..count], pump.core.message[0..count]);
    return count;
}

/// What the vault answered when `run` said that the storage failed.
export fn avow_pump_storage_code(pump: *Pump) callconv(.c) i64 {
    return pump.journal.failure_code;
}

/// Copies as much as fits of a journal in memory and returns the length of the whole.
export fn avow_pump_journal(pump: *Pump, into: [*]u8, into_bytes: usize) callconv(.c) usize {
    return pump.journal.copy(into[0..into_bytes]);
}

/// The core's counters as of the last step; returns their number.
export fn avow_pump_core_counters(pump: *Pump, into: [*]u64, into_count: usize) callconv(.c) usize {
    const known = pump.core_counters[0..pump.core.layout.stats_count];
    for (known[0..@min(known.len, into_count)], 0..) |*value, index| {
        into[index] = @atomicLoad(u64, value, .monotonic);
    }
    return known.len;
}

/// The pump's own counters, in the order of `avow_pump_counter_names`; returns their number.
export fn avow_pump_counters(pump: *Pump, into: [*]u64, into_count: usize) callconv(.c) usize {
    const fields = comptime std.meta.fieldNames(loop.Counters);
    inline for (fields, 0..) |name, index| {
        if (index < into_count) into[index] = @atomicLoad(u64, &@field(pump.counters, name), .monotonic);
    }
    return fields.len;
}

/// Names separated by spaces.
export fn avow_pump_counter_names() callconv(.c) [*:0]const u8 {
    comptime var names: [:0]const u8 = "";
    inline for (comptime std.meta.fieldNames(loop.Counters)) |name| {
        names = names ++ (if (names.len == 0) "" else " ") ++ name;
    }
    return names.ptr;
}
