//! Where the core's journal goes before its outputs do: into a sealed store, or, where there is none,
//! into memory, so that a trap can be looked into.

const std = @import("std");
const sys = @import("sys.zig");
const Ring = @import("ring.zig").Ring;
const wasm = @import("wasm.zig");
const Allocator = std.mem.Allocator;

/// A journal is compacted when it has grown to this many times the last snapshot.
const COMPACTION_FACTOR = 4;
/// So much of a snapshot is written in one turn, and twice what came in meanwhile: the broker goes
/// on between, and the new journal catches up with the old one.
const TURN_BYTES = 256 << 10;
/// A snapshot is made durable in parts, since nothing is acknowledged while the disk is at it.
const COMMIT_BYTES = 4 << 20;
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

/// A journal that is to take the place of the one in use: a snapshot, and what has come since.
const Fresh = struct {
    inode: u64 = 0,
    /// Not written yet, in order.
    pieces: Ring(*Piece) = .{},
    waiting_bytes: u64 = 0,
    written_bytes: u64 = 0,
    /// In the first of the pieces.
    taken_bytes: usize = 0,
    /// Since the last turn.
    arrived_bytes: usize = 0,
    /// Since the last commit.
    uncommitted_bytes: u64 = 0,

    const Piece = struct { bytes: [1 << 20]u8, length: usize };

    fn put(self: *Fresh, allocator: Allocator, records: []const u8) Allocator.Error!void {
        var rest = records;
        while (rest.len != 0) {
            const last = self.pieces.last();
            const piece = if (last != null and last.?.length < last.?.bytes.len) last.? else try self.addPiece(allocator);
            const part = @min(rest.len, piece.bytes.len - piece.length);
            @memcpy(piece.bytes[piece.length..][0..part], rest[0..part]);
            piece.length += part;
            self.waiting_bytes += part;
            rest = rest[part..];
        }
    }

    fn addPiece(self: *Fresh, allocator: Allocator) Allocator.Error!*Piece {
        const piece = try allocator.create(Piece);
        errdefer allocator.destroy(piece);
        piece.length = 0;
        try self.pieces.push(allocator, piece);
        return piece;
    }

    /// At most `most` bytes of the first piece; `took` has to follow.
    fn first(self: *const Fresh, most: u64) []const u8 {
        const piece = self.pieces.first().?;
        const rest = piece.bytes[self.taken_bytes..piece.length];
        return rest[0..@min(rest.len, most)];
    }

    fn took(self: *Fresh, allocator: Allocator, count: usize) void {
        self.taken_bytes += count;
        self.waiting_bytes -= count;
        self.written_bytes += count;
        if (self.taken_bytes < self.pieces.first().?.length) return;
        allocator.destroy(self.pieces.pop().?);
        self.taken_bytes = 0;
    }

    fn deinit(self: *Fresh, allocator: Allocator) void {
        while (self.pieces.pop()) |piece| allocator.destroy(piece);
        self.pieces.deinit(allocator);
    }
};

pub const Journal = struct {
    vault: Vault,
    /// Python may read while the pump's thread appends.
    lock: sys.Lock = .{},
    /// The journal itself where there is no store.
    bytes: std.ArrayList(u8) = .empty,
    stored_bytes: u64 = 0,
    compact_above_bytes: u64 = 0,
    compaction_min_bytes: u64 = 0,
    /// While a stored journal is being replaced.
    fresh: ?Fresh = null,
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
            // How much of it is alive is not known. Were it allowed to grow by a share of what it is, a
            // broker that is restarted often would never compact it.
            .compact_above_bytes = compaction_min_bytes,
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
        if (self.fresh) |*fresh| {
            try fresh.put(allocator, records);
            fresh.arrived_bytes += records.len;
        }
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
        if (self.fresh) |*fresh| fresh.uncommitted_bytes = 0;
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
        return self.fresh == null and self.length() > self.compact_above_bytes;
    }

    /// Whether `goOn` has something to do.
    pub fn isCompacting(self: *const Journal) bool {
        return self.fresh != null;
    }

    /// Replaces the journal by a snapshot of the core; a stored one in the turns that follow. The old
    /// one stays whole, and in use, until the new one is, so neither a trap nor a crash halfway
    /// loses anything.
    pub fn compact(self: *Journal, allocator: Allocator, core: *wasm.Core, now_ms: u64) Error!void {
        if (self.vault.store == null) return self.compactInMemory(allocator, core);
        var fresh: Fresh = .{};
        errdefer fresh.deinit(allocator);
        gather(&fresh, allocator, core) catch |err| switch (err) {
            error.OutOfMemory => {
                // The journal can grow on: the disk may have room where memory has none.
                fresh.deinit(allocator);
                self.compact_above_bytes = 2 * self.length();
                return;
            },
            else => |other| return other,
        };
        const vault = &self.vault;
        const made = vault.make(vault.store.?, vault.directory, vault.fresh_name, vault.fresh_name_bytes, KIND_FILE, nanoseconds(now_ms));
        if (made < 0) return self.failed(made);
        fresh.inode = @intCast(made);
        self.compact_above_bytes = @max(self.compaction_min_bytes, COMPACTION_FACTOR * fresh.waiting_bytes);
        self.fresh = fresh;
    }

    /// A snapshot is of one moment, so it is taken at once, into memory.
    fn gather(fresh: *Fresh, allocator: Allocator, core: *wasm.Core) Error!void {
        var piece = try nextPiece(core, true);
        while (piece.len != 0) : (piece = try nextPiece(core, false)) try fresh.put(allocator, piece);
    }

    fn compactInMemory(self: *Journal, allocator: Allocator, core: *wasm.Core) Error!void {
        var fresh: std.ArrayList(u8) = .empty;
        errdefer fresh.deinit(allocator);
        var piece = try nextPiece(core, true);
        while (piece.len != 0) : (piece = try nextPiece(core, false)) try fresh.appendSlice(allocator, piece);
        self.lock.acquire();
        defer self.lock.release();
        self.bytes.deinit(allocator);
        self.bytes = fresh;
        self.compact_above_bytes = @max(self.compaction_min_bytes, COMPACTION_FACTOR * fresh.items.len);
        self.compactions += 1;
    }

    /// Writes the next part of the new journal, or puts it in the place of the old one.
    pub fn goOn(self: *Journal, allocator: Allocator, now_ms: u64) Error!void {
        const fresh = &self.fresh.?;
        const vault = &self.vault;
        var left = TURN_BYTES + 2 * fresh.arrived_bytes;
        fresh.arrived_bytes = 0;
        while (left != 0 and fresh.waiting_bytes != 0) {
            const part = fresh.first(left);
            const written = vault.write(vault.store.?, fresh.inode, fresh.written_bytes, part.ptr, part.len, nanoseconds(now_ms));
            if (written < 0) return self.failed(written);
            left -= part.len;
            fresh.uncommitted_bytes += part.len;
            fresh.took(allocator, part.len);
        }
        if (fresh.waiting_bytes == 0) return self.replace(allocator, now_ms);
        if (fresh.uncommitted_bytes >= COMMIT_BYTES and vault.durability != .none) try self.commit(now_ms);
    }

    fn replace(self: *Journal, allocator: Allocator, now_ms: u64) Error!void {
        const vault = &self.vault;
        const renamed = vault.rename(
            vault.store.?,
            vault.directory,
            vault.fresh_name,
            vault.fresh_name_bytes,
            vault.directory,
            vault.name,
            vault.name_bytes,
            nanoseconds(now_ms),
        );
        if (renamed < 0) return self.failed(renamed);
        const fresh = &self.fresh.?;
        vault.inode = fresh.inode;
        @atomicStore(u64, &self.stored_bytes, fresh.written_bytes, .monotonic);
        fresh.deinit(allocator);
        self.fresh = null;
        self.compactions += 1;
        try self.makeSafe(now_ms);
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
        if (self.fresh) |*fresh| fresh.deinit(allocator);
        self.bytes.deinit(allocator);
    }
};

fn nextPiece(core: *wasm.Core, restart: bool) wasm.Error![]const u8 {
    const piece_bytes = try core.snapshot(restart);
    if (piece_bytes == 0) return &.{};
    const result = try core.result();
    if (result.journal_bytes != piece_bytes) return core.broke("a snapshot has two different lengths");
    return core.slice(result.journal_address, piece_bytes);
}

fn nanoseconds(time_ms: u64) u64 {
    return time_ms *| std.time.ns_per_ms;
}
