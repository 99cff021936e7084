//! Packet identifiers in use: a client may have all 65,535 open (MQTT 5.0, section 2.2.1), and asking
//! for one must cost the same however many there are.

const std = @import("std");
const heap = @import("heap.zig");

/// A list while there are few; a bit for each identifier (8 KiB) from there on, until none is left.
pub const Identifiers = struct {
    few: heap.List(u16) = .{},
    many: ?*Bits = null,
    count: u32 = 0,

    const few_max = 32;
    const Bits = [1024]u64;

    pub fn has(self: *const Identifiers, identifier: u16) bool {
        if (self.many) |bits| return bits[identifier / 64] & maskOf(identifier) != 0;
        return self.indexOf(identifier) != null;
    }

    /// Most clients have one or two: a search by vectors pays from there on.
    inline fn indexOf(self: *const Identifiers, identifier: u16) ?usize {
        const items = self.few.items;
        if (items.len == 0) return null;
        if (items[0] == identifier) return 0;
        return if (items.len == 1) null else std.mem.findScalar(u16, items, identifier);
    }

    /// The identifier must not be in it.
    pub fn add(self: *Identifiers, identifier: u16) heap.Error!void {
        if (self.many == null and self.count == few_max) {
            const bits = try heap.create(Bits);
            @memset(bits, 0);
            for (self.few.items) |known| bits[known / 64] |= maskOf(known);
            self.few.deinit();
            self.many = bits;
        }
        if (self.many) |bits| bits[identifier / 64] |= maskOf(identifier) else try self.few.append(identifier);
        self.count += 1;
    }

    /// False: it was not in it.
    pub fn remove(self: *Identifiers, identifier: u16) bool {
        if (self.many) |bits| {
            if (bits[identifier / 64] & maskOf(identifier) == 0) return false;
            bits[identifier / 64] &= ~maskOf(identifier);
        } else {
            const index = self.indexOf(identifier) orelse return false;
            self.few.items[index] = self.few.items[self.few.items.len - 1];
            self.few.items.len -= 1;
        }
        self.count -= 1;
        if (self.count == 0 and self.many != null) self.deinit(); // a short list serves the next one
        return true;
    }

    /// Position `at` and the ones behind it, up to the first that holds an identifier; null: no more.
    /// Begins with 0; what to go on with is written to `at`. Nothing may change between the calls.
    pub fn next(self: *const Identifiers, at: *usize) ?u16 {
        if (self.many == null) {
            if (at.* >= self.few.items.len) return null;
            defer at.* += 1;
            return self.few.items[at.*];
        }
        while (at.* < 65536) {
            const word = self.many.?[at.* / 64] >> @intCast(at.* % 64);
            if (word == 0) {
                at.* = (at.* / 64 + 1) * 64;
                continue;
            }
            const found = at.* + @ctz(word);
            at.* = found + 1;
            return @intCast(found);
        }
        return null;
    }

    pub fn deinit(self: *Identifiers) void {
        self.few.deinit();
        if (self.many) |bits| heap.destroy(bits);
        self.* = .{};
    }

    fn maskOf(identifier: u16) u64 {
        return @as(u64, 1) << @intCast(identifier % 64);
    }
};
