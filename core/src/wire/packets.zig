//! The control packets a client sends (MQTT 5.0 and 3.1.1, chapter 3), parsed exactly:
//! a missing or a trailing byte is a malformed packet.

const std = @import("std");
const bytes_room = @import("../bytes.zig");
const reader = @import("reader.zig");
const properties = @import("properties.zig");
const topics = @import("../topics.zig");
const Reader = reader.Reader;
const Properties = properties.Properties;
pub const Error = reader.Error;

pub const Type = enum(u4) {
    reserved = 0,
    connect,
    connack,
    publish,
    puback,
    pubrec,
    pubrel,
    pubcomp,
    subscribe,
    suback,
    unsubscribe,
    unsuback,
    pingreq,
    pingresp,
    disconnect,
    auth,
};

/// Flag bits of the fixed header that are reserved [MQTT-2.1.3-1]. MQTT 3.1 has a DUP flag in what is
/// acknowledged (sections 3.6, 3.8 and 3.10 there), and elsewhere calls the bits "not used".
pub fn flagsValid(version: u8, packet: Type, flags: u4) bool {
    return switch (packet) {
        .publish => (flags >> 1) & 3 != 3, // [MQTT-3.3.1-4]
        .pubrel, .subscribe, .unsubscribe => flags == 2 or (version == 3 and flags == 10),
        else => flags == 0 or version == 3,
    };
}

pub const Will = struct {
    topic: []const u8,
    payload: []const u8,
    qos: u2,
    retain: bool,
    properties: Properties,
};

pub const Connect = struct {
    /// 3 (MQTT 3.1), 4 (3.1.1) or 5.
    version: u8,
    /// The sender is another broker that says so with the top bit of the protocol level, which
    /// mosquitto's bridges do in MQTT 3.1 and 3.1.1.
    bridge: bool,
    clean_start: bool,
    keep_alive_s: u16,
    properties: Properties,
    client_identifier: []const u8,
    will: ?Will,
    user_name: ?[]const u8,
    password: ?[]const u8,
};

/// The two errors about versions say in which form the sender understands the refusal.
pub const ConnectError = Error || error{ NotMqtt, UnsupportedVersion4, UnsupportedVersion5 };

const bridge_bit = 0x80;

/// The protocol's name and level, the top bit included, as far as they are there.
fn protocol(from: *Reader) ConnectError!struct { version: u8, bridge: bool } {
    const name = try from.string();
    const old = bytes_room.equal(name, "MQIsdp"); // MQTT 3.1, section 3.1
    if (!old and !bytes_room.equal(name, "MQTT")) return error.NotMqtt;
    const level = try from.u8_();
    const version = level & ~@as(u8, bridge_bit);
    const bridge = level & bridge_bit != 0;
    if (old) return if (version == 3) .{ .version = 3, .bridge = bridge } else error.UnsupportedVersion4;
    if (version == 4 or level == 5) return .{ .version = version, .bridge = bridge };
    return if (version < 5) error.UnsupportedVersion4 else error.UnsupportedVersion5;
}

/// The version that a CONNECT names, whatever is wrong with the rest of it; null: none that is spoken.
pub fn connectVersion(body: []const u8) ?u8 {
    var from: Reader = .{ .bytes = body };
    const found = protocol(&from) catch return null;
    return found.version;
}

pub fn connect(body: []const u8) ConnectError!Connect {
    var from: Reader = .{ .bytes = body };
    const found_protocol = try protocol(&from);
    const version = found_protocol.version;
    const flags = try from.u8_();
    if (flags & 1 != 0 and version != 3) return error.Malformed; // [MQTT-3.1.2-3]; 3.1: "not used"
    const will_flag = flags & 0x04 != 0;
    const will_qos: u2 = @intCast((flags >> 3) & 3);
    const will_retain = flags & 0x20 != 0;
    if (will_qos == 3) return error.Malformed; // [MQTT-3.1.2-12]
    if (!will_flag and (will_qos != 0 or will_retain) and version != 3) return error.Malformed; // [MQTT-3.1.2-11], [MQTT-3.1.2-13]
    const password_flag = flags & 0x40 != 0;
    const user_name_flag = flags & 0x80 != 0;
    if (version != 5 and password_flag and !user_name_flag) return error.Malformed; // 3.1.1 [MQTT-3.1.2-22]
    const keep_alive_s = try from.u16_();
    const found: Properties = if (version == 5) try properties.parse(&from, .connect) else .{};
    const client_identifier = try from.string();
    var will: ?Will = null;
    if (will_flag) {
        const will_properties: Properties = if (version == 5) try properties.parse(&from, .will) else .{};
        const topic = try from.string();
        const payload = try from.binary();
        if (!topics.validName(topic)) return error.Malformed;
        will = .{ .topic = topic, .payload = payload, .qos = will_qos, .retain = will_retain, .properties = will_properties };
    }
    // MQTT 3.1, section 3.1: where the packet ends before them, the length counts and not the flag.
    const user_name = if (user_name_flag and !(version == 3 and from.done())) try from.string() else null;
    const password = if (password_flag and !(version == 3 and from.done())) try from.binary() else null;
    if (!from.done()) return error.Malformed;
    return .{
        .version = version,
        .bridge = found_protocol.bridge,
        .clean_start = flags & 2 != 0,
        .keep_alive_s = keep_alive_s,
        .properties = found,
        .client_identifier = client_identifier,
        .will = will,
        .user_name = user_name,
        .password = password,
    };
}

pub const Publish = struct {
    dup: bool,
    qos: u2,
    retain: bool,
    topic: []const u8,
    packet_identifier: u16,
    properties: Properties,
    payload: []const u8,
};

pub fn publish(version: u8, flags: u4, body: []const u8) Error!Publish {
    var from: Reader = .{ .bytes = body };
    const qos: u2 = @intCast((flags >> 1) & 3);
    const dup = flags & 8 != 0;
    if (qos == 0 and dup) return error.Malformed; // [MQTT-3.3.1-2]
    const topic = try from.string();
    const packet_identifier = if (qos != 0) try identifier(&from) else 0;
    const found: Properties = if (version == 5) try properties.parse(&from, .publish) else .{};
    return .{
        .dup = dup,
        .qos = qos,
        .retain = flags & 1 != 0,
        .topic = topic,
        .packet_identifier = packet_identifier,
        .properties = found,
        .payload = from.rest(),
    };
}

/// [MQTT-2.2.1-3]: a packet identifier is not zero.
fn identifier(from: *Reader) Error!u16 {
    const value = try from.u16_();
    if (value == 0) return error.Protocol;
    return value;
}

pub const Acknowledgement = struct { packet_identifier: u16, reason: u8 };

/// PUBACK, PUBREC, PUBREL, PUBCOMP (sections 3.4 to 3.7).
pub fn acknowledgement(version: u8, packet: Type, body: []const u8) Error!Acknowledgement {
    var from: Reader = .{ .bytes = body };
    const packet_identifier = try identifier(&from);
    var reason: u8 = 0;
    if (version == 5 and !from.done()) {
        reason = try from.u8_();
        if (!acknowledgementReasonValid(packet, reason)) return error.Malformed;
        if (!from.done()) _ = try properties.parse(&from, .acknowledgement);
    }
    if (!from.done()) return error.Malformed;
    return .{ .packet_identifier = packet_identifier, .reason = reason };
}

fn acknowledgementReasonValid(packet: Type, reason: u8) bool {
    return switch (packet) {
        .pubrel, .pubcomp => reason == 0x00 or reason == 0x92,
        else => switch (reason) {
            0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99 => true,
            else => false,
        },
    };
}

pub const Subscription = struct {
    filter: []const u8,
    qos: u2,
    no_local: bool = false,
    retain_as_published: bool = false,
    retain_handling: u2 = 0,
};

/// SUBSCRIBE or UNSUBSCRIBE: the entries follow one by one with `nextFilter`.
pub const FilterList = struct {
    packet_identifier: u16,
    properties: Properties,
    from: Reader,
    version: u8,

    pub fn parse(version: u8, packet: Type, body: []const u8) Error!FilterList {
        var from: Reader = .{ .bytes = body };
        const packet_identifier = try identifier(&from);
        const place: properties.Place = if (packet == .subscribe) .subscribe else .unsubscribe;
        const found: Properties = if (version == 5) try properties.parse(&from, place) else .{};
        // [MQTT-3.8.3-2], [MQTT-3.10.3-2]: at least one; section 4.13: that is a protocol error.
        if (from.done()) return error.Protocol;
        return .{ .packet_identifier = packet_identifier, .properties = found, .from = from, .version = version };
    }

    pub fn nextFilter(self: *FilterList) Error!?[]const u8 {
        if (self.from.done()) return null;
        return try self.from.string();
    }

    pub fn nextSubscription(self: *FilterList) Error!?Subscription {
        const filter = try self.nextFilter() orelse return null;
        const options = try self.from.u8_();
        if (options & 3 == 3) return error.Malformed;
        const qos: u2 = @intCast(options & 3);
        if (self.version != 5) {
            if (options & 0xFC != 0 and self.version == 4) return error.Malformed; // 3.1.1 [MQTT-3-8.3-4]; 3.1: "not used"
            return .{ .filter = filter, .qos = qos };
        }
        if (options & 0xC0 != 0) return error.Malformed; // [MQTT-3.8.3-5]
        const retain_handling: u2 = @intCast((options >> 4) & 3);
        if (retain_handling == 3) return error.Protocol;
        return .{
            .filter = filter,
            .qos = qos,
            .no_local = options & 4 != 0,
            .retain_as_published = options & 8 != 0,
            .retain_handling = retain_handling,
        };
    }
};

pub const Disconnect = struct { reason: u8 = 0, properties: Properties = .{} };

pub fn disconnect(version: u8, body: []const u8) Error!Disconnect {
    var from: Reader = .{ .bytes = body };
    var result: Disconnect = .{};
    if (version == 5 and !from.done()) {
        result.reason = try from.u8_();
        switch (result.reason) {
            0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99 => {},
            else => return error.Malformed,
        }
        if (!from.done()) result.properties = try properties.parse(&from, .disconnect);
    }
    if (!from.done()) return error.Malformed;
    return result;
}

pub const Auth = struct { reason: u8 = 0, properties: Properties = .{} };

pub fn auth(body: []const u8) Error!Auth {
    var from: Reader = .{ .bytes = body };
    var result: Auth = .{};
    if (!from.done()) {
        result.reason = try from.u8_();
        if (!from.done()) result.properties = try properties.parse(&from, .auth);
    }
    if (!from.done()) return error.Malformed;
    // [MQTT-3.15.2-1] and section 3.15.2.2.2: a client sends 0x18 or 0x19, always with the method.
    if (result.reason != 0x18 and result.reason != 0x19) return error.Protocol;
    if (result.properties.authentication_method == null) return error.Protocol;
    return result;
}
