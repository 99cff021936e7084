//! Operations on names: making, linking, removing and renaming, as POSIX has them.

const std = @import("std");
const format = @import("format.zig");
const inodes = @import("inodes.zig");
const directory = @import("directory.zig");
const Inode = inodes.Inode;
const store_file = @import("store.zig");
const Store = store_file.Store;
const Kind = store_file.Kind;
const Error = store_file.Error;

/// More directories above one another than this are a loop.
const DEPTH_MAX = 1 << 20;

pub fn directoryAt(store: *Store, number: u64) Error!*Inode {
    const inode = try inodes.get(store, number);
    return if (inode.kind == .directory) inode else error.NotDirectory;
}

/// The inode of an entry, which has to be there and of its kind.
pub fn inodeOf(store: *Store, dir: *Inode, place: directory.Place) Error!*Inode {
    const block = place.offset / format.BLOCK_BYTES;
    const inode = inodes.get(store, place.inode) catch |err| return switch (err) {
        error.NotFound => store.damagedAt(dir.number, 0, block),
        else => err,
    };
    if (@backingInt(inode.kind) != place.kind or inode.links == 0) return store.damagedAt(dir.number, 0, block);
    // The root directory has no name: one would be a loop.
    const is_misplaced = inode.number == store_file.ROOT or (inode.kind == .directory and inode.parent != dir.number);
    if (is_misplaced) return store.damagedAt(dir.number, 0, block);
    return inode;
}

fn entryOf(store: *Store, dir: *Inode, name: []const u8) Error!?*Inode {
    const place = try directory.find(store, dir, name) orelse return null;
    return try inodeOf(store, dir, place);
}

pub fn lookup(store: *Store, number: u64, name: []const u8) Error!u64 {
    const dir = try directoryAt(store, number);
    if (!format.isName(name)) return error.NameInvalid;
    const inode = try entryOf(store, dir, name) orelse return error.NotFound;
    return inode.number;
}

/// A directory that a new name may go to: not one that was removed while in use.
fn openFor(store: *Store, number: u64, name: []const u8) Error!*Inode {
    const dir = try directoryAt(store, number);
    if (!format.isName(name)) return error.NameInvalid;
    if (dir.links == 0) return error.NotFound;
    return dir;
}

pub fn make(store: *Store, number: u64, name: []const u8, kind: Kind, now_ns: u64) Error!u64 {
    if (kind == .free) return error.Invalid;
    const dir = try openFor(store, number, name);
    if (try directory.find(store, dir, name) != null) return error.Exists;
    try inodes.touch(store, dir);
    const inode = try inodes.create(store, kind, now_ns);
    directory.insert(store, dir, name, inode.number, @backingInt(kind)) catch |err| {
        inodes.discard(store, inode) catch {
            store.is_broken = true;
        };
        return err;
    };
    inode.links = 1;
    if (kind == .directory) inode.parent = dir.number;
    changed(dir, now_ns);
    return inode.number;
}

fn changed(dir: *Inode, now_ns: u64) void {
    dir.modified_ns = now_ns;
    dir.changed_ns = now_ns;
}

pub fn link(store: *Store, target: u64, number: u64, name: []const u8, now_ns: u64) Error!void {
    const dir = try openFor(store, number, name);
    const inode = try inodes.get(store, target);
    if (inode.kind == .directory) return error.IsDirectory;
    if (inode.links == 0) return error.NotFound;
    if (inode.links == std.math.maxInt(u32)) return error.TooLarge;
    if (try directory.find(store, dir, name) != null) return error.Exists;
    try inodes.touch(store, inode);
    try inodes.touch(store, dir);
    try directory.insert(store, dir, name, inode.number, @backingInt(inode.kind));
    inode.links += 1;
    inode.changed_ns = now_ns;
    changed(dir, now_ns);
}

pub fn unlink(store: *Store, number: u64, name: []const u8, now_ns: u64) Error!void {
    const dir = try directoryAt(store, number);
    if (!format.isName(name)) return error.NameInvalid;
    const inode = try entryOf(store, dir, name) orelse return error.NotFound;
    if (inode.kind == .directory) return error.IsDirectory;
    try remove(store, dir, name, inode, now_ns);
}

pub fn removeDirectory(store: *Store, number: u64, name: []const u8, now_ns: u64) Error!void {
    const dir = try directoryAt(store, number);
    if (!format.isName(name)) return error.NameInvalid;
    const inode = try entryOf(store, dir, name) orelse return error.NotFound;
    if (inode.kind != .directory) return error.NotDirectory;
    if (!try directory.isEmpty(store, inode)) return error.NotEmpty;
    try remove(store, dir, name, inode, now_ns);
}

fn remove(store: *Store, dir: *Inode, name: []const u8, inode: *Inode, now_ns: u64) Error!void {
    try inodes.touch(store, dir);
    try inodes.touch(store, inode);
    try directory.remove(store, dir, name);
    changed(dir, now_ns);
    try unnamed(store, inode, now_ns);
}

/// One name fewer. An error after the name went breaks the store.
fn unnamed(store: *Store, inode: *Inode, now_ns: u64) Error!void {
    errdefer store.is_broken = true;
    inode.links -= 1;
    inode.changed_ns = now_ns;
    try inodes.discardIfUnused(store, inode);
}

pub fn rename(store: *Store, from: u64, from_name: []const u8, to: u64, to_name: []const u8, now_ns: u64) Error!void {
    const from_dir = try directoryAt(store, from);
    if (!format.isName(from_name)) return error.NameInvalid;
    const to_dir = try openFor(store, to, to_name);
    const moved = try entryOf(store, from_dir, from_name) orelse return error.NotFound;
    if (moved.kind == .directory) try refuseBelowItself(store, moved, to_dir);
    const replaced = try entryOf(store, to_dir, to_name);
    if (replaced) |other| {
        // POSIX: two names of one file: nothing happens.
        if (other == moved) return;
        if (other.kind == .directory) {
            if (moved.kind != .directory) return error.IsDirectory;
            if (!try directory.isEmpty(store, other)) return error.NotEmpty;
        } else if (moved.kind == .directory) return error.NotDirectory;
        try inodes.touch(store, other);
    }
    for ([_]*Inode{ from_dir, to_dir, moved }) |inode| try inodes.touch(store, inode);
    const kind = @backingInt(moved.kind);
    if (replaced != null) {
        try directory.redirect(store, to_dir, to_name, moved.number, kind);
    } else {
        try directory.insert(store, to_dir, to_name, moved.number, kind);
    }
    errdefer store.is_broken = true;
    try directory.remove(store, from_dir, from_name);
    if (moved.kind == .directory) moved.parent = to_dir.number;
    moved.changed_ns = now_ns;
    changed(from_dir, now_ns);
    changed(to_dir, now_ns);
    if (replaced) |other| try unnamed(store, other, now_ns);
}

fn refuseBelowItself(store: *Store, moved: *Inode, to_dir: *Inode) Error!void {
    var at = to_dir;
    for (0..DEPTH_MAX) |_| {
        if (at == moved) return error.Invalid;
        if (at.number == store_file.ROOT) return;
        at = inodes.get(store, at.parent) catch |err| return switch (err) {
            error.NotFound => store.damagedAt(at.number, store_file.DAMAGE_RECORD, 0),
            else => err,
        };
    }
    return store.damagedAt(to_dir.number, store_file.DAMAGE_RECORD, 0);
}
