//! Reason codes (MQTT 5.0, section 2.4) and their MQTT 3.1.1 counterparts.

pub const Reason = enum(u8) {
    success = 0x00,
    granted_qos1 = 0x01,
    granted_qos2 = 0x02,
    disconnect_with_will = 0x04,
    no_matching_subscribers = 0x10,
    no_subscription_existed = 0x11,
    continue_authentication = 0x18,
    reauthenticate = 0x19,
    unspecified = 0x80,
    malformed_packet = 0x81,
    protocol_error = 0x82,
    implementation_specific = 0x83,
    unsupported_protocol_version = 0x84,
    client_identifier_not_valid = 0x85,
    bad_user_name_or_password = 0x86,
    not_authorized = 0x87,
    server_unavailable = 0x88,
    server_busy = 0x89,
    banned = 0x8A,
    server_shutting_down = 0x8B,
    bad_authentication_method = 0x8C,
    keep_alive_timeout = 0x8D,
    session_taken_over = 0x8E,
    topic_filter_invalid = 0x8F,
    topic_name_invalid = 0x90,
    packet_identifier_in_use = 0x91,
    packet_identifier_not_found = 0x92,
    receive_maximum_exceeded = 0x93,
    topic_alias_invalid = 0x94,
    packet_too_large = 0x95,
    message_rate_too_high = 0x96,
    quota_exceeded = 0x97,
    administrative_action = 0x98,
    payload_format_invalid = 0x99,
    retain_not_supported = 0x9A,
    qos_not_supported = 0x9B,
    use_another_server = 0x9C,
    server_moved = 0x9D,
    shared_subscriptions_not_supported = 0x9E,
    connection_rate_exceeded = 0x9F,
    maximum_connect_time = 0xA0,
    subscription_identifiers_not_supported = 0xA1,
    wildcard_subscriptions_not_supported = 0xA2,
    _,

    /// Whether CONNACK may carry it (MQTT 5.0, table 3-1).
    pub fn inConnack(self: Reason) bool {
        return switch (@backingInt(self)) {
            0x80...0x8A, 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A...0x9D, 0x9F => true,
            else => false,
        };
    }

    /// Whether a server's DISCONNECT may carry it (table 3-10).
    pub fn inDisconnect(self: Reason) bool {
        return switch (@backingInt(self)) {
            0x00, 0x80...0x83, 0x87, 0x89, 0x8B, 0x8D...0x8F, 0x90, 0x93...0xA2 => true,
            else => false,
        };
    }

    /// The client did what the protocol forbids, as opposed to what policy or load forbid.
    pub fn blamesProtocol(self: Reason) bool {
        return switch (self) {
            .malformed_packet, .protocol_error, .topic_filter_invalid, .topic_name_invalid => true,
            .receive_maximum_exceeded, .topic_alias_invalid, .packet_too_large, .payload_format_invalid => true,
            .retain_not_supported, .qos_not_supported => true,
            .shared_subscriptions_not_supported, .subscription_identifiers_not_supported, .wildcard_subscriptions_not_supported => true,
            else => false,
        };
    }

    /// The CONNACK return code of MQTT 3.1.1, table 3.1, and of 3.1; null: there is none, and the
    /// connection is closed without a CONNACK (3.1.1 [MQTT-3.2.2-6]).
    pub fn connackCode4(self: Reason) ?u8 {
        return switch (self) {
            .success => 0,
            .unsupported_protocol_version => 1,
            .client_identifier_not_valid => 2,
            .server_unavailable, .server_busy, .server_shutting_down, .quota_exceeded => 3,
            .connection_rate_exceeded, .use_another_server, .server_moved => 3,
            .bad_user_name_or_password => 4,
            .not_authorized, .banned, .bad_authentication_method => 5,
            else => null,
        };
    }
};
