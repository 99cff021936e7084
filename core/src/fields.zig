//! Reading the little-endian records that host and core exchange (commands, journal), exactly.

const std = @import("std");

pub const Error = error{Malformed};

pub const Fields = struct {
    bytes: []const u8,
    at: usize = 0,

    pub fn take(self: *Fields, count: usize) Error![]const u8 {
        if (self.bytes.len - self.at < count) return error.Malformed;
        defer self.at += count;
        return self.bytes[self.at..][0..count];
    }

    pub fn number(self: *Fields, comptime T: type) Error!T {
        return std.mem.readInt(T, (try self.take(@sizeOf(T)))[0..@sizeOf(T)], .little);
    }

    /// `Length`: u16 in commands, u32 in the journal.
    pub fn string(self: *Fields, comptime Length: type) Error![]const u8 {
        return self.take(try self.number(Length));
    }

    pub fn rest(self: *Fields) []const u8 {
        defer self.at = self.bytes.len;
        return self.bytes[self.at..];
    }

    pub fn done(self: *const Fields) bool {
        return self.at == self.bytes.len;
    }

    pub fn end(self: *const Fields) Error!void {
        if (!self.done()) return error.Malformed;
    }
};
