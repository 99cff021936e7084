//! The tables that the core and its host share (docs/spec/core-abi.md).

const std = @import("std");
const limits = @import("limits.zig");
const stats = @import("stats.zig");

pub const layout_version: u32 = 3;

pub const Input = extern struct { connection: u32, kind: u16, flags: u16, address: u32, length: u32 };
pub const Output = extern struct { connection: u32, reserved: u16, flags: u16, address: u32, length: u32 };
pub const Result = extern struct {
    journal_sequence: u64 = 0,
    journal_address: u32 = 0,
    journal_bytes: u32 = 0,
    output_count: u32 = 0,
    flags: u32 = 0,
    next_deadline_ms: u64 = std.math.maxInt(u64),
    events_address: u32 = 0,
    events_bytes: u32 = 0,
    heap_bytes: u64 = 0,
    reserved: [2]u64 = @splat(0),
};

pub const kind_open = 1;
pub const kind_data = 2;
pub const kind_closed = 3;
pub const kind_writable = 4;
pub const kind_command = 5;

pub const flag_close: u16 = 1;
pub const flag_pause: u16 = 2;
pub const flag_resume: u16 = 4;
pub const flag_abort: u16 = 8;
pub const flag_hold: u16 = 16;
pub const flag_blocked: u16 = 0x100;
pub const flag_failed: u16 = 0x200;

pub const result_more: u32 = 1;

comptime {
    std.debug.assert(@sizeOf(Input) == 16);
    std.debug.assert(@sizeOf(Output) == 16);
    std.debug.assert(@sizeOf(Result) == 64);
}

pub var inputs: [limits.input_records]Input align(16) = undefined;
pub var outputs: [limits.output_records]Output align(16) = undefined;
pub var output_count: u32 = 0;
pub var result: Result align(16) = .{};
pub var arena: [limits.arena_bytes]u8 align(4096) = undefined;
pub var panic_text: extern struct { length: u32, bytes: [limits.panic_bytes]u8 } = .{ .length = 0, .bytes = undefined };

var table: [17]u32 align(16) = undefined;

pub fn layout() u32 {
    table = .{
        0x574F5641,
        layout_version,
        @sizeOf(@TypeOf(table)),
        @intFromPtr(&inputs),
        limits.input_records,
        @sizeOf(Input),
        @intFromPtr(&arena),
        limits.arena_bytes,
        @intFromPtr(&outputs),
        limits.output_records,
        @sizeOf(Output),
        @intFromPtr(&result),
        @sizeOf(Result),
        @intFromPtr(&stats.values),
        stats.counter_count,
        @intFromPtr(&panic_text),
        limits.panic_bytes,
    };
    return @intFromPtr(&table);
}

/// The caller has made sure that there is room.
pub fn output(connection: u32, flags: u16, address: usize, length: u32) void {
    outputs[output_count] = .{ .connection = connection, .reserved = 0, .flags = flags, .address = @intCast(address), .length = length };
    output_count += 1;
}
