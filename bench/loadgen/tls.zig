//! TLS of a connection whose handshake was done elsewhere: the OpenSSL functions are those of the
//! Python `cryptography` wheel, handed over by address, and the BIOs are memory BIOs, so that one
//! `recv` and one `send` move many records.

const std = @import("std");

pub const Functions = extern struct {
    ssl_read: ?*const fn (*anyopaque, [*]u8, c_int) callconv(.c) c_int = null,
    ssl_write: ?*const fn (*anyopaque, [*]const u8, c_int) callconv(.c) c_int = null,
    ssl_get_error: ?*const fn (*anyopaque, c_int) callconv(.c) c_int = null,
    bio_read: ?*const fn (*anyopaque, [*]u8, c_int) callconv(.c) c_int = null,
    bio_write: ?*const fn (*anyopaque, [*]const u8, c_int) callconv(.c) c_int = null,
};

const error_want_read = 2;
const error_zero_return = 6;

pub const Session = struct {
    functions: *const Functions,
    ssl: *anyopaque,
    /// What came from the network and waits to be decrypted.
    incoming: *anyopaque,
    /// What was encrypted and waits to be sent.
    outgoing: *anyopaque,

    pub fn feed(self: Session, records: []const u8) !void {
        var at: usize = 0;
        while (at < records.len) {
            const taken = self.functions.bio_write.?(self.incoming, records.ptr + at, @intCast(records.len - at));
            if (taken <= 0) return error.Tls;
            at += @intCast(taken);
        }
    }

    /// Plaintext bytes put into `into`; 0 when more records are needed.
    pub fn read(self: Session, into: []u8) !usize {
        const got = self.functions.ssl_read.?(self.ssl, into.ptr, @intCast(into.len));
        if (got > 0) return @intCast(got);
        return switch (self.functions.ssl_get_error.?(self.ssl, got)) {
            error_want_read => 0,
            error_zero_return => error.Closed,
            else => error.Tls,
        };
    }

    /// Encrypts all of `plain` and appends the records to `out`.
    pub fn write(self: Session, gpa: std.mem.Allocator, plain: []const u8, out: *std.ArrayList(u8)) !void {
        var at: usize = 0;
        while (at < plain.len) {
            const taken = self.functions.ssl_write.?(self.ssl, plain.ptr + at, @intCast(plain.len - at));
            if (taken <= 0) return error.Tls;
            at += @intCast(taken);
        }
        while (true) {
            try out.ensureUnusedCapacity(gpa, 20 * 1024);
            const space = out.unusedCapacitySlice();
            const got = self.functions.bio_read.?(self.outgoing, space.ptr, @intCast(@min(space.len, 1 << 30)));
            if (got <= 0) return;
            out.items.len += @intCast(got);
        }
    }
};
