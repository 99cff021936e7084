//! Works on files below `/` as a POSIX program does, through the C library, and checks every result.
//! Says `right` when all was as it should be, or which step failed and why, and ends with 1.
//! Arguments: how many rounds.

const std = @import("std");
const c = std.c;

const Directory = opaque {};
extern "c" fn open(path: [*:0]const u8, flags: c_int, ...) c_int;
extern "c" fn close(fd: c_int) c_int;
extern "c" fn read(fd: c_int, into: [*]u8, bytes: usize) isize;
extern "c" fn write(fd: c_int, from: [*]const u8, bytes: usize) isize;
extern "c" fn pread(fd: c_int, into: [*]u8, bytes: usize, offset: i64) isize;
extern "c" fn pwrite(fd: c_int, from: [*]const u8, bytes: usize, offset: i64) isize;
extern "c" fn lseek(fd: c_int, offset: i64, whence: c_int) i64;
extern "c" fn ftruncate(fd: c_int, size: i64) c_int;
extern "c" fn fsync(fd: c_int) c_int;
extern "c" fn mkdir(path: [*:0]const u8, mode: c_uint) c_int;
extern "c" fn rmdir(path: [*:0]const u8) c_int;
extern "c" fn unlink(path: [*:0]const u8) c_int;
extern "c" fn rename(old: [*:0]const u8, new: [*:0]const u8) c_int;
extern "c" fn link(old: [*:0]const u8, new: [*:0]const u8) c_int;
extern "c" fn symlink(target: [*:0]const u8, path: [*:0]const u8) c_int;
extern "c" fn readlink(path: [*:0]const u8, into: [*]u8, bytes: usize) isize;
extern "c" fn opendir(path: [*:0]const u8) ?*Directory;
extern "c" fn readdir(directory: *Directory) ?*const anyopaque;
extern "c" fn closedir(directory: *Directory) c_int;
extern "c" fn printf(format: [*:0]const u8, ...) c_int;
extern "c" fn exit(code: c_int) noreturn;
extern "c" fn atoi(text: [*:0]const u8) c_int;
extern "c" fn strerror(number: c_int) [*:0]const u8;
extern "c" threadlocal var errno: c_int;

// wasi-libc, fcntl.h
const O_RDONLY = 0x04000000;
const O_RDWR = 0x14000000;
const O_APPEND = 1;
const O_CREAT = 1 << 12;
const O_EXCL = 4 << 12;
const O_TRUNC = 8 << 12;

var content: [50_000]u8 = undefined;
var found: [60_000]u8 = undefined;

fn failed(step: [*:0]const u8) noreturn {
    _ = printf("failed: %s: %s\n", step, strerror(errno));
    exit(1);
}

fn wrong(step: [*:0]const u8) noreturn {
    _ = printf("WRONG: %s\n", step);
    exit(2);
}

fn done(result: c_int, step: [*:0]const u8) void {
    if (result < 0) failed(step);
}

fn opened(path: [*:0]const u8, flags: c_int, step: [*:0]const u8) c_int {
    const fd = open(path, flags, @as(c_uint, 0o600));
    if (fd < 0) failed(step);
    return fd;
}

fn writeAll(fd: c_int, bytes: []const u8) void {
    var at: usize = 0;
    while (at < bytes.len) {
        const count = write(fd, bytes.ptr + at, bytes.len - at);
        if (count <= 0) failed("write");
        at += @intCast(count);
    }
}

fn readAll(fd: c_int, into: []u8) usize {
    var at: usize = 0;
    while (at < into.len) {
        const count = read(fd, into.ptr + at, into.len - at);
        if (count < 0) failed("read");
        if (count == 0) break;
        at += @intCast(count);
    }
    return at;
}

fn expect(fd: c_int, expected: []const u8, step: [*:0]const u8) void {
    if (lseek(fd, 0, 0) != 0) failed("lseek");
    const count = readAll(fd, &found);
    if (!std.mem.eql(u8, found[0..count], expected)) wrong(step);
}

fn entries(path: [*:0]const u8) usize {
    const directory = opendir(path) orelse failed("opendir");
    var number: usize = 0;
    while (true) {
        errno = 0;
        if (readdir(directory) == null) break;
        number += 1;
    }
    if (errno != 0) failed("readdir");
    done(closedir(directory), "closedir");
    return number;
}

fn round(number: usize) void {
    for (&content, 0..) |*byte, index| byte.* = @truncate(index *% 31 +% number *% 7 +% (index >> 8));
    done(mkdir("/work", 0o700), "mkdir");
    const fd = opened("/work/a", O_RDWR | O_CREAT | O_EXCL, "create");
    writeAll(fd, &content);
    expect(fd, &content, "what was written");
    @memcpy(content[30_000..][0..4], "here");
    if (pwrite(fd, "here", 4, 30_000) != 4) failed("pwrite");
    if (pread(fd, &found, 6, 29_999) != 6) failed("pread");
    if (!std.mem.eql(u8, found[1..5], "here")) wrong("what was written in the middle");
    done(ftruncate(fd, 40_000), "ftruncate");
    expect(fd, content[0..40_000], "what was left");
    done(fsync(fd), "fsync");

    done(rename("/work/a", "/work/b"), "rename");
    done(link("/work/b", "/work/c"), "link");
    done(symlink("c", "/work/d"), "symlink");
    if (readlink("/work/d", &found, found.len) != 1) failed("readlink");
    const through = opened("/work/d", O_RDWR | O_APPEND, "open");
    writeAll(through, "end");
    done(close(through), "close");
    @memcpy(content[40_000..][0..3], "end");
    expect(fd, content[0..40_003], "what came through the link");
    if (entries("/work") != 5) wrong("the names in the directory");

    if (open("/work/nothing", O_RDONLY) >= 0) wrong("a file that is not there");
    if (open("/work/b", O_RDWR | O_CREAT | O_EXCL, @as(c_uint, 0o600)) >= 0) wrong("a file made twice");
    if (rmdir("/work") >= 0) wrong("a directory removed with files in it");
    done(unlink("/work/b"), "unlink");
    done(unlink("/work/c"), "unlink");
    expect(fd, content[0..40_003], "what has no name");
    done(close(fd), "close");
    if (open("/work/d", O_RDONLY) >= 0) wrong("a link to nothing");
    done(unlink("/work/d"), "unlink");
    done(rmdir("/work"), "rmdir");
}

pub fn main(init: std.process.Init.Minimal) u8 {
    const argv = init.args.vector;
    const rounds = if (argv.len > 1) atoi(argv[1]) else 1;
    var number: usize = 0;
    while (number < rounds) : (number += 1) round(number);
    _ = printf("right\n");
    return 0;
}
