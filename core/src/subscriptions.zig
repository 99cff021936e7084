//! Who gets what: the subscription tree, shared groups, and a cache of the topics in use.

const std = @import("std");
const bytes_room = @import("bytes.zig");
const acl = @import("acl.zig");
const hash_room = @import("hash.zig");
const heap = @import("heap.zig");
const limits = @import("limits.zig");
const stats = @import("stats.zig");
const topics = @import("topics.zig");
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
    next_in_node: ?*Subscription = null,
    previous_in_node: ?*Subscription = null,
    next_in_session: ?*Subscription = null,
    previous_in_session: ?*Subscription = null,
};

/// The members of one shared subscription [MQTT-4.8.2-1].
pub const Group = struct {
    name: []u8,
    node: *Node,
    next: ?*Group,
    first: ?*Subscription = null,
    /// Who is next, so that members take turns.
    cursor: ?*Subscription = null,
};

const Value = struct {
    first: ?*Subscription = null,
    groups: ?*Group = null,

    pub fn isEmpty(self: *const Value) bool {
        return self.first == null and self.groups == null;
    }
};

const Tree = topics.Tree(Value);
pub const Node = Tree.Node;

/// One session that gets a message, all of its subscriptions taken together.
pub const Entry = struct {
    session: *Session,
    qos: u2,
    retain_as_published: bool,
    no_local: enum(u8) { none, some, all },
    identifiers_start: u32,
    identifiers_count: u32,
};

pub const Match = struct { entries: []const Entry, identifiers: []const u32, groups: []const *Group };

pub var tree: Tree = .{};
var hash_seed: u64 = 0;
var by_session: heap.Table(Subscription) = .{};
/// Changes with every change of subscriptions; remembered matches of older ones are void.
pub var generation: u64 = 1;

/// `value`: 64 random bits.
pub fn seed(value: u64) void {
    hash_seed = value;
    tree.seed(hash_room.hash(value, "tree"));
}

fn hashOf(session: *const Session, node: *const Node) u32 {
    const key = [2]u32{ @intFromPtr(session), @intFromPtr(node) };
    return @truncate(hash_room.hash(hash_seed, std.mem.asBytes(&key)));
}

fn lookup(session: *const Session, node: *const Node, group: ?*const Group) ?*Subscription {
    const hash = hashOf(session, node);
    var probe = by_session.probe(hash);
    while (probe.next()) |found| {
        if (found.session == session and found.node == node and found.group == group) return found;
    }
    return null;
}

fn groupOf(node: *Node, name: []const u8) ?*Group {
    var item = node.value.groups;
    while (item) |group| : (item = group.next) {
        if (bytes_room.equal(group.name, name)) return group;
    }
    return null;
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
    made.* = .{ .hash = hashOf(session, node), .session = session, .node = node, .group = group, .options = options };
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
    if (group != null) stats.count(.shared_subscriptions, 1);
    return .{ .subscription = made, .existed = false };
}

fn newGroup(node: *Node, name: []const u8) heap.Error!*Group {
    const mine = try heap.copy(name);
    errdefer heap.freeSlice(mine);
    const group = try heap.create(Group);
    group.* = .{ .name = mine, .node = node, .next = node.value.groups };
    node.value.groups = group;
    return group;
}

fn dropGroupIfEmpty(group: *Group) void {
    if (group.first != null) return;
    var link = &group.node.value.groups;
    while (link.*) |item| : (link = &item.next) {
        if (item == group) {
            link.* = group.next;
            break;
        }
    }
    heap.freeSlice(group.name);
    heap.destroy(group);
}

pub fn remove(gone: *Subscription) void {
    generation += 1;
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
        if (group.cursor == gone) group.cursor = gone.next_in_node;
        dropGroupIfEmpty(group);
    }
    heap.destroy(gone);
    tree.prune(node);
}

/// The filter as the client gave it, written into `target` from its end.
pub fn filterText(subscription: *const Subscription, target: []u8) []u8 {
    const path = subscription.node.path(target);
    const group = subscription.group orelse return path;
    var at = target.len - path.len;
    for ([_][]const u8{ "/", group.name, "$share/" }) |part| {
        at -= part.len;
        @memcpy(target[at..][0..part.len], part);
    }
    return target[at..];
}

pub const filter_bytes_max = 65535 + 16;

const Cached = struct {
    generation: u64 = 0,
    acl_generation: u64 = 0,
    /// The topic that missed here last: only one that comes again is worth remembering.
    missed: u64 = 0,
    topic: []u8 = &.{},
    entries: []Entry = &.{},
    identifiers: []u32 = &.{},
    groups: []*Group = &.{},

    fn clear(self: *Cached) void {
        heap.freeSlice(self.topic);
        heap.freeSlice(self.entries);
        heap.freeSlice(self.identifiers);
        heap.freeSlice(self.groups);
        self.* = .{};
    }
};

var cache: []Cached = &.{};
var found_entries: heap.List(Entry) = .{};
var found_identifiers: heap.List(u32) = .{};
var found_groups: heap.List(*Group) = .{};
/// Subscriptions with identifiers, by entry, before they are put side by side.
var found_pairs: heap.List(struct { entry: u32, identifier: u32 }) = .{};
var stamp: u64 = 0;

/// Who gets a message on `topic`; valid until the next call or change of subscriptions.
pub fn match(topic: []const u8) heap.Error!Match {
    if (cache.len == 0) {
        cache = try heap.slice(Cached, limits.match_cache_slots);
        @memset(cache, .{});
    }
    const hash = hash_room.hash(hash_seed, topic);
    const slot = &cache[@as(u32, @truncate(hash)) & (limits.match_cache_slots - 1)];
    if (slot.generation == generation and slot.acl_generation == acl.generation and bytes_room.equal(slot.topic, topic))
        return .{ .entries = slot.entries, .identifiers = slot.identifiers, .groups = slot.groups };
    try collect(topic);
    const result: Match = .{ .entries = found_entries.items, .identifiers = found_identifiers.items, .groups = found_groups.items };
    if (slot.missed == hash) remember(slot, topic, result) catch slot.clear() else slot.missed = hash;
    return result;
}

fn remember(slot: *Cached, topic: []const u8, result: Match) heap.Error!void {
    slot.clear();
    if (result.entries.len > limits.match_cache_entries_max) return;
    slot.topic = try heap.copy(topic);
    slot.entries = try heap.slice(Entry, result.entries.len);
    @memcpy(slot.entries, result.entries);
    slot.identifiers = try heap.slice(u32, result.identifiers.len);
    @memcpy(slot.identifiers, result.identifiers);
    slot.groups = try heap.slice(*Group, result.groups.len);
    @memcpy(slot.groups, result.groups);
    slot.generation = generation;
    slot.acl_generation = acl.generation;
}

/// Remembered matches are given back when memory is short or all clients are gone.
pub fn forgetMatches() void {
    for (cache) |*slot| slot.clear();
}

fn collect(topic: []const u8) heap.Error!void {
    stamp += 1;
    found_entries.clear();
    found_identifiers.clear();
    found_groups.clear();
    found_pairs.clear();
    tree.warm(topic);
    try descend(&tree.root, topic, topic, true);
    if (found_pairs.items.len == 0) return;
    for (found_entries.items, 0..) |*entry, index| {
        entry.identifiers_start = @intCast(found_identifiers.items.len);
        for (found_pairs.items) |pair| {
            if (pair.entry == index) try found_identifiers.append(pair.identifier);
        }
        entry.identifiers_count = @as(u32, @intCast(found_identifiers.items.len)) - entry.identifiers_start;
    }
}

fn descend(node: *Node, topic: []const u8, rest: ?[]const u8, first: bool) heap.Error!void {
    const dollar = first and topic.len > 0 and topic[0] == '$'; // [MQTT-4.7.2-1]
    if (node.hash_sign) |below| {
        if (!dollar) try take(below, topic);
    }
    const left = rest orelse return take(node, topic);
    const slash = std.mem.findScalar(u8, left, '/');
    const level = if (slash) |at| left[0..at] else left;
    const after = if (slash) |at| left[at + 1 ..] else null;
    if (tree.child(node, level)) |below| try descend(below, topic, after, false);
    if (node.plus) |below| {
        if (!dollar) try descend(below, topic, after, false);
    }
}

fn take(node: *Node, topic: []const u8) heap.Error!void {
    var item = node.value.first;
    while (item) |subscription| : (item = subscription.next_in_node) {
        const session = subscription.session;
        if (!acl.allowed(.subscribe, session.who(), topic)) continue;
        try merge(subscription);
    }
    var groups = node.value.groups;
    while (groups) |group| : (groups = group.next) try found_groups.append(group);
}

fn merge(subscription: *Subscription) heap.Error!void {
    const session = subscription.session;
    const options = subscription.options;
    if (session.match_stamp != stamp) {
        session.match_stamp = stamp;
        session.match_index = @intCast(found_entries.items.len);
        try found_entries.append(.{
            .session = session,
            .qos = options.qos,
            .retain_as_published = options.retain_as_published,
            .no_local = if (options.no_local) .all else .none,
            .identifiers_start = 0,
            .identifiers_count = 0,
        });
    } else {
        const entry = &found_entries.items[session.match_index];
        entry.qos = @max(entry.qos, options.qos); // [MQTT-3.3.4-2]
        entry.retain_as_published = entry.retain_as_published or options.retain_as_published;
        if ((entry.no_local == .all) != options.no_local) entry.no_local = .some;
    }
    if (options.identifier != 0) try found_pairs.append(.{ .entry = session.match_index, .identifier = options.identifier });
}

/// The entry of one session when some of its subscriptions do not want its own messages [MQTT-3.8.3-3].
pub fn matchLocal(session: *Session, topic: []const u8, identifiers: *heap.List(u32)) heap.Error!?Entry {
    var result: ?Entry = null;
    var text: [filter_bytes_max]u8 = undefined;
    var item = session.first_subscription;
    while (item) |subscription| : (item = subscription.next_in_session) {
        if (subscription.options.no_local or subscription.group != null) continue;
        if (!topics.matches(subscription.node.path(&text), topic)) continue;
        const options = subscription.options;
        if (result) |*entry| {
            entry.qos = @max(entry.qos, options.qos);
            entry.retain_as_published = entry.retain_as_published or options.retain_as_published;
        } else result = .{ .session = session, .qos = options.qos, .retain_as_published = options.retain_as_published, .no_local = .none, .identifiers_start = 0, .identifiers_count = 0 };
        if (options.identifier != 0) try identifiers.append(options.identifier);
    }
    if (result) |*entry| entry.identifiers_count = @intCast(identifiers.items.len);
    return result;
}
