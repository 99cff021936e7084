//! The journal: one record for every durable change, in the order in which it happened. The host
//! makes a batch safe before any output of the same step leaves (`commit` in the ABI).
//!
//! Record: u8 kind · u32 body length · body. Little-endian; strings are u32 length and bytes.

const std = @import("std");
const fanout = @import("fanout.zig");
const heap = @import("heap.zig");
const limits = @import("limits.zig");
const stats = @import("stats.zig");
const subscriptions = @import("subscriptions.zig");
const sys = @import("sys.zig");
const session_room = @import("session.zig");
const retained = @import("retained.zig");
const walks = @import("walks.zig");
const message_room = @import("message.zig");
const Message = message_room.Message;
const Session = session_room.Session;
const Delivery = session_room.Delivery;
const Subscription = subscriptions.Subscription;

pub const Kind = enum(u8) {
    /// u64 serial · u8 version (bit 7: a bridge) · u32 expiry_s · u64 expires_at_ms (0: connected) · client identifier ·
    /// user · u8 tier rank (0: not attested) · [32 bytes module] · u8 has will · [u32 will delay_s · u64 will_at_ms · message body]
    session = 1,
    /// u64 session
    session_end,
    /// u64 session · u8 options (bits 0-1 QoS, 2 no local, 3 retain as published) · u32 identifier · filter
    subscribe,
    /// u64 session · filter
    unsubscribe,
    /// message body
    retain,
    /// topic
    retain_clear,
    /// u64 message · message body
    message,
    /// u64 session · u64 delivery · u64 message · u8 QoS (bit 7: retain) · u32 count · identifiers
    enqueue,
    /// u64 session · u64 delivery · u16 packet identifier
    send,
    /// u64 session · u16 packet identifier (PUBREC came)
    release,
    /// u64 session · u64 delivery (acknowledged, or dropped)
    done,
    /// u64 session · u16 packet identifier
    received,
    /// u64 session · u16 packet identifier
    received_end,
    /// as `enqueue` · filter of the shared subscription, by which it is handed on
    enqueue_shared,
    /// u64 session · filter · topic: retained messages before it have been sent to the subscription or
    /// were not for it; those from it on are still to come
    walk,
    /// u64 session · filter
    walk_end,
    /// u64 message · u64 session of its publisher (0: none): a message of QoS 2 is given over several
    /// turns. An `enqueue` of it says that the session has got it.
    fan_out,
    /// Everybody has got it.
    fan_out_end,
    /// u64 session: it has got it. In snapshots, which leave out what was acknowledged.
    given,
    /// filter: one member of the shared subscription has got it
    given_shared,
};

/// As in the protocol level of CONNECT.
pub const bridge_bit: u8 = 0x80;

pub var region: heap.List(u8) = .{};
pub var sequence: u64 = 0;
pub var enabled = true;
/// After the first step it stays enabled or not: a journal with a gap could not be read back.
pub var begun = false;
var start: usize = 0;

pub fn clear() void {
    region.clear();
    if (region.capacity > limits.journal_keep_bytes) region.deinit();
}

/// A change that happened has to be recorded: the journal may exceed the budget, and where even
/// that fails the core stops instead of going on without a record.
fn put(bytes: []const u8) void {
    const at = region.items.len;
    if (at + bytes.len > region.capacity) grow(at + bytes.len);
    region.items.len = at + bytes.len;
    @memcpy(region.items[at..], bytes);
}

fn grow(size: usize) void {
    @branchHint(.unlikely);
    const budget = heap.budget_bytes;
    heap.budget_bytes = std.math.maxInt(u64);
    defer heap.budget_bytes = budget;
    region.ensure(size) catch @panic("no memory for the journal");
}

fn begin(kind: Kind) void {
    start = region.items.len;
    put(&.{ @backingInt(kind), 0, 0, 0, 0 });
}

fn number(comptime T: type, value: T) void {
    var bytes: [@sizeOf(T)]u8 = undefined;
    std.mem.writeInt(T, &bytes, value, .little);
    put(&bytes);
}

fn string(text: []const u8) void {
    number(u32, @intCast(text.len));
    put(text);
}

fn finish() void {
    const length = region.items.len - start - 5;
    std.mem.writeInt(u32, region.items[start + 1 ..][0..4], @intCast(length), .little);
    stats.count(.journal_bytes, length + 5);
}

/// u64 expires_at_ms · u8 QoS (bit 7: retain) · topic · properties · payload
fn messageBody(message: *Message) void {
    const view = message.view();
    number(u64, view.expires_at_ms);
    number(u8, @as(u8, view.qos) | if (view.retain) @as(u8, 0x80) else 0);
    string(view.topic);
    string(view.properties);
    string(view.payload);
}

/// Sessions that end with their connection are recorded only for their will, and for what others
/// get when they end.
pub fn wanted(session: *const Session) bool {
    return enabled and (session.durable() or session.will != null or owesShared(session));
}

fn owesShared(session: *const Session) bool {
    for ([_]?*Delivery{ session.sent.first, session.waiting.first }) |head| {
        var item = head;
        while (item) |delivery| : (item = delivery.next) {
            if (delivery.group != null and delivery.journaled) return true;
        }
    }
    return false;
}

pub fn sessionChanged(session: *Session) void {
    if (!wanted(session)) return sessionEnd(session);
    if (!session.durable()) forgetDeliveries(session, .own);
    session.journaled = true;
    writeSession(session);
}

fn writeSession(session: *Session) void {
    begin(.session);
    number(u64, session.serial);
    number(u8, session.version | if (session.bridge) bridge_bit else 0);
    number(u32, session.expiry_s);
    const waits = session.connection == null;
    number(u64, if (waits) session.expiry_timer.at_ms else 0);
    string(session.client_identifier);
    string(session.user);
    number(u8, session.attestation.rank);
    if (session.attestation.rank != 0) put(&session.attestation.module);
    number(u8, @intFromBool(session.will != null));
    if (session.will) |will| {
        number(u32, session.will_delay_s);
        number(u64, session.will_timer.at_ms);
        messageBody(will);
    }
    finish();
}

pub fn sessionEnd(session: *Session) void {
    if (!session.journaled) return;
    session.journaled = false;
    forgetDeliveries(session, .all);
    begin(.session_end);
    number(u64, session.serial);
    finish();
}

/// True: the journal has it, and a restart goes on with those who have not got the message yet.
pub fn fanOutBegun(message: *Message, publisher: u64) bool {
    if (!enabled) return false;
    if (message.serial == 0) {
        message.serial = message_room.nextSerial();
        writeMessage(message);
    }
    message.enterJournal();
    writeFanOut(message, publisher);
    return true;
}

fn writeFanOut(message: *const Message, publisher: u64) void {
    begin(.fan_out);
    number(u64, message.serial);
    number(u64, publisher);
    finish();
}

pub fn fanOutEnded(message: *Message) void {
    message.leaveJournal();
    if (!enabled) return;
    begin(.fan_out_end);
    finish();
}

pub fn givenShared(group: *const subscriptions.Group) void {
    if (!enabled) return;
    begin(.given_shared);
    string(subscriptions.groupText(group, &subscriptions.text_room));
    finish();
}

/// From here on what happens to them is not recorded any more; `own`: but to those that are handed on.
fn forgetDeliveries(session: *Session, which: enum { all, own }) void {
    for ([_]?*Delivery{ session.sent.first, session.waiting.first }) |head| {
        var item = head;
        while (item) |delivery| : (item = delivery.next) {
            if (which == .all or delivery.group == null) delivery.leaveJournal();
        }
    }
}

pub fn subscribed(subscription: *const Subscription) void {
    if (!subscription.session.journaled or !subscription.session.durable()) return;
    writeSubscription(subscription);
}

fn writeSubscription(subscription: *const Subscription) void {
    const options = subscription.options;
    begin(.subscribe);
    number(u64, subscription.session.serial);
    number(u8, @as(u8, options.qos) | (@as(u8, @intFromBool(options.no_local)) << 2) | (@as(u8, @intFromBool(options.retain_as_published)) << 3));
    number(u32, options.identifier);
    string(subscriptions.filterText(subscription, &subscriptions.text_room));
    finish();
}

pub fn unsubscribed(session: *const Session, filter: []const u8) void {
    aboutFilter(.unsubscribe, session, filter);
}

fn aboutFilter(kind: Kind, session: *const Session, filter: []const u8) void {
    if (!session.journaled or !session.durable()) return;
    begin(kind);
    number(u64, session.serial);
    string(filter);
    finish();
}

/// True: it is recorded.
pub fn walkMoved(walk: *const walks.Walk) bool {
    const subscription = walk.subscription;
    if (!subscription.session.journaled or !subscription.session.durable()) return false;
    begin(.walk);
    number(u64, subscription.session.serial);
    string(subscriptions.filterText(subscription, &subscriptions.text_room));
    string(walk.key.items);
    finish();
    return true;
}

pub fn walkEnded(walk: *const walks.Walk) void {
    aboutFilter(.walk_end, walk.subscription.session, subscriptions.filterText(walk.subscription, &subscriptions.text_room));
}

pub fn retainedPut(message: *Message) void {
    if (!enabled) return;
    begin(.retain);
    messageBody(message);
    finish();
}

pub fn retainedRemoved(topic: []const u8) void {
    if (!enabled) return;
    begin(.retain_clear);
    string(topic);
    finish();
}

fn writeMessage(message: *Message) void {
    begin(.message);
    number(u64, message.serial);
    messageBody(message);
    finish();
}

/// A message is in the journal once for all its deliveries. When the last of them is over, a
/// reader of the journal forgets it, and so does a snapshot, although it may live on as a retained
/// one: then it has no serial any more and is written anew.
pub fn enqueued(session: *Session, delivery: *Delivery) void {
    if (!enabled) return;
    if (!session.durable()) {
        // It ends with its connection, or in a crash: then another member gets the message, if one
        // is still there after a restart.
        const group = delivery.group orelse return;
        if (group.durable_members == 0) return;
        if (!session.journaled) {
            session.journaled = true;
            writeSession(session);
        }
    } else if (!session.journaled) return;
    if (delivery.message.serial == 0) {
        delivery.message.serial = message_room.nextSerial();
        writeMessage(delivery.message);
    }
    delivery.enterJournal();
    writeDelivery(session, delivery);
}

fn writeDelivery(session: *const Session, delivery: *const Delivery) void {
    begin(if (delivery.group == null) .enqueue else .enqueue_shared);
    number(u64, session.serial);
    number(u64, delivery.serial);
    number(u64, delivery.message.serial);
    number(u8, @as(u8, delivery.qos) | if (delivery.retain) @as(u8, 0x80) else 0);
    number(u32, @intCast(delivery.identifiers.len));
    for (delivery.identifiers) |identifier| number(u32, identifier);
    if (delivery.group) |group| {
        string(subscriptions.groupText(group, &subscriptions.text_room));
    }
    finish();
}

/// Of a session that ends with its connection it matters only that a delivery of QoS 2 has begun:
/// nobody else may get it [MQTT-4.8.2-5].
pub fn sent(session: *const Session, delivery: *const Delivery) void {
    if (!delivery.journaled or !(session.durable() or delivery.qos == 2)) return;
    begin(.send);
    number(u64, session.serial);
    number(u64, delivery.serial);
    number(u16, delivery.packet_identifier);
    finish();
}

pub fn released(session: *const Session, packet_identifier: u16) void {
    inboundRecord(session, .release, packet_identifier);
}

pub fn done(session: *const Session, delivery: *const Delivery) void {
    if (!delivery.journaled) return;
    begin(.done);
    number(u64, session.serial);
    number(u64, delivery.serial);
    finish();
}

pub fn receivedAdded(session: *const Session, packet_identifier: u16) void {
    inboundRecord(session, .received, packet_identifier);
}

pub fn receivedRemoved(session: *const Session, packet_identifier: u16) void {
    inboundRecord(session, .received_end, packet_identifier);
}

fn inboundRecord(session: *const Session, kind: Kind, packet_identifier: u16) void {
    if (!session.journaled or !session.durable()) return;
    begin(kind);
    number(u64, session.serial);
    number(u16, packet_identifier);
    finish();
}

/// Where a snapshot stands: the table of sessions first, then the retained messages.
var snapshot_slot: usize = 0;
var snapshot_inside: Inside = .{};
var snapshot_retained: ?*retained.Node = null;
var snapshot_number: u32 = 0;

/// Where it stands in a session, whose queue may be larger than a piece.
const Inside = struct {
    part: enum { head, subscriptions, sent, waiting, received } = .head,
    subscription: ?*Subscription = null,
    delivery: ?*Delivery = null,
    received: usize = 0,
};

/// Writes the next piece of the whole durable state; false when there is no more.
pub fn snapshotPiece(restart: bool) bool {
    if (restart) {
        snapshot_slot = 0;
        snapshot_inside = .{};
        snapshot_number += 1;
        snapshot_retained = retained.first();
    }
    region.clear();
    if (!enabled) return false;
    if (restart) snapshotFanOut();
    const table = &session_room.table;
    while (snapshot_slot < table.positions()) : (snapshot_slot += 1) {
        const session = table.at(snapshot_slot) orelse continue;
        if (session.journaled and !snapshotSession(session)) return true;
    }
    while (snapshot_retained) |node| {
        if (!sys.reserved(node.topic())) retainedPut(node.message); // each broker makes those anew
        snapshot_retained = retained.after(node);
        if (pieceIsFull()) return true;
    }
    return region.items.len != 0;
}

fn snapshotFanOut() void {
    const job = fanout.unfinished() orelse return;
    snapshotMessage(job.message);
    writeFanOut(job.message, job.publisher);
    for (fanout.groupsServed()) |groups| for (groups) |group| givenShared(group);
}

fn pieceIsFull() bool {
    return region.items.len >= limits.snapshot_piece_bytes;
}

/// False: the piece is full before the session is whole.
fn snapshotSession(session: *Session) bool {
    const at = &snapshot_inside;
    while (!pieceIsFull()) switch (at.part) {
        .head => {
            writeSession(session);
            if (fanout.hasGot(session)) {
                begin(.given);
                number(u64, session.serial);
                finish();
            }
            at.* = if (session.durable())
                .{ .part = .subscriptions, .subscription = session.first_subscription }
            else
                .{ .part = .sent, .delivery = session.sent.first };
        },
        .subscriptions => if (at.subscription) |subscription| {
            writeSubscription(subscription);
            if (subscription.walk) |walk| walk.recorded = walkMoved(walk);
            at.subscription = subscription.next_in_session;
        } else {
            at.* = .{ .part = .sent, .delivery = session.sent.first };
        },
        .sent => if (at.delivery) |delivery| {
            snapshotDelivery(session, delivery);
            at.delivery = delivery.next;
        } else {
            at.* = .{ .part = .waiting, .delivery = session.waiting.first };
        },
        .waiting => if (at.delivery) |delivery| {
            snapshotDelivery(session, delivery);
            at.delivery = delivery.next;
        } else {
            at.* = .{ .part = .received };
        },
        .received => if (session.received.next(&at.received)) |identifier| {
            receivedAdded(session, identifier);
        } else {
            at.* = .{};
            return true;
        },
    };
    return false;
}

fn snapshotDelivery(session: *const Session, delivery: *Delivery) void {
    if (!session.durable() and !delivery.journaled) return;
    snapshotMessage(delivery.message);
    delivery.enterJournal();
    writeDelivery(session, delivery);
    if (delivery.packet_identifier == 0) return;
    sent(session, delivery);
    if (delivery.released) released(session, delivery.packet_identifier);
}

/// Once in each snapshot.
fn snapshotMessage(message: *Message) void {
    if (message.snapshot == snapshot_number) return;
    message.snapshot = snapshot_number;
    if (message.serial == 0) message.serial = message_room.nextSerial();
    writeMessage(message);
}
