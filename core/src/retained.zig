//! Retained messages (MQTT 5.0, section 3.3.1.3), in a tree of their own.

const std = @import("std");
const bytes_room = @import("bytes.zig");
const heap = @import("heap.zig");
const journal = @import("journal.zig");
const stats = @import("stats.zig");
const topics = @import("topics.zig");
const Message = @import("message.zig").Message;

const Value = struct {
    message: ?*Message = null,

    pub fn isEmpty(self: *const Value) bool {
        return self.message == null;
    }
};

pub const Tree = topics.Tree(Value, heap.release);
pub const Node = Tree.Node;
pub var tree: Tree = .{};

/// Replaces what the topic retains [MQTT-3.3.1-5]. Takes a reference of its own.
pub fn put(message: *Message) heap.Error!void {
    const node = try tree.ensure(message.topic());
    if (node.value.message) |old| old.unreference() else stats.count(.retained, 1);
    node.value.message = message.reference();
}

/// [MQTT-3.3.1-6]; true when there was one.
pub fn remove(topic: []const u8) bool {
    const node = tree.find(topic) orelse return false;
    const old = node.value.message orelse return false;
    node.value.message = null;
    old.unreference();
    stats.uncount(.retained, 1);
    tree.prune(node);
    return true;
}

pub fn has(topic: []const u8) bool {
    const node = tree.find(topic) orelse return false;
    return node.value.message != null;
}

/// Calls `context.each(message)` for every retained message that the filter matches, until it says
/// false: a client that can take no more must not cost a walk through all that is retained.
pub fn visit(filter: []const u8, context: anytype) void {
    _ = descend(&tree.root, filter, true, context);
}

fn descend(node: *Node, rest: ?[]const u8, first: bool, context: anytype) bool {
    const left = rest orelse return give(node, context);
    const slash = std.mem.findScalar(u8, left, '/');
    const level = if (slash) |at| left[0..at] else left;
    const after = if (slash) |at| left[at + 1 ..] else null;
    if (bytes_room.equal(level, "#")) {
        if (!first and !give(node, context)) return false; // "sport/#" matches "sport" too
        return everything(node, first, context);
    }
    if (bytes_room.equal(level, "+")) {
        var item = node.first_child;
        while (item) |below| : (item = below.next_sibling) {
            if (!(first and dollar(below)) and !descend(below, after, false, context)) return false;
        }
        return true;
    }
    const below = tree.child(node, level) orelse return true;
    return descend(below, after, false, context);
}

/// All below `top`, without recursion: retained topics may be as deep as the limit allows.
fn everything(top: *Node, first: bool, context: anytype) bool {
    var node = top.first_child orelse return true;
    while (true) {
        const skip = first and node.parent == top and dollar(node);
        if (!skip) {
            if (!give(node, context)) return false;
            if (node.first_child) |below| {
                node = below;
                continue;
            }
        }
        while (node.next_sibling == null) {
            node = node.parent.?;
            if (node == top) return true;
        }
        node = node.next_sibling.?;
    }
}

fn dollar(node: *const Node) bool {
    return node.level_bytes > 0 and node.level()[0] == '$';
}

fn give(node: *Node, context: anytype) bool {
    return if (node.value.message) |message| context.each(message) else true;
}
