//! Deadlines: a binary heap of timers that live inside their owners. A timer that is only ever
//! postponed (keep alive) is not moved; its owner looks again when it fires.

const heap = @import("heap.zig");

pub const Kind = enum(u8) { connection, session, will, sys };

const absent = 0xFFFF_FFFF;

pub const Timer = struct {
    at_ms: u64 = 0,
    index: u32 = absent,
    kind: Kind,

    pub fn isSet(self: *const Timer) bool {
        return self.index != absent;
    }
};

var queue: heap.List(*Timer) = .{};

pub fn set(timer: *Timer, at_ms: u64) heap.Error!void {
    if (!timer.isSet()) {
        try queue.append(timer);
        timer.index = @intCast(queue.items.len - 1);
    }
    timer.at_ms = at_ms;
    down(up(timer.index));
}

pub fn cancel(timer: *Timer) void {
    if (!timer.isSet()) return;
    const index = timer.index;
    timer.index = absent;
    timer.at_ms = 0;
    const last = queue.items[queue.items.len - 1];
    queue.items.len -= 1;
    if (last == timer) return;
    place(last, index);
    down(up(index));
}

pub fn next() ?u64 {
    return if (queue.items.len == 0) null else queue.items[0].at_ms;
}

pub inline fn isDue(now_ms: u64) bool {
    return queue.items.len != 0 and queue.items[0].at_ms <= now_ms;
}

/// Takes the earliest timer that is due out of the queue.
pub fn due(now_ms: u64) ?*Timer {
    if (!isDue(now_ms)) return null;
    const timer = queue.items[0];
    cancel(timer);
    return timer;
}

fn place(timer: *Timer, index: u32) void {
    queue.items[index] = timer;
    timer.index = index;
}

fn up(start: u32) u32 {
    var index = start;
    const timer = queue.items[index];
    while (index > 0) {
        const parent = (index - 1) / 2;
        if (queue.items[parent].at_ms <= timer.at_ms) break;
        place(queue.items[parent], index);
        index = parent;
    }
    place(timer, index);
    return index;
}

fn down(start: u32) void {
    var index = start;
    const timer = queue.items[index];
    while (true) {
        var child = index * 2 + 1;
        if (child >= queue.items.len) break;
        if (child + 1 < queue.items.len and queue.items[child + 1].at_ms < queue.items[child].at_ms) child += 1;
        if (queue.items[child].at_ms >= timer.at_ms) break;
        place(queue.items[child], index);
        index = child;
    }
    place(timer, index);
}
