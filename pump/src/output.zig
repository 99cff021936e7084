//! Sends what a step produced and tells the core in its own records what became of it.

const std = @import("std");
const sys = @import("sys.zig");
const wasm = @import("wasm.zig");
const closing = @import("closing.zig");
const Connection = @import("connection.zig").Connection;
const loop = @import("loop.zig");
const Pump = loop.Pump;
const Output = wasm.Output;

/// The kernel's limit (UIO_MAXIOV).
pub const VECTORS_MAX = 1024;

pub fn drain(pump: *Pump, count: u32) loop.Error!void {
    var records = try pump.core.outputs(count);
    while (records.len != 0) {
        var together: usize = 1;
        while (together < records.len and records[together].connection == records[0].connection) together += 1;
        try deliver(pump, records[0..together]);
        records = records[together..];
    }
}

/// All consecutive records of one connection.
fn deliver(pump: *Pump, records: []Output) loop.Error!void {
    const number = records[0].connection;
    if (number >= pump.connections.items.len) return pump.core.broke("an output names a connection that never was");
    const connection = &pump.connections.items[number];
    if (connection.state == .free) return pump.core.broke("an output names a connection that is gone");
    if (connection.state != .open) return settle(records, 0, Output.FAILED);

    var flags: u16 = 0;
    for (records) |record| {
        flags |= record.flags;
        if (record.flags & Output.PAUSE != 0) connection.paused = true;
        if (record.flags & Output.HOLD != 0) connection.held = true;
        if (record.flags & Output.RESUME != 0) {
            connection.paused = false;
            connection.held = false;
        }
    }
    if (connection.closed_held and !connection.held) try closing.announceHeld(pump, number);
    if (flags & Output.RESUME != 0 and !connection.paused and (connection.readable or connection.tls_pending))
        try pump.markReady(number);

    const whole = try totalBytes(pump, records);
    const sent = if (connection.blocked) 0 else transmit(pump, connection, records) catch |err| switch (err) {
        error.Broken => {
            settle(records, 0, Output.FAILED);
            return closing.fail(pump, number);
        },
        else => |other| return other,
    };
    if (sent != 0) {
        connection.last_activity_ms = pump.now_ms;
        pump.counters.sent_bytes += sent;
        if (connection.stretched == .yes) try closing.noteStretched(pump, number);
    }
    const short = connection.blocked or sent < whole;
    settle(records, sent, if (short) Output.BLOCKED else 0);
    if (flags & Output.ABORT != 0) {
        try closing.announce(pump, number, .confirmed);
        closing.closeNow(pump, number);
    } else if (short) {
        if (!connection.blocked) pump.counters.sends_blocked += 1;
        connection.blocked = true;
        if (flags & Output.CLOSE != 0) closing.giveTime(pump, connection);
    } else if (flags & Output.CLOSE != 0) {
        connection.state = .closing;
        closing.giveTime(pump, connection);
        try closing.flushAndEnd(pump, number);
    }
}

fn totalBytes(pump: *Pump, records: []const Output) wasm.Error!u64 {
    var whole: u64 = 0;
    for (records) |record| {
        _ = try pump.core.slice(record.address, record.length);
        whole += record.length;
    }
    return whole;
}

/// Spreads what was sent over the records, in order; those that got less carry the mark.
fn settle(records: []Output, sent: u64, mark: u16) void {
    var rest = sent;
    var behind = mark == Output.FAILED;
    for (records) |*record| {
        const part: u32 = @intCast(@min(record.length, rest));
        // A record without bytes after the last one sent (a mere CLOSE) waits with the bytes before it.
        if (part < record.length or (mark != 0 and part == rest and record.length == 0)) behind = true;
        rest -= part;
        record.length = part;
        if (behind) record.flags |= mark;
    }
}

/// Sends as much as the socket takes, with one system call for up to 1,024 pieces.
fn transmit(pump: *Pump, connection: *Connection, records: []const Output) (error{Broken} || loop.Error)!u64 {
    var sent: u64 = 0;
    var rest = records;
    while (rest.len != 0) {
        var count: usize = 0;
        var bytes: u64 = 0;
        while (rest.len != 0) : (rest = rest[1..]) {
            if (rest[0].length == 0) continue;
            const piece = try pump.core.slice(rest[0].address, rest[0].length);
            const last = &pump.vectors[count -| 1];
            if (count != 0 and last.base + last.len == piece.ptr) {
                last.len += piece.len;
            } else {
                if (count == VECTORS_MAX) break;
                pump.vectors[count] = .{ .base = piece.ptr, .len = piece.len };
                count += 1;
            }
            bytes += piece.len;
        }
        if (count == 0) return sent;
        const part = try transmitVectors(pump, connection, pump.vectors[0..count]);
        sent += part;
        if (part < bytes) return sent;
    }
    return sent;
}

fn transmitVectors(pump: *Pump, connection: *Connection, vectors: []const sys.Vector) (error{Broken} || loop.Error)!usize {
    pump.counters.send_calls += 1;
    if (connection.isTls()) return pump.codec.send(connection, vectors);
    const part = if (vectors.len == 1)
        sys.send(connection.fd, vectors[0].base[0..vectors[0].len])
    else
        sys.sendVectors(connection.fd, vectors);
    return part catch |err| switch (err) {
        error.WouldBlock => 0,
        error.Broken => error.Broken,
    };
}

/// The socket has room: what the pump kept goes first, then the core is told.
pub fn resumeSending(pump: *Pump, number: u32) loop.Error!void {
    const connection = &pump.connections.items[number];
    if (connection.backlog != null) {
        pump.codec.flush(connection) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.Broken => return closing.fail(pump, number),
        };
        if (connection.backlog != null) return;
        connection.last_activity_ms = pump.now_ms;
    }
    if (!connection.blocked) return;
    connection.blocked = false;
    if (connection.writable_queued) return;
    try pump.writable.push(pump.allocator, number);
    connection.writable_queued = true;
}
