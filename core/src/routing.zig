//! From a message to everybody who gets it (MQTT 5.0, sections 3.3.4, 4.6 and 4.8).

const std = @import("std");
const acl = @import("acl.zig");
const delivery = @import("delivery.zig");
const heap = @import("heap.zig");
const fanout = @import("fanout.zig");
const journal = @import("journal.zig");
const limits = @import("limits.zig");
const matching = @import("matching.zig");
const work = @import("work.zig");
const message_room = @import("message.zig");
const retained = @import("retained.zig");
const state = @import("state.zig");
const stats = @import("stats.zig");
const subscriptions = @import("subscriptions.zig");
const sys = @import("sys.zig");
const topics = @import("topics.zig");
const timers = @import("timers.zig");
const Message = message_room.Message;
const Connection = @import("connection.zig").Connection;
const Session = @import("session.zig").Session;
const View = message_room.View;

/// What is accepted is not half delivered: memory for its copies has to be free before. The last
/// part of the budget is kept for small messages, so that large ones cannot silence a broker.
const small_bytes = 4096;
const small_headroom_bytes = 8 * 1024;

pub const Error = error{ OutOfMemory, RetainedFull };

pub fn hasRoom(view: *const View) bool {
    const size = @sizeOf(Message) + view.topic.len + view.properties.len + view.payload.len;
    if (size > small_bytes) return hasRoomForLarge(size);
    return heap.used_bytes + size + small_headroom_bytes <= heap.budget_bytes;
}

/// For large messages, and for packets that have not come whole.
pub fn hasRoomForLarge(size: usize) bool {
    return heap.used_bytes + size + heap.budget_bytes / 64 <= heap.budget_bytes;
}

/// Where a message comes from: a session (null: the broker itself), and the packet that is to be
/// acknowledged (null: none).
pub const Origin = struct { session: ?*const Session = null, connection: ?*Connection = null, packet_identifier: u16 = 0 };

/// Routes a message and retains it where it says so. Returns how many sessions matched; null: it
/// takes longer, `fanout` goes on with it and answers.
pub fn publish(origin: Origin, view: *View) Error!?u32 {
    defer view.done();
    if (view.retain) try retain(view);
    return route(origin, view);
}

fn retain(view: *View) Error!void {
    if (view.payload.len == 0) {
        if (retained.remove(view.topic)) journal.retainedRemoved(view.topic); // [MQTT-3.3.1-6], [MQTT-3.3.1-7]
        return;
    }
    if (stats.get(.retained) >= state.settings.retained_messages_max and !retained.has(view.topic)) return error.RetainedFull;
    const message = try view.keep();
    try retained.put(message);
    if (!sys.reserved(view.topic)) journal.retainedPut(message);
}

fn route(origin: Origin, view: *View) heap.Error!?u32 {
    const match = matching.match(view.topic) catch blk: {
        matching.forget();
        break :blk matching.match(view.topic) catch {
            stats.count(.publish_dropped, 1);
            return 0;
        };
    };
    const found = match orelse return later(origin, view);
    const receivers = found.entries.len + found.groups.len;
    const cost = receivers * costOf(view);
    if (cost > limits.publish_units and cost > work.left()) return later(origin, view);
    work.spend(cost);
    var place: Place = .{ .acl_generation = acl.generation };
    _ = giveAll(found, view, if (origin.session) |session| session.serial else 0, &place, false);
    return @intCast(receivers);
}

fn later(origin: Origin, view: *View) heap.Error!?u32 {
    try fanout.add(origin, view);
    return null;
}

/// To one receiver.
fn costOf(view: *const View) usize {
    return 1 + view.payload.len / work.unit_bytes;
}

/// How far the receivers of a message have been served.
pub const Place = struct { entry: usize = 0, group: usize = 0, acl_generation: u64 };

/// False: the share of work is used up, and `place` says where to go on. What is not given in pieces
/// was found and paid for just now.
pub fn giveAll(found: matching.Match, view: *View, publisher: u64, place: *Place, comptime in_pieces: bool) bool {
    var shared: delivery.Shared = .{};
    for (found.entries[place.entry..], place.entry..) |*entry, index| {
        const session = entry.session;
        if (in_pieces) {
            place.entry = index;
            if (work.over()) return false;
            work.spend(costOf(view));
            // Sessions may have ended, and rules changed, since the receivers were found.
            if (session.ended or (place.acl_generation != acl.generation and !acl.allowed(.subscribe, session.who(), view.topic))) continue;
        }
        const own = session.serial == publisher;
        if (own and !entry.own) continue; // [MQTT-3.8.3-3]
        const count = if (own) entry.own_identifiers_count else entry.identifiers_count;
        give(session, view, .{
            .qos = @min(if (own) entry.own_qos else entry.qos, view.qos),
            .retain = view.retain and if (own) entry.own_retain_as_published else entry.retain_as_published, // [MQTT-3.3.1-12], [MQTT-3.3.1-13]
            .identifiers = found.identifiers[entry.identifiers_start..][0..count],
        }, &shared);
    }
    place.entry = found.entries.len;
    for (found.groups[place.group..], place.group..) |group, index| {
        if (in_pieces) {
            place.group = index;
            if (work.over()) return false;
            work.spend(costOf(view));
        }
        giveGroup(group, view, &shared);
    }
    return true;
}

fn give(session: *Session, view: *View, terms: delivery.Terms, shared: *delivery.Shared) void {
    if (terms.qos == 0) {
        const connection = session.connection orelse return;
        return delivery.sendAtMostOnce(connection, view, terms, shared);
    }
    delivery.sendReliably(session, view, terms);
}

/// One member gets it: in turns, the ready before the busy, the connected before the absent
/// [MQTT-4.8.2-4].
fn giveGroup(group: *subscriptions.Group, view: *View, shared: *delivery.Shared) void {
    const chosen = choose(group, view) orelse return;
    group.cursor = chosen.next_in_node;
    const options = chosen.options;
    const identifiers: []const u32 = if (options.identifier != 0) &.{options.identifier} else &.{};
    give(chosen.session, view, .{ .qos = @min(options.qos, view.qos), .retain = view.retain and options.retain_as_published, .identifiers = identifiers }, shared);
}

fn choose(group: *subscriptions.Group, view: *const View) ?*subscriptions.Subscription {
    const start = group.cursor orelse group.first orelse return null;
    var best: ?*subscriptions.Subscription = null;
    var best_rank: u8 = 0;
    var member = start;
    var looked: usize = 0;
    defer work.spend(looked / 4);
    while (looked < limits.group_members_looked_at or best == null) {
        looked += 1;
        const rank = readiness(member, view);
        if (rank > best_rank) {
            best = member;
            best_rank = rank;
            if (rank == 3) break;
        }
        member = member.next_in_node orelse group.first.?;
        if (member == start) break;
    }
    return best;
}

fn readiness(member: *const subscriptions.Subscription, view: *const View) u8 {
    const session = member.session;
    if (session.ended) return 0;
    if (!acl.allowed(.subscribe, session.who(), view.topic)) return 0;
    const connection = session.connection orelse return if (session.durable() and member.options.qos != 0 and view.qos != 0) 1 else 0;
    if (!connection.isActive()) return 0;
    return if (connection.blocked or session.waiting.count != 0) 2 else 3;
}

/// The will, now; what is left of it afterwards is nothing [MQTT-3.1.2-10].
pub fn publishWill(session: *Session) void {
    const will = session.will orelse return;
    var view = will.view();
    view.kept = null;
    // A will's expiry interval counts from its publication: it was kept as a duration.
    if (view.expires_at_ms != message_room.never) view.expires_at_ms += state.now_ms;
    if (acl.allowed(.publish, session.who(), view.topic)) {
        _ = publish(.{ .session = session }, &view) catch stats.count(.publish_dropped, 1);
    } else stats.count(.acl_denied, 1);
    timers.cancel(&session.will_timer);
    session.setWill(null, 0);
}

const RetainedSender = struct {
    session: *Session,
    options: subscriptions.Options,
    expired: heap.List(*Message) = .{},

    pub fn each(self: *RetainedSender, message: *Message) bool {
        const session = self.session;
        const connection = session.connection orelse return false;
        if (!connection.isActive()) return false;
        if (message.expires_at_ms <= state.now_ms) {
            self.expired.append(message) catch return false;
            return true;
        }
        if (!acl.allowed(.subscribe, session.who(), message.topic())) {
            stats.count(.acl_denied, 1);
            return true;
        }
        var view = message.view();
        const identifiers: []const u32 = if (self.options.identifier != 0) &.{self.options.identifier} else &.{};
        const terms: delivery.Terms = .{ .qos = @min(self.options.qos, message.qos), .retain = true, .identifiers = identifiers }; // [MQTT-3.3.1-8]
        if (terms.qos != 0) {
            delivery.sendReliably(session, &view, terms);
            return true;
        }
        if (connection.outbox.bytes + message.size_bytes() > state.settings.queued_bytes_max) {
            stats.count(.publish_dropped, 1);
            return false;
        }
        delivery.sendAtMostOnce(connection, &view, terms, null);
        return true;
    }
};

/// What a new subscription gets at once [MQTT-3.3.1-9].
pub fn sendRetained(session: *Session, filter: []const u8, options: subscriptions.Options) void {
    var sender: RetainedSender = .{ .session = session, .options = options };
    defer sender.expired.deinit();
    retained.visit(filter, &sender);
    for (sender.expired.items) |message| {
        const kept = message.reference();
        defer kept.unreference();
        if (retained.remove(kept.topic())) journal.retainedRemoved(kept.topic());
    }
}
