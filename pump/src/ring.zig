//! A first-in, first-out queue that grows by doubling and never shrinks: no allocation once warm.

const std = @import("std");
const Allocator = std.mem.Allocator;

pub fn Ring(comptime T: type) type {
    return struct {
        const Self = @This();

        items: []T = &.{},
        head: usize = 0,
        len: usize = 0,

        pub fn push(self: *Self, allocator: Allocator, item: T) Allocator.Error!void {
            if (self.len == self.items.len) try self.grow(allocator);
            self.items[(self.head + self.len) & (self.items.len - 1)] = item;
            self.len += 1;
        }

        pub fn pop(self: *Self) ?T {
            if (self.len == 0) return null;
            const item = self.items[self.head];
            self.head = (self.head + 1) & (self.items.len - 1);
            self.len -= 1;
            return item;
        }

        pub fn first(self: *const Self) ?T {
            return if (self.len == 0) null else self.items[self.head];
        }

        pub fn last(self: *const Self) ?T {
            return if (self.len == 0) null else self.items[(self.head + self.len - 1) & (self.items.len - 1)];
        }

        fn grow(self: *Self, allocator: Allocator) Allocator.Error!void {
            const larger = try allocator.alloc(T, @max(1024, self.items.len * 2));
            for (0..self.len) |index| {
                larger[index] = self.items[(self.head + index) & (self.items.len - 1)];
            }
            allocator.free(self.items);
            self.items = larger;
            self.head = 0;
        }

        pub fn deinit(self: *Self, allocator: Allocator) void {
            allocator.free(self.items);
            self.* = .{};
        }
    };
}
