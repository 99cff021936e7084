//! `$SYS` topics, named as mosquitto names them.

const std = @import("std");
const heap = @import("heap.zig");
const message_room = @import("message.zig");
const routing = @import("routing.zig");
const state = @import("state.zig");
const stats = @import("stats.zig");
const timers = @import("timers.zig");
const Counter = stats.Counter;

/// Where bridges say whether they are connected: `$SYS/broker/connection/NAME/state`. mosquitto's do
/// so by default, and dashboards look there.
const bridges = "$SYS/broker/connection/";

/// Topics below `$SYS` that belong to clients.
pub fn ofBridges(topic: []const u8) bool {
    return topic.len > bridges.len and std.mem.startsWith(u8, topic, bridges);
}

/// Topics that only the broker publishes to (MQTT 5.0, section 4.7.2): a value that a client could
/// write would be taken for the broker's. They are made anew at each start.
pub fn reserved(topic: []const u8) bool {
    if (topic.len == 0 or topic[0] != '$') return false; // every message comes this way
    const system = std.mem.startsWith(u8, topic, "$SYS/") or std.mem.eql(u8, topic, "$SYS");
    return system and !ofBridges(topic);
}

var timer: timers.Timer = .{ .kind = .sys };

const Row = struct { topic: []const u8, counter: Counter };

const rows = [_]Row{
    .{ .topic = "clients/total", .counter = .sessions },
    .{ .topic = "clients/maximum", .counter = .clients_maximum },
    .{ .topic = "clients/connected", .counter = .clients_connected },
    .{ .topic = "clients/active", .counter = .clients_connected },
    .{ .topic = "clients/expired", .counter = .sessions_expired },
    .{ .topic = "messages/received", .counter = .messages_received },
    .{ .topic = "messages/sent", .counter = .messages_sent },
    .{ .topic = "messages/stored", .counter = .stored_messages },
    .{ .topic = "publish/messages/received", .counter = .publish_received },
    .{ .topic = "publish/messages/sent", .counter = .publish_sent },
    .{ .topic = "publish/messages/dropped", .counter = .publish_dropped },
    .{ .topic = "publish/bytes/received", .counter = .publish_bytes_received },
    .{ .topic = "publish/bytes/sent", .counter = .publish_bytes_sent },
    .{ .topic = "bytes/received", .counter = .bytes_received },
    .{ .topic = "bytes/sent", .counter = .bytes_sent },
    .{ .topic = "retained messages/count", .counter = .retained },
    .{ .topic = "subscriptions/count", .counter = .subscriptions },
    .{ .topic = "shared_subscriptions/count", .counter = .shared_subscriptions },
    .{ .topic = "store/messages/count", .counter = .stored_messages },
    .{ .topic = "store/messages/bytes", .counter = .stored_bytes },
    .{ .topic = "heap/current", .counter = .heap_bytes },
    .{ .topic = "heap/maximum", .counter = .heap_bytes_maximum },
};

const Load = struct { topic: []const u8, counter: Counter, last: u64 = 0, average: [3]f64 = @splat(0) };

var loads = [_]Load{
    .{ .topic = "load/messages/received", .counter = .messages_received },
    .{ .topic = "load/messages/sent", .counter = .messages_sent },
    .{ .topic = "load/publish/received", .counter = .publish_received },
    .{ .topic = "load/publish/sent", .counter = .publish_sent },
    .{ .topic = "load/publish/dropped", .counter = .publish_dropped },
    .{ .topic = "load/bytes/received", .counter = .bytes_received },
    .{ .topic = "load/bytes/sent", .counter = .bytes_sent },
    .{ .topic = "load/connections", .counter = .connects_accepted },
};
const spans = [3]struct { name: []const u8, minutes: f64 }{ .{ .name = "1min", .minutes = 1 }, .{ .name = "5min", .minutes = 5 }, .{ .name = "15min", .minutes = 15 } };

var published: [rows.len]u64 = @splat(std.math.maxInt(u64));
var published_load: [loads.len][3]u64 = @splat(@splat(std.math.maxInt(u64)));
var last_ms: u64 = 0;

/// Starts, or follows a changed interval; the first values come at once.
pub fn schedule() void {
    timers.cancel(&timer);
    if (state.settings.sys_interval_ms == 0) return;
    timers.set(&timer, state.now_ms) catch return;
}

pub fn fired() void {
    if (state.settings.sys_interval_ms == 0) return;
    timers.set(&timer, state.now_ms + state.settings.sys_interval_ms) catch return;
    stats.put(.heap_bytes, heap.used_bytes);
    stats.put(.heap_bytes_maximum, heap.used_bytes_maximum);
    text("version", if (state.version_text.len != 0) state.version_text else "avow");
    var buffer: [64]u8 = undefined;
    text("uptime", std.fmt.bufPrint(&buffer, "{d} seconds", .{(state.now_ms - state.started_ms) / 1000}) catch unreachable);
    for (rows, 0..) |row, index| {
        const value = stats.get(row.counter);
        if (value == published[index]) continue;
        published[index] = value;
        text(row.topic, std.fmt.bufPrint(&buffer, "{d}", .{value}) catch unreachable);
    }
    disconnectedClients(&buffer);
    averages(&buffer);
}

fn disconnectedClients(buffer: []u8) void {
    const value = stats.get(.sessions) - stats.get(.clients_connected);
    const shown = std.fmt.bufPrint(buffer, "{d}", .{value}) catch unreachable;
    text("clients/disconnected", shown);
    text("clients/inactive", shown);
}

/// Moving averages, a minute's amount, with two decimals as mosquitto prints them.
fn averages(buffer: []u8) void {
    const seconds = @as(f64, @floatFromInt(@max(state.now_ms - last_ms, 1))) / 1000;
    const initial = last_ms == 0;
    last_ms = state.now_ms;
    for (&loads, 0..) |*load, index| {
        const value = stats.get(load.counter);
        const rate = @as(f64, @floatFromInt(value -% load.last)) / seconds * 60;
        load.last = value;
        if (initial) continue;
        for (spans, 0..) |span, which| {
            const weight = @exp(-seconds / (span.minutes * 60));
            load.average[which] = rate + weight * (load.average[which] - rate);
            const hundredths: u64 = @intFromFloat(@min(load.average[which] * 100 + 0.5, 1e18));
            if (hundredths == published_load[index][which]) continue;
            published_load[index][which] = hundredths;
            var topic: [64]u8 = undefined;
            const name = std.fmt.bufPrint(&topic, "{s}/{s}", .{ load.topic, span.name }) catch unreachable;
            text(name, std.fmt.bufPrint(buffer, "{d}.{d:0>2}", .{ hundredths / 100, hundredths % 100 }) catch unreachable);
        }
    }
}

fn text(topic: []const u8, value: []const u8) void {
    if (value.len == 0) return;
    var full: [96]u8 = undefined;
    var view: message_room.View = .{
        .topic = std.fmt.bufPrint(&full, "$SYS/broker/{s}", .{topic}) catch unreachable,
        .properties = "",
        .payload = value,
        .qos = 2,
        .retain = true,
        .expires_at_ms = message_room.never,
    };
    _ = routing.publish(.{}, &view) catch stats.count(.publish_dropped, 1);
}
