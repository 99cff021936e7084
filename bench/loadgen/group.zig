//! One publisher and the subscribers of its topic.

const std = @import("std");
const wire = @import("wire.zig");
const Connection = @import("connection.zig").Connection;

/// From this window on a publisher waits until half of it is free, then writes it in one piece.
const coalescing_window = 64;

pub const Group = struct {
    publisher: ?*Connection = null,
    subscribers: std.ArrayList(*Connection) = .empty,
    template: wire.PublishTemplate = undefined,
    topic: []const u8 = "",
    published: u64 = 0,
    acknowledged: u64 = 0,
    /// Every subscriber has got all messages below this number.
    delivered: u64 = 0,
    /// How many subscribers stand exactly there.
    slowest_count: u32 = 0,
    /// When something last came for this group.
    progress_ns: u64 = 0,
    /// Waits for its turn to publish or to flush.
    is_dirty: bool = false,

    /// A subscriber that stood at `from` has moved on; true when that was the last one there.
    pub fn advance(self: *Group, from: u64) bool {
        if (from != self.delivered) return false;
        self.slowest_count -= 1;
        if (self.slowest_count != 0) return false;
        self.findSlowest();
        return true;
    }

    pub fn findSlowest(self: *Group) void {
        var slowest: u64 = std.math.maxInt(u64);
        for (self.subscribers.items) |subscriber| slowest = @min(slowest, subscriber.sequence.expected);
        self.delivered = slowest;
        self.slowest_count = 0;
        for (self.subscribers.items) |subscriber| {
            if (subscriber.sequence.expected == slowest) self.slowest_count += 1;
        }
    }

    /// How many messages the closed loop may publish now.
    pub fn room(self: *const Group, qos: u32, window: u64, backlog: u64) u64 {
        const undelivered = self.published -| self.delivered;
        if (qos == 0) {
            const free = window -| undelivered;
            return if (window >= coalescing_window and free < window / 2) 0 else free;
        }
        return @min(window -| (self.published - self.acknowledged), backlog -| undelivered);
    }

    pub fn isComplete(self: *const Group, qos: u32) bool {
        if (self.publisher == null) return true;
        return self.delivered >= self.published and (qos == 0 or self.acknowledged == self.published);
    }
};
