//! The hash of every table whose keys an adversary chooses: topic levels, whole topics, client
//! identifiers, pairs of session and filter.
//!
//! The words of a text are compressed as NH does it (Black, Halevi, Krawczyk, Krovetz, Rogaway:
//! "UMAC", CRYPTO '99, section 4): each takes part in a product with secret words of its own, so
//! that two texts, chosen without knowing them, differ by any given amount with a chance of 2^-32
//! at the most. Wasm multiplies 32 by 32 bits into 64 in one instruction. What came before is added,
//! and the sum goes through a permutation: a chain of levels keeps all 64 bits of state, however
//! long it is. Not a cryptographic hash: it must not be shown to those who choose the texts.

const std = @import("std");

const word_bytes = 8;
/// Words that have secrets of their own; longer texts are chained.
const block_words = 64;
const block_bytes = block_words * word_bytes;

var secrets: [block_words][2]u32 = @splat(@splat(0));

/// Before the first hash, and never again.
pub fn start(random: std.Random) void {
    for (&secrets) |*pair| {
        for (pair) |*secret| secret.* = random.int(u32);
    }
}

/// `state`: 64 random bits, or the hash of what comes before.
pub noinline fn hash(state: u64, text: []const u8) u64 {
    var rest = text;
    var chained = state;
    while (rest.len > block_bytes) : (rest = rest[block_bytes..]) chained = permute(chained +% compress(rest[0..block_bytes]));
    // The length tells texts apart that end in the same word.
    return permute(chained +% compress(rest) +% text.len);
}

fn compress(text: []const u8) u64 {
    if (text.len < word_bytes) return product(&secrets[0], part(text));
    var sum: u64 = 0;
    var rest = text;
    for (&secrets) |*pair| {
        if (rest.len <= word_bytes) return sum +% product(pair, word(text[text.len - word_bytes ..])); // may overlap what was read
        sum +%= product(pair, word(rest));
        rest = rest[word_bytes..];
    }
    unreachable; // no text here is longer than a block
}

inline fn product(pair: *const [2]u32, value: u64) u64 {
    const low: u32 = @truncate(value);
    const high: u32 = @truncate(value >> 32);
    return @as(u64, low +% pair[0]) *% @as(u64, high +% pair[1]);
}

inline fn word(text: []const u8) u64 {
    return std.mem.readInt(u64, text[0..word_bytes], .little);
}

/// Fewer bytes than a word, each where its length says.
inline fn part(text: []const u8) u64 {
    if (text.len >= 4) {
        const low = std.mem.readInt(u32, text[0..4], .little);
        return low | @as(u64, std.mem.readInt(u32, text[text.len - 4 ..][0..4], .little)) << 32;
    }
    var few: u64 = 0;
    for (text) |byte| few = few << 8 | byte;
    return few;
}

/// Each step can be undone (a shift by less than the width, an odd factor), so nothing is lost.
fn permute(value: u64) u64 {
    var mixed = value;
    mixed ^= mixed >> 32;
    mixed *%= 0x9E37_79B9_7F4A_7C15;
    mixed ^= mixed >> 29;
    mixed *%= 0xBF58_476D_1CE4_E5B9;
    return mixed ^ mixed >> 32;
}

// What the tests below demand of tables: as few collisions as drawing at random would give.

const Seen = std.AutoHashMap(u64, void);

fn startForTest(seed: u64) std.Random.DefaultPrng {
    var random = std.Random.DefaultPrng.init(seed);
    start(random.random());
    return random;
}

fn path(state: u64, levels: []const []const u8) u64 {
    var chained = state;
    for (levels) |level| chained = hash(chained, level);
    return chained;
}

test "2^16 paths of 120 levels, each `+` or a letter, have as many values, in 64 bits and in 32" {
    for (0..4) |seed| {
        var random = startForTest(seed);
        const state = random.random().int(u64);
        var whole = Seen.init(std.testing.allocator);
        defer whole.deinit();
        var short = Seen.init(std.testing.allocator);
        defer short.deinit();
        const count = 1 << 16;
        for (0..count) |number| {
            var levels: [120][]const u8 = @splat("a");
            for (0..16) |bit| levels[bit] = if (number >> @intCast(bit) & 1 == 1) "+" else "a";
            const value = path(state, &levels);
            try whole.put(value, {});
            try short.put(@as(u32, @truncate(value)), {});
        }
        try std.testing.expectEqual(count, whole.count());
        // 2^32 / 2 pairs share 32 bits with a chance of 2^-32 each: half a collision on average.
        try std.testing.expect(short.count() >= count - 8);
    }
}

test "low bits are spread as at random: 2^16 texts in 2^16 slots fill 63 % of them" {
    const count = 1 << 16;
    const kinds = [_][]const u8{ "{d}", "device-{d:0>5}", "{d:0>5}/and a text that is longer than two words", "\xff\xfe{x:0>8}" };
    inline for (kinds) |kind| {
        for (0..4) |seed| {
            var random = startForTest(seed);
            const state = random.random().int(u64);
            var taken: [count]bool = @splat(false);
            var used: usize = 0;
            for (0..count) |number| {
                var buffer: [64]u8 = undefined;
                const slot = hash(state, try std.fmt.bufPrint(&buffer, kind, .{number})) % count;
                used += @intFromBool(!taken[slot]);
                taken[slot] = true;
            }
            // 1 - 1/e = 0.632; the deviation of so many is below 0.001.
            try std.testing.expect(used > count * 627 / 1000 and used < count * 637 / 1000);
        }
    }
}

test "texts that differ in one bit, in their length or in an end of zeros have different values" {
    var random = startForTest(1);
    const state = random.random().int(u64);
    var seen = Seen.init(std.testing.allocator);
    defer seen.deinit();
    var text: [block_bytes * 2 + 40]u8 = @splat(0);
    var count: u32 = 0;
    for (0..text.len + 1) |length| {
        try seen.put(hash(state, text[0..length]), {});
        count += 1;
    }
    for (0..text.len) |at| for (0..8) |bit| {
        text[at] ^= @as(u8, 1) << @intCast(bit);
        defer text[at] = 0;
        try seen.put(hash(state, &text), {});
        count += 1;
    };
    try std.testing.expectEqual(count, seen.count());
}

test "no difference between two texts makes them collide for many secrets" {
    // Top bits, and words that might cancel each other.
    const pairs = [_][2][]const u8{
        .{ "aaaaaaaabbbbbbbb", "aaaaaaa\xe1bbbbbbb\xe2" },
        .{ "aaaaaaaabbbbbbbb", "bbbbbbbbaaaaaaaa" },
        .{ "\x00\x00\x00\x00\x00\x00\x00\x80", "\x00\x00\x00\x80\x00\x00\x00\x00" },
        .{ "abcd", "dcba" },
    };
    for (pairs) |pair| {
        var collisions: usize = 0;
        for (0..1000) |seed| {
            var random = startForTest(seed);
            const state = random.random().int(u64);
            const first = path(state, &.{ pair[0], pair[1] });
            const second = path(state, &.{ pair[1], pair[0] });
            collisions += @intFromBool(hash(state, pair[0]) == hash(state, pair[1]));
            collisions += @intFromBool(first == second);
        }
        try std.testing.expectEqual(0, collisions);
    }
}

test "the permutation keeps all values apart" {
    var seen = Seen.init(std.testing.allocator);
    defer seen.deinit();
    for (0..1 << 14) |number| {
        try seen.put(permute(number), {});
        try seen.put(permute(@as(u64, number) << 50 | 1 << 49), {});
    }
    try std.testing.expectEqual(2 << 14, seen.count());
}
