//! A program's linear memory, for the length of one call: its base and size are taken anew each time,
//! since the program may have grown it. Every address that a program hands in is checked here.

const std = @import("std");
const Error = @import("errno.zig").Error;

/// Linux's bound for one call (IOV_MAX); a program that hands in more gets EINVAL, as there.
pub const VECTORS_MAX = 1024;
/// As a POSIX read or write, one call moves less than 2 GiB.
const TRANSFER_MAX_BYTES = std.math.maxInt(i32);

pub const Memory = struct {
    bytes: []u8,

    pub fn slice(self: Memory, address: u32, length: u64) Error![]u8 {
        if (length > self.bytes.len or address > self.bytes.len - length) return error.FAULT;
        return self.bytes[address..][0..@intCast(length)];
    }

    /// `count` records of `size` bytes each.
    pub fn records(self: Memory, address: u32, count: u32, size: u32) Error![]u8 {
        return self.slice(address, @as(u64, count) * size);
    }

    /// Written wherever the program wants it: alignment is its own affair.
    pub fn put(self: Memory, comptime T: type, address: u32, value: T) Error!void {
        const into = try self.slice(address, @sizeOf(T));
        std.mem.writeInt(T, into[0..@sizeOf(T)], value, .little);
    }

    pub fn check(self: Memory, address: u32, length: u64) Error!void {
        _ = try self.slice(address, length);
    }

    /// `iovec_array` or `ciovec_array`: all of them are checked before anything is moved.
    pub fn vectors(self: Memory, address: u32, count: u32) Error!Vectors {
        if (count > VECTORS_MAX) return error.INVAL;
        const table = try self.records(address, count, 8);
        var total: u64 = 0;
        var index: usize = 0;
        while (index < count) : (index += 1) {
            const length = std.mem.readInt(u32, table[index * 8 + 4 ..][0..4], .little);
            try self.check(std.mem.readInt(u32, table[index * 8 ..][0..4], .little), length);
            total += length;
        }
        if (total > TRANSFER_MAX_BYTES) return error.INVAL;
        return .{ .memory = self, .table = table, .total = @intCast(total) };
    }
};

/// Yields the buffers that are not empty. What is read into one may overwrite the table itself, so
/// each is checked once more, and together they are no more than they were at first.
pub const Vectors = struct {
    memory: Memory,
    table: []const u8,
    total: u32,
    yielded: u32 = 0,
    next_index: usize = 0,

    pub fn next(self: *Vectors) Error!?[]u8 {
        while (self.next_index * 8 < self.table.len) {
            const record = self.table[self.next_index * 8 ..][0..8];
            self.next_index += 1;
            const length = @min(std.mem.readInt(u32, record[4..8], .little), self.total - self.yielded);
            if (length == 0) continue;
            self.yielded += length;
            return try self.memory.slice(std.mem.readInt(u32, record[0..4], .little), length);
        }
        return null;
    }

    pub fn count(self: Vectors) usize {
        return self.table.len / 8;
    }
};
