//! SUBSCRIBE and UNSUBSCRIBE (MQTT 5.0, sections 3.8 to 3.11).

const std = @import("std");
const acl = @import("acl.zig");
const connection_room = @import("connection.zig");
const heap = @import("heap.zig");
const inbound = @import("inbound.zig");
const journal = @import("journal.zig");
const delivery = @import("delivery.zig");
const retained = @import("retained.zig");
const packets = @import("wire/packets.zig");
const refusals = @import("refusals.zig");
const routing = @import("routing.zig");
const state = @import("state.zig");
const subscriptions = @import("subscriptions.zig");
const topics = @import("topics.zig");
const work = @import("work.zig");
const walks = @import("walks.zig");
const writer = @import("wire/writer.zig");
const Connection = connection_room.Connection;
const Session = @import("session.zig").Session;
const Reason = @import("wire/reason.zig").Reason;

/// What each filter of the packet led to, in its order.
const Outcome = struct { code: u8, entered: bool, existed: bool };

/// A packet of which a part of the filters has taken effect. It is answered when all have.
pub const Unfinished = struct {
    body: []u8,
    removes: bool,
    /// The filters that have not: so many bytes at the end of the body.
    left_bytes: usize,
    outcomes: heap.List(Outcome) = .{},
};

pub fn subscribe(connection: *Connection, body: []const u8) void {
    start(connection, body, false) catch |problem| refuse(connection, problem);
}

pub fn unsubscribe(connection: *Connection, body: []const u8) void {
    start(connection, body, true) catch |problem| refuse(connection, problem);
}

fn start(connection: *Connection, body: []const u8, removes: bool) Error!void {
    const list = try packets.FilterList.parse(connection.version, if (removes) .unsubscribe else .subscribe, body);
    if (removes) try checkNames(list) else try checkAll(list, connection.version);
    var outcomes: heap.List(Outcome) = .{};
    errdefer outcomes.deinit();
    const left_bytes = try takeEffect(connection, list, removes, list.from.rest().len, &outcomes);
    if (left_bytes == 0) {
        defer outcomes.deinit();
        return finish(connection, list, removes, outcomes.items);
    }
    const copy = try heap.copy(body);
    errdefer heap.freeSlice(copy);
    const unfinished = try heap.create(Unfinished);
    unfinished.* = .{ .body = copy, .removes = removes, .left_bytes = left_bytes, .outcomes = outcomes };
    connection.filters = unfinished;
}

/// Goes on with a packet that took its share of an earlier turn.
pub fn goOn(connection: *Connection) void {
    goOnOrFail(connection) catch |problem| refuse(connection, problem);
}

fn goOnOrFail(connection: *Connection) Error!void {
    const unfinished = connection.filters.?;
    const list = try packets.FilterList.parse(connection.version, if (unfinished.removes) .unsubscribe else .subscribe, unfinished.body);
    unfinished.left_bytes = try takeEffect(connection, list, unfinished.removes, unfinished.left_bytes, &unfinished.outcomes);
    if (unfinished.left_bytes != 0) return;
    // Taken out first: the answer may end the connection.
    connection.filters = null;
    defer release(unfinished);
    try finish(connection, list, unfinished.removes, unfinished.outcomes.items);
}

/// The connection is over.
pub fn drop(connection: *Connection) void {
    const unfinished = connection.filters orelse return;
    connection.filters = null;
    release(unfinished);
}

fn release(unfinished: *Unfinished) void {
    heap.freeSlice(unfinished.body);
    unfinished.outcomes.deinit();
    heap.destroy(unfinished);
}

/// Filters become subscriptions, or are removed, while the share of work lasts. Returns how many
/// bytes of the list are left.
fn takeEffect(connection: *Connection, from: packets.FilterList, removes: bool, left_bytes: usize, outcomes: *heap.List(Outcome)) Error!usize {
    const identifier = from.properties.subscription_identifier orelse 0;
    var list = from;
    list.from.at = list.from.bytes.len - left_bytes;
    while (list.from.rest().len != 0) {
        if (removes) {
            try outcomes.append(leave(connection.session.?, (try list.nextFilter()).?));
        } else try outcomes.append(enter(connection, (try list.nextSubscription()).?, identifier));
        if (work.over()) break;
    }
    return list.from.rest().len;
}

fn finish(connection: *Connection, start_of: packets.FilterList, removes: bool, outcomes: []const Outcome) Error!void {
    if (removes) return answer(connection, .unsuback, start_of.packet_identifier, outcomes, connection.version == 5);
    try answer(connection, .suback, start_of.packet_identifier, outcomes, true);
    var list = start_of;
    for (outcomes) |outcome| {
        const entry = (try list.nextSubscription()).?;
        if (!outcome.entered or topics.isShared(entry.filter)) continue;
        const wanted = entry.retain_handling == 0 or (entry.retain_handling == 1 and !outcome.existed); // [MQTT-3.3.1-9] to [MQTT-3.3.1-11]
        if (wanted) try giveRetained(connection.session.?, entry.filter);
    }
}

/// [MQTT-3.10.4-1]
fn leave(session: *Session, filter: []const u8) Outcome {
    const found = subscriptions.get(session, filter) orelse
        return .{ .code = @backingInt(Reason.no_subscription_existed), .entered = false, .existed = false };
    if (found.group != null) routing.leftShared(session);
    subscriptions.remove(found);
    journal.unsubscribed(session, filter);
    return .{ .code = 0, .entered = false, .existed = true };
}

fn refuse(connection: *Connection, problem: Error) void {
    switch (problem) {
        error.Malformed => inbound.broken(connection, error.Malformed),
        error.Protocol => inbound.broken(connection, error.Protocol),
        error.Filter => connection_room.close(connection, .topic_filter_invalid, "the topic filter is malformed"), // [MQTT-4.7.1-1]
        error.Shared => connection_room.close(connection, .shared_subscriptions_not_supported, "shared subscriptions are not supported"),
        error.Wildcard => connection_room.close(connection, .wildcard_subscriptions_not_supported, "wildcards are not supported"),
        error.Identifier => connection_room.close(connection, .subscription_identifiers_not_supported, "subscription identifiers are not supported"),
        error.OutOfMemory => connection_room.abort(connection, .quota_exceeded, "no memory left"),
    }
}

const Error = packets.Error || heap.Error || error{ Filter, Shared, Wildcard, Identifier };

fn giveRetained(session: *Session, filter: []const u8) heap.Error!void {
    if (!topics.hasWildcard(filter) and !retained.has(filter)) return;
    try walks.start(subscriptions.get(session, filter).?);
    delivery.pump(session);
}

/// The whole packet is checked before any of it takes effect.
fn checkAll(start_of: packets.FilterList, version: u8) Error!void {
    var list = start_of;
    while (try list.nextSubscription()) |entry| {
        if (version == 5) try checkFeatures(entry, start_of.properties.subscription_identifier != null);
        if (topics.isShared(entry.filter)) {
            if (topics.parseShared(entry.filter) == null) return error.Filter; // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
            if (entry.no_local and version == 5) return error.Protocol; // [MQTT-3.8.3-4]
        } else if (!topics.validFilter(entry.filter)) return error.Filter;
    }
}

fn checkNames(start_of: packets.FilterList) Error!void {
    var list = start_of;
    while (try list.nextFilter()) |filter| {
        if (topics.isShared(filter)) {
            if (topics.parseShared(filter) == null) return error.Filter;
        } else if (!topics.validFilter(filter)) return error.Filter;
    }
}

/// What CONNACK said is not available is a protocol error with a code of its own (sections
/// 3.2.2.3.11 to 3.2.2.3.13); MQTT 3.1.1 clients were not told and get 0x80 instead.
fn checkFeatures(entry: packets.Subscription, identified: bool) Error!void {
    const settings = &state.settings;
    if (!settings.shared_available and topics.isShared(entry.filter)) return error.Shared;
    if (!settings.wildcard_available and topics.hasWildcard(entry.filter)) return error.Wildcard;
    if (!settings.subscription_identifiers_available and identified) return error.Identifier;
}

fn enter(connection: *Connection, entry: packets.Subscription, identifier: u32) Outcome {
    const reason = judge(connection, entry, identifier);
    if (reason != .success) {
        // What a client is told as 0x80 so that it learns less, the host is told as it is.
        const meant: Reason = if (reason == .unspecified) .not_authorized else reason;
        _ = refusals.report(connection, .subscribe, meant, connection.session.?.who(), entry.filter);
        return refused(connection.version, entry, reason);
    }
    const session = connection.session.?;
    const qos: u2 = @intCast(@min(entry.qos, state.settings.maximum_qos)); // [MQTT-3.8.4-8]
    const added = subscriptions.add(session, entry.filter, .{
        .qos = qos,
        // What the bit of a bridge is for: without the one its messages come back to it, without
        // the other its broker loses what was to be retained. A shared one cannot be No Local.
        .no_local = entry.no_local or (connection.flags.bridge and !topics.isShared(entry.filter)),
        .retain_as_published = entry.retain_as_published or connection.flags.bridge,
        .identifier = identifier,
    }) catch return refused(connection.version, entry, .quota_exceeded);
    journal.subscribed(added.subscription);
    return .{ .code = qos, .entered = true, .existed = added.existed };
}

/// MQTT 3.1.1 has one code for all refusals. MQTT 3.1 has none (section 3.8): the answer is
/// positive, and nothing ever comes.
fn refused(version: u8, entry: packets.Subscription, reason: Reason) Outcome {
    const code: u8 = switch (version) {
        3 => entry.qos,
        4 => 0x80,
        else => @backingInt(reason),
    };
    return .{ .code = code, .entered = false, .existed = false };
}

fn judge(connection: *const Connection, entry: packets.Subscription, identifier: u32) Reason {
    const settings = &state.settings;
    const session = connection.session.?;
    var filter = entry.filter;
    if (topics.isShared(filter)) {
        if (!settings.shared_available) return .shared_subscriptions_not_supported;
        filter = topics.parseShared(filter).?.filter;
    }
    if (!settings.wildcard_available and topics.hasWildcard(filter)) return .wildcard_subscriptions_not_supported;
    if (!settings.subscription_identifiers_available and identifier != 0) return .subscription_identifiers_not_supported;
    if (topics.deeperThan(filter, settings.topic_levels_max)) return .topic_filter_invalid;
    if (!acl.allowed(.subscribe, session.who(), filter)) {
        @import("stats.zig").count(.acl_denied, 1);
        return if (settings.denials_explained) .not_authorized else .unspecified;
    }
    if (session.subscription_count >= settings.subscriptions_max and subscriptions.get(session, entry.filter) == null) return .quota_exceeded;
    return .success;
}

fn answer(connection: *Connection, packet: packets.Type, packet_identifier: u16, outcomes: []const Outcome, with_codes: bool) heap.Error!void {
    const codes: u32 = if (with_codes) @intCast(outcomes.len) else 0;
    const inner = 2 + @as(u32, @intFromBool(connection.version == 5)) + codes;
    const bytes = try heap.slice(u8, inner + 8);
    defer heap.freeSlice(bytes);
    var to: writer.Writer = .{ .bytes = bytes };
    to.byte(@as(u8, @backingInt(packet)) << 4);
    to.variable(inner);
    to.u16_(packet_identifier);
    if (connection.version == 5) to.byte(0);
    if (with_codes) for (outcomes) |outcome| to.byte(outcome.code);
    connection.send(to.written());
}
