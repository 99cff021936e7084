//! Retained messages (MQTT 5.0, section 3.3.1.3): a hash table to find one, and a search tree in the
//! order of their topics to walk through those of a filter. A place in that order is a text, so that a
//! walk can stop anywhere and go on later, whatever has been put or removed meanwhile.

const std = @import("std");
const bytes_room = @import("bytes.zig");
const hash_room = @import("hash.zig");
const heap = @import("heap.zig");
const stats = @import("stats.zig");
const Message = @import("message.zig").Message;

pub const Node = struct {
    hash: u32,
    /// Random: parents have larger ones than their children, so the tree is balanced whatever the topics.
    priority: u32,
    message: *Message,
    /// Says before or after what else it was put.
    serial: u64,
    /// The same for the last live message on the topic before which walks were brought up to it.
    passed_serial: u64 = 0,
    up: ?*Node = null,
    left: ?*Node = null,
    right: ?*Node = null,

    pub fn topic(self: *const Node) []const u8 {
        return self.message.topic();
    }
};

var table: heap.Table(Node) = .{};
var root: ?*Node = null;
var hash_seed: u64 = 0;
pub var last_serial: u64 = 0;

/// `value`: 64 random bits, so that nobody can choose topics that collide.
pub fn seed(value: u64) void {
    hash_seed = value;
}

pub fn nextSerial() u64 {
    last_serial += 1;
    return last_serial;
}

/// Replaces what the topic retains [MQTT-3.3.1-5]. Takes a reference of its own.
pub fn put(message: *Message) heap.Error!void {
    if (find(message.topic())) |node| {
        node.message.unreference();
        node.message = message.reference();
        node.serial = nextSerial();
        return;
    }
    try table.reserve();
    const node = try heap.create(Node);
    const hash = hash_room.hash(hash_seed, message.topic());
    node.* = .{ .hash = @truncate(hash), .priority = @truncate(hash >> 32), .message = message.reference(), .serial = nextSerial() };
    table.insert(node);
    insert(node);
    stats.count(.retained, 1);
}

/// [MQTT-3.3.1-6]; true when there was one.
pub fn remove(topic: []const u8) bool {
    const node = find(topic) orelse return false;
    table.remove(node);
    extract(node);
    node.message.unreference();
    heap.destroy(node);
    stats.uncount(.retained, 1);
    return true;
}

pub fn has(topic: []const u8) bool {
    return find(topic) != null;
}

pub fn find(topic: []const u8) ?*Node {
    var probe = table.probe(@truncate(hash_room.hash(hash_seed, topic)));
    while (probe.next()) |node| {
        if (bytes_room.equal(node.topic(), topic)) return node;
    }
    return null;
}

/// Level by level: what lies below a topic follows it, before all that is beside it. A '/' therefore
/// counts less than every byte; U+0000 is in no topic [MQTT-4.7.3-2].
pub fn order(a: []const u8, b: []const u8) std.math.Order {
    const common = @min(a.len, b.len);
    var at: usize = 0;
    while (at + 8 <= common and bytes_room.equal(a[at..][0..8], b[at..][0..8])) at += 8;
    while (at < common and a[at] == b[at]) at += 1;
    if (at == common) return std.math.order(a.len, b.len);
    return std.math.order(rank(a[at]), rank(b[at]));
}

fn rank(byte: u8) u8 {
    return if (byte == '/') 0 else byte;
}

pub fn first() ?*Node {
    var node = root orelse return null;
    while (node.left) |lower| node = lower;
    return node;
}

/// The first whose topic does not come before `key`.
pub fn from(key: []const u8) ?*Node {
    var best: ?*Node = null;
    var item = root;
    while (item) |node| {
        if (order(node.topic(), key) == .lt) {
            item = node.right;
        } else {
            best = node;
            item = node.left;
        }
    }
    return best;
}

pub fn after(node: *Node) ?*Node {
    if (node.right) |right| {
        var lowest = right;
        while (lowest.left) |lower| lowest = lower;
        return lowest;
    }
    var item = node;
    while (item.up) |above| : (item = above) {
        if (above.left == item) return above;
    }
    return null;
}

fn insert(node: *Node) void {
    var link = &root;
    while (link.*) |above| {
        node.up = above;
        link = if (order(node.topic(), above.topic()) == .lt) &above.left else &above.right;
    }
    link.* = node;
    while (node.up) |above| {
        if (above.priority >= node.priority) return;
        raise(node, above);
    }
}

fn extract(node: *Node) void {
    while (node.left != null and node.right != null) {
        raise(if (node.left.?.priority > node.right.?.priority) node.left.? else node.right.?, node);
    }
    const below = node.left orelse node.right;
    linkTo(node).* = below;
    if (below) |child| child.up = node.up;
}

fn linkTo(node: *Node) *?*Node {
    const above = node.up orelse return &root;
    return if (above.left == node) &above.left else &above.right;
}

/// Rotates a node over its parent.
fn raise(node: *Node, above: *Node) void {
    linkTo(above).* = node;
    node.up = above.up;
    above.up = node;
    if (above.left == node) {
        above.left = node.right;
        if (node.right) |moved| moved.up = above;
        node.right = above;
    } else {
        above.right = node.left;
        if (node.left) |moved| moved.up = above;
        node.left = above;
    }
}

/// How a filter's walk goes on from a topic: it matches; or nothing does before `seek`; or nothing any more.
pub const Judgement = union(enum) { match, seek: []const u8, end };

var seek_room: [2 * 65536]u8 = undefined;

/// `seek` is valid until the next call.
pub fn judge(filter: []const u8, topic: []const u8) Judgement {
    if (topic[0] == '$' and (filter[0] == '+' or filter[0] == '#')) return .{ .seek = "%" }; // [MQTT-4.7.2-1]; '%' follows '$'
    var in_filter: usize = 0;
    var in_topic: usize = 0;
    // Where the last level that a '+' took ends in the topic: another value there may match again.
    var plus_end: ?usize = null;
    while (true) {
        const level = levelAt(filter, in_filter);
        if (bytes_room.equal(level, "#")) return .match;
        const other = levelAt(topic, in_topic);
        const end = in_topic + other.len;
        if (bytes_room.equal(level, "+")) {
            plus_end = end;
        } else switch (std.mem.order(u8, other, level)) {
            .eq => {},
            .lt => return seek(&.{ topic[0..in_topic], level }),
            .gt => return beyond(topic, plus_end),
        }
        const filter_ends = in_filter + level.len == filter.len;
        if (end == topic.len) {
            if (filter_ends) return .match;
            const below = levelAt(filter, in_filter + level.len + 1);
            if (bytes_room.equal(below, "#")) return .match; // "sport/#" matches "sport" too (section 4.7.1.2)
            return seek(&.{ topic, "/", if (bytes_room.equal(below, "+")) "" else below });
        }
        if (filter_ends) return beyond(topic, plus_end);
        in_filter += level.len + 1;
        in_topic = end + 1;
    }
}

fn levelAt(text: []const u8, start: usize) []const u8 {
    const rest = text[start..];
    return rest[0 .. std.mem.findScalar(u8, rest, '/') orelse rest.len];
}

/// Behind all that lies below the level that ends there.
fn beyond(topic: []const u8, plus_end: ?usize) Judgement {
    return if (plus_end) |end| seek(&.{ topic[0..end], "\x01" }) else .end;
}

fn seek(parts: []const []const u8) Judgement {
    var at: usize = 0;
    for (parts) |part| {
        @memcpy(seek_room[at..][0..part.len], part);
        at += part.len;
    }
    return .{ .seek = seek_room[0..at] };
}
