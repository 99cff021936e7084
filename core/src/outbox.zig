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

pub const Outbox = struct {
    head: ?*Chunk = null,
    tail: ?*Chunk = null,
    bytes: u32 = 0,

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

    fn writeSlow(self: *Outbox, bytes: []const u8) heap.Error!void {
        const room: usize = if (self.tail) |chunk| chunk.capacity - chunk.end else 0;
        const rest = bytes[room..];
        const chunk = try newChunk(if (self.tail == null and rest.len <= limits.chunk_small_bytes) limits.chunk_small_bytes else limits.chunk_large_bytes, rest.len);
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

    /// The capacity fits the allocator's size classes: header and data fill one exactly.
    fn newChunk(least: u32, need: usize) heap.Error!*Chunk {
        const capacity: u32 = @max(least - @sizeOf(Chunk), @as(u32, @intCast(need)));
        const chunk: *Chunk = @ptrCast(@alignCast(try heap.allocate(@sizeOf(Chunk) + capacity)));
        chunk.* = .{ .next = null, .start = 0, .end = 0, .capacity = capacity };
        return chunk;
    }

    /// Makes sure that `count` bytes can be written in one piece; returns where, for `commit`.
    pub fn reserve(self: *Outbox, count: u32) heap.Error![]u8 {
        if (self.tail) |chunk| {
            if (chunk.capacity - chunk.end >= count) return chunk.data()[chunk.end..][0..count];
        }
        const chunk = try newChunk(if (self.tail == null and count <= limits.chunk_small_bytes - @sizeOf(Chunk)) limits.chunk_small_bytes else limits.chunk_large_bytes, count);
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
        self.* = .{};
    }
};
