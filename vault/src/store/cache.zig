//! Blocks in memory, found by where they belong. Clean ones give way (second chance), dirty ones stay.
//!
//! What is dirty has only dirty blocks above it, all here: sealing then never needs to read.

const std = @import("std");
const Allocator = std.mem.Allocator;
const format = @import("format.zig");
const pages = @import("pages.zig");

pub const Frame = struct {
    inode: u64 = 0,
    index: u64 = 0,
    level: u8 = 0,
    is_used: bool = false,
    is_dirty: bool = false,
    is_recent: bool = false,
    pins: u8 = 0,
    dirty_at: u32 = 0,
    next: ?*Frame = null,
    data: *align(format.BLOCK_BYTES) format.Block,
};

const CHUNK_FRAMES = 64;
const Chunk = struct {
    frames: [CHUNK_FRAMES]Frame,
    data: pages.Blocks,
};

/// At least this many frames, so that what one operation works on never pushes itself out.
pub const FRAMES_MIN = 512;

pub const Cache = struct {
    allocator: Allocator,
    buckets: []?*Frame,
    chunks: std.ArrayList(*Chunk) = .empty,
    free: ?*Frame = null,
    /// How many may be clean.
    clean_max: usize,
    clean_count: usize = 0,
    hand: usize = 0,
    /// By level; of the table of inodes apart, for it is sealed last.
    dirty: [format.HEIGHT_MAX]std.ArrayList(*Frame) = @splat(.empty),
    table_dirty: [format.HEIGHT_MAX]std.ArrayList(*Frame) = @splat(.empty),
    dirty_count: usize = 0,

    pub fn init(allocator: Allocator, cache_bytes: u64) Allocator.Error!Cache {
        const clean_max: usize = @intCast(@max(FRAMES_MIN, @min(cache_bytes, 1 << 40) / format.BLOCK_BYTES));
        const buckets = try allocator.alloc(?*Frame, std.math.ceilPowerOfTwoAssert(usize, clean_max * 2));
        @memset(buckets, null);
        return .{ .allocator = allocator, .buckets = buckets, .clean_max = clean_max };
    }

    pub fn deinit(self: *Cache) void {
        for (self.chunks.items) |chunk| {
            pages.give(chunk.data);
            self.allocator.destroy(chunk);
        }
        self.chunks.deinit(self.allocator);
        for (&self.dirty, &self.table_dirty) |*files, *table| {
            files.deinit(self.allocator);
            table.deinit(self.allocator);
        }
        self.allocator.free(self.buckets);
    }

    fn bucket(self: *Cache, inode: u64, level: u8, index: u64) *?*Frame {
        var hash = (inode *% 0x9E3779B97F4A7C15) ^ (index *% 0xC2B2AE3D27D4EB4F) ^ (@as(u64, level) *% 0x165667B19E3779F9);
        hash ^= hash >> 32;
        hash *%= 0xD6E8FEB86659FD93;
        return &self.buckets[@intCast((hash >> 24) & (self.buckets.len - 1))];
    }

    pub fn find(self: *Cache, inode: u64, level: u8, index: u64) ?*Frame {
        var at = self.bucket(inode, level, index).*;
        while (at) |frame| : (at = frame.next) {
            if (frame.index == index and frame.inode == inode and frame.level == level) {
                frame.is_recent = true;
                return frame;
            }
        }
        return null;
    }

    /// A clean frame for a block that is not here. Its content is the caller's to fill, or to drop.
    pub fn add(self: *Cache, inode: u64, level: u8, index: u64) Allocator.Error!*Frame {
        if (self.clean_count >= self.clean_max) self.evict();
        if (self.free == null) try self.grow();
        const frame = self.free.?;
        self.free = frame.next;
        const head = self.bucket(inode, level, index);
        frame.* = .{ .inode = inode, .level = level, .index = index, .is_used = true, .is_recent = true, .next = head.*, .data = frame.data };
        head.* = frame;
        self.clean_count += 1;
        return frame;
    }

    fn grow(self: *Cache) Allocator.Error!void {
        try self.chunks.ensureUnusedCapacity(self.allocator, 1);
        const chunk = try self.allocator.create(Chunk);
        errdefer self.allocator.destroy(chunk);
        chunk.data = try pages.take(CHUNK_FRAMES);
        for (&chunk.frames, chunk.data) |*frame, *data| {
            frame.* = .{ .data = @alignCast(data), .next = self.free };
            self.free = frame;
        }
        self.chunks.appendAssumeCapacity(chunk);
    }

    fn evict(self: *Cache) void {
        const count = self.chunks.items.len * CHUNK_FRAMES;
        for (0..2 * count) |_| {
            self.hand = (self.hand + 1) % count;
            const frame = &self.chunks.items[self.hand / CHUNK_FRAMES].frames[self.hand % CHUNK_FRAMES];
            if (!frame.is_used or frame.is_dirty or frame.pins != 0) continue;
            if (!frame.is_recent) return self.drop(frame);
            frame.is_recent = false;
        }
    }

    /// Forgets a block, dirty or not.
    pub fn drop(self: *Cache, frame: *Frame) void {
        if (frame.is_dirty) self.clean(frame);
        self.clean_count -= 1;
        var at = self.bucket(frame.inode, frame.level, frame.index);
        while (at.*) |other| : (at = &other.next) {
            if (other == frame) {
                at.* = frame.next;
                break;
            }
        }
        frame.is_used = false;
        frame.next = self.free;
        self.free = frame;
    }

    fn listOf(self: *Cache, frame: *const Frame) *std.ArrayList(*Frame) {
        return if (frame.inode == 0) &self.table_dirty[frame.level] else &self.dirty[frame.level];
    }

    pub fn mark(self: *Cache, frame: *Frame) Allocator.Error!void {
        if (frame.is_dirty) return;
        const list = self.listOf(frame);
        try list.append(self.allocator, frame);
        frame.dirty_at = @intCast(list.items.len - 1);
        frame.is_dirty = true;
        self.dirty_count += 1;
        self.clean_count -= 1;
    }

    fn clean(self: *Cache, frame: *Frame) void {
        const list = self.listOf(frame);
        const last = list.items[list.items.len - 1];
        last.dirty_at = frame.dirty_at;
        list.items[frame.dirty_at] = last;
        list.items.len -= 1;
        self.cleaned(frame);
    }

    /// For whoever empties the list of a level as a whole.
    pub fn cleaned(self: *Cache, frame: *Frame) void {
        frame.is_dirty = false;
        self.dirty_count -= 1;
        self.clean_count += 1;
    }

    /// After many dirty blocks became clean.
    pub fn shrink(self: *Cache) void {
        while (self.clean_count > self.clean_max) {
            const count = self.clean_count;
            self.evict();
            if (self.clean_count == count) return;
        }
    }

    /// In the order in which they lie in their files.
    pub fn before(_: void, one: *Frame, other: *Frame) bool {
        if (one.inode != other.inode) return one.inode < other.inode;
        return one.index < other.index;
    }
};
