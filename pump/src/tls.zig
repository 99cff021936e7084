//! TLS records in user space. The pump owns the socket and gives OpenSSL memory BIOs: OpenSSL on a
//! socket makes two `recv` calls a record, here one `recv` brings all records that have arrived, and
//! many records leave with one `send`. Only ciphertext that the socket refuses is kept.

const std = @import("std");
const sys = @import("sys.zig");
const Connection = @import("connection.zig").Connection;
const Allocator = std.mem.Allocator;

const Ssl = opaque {};
const Bio = opaque {};
const BioMethod = opaque {};

const SSL_ERROR_WANT_READ = 2;
const SSL_ERROR_ZERO_RETURN = 6;

/// A TLS record carries at most this much plaintext [RFC 8446, 5.1].
const RECORD_MAX_BYTES = 16 << 10;
/// Ciphertext of one record, with room for header, tag, padding and a KeyUpdate before it.
const RECORD_ROOM_BYTES = RECORD_MAX_BYTES + 1024;
const SEND_BYTES = 4 * RECORD_ROOM_BYTES;
const RECEIVE_BYTES = 64 << 10;
/// Memory BIOs grow and never shrink: those that carried more than this are renewed when idle.
const STRETCHED_BYTES = 4096;
const SPARE_BACKLOGS_MAX = 64;

/// Addresses of the OpenSSL functions inside the `cryptography` wheel.
pub const Library = extern struct {
    read: *const fn (*Ssl, [*]u8, c_int) callconv(.c) c_int,
    write: *const fn (*Ssl, [*]const u8, c_int) callconv(.c) c_int,
    get_error: *const fn (*Ssl, c_int) callconv(.c) c_int,
    pending: *const fn (*Ssl) callconv(.c) c_int,
    shutdown: *const fn (*Ssl) callconv(.c) c_int,
    free: *const fn (*Ssl) callconv(.c) void,
    set_bio: *const fn (*Ssl, *Bio, *Bio) callconv(.c) void,
    clear_errors: *const fn () callconv(.c) void,
    bio_new: *const fn (*const BioMethod) callconv(.c) ?*Bio,
    bio_free: *const fn (*Bio) callconv(.c) c_int,
    bio_memory: *const fn () callconv(.c) *const BioMethod,
    bio_read: *const fn (*Bio, [*]u8, c_int) callconv(.c) c_int,
    bio_write: *const fn (*Bio, [*]const u8, c_int) callconv(.c) c_int,
    bio_data: *const fn (*Bio, *?[*]u8) callconv(.c) c_long,
};

/// The BIOs belong to the SSL object, which frees them.
pub const Session = extern struct {
    ssl: ?*Ssl = null,
    input: ?*Bio = null,
    output: ?*Bio = null,
};

pub const Backlog = struct {
    start: usize,
    end: usize,
    bytes: [SEND_BYTES]u8,
};

pub const Received = struct {
    bytes: usize = 0,
    /// There may be more at once.
    more: bool = false,
    ended: bool = false,
    broken: bool = false,
};

pub const SendError = error{Broken} || Allocator.Error;

pub const Codec = struct {
    library: Library,
    allocator: Allocator,
    incoming: []u8,
    outgoing: []u8,
    plain: []u8,
    spare: std.ArrayList(*Backlog) = .empty,

    pub fn init(self: *Codec, allocator: Allocator, library: Library) Allocator.Error!void {
        const buffers = try allocator.alloc(u8, RECEIVE_BYTES + SEND_BYTES + RECORD_MAX_BYTES);
        self.* = .{
            .library = library,
            .allocator = allocator,
            .incoming = buffers[0..RECEIVE_BYTES],
            .outgoing = buffers[RECEIVE_BYTES..][0..SEND_BYTES],
            .plain = buffers[RECEIVE_BYTES + SEND_BYTES ..][0..RECORD_MAX_BYTES],
        };
    }

    pub fn deinit(self: *Codec) void {
        for (self.spare.items) |backlog| self.allocator.destroy(backlog);
        self.spare.deinit(self.allocator);
        self.allocator.free(self.incoming.ptr[0 .. RECEIVE_BYTES + SEND_BYTES + RECORD_MAX_BYTES]);
    }

    /// Receives once from the socket and decrypts into `into`, the core's arena.
    pub fn receive(self: *Codec, connection: *Connection, into: []u8) SendError!Received {
        var received: Received = .{};
        if (connection.tls_pending) {
            try self.decrypt(connection, into, &received);
            if (connection.tls_pending or received.ended or received.broken) return received;
        }
        const wanted = @min(into.len - received.bytes, self.incoming.len);
        if (wanted == 0) {
            received.more = true;
            return received;
        }
        const count = sys.receive(connection.fd, self.incoming[0..wanted]) catch |err| {
            connection.readable = false;
            received.broken = err == error.Broken;
            return received;
        };
        if (count == 0) {
            received.ended = true;
            return received;
        }
        received.more = count == wanted or connection.hung_up;
        connection.readable = received.more;
        if (count > STRETCHED_BYTES) stretch(connection);
        if (self.library.bio_write(connection.session.input.?, self.incoming.ptr, @intCast(count)) != count)
            return error.OutOfMemory;
        try self.decrypt(connection, into, &received);
        return received;
    }

    /// Decrypts until OpenSSL and its input are empty or `into` is full.
    fn decrypt(self: *Codec, connection: *Connection, into: []u8, received: *Received) SendError!void {
        const library = &self.library;
        const ssl = connection.session.ssl.?;
        const input = connection.session.input.?;
        connection.tls_pending = true;
        while (received.bytes < into.len) {
            const rest = into[received.bytes..];
            const result = library.read(ssl, rest.ptr, @intCast(@min(rest.len, std.math.maxInt(c_int))));
            if (result > 0) {
                received.bytes += @intCast(result);
                // Asking is much cheaper than a read that finds nothing.
                if (library.pending(ssl) != 0 or self.held(input) != 0) continue;
                connection.tls_pending = false;
                break;
            }
            connection.tls_pending = false;
            switch (library.get_error(ssl, result)) {
                SSL_ERROR_WANT_READ => {},
                SSL_ERROR_ZERO_RETURN => received.ended = true,
                else => {
                    library.clear_errors();
                    received.broken = true;
                },
            }
            break;
        }
        if (connection.tls_pending) {
            received.more = true;
        }
        // Reading may produce an alert or the answer to a KeyUpdate.
        if (self.held(connection.session.output.?) != 0) try self.flush(connection);
    }

    fn held(self: *Codec, bio: *Bio) usize {
        var start: ?[*]u8 = null;
        const count = self.library.bio_data(bio, &start);
        return if (count > 0) @intCast(count) else 0;
    }

    /// Encrypts and sends; returns how much plaintext was taken over. Many small pieces become few
    /// records. Nothing is taken while ciphertext of an earlier call waits.
    pub fn send(self: *Codec, connection: *Connection, vectors: []const sys.Vector) SendError!usize {
        try self.flush(connection);
        if (connection.backlog != null) return 0;
        var cursor: Cursor = .{ .vectors = vectors };
        var taken: usize = 0;
        while (true) {
            var filled: usize = 0;
            while (filled + RECORD_ROOM_BYTES <= self.outgoing.len) {
                const chunk = cursor.chunk(self.plain);
                if (chunk.len == 0) break;
                const written = self.library.write(connection.session.ssl.?, chunk.ptr, @intCast(chunk.len));
                if (written <= 0) {
                    self.library.clear_errors();
                    return error.Broken;
                }
                cursor.advance(@intCast(written));
                taken += @intCast(written);
                filled += self.takeOutput(connection, self.outgoing[filled..]);
            }
            if (filled == 0) return taken;
            if (!try self.sendOutgoing(connection, filled)) return taken;
        }
    }

    /// Sends what waits: first the backlog, then what OpenSSL has produced on its own.
    pub fn flush(self: *Codec, connection: *Connection) SendError!void {
        if (connection.backlog) |backlog| {
            while (backlog.start < backlog.end) {
                const rest = backlog.bytes[backlog.start..backlog.end];
                backlog.start += sys.send(connection.fd, rest) catch |err| switch (err) {
                    error.WouldBlock => return,
                    error.Broken => return error.Broken,
                };
            }
            self.dropBacklog(connection);
        }
        while (self.held(connection.session.output.?) != 0) {
            const filled = self.takeOutput(connection, self.outgoing);
            if (filled == 0 or !try self.sendOutgoing(connection, filled)) return;
        }
    }

    fn takeOutput(self: *Codec, connection: *Connection, into: []u8) usize {
        const count = self.library.bio_read(connection.session.output.?, into.ptr, @intCast(into.len));
        if (count <= 0) return 0;
        if (count > STRETCHED_BYTES) stretch(connection);
        return @intCast(count);
    }

    /// False when the socket did not take all and the rest became the backlog.
    fn sendOutgoing(self: *Codec, connection: *Connection, filled: usize) SendError!bool {
        const sent = sys.send(connection.fd, self.outgoing[0..filled]) catch |err| switch (err) {
            error.WouldBlock => 0,
            error.Broken => return error.Broken,
        };
        if (sent == filled) return true;
        const backlog = self.spare.pop() orelse try self.allocator.create(Backlog);
        backlog.start = 0;
        backlog.end = filled - sent;
        @memcpy(backlog.bytes[0..backlog.end], self.outgoing[sent..filled]);
        connection.backlog = backlog;
        return false;
    }

    /// One try at a close_notify; whether it arrives is up to the peer.
    pub fn sayGoodbye(self: *Codec, connection: *Connection) SendError!void {
        if (self.library.shutdown(connection.session.ssl.?) < 0) self.library.clear_errors();
        return self.flush(connection);
    }

    /// Gives the memory of idle BIOs back by replacing them. False when they hold something.
    pub fn relax(self: *Codec, connection: *Connection) bool {
        const session = &connection.session;
        if (connection.tls_pending or connection.backlog != null) return false;
        if (self.held(session.input.?) != 0 or self.held(session.output.?) != 0) return false;
        const input = self.library.bio_new(self.library.bio_memory()) orelse return false;
        const output = self.library.bio_new(self.library.bio_memory()) orelse {
            _ = self.library.bio_free(input);
            return false;
        };
        self.library.set_bio(session.ssl.?, input, output);
        session.input = input;
        session.output = output;
        connection.stretched = .no;
        return true;
    }

    pub fn free(self: *Codec, connection: *Connection) void {
        self.dropBacklog(connection);
        self.freeSession(connection.session);
        connection.session = .{};
        connection.tls_pending = false;
        connection.stretched = .no;
    }

    fn stretch(connection: *Connection) void {
        if (connection.stretched == .no) connection.stretched = .yes;
    }

    pub fn freeSession(self: *Codec, session: Session) void {
        if (session.ssl) |ssl| self.library.free(ssl);
    }

    fn dropBacklog(self: *Codec, connection: *Connection) void {
        const backlog = connection.backlog orelse return;
        connection.backlog = null;
        if (self.spare.items.len < SPARE_BACKLOGS_MAX) {
            if (self.spare.append(self.allocator, backlog)) |_| return else |_| {}
        }
        self.allocator.destroy(backlog);
    }
};

/// Walks over pieces of plaintext in steps of at most one record.
const Cursor = struct {
    vectors: []const sys.Vector,
    offset: usize = 0,

    /// The next bytes: in place when one piece fills a record or is the last, else gathered.
    fn chunk(self: *const Cursor, gathered: []u8) []const u8 {
        if (self.vectors.len == 0) return &.{};
        const first = self.vectors[0].base[self.offset..self.vectors[0].len];
        if (first.len >= RECORD_MAX_BYTES or self.vectors.len == 1)
            return first[0..@min(first.len, RECORD_MAX_BYTES)];
        @memcpy(gathered[0..first.len], first);
        var filled = first.len;
        for (self.vectors[1..]) |vector| {
            const part = @min(vector.len, gathered.len - filled);
            @memcpy(gathered[filled..][0..part], vector.base[0..part]);
            filled += part;
            if (filled == gathered.len) break;
        }
        return gathered[0..filled];
    }

    fn advance(self: *Cursor, count: usize) void {
        var rest = count;
        while (self.vectors.len != 0 and rest >= self.vectors[0].len - self.offset) {
            rest -= self.vectors[0].len - self.offset;
            self.vectors = self.vectors[1..];
            self.offset = 0;
        }
        self.offset += rest;
    }
};
