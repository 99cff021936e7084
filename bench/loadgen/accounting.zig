//! Sequence accounting of one subscriber: what was lost, what came twice, what came late.
//!
//! A publisher numbers its messages from 0. Numbers that were jumped over are kept as ranges, so a
//! message that arrives late is told from one that arrives twice, whatever the order.

const std = @import("std");

pub const Range = struct {
    first: u64,
    /// One past the last missing number.
    end: u64,
};

pub const Verdict = enum { fresh, late, duplicate };

pub const Sequence = struct {
    /// The number that comes next when all is well.
    expected: u64 = 0,
    /// Every arrival, duplicates included.
    received: u64 = 0,
    duplicates: u64 = 0,
    /// Arrivals that were overtaken by a later number.
    disordered: u64 = 0,
    /// Jumped over and not (yet) seen: ascending, disjoint.
    gaps: std.ArrayList(Range) = .empty,

    pub inline fn observe(self: *Sequence, gpa: std.mem.Allocator, number: u64) !Verdict {
        self.received += 1;
        if (number == self.expected) {
            self.expected += 1;
            return .fresh;
        }
        return self.observeOutOfTurn(gpa, number);
    }

    fn observeOutOfTurn(self: *Sequence, gpa: std.mem.Allocator, number: u64) !Verdict {
        @branchHint(.cold);
        if (number > self.expected) {
            try self.gaps.append(gpa, .{ .first = self.expected, .end = number });
            self.expected = number + 1;
            return .fresh;
        }
        const index = self.find(number) orelse {
            self.duplicates += 1;
            return .duplicate;
        };
        self.disordered += 1;
        const gap = self.gaps.items[index];
        if (gap.first == number and gap.end == number + 1) {
            _ = self.gaps.orderedRemove(index);
        } else if (gap.first == number) {
            self.gaps.items[index].first += 1;
        } else if (gap.end == number + 1) {
            self.gaps.items[index].end -= 1;
        } else {
            self.gaps.items[index].end = number;
            try self.gaps.insert(gpa, index + 1, .{ .first = number + 1, .end = gap.end });
        }
        return .late;
    }

    /// Gives up on everything below `published`; a later arrival still counts as late, not as twice.
    pub fn forgive(self: *Sequence, gpa: std.mem.Allocator, published: u64) !void {
        if (published <= self.expected) return;
        try self.gaps.append(gpa, .{ .first = self.expected, .end = published });
        self.expected = published;
    }

    /// How many of the first `published` numbers never came.
    pub fn missing(self: *const Sequence, published: u64) u64 {
        var total: u64 = 0;
        for (self.gaps.items) |gap| total += gap.end - gap.first;
        if (published > self.expected) total += published - self.expected;
        return total;
    }

    fn find(self: *const Sequence, number: u64) ?usize {
        var low: usize = 0;
        var high: usize = self.gaps.items.len;
        while (low < high) {
            const middle = low + (high - low) / 2;
            const gap = self.gaps.items[middle];
            if (number < gap.first) {
                high = middle;
            } else if (number >= gap.end) {
                low = middle + 1;
            } else return middle;
        }
        return null;
    }
};
