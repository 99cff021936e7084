//! When to publish: closed loop, open loop, and the drain at the end.

const std = @import("std");
const linux = std.os.linux;
const wire = @import("wire.zig");
const Connection = @import("connection.zig").Connection;
const Generator = @import("generator.zig").Generator;
const Group = @import("group.zig").Group;

const stall_ns = 1 * std.time.ns_per_s;
const sweep_ns = 100 * std.time.ns_per_ms;
/// Duplicates of the last messages get this long.
const grace_ns_max = 50 * std.time.ns_per_ms;

/// Publishes for `duration_ns`; counters and histogram begin anew.
pub fn run(self: *Generator, duration_ns: u64) !void {
    beginPhase(self);
    const deadline_ns = self.phase_start_ns + duration_ns;
    const cpu_start_ns = threadCpuNs();
    if (self.config.rate > 0) try runOpen(self, deadline_ns) else try runClosed(self, deadline_ns);
    self.phase.elapsed_ns = self.now_ns - self.phase_start_ns;
    self.phase.cpu_ns = threadCpuNs() - cpu_start_ns;
}

fn beginPhase(self: *Generator) void {
    const before = self.phase;
    self.phase = .{ .established = before.established, .misrouted = before.misrouted, .stalls = before.stalls };
    self.histogram.clear();
    self.now_ns = self.clock();
    self.phase_start_ns = self.now_ns;
    for (self.groups) |*group| group.progress_ns = self.now_ns;
}

fn runClosed(self: *Generator, deadline_ns: u64) !void {
    for (self.groups) |*group| try self.markDirty(group);
    try refill(self);
    const timeout_ms: i32 = if (self.config.spin != 0) 0 else 10;
    var sweep_at_ns = self.now_ns + sweep_ns;
    while (self.now_ns < deadline_ns) {
        _ = try self.turn(timeout_ms);
        try refill(self);
        if (self.now_ns < sweep_at_ns) continue;
        sweep_at_ns = self.now_ns + sweep_ns;
        try forgiveStalled(self);
    }
}

fn refill(self: *Generator) !void {
    for (self.dirty.items) |group| {
        group.is_dirty = false;
        const publisher = group.publisher orelse continue;
        if (!publisher.isBlocked()) {
            const room = group.room(self.config.qos, self.config.window, self.config.backlog);
            for (0..room) |_| try emit(self, group, publisher, self.now_ns);
        }
        if (publisher.out.items.len != 0) try self.flush(publisher);
    }
    self.dirty.clearRetainingCapacity();
}

inline fn emit(self: *Generator, group: *Group, publisher: *Connection, intended_ns: u64) !void {
    const template = group.template;
    const packet = try publisher.out.addManyAsSlice(self.allocator(), template.bytes.len);
    @memcpy(packet, template.bytes);
    if (self.config.qos != 0) {
        std.mem.writeInt(u16, packet[template.identifier_at..][0..2], publisher.takeIdentifier(), .big);
    }
    const stamp: wire.Stamp = .{
        .group = publisher.group,
        .sequence = group.published,
        .intended_ns = intended_ns,
    };
    stamp.write(packet[template.payload_at..]);
    group.published += 1;
    self.phase.published += 1;
}

/// A closed loop would stop for good at the first lost message: what has not come after a second
/// is booked as lost, and the loop goes on.
fn forgiveStalled(self: *Generator) !void {
    for (self.groups) |*group| {
        if (group.published == group.delivered or self.now_ns - group.progress_ns < stall_ns) continue;
        if (self.config.qos > 0 and group.acknowledged != group.published)
            return self.fail("group {d}: {d} messages unacknowledged for a second", .{
                group.publisher.?.group, group.published - group.acknowledged,
            });
        self.phase.stalls += 1;
        for (group.subscribers.items) |subscriber| {
            try subscriber.sequence.forgive(self.allocator(), group.published);
        }
        group.findSlowest();
        group.progress_ns = self.now_ns;
        try self.markDirty(group);
    }
}

/// Message k is due at start + k / rate, whatever became of those before: its latency counts
/// from there, so a broker that stops does not hide the wait of the messages behind it.
fn runOpen(self: *Generator, deadline_ns: u64) !void {
    const interval_ns = @as(f64, std.time.ns_per_s) / self.config.rate;
    var number: u64 = 0;
    while (self.now_ns < deadline_ns) {
        while (true) {
            const offset_ns: u64 = @trunc(@as(f64, @floatFromInt(number)) * interval_ns);
            const due_ns = self.phase_start_ns + offset_ns;
            if (due_ns > self.now_ns) break;
            self.phase.late_ns_max = @max(self.phase.late_ns_max, self.now_ns - due_ns);
            const group = &self.groups[@intCast(number % self.groups.len)];
            if (self.config.qos != 0 and group.published - group.acknowledged >= identifiers_max)
                return self.fail("the broker leaves more than {d} messages unacknowledged", .{identifiers_max});
            try emit(self, group, group.publisher.?, due_ns);
            try self.markDirty(group);
            number += 1;
        }
        if (self.dirty.items.len != 0) self.was_empty = false;
        try flushDirty(self);
        _ = try self.turn(0);
    }
}

/// Packet identifiers are 16 bits; some are left for the search for a free one.
const identifiers_max = 60_000;

fn flushDirty(self: *Generator) !void {
    for (self.dirty.items) |group| {
        group.is_dirty = false;
        const publisher = group.publisher orelse continue;
        if (publisher.out.items.len != 0) try self.flush(publisher);
    }
    self.dirty.clearRetainingCapacity();
}

/// Publishes no more and waits for what is on its way, at most until nothing came for `quiet_ns`.
pub fn drain(self: *Generator, quiet_ns: u64) !void {
    self.now_ns = self.clock();
    var last_ns = self.now_ns;
    while (self.now_ns - last_ns < if (isComplete(self)) @min(quiet_ns, grace_ns_max) else quiet_ns) {
        // What acknowledgements still ask for, such as PUBREL.
        try flushDirty(self);
        if (try self.turn(10) != 0) last_ns = self.now_ns;
    }
}

fn isComplete(self: *const Generator) bool {
    for (self.groups) |*group| {
        if (!group.isComplete(self.config.qos)) return false;
    }
    return true;
}

fn threadCpuNs() u64 {
    var usage: linux.rusage = undefined;
    _ = linux.getrusage(1, &usage); // RUSAGE_THREAD
    const user = @as(u64, @intCast(usage.utime.sec)) * 1_000_000 + @as(u64, @intCast(usage.utime.usec));
    const system = @as(u64, @intCast(usage.stime.sec)) * 1_000_000 + @as(u64, @intCast(usage.stime.usec));
    return (user + system) * 1000;
}
