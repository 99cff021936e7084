//! Root records: the keys, the keyring, and the body that says where the tree begins.

const std = @import("std");
const format = @import("format.zig");
const xaes = @import("xaes.zig");
const Key = format.Key;
const Nonce = format.Nonce;
const StoreId = format.StoreId;
const HmacSha256 = std.crypto.auth.hmac.sha2.HmacSha256;
const Hkdf = std.crypto.kdf.hkdf.HkdfSha256;
const Sha256 = std.crypto.hash.sha2.Sha256;
const store_file = @import("store.zig");
const Store = store_file.Store;
const Error = store_file.Error;

pub const MAGIC = "AVOWSTOR";
pub const VERSION = 1;
pub const COPIES = 4;
pub const KEY_SLOTS = 8;
pub const KEY_SLOT_BYTES = 80;
pub const KEY_ID_BYTES = 8;
const HEAD_BYTES = 32;
const KEY_SLOTS_AT = 40;
const RING_NONCE_AT = KEY_SLOTS_AT + KEY_SLOTS * KEY_SLOT_BYTES;
const RING_AT = RING_NONCE_AT + format.NONCE_BYTES;
const RING_BYTES = 8 + format.DATA_KEYS_MAX * format.KEY_BYTES;
const BODY_NONCE_AT = RING_AT + RING_BYTES + format.TAG_BYTES;
const BODY_AT = BODY_NONCE_AT + format.NONCE_BYTES;
const BODY_BYTES = format.BLOCK_BYTES - BODY_AT - format.TAG_BYTES;
const BODY_USED_BYTES = 128;

comptime {
    std.debug.assert(BODY_NONCE_AT == 1752 and BODY_BYTES == 2304);
}

pub const KeyId = [KEY_ID_BYTES]u8;

/// What is known of the newest root record.
pub const Root = struct {
    record: format.Block = @splat(0),
    sequence: u64 = 0,
    anchor: u64 = 0,
    committed_ns: u64 = 0,
    /// SHA-256 of `record`.
    digest: [32]u8 = @splat(0),
    /// The slot that `record` was found in.
    found_in: u64 = 0,
    damaged_copies: u32 = 0,
    /// The keys or the anchor: a commit is due though no block changed.
    is_changed: bool = false,

    pub fn keySlot(self: *Root, index: usize) *[KEY_SLOT_BYTES]u8 {
        return keySlotOf(&self.record, index);
    }
};

fn keySlotOf(record: *format.Block, index: usize) *[KEY_SLOT_BYTES]u8 {
    return record[KEY_SLOTS_AT + index * KEY_SLOT_BYTES ..][0..KEY_SLOT_BYTES];
}

/// What a body says, checked for itself.
pub const Body = struct {
    sequence: u64,
    slots: u64,
    table_size: u64,
    table_height: u8,
    table_root: format.Pointer,
    anchor: u64,
    committed_ns: u64,

    fn decode(bytes: *const [BODY_BYTES]u8) error{Damaged}!Body {
        const body: Body = .{
            .sequence = number(bytes[0..8]),
            .slots = number(bytes[8..16]),
            .table_size = number(bytes[16..24]),
            .table_height = bytes[24],
            .table_root = try format.Pointer.decode(bytes[32..80]),
            .anchor = number(bytes[80..88]),
            .committed_ns = number(bytes[88..96]),
        };
        if (!format.isZero(bytes[25..32]) or !format.isZero(bytes[BODY_USED_BYTES..])) return error.Damaged;
        if (body.table_size > format.SIZE_MAX or body.table_size % format.INODE_BYTES != 0) return error.Damaged;
        if (body.table_height != format.heightOf(body.table_size)) return error.Damaged;
        if (body.slots < format.SLOT_FIRST or body.slots > format.SLOTS_MAX) return error.Damaged;
        return body;
    }
};

fn number(bytes: *const [8]u8) u64 {
    return std.mem.readInt(u64, bytes, .little);
}

pub fn keyId(owner: *const Key, id: *const StoreId) KeyId {
    var mac: HmacSha256 = .init(owner);
    mac.update("avow store key id v1");
    mac.update(id);
    var whole: [32]u8 = undefined;
    mac.final(&whole);
    return whole[0..KEY_ID_BYTES].*;
}

fn slotKey(owner: *const Key, id: *const StoreId) Key {
    var extracted = Hkdf.extract(id, owner);
    defer std.crypto.secureZero(u8, &extracted);
    var key: Key = undefined;
    Hkdf.expand(&key, "avow store key slot v1", extracted);
    return key;
}

fn slotAd(record: *const format.Block, id: KeyId) [HEAD_BYTES + KEY_ID_BYTES]u8 {
    return record[0..HEAD_BYTES].* ++ id;
}

/// Fills one key slot of the next root record.
pub fn sealKeySlot(store: *Store, index: usize, owner: *const Key) void {
    const slot = store.root.keySlot(index);
    const id = keyId(owner, &store.id);
    var key = slotKey(owner, &store.id);
    defer std.crypto.secureZero(u8, &key);
    slot[0..KEY_ID_BYTES].* = id;
    slot[8..32].* = store.nonce();
    const ad = slotAd(&store.root.record, id);
    xaes.seal(&key, slot[8..32], slot[32..80], &store.ring_key, &ad);
    store.root.is_changed = true;
}

/// Puts the keyring into the next root record.
pub fn sealKeyring(store: *Store) void {
    var plain: [RING_BYTES]u8 = @splat(0);
    defer std.crypto.secureZero(u8, &plain);
    std.mem.writeInt(u32, plain[0..4], store.ring.count, .little);
    for (store.ring.keys[0..store.ring.count], 0..) |*key, at| plain[8 + at * format.KEY_BYTES ..][0..format.KEY_BYTES].* = key.*;
    const record = &store.root.record;
    record[RING_NONCE_AT..RING_AT].* = store.nonce();
    xaes.seal(&store.ring_key, record[RING_NONCE_AT..RING_AT], record[RING_AT..BODY_NONCE_AT], &plain, record[0..HEAD_BYTES]);
    store.root.is_changed = true;
}

/// The head of all root records of a store.
pub fn begin(root: *Root, id: *const StoreId) void {
    root.record = @splat(0);
    root.record[0..8].* = MAGIC.*;
    std.mem.writeInt(u32, root.record[8..12], VERSION, .little);
    root.record[16..32].* = id.*;
}

/// Writes both copies of a new root record; they count when they are durable.
pub fn write(store: *Store, now_ns: u64) Error!void {
    const root = &store.root;
    const record = &root.record;
    const sequence = root.sequence + 1;
    std.mem.writeInt(u64, record[32..40], sequence, .little);
    record[BODY_NONCE_AT..BODY_AT].* = store.nonce();
    var plain: [BODY_BYTES]u8 = @splat(0);
    const table = &store.inodes.table;
    std.mem.writeInt(u64, plain[0..8], sequence, .little);
    std.mem.writeInt(u64, plain[8..16], store.slots.end, .little);
    std.mem.writeInt(u64, plain[16..24], table.size, .little);
    plain[24] = table.height;
    table.root.encode(plain[32..80]);
    std.mem.writeInt(u64, plain[80..88], root.anchor, .little);
    std.mem.writeInt(u64, plain[88..96], now_ns, .little);
    plain[96..128].* = root.digest;
    const nonce = record[BODY_NONCE_AT..BODY_AT];
    const key = store.ring.of(store.ring.newest(), nonce);
    key.seal(record[BODY_AT..][0..BODY_BYTES], record[BODY_AT + BODY_BYTES ..][0..format.TAG_BYTES], &plain, record[0..BODY_NONCE_AT], nonce[12..24]);
    for ([_]u64{ sequence % 2, 2 + sequence % 2 }) |slot| try store.disk.writeAll(slot * format.BLOCK_BYTES, record);
    root.sequence = sequence;
    root.committed_ns = now_ns;
    root.is_changed = false;
    Sha256.hash(record, &root.digest, .{});
}

const Opened = struct { ring_key: Key, ring: xaes.Keyring, body: Body };

const Verdict = enum { unwritten, foreign, not_for_key, bad, good };

/// Fills `id`, `root`, the keys and the body from the newest record that opens.
pub fn open(store: *Store, owner: *const Key) Error!Body {
    var records: [COPIES]format.Block = undefined;
    const bytes = std.mem.sliceAsBytes(&records);
    const got = try store.disk.readUpTo(0, bytes);
    if (got < bytes.len) return error.Malformed;
    const opened = try store.allocator.create(Opened);
    defer {
        std.crypto.secureZero(u8, std.mem.asBytes(opened));
        store.allocator.destroy(opened);
    }
    var verdicts: [COPIES]Verdict = undefined;
    var best: ?usize = null;
    var body: Body = undefined;
    for (&records, &verdicts, 0..) |*record, *verdict, at| {
        verdict.* = openRecord(record, owner, opened);
        if (verdict.* != .good) continue;
        if (sequenceOf(record) % 2 != at % 2) {
            verdict.* = .bad;
            continue;
        }
        if (best) |other| {
            if (!std.mem.eql(u8, records[other][16..32], record[16..32])) return store.damagedAt(0, DAMAGE_ROOT, 0);
            if (sequenceOf(&records[other]) >= sequenceOf(record)) continue;
        }
        best = at;
        body = opened.body;
        store.ring_key = opened.ring_key;
        store.ring.wipe();
        store.ring.count = opened.ring.count;
        store.ring.keys = opened.ring.keys;
    }
    const newest = best orelse return refuse(store, &verdicts);
    store.root = .{ .record = records[newest], .sequence = body.sequence, .anchor = body.anchor, .committed_ns = body.committed_ns, .found_in = newest };
    store.id = records[newest][16..32].*;
    Sha256.hash(&records[newest], &store.root.digest, .{});
    for (&records, verdicts, 0..) |*record, verdict, at| {
        const is_current = at % 2 == newest % 2;
        const is_whole = if (is_current)
            std.mem.eql(u8, record, &records[newest])
        else switch (verdict) {
            .good => sequenceOf(record) + 1 == body.sequence,
            .not_for_key => true,
            .unwritten => body.sequence == 1,
            .foreign, .bad => false,
        };
        if (!is_whole) store.root.damaged_copies += 1;
    }
    return body;
}

/// Makes the record that was found durable, which it need not be: whoever wrote it may have died, or
/// have failed to sync. Before that nothing that the record before it reaches may be overwritten.
/// The copy that was found stays untouched meanwhile.
pub fn settle(store: *Store) Error!void {
    const other = (store.root.found_in + 2) % COPIES;
    try store.disk.writeAll(other * format.BLOCK_BYTES, &store.root.record);
    try store.disk.makeDurable();
}

/// As a level in a report of damage: no block, but the root records.
pub const DAMAGE_ROOT = 254;

fn refuse(store: *Store, verdicts: []const Verdict) Error {
    // A rotation that was cut leaves records without the key beside one with it that was never whole.
    for (verdicts) |verdict| {
        if (verdict == .not_for_key) return error.WrongKey;
    }
    for (verdicts) |verdict| {
        if (verdict == .bad) return store.damagedAt(0, DAMAGE_ROOT, 0);
    }
    return error.Malformed;
}

fn sequenceOf(record: *const format.Block) u64 {
    return number(record[32..40]);
}

fn openRecord(record: *format.Block, owner: *const Key, into: *Opened) Verdict {
    if (format.isZero(record)) return .unwritten;
    if (!std.mem.eql(u8, record[0..8], MAGIC)) return .foreign;
    if (std.mem.readInt(u32, record[8..12], .little) != VERSION or !format.isZero(record[12..16])) return .foreign;
    const id = record[16..32];
    const key_id = keyId(owner, id);
    for (0..KEY_SLOTS) |index| {
        const slot = keySlotOf(record, index);
        if (format.isZero(slot) or !std.mem.eql(u8, slot[0..KEY_ID_BYTES], &key_id)) continue;
        openWith(record, slot, owner, key_id, into) catch continue;
        return .good;
    }
    for (0..KEY_SLOTS) |index| {
        if (std.mem.eql(u8, keySlotOf(record, index)[0..KEY_ID_BYTES], &key_id)) return .bad;
    }
    return .not_for_key;
}

fn openWith(record: *const format.Block, slot: *const [KEY_SLOT_BYTES]u8, owner: *const Key, id: KeyId, into: *Opened) error{Damaged}!void {
    var key = slotKey(owner, record[16..32]);
    defer std.crypto.secureZero(u8, &key);
    const ad = slotAd(record, id);
    try xaes.open(&key, slot[8..32], &into.ring_key, slot[32..80], &ad);
    var ring: [RING_BYTES]u8 = undefined;
    defer std.crypto.secureZero(u8, &ring);
    try xaes.open(&into.ring_key, record[RING_NONCE_AT..RING_AT], &ring, record[RING_AT..BODY_NONCE_AT], record[0..HEAD_BYTES]);
    const count = std.mem.readInt(u32, ring[0..4], .little);
    if (count == 0 or count > format.DATA_KEYS_MAX or !format.isZero(ring[4..8])) return error.Damaged;
    if (!format.isZero(ring[8 + count * format.KEY_BYTES ..])) return error.Damaged;
    into.ring = .{ .count = @intCast(count) };
    for (0..count) |at| into.ring.keys[at] = ring[8 + at * format.KEY_BYTES ..][0..format.KEY_BYTES].*;
    var plain: [BODY_BYTES]u8 = undefined;
    try xaes.open(&into.ring.keys[count - 1], record[BODY_NONCE_AT..BODY_AT], &plain, record[BODY_AT..], record[0..BODY_NONCE_AT]);
    into.body = try .decode(&plain);
    if (into.body.sequence != sequenceOf(record) or into.body.sequence == 0) return error.Damaged;
    // There has to be one for the next commit.
    if (into.body.sequence == std.math.maxInt(u64)) return error.Damaged;
}
