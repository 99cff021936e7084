//! One connection: a socket, perhaps a TLS session, and what is known about both.

const sys = @import("sys.zig");
const tls = @import("tls.zig");

pub const State = enum(u8) {
    /// The number is free.
    free,
    /// Known to the core, both directions work unless a flag says otherwise.
    open,
    /// The core is done with it; ciphertext waits for room in the socket.
    closing,
    /// All is sent and our direction is shut; what the peer still sends is read and dropped, because
    /// closing a socket with unread bytes makes the kernel destroy what the peer has not read yet.
    lingering,
    /// The socket is gone, the core does not know yet.
    closed,
};

/// The flags of a CLOSED input.
pub const Reason = enum(u16) { peer = 0, failure = 1, deadline = 2, confirmed = 3 };

pub const Connection = struct {
    fd: sys.Fd = -1,
    /// Told to epoll with the number, so that an event for an earlier user of the number is known.
    generation: u32 = 0,
    session: tls.Session = .{},
    /// Ciphertext that the socket did not take.
    backlog: ?*tls.Backlog = null,
    last_activity_ms: u64 = 0,
    /// When a connection that is being closed is given up; 0 = none.
    deadline_ms: u64 = 0,
    discarded_bytes: u32 = 0,
    state: State = .free,
    closed_reason: Reason = .peer,
    /// The socket may have bytes (or an end) that were not received yet.
    readable: bool = false,
    /// The TLS session may have plaintext that was not received yet.
    tls_pending: bool = false,
    /// Stands in the queue of connections to receive from.
    ready_queued: bool = false,
    writable_queued: bool = false,
    closed_queued: bool = false,
    /// CLOSED was given to a step.
    closed_delivered: bool = false,
    paused: bool = false,
    /// The core still has input of before: an end by the peer is told after RESUME.
    held: bool = false,
    /// Such an end waits.
    closed_held: bool = false,
    /// The core was told BLOCKED and gets one WRITABLE.
    blocked: bool = false,
    /// The kernel reported an end or an error: read on until it shows.
    hung_up: bool = false,
    peer_ended: bool = false,
    /// Its memory BIOs have carried much and hold on to that memory (`noted`: and that is known).
    stretched: enum(u8) { no, yes, noted } = .no,

    pub fn isTls(self: *const Connection) bool {
        return self.session.ssl != null;
    }
};
