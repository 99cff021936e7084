//! Memory with a budget: size classes up to 32 KiB, runs of Wasm pages above.
//! Every allocation can fail, and the caller answers with the protocol's own means.
//! Frees name their size, so blocks carry no header. Nothing is filled with a pattern:
//! callers initialise what they take.
//!
//! The budget bounds what is in use and what the memory grows to, so that it bounds what becomes
//! resident as well: pages whose blocks are all free serve every class again.

const std = @import("std");
const limits = @import("limits.zig");

pub const Error = error{OutOfMemory};

const page_bytes = 64 * 1024;
/// Of 32-bit memory.
const pages_max = 65536;
const small_max = 32 * 1024;
const linear_max = 256; // 16-byte steps up to here, then four classes a doubling
const class_count = linear_max / 16 + 4 * 7;

const Free = struct { next: ?*Free };

/// One or two pages of blocks of one class. Page 0 has static data, so 0 is no slab.
const Slab = struct {
    free: ?*Free = null,
    /// Where blocks that were never used begin.
    fresh: usize = 0,
    used: u16 = 0,
    /// In the list of its class: it has room.
    linked: bool = false,
    /// The second page of the slab before it.
    second: bool = false,
    next: u16 = 0,
    previous: u16 = 0,
};

var slabs: [pages_max]Slab = @splat(.{});
/// The first slab with room, by class.
var with_room: [class_count]u16 = @splat(0);
/// A bit for each page that nobody has, and where to begin to look.
var free_pages: [pages_max / 64]u64 = @splat(0);
var lowest_free: usize = 0;
/// Pages at the start, with static data: not the budget's.
var static_pages: usize = 0;
pub var used_bytes: u64 = 0;
pub var used_bytes_maximum: u64 = 0;
pub var budget_bytes: u64 = 1024 * 1024 * 1024;

/// What is left of the budget without its last sixteenth, which is for what was accepted already.
pub inline fn spareBytes() u64 {
    return (budget_bytes - budget_bytes / 16) -| used_bytes;
}

fn classOf(size: usize) usize {
    if (size <= linear_max) return (@max(size, 1) + 15) / 16 - 1;
    const top: usize = std.math.log2_int(usize, size - 1); // 2^top < size <= 2^(top+1)
    const quarter = (size - 1 - (@as(usize, 1) << @intCast(top))) >> @intCast(top - 2);
    return linear_max / 16 + (top - 8) * 4 + quarter;
}

fn classBytes(class: usize) usize {
    if (class < linear_max / 16) return (class + 1) * 16;
    const index = class - linear_max / 16;
    const base = @as(usize, 256) << @intCast(index / 4);
    return base + (base / 4) * (index % 4 + 1);
}

const bytes_of_class = blk: {
    var table: [class_count]u32 = undefined;
    for (&table, 0..) |*bytes, class| bytes.* = classBytes(class);
    break :blk table;
};

/// What an allocation of this size takes.
pub fn roomOf(size: usize) usize {
    if (size > small_max) return (size + page_bytes - 1) / page_bytes * page_bytes;
    return bytes_of_class[classOf(size)];
}

inline fn account(bytes: usize) Error!void {
    const after = used_bytes +% bytes;
    if (after > budget_bytes) return error.OutOfMemory;
    used_bytes = after;
    if (used_bytes > used_bytes_maximum) used_bytes_maximum = used_bytes;
}

pub fn allocate(size: usize) Error![*]align(16) u8 {
    if (size > small_max) return allocateRun((size + page_bytes - 1) / page_bytes);
    const class = classOf(size);
    const bytes: usize = bytes_of_class[class];
    try account(bytes);
    if (with_room[class] == 0) {
        errdefer used_bytes -= bytes;
        try addSlab(class, bytes);
    }
    const number = with_room[class];
    const slab = &slabs[number];
    slab.used +%= 1; // a slab has 4,096 blocks at the most
    const first = slab.free orelse {
        const block = slab.fresh;
        slab.fresh +%= bytes;
        if (slab.fresh + bytes > endOf(number, bytes)) unlink(class, number);
        return @ptrFromInt(block);
    };
    slab.free = first.next;
    if (first.next == null and slab.fresh + bytes > endOf(number, bytes)) unlink(class, number);
    return @ptrCast(@alignCast(first));
}

pub fn release(pointer: [*]u8, size: usize) void {
    if (size > small_max) return releaseRun(@intFromPtr(pointer), (size + page_bytes - 1) / page_bytes);
    const class = classOf(size);
    used_bytes -= bytes_of_class[class];
    var number: u16 = @intCast(@intFromPtr(pointer) / page_bytes);
    if (slabs[number].second) number -= 1;
    const slab = &slabs[number];
    slab.used -= 1;
    // The last with room stays: the next block of its class would need it again.
    if (slab.used == 0 and !(slab.linked and slab.next == 0 and slab.previous == 0)) return dropSlab(class, number);
    const block: *Free = @ptrCast(@alignCast(pointer));
    block.next = slab.free;
    slab.free = block;
    if (!slab.linked) link(class, number);
}

fn slabPages(block_bytes: usize) usize {
    return if (block_bytes > 4096) 2 else 1;
}

fn endOf(number: usize, block_bytes: usize) usize {
    return (number + slabPages(block_bytes)) * page_bytes;
}

noinline fn addSlab(class: usize, block_bytes: usize) Error!void {
    const start = try takePages(slabPages(block_bytes));
    const number: u16 = @intCast(start / page_bytes);
    slabs[number] = .{ .fresh = start };
    if (slabPages(block_bytes) == 2) slabs[number + 1] = .{ .second = true };
    link(class, number);
}

fn dropSlab(class: usize, number: u16) void {
    if (slabs[number].linked) unlink(class, number);
    const pages = slabPages(classBytes(class));
    if (pages == 2) slabs[number + 1] = .{};
    givePages(number, pages);
}

fn link(class: usize, number: u16) void {
    const first = with_room[class];
    slabs[number].linked = true;
    slabs[number].previous = 0;
    slabs[number].next = first;
    if (first != 0) slabs[first].previous = number;
    with_room[class] = number;
}

fn unlink(class: usize, number: u16) void {
    const slab = &slabs[number];
    slab.linked = false;
    if (slab.previous != 0) slabs[slab.previous].next = slab.next else with_room[class] = slab.next;
    if (slab.next != 0) slabs[slab.next].previous = slab.previous;
}

fn allocateRun(pages: usize) Error![*]align(16) u8 {
    try account(pages * page_bytes);
    errdefer used_bytes -= pages * page_bytes;
    return @ptrFromInt(try takePages(pages));
}

fn releaseRun(address: usize, pages: usize) void {
    used_bytes -= pages * page_bytes;
    givePages(address / page_bytes, pages);
}

/// The address of so many pages in a row.
fn takePages(pages: usize) Error!usize {
    const found = findPages(pages) orelse blk: {
        try grow(pages);
        break :blk findPages(pages).?;
    };
    for (found..found + pages) |page| free_pages[page / 64] &= ~bit(page);
    if (found == lowest_free) lowest_free += pages;
    return found * page_bytes;
}

fn givePages(first: usize, pages: usize) void {
    for (first..first + pages) |page| free_pages[page / 64] |= bit(page);
    lowest_free = @min(lowest_free, first);
}

fn bit(page: usize) u64 {
    return @as(u64, 1) << @intCast(page % 64);
}

fn findPages(pages: usize) ?usize {
    const end = @wasmMemorySize(0);
    var page = lowest_free;
    var run: usize = 0;
    while (page < end) {
        const rest = free_pages[page / 64] >> @intCast(page % 64);
        if (rest == 0) {
            run = 0;
            page = (page / 64 + 1) * 64;
            continue;
        }
        const taken = @ctz(rest);
        if (taken != 0) {
            run = 0;
            page += taken;
        }
        const free = @ctz(~(rest >> @intCast(taken)));
        run += free;
        page += free;
        if (run >= pages) return page - run;
    }
    return null;
}

/// Memory grows by an eighth, so that the host can back it with its large pages: a big broker then
/// needs a fraction of the address translations, and few calls into the engine.
fn grow(pages: usize) Error!void {
    const held = @wasmMemorySize(0);
    if (static_pages == 0) static_pages = held;
    const most: usize = @intCast(@min(pages_max, static_pages + budget_bytes / page_bytes) -| held);
    if (pages > most) return error.OutOfMemory;
    const wanted = @min(most, @max(pages, limits.growth_pages, held / 8));
    if (@wasmMemoryGrow(0, wanted) >= 0) return givePages(held, wanted);
    if (@wasmMemoryGrow(0, pages) < 0) return error.OutOfMemory;
    givePages(held, pages);
}

pub fn create(comptime T: type) Error!*T {
    return @ptrCast(@alignCast(try allocate(@sizeOf(T))));
}

pub fn destroy(pointer: anytype) void {
    release(@ptrCast(pointer), @sizeOf(@typeInfo(@TypeOf(pointer)).pointer.child));
}

pub fn slice(comptime T: type, count: usize) Error![]T {
    if (count == 0) return &.{};
    const pointer: [*]T = @ptrCast(@alignCast(try allocate(@sizeOf(T) * count)));
    return pointer[0..count];
}

pub fn freeSlice(items: anytype) void {
    if (items.len == 0) return;
    const T = @typeInfo(@TypeOf(items)).pointer.child;
    release(@ptrCast(@constCast(items.ptr)), @sizeOf(T) * items.len);
}

pub fn copy(bytes: []const u8) Error![]u8 {
    const mine = try slice(u8, bytes.len);
    @memcpy(mine, bytes);
    return mine;
}

/// A growable list without the fill patterns of the standard one.
pub fn List(comptime T: type) type {
    return struct {
        items: []T = &.{},
        capacity: usize = 0,

        const Self = @This();

        pub fn ensure(self: *Self, count: usize) Error!void {
            if (count <= self.capacity) return;
            return self.grow(@max(count, self.capacity * 2, 64 / @sizeOf(T), 4));
        }

        /// As `ensure`, with room for at most `most` of them, which `count` is not more than.
        pub fn ensureWithin(self: *Self, count: usize, most: usize) Error!void {
            if (count <= self.capacity) return;
            return self.grow(@max(count, @min(self.capacity * 2, most)));
        }

        fn grow(self: *Self, wanted: usize) Error!void {
            const bigger = try slice(T, wanted);
            @memcpy(bigger[0..self.items.len], self.items);
            const length = self.items.len;
            freeSlice(self.items.ptr[0..self.capacity]);
            self.items = bigger[0..length];
            self.capacity = wanted;
        }

        pub fn append(self: *Self, item: T) Error!void {
            try self.ensure(self.items.len + 1);
            self.items.len += 1;
            self.items[self.items.len - 1] = item;
        }

        pub fn appendSlice(self: *Self, more: []const T) Error!void {
            try self.ensure(self.items.len + more.len);
            const at = self.items.len;
            self.items.len += more.len;
            @memcpy(self.items[at..], more);
        }

        pub fn clear(self: *Self) void {
            self.items.len = 0;
        }

        pub fn deinit(self: *Self) void {
            if (self.capacity != 0) freeSlice(self.items.ptr[0..self.capacity]);
            self.* = .{};
        }
    };
}

/// A hash table of objects that carry `hash: u32`. Open addressing with the hashes beside the
/// pointers: a look-up touches one cache line of the table and then only the object it wants. When it
/// grows, what it holds moves a few slots with each insertion: in one go, millions would take a while.
pub fn Table(comptime T: type) type {
    return struct {
        slots: []Slot = &.{},
        /// The smaller table of before, from `moved` on; what was taken out of it is marked `gone`.
        old: []Slot = &.{},
        moved: usize = 0,
        count: usize = 0,

        const Self = @This();
        const Slot = struct { hash: u32, item: ?*T };
        /// The hash of a slot in `old` that was used; of one that never was it is 0.
        const gone = 1;
        /// The table doubles at three quarters: before it has to again, all has moved.
        const moved_each_time = 4;

        /// Room for one more, at a load of three quarters at the most.
        pub fn reserve(self: *Self) Error!void {
            if (self.old.len != 0) self.move(moved_each_time);
            if ((self.count + 1) * 4 <= self.slots.len * 3) return;
            while (self.old.len != 0) self.move(moved_each_time);
            const bigger = try slice(Slot, @max(64, self.slots.len * 2));
            @memset(bigger, .{ .hash = 0, .item = null });
            self.old = self.slots;
            self.slots = bigger;
            self.moved = 0;
        }

        fn move(self: *Self, most: usize) void {
            const end = @min(self.old.len, self.moved + most);
            for (self.old[self.moved..end]) |*slot| {
                const item = slot.item orelse continue;
                slot.* = .{ .hash = gone, .item = null };
                self.place(item);
            }
            self.moved = end;
            if (end != self.old.len) return;
            freeSlice(self.old);
            self.old = &.{};
        }

        fn place(self: *Self, item: *T) void {
            const mask = self.slots.len - 1;
            var index = item.hash & mask;
            while (self.slots[index].item != null) index = (index + 1) & mask;
            self.slots[index] = .{ .hash = item.hash, .item = item };
        }

        /// `reserve` must have succeeded since the last insert.
        pub fn insert(self: *Self, item: *T) void {
            self.place(item);
            self.count += 1;
        }

        pub const Probe = struct {
            slots: []const Slot,
            old: []const Slot,
            hash: u32,
            index: usize,

            pub fn next(self: *Probe) ?*T {
                while (self.slots.len != 0) {
                    const mask = self.slots.len - 1;
                    while (true) {
                        const slot = self.slots[self.index];
                        if (slot.item == null and slot.hash != gone) break;
                        self.index = (self.index + 1) & mask;
                        if (slot.hash == self.hash) {
                            if (slot.item) |item| return item;
                        }
                    }
                    self.slots = self.old;
                    self.old = &.{};
                    self.index = if (self.slots.len == 0) 0 else self.hash & (self.slots.len - 1);
                }
                return null;
            }
        };

        /// The objects with this hash.
        pub fn probe(self: *const Self, hash: u32) Probe {
            return .{ .slots = self.slots, .old = self.old, .hash = hash, .index = if (self.slots.len == 0) 0 else hash & (self.slots.len - 1) };
        }

        /// Closes the gap, so that no tombstones slow later look-ups down.
        pub fn remove(self: *Self, item: *T) void {
            self.count -= 1;
            const mask = self.slots.len - 1;
            var gap = item.hash & mask;
            while (self.slots[gap].item != item) {
                if (self.slots[gap].item == null) return self.removeOld(item);
                gap = (gap + 1) & mask;
            }
            var index = gap;
            while (true) {
                index = (index + 1) & mask;
                if (self.slots[index].item == null) break;
                const home = self.slots[index].hash & mask;
                if (((index -% home) & mask) < ((index -% gap) & mask)) continue;
                self.slots[gap] = self.slots[index];
                gap = index;
            }
            self.slots[gap] = .{ .hash = 0, .item = null };
        }

        fn removeOld(self: *Self, item: *T) void {
            const mask = self.old.len - 1;
            var index = item.hash & mask;
            while (self.old[index].item != item) index = (index + 1) & mask;
            self.old[index] = .{ .hash = gone, .item = null };
        }

        /// For walks through all: positions from 0 on, of which some are empty.
        pub fn positions(self: *const Self) usize {
            return self.slots.len + self.old.len;
        }

        pub fn at(self: *const Self, position: usize) ?*T {
            return if (position < self.slots.len) self.slots[position].item else self.old[position - self.slots.len].item;
        }

        pub fn deinit(self: *Self) void {
            freeSlice(self.slots);
            freeSlice(self.old);
            self.* = .{};
        }
    };
}
