//! Memory straight from the kernel, where a page that nobody touches costs nothing.
//!
//! The allocators of the standard library fill what they give, and what they take back, with a
//! pattern in ReleaseSafe. For the buffers of a store that was most of the time of opening one.

const std = @import("std");
const format = @import("format.zig");

pub const Blocks = []align(format.BLOCK_BYTES) format.Block;

pub fn take(count: usize) error{OutOfMemory}!Blocks {
    const bytes = std.heap.PageAllocator.map(count * format.BLOCK_BYTES, .fromByteUnits(format.BLOCK_BYTES)) orelse return error.OutOfMemory;
    const blocks: [*]align(format.BLOCK_BYTES) format.Block = @ptrCast(@alignCast(bytes));
    return blocks[0..count];
}

pub fn give(blocks: Blocks) void {
    std.heap.PageAllocator.unmap(@alignCast(std.mem.sliceAsBytes(blocks)));
}
