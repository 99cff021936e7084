//! What is refused on a connection that goes on: the host is told of a few, and of how many more
//! there were. Whoever publishes a thousand times a second what it may not fills no log with it.

const std = @import("std");
const acl = @import("acl.zig");
const events = @import("events.zig");
const heap = @import("heap.zig");
const limits = @import("limits.zig");
const state = @import("state.zig");
const sys = @import("sys.zig");
const topics = @import("topics.zig");
const Connection = @import("connection.zig").Connection;
const Reason = @import("wire/reason.zig").Reason;

pub const Action = enum(u8) { publish = 1, subscribe = 2, will = 3, kept_will = 4 };

/// Why, where the reason code is "not authorized".
const Cause = enum(u8) { reason_code = 0, rule = 1, no_rule = 2, reserved_topic = 3 };

/// Reports to the host within `limits.refusal_window_ms`.
pub const Window = struct {
    /// The lower half of the time: it says the same again after 49 days, for one window.
    started_ms: u32 = 0,
    reported: u8 = 0,

    fn take(self: *Window, most: u8) bool {
        const now_ms: u32 = @truncate(state.now_ms);
        if (now_ms -% self.started_ms >= limits.refusal_window_ms) self.* = .{ .started_ms = now_ms };
        if (self.reported >= most) return false;
        self.reported += 1;
        return true;
    }
};

/// By the action: many publishes do not hide a subscription.
var everybody: [@typeInfo(Action).@"enum".field_names.len + 1]Window = @splat(.{});

/// Stands for the connection where there is none any more.
const nobody: u32 = 0xFFFF_FFFF;

/// `topic` is a name, or the filter of a subscription; `who` is whom the rules were asked about.
/// False: the host is not told of this one.
pub fn report(connection: *Connection, action: Action, reason: Reason, who: acl.Who, topic: []const u8) bool {
    if (!connection.refusals.take(limits.refusals_of_connection_max) or !everybody[@backingInt(action)].take(limits.refusals_max)) {
        connection.refusals_unreported +|= 1;
        return false;
    }
    write(connection.id, connection.refusals_unreported, action, reason, who, topic) catch {
        connection.refusals_unreported +|= 1;
        return false;
    };
    connection.refusals_unreported = 0;
    return true;
}

/// A will that was taken with its CONNECT and that the rules of today do not let out.
pub fn reportKeptWill(who: acl.Who, topic: []const u8) void {
    const action: Action = .kept_will;
    if (!everybody[@backingInt(action)].take(limits.refusals_max)) return;
    write(nobody, 0, action, .not_authorized, who, topic) catch return;
}

fn write(connection: u32, unreported: u32, action: Action, reason: Reason, who: acl.Who, topic: []const u8) heap.Error!void {
    var cause: Cause = .reason_code;
    var rule: u32 = 0;
    if (reason == .not_authorized) {
        if (action != .subscribe and sys.reserved(topic)) {
            cause = .reserved_topic;
        } else {
            rule = acl.deciding(if (action == .subscribe) .subscribe else .publish, who, topics.ofShared(topic));
            cause = if (rule != 0) .rule else .no_rule;
        }
    }
    const names = [_][]const u8{ beginning(who.client_identifier), beginning(who.user), beginning(topic) };
    try events.begin(.refused, 4 + 1 + 1 + 1 + 1 + 4 + 4, &names);
    events.number(u32, connection);
    events.number(u8, @backingInt(action));
    events.number(u8, @backingInt(reason));
    events.number(u8, @backingInt(cause));
    events.number(u8, 0);
    events.number(u32, rule);
    events.number(u32, unreported);
    for (names) |name| events.string(name);
    events.finish();
}

/// As much as a line of a log shows; UTF-8 is not cut within a character.
pub fn beginning(text: []const u8) []const u8 {
    if (text.len <= limits.refusal_text_bytes) return text;
    var end: usize = limits.refusal_text_bytes;
    while (end != 0 and text[end] & 0xC0 == 0x80) end -= 1;
    return text[0..end];
}
