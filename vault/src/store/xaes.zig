//! XAES-256-GCM (c2sp.org/XAES-256-GCM), over the AES and GHASH of the standard library.
//!
//! A derived key serves all nonces with the same first half, so its key schedule and its powers for
//! GHASH are made once and kept.

const std = @import("std");
const format = @import("format.zig");
const wide = @import("wide.zig");
const Aes256 = std.crypto.core.aes.Aes256;
const Context = std.crypto.core.aes.AesEncryptCtx(Aes256);
const Ghash = std.crypto.onetimeauth.Ghash;

pub const PREFIX_BYTES = 12;
pub const TAG_BYTES = format.TAG_BYTES;
pub const Nonce = format.Nonce;

/// GHASH prepares as many powers as the longest message is worth: a block and its additional data.
const POWERS_FOR_BLOCKS = 1024;

/// AES-256-GCM (NIST SP 800-38D) under one derived key.
pub const Derived = struct {
    aes: Context,
    ghash: Ghash,
    subkey: [16]u8,
    /// There where the processor can do more at a time than the standard library asks it for.
    wide: ?wide.Keys,

    /// In place: what is returned by value leaves copies on the stack.
    pub fn init(self: *Derived, key: *const format.Key) void {
        self.aes = Aes256.initEnc(key.*);
        self.aes.encrypt(&self.subkey, &@splat(0));
        self.ghash = .initForBlockCount(&self.subkey, POWERS_FOR_BLOCKS);
        self.wide = if (wide.used()) .of(&self.aes, &self.ghash) else null;
    }

    /// `sealed` has the length of `plain`; they may be the same.
    pub fn seal(self: *const Derived, sealed: []u8, tag: *[TAG_BYTES]u8, plain: []const u8, ad: []const u8, nonce: *const [12]u8) void {
        self.xorStream(sealed, plain, nonce);
        self.authenticate(tag, sealed, ad, &start(nonce, 1));
    }

    /// When this fails nothing has been written to `plain`.
    pub fn open(self: *const Derived, plain: []u8, sealed: []const u8, tag: *const [TAG_BYTES]u8, ad: []const u8, nonce: *const [12]u8) error{Damaged}!void {
        var expected: [TAG_BYTES]u8 = undefined;
        self.authenticate(&expected, sealed, ad, &start(nonce, 1));
        if (!std.crypto.timing_safe.eql([TAG_BYTES]u8, expected, tag.*)) return error.Damaged;
        self.xorStream(plain, sealed, nonce);
    }

    fn xorStream(self: *const Derived, into: []u8, from: []const u8, nonce: *const [12]u8) void {
        const done = if (self.wide) |*keys| wide.xorStream(keys, into, from, &start(nonce, 2)) else 0;
        const counter = start(nonce, @intCast(2 + done / 16));
        std.crypto.core.modes.ctr(Context, self.aes, into[done..], from[done..], counter, .big);
    }

    fn authenticate(self: *const Derived, tag: *[TAG_BYTES]u8, sealed: []const u8, ad: []const u8, counter: *const [16]u8) void {
        var mac = self.ghash;
        mac.update(ad);
        mac.pad();
        const done = if (self.wide) |*keys| wide.hash(keys, &mac.acc, sealed) else 0;
        mac.update(sealed[done..]);
        mac.pad();
        var lengths: [16]u8 = undefined;
        std.mem.writeInt(u64, lengths[0..8], @as(u64, ad.len) * 8, .big);
        std.mem.writeInt(u64, lengths[8..16], @as(u64, sealed.len) * 8, .big);
        mac.update(&lengths);
        mac.final(tag);
        var mask: [16]u8 = undefined;
        self.aes.encrypt(&mask, counter);
        for (tag, mask) |*byte, with| byte.* ^= with;
    }

    fn start(nonce: *const [12]u8, value: u32) [16]u8 {
        var counter: [16]u8 = undefined;
        counter[0..12].* = nonce.*;
        std.mem.writeInt(u32, counter[12..16], value, .big);
        return counter;
    }
};

/// The key that belongs to the first half of a nonce: one call of the KDF of NIST SP 800-108 with
/// CMAC, as the specification spells it out.
pub fn derive(into: *Derived, key: *const format.Key, prefix: *const [PREFIX_BYTES]u8) void {
    var aes = Aes256.initEnc(key.*);
    defer std.crypto.secureZero(u8, std.mem.asBytes(&aes));
    var zero: [16]u8 = undefined;
    aes.encrypt(&zero, &@splat(0));
    const block = std.mem.readInt(u128, &zero, .big);
    const reduction: u128 = 0x87 * (block >> 127);
    const k1 = (block << 1) ^ reduction;
    var derived: format.Key = undefined;
    defer std.crypto.secureZero(u8, &derived);
    for (0..2) |half| {
        var message: [16]u8 = undefined;
        message[0..4].* = .{ 0, @intCast(half + 1), 'X', 0 };
        message[4..16].* = prefix.*;
        std.mem.writeInt(u128, &message, std.mem.readInt(u128, &message, .big) ^ k1, .big);
        aes.encrypt(derived[half * 16 ..][0..16], &message);
    }
    into.init(&derived);
}

/// Ciphertext ‖ tag, for what is sealed seldom.
pub fn seal(key: *const format.Key, nonce: *const Nonce, sealed: []u8, plain: []const u8, ad: []const u8) void {
    var derived: Derived = undefined;
    derive(&derived, key, nonce[0..PREFIX_BYTES]);
    defer std.crypto.secureZero(u8, std.mem.asBytes(&derived));
    derived.seal(sealed[0..plain.len], sealed[plain.len..][0..TAG_BYTES], plain, ad, nonce[PREFIX_BYTES..]);
}

pub fn open(key: *const format.Key, nonce: *const Nonce, plain: []u8, sealed: []const u8, ad: []const u8) error{Damaged}!void {
    var derived: Derived = undefined;
    derive(&derived, key, nonce[0..PREFIX_BYTES]);
    defer std.crypto.secureZero(u8, std.mem.asBytes(&derived));
    try derived.open(plain, sealed[0..plain.len], sealed[plain.len..][0..TAG_BYTES], ad, nonce[PREFIX_BYTES..]);
}

/// Overwrites what calls before this one have left on the stack: round keys that did not fit into
/// registers, for one. It is deeper than any of them goes.
pub noinline fn wipeStack() void {
    var left: [STACK_BYTES]u8 = undefined;
    std.crypto.secureZero(u8, &left);
}

const STACK_BYTES = 64 << 10;

/// The data keys of a store, and the derived keys that were used last.
pub const Keyring = struct {
    keys: [format.DATA_KEYS_MAX]format.Key = @splat(@splat(0)),
    count: u16 = 0,
    places: [PLACES]Place = @splat(.{}),

    const PLACES = 64;

    const Place = struct {
        generation: u16 = NONE,
        prefix: [PREFIX_BYTES]u8 = @splat(0),
        derived: Derived = undefined,

        const NONE = 0xFFFF;
    };

    /// `generation` is below `count`.
    pub fn of(self: *Keyring, generation: u16, nonce: *const Nonce) *const Derived {
        const prefix = nonce[0..PREFIX_BYTES];
        const place = &self.places[(prefix[0] ^ @as(usize, generation)) % PLACES];
        if (place.generation != generation or !std.mem.eql(u8, &place.prefix, prefix)) {
            derive(&place.derived, &self.keys[generation], prefix);
            place.generation = generation;
            place.prefix = prefix.*;
        }
        return &place.derived;
    }

    pub fn newest(self: *const Keyring) u16 {
        return self.count - 1;
    }

    pub fn wipe(self: *Keyring) void {
        std.crypto.secureZero(u8, std.mem.asBytes(self));
        self.* = .{};
    }
};
