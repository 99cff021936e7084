//! Comparing short texts. For `wasm32` the standard library compares byte by byte; topics are
//! compared on every publish, so they are compared eight bytes at a time.

const std = @import("std");

pub fn equal(a: []const u8, b: []const u8) bool {
    if (a.len != b.len) return false;
    if (a.len < 8) {
        for (a, b) |x, y| if (x != y) return false;
        return true;
    }
    var at: usize = 0;
    while (at + 8 <= a.len) : (at += 8) {
        if (word(a, at) != word(b, at)) return false;
    }
    return word(a, a.len - 8) == word(b, b.len - 8); // overlaps what was compared
}

fn word(text: []const u8, at: usize) u64 {
    return std.mem.readInt(u64, text[at..][0..8], .little);
}
