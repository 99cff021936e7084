//! Reading and proving everything, and saying where a store is not what it should be.

const std = @import("std");
const errors = @import("errors.zig");
const format = @import("format.zig");
const inodes = @import("inodes.zig");
const tree = @import("tree.zig");
const directory = @import("directory.zig");
const naming = @import("naming.zig");
const Inode = inodes.Inode;
const store_file = @import("store.zig");
const Store = store_file.Store;
const Error = store_file.Error;

/// What is wrong at a place.
pub const Finding = enum(u32) {
    /// A block that does not open, or whose content has not the form that it must have.
    block = 0,
    /// The number of names is not the number of links.
    links = 1,
    /// Bytes behind the size that are not zero.
    tail = 2,
};

const Report = struct {
    into: []errors.Damage,
    count: usize = 0,

    /// Names behind damage are not known, so links cannot be counted.
    has_lost_names: bool = false,

    fn add(self: *Report, inode: u64, level: u32, index: u64, finding: Finding) void {
        const new: errors.Damage = .{ .inode = inode, .level = level, .index = index, .kind = @backingInt(finding) };
        // A block of a directory is looked at twice: as a block, and for its entries.
        for (self.into[0..@min(self.count, self.into.len)]) |known| {
            if (std.meta.eql(known, new)) return;
        }
        if (self.count < self.into.len) self.into[self.count] = new;
        self.count += 1;
    }

    /// Damage is noted; every other error ends the check.
    fn note(self: *Report, store: *Store, err: Error) Error!void {
        if (err != error.Damaged) return err;
        self.add(store.damage.inode, store.damage.level, store.damage.index, .block);
    }
};

/// Fills `into` and returns how many findings there are, which may be more. Blocks that wait for
/// the next commit are not read from the disk, for they are not there.
pub fn check(store: *Store, into: []errors.Damage) Error!usize {
    var report: Report = .{ .into = into };
    const block = try store.allocator.create(format.Block);
    defer store.allocator.destroy(block);
    const table = &store.inodes.table;
    if (table.height != 0) try checkTree(store, table, table.height - 1, 0, table.root, block, &report);
    const count = store.inodes.taken.words.items.len * 64;
    const names = try store.allocator.alloc(u32, count);
    defer store.allocator.free(names);
    @memset(names, 0);
    var number = store.inodes.taken.nextSet(0, count);
    while (number < count) : (number = store.inodes.taken.nextSet(number + 1, count)) {
        inodes.relieve(store);
        checkInode(store, number, names, block, &report) catch |err| {
            try report.note(store, err);
            report.has_lost_names = true;
        };
    }
    if (report.has_lost_names) return report.count;
    names[store_file.ROOT] += 1;
    number = store.inodes.taken.nextSet(0, count);
    while (number < count) : (number = store.inodes.taken.nextSet(number + 1, count)) {
        inodes.relieve(store);
        // A record that cannot be read was found above.
        const inode = inodes.get(store, number) catch |err| {
            if (err == error.Damaged) continue;
            return err;
        };
        if (inode.links != names[@intCast(number)]) report.add(number, store_file.DAMAGE_RECORD, 0, .links);
    }
    return report.count;
}

fn checkInode(store: *Store, number: u64, names: []u32, block: *format.Block, report: *Report) Error!void {
    const inode = try inodes.get(store, number);
    if (inode.height != 0) try checkTree(store, inode, inode.height - 1, 0, inode.root, block, report);
    if (inode.kind != .directory) return;
    var cookie: u64 = 0;
    while (true) {
        inodes.relieve(store);
        const dir = try inodes.get(store, number);
        const found_entry = directory.atOrAfter(store, dir, cookie) catch |err| {
            try report.note(store, err);
            report.has_lost_names = true;
            // The blocks behind the damage may be whole.
            if (store.damage.inode != number or store.damage.level != 0) return;
            cookie = (store.damage.index + 1) * format.BLOCK_BYTES;
            continue;
        };
        const entry = found_entry orelse return;
        cookie = entry.next;
        const place: directory.Place = .{ .inode = entry.inode, .offset = entry.next - 1, .kind = @backingInt(entry.kind) };
        const found = naming.inodeOf(store, dir, place) catch |err| {
            try report.note(store, err);
            continue;
        };
        names[@intCast(found.number)] += 1;
    }
}

fn checkTree(store: *Store, inode: *Inode, level: u8, index: u64, pointer: format.Pointer, block: *format.Block, report: *Report) Error!void {
    const cached = store.cache.find(inode.number, level, index);
    const is_waiting = cached != null and cached.?.is_dirty;
    if (pointer.isHole() and !is_waiting) return;
    if (!is_waiting) {
        tree.readBlock(store, inode.number, level, index, pointer, block) catch |err| return report.note(store, err);
    }
    if (level == 0) {
        const content = if (is_waiting) cached.?.data else block;
        if (index + 1 == inode.blocks() and inode.size % format.BLOCK_BYTES != 0 and
            !format.isZero(content[@intCast(inode.size % format.BLOCK_BYTES)..])) report.add(inode.number, 0, index, .tail);
        return;
    }
    // What is in memory is used below: what the disk holds was proven to be the same.
    const frame = tree.node(store, inode, level, index) catch |err| return report.note(store, err);
    const above = frame orelse return;
    above.pins += 1;
    defer above.pins -= 1;
    for (0..format.FANOUT) |at| {
        const child = index * format.FANOUT + at;
        const below = tree.decodeIn(store, inode, above, child) catch |err| {
            try report.note(store, err);
            continue;
        };
        if (child * format.SPAN[level - 1] >= inode.blocks()) break;
        try checkTree(store, inode, level - 1, child, below, block, report);
    }
}

/// The path of an inode, by a walk from the root: for messages. Returns its length, 0 when it has
/// none. Directories that cannot be read are passed over.
pub fn pathOf(store: *Store, number: u64, into: []u8) usize {
    if (number == store_file.ROOT) {
        if (into.len == 0) return 0;
        into[0] = '/';
        return 1;
    }
    var entries_left: u32 = PATH_ENTRIES_MAX;
    return search(store, store_file.ROOT, number, into, 0, 0, &entries_left);
}

/// Deeper than this no path is looked for, and not behind more names: whoever has the key can make
/// directories that are found on very many ways.
const PATH_DEPTH_MAX = 64;
const PATH_ENTRIES_MAX = 1 << 20;

fn search(store: *Store, dir: u64, number: u64, into: []u8, length: usize, depth: u32, entries_left: *u32) usize {
    if (depth == PATH_DEPTH_MAX) return 0;
    var cookie: u64 = 0;
    while (entries_left.* != 0) {
        entries_left.* -= 1;
        const inode = inodes.get(store, dir) catch return 0;
        if (inode.kind != .directory) return 0;
        const found = directory.atOrAfter(store, inode, cookie) catch {
            // The next block may be whole.
            cookie = (cookie / format.BLOCK_BYTES + 1) * format.BLOCK_BYTES;
            if (cookie >= inode.size) return 0;
            continue;
        };
        const entry = found orelse return 0;
        cookie = entry.next;
        const end = length + 1 + entry.name.len;
        if (end > into.len) continue;
        into[length] = '/';
        @memcpy(into[length + 1 .. end], entry.name);
        if (entry.inode == number) return end;
        if (entry.kind != .directory) continue;
        const whole = search(store, entry.inode, number, into, end, depth + 1, entries_left);
        if (whole != 0) return whole;
    }
    return 0;
}
