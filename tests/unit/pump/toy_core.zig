//! A core of a few lines that keeps the contract of docs/spec/core-abi.md, for the pump's tests.
//! It echoes. A DATA record that begins with one of these bytes does something else:
//!   'C' echo, then CLOSE      'A' ABORT                   'P' PAUSE until command 'R'
//!   'E' event with the rest   'J' journal the rest, echo  'H' u32: send that many bytes
//!   'K' as 'H', then CLOSE
//!   'T' trap                  'D' u32: event in that many milliseconds
//!   'V' name an address outside of memory                 'N' name a connection that never was
//!   'M' echo one byte a record   'G' grow memory by a MiB, then echo
//! Commands: 'R' u32 connection: RESUME. All commands become events (kind 200).
//! OPEN becomes event 100, CLOSED event 101.

const std = @import("std");
const allocator = std.heap.wasm_allocator;

const ARENA_BYTES = 256 << 10;
const INPUTS_MAX = 1024;
const OUTPUTS_MAX = 1024;
const NEVER = std.math.maxInt(u64);
const HIGH_WATER_BYTES = 1 << 20;
const LOW_WATER_BYTES = 256 << 10;
/// The tests look for this in the module to make one with another version.
const LAYOUT_VERSION = 3;

const Input = extern struct { connection: u32, kind: u16, flags: u16, address: u32, length: u32 };
const Output = extern struct { connection: u32, reserved: u16 = 0, flags: u16 = 0, address: u32 = 0, length: u32 = 0 };
const Result = extern struct {
    journal_sequence: u64 = 0,
    journal_address: u32 = 0,
    journal_bytes: u32 = 0,
    output_count: u32 = 0,
    flags: u32 = 0,
    next_deadline_ms: u64 = NEVER,
    events_address: u32 = 0,
    events_bytes: u32 = 0,
    heap_bytes: u64 = 0,
    reserved: [2]u64 = .{ 0, 0 },
};

const Connection = struct {
    open: bool = false,
    bytes: std.ArrayList(u8) = .empty,
    sent: usize = 0,
    /// As offered in the last output table, to find what was taken.
    blocked: bool = false,
    dirty: bool = false,
    close: bool = false,
    abort: bool = false,
    pause: bool = false,
    paused: bool = false,
    resume_reading: bool = false,
    single: bool = false,
};

var input_table: [INPUTS_MAX]Input = undefined;
var output_table: [OUTPUTS_MAX]Output align(8) = undefined;
var arena: [ARENA_BYTES]u8 = undefined;
var result: Result align(8) = .{};
var stats: [4]u64 = .{ 0, 0, 0, 0 };
const byte_values: [256]u8 = values: {
    var table: [256]u8 = undefined;
    for (&table, 0..) |*byte, value| byte.* = value;
    break :values table;
};
var layout_table: [15]u32 = undefined;

var connections: std.ArrayList(Connection) = .empty;
var dirty: std.ArrayList(u32) = .empty;
var events: std.ArrayList(u8) = .empty;
var journal: std.ArrayList(u8) = .empty;
var durable: std.ArrayList(u8) = .empty;
var sequence: u64 = 0;
var deadline_ms: u64 = NEVER;
var breach: u8 = 0;
var offered: u32 = 0;

fn at(pointer: anytype) u32 {
    return @intCast(@intFromPtr(pointer));
}

export fn layout() u32 {
    layout_table = .{
        0x574F5641,        LAYOUT_VERSION, 60, at(&input_table), INPUTS_MAX, 16,         at(&arena), ARENA_BYTES,
        at(&output_table), OUTPUTS_MAX,    16, at(&result),      64,         at(&stats), 4,
    };
    return at(&layout_table);
}

export fn init(entropy: u32) u32 {
    _ = entropy;
    return 0;
}

export fn restore(length: u32, last: u32) u32 {
    _ = length;
    _ = last;
    return 0;
}

var snapshot_offset: usize = 0;

export fn snapshot(restart: u32) u32 {
    if (restart == 1) snapshot_offset = 0;
    const piece = @min(1000, durable.items.len - snapshot_offset);
    result.journal_address = at(durable.items.ptr + snapshot_offset);
    result.journal_bytes = @intCast(piece);
    snapshot_offset += piece;
    return @intCast(piece);
}

export fn commit(number: u64) u32 {
    if (number != sequence) return 2;
    fill();
    return 0;
}

export fn step(now_ms: u64, count: u32) u32 {
    stats[0] += 1;
    takeBack();
    events.clearRetainingCapacity();
    journal.clearRetainingCapacity();
    for (input_table[0..count]) |record| {
        const bytes = @as([*]u8, @ptrFromInt(record.address))[0..record.length];
        handle(record, bytes, now_ms) catch @trap();
    }
    if (now_ms >= deadline_ms) {
        deadline_ms = NEVER;
        emit(102, "deadline") catch @trap();
    }
    result = .{
        .next_deadline_ms = deadline_ms,
        .events_address = at(events.items.ptr),
        .events_bytes = @intCast(events.items.len),
    };
    if (journal.items.len == 0) {
        fill();
        return 0;
    }
    sequence += 1;
    result.journal_sequence = sequence;
    result.journal_address = at(journal.items.ptr);
    result.journal_bytes = @intCast(journal.items.len);
    return 1;
}

fn handle(record: Input, bytes: []u8, now_ms: u64) !void {
    switch (record.kind) {
        1 => {
            while (connections.items.len <= record.connection) try connections.append(allocator, .{});
            const connection = &connections.items[record.connection];
            if (connection.open) @trap();
            connection.* = .{ .open = true, .dirty = connection.dirty };
            stats[1] += 1;
            try emitNumbered(100, record.connection, bytes);
        },
        2 => try data(record.connection, bytes, now_ms),
        3 => {
            const connection = &connections.items[record.connection];
            if (!connection.open) @trap();
            connection.bytes.deinit(allocator);
            connection.* = .{ .dirty = connection.dirty };
            stats[1] -= 1;
            try emitNumbered(101, record.connection, &.{@intCast(record.flags)});
        },
        4 => {
            const connection = &connections.items[record.connection];
            if (!connection.open or !connection.blocked) @trap();
            connection.blocked = false;
            stats[2] += 1;
            try mark(record.connection);
        },
        5 => {
            if (bytes.len == 5 and bytes[0] == 'R') {
                const number = std.mem.readInt(u32, bytes[1..5], .little);
                connections.items[number].paused = false;
                connections.items[number].resume_reading = true;
                try mark(number);
            }
            try emit(200, bytes);
        },
        else => @trap(),
    }
}

fn data(number: u32, bytes: []u8, now_ms: u64) !void {
    const connection = &connections.items[number];
    if (!connection.open or connection.paused) @trap();
    if (connection.close) return;
    stats[3] += bytes.len;
    try mark(number);
    switch (bytes[0]) {
        'C' => connection.close = true,
        'A' => connection.abort = true,
        'P' => {
            connection.pause = true;
            connection.paused = true;
        },
        'E' => return emit(201, bytes[1..]),
        'J' => {
            try journal.appendSlice(allocator, bytes[1..]);
            durable.clearRetainingCapacity();
            try durable.appendSlice(allocator, bytes[1..]);
        },
        'H', 'K' => {
            connection.close = bytes[0] == 'K';
            const wanted = std.mem.readInt(u32, bytes[1..5], .little);
            const start = connection.bytes.items.len;
            try connection.bytes.resize(allocator, start + wanted);
            for (connection.bytes.items[start..], 0..) |*byte, index| byte.* = @truncate(index *% 251 >> 3);
            return;
        },
        'T' => @trap(),
        'D' => {
            deadline_ms = now_ms + std.mem.readInt(u32, bytes[1..5], .little);
            return;
        },
        'V', 'N' => breach = bytes[0],
        'M' => connection.single = true,
        'G' => {
            const grown = @wasmMemoryGrow(0, 16);
            if (grown < 0) @trap();
        },
        else => {},
    }
    try connection.bytes.appendSlice(allocator, bytes);
    // A fast writer is paused by the core, not by the pump.
    if (connection.bytes.items.len - connection.sent > HIGH_WATER_BYTES and !connection.paused) {
        connection.pause = true;
        connection.paused = true;
    }
}

fn mark(number: u32) !void {
    const connection = &connections.items[number];
    if (connection.dirty) return;
    connection.dirty = true;
    try dirty.append(allocator, number);
}

/// Reads from the records what the host did with the last outputs.
fn takeBack() void {
    for (output_table[0..offered]) |record| {
        const connection = &connections.items[record.connection];
        if (!connection.open) continue;
        connection.sent += record.length;
        const failed = record.flags & 0x200 != 0;
        if (record.flags & 0x100 != 0) connection.blocked = true;
        if (connection.sent == connection.bytes.items.len or failed) {
            connection.bytes.clearRetainingCapacity();
            connection.sent = 0;
        } else if (connection.sent > 4 << 20) {
            const rest = connection.bytes.items.len - connection.sent;
            std.mem.copyForwards(u8, connection.bytes.items[0..rest], connection.bytes.items[connection.sent..]);
            connection.bytes.items.len = rest;
            connection.sent = 0;
        }
        if (record.flags & 1 != 0 and record.flags & 0x300 == 0) connection.close = false;
        if (connection.paused and !connection.pause and connection.bytes.items.len - connection.sent < LOW_WATER_BYTES and connection.bytes.capacity > HIGH_WATER_BYTES) {
            connection.paused = false;
            connection.resume_reading = true;
            mark(record.connection) catch @trap();
        }
    }
    offered = 0;
}

fn fill() void {
    var count: u32 = 0;
    var index: usize = 0;
    while (index < dirty.items.len and count < OUTPUTS_MAX) : (index += 1) {
        const number = dirty.items[index];
        const connection = &connections.items[number];
        connection.dirty = false;
        if (!connection.open) continue;
        count = offer(number, connection, count);
        // What these outputs free may allow RESUME, which only a step can say.
        if (connection.paused and !connection.blocked) result.flags |= 1;
        if (connection.dirty) break;
    }
    const rest = dirty.items.len - index;
    std.mem.copyForwards(u32, dirty.items[0..rest], dirty.items[index..]);
    dirty.items.len = rest;
    if (breach == 'V' and count > 0) output_table[0].address = 0xfffffff0;
    if (breach == 'N' and count > 0) output_table[0].connection = 0xffffff;
    if (rest != 0) result.flags |= 1;
    result.output_count = count;
    offered = count;
}

fn offer(number: u32, connection: *Connection, start: u32) u32 {
    var count = start;
    // A blocked connection is offered nothing but its flags: PAUSE must not wait for a slow reader.
    const bytes = if (connection.blocked) &.{} else connection.bytes.items[connection.sent..];
    if (connection.single) {
        var done: usize = 0;
        while (done < bytes.len and count < OUTPUTS_MAX) : (done += 1) {
            // Every second byte comes from elsewhere, so that pieces are not adjacent in memory.
            const address = if (done % 2 == 0) at(bytes.ptr + done) else at(&byte_values[bytes[done]]);
            output_table[count] = .{ .connection = number, .address = address, .length = 1 };
            count += 1;
        }
        if (done < bytes.len) connection.dirty = true;
    } else if (bytes.len != 0) {
        output_table[count] = .{ .connection = number, .address = at(bytes.ptr), .length = @intCast(bytes.len) };
        count += 1;
    }
    if (connection.dirty) return count;
    var flags: u16 = 0;
    if (connection.close and !connection.blocked) flags |= 1;
    if (connection.pause) flags |= 2;
    if (connection.resume_reading) flags |= 4;
    if (connection.abort) flags |= 8;
    connection.pause = false;
    connection.resume_reading = false;
    if (flags == 0) return count;
    if (count == start) {
        output_table[count] = .{ .connection = number };
        count += 1;
    }
    output_table[count - 1].flags = flags;
    return count;
}

fn emitNumbered(kind: u8, number: u32, body: []const u8) !void {
    try header(kind, 4 + body.len);
    try events.appendSlice(allocator, std.mem.asBytes(&number));
    try events.appendSlice(allocator, body);
}

fn emit(kind: u8, body: []const u8) !void {
    try header(kind, body.len);
    try events.appendSlice(allocator, body);
}

fn header(kind: u8, body_bytes: usize) !void {
    const length: u32 = @intCast(8 + body_bytes);
    try events.appendSlice(allocator, std.mem.asBytes(&length));
    try events.appendSlice(allocator, &.{ kind, 0, 0, 0 });
}
