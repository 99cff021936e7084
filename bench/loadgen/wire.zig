//! The few MQTT packets a load generator needs, versions 3.1.1 (level 4) and 5.0 (level 5).

const std = @import("std");

pub const PacketType = enum(u4) {
    reserved = 0,
    connect = 1,
    connack = 2,
    publish = 3,
    puback = 4,
    pubrec = 5,
    pubrel = 6,
    pubcomp = 7,
    subscribe = 8,
    suback = 9,
    unsubscribe = 10,
    unsuback = 11,
    pingreq = 12,
    pingresp = 13,
    disconnect = 14,
    auth = 15,
};

/// What every payload starts with (little-endian); the rest of it is filling.
pub const stamp_bytes = 24;
pub const Stamp = struct {
    group: u32,
    sequence: u64,
    /// CLOCK_MONOTONIC when the message was, or should have been, sent.
    intended_ns: u64,

    pub inline fn write(self: Stamp, payload: []u8) void {
        std.mem.writeInt(u32, payload[0..4], self.group, .little);
        std.mem.writeInt(u32, payload[4..8], 0, .little);
        std.mem.writeInt(u64, payload[8..16], self.sequence, .little);
        std.mem.writeInt(u64, payload[16..24], self.intended_ns, .little);
    }

    pub inline fn read(payload: []const u8) Stamp {
        return .{
            .group = std.mem.readInt(u32, payload[0..4], .little),
            .sequence = std.mem.readInt(u64, payload[8..16], .little),
            .intended_ns = std.mem.readInt(u64, payload[16..24], .little),
        };
    }
};

pub const Packet = struct {
    kind: PacketType,
    flags: u4,
    body: []const u8,
    /// Fixed header and body.
    total_bytes: usize,
};

/// The first packet in `bytes`; null when it is not complete yet.
pub inline fn next(bytes: []const u8) error{Malformed}!?Packet {
    if (bytes.len < 2) return null;
    var remaining: usize = bytes[1] & 0x7f;
    var header: usize = 2;
    if (bytes[1] & 0x80 != 0) {
        var shift: u5 = 7;
        while (true) {
            if (header == 5) return error.Malformed;
            if (bytes.len <= header) return null;
            const byte = bytes[header];
            header += 1;
            remaining |= @as(usize, byte & 0x7f) << shift;
            if (byte & 0x80 == 0) break;
            shift += 7;
        }
    }
    const total = header + remaining;
    if (bytes.len < total) return null;
    return .{
        .kind = @fromBackingInt(@as(u4, @truncate(bytes[0] >> 4))),
        .flags = @truncate(bytes[0]),
        .body = bytes[header..total],
        .total_bytes = total,
    };
}

pub const Publish = struct { qos: u2, identifier: u16, payload: []const u8 };

pub inline fn parsePublish(packet: Packet, level: u8) error{Malformed}!Publish {
    const body = packet.body;
    const qos: u2 = @truncate(packet.flags >> 1);
    if (body.len < 2) return error.Malformed;
    var at: usize = 2 + @as(usize, std.mem.readInt(u16, body[0..2], .big));
    var identifier: u16 = 0;
    if (qos != 0) {
        if (body.len < at + 2) return error.Malformed;
        identifier = std.mem.readInt(u16, body[at..][0..2], .big);
        at += 2;
    }
    if (level == 5) {
        // Properties are short here: the length fits one byte.
        if (body.len <= at or body[at] & 0x80 != 0) return error.Malformed;
        at += 1 + @as(usize, body[at]);
    }
    if (body.len < at) return error.Malformed;
    return .{ .qos = qos, .identifier = identifier, .payload = body[at..] };
}

pub const Writer = struct {
    gpa: std.mem.Allocator,
    out: *std.ArrayList(u8),

    fn byte(self: Writer, value: u8) !void {
        try self.out.append(self.gpa, value);
    }

    fn int16(self: Writer, value: u16) !void {
        try self.out.appendSlice(self.gpa, &.{ @intCast(value >> 8), @truncate(value) });
    }

    fn string(self: Writer, text: []const u8) !void {
        try self.int16(@intCast(text.len));
        try self.out.appendSlice(self.gpa, text);
    }

    fn remainingLength(self: Writer, length: usize) !void {
        var rest = length;
        while (true) {
            const low: u8 = @intCast(rest & 0x7f);
            rest >>= 7;
            try self.byte(if (rest == 0) low else low | 0x80);
            if (rest == 0) return;
        }
    }

    pub fn connect(self: Writer, level: u8, client: []const u8, clean: bool) !void {
        const properties: usize = if (level == 5) 1 else 0;
        try self.byte(0x10);
        try self.remainingLength(10 + properties + 2 + client.len);
        try self.string("MQTT");
        try self.byte(level);
        try self.byte(if (clean) 0x02 else 0); // clean session / clean start
        try self.int16(0); // no keep alive: an idle connection costs no pings
        if (level == 5) try self.byte(0);
        try self.string(client);
    }

    pub fn subscribe(self: Writer, level: u8, identifier: u16, filter: []const u8, qos: u8) !void {
        const properties: usize = if (level == 5) 1 else 0;
        try self.byte(0x82);
        try self.remainingLength(2 + properties + 2 + filter.len + 1);
        try self.int16(identifier);
        if (level == 5) try self.byte(0);
        try self.string(filter);
        try self.byte(qos);
    }

    /// PUBACK, PUBREC, PUBREL or PUBCOMP in the two-byte form (success).
    pub inline fn acknowledge(self: Writer, kind: PacketType, identifier: u16) !void {
        const flags: u8 = if (kind == .pubrel) 2 else 0;
        try self.out.appendSlice(self.gpa, &.{
            (@as(u8, @backingInt(kind)) << 4) | flags, 2,
            @intCast(identifier >> 8),                 @truncate(identifier),
        });
    }

    /// A PUBLISH whose identifier and payload stamp are filled in later; see `PublishTemplate`.
    fn publish(self: Writer, level: u8, qos: u8, topic: []const u8, payload_bytes: usize) !PublishTemplate {
        const identifier: usize = if (qos == 0) 0 else 2;
        const properties: usize = if (level == 5) 1 else 0;
        try self.byte(0x30 | (qos << 1));
        try self.remainingLength(2 + topic.len + identifier + properties + payload_bytes);
        try self.string(topic);
        const identifier_at = self.out.items.len;
        if (qos != 0) try self.int16(0);
        if (level == 5) try self.byte(0);
        const payload_at = self.out.items.len;
        try self.out.appendNTimes(self.gpa, 'x', payload_bytes);
        return .{ .bytes = self.out.items, .identifier_at = identifier_at, .payload_at = payload_at };
    }
};

pub const PublishTemplate = struct {
    bytes: []const u8,
    identifier_at: usize,
    payload_at: usize,

    pub fn make(gpa: std.mem.Allocator, level: u8, qos: u8, topic: []const u8, payload_bytes: usize) !PublishTemplate {
        var out: std.ArrayList(u8) = .empty;
        return (Writer{ .gpa = gpa, .out = &out }).publish(level, qos, topic, payload_bytes);
    }
};
