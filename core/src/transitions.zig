//! Every transition of connections, sessions and QoS exchanges, as data (MQTT 5.0, sections 3.1.2.4,
//! 4.3, 4.4, 4.13). The code looks its next step up here; the documentation is generated from here.

const Type = @import("wire/packets.zig").Type;

/// Where a network connection stands.
pub const Phase = enum {
    /// WebSocket: the HTTP upgrade is not complete.
    upgrading,
    /// Nothing but CONNECT is expected.
    connecting,
    /// The host verifies credentials; bytes are parked.
    verifying,
    /// Enhanced authentication waits for the client's AUTH.
    authenticating,
    /// CONNACK with success was sent.
    active,
    /// The last bytes are on their way; input is ignored.
    closing,
};

pub const PhaseRow = struct { phase: Phase, packet: Type };

/// The packets that a phase accepts; every other one is a protocol error.
pub const accepted = [_]PhaseRow{
    .{ .phase = .connecting, .packet = .connect }, // [MQTT-3.1.0-1]
    .{ .phase = .authenticating, .packet = .auth }, // [MQTT-3.1.2-30]
    .{ .phase = .authenticating, .packet = .disconnect },
    .{ .phase = .active, .packet = .publish },
    .{ .phase = .active, .packet = .puback },
    .{ .phase = .active, .packet = .pubrec },
    .{ .phase = .active, .packet = .pubrel },
    .{ .phase = .active, .packet = .pubcomp },
    .{ .phase = .active, .packet = .subscribe },
    .{ .phase = .active, .packet = .unsubscribe },
    .{ .phase = .active, .packet = .pingreq },
    .{ .phase = .active, .packet = .disconnect },
    .{ .phase = .active, .packet = .auth },
};

const accept_table = blk: {
    var table: [@typeInfo(Phase).@"enum".field_names.len][16]bool = @splat(@splat(false));
    for (accepted) |row| table[@backingInt(row.phase)][@backingInt(row.packet)] = true;
    break :blk table;
};

pub fn accepts(phase: Phase, packet: Type) bool {
    return accept_table[@backingInt(phase)][@backingInt(packet)];
}

/// Where a packet identifier that the broker uses towards a client stands.
pub const Outbound = enum { free, wait_puback, wait_pubrec, wait_pubcomp };
pub const OutboundEvent = enum { send_qos1, send_qos2, puback, pubrec, pubrec_error, pubcomp, resume_session };
pub const OutboundEffect = enum {
    none,
    /// The exchange is over: the identifier is free, the message is forgotten.
    complete,
    /// Keep the identifier, forget the message, answer PUBREL.
    release,
    /// Answer PUBREL with 0x92 (MQTT 5.0, section 4.13.2).
    release_unknown,
    resend_publish,
    resend_release,
    protocol_error,
};
pub const OutboundRow = struct { state: Outbound, event: OutboundEvent, next: Outbound, effect: OutboundEffect };

pub const outbound = [_]OutboundRow{
    .{ .state = .free, .event = .send_qos1, .next = .wait_puback, .effect = .none }, // [MQTT-4.3.2-1]
    .{ .state = .free, .event = .send_qos2, .next = .wait_pubrec, .effect = .none }, // [MQTT-4.3.3-1]
    .{ .state = .free, .event = .puback, .next = .free, .effect = .none },
    .{ .state = .free, .event = .pubrec, .next = .free, .effect = .release_unknown },
    .{ .state = .free, .event = .pubrec_error, .next = .free, .effect = .none },
    .{ .state = .free, .event = .pubcomp, .next = .free, .effect = .none },
    .{ .state = .wait_puback, .event = .puback, .next = .free, .effect = .complete },
    .{ .state = .wait_puback, .event = .resume_session, .next = .wait_puback, .effect = .resend_publish }, // [MQTT-4.4.0-1]
    .{ .state = .wait_pubrec, .event = .pubrec, .next = .wait_pubcomp, .effect = .release }, // [MQTT-4.3.3-4]
    .{ .state = .wait_pubrec, .event = .pubrec_error, .next = .free, .effect = .complete },
    .{ .state = .wait_pubrec, .event = .resume_session, .next = .wait_pubrec, .effect = .resend_publish },
    .{ .state = .wait_pubcomp, .event = .pubrec, .next = .wait_pubcomp, .effect = .release },
    .{ .state = .wait_pubcomp, .event = .pubrec_error, .next = .free, .effect = .complete },
    .{ .state = .wait_pubcomp, .event = .pubcomp, .next = .free, .effect = .complete },
    .{ .state = .wait_pubcomp, .event = .resume_session, .next = .wait_pubcomp, .effect = .resend_release }, // [MQTT-4.4.0-1]
};

pub const OutboundStep = struct { next: Outbound, effect: OutboundEffect };

const outbound_table = blk: {
    var table: [4][7]OutboundStep = @splat(@splat(.{ .next = .free, .effect = .protocol_error }));
    for (outbound) |row| table[@backingInt(row.state)][@backingInt(row.event)] = .{ .next = row.next, .effect = row.effect };
    break :blk table;
};

/// Pairs that the table does not name are protocol errors.
pub fn outboundStep(state: Outbound, event: OutboundEvent) OutboundStep {
    return outbound_table[@backingInt(state)][@backingInt(event)];
}

/// Where a packet identifier that a client uses for QoS 2 towards the broker stands.
pub const Inbound = enum { unknown, received };
pub const InboundEvent = enum { publish, pubrel };
pub const InboundEffect = enum {
    /// Route the message, remember the identifier, answer PUBREC [MQTT-4.3.3-8].
    accept,
    /// Answer PUBREC only [MQTT-4.3.3-10].
    repeat,
    /// Forget the identifier, answer PUBCOMP [MQTT-4.3.3-11].
    complete,
    /// Answer PUBCOMP with 0x92.
    complete_unknown,
};
pub const InboundRow = struct { state: Inbound, event: InboundEvent, next: Inbound, effect: InboundEffect };

pub const inbound = [_]InboundRow{
    .{ .state = .unknown, .event = .publish, .next = .received, .effect = .accept },
    .{ .state = .received, .event = .publish, .next = .received, .effect = .repeat },
    .{ .state = .received, .event = .pubrel, .next = .unknown, .effect = .complete },
    .{ .state = .unknown, .event = .pubrel, .next = .unknown, .effect = .complete_unknown },
};

pub fn inboundEffect(state: Inbound, event: InboundEvent) InboundEffect {
    inline for (inbound) |row| {
        if (row.state == state and row.event == event) return row.effect;
    }
    unreachable;
}

/// The life of a session (sections 3.1.2.4, 3.1.2.11.2, 4.1).
pub const Life = enum { none, connected, waiting };
pub const LifeEvent = enum { connect_clean, connect_resume, closed_expiring, closed_ending, expired };
pub const LifeEffect = enum {
    /// New state, Session Present 0.
    create,
    /// End the old one first, then create.
    replace,
    /// Keep the state, Session Present 1.
    adopt,
    /// Keep the state until it expires.
    keep,
    /// Forget all [MQTT-4.1.0-2]; a will that still waits is published.
    end,
};
pub const LifeRow = struct { state: Life, event: LifeEvent, next: Life, effect: LifeEffect };

pub const life = [_]LifeRow{
    .{ .state = .none, .event = .connect_clean, .next = .connected, .effect = .create },
    .{ .state = .none, .event = .connect_resume, .next = .connected, .effect = .create }, // [MQTT-3.1.2-6]
    .{ .state = .waiting, .event = .connect_clean, .next = .connected, .effect = .replace }, // [MQTT-3.1.2-4]
    .{ .state = .waiting, .event = .connect_resume, .next = .connected, .effect = .adopt }, // [MQTT-3.1.2-5]
    .{ .state = .connected, .event = .closed_expiring, .next = .waiting, .effect = .keep }, // [MQTT-3.1.2-23]
    .{ .state = .connected, .event = .closed_ending, .next = .none, .effect = .end },
    .{ .state = .waiting, .event = .expired, .next = .none, .effect = .end },
};

pub fn lifeEffect(state: Life, event: LifeEvent) LifeEffect {
    inline for (life) |row| {
        if (row.state == state and row.event == event) return row.effect;
    }
    unreachable;
}
