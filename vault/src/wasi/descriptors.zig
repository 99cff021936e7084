//! The functions `fd_…` about descriptors themselves: what they are, their rights, names and numbers.

const std = @import("std");
const wasi = @import("wasi.zig");
const errno = @import("errno.zig");
const rights = @import("rights.zig");
const plain = @import("plain.zig");
const stored = @import("../store/store.zig");
const Error = errno.Error;
const Memory = @import("memory.zig").Memory;
const Wasi = wasi.Wasi;
const Descriptor = wasi.Descriptor;
const Filetype = wasi.Filetype;

/// What `filestat.dev` says for the sealed store; a plain file has the number that the host gives.
const SEALED_DEVICE = 1;
const FILESTAT_BYTES = 64;
const FDSTAT_BYTES = 24;
const DIRENT_BYTES = 24;

pub fn fd_close(self: *Wasi, _: Memory, fd: u32) Error!void {
    self.drop(try self.find(fd));
}

/// Both have to be open, as wasmtime has it. A preopened directory takes its name along.
pub fn fd_renumber(self: *Wasi, _: Memory, fd: u32, to: u32) Error!void {
    const from = try self.find(fd);
    const into = try self.find(to);
    if (from == into) return;
    self.drop(into);
    into.* = from.*;
    from.* = .{};
    self.free_from = @min(self.free_from, fd);
}

pub fn fd_fdstat_get(self: *Wasi, memory: Memory, fd: u32, buf: u32) Error!void {
    const descriptor = try self.find(fd);
    const into = try memory.slice(buf, FDSTAT_BYTES);
    @memset(into, 0);
    into[0] = @backingInt(descriptor.filetype);
    // A file of the host as standard input or output is a stream to the program.
    if (descriptor.kind == .stdio and descriptor.filetype == .REGULAR_FILE) into[0] = 0;
    std.mem.writeInt(u16, into[2..4], descriptor.flags, .little);
    std.mem.writeInt(u64, into[8..16], descriptor.base, .little);
    std.mem.writeInt(u64, into[16..24], descriptor.inheriting, .little);
}

pub fn fd_fdstat_set_flags(self: *Wasi, _: Memory, fd: u32, flags: u32) Error!void {
    const descriptor = try self.findWith(fd, rights.FD_FDSTAT_SET_FLAGS);
    if (flags & ~@as(u32, wasi.FLAGS_ALL) != 0) return error.INVAL;
    descriptor.flags = @intCast(flags);
}

/// Only narrows, in both sets.
pub fn fd_fdstat_set_rights(self: *Wasi, _: Memory, fd: u32, base: u64, inheriting: u64) Error!void {
    const descriptor = try self.find(fd);
    if (base & ~descriptor.base != 0 or inheriting & ~descriptor.inheriting != 0) return error.NOTCAPABLE;
    descriptor.base = base;
    descriptor.inheriting = inheriting;
}

pub fn fd_prestat_get(self: *Wasi, memory: Memory, fd: u32, buf: u32) Error!void {
    const descriptor = try self.find(fd);
    // EBADF ends the C library's search for preopened directories.
    if (descriptor.guest_name.len == 0) return error.BADF;
    const into = try memory.slice(buf, 8);
    @memset(into, 0);
    std.mem.writeInt(u32, into[4..8], @intCast(descriptor.guest_name.len), .little);
}

pub fn fd_prestat_dir_name(self: *Wasi, memory: Memory, fd: u32, path: u32, path_len: u32) Error!void {
    const descriptor = try self.find(fd);
    if (descriptor.guest_name.len == 0) return error.BADF;
    if (path_len < descriptor.guest_name.len) return error.NAMETOOLONG;
    @memcpy(try memory.slice(path, descriptor.guest_name.len), descriptor.guest_name);
}

pub fn sealedFiletype(kind: stored.Kind) Filetype {
    return switch (kind) {
        .free => .UNKNOWN,
        .file => .REGULAR_FILE,
        .directory => .DIRECTORY,
        .link => .SYMBOLIC_LINK,
    };
}

pub fn putSealedStat(into: []u8, found: stored.Stat) void {
    putStat(into, .{
        .device = SEALED_DEVICE,
        .inode = found.inode,
        .filetype = sealedFiletype(found.kind),
        .links = found.links,
        .size = found.size,
        .accessed_ns = found.accessed_ns,
        .modified_ns = found.modified_ns,
        .changed_ns = found.changed_ns,
    });
}

pub fn putStat(into: []u8, found: plain.Stat) void {
    @memset(into[0..FILESTAT_BYTES], 0);
    std.mem.writeInt(u64, into[0..8], found.device, .little);
    std.mem.writeInt(u64, into[8..16], found.inode, .little);
    into[16] = @backingInt(found.filetype);
    std.mem.writeInt(u64, into[24..32], found.links, .little);
    std.mem.writeInt(u64, into[32..40], found.size, .little);
    std.mem.writeInt(u64, into[40..48], found.accessed_ns, .little);
    std.mem.writeInt(u64, into[48..56], found.modified_ns, .little);
    std.mem.writeInt(u64, into[56..64], found.changed_ns, .little);
}

/// For what has no file behind it.
pub fn bare(kind: Filetype, inode: u64) plain.Stat {
    return .{
        .device = 0,
        .inode = inode,
        .filetype = kind,
        .links = 1,
        .size = 0,
        .accessed_ns = 0,
        .modified_ns = 0,
        .changed_ns = 0,
    };
}

pub fn fd_filestat_get(self: *Wasi, memory: Memory, fd: u32, buf: u32) Error!void {
    const descriptor = try self.findWith(fd, rights.FD_FILESTAT_GET);
    const into = try memory.slice(buf, FILESTAT_BYTES);
    switch (descriptor.kind) {
        .sealed_file, .sealed_directory => {
            const store = self.store.?;
            store.lock.acquire();
            defer store.lock.release();
            putSealedStat(into, store.stat(descriptor.inode) catch |err| return self.failed(err));
        },
        .plain_file, .plain_directory => putStat(into, try plain.stat(self, descriptor.host_fd)),
        else => putStat(into, bare(if (descriptor.kind == .stdio and descriptor.filetype == .REGULAR_FILE) .UNKNOWN else descriptor.filetype, fd)),
    }
}

pub const Times = struct { accessed_ns: ?u64, modified_ns: ?u64 };

/// `fstflags`: a time and its `now` together are EINVAL.
pub fn times(atim: u64, mtim: u64, flags: u32, now_ns: u64) Error!Times {
    if (flags & ~@as(u32, 15) != 0 or flags & 3 == 3 or flags & 12 == 12) return error.INVAL;
    return .{
        .accessed_ns = if (flags & 1 != 0) atim else if (flags & 2 != 0) now_ns else null,
        .modified_ns = if (flags & 4 != 0) mtim else if (flags & 8 != 0) now_ns else null,
    };
}

pub fn fd_filestat_set_times(self: *Wasi, _: Memory, fd: u32, atim: u64, mtim: u64, flags: u32) Error!void {
    const descriptor = try self.findWith(fd, rights.FD_FILESTAT_SET_TIMES);
    const now_ns = self.fileTime();
    const wanted = try times(atim, mtim, flags, now_ns);
    switch (descriptor.kind) {
        .sealed_file, .sealed_directory => if (descriptor.read_only) return error.ROFS,
        .plain_file, .plain_directory, .network, .nothing => return error.ROFS,
        else => return error.INVAL,
    }
    const store = self.store.?;
    store.lock.acquire();
    defer store.lock.release();
    store.setTimes(descriptor.inode, wanted.accessed_ns, wanted.modified_ns, now_ns) catch |err| return self.failed(err);
}

/// Writes `dirent` records until the buffer is full; the last may be cut (fd_readdir in the witx).
const Writer = struct {
    into: []u8,
    used: usize = 0,

    /// False when the buffer is full.
    fn put(self: *Writer, next: u64, inode: u64, kind: Filetype, name: []const u8) bool {
        var record: [DIRENT_BYTES]u8 = @splat(0);
        std.mem.writeInt(u64, record[0..8], next, .little);
        std.mem.writeInt(u64, record[8..16], inode, .little);
        std.mem.writeInt(u32, record[16..20], @intCast(name.len), .little);
        record[20] = @backingInt(kind);
        return self.bytes(&record) and self.bytes(name);
    }

    fn bytes(self: *Writer, from: []const u8) bool {
        const count = @min(from.len, self.into.len - self.used);
        @memcpy(self.into[self.used..][0..count], from[0..count]);
        self.used += count;
        return count == from.len and self.used < self.into.len;
    }
};

/// Cookies: 0 is `.`, 1 is `..`, and 2 onwards are places in the directory (docs/spec/sealed-store.md:
/// an entry stays where it is) or in the listing that was taken of a plain one.
const DOTS = 2;

pub fn fd_readdir(self: *Wasi, memory: Memory, fd: u32, buf: u32, buf_len: u32, cookie: u64, bufused: u32) Error!void {
    const descriptor = try self.find(fd);
    if (!descriptor.isDirectory()) return error.NOTDIR;
    if (descriptor.base & rights.FD_READDIR == 0) return error.NOTCAPABLE;
    try memory.check(bufused, 4);
    var writer: Writer = .{ .into = try memory.slice(buf, buf_len) };
    if (buf_len > 0) switch (descriptor.kind) {
        .sealed_directory => try readSealed(self, descriptor, cookie, &writer),
        .plain_directory => try readPlain(self, descriptor, cookie, &writer),
        else => _ = dots(&writer, cookie, fd, fd),
    };
    try memory.put(u32, bufused, @intCast(writer.used));
}

/// False when there is no room for more.
fn dots(writer: *Writer, cookie: u64, own: u64, parent: u64) bool {
    if (cookie == 0 and !writer.put(1, own, .DIRECTORY, ".")) return false;
    return cookie > 1 or writer.put(DOTS, parent, .DIRECTORY, "..");
}

fn readSealed(self: *Wasi, descriptor: *Descriptor, cookie: u64, writer: *Writer) Error!void {
    const store = self.store.?;
    store.lock.acquire();
    defer store.lock.release();
    const own = store.stat(descriptor.inode) catch |err| return self.failed(err);
    const parent = if (self.isGranted(own.inode)) own.inode else own.parent;
    if (!dots(writer, cookie, own.inode, parent)) return;
    var at = cookie -| DOTS;
    while (store.entry(descriptor.inode, at) catch |err| return self.failed(err)) |found| {
        if (!writer.put(found.next + DOTS, found.inode, sealedFiletype(found.kind), found.name)) return;
        at = found.next;
    }
}

fn readPlain(self: *Wasi, descriptor: *Descriptor, cookie: u64, writer: *Writer) Error!void {
    if (cookie == 0 or (cookie <= DOTS and descriptor.listing.len == 0)) try plain.list(self, descriptor);
    const own = try plain.stat(self, descriptor.host_fd);
    if (!dots(writer, cookie, own.inode, own.inode)) return;
    var at = cookie -| DOTS;
    while (try plain.entry(descriptor.listing, at)) |found| {
        if (!writer.put(found.next + DOTS, found.inode, found.filetype, found.name)) return;
        at = found.next;
    }
}
