//! How much one turn may do. A unit is about what it costs to give a small message to one more
//! receiver, some 50 ns.
//! Whoever works on what a client can make large counts units and stops when its share is used up;
//! the rest is done in later turns (docs/decisions/0013-what-one-turn-may-cost.md).

const limits = @import("limits.zig");

/// A node of a large tree, looked at, made or removed, is not in the processor's caches.
pub const node_units = 4;

/// A message that is put into the queue and into the journal for one more receiver.
pub const kept_units = 16;

pub var spent: u64 = 0;
/// What works now may go on until `spent` is here.
/// Until the first turn without a bound: reading a journal back is nobody's turn.
var end: u64 = @import("std").math.maxInt(u64);
var turn_end: u64 = 0;

pub fn beginTurn() void {
    turn_end = spent +% limits.turn_units;
    end = turn_end;
}

/// What follows may use what is left of the turn, but `least` in any case, so that whoever asks for
/// little is served however much the others ask for.
pub inline fn beginShare(least: u64, most: u64) void {
    end = @max(spent +% least, @min(turn_end, spent +% most));
}

/// The next connection's input may use what is left of the turn, and what each gets in any case.
pub inline fn beginInput() void {
    end = @max(spent +% limits.connection_units_least, turn_end);
}

/// 2^64 units are years of 50 ns: it never wraps, and a check would be made for every packet.
pub inline fn spend(units: usize) void {
    spent +%= units;
}

/// Copying costs too: so many bytes a unit.
pub const unit_bytes = 512;

/// What follows has to be done as a whole; `bind` gets what this returns.
pub fn unbind() u64 {
    defer end = @import("std").math.maxInt(u64);
    return end;
}

pub fn bind(bound: u64) void {
    end = bound;
}

pub fn left() u64 {
    return end -| spent;
}

pub inline fn over() bool {
    return spent >= end;
}

pub fn turnIsOver() bool {
    return spent >= turn_end;
}
