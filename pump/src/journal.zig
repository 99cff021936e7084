//! The journal of this version of avow: it lives in memory and is safe as soon as it is copied here.

const std = @import("std");
const sys = @import("sys.zig");
const wasm = @import("wasm.zig");
const Allocator = std.mem.Allocator;

/// A journal below this is never compacted.
const COMPACTION_MIN_BYTES = 64 << 20;
/// It is compacted when it has grown to this many times the last snapshot.
const COMPACTION_FACTOR = 4;

pub const Journal = struct {
    /// Python may read while the pump's thread appends.
    lock: sys.Lock = .{},
    bytes: std.ArrayList(u8) = .empty,
    compact_above_bytes: usize = COMPACTION_MIN_BYTES,
    compaction_min_bytes: usize = COMPACTION_MIN_BYTES,
    compactions: u64 = 0,

    pub fn setCompactionMin(self: *Journal, minimum_bytes: usize) void {
        self.compaction_min_bytes = minimum_bytes;
        self.compact_above_bytes = minimum_bytes;
    }

    pub fn append(self: *Journal, allocator: Allocator, records: []const u8) Allocator.Error!void {
        self.lock.acquire();
        defer self.lock.release();
        try self.bytes.appendSlice(allocator, records);
    }

    pub fn wantsCompaction(self: *const Journal) bool {
        return self.bytes.items.len > self.compact_above_bytes;
    }

    /// Replaces the journal by a snapshot of the core. The old one stays whole until the new one is,
    /// so a trap halfway loses nothing.
    pub fn compact(self: *Journal, allocator: Allocator, core: *wasm.Core) (Allocator.Error || wasm.Error)!void {
        var fresh: std.ArrayList(u8) = .empty;
        errdefer fresh.deinit(allocator);
        var piece_bytes = try core.snapshot(true);
        while (piece_bytes != 0) : (piece_bytes = try core.snapshot(false)) {
            const result = try core.result();
            if (result.journal_bytes != piece_bytes) return core.broke("a snapshot's length is told in two ways");
            try fresh.appendSlice(allocator, try core.slice(result.journal_address, piece_bytes));
        }
        self.lock.acquire();
        defer self.lock.release();
        self.bytes.deinit(allocator);
        self.bytes = fresh;
        self.compact_above_bytes = @max(self.compaction_min_bytes, COMPACTION_FACTOR * fresh.items.len);
        self.compactions += 1;
    }

    pub fn length(self: *Journal) usize {
        self.lock.acquire();
        defer self.lock.release();
        return self.bytes.items.len;
    }

    /// Copies as much as fits and returns the length of the whole.
    pub fn copy(self: *Journal, into: []u8) usize {
        self.lock.acquire();
        defer self.lock.release();
        const copied = @min(into.len, self.bytes.items.len);
        @memcpy(into[0..copied], self.bytes.items[0..copied]);
        return self.bytes.items.len;
    }

    pub fn deinit(self: *Journal, allocator: Allocator) void {
        self.bytes.deinit(allocator);
    }
};
