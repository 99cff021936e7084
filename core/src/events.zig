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

/// Room for a whole event: so many bytes of numbers, and these texts. Its fields follow, in their order.
pub fn begin(kind: Kind, number_bytes: usize, texts: []const []const u8) heap.Error!void {
    var bytes = 8 + number_bytes;
    for (texts) |text| bytes += 4 + text.len;
    try region.ensure(region.items.len + bytes);
    start = region.items.len;
    put(&.{ 0, 0, 0, 0, @backingInt(kind), 0, 0, 0 });
}

inline fn put(bytes: []const u8) void {
    const at = region.items.len;
    if (bytes.len > region.capacity - at) unreachable; // `begin` made room
    region.items.len = at + bytes.len;
    @memcpy(region.items[at..], bytes);
}

pub inline fn number(comptime T: type, value: T) void {
    var bytes: [@sizeOf(T)]u8 = undefined;
    std.mem.writeInt(T, &bytes, value, .little);
    put(&bytes);
}

pub fn string(text: []const u8) void {
    number(u32, @intCast(text.len));
    put(text);
}

pub fn finish() void {
    std.mem.writeInt(u32, region.items[start..][0..4], @intCast(region.items.len - start), .little);
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
    try begin(.disconnected, 8 + 4, &.{ end.client_identifier, end.user, end.text });
    number(u64, end.connection | @as(u64, end.reason) << 32 | @as(u64, end.by) << 40 |
        @as(u64, @intFromBool(end.accepted)) << 48 | @as(u64, @intFromBool(end.told)) << 49);
    number(u32, end.refusals);
    string(end.client_identifier);
    string(end.user);
    string(end.text);
    finish();
}

pub fn commandFailed(command: u32, text: []const u8) void {
    begin(.command_failed, 4, &.{text}) catch return;
    number(u32, command);
    string(text);
    finish();
}

pub fn drained() void {
    begin(.drained, 0, &.{}) catch return;
    finish();
}
