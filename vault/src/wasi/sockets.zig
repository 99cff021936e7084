//! The functions `sock_…`, for connections and listeners that were granted.

const wasi = @import("wasi.zig");
const errno = @import("errno.zig");
const hosted = @import("host.zig");
const rights = @import("rights.zig");
const files = @import("files.zig");
const Error = errno.Error;
const Memory = @import("memory.zig").Memory;
const Wasi = wasi.Wasi;
const Descriptor = wasi.Descriptor;

const RECV_PEEK: u32 = 1;
const RECV_WAITALL: u32 = 2;
const SHUT_RD: u32 = 1;
const SHUT_WR: u32 = 2;

fn socket(self: *Wasi, fd: u32) Error!*Descriptor {
    const descriptor = try self.find(fd);
    return switch (descriptor.kind) {
        .socket => descriptor,
        .listener => error.NOTCONN,
        else => error.NOTSOCK,
    };
}

pub fn sock_accept(self: *Wasi, memory: Memory, fd: u32, flags: u32, result_fd: u32) Error!void {
    // A program that counts on a listener finds something else in its place, or nothing.
    if (!self.listens) self.denied(&.{"listen:ADDRESS:PORT"});
    const listener = try self.find(fd);
    if (listener.kind == .socket) return error.INVAL;
    if (listener.kind != .listener) return error.NOTSOCK;
    if (listener.base & rights.SOCK_ACCEPT == 0) return error.NOTCAPABLE;
    if (flags & ~@as(u32, wasi.NONBLOCK) != 0) return error.INVAL;
    try memory.check(result_fd, 4);
    try self.room();
    var tries: usize = 0;
    const host_fd = while (true) : (tries += 1) {
        try self.await(listener, hosted.READ);
        const result = self.host.accept(self.host.context, listener.host_fd);
        break errno.checked(result, @import("std").math.maxInt(i32)) catch |err| {
            // A client that was gone before it was accepted is no error of the program.
            const again = err == error.AGAIN and listener.flags & wasi.NONBLOCK == 0;
            if (tries < 1000 and (again or err == error.INTR or err == error.CONNABORTED)) {
                try self.giveWay();
                continue;
            }
            return err;
        };
    };
    const number = try self.install(.{
        .kind = .socket,
        .filetype = .SOCKET_STREAM,
        .flags = @intCast(flags),
        .owned = true,
        .base = listener.inheriting & rights.SOCKET,
        .host_fd = @intCast(host_fd),
    });
    try memory.put(u32, result_fd, number);
}

pub fn sock_recv(
    self: *Wasi,
    memory: Memory,
    fd: u32,
    ri_data: u32,
    ri_data_len: u32,
    ri_flags: u32,
    ro_datalen: u32,
    ro_flags: u32,
) Error!void {
    const descriptor = try socket(self, fd);
    if (ri_flags & ~(RECV_PEEK | RECV_WAITALL) != 0) return error.INVAL;
    try memory.check(ro_datalen, 4);
    try memory.check(ro_flags, 2);
    var vectors = try memory.vectors(ri_data, ri_data_len);
    const flags = if (ri_flags & RECV_PEEK != 0) hosted.RECEIVE_PEEK else 0;
    const count = if (ri_flags == RECV_WAITALL)
        try receiveAll(self, descriptor, &vectors)
    else
        try files.receive(self, descriptor, &vectors, flags);
    try memory.put(u32, ro_datalen, @intCast(count));
    // A stream truncates nothing.
    try memory.put(u16, ro_flags, 0);
}

/// All buffers full, unless the stream ends or breaks before.
fn receiveAll(self: *Wasi, descriptor: *Descriptor, vectors: *@import("memory.zig").Vectors) Error!u64 {
    var done: u64 = 0;
    while (try vectors.next()) |into| {
        var filled: usize = 0;
        while (filled < into.len) {
            const count = receiveSome(self, descriptor, into[filled..]) catch |err| {
                if (err == error.Stopped or done == 0) return err;
                return done;
            };
            if (count == 0) return done;
            filled += count;
            done += count;
        }
    }
    return done;
}

fn receiveSome(self: *Wasi, descriptor: *Descriptor, into: []u8) Error!usize {
    if (descriptor.base & rights.FD_READ == 0) return error.NOTCAPABLE;
    var tries: usize = 0;
    while (true) : (tries += 1) {
        try self.await(descriptor, hosted.READ);
        const result = self.host.receive(self.host.context, descriptor.host_fd, into.ptr, into.len, 0);
        return @intCast(errno.checked(result, into.len) catch |err| {
            if (tries == 1000 or (err != error.AGAIN and err != error.INTR)) return err;
            try self.giveWay();
            continue;
        });
    }
}

pub fn sock_send(self: *Wasi, memory: Memory, fd: u32, si_data: u32, si_data_len: u32, si_flags: u32, so_datalen: u32) Error!void {
    const descriptor = try socket(self, fd);
    if (si_flags != 0) return error.INVAL;
    try memory.check(so_datalen, 4);
    var vectors = try memory.vectors(si_data, si_data_len);
    try memory.put(u32, so_datalen, @intCast(try files.send(self, descriptor, &vectors)));
}

pub fn sock_shutdown(self: *Wasi, _: Memory, fd: u32, how: u32) Error!void {
    const descriptor = try socket(self, fd);
    if (descriptor.base & rights.SOCK_SHUTDOWN == 0) return error.NOTCAPABLE;
    if (how == 0 or how & ~(SHUT_RD | SHUT_WR) != 0) return error.INVAL;
    // Linux: SHUT_RD 0, SHUT_WR 1, SHUT_RDWR 2.
    _ = try errno.checked(self.host.shutdown(self.host.context, descriptor.host_fd, @intCast(how - 1)), 0);
}
