//! What other threads hand to the pump's thread: new connections and commands, in order, and the
//! connection numbers that are free. Everything here is guarded by one lock.

const std = @import("std");
const sys = @import("sys.zig");
const tls = @import("tls.zig");
const Allocator = std.mem.Allocator;

/// More waiting bytes than this are refused: the caller is told instead of memory being filled.
const WAITING_MAX_BYTES = 64 << 20;

/// A new connection when `fd` is not negative, else a command. Its payload follows it.
pub const Entry = extern struct {
    session: tls.Session = .{},
    connection: u32 = 0,
    fd: sys.Fd = -1,
    payload_bytes: u32,
    reserved: u32 = 0,
};

pub const Error = error{ Stopped, Full, TooLarge } || Allocator.Error;

pub const Inbox = struct {
    lock: sys.Lock = .{},
    waiting: std.ArrayList(u8) = .empty,
    has_waiting: std.atomic.Value(bool) = .init(false),
    stopped: bool = false,
    payload_max_bytes: usize,
    free: std.ArrayList(u32) = .empty,
    next_connection: u32 = 0,
    /// Being delivered; only the pump's thread touches these two.
    taken: std.ArrayList(u8) = .empty,
    taken_offset: usize = 0,

    pub fn add(self: *Inbox, allocator: Allocator, fd: sys.Fd, session: tls.Session, information: []const u8) Error!u32 {
        if (information.len > self.payload_max_bytes) return error.TooLarge;
        self.lock.acquire();
        defer self.lock.release();
        const recycled = self.free.items.len != 0;
        // The list of free numbers has room for every number there is, so giving one back never fails.
        if (!recycled) try self.free.ensureTotalCapacity(allocator, self.next_connection + 1);
        const connection = if (recycled) self.free.items[self.free.items.len - 1] else self.next_connection;
        try self.put(allocator, .{
            .session = session,
            .connection = connection,
            .fd = fd,
            .payload_bytes = @intCast(information.len),
        }, information);
        if (recycled) self.free.items.len -= 1 else self.next_connection += 1;
        return connection;
    }

    pub fn command(self: *Inbox, allocator: Allocator, blob: []const u8) Error!void {
        if (blob.len > self.payload_max_bytes) return error.TooLarge;
        self.lock.acquire();
        defer self.lock.release();
        try self.put(allocator, .{ .payload_bytes = @intCast(blob.len) }, blob);
    }

    fn put(self: *Inbox, allocator: Allocator, entry: Entry, payload: []const u8) Error!void {
        if (self.stopped) return error.Stopped;
        const bytes = @sizeOf(Entry) + payload.len;
        if (self.waiting.items.len + bytes > WAITING_MAX_BYTES) return error.Full;
        try self.waiting.ensureUnusedCapacity(allocator, bytes);
        self.waiting.appendSliceAssumeCapacity(std.mem.asBytes(&entry));
        self.waiting.appendSliceAssumeCapacity(payload);
        self.has_waiting.store(true, .release);
    }

    pub fn release(self: *Inbox, connection: u32) void {
        self.lock.acquire();
        defer self.lock.release();
        self.free.appendAssumeCapacity(connection);
    }

    pub fn isEmpty(self: *const Inbox) bool {
        return self.taken_offset == self.taken.items.len and !self.has_waiting.load(.acquire);
    }

    /// The next entry, which stays where it is until `advance`.
    pub fn peek(self: *Inbox) ?struct { entry: Entry, payload: []const u8 } {
        if (self.taken_offset == self.taken.items.len) {
            self.taken.clearRetainingCapacity();
            self.taken_offset = 0;
            if (!self.has_waiting.load(.acquire)) return null;
            self.lock.acquire();
            defer self.lock.release();
            std.mem.swap(std.ArrayList(u8), &self.taken, &self.waiting);
            self.has_waiting.store(false, .release);
        }
        const rest = self.taken.items[self.taken_offset..];
        const entry = std.mem.bytesToValue(Entry, rest[0..@sizeOf(Entry)]);
        return .{ .entry = entry, .payload = rest[@sizeOf(Entry)..][0..entry.payload_bytes] };
    }

    pub fn advance(self: *Inbox, entry: Entry) void {
        self.taken_offset += @sizeOf(Entry) + entry.payload_bytes;
    }

    /// From here on `add` and `command` are refused; what is inside is still delivered.
    pub fn refuse(self: *Inbox) void {
        self.lock.acquire();
        defer self.lock.release();
        self.stopped = true;
    }

    pub fn deinit(self: *Inbox, allocator: Allocator) void {
        self.waiting.deinit(allocator);
        self.taken.deinit(allocator);
        self.free.deinit(allocator);
    }
};
