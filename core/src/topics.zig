//! Topic names and filters (MQTT 5.0, section 4.7) and a tree of their levels.

const std = @import("std");
const bytes_room = @import("bytes.zig");
const hash_room = @import("hash.zig");
const heap = @import("heap.zig");
const work = @import("work.zig");

/// [MQTT-4.7.1-1], [MQTT-4.7.3-1]; UTF-8 has been checked by the parser.
pub fn validName(name: []const u8) bool {
    return name.len != 0 and !hasWildcard(name);
}

/// [MQTT-4.7.1-1], [MQTT-4.7.1-2], [MQTT-4.7.3-1].
pub fn validFilter(filter: []const u8) bool {
    if (filter.len == 0) return false;
    var levels = std.mem.splitScalar(u8, filter, '/');
    while (levels.next()) |level| {
        if (std.mem.findAny(u8, level, "+#") == null) continue;
        if (level.len != 1) return false;
        if (level[0] == '#' and levels.peek() != null) return false;
    }
    return true;
}

pub fn hasWildcard(filter: []const u8) bool {
    return bytes_room.hasEither(filter, '+', '#');
}

/// Whether there are more levels than so many.
pub fn deeperThan(text: []const u8, most: usize) bool {
    return text.len >= most and std.mem.countScalar(u8, text, '/') >= most;
}

pub const Shared = struct { group: []const u8, filter: []const u8 };

pub fn isShared(filter: []const u8) bool {
    return std.mem.startsWith(u8, filter, "$share/");
}

/// `$share/{ShareName}/{filter}` [MQTT-4.8.2-1], [MQTT-4.8.2-2]; null: not well-formed.
pub fn parseShared(filter: []const u8) ?Shared {
    const rest = filter["$share/".len..];
    const slash = std.mem.findScalar(u8, rest, '/') orelse return null;
    const group = rest[0..slash];
    if (group.len == 0 or std.mem.findAny(u8, group, "+#") != null) return null;
    if (!validFilter(rest[slash + 1 ..])) return null;
    return .{ .group = group, .filter = rest[slash + 1 ..] };
}

/// The filter inside a shared one that is well-formed; any other as it is.
pub fn ofShared(filter: []const u8) []const u8 {
    if (!isShared(filter)) return filter;
    const shared = parseShared(filter) orelse return filter;
    return shared.filter;
}

/// Whether a filter matches a name; wildcards do not match a first level with `$` [MQTT-4.7.2-1].
pub fn matches(filter: []const u8, name: []const u8) bool {
    if (name.len > 0 and name[0] == '$' and filter.len > 0 and (filter[0] == '+' or filter[0] == '#')) return false;
    return covers(filter, name);
}

/// Whether `wide` accepts every name that `narrow` accepts (a name is a filter without wildcards).
pub fn covers(wide: []const u8, narrow: []const u8) bool {
    var outer = std.mem.splitScalar(u8, wide, '/');
    var inner = std.mem.splitScalar(u8, narrow, '/');
    while (outer.next()) |level| {
        if (bytes_room.equal(level, "#")) return true;
        const other = inner.next() orelse return false;
        if (bytes_room.equal(other, "#")) return false;
        if (bytes_room.equal(level, "+")) continue;
        if (!bytes_room.equal(level, other)) return false;
    }
    return inner.peek() == null;
}

/// A tree whose nodes are topic levels. Children are found through one hash table for the whole
/// tree, so a step costs the same however many siblings there are. `release` takes back a node.
pub fn Tree(comptime Value: type, comptime release: fn (anytype) void) type {
    return struct {
        root: Node = .{ .parent = null, .hash = 0, .path_hash = 0, .level_bytes = 0, .value = .{} },
        table: heap.Table(Node) = .{},

        const Self = @This();
        const warm_levels = 16;
        /// A smaller tree is in the processor's caches anyway.
        const warm_nodes_min = 4096;

        pub const Node = struct {
            parent: ?*Node,
            hash: u32,
            /// Of all levels down to this one: a path can be hashed without reading its nodes.
            path_hash: u64,
            level_bytes: u32,
            /// Children in no order, for walks that need all of them.
            /// The children named `+` and `#`, which every match asks for.
            plus: ?*Node = null,
            hash_sign: ?*Node = null,
            first_child: ?*Node = null,
            next_sibling: ?*Node = null,
            previous_sibling: ?*Node = null,
            value: Value,

            /// The level's text lies behind the node.
            pub fn level(self: *const Node) []const u8 {
                return (@as([*]const u8, @ptrCast(self)) + @sizeOf(Node))[0..self.level_bytes];
            }

            /// What it takes of the heap.
            pub fn bytes(self: *const Node) usize {
                return @sizeOf(Node) + self.level_bytes;
            }

            /// Writes the whole topic into `target` from its end; returns the part used.
            pub fn path(self: *const Node, target: []u8) []u8 {
                var at = target.len;
                var node = self;
                while (node.parent) |parent| : (node = parent) {
                    at -= node.level_bytes;
                    @memcpy(target[at..][0..node.level_bytes], node.level());
                    if (parent.parent == null) break;
                    at -= 1;
                    target[at] = '/';
                }
                return target[at..];
            }
        };

        /// `value`: 64 random bits, so that nobody can choose names that collide.
        pub fn seed(self: *Self, value: u64) void {
            self.root.path_hash = value;
        }

        fn hashOf(parent_hash: u64, level: []const u8) u64 {
            return hash_room.hash(parent_hash, level);
        }

        /// Reads what a walk down `topic` will need, level after level without waiting for one to
        /// find the next: in a large tree the memory's latencies overlap instead of adding up.
        pub fn warm(self: *const Self, topic: []const u8) void {
            if (self.table.count < warm_nodes_min) return;
            var nodes: [warm_levels]?*Node = undefined;
            var count: usize = 0;
            var hash = self.root.path_hash;
            var levels = std.mem.splitScalar(u8, topic, '/');
            while (levels.next()) |level| {
                if (count == warm_levels) break;
                hash = hashOf(hash, level);
                var probe = self.table.probe(@truncate(hash));
                nodes[count] = probe.next();
                count += 1;
            }
            var found: usize = 0;
            for (nodes[0..count]) |node| {
                if (node) |read| found +%= read.level_bytes;
            }
            std.mem.doNotOptimizeAway(found);
        }

        pub fn child(self: *const Self, parent: *const Node, level: []const u8) ?*Node {
            var probe = self.table.probe(@truncate(hashOf(parent.path_hash, level)));
            while (probe.next()) |node| {
                if (node.parent == parent and bytes_room.equal(node.level(), level)) return node;
            }
            return null;
        }

        pub fn find(self: *Self, topic: []const u8) ?*Node {
            var node: *Node = &self.root;
            var levels = std.mem.splitScalar(u8, topic, '/');
            while (levels.next()) |level| {
                work.spend(work.node_units);
                node = self.child(node, level) orelse return null;
            }
            return node;
        }

        /// Finds or makes the node of a topic or filter. On failure nothing is left behind.
        pub fn ensure(self: *Self, topic: []const u8) heap.Error!*Node {
            var node: *Node = &self.root;
            errdefer self.prune(node);
            var levels = std.mem.splitScalar(u8, topic, '/');
            while (levels.next()) |level| {
                work.spend(work.node_units + 2);
                node = self.child(node, level) orelse try self.add(node, level);
            }
            return node;
        }

        fn add(self: *Self, parent: *Node, level: []const u8) heap.Error!*Node {
            try self.table.reserve();
            const bytes = try heap.allocate(@sizeOf(Node) + level.len);
            @memcpy((bytes + @sizeOf(Node))[0..level.len], level);
            const node: *Node = @ptrCast(@alignCast(bytes));
            const hash = hashOf(parent.path_hash, level);
            node.* = .{ .parent = parent, .hash = @truncate(hash), .path_hash = hash, .level_bytes = @intCast(level.len), .value = .{} };
            node.next_sibling = parent.first_child;
            if (parent.first_child) |first| first.previous_sibling = node;
            parent.first_child = node;
            self.table.insert(node);
            if (bytes_room.equal(level, "+")) parent.plus = node;
            if (bytes_room.equal(level, "#")) parent.hash_sign = node;
            return node;
        }

        /// Removes the node and its ancestors as far as nothing depends on them.
        pub fn prune(self: *Self, start: *Node) void {
            var node = start;
            while (node.parent) |parent| {
                if (node.first_child != null or !node.value.isEmpty()) return;
                work.spend(work.node_units + 2);
                self.table.remove(node);
                if (parent.plus == node) parent.plus = null;
                if (parent.hash_sign == node) parent.hash_sign = null;
                if (node.previous_sibling) |previous| previous.next_sibling = node.next_sibling else parent.first_child = node.next_sibling;
                if (node.next_sibling) |following| following.previous_sibling = node.previous_sibling;
                release(node);
                node = parent;
            }
        }
    };
}
