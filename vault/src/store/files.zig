//! Reading, writing and resizing the content of files and links.

const std = @import("std");
const format = @import("format.zig");
const inodes = @import("inodes.zig");
const tree = @import("tree.zig");
const commit = @import("commit.zig");
const Inode = inodes.Inode;
const store_file = @import("store.zig");
const Store = store_file.Store;
const Error = store_file.Error;

fn contentOf(store: *Store, number: u64) Error!*Inode {
    const inode = try inodes.get(store, number);
    return if (inode.kind == .directory) error.IsDirectory else inode;
}

pub fn read(store: *Store, number: u64, offset: u64, into: []u8) Error!usize {
    const inode = try contentOf(store, number);
    if (offset >= inode.size or into.len == 0) return 0;
    const count: usize = @intCast(@min(into.len, inode.size - offset));
    const last_block = (offset + count - 1) / format.BLOCK_BYTES;
    var done: usize = 0;
    while (done < count) {
        const at = offset + done;
        const block = at / format.BLOCK_BYTES;
        const within: usize = @intCast(at % format.BLOCK_BYTES);
        const part = @min(format.BLOCK_BYTES - within, count - done);
        const target = into[done..][0..part];
        const found = store.cache.find(number, 0, block) orelse try tree.fetch(store, inode, block, last_block - block + 1);
        if (found) |frame| {
            @memcpy(target, frame.data[within..][0..part]);
        } else {
            @memset(target, 0);
        }
        done += part;
    }
    return count;
}

pub fn write(store: *Store, number: u64, offset: u64, bytes: []const u8, now_ns: u64) Error!void {
    const inode = try contentOf(store, number);
    if (bytes.len == 0) return;
    const end = std.math.add(u64, offset, bytes.len) catch return error.TooLarge;
    if (end > format.SIZE_MAX) return error.TooLarge;
    try inodes.touch(store, inode);
    // What has to be read for this is read before anything changes.
    const old_blocks = inode.blocks();
    const first = offset / format.BLOCK_BYTES;
    const last = (end - 1) / format.BLOCK_BYTES;
    for ([_]u64{ first, last }) |block| {
        if (block >= old_blocks or isWhole(block, offset, end)) continue;
        _ = try tree.dataForWrite(store, inode, block, false);
    }
    errdefer store.is_broken = true;
    if (end > inode.size) try tree.grow(store, inode, end);
    var done: usize = 0;
    while (done < bytes.len) {
        const at = offset + done;
        const block = at / format.BLOCK_BYTES;
        const within: usize = @intCast(at % format.BLOCK_BYTES);
        const part = @min(format.BLOCK_BYTES - within, bytes.len - done);
        const frame = try tree.dataForWrite(store, inode, block, part == format.BLOCK_BYTES or block >= old_blocks);
        @memcpy(frame.data[within..][0..part], bytes[done..][0..part]);
        done += part;
        try commit.relieve(store);
    }
    inode.modified_ns = now_ns;
    inode.changed_ns = now_ns;
}

/// Whether all of the block is overwritten.
fn isWhole(block: u64, offset: u64, end: u64) bool {
    const start = block * format.BLOCK_BYTES;
    return offset <= start and end >= start + format.BLOCK_BYTES;
}

pub fn resize(store: *Store, number: u64, size: u64, now_ns: u64) Error!void {
    const inode = try contentOf(store, number);
    if (size > format.SIZE_MAX) return error.TooLarge;
    try inodes.touch(store, inode);
    if (size > inode.size) {
        try tree.grow(store, inode, size);
    } else if (size < inode.size) {
        try tree.shrink(store, inode, size);
    }
    inode.modified_ns = now_ns;
    inode.changed_ns = now_ns;
}
