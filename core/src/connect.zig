//! CONNECT, authentication, CONNACK, and how sessions and connections part (MQTT 5.0, sections 3.1,
//! 3.2, 3.15, 4.1, 4.12).

const std = @import("std");
const bytes_room = @import("bytes.zig");
const acl = @import("acl.zig");
const connection_room = @import("connection.zig");
const delivery = @import("delivery.zig");
const events = @import("events.zig");
const heap = @import("heap.zig");
const inbound = @import("inbound.zig");
const journal = @import("journal.zig");
const limits = @import("limits.zig");
const message_room = @import("message.zig");
const packets = @import("wire/packets.zig");
const properties = @import("wire/properties.zig");
const reader = @import("wire/reader.zig");
const refusals = @import("refusals.zig");
const routing = @import("routing.zig");
const session_room = @import("session.zig");
const state = @import("state.zig");
const stats = @import("stats.zig");
const subscriptions = @import("subscriptions.zig");
const sys = @import("sys.zig");
const timers = @import("timers.zig");
const topics = @import("topics.zig");
const transitions = @import("transitions.zig");
const work = @import("work.zig");
const writer = @import("wire/writer.zig");
const Connection = connection_room.Connection;
const Reason = @import("wire/reason.zig").Reason;
const Session = session_room.Session;

pub fn handle(connection: *Connection, body: []const u8) void {
    const packet = packets.connect(body) catch |problem| switch (problem) {
        error.UnsupportedVersion4 => return refuseVersion(connection, 4),
        error.UnsupportedVersion5 => return refuseVersion(connection, 5),
        error.NotMqtt => return connection_room.finish(connection, .unsupported_protocol_version, "the protocol name is not MQTT"),
        error.Malformed => return refuseUnparsed(connection, body, .malformed_packet),
        error.Protocol => return refuseUnparsed(connection, body, .protocol_error),
    };
    arriving = .{ .connection = connection, .packet = &packet };
    defer arriving = null;
    connection.version = packet.version;
    connection.flags.bridge = packet.bridge;
    if (packet.properties.maximum_packet_size) |bytes| connection.maximum_packet_bytes = bytes;
    if (packet.properties.request_problem_information) |value| connection.flags.request_problem_information = value == 1;
    if (packet.client_identifier.len > limits.client_identifier_bytes_max)
        return refuse(connection, .client_identifier_not_valid, "the client identifier is longer than this server accepts"); // [MQTT-3.1.3-8]
    if (state.draining) return refuse(connection, .server_unavailable, "the server is shutting down");
    if (packet.will) |will| {
        if (will.qos > state.settings.maximum_qos) return refuse(connection, .qos_not_supported, "the will's QoS is not supported");
        if (will.retain and !state.settings.retain_available) return refuse(connection, .retain_not_supported, "retained messages are not supported");
        if (will.properties.response_topic) |topic| {
            if (!topics.validName(topic)) return refuse(connection, .protocol_error, "the will's response topic has wildcards");
        }
        if (will.properties.payload_format_indicator == 1 and !std.unicode.utf8ValidateSlice(will.payload))
            return refuse(connection, .payload_format_invalid, "the will's payload is not UTF-8");
    }
    if (packet.properties.authentication_method) |method| {
        connection.method = heap.copy(method) catch return refuse(connection, .server_busy, "no memory left");
        return ask(connection, body, &packet);
    }
    if (connection.identity.len != 0) return accept(connection, &packet, connection.identity, "");
    if (packet.user_name != null or packet.password != null) return ask(connection, body, &packet);
    if (!connection.flags.anonymous_allowed) return refuse(connection, .not_authorized, "anonymous clients are not allowed here");
    accept(connection, &packet, "", "");
}

/// `version`: the nearest one that is spoken, whose CONNACK the client may understand.
fn refuseVersion(connection: *Connection, version: u8) void {
    connection.version = version;
    refuse(connection, .unsupported_protocol_version, "this server speaks MQTT 3.1, 3.1.1 and 5.0");
}

/// The CONNECT packet that is being handled.
var arriving: ?struct { connection: *const Connection, packet: *const packets.Connect } = null;

pub const Claimed = struct { client_identifier: []const u8 = "", user: []const u8 = "" };

/// Who the client of a connection is, or says that it is where it has not been accepted.
pub fn claimed(connection: *const Connection) Claimed {
    if (connection.session) |session| return .{ .client_identifier = session.client_identifier, .user = session.user };
    if (arriving) |at| if (at.connection == connection) return claimedBy(connection, at.packet);
    if (connection.held_connect.len == 0) return .{ .user = connection.identity };
    const packet = packets.connect(connection.held_connect) catch unreachable; // it was parsed before it was held
    return claimedBy(connection, &packet);
}

fn claimedBy(connection: *const Connection, packet: *const packets.Connect) Claimed {
    return .{
        .client_identifier = refusals.beginning(packet.client_identifier),
        .user = if (connection.identity.len != 0) connection.identity else refusals.beginning(packet.user_name orelse ""),
    };
}

/// A CONNECT that cannot be read may still say its version: MQTT 5 clients are told [MQTT-3.1.4-1].
fn refuseUnparsed(connection: *Connection, body: []const u8, reason: Reason) void {
    connection.version = packets.connectVersion(body) orelse 0;
    const text: []const u8 = if (reason == .malformed_packet) "the CONNECT packet is malformed" else "the CONNECT packet breaks the protocol";
    refuse(connection, reason, text);
}

/// Hands the credentials to the host and parks the connection.
fn ask(connection: *Connection, body: []const u8, packet: *const packets.Connect) void {
    connection.held_connect = heap.copy(body) catch return refuse(connection, .server_busy, "no memory left");
    connection.phase = .verifying;
    const flags = @as(u8, if (packet.user_name != null) 1 else 0) | @as(u8, if (packet.password != null) 2 else 0) |
        @as(u8, if (packet.properties.authentication_method != null) 4 else 0);
    request(connection, flags, .{
        packet.client_identifier,
        packet.user_name orelse "",
        packet.password orelse "",
        packet.properties.authentication_method orelse "",
        packet.properties.authentication_data orelse "",
    }) catch return refuse(connection, .server_busy, "no memory left");
    connection_room.wantPause(connection, true);
}

fn request(connection: *Connection, flags: u8, strings: [5][]const u8) heap.Error!void {
    state.ticket +%= 1;
    connection.ticket = state.ticket;
    if (connection.phase != .active) try timers.set(&connection.timer, state.now_ms + state.settings.connect_timeout_ms);
    try events.begin(.auth_request, 4 + 4 + 1 + 1 + 2, &strings);
    events.number(u32, connection.id);
    events.number(u32, connection.ticket);
    events.number(u8, connection.version);
    events.number(u8, flags);
    events.number(u16, 0);
    for (strings) |text| events.string(text);
    events.finish();
}

/// An AUTH packet: the answer to a challenge, or the start of a re-authentication (section 4.12.1).
pub fn handleAuth(connection: *Connection, body: []const u8) void {
    if (connection.version != 5) return connection_room.close(connection, .protocol_error, "AUTH belongs to MQTT 5");
    const packet = packets.auth(body) catch |problem| return inbound.broken(connection, problem);
    const method = packet.properties.authentication_method.?;
    // [MQTT-4.12.0-5], [MQTT-4.12.1-1]: the method of the CONNECT packet, and only if there was one.
    if (connection.method.len == 0 or !bytes_room.equal(method, connection.method))
        return fail(connection, if (connection.phase == .active) .protocol_error else .bad_authentication_method, "the authentication method differs from that of CONNECT");
    const again = packet.reason == @backingInt(Reason.reauthenticate);
    var flags: u8 = 4;
    if (connection.phase == .active) {
        if (again == connection.flags.reauthenticating) return connection_room.close(connection, .protocol_error, "AUTH does not fit the exchange");
        connection.flags.reauthenticating = true;
        flags |= if (again) 8 else 8 | 16;
    } else {
        if (again) return fail(connection, .protocol_error, "re-authentication before the connection is accepted");
        connection.phase = .verifying;
        connection_room.wantPause(connection, true);
        flags |= 16;
    }
    const name: []const u8 = if (connection.session) |session| session.client_identifier else "";
    request(connection, flags, .{ name, "", "", method, packet.properties.authentication_data orelse "" }) catch
        return fail(connection, .server_busy, "no memory left");
}

fn fail(connection: *Connection, reason: Reason, text: []const u8) void {
    if (connection.phase == .active) connection_room.close(connection, reason, text) else refuse(connection, reason, text);
}

pub const Verdict = struct { outcome: u8, reason: Reason, user: []const u8, data: []const u8, text: []const u8 };

/// The host's AUTH_RESULT. Answers to a question of another connection or an earlier time are ignored.
pub fn answered(connection: *Connection, ticket: u32, verdict: Verdict) void {
    if (connection.ticket != ticket or ticket == 0) return;
    if (connection.phase != .verifying and !connection.flags.reauthenticating) return;
    connection.ticket = 0;
    switch (verdict.outcome) {
        0 => challenge(connection, verdict.data),
        1 => succeed(connection, verdict),
        else => {
            connection.flags.end_told = true;
            fail(connection, if (@backingInt(verdict.reason) < 0x80) .not_authorized else verdict.reason, verdict.text);
        },
    }
}

fn challenge(connection: *Connection, data: []const u8) void {
    if (connection.method.len == 0) return fail(connection, .not_authorized, "no enhanced authentication is under way");
    sendAuth(connection, .continue_authentication, data);
    if (connection.phase != .verifying) return; // a re-authentication, or the end
    connection.phase = .authenticating;
    connection_room.wantPause(connection, false);
    inbound.goOn(connection);
}

fn sendAuth(connection: *Connection, reason: Reason, data: []const u8) void {
    const with_data: u32 = if (data.len != 0) @intCast(3 + data.len) else 0;
    const inner: u32 = @intCast(3 + connection.method.len + with_data);
    const bytes = heap.slice(u8, inner + 16) catch return connection_room.abort(connection, .quota_exceeded, "no memory left");
    defer heap.freeSlice(bytes);
    var to: writer.Writer = .{ .bytes = bytes };
    to.byte(0xF0);
    to.variable(1 + reader.variableBytes(inner) + inner);
    to.byte(@backingInt(reason));
    to.variable(inner);
    to.property(.authentication_method); // [MQTT-4.12.0-5]
    to.string(connection.method);
    if (data.len != 0) {
        to.property(.authentication_data);
        to.string(data);
    }
    connection.send(to.written());
}

fn succeed(connection: *Connection, verdict: Verdict) void {
    if (connection.phase == .active) {
        connection.flags.reauthenticating = false;
        return sendAuth(connection, .success, verdict.data);
    }
    const body = connection.held_connect;
    connection.held_connect = &.{};
    defer {
        @memset(body, 0);
        heap.freeSlice(body);
    }
    const packet = packets.connect(body) catch unreachable; // it was parsed before it was held
    connection_room.wantPause(connection, false);
    accept(connection, &packet, verdict.user, verdict.data);
    inbound.goOn(connection);
}

/// CONNACK in the form of the client's version, where that has one for this reason, and the end.
pub fn refuse(connection: *Connection, wanted: Reason, text: []const u8) void {
    const reason: Reason = if (wanted.inConnack()) wanted else .unspecified;
    stats.count(.connects_refused, 1);
    if (connection.version == 5) {
        var bytes: [256]u8 = undefined;
        sendConnack(connection, refusal5(&bytes, connection, reason, text));
    } else if (wanted.connackCode4()) |code| sendConnack(connection, &.{ 0x20, 2, 0, code }); // 3.1.1 [MQTT-3.2.2-4]: session present 0
    connection_room.finish(connection, reason, text);
}

fn sendConnack(connection: *Connection, bytes: []const u8) void {
    if (!connection.takes(bytes)) return; // [MQTT-3.1.2-24]
    stats.count(.connack_sent, 1);
    connection.send(bytes);
}

fn refusal5(target: *[256]u8, connection: *const Connection, reason: Reason, text: []const u8) []const u8 {
    var to: writer.Writer = .{ .bytes = target };
    const shown = text[0..@min(text.len, 200)];
    const fits = shown.len != 0 and shown.len + 10 <= connection.maximum_packet_bytes;
    const inner: u32 = if (fits) @intCast(shown.len + 3) else 0;
    to.byte(0x20);
    to.variable(2 + reader.variableBytes(inner) + inner);
    to.byte(0); // [MQTT-3.2.2-6]
    to.byte(@backingInt(reason));
    to.variable(inner);
    if (fits) {
        to.property(.reason_string);
        to.string(shown);
    }
    return to.written();
}

/// What the client gets, where it differs from what it asked for.
const Grant = struct { name: []const u8, assigned: bool, asked_expiry_s: u32, expiry_s: u32, keep_alive_s: u16 };

/// Everything is allowed: the session is found or made, the client is told.
fn accept(connection: *Connection, packet: *const packets.Connect, user: []const u8, data: []const u8) void {
    var name_bytes: [24]u8 = undefined;
    var name = packet.client_identifier;
    const assigned = name.len == 0;
    if (assigned) {
        if (packet.version == 3) // MQTT 3.1, section 3.1: at least one character
            return refuse(connection, .client_identifier_not_valid, "MQTT 3.1 does not allow an empty client identifier");
        if (packet.version == 4 and !packet.clean_start) // 3.1.1 [MQTT-3.1.3-8]
            return refuse(connection, .client_identifier_not_valid, "an empty client identifier needs a clean session");
        name = assignName(&name_bytes);
    }
    const before = session_room.find(name);
    if (before) |known| {
        // Whoever takes a session over gets its messages: it has to be the same user.
        if (!known.ending and !bytes_room.equal(known.user, user)) return refuse(connection, .client_identifier_not_valid, "this client identifier belongs to another user");
    }
    if (packet.will) |will| {
        // A bridge tells its state with its will, and is no victim of rules that do not know of it:
        // they are asked again when the will is published.
        const who: acl.Who = .{ .user = user, .client_identifier = name, .attestation = &connection.attestation };
        if (!sys.ofBridges(will.topic) and (sys.reserved(will.topic) or !acl.allowed(.publish, who, will.topic))) {
            stats.count(.acl_denied, 1);
            connection.flags.end_told = refusals.report(connection, .will, .not_authorized, who, will.topic);
            return refuse(connection, .not_authorized, "the will's topic is not allowed for this client");
        }
    }
    const asked: u32 = if (packet.version == 5) packet.properties.session_expiry_interval orelse 0 else if (packet.clean_start) 0 else 0xFFFF_FFFF;
    const grant: Grant = .{
        .name = name,
        .assigned = assigned,
        .asked_expiry_s = asked,
        .expiry_s = @min(asked, state.settings.session_expiry_max_s),
        .keep_alive_s = keepAlive(packet),
    };
    var short: [4]u8 = undefined;
    const connack = if (packet.version != 5) frameConnack(&short, packet.version, "") else encodeConnack(connection, packet, &grant, data) catch return refuse(connection, .server_busy, "no memory left");
    defer if (packet.version == 5) heap.freeSlice(connack.memory);
    // Before anything is taken over: a client that cannot be told that it is accepted is not.
    if (!connection.takes(connack.bytes)) return refuse(connection, .implementation_specific, "CONNACK is larger than the client's maximum packet size");
    const will = if (packet.will) |*found| willMessage(found) catch return refuse(connection, .server_busy, "no memory left") else null;
    var present = false;
    const session = obtain(name, before, packet, user, &present) catch {
        if (will) |message| message.unreference();
        return refuse(connection, .server_busy, "no memory left");
    };
    session.setExpiry(grant.expiry_s);
    session.version = packet.version;
    const will_delay = if (packet.will) |found| found.properties.will_delay_interval orelse 0 else 0;
    session.setWill(will, @min(will_delay, state.settings.will_delay_max_s));
    if (!session.attestation.equal(&connection.attestation)) follow(session, &connection.attestation);
    attach(connection, session, packet);
    connection.keep_alive_ms = @as(u32, grant.keep_alive_s) * 1500;
    connection.last_packet_ms = state.now_ms;
    timers.cancel(&connection.timer);
    if (connection.keep_alive_ms != 0) timers.set(&connection.timer, state.now_ms + connection.keep_alive_ms) catch
        return connection_room.abort(connection, .server_busy, "no memory left");
    followBridge(session, packet);
    journal.sessionChanged(session);
    if (present and packet.version != 3) connack.flags.* = 1; // MQTT 3.1 has a reserved byte there
    sendConnack(connection, connack.bytes);
    reportConnected(connection, packet, present, grant.keep_alive_s) catch {};
    delivery.resumeSession(session);
}

/// MQTT 3.1 and 3.1.1 have no subscription options: what the bit of a bridge means holds for all
/// subscriptions of the session, those of an earlier connection included.
fn followBridge(session: *Session, packet: *const packets.Connect) void {
    const before = session.bridge;
    session.bridge = packet.bridge;
    if (packet.version == 5 or before == packet.bridge) return;
    subscriptions.generation += 1;
    work.spend(session.subscription_count);
    var item = session.first_subscription;
    while (item) |subscription| : (item = subscription.next_in_session) {
        subscription.options.no_local = packet.bridge and subscription.group == null;
        subscription.options.retain_as_published = packet.bridge;
        journal.subscribed(subscription);
    }
}

/// The session of a client that has proven something else than before. Subscriptions stay, and
/// count for what the client may have now; what waits was kept for what it was then.
fn follow(session: *Session, attestation: *const acl.Attestation) void {
    session.attestation = attestation.*;
    if (session.subscription_count != 0) acl.generation += 1;
    delivery.withdraw(session);
}

fn assignName(target: *[24]u8) []const u8 {
    const letters = "abcdefghijklmnopqrstuvwxyz234567";
    @memcpy(target[0..5], "avow-");
    for (target[5..]) |*letter| letter.* = letters[state.random.random().int(u5)];
    return target;
}

/// The expiry interval of a will is kept as a duration until it is published.
fn willMessage(will: *const packets.Will) heap.Error!*message_room.Message {
    const buffer = try heap.slice(u8, will.properties.raw.len);
    defer heap.freeSlice(buffer);
    const length = properties.forwardInto(buffer, will.properties.raw);
    return message_room.Message.create(.{
        .topic = will.topic,
        .properties = buffer[0..length],
        .payload = will.payload,
        .qos = will.qos,
        .retain = will.retain,
        .expires_at_ms = if (will.properties.message_expiry_interval) |seconds| @as(u64, seconds) * 1000 else message_room.never,
    });
}

/// `before`: the session that has the name.
fn obtain(name: []const u8, before: ?*Session, packet: *const packets.Connect, user: []const u8, present: *bool) heap.Error!*Session {
    if (before != null) giveUpBefore(name);
    const known = if (before != null) session_room.find(name) else null;
    const life: transitions.Life = if (known == null) .none else .waiting;
    switch (transitions.lifeEffect(life, if (packet.clean_start) .connect_clean else .connect_resume)) {
        .adopt => {
            present.* = true;
            timers.cancel(&known.?.expiry_timer);
            return known.?;
        },
        .replace => endSession(known.?),
        .create => {},
        else => unreachable,
    }
    const session = try session_room.create(name, packet.version);
    errdefer session_room.end(session);
    try session.setUser(user);
    return session;
}

/// Whoever is connected, and what nobody may have any more, makes room for the one who comes.
fn giveUpBefore(name: []const u8) void {
    if (session_room.find(name).?.connection) |other| { // [MQTT-3.1.4-3]
        connection_room.close(other, .session_taken_over, "another connection took this session over");
        detach(other);
    }
    // One that is only handed on, or that ended with a restart, is not there for anybody.
    const known = session_room.find(name) orelse return;
    if (known.ending or !known.durable()) endSession(known);
}

fn attach(connection: *Connection, session: *Session, packet: *const packets.Connect) void {
    connection.session = session;
    session.connection = connection;
    connection.phase = .active;
    connection.window = packet.properties.receive_maximum orelse 0xFFFF; // [MQTT-4.9.0-1]
    connection.alias_out_maximum = @min(packet.properties.topic_alias_maximum orelse 0, state.settings.topic_alias_out_maximum);
    stats.count(.clients_connected, 1);
    stats.count(.connects_accepted, 1);
    if (stats.get(.clients_connected) > stats.get(.clients_maximum)) stats.put(.clients_maximum, stats.get(.clients_connected));
}

/// Server Keep Alive exists in MQTT 5 only; an MQTT 3.1.1 client cannot be told [MQTT-3.1.2-21].
fn keepAlive(packet: *const packets.Connect) u16 {
    const most = state.settings.keep_alive_max_s;
    if (packet.version != 5 or most == 0) return packet.keep_alive_s;
    return if (packet.keep_alive_s == 0 or packet.keep_alive_s > most) most else packet.keep_alive_s;
}

const Connack = struct {
    memory: []u8,
    bytes: []const u8,
    /// Connect Acknowledge Flags: the session is not known to be present yet.
    flags: *u8,
};

/// CONNACK of MQTT 5 with success, in memory of the heap. What may be left out is, where the whole is
/// more than the client takes.
fn encodeConnack(connection: *const Connection, packet: *const packets.Connect, grant: *const Grant, data: []const u8) heap.Error!Connack {
    const room: usize = 160 + grant.name.len * 2 + connection.method.len + data.len + state.response_prefix.len;
    const memory = try heap.slice(u8, room);
    errdefer heap.freeSlice(memory);
    const inner = try heap.slice(u8, room);
    defer heap.freeSlice(inner);
    for ([_]bool{ true, false }) |informing| {
        var list: writer.Writer = .{ .bytes = inner };
        writeConnackProperties(&list, connection, packet, grant, data);
        if (informing) writeResponseInformation(&list, packet, grant);
        const whole = frameConnack(memory, packet.version, list.written());
        if (connection.takes(whole.bytes) or !informing) return whole;
    }
    unreachable;
}

fn frameConnack(memory: []u8, version: u8, list: []const u8) Connack {
    const length: u32 = @intCast(list.len);
    var to: writer.Writer = .{ .bytes = memory };
    to.byte(0x20);
    to.variable(if (version == 5) 2 + reader.variableBytes(length) + length else 2);
    const flags = &memory[to.length];
    to.byte(0);
    to.byte(0);
    if (version == 5) {
        to.variable(length);
        to.raw(list);
    }
    return .{ .memory = memory, .bytes = to.written(), .flags = flags };
}

/// Only what differs from the defaults of section 3.2.2.3.
fn writeConnackProperties(to: *writer.Writer, connection: *const Connection, packet: *const packets.Connect, grant: *const Grant, data: []const u8) void {
    const settings = &state.settings;
    if (grant.asked_expiry_s != grant.expiry_s) {
        to.property(.session_expiry_interval);
        to.u32_(grant.expiry_s);
    }
    if (settings.receive_maximum != 0xFFFF) {
        to.property(.receive_maximum);
        to.u16_(settings.receive_maximum);
    }
    if (settings.maximum_qos < 2) flagProperty(to, .maximum_qos, settings.maximum_qos);
    if (!settings.retain_available) flagProperty(to, .retain_available, 0);
    if (settings.packetBytesTold()) |bytes| {
        to.property(.maximum_packet_size);
        to.u32_(bytes);
    }
    if (grant.assigned) {
        to.property(.assigned_client_identifier); // [MQTT-3.2.2-16]
        to.string(grant.name);
    }
    if (settings.topic_alias_maximum != 0) {
        to.property(.topic_alias_maximum);
        to.u16_(settings.topic_alias_maximum);
    }
    if (!settings.wildcard_available) flagProperty(to, .wildcard_subscription_available, 0);
    if (!settings.subscription_identifiers_available) flagProperty(to, .subscription_identifier_available, 0);
    if (!settings.shared_available) flagProperty(to, .shared_subscription_available, 0);
    if (grant.keep_alive_s != packet.keep_alive_s) {
        to.property(.server_keep_alive);
        to.u16_(grant.keep_alive_s);
    }
    if (connection.method.len != 0) {
        to.property(.authentication_method);
        to.string(connection.method);
        if (data.len != 0) {
            to.property(.authentication_data);
            to.string(data);
        }
    }
}

/// [MQTT-3.1.2-28]: a server may always leave it out.
fn writeResponseInformation(to: *writer.Writer, packet: *const packets.Connect, grant: *const Grant) void {
    const prefix = state.response_prefix;
    if (packet.properties.request_response_information != 1 or prefix.len == 0) return;
    to.property(.response_information);
    to.u16_(@intCast(prefix.len + 1 + grant.name.len));
    to.raw(prefix);
    to.byte('/');
    to.raw(grant.name);
}

fn flagProperty(to: *writer.Writer, id: properties.Id, value: u8) void {
    to.property(id);
    to.byte(value);
}

fn reportConnected(connection: *Connection, packet: *const packets.Connect, present: bool, keep_alive_s: u16) heap.Error!void {
    const session = connection.session.?;
    try events.begin(.connected, 4 + 1 + 1 + 2, &.{ session.client_identifier, session.user });
    events.number(u32, connection.id);
    events.number(u8, connection.version);
    events.number(u8, @as(u8, @intFromBool(present)) | @as(u8, @intFromBool(packet.clean_start)) << 1);
    events.number(u16, keep_alive_s);
    events.string(session.client_identifier);
    events.string(session.user);
    events.finish();
}

/// Connection and session part: the will, the expiry, the end (sections 3.1.2.5 and 3.1.2.11.2).
pub fn detach(connection: *Connection) void {
    const session = connection.session orelse return;
    connection.session = null;
    session.connection = null;
    stats.uncount(.clients_connected, 1);
    // A shutdown is for the journal what a crash is: wills and expiry are dealt with after the restart.
    if (state.draining) return;
    if (!connection.flags.will_wanted) session.setWill(null, 0);
    switch (transitions.lifeEffect(.connected, if (session.durable()) .closed_expiring else .closed_ending)) {
        .end => endInTurns(session),
        .keep => keepSession(session),
        else => unreachable,
    }
}

fn keepSession(session: *Session) void {
    if (session.expiry_s != 0xFFFF_FFFF) timers.set(&session.expiry_timer, state.now_ms + @as(u64, session.expiry_s) * 1000) catch return endSession(session);
    if (session.will != null) {
        const delay_s = @min(session.will_delay_s, session.expiry_s); // [MQTT-3.1.3-9]: whichever is first
        if (delay_s == 0) {
            routing.publishWill(session);
        } else timers.set(&session.will_timer, state.now_ms + @as(u64, delay_s) * 1000) catch routing.publishWill(session);
    }
    journal.sessionChanged(session);
}

/// The end of a session publishes a will that still waits [MQTT-3.1.2-8].
pub fn endSession(session: *Session) void {
    routing.publishWill(session);
    _ = routing.handOn(session, .whole);
    session_room.end(session);
}

/// The same where nobody waits for the name: a long queue of shared messages is handed on over several turns.
fn endInTurns(session: *Session) void {
    routing.publishWill(session);
    if (routing.handOn(session, .share)) return session_room.end(session);
    timers.set(&session.expiry_timer, state.now_ms + 1) catch return endSession(session);
    if (session.ending) return;
    session.ending = true;
    journal.sessionChanged(session);
}

pub fn sessionExpired(session: *Session) void {
    if (session.ending) return endInTurns(session);
    stats.count(.sessions_expired, 1);
    std.debug.assert(transitions.lifeEffect(.waiting, .expired) == .end);
    endInTurns(session);
}

pub fn willDue(session: *Session) void {
    routing.publishWill(session);
    journal.sessionChanged(session);
}
