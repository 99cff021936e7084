//! The store for C: Python's binding and the pump. Results are 0 and above, or a code of errors.zig.

const std = @import("std");
const errors = @import("errors.zig");
const format = @import("format.zig");
const disk_file = @import("disk.zig");
const opening = @import("opening.zig");
const roots = @import("roots.zig");
const keys = @import("keys.zig");
const check_file = @import("check.zig");
const compact_file = @import("compact.zig");
const xaes = @import("xaes.zig");
const store_file = @import("store.zig");
const Store = store_file.Store;
const Error = store_file.Error;
const Disk = disk_file.Disk;

const allocator = std.heap.smp_allocator;

/// A disk of functions, or, when there is none, the descriptor of a locked file.
fn diskOf(disk: ?*const Disk, fd: i32) Disk {
    return if (disk) |given| given.* else disk_file.ofFile(fd);
}

fn done(result: Error!void) i64 {
    result catch |err| return errors.code(err);
    return 0;
}

fn counted(result: anytype) i64 {
    const value = result catch |err| return errors.code(err);
    return @intCast(value);
}

export fn avow_store_create(
    disk: ?*const Disk,
    fd: i32,
    owners: [*]const format.Key,
    owners_count: usize,
    entropy: *const opening.NewEntropy,
    cache_bytes: u64,
    now_ns: u64,
    into: *?*Store,
) callconv(.c) i64 {
    const store = opening.prepare(allocator, diskOf(disk, fd), &entropy.session, cache_bytes) catch |err| return errors.code(err);
    opening.create(store, entropy, owners[0..owners_count], now_ns) catch |err| {
        store.close();
        return errors.code(err);
    };
    into.* = store;
    return 0;
}

/// With error.Damaged `damage` says where, and `path` (a zero byte behind it) is that of its inode as
/// far as it can be told.
export fn avow_store_open(
    disk: ?*const Disk,
    fd: i32,
    owner: *const format.Key,
    session: *const [opening.SESSION_BYTES]u8,
    cache_bytes: u64,
    read_only: u32,
    now_ns: u64,
    into: *?*Store,
    damage: *errors.Damage,
    path: [*]u8,
    path_max: usize,
) callconv(.c) i64 {
    const store = opening.prepare(allocator, diskOf(disk, fd), session, cache_bytes) catch |err| return errors.code(err);
    opening.open(store, owner, read_only != 0, now_ns) catch |err| {
        damage.* = store.damage;
        path[check_file.pathOf(store, damage.inode, path[0 .. path_max - 1])] = 0;
        store.close();
        return errors.code(err);
    };
    into.* = store;
    return 0;
}

/// Drops what was not committed, wipes the keys and frees everything. The disk is the caller's.
export fn avow_store_close(store: *Store) callconv(.c) void {
    store.lock.acquire();
    store.close();
}

export fn avow_store_commit(store: *Store, now_ns: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return done(store.commit(now_ns));
}

export fn avow_store_commit_anchor(store: *Store, anchor: u64, now_ns: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return done(store.commitWithAnchor(anchor, now_ns));
}

export fn avow_store_lookup(store: *Store, dir: u64, name: [*]const u8, name_bytes: usize) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return counted(store.lookup(dir, name[0..name_bytes]));
}

export fn avow_store_make(store: *Store, dir: u64, name: [*]const u8, name_bytes: usize, kind: u32, now_ns: u64) callconv(.c) i64 {
    if (kind == 0 or kind > 3) return errors.code(error.Invalid);
    store.lock.acquire();
    defer store.lock.release();
    return counted(store.make(dir, name[0..name_bytes], @fromBackingInt(@intCast(kind)), now_ns));
}

export fn avow_store_link(store: *Store, inode: u64, dir: u64, name: [*]const u8, name_bytes: usize, now_ns: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return done(store.link(inode, dir, name[0..name_bytes], now_ns));
}

export fn avow_store_unlink(store: *Store, dir: u64, name: [*]const u8, name_bytes: usize, now_ns: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return done(store.unlink(dir, name[0..name_bytes], now_ns));
}

export fn avow_store_remove_directory(store: *Store, dir: u64, name: [*]const u8, name_bytes: usize, now_ns: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return done(store.removeDirectory(dir, name[0..name_bytes], now_ns));
}

export fn avow_store_rename(
    store: *Store,
    from_dir: u64,
    from_name: [*]const u8,
    from_bytes: usize,
    to_dir: u64,
    to_name: [*]const u8,
    to_bytes: usize,
    now_ns: u64,
) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return done(store.rename(from_dir, from_name[0..from_bytes], to_dir, to_name[0..to_bytes], now_ns));
}

export fn avow_store_read(store: *Store, inode: u64, offset: u64, into: [*]u8, length: usize) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return counted(store.read(inode, offset, into[0..length]));
}

export fn avow_store_write(store: *Store, inode: u64, offset: u64, bytes: [*]const u8, length: usize, now_ns: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return done(store.write(inode, offset, bytes[0..length], now_ns));
}

export fn avow_store_resize(store: *Store, inode: u64, size: u64, now_ns: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return done(store.resize(inode, size, now_ns));
}

/// Times of maxInt(u64) stay as they are.
export fn avow_store_set_times(store: *Store, inode: u64, accessed_ns: u64, modified_ns: u64, now_ns: u64) callconv(.c) i64 {
    const none = std.math.maxInt(u64);
    store.lock.acquire();
    defer store.lock.release();
    return done(store.setTimes(
        inode,
        if (accessed_ns == none) null else accessed_ns,
        if (modified_ns == none) null else modified_ns,
        now_ns,
    ));
}

export fn avow_store_retain(store: *Store, inode: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return done(store.retain(inode));
}

export fn avow_store_release(store: *Store, inode: u64, now_ns: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return done(store.release(inode, now_ns));
}

const Stat = extern struct {
    inode: u64,
    size: u64,
    accessed_ns: u64,
    modified_ns: u64,
    changed_ns: u64,
    parent: u64,
    links: u32,
    kind: u32,
};

export fn avow_store_stat(store: *Store, inode: u64, into: *Stat) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    const found = store.stat(inode) catch |err| return errors.code(err);
    into.* = .{
        .inode = found.inode,
        .size = found.size,
        .accessed_ns = found.accessed_ns,
        .modified_ns = found.modified_ns,
        .changed_ns = found.changed_ns,
        .parent = found.parent,
        .links = found.links,
        .kind = @backingInt(found.kind),
    };
    return 0;
}

const Entry = extern struct {
    inode: u64,
    next: u64,
    kind: u32,
    name_bytes: u32,
    name: [256]u8,
};

/// 1 and an entry, or 0 at the end.
export fn avow_store_entry(store: *Store, dir: u64, cookie: u64, into: *Entry) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    const found = (store.entry(dir, cookie) catch |err| return errors.code(err)) orelse return 0;
    into.inode = found.inode;
    into.next = found.next;
    into.kind = @backingInt(found.kind);
    into.name_bytes = @intCast(found.name.len);
    @memcpy(into.name[0..found.name.len], found.name);
    return 1;
}

const Root = extern struct {
    sequence: u64,
    anchor: u64,
    committed_ns: u64,
    slots: u64,
    free_slots: u64,
    damaged_copies: u32,
    key_count: u32,
    digest: [32]u8,
    store_id: format.StoreId,
    key_ids: [roots.KEY_SLOTS]roots.KeyId,
};

export fn avow_store_root(store: *Store, into: *Root) callconv(.c) void {
    store.lock.acquire();
    defer store.lock.release();
    into.* = .{
        .sequence = store.root.sequence,
        .anchor = store.root.anchor,
        .committed_ns = store.root.committed_ns,
        .slots = store.slots.end,
        .free_slots = store.slots.freeCount(),
        .damaged_copies = store.root.damaged_copies,
        .key_count = 0,
        .digest = store.root.digest,
        .store_id = store.id,
        .key_ids = @splat(@splat(0)),
    };
    for (0..roots.KEY_SLOTS) |index| {
        const slot = store.root.keySlot(index);
        if (format.isZero(slot)) continue;
        into.key_ids[into.key_count] = slot[0..roots.KEY_ID_BYTES].*;
        into.key_count += 1;
    }
}

/// Where the last damage was found.
export fn avow_store_damage(store: *Store, into: *errors.Damage) callconv(.c) void {
    store.lock.acquire();
    defer store.lock.release();
    into.* = store.damage;
}

export fn avow_store_add_key(store: *Store, owner: *const format.Key, now_ns: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    store.writable() catch |err| return errors.code(err);
    return done(keys.add(store, owner, now_ns));
}

export fn avow_store_remove_key(store: *Store, id: *const roots.KeyId, now_ns: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    store.writable() catch |err| return errors.code(err);
    return done(keys.remove(store, id.*, now_ns));
}

export fn avow_store_rotate(store: *Store, owners: [*]const format.Key, owners_count: usize, entropy: *const keys.RotationEntropy, now_ns: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    store.writable() catch |err| return errors.code(err);
    return done(keys.rotate(store, owners[0..owners_count], entropy, now_ns));
}

/// Reads and proves everything. Returns how many findings there are; `into` has the first of them.
export fn avow_store_check(store: *Store, into: [*]errors.Damage, count: usize) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    store.usable() catch |err| return errors.code(err);
    return counted(check_file.check(store, into[0..count]));
}

/// The path of an inode for messages; its length, 0 when it has none.
export fn avow_store_path(store: *Store, inode: u64, into: [*]u8, count: usize) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    return @intCast(check_file.pathOf(store, inode, into[0..count]));
}

export fn avow_store_compact(store: *Store, rewrite: u32, now_ns: u64) callconv(.c) i64 {
    store.lock.acquire();
    defer store.lock.release();
    store.writable() catch |err| return errors.code(err);
    if (rewrite != 0) compact_file.rewrite(store, now_ns) catch |err| return errors.code(err);
    return done(compact_file.compact(store, now_ns));
}

/// XAES-256-GCM for the test with the published vectors: `into` takes 16 bytes more than `plain` has.
export fn avow_vault_xaes_seal(key: *const format.Key, nonce: *const format.Nonce, plain: [*]const u8, plain_bytes: usize, ad: [*]const u8, ad_bytes: usize, into: [*]u8) callconv(.c) void {
    xaes.seal(key, nonce, into[0 .. plain_bytes + format.TAG_BYTES], plain[0..plain_bytes], ad[0..ad_bytes]);
}
