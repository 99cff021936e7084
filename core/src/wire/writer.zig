//! The packets a server sends (MQTT 5.0 and 3.1.1, chapter 3).

const std = @import("std");
const reader = @import("reader.zig");
const properties = @import("properties.zig");
const Reason = @import("reason.zig").Reason;
const Type = @import("packets.zig").Type;

/// Writes into a buffer that the caller has made large enough.
pub const Writer = struct {
    bytes: []u8,
    length: u32 = 0,

    pub fn byte(self: *Writer, value: u8) void {
        self.bytes[self.length] = value;
        self.length += 1;
    }

    pub fn u16_(self: *Writer, value: u16) void {
        std.mem.writeInt(u16, self.bytes[self.length..][0..2], value, .big);
        self.length += 2;
    }

    pub fn u32_(self: *Writer, value: u32) void {
        std.mem.writeInt(u32, self.bytes[self.length..][0..4], value, .big);
        self.length += 4;
    }

    pub fn variable(self: *Writer, value: u32) void {
        self.length += reader.putVariable(self.bytes[self.length..], value);
    }

    pub fn raw(self: *Writer, bytes: []const u8) void {
        @memcpy(self.bytes[self.length..][0..bytes.len], bytes);
        self.length += @intCast(bytes.len);
    }

    pub fn string(self: *Writer, text: []const u8) void {
        self.u16_(@intCast(text.len));
        self.raw(text);
    }

    pub fn property(self: *Writer, id: properties.Id) void {
        self.byte(@backingInt(id));
    }

    pub fn written(self: *const Writer) []const u8 {
        return self.bytes[0..self.length];
    }
};

fn first(packet: Type, flags: u8) u8 {
    return @as(u8, @backingInt(packet)) << 4 | flags;
}

/// With a reason code and nothing else.
pub const acknowledgement_bytes_max = 5;

/// PUBACK, PUBREC, PUBREL, PUBCOMP; reason and text only where MQTT 5 and the client allow.
pub fn acknowledgement(target: *[8]u8, version: u8, packet: Type, packet_identifier: u16, reason: Reason) []const u8 {
    var to: Writer = .{ .bytes = target };
    to.byte(first(packet, if (packet == .pubrel) 2 else 0));
    const with_reason = version == 5 and reason != .success;
    to.byte(if (with_reason) 3 else 2);
    to.u16_(packet_identifier);
    if (with_reason) to.byte(@backingInt(reason));
    return to.written();
}

/// At most 256 bytes; the text is left out where the client's Maximum Packet Size forbids it [MQTT-3.14.2-3].
pub fn disconnect(target: *[256]u8, reason: Reason, text: []const u8, maximum_packet_bytes: u32) []const u8 {
    const shown = text[0..@min(text.len, 200)];
    var to: Writer = .{ .bytes = target };
    to.byte(first(.disconnect, 0));
    if (shown.len == 0 or shown.len + 10 > maximum_packet_bytes) {
        to.byte(1);
        to.byte(@backingInt(reason));
        return to.written();
    }
    to.variable(@intCast(1 + reader.variableBytes(@intCast(shown.len + 3)) + shown.len + 3));
    to.byte(@backingInt(reason));
    to.variable(@intCast(shown.len + 3));
    to.property(.reason_string);
    to.string(shown);
    return to.written();
}

pub const pingresp = [_]u8{ 0xD0, 0 };

/// What a PUBLISH towards one client consists of.
pub const Publish = struct {
    version: u8,
    qos: u2,
    dup: bool = false,
    retain: bool,
    packet_identifier: u16 = 0,
    topic: []const u8,
    /// MQTT 5 only, all below.
    alias: u16 = 0,
    expiry_s: ?u32 = null,
    identifiers: []const u32 = &.{},
    properties: []const u8 = &.{},
    payload: []const u8,

    fn propertyBytes(self: *const Publish) u32 {
        var count: u32 = @intCast(self.properties.len);
        if (self.alias != 0) count += 3;
        if (self.expiry_s != null) count += 5;
        for (self.identifiers) |identifier| count += 1 + reader.variableBytes(identifier);
        return count;
    }

    pub fn remaining(self: *const Publish) u32 {
        var count: u32 = @intCast(2 + self.topic.len + self.payload.len);
        if (self.qos != 0) count += 2;
        if (self.version == 5) {
            const inner = self.propertyBytes();
            count += reader.variableBytes(inner) + inner;
        }
        return count;
    }

    /// The whole packet.
    pub fn size(self: *const Publish) u32 {
        const inner = self.remaining();
        return 1 + reader.variableBytes(inner) + inner;
    }

    pub fn encode(self: *const Publish, target: []u8) []const u8 {
        var to: Writer = .{ .bytes = target };
        to.byte(first(.publish, @as(u8, self.qos) << 1 | @as(u8, @intFromBool(self.dup)) << 3 | @intFromBool(self.retain)));
        to.variable(self.remaining());
        to.string(self.topic);
        if (self.qos != 0) to.u16_(self.packet_identifier);
        if (self.version == 5) {
            to.variable(self.propertyBytes());
            if (self.alias != 0) {
                to.property(.topic_alias);
                to.u16_(self.alias);
            }
            if (self.expiry_s) |seconds| {
                to.property(.message_expiry_interval);
                to.u32_(seconds);
            }
            for (self.identifiers) |identifier| {
                to.property(.subscription_identifier);
                to.variable(identifier);
            }
            to.raw(self.properties);
        }
        to.raw(self.payload);
        return to.written();
    }
};
