//! Where the core's journal goes before its outputs do: into a sealed store, or, where there is none,
//! into memory, so that a trap can be looked into.

const std = @import("std");
const sys = @import("sys.zig");
const wasm = @import("wasm.zig");
const Allocator = std.mem.Allocator;

/// A journal is compacted when it has grown to this many times the last snapshot.
const COMPACTION_FACTOR = 4;
/// Two calls into the vault for each piece would cost more than the bytes of a small one.
const PIECE_MIN_BYTES = 1 << 20;
/// What the vault calls a plain file (vault/src/store/store.zig, Kind).
const KIND_FILE = 1;

pub const Error = Allocator.Error || wasm.Error || error{StorageFailed};

/// When a batch is safe enough for the outputs of its step to leave.
pub const Durability = enum(u64) {
    /// When it is on the disk.
    commit = 0,
    /// At once; it is on the disk after an interval.
    interval = 1,
    /// At once; it is on the disk after an orderly end.
    none = 2,
    _,
};

/// Functions of the vault (`avow_store_*`), and the file that holds the journal. Results below zero
/// are the vault's error codes. Filled in by Python (src/avow/broker/pump.py, the same order).
pub const Vault = extern struct {
    /// Null: the journal is kept in memory.
    store: ?*anyopaque,
    write: *const fn (*anyopaque, u64, u64, [*]const u8, usize, u64) callconv(.c) i64,
    commit: *const fn (*anyopaque, u64) callconv(.c) i64,
    make: *const fn (*anyopaque, u64, [*]const u8, usize, u32, u64) callconv(.c) i64,
    rename: *const fn (*anyopaque, u64, [*]const u8, usize, u64, [*]const u8, usize, u64) callconv(.c) i64,
    directory: u64,
    inode: u64,
    /// How long the journal is already.
    journal_bytes: u64,
    durability: Durability,
    interval_ms: u64,
    name: [*]const u8,
    name_bytes: usize,
    fresh_name: [*]const u8,
    fresh_name_bytes: usize,
};

pub const Journal = struct {
    vault: Vault,
    /// Python may read while the pump's thread appends.
    lock: sys.Lock = .{},
    /// The journal itself where there is no store, else pieces on their way into it.
    bytes: std.ArrayList(u8) = .empty,
    stored_bytes: u64 = 0,
    compact_above_bytes: u64 = 0,
    compaction_min_bytes: u64 = 0,
    compactions: u64 = 0,
    commits: u64 = 0,
    /// Since when something has been written that is not on the disk; null: nothing.
    uncommitted_since_ms: ?u64 = null,
    /// What the vault answered when it failed.
    failure_code: i64 = 0,

    pub fn init(vault: Vault, compaction_min_bytes: u64) Journal {
        return .{
            .vault = vault,
            .stored_bytes = vault.journal_bytes,
            .compaction_min_bytes = compaction_min_bytes,
            .compact_above_bytes = @max(compaction_min_bytes, 2 * vault.journal_bytes),
        };
    }

    /// After it, the outputs of the step that made `records` may leave.
    pub fn append(self: *Journal, allocator: Allocator, records: []const u8, now_ms: u64) Error!void {
        const store = self.vault.store orelse {
            self.lock.acquire();
            defer self.lock.release();
            return self.bytes.appendSlice(allocator, records);
        };
        const written = self.vault.write(store, self.vault.inode, self.stored_bytes, records.ptr, records.len, nanoseconds(now_ms));
        if (written < 0) return self.failed(written);
        @atomicStore(u64, &self.stored_bytes, self.stored_bytes + records.len, .monotonic);
        try self.makeSafe(now_ms);
    }

    fn makeSafe(self: *Journal, now_ms: u64) Error!void {
        if (self.uncommitted_since_ms == null) self.uncommitted_since_ms = now_ms;
        if (self.vault.durability == .commit) try self.commit(now_ms);
    }

    fn commit(self: *Journal, now_ms: u64) Error!void {
        const outcome = self.vault.commit(self.vault.store.?, nanoseconds(now_ms));
        if (outcome < 0) return self.failed(outcome);
        self.uncommitted_since_ms = null;
        self.commits += 1;
    }

    /// When `tick` has to be called; null: need not.
    pub fn deadlineMs(self: *const Journal) ?u64 {
        const since_ms = self.uncommitted_since_ms orelse return null;
        return if (self.vault.durability == .interval) since_ms +| self.vault.interval_ms else null;
    }

    pub fn tick(self: *Journal, now_ms: u64) Error!void {
        const deadline_ms = self.deadlineMs() orelse return;
        if (now_ms >= deadline_ms) try self.commit(now_ms);
    }

    /// The last thing of an orderly end.
    pub fn finish(self: *Journal, now_ms: u64) Error!void {
        if (self.uncommitted_since_ms != null) try self.commit(now_ms);
    }

    pub fn wantsCompaction(self: *const Journal) bool {
        return self.length() > self.compact_above_bytes;
    }

    /// Replaces the journal by a snapshot of the core. The old one stays whole until the new one is,
    /// so neither a trap nor a crash halfway loses anything.
    pub fn compact(self: *Journal, allocator: Allocator, core: *wasm.Core, now_ms: u64) Error!void {
        const fresh_bytes = if (self.vault.store != null)
            try self.compactStored(allocator, core, now_ms)
        else
            try self.compactInMemory(allocator, core);
        self.compact_above_bytes = @max(self.compaction_min_bytes, COMPACTION_FACTOR * fresh_bytes);
        self.compactions += 1;
    }

    fn compactInMemory(self: *Journal, allocator: Allocator, core: *wasm.Core) Error!u64 {
        var fresh: std.ArrayList(u8) = .empty;
        errdefer fresh.deinit(allocator);
        var piece = try nextPiece(core, true);
        while (piece.len != 0) : (piece = try nextPiece(core, false)) try fresh.appendSlice(allocator, piece);
        self.lock.acquire();
        defer self.lock.release();
        self.bytes.deinit(allocator);
        self.bytes = fresh;
        return fresh.items.len;
    }

    fn compactStored(self: *Journal, allocator: Allocator, core: *wasm.Core, now_ms: u64) Error!u64 {
        const vault = &self.vault;
        const store = vault.store.?;
        const now_ns = nanoseconds(now_ms);
        const made = vault.make(store, vault.directory, vault.fresh_name, vault.fresh_name_bytes, KIND_FILE, now_ns);
        if (made < 0) return self.failed(made);
        const inode: u64 = @intCast(made);
        var offset: u64 = 0;
        var piece = try nextPiece(core, true);
        while (piece.len != 0) : (piece = try nextPiece(core, false)) {
            try self.bytes.appendSlice(allocator, piece);
            if (self.bytes.items.len >= PIECE_MIN_BYTES) offset += try self.writePieces(inode, offset, now_ns);
        }
        offset += try self.writePieces(inode, offset, now_ns);
        self.bytes.clearAndFree(allocator);
        const renamed = vault.rename(
            store,
            vault.directory,
            vault.fresh_name,
            vault.fresh_name_bytes,
            vault.directory,
            vault.name,
            vault.name_bytes,
            now_ns,
        );
        if (renamed < 0) return self.failed(renamed);
        vault.inode = inode;
        @atomicStore(u64, &self.stored_bytes, offset, .monotonic);
        try self.makeSafe(now_ms);
        return offset;
    }

    fn writePieces(self: *Journal, inode: u64, offset: u64, now_ns: u64) Error!u64 {
        const pieces = self.bytes.items;
        if (pieces.len == 0) return 0;
        const written = self.vault.write(self.vault.store.?, inode, offset, pieces.ptr, pieces.len, now_ns);
        if (written < 0) return self.failed(written);
        self.bytes.clearRetainingCapacity();
        return pieces.len;
    }

    fn failed(self: *Journal, code: i64) Error {
        self.failure_code = code;
        return error.StorageFailed;
    }

    pub fn length(self: *const Journal) u64 {
        return if (self.vault.store != null) self.stored_bytes else self.bytes.items.len;
    }

    /// Copies as much as fits of a journal in memory, and returns the length of the whole. A stored
    /// one is read from its store.
    pub fn copy(self: *Journal, into: []u8) u64 {
        if (self.vault.store != null) return @atomicLoad(u64, &self.stored_bytes, .monotonic);
        self.lock.acquire();
        defer self.lock.release();
        const copied = @min(into.len, self.bytes.items.len);
        @memcpy(into[0..copied], self.bytes.items[0..copied]);
        return self.bytes.items.len;
    }

    pub fn deinit(self: *Journal, allocator: Allocator) void {
        self.bytes.deinit(allocator);
    }
};

fn nextPiece(core: *wasm.Core, restart: bool) wasm.Error![]const u8 {
    const piece_bytes = try core.snapshot(restart);
    if (piece_bytes == 0) return &.{};
    const result = try core.result();
    if (result.journal_bytes != piece_bytes) return core.broke("a snapshot's length is told in two ways");
    return core.slice(result.journal_address, piece_bytes);
}

fn nanoseconds(time_ms: u64) u64 {
    return time_ms *| std.time.ns_per_ms;
}
