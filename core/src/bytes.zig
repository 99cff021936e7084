//! Looking through short texts. For `wasm32` the standard library does it byte by byte; topics are
//! looked through on every publish, so it is done eight bytes at a time.

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

const ones: u64 = 0x0101_0101_0101_0101;
const tops: u64 = ones * 0x80;

/// Whether one of two bytes is in the text.
pub fn hasEither(text: []const u8, one: u8, other: u8) bool {
    if (text.len < 8) {
        for (text) |byte| if (byte == one or byte == other) return true;
        return false;
    }
    var at: usize = 0;
    while (at + 8 < text.len) : (at += 8) {
        if (wordHasEither(word(text, at), one, other)) return true;
    }
    return wordHasEither(word(text, text.len - 8), one, other); // overlaps what was looked at
}

inline fn wordHasEither(eight: u64, one: u8, other: u8) bool {
    return (zeros(eight ^ ones * one) | zeros(eight ^ ones * other)) != 0;
}

/// Not 0 exactly where one of the eight bytes is 0: the lowest of the marks is at the first of them.
inline fn zeros(eight: u64) u64 {
    return (eight -% ones) & ~eight & tops;
}

/// The length of the beginning in which every byte is from 1 to 127, in words of eight.
pub fn plainWords(text: []const u8) usize {
    var at: usize = 0;
    while (at + 8 <= text.len) : (at += 8) {
        const eight = word(text, at);
        if ((eight & tops) | zeros(eight) != 0) break;
    }
    return at;
}

fn word(text: []const u8, at: usize) u64 {
    return std.mem.readInt(u64, text[at..][0..8], .little);
}

test "what is found eight bytes at a time is what is found byte by byte" {
    var text: [20]u8 = undefined;
    for (0..text.len + 1) |length| {
        for (0..256) |value| {
            for (0..@max(length, 1)) |at| {
                // Beside 0x01 and '"' a word-wise search may take a neighbour for what it looks for.
                for ([_]u8{ 'a', 0x01, 0x80, '"', '*' }) |filling| {
                    @memset(&text, filling);
                    if (at < length) text[at] = @intCast(value);
                    const looked = text[0..length];
                    try std.testing.expectEqual(std.mem.findAny(u8, looked, "+#") != null, hasEither(looked, '+', '#'));
                    const plain = for (looked, 0..) |byte, index| {
                        if (byte == 0 or byte > 127) break index;
                    } else looked.len;
                    try std.testing.expectEqual(plain / 8 * 8, plainWords(looked));
                }
            }
        }
    }
}
