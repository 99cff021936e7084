//! Which slots are free. Not stored: made from the tree when a store is opened.

const std = @import("std");
const Allocator = std.mem.Allocator;
const format = @import("format.zig");

/// Bits that are 0 beyond what was ever set.
pub const Bitmap = struct {
    words: std.ArrayList(u64) = .empty,

    pub fn deinit(self: *Bitmap, allocator: Allocator) void {
        self.words.deinit(allocator);
    }

    pub fn ensure(self: *Bitmap, allocator: Allocator, bits: u64) Allocator.Error!void {
        const count: usize = @intCast((bits + 63) / 64);
        if (count > self.words.items.len) try self.words.appendNTimes(allocator, 0, count - self.words.items.len);
    }

    pub fn has(self: *const Bitmap, bit: u64) bool {
        const word: usize = @intCast(bit / 64);
        if (word >= self.words.items.len) return false;
        return self.words.items[word] >> @intCast(bit % 64) & 1 != 0;
    }

    /// The bit is within what `ensure` made room for.
    pub fn set(self: *Bitmap, bit: u64) void {
        self.words.items[@intCast(bit / 64)] |= @as(u64, 1) << @intCast(bit % 64);
    }

    pub fn clear(self: *Bitmap, bit: u64) void {
        self.words.items[@intCast(bit / 64)] &= ~(@as(u64, 1) << @intCast(bit % 64));
    }

    /// The first bit at or after `from` that is 0; `limit` when there is none below it.
    pub fn nextClear(self: *const Bitmap, from: u64, limit: u64) u64 {
        return self.next(from, limit, ~@as(u64, 0));
    }

    pub fn nextSet(self: *const Bitmap, from: u64, limit: u64) u64 {
        return self.next(from, limit, 0);
    }

    fn next(self: *const Bitmap, from: u64, limit: u64, flip: u64) u64 {
        var at = from;
        while (at < limit) {
            const word: usize = @intCast(at / 64);
            // Beyond the words all bits are 0.
            const bits = if (word < self.words.items.len) self.words.items[word] else 0;
            const rest = (bits ^ flip) >> @intCast(at % 64);
            if (rest != 0) return @min(limit, at + @ctz(rest));
            at = (at / 64 + 1) * 64;
        }
        return limit;
    }
};

pub const Run = struct { start: u64, count: u64 };

pub const Slots = struct {
    /// Not to be written to: in use, or of the durable tree.
    taken: Bitmap = .{},
    /// What the durable root record reaches.
    durable: Bitmap = .{},
    /// Of the durable tree and no longer needed: free after the next commit.
    pending: std.ArrayList(u64) = .empty,
    /// All slots in use are below.
    end: u64 = format.SLOT_FIRST,
    taken_count: u64 = 0,
    cursor: u64 = format.SLOT_FIRST,
    /// What was taken since the last commit lies in here.
    fresh_start: u64 = std.math.maxInt(u64),
    fresh_end: u64 = 0,
    /// While compacting: the first run behind the cursor, which `trim` set back, and not the longest.
    lowest_first: bool = false,

    /// Of how many free runs the longest is taken.
    const LOOK_AT = 32;

    pub fn deinit(self: *Slots, allocator: Allocator) void {
        self.taken.deinit(allocator);
        self.durable.deinit(allocator);
        self.pending.deinit(allocator);
    }

    /// For the walk at opening. False when something else has it.
    pub fn claim(self: *Slots, slot: u64) bool {
        if (self.taken.has(slot)) return false;
        self.taken.set(slot);
        self.durable.set(slot);
        self.taken_count += 1;
        return true;
    }

    pub fn freeCount(self: *const Slots) u64 {
        return self.end - format.SLOT_FIRST - self.taken_count;
    }

    /// 1 to `want` free slots in a row; behind the end when there are none before it.
    pub fn take(self: *Slots, allocator: Allocator, want: u64) Allocator.Error!Run {
        const run = if (self.freeCount() != 0) self.find(want) else Run{ .start = self.end, .count = want };
        const run_end = run.start + run.count;
        try self.taken.ensure(allocator, run_end);
        try self.durable.ensure(allocator, run_end);
        for (run.start..run_end) |slot| self.taken.set(slot);
        self.taken_count += run.count;
        self.end = @max(self.end, run_end);
        self.cursor = run_end;
        self.fresh_start = @min(self.fresh_start, run.start);
        self.fresh_end = @max(self.fresh_end, run_end);
        return run;
    }

    fn find(self: *Slots, want: u64) Run {
        var best: Run = .{ .start = 0, .count = 0 };
        var at = if (self.cursor >= self.end) format.SLOT_FIRST else self.cursor;
        var wrapped = at == format.SLOT_FIRST;
        var looked: u32 = 0;
        while (looked < LOOK_AT) : (looked += 1) {
            const start = self.taken.nextClear(at, self.end);
            if (start == self.end) {
                if (wrapped) break;
                wrapped = true;
                at = format.SLOT_FIRST;
                continue;
            }
            const stop = self.taken.nextSet(start, @min(self.end, start + want));
            if (stop - start > best.count) best = .{ .start = start, .count = stop - start };
            if (best.count == want or self.lowest_first) break;
            at = stop;
        }
        std.debug.assert(best.count != 0);
        return best;
    }

    /// What nobody points to any more.
    pub fn free(self: *Slots, allocator: Allocator, slot: u64) Allocator.Error!void {
        if (self.durable.has(slot)) {
            try self.pending.append(allocator, slot);
        } else {
            self.taken.clear(slot);
            self.taken_count -= 1;
        }
    }

    /// The new root record is durable.
    pub fn committed(self: *Slots) void {
        for (self.pending.items) |slot| {
            self.taken.clear(slot);
            self.durable.clear(slot);
        }
        self.taken_count -= self.pending.items.len;
        self.pending.clearRetainingCapacity();
        if (self.fresh_start < self.fresh_end) {
            const first: usize = @intCast(self.fresh_start / 64);
            const last: usize = @intCast((self.fresh_end + 63) / 64);
            @memcpy(self.durable.words.items[first..last], self.taken.words.items[first..last]);
        }
        self.fresh_start = std.math.maxInt(u64);
        self.fresh_end = 0;
    }

    /// Gives back what is free at the end; returns the new end.
    pub fn trim(self: *Slots) u64 {
        while (self.end > format.SLOT_FIRST and !self.taken.has(self.end - 1)) self.end -= 1;
        self.cursor = format.SLOT_FIRST;
        return self.end;
    }
};
