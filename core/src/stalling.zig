//! Connections whose input waits, because their share of a turn is used up or a packet of theirs
//! takes several turns. They are not read from meanwhile, and go on one after the other.

const connection_room = @import("connection.zig");
const fanout = @import("fanout.zig");
const heap = @import("heap.zig");
const inbound = @import("inbound.zig");
const limits = @import("limits.zig");
const subscribe = @import("subscribe.zig");
const work = @import("work.zig");
const Connection = connection_room.Connection;

pub const Stall = struct {
    connection: *Connection,
    next: ?*Stall = null,
    previous: ?*Stall = null,
    queued: bool = false,
    /// MQTT bytes that were received, from `at` on, and what came from the transport after them.
    input: heap.List(u8) = .{},
    at: usize = 0,
    held: heap.List(u8) = .{},
};

var first: ?*Stall = null;
var last: ?*Stall = null;

pub fn isIdle() bool {
    return first == null;
}

/// `rest`: the MQTT bytes that wait.
pub fn begin(connection: *Connection, rest: []const u8) void {
    if (connection.phase == .closing) return;
    const stall = connection.stall orelse heap.create(Stall) catch return giveUp(connection);
    if (connection.stall == null) stall.* = .{ .connection = connection };
    connection.stall = stall;
    // What waits already came after these.
    var input: heap.List(u8) = .{};
    for ([_][]const u8{ rest, stall.input.items[stall.at..] }) |part| {
        input.appendSlice(part) catch {
            input.deinit();
            return giveUp(connection);
        };
    }
    stall.input.deinit();
    stall.input = input;
    stall.at = 0;
    connection_room.wantPause(connection, true);
    connection.flags.hold_due = true;
    connection_room.markDirty(connection);
    if (connection.job == null) enqueue(stall); // else when that is done
}

/// Bytes of the transport that came before the host had paused.
pub fn hold(connection: *Connection, bytes: []const u8) void {
    const held = &connection.stall.?.held;
    if (held.items.len + bytes.len > limits.parked_bytes_max)
        return connection_room.abort(connection, .quota_exceeded, "the host did not stop reading");
    held.appendSlice(bytes) catch giveUp(connection);
}

fn giveUp(connection: *Connection) void {
    connection_room.abort(connection, .quota_exceeded, "no memory left");
}

pub fn goOnLater(connection: *Connection) void {
    if (connection.stall) |stall| enqueue(stall);
}

fn enqueue(stall: *Stall) void {
    if (stall.queued) return;
    stall.queued = true;
    stall.next = null;
    stall.previous = last;
    if (last) |before| before.next = stall else first = stall;
    last = stall;
}

fn dequeue(stall: *Stall) void {
    if (!stall.queued) return;
    stall.queued = false;
    if (stall.previous) |previous| previous.next = stall.next else first = stall.next;
    if (stall.next) |following| following.previous = stall.previous else last = stall.previous;
}

/// Each in turn, while the turn lasts and for one share in any case.
pub fn goOn() void {
    const start = work.spent;
    while (first) |stall| {
        if (work.spent - start >= limits.share_units and work.turnIsOver()) return;
        work.beginShare(limits.share_units, limits.share_units);
        dequeue(stall);
        resumeOne(stall.connection, stall);
    }
}

fn resumeOne(connection: *Connection, stall: *Stall) void {
    if (connection.filters != null) subscribe.goOn(connection);
    if (connection.phase == .closing) return;
    if (connection.filters == null) {
        // Taken out first: a packet may end the connection, which gives its buffers back.
        var input = stall.input;
        const at = stall.at;
        stall.input = .{};
        stall.at = 0;
        const count = inbound.handleMost(connection, input.items[at..]);
        if (connection.phase == .closing) return input.deinit();
        stall.input = input;
        stall.at = at + count;
    }
    if (connection.job != null) return;
    if (connection.filters != null or stall.at < stall.input.items.len) return enqueue(stall);
    var held = stall.held;
    stall.held = .{};
    defer held.deinit();
    release(connection, stall);
    connection_room.wantPause(connection, connection.phase == .verifying or connection.outbox.bytes > limits.pause_bytes);
    if (held.items.len != 0) inbound.take(connection, held.items);
}

fn release(connection: *Connection, stall: *Stall) void {
    dequeue(stall);
    connection.stall = null;
    stall.input.deinit();
    stall.held.deinit();
    heap.destroy(stall);
}

/// The connection is over, and so is what it wanted.
pub fn drop(connection: *Connection) void {
    fanout.leave(connection);
    subscribe.drop(connection);
    if (connection.stall) |stall| release(connection, stall);
}
