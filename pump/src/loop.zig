//! The loop: wait, receive into the core's memory, one step, make the journal safe, send.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");
const tls = @import("tls.zig");
const wasm = @import("wasm.zig");
const input = @import("input.zig");
const output = @import("output.zig");
const closing = @import("closing.zig");
const Connection = @import("connection.zig").Connection;
const Inbox = @import("inbox.zig").Inbox;
const journal_room = @import("journal.zig");
const Journal = journal_room.Journal;
const Ring = @import("ring.zig").Ring;
const Allocator = std.mem.Allocator;

const EVENTS_MAX = 512;
/// So often the kernel is asked in one turn while it reports that many.
const WAITS_MAX = 128;
const NEVER: u64 = std.math.maxInt(u64);
const WAKER_TAG: u64 = NEVER;
/// How long a stopping pump waits for peers to take their last bytes before it closes the sockets.
const STOP_LINGER_MS = 1000;

pub const Error = journal_room.Error || error{Unavailable};

pub const Status = enum(i32) { stopped = 0, events = 1, interrupted = 2, broken = 3, storage_failed = 4 };

const Phase = enum {
    running,
    /// Nothing is received any more; what the core still has to say is sent.
    flushing,
    /// Our side of every connection is shut; the peers may still read.
    lingering,
    stopped,
};

/// All of these are u64 and are published under their own names.
pub const Counters = extern struct {
    turns: u64 = 0,
    steps: u64 = 0,
    wasm_ns: u64 = 0,
    connections_added: u64 = 0,
    connections_open: u64 = 0,
    receive_calls: u64 = 0,
    received_bytes: u64 = 0,
    send_calls: u64 = 0,
    sent_bytes: u64 = 0,
    sends_blocked: u64 = 0,
    deadlines_missed: u64 = 0,
    tls_buffers_renewed: u64 = 0,
    journal_bytes: u64 = 0,
    journal_compactions: u64 = 0,
    journal_commits: u64 = 0,
};

/// Filled in by Python (src/avow/broker/pump.py has the same fields in the same order).
pub const Setup = extern struct {
    interface_version: u64,
    core: wasm.Api,
    tls: tls.Library,
    clock_gettime: *const fn (i32, *linux.timespec) callconv(.c) c_int,
    idle_timeout_ms: u64,
    drain_timeout_ms: u64,
    compaction_min_bytes: u64,
    vault: journal_room.Vault,
};

pub const Pump = struct {
    allocator: Allocator,
    setup: Setup,
    core: wasm.Core,
    codec: tls.Codec,
    inbox: Inbox,
    journal: Journal,
    poller: sys.Fd,
    waker: sys.Fd,
    stop_requested: std.atomic.Value(bool) = .init(false),
    phase: Phase = .running,
    broken: bool = false,
    stop_deadline_ms: u64 = NEVER,

    connections: std.ArrayList(Connection) = .empty,
    /// Each connection stands at most once in each of these.
    ready: Ring(u32) = .{},
    closed: Ring(u32) = .{},
    writable: Ring(u32) = .{},
    /// TLS connections whose memory BIOs have grown, the oldest first.
    stretched: Ring(closing.Stretched) = .{},
    /// Told CLOSED in the coming step, free after it.
    retiring: std.ArrayList(u32) = .empty,

    more: bool = false,
    next_deadline_ms: u64 = NEVER,
    sweep_at_ms: u64 = NEVER,
    now_ms: u64 = 0,
    realtime_start_ms: u64 = 0,
    monotonic_start_ns: u64 = 0,

    events_address: u32 = 0,
    events_bytes: u32 = 0,
    counters: Counters = .{},
    /// A copy that other threads may read while the core works.
    core_counters: []u64 = &.{},
    poll_events: [EVENTS_MAX]sys.Event = undefined,
    vectors: [output.VECTORS_MAX]sys.Vector = undefined,
    scratch: [16 << 10]u8 = undefined,

    /// `self.core.message` says why when this fails with CoreBroken.
    pub fn init(self: *Pump, allocator: Allocator, setup: Setup) Error!void {
        self.* = .{
            .allocator = allocator,
            .setup = setup,
            .core = undefined,
            .codec = undefined,
            .inbox = undefined,
            .journal = .init(setup.vault, setup.compaction_min_bytes),
            .poller = -1,
            .waker = -1,
        };
        try self.core.init(setup.core);
        self.inbox = .{ .payload_max_bytes = self.core.layout.arena_bytes };
        try self.codec.init(allocator, setup.tls);
        errdefer self.codec.deinit();
        self.core_counters = try allocator.alloc(u64, @max(1, self.core.layout.stats_count));
        errdefer allocator.free(self.core_counters);
        @memset(self.core_counters, 0);
        self.poller = try sys.newPoller();
        errdefer sys.close(self.poller);
        self.waker = try sys.newWaker();
        errdefer sys.close(self.waker);
        try sys.watchWaker(self.poller, self.waker, WAKER_TAG);
        self.realtime_start_ms = self.clockNs(0) / std.time.ns_per_ms;
        self.monotonic_start_ns = self.clockNs(1);
        self.readClock();
    }

    pub fn deinit(self: *Pump) void {
        for (self.connections.items, 0..) |connection, number| {
            if (connection.fd >= 0) closing.closeNow(self, @intCast(number));
        }
        self.inbox.refuse();
        closing.dropWaiting(self);
        sys.close(self.waker);
        sys.close(self.poller);
        self.codec.deinit();
        self.inbox.deinit(self.allocator);
        self.journal.deinit(self.allocator);
        self.connections.deinit(self.allocator);
        self.ready.deinit(self.allocator);
        self.closed.deinit(self.allocator);
        self.writable.deinit(self.allocator);
        self.stretched.deinit(self.allocator);
        self.retiring.deinit(self.allocator);
        self.allocator.free(self.core_counters);
    }

    /// Works until there is something for Python to do. After `broken` nothing may be asked again
    /// but the journal and the message.
    pub fn run(self: *Pump) Status {
        if (self.broken) return if (self.journal.failure_code != 0) .storage_failed else .broken;
        if (self.phase == .stopped) return .stopped;
        // The error queue belongs to the thread, and Python may have left something in it.
        self.codec.library.clear_errors();
        while (true) {
            const status = self.turn() catch |err| {
                self.breakOff();
                switch (err) {
                    error.CoreBroken => {},
                    error.StorageFailed => return .storage_failed,
                    error.OutOfMemory => self.explain("the pump found no memory"),
                    error.Unavailable => self.explain("the kernel refused to wait for sockets (epoll)"),
                }
                return .broken;
            };
            if (status) |reached| return reached;
        }
    }

    pub fn breakOff(self: *Pump) void {
        self.broken = true;
        self.inbox.refuse();
    }

    fn explain(self: *Pump, comptime text: []const u8) void {
        @memcpy(self.core.message[0..text.len], text);
        self.core.message_bytes = text.len;
    }

    /// Callable from any thread and from a signal handler.
    pub fn stop(self: *Pump) void {
        self.stop_requested.store(true, .release);
        sys.wake(self.waker);
    }

    fn turn(self: *Pump) Error!?Status {
        self.counters.turns += 1;
        if (!try self.hear()) return .interrupted;
        if (self.phase == .running and self.stop_requested.load(.acquire)) self.beginStop();
        if (self.now_ms >= self.sweep_at_ms) try closing.sweep(self);
        try self.journal.tick(self.now_ms);

        var batch: input.Batch = .init(&self.core);
        try input.fill(self, &batch);
        if (batch.count != 0 or self.more or self.now_ms >= self.next_deadline_ms) {
            try self.step(batch.count);
        }
        if (self.journal.isCompacting()) {
            try self.journal.goOn(self.allocator, self.now_ms);
            self.publish();
        }
        if (self.phase != .running) try self.continueStop();
        if (self.events_bytes != 0) return .events;
        return if (self.phase == .stopped) .stopped else null;
    }

    /// Waits, and notes everything that the kernel has to report: after a long write to the disk the
    /// core would take whoever is not heard in time for dead. False: interrupted.
    fn hear(self: *Pump) Error!bool {
        var timeout_ms = self.timeoutMs();
        for (0..WAITS_MAX) |_| {
            const events = sys.wait(self.poller, &self.poll_events, timeout_ms) catch |err| switch (err) {
                error.Interrupted => return false,
                error.Unavailable => return error.Unavailable,
            };
            self.readClock();
            for (events) |event| {
                if (event.data.u64 != WAKER_TAG) try self.note(event);
            }
            if (events.len < EVENTS_MAX) break;
            timeout_ms = 0;
        }
        return true;
    }

    fn timeoutMs(self: *Pump) i32 {
        if (self.more or self.closed.len != 0 or self.writable.len != 0 or !self.inbox.isEmpty()) return 0;
        if (self.phase == .running and self.ready.len != 0) return 0;
        if (self.phase == .stopped or self.journal.isCompacting()) return 0;
        const at_ms = @min(self.next_deadline_ms, self.sweep_at_ms, self.stop_deadline_ms, self.journal.deadlineMs() orelse NEVER);
        if (at_ms == NEVER) return -1;
        self.readClock();
        return if (at_ms <= self.now_ms) 0 else @intCast(@min(at_ms - self.now_ms, std.math.maxInt(i32)));
    }

    /// Marks what the kernel reported. No connection number can change hands while this runs.
    fn note(self: *Pump, event: sys.Event) Error!void {
        const number: u32 = @truncate(event.data.u64);
        const connection = &self.connections.items[number];
        if (connection.fd < 0 or connection.generation != event.data.u64 >> 32) return;
        if (sys.isHungUp(event)) connection.hung_up = true;
        switch (connection.state) {
            .open => {
                if (sys.isReadable(event)) {
                    connection.readable = true;
                    if (!connection.paused) try self.markReady(number);
                }
                if (sys.isWritable(event)) try output.resumeSending(self, number);
            },
            .closing => if (sys.isWritable(event)) try closing.flushAndEnd(self, number),
            .lingering => if (sys.isReadable(event)) closing.discard(self, number),
            .free, .closed => {},
        }
    }

    pub fn markReady(self: *Pump, number: u32) Allocator.Error!void {
        const connection = &self.connections.items[number];
        if (connection.ready_queued) return;
        try self.ready.push(self.allocator, number);
        connection.ready_queued = true;
    }

    fn step(self: *Pump, input_count: u32) Error!void {
        const started_ns = self.clockNs(1);
        const outcome = try self.core.step(self.now_ms, input_count);
        var result = try self.core.result();
        switch (outcome) {
            0 => {},
            1 => {
                const records = try self.core.slice(result.journal_address, result.journal_bytes);
                try self.journal.append(self.allocator, records, self.now_ms);
                if (try self.core.commit(result.journal_sequence) != 0)
                    return self.core.broke("it refused the commit of its own journal batch");
                result = try self.core.result();
            },
            else => return self.core.broke("step returned neither 0 nor 1"),
        }
        self.counters.wasm_ns += self.clockNs(1) -| started_ns;
        self.counters.steps += 1;

        for (self.retiring.items) |number| closing.retire(self, number);
        self.retiring.clearRetainingCapacity();
        try output.drain(self, result.output_count);
        self.more = result.flags & wasm.Result.MORE != 0;
        self.next_deadline_ms = result.next_deadline_ms;
        self.events_address = result.events_address;
        self.events_bytes = result.events_bytes;
        if (self.journal.wantsCompaction()) try self.journal.compact(self.allocator, &self.core, self.now_ms);
        self.publish();
    }

    fn publish(self: *Pump) void {
        for (self.core.counters(), self.core_counters[0..self.core.layout.stats_count]) |value, *copy| {
            @atomicStore(u64, copy, value, .monotonic);
        }
        self.counters.journal_bytes = self.journal.length();
        self.counters.journal_compactions = self.journal.compactions;
        self.counters.journal_commits = self.journal.commits;
    }

    /// The events of the last step; valid until `run` is called again.
    pub fn takeEvents(self: *Pump) wasm.Error![]const u8 {
        const bytes = try self.core.slice(self.events_address, self.events_bytes);
        self.events_bytes = 0;
        return bytes;
    }

    fn clockNs(self: *Pump, clock: i32) u64 {
        var time: linux.timespec = undefined;
        _ = self.setup.clock_gettime(clock, &time);
        return @as(u64, @intCast(time.sec)) * std.time.ns_per_s + @as(u64, @intCast(time.nsec));
    }

    /// Real time at the start plus what the monotonic clock has counted since: never backwards.
    fn readClock(self: *Pump) void {
        self.now_ms = self.realtime_start_ms + (self.clockNs(1) -| self.monotonic_start_ns) / std.time.ns_per_ms;
    }

    fn beginStop(self: *Pump) void {
        self.phase = .flushing;
        self.stop_deadline_ms = self.now_ms + self.setup.drain_timeout_ms;
        self.inbox.refuse();
        closing.dropWaiting(self);
    }

    fn continueStop(self: *Pump) Error!void {
        const pending = self.more or self.closed.len != 0 or self.writable.len != 0;
        const late = self.now_ms >= self.stop_deadline_ms;
        if (self.phase == .flushing and (late or (!pending and !closing.anyUnsent(self)))) {
            try closing.endAll(self);
            self.phase = .lingering;
            self.stop_deadline_ms = self.now_ms + STOP_LINGER_MS;
        } else if (self.phase == .lingering and late) {
            try closing.closeAll(self);
        }
        if (self.phase == .lingering and self.counters.connections_open == 0 and self.closed.len == 0) {
            try self.journal.finish(self.now_ms);
            self.phase = .stopped;
        }
    }
};
