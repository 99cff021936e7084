//! An application message that has to be kept: referenced by deliveries, retained values and wills.

const std = @import("std");
const heap = @import("heap.zig");
const stats = @import("stats.zig");

pub const never: u64 = std.math.maxInt(u64);

/// A message on its way, wherever its bytes lie. `properties` are those that are forwarded
/// unchanged, encoded, without the expiry interval.
pub const View = struct {
    topic: []const u8,
    properties: []const u8,
    payload: []const u8,
    qos: u2,
    retain: bool,
    /// Unix milliseconds; `never` without an expiry interval.
    expires_at_ms: u64,
    /// The kept copy, made when the first receiver needs one.
    kept: ?*Message = null,

    pub fn keep(self: *View) heap.Error!*Message {
        if (self.kept) |message| return message;
        const message = try Message.create(self.*);
        self.kept = message;
        return message;
    }

    pub fn done(self: *View) void {
        if (self.kept) |message| message.unreference();
        self.kept = null;
    }
};

/// Seconds that are left of an expiry interval, rounded up so that it never reads 0 early [MQTT-3.3.2-6].
pub fn secondsLeft(expires_at_ms: u64, now_ms: u64) u32 {
    return @intCast(@min((expires_at_ms -| now_ms +| 999) / 1000, 0xFFFF_FFFF));
}

/// Bytes that a kept copy takes.
pub fn sizeOf(view: *const View) u32 {
    return @intCast(@sizeOf(Message) + view.topic.len + view.properties.len + view.payload.len);
}

var last_serial: u64 = 0;

pub fn nextSerial() u64 {
    last_serial += 1;
    return last_serial;
}

/// Restore only: what the journal has used is not used again.
pub fn setSerial(message: *Message, serial: u64) void {
    message.serial = serial;
    last_serial = @max(last_serial, serial);
}

pub const Message = struct {
    references: u32,
    topic_bytes: u32,
    properties_bytes: u32,
    payload_bytes: u32,
    expires_at_ms: u64,
    /// Names the message in the journal; 0 where it is not written there, or is forgotten again.
    serial: u64 = 0,
    /// So many deliveries in the journal need it, and what gives it to many (`fanout`).
    deliveries: u32 = 0,
    qos: u2,
    retain: bool,
    /// The last snapshot that wrote it.
    snapshot: u32 = 0,

    /// One reference is the caller's.
    pub fn create(from: View) heap.Error!*Message {
        const size = sizeOf(&from);
        const message: *Message = @ptrCast(@alignCast(try heap.allocate(size)));
        message.* = .{
            .references = 1,
            .topic_bytes = @intCast(from.topic.len),
            .properties_bytes = @intCast(from.properties.len),
            .payload_bytes = @intCast(from.payload.len),
            .expires_at_ms = from.expires_at_ms,
            .qos = from.qos,
            .retain = from.retain,
        };
        const bytes = message.body();
        @memcpy(bytes[0..from.topic.len], from.topic);
        @memcpy(bytes[from.topic.len..][0..from.properties.len], from.properties);
        @memcpy(bytes[from.topic.len + from.properties.len ..], from.payload);
        stats.count(.stored_messages, 1);
        stats.count(.stored_bytes, message.payload_bytes);
        return message;
    }

    fn body(self: *Message) []u8 {
        const start: [*]u8 = @as([*]u8, @ptrCast(self)) + @sizeOf(Message);
        return start[0 .. self.topic_bytes + self.properties_bytes + self.payload_bytes];
    }

    pub fn size_bytes(self: *const Message) u32 {
        return @sizeOf(Message) + self.topic_bytes + self.properties_bytes + self.payload_bytes;
    }

    pub fn topic(self: *Message) []const u8 {
        return self.body()[0..self.topic_bytes];
    }

    pub fn view(self: *Message) View {
        const bytes = self.body();
        return .{
            .topic = bytes[0..self.topic_bytes],
            .properties = bytes[self.topic_bytes..][0..self.properties_bytes],
            .payload = bytes[self.topic_bytes + self.properties_bytes ..],
            .qos = self.qos,
            .retain = self.retain,
            .expires_at_ms = self.expires_at_ms,
            .kept = self,
        };
    }

    /// A delivery, or what gives it to many, is in the journal and needs it there.
    pub fn enterJournal(self: *Message) void {
        self.deliveries += 1;
    }

    /// After the last of them it is not in the journal any more.
    pub fn leaveJournal(self: *Message) void {
        self.deliveries -= 1;
        if (self.deliveries == 0) self.serial = 0;
    }

    pub fn reference(self: *Message) *Message {
        self.references += 1;
        return self;
    }

    pub fn unreference(self: *Message) void {
        self.references -= 1;
        if (self.references != 0) return;
        stats.uncount(.stored_messages, 1);
        stats.uncount(.stored_bytes, self.payload_bytes);
        heap.release(@ptrCast(self), self.size_bytes());
    }
};
