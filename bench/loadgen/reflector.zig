//! The least that passes for a broker: QoS 0, exact topics, no state, no checks. What the generator
//! reaches against it is the ceiling of generator and kernel, which no broker can exceed.

const std = @import("std");
const linux = std.os.linux;
const wire = @import("wire.zig");
const connection_file = @import("connection.zig");
const Connection = connection_file.Connection;

const inbox_bytes = 512 * 1024;

const Reflector = struct {
    gpa: std.mem.Allocator,
    epoll: linux.fd_t,
    listener: linux.fd_t,
    topics: std.StringHashMapUnmanaged(std.ArrayList(*Connection)) = .empty,
    dirty: std.ArrayList(*Connection) = .empty,
    inbox: []u8,

    fn accept(self: *Reflector) !void {
        while (true) {
            const rc = linux.accept4(self.listener, null, null, linux.SOCK.NONBLOCK | linux.SOCK.CLOEXEC);
            if (linux.errno(rc) != .SUCCESS) return;
            const connection = try self.gpa.create(Connection);
            connection.* = .{ .role = .idle, .group = 0, .fd = @intCast(rc) };
            const one: c_int = 1;
            _ = linux.setsockopt(connection.fd, linux.IPPROTO.TCP, linux.TCP.NODELAY, @ptrCast(&one), @sizeOf(c_int));
            try self.watch(connection, linux.EPOLL.CTL_ADD);
        }
    }

    fn watch(self: *Reflector, connection: *Connection, operation: u32) !void {
        var event: linux.epoll_event = .{
            .events = linux.EPOLL.IN | (if (connection.watches_writable) @as(u32, linux.EPOLL.OUT) else 0),
            .data = .{ .ptr = @intFromPtr(connection) },
        };
        if (linux.errno(linux.epoll_ctl(self.epoll, operation, connection.fd, &event)) != .SUCCESS) return error.Epoll;
    }

    fn serve(self: *Reflector, connection: *Connection) !void {
        const held = connection.partial.items.len;
        @memcpy(self.inbox[0..held], connection.partial.items);
        connection.partial.clearRetainingCapacity();
        const got = try connection.receive(self.inbox[held..]);
        const bytes = self.inbox[0 .. held + got];
        var at: usize = 0;
        while (try wire.next(bytes[at..])) |packet| : (at += packet.total_bytes) {
            switch (packet.kind) {
                .connect => try self.append(connection, &.{ 0x20, 2, 0, 0 }),
                .subscribe => try self.subscribe(connection, packet.body),
                .publish => {
                    const length = std.mem.readInt(u16, packet.body[0..2], .big);
                    const subscribers = self.topics.get(packet.body[2..][0..length]) orelse continue;
                    for (subscribers.items) |subscriber| {
                        try self.append(subscriber, bytes[at..][0..packet.total_bytes]);
                    }
                },
                else => {},
            }
        }
        if (at < bytes.len) try connection.partial.appendSlice(self.gpa, bytes[at..]);
    }

    fn subscribe(self: *Reflector, connection: *Connection, body: []const u8) !void {
        const length = std.mem.readInt(u16, body[2..4], .big);
        const topic = body[4..][0..length];
        const entry = try self.topics.getOrPut(self.gpa, topic);
        if (!entry.found_existing) {
            entry.key_ptr.* = try self.gpa.dupe(u8, topic);
            entry.value_ptr.* = .empty;
        }
        try entry.value_ptr.append(self.gpa, connection);
        try self.append(connection, &.{ 0x90, 3, body[0], body[1], 0 });
    }

    fn append(self: *Reflector, connection: *Connection, bytes: []const u8) !void {
        if (connection.out.items.len == 0) try self.dirty.append(self.gpa, connection);
        try connection.out.appendSlice(self.gpa, bytes);
    }

    fn flush(self: *Reflector, connection: *Connection) !void {
        const is_done = connection.flush(self.gpa) catch return self.drop(connection);
        if (is_done == connection.watches_writable) {
            connection.watches_writable = !is_done;
            try self.watch(connection, linux.EPOLL.CTL_MOD);
        }
    }

    fn drop(self: *Reflector, connection: *Connection) void {
        if (connection.fd >= 0) _ = linux.close(connection.fd);
        connection.fd = -1;
        connection.out.clearRetainingCapacity();
        var topics = self.topics.valueIterator();
        while (topics.next()) |subscribers| {
            for (subscribers.items, 0..) |subscriber, index| {
                if (subscriber != connection) continue;
                _ = subscribers.swapRemove(index);
                break;
            }
        }
    }

    fn turn(self: *Reflector, events: []linux.epoll_event) !void {
        const rc = linux.epoll_wait(self.epoll, events.ptr, @intCast(events.len), -1);
        if (linux.errno(rc) != .SUCCESS) return;
        for (events[0..rc]) |event| {
            if (event.data.ptr == 0) {
                try self.accept();
                continue;
            }
            const connection: *Connection = @ptrFromInt(event.data.ptr);
            if (connection.fd < 0) continue;
            if (event.events & linux.EPOLL.OUT != 0) try self.flush(connection);
            if (event.events & ~@as(u32, linux.EPOLL.OUT) != 0) {
                self.serve(connection) catch self.drop(connection);
            }
        }
        for (self.dirty.items) |connection| {
            if (connection.fd >= 0 and connection.sent_bytes == 0) try self.flush(connection);
        }
        self.dirty.clearRetainingCapacity();
    }
};

/// Serves a listening non-blocking socket until the process ends.
pub fn reflect(listener: linux.fd_t) !void {
    var arena = std.heap.ArenaAllocator.init(std.heap.page_allocator);
    defer arena.deinit();
    var reflector: Reflector = .{
        .gpa = arena.allocator(),
        .epoll = @intCast(linux.epoll_create1(linux.EPOLL.CLOEXEC)),
        .listener = listener,
        .inbox = try arena.allocator().alloc(u8, inbox_bytes),
    };
    var event: linux.epoll_event = .{ .events = linux.EPOLL.IN, .data = .{ .ptr = 0 } };
    if (linux.errno(linux.epoll_ctl(reflector.epoll, linux.EPOLL.CTL_ADD, listener, &event)) != .SUCCESS)
        return error.Epoll;
    const events = try arena.allocator().alloc(linux.epoll_event, 512);
    while (true) try reflector.turn(events);
}
