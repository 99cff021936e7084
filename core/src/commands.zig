//! Commands of the host (docs/spec/core-abi.md).

const std = @import("std");
const acl = @import("acl.zig");
const connect = @import("connect.zig");
const connection_room = @import("connection.zig");
const events = @import("events.zig");
const Fields = @import("fields.zig").Fields;
const heap = @import("heap.zig");
const journal = @import("journal.zig");
const state = @import("state.zig");
const sys = @import("sys.zig");
const Reason = @import("wire/reason.zig").Reason;

const Error = error{ Malformed, OutOfMemory, NoConnection };

pub fn run(bytes: []const u8) void {
    if (bytes.len == 0) return events.commandFailed(0, "the command is empty");
    var fields: Fields = .{ .bytes = bytes[1..] };
    runOrFail(bytes[0], &fields) catch |problem| {
        return events.commandFailed(bytes[0], switch (problem) {
            error.Malformed => "the command is malformed or has a value out of range",
            error.OutOfMemory => "no memory left for the command",
            error.NoConnection => "there is no such connection",
        });
    };
}

fn runOrFail(kind: u8, fields: *Fields) Error!void {
    switch (kind) {
        1 => try changeSettings(fields),
        2 => try acl.load(fields.rest()),
        3 => try authResult(fields),
        4 => {
            const id = try fields.number(u32);
            const reason: Reason = @fromBackingInt(@intCast(try fields.number(u8)));
            try fields.end();
            const connection = connection_room.get(id) orelse return error.NoConnection;
            connection_room.close(connection, reason, "closed by the operator");
        },
        5 => {
            try fields.end();
            state.draining = true;
            endAll(.server_shutting_down, "the server is shutting down");
        },
        6 => try replace(&state.response_prefix, fields),
        7 => try replace(&state.version_text, fields),
        8 => {
            try fields.end();
            endAll(.administrative_action, "the configuration is changing");
        },
        9 => try replace(&state.web_origins, fields),
        10 => try replace(&state.web_hosts, fields),
        else => return error.Malformed,
    }
}

/// All or nothing: a bad value leaves every setting as it was.
fn changeSettings(fields: *Fields) Error!void {
    var changed = state.settings;
    while (!fields.done()) {
        const key = try fields.number(u16);
        const value = try fields.number(u64);
        if (!changed.set(key, value)) return error.Malformed;
    }
    const interval = state.settings.sys_interval_ms;
    state.settings = changed;
    heap.budget_bytes = changed.memory_budget_bytes;
    if (!journal.begun) journal.enabled = changed.persist_sessions;
    if (interval != changed.sys_interval_ms) sys.schedule();
}

fn authResult(fields: *Fields) Error!void {
    const id = try fields.number(u32);
    const ticket = try fields.number(u32);
    const verdict: connect.Verdict = .{
        .outcome = try fields.number(u8),
        .reason = @fromBackingInt(@intCast(try fields.number(u8))),
        .user = try fields.string(u16),
        .data = try fields.string(u16),
        .text = try fields.string(u16),
    };
    if (verdict.outcome > 2) return error.Malformed;
    try fields.end();
    const connection = connection_room.get(id) orelse return; // it left meanwhile
    connect.answered(connection, ticket, verdict);
}

fn replace(target: *[]u8, fields: *Fields) Error!void {
    const text = try fields.string(u16);
    try fields.end();
    const copy = try heap.copy(text);
    heap.freeSlice(target.*);
    target.* = copy;
}

fn endAll(reason: Reason, text: []const u8) void {
    for (connection_room.all()) |slot| {
        const connection = slot orelse continue;
        connection_room.close(connection, reason, text);
    }
}
