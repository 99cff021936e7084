//! All functions of wasi_snapshot_preview1 as wasmtime calls them ("unchecked": no conversion of values,
//! see wasmtime_linker_define_func_unchecked), and their types for the linker.

const std = @import("std");
const wasi = @import("wasi.zig");
const errno = @import("errno.zig");
const files = @import("files.zig");
const names = @import("names.zig");
const system = @import("system.zig");
const sockets = @import("sockets.zig");
const descriptors = @import("descriptors.zig");
const Memory = @import("memory.zig").Memory;
const Wasi = wasi.Wasi;

/// wasmtime_val_raw_t: as wide as its widest member, a v128.
pub const Value = extern union { i32: u32, i64: u64, v128: [16]u8 };

comptime {
    std.debug.assert(@sizeOf(Value) == 16);
}

/// WASMTIME_TRAP_CODE_INTERRUPT. `avow_wasi_ending` tells why.
const TRAP_INTERRUPT = 10;

pub const Callback = *const fn (?*anyopaque, *wasi.Caller, [*]Value, usize) callconv(.c) ?*wasi.Trap;

/// `parameters`: `i` for an i32, `I` for an i64, in their order. The result is an i32, the errno, but
/// for `proc_exit`, which has none.
pub const Function = extern struct {
    name: [*:0]const u8,
    parameters: [*:0]const u8,
    has_result: u32,
    callback: Callback,
};

fn define(comptime name: [:0]const u8, comptime function: anytype) Function {
    const types = @typeInfo(@TypeOf(function)).@"fn".param_types;
    comptime var parameters: [:0]const u8 = "";
    inline for (types[2..]) |type_| parameters = parameters ++ if (@sizeOf(type_.?) == 8) "I" else "i";
    return .{
        .name = name.ptr,
        .parameters = parameters.ptr,
        .has_result = @intFromBool(!std.mem.eql(u8, name, "proc_exit")),
        .callback = &Wrapped(function).call,
    };
}

fn Wrapped(comptime function: anytype) type {
    const Arguments = std.meta.ArgsTuple(@TypeOf(function));
    return struct {
        fn call(env: ?*anyopaque, caller: *wasi.Caller, values: [*]Value, _: usize) callconv(.c) ?*wasi.Trap {
            const self: *Wasi = @ptrCast(@alignCast(env.?));
            var arguments: Arguments = undefined;
            arguments[0] = self;
            arguments[1] = self.memory(caller) orelse return trap(self, "a program for WASI has to export its memory as `memory`");
            inline for (2..arguments.len) |index| {
                const value = values[index - 2];
                arguments[index] = switch (@TypeOf(arguments[index])) {
                    u32 => value.i32,
                    u64 => value.i64,
                    i64 => @bitCast(value.i64),
                    else => comptime unreachable,
                };
            }
            values[0] = .{ .i64 = 0 };
            @call(.auto, function, arguments) catch |err| {
                if (err == error.Stopped) return self.api.trap_new_code(TRAP_INTERRUPT);
                values[0].i32 = errno.number(err);
            };
            return null;
        }
    };
}

fn trap(self: *Wasi, comptime text: []const u8) ?*wasi.Trap {
    @branchHint(.cold);
    // wasmtime ends the process itself where it has no memory left for a trap.
    return self.api.trap_new(text.ptr, text.len);
}

pub const ALL = [_]Function{
    define("args_get", system.args_get),
    define("args_sizes_get", system.args_sizes_get),
    define("environ_get", system.environ_get),
    define("environ_sizes_get", system.environ_sizes_get),
    define("clock_res_get", system.clock_res_get),
    define("clock_time_get", system.clock_time_get),
    define("fd_advise", files.fd_advise),
    define("fd_allocate", files.fd_allocate),
    define("fd_close", descriptors.fd_close),
    define("fd_datasync", files.fd_datasync),
    define("fd_fdstat_get", descriptors.fd_fdstat_get),
    define("fd_fdstat_set_flags", descriptors.fd_fdstat_set_flags),
    define("fd_fdstat_set_rights", descriptors.fd_fdstat_set_rights),
    define("fd_filestat_get", descriptors.fd_filestat_get),
    define("fd_filestat_set_size", files.fd_filestat_set_size),
    define("fd_filestat_set_times", descriptors.fd_filestat_set_times),
    define("fd_pread", files.fd_pread),
    define("fd_prestat_get", descriptors.fd_prestat_get),
    define("fd_prestat_dir_name", descriptors.fd_prestat_dir_name),
    define("fd_pwrite", files.fd_pwrite),
    define("fd_read", files.fd_read),
    define("fd_readdir", descriptors.fd_readdir),
    define("fd_renumber", descriptors.fd_renumber),
    define("fd_seek", files.fd_seek),
    define("fd_sync", files.fd_sync),
    define("fd_tell", files.fd_tell),
    define("fd_write", files.fd_write),
    define("path_create_directory", names.path_create_directory),
    define("path_filestat_get", names.path_filestat_get),
    define("path_filestat_set_times", names.path_filestat_set_times),
    define("path_link", names.path_link),
    define("path_open", @import("open.zig").path_open),
    define("path_readlink", names.path_readlink),
    define("path_remove_directory", names.path_remove_directory),
    define("path_rename", names.path_rename),
    define("path_symlink", names.path_symlink),
    define("path_unlink_file", names.path_unlink_file),
    define("poll_oneoff", @import("polling.zig").poll_oneoff),
    define("proc_exit", system.proc_exit),
    define("proc_raise", system.proc_raise),
    define("sched_yield", system.sched_yield),
    define("random_get", system.random_get),
    define("sock_accept", sockets.sock_accept),
    define("sock_recv", sockets.sock_recv),
    define("sock_send", sockets.sock_send),
    define("sock_shutdown", sockets.sock_shutdown),
};

comptime {
    std.debug.assert(ALL.len == 46);
}
