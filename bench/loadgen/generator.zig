//! The load generator's loop: one thread, one epoll, groups of one publisher and its subscribers.

const std = @import("std");
const linux = std.os.linux;
const connection_file = @import("connection.zig");
const tls = @import("tls.zig");
const wire = @import("wire.zig");
const Connection = connection_file.Connection;
const Group = @import("group.zig").Group;
const Role = connection_file.Role;
const Histogram = @import("histogram.zig").Histogram;

pub const ClockFunction = *const fn (c_int, *linux.timespec) callconv(.c) c_int;

/// Field for field `LoadConfig` in library.py.
pub const Config = extern struct {
    level: u32,
    qos: u32,
    payload_bytes: u32,
    /// QoS 0: messages not yet delivered to every subscriber; QoS 1 and 2: not yet acknowledged.
    window: u32,
    /// QoS 1 and 2: most messages accepted by the broker and not yet delivered.
    backlog: u32,
    /// Connections being established at one time.
    concurrency: u32,
    groups: u32,
    capacity: u32,
    spin: u32,
    /// IPv4, network order, and port, host order.
    address: u32,
    port: u32,
    /// Sessions outlive their connections (level 4: clean session is not set).
    durable: u32,
    /// Messages published a second by all groups together; 0 = closed loop.
    rate: f64,
    /// libc's clock_gettime: served by the vDSO, which a library without libc does not find.
    clock: ClockFunction,
    functions: tls.Functions,
    prefix: [32]u8,
};

/// Field for field `LoadResult` in library.py.
pub const Result = extern struct {
    elapsed_ns: u64 = 0,
    cpu_ns: u64 = 0,
    /// Of `elapsed_ns`: spent in polls that found nothing.
    idle_ns: u64 = 0,
    turns: u64 = 0,
    published: u64 = 0,
    /// Deliveries without duplicates.
    received: u64 = 0,
    acknowledged: u64 = 0,
    /// From here on since the beginning, not since the phase began.
    lost: u64 = 0,
    duplicates: u64 = 0,
    disordered: u64 = 0,
    misrouted: u64 = 0,
    stalls: u64 = 0,
    established: u64 = 0,
    /// Open loop: the longest that a message was sent after its time.
    late_ns_max: u64 = 0,
};

const event_capacity = 512;
const inbox_bytes = 512 * 1024;
const cipher_bytes = 256 * 1024;

pub const Generator = struct {
    config: Config,
    arena: std.heap.ArenaAllocator,
    epoll: linux.fd_t,
    connections: std.ArrayList(Connection) = .empty,
    groups: []Group,
    dirty: std.ArrayList(*Group) = .empty,
    events: [event_capacity]linux.epoll_event = undefined,
    inbox: []u8,
    cipher: []u8,
    histogram: Histogram = .{},
    phase: Result = .{},
    phase_start_ns: u64 = 0,
    now_ns: u64 = 0,
    next_pending: usize = 0,
    under_way: usize = 0,
    was_empty: bool = false,
    message: [256]u8 = @splat(0),

    pub fn create(config: *const Config) !*Generator {
        var arena = std.heap.ArenaAllocator.init(std.heap.page_allocator);
        errdefer arena.deinit();
        const gpa = arena.allocator();
        const rc = linux.epoll_create1(linux.EPOLL.CLOEXEC);
        if (linux.errno(rc) != .SUCCESS) return error.NoEpoll;
        const groups = try gpa.alloc(Group, config.groups);
        const self = try gpa.create(Generator);
        self.* = .{
            .config = config.*,
            .arena = undefined,
            .epoll = @intCast(rc),
            .groups = groups,
            .inbox = try gpa.alloc(u8, inbox_bytes),
            .cipher = try gpa.alloc(u8, cipher_bytes),
        };
        for (groups, 0..) |*group, index| {
            group.* = .{};
            group.topic = try std.fmt.allocPrint(gpa, "bench/{s}/{d:0>5}", .{ self.prefix(), index });
            group.template = try wire.PublishTemplate.make(
                gpa,
                @intCast(config.level),
                @intCast(config.qos),
                group.topic,
                config.payload_bytes,
            );
        }
        try self.connections.ensureTotalCapacityPrecise(gpa, config.capacity);
        self.arena = arena;
        return self;
    }

    pub fn destroy(self: *Generator) void {
        for (self.connections.items) |*connection| {
            if (connection.fd >= 0) _ = linux.close(connection.fd);
        }
        _ = linux.close(self.epoll);
        // The generator lies in its own arena.
        var arena = self.arena;
        arena.deinit();
    }

    pub fn allocator(self: *Generator) std.mem.Allocator {
        return self.arena.allocator();
    }

    fn prefix(self: *const Generator) []const u8 {
        return std.mem.sliceTo(&self.config.prefix, 0);
    }

    pub fn describe(self: *Generator, comptime format: []const u8, arguments: anytype) void {
        const text = std.fmt.bufPrint(self.message[0 .. self.message.len - 1], format, arguments) catch
            self.message[0 .. self.message.len - 1];
        self.message[text.len] = 0;
    }

    pub fn fail(self: *Generator, comptime format: []const u8, arguments: anytype) error{Failed} {
        self.describe(format, arguments);
        return error.Failed;
    }

    pub fn clock(self: *Generator) u64 {
        var now: linux.timespec = undefined;
        _ = self.config.clock(1, &now); // CLOCK_MONOTONIC
        return @as(u64, @intCast(now.sec)) * std.time.ns_per_s + @as(u64, @intCast(now.nsec));
    }

    // ---- connections ---------------------------------------------------------------------------

    pub fn add(self: *Generator, role: Role, group_index: u32) !*Connection {
        if (self.connections.items.len >= self.config.capacity)
            return self.fail("more than {d} connections", .{self.config.capacity});
        if (role != .idle and group_index >= self.groups.len)
            return self.fail("no group {d}", .{group_index});
        const connection = self.connections.addOneAssumeCapacity();
        connection.* = .{ .role = role, .group = group_index };
        if (role == .idle) return connection;
        const group = &self.groups[group_index];
        if (role == .subscriber) {
            try group.subscribers.append(self.allocator(), connection);
            group.slowest_count += 1;
        } else {
            group.publisher = connection;
            if (self.config.qos > 0) {
                connection.flights = try self.allocator().alloc(connection_file.Flight, 65536);
                @memset(connection.flights, .free);
            }
        }
        return connection;
    }

    /// Takes every connection added so far to where it can be used.
    pub fn establish(self: *Generator, timeout_ns: u64) !void {
        self.now_ns = self.clock();
        const deadline_ns = self.now_ns + timeout_ns;
        while (self.phase.established < self.connections.items.len) {
            while (self.under_way < self.config.concurrency and self.next_pending < self.connections.items.len) {
                const connection = &self.connections.items[self.next_pending];
                self.next_pending += 1;
                self.under_way += 1;
                try self.start(connection);
            }
            _ = try self.turn(100);
            if (self.now_ns > deadline_ns) return self.fail(
                "only {d} of {d} connections were accepted in {d} s",
                .{ self.phase.established, self.connections.items.len, timeout_ns / std.time.ns_per_s },
            );
        }
    }

    fn start(self: *Generator, connection: *Connection) !void {
        const is_adopted = connection.fd >= 0;
        const address: linux.sockaddr.in = .{
            .port = std.mem.nativeToBig(u16, @intCast(self.config.port)),
            .addr = self.config.address,
        };
        const is_open = is_adopted or connection.open(&address) catch
            return self.fail("cannot open connection {d}", .{self.next_pending});
        connection.watches_writable = !is_open;
        connection.state = .connecting;
        try self.watch(connection, linux.EPOLL.CTL_ADD);
        if (is_open) try self.greet(connection);
    }

    fn watch(self: *Generator, connection: *Connection, operation: u32) !void {
        const index = (@intFromPtr(connection) - @intFromPtr(self.connections.items.ptr)) / @sizeOf(Connection);
        var event: linux.epoll_event = .{
            .events = linux.EPOLL.IN | (if (connection.watches_writable) @as(u32, linux.EPOLL.OUT) else 0),
            .data = .{ .u64 = index },
        };
        if (linux.errno(linux.epoll_ctl(self.epoll, operation, connection.fd, &event)) != .SUCCESS)
            return self.fail("epoll_ctl failed", .{});
    }

    fn greet(self: *Generator, connection: *Connection) !void {
        const index = (@intFromPtr(connection) - @intFromPtr(self.connections.items.ptr)) / @sizeOf(Connection);
        var name: [64]u8 = undefined;
        const client = std.fmt.bufPrint(&name, "{s}-{d}", .{ self.prefix(), index }) catch unreachable;
        try self.writer(connection).connect(@intCast(self.config.level), client, self.config.durable == 0);
        connection.state = .greeting;
        try self.flush(connection);
    }

    fn writer(self: *Generator, connection: *Connection) wire.Writer {
        return .{ .gpa = self.allocator(), .out = &connection.out };
    }

    pub fn flush(self: *Generator, connection: *Connection) !void {
        const is_done = connection.flush(self.allocator()) catch return self.lostConnection(connection);
        if (is_done == connection.watches_writable) {
            connection.watches_writable = !is_done;
            try self.watch(connection, linux.EPOLL.CTL_MOD);
        }
    }

    fn lostConnection(self: *Generator, connection: *const Connection) error{Failed} {
        return self.fail("the broker closed the connection of a {s} of group {d} ({s})", .{
            @tagName(connection.role), connection.group, @tagName(connection.state),
        });
    }

    // ---- one turn ------------------------------------------------------------------------------

    /// Waits at most `timeout_ms`, serves what is ready. The number of events served.
    pub fn turn(self: *Generator, timeout_ms: i32) !usize {
        const rc = linux.epoll_wait(self.epoll, &self.events, event_capacity, timeout_ms);
        const before_ns = self.now_ns;
        self.now_ns = self.clock();
        self.phase.turns += 1;
        const count = switch (linux.errno(rc)) {
            .SUCCESS => rc,
            .INTR => 0,
            else => return self.fail("epoll_wait failed", .{}),
        };
        // Only from the second empty poll on: what came before the first one was work.
        if (count == 0 and self.was_empty) self.phase.idle_ns += self.now_ns - before_ns;
        self.was_empty = count == 0 and timeout_ms == 0;
        for (self.events[0..count]) |event| {
            const connection = &self.connections.items[@intCast(event.data.u64)];
            if (event.events & linux.EPOLL.OUT != 0) try self.serveWritable(connection);
            if (event.events & ~@as(u32, linux.EPOLL.OUT) != 0) try self.serveReadable(connection);
        }
        return count;
    }

    fn serveWritable(self: *Generator, connection: *Connection) !void {
        if (connection.state == .connecting) {
            connection.checkEstablished() catch return self.lostConnection(connection);
            return self.greet(connection);
        }
        try self.flush(connection);
        if (connection.role == .publisher) try self.markDirty(&self.groups[connection.group]);
    }

    fn serveReadable(self: *Generator, connection: *Connection) !void {
        const before = connection.sequence.expected;
        if (connection.session) |session| {
            const got = connection.receive(self.cipher) catch return self.lostConnection(connection);
            session.feed(self.cipher[0..got]) catch return self.fail("TLS failed", .{});
            while (true) {
                const held = self.recallPartial(connection);
                const plain = session.read(self.inbox[held..]) catch return self.lostConnection(connection);
                // SSL_read gives one record at a time; what is complete in it is served at once.
                try self.consume(connection, self.inbox[0 .. held + plain]);
                if (plain == 0) break;
            }
        } else {
            const held = self.recallPartial(connection);
            const got = connection.receive(self.inbox[held..]) catch return self.lostConnection(connection);
            try self.consume(connection, self.inbox[0 .. held + got]);
        }
        if (connection.sequence.expected != before) {
            const group = &self.groups[connection.group];
            group.progress_ns = self.now_ns;
            if (group.advance(before)) try self.markDirty(group);
        }
        if (connection.role != .publisher and connection.out.items.len != 0) try self.flush(connection);
    }

    fn recallPartial(self: *Generator, connection: *Connection) usize {
        const held = connection.partial.items.len;
        if (held != 0) {
            @memcpy(self.inbox[0..held], connection.partial.items);
            connection.partial.clearRetainingCapacity();
        }
        return held;
    }

    fn consume(self: *Generator, connection: *Connection, bytes: []const u8) !void {
        var at: usize = 0;
        while (wire.next(bytes[at..]) catch return self.fail("malformed packet", .{})) |packet| {
            at += packet.total_bytes;
            if (packet.kind == .publish) {
                try self.takePublish(connection, packet);
            } else {
                try self.takeOther(connection, packet);
            }
        }
        if (at < bytes.len) try connection.partial.appendSlice(self.allocator(), bytes[at..]);
    }

    inline fn takePublish(self: *Generator, connection: *Connection, packet: wire.Packet) !void {
        const publish = wire.parsePublish(packet, @intCast(self.config.level)) catch
            return self.fail("malformed PUBLISH", .{});
        if (publish.qos != 0) {
            try self.writer(connection).acknowledge(if (publish.qos == 1) .puback else .pubrec, publish.identifier);
        }
        if (publish.payload.len != self.config.payload_bytes or connection.role != .subscriber) {
            self.phase.misrouted += 1;
            return;
        }
        const stamp = wire.Stamp.read(publish.payload);
        if (stamp.group != connection.group) {
            self.phase.misrouted += 1;
            return;
        }
        if (try connection.sequence.observe(self.allocator(), stamp.sequence) == .duplicate) return;
        self.phase.received += 1;
        if (stamp.intended_ns >= self.phase_start_ns) self.histogram.record(self.now_ns -| stamp.intended_ns);
    }

    fn takeOther(self: *Generator, connection: *Connection, packet: wire.Packet) !void {
        const body = packet.body;
        switch (packet.kind) {
            .connack => {
                if (connection.state != .greeting or body.len < 2 or body[1] != 0)
                    return self.fail("CONNACK refuses: {x}", .{body});
                if (connection.role != .subscriber) return self.markReady(connection);
                connection.state = .subscribing;
                const group = &self.groups[connection.group];
                try self.writer(connection).subscribe(@intCast(self.config.level), 1, group.topic, @intCast(self.config.qos));
                try self.flush(connection);
            },
            .suback => {
                if (connection.state != .subscribing or body.len < 3 or body[body.len - 1] != self.config.qos)
                    return self.fail("SUBACK refuses: {x}", .{body});
                self.markReady(connection);
            },
            .puback, .pubrec, .pubcomp => try self.takeAcknowledgement(connection, packet),
            .pubrel => {
                if (body.len < 2) return self.fail("malformed PUBREL", .{});
                try self.writer(connection).acknowledge(.pubcomp, std.mem.readInt(u16, body[0..2], .big));
            },
            .pingresp => {},
            .disconnect => return self.fail("the broker sent DISCONNECT {x}", .{body}),
            else => return self.fail("unexpected packet {s}", .{@tagName(packet.kind)}),
        }
    }

    fn markReady(self: *Generator, connection: *Connection) void {
        connection.state = .ready;
        self.phase.established += 1;
        self.under_way -= 1;
    }

    fn takeAcknowledgement(self: *Generator, connection: *Connection, packet: wire.Packet) !void {
        const body = packet.body;
        if (body.len < 2 or connection.flights.len == 0)
            return self.fail("unexpected {s}", .{@tagName(packet.kind)});
        if (body.len > 2 and body[2] >= 0x80)
            return self.fail("{s} with reason 0x{x}", .{ @tagName(packet.kind), body[2] });
        const identifier = std.mem.readInt(u16, body[0..2], .big);
        const flight = &connection.flights[identifier];
        const is_expected = switch (packet.kind) {
            .puback => self.config.qos == 1 and flight.* == .published,
            .pubrec => self.config.qos == 2 and flight.* == .published,
            else => flight.* == .released,
        };
        if (!is_expected) return self.fail("{s} for identifier {d}, which is {s}", .{
            @tagName(packet.kind), identifier, @tagName(flight.*),
        });
        const group = &self.groups[connection.group];
        try self.markDirty(group);
        if (packet.kind == .pubrec) {
            flight.* = .released;
            return self.writer(connection).acknowledge(.pubrel, identifier);
        }
        flight.* = .free;
        group.acknowledged += 1;
        group.progress_ns = self.now_ns;
        self.phase.acknowledged += 1;
    }

    pub fn markDirty(self: *Generator, group: *Group) !void {
        if (group.is_dirty) return;
        group.is_dirty = true;
        try self.dirty.append(self.allocator(), group);
    }

    pub fn report(self: *Generator, into: *Result) void {
        into.* = self.phase;
        into.duplicates = 0;
        into.disordered = 0;
        into.lost = 0;
        for (self.groups) |*group| {
            for (group.subscribers.items) |subscriber| {
                into.duplicates += subscriber.sequence.duplicates;
                into.disordered += subscriber.sequence.disordered;
                into.lost += subscriber.sequence.missing(group.published);
            }
        }
    }
};
