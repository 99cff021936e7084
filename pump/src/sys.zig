//! The few Linux calls that the pump makes, as raw system calls: the library needs no libc, so the
//! same file serves glibc and musl systems. Every call is non-blocking except `wait`.

const std = @import("std");
const linux = std.os.linux;

pub const Fd = i32;
pub const Vector = std.posix.iovec_const;
pub const Event = linux.epoll_event;

const MSG_DONTWAIT: u32 = 0x40;
const MSG_NOSIGNAL: u32 = 0x4000;
const SHUT_WR: i32 = 1;
const EFD_CLOEXEC: u32 = 0x80000;
const EFD_NONBLOCK: u32 = 0x800;
const SOL_TCP: i32 = 6;
const TCP_NODELAY: u32 = 1;

/// All that the pump ever asks of a socket, edge-triggered and registered once for its whole life:
/// pausing, resuming and waiting for room then cost no system call at all.
const SOCKET_EVENTS: u32 = linux.EPOLL.IN | linux.EPOLL.OUT | linux.EPOLL.RDHUP | linux.EPOLL.ET;

pub const TransferError = error{ WouldBlock, Broken };
pub const WaitError = error{ Interrupted, Unavailable };

fn failed(result: usize) bool {
    return @as(isize, @bitCast(result)) < 0;
}

fn transferred(result: usize) TransferError!usize {
    if (!failed(result)) return result;
    return switch (linux.errno(result)) {
        .AGAIN => error.WouldBlock,
        else => error.Broken,
    };
}

pub fn receive(fd: Fd, into: []u8) TransferError!usize {
    return transferred(linux.recvfrom(fd, into.ptr, into.len, MSG_DONTWAIT, null, null));
}

pub fn send(fd: Fd, bytes: []const u8) TransferError!usize {
    return transferred(linux.sendto(fd, bytes.ptr, bytes.len, MSG_DONTWAIT | MSG_NOSIGNAL, null, 0));
}

pub fn sendVectors(fd: Fd, vectors: []const Vector) TransferError!usize {
    const message: linux.msghdr_const = .{
        .name = null,
        .namelen = 0,
        .iov = vectors.ptr,
        .iovlen = vectors.len,
        .control = null,
        .controllen = 0,
        .flags = 0,
    };
    return transferred(linux.sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
}

/// Says to the peer that nothing more will come. False when the socket is gone already.
pub fn endSending(fd: Fd) bool {
    return !failed(linux.shutdown(fd, SHUT_WR));
}

pub fn close(fd: Fd) void {
    _ = linux.close(fd);
}

/// Without effect on sockets that are not TCP, which is why the result does not matter.
pub fn disableNagle(fd: Fd) void {
    const on: u32 = 1;
    _ = linux.setsockopt(fd, SOL_TCP, TCP_NODELAY, std.mem.asBytes(&on), @sizeOf(u32));
}

pub fn newPoller() error{Unavailable}!Fd {
    const result = linux.epoll_create1(linux.EPOLL.CLOEXEC);
    return if (failed(result)) error.Unavailable else @intCast(result);
}

pub fn newWaker() error{Unavailable}!Fd {
    const result = linux.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return if (failed(result)) error.Unavailable else @intCast(result);
}

/// Async-signal-safe. The counter is never read: an edge is what wakes, and it cannot overflow in
/// the lifetime of a machine.
pub fn wake(fd: Fd) void {
    const one: u64 = 1;
    _ = linux.write(fd, std.mem.asBytes(&one), @sizeOf(u64));
}

pub fn watchSocket(poller: Fd, fd: Fd, tag: u64) error{Unavailable}!void {
    return watch(poller, fd, SOCKET_EVENTS, tag);
}

pub fn watchWaker(poller: Fd, fd: Fd, tag: u64) error{Unavailable}!void {
    return watch(poller, fd, linux.EPOLL.IN | linux.EPOLL.ET, tag);
}

fn watch(poller: Fd, fd: Fd, events: u32, tag: u64) error{Unavailable}!void {
    var event: Event = .{ .events = events, .data = .{ .u64 = tag } };
    if (failed(linux.epoll_ctl(poller, linux.EPOLL.CTL_ADD, fd, &event))) return error.Unavailable;
}

pub fn wait(poller: Fd, events: []Event, timeout_ms: i32) WaitError![]Event {
    const result = linux.epoll_wait(poller, events.ptr, @intCast(events.len), timeout_ms);
    if (!failed(result)) return events[0..result];
    return switch (linux.errno(result)) {
        .INTR => error.Interrupted,
        else => error.Unavailable,
    };
}

pub fn isReadable(event: Event) bool {
    return event.events & (linux.EPOLL.IN | linux.EPOLL.RDHUP | linux.EPOLL.HUP | linux.EPOLL.ERR) != 0;
}

pub fn isHungUp(event: Event) bool {
    return event.events & (linux.EPOLL.RDHUP | linux.EPOLL.HUP | linux.EPOLL.ERR) != 0;
}

pub fn isWritable(event: Event) bool {
    return event.events & (linux.EPOLL.OUT | linux.EPOLL.HUP | linux.EPOLL.ERR) != 0;
}

/// A futex lock (0 free, 1 held, 2 held and somebody waits). Held only for a copy in memory.
pub const Lock = struct {
    state: std.atomic.Value(u32) = .init(0),

    pub fn acquire(self: *Lock) void {
        if (self.state.cmpxchgStrong(0, 1, .acquire, .monotonic) == null) return;
        while (self.state.swap(2, .acquire) != 0) {
            _ = linux.futex_4arg(&self.state.raw, .{ .cmd = .WAIT, .private = true }, 2, null);
        }
    }

    pub fn release(self: *Lock) void {
        if (self.state.swap(0, .release) == 2) {
            _ = linux.futex_3arg(&self.state.raw, .{ .cmd = .WAKE, .private = true }, 1);
        }
    }
};
