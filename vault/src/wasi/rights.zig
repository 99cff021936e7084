//! The rights of a descriptor (`rights` in typenames.witx), as bit masks, and which a kind of file has.

const std = @import("std");
const Named = std.os.wasi.rights_t;

fn mask(comptime named: Named) u64 {
    return @bitCast(named);
}

pub const FD_DATASYNC = mask(.{ .FD_DATASYNC = true });
pub const FD_READ = mask(.{ .FD_READ = true });
pub const FD_SEEK = mask(.{ .FD_SEEK = true });
pub const FD_FDSTAT_SET_FLAGS = mask(.{ .FD_FDSTAT_SET_FLAGS = true });
pub const FD_SYNC = mask(.{ .FD_SYNC = true });
pub const FD_TELL = mask(.{ .FD_TELL = true });
pub const FD_WRITE = mask(.{ .FD_WRITE = true });
pub const FD_ADVISE = mask(.{ .FD_ADVISE = true });
pub const FD_ALLOCATE = mask(.{ .FD_ALLOCATE = true });
pub const PATH_CREATE_DIRECTORY = mask(.{ .PATH_CREATE_DIRECTORY = true });
pub const PATH_CREATE_FILE = mask(.{ .PATH_CREATE_FILE = true });
pub const PATH_LINK_SOURCE = mask(.{ .PATH_LINK_SOURCE = true });
pub const PATH_LINK_TARGET = mask(.{ .PATH_LINK_TARGET = true });
pub const PATH_OPEN = mask(.{ .PATH_OPEN = true });
pub const FD_READDIR = mask(.{ .FD_READDIR = true });
pub const PATH_READLINK = mask(.{ .PATH_READLINK = true });
pub const PATH_RENAME_SOURCE = mask(.{ .PATH_RENAME_SOURCE = true });
pub const PATH_RENAME_TARGET = mask(.{ .PATH_RENAME_TARGET = true });
pub const PATH_FILESTAT_GET = mask(.{ .PATH_FILESTAT_GET = true });
pub const PATH_FILESTAT_SET_SIZE = mask(.{ .PATH_FILESTAT_SET_SIZE = true });
pub const PATH_FILESTAT_SET_TIMES = mask(.{ .PATH_FILESTAT_SET_TIMES = true });
pub const FD_FILESTAT_GET = mask(.{ .FD_FILESTAT_GET = true });
pub const FD_FILESTAT_SET_SIZE = mask(.{ .FD_FILESTAT_SET_SIZE = true });
pub const FD_FILESTAT_SET_TIMES = mask(.{ .FD_FILESTAT_SET_TIMES = true });
pub const PATH_SYMLINK = mask(.{ .PATH_SYMLINK = true });
pub const PATH_REMOVE_DIRECTORY = mask(.{ .PATH_REMOVE_DIRECTORY = true });
pub const PATH_UNLINK_FILE = mask(.{ .PATH_UNLINK_FILE = true });
pub const POLL_FD_READWRITE = mask(.{ .POLL_FD_READWRITE = true });
pub const SOCK_SHUTDOWN = mask(.{ .SOCK_SHUTDOWN = true });
pub const SOCK_ACCEPT = mask(.{ .SOCK_ACCEPT = true });

pub const REGULAR_FILE: u64 = FD_DATASYNC | FD_READ | FD_SEEK | FD_FDSTAT_SET_FLAGS | FD_SYNC | FD_TELL |
    FD_WRITE | FD_ADVISE | FD_ALLOCATE | FD_FILESTAT_GET | FD_FILESTAT_SET_SIZE |
    FD_FILESTAT_SET_TIMES | POLL_FD_READWRITE;

pub const DIRECTORY: u64 = FD_FDSTAT_SET_FLAGS | FD_SYNC | FD_DATASYNC | PATH_CREATE_DIRECTORY |
    PATH_CREATE_FILE | PATH_LINK_SOURCE | PATH_LINK_TARGET | PATH_OPEN | FD_READDIR | PATH_READLINK |
    PATH_RENAME_SOURCE | PATH_RENAME_TARGET | PATH_FILESTAT_GET | PATH_FILESTAT_SET_SIZE |
    PATH_FILESTAT_SET_TIMES | FD_FILESTAT_GET | FD_FILESTAT_SET_TIMES | PATH_SYMLINK |
    PATH_REMOVE_DIRECTORY | PATH_UNLINK_FILE;

pub const STREAM: u64 = FD_READ | FD_WRITE | FD_FDSTAT_SET_FLAGS | FD_FILESTAT_GET | POLL_FD_READWRITE;
pub const SOCKET: u64 = STREAM | SOCK_SHUTDOWN;
pub const LISTENER: u64 = SOCK_ACCEPT | POLL_FD_READWRITE | FD_FDSTAT_SET_FLAGS | FD_FILESTAT_GET | SOCKET;

/// What a descriptor below a directory can be given at most.
pub const BELOW: u64 = REGULAR_FILE | DIRECTORY | SOCKET | SOCK_ACCEPT;
