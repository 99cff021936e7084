//! The bytes of docs/spec/sealed-store.md: sizes, pointers, inodes. No input or output here.

const std = @import("std");

pub const BLOCK_BYTES = 4096;
pub const POINTER_BYTES = 48;
pub const NONCE_BYTES = 24;
pub const TAG_BYTES = 16;
pub const KEY_BYTES = 32;
/// Pointers in a block above level 0.
pub const FANOUT = 85;
pub const HEIGHT_MAX = 8;
/// Slots 0 to 3 hold root records.
pub const SLOT_FIRST = 4;
/// A slot has 6 bytes in a pointer.
pub const SLOTS_MAX = 1 << 48;
pub const INODE_BYTES = 128;
pub const INODES_IN_BLOCK = BLOCK_BYTES / INODE_BYTES;
pub const AD_BYTES = 32;
pub const DATA_KEYS_MAX = 32;

pub const Block = [BLOCK_BYTES]u8;
pub const Key = [KEY_BYTES]u8;
pub const Nonce = [NONCE_BYTES]u8;
pub const StoreId = [16]u8;

/// How many data blocks lie below a block of a level.
pub const SPAN = spans: {
    var table: [HEIGHT_MAX]u64 = undefined;
    table[0] = 1;
    for (1..HEIGHT_MAX) |level| table[level] = table[level - 1] * FANOUT;
    break :spans table;
};
pub const SIZE_MAX = SPAN[HEIGHT_MAX - 1] * BLOCK_BYTES;

comptime {
    std.debug.assert(FANOUT * POINTER_BYTES + 16 == BLOCK_BYTES);
    // An index has 7 bytes in the additional data.
    std.debug.assert(SPAN[HEIGHT_MAX - 1] < 1 << 56);
}

pub fn blocksOf(size: u64) u64 {
    return size / BLOCK_BYTES + @intFromBool(size % BLOCK_BYTES != 0);
}

/// The least height for a size of at most `SIZE_MAX`.
pub fn heightOf(size: u64) u8 {
    if (size == 0) return 0;
    const blocks = blocksOf(size);
    var height: u8 = 1;
    while (SPAN[height - 1] < blocks) height += 1;
    return height;
}

pub const Pointer = struct {
    slot: u64,
    generation: u16,
    nonce: Nonce,
    tag: [TAG_BYTES]u8,

    pub const hole: Pointer = .{ .slot = 0, .generation = 0, .nonce = @splat(0), .tag = @splat(0) };

    pub fn isHole(self: Pointer) bool {
        return self.slot == 0;
    }

    pub fn decode(bytes: *const [POINTER_BYTES]u8) error{Damaged}!Pointer {
        const slot = std.mem.readInt(u48, bytes[0..6], .little);
        if (slot < SLOT_FIRST) {
            if (!isZero(bytes)) return error.Damaged;
            return hole;
        }
        return .{
            .slot = slot,
            .generation = std.mem.readInt(u16, bytes[6..8], .little),
            .nonce = bytes[8..32].*,
            .tag = bytes[32..48].*,
        };
    }

    pub fn encode(self: Pointer, into: *[POINTER_BYTES]u8) void {
        std.mem.writeInt(u48, into[0..6], @intCast(self.slot), .little);
        std.mem.writeInt(u16, into[6..8], self.generation, .little);
        into[8..32].* = self.nonce;
        into[32..48].* = self.tag;
    }
};

pub fn entryOf(block: *Block, index: u64) *[POINTER_BYTES]u8 {
    return block[@as(usize, @intCast(index % FANOUT)) * POINTER_BYTES ..][0..POINTER_BYTES];
}

pub fn isZero(bytes: []const u8) bool {
    return std.mem.allEqual(u8, bytes, 0);
}

/// The additional data of a block: where it belongs.
pub fn place(id: StoreId, inode: u64, level: u8, index: u64) [AD_BYTES]u8 {
    var ad: [AD_BYTES]u8 = undefined;
    ad[0..16].* = id;
    std.mem.writeInt(u64, ad[16..24], inode, .little);
    ad[24] = level;
    std.mem.writeInt(u56, ad[25..32], @intCast(index), .little);
    return ad;
}

/// What a record of the table of inodes says. `kind` is 1 to 3.
pub const Record = struct {
    kind: u8,
    height: u8,
    links: u32,
    size: u64,
    accessed_ns: u64,
    modified_ns: u64,
    changed_ns: u64,
    parent: u64,
    root: Pointer,

    /// Null when the record is free.
    pub fn decode(bytes: *const [INODE_BYTES]u8) error{Damaged}!?Record {
        if (bytes[0] == 0) return if (isZero(bytes)) null else error.Damaged;
        const record: Record = .{
            .kind = bytes[0],
            .height = bytes[1],
            .links = std.mem.readInt(u32, bytes[4..8], .little),
            .size = std.mem.readInt(u64, bytes[8..16], .little),
            .accessed_ns = std.mem.readInt(u64, bytes[16..24], .little),
            .modified_ns = std.mem.readInt(u64, bytes[24..32], .little),
            .changed_ns = std.mem.readInt(u64, bytes[32..40], .little),
            .parent = std.mem.readInt(u64, bytes[40..48], .little),
            .root = try Pointer.decode(bytes[48..96]),
        };
        if (record.kind > 3 or !isZero(bytes[2..4]) or !isZero(bytes[96..128])) return error.Damaged;
        if (record.size > SIZE_MAX or record.height != heightOf(record.size)) return error.Damaged;
        if (record.height == 0 and !record.root.isHole()) return error.Damaged;
        const is_directory = record.kind == 2;
        if (is_directory != (record.parent != 0)) return error.Damaged;
        if (is_directory and record.size % BLOCK_BYTES != 0) return error.Damaged;
        return record;
    }

    pub fn encode(self: Record, into: *[INODE_BYTES]u8) void {
        @memset(into, 0);
        into[0] = self.kind;
        into[1] = self.height;
        std.mem.writeInt(u32, into[4..8], self.links, .little);
        std.mem.writeInt(u64, into[8..16], self.size, .little);
        std.mem.writeInt(u64, into[16..24], self.accessed_ns, .little);
        std.mem.writeInt(u64, into[24..32], self.modified_ns, .little);
        std.mem.writeInt(u64, into[32..40], self.changed_ns, .little);
        std.mem.writeInt(u64, into[40..48], self.parent, .little);
        self.root.encode(into[48..96]);
    }
};

/// The entries of directories, in blocks that they fill.
pub const Entry = struct {
    pub const HEAD_BYTES = 12;
    pub const BYTES_MIN = 16;
    pub const NAME_MAX_BYTES = 255;

    /// 0: unused space.
    inode: u64,
    bytes: u16,
    kind: u8,
    name: []const u8,

    pub fn decode(block: *const Block, at: usize) error{Damaged}!Entry {
        if (at > BLOCK_BYTES - BYTES_MIN) return error.Damaged;
        const inode = std.mem.readInt(u64, block[at..][0..8], .little);
        const bytes = std.mem.readInt(u16, block[at + 8 ..][0..2], .little);
        const kind = block[at + 10];
        const name_bytes = block[at + 11];
        if (bytes % 8 != 0 or bytes < BYTES_MIN or bytes > BLOCK_BYTES - at) return error.Damaged;
        if (@as(usize, name_bytes) + HEAD_BYTES > bytes) return error.Damaged;
        const name = block[at + HEAD_BYTES ..][0..name_bytes];
        if (inode == 0) {
            if (kind != 0 or name_bytes != 0) return error.Damaged;
        } else {
            if (kind == 0 or kind > 3 or !isName(name)) return error.Damaged;
        }
        return .{ .inode = inode, .bytes = bytes, .kind = kind, .name = name };
    }

    /// Fills the whole entry.
    pub fn encode(self: Entry, block: *Block, at: usize) void {
        const into = block[at..][0..self.bytes];
        @memset(into, 0);
        std.mem.writeInt(u64, into[0..8], self.inode, .little);
        std.mem.writeInt(u16, into[8..10], self.bytes, .little);
        into[10] = self.kind;
        into[11] = @intCast(self.name.len);
        @memcpy(into[HEAD_BYTES..][0..self.name.len], self.name);
    }

    pub fn bytesFor(name: []const u8) u16 {
        return @intCast(std.mem.alignForward(usize, HEAD_BYTES + name.len, 8));
    }

    pub fn unused(bytes: u16) Entry {
        return .{ .inode = 0, .bytes = bytes, .kind = 0, .name = "" };
    }
};

pub fn isName(name: []const u8) bool {
    if (name.len == 0 or name.len > Entry.NAME_MAX_BYTES) return false;
    if (std.mem.eql(u8, name, ".") or std.mem.eql(u8, name, "..")) return false;
    for (name) |byte| {
        if (byte == 0 or byte == '/') return false;
    }
    return std.unicode.utf8ValidateSlice(name);
}
