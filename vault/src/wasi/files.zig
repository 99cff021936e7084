//! The functions `fd_…` that move data or change one open file.

const std = @import("std");
const wasi = @import("wasi.zig");
const errno = @import("errno.zig");
const hosted = @import("host.zig");
const rights = @import("rights.zig");
const plain = @import("plain.zig");
const stored = @import("../store/store.zig");
const memories = @import("memory.zig");
const Error = errno.Error;
const Memory = memories.Memory;
const Vectors = memories.Vectors;
const Wasi = wasi.Wasi;
const Descriptor = wasi.Descriptor;

/// POSIX's PIPE_BUF: a pipe that is ready for writing takes that much without blocking.
const WRITE_AT_ONCE_BYTES = 4096;
/// What Linux moves in one call (MAX_RW_COUNT), rounded down.
const HOST_CALL_MAX_BYTES = 1 << 30;

pub fn fd_read(self: *Wasi, memory: Memory, fd: u32, iovs: u32, iovs_len: u32, nread: u32) Error!void {
    const descriptor = try self.find(fd);
    try memory.check(nread, 4);
    var vectors = try memory.vectors(iovs, iovs_len);
    const count = switch (descriptor.kind) {
        .sealed_file, .plain_file => moved: {
            try allow(descriptor, rights.FD_READ);
            const count = try readAt(self, descriptor, &vectors, descriptor.offset);
            descriptor.offset += count;
            break :moved count;
        },
        .stdio, .socket => try receive(self, descriptor, &vectors, 0),
        .listener => return error.NOTCONN,
        else => return error.ISDIR,
    };
    try memory.put(u32, nread, @intCast(count));
}

pub fn fd_pread(self: *Wasi, memory: Memory, fd: u32, iovs: u32, iovs_len: u32, offset: u64, nread: u32) Error!void {
    const descriptor = try self.find(fd);
    try memory.check(nread, 4);
    var vectors = try memory.vectors(iovs, iovs_len);
    try seekable(descriptor);
    try allow(descriptor, rights.FD_READ | rights.FD_SEEK);
    if (offset > std.math.maxInt(i64)) return error.INVAL;
    try memory.put(u32, nread, @intCast(try readAt(self, descriptor, &vectors, offset)));
}

fn allow(descriptor: *const Descriptor, needed: u64) Error!void {
    if (descriptor.base & needed != needed) return error.NOTCAPABLE;
}

fn seekable(descriptor: *const Descriptor) Error!void {
    switch (descriptor.kind) {
        .sealed_file, .plain_file => {},
        .stdio, .socket, .listener => return error.SPIPE,
        else => return error.ISDIR,
    }
}

/// Fills the buffers in their order until the file ends. An error after the first bytes is left for the
/// next call to find, as POSIX does.
fn readAt(self: *Wasi, descriptor: *const Descriptor, vectors: *Vectors, offset: u64) Error!u64 {
    var done: u64 = 0;
    const sealed = descriptor.kind == .sealed_file;
    if (sealed) self.store.?.lock.acquire();
    defer if (sealed) self.store.?.lock.release();
    while (try vectors.next()) |into| {
        const result = if (sealed)
            self.store.?.read(descriptor.inode, offset + done, into) catch |err| self.failed(err)
        else
            plain.read(self, descriptor.host_fd, into[0..@min(into.len, HOST_CALL_MAX_BYTES)], offset + done);
        const count = result catch |err| {
            if (done == 0 or err == error.Stopped) return err;
            break;
        };
        done += count;
        if (count < into.len) break;
    }
    return done;
}

/// From standard input or a socket, into the first buffer: what is there, at least one byte unless it
/// has ended.
pub fn receive(self: *Wasi, descriptor: *Descriptor, vectors: *Vectors, flags: u32) Error!u64 {
    try allow(descriptor, rights.FD_READ);
    const into = (try vectors.next()) orelse return 0;
    const length = @min(into.len, HOST_CALL_MAX_BYTES);
    var tries: usize = 0;
    while (true) : (tries += 1) {
        try self.await(descriptor, hosted.READ);
        const context = self.host.context;
        const result = if (descriptor.kind == .socket)
            self.host.receive(context, descriptor.host_fd, into.ptr, length, flags)
        else
            self.host.read(context, descriptor.host_fd, into.ptr, length, -1);
        return errno.checked(result, length) catch |err| {
            // Somebody else took the bytes, or a signal came: wait again.
            if ((err != error.AGAIN and err != error.INTR) or tries == 1000) return err;
            if (err == error.AGAIN and descriptor.flags & wasi.NONBLOCK != 0) return err;
            try self.giveWay();
            continue;
        };
    }
}

pub fn fd_write(self: *Wasi, memory: Memory, fd: u32, iovs: u32, iovs_len: u32, nwritten: u32) Error!void {
    const descriptor = try self.find(fd);
    try memory.check(nwritten, 4);
    var vectors = try memory.vectors(iovs, iovs_len);
    const count = switch (descriptor.kind) {
        .sealed_file => moved: {
            try allow(descriptor, rights.FD_WRITE);
            break :moved try writeAt(self, descriptor, &vectors, descriptor.offset, true);
        },
        .plain_file => return error.ROFS,
        .stdio, .socket => try send(self, descriptor, &vectors),
        .listener => return error.NOTCONN,
        else => return error.ISDIR,
    };
    try memory.put(u32, nwritten, @intCast(count));
}

pub fn fd_pwrite(self: *Wasi, memory: Memory, fd: u32, iovs: u32, iovs_len: u32, offset: u64, nwritten: u32) Error!void {
    const descriptor = try self.find(fd);
    try memory.check(nwritten, 4);
    var vectors = try memory.vectors(iovs, iovs_len);
    try seekable(descriptor);
    if (descriptor.kind == .plain_file) return error.ROFS;
    try allow(descriptor, rights.FD_WRITE | rights.FD_SEEK);
    if (offset > std.math.maxInt(i64)) return error.INVAL;
    try memory.put(u32, nwritten, @intCast(try writeAt(self, descriptor, &vectors, offset, false)));
}

fn writeAt(self: *Wasi, descriptor: *Descriptor, vectors: *Vectors, offset: u64, moves: bool) Error!u64 {
    if (descriptor.read_only) return error.ROFS;
    const store = self.store.?;
    const now_ns = self.fileTime();
    var at = offset;
    var done: u64 = 0;
    store.lock.acquire();
    defer store.lock.release();
    if (moves and descriptor.flags & wasi.APPEND != 0) {
        at = (store.stat(descriptor.inode) catch |err| return self.failed(err)).size;
    }
    while (try vectors.next()) |from| {
        store.write(descriptor.inode, at + done, from, now_ns) catch |err| {
            if (done == 0) return self.failed(err);
            self.note(err);
            break;
        };
        done += from.len;
    }
    if (descriptor.flags & (wasi.DSYNC | wasi.SYNC) != 0) store.commit(now_ns) catch |err| return self.failed(err);
    if (moves) descriptor.offset = at + done;
    return done;
}

/// To standard output or a socket: all of it, unless an error comes after the first bytes.
pub fn send(self: *Wasi, descriptor: *Descriptor, vectors: *Vectors) Error!u64 {
    try allow(descriptor, rights.FD_WRITE);
    // Short pieces go out in one call, so that a line which a program puts together stays one line.
    if (vectors.count() > 1 and vectors.total <= self.gathered.len) {
        var length: usize = 0;
        while (try vectors.next()) |from| {
            @memcpy(self.gathered[length..][0..from.len], from);
            length += from.len;
        }
        return sendAll(self, descriptor, self.gathered[0..length], 0);
    }
    var done: u64 = 0;
    while (try vectors.next()) |from| {
        const count = try sendAll(self, descriptor, from, done);
        done += count;
        if (count < from.len) break;
    }
    return done;
}

/// `before`: how many bytes the call moved already; then an error is no error of this call.
fn sendAll(self: *Wasi, descriptor: *Descriptor, bytes: []const u8, before: u64) Error!u64 {
    const regular = descriptor.filetype == .REGULAR_FILE;
    var done: usize = 0;
    var tries: usize = 0;
    while (done < bytes.len) {
        const sent = sendSome(self, descriptor, bytes[done..], regular) catch |err| {
            if (err == error.INTR or err == error.AGAIN and descriptor.flags & wasi.NONBLOCK == 0) {
                tries += 1;
                if (tries <= 1000) {
                    try self.giveWay();
                    continue;
                }
            }
            if (err == error.Stopped or before + done == 0) return err;
            break;
        };
        // Nothing went out and nothing is wrong: no host may keep us here for ever.
        if (sent == 0) {
            if (before + done == 0) return error.IO;
            break;
        }
        tries = 0;
        done += sent;
    }
    return done;
}

fn sendSome(self: *Wasi, descriptor: *Descriptor, bytes: []const u8, regular: bool) Error!usize {
    if (!regular) try self.await(descriptor, hosted.WRITE);
    const context = self.host.context;
    const most: usize = if (descriptor.kind == .socket or regular) HOST_CALL_MAX_BYTES else WRITE_AT_ONCE_BYTES;
    const length = @min(bytes.len, most);
    const result = if (descriptor.kind == .socket)
        self.host.send(context, descriptor.host_fd, bytes.ptr, length)
    else
        self.host.write(context, descriptor.host_fd, bytes.ptr, length);
    return @intCast(try errno.checked(result, length));
}

pub fn fd_seek(self: *Wasi, memory: Memory, fd: u32, offset: i64, whence: u32, newoffset: u32) Error!void {
    const descriptor = try self.find(fd);
    try memory.check(newoffset, 8);
    try seekable(descriptor);
    const tells = whence == 1 and offset == 0;
    // fd_seek implies fd_tell (typenames.witx).
    if (descriptor.base & rights.FD_SEEK == 0 and !(tells and descriptor.base & rights.FD_TELL != 0)) return error.NOTCAPABLE;
    const from: u64 = switch (whence) {
        0 => 0,
        1 => descriptor.offset,
        2 => try size(self, descriptor),
        else => return error.INVAL,
    };
    const to = @as(i128, from) + offset;
    if (to < 0 or to > std.math.maxInt(i64)) return error.INVAL;
    descriptor.offset = @intCast(to);
    try memory.put(u64, newoffset, descriptor.offset);
}

pub fn fd_tell(self: *Wasi, memory: Memory, fd: u32, newoffset: u32) Error!void {
    const descriptor = try self.find(fd);
    try seekable(descriptor);
    if (descriptor.base & (rights.FD_TELL | rights.FD_SEEK) == 0) return error.NOTCAPABLE;
    try memory.put(u64, newoffset, descriptor.offset);
}

/// Of an open file.
pub fn size(self: *Wasi, descriptor: *const Descriptor) Error!u64 {
    if (descriptor.kind == .plain_file) return (try plain.stat(self, descriptor.host_fd)).size;
    const store = self.store.?;
    store.lock.acquire();
    defer store.lock.release();
    return (store.stat(descriptor.inode) catch |err| return self.failed(err)).size;
}

pub fn fd_sync(self: *Wasi, _: Memory, fd: u32) Error!void {
    return makeDurable(self, try self.find(fd), rights.FD_SYNC);
}

pub fn fd_datasync(self: *Wasi, _: Memory, fd: u32) Error!void {
    const descriptor = try self.find(fd);
    // Who may do the stronger may do the weaker: a C library asks for the right to `fd_datasync` only
    // where it opens for writing, and for that to `fd_sync` always.
    const needed = if (descriptor.base & rights.FD_SYNC != 0) rights.FD_SYNC else rights.FD_DATASYNC;
    return makeDurable(self, descriptor, needed);
}

fn makeDurable(self: *Wasi, descriptor: *Descriptor, needed: u64) Error!void {
    switch (descriptor.kind) {
        .sealed_file, .sealed_directory => {
            try allow(descriptor, needed);
            if (descriptor.read_only) return;
            const store = self.store.?;
            const now_ns = self.fileTime();
            store.lock.acquire();
            defer store.lock.release();
            store.commit(now_ns) catch |err| return self.failed(err);
        },
        .plain_file, .plain_directory, .network, .nothing => try allow(descriptor, needed),
        else => return error.INVAL,
    }
}

pub fn fd_advise(self: *Wasi, _: Memory, fd: u32, offset: u64, length: u64, advice: u32) Error!void {
    const descriptor = try self.find(fd);
    try seekable(descriptor);
    try allow(descriptor, rights.FD_ADVISE);
    if (advice > 5) return error.INVAL;
    if (offset > std.math.maxInt(i64) or length > std.math.maxInt(i64) - offset) return error.INVAL;
}

/// The size is there afterwards and reads as zeros. Blocks are not set aside: they are written anew
/// with each change anyway, so a reservation would promise nothing.
pub fn fd_allocate(self: *Wasi, _: Memory, fd: u32, offset: u64, length: u64) Error!void {
    const descriptor = try self.find(fd);
    try seekable(descriptor);
    if (descriptor.kind == .plain_file) return error.ROFS;
    try allow(descriptor, rights.FD_ALLOCATE | rights.FD_WRITE);
    if (length == 0) return error.INVAL;
    if (offset > std.math.maxInt(i64) or length > std.math.maxInt(i64) - offset) return error.FBIG;
    if (descriptor.read_only) return error.ROFS;
    const store = self.store.?;
    const now_ns = self.fileTime();
    store.lock.acquire();
    defer store.lock.release();
    const found = store.stat(descriptor.inode) catch |err| return self.failed(err);
    if (found.size >= offset + length) return;
    store.resize(descriptor.inode, offset + length, now_ns) catch |err| return self.failed(err);
}

pub fn fd_filestat_set_size(self: *Wasi, _: Memory, fd: u32, new_size: u64) Error!void {
    const descriptor = try self.find(fd);
    switch (descriptor.kind) {
        .sealed_file => {},
        .plain_file => return error.ROFS,
        .stdio, .socket, .listener => return error.INVAL,
        else => return error.ISDIR,
    }
    try allow(descriptor, rights.FD_FILESTAT_SET_SIZE | rights.FD_WRITE);
    if (descriptor.read_only) return error.ROFS;
    if (new_size > std.math.maxInt(i64)) return error.FBIG;
    const store = self.store.?;
    const now_ns = self.fileTime();
    store.lock.acquire();
    defer store.lock.release();
    store.resize(descriptor.inode, new_size, now_ns) catch |err| return self.failed(err);
}
