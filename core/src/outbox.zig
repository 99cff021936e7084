//! Bytes that wait to be sent to one connection: a chain of chunks in linear memory, from which
//! the host sends without copying.

const std = @import("std");
const heap = @import("heap.zig");
const limits = @import("limits.zig");

pub const Chunk = struct {
    next: ?*Chunk,
    start: u32,
    end: u32,
    capacity: u32,

    pub fn data(self: *Chunk) [*]u8 {
        return @as([*]u8, @ptrCast(self)) + @sizeOf(Chunk);
    }
};

var turns: u32 = 0;

pub const Outbox = struct {
    head: ?*Chunk = null,
    tail: ?*Chunk = null,
    bytes: u32 = 0,
    /// The socket is full: the host says when it takes bytes again.
    blocked: bool = false,

    /// Appends all or nothing.
    pub fn write(self: *Outbox, bytes: []const u8) heap.Error!void {
        if (self.tail) |chunk| {
            const end = chunk.end;
            // What is written fits into the chunk, and all chunks into a 32-bit memory: nothing wraps.
            if (chunk.capacity -% end >= bytes.len) {
                @memmove(chunk.data()[end..][0..bytes.len], bytes);
                chunk.end = end +% @as(u32, @intCast(bytes.len));
                self.bytes +%= @intCast(bytes.len);
                return;
            }
        }
        return self.writeSlow(bytes);
    }

    noinline fn writeSlow(self: *Outbox, bytes: []const u8) heap.Error!void {
        const room: usize = if (self.tail) |chunk| chunk.capacity - chunk.end else 0;
        const rest = bytes[room..];
        const chunk = try newChunk(self.nextBytes(rest.len), rest.len);
        if (self.tail) |last| {
            @memcpy(last.data()[last.end..][0..room], bytes[0..room]);
            last.end += @intCast(room);
            last.next = chunk;
        } else self.head = chunk;
        self.tail = chunk;
        @memcpy(chunk.data()[0..rest.len], rest);
        chunk.end = @intCast(rest.len);
        self.bytes += @intCast(bytes.len);
    }

    /// The first chunk is small, those of a stream are large. For a peer that does not read they are about
    /// as large as what waits already, up to the large ones, and how large exactly differs from one to
    /// the next: of thousands who all do not read, few need a chunk at the same message.
    fn nextBytes(self: *const Outbox, need: usize) u32 {
        const small = limits.chunk_small_bytes;
        const large = limits.chunk_large_bytes;
        if (self.tail == null) return if (need <= small - @sizeOf(Chunk)) small else large;
        if (!self.blocked or self.bytes >= large) return large;
        const base = @max(self.bytes, small);
        turns +%= 1;
        return @min(large, base + base / 8 * (turns % 8));
    }

    /// The capacity fits the allocator's size classes: header and data fill one exactly.
    fn newChunk(least: u32, need: usize) heap.Error!*Chunk {
        const wanted = @max(least, @sizeOf(Chunk) + need);
        const bytes = if (std.math.isPowerOfTwo(wanted)) wanted else heap.roomOf(wanted);
        const chunk: *Chunk = @ptrCast(@alignCast(try heap.allocate(bytes)));
        chunk.* = .{ .next = null, .start = 0, .end = 0, .capacity = @intCast(bytes - @sizeOf(Chunk)) };
        return chunk;
    }

    /// Makes sure that `count` bytes can be written in one piece; returns where, for `commit`.
    pub fn reserve(self: *Outbox, count: u32) heap.Error![]u8 {
        if (self.tail) |chunk| {
            if (chunk.capacity - chunk.end >= count) return chunk.data()[chunk.end..][0..count];
        }
        const chunk = try newChunk(self.nextBytes(count), count);
        if (self.tail) |last| last.next = chunk else self.head = chunk;
        self.tail = chunk;
        return chunk.data()[0..count];
    }

    pub fn commit(self: *Outbox, count: u32) void {
        self.tail.?.end += count;
        self.bytes += count;
    }

    /// Drops bytes from the front after they have been sent.
    pub fn consume(self: *Outbox, count: u32) void {
        std.debug.assert(count <= self.bytes);
        self.bytes -= count;
        var left = count;
        while (self.head) |chunk| {
            const here = chunk.end - chunk.start;
            if (left < here) {
                chunk.start += left;
                return;
            }
            left -= here;
            self.head = chunk.next;
            if (self.head == null) self.tail = null;
            heap.release(@ptrCast(chunk), @sizeOf(Chunk) + chunk.capacity);
            if (left == 0) return;
        }
    }

    pub fn deinit(self: *Outbox) void {
        while (self.head) |chunk| {
            self.head = chunk.next;
            heap.release(@ptrCast(chunk), @sizeOf(Chunk) + chunk.capacity);
        }
        self.* = .{ .blocked = self.blocked };
    }
};
