//! MQTT over WebSocket, the server's side: the HTTP upgrade (RFC 6455, section 4.2) and frames
//! (section 5), for the subprotocol `mqtt` in binary frames [MQTT-6.0.0-1] to [MQTT-6.0.0-4]. Clients of
//! MQTT 3.1 offer `mqttv3.1`, the name from before MQTT 3.1.1.

const std = @import("std");
const bytes_room = @import("../bytes.zig");
const limits = @import("../limits.zig");
const web_origin = @import("web_origin.zig");

pub const Upgrade = union(enum) {
    incomplete,
    /// Header bytes consumed, and the values of Sec-WebSocket-Protocol and Sec-WebSocket-Accept.
    accepted: struct { consumed: usize, protocol: []const u8, accept: [28]u8 },
    /// The whole HTTP answer.
    refused: []const u8,
    /// The origin of a web page that may not connect.
    foreign: []const u8,
    /// The name of a server that is not this one, as far as anybody can tell.
    foreign_host: []const u8,
};

const refused_400 = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
pub const refused_403 = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
const refused_405 = "HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
const refused_426 = "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nConnection: Upgrade, close\r\nContent-Length: 0\r\n\r\n";
const refused_431 = "HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

pub const answer_start = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: ";
pub const answer_accept = "\r\nSec-WebSocket-Accept: ";
pub const answer_end = "\r\n\r\n";

pub fn upgrade(bytes: []const u8, rule: *const web_origin.Rule) Upgrade {
    const end = std.mem.find(u8, bytes, "\r\n\r\n") orelse {
        return if (bytes.len >= limits.upgrade_bytes_max) .{ .refused = refused_431 } else .incomplete;
    };
    if (end > limits.upgrade_bytes_max) return .{ .refused = refused_431 };
    var lines = std.mem.splitSequence(u8, bytes[0..end], "\r\n");
    const request = lines.next().?;
    if (!std.mem.startsWith(u8, request, "GET ")) {
        return .{ .refused = if (std.mem.endsWith(u8, request, " HTTP/1.1")) refused_405 else refused_400 };
    }
    if (!std.mem.endsWith(u8, request, " HTTP/1.1") or request.len < "GET / HTTP/1.1".len) return .{ .refused = refused_400 };
    const target = request["GET ".len .. request.len - " HTTP/1.1".len];
    for (target) |letter| if (letter <= ' ' or letter > '~') return .{ .refused = refused_400 };
    var key: ?[]const u8 = null;
    var version: ?[]const u8 = null;
    var upgrade_seen = false;
    var connection_seen = false;
    var protocol: ?[]const u8 = null;
    var host: ?[]const u8 = null;
    var origin: ?[]const u8 = null;
    while (lines.next()) |line| {
        const colon = std.mem.findScalar(u8, line, ':') orelse return .{ .refused = refused_400 };
        const name = line[0..colon];
        if (!validField(name, line[colon + 1 ..])) return .{ .refused = refused_400 };
        const value = std.mem.trim(u8, line[colon + 1 ..], " \t");
        if (same(name, "host")) {
            if (host != null) return .{ .refused = refused_400 }; // RFC 9112, section 3.2
            host = value;
        }
        if (same(name, "origin")) {
            if (origin != null) return .{ .refused = refused_400 };
            origin = value;
        }
        if (same(name, "upgrade") and hasToken(value, "websocket")) upgrade_seen = true;
        if (same(name, "connection") and hasToken(value, "upgrade")) connection_seen = true;
        if (same(name, "sec-websocket-protocol")) protocol = if (hasToken(value, "mqtt")) "mqtt" else protocol orelse if (hasToken(value, "mqttv3.1")) "mqttv3.1" else null;
        if (same(name, "sec-websocket-version")) {
            if (version != null) return .{ .refused = refused_400 };
            version = value;
        }
        if (same(name, "sec-websocket-key")) {
            if (key != null) return .{ .refused = refused_400 };
            key = value;
        }
    }
    if (host == null or !upgrade_seen or !connection_seen) return .{ .refused = refused_400 };
    if (version == null or !bytes_room.equal(version.?, "13")) return .{ .refused = refused_426 };
    if (protocol == null) return .{ .refused = refused_400 };
    const text = key orelse return .{ .refused = refused_400 };
    if (!validKey(text)) return .{ .refused = refused_400 };
    const server = serverNamed(target, host.?) orelse return .{ .refused = refused_400 };
    switch (web_origin.judge(rule, server, origin)) {
        .allowed => {},
        .malformed_host => return .{ .refused = refused_400 },
        .foreign_host => return .{ .foreign_host = server },
        .foreign_origin => return .{ .foreign = origin.? },
    }
    return .{ .accepted = .{ .consumed = end + 4, .protocol = protocol.?, .accept = acceptValue(text) } };
}

/// RFC 9110, sections 5.1 and 5.5, without the obsolete folding of lines: what could be read in two
/// ways is read in none.
fn validField(name: []const u8, value: []const u8) bool {
    if (name.len == 0) return false;
    for (name) |letter| {
        if (!std.ascii.isAlphanumeric(letter) and std.mem.findScalar(u8, "!#$%&'*+.^_`|~-", letter) == null) return false;
    }
    for (value) |letter| if ((letter < ' ' and letter != '\t') or letter == 0x7F) return false;
    return true;
}

/// The server that a request is for (RFC 9112, section 3.2.2); null where the target is neither a
/// path nor an http URL.
fn serverNamed(target: []const u8, host: []const u8) ?[]const u8 {
    if (target[0] == '/') return host;
    for ([_][]const u8{ "http://", "https://" }) |scheme| {
        if (target.len <= scheme.len or !same(target[0..scheme.len], scheme)) continue;
        const rest = target[scheme.len..];
        return rest[0 .. std.mem.findAny(u8, rest, "/?#") orelse rest.len];
    }
    return null;
}

fn same(a: []const u8, b: []const u8) bool {
    return std.ascii.eqlIgnoreCase(a, b);
}

fn hasToken(list: []const u8, token: []const u8) bool {
    var parts = std.mem.splitScalar(u8, list, ',');
    while (parts.next()) |part| {
        if (same(std.mem.trim(u8, part, " \t"), token)) return true;
    }
    return false;
}

/// Base64 of 16 bytes (RFC 6455, section 4.1, item 7).
fn validKey(text: []const u8) bool {
    if (text.len != 24) return false;
    var nonce: [16]u8 = undefined;
    const size = std.base64.standard.Decoder.calcSizeForSlice(text) catch return false;
    if (size != nonce.len) return false;
    std.base64.standard.Decoder.decode(&nonce, text) catch return false;
    return true;
}

fn acceptValue(key: []const u8) [28]u8 {
    var hash = std.crypto.hash.Sha1.init(.{});
    hash.update(key);
    hash.update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    var digest: [20]u8 = undefined;
    hash.final(&digest);
    var text: [28]u8 = undefined;
    _ = std.base64.standard.Encoder.encode(&text, &digest);
    return text;
}

pub const Opcode = enum(u4) { continuation = 0, text = 1, binary = 2, close = 8, ping = 9, pong = 10, _ };

/// Writes a server's frame header (never masked, RFC 6455 section 5.1); returns its length.
pub fn frameHeader(target: *[10]u8, opcode: Opcode, length: usize) usize {
    target[0] = 0x80 | @as(u8, @backingInt(opcode));
    if (length < 126) {
        target[1] = @intCast(length);
        return 2;
    }
    if (length <= 0xFFFF) {
        target[1] = 126;
        std.mem.writeInt(u16, target[2..4], @intCast(length), .big);
        return 4;
    }
    target[1] = 127;
    std.mem.writeInt(u64, target[2..10], length, .big);
    return 10;
}

pub const Error = error{ WebSocketProtocol, WebSocketData };

pub const Event = union(enum) {
    /// All bytes given were used.
    need_more,
    /// Unmasked application bytes (a part of a frame is enough).
    data: []u8,
    ping: []const u8,
    close: []const u8,
};

/// Decodes client frames incrementally; data is unmasked in place.
pub const Decoder = struct {
    head: [14]u8 = undefined,
    head_length: u8 = 0,
    in_payload: bool = false,
    opcode: Opcode = .binary,
    fragmented: bool = false,
    mask: [4]u8 = undefined,
    mask_at: u2 = 0,
    left: u64 = 0,
    control: [limits.websocket_control_bytes_max]u8 = undefined,
    control_length: u8 = 0,
    /// TLS has proven this server's name to the client.
    name_proven: bool = false,

    /// Takes bytes from the front of `bytes.*`; call until `need_more`.
    pub fn next(self: *Decoder, bytes: *[]u8) Error!Event {
        while (true) {
            if (!self.in_payload and !try self.readHead(bytes)) return .need_more;
            const count: usize = @intCast(@min(self.left, bytes.len));
            if (count == 0 and self.left != 0) return .need_more;
            const piece = bytes.*[0..count];
            bytes.* = bytes.*[count..];
            self.unmask(piece);
            self.left -= count;
            const control = @backingInt(self.opcode) >= 8;
            if (control) {
                @memcpy(self.control[self.control_length..][0..count], piece);
                self.control_length += @intCast(count);
            }
            if (self.left == 0) self.in_payload = false;
            if (!control) {
                if (count == 0) continue;
                return .{ .data = piece };
            }
            if (self.left != 0) return .need_more;
            const whole = self.control[0..self.control_length];
            switch (self.opcode) {
                .ping => return .{ .ping = whole },
                .close => return .{ .close = whole },
                else => {},
            }
        }
    }

    fn readHead(self: *Decoder, bytes: *[]u8) Error!bool {
        while (true) {
            if (self.head_length >= 2) {
                const need = try self.headBytes();
                if (self.head_length == need) {
                    try self.begin(need);
                    return true;
                }
            }
            if (bytes.len == 0) return false;
            self.head[self.head_length] = bytes.*[0];
            self.head_length += 1;
            bytes.* = bytes.*[1..];
        }
    }

    fn headBytes(self: *Decoder) Error!u8 {
        // [RFC 6455, 5.2] no extension was negotiated; [5.1] a client masks every frame.
        if (self.head[0] & 0x70 != 0 or self.head[1] & 0x80 == 0) return error.WebSocketProtocol;
        return switch (self.head[1] & 0x7F) {
            126 => 8,
            127 => 14,
            else => 6,
        };
    }

    fn begin(self: *Decoder, head_bytes: u8) Error!void {
        const final = self.head[0] & 0x80 != 0;
        const opcode: Opcode = @fromBackingInt(@intCast(self.head[0] & 0x0F));
        self.left = switch (head_bytes) {
            8 => std.mem.readInt(u16, self.head[2..4], .big),
            14 => std.mem.readInt(u64, self.head[2..10], .big),
            else => self.head[1] & 0x7F,
        };
        if (head_bytes == 8 and self.left < 126) return error.WebSocketProtocol;
        if (head_bytes == 14 and (self.left <= 0xFFFF or self.left >> 63 != 0)) return error.WebSocketProtocol;
        switch (opcode) {
            .binary => {
                if (self.fragmented) return error.WebSocketProtocol;
                self.fragmented = !final;
            },
            .continuation => {
                if (!self.fragmented) return error.WebSocketProtocol;
                self.fragmented = !final;
            },
            .text => return error.WebSocketData, // [MQTT-6.0.0-1]
            .close, .ping, .pong => if (!final or self.left > limits.websocket_control_bytes_max) return error.WebSocketProtocol,
            else => return error.WebSocketProtocol,
        }
        self.opcode = opcode;
        self.mask = self.head[head_bytes - 4 ..][0..4].*;
        self.mask_at = 0;
        self.control_length = 0;
        self.head_length = 0;
        self.in_payload = true;
    }

    fn unmask(self: *Decoder, piece: []u8) void {
        var at = self.mask_at;
        for (piece) |*byte| {
            byte.* ^= self.mask[at];
            at +%= 1;
        }
        self.mask_at = at;
    }
};
