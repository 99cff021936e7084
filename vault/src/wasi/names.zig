//! The functions `path_…`, except `path_open`.

const std = @import("std");
const wasi = @import("wasi.zig");
const errno = @import("errno.zig");
const rights = @import("rights.zig");
const paths = @import("paths.zig");
const plain = @import("plain.zig");
const network = @import("network.zig");
const descriptors = @import("descriptors.zig");
const stored = @import("../store/store.zig");
const Error = errno.Error;
const Memory = @import("memory.zig").Memory;
const Wasi = wasi.Wasi;
const Descriptor = wasi.Descriptor;

const SYMLINK_FOLLOW: u32 = 1;
const FILESTAT_BYTES = 64;

fn lookupFlags(flags: u32) Error!bool {
    if (flags & ~SYMLINK_FOLLOW != 0) return error.INVAL;
    return flags & SYMLINK_FOLLOW != 0;
}

/// A directory in which something is to be changed.
fn changeable(self: *Wasi, fd: u32, needed: u64) Error!*Descriptor {
    const directory = try self.findDirectory(fd, needed);
    return switch (directory.kind) {
        .sealed_directory => if (directory.read_only) error.ROFS else directory,
        .nothing => error.ACCES,
        else => error.ROFS,
    };
}

/// A name that does not exist yet, for what is to be made there.
fn fresh(self: *Wasi, directory: u64, path: []const u8, which: u1) Error!paths.Place {
    const place = try paths.resolve(self, directory, path, .never, which);
    if (place.inode != null) return error.EXIST;
    try alive(self, place.directory);
    return place;
}

/// Nothing can be made in a directory that was removed while the program held it.
pub fn alive(self: *Wasi, directory: u64) Error!void {
    const found = self.store.?.stat(directory) catch |err| return self.failed(err);
    if (found.links == 0) return error.NOENT;
}

pub fn path_create_directory(self: *Wasi, memory: Memory, fd: u32, path: u32, path_len: u32) Error!void {
    const directory = try self.findDirectory(fd, rights.PATH_CREATE_DIRECTORY);
    const text = try memory.slice(path, path_len);
    if (directory.kind == .nothing) return network.refuse(self, text);
    if (directory.kind != .sealed_directory) return error.ROFS;
    const store = self.store.?;
    const now_ns = self.fileTime();
    store.lock.acquire();
    defer store.lock.release();
    // A program that makes all directories of a path wants EEXIST for those that are there.
    const place = try fresh(self, directory.inode, text, 0);
    if (directory.read_only) return error.ROFS;
    _ = store.make(place.directory, place.name, .directory, now_ns) catch |err| return self.failed(err);
}

pub fn path_filestat_get(self: *Wasi, memory: Memory, fd: u32, flags: u32, path: u32, path_len: u32, buf: u32) Error!void {
    const directory = try self.findDirectory(fd, rights.PATH_FILESTAT_GET);
    const follow = try lookupFlags(flags);
    const text = try memory.slice(path, path_len);
    const into = try memory.slice(buf, FILESTAT_BYTES);
    switch (directory.kind) {
        .sealed_directory => {
            const store = self.store.?;
            store.lock.acquire();
            defer store.lock.release();
            const inode = try existing(self, directory.inode, text, follow);
            descriptors.putSealedStat(into, store.stat(inode) catch |err| return self.failed(err));
        },
        .plain_directory => descriptors.putStat(into, try plain.statPath(self, directory.host_fd, text, follow)),
        else => descriptors.putStat(into, try network.stat(self, directory, text, fd)),
    }
}

/// The inode that a path names; a slash at its end asks for a directory.
fn existing(self: *Wasi, base: u64, path: []const u8, follow: bool) Error!u64 {
    const place = try paths.resolve(self, base, path, if (follow) .follow else .keep, 0);
    const inode = place.inode orelse return error.NOENT;
    if (place.wants_directory and place.kind != .directory) return error.NOTDIR;
    return inode;
}

pub fn path_filestat_set_times(
    self: *Wasi,
    memory: Memory,
    fd: u32,
    flags: u32,
    path: u32,
    path_len: u32,
    atim: u64,
    mtim: u64,
    fst_flags: u32,
) Error!void {
    const directory = try changeable(self, fd, rights.PATH_FILESTAT_SET_TIMES);
    const follow = try lookupFlags(flags);
    const text = try memory.slice(path, path_len);
    const now_ns = self.fileTime();
    const wanted = try descriptors.times(atim, mtim, fst_flags, now_ns);
    const store = self.store.?;
    store.lock.acquire();
    defer store.lock.release();
    const inode = try existing(self, directory.inode, text, follow);
    store.setTimes(inode, wanted.accessed_ns, wanted.modified_ns, now_ns) catch |err| return self.failed(err);
}

/// For two directories of one call: both in the store, or EXDEV.
fn bothSealed(from: *const Descriptor, to: *const Descriptor) Error!void {
    if (from.kind != to.kind) return error.XDEV;
    if (from.kind != .sealed_directory or from.read_only or to.read_only) return error.ROFS;
}

pub fn path_link(
    self: *Wasi,
    memory: Memory,
    old_fd: u32,
    old_flags: u32,
    old_path: u32,
    old_path_len: u32,
    new_fd: u32,
    new_path: u32,
    new_path_len: u32,
) Error!void {
    const from = try self.findDirectory(old_fd, rights.PATH_LINK_SOURCE);
    const to = try self.findDirectory(new_fd, rights.PATH_LINK_TARGET);
    const follow = try lookupFlags(old_flags);
    const old = try memory.slice(old_path, old_path_len);
    const new = try memory.slice(new_path, new_path_len);
    try bothSealed(from, to);
    const store = self.store.?;
    const now_ns = self.fileTime();
    store.lock.acquire();
    defer store.lock.release();
    const inode = try existing(self, from.inode, old, follow);
    const found = store.stat(inode) catch |err| return self.failed(err);
    if (found.kind == .directory) return error.PERM;
    const place = try fresh(self, to.inode, new, 1);
    if (place.wants_directory) return error.NOENT;
    store.link(inode, place.directory, place.name, now_ns) catch |err| return self.failed(err);
}

pub fn path_readlink(self: *Wasi, memory: Memory, fd: u32, path: u32, path_len: u32, buf: u32, buf_len: u32, bufused: u32) Error!void {
    const directory = try self.findDirectory(fd, rights.PATH_READLINK);
    const text = try memory.slice(path, path_len);
    const into = try memory.slice(buf, buf_len);
    try memory.check(bufused, 4);
    const count = switch (directory.kind) {
        .sealed_directory => sealed: {
            const store = self.store.?;
            store.lock.acquire();
            defer store.lock.release();
            const inode = try existing(self, directory.inode, text, false);
            const found = store.stat(inode) catch |err| return self.failed(err);
            if (found.kind != .link) return error.INVAL;
            break :sealed store.read(inode, 0, into) catch |err| return self.failed(err);
        },
        .plain_directory => try plain.readLink(self, directory.host_fd, text, into),
        else => {
            _ = try network.stat(self, directory, text, fd);
            return error.INVAL;
        },
    };
    try memory.put(u32, bufused, @intCast(count));
}

pub fn path_remove_directory(self: *Wasi, memory: Memory, fd: u32, path: u32, path_len: u32) Error!void {
    return remove(self, memory, .directory, fd, path, path_len);
}

pub fn path_unlink_file(self: *Wasi, memory: Memory, fd: u32, path: u32, path_len: u32) Error!void {
    return remove(self, memory, .file, fd, path, path_len);
}

fn remove(self: *Wasi, memory: Memory, what: enum { directory, file }, fd: u32, path: u32, path_len: u32) Error!void {
    const directory = try changeable(self, fd, switch (what) {
        .directory => rights.PATH_REMOVE_DIRECTORY,
        .file => rights.PATH_UNLINK_FILE,
    });
    const text = try memory.slice(path, path_len);
    const store = self.store.?;
    const now_ns = self.fileTime();
    store.lock.acquire();
    defer store.lock.release();
    const place = try paths.resolve(self, directory.inode, text, .never, 0);
    if (place.inode == null) return error.NOENT;
    const result = switch (what) {
        .directory => removed: {
            if (place.name.len == 0) return error.INVAL;
            if (place.kind != .directory) return error.NOTDIR;
            break :removed store.removeDirectory(place.directory, place.name, now_ns);
        },
        .file => removed: {
            if (place.kind == .directory) return error.ISDIR;
            if (place.wants_directory) return error.NOTDIR;
            break :removed store.unlink(place.directory, place.name, now_ns);
        },
    };
    result catch |err| return self.failed(err);
}

pub fn path_rename(
    self: *Wasi,
    memory: Memory,
    fd: u32,
    old_path: u32,
    old_path_len: u32,
    new_fd: u32,
    new_path: u32,
    new_path_len: u32,
) Error!void {
    const from = try self.findDirectory(fd, rights.PATH_RENAME_SOURCE);
    const to = try self.findDirectory(new_fd, rights.PATH_RENAME_TARGET);
    const old_text = try memory.slice(old_path, old_path_len);
    const new_text = try memory.slice(new_path, new_path_len);
    try bothSealed(from, to);
    const store = self.store.?;
    const now_ns = self.fileTime();
    store.lock.acquire();
    defer store.lock.release();
    const old = try paths.resolve(self, from.inode, old_text, .never, 0);
    if (old.inode == null) return error.NOENT;
    if (old.name.len == 0) return error.BUSY;
    const new = try paths.resolve(self, to.inode, new_text, .never, 1);
    if (new.inode != null and new.name.len == 0) return error.BUSY;
    // A name with a slash behind it is a directory, in both places.
    if ((old.wants_directory or new.wants_directory) and old.kind != .directory) return error.NOTDIR;
    try alive(self, new.directory);
    store.rename(old.directory, old.name, new.directory, new.name, now_ns) catch |err| return self.failed(err);
}

/// A link may lead anywhere below the directory it is used from; one that begins with a slash could
/// never be followed, so it is not made.
pub fn path_symlink(self: *Wasi, memory: Memory, old_path: u32, old_path_len: u32, fd: u32, new_path: u32, new_path_len: u32) Error!void {
    const directory = try changeable(self, fd, rights.PATH_SYMLINK);
    const target = try memory.slice(old_path, old_path_len);
    const text = try memory.slice(new_path, new_path_len);
    try paths.check(target);
    const store = self.store.?;
    const now_ns = self.fileTime();
    store.lock.acquire();
    defer store.lock.release();
    const place = try fresh(self, directory.inode, text, 0);
    if (place.wants_directory) return error.NOENT;
    const inode = store.make(place.directory, place.name, .link, now_ns) catch |err| return self.failed(err);
    store.write(inode, 0, target, now_ns) catch |err| {
        store.unlink(place.directory, place.name, now_ns) catch |undoing| self.note(undoing);
        return self.failed(err);
    };
}
