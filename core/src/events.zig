//! What the core tells the host: credentials to verify, who came and went, commands that failed.

const std = @import("std");
const heap = @import("heap.zig");
const limits = @import("limits.zig");

pub const Kind = enum(u8) { auth_request = 1, connected = 2, disconnected = 3, command_failed = 4, drained = 5, refused = 6 };

pub var region: heap.List(u8) = .{};
var start: usize = 0;

/// Credentials were in here: the bytes are erased before the region is used again.
pub fn clear() void {
    @memset(region.items, 0);
    region.clear();
    if (region.capacity > limits.events_keep_bytes) region.deinit();
}

pub fn begin(kind: Kind) heap.Error!void {
    start = region.items.len;
    errdefer cancel();
    try region.appendSlice(&.{ 0, 0, 0, 0, @backingInt(kind), 0, 0, 0 });
}

pub fn number(comptime T: type, value: T) heap.Error!void {
    errdefer cancel();
    var bytes: [@sizeOf(T)]u8 = undefined;
    std.mem.writeInt(T, &bytes, value, .little);
    try region.appendSlice(&bytes);
}

pub fn string(text: []const u8) heap.Error!void {
    try number(u32, @intCast(text.len));
    errdefer cancel();
    try region.appendSlice(text);
}

pub fn finish() void {
    std.mem.writeInt(u32, region.items[start..][0..4], @intCast(region.items.len - start), .little);
}

fn cancel() void {
    region.items.len = start;
}

/// Reports are dropped when there is no memory for them: counters still tell.
pub fn disconnected(end: End) void {
    disconnectedOrFail(end) catch return;
}

/// `accepted`: there was a successful CONNACK; `told`: the host knows the reason already. `refusals`
/// were not reported. Without a CONNECT that could be read there is no client identifier and no user.
pub const End = struct {
    connection: u32,
    reason: u8,
    by: u8,
    accepted: bool,
    told: bool,
    refusals: u32,
    client_identifier: []const u8,
    user: []const u8,
    text: []const u8,
};

fn disconnectedOrFail(end: End) heap.Error!void {
    try begin(.disconnected);
    try number(u64, end.connection | @as(u64, end.reason) << 32 | @as(u64, end.by) << 40 |
        @as(u64, @intFromBool(end.accepted)) << 48 | @as(u64, @intFromBool(end.told)) << 49);
    try number(u32, end.refusals);
    try string(end.client_identifier);
    try string(end.user);
    try string(end.text);
    finish();
}

pub fn commandFailed(command: u32, text: []const u8) void {
    commandFailedOrFail(command, text) catch return;
}

fn commandFailedOrFail(command: u32, text: []const u8) heap.Error!void {
    try begin(.command_failed);
    try number(u32, command);
    try string(text);
    finish();
}

pub fn drained() void {
    begin(.drained) catch return;
    finish();
}
