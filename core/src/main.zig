//! The broker's core: one Wasm module without imports. Compiled with
//!
//!   python -m ziglang build-exe core/src/main.zig -target wasm32-freestanding
//!     -mcpu generic+bulk_memory+sign_ext+nontrapping_fptoint+simd128
//!     -O ReleaseSafe -fno-entry -rdynamic -fstrip -femit-bin=broker.wasm
//!
//! The exports are described in docs/spec/core-abi.md.

const std = @import("std");
const abi = @import("abi.zig");
const acl = @import("acl.zig");
const commands = @import("commands.zig");
const connect = @import("connect.zig");
const connection_room = @import("connection.zig");
const delivery = @import("delivery.zig");
const events = @import("events.zig");
const Fields = @import("fields.zig").Fields;
const hash_room = @import("hash.zig");
const fanout = @import("fanout.zig");
const heap = @import("heap.zig");
const inbound = @import("inbound.zig");
const journal = @import("journal.zig");
const limits = @import("limits.zig");
const matching = @import("matching.zig");
const routing = @import("routing.zig");
const restore_room = @import("restore.zig");
const retained = @import("retained.zig");
const session_room = @import("session.zig");
const stalling = @import("stalling.zig");
const state = @import("state.zig");
const stats = @import("stats.zig");
const subscriptions = @import("subscriptions.zig");
const sys = @import("sys.zig");
const timers = @import("timers.zig");
const work = @import("work.zig");
const walks = @import("walks.zig");
const Connection = connection_room.Connection;

pub const panic = std.debug.FullPanic(stop);

/// Leaves a text for the host, then traps.
fn stop(text: []const u8, _: ?usize) noreturn {
    const count = @min(text.len, limits.panic_bytes);
    @memcpy(abi.panic_text.bytes[0..count], text[0..count]);
    abi.panic_text.length = @intCast(count);
    @trap();
}

const Life = enum { fresh, ready, running, waiting };
var life: Life = .fresh;

export fn layout() u32 {
    return abi.layout();
}

export fn init(entropy: u32) u32 {
    if (life != .fresh) return 4;
    const start = entropy -% @as(u32, @intCast(@intFromPtr(&abi.arena)));
    if (start > limits.arena_bytes - 32) return 1;
    var seed: [32]u8 = abi.arena[start..][0..32].*;
    state.random = std.Random.DefaultCsprng.init(seed);
    std.crypto.secureZero(u8, &seed);
    std.crypto.secureZero(u8, abi.arena[start..][0..32]);
    const random = state.random.random();
    hash_room.start(random);
    session_room.seed = random.int(u64);
    subscriptions.seed(random.int(u64));
    matching.setSeed(random.int(u64));
    retained.seed(random.int(u64));
    heap.budget_bytes = state.settings.memory_budget_bytes;
    life = .ready;
    return 0;
}

export fn step(now_ms: u64, input_count: u32) u32 {
    if (life == .fresh) @panic("step before init");
    if (life == .waiting) @panic("step before commit");
    if (input_count > limits.input_records) @panic("more input records than the table holds");
    if (now_ms > state.now_ms) state.now_ms = now_ms;
    stats.count(.steps, 1);
    events.clear();
    journal.clear();
    if (life == .ready) begin();
    work.beginTurn();
    walks.begin();
    routing.begin();
    takeResults();
    for (abi.inputs[0..input_count]) |*record| {
        work.beginInput();
        take(record);
        settleDoomed();
    }
    if (!stalling.isIdle()) {
        stalling.goOn();
        settleDoomed();
    }
    if (timers.isDue(state.now_ms)) runTimers();
    if (worksOn()) goOn();
    journal.begun = true;
    abi.output_count = 0;
    if (journal.region.items.len != 0) {
        journal.sequence += 1;
        life = .waiting;
        publishResult();
        return 1;
    }
    release();
    return 0;
}

/// Whether there is work of earlier packets, beside the input that waits.
inline fn worksOn() bool {
    return walks.wantMore() or routing.anyLeft() or !fanout.isIdle() or session_room.anyEnded();
}

noinline fn goOn() void {
    routing.settleLeft();
    walks.goOn();
    fanout.goOn();
    work.beginShare(limits.share_units, limits.turn_units);
    _ = session_room.clearEnded();
    settleDoomed();
}

export fn commit(sequence: u64) u32 {
    if (life != .waiting or sequence != journal.sequence) return 2;
    life = .running;
    release();
    return 0;
}

export fn restore(length: u32, last: u32) u32 {
    if (life != .ready) return @backingInt(restore_room.Outcome.not_now);
    if (length > limits.arena_bytes) return @backingInt(restore_room.Outcome.malformed);
    return @backingInt(restore_room.feed(abi.arena[0..length], last != 0));
}

export fn snapshot(restart: u32) u32 {
    if (life == .waiting) @panic("snapshot before commit");
    _ = journal.snapshotPiece(restart != 0);
    abi.result.journal_address = @intFromPtr(journal.region.items.ptr);
    abi.result.journal_bytes = journal.region.items.len;
    return abi.result.journal_bytes;
}

fn begin() void {
    state.started_ms = state.now_ms;
    life = .running;
    restore_room.settle();
    sys.schedule();
}

inline fn take(record: *const abi.Input) void {
    switch (record.kind) {
        abi.kind_open => opened(record.connection, bytesOf(record)),
        abi.kind_data => if (connection_room.get(record.connection)) |connection| inbound.received(connection, bytesOf(record)),
        abi.kind_closed => closed(record),
        abi.kind_writable => if (connection_room.get(record.connection)) |connection| {
            connection.outbox.blocked = false;
            connection_room.markLater(connection);
        },
        abi.kind_command => commands.run(bytesOf(record)),
        else => @panic("an input record of an unknown kind"),
    }
}

fn bytesOf(record: *const abi.Input) []u8 {
    const start = record.address -% @as(u32, @intCast(@intFromPtr(&abi.arena)));
    if (record.length == 0) return abi.arena[0..0];
    if (start > limits.arena_bytes or record.length > limits.arena_bytes - start) @panic("an input record points outside the arena");
    return abi.arena[start..][0..record.length];
}

fn opened(id: u32, info: []const u8) void {
    if (connection_room.get(id) != null) @panic("a connection number was used twice");
    const opening = readOpening(info) catch @panic("the open information is malformed");
    const connection = connection_room.open(id, opening) catch {
        // No memory even for a refusal: the host is told to close.
        return refused.append(id) catch @panic("no memory to refuse a connection");
    };
    timers.set(&connection.timer, state.now_ms + state.settings.connect_timeout_ms) catch return connection_room.abort(connection, .server_busy, "no memory left");
    if (state.draining) connection_room.finish(connection, .server_shutting_down, "the server is shutting down");
}

/// The open information, to the byte: what a host of another version says must not be misread.
fn readOpening(info: []const u8) error{Malformed}!connection_room.Opening {
    var fields: Fields = .{ .bytes = info };
    const transport = try fields.number(u8);
    const flags = try fields.number(u8);
    if (transport > 1 or flags > 15) return error.Malformed;
    const identity = try fields.string(u16);
    var attestation: acl.Attestation = .{};
    if (flags & 4 != 0) {
        attestation.rank = try fields.number(u8);
        if (attestation.rank < acl.rank_lowest or attestation.rank > acl.rank_highest) return error.Malformed;
        attestation.module = (try fields.take(acl.digest_bytes))[0..acl.digest_bytes].*;
    }
    try fields.end();
    return .{ .web = transport == 1, .anonymous_allowed = flags & 1 != 0, .identity = identity, .attestation = attestation, .name_proven = flags & 8 != 0 };
}

/// Connections that could not even be entered; the host closes them.
var refused: heap.List(u32) = .{};

fn closed(record: *const abi.Input) void {
    const connection = connection_room.get(record.connection) orelse return;
    connection_room.report(connection, if (record.flags == 2) .keep_alive_timeout else .unspecified, 2, switch (record.flags) {
        0 => "the peer closed the connection",
        1 => "the connection failed",
        2 => "the host's deadline passed",
        else => "closed",
    });
    settleDoomed();
    connect.detach(connection);
    connection_room.free(connection);
    if (state.draining and stats.get(.connections_open) == 0) reportDrained();
}

fn reportDrained() void {
    if (state.drained_reported) return;
    state.drained_reported = true;
    events.drained();
}

/// Sessions part from connections that the broker ends; a will may end further ones.
inline fn settleDoomed() void {
    if (connection_room.first_doomed != null or state.draining) settle();
}

noinline fn settle() void {
    while (connection_room.first_doomed) |connection| {
        connection_room.first_doomed = connection.next_doomed;
        connection.doomed = false;
        connect.detach(connection);
    }
    if (state.draining and stats.get(.connections_open) == 0) reportDrained();
}

fn runTimers() void {
    work.beginShare(limits.share_units, limits.share_units);
    while (!work.over()) {
        const timer = timers.due(state.now_ms) orelse return;
        work.spend(work.node_units);
        switch (timer.kind) {
            .connection => connectionTimer(@fieldParentPtr("timer", timer)),
            .session => connect.sessionExpired(@fieldParentPtr("expiry_timer", timer)),
            .will => connect.willDue(@fieldParentPtr("will_timer", timer)),
            .sys => sys.fired(),
        }
        settleDoomed();
    }
}

fn connectionTimer(connection: *Connection) void {
    switch (connection.phase) {
        .active => {
            const at = connection.last_packet_ms + connection.keep_alive_ms;
            if (connection.stall != null) {
                connection.last_packet_ms = state.now_ms; // what it has sent was not looked at yet
                timers.set(&connection.timer, state.now_ms + connection.keep_alive_ms) catch connection_room.abort(connection, .server_busy, "no memory left");
                return;
            }
            if (state.now_ms >= at) return connection_room.close(connection, .keep_alive_timeout, "nothing came for one and a half times the keep alive"); // [MQTT-3.1.2-22]
            timers.set(&connection.timer, at) catch connection_room.abort(connection, .server_busy, "no memory left");
        },
        .closing => if (connection.outbox.blocked) {
            connection.abort_due = true;
            connection_room.markDirty(connection);
        },
        .verifying, .authenticating => connect.refuse(connection, .not_authorized, "authentication took too long"),
        .upgrading, .connecting => connection_room.finish(connection, .protocol_error, inbound.otherProtocol(connection) orelse "no CONNECT came in time"), // section 4.13
    }
}

/// What the host did with the last outputs.
fn takeResults() void {
    for (abi.outputs[0..abi.output_count]) |*record| {
        const connection = connection_room.get(record.connection) orelse continue;
        if (record.length > connection.outbox.bytes) @panic("the host sent more than it was given");
        if (record.length != 0) {
            connection.outbox.consume(record.length);
            stats.count(.bytes_sent, record.length);
        }
        if (record.flags & (abi.flag_blocked | abi.flag_failed) != 0) {
            connection.outbox.blocked = true;
        } else if (connection.outbox.bytes != 0) connection_room.markLater(connection);
        if (record.flags & abi.flag_blocked != 0 and connection.phase == .closing) closingDeadline(connection);
        afterSending(connection);
    }
    abi.output_count = 0;
}

/// A peer that does not take its last bytes does not keep its place for ever.
fn closingDeadline(connection: *Connection) void {
    if (connection.timer.isSet()) return;
    timers.set(&connection.timer, state.now_ms + limits.closing_ms) catch {
        connection.abort_due = true;
        connection_room.markDirty(connection);
    };
}

fn afterSending(connection: *Connection) void {
    if (connection.paused and connection.phase == .active and connection.outbox.bytes <= limits.resume_bytes) connection_room.wantPause(connection, false);
    if (connection.backlog and connection.outbox.bytes < limits.outbox_soft_bytes) {
        connection.backlog = false;
        if (connection.session) |session| delivery.pump(session);
    }
}

/// Outputs become visible: nothing durable is outstanding.
fn release() void {
    var more = false;
    for (refused.items) |id| {
        if (abi.output_count == limits.output_records) break;
        abi.output(id, abi.flag_abort, 0, 0);
    }
    refused.clear();
    if (connection_room.collectOutputs()) more = true;
    for (abi.outputs[0..abi.output_count]) |*record| {
        const connection = connection_room.get(record.connection) orelse continue;
        if (connection.backlog or connection.paused or connection.outbox_rest) more = true;
    }
    if (worksOn() or !stalling.isIdle()) more = true;
    publishResult();
    abi.result.flags = if (more) abi.result_more else 0;
}

fn publishResult() void {
    stats.put(.heap_bytes, heap.used_bytes);
    stats.put(.heap_bytes_maximum, heap.used_bytes_maximum);
    abi.result = .{
        .journal_sequence = journal.sequence,
        .journal_address = @intFromPtr(journal.region.items.ptr),
        .journal_bytes = if (life == .waiting) journal.region.items.len else 0,
        .output_count = abi.output_count,
        .flags = 0,
        .next_deadline_ms = timers.next() orelse std.math.maxInt(u64),
        .events_address = @intFromPtr(events.region.items.ptr),
        .events_bytes = events.region.items.len,
        .heap_bytes = heap.used_bytes,
    };
}
