//! Reading a journal back into an empty core. What was connected is treated as just lost: wills and
//! expiry count from the restart.

const std = @import("std");
const acl = @import("acl.zig");
const bytes_room = @import("bytes.zig");
const fanout = @import("fanout.zig");
const Fields = @import("fields.zig").Fields;
const heap = @import("heap.zig");
const journal = @import("journal.zig");
const message_room = @import("message.zig");
const retained = @import("retained.zig");
const session_room = @import("session.zig");
const state = @import("state.zig");
const stats = @import("stats.zig");
const subscriptions = @import("subscriptions.zig");
const timers = @import("timers.zig");
const topics = @import("topics.zig");
const walks = @import("walks.zig");
const Kind = journal.Kind;
const Message = message_room.Message;
const Session = session_room.Session;

/// What `restore` returns to the host.
pub const Outcome = enum(u32) { done = 0, malformed = 1, truncated = 2, no_memory = 3, not_now = 4 };

const Error = error{ Malformed, OutOfMemory };

/// Sessions and messages by the serials that the journal uses.
fn Entry(comptime T: type) type {
    return struct { hash: u32, serial: u64, value: *T };
}

fn Index(comptime T: type) type {
    return struct {
        table: heap.Table(Entry(T)) = .{},

        fn hashOf(serial: u64) u32 {
            return @truncate(std.hash.int(serial));
        }

        fn find(self: *@This(), serial: u64) ?*Entry(T) {
            var probe = self.table.probe(hashOf(serial));
            while (probe.next()) |entry| if (entry.serial == serial) return entry;
            return null;
        }

        fn put(self: *@This(), serial: u64, value: *T) heap.Error!void {
            try self.table.reserve();
            const entry = try heap.create(Entry(T));
            entry.* = .{ .hash = hashOf(serial), .serial = serial, .value = value };
            self.table.insert(entry);
        }

        fn remove(self: *@This(), entry: *Entry(T)) void {
            self.table.remove(entry);
            heap.destroy(entry);
        }

        fn deinit(self: *@This(), comptime each: ?fn (*T) void) void {
            for (0..self.table.positions()) |position| {
                const entry = self.table.at(position) orelse continue;
                if (each) |function| function(entry.value);
                heap.destroy(entry);
            }
            self.table.deinit();
            self.* = .{};
        }
    };
}

var sessions: Index(Session) = .{};
var messages: Index(Message) = .{};
var pending: heap.List(u8) = .{};

fn sessionOf(fields: *Fields) Error!*Session {
    const entry = sessions.find(try fields.number(u64)) orelse return error.Malformed;
    return entry.value;
}

fn identifierOf(fields: *Fields) Error!u16 {
    const value = try fields.number(u16);
    return if (value == 0) error.Malformed else value;
}

/// One reference is the caller's.
fn messageOf(fields: *Fields) Error!*Message {
    const expires_at_ms = try fields.number(u64);
    const flags = try fields.number(u8);
    if (flags & 0x7F > 2) return error.Malformed;
    const view: message_room.View = .{
        .expires_at_ms = expires_at_ms,
        .qos = @intCast(flags & 3),
        .retain = flags & 0x80 != 0,
        .topic = try fields.string(u32),
        .properties = try fields.string(u32),
        .payload = try fields.string(u32),
    };
    if (!topics.validName(view.topic) or view.topic.len > 0xFFFF) return error.Malformed;
    return Message.create(view);
}

/// The next bytes of a journal; records may be split anywhere. The budget does not count: the settings
/// come with the first step, and what was accepted under a larger one must not be lost.
pub fn feed(bytes: []const u8, last: bool) Outcome {
    const budget = heap.budget_bytes;
    heap.budget_bytes = std.math.maxInt(u64);
    defer heap.budget_bytes = budget;
    feedOrFail(bytes) catch |problem| return if (problem == error.Malformed) .malformed else .no_memory;
    if (!last) return .done;
    if (pending.items.len != 0) return .truncated;
    finish() catch return .no_memory;
    return .done;
}

fn feedOrFail(bytes: []const u8) Error!void {
    var rest = bytes;
    while (rest.len != 0) {
        if (pending.items.len == 0) {
            const size = recordBytes(rest);
            if (size != null and size.? <= rest.len) {
                try apply(rest[0..size.?]);
                rest = rest[size.?..];
                continue;
            }
        }
        const need = recordBytes(pending.items) orelse 5;
        const count = @min(need -| pending.items.len, rest.len);
        try pending.appendSlice(rest[0..count]);
        rest = rest[count..];
        if (pending.items.len < 5 or recordBytes(pending.items).? > pending.items.len) continue;
        try apply(pending.items);
        pending.clear();
    }
}

fn recordBytes(bytes: []const u8) ?usize {
    if (bytes.len < 5) return null;
    return @as(usize, 5) +| std.mem.readInt(u32, bytes[1..5], .little);
}

fn apply(record: []const u8) Error!void {
    var fields: Fields = .{ .bytes = record[5..] };
    const kind = std.enums.fromInt(Kind, record[0]) orelse return error.Malformed;
    switch (kind) {
        .session => try readSession(&fields),
        .session_end => {
            const entry = sessions.find(try fields.number(u64)) orelse return error.Malformed;
            for ([_]*session_room.Queue{ &entry.value.sent, &entry.value.waiting }) |queue| {
                while (queue.first) |delivery| finished(entry.value, queue, delivery);
            }
            session_room.end(entry.value);
            sessions.remove(entry);
        },
        .subscribe => try readSubscription(&fields),
        .unsubscribe => {
            const session = try sessionOf(&fields);
            const found = subscriptions.get(session, try fields.string(u32)) orelse return error.Malformed;
            subscriptions.remove(found);
        },
        .retain => {
            const message = try messageOf(&fields);
            defer message.unreference();
            try retained.put(message);
        },
        .retain_clear => if (!retained.remove(try fields.string(u32))) return error.Malformed,
        .message => {
            const serial = try fields.number(u64);
            const message = try messageOf(&fields);
            errdefer message.unreference();
            message_room.setSerial(message, serial);
            if (messages.find(serial)) |old| {
                old.value.unreference();
                messages.remove(old);
            }
            try messages.put(serial, message);
        },
        .enqueue => try readDelivery(&fields, false),
        .enqueue_shared => try readDelivery(&fields, true),
        .send => try readSend(&fields),
        .release => {
            const session = try sessionOf(&fields);
            const slot = session.slot(try identifierOf(&fields)) orelse return error.Malformed;
            const delivery = slot.delivery orelse return error.Malformed;
            if (delivery.qos != 2) return error.Malformed;
            slot.state = .wait_pubcomp;
            delivery.released = true;
        },
        .done => try readDone(&fields),
        .walk => {
            const session = try sessionOf(&fields);
            const found = subscriptions.get(session, try fields.string(u32)) orelse return error.Malformed;
            const key = try fields.string(u32);
            if (found.group != null or key.len > 0xFFFF) return error.Malformed;
            try walks.restored(found, key);
        },
        .walk_end => {
            const session = try sessionOf(&fields);
            const found = subscriptions.get(session, try fields.string(u32)) orelse return error.Malformed;
            walks.destroy(found.walk orelse return error.Malformed);
        },
        .fan_out => {
            const message = messages.find(try fields.number(u64)) orelse return error.Malformed;
            try fanout.restore(message.value, try fields.number(u64));
        },
        .fan_out_end => {
            const job = fanout.unfinished() orelse return error.Malformed;
            const message = job.message;
            const serial = message.serial;
            _ = message.reference();
            defer message.unreference();
            fanout.restoreEnd();
            forgetUnlessNeeded(message, serial);
        },
        .given => fanout.restoreGiven(try sessionOf(&fields)),
        .given_shared => try fanout.restoreGroup(try groupOf(&fields)),
        .received => {
            const session = try sessionOf(&fields);
            const identifier = try identifierOf(&fields);
            if (session.received.has(identifier)) return error.Malformed;
            try session.received.add(identifier);
        },
        .received_end => {
            const session = try sessionOf(&fields);
            if (!session.received.remove(try identifierOf(&fields))) return error.Malformed;
        },
    }
    try fields.end();
}

fn readSession(fields: *Fields) Error!void {
    const serial = try fields.number(u64);
    const level = try fields.number(u8);
    const version = level & ~journal.bridge_bit;
    const bridge = level != version;
    if (version < 3 or version > 5 or (bridge and version == 5)) return error.Malformed;
    const expiry_s = try fields.number(u32);
    const expires_at_ms = try fields.number(u64);
    const name = try fields.string(u32);
    const user = try fields.string(u32);
    var attestation: acl.Attestation = .{ .rank = try fields.number(u8) };
    if (attestation.rank > acl.rank_highest) return error.Malformed;
    if (attestation.rank != 0) attestation.module = (try fields.take(acl.digest_bytes))[0..acl.digest_bytes].*;
    const session = if (sessions.find(serial)) |entry| entry.value else blk: {
        if (session_room.find(name) != null) return error.Malformed;
        const made = try session_room.create(name, version);
        errdefer session_room.end(made);
        session_room.setSerial(made, serial);
        made.journaled = true;
        try sessions.put(serial, made);
        break :blk made;
    };
    if (!bytes_room.equal(session.client_identifier, name)) return error.Malformed;
    try session.setUser(user);
    session.attestation = attestation;
    session.version = version;
    session.bridge = bridge;
    session.setExpiry(expiry_s);
    session.expiry_timer.at_ms = expires_at_ms;
    const has_will = try fields.number(u8);
    if (has_will > 1) return error.Malformed;
    if (has_will == 0) return session.setWill(null, 0);
    const delay_s = try fields.number(u32);
    const will_at_ms = try fields.number(u64);
    session.setWill(try messageOf(fields), delay_s);
    session.will_timer.at_ms = will_at_ms;
}

fn readSubscription(fields: *Fields) Error!void {
    const session = try sessionOf(fields);
    const options = try fields.number(u8);
    if (options > 15 or options & 3 == 3) return error.Malformed;
    const identifier = try fields.number(u32);
    const filter = try fields.string(u32);
    const valid = filter.len <= 0xFFFF and if (topics.isShared(filter)) topics.parseShared(filter) != null else topics.validFilter(filter);
    if (!valid) return error.Malformed;
    _ = try subscriptions.add(session, filter, .{
        .qos = @intCast(options & 3),
        .no_local = options & 4 != 0,
        .retain_as_published = options & 8 != 0,
        .identifier = identifier,
    });
}

fn readDelivery(fields: *Fields, shared: bool) Error!void {
    const session = try sessionOf(fields);
    const serial = try fields.number(u64);
    const message = (messages.find(try fields.number(u64)) orelse return error.Malformed).value;
    const flags = try fields.number(u8);
    const qos = flags & 0x7F;
    if (qos == 0 or qos > 2) return error.Malformed;
    const count = try fields.number(u32);
    const raw = try fields.take(std.math.mul(usize, count, 4) catch return error.Malformed);
    const identifiers = try heap.slice(u32, count);
    errdefer heap.freeSlice(identifiers);
    for (identifiers, 0..) |*identifier, index| identifier.* = std.mem.readInt(u32, raw[index * 4 ..][0..4], .little);
    const group = if (shared) try groupOf(fields) else null;
    errdefer if (group) |held| subscriptions.release(held);
    const delivery = try heap.create(session_room.Delivery);
    delivery.* = .{ .message = message.reference(), .serial = serial, .identifiers = identifiers, .group = group, .qos = @intCast(qos), .retain = flags & 0x80 != 0 };
    delivery.enterJournal();
    state.delivery_serial = @max(state.delivery_serial, serial);
    session.waiting.append(delivery);
    session.queued_bytes += message.size_bytes();
    stats.count(.queued, 1);
    if (group == null and fanout.isGiving(message)) fanout.restoreGiven(session);
}

fn groupOf(fields: *Fields) Error!*subscriptions.Group {
    const filter = try fields.string(u32);
    if (filter.len > 0xFFFF or !topics.isShared(filter) or topics.parseShared(filter) == null) return error.Malformed;
    return subscriptions.holdNamed(filter);
}

fn findDelivery(queue: *const session_room.Queue, serial: u64) ?*session_room.Delivery {
    var item = queue.first;
    while (item) |delivery| : (item = delivery.next) if (delivery.serial == serial) return delivery;
    return null;
}

fn readSend(fields: *Fields) Error!void {
    const session = try sessionOf(fields);
    const delivery = findDelivery(&session.waiting, try fields.number(u64)) orelse return error.Malformed;
    const packet_identifier = try identifierOf(fields);
    const slot = try session.claimIdentifier(packet_identifier);
    if (slot.state != .free) return error.Malformed;
    session.waiting.remove(delivery);
    stats.uncount(.queued, 1);
    session.sent.append(delivery);
    delivery.packet_identifier = packet_identifier;
    slot.* = .{ .state = if (delivery.qos == 1) .wait_puback else .wait_pubrec, .delivery = delivery };
    session.inflight += 1;
    stats.count(.inflight, 1);
}

fn readDone(fields: *Fields) Error!void {
    const session = try sessionOf(fields);
    const serial = try fields.number(u64);
    if (findDelivery(&session.sent, serial)) |delivery| {
        finished(session, &session.sent, delivery);
    } else if (findDelivery(&session.waiting, serial)) |delivery| {
        finished(session, &session.waiting, delivery);
    } else return error.Malformed;
}

/// With its last delivery a message is forgotten: a journal may be many times what is alive in it,
/// and has to fit into the memory that held it when it was written.
fn finished(session: *Session, queue: *session_room.Queue, delivery: *session_room.Delivery) void {
    if (delivery.packet_identifier != 0) {
        session.slot(delivery.packet_identifier).?.* = .{};
        session.inflight -= 1;
        stats.uncount(.inflight, 1);
    } else stats.uncount(.queued, 1);
    queue.remove(delivery);
    const message = delivery.message;
    const serial = message.serial;
    session.queued_bytes -= message.size_bytes();
    _ = message.reference();
    defer message.unreference();
    delivery.destroy();
    forgetUnlessNeeded(message, serial);
}

/// One reference is the index's, unless the serial names another one by now.
fn forgetUnlessNeeded(message: *Message, serial: u64) void {
    const mine = messages.find(serial) orelse return;
    if (mine.value != message or message.deliveries != 0) return;
    messages.remove(mine);
    message.unreference();
}

fn drop(message: *Message) void {
    message.unreference();
}

fn finish() heap.Error!void {
    pending.deinit();
    messages.deinit(drop);
    sessions.deinit(null);
}

/// At the first step, when the time is known. Everybody was just disconnected.
pub fn settle() void {
    var list: heap.List(*Session) = .{};
    defer list.deinit();
    for (0..session_room.table.positions()) |position| {
        const session = session_room.table.at(position) orelse continue;
        list.append(session) catch @panic("no memory to restore");
    }
    for (list.items) |session| {
        walks.resumed(session, true);
        if (!session.durable()) {
            // It ends in this step, but after the step's commands: its will is checked by rules
            // that the host gives with the first step.
            timers.set(&session.expiry_timer, state.now_ms) catch @panic("no memory to restore");
            continue;
        }
        // A clock that stood further on when the journal was written prolongs nothing.
        if (session.expiry_s != 0xFFFF_FFFF) {
            const at = earlier(session.expiry_timer.at_ms, session.expiry_s);
            timers.set(&session.expiry_timer, at) catch @panic("no memory to restore");
        }
        if (session.will != null) {
            const at = earlier(session.will_timer.at_ms, @min(session.will_delay_s, session.expiry_s));
            timers.set(&session.will_timer, at) catch @panic("no memory to restore");
        }
    }
}

/// What was set before (Unix ms; 0: nothing was), or the whole time from now on.
fn earlier(before_ms: u64, whole_s: u32) u64 {
    const at = state.now_ms + @as(u64, whole_s) * 1000;
    return if (before_ms != 0) @min(before_ms, at) else at;
}
