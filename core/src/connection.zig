//! Network connections: their phase, what waits to be sent, and how they end.

const std = @import("std");
const abi = @import("abi.zig");
const acl = @import("acl.zig");
const events = @import("events.zig");
const heap = @import("heap.zig");
const limits = @import("limits.zig");
const fanout = @import("fanout.zig");
const stalling = @import("stalling.zig");
const stats = @import("stats.zig");
const subscribe = @import("subscribe.zig");
const timers = @import("timers.zig");
const transitions = @import("transitions.zig");
const websocket = @import("wire/websocket.zig");
const writer = @import("wire/writer.zig");
const refusals = @import("refusals.zig");
const connect = @import("connect.zig");
const Outbox = @import("outbox.zig").Outbox;
const Reason = @import("wire/reason.zig").Reason;
const Session = @import("session.zig").Session;

pub const Alias = struct { topic: []u8 };

/// What is asked for once in a while: a bit each, so that many idle connections take less.
const Flags = packed struct(u8) {
    /// Another broker, which said so in CONNECT (MQTT 3.1 and 3.1.1).
    bridge: bool = false,
    anonymous_allowed: bool,
    request_problem_information: bool = true,
    reauthenticating: bool = false,
    /// The host has to hold the peer's end back until RESUME: input of before still waits.
    hold_due: bool = false,
    will_wanted: bool = true,
    reported: bool = false,
    /// The host has given or was told the reason of the end.
    end_told: bool = false,
};

pub const Connection = struct {
    id: u32,
    phase: transitions.Phase,
    /// 3 (MQTT 3.1), 4 (3.1.1) or 5; 0: not known yet.
    version: u8 = 0,
    flags: Flags,
    /// The proven TLS identity; heap-owned.
    identity: []u8,
    attestation: acl.Attestation,
    websocket: ?*websocket.Decoder = null,
    /// A packet (or HTTP request) of which a part has come.
    partial: heap.List(u8) = .{},
    outbox: Outbox = .{},
    session: ?*Session = null,
    timer: timers.Timer = .{ .kind = .connection },
    /// When the last packet came.
    last_packet_ms: u64 = 0,
    keep_alive_ms: u32 = 0,

    /// What the client can take: its Maximum Packet Size and the window towards it.
    maximum_packet_bytes: u32 = limits.packet_bytes_max,
    window: u16 = 0xFFFF,
    /// QoS 1 and 2 publishes sent on this connection that are not complete.
    outstanding: u32 = 0,
    aliases_in: [][]u8 = &.{},
    aliases_out: heap.List(Alias) = .{},
    alias_out_maximum: u16 = 0,

    /// The CONNECT packet while credentials are verified; heap-owned, erased.
    held_connect: []u8 = &.{},
    method: []u8 = &.{},
    ticket: u32 = 0,

    next_dirty: ?*Connection = null,
    previous_dirty: ?*Connection = null,
    /// The queue of outputs in which it stands.
    dirty: Haste = .none,
    /// A publish of this connection that takes several turns.
    job: ?*fanout.Job = null,
    /// A SUBSCRIBE or UNSUBSCRIBE that takes several turns.
    filters: ?*subscribe.Unfinished = null,
    /// Input that waits until this connection's work may go on.
    stall: ?*stalling.Stall = null,
    next_doomed: ?*Connection = null,
    doomed: bool = false,
    /// Reading is paused, as the host knows it; `pause_due`: a change has to be told.
    paused: bool = false,
    pause_due: bool = false,
    close_due: bool = false,
    abort_due: bool = false,
    /// Messages wait in the session until the outbox has drained.
    backlog: bool = false,
    /// More segments wait than one turn offers.
    outbox_rest: bool = false,
    refusals: refusals.Window = .{},
    refusals_unreported: u32 = 0,
    /// What the peer spoke first, for the words when that was no MQTT; 0: nothing yet, or that.
    first_byte: u8 = 0,

    /// A packet of this connection takes several turns; the next one is not looked at before.
    pub fn isWaiting(self: *const Connection) bool {
        return self.job != null or self.filters != null;
    }

    pub fn isActive(self: *const Connection) bool {
        return self.phase == .active;
    }

    /// Whether the client's Maximum Packet Size allows this packet [MQTT-3.1.2-24].
    pub fn takes(self: *const Connection, packet: []const u8) bool {
        return packet.len <= self.maximum_packet_bytes;
    }

    /// Appends the bytes of whole packets, framed when the transport is WebSocket.
    pub fn write(self: *Connection, bytes: []const u8) heap.Error!void {
        if (self.phase == .closing) return;
        if (self.websocket != null) try self.writeHead(bytes.len);
        try self.outbox.write(bytes);
        markDirty(self);
    }

    noinline fn writeHead(self: *Connection, count: usize) heap.Error!void {
        var head: [10]u8 = undefined;
        const used = websocket.frameHeader(&head, .binary, count);
        try self.outbox.write(head[0..used]);
    }

    /// Sends a packet that must go. A connection that has no memory for it is given up, and so is
    /// one whose client takes no packet that large: the exchange cannot go on.
    pub fn send(self: *Connection, bytes: []const u8) void {
        if (!self.takes(bytes)) return @call(.never_inline, close, .{ self, .packet_too_large, "the answer is larger than the client's maximum packet size" });
        self.write(bytes) catch {
            abort(self, .quota_exceeded, "no memory left to answer");
            return;
        };
        stats.count(.messages_sent, 1);
        if (self.outbox.bytes > limits.pause_bytes) @call(.never_inline, wantPause, .{ self, true });
    }
};

var table: heap.List(?*Connection) = .{};

/// `crowd`: they have nothing but their copies of messages that go to many, and a share of them is served
/// each turn.
pub const Haste = enum(u8) { none, crowd, prompt };

/// Connections with something for the host: first in, first out, so that none is starved.
const Dirty = struct { first: ?*Connection = null, last: ?*Connection = null };

var prompt: Dirty = .{};
var crowd: Dirty = .{};
/// Of what is written now.
pub var haste: Haste = .prompt;
/// So many were given to the crowd since the last outputs.
pub var given_to_crowd: usize = 0;

pub var first_doomed: ?*Connection = null;

pub fn get(id: u32) ?*Connection {
    if (id >= table.items.len) return null;
    return table.items[id];
}

pub fn all() []?*Connection {
    return table.items;
}

/// What the host says about a new connection.
pub const Opening = struct { web: bool, anonymous_allowed: bool, identity: []const u8, attestation: acl.Attestation, name_proven: bool };

pub fn open(id: u32, opening: Opening) heap.Error!*Connection {
    if (id >= limits.connections_max) return error.OutOfMemory;
    while (table.items.len <= id) try table.append(null);
    std.debug.assert(table.items[id] == null);
    const name = try heap.copy(opening.identity);
    errdefer heap.freeSlice(name);
    const decoder = if (opening.web) try heap.create(websocket.Decoder) else null;
    errdefer if (decoder) |made| heap.destroy(made);
    if (decoder) |made| made.* = .{ .name_proven = opening.name_proven };
    const connection = try heap.create(Connection);
    connection.* = .{
        .id = id,
        .phase = if (opening.web) .upgrading else .connecting,
        .flags = .{ .anonymous_allowed = opening.anonymous_allowed },
        .identity = name,
        .attestation = opening.attestation,
        .websocket = decoder,
    };
    table.items[id] = connection;
    stats.count(.connections_open, 1);
    return connection;
}

/// The host has confirmed that the connection is gone, and its session was detached.
pub fn free(connection: *Connection) void {
    std.debug.assert(connection.session == null and !connection.doomed);
    table.items[connection.id] = null;
    if (connection.dirty != .none) removeDirty(connection);
    timers.cancel(&connection.timer);
    dropConnectState(connection);
    stalling.drop(connection);
    connection.partial.deinit();
    connection.outbox.deinit();
    for (connection.aliases_in) |alias| heap.freeSlice(alias);
    heap.freeSlice(connection.aliases_in);
    for (connection.aliases_out.items) |alias| heap.freeSlice(alias.topic);
    connection.aliases_out.deinit();
    heap.freeSlice(connection.identity);
    heap.freeSlice(connection.method);
    if (connection.websocket) |decoder| heap.destroy(decoder);
    heap.destroy(connection);
    stats.uncount(.connections_open, 1);
}

/// Erases the credentials that were kept for the verification.
pub fn dropConnectState(connection: *Connection) void {
    @memset(connection.held_connect, 0);
    heap.freeSlice(connection.held_connect);
    connection.held_connect = &.{};
}

/// Who gets something of its own leaves the crowd. The order of its bytes stays.
pub inline fn markDirty(connection: *Connection) void {
    if (@backingInt(connection.dirty) < @backingInt(haste)) enqueue(connection);
}

fn enqueue(connection: *Connection) void {
    if (connection.dirty != .none) removeDirty(connection);
    connection.dirty = haste;
    const queue = if (haste == .crowd) &crowd else &prompt;
    connection.next_dirty = null;
    connection.previous_dirty = queue.last;
    if (queue.last) |last| last.next_dirty = connection else queue.first = connection;
    queue.last = connection;
}

/// It has waited for its socket, or has had its share of this turn: others come first.
pub fn markLater(connection: *Connection) void {
    const before = haste;
    haste = .crowd;
    defer haste = before;
    markDirty(connection);
}

fn removeDirty(connection: *Connection) void {
    const queue = if (connection.dirty == .crowd) &crowd else &prompt;
    connection.dirty = .none;
    if (connection.previous_dirty) |previous| previous.next_dirty = connection.next_dirty else queue.first = connection.next_dirty;
    if (connection.next_dirty) |following| following.previous_dirty = connection.previous_dirty else queue.last = connection.previous_dirty;
}

pub fn wantPause(connection: *Connection, pause: bool) void {
    if (connection.paused == pause or (!pause and connection.stall != null)) return;
    connection.paused = pause;
    connection.pause_due = !connection.pause_due;
    markDirty(connection);
}

/// Ends a connection from the broker's side: DISCONNECT where the protocol has it, then an orderly
/// close. The session is detached later in the step, so callers may still hold it.
pub fn close(connection: *Connection, wanted: Reason, text: []const u8) void {
    if (connection.phase == .closing) return;
    const reason: Reason = if (wanted.inDisconnect()) wanted else .unspecified;
    const tell = connection.version == 5 and connection.phase == .active;
    if (tell) {
        var packet: [256]u8 = undefined;
        const shown: []const u8 = if (connection.flags.request_problem_information or reason != .success) text else "";
        const bytes = writer.disconnect(&packet, reason, shown, connection.maximum_packet_bytes);
        if (connection.takes(bytes)) connection.write(bytes) catch {
            connection.abort_due = true;
        };
    }
    finish(connection, reason, text);
}

/// Ends a connection after bytes (CONNACK, an HTTP answer) that were written before.
pub fn finish(connection: *Connection, reason: Reason, text: []const u8) void {
    if (connection.phase == .closing) return;
    if (connection.websocket != null and connection.phase != .upgrading) {
        // RFC 6455, section 7.4.1: 1000, or 1002 where the peer broke the protocol.
        const code: u16 = if (reason == .malformed_packet or reason == .protocol_error) 1002 else 1000;
        connection.outbox.write(&.{ 0x88, 2, @intCast(code >> 8), @intCast(code & 0xFF) }) catch {
            connection.abort_due = true;
        };
    }
    report(connection, reason, 1, text);
    doom(connection);
}

/// Gives a connection up without another byte.
pub fn abort(connection: *Connection, reason: Reason, text: []const u8) void {
    connection.abort_due = true;
    if (connection.phase == .closing) return;
    report(connection, reason, 1, text);
    doom(connection);
}

fn doom(connection: *Connection) void {
    connection.phase = .closing;
    connection.close_due = true;
    connection.partial.deinit();
    stalling.drop(connection);
    timers.cancel(&connection.timer);
    dropConnectState(connection);
    markDirty(connection);
    if (connection.doomed) return;
    connection.doomed = true;
    connection.next_doomed = first_doomed;
    first_doomed = connection;
}

pub fn report(connection: *Connection, reason: Reason, by: u8, text: []const u8) void {
    if (connection.flags.reported) return;
    connection.flags.reported = true;
    if (by == 1 and reason.blamesProtocol()) stats.count(.protocol_errors, 1);
    const claimed = connect.claimed(connection);
    events.disconnected(.{
        .connection = connection.id,
        .reason = @backingInt(reason),
        .by = by,
        .accepted = connection.session != null,
        .told = connection.flags.end_told,
        .refusals = connection.refusals_unreported,
        .client_identifier = claimed.client_identifier,
        .user = claimed.user,
        .text = text,
    });
}

/// The last outputs left no room for the crowd.
var crowd_missed = false;

/// Fills the output table; true when more waits.
pub fn collectOutputs() bool {
    const owed = crowd_missed;
    crowd_missed = false;
    if (owed) serveCrowd();
    while (prompt.first) |connection| {
        if (offerFirst(&prompt, connection)) continue;
        crowd_missed = !owed;
        return true;
    }
    if (!owed) serveCrowd();
    return crowd.first != null;
}

/// Each output is a system call of the host, which hears of new input only when all are done: so many are
/// served that nobody else waits for long, and that what the crowd was given does not pile up.
fn serveCrowd() void {
    var left = @max(limits.crowd_outputs, given_to_crowd / limits.crowd_messages_each);
    given_to_crowd = 0;
    while (crowd.first) |connection| {
        if (left == 0) return;
        left -|= 1 + connection.outbox.bytes / limits.crowd_output_bytes;
        if (!offerFirst(&crowd, connection)) return;
    }
}

/// False: the table is full.
inline fn offerFirst(comptime queue: *Dirty, connection: *Connection) bool {
    if (limits.output_records - abi.output_count < limits.segments_per_connection + 1) return false;
    connection.dirty = .none;
    queue.first = connection.next_dirty;
    if (queue.first) |following| following.previous_dirty = null else queue.last = null;
    offer(connection);
    return true;
}

fn offer(connection: *Connection) void {
    var flags: u16 = 0;
    if (connection.pause_due) {
        flags |= if (connection.paused) abi.flag_pause else abi.flag_resume;
        connection.pause_due = false;
    }
    if (connection.flags.hold_due) {
        if (connection.stall != null) flags |= abi.flag_hold;
        connection.flags.hold_due = false;
    }
    if (connection.outbox.blocked and !connection.abort_due) {
        if (flags != 0) abi.output(connection.id, flags, 0, 0);
        return;
    }
    if (connection.abort_due) {
        abi.output(connection.id, flags | abi.flag_abort, 0, 0);
        connection.abort_due = false;
        connection.close_due = false;
        connection.outbox.deinit();
        return;
    }
    connection.outbox_rest = false;
    var chunk = connection.outbox.head;
    var count: u32 = 0;
    while (chunk) |piece| : (chunk = piece.next) {
        if (count == limits.segments_per_connection) {
            connection.outbox_rest = true;
            break;
        }
        const last = piece.next == null;
        const extra: u16 = if (last and connection.close_due) abi.flag_close else 0;
        abi.output(connection.id, flags | extra, @intFromPtr(piece.data()) + piece.start, piece.end - piece.start);
        flags = 0;
        count += 1;
    }
    if (count == 0 and (flags != 0 or connection.close_due))
        abi.output(connection.id, flags | if (connection.close_due) abi.flag_close else 0, 0, 0);
}
