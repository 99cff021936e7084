//! All that WASI asks of the host, as one table of C functions: native ones by direct system calls
//! here, or others that a test hands in. Nobody believes what comes back before it was checked
//! (errno.zig `checked`, and where records are read).

const std = @import("std");
const linux = std.os.linux;

pub const READ: i16 = linux.POLL.IN;
pub const WRITE: i16 = linux.POLL.OUT;
pub const Waiting = linux.pollfd;
pub const Time = extern struct { seconds: i64, nanoseconds: i64 };

pub const Facts = extern struct {
    mode: u32,
    links: u32,
    device: u64,
    inode: u64,
    size: i64,
    accessed: Time,
    modified: Time,
    changed: Time,
};

/// Flags of `open`, beyond read-only.
pub const OPEN_DIRECTORY: u32 = 1;
/// The last part of the path itself, be it a link.
pub const OPEN_LINK: u32 = 2;
/// Only to ask about it (O_PATH).
pub const OPEN_PATH: u32 = 4;

pub const RECEIVE_PEEK: u32 = linux.MSG.PEEK;

const Context = ?*anyopaque;

/// Results: 0 and above is success, below is −errno. `offset` −1: where the descriptor stands.
pub const Host = extern struct {
    context: Context = null,
    /// Clocks are numbered as in preview 1, which has Linux's numbers.
    clock: *const fn (Context, u32, *Time) callconv(.c) i64,
    read: *const fn (Context, i32, [*]u8, usize, i64) callconv(.c) i64 = nativeRead,
    write: *const fn (Context, i32, [*]const u8, usize) callconv(.c) i64 = nativeWrite,
    /// A path below a directory; it never leaves it, whatever is linked where.
    open: *const fn (Context, i32, [*:0]const u8, u32) callconv(.c) i64 = nativeOpen,
    close: *const fn (Context, i32) callconv(.c) i64 = nativeClose,
    facts: *const fn (Context, i32, *Facts) callconv(.c) i64 = nativeFacts,
    read_link: *const fn (Context, i32, [*]u8, usize) callconv(.c) i64 = nativeReadLink,
    /// linux_dirent64 records, from where the descriptor stands.
    entries: *const fn (Context, i32, [*]u8, usize) callconv(.c) i64 = nativeEntries,
    rewind: *const fn (Context, i32) callconv(.c) i64 = nativeRewind,
    /// A negative timeout is for ever.
    poll: *const fn (Context, [*]Waiting, usize, i64) callconv(.c) i64 = nativePoll,
    receive: *const fn (Context, i32, [*]u8, usize, u32) callconv(.c) i64 = nativeReceive,
    send: *const fn (Context, i32, [*]const u8, usize) callconv(.c) i64 = nativeSend,
    accept: *const fn (Context, i32) callconv(.c) i64 = nativeAccept,
    shutdown: *const fn (Context, i32, i32) callconv(.c) i64 = nativeShutdown,
    /// `host:port`; the whole opening of a connection, names included.
    connect: *const fn (Context, [*]const u8, usize) callconv(.c) i64 = noConnect,
    yield: *const fn (Context) callconv(.c) i64 = nativeYield,
    /// A system call was interrupted: whoever handles signals may do so now. 1 ends the program.
    signalled: *const fn (Context) callconv(.c) i64 = noSignal,
    /// The text of a grant that a program would have needed.
    denied: *const fn (Context, [*]const u8, usize) callconv(.c) void = noDenial,
};

fn signed(result: usize) i64 {
    return @bitCast(@as(u64, result));
}

fn nativeRead(_: Context, fd: i32, into: [*]u8, bytes: usize, offset: i64) callconv(.c) i64 {
    return signed(if (offset < 0) linux.read(fd, into, bytes) else linux.pread(fd, into, bytes, offset));
}

fn nativeWrite(_: Context, fd: i32, from: [*]const u8, bytes: usize) callconv(.c) i64 {
    return signed(linux.write(fd, from, bytes));
}

/// openat2(2)'s `struct open_how`.
const How = extern struct { flags: u64, mode: u64, resolve: u64 };
const RESOLVE_NO_MAGICLINKS = 0x02;
const RESOLVE_BENEATH = 0x08;
const O_PATH = 0o10000000;
const O_NOFOLLOW: u64 = if (@import("builtin").cpu.arch == .aarch64) 0o100000 else 0o400000;
const O_DIRECTORY: u64 = if (@import("builtin").cpu.arch == .aarch64) 0o40000 else 0o200000;
const O_CLOEXEC = 0o2000000;
const O_NOCTTY = 0o400;
/// So that a named pipe cannot make the opening wait.
const O_NONBLOCK = 0o4000;

fn openFlags(flags: u32) u64 {
    // openat2 refuses the others beside O_PATH.
    var all: u64 = O_CLOEXEC | if (flags & OPEN_PATH != 0) @as(u64, O_PATH) else O_NOCTTY | O_NONBLOCK;
    if (flags & OPEN_DIRECTORY != 0) all |= O_DIRECTORY;
    if (flags & OPEN_LINK != 0) all |= O_NOFOLLOW;
    return all;
}

fn nativeOpen(_: Context, fd: i32, path: [*:0]const u8, flags: u32) callconv(.c) i64 {
    return refuseProcess(openBeneath(fd, path, flags), flags);
}

/// The way round kernels without openat2.
pub fn openWithoutOpenat2(_: Context, fd: i32, path: [*:0]const u8, flags: u32) callconv(.c) i64 {
    return refuseProcess(openInSteps(fd, path, flags), flags);
}

/// statfs(2): `f_type` is the first word of the record, which has 120 bytes.
const PROC_SUPER_MAGIC = 0x9fa0;

/// A file of proc shows the memory of this very process, with all its keys: no directory of the host
/// can be granted that has it.
fn refuseProcess(opened: i64, flags: u32) i64 {
    if (opened < 0 or flags & OPEN_PATH != 0) return opened;
    const fd: i32 = @intCast(opened);
    var found: [32]u64 = undefined;
    const result = linux.syscall2(.fstatfs, @as(u32, @bitCast(fd)), @intFromPtr(&found));
    if (signed(result) == 0 and found[0] != PROC_SUPER_MAGIC) return opened;
    _ = linux.close(fd);
    return if (signed(result) < 0) signed(result) else -@as(i64, @backingInt(linux.E.ACCES));
}

fn openBeneath(fd: i32, path: [*:0]const u8, flags: u32) i64 {
    const how: How = .{ .flags = openFlags(flags), .mode = 0, .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS };
    var tries: u32 = 0;
    while (tries < 16) : (tries += 1) {
        const result = linux.syscall4(.openat2, @as(u32, @bitCast(fd)), @intFromPtr(path), @intFromPtr(&how), @sizeOf(How));
        switch (linux.errno(result)) {
            // Something above was renamed meanwhile: openat2(2) says to try again.
            .AGAIN => continue,
            // A kernel before 5.6, or a filter that does not know the call.
            .NOSYS, .PERM => return openInSteps(fd, path, flags),
            else => return signed(result),
        }
    }
    return -@as(i64, @backingInt(linux.E.AGAIN));
}

/// What openat2 does, for kernels without it: one part of the path at a time, and no symbolic link is
/// followed at all, so none can lead out. `..` goes back to a directory that was walked through.
fn openInSteps(base: i32, path: [*:0]const u8, flags: u32) i64 {
    var walked: [64]i32 = undefined;
    var depth: usize = 0;
    defer for (walked[0..depth]) |open| {
        _ = linux.close(open);
    };
    const text = std.mem.span(path);
    if (text.len == 0) return -@as(i64, @backingInt(linux.E.NOENT));
    if (text[0] == '/') return -@as(i64, @backingInt(linux.E.XDEV));
    var parts = std.mem.tokenizeScalar(u8, text, '/');
    while (parts.next()) |part| {
        const last = parts.peek() == null;
        if (part.len > 255) return -@as(i64, @backingInt(linux.E.NAMETOOLONG));
        var name: [256]u8 = undefined;
        @memcpy(name[0..part.len], part);
        name[part.len] = 0;
        if (std.mem.eql(u8, part, "..")) {
            if (depth == 0) return -@as(i64, @backingInt(linux.E.XDEV));
            depth -= 1;
            _ = linux.close(walked[depth]);
            if (!last) continue;
            name[0] = '.';
            name[1] = 0;
        }
        const from = if (depth == 0) base else walked[depth - 1];
        const trailing = text[text.len - 1] == '/';
        const wanted = if (!last)
            O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC
        else
            openFlags(flags) | O_NOFOLLOW | (if (trailing) O_DIRECTORY else 0);
        const result = linux.syscall4(.openat, @as(u32, @bitCast(from)), @intFromPtr(&name), @intCast(wanted), 0);
        if (signed(result) < 0) return signed(result);
        // O_PATH opens a link where all else fails; followed it would have to be, and is not here.
        if (last) return if (flags & OPEN_LINK == 0) refuseLink(@intCast(result)) else signed(result);
        if (depth == walked.len) {
            _ = linux.close(@intCast(result));
            return -@as(i64, @backingInt(linux.E.NAMETOOLONG));
        }
        walked[depth] = @intCast(result);
        depth += 1;
    }
    return -@as(i64, @backingInt(linux.E.NOENT));
}

fn refuseLink(fd: i32) i64 {
    var found: Facts = undefined;
    const result = nativeFacts(null, fd, &found);
    if (result == 0 and found.mode & 0o170000 != 0o120000) return fd;
    _ = linux.close(fd);
    return if (result < 0) result else -@as(i64, @backingInt(linux.E.LOOP));
}

fn nativeClose(_: Context, fd: i32) callconv(.c) i64 {
    return signed(linux.close(fd));
}

fn nativeFacts(_: Context, fd: i32, into: *Facts) callconv(.c) i64 {
    var found: linux.Statx = undefined;
    const result = linux.statx(fd, "", linux.AT.EMPTY_PATH, linux.STATX.BASIC_STATS, &found);
    if (signed(result) < 0) return signed(result);
    into.* = .{
        .mode = found.mode,
        .links = found.nlink,
        .device = (@as(u64, found.dev_major) << 32) | found.dev_minor,
        .inode = found.ino,
        .size = @bitCast(found.size),
        .accessed = .{ .seconds = found.atime.sec, .nanoseconds = found.atime.nsec },
        .modified = .{ .seconds = found.mtime.sec, .nanoseconds = found.mtime.nsec },
        .changed = .{ .seconds = found.ctime.sec, .nanoseconds = found.ctime.nsec },
    };
    return 0;
}

fn nativeReadLink(_: Context, fd: i32, into: [*]u8, bytes: usize) callconv(.c) i64 {
    return signed(linux.readlinkat(fd, "", into, bytes));
}

fn nativeEntries(_: Context, fd: i32, into: [*]u8, bytes: usize) callconv(.c) i64 {
    return signed(linux.getdents64(fd, into, @intCast(bytes)));
}

fn nativeRewind(_: Context, fd: i32) callconv(.c) i64 {
    return signed(linux.lseek(fd, 0, linux.SEEK.SET));
}

fn nativePoll(_: Context, waiting: [*]Waiting, count: usize, timeout_ns: i64) callconv(.c) i64 {
    var timeout: linux.timespec = .{
        .sec = @intCast(@divTrunc(@max(timeout_ns, 0), std.time.ns_per_s)),
        .nsec = @intCast(@rem(@max(timeout_ns, 0), std.time.ns_per_s)),
    };
    return signed(linux.ppoll(waiting, count, if (timeout_ns < 0) null else &timeout, null));
}

fn nativeReceive(_: Context, fd: i32, into: [*]u8, bytes: usize, flags: u32) callconv(.c) i64 {
    return signed(linux.recvfrom(fd, into, bytes, flags | linux.MSG.DONTWAIT, null, null));
}

fn nativeSend(_: Context, fd: i32, from: [*]const u8, bytes: usize) callconv(.c) i64 {
    return signed(linux.sendto(fd, from, bytes, linux.MSG.DONTWAIT | linux.MSG.NOSIGNAL, null, 0));
}

fn nativeAccept(_: Context, fd: i32) callconv(.c) i64 {
    return signed(linux.accept4(fd, null, null, linux.SOCK.CLOEXEC | linux.SOCK.NONBLOCK));
}

fn nativeShutdown(_: Context, fd: i32, how: i32) callconv(.c) i64 {
    return signed(linux.shutdown(fd, how));
}

fn nativeYield(_: Context) callconv(.c) i64 {
    return signed(linux.sched_yield());
}

fn noConnect(_: Context, _: [*]const u8, _: usize) callconv(.c) i64 {
    return -@as(i64, @backingInt(linux.E.ACCES));
}

fn noSignal(_: Context) callconv(.c) i64 {
    return 0;
}

fn noDenial(_: Context, _: [*]const u8, _: usize) callconv(.c) void {}
