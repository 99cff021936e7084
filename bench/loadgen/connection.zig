//! One client connection: its socket, its TLS if any, and the bytes that wait in either direction.

const std = @import("std");
const linux = std.os.linux;
const accounting = @import("accounting.zig");
const tls = @import("tls.zig");

pub const Role = enum(u32) { idle = 0, subscriber = 1, publisher = 2, _ };

pub const State = enum {
    /// Known, nothing done yet.
    pending,
    /// TCP connection under way.
    connecting,
    /// CONNECT was sent.
    greeting,
    /// SUBSCRIBE was sent.
    subscribing,
    ready,
};

/// What a publisher remembers of a packet identifier.
pub const Flight = enum(u8) { free, published, released };

pub const Connection = struct {
    fd: linux.fd_t = -1,
    role: Role,
    group: u32,
    state: State = .pending,
    session: ?tls.Session = null,
    /// The start of a packet whose rest has not come yet.
    partial: std.ArrayList(u8) = .empty,
    /// Packets not yet handed to the socket or to TLS.
    out: std.ArrayList(u8) = .empty,
    /// TLS records not yet handed to the socket.
    records: std.ArrayList(u8) = .empty,
    /// How much of `records` (of `out` without TLS) the socket has taken.
    sent_bytes: usize = 0,
    watches_writable: bool = false,
    sequence: accounting.Sequence = .{},
    flights: []Flight = &.{},
    next_identifier: u16 = 1,

    /// Sends what waits; false when the socket is full.
    pub fn flush(self: *Connection, gpa: std.mem.Allocator) !bool {
        if (self.session) |session| {
            if (self.out.items.len != 0) {
                try session.write(gpa, self.out.items, &self.records);
                self.out.clearRetainingCapacity();
            }
            return self.send(&self.records);
        }
        return self.send(&self.out);
    }

    fn send(self: *Connection, bytes: *std.ArrayList(u8)) !bool {
        while (self.sent_bytes < bytes.items.len) {
            const rest = bytes.items[self.sent_bytes..];
            const rc = linux.sendto(self.fd, rest.ptr, rest.len, linux.MSG.NOSIGNAL, null, 0);
            switch (linux.errno(rc)) {
                .SUCCESS => self.sent_bytes += rc,
                .INTR => {},
                .AGAIN => return false,
                else => return error.Closed,
            }
        }
        bytes.clearRetainingCapacity();
        self.sent_bytes = 0;
        return true;
    }

    /// Whether a flush left bytes behind.
    pub fn isBlocked(self: *const Connection) bool {
        return self.sent_bytes != 0 or self.records.items.len != 0;
    }

    /// Bytes put into `into`; 0 when none are there.
    pub fn receive(self: *Connection, into: []u8) !usize {
        while (true) {
            const rc = linux.recvfrom(self.fd, into.ptr, into.len, 0, null, null);
            switch (linux.errno(rc)) {
                .SUCCESS => return if (rc == 0) error.Closed else rc,
                .INTR => {},
                .AGAIN => return 0,
                else => return error.Closed,
            }
        }
    }

    /// Starts a TCP connection; true when it is already established.
    pub fn open(self: *Connection, address: *const linux.sockaddr.in) !bool {
        const rc = linux.socket(linux.AF.INET, linux.SOCK.STREAM | linux.SOCK.NONBLOCK | linux.SOCK.CLOEXEC, 0);
        if (linux.errno(rc) != .SUCCESS) return error.NoSocket;
        self.fd = @intCast(rc);
        const one: c_int = 1;
        _ = linux.setsockopt(self.fd, linux.IPPROTO.TCP, linux.TCP.NODELAY, @ptrCast(&one), @sizeOf(c_int));
        return switch (linux.errno(linux.connect(self.fd, address, @sizeOf(linux.sockaddr.in)))) {
            .SUCCESS => true,
            .INPROGRESS => false,
            else => error.Closed,
        };
    }

    pub fn checkEstablished(self: *const Connection) !void {
        var status: c_int = 0;
        var length: linux.socklen_t = @sizeOf(c_int);
        _ = linux.getsockopt(self.fd, linux.SOL.SOCKET, linux.SO.ERROR, @ptrCast(&status), &length);
        if (status != 0) return error.Closed;
    }

    /// A packet identifier that is not in flight.
    pub fn takeIdentifier(self: *Connection) u16 {
        while (self.next_identifier == 0 or self.flights[self.next_identifier] != .free) self.next_identifier +%= 1;
        const identifier = self.next_identifier;
        self.flights[identifier] = .published;
        self.next_identifier +%= 1;
        return identifier;
    }
};
