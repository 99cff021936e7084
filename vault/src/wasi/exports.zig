//! What Python calls (src/avow/sandbox/wasi.py): make a program's WASI, grant it things, end it.

const std = @import("std");
const wasi = @import("wasi.zig");
const errno = @import("errno.zig");
const rights = @import("rights.zig");
const plain = @import("plain.zig");
const hosted = @import("host.zig");
const functions = @import("functions.zig");
const stored = @import("../store/store.zig");
const Wasi = wasi.Wasi;
const allocator = wasi.allocator;

/// 0 and above: success. What was wrong, where Python cannot know it.
const NO_MEMORY: i64 = -1;
const NO_DIRECTORY: i64 = -2;
const STORE_FAILED: i64 = -3;
const TOO_MANY: i64 = -4;

export fn avow_wasi_create(setup: *const wasi.Setup) callconv(.c) ?*Wasi {
    return Wasi.create(setup) catch null;
}

/// Nothing that was defined with it may be called any more.
export fn avow_wasi_destroy(self: *Wasi) callconv(.c) void {
    self.destroy();
}

/// The table that Python may put other functions into.
export fn avow_wasi_host(self: *Wasi) callconv(.c) *hosted.Host {
    return &self.host;
}

/// One function by its number; null behind the last.
export fn avow_wasi_function(index: usize) callconv(.c) ?*const functions.Function {
    return if (index < functions.ALL.len) &functions.ALL[index] else null;
}

/// Which memory the functions work on; without it, what the caller exports as `memory`.
export fn avow_wasi_attach(self: *Wasi, memory: *const [24]u8) callconv(.c) void {
    self.memory_handle = memory.*;
    self.has_memory = true;
}

fn append(list: *std.ArrayList(u8), text: []const u8) i64 {
    list.ensureUnusedCapacity(allocator, text.len + 1) catch return NO_MEMORY;
    list.appendSliceAssumeCapacity(text);
    list.appendAssumeCapacity(0);
    return 0;
}

export fn avow_wasi_add_argument(self: *Wasi, text: [*]const u8, bytes: usize) callconv(.c) i64 {
    self.argument_count += 1;
    return append(&self.arguments, text[0..bytes]);
}

/// `NAME=value`.
export fn avow_wasi_add_environment(self: *Wasi, text: [*]const u8, bytes: usize) callconv(.c) i64 {
    self.environment_count += 1;
    return append(&self.environment, text[0..bytes]);
}

/// `host:port`, which the program may then open below `/net/tcp`.
export fn avow_wasi_add_endpoint(self: *Wasi, text: [*]const u8, bytes: usize) callconv(.c) i64 {
    return append(&self.endpoints, text[0..bytes]);
}

fn install(self: *Wasi, descriptor: wasi.Descriptor) i64 {
    return self.install(descriptor) catch TOO_MANY;
}

/// Standard input, output or error: a descriptor of the host, which stays open.
export fn avow_wasi_add_stdio(self: *Wasi, fd: i32, writes: bool, terminal: bool) callconv(.c) i64 {
    const direction = if (writes) rights.FD_WRITE else rights.FD_READ;
    const found = plain.stat(self, fd) catch null;
    const regular = found != null and found.?.filetype == .REGULAR_FILE;
    return install(self, .{
        .kind = .stdio,
        .filetype = if (terminal) .CHARACTER_DEVICE else if (regular) .REGULAR_FILE else .UNKNOWN,
        .base = rights.STREAM & ~(rights.FD_READ | rights.FD_WRITE) | direction,
        .host_fd = fd,
    });
}

const Preopened = struct { kind: wasi.Kind, read_only: bool, host_fd: i32 = -1, inode: u64 = 0 };

fn preopen(self: *Wasi, guest: []const u8, what: Preopened) i64 {
    if (what.kind == .sealed_directory) self.granted.append(allocator, what.inode) catch return NO_MEMORY;
    const name = allocator.dupe(u8, guest) catch return NO_MEMORY;
    const number = install(self, .{
        .kind = what.kind,
        .filetype = .DIRECTORY,
        .read_only = what.read_only,
        .owned = what.kind == .plain_directory,
        .base = rights.DIRECTORY,
        .inheriting = rights.BELOW,
        .inode = what.inode,
        .host_fd = what.host_fd,
        .guest_name = name,
    });
    if (number < 0) allocator.free(name);
    return number;
}

/// A directory of the store, `a/b` from its root; it and those above it are made when they are not
/// there, but not for one that may only be read.
export fn avow_wasi_add_sealed(
    self: *Wasi,
    guest: [*]const u8,
    guest_bytes: usize,
    path: [*]const u8,
    path_bytes: usize,
    read_only: bool,
) callconv(.c) i64 {
    const store = self.store orelse return NO_DIRECTORY;
    store.lock.acquire();
    const inode = walk(self, store, path[0..path_bytes], !read_only) catch |err| {
        store.lock.release();
        return switch (err) {
            error.NotFound, error.NotDirectory, error.NameInvalid => NO_DIRECTORY,
            else => {
                self.note(err);
                return STORE_FAILED;
            },
        };
    };
    store.lock.release();
    return preopen(self, guest[0..guest_bytes], .{ .kind = .sealed_directory, .read_only = read_only, .inode = inode });
}

fn walk(self: *Wasi, store: *stored.Store, path: []const u8, make: bool) stored.Error!u64 {
    var inode = stored.ROOT;
    var parts = std.mem.tokenizeScalar(u8, path, '/');
    while (parts.next()) |part| {
        const above = inode;
        inode = store.lookup(above, part) catch |err| blk: {
            if (err != error.NotFound or !make) return err;
            break :blk try store.make(above, part, .directory, self.fileTime());
        };
        if ((try store.stat(inode)).kind != .directory) return error.NotDirectory;
    }
    try store.retain(inode);
    return inode;
}

/// A directory of the host; its descriptor belongs to the program from here on, if this succeeds.
export fn avow_wasi_add_plain(self: *Wasi, guest: [*]const u8, guest_bytes: usize, fd: i32) callconv(.c) i64 {
    return preopen(self, guest[0..guest_bytes], .{ .kind = .plain_directory, .read_only = true, .host_fd = fd });
}

/// `/net`.
export fn avow_wasi_add_network(self: *Wasi, guest: [*]const u8, guest_bytes: usize) callconv(.c) i64 {
    return preopen(self, guest[0..guest_bytes], .{ .kind = .network, .read_only = true });
}

/// What stands for `/` when nothing was granted there.
export fn avow_wasi_add_nothing(self: *Wasi, guest: [*]const u8, guest_bytes: usize) callconv(.c) i64 {
    return preopen(self, guest[0..guest_bytes], .{ .kind = .nothing, .read_only = true });
}

/// A socket that listens and does not block; it belongs to the program from here on.
export fn avow_wasi_add_listener(self: *Wasi, fd: i32) callconv(.c) i64 {
    self.listens = true;
    return install(self, .{
        .kind = .listener,
        .filetype = .SOCKET_STREAM,
        .owned = true,
        .base = rights.LISTENER & ~(rights.FD_READ | rights.FD_WRITE | rights.SOCK_SHUTDOWN),
        .inheriting = rights.SOCKET,
        .host_fd = fd,
    });
}

/// From any thread, and from a signal handler: what waits returns, and the program ends.
export fn avow_wasi_interrupt(self: *Wasi) callconv(.c) void {
    self.interrupt();
}

/// `Ending`; the exit code is there when it is `exited` or `signalled`.
export fn avow_wasi_ending(self: *const Wasi, exit_code: *u32) callconv(.c) u32 {
    exit_code.* = self.exit_code;
    return @backingInt(self.ending);
}

/// The error code of the store (store/errors.zig) behind the first EIO or ENOSPC, or 0.
export fn avow_wasi_store_failure(self: *const Wasi) callconv(.c) i64 {
    return if (self.store_failure) |err| @import("../store/errors.zig").code(err) else 0;
}

/// For the tests: the way round kernels without openat2, which this one may have.
export fn avow_wasi_open_in_steps(context: ?*anyopaque, directory: i32, path: [*:0]const u8, flags: u32) callconv(.c) i64 {
    return hosted.openWithoutOpenat2(context, directory, path, flags);
}
