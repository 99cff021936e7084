//! Making a new store, and opening one: the walk that finds which slots are free.

const std = @import("std");
const format = @import("format.zig");
const inodes = @import("inodes.zig");
const roots = @import("roots.zig");
const pages = @import("pages.zig");
const tree = @import("tree.zig");
const commit = @import("commit.zig");
const Disk = @import("disk.zig").Disk;
const Cache = @import("cache.zig").Cache;
const Inode = inodes.Inode;
const store_file = @import("store.zig");
const Store = store_file.Store;
const Error = store_file.Error;

/// Random bytes for one opening: the first 16 of its nonces.
pub const SESSION_BYTES = 16;
pub const NewEntropy = extern struct {
    id: format.StoreId,
    ring_key: format.Key,
    data_key: format.Key,
    session: [SESSION_BYTES]u8,
};

/// Memory for a store on this disk, with nothing in it yet.
pub fn prepare(allocator: std.mem.Allocator, disk: Disk, session: *const [SESSION_BYTES]u8, cache_bytes: u64) Error!*Store {
    const store = try allocator.create(Store);
    errdefer allocator.destroy(store);
    const out = try pages.take(commit.OUT_BLOCKS);
    errdefer pages.give(out);
    const run = try pages.take(tree.RUN_MAX);
    errdefer pages.give(run);
    store.* = .{
        .allocator = allocator,
        .disk = disk,
        .session = session.*,
        .process = std.os.linux.getpid(),
        .cache = try Cache.init(allocator, cache_bytes),
        .out = .{ .bytes = out },
        .run = run,
    };
    return store;
}

/// A new store with these owner keys and an empty root directory, committed.
pub fn create(store: *Store, entropy: *const NewEntropy, owners: []const format.Key, now_ns: u64) Error!void {
    if (owners.len == 0 or owners.len > roots.KEY_SLOTS) return error.Invalid;
    try refuseExisting(store);
    store.id = entropy.id;
    store.ring_key = entropy.ring_key;
    store.ring.keys[0] = entropy.data_key;
    store.ring.count = 1;
    roots.begin(&store.root, &store.id);
    roots.sealKeyring(store);
    for (owners, 0..) |*owner, index| {
        for (owners[0..index]) |*earlier| {
            if (std.crypto.timing_safe.eql(format.Key, earlier.*, owner.*)) return error.Exists;
        }
        roots.sealKeySlot(store, index, owner);
    }
    const root = try inodes.create(store, .directory, now_ns);
    std.debug.assert(root.number == store_file.ROOT);
    root.links = 1;
    root.parent = store_file.ROOT;
    // What a store that was cut while being created has left behind goes.
    try store.disk.setBytes(0);
    try store.disk.setBytes(format.SLOT_FIRST * format.BLOCK_BYTES);
    store.disk_slots = format.SLOT_FIRST;
    try commit.commit(store, now_ns);
}

/// A disk with a whole root record is a store, whoever's it is.
fn refuseExisting(store: *Store) Error!void {
    for (0..roots.COPIES) |slot| {
        var record: format.Block = undefined;
        if (try store.disk.readUpTo(slot * format.BLOCK_BYTES, &record) < record.len) return;
        const has_end = !format.isZero(record[format.BLOCK_BYTES - format.TAG_BYTES ..]);
        if (has_end and std.mem.eql(u8, record[0..8], roots.MAGIC)) return error.Exists;
    }
}

pub fn open(store: *Store, owner: *const format.Key, read_only: bool, now_ns: u64) Error!void {
    const body = try roots.open(store, owner);
    store.disk_slots = @min(try store.disk.sizeBytes() / format.BLOCK_BYTES, format.SLOTS_MAX);
    if (body.slots > store.disk_slots) return store.damagedAt(0, roots.DAMAGE_ROOT, body.slots);
    store.slots.end = body.slots;
    try store.slots.taken.ensure(store.allocator, body.slots);
    try store.slots.durable.ensure(store.allocator, body.slots);
    const table = &store.inodes.table;
    table.size = body.table_size;
    table.height = body.table_height;
    table.root = body.table_root;
    try walkTable(store);
    const root = inodes.get(store, store_file.ROOT) catch |err| return switch (err) {
        error.NotFound => store.damagedAt(0, 0, 0),
        else => err,
    };
    if (root.kind != .directory or root.parent != store_file.ROOT or root.links != 1) return store.damagedAt(0, 0, 0);
    store.is_read_only = read_only;
    if (read_only) return;
    try roots.settle(store);
    try removeOrphans(store, now_ns);
}

fn walkTable(store: *Store) Error!void {
    const table = &store.inodes.table;
    if (table.height == 0) return store.damagedAt(0, 0, 0);
    if (table.root.isHole()) return store.damagedAt(0, 0, 0);
    try store.checkPointer(table.root, 0, roots.DAMAGE_ROOT, 0);
    try walk(store, table, table.height - 1, 0, table.root);
}

/// Claims the slots of a block and of all below it.
fn walk(store: *Store, inode: *Inode, level: u8, index: u64, pointer: format.Pointer) Error!void {
    if (pointer.isHole()) return;
    if (!store.slots.claim(pointer.slot)) return store.damagedAt(inode.number, level, index);
    if (level == 0 and inode.number != 0) return;
    const frame = try tree.node(store, inode, level, index) orelse return store.damagedAt(inode.number, level, index);
    frame.pins += 1;
    defer frame.pins -= 1;
    if (level == 0) return walkRecords(store, frame.data, index);
    if (!format.isZero(frame.data[format.FANOUT * format.POINTER_BYTES ..])) return store.damagedAt(inode.number, level, index);
    const blocks = inode.blocks();
    for (0..format.FANOUT) |at| {
        const child = index * format.FANOUT + at;
        const below = try tree.decodeIn(store, inode, frame, child);
        const is_behind = child * format.SPAN[level - 1] >= blocks;
        // A directory is as large as the blocks that it has, so whoever looks through it comes to an end.
        const is_wrong = if (below.isHole()) inode.kind == .directory and !is_behind else is_behind;
        if (is_wrong) return store.damagedAt(inode.number, level, index);
        try walk(store, inode, level - 1, child, below);
    }
}

fn walkRecords(store: *Store, block: *format.Block, index: u64) Error!void {
    // As many blocks of records as there are slots, so that a number cannot ask for memory at will.
    if (index > store.slots.end) return store.damagedAt(0, 0, index);
    const first = index * format.INODES_IN_BLOCK;
    for (first..first + format.INODES_IN_BLOCK) |number| {
        const bytes = inodes.recordOf(block, number);
        const decoded = format.Record.decode(bytes) catch return store.damagedAt(0, 0, index);
        const record = decoded orelse continue;
        if (number == 0 or number >= store.inodes.table.size / format.INODE_BYTES) return store.damagedAt(0, 0, index);
        try store.inodes.taken.ensure(store.allocator, number + 1);
        store.inodes.taken.set(number);
        if (!record.root.isHole()) try store.checkPointer(record.root, 0, 0, index);
        var inode: Inode = .{
            .number = number,
            .kind = @fromBackingInt(@intCast(record.kind)),
            .height = record.height,
            .size = record.size,
            .root = record.root,
        };
        if (record.links == 0) try store.orphans.append(store.allocator, number);
        if (inode.kind == .directory and inode.height != 0 and inode.root.isHole()) return store.damagedAt(0, 0, index);
        if (inode.height != 0) try walk(store, &inode, inode.height - 1, 0, inode.root);
    }
}

/// What was deleted while it was in use, and nobody can use any more.
fn removeOrphans(store: *Store, now_ns: u64) Error!void {
    if (store.orphans.items.len == 0) return;
    for (store.orphans.items) |number| try inodes.discard(store, try inodes.get(store, number));
    store.orphans.clearAndFree(store.allocator);
    try commit.commit(store, now_ns);
}
