//! Which sessions get a message on a topic: a walk through the tree of subscriptions that can be
//! interrupted, and a cache of the topics in use.

const std = @import("std");
const acl = @import("acl.zig");
const bytes_room = @import("bytes.zig");
const hash_room = @import("hash.zig");
const heap = @import("heap.zig");
const limits = @import("limits.zig");
const subscriptions = @import("subscriptions.zig");
const work = @import("work.zig");
const Group = subscriptions.Group;
const Node = subscriptions.Node;
const Session = @import("session.zig").Session;
const Subscription = subscriptions.Subscription;

/// One session that gets a message, all of its subscriptions taken together.
pub const Entry = struct {
    session: *Session,
    qos: u2,
    retain_as_published: bool,
    /// The same for the subscriptions without No Local alone: what it gets of its own messages
    /// [MQTT-3.8.3-3]; `own`: there are such.
    own: bool,
    own_qos: u2,
    own_retain_as_published: bool,
    identifiers_start: u32 = 0,
    identifiers_count: u32 = 0,
    /// So many of the first are of subscriptions without No Local.
    own_identifiers_count: u32 = 0,
};

pub const Match = struct { entries: []const Entry, identifiers: []const u32, groups: []const *Group };

/// The stamp of those that had got a message before a restart which goes on with it.
pub const before_restart: u64 = std.math.maxInt(u64);

/// A subscription with an identifier, before those of an entry are put side by side.
const Pair = struct { entry: u32, identifier: u32, own: bool };

/// A node that has not been looked at: `at` is where its level begins in the topic, one more than
/// the topic's length when no level is left.
const Step = struct {
    node: *Node,
    at: u32,
    /// The node was reached by `#`: it matches whatever is left.
    whole: bool = false,
};

var stamp: u64 = 0;

pub const Walk = struct {
    /// Which of a session's places is this walk's.
    place: u1,
    /// Passes on whom a message had reached before a restart.
    resumes: bool = false,
    topic: []const u8 = "",
    stamp: u64 = 0,
    steps: heap.List(Step) = .{},
    subscription: ?*Subscription = null,
    group: ?*Group = null,
    entries: heap.List(Entry) = .{},
    identifiers: heap.List(u32) = .{},
    groups: heap.List(*Group) = .{},
    pairs: heap.List(Pair) = .{},

    pub fn begin(self: *Walk, topic: []const u8) heap.Error!void {
        self.clear();
        stamp += 1;
        self.stamp = stamp;
        self.topic = topic;
        try self.steps.append(.{ .node = &subscriptions.tree.root, .at = 0 });
    }

    pub fn clear(self: *Walk) void {
        self.steps.clear();
        self.subscription = null;
        self.group = null;
        self.entries.clear();
        self.identifiers.clear();
        self.groups.clear();
        self.pairs.clear();
    }

    /// Gives back what a large walk has needed.
    pub fn deinit(self: *Walk) void {
        self.clear();
        self.steps.deinit();
        self.entries.deinit();
        self.identifiers.deinit();
        self.groups.deinit();
        self.pairs.deinit();
    }

    /// False: the share of work is used up, and the walk is not at its end.
    pub fn goOn(self: *Walk) heap.Error!bool {
        while (true) {
            while (self.subscription) |subscription| {
                if (work.over()) return false;
                work.spend(2);
                self.subscription = subscription.next_in_node;
                const session = subscription.session;
                if (subscription.gone or session.ended) continue;
                if (self.resumes and session.stamps[self.place] == before_restart) continue;
                if (acl.allowed(.subscribe, session.who(), self.topic)) try self.merge(subscription);
            }
            while (self.group) |group| {
                work.spend(1);
                self.group = group.next;
                if (self.resumes and group.given_before_restart) continue;
                if (group.first != null) try self.groups.append(group); // it may stay for what is handed on
            }
            if (self.steps.items.len == 0) break;
            if (work.over()) return false;
            work.spend(work.node_units);
            const step = self.steps.items[self.steps.items.len - 1];
            self.steps.items.len -= 1;
            try self.look(step);
        }
        try self.sortIdentifiers();
        return true;
    }

    fn look(self: *Walk, step: Step) heap.Error!void {
        const node = step.node;
        if (step.whole or step.at > self.topic.len) self.take(node);
        if (step.whole) return;
        // The last that is put here is looked at first: whoever names the topic comes before whoever
        // wants all. The first receivers of a message are the first to be sent it.
        const dollar = step.at == 0 and self.topic.len > 0 and self.topic[0] == '$'; // [MQTT-4.7.2-1]
        if (!dollar) {
            if (node.hash_sign) |below| try self.steps.append(.{ .node = below, .at = step.at, .whole = true });
        }
        if (step.at <= self.topic.len) {
            const left = self.topic[step.at..];
            const level = if (std.mem.findScalar(u8, left, '/')) |slash| left[0..slash] else left;
            const after: u32 = @intCast(step.at + level.len + 1);
            if (!dollar) {
                if (node.plus) |below| try self.steps.append(.{ .node = below, .at = after });
            }
            if (subscriptions.tree.child(node, level)) |below| try self.steps.append(.{ .node = below, .at = after });
        }
    }

    fn take(self: *Walk, node: *const Node) void {
        self.subscription = node.value.first;
        self.group = node.value.groups;
    }

    fn merge(self: *Walk, subscription: *const Subscription) heap.Error!void {
        const session = subscription.session;
        const options = subscription.options;
        const index = &session.indices[self.place];
        if (session.stamps[self.place] != self.stamp) {
            session.stamps[self.place] = self.stamp;
            index.* = @intCast(self.entries.items.len);
            try self.entries.append(.{
                .session = session,
                .qos = options.qos,
                .retain_as_published = options.retain_as_published,
                .own = !options.no_local,
                .own_qos = if (options.no_local) 0 else options.qos,
                .own_retain_as_published = options.retain_as_published and !options.no_local,
            });
        } else {
            const entry = &self.entries.items[index.*];
            entry.qos = @max(entry.qos, options.qos); // [MQTT-3.3.4-2]
            entry.retain_as_published = entry.retain_as_published or options.retain_as_published;
            if (!options.no_local) {
                entry.own = true;
                entry.own_qos = @max(entry.own_qos, options.qos);
                entry.own_retain_as_published = entry.own_retain_as_published or options.retain_as_published;
            }
        }
        if (options.identifier != 0) try self.pairs.append(.{ .entry = index.*, .identifier = options.identifier, .own = !options.no_local });
    }

    /// Puts the identifiers of each entry side by side, those without No Local first: each pair is
    /// looked at three times, however many entries there are.
    fn sortIdentifiers(self: *Walk) heap.Error!void {
        const pairs = self.pairs.items;
        if (pairs.len == 0) return;
        work.spend(pairs.len / 8);
        try self.identifiers.ensure(pairs.len);
        self.identifiers.items.len = pairs.len;
        const entries = self.entries.items;
        for (pairs) |pair| entries[pair.entry].identifiers_count += 1;
        var start: u32 = 0;
        for (entries) |*entry| {
            entry.identifiers_start = start;
            start += entry.identifiers_count;
            entry.identifiers_count = 0;
        }
        for ([_]bool{ true, false }) |own| {
            for (pairs) |pair| {
                if (pair.own != own) continue;
                const entry = &entries[pair.entry];
                self.identifiers.items[entry.identifiers_start + entry.identifiers_count] = pair.identifier;
                entry.identifiers_count += 1;
                if (own) entry.own_identifiers_count += 1;
            }
        }
    }

    pub fn result(self: *const Walk) Match {
        return .{ .entries = self.entries.items, .identifiers = self.identifiers.items, .groups = self.groups.items };
    }
};

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
var seed: u64 = 0;
/// For topics whose subscribers are found within one share of work.
var short: Walk = .{ .place = 0 };

/// `value`: 64 random bits.
pub fn setSeed(value: u64) void {
    seed = value;
}

/// Who gets a message on `topic`; valid until the next call or change of subscriptions. Null: it
/// takes more than the share of work that is left.
pub fn match(topic: []const u8) heap.Error!?Match {
    if (cache.len == 0) {
        cache = try heap.slice(Cached, limits.match_cache_slots);
        @memset(cache, .{});
    }
    const hash = hash_room.hash(seed, topic);
    const slot = slotOf(hash);
    if (slot.generation == subscriptions.generation and slot.acl_generation == acl.generation and bytes_room.equal(slot.topic, topic))
        return .{ .entries = slot.entries, .identifiers = slot.identifiers, .groups = slot.groups };
    subscriptions.tree.warm(topic);
    try short.begin(topic);
    if (!try short.goOn()) return null;
    const result = short.result();
    if (slot.missed == hash) remember(slot, topic, result) catch slot.clear() else slot.missed = hash;
    return result;
}

/// What a long walk has found is worth remembering at once.
pub fn rememberLong(topic: []const u8, result: Match) void {
    if (cache.len == 0) return;
    const slot = slotOf(hash_room.hash(seed, topic));
    remember(slot, topic, result) catch slot.clear();
}

fn slotOf(hash: u64) *Cached {
    return &cache[@as(u32, @truncate(hash)) & (limits.match_cache_slots - 1)];
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
    slot.generation = subscriptions.generation;
    slot.acl_generation = acl.generation;
}

/// Remembered matches are given back when memory is short or all clients are gone.
pub fn forget() void {
    for (cache) |*slot| slot.clear();
}
