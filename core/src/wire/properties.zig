//! Properties (MQTT 5.0, section 2.2.2): which packet may carry which, how often, and of what type.

const std = @import("std");
const reader = @import("reader.zig");
const Reader = reader.Reader;
const Error = reader.Error;

pub const Id = enum(u8) {
    payload_format_indicator = 0x01,
    message_expiry_interval = 0x02,
    content_type = 0x03,
    response_topic = 0x08,
    correlation_data = 0x09,
    subscription_identifier = 0x0B,
    session_expiry_interval = 0x11,
    assigned_client_identifier = 0x12,
    server_keep_alive = 0x13,
    authentication_method = 0x15,
    authentication_data = 0x16,
    request_problem_information = 0x17,
    will_delay_interval = 0x18,
    request_response_information = 0x19,
    response_information = 0x1A,
    server_reference = 0x1C,
    reason_string = 0x1F,
    receive_maximum = 0x21,
    topic_alias_maximum = 0x22,
    topic_alias = 0x23,
    maximum_qos = 0x24,
    retain_available = 0x25,
    user_property = 0x26,
    maximum_packet_size = 0x27,
    wildcard_subscription_available = 0x28,
    subscription_identifier_available = 0x29,
    shared_subscription_available = 0x2A,
};

/// Which packets a client sends may carry which properties (table 2-4, the client's side).
pub const Place = enum { connect, will, publish, acknowledgement, subscribe, unsubscribe, disconnect, auth };

fn allowed(place: Place, id: Id) bool {
    return switch (id) {
        .payload_format_indicator, .message_expiry_interval, .content_type, .response_topic, .correlation_data => place == .publish or place == .will,
        // [MQTT-3.3.4-6]: a PUBLISH from a client must not contain a Subscription Identifier.
        .subscription_identifier => place == .subscribe,
        .session_expiry_interval => place == .connect or place == .disconnect,
        .authentication_method, .authentication_data => place == .connect or place == .auth,
        .request_problem_information, .request_response_information, .receive_maximum, .topic_alias_maximum, .maximum_packet_size => place == .connect,
        .will_delay_interval => place == .will,
        .reason_string => place == .acknowledgement or place == .disconnect or place == .auth,
        .topic_alias => place == .publish,
        .user_property => true,
        else => false,
    };
}

/// What was found. Absent values are null; user properties stay in `raw`.
pub const Properties = struct {
    /// The property bytes as sent, without the length.
    raw: []const u8 = &.{},
    payload_format_indicator: ?u8 = null,
    message_expiry_interval: ?u32 = null,
    content_type: ?[]const u8 = null,
    response_topic: ?[]const u8 = null,
    correlation_data: ?[]const u8 = null,
    subscription_identifier: ?u32 = null,
    session_expiry_interval: ?u32 = null,
    authentication_method: ?[]const u8 = null,
    authentication_data: ?[]const u8 = null,
    request_problem_information: ?u8 = null,
    will_delay_interval: ?u32 = null,
    request_response_information: ?u8 = null,
    reason_string: ?[]const u8 = null,
    receive_maximum: ?u16 = null,
    topic_alias_maximum: ?u16 = null,
    topic_alias: ?u16 = null,
    maximum_packet_size: ?u32 = null,
    /// Whether `raw` may be forwarded as it is (neither alias nor expiry inside).
    forwardable: bool = true,
};

fn once(field: anytype, value: @typeInfo(@TypeOf(field.*)).optional.child) Error!void {
    if (field.* != null) return error.Protocol; // "It is a Protocol Error to include … more than once"
    field.* = value;
}

fn flag(byte: u8) Error!u8 {
    if (byte > 1) return error.Protocol;
    return byte;
}

fn nonZero(value: anytype) Error!@TypeOf(value) {
    if (value == 0) return error.Protocol;
    return value;
}

/// Reads the length and the properties; unknown identifiers and those of other packets are
/// malformed (section 2.2.2.2), repeated ones a protocol error.
pub fn parse(from: *Reader, place: Place) Error!Properties {
    const length = try from.variable();
    var inner: Reader = .{ .bytes = try from.take(length) };
    var found: Properties = .{ .raw = inner.bytes };
    while (!inner.done()) {
        const number = try inner.variable();
        if (number > 0x2A) return error.Malformed;
        const id = std.enums.fromInt(Id, @as(u8, @intCast(number))) orelse return error.Malformed;
        if (!allowed(place, id)) return if (place == .publish and id == .subscription_identifier) error.Protocol else error.Malformed;
        switch (id) {
            .payload_format_indicator => try once(&found.payload_format_indicator, try flag(try inner.u8_())),
            .message_expiry_interval => {
                try once(&found.message_expiry_interval, try inner.u32_());
                found.forwardable = false;
            },
            .content_type => try once(&found.content_type, try inner.string()),
            .response_topic => try once(&found.response_topic, try inner.string()),
            .correlation_data => try once(&found.correlation_data, try inner.binary()),
            .subscription_identifier => try once(&found.subscription_identifier, try nonZero(try inner.variable())),
            .session_expiry_interval => try once(&found.session_expiry_interval, try inner.u32_()),
            .authentication_method => try once(&found.authentication_method, try inner.string()),
            .authentication_data => try once(&found.authentication_data, try inner.binary()),
            .request_problem_information => try once(&found.request_problem_information, try flag(try inner.u8_())),
            .will_delay_interval => try once(&found.will_delay_interval, try inner.u32_()),
            .request_response_information => try once(&found.request_response_information, try flag(try inner.u8_())),
            .reason_string => try once(&found.reason_string, try inner.string()),
            .receive_maximum => try once(&found.receive_maximum, try nonZero(try inner.u16_())),
            .topic_alias_maximum => try once(&found.topic_alias_maximum, try inner.u16_()),
            .topic_alias => {
                try once(&found.topic_alias, try inner.u16_());
                found.forwardable = false;
            },
            .maximum_packet_size => try once(&found.maximum_packet_size, try nonZero(try inner.u32_())),
            .user_property => {
                _ = try inner.string();
                _ = try inner.string();
            },
            else => return error.Malformed,
        }
    }
    if (found.authentication_data != null and found.authentication_method == null) return error.Protocol;
    return found;
}

/// Copies what is forwarded unchanged (all but alias, expiry and will delay) into `target`,
/// keeping the order [MQTT-3.3.2-18]. `raw` has been parsed before. Returns the length.
pub fn forwardInto(target: []u8, raw: []const u8) usize {
    var from: Reader = .{ .bytes = raw };
    var length: usize = 0;
    while (!from.done()) {
        const start = from.at;
        const id: Id = @fromBackingInt(@intCast(from.u8_() catch unreachable));
        var keep = true;
        switch (id) {
            .payload_format_indicator => from.at += 1,
            .content_type, .response_topic, .correlation_data => _ = from.binary() catch unreachable,
            .user_property => {
                _ = from.binary() catch unreachable;
                _ = from.binary() catch unreachable;
            },
            .message_expiry_interval, .will_delay_interval => {
                from.at += 4;
                keep = false;
            },
            .topic_alias => {
                from.at += 2;
                keep = false;
            },
            else => unreachable,
        }
        if (!keep) continue;
        const piece = raw[start..from.at];
        @memcpy(target[length..][0..piece.len], piece);
        length += piece.len;
    }
    return length;
}
