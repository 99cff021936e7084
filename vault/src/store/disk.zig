//! Where the container lies. Whatever a disk returns is checked: it is the host's.

const std = @import("std");
const linux = std.os.linux;
const Error = @import("errors.zig").Error;

/// The kernel takes memory for a file in pieces as large as the call. In a virtual machine large free
/// pieces may have gone back to the hypervisor, and a first write of larger calls is ten times as slow
/// (`files` of the sandbox's bench, native, in calls of 65,536 and 262,144 bytes).
const WRITE_BYTES = 64 << 10;

/// Functions of C. Results below 0 are −errno. Reads and writes may be short.
pub const Disk = extern struct {
    context: ?*anyopaque,
    read: *const fn (?*anyopaque, u64, [*]u8, usize) callconv(.c) i64,
    write: *const fn (?*anyopaque, u64, [*]const u8, usize) callconv(.c) i64,
    sync: *const fn (?*anyopaque) callconv(.c) i64,
    size: *const fn (?*anyopaque) callconv(.c) i64,
    resize: *const fn (?*anyopaque, u64) callconv(.c) i64,

    /// Returns how many bytes there were: fewer than asked for only at the end of the container.
    pub fn readUpTo(self: *const Disk, offset: u64, into: []u8) Error!usize {
        var done: usize = 0;
        while (done < into.len) {
            const rest = into[done..];
            const count = try transferred(self.read(self.context, offset + done, rest.ptr, rest.len), rest.len);
            if (count == 0) break;
            done += count;
        }
        return done;
    }

    pub fn writeAll(self: *const Disk, offset: u64, bytes: []const u8) Error!void {
        var done: usize = 0;
        while (done < bytes.len) {
            const rest = bytes[done..];
            const count = try transferred(self.write(self.context, offset + done, rest.ptr, rest.len), rest.len);
            // Nothing written and no error: asked again, it would go on for ever.
            if (count == 0) return error.DiskFailed;
            done += count;
        }
    }

    pub fn makeDurable(self: *const Disk) Error!void {
        _ = try transferred(self.sync(self.context), 0);
    }

    pub fn sizeBytes(self: *const Disk) Error!u64 {
        return transferred(self.size(self.context), std.math.maxInt(i64));
    }

    pub fn setBytes(self: *const Disk, size_bytes: u64) Error!void {
        _ = try transferred(self.resize(self.context, size_bytes), 0);
    }

    fn transferred(result: i64, max: usize) Error!usize {
        if (result >= 0) return if (result <= max) @intCast(result) else error.DiskFailed;
        const no_space = [_]linux.E{ .NOSPC, .DQUOT, .FBIG };
        for (no_space) |number| {
            if (result == -@as(i64, @backingInt(number))) return error.NoSpace;
        }
        return error.DiskFailed;
    }
};

/// The container as a file; the descriptor is the caller's. It is exclusively locked (flock).
pub fn ofFile(fd: i32) Disk {
    return .{
        .context = @ptrFromInt(@as(usize, @intCast(fd)) + 1),
        .read = fileRead,
        .write = fileWrite,
        .sync = fileSync,
        .size = fileSize,
        .resize = fileResize,
    };
}

fn descriptor(context: ?*anyopaque) i32 {
    return @intCast(@intFromPtr(context) - 1);
}

fn fileRead(context: ?*anyopaque, offset: u64, into: [*]u8, count: usize) callconv(.c) i64 {
    while (true) {
        const result: isize = @bitCast(linux.pread(descriptor(context), into, count, @intCast(offset)));
        if (result != -@as(isize, @backingInt(linux.E.INTR))) return result;
    }
}

fn fileWrite(context: ?*anyopaque, offset: u64, from: [*]const u8, count: usize) callconv(.c) i64 {
    const part = @min(count, WRITE_BYTES);
    while (true) {
        const result: isize = @bitCast(linux.pwrite(descriptor(context), from, part, @intCast(offset)));
        if (result != -@as(isize, @backingInt(linux.E.INTR))) return result;
    }
}

/// Not asked again when it fails: Linux may then say that all is well while pages are lost.
fn fileSync(context: ?*anyopaque) callconv(.c) i64 {
    return @as(isize, @bitCast(linux.fdatasync(descriptor(context))));
}

fn fileSize(context: ?*anyopaque) callconv(.c) i64 {
    return @as(isize, @bitCast(linux.lseek(descriptor(context), 0, linux.SEEK.END)));
}

fn fileResize(context: ?*anyopaque, size: u64) callconv(.c) i64 {
    return @as(isize, @bitCast(linux.ftruncate(descriptor(context), @intCast(size))));
}
