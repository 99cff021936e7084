//! Access rules: the first rule that applies decides; where rules exist and none applies, the answer is no.

const std = @import("std");
const bytes_room = @import("bytes.zig");
const heap = @import("heap.zig");
const limits = @import("limits.zig");
const topics = @import("topics.zig");
const work = @import("work.zig");

pub const Access = enum(u8) { publish = 1, subscribe = 2 };
const Principal = enum(u8) { anyone = 0, user = 1, anonymous = 2 };
const Rule = struct {
    allow: bool,
    access: u8,
    principal: Principal,
    module: ?*const [digest_bytes]u8,
    /// 0: nothing has to be attested; the lowest rank that an attested client has is 1.
    rank_min: u8,
    user: []const u8,
    pattern: []const u8,
};

pub const digest_bytes = 32;
const no_module: [digest_bytes]u8 = @splat(0);
pub const rank_lowest = 1;
pub const rank_highest = 3;

/// What a client has proven about the program that it is; rank 0: nothing; a module of zeros: none.
pub const Attestation = struct {
    rank: u8 = 0,
    module: [digest_bytes]u8 = @splat(0),

    pub fn equal(self: *const Attestation, other: *const Attestation) bool {
        return self.rank == other.rank and bytes_room.equal(&self.module, &other.module);
    }
};

/// Whom a decision is about.
pub const Who = struct { user: []const u8, client_identifier: []const u8, attestation: *const Attestation };

var rules: heap.List(Rule) = .{};
var text: []u8 = &.{};
var active = false;
/// What it costs at the most to look at one client and ask about it.
pub var look_units: usize = 1;
/// Changes with every new set of rules and with what a session has proven, so that remembered
/// decisions are made anew.
pub var generation: u64 = 0;

pub const LoadError = error{ Malformed, OutOfMemory };

/// The body of the ACL command; on error the old rules stay.
pub fn load(body: []const u8) LoadError!void {
    const mine = try heap.copy(body);
    errdefer heap.freeSlice(mine);
    var fresh: heap.List(Rule) = .{};
    errdefer fresh.deinit();
    if (mine.len < 4) return error.Malformed;
    const count = std.mem.readInt(u32, mine[0..4], .little);
    if (count > limits.acl_rules_max) return error.Malformed;
    var at: usize = 4;
    for (0..count) |_| {
        const rule = try readRule(mine, &at);
        if (!topics.validFilter(rule.pattern)) return error.Malformed;
        try fresh.append(rule);
    }
    if (at != mine.len) return error.Malformed;
    rules.deinit();
    heap.freeSlice(text);
    rules = fresh;
    text = mine;
    active = true;
    look_units = 1 + fresh.items.len / 2;
    generation += 1;
}

fn readRule(bytes: []const u8, at: *usize) error{Malformed}!Rule {
    const head = try take(bytes, at, 4);
    const principal = std.enums.fromInt(Principal, head[2]) orelse return error.Malformed;
    const conditions = head[3];
    if (head[0] > 1 or head[1] == 0 or head[1] > 3 or conditions > 3) return error.Malformed;
    var rule: Rule = .{
        .allow = head[0] == 1,
        .access = head[1],
        .principal = principal,
        .module = null,
        // Either condition is one on what was attested.
        .rank_min = if (conditions != 0) rank_lowest else 0,
        .user = undefined,
        .pattern = undefined,
    };
    if (conditions & 1 != 0) rule.module = (try take(bytes, at, digest_bytes))[0..digest_bytes];
    if (conditions & 2 != 0) {
        rule.rank_min = (try take(bytes, at, 1))[0];
        if (rule.rank_min < rank_lowest or rule.rank_min > rank_highest) return error.Malformed;
    }
    rule.user = try piece(bytes, at);
    rule.pattern = try piece(bytes, at);
    return rule;
}

fn take(bytes: []const u8, at: *usize, count: usize) error{Malformed}![]const u8 {
    if (bytes.len - at.* < count) return error.Malformed;
    defer at.* += count;
    return bytes[at.*..][0..count];
}

fn piece(bytes: []const u8, at: *usize) error{Malformed}![]const u8 {
    const length = std.mem.readInt(u16, (try take(bytes, at, 2))[0..2], .little);
    return take(bytes, at, length);
}

/// `topic` is a name (publish, delivery) or a filter (subscribe): a rule applies when its pattern
/// covers all of it, so that a wide subscription never slips through a narrow permission.
pub fn allowed(access: Access, who: Who, topic: []const u8) bool {
    if (!active) return true;
    const rule = first(access, who, topic) orelse return false;
    return rule.allow;
}

/// The number of the rule that decides, counted from 1; 0: there is none.
pub fn deciding(access: Access, who: Who, topic: []const u8) u32 {
    const rule = first(access, who, topic) orelse return 0;
    return @intCast(rule - rules.items.ptr + 1);
}

fn first(access: Access, who: Who, topic: []const u8) ?*const Rule {
    var looked: usize = 0;
    defer work.spend(looked / 2);
    for (rules.items) |*rule| {
        looked += 1;
        if (rule.access & @backingInt(access) == 0) continue;
        if (rule.rank_min != 0 and !proven(rule, who.attestation)) continue;
        switch (rule.principal) {
            .anyone => {},
            .user => if (who.user.len == 0 or !bytes_room.equal(rule.user, who.user)) continue,
            .anonymous => if (who.user.len != 0) continue,
        }
        if (applies(rule.pattern, who.user, who.client_identifier, topic)) return rule;
    }
    return null;
}

/// A rule with a condition never fits a client that has proven nothing (rank 0).
fn proven(rule: *const Rule, attestation: *const Attestation) bool {
    if (attestation.rank < rule.rank_min) return false;
    const module = rule.module orelse return true;
    if (bytes_room.equal(&attestation.module, &no_module)) return false;
    return bytes_room.equal(module, &attestation.module);
}

/// `topics.covers` with %u and %c replaced inside the pattern's levels. A name that is empty or has
/// characters with a meaning in topics never matches: it could widen the rule.
fn applies(pattern: []const u8, user: []const u8, client_identifier: []const u8, topic: []const u8) bool {
    if (topic.len > 0 and topic[0] == '$' and (pattern[0] == '+' or pattern[0] == '#')) return false;
    var outer = std.mem.splitScalar(u8, pattern, '/');
    var inner = std.mem.splitScalar(u8, topic, '/');
    while (outer.next()) |level| {
        if (bytes_room.equal(level, "#")) return true;
        const other = inner.next() orelse return false;
        if (bytes_room.equal(other, "#")) return false;
        if (bytes_room.equal(level, "+")) continue;
        if (!levelEqual(level, other, user, client_identifier)) return false;
    }
    return inner.peek() == null;
}

fn levelEqual(level: []const u8, other: []const u8, user: []const u8, client_identifier: []const u8) bool {
    var at: usize = 0;
    var index: usize = 0;
    while (index < level.len) {
        const rest = level[index..];
        const name = if (std.mem.startsWith(u8, rest, "%u")) user else if (std.mem.startsWith(u8, rest, "%c")) client_identifier else null;
        if (name) |value| {
            if (value.len == 0 or std.mem.findAny(u8, value, "/+#") != null) return false;
            if (!std.mem.startsWith(u8, other[at..], value)) return false;
            at += value.len;
            index += 2;
        } else {
            if (at >= other.len or other[at] != level[index]) return false;
            at += 1;
            index += 1;
        }
    }
    return at == other.len;
}
