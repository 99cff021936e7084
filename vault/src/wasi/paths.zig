//! From a path to a place in the sealed store. Resolution begins at a directory that the program holds
//! and never leaves it: not by `..`, not by an absolute path, not by a symbolic link.

const std = @import("std");
const wasi = @import("wasi.zig");
const stored = @import("../store/store.zig");
const Error = @import("errno.zig").Error;
const Store = stored.Store;
const Wasi = wasi.Wasi;

/// Linux's bound on symbolic links in one path.
const LINKS_MAX = 40;

/// Where a path ends.
pub const Place = struct {
    directory: u64,
    /// Empty when the path ends in `.` or `..`: then only `inode` is meant, and it is there.
    name: []const u8,
    inode: ?u64,
    kind: stored.Kind = .free,
    /// A slash at the end: only a directory will do.
    wants_directory: bool,
};

pub const Last = enum {
    /// A link at the end is followed.
    follow,
    /// It is not, unless a slash comes after it.
    keep,
    /// Not even then: for what removes or creates the name itself.
    never,
};

/// What every path has to be, wherever it leads (POSIX, and typenames.witx: a string is UTF-8).
pub fn check(path: []const u8) Error!void {
    if (path.len == 0) return error.NOENT;
    if (path.len > wasi.PATH_MAX_BYTES) return error.NAMETOOLONG;
    if (std.mem.findScalar(u8, path, 0) != null) return error.INVAL;
    if (!std.unicode.utf8ValidateSlice(path)) return error.ILSEQ;
    if (path[0] == '/') return error.NOTCAPABLE;
}

/// The caller holds the store's lock, and until it is done with the place. `which`: of two paths that
/// are resolved for one call, the number; each has its own buffers.
pub fn resolve(self: *Wasi, base: u64, path: []const u8, last: Last, which: u1) Error!Place {
    try check(path);
    const store = self.store.?;
    var rest = path;
    var directory = base;
    var links: usize = 0;
    var buffer: u1 = 0;
    while (true) {
        rest = std.mem.trimStart(u8, rest, "/");
        const end = std.mem.findScalar(u8, rest, '/') orelse rest.len;
        const name = rest[0..end];
        const behind = rest[end..];
        const is_last = std.mem.trimStart(u8, behind, "/").len == 0;
        const slash = behind.len != 0;
        if (name.len == 0 or std.mem.eql(u8, name, ".")) {
            if (is_last) return itself(directory);
            rest = behind;
            continue;
        }
        if (std.mem.eql(u8, name, "..")) {
            // Above the directory that the program holds there is nothing for it.
            if (directory == base) return error.NOTCAPABLE;
            directory = (store.stat(directory) catch |err| return self.failed(err)).parent;
            if (is_last) return itself(directory);
            rest = behind;
            continue;
        }
        if (name.len > stored.NAME_MAX_BYTES) return error.NAMETOOLONG;
        const inode = store.lookup(directory, name) catch |err| switch (err) {
            error.NotFound => {
                if (!is_last) return error.NOENT;
                return .{ .directory = directory, .name = name, .inode = null, .wants_directory = slash };
            },
            else => return self.failed(err),
        };
        const found = store.stat(inode) catch |err| return self.failed(err);
        if (found.kind == .link and (!is_last or last == .follow or (last == .keep and slash))) {
            links += 1;
            if (links > LINKS_MAX) return error.LOOP;
            rest = try expand(self, found, behind, &self.path_text[which][buffer]);
            buffer +%= 1;
            continue;
        }
        if (is_last) return .{
            .directory = directory,
            .name = name,
            .inode = inode,
            .kind = found.kind,
            .wants_directory = slash,
        };
        if (found.kind != .directory) return error.NOTDIR;
        directory = inode;
        rest = behind;
    }
}

fn itself(directory: u64) Place {
    return .{ .directory = directory, .name = "", .inode = directory, .kind = .directory, .wants_directory = true };
}

/// The target of a link, and what came behind the link. `behind` may lie in the other buffer.
fn expand(self: *Wasi, link: stored.Stat, behind: []const u8, into: *[wasi.PATH_MAX_BYTES + 1]u8) Error![]const u8 {
    if (link.size == 0) return error.NOENT;
    if (link.size > wasi.PATH_MAX_BYTES - behind.len) return error.NAMETOOLONG;
    const size: usize = @intCast(link.size);
    const count = self.store.?.read(link.inode, 0, into[0..size]) catch |err| return self.failed(err);
    if (count != size) return error.IO;
    @memcpy(into[size..][0..behind.len], behind);
    if (into[0] == '/') return error.NOTCAPABLE;
    if (std.mem.findScalar(u8, into[0..size], 0) != null) return error.INVAL;
    return into[0 .. size + behind.len];
}
