//! Plain directories of the host, read-only. The host keeps paths inside of them (openat2 with
//! RESOLVE_BENEATH); what it says about files is checked for form. Their contents are the host's word.

const std = @import("std");
const wasi = @import("wasi.zig");
const errno = @import("errno.zig");
const hosted = @import("host.zig");
const paths = @import("paths.zig");
const Error = errno.Error;
const Wasi = wasi.Wasi;
const Filetype = wasi.Filetype;

/// Of one listing; a directory whose names need more is EOVERFLOW.
const LISTING_MAX_BYTES = 64 << 20;
const FD_MAX = std.math.maxInt(i32);

pub const Stat = struct {
    device: u64,
    inode: u64,
    filetype: Filetype,
    links: u64,
    size: u64,
    accessed_ns: u64,
    modified_ns: u64,
    changed_ns: u64,
};

/// A descriptor of the host for a path below a directory.
pub fn open(self: *Wasi, directory: i32, path: []const u8, flags: u32) Error!i32 {
    try paths.check(path);
    const text = &self.path_text[0][0];
    @memcpy(text[0..path.len], path);
    text[path.len] = 0;
    const result = self.host.open(self.host.context, directory, text[0..path.len :0], flags);
    const fd = errno.checked(result, FD_MAX) catch |err| switch (err) {
        // openat2(2): EXDEV is a path that would have led out.
        error.XDEV => return error.NOTCAPABLE,
        else => return err,
    };
    return @intCast(fd);
}

pub fn close(self: *Wasi, fd: i32) void {
    _ = self.host.close(self.host.context, fd);
}

pub fn stat(self: *Wasi, fd: i32) Error!Stat {
    var facts: hosted.Facts = undefined;
    _ = try errno.checked(self.host.facts(self.host.context, fd, &facts), 0);
    if (facts.size < 0) return error.IO;
    return .{
        .device = facts.device,
        .inode = facts.inode,
        .filetype = filetype(facts.mode),
        .links = facts.links,
        .size = @intCast(facts.size),
        .accessed_ns = try time(facts.accessed),
        .modified_ns = try time(facts.modified),
        .changed_ns = try time(facts.changed),
    };
}

/// Files may be dated before 1970 or after 2262, which preview 1 or a clock cannot say: they are of
/// the nearest time then.
fn time(value: hosted.Time) Error!u64 {
    if (value.nanoseconds < 0 or value.nanoseconds >= std.time.ns_per_s) return error.IO;
    if (value.seconds < 0) return 0;
    return wasi.nanoseconds(value) catch std.math.maxInt(i64);
}

pub fn statPath(self: *Wasi, directory: i32, path: []const u8, follow: bool) Error!Stat {
    const fd = try open(self, directory, path, hosted.OPEN_PATH | if (follow) 0 else hosted.OPEN_LINK);
    defer close(self, fd);
    return stat(self, fd);
}

fn filetype(mode: u32) Filetype {
    return switch (mode & 0o170000) {
        0o040000 => .DIRECTORY,
        0o100000 => .REGULAR_FILE,
        0o120000 => .SYMBOLIC_LINK,
        0o060000 => .BLOCK_DEVICE,
        0o020000 => .CHARACTER_DEVICE,
        0o140000 => .SOCKET_STREAM,
        else => .UNKNOWN,
    };
}

/// Opens a file or a directory for reading, and nothing else: no device, pipe or socket of the host. Even
/// to open one may do something, to a watchdog or to who waits at a pipe's other end, so it is asked about
/// before.
pub fn openFile(self: *Wasi, directory: i32, path: []const u8, follow: bool, wants_directory: bool) Error!struct { i32, Filetype } {
    switch ((try statPath(self, directory, path, follow)).filetype) {
        .DIRECTORY, .REGULAR_FILE, .SYMBOLIC_LINK => {},
        else => return if (wants_directory) error.NOTDIR else error.ACCES,
    }
    var flags: u32 = 0;
    if (!follow) flags |= hosted.OPEN_LINK;
    if (wants_directory) flags |= hosted.OPEN_DIRECTORY;
    const fd = try open(self, directory, path, flags);
    errdefer close(self, fd);
    const found = try stat(self, fd);
    if (found.filetype == .DIRECTORY or found.filetype == .REGULAR_FILE and !wants_directory) return .{ fd, found.filetype };
    return if (wants_directory) error.NOTDIR else error.ACCES;
}

pub fn readLink(self: *Wasi, directory: i32, path: []const u8, into: []u8) Error!usize {
    const fd = try open(self, directory, path, hosted.OPEN_PATH | hosted.OPEN_LINK);
    defer close(self, fd);
    const found = try stat(self, fd);
    if (found.filetype != .SYMBOLIC_LINK) return error.INVAL;
    // Not into the program's memory: a call of length 0 is EINVAL to Linux, and fine to preview 1.
    var target: [wasi.PATH_MAX_BYTES]u8 = undefined;
    const result = self.host.read_link(self.host.context, fd, &target, target.len);
    const count: usize = @intCast(try errno.checked(result, target.len));
    const copied = @min(count, into.len);
    @memcpy(into[0..copied], target[0..copied]);
    return copied;
}

/// Reads from a file, at an offset.
pub fn read(self: *Wasi, fd: i32, into: []u8, offset: u64) Error!usize {
    if (offset > std.math.maxInt(i64)) return error.INVAL;
    var interruptions: usize = 0;
    while (true) : (interruptions += 1) {
        const result = self.host.read(self.host.context, fd, into.ptr, into.len, @intCast(offset));
        return @intCast(errno.checked(result, into.len) catch |err| {
            if (err != error.INTR or interruptions == 16) return err;
            try self.giveWay();
            continue;
        });
    }
}

/// One entry of a listing, as it is kept: inode (8), kind (1), bytes of the name (1), the name.
pub const Entry = struct { inode: u64, filetype: Filetype, name: []const u8, next: u64 };

const HEADER_BYTES = 10;

/// The entry at an offset of a listing, which is its cookie.
pub fn entry(listing: []const u8, cookie: u64) Error!?Entry {
    if (cookie == listing.len) return null;
    if (cookie > listing.len or listing.len - cookie < HEADER_BYTES) return error.INVAL;
    const at: usize = @intCast(cookie);
    const name_bytes = listing[at + 9];
    // A cookie that the program made up, and that is the start of no entry.
    if (name_bytes == 0 or listing.len - at - HEADER_BYTES < name_bytes) return error.INVAL;
    return .{
        .inode = std.mem.readInt(u64, listing[at..][0..8], .little),
        .filetype = @fromBackingInt(@intCast(listing[at + 8])),
        .name = listing[at + HEADER_BYTES ..][0..name_bytes],
        .next = cookie + HEADER_BYTES + name_bytes,
    };
}

/// All names of a directory, taken at once: cookies stay valid whatever the host does to it meanwhile.
pub fn list(self: *Wasi, descriptor: *wasi.Descriptor) Error!void {
    var all: std.ArrayList(u8) = .empty;
    errdefer all.deinit(wasi.allocator);
    _ = try errno.checked(self.host.rewind(self.host.context, descriptor.host_fd), 0);
    var buffer: [32 << 10]u8 align(8) = undefined;
    while (true) {
        const result = self.host.entries(self.host.context, descriptor.host_fd, &buffer, buffer.len);
        const count: usize = @intCast(try errno.checked(result, buffer.len));
        if (count == 0) break;
        try append(&all, buffer[0..count]);
        if (all.items.len > LISTING_MAX_BYTES) return error.OVERFLOW;
    }
    const kept = all.toOwnedSlice(wasi.allocator) catch return error.NOMEM;
    if (descriptor.listing.len != 0) wasi.allocator.free(descriptor.listing);
    descriptor.listing = kept;
}

/// linux_dirent64: inode (8), offset (8), length of the record (2), kind (1), name and a zero byte.
fn append(all: *std.ArrayList(u8), records: []const u8) Error!void {
    var rest = records;
    while (rest.len > 0) {
        if (rest.len < 20) return error.IO;
        const length = std.mem.readInt(u16, rest[16..18], .little);
        if (length < 20 or length > rest.len) return error.IO;
        const space = rest[19..length];
        const end = std.mem.findScalar(u8, space, 0) orelse return error.IO;
        const name = space[0..end];
        const kind = rest[18];
        const inode = std.mem.readInt(u64, rest[0..8], .little);
        rest = rest[length..];
        if (std.mem.eql(u8, name, ".") or std.mem.eql(u8, name, "..")) continue;
        if (name.len == 0 or name.len > 255) return error.IO;
        // A name with a slash would be a path, perhaps one that leads elsewhere.
        if (std.mem.findScalar(u8, name, '/') != null) return error.IO;
        // No program can be given a name that is not UTF-8 (typenames.witx: a string).
        if (!std.unicode.utf8ValidateSlice(name)) continue;
        var header: [HEADER_BYTES]u8 = undefined;
        std.mem.writeInt(u64, header[0..8], inode, .little);
        header[8] = @backingInt(filetype(@as(u32, kind & 15) << 12));
        header[9] = @intCast(name.len);
        all.appendSlice(wasi.allocator, &header) catch return error.NOMEM;
        all.appendSlice(wasi.allocator, name) catch return error.NOMEM;
    }
}
