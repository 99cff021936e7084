//! A file as a tree of blocks: finding, reading, growing and shrinking it.

const std = @import("std");
const format = @import("format.zig");
const inodes = @import("inodes.zig");
const Frame = @import("cache.zig").Frame;
const Pointer = format.Pointer;
const Inode = inodes.Inode;
const store_file = @import("store.zig");
const Store = store_file.Store;
const Error = store_file.Error;

/// How many blocks are read at once at most (256 KiB).
pub const RUN_MAX = 64;

/// The pointer to a block: from the block above it, or from the inode.
pub fn pointerTo(store: *Store, inode: *Inode, level: u8, index: u64) Error!Pointer {
    if (level + 1 == inode.height) return inode.root;
    const above = try node(store, inode, level + 1, index / format.FANOUT) orelse return .hole;
    return decodeIn(store, inode, above, index);
}

/// The pointer to block `index` of the level below `above`.
pub fn decodeIn(store: *Store, inode: *Inode, above: *Frame, index: u64) Error!Pointer {
    const pointer = Pointer.decode(format.entryOf(above.data, index)) catch
        return store.damagedAt(inode.number, above.level, above.index);
    if (!pointer.isHole()) try store.checkPointer(pointer, inode.number, above.level, above.index);
    return pointer;
}

/// A block of any level below the height; null when it is a hole.
pub fn node(store: *Store, inode: *Inode, level: u8, index: u64) Error!?*Frame {
    if (store.cache.find(inode.number, level, index)) |frame| return frame;
    const pointer = try pointerTo(store, inode, level, index);
    if (pointer.isHole()) return null;
    return try load(store, inode, level, index, pointer);
}

/// A data block; null when it is a hole. The index is below the number of blocks.
pub fn data(store: *Store, inode: *Inode, index: u64) Error!?*Frame {
    return node(store, inode, 0, index);
}

fn load(store: *Store, inode: *Inode, level: u8, index: u64, pointer: Pointer) Error!*Frame {
    const frame = try store.cache.add(inode.number, level, index);
    errdefer store.cache.drop(frame);
    try readBlock(store, inode.number, level, index, pointer, frame.data);
    return frame;
}

/// One block from the disk, proven.
pub fn readBlock(store: *Store, inode: u64, level: u8, index: u64, pointer: Pointer, into: *format.Block) Error!void {
    const sealed = &store.sealed_block;
    if (try store.disk.readUpTo(pointer.slot * format.BLOCK_BYTES, sealed) < sealed.len) return store.damagedAt(inode, level, index);
    try openBlock(store, inode, level, index, pointer, sealed, into);
}

fn openBlock(store: *Store, inode: u64, level: u8, index: u64, pointer: Pointer, sealed: *const format.Block, into: *format.Block) Error!void {
    const ring = store.ringOf(pointer.slot);
    if (pointer.generation >= ring.count) return store.damagedAt(inode, level, index);
    const ad = format.place(store.id, inode, level, index);
    ring.of(pointer.generation, &pointer.nonce).open(into, sealed, &pointer.tag, &ad, pointer.nonce[12..24]) catch
        return store.damagedAt(inode, level, index);
}

/// A data block that is not in memory, and those behind it that are likely to be read next as far as
/// they lie in a row on the disk. Null when it is a hole.
pub fn fetch(store: *Store, inode: *Inode, first: u64, wanted: u64) Error!?*Frame {
    const start = try pointerTo(store, inode, 0, first);
    if (start.isHole()) return null;
    if (first == inode.next_block) {
        inode.window = @min(inode.window * 2, RUN_MAX);
    } else {
        inode.window = 1;
    }
    const limit = @min(@min(@max(wanted, inode.window), RUN_MAX), inode.blocks() - first);
    var pointers: [RUN_MAX]Pointer = undefined;
    pointers[0] = start;
    var count: usize = 1;
    while (count < limit) : (count += 1) {
        if (store.cache.find(inode.number, 0, first + count) != null) break;
        const pointer = try pointerTo(store, inode, 0, first + count);
        if (pointer.slot != start.slot + count) break;
        pointers[count] = pointer;
    }
    inode.next_block = first + count;
    if (count == 1) return try load(store, inode, 0, first, start);
    return try loadRun(store, inode, first, pointers[0..count]);
}

fn loadRun(store: *Store, inode: *Inode, first: u64, pointers: []const Pointer) Error!*Frame {
    const sealed: []u8 = std.mem.sliceAsBytes(store.run[0..pointers.len]);
    const got = try store.disk.readUpTo(pointers[0].slot * format.BLOCK_BYTES, sealed);
    if (got < format.BLOCK_BYTES) return store.damagedAt(inode.number, 0, first);
    var wanted: ?*Frame = null;
    defer if (wanted) |frame| {
        frame.pins -= 1;
    };
    for (pointers[0 .. got / format.BLOCK_BYTES], 0..) |pointer, at| {
        const frame = store.cache.add(inode.number, 0, first + at) catch |err| {
            if (wanted != null) break;
            return err;
        };
        openBlock(store, inode.number, 0, first + at, pointer, sealed[at * format.BLOCK_BYTES ..][0..format.BLOCK_BYTES], frame.data) catch |err| {
            store.cache.drop(frame);
            // Damage of a block that nobody asked for yet is reported when somebody does.
            if (wanted != null) break;
            return err;
        };
        if (wanted == null) {
            wanted = frame;
            frame.pins += 1;
        }
    }
    return wanted.?;
}

/// A data block to be changed. `whole`: all of it will be overwritten, so it is not read.
pub fn dataForWrite(store: *Store, inode: *Inode, index: u64, whole: bool) Error!*Frame {
    const found = store.cache.find(inode.number, 0, index);
    if (found) |frame| {
        if (frame.is_dirty) return frame;
    }
    const frame = found orelse if (whole) try blank(store, inode, 0, index) else try node(store, inode, 0, index) orelse try blank(store, inode, 0, index);
    dirty(store, inode, frame) catch |err| {
        // Its content need not be what the disk holds.
        if (!frame.is_dirty) store.cache.drop(frame);
        return err;
    };
    return frame;
}

fn blank(store: *Store, inode: *Inode, level: u8, index: u64) Error!*Frame {
    const frame = try store.cache.add(inode.number, level, index);
    @memset(frame.data, 0);
    return frame;
}

/// Marks a block and all above it.
pub fn dirty(store: *Store, inode: *Inode, frame: *Frame) Error!void {
    if (frame.is_dirty) return;
    frame.pins += 1;
    defer frame.pins -= 1;
    if (frame.level + 1 < inode.height) {
        const index = frame.index / format.FANOUT;
        const above = try node(store, inode, frame.level + 1, index) orelse try blank(store, inode, frame.level + 1, index);
        try dirty(store, inode, above);
    } else {
        try inodes.touch(store, inode);
    }
    try store.cache.mark(frame);
}

/// A larger size; what is new reads as zeros.
pub fn grow(store: *Store, inode: *Inode, size: u64) Error!void {
    if (size > format.SIZE_MAX) return error.TooLarge;
    try inodes.touch(store, inode);
    // Between two heights a file has no meaning.
    errdefer store.is_broken = true;
    const height = format.heightOf(size);
    while (inode.height < height) {
        const old = if (inode.height == 0) null else store.cache.find(inode.number, inode.height - 1, 0);
        if (!inode.root.isHole() or (old != null and old.?.is_dirty)) {
            const frame = store.cache.find(inode.number, inode.height, 0) orelse try store.cache.add(inode.number, inode.height, 0);
            @memset(frame.data, 0);
            store.cache.mark(frame) catch |err| {
                store.cache.drop(frame);
                return err;
            };
            inode.root.encode(format.entryOf(frame.data, 0));
            inode.root = .hole;
        }
        inode.height += 1;
    }
    inode.size = size;
}

/// A smaller size. Should this fail after something was freed, the store is broken.
pub fn shrink(store: *Store, inode: *Inode, size: u64) Error!void {
    try inodes.touch(store, inode);
    const blocks = format.blocksOf(size);
    const old_blocks = inode.blocks();
    // Whatever is behind the size in the last block is zero.
    const rest: usize = @intCast(size % format.BLOCK_BYTES);
    if (rest != 0) {
        if (try data(store, inode, blocks - 1)) |frame| {
            try dirty(store, inode, frame);
            @memset(frame.data[rest..], 0);
        }
    }
    if (blocks < old_blocks) {
        errdefer store.is_broken = true;
        const height = format.heightOf(size);
        while (inode.height > height) try lower(store, inode);
        if (blocks != 0) try trim(store, inode, inode.height - 1, 0, blocks);
    }
    inode.size = size;
    inode.next_block = std.math.maxInt(u64);
}

/// Takes away the highest level, and all that is not below its first pointer.
fn lower(store: *Store, inode: *Inode) Error!void {
    const level = inode.height - 1;
    const root = inode.root;
    var below: Pointer = .hole;
    if (level == 0) {
        if (store.cache.find(inode.number, 0, 0)) |frame| store.cache.drop(frame);
    } else if (try node(store, inode, level, 0)) |frame| {
        frame.pins += 1;
        defer frame.pins -= 1;
        below = try decodeIn(store, inode, frame, 0);
        for (1..format.FANOUT) |index| try release(store, inode, level - 1, index, try decodeIn(store, inode, frame, index));
    }
    if (level != 0) {
        if (store.cache.find(inode.number, level, 0)) |frame| store.cache.drop(frame);
    }
    if (!root.isHole()) try store.slots.free(store.allocator, root.slot);
    inode.root = below;
    inode.height = level;
}

/// Takes away what lies at or behind `blocks` in one block above level 0.
fn trim(store: *Store, inode: *Inode, level: u8, index: u64, blocks: u64) Error!void {
    if (level == 0) return;
    const frame = try node(store, inode, level, index) orelse return;
    try dirty(store, inode, frame);
    const span = format.SPAN[level - 1];
    for (0..format.FANOUT) |at| {
        const child = index * format.FANOUT + at;
        if (child * span >= blocks) {
            try release(store, inode, level - 1, child, try decodeIn(store, inode, frame, child));
            Pointer.hole.encode(format.entryOf(frame.data, child));
        } else if ((child + 1) * span > blocks) {
            try trim(store, inode, level - 1, child, blocks);
        }
    }
}

/// Gives back a block and all below it.
fn release(store: *Store, inode: *Inode, level: u8, index: u64, pointer: Pointer) Error!void {
    const found = store.cache.find(inode.number, level, index);
    if (pointer.isHole() and found == null) return;
    if (level != 0) {
        const frame = found orelse try load(store, inode, level, index, pointer);
        frame.pins += 1;
        defer frame.pins -= 1;
        for (0..format.FANOUT) |at| {
            const child = index * format.FANOUT + at;
            try release(store, inode, level - 1, child, try decodeIn(store, inode, frame, child));
        }
    }
    if (store.cache.find(inode.number, level, index)) |frame| store.cache.drop(frame);
    if (!pointer.isHole()) try store.slots.free(store.allocator, pointer.slot);
}
