//! The least that passes for a broker: exact topics, no state, no checks, every acknowledgement
//! given at once. What the generator reaches against it is the ceiling of generator and kernel.

const std = @import("std");
const linux = std.os.linux;
const wire = @import("wire.zig");
const tls = @import("tls.zig");
const Connection = @import("connection.zig").Connection;

const inbox_bytes = 512 * 1024;
const cipher_bytes = 256 * 1024;

/// What comes through the pipe for a connection whose handshake is done; see reflector.py.
const Adopted = extern struct {
    fd: i32,
    reserved: u32,
    ssl: *anyopaque,
    incoming: *anyopaque,
    outgoing: *anyopaque,
};

const Reflector = struct {
    gpa: std.mem.Allocator,
    epoll: linux.fd_t,
    listener: linux.fd_t,
    pipe: linux.fd_t,
    functions: *const tls.Functions,
    topics: std.StringHashMapUnmanaged(std.ArrayList(*Connection)) = .empty,
    dirty: std.ArrayList(*Connection) = .empty,
    inbox: []u8,
    cipher: []u8,

    fn accept(self: *Reflector) !void {
        while (true) {
            const rc = linux.accept4(self.listener, null, null, linux.SOCK.NONBLOCK | linux.SOCK.CLOEXEC);
            if (linux.errno(rc) != .SUCCESS) return;
            _ = try self.add(@intCast(rc), null);
        }
    }

    fn adopt(self: *Reflector) !void {
        var adopted: Adopted = undefined;
        const rc = linux.read(self.pipe, @ptrCast(&adopted), @sizeOf(Adopted));
        if (rc != @sizeOf(Adopted)) return error.Pipe;
        const connection = try self.add(adopted.fd, .{
            .functions = self.functions,
            .ssl = adopted.ssl,
            .incoming = adopted.incoming,
            .outgoing = adopted.outgoing,
        });
        // The first packet may have come with the end of the handshake.
        try self.decrypt(connection, 0);
    }

    fn add(self: *Reflector, fd: linux.fd_t, session: ?tls.Session) !*Connection {
        const connection = try self.gpa.create(Connection);
        connection.* = .{ .role = .idle, .group = 0, .fd = fd, .session = session };
        const one: c_int = 1;
        _ = linux.setsockopt(fd, linux.IPPROTO.TCP, linux.TCP.NODELAY, @ptrCast(&one), @sizeOf(c_int));
        try self.watch(connection, linux.EPOLL.CTL_ADD);
        return connection;
    }

    fn watch(self: *Reflector, connection: *Connection, operation: u32) !void {
        var event: linux.epoll_event = .{
            .events = linux.EPOLL.IN | (if (connection.watches_writable) @as(u32, linux.EPOLL.OUT) else 0),
            .data = .{ .ptr = @intFromPtr(connection) },
        };
        if (linux.errno(linux.epoll_ctl(self.epoll, operation, connection.fd, &event)) != .SUCCESS) return error.Epoll;
    }

    fn serve(self: *Reflector, connection: *Connection) !void {
        if (connection.session != null) {
            return self.decrypt(connection, try connection.receive(self.cipher));
        }
        const held = self.recallPartial(connection);
        const got = try connection.receive(self.inbox[held..]);
        try self.consume(connection, self.inbox[0 .. held + got]);
    }

    fn decrypt(self: *Reflector, connection: *Connection, record_bytes: usize) !void {
        const session = connection.session.?;
        try session.feed(self.cipher[0..record_bytes]);
        while (true) {
            const held = self.recallPartial(connection);
            const plain = try session.read(self.inbox[held..]);
            try self.consume(connection, self.inbox[0 .. held + plain]);
            if (plain == 0) return;
        }
    }

    fn recallPartial(self: *Reflector, connection: *Connection) usize {
        const held = connection.partial.items.len;
        @memcpy(self.inbox[0..held], connection.partial.items);
        connection.partial.clearRetainingCapacity();
        return held;
    }

    fn consume(self: *Reflector, connection: *Connection, bytes: []const u8) !void {
        var at: usize = 0;
        while (try wire.next(bytes[at..])) |packet| : (at += packet.total_bytes) {
            const writer: wire.Writer = .{ .gpa = self.gpa, .out = &connection.out };
            switch (packet.kind) {
                .connect => try self.append(connection, &.{ 0x20, 2, 0, 0 }),
                .subscribe => try self.subscribe(connection, packet.body),
                .publish => try self.publish(connection, packet, bytes[at..][0..packet.total_bytes]),
                .pubrec, .pubrel => {
                    try self.markDirty(connection);
                    const identifier = std.mem.readInt(u16, packet.body[0..2], .big);
                    try writer.acknowledge(if (packet.kind == .pubrec) .pubrel else .pubcomp, identifier);
                },
                else => {},
            }
        }
        if (at < bytes.len) try connection.partial.appendSlice(self.gpa, bytes[at..]);
    }

    fn publish(self: *Reflector, connection: *Connection, packet: wire.Packet, bytes: []const u8) !void {
        const length = std.mem.readInt(u16, packet.body[0..2], .big);
        const qos = (packet.flags >> 1) & 3;
        if (qos != 0) {
            try self.markDirty(connection);
            const identifier = std.mem.readInt(u16, packet.body[2 + length ..][0..2], .big);
            const writer: wire.Writer = .{ .gpa = self.gpa, .out = &connection.out };
            try writer.acknowledge(if (qos == 1) .puback else .pubrec, identifier);
        }
        const subscribers = self.topics.get(packet.body[2..][0..length]) orelse return;
        for (subscribers.items) |subscriber| try self.append(subscriber, bytes);
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
        try self.append(connection, &.{ 0x90, 3, body[0], body[1], body[body.len - 1] });
    }

    fn markDirty(self: *Reflector, connection: *Connection) !void {
        if (connection.out.items.len == 0) try self.dirty.append(self.gpa, connection);
    }

    fn append(self: *Reflector, connection: *Connection, bytes: []const u8) !void {
        try self.markDirty(connection);
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
            switch (event.data.ptr) {
                accept_tag => {
                    try self.accept();
                    continue;
                },
                adopt_tag => {
                    try self.adopt();
                    continue;
                },
                else => {},
            }
            const connection: *Connection = @ptrFromInt(event.data.ptr);
            if (connection.fd < 0) continue;
            if (event.events & linux.EPOLL.OUT != 0) try self.flush(connection);
            if (event.events & ~@as(u32, linux.EPOLL.OUT) != 0) {
                self.serve(connection) catch self.drop(connection);
            }
        }
        for (self.dirty.items) |connection| {
            if (connection.fd >= 0 and !connection.isBlocked()) try self.flush(connection);
        }
        self.dirty.clearRetainingCapacity();
    }
};

const accept_tag = 0;
const adopt_tag = 1;

/// Serves a listening non-blocking socket, and the TLS connections that come through a pipe, until
/// the process ends.
pub fn reflect(listener: linux.fd_t, pipe: linux.fd_t, functions: *const tls.Functions) !void {
    var arena = std.heap.ArenaAllocator.init(std.heap.page_allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    var reflector: Reflector = .{
        .gpa = gpa,
        .epoll = @intCast(linux.epoll_create1(linux.EPOLL.CLOEXEC)),
        .listener = listener,
        .pipe = pipe,
        .functions = functions,
        .inbox = try gpa.alloc(u8, inbox_bytes),
        .cipher = try gpa.alloc(u8, cipher_bytes),
    };
    for ([_]linux.fd_t{ listener, pipe }, [_]u64{ accept_tag, adopt_tag }) |fd, tag| {
        var event: linux.epoll_event = .{ .events = linux.EPOLL.IN, .data = .{ .u64 = tag } };
        if (linux.errno(linux.epoll_ctl(reflector.epoll, linux.EPOLL.CTL_ADD, fd, &event)) != .SUCCESS)
            return error.Epoll;
    }
    const events = try gpa.alloc(linux.epoll_event, 512);
    while (true) try reflector.turn(events);
}
