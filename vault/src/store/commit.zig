//! Sealing what changed into free slots, and the commit that makes it count.

const std = @import("std");
const format = @import("format.zig");
const inodes = @import("inodes.zig");
const pages = @import("pages.zig");
const roots = @import("roots.zig");
const Frame = @import("cache.zig").Frame;
const cache_file = @import("cache.zig");
const Run = @import("slots.zig").Run;
const store_file = @import("store.zig");
const Store = store_file.Store;
const Error = store_file.Error;

/// Sealed blocks that lie in a row are written at once, up to 1 MiB.
pub const OUT_BLOCKS = 256;
/// More changed data than this (8 MiB) is sealed and written before the commit asks for it.
const DIRTY_MAX = 2048;
/// The container grows by at least 1 MiB at a time: a changed size makes `fdatasync` dearer.
const GROW_SLOTS_MIN = 256;
const GROW_SLOTS_MAX = 16384;

/// Sealed blocks on their way out.
pub const Out = struct {
    bytes: pages.Blocks,
    start: u64 = 0,
    count: usize = 0,
    /// Slots that were taken and not used yet.
    left: Run = .{ .start = 0, .count = 0 },
};

/// Called after each block that was changed.
pub fn relieve(store: *Store) Error!void {
    const dirty = &store.cache.dirty;
    if (dirty[0].items.len < DIRTY_MAX) return;
    try requireOpener(store);
    errdefer store.is_broken = true;
    const levels: usize = if (dirty[1].items.len < DIRTY_MAX) 1 else dirty.len;
    try sealLevels(store, dirty[0..levels]);
    try flush(store);
    store.cache.shrink();
}

/// Two processes that seal with one session would use a nonce twice.
fn requireOpener(store: *const Store) Error!void {
    if (store.process != std.os.linux.getpid()) return error.Invalid;
}

pub fn commit(store: *Store, now_ns: u64) Error!void {
    if (store.is_broken) return error.Broken;
    if (store.is_read_only) return error.ReadOnly;
    if (store.cache.dirty_count == 0 and store.inodes.dirty.items.len == 0 and !store.root.is_changed) return;
    try requireOpener(store);
    // What the disk holds after any failure from here on is not known.
    errdefer store.is_broken = true;
    try sealLevels(store, &store.cache.dirty);
    try inodes.storeDirty(store);
    try sealLevels(store, &store.cache.table_dirty);
    try flush(store);
    // The root record is as durable as what it points to, never sooner.
    try store.disk.makeDurable();
    try roots.write(store, now_ns);
    try store.disk.makeDurable();
    store.slots.committed();
    inodes.committed(store);
    store.cache.shrink();
}

/// Children before their parents.
fn sealLevels(store: *Store, levels: []std.ArrayList(*Frame)) Error!void {
    for (levels) |*list| {
        const frames = list.items;
        std.sort.pdq(*Frame, frames, {}, cache_file.Cache.before);
        var above: ?*Frame = null;
        for (frames, 0..) |frame, at| {
            const inode = if (frame.inode == 0) &store.inodes.table else try inodes.get(store, frame.inode);
            const pointer = try sealBlock(store, frame, frames.len - at);
            const old = if (frame.level + 1 == inode.height) top: {
                const old = inode.root;
                inode.root = pointer;
                try inodes.touch(store, inode);
                break :top old;
            } else below: {
                const index = frame.index / format.FANOUT;
                if (above == null or above.?.inode != frame.inode or above.?.index != index) {
                    above = store.cache.find(frame.inode, frame.level + 1, index);
                }
                const parent = above orelse return error.Broken;
                std.debug.assert(parent.is_dirty);
                const entry = format.entryOf(parent.data, frame.index);
                const old = format.Pointer.decode(entry) catch return store.damagedAt(frame.inode, parent.level, parent.index);
                pointer.encode(entry);
                break :below old;
            };
            if (!old.isHole()) try store.slots.free(store.allocator, old.slot);
        }
        for (frames) |frame| store.cache.cleaned(frame);
        list.clearRetainingCapacity();
    }
}

fn sealBlock(store: *Store, frame: *Frame, want: u64) Error!format.Pointer {
    const out = &store.out;
    if (out.left.count == 0) out.left = try takeSlots(store, @min(want, OUT_BLOCKS));
    const slot = out.left.start;
    out.left.start += 1;
    out.left.count -= 1;
    if (out.count == out.bytes.len or slot != out.start + out.count) try writeOut(store);
    if (out.count == 0) out.start = slot;
    const ring = &store.ring;
    var pointer: format.Pointer = .{ .slot = slot, .generation = ring.newest(), .nonce = store.nonce(), .tag = undefined };
    const ad = format.place(store.id, frame.inode, frame.level, frame.index);
    ring.of(pointer.generation, &pointer.nonce).seal(&out.bytes[out.count], &pointer.tag, frame.data, &ad, pointer.nonce[12..24]);
    out.count += 1;
    return pointer;
}

fn takeSlots(store: *Store, want: u64) Error!Run {
    const run = try store.slots.take(store.allocator, want);
    const end = run.start + run.count;
    if (end > format.SLOTS_MAX) return error.NoSpace;
    if (end > store.disk_slots) {
        const step = std.math.clamp(store.disk_slots / 8, GROW_SLOTS_MIN, GROW_SLOTS_MAX);
        const slots = @max(end, store.disk_slots + step);
        try store.disk.setBytes(slots * format.BLOCK_BYTES);
        store.disk_slots = slots;
    }
    return run;
}

/// Gives back slots that were taken and not needed, and writes what waits.
fn flush(store: *Store) Error!void {
    const left = store.out.left;
    for (left.start..left.start + left.count) |slot| try store.slots.free(store.allocator, slot);
    store.out.left.count = 0;
    try writeOut(store);
}

fn writeOut(store: *Store) Error!void {
    const out = &store.out;
    if (out.count == 0) return;
    try store.disk.writeAll(out.start * format.BLOCK_BYTES, std.mem.sliceAsBytes(out.bytes[0..out.count]));
    out.count = 0;
}
