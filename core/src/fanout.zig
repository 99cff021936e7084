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
};

var first: ?*Job = null;
var last: ?*Job = null;
var phase: enum { idle, walking, giving } = .idle;
var walk: matching.Walk = .{ .place = 1 };
/// Of the subscriptions when the walk began.
var generation: u64 = 0;
var place: routing.Place = .{ .acl_generation = 0 };

const Retired = struct { block: [*]u8, bytes: usize };
/// Memory that the walk under way may still look at.
var retired: heap.List(Retired) = .{};

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
/// been given to anybody yet [MQTT-4.3.3-12]: it is dropped, since it is given in one go and was not yet.
pub fn leave(connection: *Connection) void {
    const job = connection.job orelse return;
    connection.job = null;
    job.connection = null;
    job.orphan = true;
    orphans += 1;
}

pub inline fn isIdle() bool {
    return first == null and retired.items.len == 0;
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
        if (job.connection == null and job.message.qos == 2 and job.packet_identifier != 0) {
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
        place = .{ .acl_generation = acl.generation };
        generation = subscriptions.generation;
        phase = .walking;
    }
    if (phase == .walking) {
        if (!try walk.goOn()) return null;
        if (generation == subscriptions.generation and place.acl_generation == acl.generation) matching.rememberLong(view.topic, walk.result());
        phase = .giving;
    }
    const found = walk.result();
    // Half of a QoS 2 message would be given twice after a crash: it is given in one go.
    place.in_one_go = view.qos == 2 or routing.goesAfterRetained(&view);
    const bound = if (place.in_one_go) work.unbind() else null;
    defer if (bound) |units| work.bind(units);
    if (!routing.giveAll(found, &view, job.publisher, &place, true)) return null;
    return @intCast(found.entries.len + found.groups.len);
}

fn finish(job: *Job, matched: u32) void {
    phase = .idle;
    walk.deinit();
    first = job.next;
    if (first == null) last = null;
    const message = job.message;
    const connection = job.connection;
    const packet_identifier = job.packet_identifier;
    if (job.orphan) orphans -= 1;
    heap.destroy(job);
    if (connection) |origin| {
        origin.job = null;
        inbound.published(origin, message.qos, packet_identifier, matched);
    }
    message.unreference();
}

/// Takes back a block of what a walk goes through.
pub fn release(block: [*]u8, bytes: usize) void {
    if (phase == .idle) return heap.release(block, bytes);
    retired.append(.{ .block = block, .bytes = bytes }) catch {
        // No memory to remember it: the walk begins anew and looks at nothing of before.
        restart();
        heap.release(block, bytes);
    };
}

fn restart() void {
    walk.deinit();
    phase = .idle;
}

/// False: the share of work is used up.
fn giveBack() bool {
    while (retired.items.len != 0) {
        if (work.over()) return false;
        work.spend(2);
        const item = retired.items[retired.items.len - 1];
        retired.items.len -= 1;
        heap.release(item.block, item.bytes);
    }
    retired.deinit();
    return true;
}
