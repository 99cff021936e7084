//! How connections end: orderly, at once, late, and all together.

const std = @import("std");
const sys = @import("sys.zig");
const connection_zig = @import("connection.zig");
const Connection = connection_zig.Connection;
const Reason = connection_zig.Reason;
const loop = @import("loop.zig");
const Pump = loop.Pump;

/// After our side is shut, the peer gets this long, and may send this much, before the socket closes.
const LINGER_MS = 2000;
const LINGER_MAX_BYTES = 1 << 20;
/// TLS memory that is not needed goes back after this much quiet, or when this many connections
/// hold on to some: freed in the middle of the heap it would stay resident, so it must stay rare.
const RELAX_AFTER_MS = 1000;
const STRETCHED_MAX = 32;
const CLOSING_SWEEP_MS = 250;
const IDLE_SWEEP_MIN_MS = 20;
const IDLE_SWEEP_MAX_MS = 1000;

const NEVER: u64 = std.math.maxInt(u64);

/// The core gets exactly one CLOSED; the first reason stands.
pub fn announce(pump: *Pump, number: u32, reason: Reason) loop.Error!void {
    const connection = &pump.connections.items[number];
    if (connection.closed_held) {
        connection.closed_reason = reason;
        return announceHeld(pump, number);
    }
    if (connection.closed_queued) return;
    try pump.closed.push(pump.allocator, number);
    connection.closed_queued = true;
    connection.closed_reason = reason;
}

/// The peer's end, which was held back, or what came instead.
pub fn announceHeld(pump: *Pump, number: u32) loop.Error!void {
    try pump.closed.push(pump.allocator, number);
    pump.connections.items[number].closed_held = false;
}

pub fn fail(pump: *Pump, number: u32) loop.Error!void {
    try announce(pump, number, .failure);
    closeNow(pump, number);
}

/// CLOSED has been put into the coming step.
pub fn afterDelivery(pump: *Pump, number: u32) loop.Error!void {
    const connection = &pump.connections.items[number];
    // The peer has ended and the core has had its chance to answer.
    if (connection.state == .open) {
        connection.state = .closing;
        giveTime(pump, connection);
        try flushAndEnd(pump, number);
    }
    connection.closed_delivered = true;
    if (connection.fd < 0) try pump.retiring.append(pump.allocator, number);
}

/// Frees the number. Only after the step that was told CLOSED.
pub fn retire(pump: *Pump, number: u32) void {
    pump.connections.items[number].state = .free;
    pump.inbox.release(number);
}

pub fn closeNow(pump: *Pump, number: u32) void {
    const connection = &pump.connections.items[number];
    if (connection.isTls()) pump.codec.free(connection);
    sys.close(connection.fd);
    connection.fd = -1;
    connection.blocked = false;
    pump.counters.connections_open -= 1;
    connection.state = .closed;
    if (connection.closed_delivered) retire(pump, number);
}

/// For a connection in `closing`: sends what the pump still holds, then shuts our direction.
pub fn flushAndEnd(pump: *Pump, number: u32) loop.Error!void {
    const connection = &pump.connections.items[number];
    if (connection.isTls()) {
        pump.codec.flush(connection) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.Broken => return fail(pump, number),
        };
        if (connection.backlog != null) return;
    }
    try end(pump, number);
}

fn end(pump: *Pump, number: u32) loop.Error!void {
    const connection = &pump.connections.items[number];
    try announce(pump, number, .confirmed);
    if (connection.isTls()) {
        pump.codec.sayGoodbye(connection) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.Broken => return closeNow(pump, number),
        };
        pump.codec.free(connection);
    }
    if (!sys.endSending(connection.fd)) return closeNow(pump, number);
    connection.state = .lingering;
    connection.deadline_ms = pump.now_ms + LINGER_MS;
    wantSweep(pump, CLOSING_SWEEP_MS);
    discard(pump, number);
}

/// Reads and drops what the peer of a lingering connection sends, until it ends too.
pub fn discard(pump: *Pump, number: u32) void {
    const connection = &pump.connections.items[number];
    while (connection.discarded_bytes < LINGER_MAX_BYTES) {
        const count = sys.receive(connection.fd, &pump.scratch) catch |err| switch (err) {
            error.WouldBlock => return,
            error.Broken => break,
        };
        if (count == 0) break;
        connection.discarded_bytes += @intCast(count);
    }
    closeNow(pump, number);
}

/// A connection that is to be closed has this long to take its last bytes.
pub fn giveTime(pump: *Pump, connection: *Connection) void {
    if (connection.deadline_ms != 0) return;
    connection.deadline_ms = pump.now_ms + pump.setup.drain_timeout_ms;
    wantSweep(pump, CLOSING_SWEEP_MS);
}

pub fn wantSweep(pump: *Pump, in_ms: u64) void {
    pump.sweep_at_ms = @min(pump.sweep_at_ms, pump.now_ms + in_ms);
}

pub fn wantIdleSweep(pump: *Pump) void {
    const idle_ms = pump.setup.idle_timeout_ms;
    if (idle_ms != 0) wantSweep(pump, std.math.clamp(idle_ms / 4, IDLE_SWEEP_MIN_MS, IDLE_SWEEP_MAX_MS));
}

/// Looks at every connection: deadlines and idle TLS memory. Asked for only while there is a cause.
pub fn sweep(pump: *Pump) loop.Error!void {
    pump.sweep_at_ms = NEVER;
    for (0..pump.connections.items.len) |index| {
        const number: u32 = @intCast(index);
        const connection = &pump.connections.items[number];
        if (connection.fd < 0) continue;
        if (connection.deadline_ms != 0 and pump.now_ms >= connection.deadline_ms) {
            if (connection.state != .lingering) pump.counters.deadlines_missed += 1;
            try announce(pump, number, .deadline);
            closeNow(pump, number);
            continue;
        }
        if (connection.deadline_ms != 0) wantSweep(pump, CLOSING_SWEEP_MS);
        if (connection.state == .open) try sweepOpen(pump, number);
    }
}

fn sweepOpen(pump: *Pump, number: u32) loop.Error!void {
    const connection = &pump.connections.items[number];
    const quiet_ms = pump.now_ms - connection.last_activity_ms;
    const idle_ms = pump.setup.idle_timeout_ms;
    if (idle_ms != 0 and quiet_ms >= idle_ms) {
        pump.counters.deadlines_missed += 1;
        try announce(pump, number, .deadline);
        return end(pump, number);
    }
    wantIdleSweep(pump);
    if (connection.stretched == .no) return;
    if (quiet_ms < RELAX_AFTER_MS or !relax(pump, connection)) wantSweep(pump, RELAX_AFTER_MS);
}

pub const Stretched = struct { number: u32, generation: u32 };

/// A TLS connection's memory BIOs have grown. Those of the connection that grew the longest ago are
/// renewed when there are too many; the busiest few keep theirs and pay nothing.
pub fn noteStretched(pump: *Pump, number: u32) loop.Error!void {
    const connection = &pump.connections.items[number];
    connection.stretched = .noted;
    try pump.stretched.push(pump.allocator, .{ .number = number, .generation = connection.generation });
    wantSweep(pump, RELAX_AFTER_MS);
    if (pump.stretched.len <= STRETCHED_MAX) return;
    const oldest = pump.stretched.pop().?;
    const other = &pump.connections.items[oldest.number];
    if (other.generation == oldest.generation and other.stretched == .noted) _ = relax(pump, other);
}

fn relax(pump: *Pump, connection: *Connection) bool {
    if (!pump.codec.relax(connection)) return false;
    pump.counters.tls_buffers_renewed += 1;
    return true;
}

/// Connections that were handed in but never reached the core.
pub fn dropWaiting(pump: *Pump) void {
    while (pump.inbox.peek()) |next| {
        if (next.entry.fd >= 0) {
            pump.codec.freeSession(next.entry.session);
            sys.close(next.entry.fd);
        }
        pump.inbox.advance(next.entry);
    }
}

pub fn anyUnsent(pump: *const Pump) bool {
    for (pump.connections.items) |connection| {
        const alive = connection.state == .open or connection.state == .closing;
        if (alive and (connection.blocked or connection.backlog != null)) return true;
    }
    return false;
}

/// Ends every open connection in an orderly way; what is still stuck is cut off.
pub fn endAll(pump: *Pump) loop.Error!void {
    for (0..pump.connections.items.len) |index| {
        const number: u32 = @intCast(index);
        const connection = &pump.connections.items[number];
        switch (connection.state) {
            .open => if (connection.blocked or connection.backlog != null) {
                try announce(pump, number, .deadline);
                closeNow(pump, number);
            } else try end(pump, number),
            .closing => {
                try announce(pump, number, .deadline);
                closeNow(pump, number);
            },
            .free, .lingering, .closed => {},
        }
    }
}

pub fn closeAll(pump: *Pump) loop.Error!void {
    for (0..pump.connections.items.len) |index| {
        const number: u32 = @intCast(index);
        if (pump.connections.items[number].fd < 0) continue;
        try announce(pump, number, .deadline);
        closeNow(pump, number);
    }
}
