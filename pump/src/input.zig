//! Fills the input table of the next step: what other threads handed in, what was closed, who can
//! take bytes again, and what has been received.

const std = @import("std");
const sys = @import("sys.zig");
const wasm = @import("wasm.zig");
const closing = @import("closing.zig");
const connection_zig = @import("connection.zig");
const Entry = @import("inbox.zig").Entry;
const Connection = connection_zig.Connection;
const Reason = connection_zig.Reason;
const loop = @import("loop.zig");
const Pump = loop.Pump;

/// One connection may bring this much a turn; the others are not kept waiting for long.
const RECEIVE_MAX_BYTES = 64 << 10;
/// With less room than this in the arena, receiving waits for the next turn.
const RECEIVE_MIN_BYTES = 4096;

/// The input table and the arena while they are being filled.
pub const Batch = struct {
    records: []wasm.Input,
    arena: []u8,
    arena_address: u32,
    count: u32 = 0,
    used: u32 = 0,

    pub fn init(core: *wasm.Core) Batch {
        return .{ .records = core.inputs(), .arena = core.arena(), .arena_address = core.layout.arena_address };
    }

    fn isFull(self: *const Batch) bool {
        return self.count == self.records.len;
    }

    fn room(self: *const Batch) []u8 {
        return self.arena[self.used..];
    }

    /// Bytes that already lie at the start of `room`.
    fn received(self: *Batch, number: u32, length: usize) void {
        self.put(.data, number, 0, @intCast(length));
    }

    fn blob(self: *Batch, kind: wasm.InputKind, number: u32, bytes: []const u8) void {
        @memcpy(self.room()[0..bytes.len], bytes);
        self.put(kind, number, 0, @intCast(bytes.len));
    }

    fn put(self: *Batch, kind: wasm.InputKind, number: u32, flags: u16, length: u32) void {
        self.records[self.count] = .{
            .connection = number,
            .kind = @backingInt(kind),
            .flags = flags,
            .address = self.arena_address + self.used,
            .length = length,
        };
        self.count += 1;
        self.used += length;
    }
};

pub fn fill(pump: *Pump, batch: *Batch) loop.Error!void {
    try deliverInbox(pump, batch);
    try deliverClosed(pump, batch);
    deliverWritable(pump, batch);
    if (pump.phase == .running) try receive(pump, batch);
}

/// At most half of the table and of the arena (or one entry), so that sockets are never shut out.
fn deliverInbox(pump: *Pump, batch: *Batch) loop.Error!void {
    while (pump.inbox.peek()) |next| {
        const bytes = next.payload.len;
        if (batch.count != 0 and (batch.count >= batch.records.len / 2 or
            batch.used + bytes > batch.arena.len / 2)) return;
        if (next.entry.fd >= 0) {
            try open(pump, next.entry);
            batch.blob(.open, next.entry.connection, next.payload);
        } else {
            batch.blob(.command, 0, next.payload);
        }
        pump.inbox.advance(next.entry);
    }
}

fn open(pump: *Pump, entry: Entry) loop.Error!void {
    const number = entry.connection;
    while (pump.connections.items.len <= number) try pump.connections.append(pump.allocator, .{});
    const connection = &pump.connections.items[number];
    std.debug.assert(connection.state == .free);
    // A place in the queue of ready connections may be left from the number's earlier user.
    connection.* = .{
        .fd = entry.fd,
        .generation = connection.generation +% 1,
        .ready_queued = connection.ready_queued,
        .session = entry.session,
        .last_activity_ms = pump.now_ms,
        .state = .open,
        // The first bytes have often arrived already, in the socket or inside the TLS session.
        .readable = true,
        .tls_pending = entry.session.ssl != null,
    };
    pump.counters.connections_added += 1;
    pump.counters.connections_open += 1;
    sys.disableNagle(entry.fd);
    const tag = @as(u64, connection.generation) << 32 | number;
    sys.watchSocket(pump.poller, entry.fd, tag) catch return closing.fail(pump, number);
    try pump.markReady(number);
    closing.wantIdleSweep(pump);
}

fn deliverClosed(pump: *Pump, batch: *Batch) loop.Error!void {
    while (!batch.isFull()) {
        const number = pump.closed.pop() orelse return;
        const connection = &pump.connections.items[number];
        if (connection.held and connection.closed_reason == .peer and connection.state == .open) {
            connection.closed_held = true;
            continue;
        }
        batch.put(.closed, number, @backingInt(pump.connections.items[number].closed_reason), 0);
        try closing.afterDelivery(pump, number);
    }
}

fn deliverWritable(pump: *Pump, batch: *Batch) void {
    while (!batch.isFull()) {
        const number = pump.writable.pop() orelse return;
        const connection = &pump.connections.items[number];
        if (!connection.writable_queued) continue;
        connection.writable_queued = false;
        if (connection.state == .open and !connection.closed_queued) batch.put(.writable, number, 0, 0);
    }
}

/// One pass over the connections that may have bytes. Those that have more go to the end of the
/// queue, those for which there was no room keep their place: nobody starves.
fn receive(pump: *Pump, batch: *Batch) loop.Error!void {
    var waiting = pump.ready.len;
    while (waiting != 0) : (waiting -= 1) {
        if (batch.isFull()) return;
        if (batch.used != 0 and batch.room().len < RECEIVE_MIN_BYTES) return;
        const number = pump.ready.pop() orelse return;
        const connection = &pump.connections.items[number];
        connection.ready_queued = false;
        if (connection.state != .open or connection.closed_queued or connection.paused) continue;
        if (connection.isTls()) try receiveTls(pump, batch, number) else try receivePlain(pump, batch, number);
    }
}

fn receivePlain(pump: *Pump, batch: *Batch, number: u32) loop.Error!void {
    const connection = &pump.connections.items[number];
    const room = batch.room();
    const wanted = @min(room.len, RECEIVE_MAX_BYTES);
    pump.counters.receive_calls += 1;
    const count = sys.receive(connection.fd, room[0..wanted]) catch |err| {
        connection.readable = false;
        if (err == error.Broken) try closing.fail(pump, number);
        return;
    };
    if (count == 0) return peerEnded(pump, number);
    batch.received(number, count);
    pump.counters.received_bytes += count;
    connection.last_activity_ms = pump.now_ms;
    // A short count means empty (epoll(7)); an end that the kernel has reported is still to be read.
    connection.readable = count == wanted or connection.hung_up;
    if (connection.readable) try pump.markReady(number);
}

fn receiveTls(pump: *Pump, batch: *Batch, number: u32) loop.Error!void {
    const connection = &pump.connections.items[number];
    const room = batch.room();
    pump.counters.receive_calls += 1;
    const received = pump.codec.receive(connection, room[0..@min(room.len, RECEIVE_MAX_BYTES)]) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        error.Broken => return closing.fail(pump, number),
    };
    if (received.bytes != 0) {
        batch.received(number, received.bytes);
        pump.counters.received_bytes += received.bytes;
        connection.last_activity_ms = pump.now_ms;
    }
    if (connection.stretched == .yes) try closing.noteStretched(pump, number);
    if (received.broken) return closing.fail(pump, number);
    if (received.ended) return peerEnded(pump, number);
    if (received.more) try pump.markReady(number);
}

/// The peer sends no more. The core learns it in the next step, so that the answers to its last
/// bytes, which may be in this one, still go out.
fn peerEnded(pump: *Pump, number: u32) loop.Error!void {
    const connection = &pump.connections.items[number];
    connection.readable = false;
    connection.tls_pending = false;
    connection.peer_ended = true;
    try closing.announce(pump, number, Reason.peer);
}
