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

/// A hash for tables whose keys an adversary chooses: the state is secret from the first word on
/// and every step multiplies two secret halves, which is what Wasm can do in one instruction (the
/// 64 by 64 bit product of the usual choices is a function call there). `seed`: 64 random bits or
/// an earlier hash. Not a cryptographic hash.
pub fn hash(seed: u64, text: []const u8) u64 {
    var low: u32 = @truncate(seed);
    var high: u32 = @truncate(seed >> 32);
    high ^= @truncate(text.len);
    mix(&low, &high);
    var rest = text;
    while (rest.len > 8) : (rest = rest[8..]) {
        low ^= half(rest, 0);
        high ^= half(rest, 4);
        mix(&low, &high);
    }
    if (rest.len >= 4) {
        low ^= half(rest, 0);
        high ^= half(rest, rest.len - 4);
    } else for (rest) |byte| {
        low = low << 8 | low >> 24;
        low ^= byte;
    }
    mix(&low, &high);
    mix(&low, &high);
    return @as(u64, high) << 32 | low;
}

fn half(text: []const u8, at: usize) u32 {
    return std.mem.readInt(u32, text[at..][0..4], .little);
}

fn mix(low: *u32, high: *u32) void {
    const product = @as(u64, low.* ^ 0x9E3779B9) *% @as(u64, high.* ^ 0x7F4A7C15);
    low.* +%= @truncate(product);
    high.* ^= @truncate(product >> 32);
}
