//! The journal: one record for every durable change, in the order in which it happened. The host
//! makes a batch safe before any output of the same step leaves (`commit` in the ABI).
//!
//! Record: u8 kind · u32 body length · body. Little-endian; strings are u32 length and bytes.

const std = @import("std");
const heap = @import("heap.zig");
const limits = @import("limits.zig");
const stats = @import("stats.zig");
const subscriptions = @import("subscriptions.zig");
const sys = @import("sys.zig");
const session_room = @import("session.zig");
const retained = @import("retained.zig");
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

/// Sessions that end with their connection are recorded only for their will.
pub fn wanted(session: *const Session) bool {
    return enabled and (session.durable() or session.will != null);
}

pub fn sessionChanged(session: *Session) void {
    if (!wanted(session)) return sessionEnd(session);
    if (!session.durable()) forgetDeliveries(session);
    session.journaled = true;
    writeSession(session);
}

fn writeSession(session: *Session) void {
    begin(.session);
    number(u64, session.serial);
    number(u8, session.version | if (session.bridge) bridge_bit else 0);
    number(u32, session.expiry_s);
    const waits = session.connection == null;
    number(u64, if (waits and session.expiry_timer.isSet()) session.expiry_timer.at_ms else if (waits) session.restored_expiry_ms else 0);
    string(session.client_identifier);
    string(session.user);
    number(u8, session.attestation.rank);
    if (session.attestation.rank != 0) put(&session.attestation.module);
    number(u8, @intFromBool(session.will != null));
    if (session.will) |will| {
        number(u32, session.will_delay_s);
        number(u64, if (session.will_timer.isSet()) session.will_timer.at_ms else session.restored_will_ms);
        messageBody(will);
    }
    finish();
}

pub fn sessionEnd(session: *Session) void {
    if (!session.journaled) return;
    session.journaled = false;
    forgetDeliveries(session);
    begin(.session_end);
    number(u64, session.serial);
    finish();
}

/// From here on what happens to them is not recorded any more.
fn forgetDeliveries(session: *Session) void {
    for ([_]?*Delivery{ session.sent.first, session.waiting.first }) |head| {
        var item = head;
        while (item) |delivery| : (item = delivery.next) delivery.leaveJournal();
    }
}

pub fn subscribed(subscription: *const Subscription) void {
    if (!subscription.session.journaled or !subscription.session.durable()) return;
    writeSubscription(subscription);
}

/// On the stack it would be filled with a pattern each time.
var filter_text: [subscriptions.filter_bytes_max]u8 = undefined;

fn writeSubscription(subscription: *const Subscription) void {
    const options = subscription.options;
    begin(.subscribe);
    number(u64, subscription.session.serial);
    number(u8, @as(u8, options.qos) | (@as(u8, @intFromBool(options.no_local)) << 2) | (@as(u8, @intFromBool(options.retain_as_published)) << 3));
    number(u32, options.identifier);
    string(subscriptions.filterText(subscription, &filter_text));
    finish();
}

pub fn unsubscribed(session: *const Session, filter: []const u8) void {
    if (!session.journaled or !session.durable()) return;
    begin(.unsubscribe);
    number(u64, session.serial);
    string(filter);
    finish();
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
pub fn enqueued(session: *const Session, delivery: *Delivery) void {
    if (!session.journaled or !session.durable()) return;
    if (delivery.message.serial == 0) {
        delivery.message.serial = message_room.nextSerial();
        writeMessage(delivery.message);
    }
    delivery.enterJournal();
    writeDelivery(session, delivery);
}

fn writeDelivery(session: *const Session, delivery: *const Delivery) void {
    begin(.enqueue);
    number(u64, session.serial);
    number(u64, delivery.serial);
    number(u64, delivery.message.serial);
    number(u8, @as(u8, delivery.qos) | if (delivery.retain) @as(u8, 0x80) else 0);
    number(u32, @intCast(delivery.identifiers.len));
    for (delivery.identifiers) |identifier| number(u32, identifier);
    finish();
}

pub fn sent(session: *const Session, delivery: *const Delivery) void {
    if (!session.journaled or !session.durable()) return;
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
    if (!session.journaled or !session.durable()) return;
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

/// Where a snapshot stands: the table of sessions first, then the retained tree.
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
        snapshot_retained = retained.tree.root.first_child;
    }
    region.clear();
    if (!enabled) return false;
    const table = &session_room.table;
    while (snapshot_slot < table.positions()) : (snapshot_slot += 1) {
        const session = table.at(snapshot_slot) orelse continue;
        if (session.journaled and !snapshotSession(session)) return true;
    }
    while (snapshot_retained) |node| {
        if (node.value.message) |message| {
            if (!sys.reserved(message.topic())) retainedPut(message);
        }
        snapshot_retained = following(node);
        if (pieceIsFull()) return true;
    }
    return region.items.len != 0;
}

fn pieceIsFull() bool {
    return region.items.len >= limits.snapshot_piece_bytes;
}

fn following(from: *retained.Node) ?*retained.Node {
    if (from.first_child) |child| return child;
    var node = from;
    while (node.next_sibling == null) node = node.parent orelse return null;
    return node.next_sibling;
}

/// False: the piece is full before the session is whole.
fn snapshotSession(session: *Session) bool {
    const at = &snapshot_inside;
    while (!pieceIsFull()) switch (at.part) {
        .head => {
            writeSession(session);
            if (!session.durable()) return true;
            at.* = .{ .part = .subscriptions, .subscription = session.first_subscription };
        },
        .subscriptions => if (at.subscription) |subscription| {
            writeSubscription(subscription);
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
    const message = delivery.message;
    if (message.snapshot != snapshot_number) {
        message.snapshot = snapshot_number;
        if (message.serial == 0) message.serial = message_room.nextSerial();
        writeMessage(message);
    }
    delivery.enterJournal();
    writeDelivery(session, delivery);
    if (delivery.packet_identifier == 0) return;
    sent(session, delivery);
    if (delivery.released) released(session, delivery.packet_identifier);
}
