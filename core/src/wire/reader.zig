//! Reading MQTT's data representations (MQTT 5.0, section 1.5) from a byte slice, exactly.

const std = @import("std");
const bytes_room = @import("../bytes.zig");

pub const Error = error{
    /// 0x81 Malformed Packet: the bytes do not follow the format.
    Malformed,
    /// 0x82 Protocol Error: well-formed, but not allowed here.
    Protocol,
};

pub const Reader = struct {
    bytes: []const u8,
    at: usize = 0,

    pub fn rest(self: *const Reader) []const u8 {
        return self.bytes[self.at..];
    }

    pub fn done(self: *const Reader) bool {
        return self.at == self.bytes.len;
    }

    pub fn take(self: *Reader, count: usize) Error![]const u8 {
        if (self.bytes.len - self.at < count) return error.Malformed;
        defer self.at += count;
        return self.bytes[self.at..][0..count];
    }

    pub fn u8_(self: *Reader) Error!u8 {
        return (try self.take(1))[0];
    }

    pub fn u16_(self: *Reader) Error!u16 {
        return std.mem.readInt(u16, (try self.take(2))[0..2], .big);
    }

    pub fn u32_(self: *Reader) Error!u32 {
        return std.mem.readInt(u32, (try self.take(4))[0..4], .big);
    }

    /// Variable Byte Integer; the shortest encoding is required of senders and of us [MQTT-1.5.5-1].
    pub fn variable(self: *Reader) Error!u32 {
        var value: u32 = 0;
        inline for (0..4) |index| {
            const byte = try self.u8_();
            value |= @as(u32, byte & 0x7F) << (7 * index);
            if (byte & 0x80 == 0) {
                if (index > 0 and byte == 0) return error.Malformed;
                return value;
            }
        }
        return error.Malformed;
    }

    pub fn binary(self: *Reader) Error![]const u8 {
        return self.take(try self.u16_());
    }

    pub fn string(self: *Reader) Error![]const u8 {
        const text = try self.binary();
        if (!validUtf8(text)) return error.Malformed;
        return text;
    }
};

/// Well-formed UTF-8 without surrogates [MQTT-1.5.4-1] and without U+0000 [MQTT-1.5.4-2].
pub fn validUtf8(text: []const u8) bool {
    var index = bytes_room.plainWords(text);
    while (index < text.len) {
        const byte = text[index];
        if (byte -% 1 < 0x7F) {
            index += 1;
            continue;
        }
        if (byte == 0) return false;
        const length = std.unicode.utf8ByteSequenceLength(byte) catch return false;
        if (text.len - index < length) return false;
        _ = std.unicode.utf8Decode(text[index..][0..length]) catch return false;
        index += length;
    }
    return true;
}

/// The fixed header: what is known of a packet from its first bytes.
pub const Header = struct { first: u8, header_bytes: u32, remaining: u32 };

/// Null: more bytes are needed. The length is at most four bytes [MQTT-2.1.4].
pub fn header(bytes: []const u8) Error!?Header {
    if (bytes.len < 2) return null;
    var value: u32 = 0;
    inline for (0..4) |index| {
        if (bytes.len < index + 2) return null;
        const byte = bytes[index + 1];
        value |= @as(u32, byte & 0x7F) << (7 * index);
        if (byte & 0x80 == 0) {
            if (index > 0 and byte == 0) return error.Malformed;
            return .{ .first = bytes[0], .header_bytes = index + 2, .remaining = value };
        }
    }
    return error.Malformed;
}

pub fn variableBytes(value: u32) u32 {
    if (value < 128) return 1;
    if (value < 16_384) return 2;
    if (value < 2_097_152) return 3;
    return 4;
}

pub fn putVariable(target: []u8, value: u32) u32 {
    var left = value;
    var count: u32 = 0;
    while (true) {
        const byte: u8 = @intCast(left & 0x7F);
        left >>= 7;
        target[count] = if (left != 0) byte | 0x80 else byte;
        count += 1;
        if (left == 0) return count;
    }
}
