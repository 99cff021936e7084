//! Subscriptions: a tree of their filters, each session's list, and the groups that share.

const std = @import("std");
const bytes_room = @import("bytes.zig");
const fanout = @import("fanout.zig");
const hash_room = @import("hash.zig");
const heap = @import("heap.zig");
const stats = @import("stats.zig");
const topics = @import("topics.zig");
const work = @import("work.zig");
const walks = @import("walks.zig");
const Session = @import("session.zig").Session;

pub const Options = struct {
    qos: u2,
    no_local: bool = false,
    retain_as_published: bool = false,
    /// 0: none (the identifier itself is never 0).
    identifier: u32 = 0,
};

pub const Subscription = struct {
    hash: u32,
    session: *Session,
    node: *Node,
    group: ?*Group,
    options: Options,
    /// Retained messages that are still on their way to it.
    walk: ?*walks.Walk = null,
    next_in_node: ?*Subscription = null,
    previous_in_node: ?*Subscription = null,
    next_in_session: ?*Subscription = null,
    previous_in_session: ?*Subscription = null,
    /// Removed, but a long walk may still come by.
    gone: bool = false,
};

/// The members of one shared subscription [MQTT-4.8.2-1].
pub const Group = struct {
    hash: u32,
    name: []u8,
    node: *Node,
    next: ?*Group,
    previous: ?*Group = null,
    first: ?*Subscription = null,
    /// Who is next, so that members take turns.
    cursor: ?*Subscription = null,
    /// Deliveries that came through it and are not acknowledged: it stays for them, so that they can
    /// be handed on, even when its last member has left.
    holds: u32 = 0,
    members: u32 = 0,
    /// Members whose sessions survive their connections: after a restart they are there.
    durable_members: u32 = 0,
    /// See `fanout.restoreGroup`.
    given_before_restart: bool = false,
};

const Value = struct {
    first: ?*Subscription = null,
    groups: ?*Group = null,

    pub fn isEmpty(self: *const Value) bool {
        return self.first == null and self.groups == null;
    }
};

const Tree = topics.Tree(Value, fanout.release);
pub const Node = Tree.Node;

pub var tree: Tree = .{};
var hash_seed: u64 = 0;
var by_session: heap.Table(Subscription) = .{};
var by_name: heap.Table(Group) = .{};
/// Changes with every change of subscriptions; remembered matches of older ones are void.
pub var generation: u64 = 1;

/// `value`: 64 random bits.
pub fn seed(value: u64) void {
    hash_seed = value;
    tree.seed(hash_room.hash(value, "tree"));
}

fn hashOf(session: *const Session, node: *const Node, group: ?*const Group) u32 {
    const key = [3]u32{ @intFromPtr(session), @intFromPtr(node), @intFromPtr(group) };
    return @truncate(hash_room.hash(hash_seed, std.mem.asBytes(&key)));
}

fn lookup(session: *const Session, node: *const Node, group: ?*const Group) ?*Subscription {
    const hash = hashOf(session, node, group);
    var probe = by_session.probe(hash);
    while (probe.next()) |found| {
        if (found.session == session and found.node == node and found.group == group) return found;
    }
    return null;
}

fn groupOf(node: *Node, name: []const u8) ?*Group {
    var probe = by_name.probe(groupHash(node, name));
    while (probe.next()) |group| {
        if (group.node == node and bytes_room.equal(group.name, name)) return group;
    }
    return null;
}

fn groupHash(node: *const Node, name: []const u8) u32 {
    return @truncate(hash_room.hash(node.path_hash, name));
}

pub fn get(session: *const Session, filter: []const u8) ?*Subscription {
    if (topics.isShared(filter)) {
        const shared = topics.parseShared(filter) orelse return null;
        const node = tree.find(shared.filter) orelse return null;
        const group = groupOf(node, shared.group) orelse return null;
        return lookup(session, node, group);
    }
    const node = tree.find(filter) orelse return null;
    return lookup(session, node, null);
}

pub const Added = struct { subscription: *Subscription, existed: bool };

/// Adds or replaces [MQTT-3.8.4-3]. The filter has been validated.
pub fn add(session: *Session, filter: []const u8, options: Options) heap.Error!Added {
    const shared = if (topics.isShared(filter)) topics.parseShared(filter).? else null;
    try by_session.reserve();
    const node = try tree.ensure(if (shared) |part| part.filter else filter);
    errdefer tree.prune(node);
    var group: ?*Group = null;
    if (shared) |part| group = groupOf(node, part.group) orelse try newGroup(node, part.group);
    errdefer if (group) |made| dropGroupIfEmpty(made);
    generation += 1;
    if (lookup(session, node, group)) |found| {
        found.options = options;
        return .{ .subscription = found, .existed = true };
    }
    const made = try heap.create(Subscription);
    made.* = .{ .hash = hashOf(session, node, group), .session = session, .node = node, .group = group, .options = options };
    const head = if (group) |members| &members.first else &node.value.first;
    made.next_in_node = head.*;
    if (head.*) |first| first.previous_in_node = made;
    head.* = made;
    made.next_in_session = session.first_subscription;
    if (session.first_subscription) |first| first.previous_in_session = made;
    session.first_subscription = made;
    session.subscription_count += 1;
    by_session.insert(made);
    stats.count(.subscriptions, 1);
    if (group) |joined| {
        stats.count(.shared_subscriptions, 1);
        joined.members += 1;
        joined.durable_members += @intFromBool(session.durable());
    }
    return .{ .subscription = made, .existed = false };
}

fn newGroup(node: *Node, name: []const u8) heap.Error!*Group {
    try by_name.reserve();
    const mine = try heap.copy(name);
    errdefer heap.freeSlice(mine);
    const group = try heap.create(Group);
    group.* = .{ .hash = groupHash(node, name), .name = mine, .node = node, .next = node.value.groups };
    if (node.value.groups) |first| first.previous = group;
    node.value.groups = group;
    by_name.insert(group);
    return group;
}

fn dropGroupIfEmpty(group: *Group) void {
    if (group.first != null or group.holds != 0) return;
    by_name.remove(group);
    if (group.previous) |previous| previous.next = group.next else group.node.value.groups = group.next;
    if (group.next) |following| following.previous = group.previous;
    heap.freeSlice(group.name);
    fanout.release(group);
}

pub fn remove(gone: *Subscription) void {
    generation += 1;
    if (gone.walk) |walk| walks.destroy(walk);
    const session = gone.session;
    const node = gone.node;
    by_session.remove(gone);
    if (gone.previous_in_session) |previous| previous.next_in_session = gone.next_in_session else session.first_subscription = gone.next_in_session;
    if (gone.next_in_session) |following| following.previous_in_session = gone.previous_in_session;
    session.subscription_count -= 1;
    const head = if (gone.group) |group| &group.first else &node.value.first;
    if (gone.previous_in_node) |previous| previous.next_in_node = gone.next_in_node else head.* = gone.next_in_node;
    if (gone.next_in_node) |following| following.previous_in_node = gone.previous_in_node;
    stats.uncount(.subscriptions, 1);
    if (gone.group) |group| {
        stats.uncount(.shared_subscriptions, 1);
        group.members -= 1;
        group.durable_members -= @intFromBool(session.durable());
        if (group.cursor == gone) group.cursor = gone.next_in_node;
        dropGroupIfEmpty(group);
    }
    gone.gone = true;
    fanout.release(gone);
    tree.prune(node);
}

pub fn memberOf(group: *const Group, session: *const Session) bool {
    return lookup(session, group.node, group) != null;
}

/// The group of a shared filter, for a delivery that came through it; `release` gives it back.
pub fn hold(group: *Group) *Group {
    group.holds += 1;
    return group;
}

pub fn release(group: *Group) void {
    group.holds -= 1;
    if (group.first != null or group.holds != 0) return;
    const node = group.node;
    dropGroupIfEmpty(group);
    tree.prune(node);
}

/// Restore only: a delivery may come before the subscriptions of its group. Held, as by `hold`.
pub fn holdNamed(filter: []const u8) heap.Error!*Group {
    const shared = topics.parseShared(filter).?;
    const node = try tree.ensure(shared.filter);
    errdefer tree.prune(node);
    return hold(groupOf(node, shared.group) orelse try newGroup(node, shared.group));
}

/// A session's expiry has become, or has ceased to be, longer than its connection.
pub fn durabilityChanged(session: *Session) void {
    var item = session.first_subscription;
    while (item) |subscription| : (item = subscription.next_in_session) {
        const group = subscription.group orelse continue;
        if (session.durable()) group.durable_members += 1 else group.durable_members -= 1;
    }
}

/// The filter as the client gave it, written into `target` from its end.
pub fn filterText(subscription: *const Subscription, target: []u8) []u8 {
    return if (subscription.group) |group| groupText(group, target) else subscription.node.path(target);
}

/// `$share/{ShareName}/{filter}`, written into `target` from its end.
pub fn groupText(group: *const Group, target: []u8) []u8 {
    const path = group.node.path(target);
    var at = target.len - path.len;
    for ([_][]const u8{ "/", group.name, "$share/" }) |part| {
        at -= part.len;
        @memcpy(target[at..][0..part.len], part);
    }
    return target[at..];
}

/// Where a filter's text may be put for as long as nothing else is: an array on the stack is filled
/// with a pattern each time, which costs more than all the rest.
pub var text_room: [65535 + 16]u8 = undefined;
