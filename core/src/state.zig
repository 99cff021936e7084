//! What the whole core shares: settings, the clock, entropy.

const std = @import("std");
const limits = @import("limits.zig");

pub var settings: limits.Settings = .{};
/// Unix milliseconds, as the host last said; never backwards.
pub var now_ms: u64 = 0;
pub var started_ms: u64 = 0;
pub var draining = false;
pub var drained_reported = false;
pub var delivery_serial: u64 = 0;
pub var ticket: u32 = 0;
pub var random: std.Random.DefaultCsprng = undefined;
/// Heap-owned texts that the host gave.
pub var response_prefix: []u8 = &.{};
pub var version_text: []u8 = &.{};
/// Origins of web pages that may connect, with a line feed between them.
pub var web_origins: []u8 = &.{};
pub var web_hosts: []u8 = &.{};

/// Where a message's common encodings lie while it is routed (MQTT 3.1.1, MQTT 5).
pub var shared_packet: [2][16 * 1024]u8 = undefined;

/// Topic and forwarded properties of the packet that is being handled, where they had to be copied.
pub var scratch: @import("heap.zig").List(u8) = .{};
