//! Bytes from a connection become packets, and packets become effects.

const std = @import("std");
const bytes_room = @import("bytes.zig");
const acl = @import("acl.zig");
const connect = @import("connect.zig");
const connection_room = @import("connection.zig");
const delivery = @import("delivery.zig");
const heap = @import("heap.zig");
const journal = @import("journal.zig");
const limits = @import("limits.zig");
const message_room = @import("message.zig");
const packets = @import("wire/packets.zig");
const properties = @import("wire/properties.zig");
const reader = @import("wire/reader.zig");
const refusals = @import("refusals.zig");
const routing = @import("routing.zig");
const stalling = @import("stalling.zig");
const state = @import("state.zig");
const stats = @import("stats.zig");
const subscribe = @import("subscribe.zig");
const sys = @import("sys.zig");
const topics = @import("topics.zig");
const transitions = @import("transitions.zig");
const web_origin = @import("wire/web_origin.zig");
const websocket = @import("wire/websocket.zig");
const writer = @import("wire/writer.zig");
const work = @import("work.zig");
const Connection = connection_room.Connection;
const Reason = @import("wire/reason.zig").Reason;

/// Plaintext from the transport.
pub fn received(connection: *Connection, bytes: []u8) void {
    stats.count(.bytes_received, bytes.len);
    if (connection.phase == .active and connection.stall == null and connection.websocket == null) return consume(connection, bytes); // most of all
    if (connection.first_byte == 0 and bytes.len != 0) connection.first_byte = bytes[0];
    take(connection, bytes);
}

/// What `received` does, and what is done again with what had to wait.
pub fn take(connection: *Connection, bytes: []u8) void {
    if (connection.phase == .closing) return;
    if (connection.stall != null) return stalling.hold(connection, bytes);
    if (connection.phase == .upgrading) return upgrade(connection, bytes);
    if (connection.websocket != null) return unframe(connection, bytes);
    consume(connection, bytes);
}

fn upgrade(connection: *Connection, bytes: []u8) void {
    const room = limits.upgrade_bytes_max + 4 - @min(connection.partial.items.len, limits.upgrade_bytes_max);
    const piece = bytes[0..@min(bytes.len, room)];
    const before = connection.partial.items.len;
    connection.partial.appendSlice(piece) catch return connection_room.abort(connection, .server_busy, "no memory left");
    const rule: web_origin.Rule = .{ .origins = state.web_origins, .hosts = state.web_hosts, .name_proven = connection.websocket.?.name_proven };
    switch (websocket.upgrade(connection.partial.items, &rule)) {
        .incomplete => if (piece.len < bytes.len) refuseUpgrade(connection, "the HTTP request is too large"),
        .refused => |answer| {
            connection.outbox.write(answer) catch {};
            refuseUpgrade(connection, otherProtocol(connection) orelse "not a WebSocket upgrade for the subprotocol mqtt");
        },
        .foreign => |page| forbid(connection, "a web page of {s} may not connect: name it in web_origins if it shall", page, "a web page whose origin is not printable"),
        .foreign_host => |host| forbid(connection, "a client takes this server for {s}, which may be a web page's own name: name it in web_hosts if clients use it", host, "a client takes this server for one whose name is not printable"),
        .accepted => |done| {
            connection.partial.deinit();
            connection.phase = .connecting;
            for ([_][]const u8{ websocket.answer_start, done.protocol, websocket.answer_accept, &done.accept, websocket.answer_end }) |part| {
                connection.outbox.write(part) catch return connection_room.abort(connection, .server_busy, "no memory left");
            }
            connection_room.markDirty(connection);
            const rest = bytes[done.consumed - before ..];
            if (rest.len != 0) unframe(connection, rest);
        },
    }
}

/// `text` tells of `who`, and `unprintable` where that cannot be in the host's log, as UTF-8.
fn forbid(connection: *Connection, comptime text: []const u8, who: []const u8, unprintable: []const u8) void {
    var buffer: [limits.refusal_text_bytes]u8 = undefined;
    const shown = who[0..@min(who.len, 100)];
    const printable = for (shown) |letter| {
        if (letter <= ' ' or letter > '~') break false;
    } else true;
    connection.outbox.write(websocket.refused_403) catch {};
    const told = if (printable) std.fmt.bufPrint(&buffer, text, .{shown}) catch unprintable else unprintable;
    connection_room.finish(connection, .not_authorized, told);
}

fn refuseUpgrade(connection: *Connection, text: []const u8) void {
    connection_room.finish(connection, .protocol_error, text);
}

fn unframe(connection: *Connection, bytes: []u8) void {
    const decoder = connection.websocket.?;
    var rest = bytes;
    while (connection.phase != .closing) {
        if (connection.stall != null) return if (rest.len != 0) stalling.hold(connection, rest);
        const event = decoder.next(&rest) catch return connection_room.close(connection, .protocol_error, "the WebSocket frame is not allowed");
        switch (event) {
            .need_more => return,
            .data => |piece| consume(connection, piece),
            .ping => |payload| {
                var head: [10]u8 = undefined;
                const count = websocket.frameHeader(&head, .pong, payload.len);
                connection.outbox.write(head[0..count]) catch return connection_room.abort(connection, .server_busy, "no memory left");
                connection.outbox.write(payload) catch return connection_room.abort(connection, .server_busy, "no memory left");
                connection_room.markDirty(connection);
                if (connection.outbox.bytes > limits.pause_bytes) connection_room.wantPause(connection, true);
            },
            .close => {
                connection_room.report(connection, .unspecified, 2, "the WebSocket was closed");
                return connection_room.finish(connection, .success, "the WebSocket was closed");
            },
        }
    }
}

/// MQTT bytes in whatever pieces they come.
fn consume(connection: *Connection, bytes: []const u8) void {
    const count = handleMost(connection, bytes);
    if (count < bytes.len or connection.isWaiting()) @call(.never_inline, stalling.begin, .{ connection, bytes[count..] });
}

/// How many bytes were taken: the rest waits, because the connection's share of work is used up or
/// a packet takes several turns.
pub fn handleMost(connection: *Connection, bytes: []const u8) usize {
    var rest = bytes;
    while (rest.len != 0) {
        if (connection.phase != .active) { // one look for those that have been accepted
            if (connection.phase == .closing) break;
            if (connection.phase == .verifying and !work.over()) {
                park(connection, rest);
                break;
            }
        }
        if (work.over() or connection.isWaiting()) return bytes.len - rest.len;
        if (connection.partial.items.len != 0) {
            if (!completePartial(connection, &rest)) return if (connection.isWaiting()) bytes.len - rest.len else bytes.len;
            continue;
        }
        if (!mayBegin(connection, rest[0])) break;
        const head = reader.header(rest) catch {
            broken(connection, error.Malformed);
            break;
        };
        const total = if (head) |found| found.header_bytes + found.remaining else 0;
        if (tooLarge(connection, head)) break;
        if (head == null or rest.len < total) {
            keep(connection, rest, total);
            break;
        }
        handle(connection, head.?, rest[head.?.header_bytes..total]);
        rest = rest[total..];
    }
    return bytes.len;
}

/// What a packet's first byte says, by phase and version (0: not known yet). One look-up a packet.
const Beginning = enum(u8) { allowed, malformed, protocol_error };
const version_count = 6;
const phase_count = @typeInfo(transitions.Phase).@"enum".field_names.len;
const beginnings = blk: {
    @setEvalBranchQuota(1_000_000);
    var table: [phase_count][version_count][256]Beginning = undefined;
    for (&table, 0..) |*versions, phase| {
        for (versions, 0..) |*bytes, version| {
            for (bytes, 0..) |*beginning, first| {
                const packet = typeOf(first);
                const known = packets.flagsValid(version, packet, first & 0x0F) and (packet != .auth or version == 5);
                const now = transitions.accepts(@fromBackingInt(phase), packet);
                beginning.* = if (!known) .malformed else if (now) .allowed else .protocol_error;
            }
        }
    }
    break :blk table;
};

/// A packet's first byte says whether it may come now at all: what cannot is not waited for.
inline fn mayBegin(connection: *Connection, first: u8) bool {
    const beginning = beginnings[@backingInt(connection.phase)][connection.version][first];
    if (beginning == .allowed) return true;
    broken(connection, if (beginning == .malformed) error.Malformed else error.Protocol);
    return false;
}

fn typeOf(first: u8) packets.Type {
    return @fromBackingInt(@intCast(@as(u4, @intCast(first >> 4))));
}

/// Adds to the packet that has begun; false: nothing is left to do now.
fn completePartial(connection: *Connection, rest: *[]const u8) bool {
    const partial = &connection.partial;
    const head = reader.header(partial.items) catch {
        broken(connection, error.Malformed);
        return false;
    };
    const total = if (head) |found| found.header_bytes + found.remaining else partial.items.len + 1;
    if (tooLarge(connection, head)) return false;
    const count = @min(total - partial.items.len, rest.len);
    keep(connection, rest.*[0..count], @intCast(total));
    if (connection.phase == .closing) return false;
    rest.* = rest.*[count..];
    if (head == null) return afterHeader(connection);
    if (partial.items.len < total) return false;
    finishPartial(connection, head.?);
    return true;
}

/// A header that has just become complete may be a whole packet (PINGREQ).
fn afterHeader(connection: *Connection) bool {
    const head = reader.header(connection.partial.items) catch {
        broken(connection, error.Malformed);
        return false;
    };
    const found = head orelse return true;
    if (tooLarge(connection, found)) return false;
    if (found.remaining == 0) finishPartial(connection, found);
    return true;
}

/// The list is taken out first: the handler may end the connection, which gives its buffers back.
fn finishPartial(connection: *Connection, head: reader.Header) void {
    var whole = connection.partial;
    connection.partial = .{};
    defer whole.deinit();
    defer @memset(whole.items, 0); // a CONNECT has credentials in it
    handle(connection, head, whole.items[head.header_bytes..]);
}

/// Keeps a part of a packet. The list grows as bytes come, not by what a header says, and at most to
/// the packet's size (`total`; 0: not known).
noinline fn keep(connection: *Connection, bytes: []const u8, total: u32) void {
    const partial = &connection.partial;
    const count = partial.items.len + bytes.len;
    // Packets that never end must not take the memory of those that do.
    if (count > partial.capacity and count > limits.partial_small_bytes and !routing.hasRoomForLarge(count)) return connection_room.abort(connection, .quota_exceeded, "no memory left");
    partial.ensureWithin(count, @max(total, count)) catch return connection_room.abort(connection, .quota_exceeded, "no memory left");
    partial.appendSlice(bytes) catch unreachable; // there is room
}

/// Who has not been accepted yet may send less: CONNECT and AUTH of a stranger cost memory.
/// What is no PUBLISH is work that cannot be interrupted, and has a bound of its own.
inline fn tooLarge(connection: *Connection, head: ?reader.Header) bool {
    const found = head orelse return false;
    const least = @min(limits.connect_bytes_max, limits.control_packet_bytes_max);
    if (found.header_bytes + found.remaining <= @min(least, state.settings.maximum_packet_bytes)) return false;
    return aboveItsBound(connection, found);
}

noinline fn aboveItsBound(connection: *Connection, found: reader.Header) bool {
    const total = found.header_bytes + found.remaining;
    const configured = state.settings.packetBytesTold() orelse limits.packet_bytes_max;
    const is_publish = typeOf(found.first) == .publish;
    const bound = if (connection.phase != .active) limits.connect_bytes_max else if (is_publish) limits.packet_bytes_max else limits.control_packet_bytes_max;
    const most = @min(configured, bound);
    if (total <= most) return false;
    const name: []const u8 = if (most == configured) "maximum_packet_bytes" else if (connection.phase != .active) "the bound of CONNECT and AUTH" else "the bound of packets other than PUBLISH";
    var buffer: [128]u8 = undefined;
    const text = std.fmt.bufPrint(&buffer, "a packet of {d} bytes, more than {s} ({d})", .{ total, name, most }) catch unreachable;
    connection_room.close(connection, .packet_too_large, text); // [MQTT-3.2.2-15]
    return true;
}

/// What a client sends before its CONNACK waits here, within a bound; the host was asked to pause.
fn park(connection: *Connection, bytes: []const u8) void {
    if (connection.partial.items.len + bytes.len > limits.parked_bytes_max)
        return connection_room.abort(connection, .quota_exceeded, "too much was sent before the connection was accepted");
    connection.partial.appendSlice(bytes) catch connection_room.abort(connection, .server_busy, "no memory left");
}

/// Handles what was parked.
pub fn goOn(connection: *Connection) void {
    var parked = connection.partial;
    connection.partial = .{};
    defer parked.deinit();
    consume(connection, parked.items);
}

/// Closes with the reason code of a packet that could not be accepted [MQTT-4.13.1-1].
pub fn broken(connection: *Connection, problem: packets.Error) void {
    const reason: Reason = if (problem == error.Malformed) .malformed_packet else .protocol_error;
    const text: []const u8 = otherProtocol(connection) orelse if (problem == error.Malformed) "the packet is malformed" else "the packet breaks the protocol";
    if (connection.phase == .authenticating) return connect.refuse(connection, reason, text);
    connection_room.close(connection, reason, text);
}

/// What the peer seems to speak instead of MQTT, by its first byte; null where it may be MQTT.
pub fn otherProtocol(connection: *const Connection) ?[]const u8 {
    if (connection.phase != .connecting and connection.phase != .upgrading) return null;
    const web = connection.websocket != null;
    return switch (connection.first_byte) {
        0x16 => "a TLS handshake came, and this listener has no TLS: let the client use mqtt:// or ws://, or give the listener a certificate and mqtts:// or wss://",
        'G', 'P', 'H', 'O' => if (web) null else "an HTTP request came, and this listener speaks MQTT: let the client use mqtt://, or give the listener ws://",
        0x10 => if (web and connection.phase == .upgrading) "MQTT came, and this listener speaks WebSocket: let the client use ws://, or give the listener mqtt://" else null,
        else => null,
    };
}

fn handle(connection: *Connection, head: reader.Header, body: []const u8) void {
    const packet = typeOf(head.first);
    const flags: u4 = @intCast(head.first & 0x0F);
    stats.count(.messages_received, 1);
    work.spend(2 +% body.len / work.unit_bytes);
    connection.last_packet_ms = state.now_ms;
    switch (packet) {
        .connect => connect.handle(connection, body),
        .publish => publish(connection, flags, body),
        .puback, .pubrec, .pubcomp => acknowledgement(connection, packet, body),
        .pubrel => release(connection, body),
        .subscribe => subscribe.subscribe(connection, body),
        .unsubscribe => subscribe.unsubscribe(connection, body),
        .pingreq => if (body.len == 0) connection.send(&writer.pingresp) else broken(connection, error.Malformed),
        .disconnect => disconnect(connection, body),
        .auth => connect.handleAuth(connection, body),
        else => broken(connection, error.Protocol),
    }
}

fn disconnect(connection: *Connection, body: []const u8) void {
    const packet = packets.disconnect(connection.version, body) catch |problem| return broken(connection, problem);
    const session = connection.session orelse return connection_room.finish(connection, .success, "the client left during authentication");
    if (packet.properties.session_expiry_interval) |asked| {
        if (session.expiry_s == 0 and asked != 0) return broken(connection, error.Protocol); // section 3.14.2.2.2
        session.setExpiry(@min(asked, state.settings.session_expiry_max_s));
    }
    if (packet.reason == 0) connection.flags.will_wanted = false; // [MQTT-3.14.4-3]
    connection_room.report(connection, @fromBackingInt(@intCast(packet.reason)), 0, "");
    connection_room.finish(connection, .success, "");
}

fn acknowledgement(connection: *Connection, packet: packets.Type, body: []const u8) void {
    const parsed = packets.acknowledgement(connection.version, packet, body) catch |problem| return broken(connection, problem);
    delivery.acknowledged(connection, parsed.packet_identifier, switch (packet) {
        .puback => .puback,
        .pubrec => if (parsed.reason >= 0x80) .pubrec_error else .pubrec,
        else => .pubcomp,
    });
}

fn acknowledge(connection: *Connection, packet: packets.Type, packet_identifier: u16, reason: Reason) void {
    var bytes: [8]u8 = undefined;
    // That nobody subscribes may be left unsaid (table 3-4); that a message was refused may not.
    const unsaid = reason == .no_matching_subscribers and connection.maximum_packet_bytes < writer.acknowledgement_bytes_max;
    connection.send(writer.acknowledgement(&bytes, connection.version, packet, packet_identifier, if (unsaid) .success else reason));
}

fn release(connection: *Connection, body: []const u8) void {
    const parsed = packets.acknowledgement(connection.version, .pubrel, body) catch |problem| return broken(connection, problem);
    const session = connection.session.?;
    const known = session.received.remove(parsed.packet_identifier);
    switch (transitions.inboundEffect(if (known) .received else .unknown, .pubrel)) {
        .complete => {
            journal.receivedRemoved(session, parsed.packet_identifier);
            acknowledge(connection, .pubcomp, parsed.packet_identifier, .success);
        },
        .complete_unknown => acknowledge(connection, .pubcomp, parsed.packet_identifier, .packet_identifier_not_found),
        else => unreachable,
    }
}

fn publish(connection: *Connection, flags: u4, body: []const u8) void {
    var packet = packets.publish(connection.version, flags, body) catch |problem| return broken(connection, problem);
    const settings = &state.settings;
    stats.count(.publish_received, 1);
    stats.count(.publish_bytes_received, packet.payload.len);
    if (packet.qos > settings.maximum_qos) return connection_room.close(connection, .qos_not_supported, "the QoS is above this server's maximum"); // [MQTT-3.2.2-11]
    if (packet.retain and !settings.retain_available) return connection_room.close(connection, .retain_not_supported, "retained messages are not supported"); // [MQTT-3.2.2-14]
    if (!resolveTopic(connection, &packet)) return;
    const session = connection.session.?;
    if (packet.qos == 2) {
        const known = session.received.has(packet.packet_identifier);
        if (transitions.inboundEffect(if (known) .received else .unknown, .publish) == .repeat)
            return acknowledge(connection, .pubrec, packet.packet_identifier, .success);
        // A publish of QoS 1 is open only until its PUBACK is made, which is at once: it never counts.
        // One of QoS 2 beyond the quota is refused alone (docs/decisions/0015-*; section 4.9).
        if (connection.version == 5 and session.received.count >= settings.receive_maximum) {
            stats.count(.publish_dropped, 1);
            _ = refusals.report(connection, .publish, .receive_maximum_exceeded, session.who(), packet.topic);
            return acknowledge(connection, .pubrec, packet.packet_identifier, .quota_exceeded);
        }
    }
    const reason = route(connection, &packet) orelse return;
    confirm(connection, packet.qos, packet.packet_identifier, reason);
}

fn confirm(connection: *Connection, qos: u2, packet_identifier: u16, reason: Reason) void {
    switch (qos) {
        0 => {},
        1 => acknowledge(connection, .puback, packet_identifier, reason),
        else => acknowledge(connection, .pubrec, packet_identifier, reason),
    }
}

/// A publish that took several turns has been given to all who match. `known`: its identifier was
/// remembered before.
pub fn published(connection: *Connection, qos: u2, packet_identifier: u16, matched: u32, known: bool) void {
    if (!known) _ = accepted(connection, qos, packet_identifier);
    if (connection.phase == .closing) return;
    confirm(connection, qos, packet_identifier, outcome(connection, matched));
    stalling.goOnLater(connection);
}

fn outcome(connection: *const Connection, matched: u32) Reason {
    return if (matched == 0 and connection.version == 5) .no_matching_subscribers else .success;
}

/// Replaces an alias by its topic and checks the name (sections 3.3.2.1 and 3.3.2.3.4).
fn resolveTopic(connection: *Connection, packet: *packets.Publish) bool {
    if (packet.properties.topic_alias) |alias| {
        if (alias == 0 or alias > state.settings.topic_alias_maximum) { // [MQTT-3.3.2-8], [MQTT-3.3.2-9]
            connection_room.close(connection, .topic_alias_invalid, "the topic alias is 0 or above this server's maximum");
            return false;
        }
        if (packet.topic.len == 0) {
            packet.topic = if (alias <= connection.aliases_in.len) connection.aliases_in[alias - 1] else "";
        } else if (!topics.validName(packet.topic)) {
            connection_room.close(connection, .topic_name_invalid, "the topic name has wildcards");
            return false;
        } else if (!rememberAlias(connection, alias, packet.topic)) {
            connection_room.abort(connection, .quota_exceeded, "no memory left");
            return false;
        }
    }
    if (packet.topic.len == 0) {
        broken(connection, error.Protocol);
        return false;
    }
    if (!topics.validName(packet.topic)) { // [MQTT-3.3.2-2]
        connection_room.close(connection, .topic_name_invalid, "the topic name has wildcards");
        return false;
    }
    if (packet.properties.response_topic) |topic| {
        if (!topics.validName(topic)) { // [MQTT-3.3.2-14]
            broken(connection, error.Protocol);
            return false;
        }
    }
    return true;
}

fn rememberAlias(connection: *Connection, alias: u16, topic: []const u8) bool {
    if (connection.aliases_in.len < alias) {
        const bigger = heap.slice([]u8, @min(@max(alias, connection.aliases_in.len * 2, 4), state.settings.topic_alias_maximum)) catch return false;
        @memcpy(bigger[0..connection.aliases_in.len], connection.aliases_in);
        @memset(bigger[connection.aliases_in.len..], &.{});
        heap.freeSlice(connection.aliases_in);
        connection.aliases_in = bigger;
    }
    const slot = &connection.aliases_in[alias - 1];
    if (bytes_room.equal(slot.*, topic)) return true;
    const copy = heap.copy(topic) catch return false;
    heap.freeSlice(slot.*);
    slot.* = copy;
    return true;
}

/// Checks and routes; the reason goes into the acknowledgement. Null: the answer comes later.
fn route(connection: *Connection, packet: *const packets.Publish) ?Reason {
    const session = connection.session.?;
    const reason = judge(connection, packet);
    if (reason != .success) {
        stats.count(.publish_dropped, 1);
        _ = refusals.report(connection, .publish, reason, session.who(), packet.topic);
        if (connection.version == 5 and packet.qos == 0 and reason == .payload_format_invalid)
            connection_room.close(connection, reason, "the payload is not UTF-8 as its format indicator says");
        return if (connection.version == 5) reason else accepted(connection, packet.qos, packet.packet_identifier);
    }
    var view: message_room.View = .{
        .topic = packet.topic,
        .properties = packet.properties.raw,
        .payload = packet.payload,
        .qos = packet.qos,
        .retain = packet.retain,
        .expires_at_ms = if (packet.properties.message_expiry_interval) |seconds| state.now_ms + @as(u64, seconds) * 1000 else message_room.never,
    };
    if (!packet.properties.forwardable) {
        state.scratch.clear();
        state.scratch.ensure(view.properties.len) catch return .quota_exceeded;
        const room = state.scratch.items.ptr[0..view.properties.len];
        view.properties = room[0..properties.forwardInto(room, view.properties)];
    }
    const origin: routing.Origin = .{ .session = session, .connection = connection, .packet_identifier = packet.packet_identifier };
    const matched = routing.publish(origin, &view) catch |problem| {
        stats.count(.publish_dropped, 1);
        _ = refusals.report(connection, .publish, .quota_exceeded, session.who(), packet.topic);
        return switch (problem) {
            error.OutOfMemory, error.RetainedFull => if (connection.version == 5) .quota_exceeded else accepted(connection, packet.qos, packet.packet_identifier),
        };
    };
    const receivers = matched orelse return null;
    _ = accepted(connection, packet.qos, packet.packet_identifier);
    return outcome(connection, receivers);
}

/// MQTT 3.1.1 has no negative acknowledgement (section 3.3.5): the exchange goes on, the message is gone.
fn accepted(connection: *Connection, qos: u2, packet_identifier: u16) Reason {
    if (qos == 2) _ = remember(connection, packet_identifier);
    return .success;
}

/// So that a repetition is known [MQTT-4.3.3-10]; false: the connection is over for want of memory.
pub fn remember(connection: *Connection, packet_identifier: u16) bool {
    const session = connection.session.?;
    session.received.add(packet_identifier) catch {
        connection_room.abort(connection, .quota_exceeded, "no memory left");
        return false;
    };
    journal.receivedAdded(session, packet_identifier);
    return true;
}

fn judge(connection: *const Connection, packet: *const packets.Publish) Reason {
    const session = connection.session.?;
    if (topics.deeperThan(packet.topic, state.settings.topic_levels_max)) return .topic_name_invalid;
    if (sys.reserved(packet.topic) or !acl.allowed(.publish, session.who(), packet.topic)) {
        stats.count(.acl_denied, 1);
        return .not_authorized;
    }
    if (packet.properties.payload_format_indicator == 1 and !std.unicode.utf8ValidateSlice(packet.payload)) return .payload_format_invalid;
    const view: message_room.View = .{ .topic = packet.topic, .properties = packet.properties.raw, .payload = packet.payload, .qos = 0, .retain = false, .expires_at_ms = 0 };
    // Giving a retained value up is how room is made: it is never refused for want of room.
    const clears = packet.retain and packet.payload.len == 0;
    if (!clears and !routing.hasRoom(&view)) return .quota_exceeded;
    return .success;
}
