//! Owner keys: adding, removing, rotating.

const std = @import("std");
const format = @import("format.zig");
const roots = @import("roots.zig");
const commit = @import("commit.zig");
const store_file = @import("store.zig");
const Store = store_file.Store;
const Error = store_file.Error;
const Key = format.Key;

/// New keys for a rotation.
pub const RotationEntropy = extern struct { ring_key: Key, data_key: Key };

fn slotOf(store: *Store, id: roots.KeyId) ?usize {
    for (0..roots.KEY_SLOTS) |index| {
        const slot = store.root.keySlot(index);
        if (!format.isZero(slot) and std.mem.eql(u8, slot[0..roots.KEY_ID_BYTES], &id)) return index;
    }
    return null;
}

pub fn add(store: *Store, owner: *const Key, now_ns: u64) Error!void {
    if (slotOf(store, roots.keyId(owner, &store.id)) != null) return error.Exists;
    for (0..roots.KEY_SLOTS) |index| {
        if (!format.isZero(store.root.keySlot(index))) continue;
        roots.sealKeySlot(store, index, owner);
        return twice(store, now_ns);
    }
    return error.TooLarge;
}

/// The last one stays: without it nobody could open the store.
pub fn remove(store: *Store, id: roots.KeyId, now_ns: u64) Error!void {
    const index = slotOf(store, id) orelse return error.NotFound;
    for (0..roots.KEY_SLOTS) |other| {
        if (other != index and !format.isZero(store.root.keySlot(other))) break;
    } else return error.Invalid;
    @memset(store.root.keySlot(index), 0);
    store.root.is_changed = true;
    try twice(store, now_ns);
}

pub fn rotate(store: *Store, owners: []const Key, entropy: *const RotationEntropy, now_ns: u64) Error!void {
    if (owners.len == 0 or owners.len > roots.KEY_SLOTS) return error.Invalid;
    for (owners, 0..) |*owner, at| {
        for (owners[0..at]) |*earlier| {
            if (std.crypto.timing_safe.eql(Key, earlier.*, owner.*)) return error.Exists;
        }
    }
    if (store.ring.count == format.DATA_KEYS_MAX) return error.TooLarge;
    store.ring_key = entropy.ring_key;
    store.ring.keys[store.ring.count] = entropy.data_key;
    store.ring.count += 1;
    for (0..roots.KEY_SLOTS) |index| @memset(store.root.keySlot(index), 0);
    for (owners, 0..) |*owner, index| roots.sealKeySlot(store, index, owner);
    roots.sealKeyring(store);
    try twice(store, now_ns);
}

/// So that the root record before does not keep the slots that were there.
fn twice(store: *Store, now_ns: u64) Error!void {
    try commit.commit(store, now_ns);
    store.root.is_changed = true;
    try commit.commit(store, now_ns);
}
