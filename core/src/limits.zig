//! Every bound of the core in one place, related by compile-time assertions.
//! What a host may change at run time is in `Settings`; what it may not is a constant.

const std = @import("std");

/// Largest Variable Byte Integer: four bytes (MQTT 5.0, section 1.5.5).
pub const variable_max: u32 = 268_435_455;
/// Largest packet MQTT can express.
pub const packet_bytes_max: u32 = variable_max + 5;
/// Bytes of one connection's plaintext that lie in the arena at the most in one turn are the host's choice.
pub const arena_bytes: u32 = 1024 * 1024;
pub const input_records: u32 = 4096;
pub const output_records: u32 = 8192;
/// Output records of one connection in one turn (one vectored write).
pub const segments_per_connection: u32 = 64;

/// So many receivers of a message are sent it before others get anything of later input; the rest are
/// the crowd.
pub const prompt_receivers: u32 = 32;
/// So many of the crowd are sent something in one turn, and more where more has been given to them: each gets
/// so many messages at a time on average. Some 0.3 ms, in which the host hears nobody.
pub const crowd_outputs: u32 = 128;
pub const crowd_messages_each: u32 = 16;
/// Copying into the kernel costs too: so many bytes count as one more.
pub const crowd_output_bytes: u32 = 4096;

/// A first, small chunk serves request/response traffic; large ones serve streams.
pub const chunk_small_bytes: u32 = 1024;
pub const chunk_large_bytes: u32 = 16 * 1024;

/// So much of QoS 0 may wait for a client however little memory is left, and beyond it no more than this
/// part (one of so many) of what is left.
pub const backlog_least_bytes: u32 = chunk_large_bytes;
pub const backlog_spare_part: u32 = 4;
/// What the host may set `queued_bytes_max` to at the least.
pub const queued_bytes_least: u32 = 4096;

/// Above this many unsent bytes QoS 1 and 2 messages wait in the session, not in the outbox.
pub const outbox_soft_bytes: u32 = 256 * 1024;
/// A client that does not read its acknowledgements is not read from either.
pub const pause_bytes: u32 = 512 * 1024;
pub const resume_bytes: u32 = 128 * 1024;

/// Bytes that may be held for a client while the host verifies its credentials.
pub const parked_bytes_max: u32 = 256 * 1024;
/// The largest packet of a client that was not accepted yet. Every field of a CONNECT but the user
/// properties may be as long as MQTT lets it be; mosquitto 2.1 takes 100,000 bytes.
pub const connect_bytes_max: u32 = 384 * 1024;
/// A larger part of a packet has to leave the last of the memory to others.
pub const partial_small_bytes: u32 = 256;
/// Longer client identifiers are refused with 0x85.
pub const client_identifier_bytes_max: u32 = 4096;
pub const upgrade_bytes_max: u32 = 8 * 1024;
pub const websocket_control_bytes_max: u32 = 125;

/// 2 MiB in Wasm pages of 64 KiB.
pub const growth_pages: u32 = 32;

/// What a turn may cost, in units of some 50 ns (work.zig): 10 ms, so that a turn and the next one,
/// with what goes beyond for those who ask for little, are over within 50 ms.
pub const turn_units: u32 = 200_000;
/// What each connection's input gets in a turn in any case.
pub const connection_units_least: u32 = 4_000;
/// What the input of a connection that was interrupted gets before the next one has its turn, and
/// each kind of work that goes on in the background.
pub const share_units: u32 = turn_units / 4;
/// A publish that costs less is never put off.
pub const publish_units: u32 = 1_000;
/// So many members of a shared subscription are asked who is the readiest.
pub const group_members_looked_at: u32 = 1024;
/// Packets other than PUBLISH are not larger; their size is work that cannot be interrupted.
pub const control_packet_bytes_max: u32 = 1024 * 1024;

pub const connections_max: u32 = 4 * 1024 * 1024;
pub const acl_rules_max: u32 = 100_000;
/// Distinct topics whose subscribers are remembered (direct-mapped).
pub const match_cache_slots: u32 = 8192;
/// Longer lists are matched anew each time.
pub const match_cache_entries_max: u32 = 4096;
/// Messages that are handed on in one turn from sessions that have ended to other members of shared subscriptions.
pub const handovers_max: u32 = 1024;
/// Members of shared subscriptions that are looked at in one turn for what is given or handed on in
/// one go; beyond, so many for each message.
pub const looks_max: u32 = 200_000;
pub const looks_least: u32 = 16;
/// Retained messages that are looked at in one turn for new subscriptions, and for one client before the next.
pub const walk_steps_max: u32 = 512;
pub const walk_share_steps: u32 = 128;
/// So many wait for the client beside those that it has not acknowledged; half of them before more are taken.
pub const walk_ahead_messages: u32 = 16;
/// Bytes of the journal region that are kept between batches.
pub const journal_keep_bytes: u32 = 1024 * 1024;
pub const snapshot_piece_bytes: u32 = 1024 * 1024;
pub const events_keep_bytes: u32 = 64 * 1024;
/// Refused publishes and subscriptions that the host is told of within the window: of all
/// connections together, and of one of them.
pub const refusal_window_ms: u32 = 1_000;
pub const refusals_max: u8 = 64;
pub const refusals_of_connection_max: u8 = 8;
/// Of a topic, a client identifier and a user name.
pub const refusal_text_bytes: u32 = 256;
pub const panic_bytes: u32 = 256;
/// How long a peer may block the last bytes before a CLOSE.
pub const closing_ms: u32 = 5_000;

comptime {
    std.debug.assert(resume_bytes < pause_bytes);
    std.debug.assert(chunk_small_bytes < chunk_large_bytes);
    std.debug.assert(chunk_large_bytes < outbox_soft_bytes);
    std.debug.assert(segments_per_connection < output_records);
    std.debug.assert(connection_units_least < share_units and publish_units < share_units);
    std.debug.assert(std.math.isPowerOfTwo(match_cache_slots));
    std.debug.assert(walk_share_steps <= walk_steps_max);
}

/// What the host may set with the SETTINGS command; keys and defaults are part of the ABI.
pub const Settings = struct {
    maximum_packet_bytes: u32 = 2 * 1024 * 1024,
    receive_maximum: u16 = 65_535,
    topic_alias_maximum: u16 = 32,
    keep_alive_max_s: u16 = 0,
    session_expiry_max_s: u32 = 0xFFFF_FFFF,
    queued_bytes_max: u32 = 16 * 1024 * 1024,
    queued_messages_max: u32 = 100_000,
    inflight_max: u16 = 1024,
    subscriptions_max: u32 = 10_000,
    topic_levels_max: u16 = 128,
    memory_budget_bytes: u64 = 1024 * 1024 * 1024,
    retained_messages_max: u32 = 1_000_000,
    sys_interval_ms: u32 = 10_000,
    connect_timeout_ms: u32 = 10_000,
    maximum_qos: u8 = 2,
    retain_available: bool = true,
    wildcard_available: bool = true,
    subscription_identifiers_available: bool = true,
    shared_available: bool = true,
    topic_alias_out_maximum: u16 = 16,
    persist_sessions: bool = true,
    will_delay_max_s: u32 = 0xFFFF_FFFF,
    denials_explained: bool = true,

    /// Maximum Packet Size as CONNACK says it; null: it says none, which means no limit but MQTT's own.
    /// Clients take the property up to the largest Variable Byte Integer (paho-mqtt drops the
    /// connection above), so that the few values between it and the largest packet are not told.
    pub fn packetBytesTold(self: *const Settings) ?u32 {
        return if (self.maximum_packet_bytes <= variable_max) self.maximum_packet_bytes else null;
    }

    /// Sets one value by its ABI key (1 for the first field); false: unknown key or out of range.
    pub fn set(self: *Settings, key: u16, value: u64) bool {
        inline for (@typeInfo(Settings).@"struct".field_names, 1..) |name, number| {
            if (key == number) return assign(&@field(self, name), value, lowest(name), highest(name));
        }
        return false;
    }

    fn lowest(comptime name: []const u8) u64 {
        if (std.mem.eql(u8, name, "maximum_packet_bytes")) return 64;
        if (std.mem.eql(u8, name, "receive_maximum")) return 1;
        if (std.mem.eql(u8, name, "inflight_max")) return 1;
        if (std.mem.eql(u8, name, "topic_levels_max")) return 1;
        if (std.mem.eql(u8, name, "memory_budget_bytes")) return 8 * 1024 * 1024;
        if (std.mem.eql(u8, name, "queued_bytes_max")) return queued_bytes_least;
        return 0;
    }

    fn highest(comptime name: []const u8) u64 {
        if (std.mem.eql(u8, name, "maximum_packet_bytes")) return packet_bytes_max;
        if (std.mem.eql(u8, name, "maximum_qos")) return 2;
        if (std.mem.eql(u8, name, "topic_levels_max")) return 1024; // matching is as deep
        if (std.mem.eql(u8, name, "memory_budget_bytes")) return 4 * 1024 * 1024 * 1024 - 64 * 1024 * 1024;
        return std.math.maxInt(u64);
    }

    fn assign(target: anytype, value: u64, low: u64, high: u64) bool {
        if (value < low or value > high) return false;
        const T = @TypeOf(target.*);
        if (T == bool) {
            if (value > 1) return false;
            target.* = value == 1;
        } else {
            target.* = std.math.cast(T, value) orelse return false;
        }
        return true;
    }
};
