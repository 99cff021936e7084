//! Counters that the host reads from memory; their order is part of the ABI.

pub const Counter = enum(u8) {
    connections_open,
    clients_connected,
    clients_maximum,
    sessions,
    sessions_expired,
    subscriptions,
    shared_subscriptions,
    retained,
    messages_received,
    messages_sent,
    publish_received,
    publish_sent,
    publish_dropped,
    publish_bytes_received,
    publish_bytes_sent,
    bytes_received,
    bytes_sent,
    connects_accepted,
    connects_refused,
    heap_bytes,
    heap_bytes_maximum,
    stored_messages,
    stored_bytes,
    inflight,
    queued,
    protocol_errors,
    steps,
    journal_bytes,
    connack_sent,
    acl_denied,
};

pub const counter_count = @typeInfo(Counter).@"enum".field_names.len;
pub var values: [counter_count]u64 = @splat(0);

pub fn count(counter: Counter, amount: u64) void {
    values[@backingInt(counter)] +%= amount;
}

pub fn uncount(counter: Counter, amount: u64) void {
    values[@backingInt(counter)] -= amount;
}

pub fn get(counter: Counter) u64 {
    return values[@backingInt(counter)];
}

pub fn put(counter: Counter, value: u64) void {
    values[@backingInt(counter)] = value;
}
