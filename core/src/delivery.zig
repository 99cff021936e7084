//! Messages towards one client: flow control, packet identifiers, acknowledgements (MQTT 5.0,
//! sections 4.3, 4.4 and 4.9).

const std = @import("std");
const acl = @import("acl.zig");
const bytes_room = @import("bytes.zig");
const connection_room = @import("connection.zig");
const heap = @import("heap.zig");
const journal = @import("journal.zig");
const limits = @import("limits.zig");
const message_room = @import("message.zig");
const session_room = @import("session.zig");
const state = @import("state.zig");
const routing = @import("routing.zig");
const stats = @import("stats.zig");
const subscriptions = @import("subscriptions.zig");
const transitions = @import("transitions.zig");
const websocket = @import("wire/websocket.zig");
const walks = @import("walks.zig");
const writer = @import("wire/writer.zig");
const Connection = connection_room.Connection;
const Delivery = session_room.Delivery;
const Message = message_room.Message;
const Session = session_room.Session;
const View = message_room.View;

/// How one session gets a message.
pub const Terms = struct {
    qos: u2,
    retain: bool,
    identifiers: []const u32,
    /// The shared subscription through which it comes.
    group: ?*subscriptions.Group = null,
};

/// The QoS 0 packet that most receivers of a message share, encoded once.
pub const Shared = struct {
    bytes: [2]?[]const u8 = @splat(null),

    fn of(self: *Shared, view: *const View, version: u8) ?[]const u8 {
        const index: usize = @intFromBool(version == 5);
        if (self.bytes[index]) |bytes| return bytes;
        const packet = packetOf(view, version, .{ .qos = 0, .retain = false, .identifiers = &.{} });
        const room = &state.shared_packet[index];
        const size = packet.size();
        if (size > room.len) return null;
        self.bytes[index] = packet.encode(room[0..size]);
        return self.bytes[index];
    }
};

fn packetOf(view: *const View, version: u8, terms: Terms) writer.Publish {
    const expires = view.expires_at_ms != message_room.never;
    return .{
        .version = version,
        .qos = terms.qos,
        .retain = terms.retain,
        .topic = view.topic,
        .expiry_s = if (expires and version == 5) message_room.secondsLeft(view.expires_at_ms, state.now_ms) else null,
        .identifiers = if (version == 5) terms.identifiers else &.{},
        .properties = if (version == 5) view.properties else &.{},
        .payload = view.payload,
    };
}

/// QoS 0: now or never. What does not fit into the client's bound is dropped and counted.
pub fn sendAtMostOnce(connection: *Connection, view: *const View, terms: Terms, shared: ?*Shared) void {
    if (!connection.isActive()) return;
    if (shared) |common| {
        if (!terms.retain and (terms.identifiers.len == 0 or connection.version != 5) and connection.alias_out_maximum == 0) {
            if (common.of(view, connection.version)) |bytes| {
                if (bytes.len > connection.maximum_packet_bytes) return stats.count(.publish_dropped, 1); // [MQTT-3.1.2-25]
                if (!mayWait(connection, bytes.len)) return stats.count(.publish_dropped, 1);
                connection.write(bytes) catch return stats.count(.publish_dropped, 1);
                return counted(view);
            }
        }
    }
    var packet = packetOf(view, connection.version, terms);
    if (!mayWait(connection, packet.size())) return stats.count(.publish_dropped, 1);
    if (!writePublish(connection, &packet)) stats.count(.publish_dropped, 1);
}

/// Beside the client's own bound: who has much waiting gets more only while it is a small part of the memory
/// that is left. So however many there are that do not read, there is room for those who do, and all
/// of them have the same (Choudhury and Hahne, "Dynamic queue length thresholds in a shared memory switch").
inline fn mayWait(connection: *const Connection, bytes: usize) bool {
    const after = connection.outbox.bytes + bytes;
    return after <= limits.queued_bytes_least or mayWaitLong(after);
}

fn mayWaitLong(bytes: usize) bool {
    if (bytes > state.settings.queued_bytes_max) return false;
    return bytes <= limits.backlog_least_bytes or bytes <= heap.spareBytes() / limits.backlog_spare_part;
}

fn counted(view: *const View) void {
    stats.count(.publish_sent, 1);
    stats.count(.messages_sent, 1);
    stats.count(.publish_bytes_sent, view.payload.len);
}

/// False: too large for the client, or no memory.
fn writePublish(connection: *Connection, packet: *writer.Publish) bool {
    const fresh = chooseAlias(connection, packet);
    const size = packet.size();
    if (size > connection.maximum_packet_bytes) {
        forgetAlias(connection, fresh);
        return false;
    }
    putPublish(connection, packet, size) catch {
        forgetAlias(connection, fresh);
        return false;
    };
    stats.count(.publish_sent, 1);
    stats.count(.messages_sent, 1);
    stats.count(.publish_bytes_sent, packet.payload.len);
    return true;
}

fn putPublish(connection: *Connection, packet: *const writer.Publish, size: u32) heap.Error!void {
    var head: [10]u8 = undefined;
    const frame: u32 = if (connection.websocket != null) @intCast(websocket.frameHeader(&head, .binary, size)) else 0;
    const room = try connection.outbox.reserve(frame + size);
    @memcpy(room[0..frame], head[0..frame]);
    _ = packet.encode(room[frame..][0..size]);
    connection.outbox.commit(frame + size);
    connection_room.markDirty(connection);
}

/// Topic aliases towards the client: the first topics used get one [MQTT-3.3.2-12].
fn chooseAlias(connection: *Connection, packet: *writer.Publish) bool {
    if (connection.alias_out_maximum == 0) return false;
    for (connection.aliases_out.items, 1..) |known, number| {
        if (!bytes_room.equal(known.topic, packet.topic)) continue;
        packet.alias = @intCast(number);
        packet.topic = "";
        return false;
    }
    if (connection.aliases_out.items.len >= connection.alias_out_maximum) return false;
    const copy = heap.copy(packet.topic) catch return false;
    connection.aliases_out.append(.{ .topic = copy }) catch {
        heap.freeSlice(copy);
        return false;
    };
    packet.alias = @intCast(connection.aliases_out.items.len);
    return true;
}

fn forgetAlias(connection: *Connection, fresh: bool) void {
    if (!fresh) return;
    const aliases = &connection.aliases_out;
    heap.freeSlice(aliases.items[aliases.items.len - 1].topic);
    aliases.items.len -= 1;
}

/// Whether a QoS 1 or 2 PUBLISH may go out now: the client's Receive Maximum is not used up
/// [MQTT-3.3.4-9], [MQTT-4.9.0-2], nor is the outbox full.
fn open(session: *const Session) ?*Connection {
    const connection = session.connection orelse return null;
    if (!connection.isActive() or connection.outstanding >= connection.window) return null;
    if (connection.outbox.bytes >= limits.outbox_soft_bytes) {
        connection.backlog = true;
        return null;
    }
    return connection;
}

/// New messages wait for those that are sent again, and for a free identifier.
fn openForNew(session: *const Session) ?*Connection {
    if (session.resend != null or session.inflight >= state.settings.inflight_max) return null;
    return open(session);
}

/// QoS 1 and 2. The message is sent or queued, or dropped where the client's bounds say so.
pub fn sendReliably(session: *Session, view: *View, terms: Terms) void {
    const connection = session.connection;
    if (connection == null and (!session.durable() or session.ending)) return;
    if (session.waiting.count == 0) {
        if (openForNew(session)) |ready| {
            if (!keeps(session, terms.qos, terms.group)) return sendUnkept(session, ready, view, terms);
        }
    }
    if (session.waiting.count >= state.settings.queued_messages_max) return overrun(session);
    enqueue(session, view, terms) catch return overrun(session);
    pump(session);
}

/// Whether a message stays until it is acknowledged: for the session's next connection, or for
/// another member of the shared subscription. Those get no message of QoS 2 that has begun [MQTT-4.8.2-5].
fn keeps(session: *const Session, qos: u2, group: ?*const subscriptions.Group) bool {
    return session.durable() or (group != null and qos == 1);
}

/// Overload of one client: a connected one is told and disconnected, an absent one loses the message.
fn overrun(session: *Session) void {
    stats.count(.publish_dropped, 1);
    if (session.connection) |connection| connection_room.close(connection, .quota_exceeded, "more messages wait for this client than its queue may hold");
}

/// A session that ends with its connection never sends a message again, and what is begun of QoS 2 nobody
/// else gets: nothing needs to be kept.
fn sendUnkept(session: *Session, connection: *Connection, view: *View, terms: Terms) void {
    var packet = packetOf(view, connection.version, terms);
    packet.packet_identifier = session.takeIdentifier(state.settings.inflight_max) catch return overrun(session);
    if (!writePublish(connection, &packet)) return stats.count(.publish_dropped, 1);
    occupy(session, packet.packet_identifier, terms.qos, null);
}

fn occupy(session: *Session, packet_identifier: u16, qos: u2, delivery: ?*Delivery) void {
    const slot = session.slot(packet_identifier).?;
    slot.* = .{ .state = transitions.outboundStep(.free, if (qos == 1) .send_qos1 else .send_qos2).next, .counted = true, .delivery = delivery };
    session.inflight += 1;
    session.connection.?.outstanding += 1;
    stats.count(.inflight, 1);
}

fn enqueue(session: *Session, view: *View, terms: Terms) heap.Error!void {
    if (session.queued_bytes +| message_room.sizeOf(view) > state.settings.queued_bytes_max) return error.OutOfMemory;
    return append(session, view, terms);
}

fn append(session: *Session, view: *View, terms: Terms) heap.Error!void {
    const message = try view.keep();
    const bytes = message.size_bytes();
    const identifiers = try heap.slice(u32, terms.identifiers.len);
    errdefer heap.freeSlice(identifiers);
    @memcpy(identifiers, terms.identifiers);
    const delivery = try heap.create(Delivery);
    state.delivery_serial += 1;
    delivery.* = .{ .message = message.reference(), .serial = state.delivery_serial, .identifiers = identifiers, .group = if (terms.group) |group| subscriptions.hold(group) else null, .qos = terms.qos, .retain = terms.retain };
    session.waiting.append(delivery);
    session.queued_bytes += bytes;
    stats.count(.queued, 1);
    journal.enqueued(session, delivery);
}

fn discard(session: *Session, queue: *session_room.Queue, delivery: *Delivery) void {
    queue.remove(delivery);
    session.queued_bytes -= delivery.message.size_bytes();
    delivery.destroy();
}

/// Whether a walk through retained messages may go on: the client has taken most of what it was given.
pub fn takesRetained(session: *const Session) bool {
    const connection = session.connection orelse return false;
    if (!connection.isActive() or session.resend != null) return false;
    if (session.waiting.count > limits.walk_ahead_messages / 2) return false;
    return outboxTakesRetained(connection);
}

fn outboxTakesRetained(connection: *Connection) bool {
    if (connection.outbox.bytes < @min(limits.outbox_soft_bytes, state.settings.queued_bytes_max)) return true;
    connection.backlog = true;
    return false;
}

/// A retained message for a session with a connection. False: not now; `pump` asks again when the client
/// has taken something. The bounds on queues say when, never whether: the message is kept anyway.
pub fn sendRetained(session: *Session, message: *Message, terms: Terms) bool {
    const connection = session.connection.?;
    if (!connection.isActive() or !outboxTakesRetained(connection)) return false;
    var view = message.view();
    if (terms.qos == 0) {
        var packet = packetOf(&view, connection.version, terms);
        if (!writePublish(connection, &packet)) stats.count(.publish_dropped, 1);
        return true;
    }
    const bytes = message.size_bytes();
    if (session.waiting.count == 0) {
        const ready = openForNew(session);
        if (ready != null and !session.durable()) {
            sendUnkept(session, ready.?, &view, terms);
            return true;
        }
        const alone = ready != null and session.queued_bytes == 0;
        if (!alone and !hasRoom(session, bytes)) return false;
    } else if (session.waiting.count >= limits.walk_ahead_messages or !hasRoom(session, bytes)) return false;
    append(session, &view, terms) catch {
        overrun(session);
        return false;
    };
    pump(session);
    return true;
}

/// Sends what waits, as far as window and outbox allow, and then what is retained for new subscriptions.
pub inline fn pump(session: *Session) void {
    if (session.resend == null and session.waiting.first == null and session.first_walk == null) return;
    pumpAll(session);
}

noinline fn pumpAll(session: *Session) void {
    sendAgain(session);
    sendWaiting(session);
    walks.advance(session);
}

fn sendWaiting(session: *Session) void {
    while (session.waiting.first) |delivery| {
        const connection = openForNew(session) orelse return;
        if (delivery.message.expires_at_ms <= state.now_ms) { // [MQTT-3.3.2-5]
            drop(session, delivery);
            continue;
        }
        var view = delivery.message.view();
        const terms: Terms = .{ .qos = delivery.qos, .retain = delivery.retain, .identifiers = delivery.identifiers };
        var packet = packetOf(&view, connection.version, terms);
        packet.packet_identifier = session.takeIdentifier(state.settings.inflight_max) catch return overrun(session);
        if (!writePublish(connection, &packet)) {
            drop(session, delivery); // [MQTT-3.1.2-25]: as if it had been sent
            continue;
        }
        session.waiting.remove(delivery);
        stats.uncount(.queued, 1);
        delivery.packet_identifier = packet.packet_identifier;
        const keep = keeps(session, delivery.qos, delivery.group);
        occupy(session, packet.packet_identifier, delivery.qos, if (keep) delivery else null);
        if (keep) {
            session.sent.append(delivery);
            journal.sent(session, delivery);
        } else {
            journal.done(session, delivery);
            session.queued_bytes -= delivery.message.size_bytes();
            delivery.destroy();
        }
    }
}

/// Forgets what was kept for a session that may no longer have it. An exchange of QoS 2 goes on
/// without its message, with PUBREL: the client may have the message, and would take another one
/// with the same identifier for its repetition [MQTT-4.3.3-10].
pub fn withdraw(session: *Session) void {
    var item = session.waiting.first;
    while (item) |delivery| {
        item = delivery.next;
        if (acl.allowed(.subscribe, session.who(), delivery.message.topic())) continue;
        if (!routing.passOn(session, delivery)) drop(session, delivery);
    }
    item = session.sent.first;
    while (item) |delivery| {
        item = delivery.next;
        if (delivery.released or acl.allowed(.subscribe, session.who(), delivery.message.topic())) continue;
        const slot = session.slot(delivery.packet_identifier).?;
        slot.counted = false; // on a connection that is gone
        if (delivery.qos == 1 and routing.passOn(session, delivery)) continue;
        stats.count(.publish_dropped, 1);
        if (delivery.qos == 1) {
            complete(session, slot);
            continue;
        }
        slot.state = transitions.outboundStep(slot.state, .pubrec).next;
        delivery.released = true;
        journal.released(session, delivery.packet_identifier);
    }
}

fn drop(session: *Session, delivery: *Delivery) void {
    stats.count(.publish_dropped, 1);
    forget(session, delivery);
}

/// Takes a delivery that is not the session's any more out of it; one that was sent must not be
/// counted by a connection.
pub fn forget(session: *Session, delivery: *Delivery) void {
    if (delivery.packet_identifier != 0) return complete(session, session.slot(delivery.packet_identifier).?);
    journal.done(session, delivery);
    stats.uncount(.queued, 1);
    discard(session, &session.waiting, delivery);
}

/// Whether one more message of this size fits into what the session may have waiting.
pub fn hasRoom(session: *const Session, bytes: u32) bool {
    return session.waiting.count < state.settings.queued_messages_max and session.queued_bytes + bytes <= state.settings.queued_bytes_max;
}

/// A PUBACK, PUBREC or PUBCOMP from the client.
pub fn acknowledged(connection: *Connection, packet_identifier: u16, event: transitions.OutboundEvent) void {
    const session = connection.session.?;
    const slot = session.slot(packet_identifier);
    const before: transitions.Outbound = if (slot) |found| found.state else .free;
    const step = transitions.outboundStep(before, event);
    switch (step.effect) {
        .none => {},
        .protocol_error => return connection_room.close(connection, .protocol_error, "this acknowledgement does not match the QoS of the message"),
        .complete => complete(session, slot.?),
        .release => {
            slot.?.state = step.next;
            if (slot.?.delivery) |delivery| {
                if (!delivery.released) journal.released(session, packet_identifier);
                delivery.released = true;
            }
            sendRelease(connection, packet_identifier, .success);
        },
        .release_unknown => sendRelease(connection, packet_identifier, .packet_identifier_not_found),
        .resend_publish, .resend_release => unreachable,
    }
    if (step.effect == .complete) pump(session);
}

fn complete(session: *Session, slot: *session_room.Slot) void {
    if (slot.delivery) |delivery| {
        if (session.resend == delivery) session.resend = delivery.next;
        journal.done(session, delivery);
        discard(session, &session.sent, delivery);
    }
    if (slot.counted) session.connection.?.outstanding -= 1;
    slot.* = .{};
    session.inflight -= 1;
    stats.uncount(.inflight, 1);
}

fn sendRelease(connection: *Connection, packet_identifier: u16, reason: @import("wire/reason.zig").Reason) void {
    var bytes: [8]u8 = undefined;
    connection.send(writer.acknowledgement(&bytes, connection.version, .pubrel, packet_identifier, reason));
}

/// After CONNACK with Session Present: unacknowledged packets first, in their order, with their
/// identifiers [MQTT-4.4.0-1], [MQTT-4.6.0-1]; then what waits.
pub fn resumeSession(session: *Session) void {
    for (session.slots) |*slot| slot.counted = false;
    session.resend = session.sent.first;
    walks.resumed(session, false);
    pump(session);
}

fn sendAgain(session: *Session) void {
    while (session.resend) |delivery| {
        const slot = session.slot(delivery.packet_identifier).?;
        switch (transitions.outboundStep(slot.state, .resume_session).effect) {
            .resend_release => {
                const connection = session.connection orelse return;
                if (!connection.isActive()) return;
                session.resend = delivery.next;
                sendRelease(connection, delivery.packet_identifier, .success);
            },
            .resend_publish => {
                const connection = open(session) orelse return;
                session.resend = delivery.next;
                publishAgain(session, connection, delivery, slot);
            },
            else => unreachable,
        }
    }
}

fn publishAgain(session: *Session, connection: *Connection, delivery: *Delivery, slot: *session_room.Slot) void {
    var view = delivery.message.view();
    var packet = packetOf(&view, connection.version, .{ .qos = delivery.qos, .retain = delivery.retain, .identifiers = delivery.identifiers });
    packet.packet_identifier = delivery.packet_identifier;
    packet.dup = true; // [MQTT-3.3.1-1]
    if (writePublish(connection, &packet)) {
        connection.outstanding += 1;
        slot.counted = true;
        return;
    }
    stats.count(.publish_dropped, 1);
    complete(session, slot);
}
