//! `poll_oneoff`: clocks, streams of the host, and files, which are always ready.

const std = @import("std");
const wasi = @import("wasi.zig");
const errno = @import("errno.zig");
const hosted = @import("host.zig");
const rights = @import("rights.zig");
const files = @import("files.zig");
const system = @import("system.zig");
const Error = errno.Error;
const Memory = @import("memory.zig").Memory;
const Wasi = wasi.Wasi;

const SUBSCRIPTION_BYTES = 48;
const EVENT_BYTES = 32;
pub const SUBSCRIPTIONS_MAX = 1024;
const ABSOLUTE: u16 = 1;
const HANGUP: u16 = 1;
const NEVER = std.math.maxInt(u64);

const Type = enum(u8) { clock = 0, read = 1, write = 2 };

pub const Subscription = struct {
    userdata: u64,
    type: Type,
    fd: u32 = 0,
    /// How long a clock still has to run.
    left_ns: u64 = NEVER,
    /// Known before anything is waited for.
    ready: bool = false,
    failed: ?Error = null,
    nbytes: u64 = 0,
    flags: u16 = 0,
    /// Its place in what the host polls.
    waiting: ?usize = null,
};

pub fn poll_oneoff(self: *Wasi, memory: Memory, in: u32, out: u32, nsubscriptions: u32, nevents: u32) Error!void {
    if (nsubscriptions == 0 or nsubscriptions > SUBSCRIPTIONS_MAX) return error.INVAL;
    const records = try memory.records(in, nsubscriptions, SUBSCRIPTION_BYTES);
    const events = try memory.records(out, nsubscriptions, EVENT_BYTES);
    try memory.check(nevents, 4);
    // All are read before the first event is written: the two arrays may overlap.
    const subscriptions = self.subscriptions[0..nsubscriptions];
    for (subscriptions, 0..) |*subscription, index| {
        subscription.* = try parse(self, records[index * SUBSCRIPTION_BYTES ..][0..SUBSCRIPTION_BYTES]);
    }
    try wait(self, subscriptions);
    var count: u32 = 0;
    for (subscriptions) |subscription| {
        if (!subscription.ready) continue;
        const into = events[count * EVENT_BYTES ..][0..EVENT_BYTES];
        @memset(into, 0);
        std.mem.writeInt(u64, into[0..8], subscription.userdata, .little);
        if (subscription.failed) |err| std.mem.writeInt(u16, into[8..10], errno.number(err), .little);
        into[10] = @backingInt(subscription.type);
        std.mem.writeInt(u64, into[16..24], subscription.nbytes, .little);
        std.mem.writeInt(u16, into[24..26], subscription.flags, .little);
        count += 1;
    }
    try memory.put(u32, nevents, count);
}

fn parse(self: *Wasi, record: *const [SUBSCRIPTION_BYTES]u8) Error!Subscription {
    if (record[8] > 2) return error.INVAL;
    const kind: Type = @fromBackingInt(@intCast(record[8]));
    var subscription: Subscription = .{ .userdata = std.mem.readInt(u64, record[0..8], .little), .type = kind };
    const result = switch (kind) {
        .clock => clock(self, &subscription, record),
        else => descriptor(self, &subscription, std.mem.readInt(u32, record[16..20], .little)),
    };
    result catch |err| {
        if (err == error.Stopped) return err;
        subscription.ready = true;
        subscription.failed = err;
    };
    return subscription;
}

fn clock(self: *Wasi, subscription: *Subscription, record: *const [SUBSCRIPTION_BYTES]u8) Error!void {
    const id = std.mem.readInt(u32, record[16..20], .little);
    const timeout = std.mem.readInt(u64, record[24..32], .little);
    const flags = std.mem.readInt(u16, record[40..42], .little);
    if (id > 1 or flags & ~ABSOLUTE != 0) return error.INVAL;
    if (flags & ABSOLUTE == 0) {
        // To wait a while needs no clock: it tells no time.
        subscription.left_ns = timeout;
    } else {
        try system.allowClock(self, id);
        subscription.left_ns = timeout -| try self.clock(id);
    }
}

fn descriptor(self: *Wasi, subscription: *Subscription, fd: u32) Error!void {
    const found = try self.find(fd);
    const needed = rights.POLL_FD_READWRITE;
    subscription.fd = fd;
    switch (found.kind) {
        .sealed_file, .plain_file => {
            if (found.base & needed != needed) return error.NOTCAPABLE;
            subscription.ready = true;
            if (subscription.type == .read) subscription.nbytes = (try files.size(self, found)) -| found.offset;
        },
        .stdio, .socket, .listener => if (found.base & needed != needed) return error.NOTCAPABLE,
        else => return error.BADF,
    }
}

fn wait(self: *Wasi, subscriptions: []Subscription) Error!void {
    const waiting = &self.waiting;
    var count: usize = 0;
    var soonest: u64 = NEVER;
    for (subscriptions) |*subscription| {
        if (subscription.ready) {
            soonest = 0;
        } else if (subscription.type == .clock) {
            soonest = @min(soonest, subscription.left_ns);
        } else {
            waiting[count] = .{
                .fd = self.descriptors[subscription.fd].host_fd,
                .events = if (subscription.type == .read) hosted.READ else hosted.WRITE,
                .revents = 0,
            };
            subscription.waiting = count;
            count += 1;
        }
    }
    waiting[count] = .{ .fd = self.waker, .events = hosted.READ, .revents = 0 };
    try pollHost(self, subscriptions, waiting[0 .. count + 1], soonest);
}

/// A clock has run out when the host has waited as long as it was told to. It could not be caught out
/// by its own clock if it had not.
fn pollHost(self: *Wasi, subscriptions: []Subscription, waiting: []hosted.Waiting, soonest: u64) Error!void {
    var left = soonest;
    var rounds: usize = 0;
    while (true) : (rounds += 1) {
        try self.checkInterrupt();
        const before = self.clock(1) catch 0;
        // In parts of an hour at most, which every host can say.
        const most = 3600 * std.time.ns_per_s;
        const timeout: i64 = if (left == NEVER) -1 else @intCast(@min(left, most));
        const result = self.host.poll(self.host.context, waiting.ptr, waiting.len, timeout);
        const polled = errno.checked(result, waiting.len) catch |err| {
            if (err != error.INTR or rounds > 1000) return err;
            try self.giveWay();
            if (left != NEVER) left -|= (self.clock(1) catch before) -| before;
            continue;
        };
        try self.checkInterrupt();
        var any = false;
        for (subscriptions) |*subscription| {
            const index = subscription.waiting orelse continue;
            if (polled == 0 or waiting[index].revents == 0) continue;
            report(subscription, waiting[index].revents);
            any = true;
        }
        if (polled == 0 and left != NEVER) {
            left -= @intCast(timeout);
            if (left > 0) continue;
            for (subscriptions) |*subscription| {
                if (subscription.type == .clock and subscription.left_ns <= soonest) subscription.ready = true;
            }
            return;
        }
        if (any or soonest == 0) {
            if (soonest == 0) for (subscriptions) |*subscription| {
                if (subscription.type == .clock and subscription.left_ns == 0) subscription.ready = true;
            };
            return;
        }
        if (rounds > 1000) return error.INTR;
    }
}

fn report(subscription: *Subscription, revents: i16) void {
    const POLL = std.os.linux.POLL;
    subscription.ready = true;
    if (revents & POLL.NVAL != 0) {
        subscription.failed = error.BADF;
        return;
    }
    if (revents & (POLL.HUP | POLL.ERR) != 0) subscription.flags = HANGUP;
    // How much exactly is not known without another call; one byte is certain.
    if (revents & (POLL.IN | POLL.OUT) != 0) subscription.nbytes = 1;
}
