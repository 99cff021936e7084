//! Retained messages on their way to new subscriptions [MQTT-3.3.1-9]: a cursor for each, which goes on
//! as the reader takes what was sent. Nothing is collected, so the bounds on queues cut nothing off, and a
//! turn does a bounded amount of it.

const std = @import("std");
const acl = @import("acl.zig");
const connection_room = @import("connection.zig");
const delivery = @import("delivery.zig");
const heap = @import("heap.zig");
const journal = @import("journal.zig");
const limits = @import("limits.zig");
const retained = @import("retained.zig");
const session_room = @import("session.zig");
const state = @import("state.zig");
const stats = @import("stats.zig");
const subscriptions = @import("subscriptions.zig");
const topics = @import("topics.zig");
const work = @import("work.zig");
const Message = @import("message.zig").Message;
const Session = session_room.Session;
const Subscription = subscriptions.Subscription;

pub const Walk = struct {
    subscription: *Subscription,
    next: ?*Walk = null,
    previous: ?*Walk = null,
    /// All topics before it are done.
    key: heap.List(u8) = .{},
    /// What was put later has gone to the subscription as it came, and is not sent again.
    limit: u64,
    /// The same for QoS 0, of which nothing comes while the client is away.
    limit_at_most_once: u64,
    /// The journal has it.
    recorded: bool = false,

    fn session(self: *const Walk) *Session {
        return self.subscription.session;
    }
};

/// How many there are: while there are none, a publish need not look for them.
pub var count: u32 = 0;
/// What is left of this turn's steps.
var steps_left: u32 = 0;
/// Sessions whose walks go on in the next turn, the one that waits longest first.
var tired: heap.List(*Session) = .{};
var filter_room: [65536]u8 = undefined;

/// The retained messages for a subscription, from the first on.
pub fn start(subscription: *Subscription) heap.Error!void {
    const walk = subscription.walk orelse try create(subscription);
    walk.key.clear();
    walk.limit = retained.last_serial;
    walk.limit_at_most_once = retained.last_serial;
}

/// Restore only: the journal says how far it was. After a restart it is not known any more what was put
/// before and what after the subscription: all that is to come is sent as it is then (`settle`).
pub fn restored(subscription: *Subscription, key: []const u8) heap.Error!void {
    try start(subscription);
    const walk = subscription.walk.?;
    try walk.key.appendSlice(key);
    walk.recorded = true;
}

fn create(subscription: *Subscription) heap.Error!*Walk {
    const walk = try heap.create(Walk);
    const session = subscription.session;
    walk.* = .{ .subscription = subscription, .limit = 0, .limit_at_most_once = 0, .previous = session.last_walk };
    if (session.last_walk) |last| last.next = walk else session.first_walk = walk;
    session.last_walk = walk;
    subscription.walk = walk;
    count += 1;
    return walk;
}

/// With the subscription's end, or its own.
pub fn destroy(walk: *Walk) void {
    const session = walk.session();
    if (walk.previous) |previous| previous.next = walk.next else session.first_walk = walk.next;
    if (walk.next) |following| following.previous = walk.previous else session.last_walk = walk.previous;
    walk.subscription.walk = null;
    walk.key.deinit();
    heap.destroy(walk);
    count -= 1;
}

/// The session has a connection again, or for the first time after a restart (`whole`).
pub fn resumed(session: *Session, whole: bool) void {
    var item = session.first_walk;
    while (item) |walk| : (item = walk.next) {
        walk.limit_at_most_once = retained.last_serial;
        if (whole) walk.limit = retained.last_serial;
    }
}

/// Sends what the client can take now.
pub fn advance(session: *Session) void {
    if (session.first_walk == null or session.walking) return;
    session.walking = true; // what is sent calls this again
    defer session.walking = false;
    while (session.first_walk) |walk| {
        if (!delivery.takesRetained(session)) return;
        switch (go(session, walk)) {
            .done => {
                if (walk.recorded) journal.walkEnded(walk);
                destroy(walk);
            },
            .waits => return,
            .tired => return rest(session),
        }
    }
}

fn rest(session: *Session) void {
    if (session.tired) return;
    tired.append(session) catch return connection_room.abort(session.connection.?, .quota_exceeded, "no memory left");
    session.tired = true;
}

/// The session ends.
pub fn forget(session: *Session) void {
    while (session.first_walk) |walk| destroy(walk);
    if (!session.tired) return;
    session.tired = false;
    const index = std.mem.findScalar(*Session, tired.items, session).?;
    std.mem.copyForwards(*Session, tired.items[index .. tired.items.len - 1], tired.items[index + 1 ..]);
    tired.items.len -= 1;
}

/// A turn begins.
pub fn begin() void {
    steps_left = limits.walk_steps_max;
}

/// Those that had to stop for others go on, each for its share, as long as steps are left.
pub fn goOn() void {
    while (tired.items.len != 0 and steps_left != 0) {
        const session = tired.items[0];
        forgetTired(session);
        advance(session);
    }
}

fn forgetTired(session: *Session) void {
    session.tired = false;
    std.mem.copyForwards(*Session, tired.items[0 .. tired.items.len - 1], tired.items[1..]);
    tired.items.len -= 1;
}

/// Another turn is needed, whether anything comes in or not.
pub fn wantMore() bool {
    return tired.items.len != 0;
}

const Outcome = enum { done, waits, tired };

fn go(session: *Session, walk: *Walk) Outcome {
    const filter = subscriptions.filterText(walk.subscription, &filter_room);
    var share = limits.walk_share_steps;
    var node = retained.from(walk.key.items);
    while (node) |here| {
        if (share == 0 or steps_left == 0) return stop(walk, here, .tired);
        share -= 1;
        steps_left -= 1;
        work.spend(work.node_units);
        switch (retained.judge(filter, here.topic())) {
            .end => return .done,
            .seek => |key| {
                node = retained.from(key);
                continue;
            },
            .match => {},
        }
        const following = retained.after(here);
        if (here.message.expires_at_ms <= state.now_ms) {
            const kept = here.message.reference();
            defer kept.unreference();
            if (retained.remove(kept.topic())) journal.retainedRemoved(kept.topic());
        } else if (wants(walk, here, here.passed_serial)) {
            if (!delivery.sendRetained(session, here.message, termsOf(walk, here.message))) return stop(walk, here, .waits);
        }
        node = following;
    }
    return .done;
}

fn stop(walk: *Walk, here: *const retained.Node, outcome: Outcome) Outcome {
    const same = retained.order(walk.key.items, here.topic()) == .eq;
    if (same and walk.recorded) return outcome;
    walk.key.clear();
    walk.key.appendSlice(here.topic()) catch {
        connection_room.abort(walk.session().connection.?, .quota_exceeded, "no memory left");
        return .waits;
    };
    if (journal.walkMoved(walk)) walk.recorded = true;
    return outcome;
}

fn termsOf(walk: *const Walk, message: *const Message) delivery.Terms {
    const options = &walk.subscription.options;
    const identifiers: []const u32 = if (options.identifier != 0) (&options.identifier)[0..1] else &.{};
    return .{ .qos = @min(options.qos, message.qos), .retain = true, .identifiers = identifiers }; // [MQTT-3.3.1-8]
}

fn wants(walk: *const Walk, node: *const retained.Node, passed_serial: u64) bool {
    const at_most_once = walk.subscription.options.qos == 0 or node.message.qos == 0;
    if (passed_serial > walk.limit) return false;
    if (node.serial > if (at_most_once) walk.limit_at_most_once else walk.limit) return false;
    if (acl.allowed(.subscribe, walk.session().who(), node.topic())) return true;
    stats.count(.acl_denied, 1);
    return false;
}

/// A live message on this topic is about to go to the session. What the topic retains is older, and goes
/// first where it has not gone yet: nobody gets the older one after the newer one [MQTT-4.6.0-6]. The caller
/// has given the node a new `passed_serial`, so no walk sends it again; the one before is given here.
pub fn catchUp(session: *Session, node: *const retained.Node, passed_serial: u64) void {
    if (session.walking or node.message.expires_at_ms <= state.now_ms) return;
    session.walking = true;
    defer session.walking = false;
    var item = session.first_walk;
    while (item) |walk| : (item = walk.next) {
        if (retained.order(node.topic(), walk.key.items) == .lt) continue;
        if (!topics.matches(subscriptions.filterText(walk.subscription, &filter_room), node.topic())) continue;
        if (!wants(walk, node, passed_serial)) continue;
        var view = node.message.view();
        const terms = termsOf(walk, node.message);
        if (terms.qos != 0) {
            delivery.sendReliably(session, &view, terms);
        } else if (session.connection) |connection| delivery.sendAtMostOnce(connection, &view, terms, null);
    }
}
