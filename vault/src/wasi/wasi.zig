//! One program's WASI: its descriptors, arguments, environment, clocks and randomness. One thread calls
//! in here, the one that runs the program; only `interrupt` may be called from any other.

const std = @import("std");
const linux = std.os.linux;
const errno = @import("errno.zig");
const rights = @import("rights.zig");
const hosted = @import("host.zig");
const polling = @import("polling.zig");
const stored = @import("../store/store.zig");
const Memory = @import("memory.zig").Memory;
const Error = errno.Error;
const Host = hosted.Host;
const Store = stored.Store;

pub const allocator = std.heap.page_allocator;

/// Open at once; one more is EMFILE.
pub const DESCRIPTORS_MAX = 4096;
/// Linux's PATH_MAX without the zero byte.
pub const PATH_MAX_BYTES = 4095;
const DENIALS_MAX = 64;
const INTERRUPTIONS_MAX = 1000;

pub const Filetype = std.os.wasi.filetype_t;

pub const APPEND: u16 = 1;
pub const DSYNC: u16 = 2;
pub const NONBLOCK: u16 = 4;
pub const RSYNC: u16 = 8;
pub const SYNC: u16 = 16;
pub const FLAGS_ALL: u16 = 31;

pub const Kind = enum(u8) {
    free,
    stdio,
    sealed_file,
    sealed_directory,
    plain_file,
    plain_directory,
    /// `/net`: below it lie the connections that were granted.
    network,
    /// What stands for `/` where no directory was granted there: it is empty.
    nothing,
    socket,
    listener,
};

pub const Descriptor = struct {
    kind: Kind = .free,
    filetype: Filetype = .UNKNOWN,
    flags: u16 = 0,
    read_only: bool = false,
    /// The host's descriptor belongs to the program and is closed with this one.
    owned: bool = false,
    base: u64 = 0,
    inheriting: u64 = 0,
    offset: u64 = 0,
    inode: u64 = 0,
    host_fd: i32 = -1,
    /// The name of a preopened directory, empty for all else.
    guest_name: []const u8 = "",
    /// Entries of a plain directory as they were when its reading began (plain.zig).
    listing: []u8 = &.{},

    pub fn isDirectory(self: *const Descriptor) bool {
        return switch (self.kind) {
            .sealed_directory, .plain_directory, .network, .nothing => true,
            else => false,
        };
    }
};

const Extern = extern struct { kind: u8, handle: [24]u8 align(8) };
const EXTERN_MEMORY = 3;

comptime {
    std.debug.assert(@sizeOf(Extern) == 32);
}

pub const Caller = opaque {};
pub const Trap = opaque {};
const Context = opaque {};

/// Addresses of wasmtime's C functions, handed in by Python.
pub const Api = extern struct {
    caller_context: *const fn (*Caller) callconv(.c) *Context,
    caller_export_get: *const fn (*Caller, [*]const u8, usize, *Extern) callconv(.c) bool,
    memory_data: *const fn (*Context, *const anyopaque) callconv(.c) ?[*]u8,
    memory_data_size: *const fn (*Context, *const anyopaque) callconv(.c) usize,
    trap_new: *const fn ([*]const u8, usize) callconv(.c) ?*Trap,
    trap_new_code: *const fn (u8) callconv(.c) ?*Trap,
};

/// Mirrored field by field in src/avow/sandbox/wasi.py.
pub const Setup = extern struct {
    api: Api,
    /// libc's, since it asks no kernel.
    clock_gettime: *const fn (i32, *hosted.Time) callconv(.c) c_int,
    store: ?*Store,
    entropy: [32]u8,
    /// What files are dated with when the program has no clock, ns since 1970.
    started_ns: u64,
    clocks: u32,
};

pub const CLOCK_REALTIME: u32 = 1;
pub const CLOCK_MONOTONIC: u32 = 2;

/// How a program ended that did not return by itself.
pub const Ending = enum(u8) { none = 0, exited = 1, interrupted = 2, signalled = 3 };

pub const Wasi = struct {
    api: Api,
    host: Host,
    clock_gettime: *const fn (i32, *hosted.Time) callconv(.c) c_int,
    store: ?*Store,
    memory_handle: [24]u8 align(8) = undefined,
    has_memory: bool = false,
    descriptors: []Descriptor,
    /// Directories of the store that were granted: the program may close or renumber their descriptors.
    granted: std.ArrayList(u64) = .empty,
    /// No descriptor below it is free.
    free_from: usize = 0,
    arguments: std.ArrayList(u8) = .empty,
    argument_count: u32 = 0,
    environment: std.ArrayList(u8) = .empty,
    environment_count: u32 = 0,
    /// `host:port` of each granted connection, with a zero byte behind it.
    endpoints: std.ArrayList(u8) = .empty,
    /// Whether a listening socket was granted.
    listens: bool = false,
    random: std.Random.ChaCha,
    clocks: u32,
    started_ns: u64,
    last_time: [4]u64 = @splat(0),
    time_base: [4]u64 = @splat(0),
    ending: Ending = .none,
    exit_code: u32 = 0,
    interrupted: std.atomic.Value(u32) = .init(0),
    /// An eventfd that is in every poll, so that `interrupt` wakes what waits.
    waker: i32,
    store_failure: ?stored.Error = null,
    denials: [DENIALS_MAX]u64 = undefined,
    denial_count: usize = 0,
    path_text: [2][2][PATH_MAX_BYTES + 1]u8 = undefined,
    gathered: [4096]u8 = undefined,
    subscriptions: [polling.SUBSCRIPTIONS_MAX]polling.Subscription = undefined,
    waiting: [polling.SUBSCRIPTIONS_MAX + 1]hosted.Waiting = undefined,

    pub fn create(setup: *const Setup) error{ OutOfMemory, Unavailable }!*Wasi {
        const self = try allocator.create(Wasi);
        errdefer allocator.destroy(self);
        const descriptors = try allocator.alloc(Descriptor, DESCRIPTORS_MAX);
        errdefer allocator.free(descriptors);
        @memset(descriptors, .{});
        const waker = linux.eventfd(0, linux.EFD.CLOEXEC | linux.EFD.NONBLOCK);
        if (linux.errno(waker) != .SUCCESS) return error.Unavailable;
        self.* = .{
            .api = setup.api,
            .host = .{ .context = self, .clock = nativeClock },
            .clock_gettime = setup.clock_gettime,
            .store = setup.store,
            .descriptors = descriptors,
            .random = .init(setup.entropy),
            .clocks = setup.clocks,
            .started_ns = setup.started_ns,
            .waker = @intCast(waker),
        };
        return self;
    }

    pub fn destroy(self: *Wasi) void {
        for (self.descriptors) |*descriptor| self.drop(descriptor);
        self.arguments.deinit(allocator);
        self.environment.deinit(allocator);
        self.endpoints.deinit(allocator);
        self.granted.deinit(allocator);
        _ = linux.close(self.waker);
        allocator.free(self.descriptors);
        std.crypto.secureZero(u8, &self.random.state);
        allocator.destroy(self);
    }

    pub fn memory(self: *Wasi, caller: *Caller) ?Memory {
        const context = self.api.caller_context(caller);
        if (!self.has_memory) {
            @branchHint(.unlikely);
            var found: Extern = undefined;
            if (!self.api.caller_export_get(caller, "memory", 6, &found) or found.kind != EXTERN_MEMORY) return null;
            self.memory_handle = found.handle;
            self.has_memory = true;
        }
        const size = self.api.memory_data_size(context, &self.memory_handle);
        const base = self.api.memory_data(context, &self.memory_handle) orelse return .{ .bytes = &.{} };
        return .{ .bytes = base[0..size] };
    }

    // Descriptors

    pub fn find(self: *Wasi, fd: u32) Error!*Descriptor {
        if (fd >= self.descriptors.len or self.descriptors[fd].kind == .free) return error.BADF;
        return &self.descriptors[fd];
    }

    pub fn findWith(self: *Wasi, fd: u32, needed: u64) Error!*Descriptor {
        const descriptor = try self.find(fd);
        if (descriptor.base & needed != needed) return error.NOTCAPABLE;
        return descriptor;
    }

    /// A descriptor that names a place for the path functions.
    pub fn findDirectory(self: *Wasi, fd: u32, needed: u64) Error!*Descriptor {
        const descriptor = try self.find(fd);
        if (!descriptor.isDirectory()) return error.NOTDIR;
        if (descriptor.base & needed != needed) return error.NOTCAPABLE;
        return descriptor;
    }

    /// The lowest number that is free, as POSIX programs expect.
    pub fn install(self: *Wasi, descriptor: Descriptor) Error!u32 {
        while (self.free_from < self.descriptors.len) : (self.free_from += 1) {
            if (self.descriptors[self.free_from].kind != .free) continue;
            self.descriptors[self.free_from] = descriptor;
            self.free_from += 1;
            return @intCast(self.free_from - 1);
        }
        return error.MFILE;
    }

    pub fn room(self: *Wasi) Error!void {
        while (self.free_from < self.descriptors.len) : (self.free_from += 1) {
            if (self.descriptors[self.free_from].kind == .free) return;
        }
        return error.MFILE;
    }

    /// Whether a directory of the store is one that was granted: above it there is nothing.
    pub fn isGranted(self: *Wasi, inode: u64) bool {
        return std.mem.findScalar(u64, self.granted.items, inode) != null;
    }

    pub fn numberOf(self: *Wasi, descriptor: *Descriptor) usize {
        return (@intFromPtr(descriptor) - @intFromPtr(self.descriptors.ptr)) / @sizeOf(Descriptor);
    }

    /// Lets go of what is behind a descriptor, and frees its number.
    pub fn drop(self: *Wasi, descriptor: *Descriptor) void {
        switch (descriptor.kind) {
            .free => return,
            .sealed_file, .sealed_directory => {
                const store = self.store.?;
                const now_ns = self.fileTime();
                store.lock.acquire();
                defer store.lock.release();
                store.release(descriptor.inode, now_ns) catch |err| self.note(err);
            },
            else => if (descriptor.owned) {
                _ = self.host.close(self.host.context, descriptor.host_fd);
            },
        }
        if (descriptor.listing.len != 0) allocator.free(descriptor.listing);
        if (descriptor.guest_name.len != 0) allocator.free(descriptor.guest_name);
        self.free_from = @min(self.free_from, self.numberOf(descriptor));
        descriptor.* = .{};
    }

    /// Remembers why the store failed, since a program only learns EIO.
    pub fn note(self: *Wasi, err: stored.Error) void {
        switch (err) {
            error.Damaged, error.DiskFailed, error.Broken, error.NoSpace => if (self.store_failure == null) {
                self.store_failure = err;
            },
            else => {},
        }
    }

    pub fn failed(self: *Wasi, err: stored.Error) Error {
        self.note(err);
        return errno.fromStore(err);
    }

    // Time

    /// A clock of the host, never going back; refused when what it says can be no time.
    pub fn clock(self: *Wasi, id: u32) Error!u64 {
        var time: hosted.Time = undefined;
        _ = try errno.checked(self.host.clock(self.host.context, id, &time), 0);
        var now = try nanoseconds(time);
        if (id != 0) {
            // The host's uptime is no affair of the program; 1 s, so that it can look back a little.
            if (self.time_base[id] == 0) self.time_base[id] = @max(now, 1);
            now = (now -| self.time_base[id]) + std.time.ns_per_s;
        }
        self.last_time[id] = @max(self.last_time[id], now);
        return self.last_time[id];
    }

    /// What files are dated with. A program without a clock cannot make one of its files.
    pub fn fileTime(self: *Wasi) u64 {
        if (self.clocks & CLOCK_REALTIME == 0) return self.started_ns;
        return self.clock(0) catch @max(self.last_time[0], self.started_ns);
    }

    // Waiting

    /// Until a descriptor of the host is ready, the program is interrupted, or at once when it does
    /// not want to wait.
    pub fn await(self: *Wasi, descriptor: *const Descriptor, events: i16) Error!void {
        const dont_wait = descriptor.flags & NONBLOCK != 0;
        var waiting = [2]hosted.Waiting{
            .{ .fd = descriptor.host_fd, .events = events, .revents = 0 },
            .{ .fd = self.waker, .events = hosted.READ, .revents = 0 },
        };
        var interruptions: usize = 0;
        while (true) {
            try self.checkInterrupt();
            const result = self.host.poll(self.host.context, &waiting, waiting.len, if (dont_wait) 0 else -1);
            if (errno.checked(result, waiting.len)) |count| {
                if (count > 0 and waiting[0].revents != 0) return;
                if (dont_wait) return error.AGAIN;
            } else |err| {
                if (err != error.INTR) return err;
            }
            // Nothing is ready: a signal came, or the host makes us go round.
            try self.giveWay();
            interruptions += 1;
            if (interruptions > INTERRUPTIONS_MAX) return error.INTR;
        }
    }

    /// A host call was interrupted: let Python run its signal handlers.
    pub fn giveWay(self: *Wasi) Error!void {
        if (self.host.signalled(self.host.context) == 1) self.interrupt();
        try self.checkInterrupt();
    }

    pub fn checkInterrupt(self: *Wasi) Error!void {
        if (self.interrupted.load(.acquire) == 0) return;
        self.ending = .interrupted;
        return error.Stopped;
    }

    /// Callable from any thread and from a signal handler.
    pub fn interrupt(self: *Wasi) void {
        self.interrupted.store(1, .release);
        const one: u64 = 1;
        _ = linux.write(self.waker, std.mem.asBytes(&one), @sizeOf(u64));
    }

    // Grants

    /// Names a grant that would have made a refused call work; each only once.
    pub fn denied(self: *Wasi, parts: []const []const u8) void {
        var text: [512]u8 = undefined;
        var length: usize = 0;
        for (parts) |part| {
            const count = @min(part.len, text.len - length);
            @memcpy(text[length..][0..count], part[0..count]);
            length += count;
        }
        const digest = std.hash.Wyhash.hash(0, text[0..length]);
        for (self.denials[0..self.denial_count]) |known| {
            if (known == digest) return;
        }
        if (self.denial_count == self.denials.len) return;
        self.denials[self.denial_count] = digest;
        self.denial_count += 1;
        self.host.denied(self.host.context, &text, length);
    }
};

fn nativeClock(context: ?*anyopaque, id: u32, into: *hosted.Time) callconv(.c) i64 {
    const self: *Wasi = @ptrCast(@alignCast(context.?));
    return if (self.clock_gettime(@intCast(id), into) == 0) 0 else -@as(i64, @backingInt(linux.E.INVAL));
}

/// Refuses what can be no time: nanoseconds beyond a second, or a year that 64 bits do not hold.
pub fn nanoseconds(time: hosted.Time) Error!u64 {
    if (time.nanoseconds < 0 or time.nanoseconds >= std.time.ns_per_s) return error.IO;
    if (time.seconds < 0 or time.seconds > std.math.maxInt(i64) / std.time.ns_per_s - 2) return error.IO;
    return @as(u64, @intCast(time.seconds)) * std.time.ns_per_s + @as(u64, @intCast(time.nanoseconds));
}
