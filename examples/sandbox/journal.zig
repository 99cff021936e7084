//! A key-value store in one file: an append-only journal whose last record counts.
//!
//!     journal FILE put KEY VALUE | get KEY | delete KEY | list | compact
//!
//! FILE is relative to the first directory that was granted. A record is key length, value length
//! (`DELETED` for none) and CRC-32 of key ‖ value, three u32 little-endian, then key and value. A record
//! that was cut off ends the journal: it was never acknowledged.

const std = @import("std");
const Io = std.Io;
const File = Io.File;

const HEADER_BYTES = 12;
const DELETED = std.math.maxInt(u32);
const KEY_MAX = 1 << 10;
const VALUE_MAX = 1 << 20;
const FILE_MAX = 1 << 30;

const Map = std.StringArrayHashMapUnmanaged([]const u8);

const Journal = struct {
    arena: std.mem.Allocator,
    io: Io,
    name: []const u8,
    file: File,
    map: Map = .empty,
    end: u64 = 0,

    fn open(arena: std.mem.Allocator, io: Io, name: []const u8) !Journal {
        const file = try Io.Dir.cwd().createFile(io, name, .{ .read = true, .truncate = false });
        var journal: Journal = .{ .arena = arena, .io = io, .name = name, .file = file };
        const bytes = try arena.alloc(u8, @min(try file.length(io), FILE_MAX));
        const content = bytes[0..try file.readPositionalAll(io, bytes, 0)];
        while (record(content[@intCast(journal.end)..])) |found| {
            if (found.value) |value| {
                try journal.map.put(arena, found.key, value);
            } else {
                _ = journal.map.orderedRemove(found.key);
            }
            journal.end += found.bytes;
        }
        return journal;
    }

    /// Durable when it returns.
    fn append(journal: *Journal, key: []const u8, value: ?[]const u8) !void {
        try journal.write(journal.file, &journal.end, key, value);
        try journal.file.setLength(journal.io, journal.end);
        try journal.file.sync(journal.io);
    }

    fn write(journal: *Journal, file: File, at: *u64, key: []const u8, value: ?[]const u8) !void {
        const held: []const u8 = value orelse "";
        if (key.len > KEY_MAX or held.len > VALUE_MAX) return error.TooLong;
        var header: [HEADER_BYTES]u8 = undefined;
        std.mem.writeInt(u32, header[0..4], @intCast(key.len), .little);
        const length: u32 = if (value == null) DELETED else @intCast(held.len);
        std.mem.writeInt(u32, header[4..8], length, .little);
        std.mem.writeInt(u32, header[8..12], checksum(key, held), .little);
        for ([_][]const u8{ &header, key, held }) |part| {
            try file.writePositionalAll(journal.io, part, at.*);
            at.* += part.len;
        }
    }

    /// Writes what is alive into a new file, and puts that into the place of the old one.
    fn compact(journal: *Journal) !void {
        const fresh = try std.mem.concat(journal.arena, u8, &.{ journal.name, ".fresh" });
        const folder = Io.Dir.cwd();
        const file = try folder.createFile(journal.io, fresh, .{});
        defer file.close(journal.io);
        var at: u64 = 0;
        var entries = journal.map.iterator();
        while (entries.next()) |entry| {
            try journal.write(file, &at, entry.key_ptr.*, entry.value_ptr.*);
        }
        try file.sync(journal.io);
        try folder.rename(fresh, folder, journal.name, journal.io);
    }
};

const Record = struct { key: []const u8, value: ?[]const u8, bytes: usize };

/// The record at the beginning of `content`, or null when there is no whole one.
fn record(content: []const u8) ?Record {
    if (content.len < HEADER_BYTES) return null;
    const key_bytes: usize = std.mem.readInt(u32, content[0..4], .little);
    const value_length = std.mem.readInt(u32, content[4..8], .little);
    const value_bytes: usize = if (value_length == DELETED) 0 else value_length;
    if (key_bytes > KEY_MAX or value_bytes > VALUE_MAX) return null;
    const bytes = HEADER_BYTES + key_bytes + value_bytes;
    if (content.len < bytes) return null;
    const key = content[HEADER_BYTES..][0..key_bytes];
    const value = content[HEADER_BYTES + key_bytes ..][0..value_bytes];
    if (checksum(key, value) != std.mem.readInt(u32, content[8..12], .little)) return null;
    return .{ .key = key, .value = if (value_length == DELETED) null else value, .bytes = bytes };
}

fn checksum(key: []const u8, value: []const u8) u32 {
    var crc = std.hash.Crc32.init();
    crc.update(key);
    crc.update(value);
    return crc.final();
}

fn usage() noreturn {
    std.debug.print("usage: journal FILE put KEY VALUE | get KEY | delete KEY | list | compact\n", .{});
    std.process.exit(2);
}

pub fn main(init: std.process.Init) !void {
    const arena = init.arena.allocator();
    const arguments = try init.minimal.args.toSlice(arena);
    if (arguments.len < 3) usage();
    const command, const given = .{ arguments[2], arguments[3..] };
    var buffer: [4096]u8 = undefined;
    var out = File.stdout().writer(init.io, &buffer);
    var journal = try Journal.open(arena, init.io, arguments[1]);
    defer journal.file.close(init.io);
    if (std.mem.eql(u8, command, "put") and given.len == 2) {
        try journal.append(given[0], given[1]);
    } else if (std.mem.eql(u8, command, "get") and given.len == 1) {
        const value = journal.map.get(given[0]) orelse std.process.exit(1);
        try out.interface.print("{s}\n", .{value});
    } else if (std.mem.eql(u8, command, "delete") and given.len == 1) {
        if (journal.map.contains(given[0])) try journal.append(given[0], null);
    } else if (std.mem.eql(u8, command, "list") and given.len == 0) {
        var entries = journal.map.iterator();
        while (entries.next()) |entry| {
            try out.interface.print("{s}={s}\n", .{ entry.key_ptr.*, entry.value_ptr.* });
        }
    } else if (std.mem.eql(u8, command, "compact") and given.len == 0) {
        try journal.compact();
    } else {
        usage();
    }
    try out.interface.flush();
}
