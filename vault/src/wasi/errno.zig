//! The errors of preview 1 (`errno` in typenames.witx), and how those of Linux and of the store become
//! them. An error here has the name of its errno.

const std = @import("std");
const linux = std.os.linux;
const stored = @import("../store/store.zig");

pub const Numbers = std.os.wasi.errno_t;

pub const Error = error{
    @"2BIG",
    ACCES,
    ADDRNOTAVAIL,
    AGAIN,
    BADF,
    BUSY,
    CONNABORTED,
    CONNREFUSED,
    CONNRESET,
    EXIST,
    FAULT,
    FBIG,
    HOSTUNREACH,
    ILSEQ,
    INTR,
    INVAL,
    IO,
    ISDIR,
    LOOP,
    MFILE,
    MLINK,
    NAMETOOLONG,
    NETDOWN,
    NETRESET,
    NETUNREACH,
    NFILE,
    NOBUFS,
    NODEV,
    NOENT,
    NOMEM,
    NOSPC,
    NOTCAPABLE,
    NOTCONN,
    NOTDIR,
    NOTEMPTY,
    NOTSOCK,
    NXIO,
    OPNOTSUPP,
    OVERFLOW,
    PERM,
    PIPE,
    ROFS,
    SPIPE,
    TIMEDOUT,
    XDEV,
    /// Not an errno: the program is to end, by `proc_exit` or because it was interrupted.
    Stopped,
};

pub fn number(err: Error) u16 {
    return switch (err) {
        error.Stopped => unreachable,
        inline else => |known| @backingInt(@field(Numbers, @errorName(known))),
    };
}

const LINUX_COUNT = 134;

const FROM_LINUX: [LINUX_COUNT]Error = table: {
    @setEvalBranchQuota(200_000);
    var all: [LINUX_COUNT]Error = @splat(error.IO);
    for (@typeInfo(linux.E).@"enum".field_names, @typeInfo(linux.E).@"enum".field_values) |name, value| {
        if (value >= LINUX_COUNT) continue;
        for (@typeInfo(Error).error_set.error_names.?) |own| {
            if (std.mem.eql(u8, name, own)) all[value] = @field(Error, own);
        }
    }
    break :table all;
};

/// What the host answered: a value of 0 to `max`, or −errno. Anything else is a host that lies.
pub fn checked(result: i64, max: u64) Error!u64 {
    if (result < 0) {
        const positive = 0 -% result;
        return if (positive > 0 and positive < LINUX_COUNT) FROM_LINUX[@intCast(positive)] else error.IO;
    }
    const value: u64 = @intCast(result);
    return if (value > max) error.IO else value;
}

pub fn fromStore(err: stored.Error) Error {
    return switch (err) {
        error.NotFound => error.NOENT,
        error.Exists => error.EXIST,
        error.NotDirectory => error.NOTDIR,
        error.IsDirectory => error.ISDIR,
        error.NotEmpty => error.NOTEMPTY,
        error.NameInvalid => error.ILSEQ,
        error.TooLarge => error.FBIG,
        error.NoSpace => error.NOSPC,
        error.ReadOnly => error.ROFS,
        error.OutOfMemory => error.NOMEM,
        error.Invalid => error.INVAL,
        error.DiskFailed, error.Damaged, error.WrongKey, error.Malformed, error.Broken => error.IO,
    };
}
