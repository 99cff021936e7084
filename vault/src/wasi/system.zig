//! Arguments, environment, clocks, randomness, and the end of a program.

const std = @import("std");
const wasi = @import("wasi.zig");
const errno = @import("errno.zig");
const Error = errno.Error;
const Memory = @import("memory.zig").Memory;
const Wasi = wasi.Wasi;

pub fn args_sizes_get(self: *Wasi, memory: Memory, argc: u32, argv_buf_size: u32) Error!void {
    try memory.put(u32, argc, self.argument_count);
    try memory.put(u32, argv_buf_size, @intCast(self.arguments.items.len));
}

pub fn args_get(self: *Wasi, memory: Memory, argv: u32, argv_buf: u32) Error!void {
    return strings(memory, self.arguments.items, self.argument_count, argv, argv_buf);
}

pub fn environ_sizes_get(self: *Wasi, memory: Memory, count: u32, buf_size: u32) Error!void {
    try memory.put(u32, count, self.environment_count);
    try memory.put(u32, buf_size, @intCast(self.environment.items.len));
}

pub fn environ_get(self: *Wasi, memory: Memory, environ: u32, environ_buf: u32) Error!void {
    return strings(memory, self.environment.items, self.environment_count, environ, environ_buf);
}

/// Strings that end with a zero byte, one behind the other, and an array of their addresses.
fn strings(memory: Memory, text: []const u8, count: u32, pointers: u32, buffer: u32) Error!void {
    const into = try memory.slice(buffer, text.len);
    _ = try memory.records(pointers, count, 4);
    @memcpy(into, text);
    var at: usize = 0;
    var index: u32 = 0;
    while (index < count) : (index += 1) {
        try memory.put(u32, pointers + index * 4, @intCast(buffer + at));
        at = std.mem.findScalarPos(u8, text, at, 0).? + 1;
    }
}

/// Refuses a clock that was not granted, and one that there is none of.
pub fn allowClock(self: *Wasi, id: u32) Error!void {
    if (id > 3) return error.INVAL;
    if (id == 0) {
        if (self.clocks & wasi.CLOCK_REALTIME != 0) return;
        self.denied(&.{"clock:realtime"});
    } else {
        if (self.clocks & wasi.CLOCK_MONOTONIC != 0) return;
        self.denied(&.{"clock:monotonic"});
    }
    return error.NOTCAPABLE;
}

/// What the clocks count in; the host is not asked.
pub fn clock_res_get(self: *Wasi, memory: Memory, id: u32, resolution: u32) Error!void {
    try allowClock(self, id);
    try memory.put(u64, resolution, 1);
}

pub fn clock_time_get(self: *Wasi, memory: Memory, id: u32, _: u64, timestamp: u32) Error!void {
    try allowClock(self, id);
    try memory.check(timestamp, 8);
    try memory.put(u64, timestamp, try self.clock(id));
}

pub fn random_get(self: *Wasi, memory: Memory, buf: u32, buf_len: u32) Error!void {
    self.random.fill(try memory.slice(buf, buf_len));
}

pub fn proc_exit(self: *Wasi, _: Memory, code: u32) Error!void {
    self.ending = .exited;
    self.exit_code = code;
    return error.Stopped;
}

/// As the table of signals in typenames.witx: ignored, refused, or the end of the program, which the
/// shell is told as for a native one.
pub fn proc_raise(self: *Wasi, _: Memory, signal: u32) Error!void {
    switch (signal) {
        // NONE, PIPE, CHLD, CONT, URG, WINCH
        0, 13, 16, 17, 22, 27 => return,
        // STOP, TSTP, TTIN, TTOU: a program cannot stop the runtime.
        18...21 => return error.OPNOTSUPP,
        1...12, 14, 15, 23...26, 28...30 => {
            self.ending = .signalled;
            self.exit_code = 128 + LINUX_SIGNALS[signal];
            return error.Stopped;
        },
        else => return error.INVAL,
    }
}

/// Linux's numbers for those of preview 1, in its order.
const LINUX_SIGNALS = [31]u8{ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31 };

pub fn sched_yield(self: *Wasi, _: Memory) Error!void {
    try self.checkInterrupt();
    _ = try errno.checked(self.host.yield(self.host.context), 0);
}
