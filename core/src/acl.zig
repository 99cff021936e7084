//! Access rules: the first rule that applies decides; where rules exist and none applies, the answer is no.

const std = @import("std");
const bytes_room = @import("bytes.zig");
const heap = @import("heap.zig");
const limits = @import("limits.zig");
const topics = @import("topics.zig");

pub const Access = enum(u8) { publish = 1, subscribe = 2 };
const Principal = enum(u8) { anyone = 0, user = 1, anonymous = 2 };
const Rule = struct { allow: bool, access: u8, principal: Principal, user: []const u8, pattern: []const u8 };

var rules: heap.List(Rule) = .{};
var text: []u8 = &.{};
var active = false;
/// Changes with every new set of rules, so that remembered decisions are made anew.
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
        if (mine.len - at < 3) return error.Malformed;
        const effect = mine[at];
        const access = mine[at + 1];
        const principal = std.enums.fromInt(Principal, mine[at + 2]) orelse return error.Malformed;
        at += 3;
        if (effect > 1 or access == 0 or access > 3) return error.Malformed;
        const user = try piece(mine, &at);
        const pattern = try piece(mine, &at);
        if (!topics.validFilter(pattern)) return error.Malformed;
        try fresh.append(.{ .allow = effect == 1, .access = access, .principal = principal, .user = user, .pattern = pattern });
    }
    if (at != mine.len) return error.Malformed;
    rules.deinit();
    heap.freeSlice(text);
    rules = fresh;
    text = mine;
    active = true;
    generation += 1;
}

fn piece(bytes: []const u8, at: *usize) error{Malformed}![]const u8 {
    if (bytes.len - at.* < 2) return error.Malformed;
    const length = std.mem.readInt(u16, bytes[at.*..][0..2], .little);
    at.* += 2;
    if (bytes.len - at.* < length) return error.Malformed;
    defer at.* += length;
    return bytes[at.*..][0..length];
}

/// `topic` is a name (publish, delivery) or a filter (subscribe): a rule applies when its pattern
/// covers all of it, so that a wide subscription never slips through a narrow permission.
pub fn allowed(access: Access, user: []const u8, client_identifier: []const u8, topic: []const u8) bool {
    if (!active) return true;
    for (rules.items) |rule| {
        if (rule.access & @backingInt(access) == 0) continue;
        switch (rule.principal) {
            .anyone => {},
            .user => if (user.len == 0 or !bytes_room.equal(rule.user, user)) continue,
            .anonymous => if (user.len != 0) continue,
        }
        if (applies(rule.pattern, user, client_identifier, topic)) return rule.allow;
    }
    return false;
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
