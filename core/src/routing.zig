//! From a message to everybody who gets it (MQTT 5.0, sections 3.3.4, 4.6 and 4.8).

const std = @import("std");
const acl = @import("acl.zig");
const connection_room = @import("connection.zig");
const delivery = @import("delivery.zig");
const heap = @import("heap.zig");
const fanout = @import("fanout.zig");
const journal = @import("journal.zig");
const limits = @import("limits.zig");
const matching = @import("matching.zig");
const work = @import("work.zig");
const message_room = @import("message.zig");
const retained = @import("retained.zig");
const refusals = @import("refusals.zig");
const state = @import("state.zig");
const stats = @import("stats.zig");
const subscriptions = @import("subscriptions.zig");
const sys = @import("sys.zig");
const topics = @import("topics.zig");
const timers = @import("timers.zig");
const walks = @import("walks.zig");
const Message = message_room.Message;
const Connection = connection_room.Connection;
const session_room = @import("session.zig");
const Session = session_room.Session;
const View = message_room.View;

/// What is accepted is not half delivered: memory for its copies has to be free before. The last
/// part of the budget is kept for small messages, so that large ones cannot silence a broker.
const small_bytes = 4096;
const small_headroom_bytes = 8 * 1024;

pub const Error = error{ OutOfMemory, RetainedFull };

pub fn hasRoom(view: *const View) bool {
    const size = message_room.sizeOf(view);
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
    if (origin.session) |session| {
        if (fanout.precedes(session)) return later(origin, view);
    }
    const match = matching.match(view.topic) catch blk: {
        matching.forget();
        break :blk matching.match(view.topic) catch {
            stats.count(.publish_dropped, 1);
            return 0;
        };
    };
    const found = match orelse return later(origin, view);
    const receivers = found.entries.len + found.groups.len;
    const cost = costOfAll(found, view);
    const bound = @max(limits.publish_units, work.left());
    if (cost > bound or !looksFit(found.groups, view, bound - cost)) return later(origin, view);
    work.spend(cost);
    var place: Place = .{ .acl_generation = acl.generation };
    _ = giveAll(found, view, if (origin.session) |session| session.serial else 0, &place, false);
    return @intCast(receivers);
}

/// Whether the members that are looked at in these groups cost no more units than this. That a large
/// group has somebody among the first ones has to be seen: otherwise all of it is looked at.
fn looksFit(groups: []const *subscriptions.Group, view: *const View, units: u64) bool {
    var looks: usize = 0;
    for (groups) |group| {
        looks += @min(group.members, limits.group_members_looked_at) * acl.look_units;
        if (looks > units) return false;
        if (group.members > limits.group_members_looked_at and !anybody(group, view)) return false;
    }
    return true;
}

noinline fn anybody(group: *const subscriptions.Group, view: *const View) bool {
    var search = Search.begin(group) orelse return true;
    return look(group, view, null, &search, limits.group_members_looked_at) != null;
}

fn later(origin: Origin, view: *View) heap.Error!?u32 {
    try fanout.add(origin, view);
    return null;
}

/// To one receiver. What it has to acknowledge is kept, and recorded, in the dearest case.
fn costOf(view: *const View) usize {
    return (if (view.qos == 0) @as(usize, 1) else work.kept_units) + view.payload.len / work.unit_bytes;
}

/// When all members of all groups are looked at.
pub fn mostOfAll(found: matching.Match, view: *const View) u64 {
    var looks: u64 = 0;
    for (found.groups) |group| looks += group.members;
    return costOfAll(found, view) + looks * acl.look_units;
}

fn costOfAll(found: matching.Match, view: *const View) usize {
    return (found.entries.len + found.groups.len) * costOf(view);
}

/// How far the receivers of a message have been served.
pub const Place = struct {
    entry: usize = 0,
    group: usize = 0,
    /// Among the members of that group.
    search: ?Search = null,
    acl_generation: u64,
    begun: bool = false,
    /// The topic retains a message that walks may not have come to yet: what `walks.catchUp` gets.
    older: bool = false,
    passed_serial: u64 = 0,
    /// What it takes cannot be interrupted.
    in_one_go: bool = false,
    /// The journal is told who has got it.
    journaled: bool = false,
    /// Who is here after a restart may have got it before, where the journal does not say so.
    resumes: bool = false,

    fn begin(self: *Place, view: *const View) void {
        self.begun = true;
        if (!goesAfterRetained(view)) return;
        const node = retained.find(view.topic).?;
        self.older = true;
        self.passed_serial = node.passed_serial;
        node.passed_serial = retained.nextSerial();
    }
};

/// Whether somebody may be waiting for what the topic retains. Then the message is given in one go: in
/// between, a walk could pass the topic by before its reader is brought up to it.
pub fn goesAfterRetained(view: *const View) bool {
    return walks.count != 0 and !view.retain and retained.has(view.topic);
}

/// False: the share of work is used up, and `place` says where to go on. What is not given in pieces
/// was found and paid for just now.
pub fn giveAll(found: matching.Match, view: *View, publisher: u64, place: *Place, comptime in_pieces: bool) bool {
    var shared: delivery.Shared = .{};
    defer connection_room.haste = .prompt;
    if (!place.begun) place.begin(view);
    if (place.entry + place.group > limits.prompt_receivers) connection_room.haste = .crowd;
    const older = if (place.older) retained.find(view.topic) else null;
    for (found.entries[place.entry..], place.entry..) |*entry, index| {
        const session = entry.session;
        if (index == limits.prompt_receivers) joinCrowd(found);
        if (in_pieces) {
            place.entry = index;
            if (work.over()) return false;
            work.spend(costOf(view));
            // Sessions may have ended, and rules changed, since the receivers were found.
            if (session.ended or (place.resumes and entry.qos == 0) or (place.acl_generation != acl.generation and !acl.allowed(.subscribe, session.who(), view.topic))) continue;
        }
        if (older) |node| walks.catchUp(session, node, place.passed_serial);
        if (session.serial == publisher) {
            giveOwn(found, entry, view, &shared);
            continue;
        }
        give(session, view, .{
            .qos = @min(entry.qos, view.qos),
            .retain = view.retain and entry.retain_as_published, // [MQTT-3.3.1-12], [MQTT-3.3.1-13]
            .identifiers = identifiersOf(found, entry, entry.identifiers_count),
        }, &shared);
    }
    place.entry = found.entries.len;
    for (found.groups[place.group..], place.group..) |group, index| {
        if (found.entries.len + index == limits.prompt_receivers) joinCrowd(found);
        if (in_pieces) {
            place.group = index;
            if (work.over()) return false;
            if (!giveGroupInPieces(group, view, place, &shared)) return false;
        } else giveGroup(group, view, &shared, .thorough);
    }
    place.group = found.groups.len;
    return true;
}

/// Those who follow are served after everybody who gets a message that few get.
fn joinCrowd(found: matching.Match) void {
    connection_room.haste = .crowd;
    connection_room.given_to_crowd += found.entries.len + found.groups.len - limits.prompt_receivers;
}

/// A publisher gets its own message by its subscriptions without No Local [MQTT-3.8.3-3].
noinline fn giveOwn(found: matching.Match, entry: *const matching.Entry, view: *View, shared: *delivery.Shared) void {
    if (!entry.own) return;
    give(entry.session, view, .{
        .qos = @min(entry.own_qos, view.qos),
        .retain = view.retain and entry.own_retain_as_published,
        .identifiers = identifiersOf(found, entry, entry.own_identifiers_count),
    }, shared);
}

inline fn identifiersOf(found: matching.Match, entry: *const matching.Entry, count: u32) []const u32 {
    if (count == 0) return &.{};
    return found.identifiers[entry.identifiers_start..][0..count];
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
fn giveGroup(group: *subscriptions.Group, view: *View, shared: *delivery.Shared, reach: Reach) void {
    const chosen = choose(group, view, null, reach) orelse return;
    giveMember(chosen, view, shared);
}

/// False: the share of work is used up before all members were looked at, and somebody was found.
fn giveGroupInPieces(group: *subscriptions.Group, view: *View, place: *Place, shared: *delivery.Shared) bool {
    if (place.search == null) work.spend(costOf(view));
    if (place.in_one_go) {
        giveGroup(group, view, shared, .bounded);
    } else if (place.search orelse Search.begin(group)) |begun| {
        place.search = begun;
        const search = &place.search.?;
        search.in_pieces = true;
        const chosen = look(group, view, null, search, @intCast(@min(work.left(), std.math.maxInt(usize))));
        if (chosen) |member| giveMember(member, view, shared) else if (!search.done) return false;
        place.search = null;
    }
    if (place.journaled) journal.givenShared(group);
    return true;
}

fn giveMember(chosen: *subscriptions.Subscription, view: *View, shared: *delivery.Shared) void {
    const group = chosen.group.?;
    group.cursor = chosen.next_in_node;
    const options = chosen.options;
    const identifiers: []const u32 = if (options.identifier != 0) &.{options.identifier} else &.{};
    give(chosen.session, view, .{ .qos = @min(options.qos, view.qos), .retain = view.retain and options.retain_as_published, .identifiers = identifiers, .group = group }, shared);
}

/// How many messages of sessions that end may still be handed on in this turn.
var handovers_left: u32 = 0;
/// How many members may still be looked at in this turn by bounded searches.
var looks_left: usize = 0;

/// A turn begins.
pub fn begin() void {
    handovers_left = limits.handovers_max;
    looks_left = limits.looks_max;
}

/// What a session that ends had not acknowledged of its shared subscriptions goes to other members:
/// QoS 1 whether sent or not, QoS 2 only what was not begun (section 4.8.2, [MQTT-4.8.2-5]). Where there is
/// no other member the shared subscription has ended, and its messages with it (section 4.8.2). The session's
/// own messages end with it. `share`: no more than the turn may do; false: there are others.
pub fn handOn(session: *Session, which: enum { whole, share }) bool {
    forgetLeft(session);
    for ([_]*session_room.Queue{ &session.sent, &session.waiting }) |queue| {
        while (queue.first) |known| {
            if (which == .share and !mayHandOn()) return false;
            handovers_left -|= 1;
            work.spend(4 * work.node_units);
            const begun = known.packet_identifier != 0;
            if (begun) session.slot(known.packet_identifier).?.counted = false; // on a connection that is gone
            if (!(begun and known.qos == 2) and passOn(session, known)) continue;
            if (known.group != null) stats.count(.publish_dropped, 1) else known.leaveJournal(); // the session's end says it
            delivery.forget(session, known);
        }
    }
    return true;
}

fn mayHandOn() bool {
    return handovers_left != 0 and looks_left != 0;
}

/// Sessions that have left shared subscriptions. What had not been sent to them goes to others, over as
/// many turns as it takes; where there are none, they still get it (section 3.10.4).
var left: heap.List(*Session) = .{};

/// After the packet was answered: however many filters and packets, the queue is walked once a step.
pub fn leftShared(session: *Session) void {
    session.left_after = 0;
    if (session.left_shared or session.waiting.count == 0) return;
    left.append(session) catch return; // they still get it, as they may
    session.left_shared = true;
}

pub fn settleLeft() void {
    while (left.items.len != 0) {
        const session = left.items[left.items.len - 1];
        if (!handOnWaiting(session)) return;
        left.items.len -= 1;
        session.left_shared = false;
    }
}

pub fn anyLeft() bool {
    return left.items.len != 0;
}

fn forgetLeft(session: *Session) void {
    if (!session.left_shared) return;
    session.left_shared = false;
    const index = std.mem.findScalar(*Session, left.items, session).?;
    left.items[index] = left.items[left.items.len - 1];
    left.items.len -= 1;
}

/// False: no more in this turn.
fn handOnWaiting(session: *Session) bool {
    var item = session.waiting.first;
    while (item) |waiting| {
        item = waiting.next;
        const group = waiting.group orelse continue;
        if (waiting.serial <= session.left_after) continue; // it stays
        if (!mayHandOn()) return false;
        handovers_left -= 1;
        session.left_after = waiting.serial;
        if (!subscriptions.memberOf(group, session)) _ = passOn(session, waiting);
    }
    return true;
}

/// Gives a delivery to another member of its shared subscription; false: nobody can have it, and it
/// stays where it is. The new member's QoS, rights, options and bounds count. Its record comes first:
/// a reader of the journal forgets a message with its last delivery.
pub fn passOn(from: *Session, known: *session_room.Delivery) bool {
    const group = known.group orelse return false;
    if (known.message.expires_at_ms <= state.now_ms) return false;
    var view = known.message.view();
    const chosen = choose(group, &view, from, .bounded) orelse return false;
    var shared: delivery.Shared = .{};
    giveMember(chosen, &view, &shared);
    delivery.forget(from, known);
    return true;
}

/// A thorough search ends when somebody was found, or everybody was looked at. Bounded ones look at no more
/// members than is left for the turn, or at a few others each time.
const Reach = enum { thorough, bounded };

/// Where a search among a group's members stands. They may join and leave in between: what has left keeps
/// its memory for as long as a publish is being served (`fanout`), and leads to those behind it.
const Search = struct {
    start: *subscriptions.Subscription,
    next: *subscriptions.Subscription,
    /// It is back at the first member, and ends where it began.
    wrapped: bool = false,
    /// Everybody was looked at.
    done: bool = false,
    /// It stops when the share of work is used up.
    in_pieces: bool = false,

    fn begin(group: *const subscriptions.Group) ?Search {
        const start = group.cursor orelse group.first orelse return null;
        return .{ .start = start, .next = start };
    }

    fn goOn(self: *Search, group: *const subscriptions.Group) void {
        if (self.next.next_in_node) |following| {
            self.next = following;
        } else if (group.first != null and !self.wrapped) {
            self.next = group.first.?;
            self.wrapped = true;
        } else {
            self.done = true;
            return;
        }
        if (self.next == self.start) self.done = true;
    }
};

/// `from`: hands a message on; it goes to somebody else who has room for it, or to nobody.
fn choose(group: *subscriptions.Group, view: *const View, from: ?*const Session, reach: Reach) ?*subscriptions.Subscription {
    var search = Search.begin(group) orelse return null;
    const before = work.spent;
    const most = if (reach == .bounded) @max(looks_left, limits.looks_least) else std.math.maxInt(usize);
    const best = look(group, view, from, &search, most);
    if (reach == .bounded) looks_left -|= @intCast(work.spent - before);
    if (best == null) group.cursor = search.next;
    return best;
}

/// Goes on with a search until somebody is ready, or the best of enough members is known, or `most` were looked at.
fn look(group: *const subscriptions.Group, view: *const View, from: ?*const Session, search: *Search, most: usize) ?*subscriptions.Subscription {
    var best: ?*subscriptions.Subscription = null;
    var best_rank: u8 = 0;
    var looked: usize = 0;
    defer work.spend(looked);
    while (!search.done and !(search.in_pieces and looked != 0 and work.over()) and looked < most and (looked < limits.group_members_looked_at or best == null)) {
        looked += 1;
        const member = search.next;
        search.goOn(group);
        const rank = if (member.gone or member.session == from) 0 else readiness(member, view, from != null);
        if (rank <= best_rank) continue;
        best = member;
        best_rank = rank;
        if (rank == 4) break;
    }
    return best;
}

/// 4 ready, 3 busy, 2 absent, 1 with a full queue, 0 never.
fn readiness(member: *const subscriptions.Subscription, view: *const View, room_needed: bool) u8 {
    const session = member.session;
    if (session.ended or session.ending) return 0;
    if (!acl.allowed(.subscribe, session.who(), view.topic)) return 0;
    const active = if (session.connection) |connection| connection.isActive() else false;
    const queues = member.options.qos != 0 and view.qos != 0;
    if (!active and !(session.durable() and queues)) return 0;
    if (queues and !delivery.hasRoom(session, message_room.sizeOf(view))) return if (room_needed) 0 else 1;
    if (!active) return 2;
    return if (session.connection.?.outbox.blocked or session.waiting.count != 0) 3 else 4;
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
    } else {
        stats.count(.acl_denied, 1);
        refusals.reportKeptWill(session.who(), view.topic);
    }
    timers.cancel(&session.will_timer);
    session.setWill(null, 0);
}
