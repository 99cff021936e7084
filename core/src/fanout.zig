//! Publishes that cost more than their share of a turn. They are kept, and one after the other their
//! receivers are found and served over as many turns as it takes. Their publisher's connection waits
//! meanwhile, so that its messages keep their order [MQTT-4.6.0-5]; everybody else goes on.
//!
//! Subscriptions change while a walk is under way. What is removed then keeps its memory until the
//! walk is over, and is marked: the walk may still come by, and passes on. Who subscribes meanwhile
//! may get the message or not, as if the packets had come in either order.

const acl = @import("acl.zig");
const heap = @import("heap.zig");
const inbound = @import("inbound.zig");
const journal = @import("journal.zig");
const limits = @import("limits.zig");
const matching = @import("matching.zig");
const message_room = @import("message.zig");
const routing = @import("routing.zig");
const stats = @import("stats.zig");
const subscriptions = @import("subscriptions.zig");
const work = @import("work.zig");
const Connection = @import("connection.zig").Connection;
const Session = @import("session.zig").Session;

/// A publish that waits or is being served.
pub const Job = struct {
    next: ?*Job = null,
    /// One reference is the job's.
    message: *message_room.Message,
    /// The publisher's session; 0: none.
    publisher: u64,
    /// Whom to answer; null: nobody.
    connection: ?*Connection,
    packet_identifier: u16,
    orphan: bool = false,
    /// Of QoS 2: some may have it, and its publisher's repetition is known. The others get it,
    /// whatever becomes of the publisher.
    begun: bool = false,
    /// And the journal knows who has it: a restart goes on with the others.
    journaled: bool = false,
    /// There was a restart.
    resumes: bool = false,
};

var first: ?*Job = null;
var last: ?*Job = null;
var phase: enum { idle, walking, giving } = .idle;
var walk: matching.Walk = .{ .place = 1 };
/// Of the subscriptions when the walk began.
var generation: u64 = 0;
var place: routing.Place = .{ .acl_generation = 0 };

/// What the walk under way may still look at, linked by fields that it does not read: putting
/// something aside takes no memory, so it cannot fail.
fn Aside(comptime T: type, comptime link: []const u8) type {
    return struct {
        first: ?*T = null,

        fn put(self: *@This(), item: *T) void {
            @field(item, link) = self.first;
            self.first = item;
        }

        fn take(self: *@This()) ?*T {
            const item = self.first orelse return null;
            self.first = @field(item, link);
            return item;
        }
    };
}

var sessions: Aside(Session, "next_ended") = .{};
var members: Aside(subscriptions.Subscription, "previous_in_session") = .{};
var groups: Aside(subscriptions.Group, "previous") = .{};
var nodes: Aside(subscriptions.Node, "previous_sibling") = .{};
/// So many of all kinds.
var aside: usize = 0;

pub fn add(origin: routing.Origin, view: *message_room.View) heap.Error!void {
    const job = try heap.create(Job);
    errdefer heap.destroy(job);
    const message = try view.keep();
    job.* = .{
        .message = message.reference(),
        .publisher = if (origin.session) |session| session.serial else 0,
        .connection = origin.connection,
        .packet_identifier = origin.packet_identifier,
    };
    if (origin.connection) |connection| connection.job = job;
    if (last) |before| before.next = job else first = job;
    last = job;
}

/// Messages whose publisher's connection is over.
var orphans: usize = 0;

/// A message of an earlier connection of this session still waits: the next one comes after it.
pub inline fn precedes(session: *const Session) bool {
    return orphans != 0 and waitsFor(session);
}

fn waitsFor(session: *const Session) bool {
    var item = first;
    while (item) |job| : (item = job.next) {
        work.spend(1);
        if (job.connection == null and job.publisher == session.serial) return true;
    }
    return false;
}

/// The publisher's connection is over. A QoS 2 message that it repeats on the next one must not have
/// been given to anybody yet [MQTT-4.3.3-12]: it is dropped, unless the repetition is known by now.
pub fn leave(connection: *Connection) void {
    const job = connection.job orelse return;
    connection.job = null;
    job.connection = null;
    job.orphan = true;
    orphans += 1;
}

pub inline fn isIdle() bool {
    return first == null and aside == 0;
}

/// Works on what waits, for a share and what else is left of the turn.
pub inline fn goOn() void {
    if (!isIdle()) goOnBusy();
}

fn goOnBusy() void {
    work.beginShare(limits.share_units, limits.turn_units);
    while (!work.over()) {
        if (phase == .idle and !giveBack()) return;
        const job = first orelse return;
        if (job.connection == null and job.message.qos == 2 and job.packet_identifier != 0 and !job.begun) {
            finish(job, 0);
            continue;
        }
        const matched = serve(job) catch blk: {
            matching.forget();
            stats.count(.publish_dropped, 1);
            break :blk 0;
        };
        finish(job, matched orelse return);
    }
}

/// How many matched; null: not done yet.
fn serve(job: *Job) heap.Error!?u32 {
    var view = job.message.view();
    if (phase == .idle) {
        try walk.begin(view.topic);
        walk.resumes = job.resumes;
        place = .{ .acl_generation = acl.generation };
        generation = subscriptions.generation;
        phase = .walking;
    }
    if (phase == .walking) {
        if (!try walk.goOn()) return null;
        if (!job.resumes and generation == subscriptions.generation and place.acl_generation == acl.generation) matching.rememberLong(view.topic, walk.result());
        phase = .giving;
    }
    const found = walk.result();
    if (view.qos == 2 and !job.begun) {
        // Half of it would be given twice after a crash or a reconnection, unless both know of it.
        place.in_one_go = routing.mostOfAll(found, &view) <= work.left();
        if (!place.in_one_go and !begin(job)) return 0;
    }
    if (routing.goesAfterRetained(&view)) place.in_one_go = true;
    place.journaled = job.journaled;
    place.resumes = job.resumes;
    const bound = if (place.in_one_go) work.unbind() else null;
    defer if (bound) |units| work.bind(units);
    if (!routing.giveAll(found, &view, job.publisher, &place, true)) return null;
    return @intCast(found.entries.len + found.groups.len);
}

/// From here on a repetition by the publisher is known, and so is who has the message. False: the
/// publisher's connection is over for want of memory.
fn begin(job: *Job) bool {
    if (job.connection) |origin| {
        if (!inbound.remember(origin, job.packet_identifier)) return false;
    }
    job.begun = true;
    job.journaled = journal.fanOutBegun(job.message, job.publisher);
    return true;
}

/// The message of which the journal knows who has it.
pub fn unfinished() ?*const Job {
    const job = first orelse return null;
    return if (job.journaled) job else null;
}

pub fn isGiving(message: *const message_room.Message) bool {
    const job = unfinished() orelse return false;
    return job.message == message;
}

pub fn hasGot(session: *const Session) bool {
    if (unfinished() == null) return false;
    const stamp = session.stamps[walk.place];
    if (first.?.resumes and stamp == matching.before_restart) return true;
    return phase == .giving and stamp == walk.stamp and session.indices[walk.place] < place.entry;
}

/// The shared subscriptions that have it: since before a restart, and since then.
pub fn groupsServed() [2][]const *subscriptions.Group {
    return .{ given_before_restart.items, if (phase == .giving) walk.groups.items[0..place.group] else &.{} };
}

/// Held for as long as their message is given to others.
var given_before_restart: heap.List(*subscriptions.Group) = .{};

/// Restore only: a message that was being given. It goes on with the first step.
pub fn restore(message: *message_room.Message, publisher: u64) error{ OutOfMemory, Malformed }!void {
    if (first != null or message.qos != 2) return error.Malformed;
    const job = try heap.create(Job);
    job.* = .{ .message = message.reference(), .publisher = publisher, .connection = null, .packet_identifier = 0, .orphan = true, .begun = true, .journaled = true, .resumes = true };
    message.enterJournal();
    orphans += 1;
    first = job;
    last = job;
}

/// Restore only: the session has it.
pub fn restoreGiven(session: *Session) void {
    session.stamps[walk.place] = matching.before_restart;
}

/// Restore only: a member of the group has it. The hold of the caller is taken over.
pub fn restoreGroup(group: *subscriptions.Group) heap.Error!void {
    if (group.given_before_restart) return subscriptions.release(group);
    errdefer subscriptions.release(group);
    try given_before_restart.append(group);
    group.given_before_restart = true;
}

/// Restore only: everybody had got it.
pub fn restoreEnd() void {
    first.?.message.leaveJournal();
    remove(first.?);
    forgetRestored();
}

fn forgetRestored() void {
    for (given_before_restart.items) |group| {
        group.given_before_restart = false;
        subscriptions.release(group);
    }
    given_before_restart.deinit();
}

fn finish(job: *Job, matched: u32) void {
    phase = .idle;
    walk.deinit();
    const message = job.message.reference();
    defer message.unreference();
    const known = job.*;
    if (job.journaled) journal.fanOutEnded(message);
    remove(job);
    if (known.resumes) forgetRestored();
    const origin = known.connection orelse return;
    origin.job = null;
    inbound.published(origin, message.qos, known.packet_identifier, matched, known.begun);
}

fn remove(job: *Job) void {
    first = job.next;
    if (first == null) last = null;
    if (job.orphan) orphans -= 1;
    job.message.unreference();
    heap.destroy(job);
}

/// Takes back what a walk goes through: at once, or when the walk under way is over.
pub fn release(item: anytype) void {
    if (phase == .idle) return free(item);
    aside += 1;
    switch (@TypeOf(item)) {
        *Session => sessions.put(item),
        *subscriptions.Subscription => members.put(item),
        *subscriptions.Group => groups.put(item),
        *subscriptions.Node => nodes.put(item),
        else => comptime unreachable,
    }
}

fn free(item: anytype) void {
    if (@TypeOf(item) == *subscriptions.Node) return heap.release(@ptrCast(item), item.bytes());
    heap.destroy(item);
}

/// False: the share of work is used up.
fn giveBack() bool {
    inline for (.{ &sessions, &members, &groups, &nodes }) |kind| {
        while (kind.first != null) {
            if (work.over()) return false;
            work.spend(2);
            aside -= 1;
            free(kind.take().?);
        }
    }
    return true;
}
