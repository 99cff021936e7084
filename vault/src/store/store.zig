//! A sealed store (docs/spec/sealed-store.md): inodes, names and contents in one container.
//!
//! No method takes the lock: whoever calls from more than one thread holds `lock` around each call.
//! Times are ns since 1970 and arguments, so the same calls make the same store.

const std = @import("std");
const errors = @import("errors.zig");
const format = @import("format.zig");
const xaes = @import("xaes.zig");
const roots = @import("roots.zig");
const inodes = @import("inodes.zig");
const directory = @import("directory.zig");
const naming = @import("naming.zig");
const files = @import("files.zig");
const pages = @import("pages.zig");
const commit_file = @import("commit.zig");
const Disk = @import("disk.zig").Disk;
const Cache = @import("cache.zig").Cache;
const Slots = @import("slots.zig").Slots;
const Lock = @import("lock.zig").Lock;

pub const Error = errors.Error;
pub const Damage = errors.Damage;
pub const ROOT: u64 = 1;
pub const NAME_MAX_BYTES = format.Entry.NAME_MAX_BYTES;
pub const SIZE_MAX_BYTES = format.SIZE_MAX;
/// As a level in a report of damage: no block of the inode, but its record.
pub const DAMAGE_RECORD = 253;

pub const Kind = enum(u8) { free = 0, file = 1, directory = 2, link = 3 };

pub const Stat = struct {
    inode: u64,
    kind: Kind,
    links: u32,
    size: u64,
    accessed_ns: u64,
    modified_ns: u64,
    changed_ns: u64,
    /// Of a directory, else 0.
    parent: u64,
};

pub const Entry = struct {
    inode: u64,
    kind: Kind,
    /// Valid until the next call of any method.
    name: []const u8,
    /// The cookie of what follows.
    next: u64,
};

pub const Store = struct {
    lock: Lock = .{},
    allocator: std.mem.Allocator,
    disk: Disk,
    id: format.StoreId = @splat(0),
    ring_key: format.Key = @splat(0),
    ring: xaes.Keyring = .{},
    /// While everything is rewritten: the keyring of what is not rewritten yet.
    old_ring: ?*xaes.Keyring = null,
    session: [16]u8,
    nonces: u64 = 0,
    root: roots.Root = .{},
    slots: Slots = .{},
    /// The container has this many whole slots.
    disk_slots: u64 = 0,
    cache: Cache,
    inodes: inodes.Inodes = .{},
    /// Found at opening.
    orphans: std.ArrayList(u64) = .empty,
    out: commit_file.Out,
    run: pages.Blocks,
    sealed_block: format.Block = undefined,
    name: [NAME_MAX_BYTES]u8 = undefined,
    is_read_only: bool = false,
    /// Who opened it. A process that was forked from this one has the same nonces before it.
    process: std.os.linux.pid_t,
    is_broken: bool = false,
    /// Where the last error.Damaged was found.
    damage: Damage = .{},

    /// Frees everything and wipes the keys. What was not committed is lost.
    pub fn close(self: *Store) void {
        const allocator = self.allocator;
        self.cache.deinit();
        self.inodes.deinit(allocator);
        self.slots.deinit(allocator);
        self.orphans.deinit(allocator);
        pages.give(self.out.bytes);
        pages.give(self.run);
        if (self.old_ring) |ring| {
            ring.wipe();
            allocator.destroy(ring);
        }
        std.crypto.secureZero(u8, std.mem.asBytes(&self.ring));
        std.crypto.secureZero(u8, &self.ring_key);
        allocator.destroy(self);
        xaes.wipeStack();
    }

    pub fn lookup(self: *Store, dir: u64, name: []const u8) Error!u64 {
        try self.usable();
        return naming.lookup(self, dir, name);
    }

    pub fn stat(self: *Store, inode: u64) Error!Stat {
        try self.usable();
        const found = try inodes.get(self, inode);
        return .{
            .inode = inode,
            .kind = found.kind,
            .links = found.links,
            .size = found.size,
            .accessed_ns = found.accessed_ns,
            .modified_ns = found.modified_ns,
            .changed_ns = found.changed_ns,
            .parent = found.parent,
        };
    }

    /// A new file, directory or link (write its target with `write`); returns its inode number.
    pub fn make(self: *Store, dir: u64, name: []const u8, kind: Kind, now_ns: u64) Error!u64 {
        try self.writable();
        return naming.make(self, dir, name, kind, now_ns);
    }

    /// One more name for what is no directory.
    pub fn link(self: *Store, inode: u64, dir: u64, name: []const u8, now_ns: u64) Error!void {
        try self.writable();
        return naming.link(self, inode, dir, name, now_ns);
    }

    /// Removes a name of what is no directory.
    pub fn unlink(self: *Store, dir: u64, name: []const u8, now_ns: u64) Error!void {
        try self.writable();
        return naming.unlink(self, dir, name, now_ns);
    }

    pub fn removeDirectory(self: *Store, dir: u64, name: []const u8, now_ns: u64) Error!void {
        try self.writable();
        return naming.removeDirectory(self, dir, name, now_ns);
    }

    /// As POSIX has it: replaces a file, or an empty directory by a directory.
    pub fn rename(self: *Store, from_dir: u64, from_name: []const u8, to_dir: u64, to_name: []const u8, now_ns: u64) Error!void {
        try self.writable();
        return naming.rename(self, from_dir, from_name, to_dir, to_name, now_ns);
    }

    /// Of a file or a link; how many bytes there were, 0 at the end.
    pub fn read(self: *Store, inode: u64, offset: u64, into: []u8) Error!usize {
        try self.usable();
        return files.read(self, inode, offset, into);
    }

    /// All of it, or nothing and an error. What it leaves out reads as zeros.
    pub fn write(self: *Store, inode: u64, offset: u64, bytes: []const u8, now_ns: u64) Error!void {
        try self.writable();
        return files.write(self, inode, offset, bytes, now_ns);
    }

    pub fn resize(self: *Store, inode: u64, size: u64, now_ns: u64) Error!void {
        try self.writable();
        return files.resize(self, inode, size, now_ns);
    }

    pub fn setTimes(self: *Store, inode: u64, accessed_ns: ?u64, modified_ns: ?u64, now_ns: u64) Error!void {
        try self.writable();
        const found = try inodes.get(self, inode);
        try inodes.touch(self, found);
        if (accessed_ns) |time| found.accessed_ns = time;
        if (modified_ns) |time| found.modified_ns = time;
        found.changed_ns = now_ns;
    }

    /// The first entry at or after an offset (0, or an entry's `next`); null at the end.
    pub fn entry(self: *Store, dir: u64, cookie: u64) Error!?Entry {
        try self.usable();
        return directory.atOrAfter(self, try naming.directoryAt(self, dir), cookie);
    }

    /// An inode in use lives on without a name, until as many `release` came as `retain`.
    pub fn retain(self: *Store, inode: u64) Error!void {
        try self.usable();
        const found = try inodes.get(self, inode);
        if (found.retained == std.math.maxInt(u32)) return error.TooLarge;
        found.retained += 1;
    }

    pub fn release(self: *Store, inode: u64, now_ns: u64) Error!void {
        _ = now_ns;
        try self.usable();
        const found = try inodes.get(self, inode);
        if (found.retained == 0) return error.Invalid;
        found.retained -= 1;
        if (!self.is_read_only) try inodes.discardIfUnused(self, found);
    }

    /// Makes all that happened durable, at once or not at all.
    pub fn commit(self: *Store, now_ns: u64) Error!void {
        return commit_file.commit(self, now_ns);
    }

    /// Commits with another value of the freshness anchor.
    pub fn commitWithAnchor(self: *Store, anchor: u64, now_ns: u64) Error!void {
        try self.writable();
        if (self.root.anchor != anchor) self.root.is_changed = true;
        self.root.anchor = anchor;
        try commit_file.commit(self, now_ns);
    }

    /// Every operation begins with this, or with `writable`.
    pub fn usable(self: *Store) Error!void {
        if (self.is_broken) return error.Broken;
        inodes.relieve(self);
    }

    pub fn writable(self: *Store) Error!void {
        if (self.is_read_only) return error.ReadOnly;
        try self.usable();
    }

    /// Notes where damage is. Level 253: the inode's record; 254: the root records.
    pub fn damagedAt(self: *Store, inode: u64, level: u8, index: u64) Error {
        self.damage = .{ .inode = inode, .level = level, .index = index };
        return error.Damaged;
    }

    /// A pointer has to be of a slot in use and a key that there is.
    pub fn checkPointer(self: *Store, pointer: format.Pointer, inode: u64, level: u8, index: u64) Error!void {
        if (pointer.slot >= self.slots.end) return self.damagedAt(inode, level, index);
        if (pointer.generation >= self.ringOf(pointer.slot).count) return self.damagedAt(inode, level, index);
    }

    pub fn ringOf(self: *Store, slot: u64) *xaes.Keyring {
        if (self.old_ring) |old| {
            if (self.slots.durable.has(slot)) return old;
        }
        return &self.ring;
    }

    /// Never the same twice: random for this opening, and counted.
    pub fn nonce(self: *Store) format.Nonce {
        self.nonces += 1;
        var value: format.Nonce = undefined;
        value[0..16].* = self.session;
        std.mem.writeInt(u64, value[16..24], self.nonces, .little);
        return value;
    }
};
