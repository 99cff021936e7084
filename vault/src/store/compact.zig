//! Moving blocks to the front of the container and shrinking it; sealing everything anew.

const std = @import("std");
const format = @import("format.zig");
const xaes = @import("xaes.zig");
const inodes = @import("inodes.zig");
const roots = @import("roots.zig");
const tree = @import("tree.zig");
const commit = @import("commit.zig");
const Inode = inodes.Inode;
const store_file = @import("store.zig");
const Store = store_file.Store;
const Error = store_file.Error;

/// Each pass is a commit. The parents of what was moved leave room that only the next pass can use.
const PASSES_MAX = 8;

/// The store is as small as it gets without sealing more than what has to move.
pub fn compact(store: *Store, now_ns: u64) Error!void {
    try commit.commit(store, now_ns);
    store.slots.lowest_first = true;
    defer store.slots.lowest_first = false;
    var smallest: u64 = std.math.maxInt(u64);
    var in_vain: u32 = 0;
    for (0..PASSES_MAX) |_| {
        const end = store.slots.trim();
        const used = store.slots.taken_count + format.SLOT_FIRST;
        in_vain = if (end < smallest) 0 else in_vain + 1;
        smallest = @min(smallest, end);
        // A pass may fill what the next one frees, so one without success is not the end.
        if (end <= used or in_vain == 2) break;
        try pass(store, used);
        store.root.is_changed = true;
        try commit.commit(store, now_ns);
    }
    _ = store.slots.trim();
    // Both root records say how few slots there are before the others go.
    for (0..2) |_| {
        store.root.is_changed = true;
        try commit.commit(store, now_ns);
    }
    errdefer store.is_broken = true;
    try store.disk.setBytes(store.slots.end * format.BLOCK_BYTES);
    store.disk_slots = store.slots.end;
    try store.disk.makeDurable();
}

/// Seals every block anew under the newest data key, and drops the others.
pub fn rewrite(store: *Store, now_ns: u64) Error!void {
    try commit.commit(store, now_ns);
    const old = try store.allocator.create(xaes.Keyring);
    old.* = .{ .keys = store.ring.keys, .count = store.ring.count };
    var newest = store.ring.keys[store.ring.newest()];
    defer std.crypto.secureZero(u8, &newest);
    store.ring.wipe();
    store.ring.keys[0] = newest;
    store.ring.count = 1;
    store.old_ring = old;
    // Half of a rewriting cannot be gone on with: what was sealed counts its keys anew.
    errdefer store.is_broken = true;
    try pass(store, 0);
    roots.sealKeyring(store);
    try commit.commit(store, now_ns);
    old.wipe();
    store.allocator.destroy(old);
    store.old_ring = null;
    // The other root record still has the keyring with all keys.
    store.root.is_changed = true;
    try commit.commit(store, now_ns);
}

/// Marks every block in a slot at or behind `from`, so that it is sealed into another slot.
fn pass(store: *Store, from: u64) Error!void {
    const count = store.inodes.taken.words.items.len * 64;
    var number = store.inodes.taken.nextSet(0, count);
    while (number < count) : (number = store.inodes.taken.nextSet(number + 1, count)) {
        inodes.relieve(store);
        const inode = try inodes.get(store, number);
        if (inode.height != 0) try move(store, inode, inode.height - 1, 0, inode.root, from);
    }
    const table = &store.inodes.table;
    if (table.height != 0) try move(store, table, table.height - 1, 0, table.root, from);
}

fn move(store: *Store, inode: *Inode, level: u8, index: u64, pointer: format.Pointer, from: u64) Error!void {
    if (pointer.isHole()) return;
    const is_moved = pointer.slot >= from and store.slots.durable.has(pointer.slot);
    if (level == 0 and !is_moved) return;
    const found = if (level == 0)
        store.cache.find(inode.number, 0, index) orelse try tree.fetch(store, inode, index, 1)
    else
        try tree.node(store, inode, level, index);
    const frame = found orelse return;
    frame.pins += 1;
    defer frame.pins -= 1;
    if (is_moved) try tree.dirty(store, inode, frame);
    if (level == 0) return commit.relieve(store);
    for (0..format.FANOUT) |at| {
        const child = index * format.FANOUT + at;
        try move(store, inode, level - 1, child, try tree.decodeIn(store, inode, frame, child), from);
    }
}
