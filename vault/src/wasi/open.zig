//! `path_open`, with every flag.

const std = @import("std");
const wasi = @import("wasi.zig");
const errno = @import("errno.zig");
const rights = @import("rights.zig");
const paths = @import("paths.zig");
const plain = @import("plain.zig");
const names = @import("names.zig");
const network = @import("network.zig");
const descriptors = @import("descriptors.zig");
const stored = @import("../store/store.zig");
const Error = errno.Error;
const Memory = @import("memory.zig").Memory;
const Wasi = wasi.Wasi;
const Descriptor = wasi.Descriptor;

const SYMLINK_FOLLOW: u32 = 1;
const CREAT: u32 = 1;
const DIRECTORY: u32 = 2;
const EXCL: u32 = 4;
const TRUNC: u32 = 8;

const Request = struct {
    path: []const u8,
    follow: bool,
    oflags: u32,
    base: u64,
    inheriting: u64,
    flags: u16,

    fn has(self: Request, flag: u32) bool {
        return self.oflags & flag != 0;
    }

    fn writes(self: Request) bool {
        return self.base & rights.FD_WRITE != 0;
    }
};

pub fn path_open(
    self: *Wasi,
    memory: Memory,
    fd: u32,
    dirflags: u32,
    path: u32,
    path_len: u32,
    oflags: u32,
    base: u64,
    inheriting: u64,
    fdflags: u32,
    opened_fd: u32,
) Error!void {
    var needed: u64 = rights.PATH_OPEN;
    if (oflags & CREAT != 0) needed |= rights.PATH_CREATE_FILE;
    if (oflags & TRUNC != 0) needed |= rights.PATH_FILESTAT_SET_SIZE;
    const directory = try self.findDirectory(fd, needed);
    try memory.check(opened_fd, 4);
    if (dirflags & ~SYMLINK_FOLLOW != 0 or oflags & ~@as(u32, 15) != 0) return error.INVAL;
    if (fdflags & ~@as(u32, wasi.FLAGS_ALL) != 0) return error.INVAL;
    // Rights only shrink on the way down (typenames.witx, fs_rights_inheriting).
    if ((base | inheriting) & ~directory.inheriting != 0) return error.NOTCAPABLE;
    if (fdflags & (wasi.SYNC | wasi.RSYNC) != 0 and directory.inheriting & rights.FD_SYNC == 0) return error.NOTCAPABLE;
    if (fdflags & wasi.DSYNC != 0 and directory.inheriting & (rights.FD_SYNC | rights.FD_DATASYNC) == 0) return error.NOTCAPABLE;
    if (oflags & CREAT != 0 and oflags & DIRECTORY != 0) return error.INVAL;
    const request: Request = .{
        .path = try memory.slice(path, path_len),
        .follow = dirflags & SYMLINK_FOLLOW != 0,
        .oflags = oflags,
        .base = base,
        .inheriting = inheriting,
        .flags = @intCast(fdflags),
    };
    const result = switch (directory.kind) {
        .sealed_directory => openSealed(self, directory, request),
        .plain_directory => openPlain(self, directory, request),
        else => openOther(self, directory, request),
    };
    const number = result catch |err| return network.unlessEndpoint(self, directory, request.path, err);
    try memory.put(u32, opened_fd, number);
}

fn openSealed(self: *Wasi, directory: *const Descriptor, request: Request) Error!u32 {
    try self.room();
    const store = self.store.?;
    const now_ns = self.fileTime();
    store.lock.acquire();
    defer store.lock.release();
    // POSIX: O_CREAT with O_EXCL looks at the name itself.
    const exclusive = request.has(CREAT) and request.has(EXCL);
    const last: paths.Last = if (exclusive) .never else if (request.follow) .follow else .keep;
    const place = try paths.resolve(self, directory.inode, request.path, last, 0);
    const inode = place.inode orelse try create(self, directory, place, request, now_ns);
    if (place.inode != null) try reopen(self, directory, place, request, now_ns);
    const kind: stored.Kind = if (place.inode == null) .file else place.kind;
    store.retain(inode) catch |err| return self.failed(err);
    const applicable = if (kind == .directory) rights.DIRECTORY else rights.REGULAR_FILE;
    return self.install(.{
        .kind = if (kind == .directory) .sealed_directory else .sealed_file,
        .filetype = descriptors.sealedFiletype(kind),
        .flags = request.flags,
        .read_only = directory.read_only,
        .base = request.base & applicable,
        .inheriting = if (kind == .directory) request.inheriting else 0,
        .inode = inode,
    });
}

fn create(self: *Wasi, directory: *const Descriptor, place: paths.Place, request: Request, now_ns: u64) Error!u64 {
    if (!request.has(CREAT)) return error.NOENT;
    if (place.wants_directory) return error.ISDIR;
    if (directory.read_only) return error.ROFS;
    try names.alive(self, place.directory);
    return self.store.?.make(place.directory, place.name, .file, now_ns) catch |err| self.failed(err);
}

/// Something is there already: whether it is what was asked for.
fn reopen(self: *Wasi, directory: *const Descriptor, place: paths.Place, request: Request, now_ns: u64) Error!void {
    if (request.has(CREAT) and request.has(EXCL)) return error.EXIST;
    switch (place.kind) {
        .directory => {
            if (request.writes() or request.has(CREAT) or request.has(TRUNC)) return error.ISDIR;
        },
        .link => return if (request.has(DIRECTORY)) error.NOTDIR else error.LOOP,
        else => {
            if (request.has(DIRECTORY)) return error.NOTDIR;
            // What a slash makes a directory can be neither made nor written as a file.
            if (place.wants_directory) return if (request.writes() or request.has(CREAT) or request.has(TRUNC)) error.ISDIR else error.NOTDIR;
            if ((request.writes() or request.has(TRUNC)) and directory.read_only) return error.ROFS;
            if (request.has(TRUNC)) self.store.?.resize(place.inode.?, 0, now_ns) catch |err| return self.failed(err);
        },
    }
}

fn openPlain(self: *Wasi, directory: *const Descriptor, request: Request) Error!u32 {
    try self.room();
    const exclusive = request.has(CREAT) and request.has(EXCL);
    const found = plain.openFile(self, directory.host_fd, request.path, request.follow, request.has(DIRECTORY)) catch |err| {
        return if (err == error.NOENT and request.has(CREAT)) error.ROFS else err;
    };
    const fd, const filetype = found;
    errdefer plain.close(self, fd);
    const is_directory = filetype == .DIRECTORY;
    if (exclusive) return error.EXIST;
    if (is_directory and (request.writes() or request.has(CREAT) or request.has(TRUNC))) return error.ISDIR;
    if (request.writes() or request.has(TRUNC)) return error.ROFS;
    return self.install(.{
        .kind = if (is_directory) .plain_directory else .plain_file,
        .filetype = filetype,
        .flags = request.flags,
        .read_only = true,
        .owned = true,
        .base = request.base & if (is_directory) rights.DIRECTORY else rights.REGULAR_FILE,
        .inheriting = if (is_directory) request.inheriting else 0,
        .host_fd = fd,
    });
}

fn openOther(self: *Wasi, directory: *const Descriptor, request: Request) Error!u32 {
    if (directory.kind == .nothing and request.has(CREAT)) {
        const refused = network.refuse(self, request.path);
        // Nothing can be made where nothing is.
        return if (refused == error.NOENT) error.ACCES else refused;
    }
    return network.open(self, directory, request.path, request.has(DIRECTORY), request.flags, request.base, request.inheriting);
}
