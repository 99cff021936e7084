//! From a message to everybody who gets it (MQTT 5.0, sections 3.3.4, 4.6 and 4.8).

const std = @import("std");
const acl = @import("acl.zig");
const delivery = @import("delivery.zig");
const heap = @import("heap.zig");
const journal = @import("journal.zig");
const message_room = @import("message.zig");
const retained = @import("retained.zig");
const state = @import("state.zig");
const stats = @import("stats.zig");
const subscriptions = @import("subscriptions.zig");
const sys = @import("sys.zig");
const topics = @import("topics.zig");
const timers = @import("timers.zig");
const Message = message_room.Message;
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

/// Routes a message and retains it where it says so. Returns how many sessions matched.
pub fn publish(publisher: ?*const Session, view: *View) Error!u32 {
    defer view.done();
    if (view.retain) try retain(view);
    return route(publisher, view);
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

fn route(publisher: ?*const Session, view: *View) u32 {
    const found = subscriptions.match(view.topic) catch blk: {
        subscriptions.forgetMatches();
        break :blk subscriptions.match(view.topic) catch {
            stats.count(.publish_dropped, 1);
            return 0;
        };
    };
    var shared: delivery.Shared = .{};
    for (found.entries) |entry| {
        if (entry.no_local != .none and entry.session == publisher) {
            local(entry, view);
            continue;
        }
        give(entry.session, view, .{
            .qos = @min(entry.qos, view.qos),
            .retain = view.retain and entry.retain_as_published, // [MQTT-3.3.1-12], [MQTT-3.3.1-13]
            .identifiers = found.identifiers[entry.identifiers_start..][0..entry.identifiers_count],
        }, &shared);
    }
    for (found.groups) |group| giveGroup(group, view, &shared);
    return @intCast(found.entries.len + found.groups.len);
}

fn give(session: *Session, view: *View, terms: delivery.Terms, shared: *delivery.Shared) void {
    if (terms.qos == 0) {
        const connection = session.connection orelse return;
        return delivery.sendAtMostOnce(connection, view, terms, shared);
    }
    delivery.sendReliably(session, view, terms);
}

/// A publisher that matches its own message: only subscriptions without No Local count [MQTT-3.8.3-3].
fn local(entry: subscriptions.Entry, view: *View) void {
    if (entry.no_local == .all) return;
    var identifiers: heap.List(u32) = .{};
    defer identifiers.deinit();
    const found = subscriptions.matchLocal(entry.session, view.topic, &identifiers) catch return stats.count(.publish_dropped, 1);
    const own = found orelse return;
    var shared: delivery.Shared = .{};
    give(own.session, view, .{ .qos = @min(own.qos, view.qos), .retain = view.retain and own.retain_as_published, .identifiers = identifiers.items }, &shared);
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
    while (true) {
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
        _ = publish(session, &view) catch stats.count(.publish_dropped, 1);
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
