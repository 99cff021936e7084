//! The entries of a directory: found by name through an index in memory, changed in place.

const std = @import("std");
const Allocator = std.mem.Allocator;
const format = @import("format.zig");
const inodes = @import("inodes.zig");
const tree = @import("tree.zig");
const commit = @import("commit.zig");
const Frame = @import("cache.zig").Frame;
const Inode = inodes.Inode;
const Entry = format.Entry;
const store_file = @import("store.zig");
const Store = store_file.Store;
const Error = store_file.Error;

pub const Place = struct { inode: u64, offset: u64, kind: u8 };

/// All names of a directory, and how much room its blocks have. Made when it is first used.
pub const Index = struct {
    places: std.StringHashMapUnmanaged(Place) = .empty,
    /// The longest unused space in each block.
    room: std.ArrayList(u16) = .empty,
    /// Where the last entry was put: the next may fit there too.
    last_block: usize = 0,
    /// No block has room for an entry of this many bytes or more.
    no_room_for: u16 = format.BLOCK_BYTES,

    pub fn destroy(self: *Index, allocator: Allocator) void {
        var names = self.places.keyIterator();
        while (names.next()) |name| allocator.free(name.*);
        self.places.deinit(allocator);
        self.room.deinit(allocator);
        allocator.destroy(self);
    }

    fn put(self: *Index, allocator: Allocator, name: []const u8, place: Place) Allocator.Error!void {
        const owned = try allocator.dupe(u8, name);
        errdefer allocator.free(owned);
        try self.places.put(allocator, owned, place);
    }

    fn remove(self: *Index, allocator: Allocator, name: []const u8) void {
        const found = self.places.fetchRemove(name) orelse return;
        allocator.free(found.key);
    }

    /// A block with that much unused space in a row.
    fn blockWith(self: *Index, bytes: u16) ?usize {
        if (bytes >= self.no_room_for) return null;
        if (self.last_block < self.room.items.len and self.room.items[self.last_block] >= bytes) return self.last_block;
        for (self.room.items, 0..) |room, block| {
            if (room >= bytes) return block;
        }
        self.no_room_for = bytes;
        return null;
    }

    fn setRoom(self: *Index, block: usize, bytes: u16) void {
        if (bytes >= self.no_room_for) self.no_room_for = bytes + 1;
        self.room.items[block] = bytes;
    }
};

pub fn find(store: *Store, dir: *Inode, name: []const u8) Error!?Place {
    return (try indexOf(store, dir)).places.get(name);
}

pub fn isEmpty(store: *Store, dir: *Inode) Error!bool {
    return (try indexOf(store, dir)).places.count() == 0;
}

fn indexOf(store: *Store, dir: *Inode) Error!*Index {
    if (dir.index) |index| return index;
    inodes.makeRoomForIndex(store, dir);
    const index = try store.allocator.create(Index);
    index.* = .{};
    errdefer index.destroy(store.allocator);
    for (0..@intCast(dir.blocks())) |block| {
        const frame = try blockOf(store, dir, block);
        frame.pins += 1;
        defer frame.pins -= 1;
        var room: u16 = 0;
        var at: usize = 0;
        while (at < format.BLOCK_BYTES) {
            const entry = Entry.decode(frame.data, at) catch return store.damagedAt(dir.number, 0, block);
            if (entry.inode == 0) {
                room = @max(room, entry.bytes);
            } else {
                if (index.places.contains(entry.name)) return store.damagedAt(dir.number, 0, block);
                try index.put(store.allocator, entry.name, .{ .inode = entry.inode, .offset = block * format.BLOCK_BYTES + at, .kind = entry.kind });
            }
            at += entry.bytes;
        }
        try index.room.append(store.allocator, room);
    }
    dir.index = index;
    store.inodes.indexes += 1;
    return index;
}

/// No block of a directory is a hole.
fn blockOf(store: *Store, dir: *Inode, block: u64) Error!*Frame {
    const frame = store.cache.find(dir.number, 0, block) orelse try tree.fetch(store, dir, block, 1);
    return frame orelse store.damagedAt(dir.number, 0, block);
}

/// The name is valid and new. When this fails nothing has changed, or the store is broken.
pub fn insert(store: *Store, dir: *Inode, name: []const u8, inode: u64, kind: u8) Error!void {
    const index = try indexOf(store, dir);
    const bytes = Entry.bytesFor(name);
    const block = index.blockWith(bytes) orelse try append(store, dir, index);
    const frame = try change(store, dir, block);
    const at = try unusedIn(store, dir, frame, bytes);
    try index.put(store.allocator, name, .{ .inode = inode, .offset = @as(u64, block) * format.BLOCK_BYTES + at, .kind = kind });
    const space = (Entry.decode(frame.data, at) catch return store.damagedAt(dir.number, 0, block)).bytes;
    const rest = space - bytes;
    // What is too short for an entry goes to this one.
    const own: u16 = if (rest < Entry.BYTES_MIN) space else bytes;
    Entry.encode(.{ .inode = inode, .bytes = own, .kind = kind, .name = name }, frame.data, at);
    if (own != space) Entry.unused(rest).encode(frame.data, at + own);
    index.last_block = block;
    index.setRoom(block, try roomIn(store, dir, frame));
}

fn append(store: *Store, dir: *Inode, index: *Index) Error!usize {
    const block = index.room.items.len;
    try index.room.ensureUnusedCapacity(store.allocator, 1);
    errdefer store.is_broken = true;
    try tree.grow(store, dir, dir.size + format.BLOCK_BYTES);
    const frame = try tree.dataForWrite(store, dir, block, true);
    Entry.unused(format.BLOCK_BYTES).encode(frame.data, 0);
    index.room.appendAssumeCapacity(0);
    index.setRoom(block, format.BLOCK_BYTES);
    return block;
}

fn change(store: *Store, dir: *Inode, block: u64) Error!*Frame {
    _ = try blockOf(store, dir, block);
    return tree.dataForWrite(store, dir, block, false);
}

fn unusedIn(store: *Store, dir: *Inode, frame: *Frame, bytes: u16) Error!usize {
    var at: usize = 0;
    while (at < format.BLOCK_BYTES) {
        const entry = Entry.decode(frame.data, at) catch break;
        if (entry.inode == 0 and entry.bytes >= bytes) return at;
        at += entry.bytes;
    }
    return store.damagedAt(dir.number, 0, frame.index);
}

fn roomIn(store: *Store, dir: *Inode, frame: *Frame) Error!u16 {
    var room: u16 = 0;
    var at: usize = 0;
    while (at < format.BLOCK_BYTES) {
        const entry = Entry.decode(frame.data, at) catch return store.damagedAt(dir.number, 0, frame.index);
        if (entry.inode == 0) room = @max(room, entry.bytes);
        at += entry.bytes;
    }
    return room;
}

/// Takes an entry away and joins the unused space around it; blocks at the end that are unused go.
pub fn remove(store: *Store, dir: *Inode, name: []const u8) Error!void {
    const index = try indexOf(store, dir);
    const place = index.places.get(name) orelse return error.NotFound;
    const block = place.offset / format.BLOCK_BYTES;
    const frame = try change(store, dir, block);
    var from: usize = 0;
    var end: usize = 0;
    const target: usize = @intCast(place.offset % format.BLOCK_BYTES);
    // From the start of the unused space before the entry to the end of that behind it.
    while (end < format.BLOCK_BYTES) {
        const entry = Entry.decode(frame.data, end) catch return store.damagedAt(dir.number, 0, block);
        const is_unused = entry.inode == 0 or end == target;
        if (!is_unused) {
            if (end > target) break;
            from = end + entry.bytes;
        }
        end += entry.bytes;
    }
    Entry.unused(@intCast(end - from)).encode(frame.data, from);
    index.setRoom(@intCast(block), try roomIn(store, dir, frame));
    index.remove(store.allocator, name);
    try shorten(store, dir, index);
}

fn shorten(store: *Store, dir: *Inode, index: *Index) Error!void {
    var blocks = index.room.items.len;
    while (blocks != 0 and index.room.items[blocks - 1] == format.BLOCK_BYTES) blocks -= 1;
    if (blocks == index.room.items.len) return;
    errdefer store.is_broken = true;
    try tree.shrink(store, dir, blocks * format.BLOCK_BYTES);
    index.room.shrinkRetainingCapacity(blocks);
}

/// Points an entry to another inode.
pub fn redirect(store: *Store, dir: *Inode, name: []const u8, inode: u64, kind: u8) Error!void {
    const index = try indexOf(store, dir);
    const place = index.places.getPtr(name) orelse return error.NotFound;
    const frame = try change(store, dir, place.offset / format.BLOCK_BYTES);
    const at: usize = @intCast(place.offset % format.BLOCK_BYTES);
    std.mem.writeInt(u64, frame.data[at..][0..8], inode, .little);
    frame.data[at + 10] = kind;
    place.inode = inode;
    place.kind = kind;
}

/// The first entry at or after an offset.
pub fn atOrAfter(store: *Store, dir: *Inode, offset: u64) Error!?store_file.Entry {
    var block = offset / format.BLOCK_BYTES;
    while (block < dir.blocks()) : (block += 1) {
        const frame = try blockOf(store, dir, block);
        var at: usize = 0;
        while (at < format.BLOCK_BYTES) {
            const entry = Entry.decode(frame.data, at) catch return store.damagedAt(dir.number, 0, block);
            const here = block * format.BLOCK_BYTES + at;
            if (entry.inode != 0 and here >= offset) {
                @memcpy(store.name[0..entry.name.len], entry.name);
                return .{
                    .inode = entry.inode,
                    .kind = @fromBackingInt(@intCast(entry.kind)),
                    .name = store.name[0..entry.name.len],
                    .next = here + entry.bytes,
                };
            }
            at += entry.bytes;
        }
    }
    return null;
}
