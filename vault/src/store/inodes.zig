//! Inodes in memory, and the table that they come from and go to (the file with the number 0).

const std = @import("std");
const Allocator = std.mem.Allocator;
const format = @import("format.zig");
const tree = @import("tree.zig");
const directory = @import("directory.zig");
const Bitmap = @import("slots.zig").Bitmap;
const store_file = @import("store.zig");
const Store = store_file.Store;
const Kind = store_file.Kind;
const Error = store_file.Error;

/// From this many on those go in which nothing was changed.
const KNOWN_MAX = 8192;
/// Directories whose names are kept in memory.
const INDEXES_MAX = 64;

pub const Inode = struct {
    number: u64,
    kind: Kind,
    height: u8 = 0,
    links: u32 = 0,
    size: u64 = 0,
    accessed_ns: u64 = 0,
    modified_ns: u64 = 0,
    changed_ns: u64 = 0,
    parent: u64 = 0,
    root: format.Pointer = .hole,

    is_dirty: bool = false,
    retained: u32 = 0,
    /// For reading ahead: the block after the last one read, and how many were read at once.
    next_block: u64 = std.math.maxInt(u64),
    window: u64 = 1,
    index: ?*directory.Index = null,

    pub fn blocks(self: *const Inode) u64 {
        return format.blocksOf(self.size);
    }
};

pub const Inodes = struct {
    table: Inode = .{ .number = 0, .kind = .file },
    known: std.AutoHashMapUnmanaged(u64, *Inode) = .empty,
    dirty: std.ArrayList(*Inode) = .empty,
    /// Numbers in use.
    taken: Bitmap = .{},
    free_from: u64 = store_file.ROOT,
    indexes: u32 = 0,
    forget_at: u32 = KNOWN_MAX,
    last: ?*Inode = null,

    pub fn deinit(self: *Inodes, allocator: Allocator) void {
        var all = self.known.valueIterator();
        while (all.next()) |inode| {
            if (inode.*.index) |index| index.destroy(allocator);
            allocator.destroy(inode.*);
        }
        self.known.deinit(allocator);
        self.dirty.deinit(allocator);
        self.taken.deinit(allocator);
    }
};

/// Valid until the end of the operation.
pub fn get(store: *Store, number: u64) Error!*Inode {
    if (store.inodes.last) |last| {
        if (last.number == number and last.kind != .free) return last;
    }
    const inode = store.inodes.known.get(number) orelse try load(store, number);
    if (inode.kind == .free) return error.NotFound;
    store.inodes.last = inode;
    return inode;
}

fn load(store: *Store, number: u64) Error!*Inode {
    if (number == 0 or !store.inodes.taken.has(number)) return error.NotFound;
    const block = number / format.INODES_IN_BLOCK;
    const frame = try tree.data(store, &store.inodes.table, block) orelse return store.damagedAt(0, 0, block);
    const decoded = format.Record.decode(recordOf(frame.data, number)) catch return store.damagedAt(0, 0, block);
    const record = decoded orelse return store.damagedAt(0, 0, block);
    if (!record.root.isHole()) try store.checkPointer(record.root, 0, 0, block);
    const inode = try store.allocator.create(Inode);
    errdefer store.allocator.destroy(inode);
    inode.* = .{
        .number = number,
        .kind = @fromBackingInt(@intCast(record.kind)),
        .height = record.height,
        .links = record.links,
        .size = record.size,
        .accessed_ns = record.accessed_ns,
        .modified_ns = record.modified_ns,
        .changed_ns = record.changed_ns,
        .parent = record.parent,
        .root = record.root,
    };
    try store.inodes.known.put(store.allocator, number, inode);
    return inode;
}

pub fn recordOf(block: *format.Block, number: u64) *[format.INODE_BYTES]u8 {
    const at: usize = @intCast(number % format.INODES_IN_BLOCK);
    return block[at * format.INODE_BYTES ..][0..format.INODE_BYTES];
}

/// To be sealed with the next commit.
pub fn touch(store: *Store, inode: *Inode) Error!void {
    if (inode.is_dirty or inode.number == 0) return;
    try store.inodes.dirty.append(store.allocator, inode);
    inode.is_dirty = true;
}

/// A new inode without a name, under the lowest number that is free.
pub fn create(store: *Store, kind: Kind, now_ns: u64) Error!*Inode {
    const inodes = &store.inodes;
    const number = inodes.taken.nextClear(inodes.free_from, std.math.maxInt(u64));
    try inodes.taken.ensure(store.allocator, number + 1);
    const known = inodes.known.get(number);
    const inode = known orelse try store.allocator.create(Inode);
    const was_dirty = known != null and inode.is_dirty;
    inode.* = .{ .number = number, .kind = kind, .accessed_ns = now_ns, .modified_ns = now_ns, .changed_ns = now_ns, .is_dirty = was_dirty };
    if (known == null) inodes.known.put(store.allocator, number, inode) catch |err| {
        store.allocator.destroy(inode);
        return err;
    };
    // Until a name has been made this may still be taken back by `discard`.
    try touch(store, inode);
    inodes.taken.set(number);
    inodes.free_from = number + 1;
    return inode;
}

/// Takes back the content and the number of an inode that nobody can reach any more.
pub fn discard(store: *Store, inode: *Inode) Error!void {
    try touch(store, inode);
    try tree.shrink(store, inode, 0);
    forgetIndex(store, inode);
    inode.kind = .free;
    store.inodes.taken.clear(inode.number);
    store.inodes.free_from = @min(store.inodes.free_from, inode.number);
    if (store.inodes.last == inode) store.inodes.last = null;
}

/// Without names and without users: gone.
pub fn discardIfUnused(store: *Store, inode: *Inode) Error!void {
    if (inode.links == 0 and inode.retained == 0) try discard(store, inode);
}

pub fn forgetIndex(store: *Store, inode: *Inode) void {
    if (inode.index) |index| {
        index.destroy(store.allocator);
        inode.index = null;
        store.inodes.indexes -= 1;
    }
}

/// Before one more directory gets an index.
pub fn makeRoomForIndex(store: *Store, keep: *Inode) void {
    if (store.inodes.indexes < INDEXES_MAX) return;
    var all = store.inodes.known.valueIterator();
    while (all.next()) |inode| {
        if (inode.* != keep) forgetIndex(store, inode.*);
    }
}

/// Writes what changed into the table.
pub fn storeDirty(store: *Store) Error!void {
    const inodes = &store.inodes;
    const table = &inodes.table;
    for (inodes.dirty.items) |inode| {
        const block = inode.number / format.INODES_IN_BLOCK;
        if ((block + 1) * format.BLOCK_BYTES > table.size) try tree.grow(store, table, (block + 1) * format.BLOCK_BYTES);
        const frame = try tree.dataForWrite(store, table, block, false);
        const into = recordOf(frame.data, inode.number);
        if (inode.kind == .free) @memset(into, 0) else recordFrom(inode).encode(into);
    }
}

fn recordFrom(inode: *const Inode) format.Record {
    return .{
        .kind = @backingInt(inode.kind),
        .height = inode.height,
        .links = inode.links,
        .size = inode.size,
        .accessed_ns = inode.accessed_ns,
        .modified_ns = inode.modified_ns,
        .changed_ns = inode.changed_ns,
        .parent = inode.parent,
        .root = inode.root,
    };
}

/// After a commit: nothing is dirty, and what is not in use may go.
pub fn committed(store: *Store) void {
    const inodes = &store.inodes;
    for (inodes.dirty.items) |inode| {
        inode.is_dirty = false;
        if (inode.kind != .free) continue;
        _ = inodes.known.remove(inode.number);
        store.allocator.destroy(inode);
    }
    inodes.dirty.clearRetainingCapacity();
    inodes.last = null;
}

/// Between two operations: inodes that nobody uses go when there are many.
pub fn relieve(store: *Store) void {
    const inodes = &store.inodes;
    if (inodes.known.count() < inodes.forget_at) return;
    inodes.last = null;
    var kept: std.AutoHashMapUnmanaged(u64, *Inode) = .empty;
    var count: u32 = 0;
    var counted = inodes.known.valueIterator();
    while (counted.next()) |inode| count += @intFromBool(isHeld(inode.*));
    kept.ensureTotalCapacity(store.allocator, count) catch return;
    var all = inodes.known.valueIterator();
    while (all.next()) |inode| {
        if (isHeld(inode.*)) {
            kept.putAssumeCapacity(inode.*.number, inode.*);
        } else {
            store.allocator.destroy(inode.*);
        }
    }
    inodes.known.deinit(store.allocator);
    inodes.known = kept;
    // Where all are held, the next look is worth it only when there are twice as many.
    inodes.forget_at = KNOWN_MAX +| 2 *| count;
}

fn isHeld(inode: *const Inode) bool {
    return inode.is_dirty or inode.retained != 0 or inode.index != null;
}
