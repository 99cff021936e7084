//! Directories that are no files: `/net`, below which a program opens the connections it was granted
//! (`tcp/host:port`), and what stands for `/` where nothing was granted there.

const std = @import("std");
const linux = std.os.linux;
const wasi = @import("wasi.zig");
const errno = @import("errno.zig");
const rights = @import("rights.zig");
const paths = @import("paths.zig");
const plain = @import("plain.zig");
const descriptors = @import("descriptors.zig");
const Error = errno.Error;
const Wasi = wasi.Wasi;
const Descriptor = wasi.Descriptor;

const PROTOCOL = "tcp/";

/// Without slashes, dots or steps up that mean nothing.
fn plainly(path: []const u8) []const u8 {
    var rest = path;
    while (std.mem.startsWith(u8, rest, "./")) rest = std.mem.trimStart(u8, rest[2..], "/");
    return std.mem.trimEnd(u8, rest, "/");
}

fn isItself(path: []const u8) bool {
    const text = plainly(path);
    return text.len == 0 or std.mem.eql(u8, text, ".");
}

fn granted(self: *Wasi, endpoint: []const u8) bool {
    var all = std.mem.splitScalar(u8, self.endpoints.items, 0);
    while (all.next()) |known| {
        if (known.len != 0 and std.mem.eql(u8, known, endpoint)) return true;
    }
    return false;
}

/// A path below what stands for `/`: names the grant that would have put something there.
pub fn refuse(self: *Wasi, path: []const u8) Error {
    paths.check(path) catch |err| return err;
    const text = plainly(path);
    if (std.mem.startsWith(u8, text, "net/" ++ PROTOCOL)) return refuseEndpoint(self, text[4 + PROTOCOL.len ..]);
    const end = std.mem.findScalar(u8, text, '/') orelse text.len;
    if (isItself(path) or std.mem.eql(u8, text[0..end], "..")) return error.NOTCAPABLE;
    self.denied(&.{ "sealed:/", text[0..end] });
    return error.NOENT;
}

/// Without a connection that was granted there is no `/net`, and its paths lead into what was granted as
/// `/`: a program that finds nothing there lacks a grant, too.
pub fn unlessEndpoint(self: *Wasi, directory: *const Descriptor, path: []const u8, err: Error) Error {
    if (err != error.NOENT or self.endpoints.items.len != 0) return err;
    if (!std.mem.eql(u8, directory.guest_name, "/")) return err;
    const text = plainly(path);
    if (!std.mem.startsWith(u8, text, "net/" ++ PROTOCOL)) return err;
    return refuseEndpoint(self, text[4 + PROTOCOL.len ..]);
}

fn refuseEndpoint(self: *Wasi, endpoint: []const u8) Error {
    self.denied(&.{ "tcp:", endpoint });
    return error.ACCES;
}

/// The granted endpoint that a path below `/net` names.
fn find(self: *Wasi, path: []const u8) Error![]const u8 {
    try paths.check(path);
    const text = plainly(path);
    if (!std.mem.startsWith(u8, text, PROTOCOL)) return error.NOENT;
    const endpoint = text[PROTOCOL.len..];
    if (!granted(self, endpoint)) return refuseEndpoint(self, endpoint);
    return endpoint;
}

pub fn stat(self: *Wasi, directory: *const Descriptor, path: []const u8, fd: u32) Error!plain.Stat {
    try paths.check(path);
    if (isItself(path)) return descriptors.bare(.DIRECTORY, fd);
    if (directory.kind == .nothing) return refuse(self, path);
    if (std.mem.eql(u8, plainly(path), "tcp")) return descriptors.bare(.DIRECTORY, fd);
    const endpoint = try find(self, path);
    return descriptors.bare(.SOCKET_STREAM, std.hash.Wyhash.hash(0, endpoint) | 1);
}

/// Opens the directory itself, or a connection.
pub fn open(
    self: *Wasi,
    directory: *const Descriptor,
    path: []const u8,
    wants_directory: bool,
    flags: u16,
    base: u64,
    inheriting: u64,
) Error!u32 {
    try paths.check(path);
    if (isItself(path)) {
        var again = directory.*;
        again.guest_name = "";
        again.flags = flags;
        again.base = base & rights.DIRECTORY;
        again.inheriting = inheriting;
        return self.install(again);
    }
    if (directory.kind == .nothing) return refuse(self, path);
    const endpoint = try find(self, path);
    if (wants_directory) return error.NOTDIR;
    try self.room();
    try self.checkInterrupt();
    const host_fd = connected(self.host.connect(self.host.context, endpoint.ptr, endpoint.len)) catch |err| {
        // Whatever it says: a signal may have come while it waited.
        try self.checkInterrupt();
        return err;
    };
    errdefer plain.close(self, host_fd);
    try self.checkInterrupt();
    return self.install(.{
        .kind = .socket,
        .filetype = .SOCKET_STREAM,
        .flags = flags,
        .owned = true,
        // Programs ask for what a file has; a connection can be shut down and waited for, too.
        .base = (base | rights.SOCK_SHUTDOWN | rights.POLL_FD_READWRITE) & rights.SOCKET & directory.inheriting,
        .host_fd = host_fd,
    });
}

/// The streams of this process are no connections; and 0 is what a function of Python gives that raised.
fn connected(result: i64) Error!i32 {
    const host_fd: i32 = @intCast(try errno.checked(result, std.math.maxInt(i32)));
    return if (host_fd > linux.STDERR_FILENO) host_fd else error.IO;
}
