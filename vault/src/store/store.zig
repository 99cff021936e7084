//! A sealed store (docs/spec/sealed-store.md): inodes, names and contents in one container.
//!
//! No method takes the lock: whoever calls from more than one thread holds `lock` around each call.
//! Times are ns since 1970 and arguments, so the same calls make the same store.

const std = @import("std");
const errors = @import("errors.zig");
const Lock = @import("lock.zig").Lock;

pub const Error = errors.Error;
pub const Damage = errors.Damage;
pub const ROOT: u64 = 1;
pub const NAME_MAX_BYTES = 255;

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

    pub fn lookup(self: *Store, dir: u64, name: []const u8) Error!u64 {
        _ = .{ self, dir, name };
        return error.Invalid;
    }

    pub fn stat(self: *Store, inode: u64) Error!Stat {
        _ = .{ self, inode };
        return error.Invalid;
    }

    /// A new file, directory or link (write its target with `write`); returns its inode number.
    pub fn make(self: *Store, dir: u64, name: []const u8, kind: Kind, now_ns: u64) Error!u64 {
        _ = .{ self, dir, name, kind, now_ns };
        return error.Invalid;
    }

    /// One more name for what is no directory.
    pub fn link(self: *Store, inode: u64, dir: u64, name: []const u8, now_ns: u64) Error!void {
        _ = .{ self, inode, dir, name, now_ns };
        return error.Invalid;
    }

    /// Removes a name of what is no directory.
    pub fn unlink(self: *Store, dir: u64, name: []const u8, now_ns: u64) Error!void {
        _ = .{ self, dir, name, now_ns };
        return error.Invalid;
    }

    pub fn removeDirectory(self: *Store, dir: u64, name: []const u8, now_ns: u64) Error!void {
        _ = .{ self, dir, name, now_ns };
        return error.Invalid;
    }

    /// As POSIX has it: replaces a file, or an empty directory by a directory.
    pub fn rename(self: *Store, from_dir: u64, from_name: []const u8, to_dir: u64, to_name: []const u8, now_ns: u64) Error!void {
        _ = .{ self, from_dir, from_name, to_dir, to_name, now_ns };
        return error.Invalid;
    }

    /// Of a file or a link; how many bytes there were, 0 at the end.
    pub fn read(self: *Store, inode: u64, offset: u64, into: []u8) Error!usize {
        _ = .{ self, inode, offset, into };
        return error.Invalid;
    }

    /// All of it, or nothing and an error. What it leaves out reads as zeros.
    pub fn write(self: *Store, inode: u64, offset: u64, bytes: []const u8, now_ns: u64) Error!void {
        _ = .{ self, inode, offset, bytes, now_ns };
        return error.Invalid;
    }

    pub fn resize(self: *Store, inode: u64, size: u64, now_ns: u64) Error!void {
        _ = .{ self, inode, size, now_ns };
        return error.Invalid;
    }

    pub fn setTimes(self: *Store, inode: u64, accessed_ns: ?u64, modified_ns: ?u64, now_ns: u64) Error!void {
        _ = .{ self, inode, accessed_ns, modified_ns, now_ns };
        return error.Invalid;
    }

    /// The first entry at or after an offset (0, or an entry's `next`); null at the end.
    pub fn entry(self: *Store, dir: u64, cookie: u64) Error!?Entry {
        _ = .{ self, dir, cookie };
        return error.Invalid;
    }

    /// An inode in use lives on without a name, until as many `release` came as `retain`.
    pub fn retain(self: *Store, inode: u64) Error!void {
        _ = .{ self, inode };
        return error.Invalid;
    }

    pub fn release(self: *Store, inode: u64, now_ns: u64) Error!void {
        _ = .{ self, inode, now_ns };
        return error.Invalid;
    }

    /// Makes all that happened durable, at once or not at all.
    pub fn commit(self: *Store, now_ns: u64) Error!void {
        _ = .{ self, now_ns };
        return error.Invalid;
    }
};
