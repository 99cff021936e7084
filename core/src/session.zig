//! Sessions: what the broker keeps of a client beyond its connection (MQTT 5.0, section 4.1).

const std = @import("std");
const acl = @import("acl.zig");
const bytes_room = @import("bytes.zig");
const hash_room = @import("hash.zig");
const heap = @import("heap.zig");
const Identifiers = @import("identifiers.zig").Identifiers;
const stats = @import("stats.zig");
const timers = @import("timers.zig");
const fanout = @import("fanout.zig");
const journal = @import("journal.zig");
const work = @import("work.zig");
const transitions = @import("transitions.zig");
const subscriptions = @import("subscriptions.zig");
const walks = @import("walks.zig");
const Message = @import("message.zig").Message;
const Connection = @import("connection.zig").Connection;
const Subscription = subscriptions.Subscription;

/// A QoS 1 or 2 message for one session: waiting, or sent and not yet acknowledged.
pub const Delivery = struct {
    next: ?*Delivery = null,
    previous: ?*Delivery = null,
    message: *Message,
    serial: u64,
    /// Subscription identifiers, heap-owned.
    identifiers: []u32,
    /// The shared subscription that it came through, held.
    group: ?*subscriptions.Group = null,
    packet_identifier: u16 = 0,
    qos: u2,
    retain: bool,
    /// The message was acknowledged with PUBREC; only the identifier matters now.
    released: bool = false,
    /// It is in the journal, and counted by its message.
    journaled: bool = false,

    pub fn enterJournal(self: *Delivery) void {
        if (self.journaled) return;
        self.journaled = true;
        self.message.enterJournal();
    }

    pub fn leaveJournal(self: *Delivery) void {
        if (!self.journaled) return;
        self.journaled = false;
        self.message.leaveJournal();
    }

    pub fn destroy(self: *Delivery) void {
        self.leaveJournal();
        self.message.unreference();
        if (self.group) |group| subscriptions.release(group);
        heap.freeSlice(self.identifiers);
        heap.destroy(self);
    }
};

/// A first-in, first-out list; order is what MQTT promises per topic [MQTT-4.6.0-6].
pub const Queue = struct {
    first: ?*Delivery = null,
    last: ?*Delivery = null,
    count: u32 = 0,

    pub fn append(self: *Queue, delivery: *Delivery) void {
        delivery.previous = self.last;
        delivery.next = null;
        if (self.last) |last| last.next = delivery else self.first = delivery;
        self.last = delivery;
        self.count += 1;
    }

    pub fn remove(self: *Queue, delivery: *Delivery) void {
        if (delivery.previous) |previous| previous.next = delivery.next else self.first = delivery.next;
        if (delivery.next) |following| following.previous = delivery.previous else self.last = delivery.previous;
        self.count -= 1;
    }
};

/// One packet identifier towards the client; the delivery is kept where the session may be resumed.
pub const Slot = struct {
    state: transitions.Outbound = .free,
    /// The PUBLISH went out on the connection of now, so its end opens the window again.
    counted: bool = false,
    delivery: ?*Delivery = null,
};

pub const Session = struct {
    hash: u32,
    serial: u64,
    client_identifier: []u8,
    user: []u8 = &.{},
    /// What the connection proved that the session has, or had last: its will, and what it gets
    /// while nobody is connected, follow it.
    attestation: acl.Attestation = .{},
    /// Of the connection that has it or had it last, as in the connection.
    version: u8,
    bridge: bool = false,
    /// The session is in the journal.
    journaled: bool = false,
    expiry_s: u32 = 0,
    connection: ?*Connection = null,

    first_subscription: ?*Subscription = null,
    subscription_count: u32 = 0,
    /// Which walk has put this session where among those that it has found: a short and a long one.
    stamps: [2]u64 = @splat(0),
    indices: [2]u32 = @splat(0),
    /// It is over; what it still has is given back turn by turn.
    ended: bool = false,
    next_ended: ?*Session = null,

    /// Identifier n is slot n - 1.
    slots: []Slot = &.{},
    slot_cursor: u32 = 0,
    inflight: u32 = 0,
    sent: Queue = .{},
    /// After a reconnect: the first of `sent` that still has to be sent again.
    resend: ?*Delivery = null,
    waiting: Queue = .{},
    queued_bytes: u32 = 0,
    /// QoS 2 identifiers that the client has used and not released.
    received: Identifiers = .{},

    /// Retained messages that are on their way to it, in the order of its subscriptions.
    first_walk: ?*walks.Walk = null,
    last_walk: ?*walks.Walk = null,
    /// One of them is being advanced, or must not be; the first of them waits for its turn.
    walking: bool = false,
    tired: bool = false,
    /// It has ended; only what is handed on of it is still here.
    ending: bool = false,
    /// It has left a shared subscription: what waits of it is to be handed on, beginning behind this serial.
    left_shared: bool = false,
    left_after: u64 = 0,
    will: ?*Message = null,
    will_delay_s: u32 = 0,
    /// After a restart, until they are set, they say when they were due (Unix ms); 0: counts from the restart.
    expiry_timer: timers.Timer = .{ .kind = .session },
    will_timer: timers.Timer = .{ .kind = .will },

    pub fn who(self: *const Session) acl.Who {
        return .{ .user = self.user, .client_identifier = self.client_identifier, .attestation = &self.attestation };
    }

    pub fn durable(self: *const Session) bool {
        return self.expiry_s != 0;
    }

    pub fn slot(self: *Session, packet_identifier: u16) ?*Slot {
        if (packet_identifier == 0 or packet_identifier > self.slots.len) return null;
        return &self.slots[packet_identifier - 1];
    }

    pub fn setExpiry(self: *Session, expiry_s: u32) void {
        const before = self.durable();
        self.expiry_s = expiry_s;
        if (before != self.durable()) subscriptions.durabilityChanged(self);
    }

    /// An identifier that is not in use [MQTT-2.2.1-4]; `limit` of them may be.
    pub fn takeIdentifier(self: *Session, limit: u32) heap.Error!u16 {
        if (self.inflight == self.slots.len) {
            const bigger = try heap.slice(Slot, @min(@max(16, self.slots.len * 2), @max(limit, self.slots.len + 1)));
            @memcpy(bigger[0..self.slots.len], self.slots);
            @memset(bigger[self.slots.len..], .{});
            self.slot_cursor = @intCast(self.slots.len);
            heap.freeSlice(self.slots);
            self.slots = bigger;
        }
        while (true) {
            if (self.slot_cursor >= self.slots.len) self.slot_cursor = 0;
            const index = self.slot_cursor;
            self.slot_cursor += 1;
            if (self.slots[index].state == .free) return @intCast(index + 1);
        }
    }

    /// Restore only: the identifier that the journal names.
    pub fn claimIdentifier(self: *Session, packet_identifier: u16) heap.Error!*Slot {
        if (packet_identifier > self.slots.len) {
            const bigger = try heap.slice(Slot, @max(packet_identifier, self.slots.len * 2));
            @memcpy(bigger[0..self.slots.len], self.slots);
            @memset(bigger[self.slots.len..], .{});
            heap.freeSlice(self.slots);
            self.slots = bigger;
        }
        return &self.slots[packet_identifier - 1];
    }

    pub fn setUser(self: *Session, user: []const u8) heap.Error!void {
        const mine = try heap.copy(user);
        heap.freeSlice(self.user);
        self.user = mine;
    }

    pub fn setWill(self: *Session, will: ?*Message, delay_s: u32) void {
        if (self.will) |old| old.unreference();
        self.will = will;
        self.will_delay_s = delay_s;
        timers.cancel(&self.will_timer);
        self.will_timer.at_ms = 0; // of a will before a restart
    }
};

pub var table: heap.Table(Session) = .{};
pub var seed: u64 = 0;
var last_serial: u64 = 0;

fn hashOf(client_identifier: []const u8) u32 {
    return @truncate(hash_room.hash(seed, client_identifier));
}

pub fn find(client_identifier: []const u8) ?*Session {
    const hash = hashOf(client_identifier);
    var probe = table.probe(hash);
    while (probe.next()) |session| {
        if (bytes_room.equal(session.client_identifier, client_identifier)) return session;
    }
    return null;
}

pub fn create(client_identifier: []const u8, version: u8) heap.Error!*Session {
    try table.reserve();
    const name = try heap.copy(client_identifier);
    errdefer heap.freeSlice(name);
    const session = try heap.create(Session);
    last_serial += 1;
    session.* = .{ .hash = hashOf(client_identifier), .serial = last_serial, .client_identifier = name, .version = version };
    table.insert(session);
    stats.count(.sessions, 1);
    return session;
}

/// Restore only: serials that the journal has used are not used again.
pub fn setSerial(session: *Session, serial: u64) void {
    session.serial = serial;
    last_serial = @max(last_serial, serial);
}

var first_ended: ?*Session = null;
var last_ended: ?*Session = null;

/// Forgets the session. Its will must have been dealt with, its connection be gone. Nobody finds it any
/// more and it gets nothing; its subscriptions and messages go now, or in later turns where they are many.
pub fn end(session: *Session) void {
    std.debug.assert(session.connection == null);
    journal.sessionEnd(session);
    walks.forget(session);
    session.ended = true;
    session.setWill(null, 0);
    timers.cancel(&session.expiry_timer);
    table.remove(session);
    stats.uncount(.sessions, 1);
    stats.uncount(.inflight, session.inflight);
    stats.uncount(.queued, session.waiting.count);
    if (last_ended) |last| last.next_ended = session else first_ended = session;
    last_ended = session;
    _ = clearEnded();
}

pub fn anyEnded() bool {
    return first_ended != null;
}

/// Goes on with sessions that are over; true when there are none.
pub fn clearEnded() bool {
    while (first_ended) |session| {
        if (!dismantle(session)) return false;
        first_ended = session.next_ended;
        if (first_ended == null) last_ended = null;
        fanout.release(session);
    }
    return true;
}

/// False: the share of work is used up.
fn dismantle(session: *Session) bool {
    while (session.first_subscription) |subscription| {
        if (work.over()) return false;
        work.spend(work.node_units);
        subscriptions.remove(subscription);
    }
    for ([_]*Queue{ &session.sent, &session.waiting }) |queue| {
        while (queue.first) |delivery| {
            if (work.over()) return false;
            work.spend(work.node_units);
            queue.remove(delivery);
            delivery.destroy();
        }
    }
    heap.freeSlice(session.slots);
    session.received.deinit();
    heap.freeSlice(session.client_identifier);
    heap.freeSlice(session.user);
    return true;
}
