//! What a POSIX program does with streams, through the C library: `copy` (standard input to output),
//! `tree PATH` (names and contents below a directory), `time` (a clock, read often), `get PATH`
//! (a connection: sends what it reads from it, back).

const std = @import("std");

const Directory = opaque {};
/// wasi-libc, dirent.h.
const Entry = extern struct { inode: u64, kind: u8, name: [256]u8 };
const Time = extern struct { seconds: i64, nanoseconds: c_long };

extern "c" fn open(path: [*:0]const u8, flags: c_int, ...) c_int;
extern "c" fn close(fd: c_int) c_int;
extern "c" fn read(fd: c_int, into: [*]u8, bytes: usize) isize;
extern "c" fn write(fd: c_int, from: [*]const u8, bytes: usize) isize;
extern "c" fn opendir(path: [*:0]const u8) ?*Directory;
extern "c" fn readdir(directory: *Directory) ?*const Entry;
extern "c" fn closedir(directory: *Directory) c_int;
extern "c" fn printf(format: [*:0]const u8, ...) c_int;
extern "c" fn snprintf(into: [*]u8, bytes: usize, format: [*:0]const u8, ...) c_int;
extern "c" fn exit(code: c_int) noreturn;
extern "c" fn strcmp(one: [*:0]const u8, two: [*:0]const u8) c_int;
extern "c" fn strlen(text: [*:0]const u8) usize;
extern "c" fn strerror(number: c_int) [*:0]const u8;
extern "c" fn clock_gettime(clock: *const anyopaque, into: *Time) c_int;
extern "c" const _CLOCK_MONOTONIC: u8;
extern "c" threadlocal var errno: c_int;

const O_RDONLY = 0x04000000;
const O_RDWR = 0x14000000;
const DT_DIR = 3;

var buffer: [16384]u8 = undefined;

fn failed(step: [*:0]const u8) noreturn {
    var text: [200]u8 = undefined;
    const length = snprintf(&text, text.len, "failed: %s: %s\n", step, strerror(errno));
    _ = write(2, &text, @intCast(length));
    exit(1);
}

fn writeAll(fd: c_int, bytes: []const u8) void {
    var at: usize = 0;
    while (at < bytes.len) {
        const count = write(fd, bytes.ptr + at, bytes.len - at);
        if (count <= 0) failed("write");
        at += @intCast(count);
    }
}

fn copy(from: c_int, to: c_int) void {
    while (true) {
        const count = read(from, &buffer, buffer.len);
        if (count < 0) failed("read");
        if (count == 0) return;
        writeAll(to, buffer[0..@intCast(count)]);
    }
}

fn tree(path: [*:0]const u8) void {
    const directory = opendir(path) orelse failed("opendir");
    while (true) {
        errno = 0;
        const entry = readdir(directory) orelse break;
        const name: [*:0]const u8 = @ptrCast(&entry.name);
        if (strcmp(name, ".") == 0 or strcmp(name, "..") == 0) continue;
        var below: [1024]u8 = undefined;
        _ = snprintf(&below, below.len, "%s/%s", path, name);
        const whole: [*:0]const u8 = @ptrCast(&below);
        if (entry.kind == DT_DIR) {
            tree(whole);
            continue;
        }
        writeAll(1, below[0..strlen(whole)]);
        writeAll(1, "=");
        const fd = open(whole, O_RDONLY);
        if (fd < 0) failed("open");
        copy(fd, 1);
        writeAll(1, "\n");
        if (close(fd) != 0) failed("close");
    }
    if (errno != 0) failed("readdir");
    if (closedir(directory) != 0) failed("closedir");
}

fn time() void {
    var last: i64 = 0;
    for (0..200) |_| {
        var now: Time = undefined;
        if (clock_gettime(&_CLOCK_MONOTONIC, &now) != 0) failed("clock_gettime");
        const now_ns = now.seconds * 1_000_000_000 + now.nanoseconds;
        if (now_ns < last or now.nanoseconds < 0 or now.nanoseconds >= 1_000_000_000) {
            writeAll(1, "WRONG\n");
            exit(2);
        }
        last = now_ns;
    }
    writeAll(1, "right\n");
}

pub fn main(init: std.process.Init.Minimal) u8 {
    const argv = init.args.vector;
    if (argv.len < 2) return 3;
    if (strcmp(argv[1], "copy") == 0) copy(0, 1);
    if (strcmp(argv[1], "tree") == 0) tree(argv[2]);
    if (strcmp(argv[1], "time") == 0) time();
    if (strcmp(argv[1], "get") == 0) {
        const fd = open(argv[2], O_RDWR);
        if (fd < 0) failed("open");
        copy(fd, fd);
    }
    return 0;
}
