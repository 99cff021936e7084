//! A program that proves itself, and judges what another one has proven.
//!
//!     prove [TEXT]           evidence that says TEXT, to stdout
//!     prove TEXT judge       the same evidence, judged by a policy: JSON to stdout
//!
//! The first line of stdin is the nonce, 64 hexadecimal digits; what follows is the policy. Arguments
//! are part of the measured configuration, so what changes with every question comes another way.
//!
//! Run it by `avow run --attest --grant evidence prove.wasm -- TEXT`. It is made without a standard
//! library for WASI, so that all that it imports can be seen here:
//!
//!     python -m ziglang build-exe prove.zig -target wasm32-freestanding -O ReleaseSmall -fno-entry -rdynamic

const Errno = u32;
const SUCCESS: Errno = 0;
const INVAL: Errno = 28;

const NONCE_BYTES = 32;
const TEXT_BYTES_MAX = 1024;
const EVIDENCE_BYTES_MAX = 1 << 16;
const INPUT_BYTES_MAX = 1 << 16;
const ARGUMENTS_MAX = 8;

// avow's own functions.
extern "avow_evidence" fn attest(
    user_data: [*]const u8,
    user_data_len: u32,
    nonce: *const [NONCE_BYTES]u8,
    out: [*]u8,
    out_max: u32,
    out_len: *u32,
) Errno;
extern "avow_verify" fn verify(
    evidence: [*]const u8,
    evidence_len: u32,
    nonce: *const [NONCE_BYTES]u8,
    policy: [*]const u8,
    policy_len: u32,
    out: [*]u8,
    out_max: u32,
    out_len: *u32,
) Errno;

// Of WASI preview 1.
const Read = extern struct { bytes: [*]u8, len: u32 };
const Write = extern struct { bytes: [*]const u8, len: u32 };
extern "wasi_snapshot_preview1" fn args_sizes_get(count: *u32, bytes: *u32) Errno;
extern "wasi_snapshot_preview1" fn args_get(arguments: [*][*:0]const u8, bytes: [*]u8) Errno;
extern "wasi_snapshot_preview1" fn fd_read(fd: u32, to: *const Read, count: u32, read: *u32) Errno;
extern "wasi_snapshot_preview1" fn fd_write(
    fd: u32,
    from: *const Write,
    count: u32,
    written: *u32,
) Errno;
extern "wasi_snapshot_preview1" fn proc_exit(code: u32) noreturn;

var arguments: [ARGUMENTS_MAX][*:0]const u8 = undefined;
var argument_bytes: [8192]u8 = undefined;
var nonce: [NONCE_BYTES]u8 = undefined;
var evidence: [EVIDENCE_BYTES_MAX]u8 = undefined;
var input: [INPUT_BYTES_MAX]u8 = undefined;
var result: [EVIDENCE_BYTES_MAX]u8 = undefined;

export fn _start() void {
    proc_exit(run());
}

/// The exit code: 0, or the errno of what failed.
fn run() Errno {
    var count: u32 = 0;
    var bytes: u32 = 0;
    if (args_sizes_get(&count, &bytes) != SUCCESS) return INVAL;
    if (count > ARGUMENTS_MAX or bytes > argument_bytes.len) return INVAL;
    if (args_get(&arguments, &argument_bytes) != SUCCESS) return INVAL;
    const policy = nonceAndRest(read() orelse return INVAL) orelse return INVAL;
    const text = if (count > 1) arguments[1] else "";
    const length = lengthOf(text);
    if (length > TEXT_BYTES_MAX) return INVAL;

    var evidence_len: u32 = 0;
    const attested = attest(text, length, &nonce, &evidence, evidence.len, &evidence_len);
    if (attested != SUCCESS) return attested;
    if (count < 3) return print(evidence[0..evidence_len]);

    var result_len: u32 = 0;
    const judged = verify(
        &evidence,
        evidence_len,
        &nonce,
        policy.ptr,
        @intCast(policy.len),
        &result,
        result.len,
        &result_len,
    );
    if (result_len <= result.len) _ = print(result[0..result_len]);
    return judged;
}

/// All of stdin; null when it does not fit.
fn read() ?[]const u8 {
    var used: u32 = 0;
    while (used < input.len) {
        const rest: Read = .{ .bytes = input[used..].ptr, .len = input.len - used };
        var more: u32 = 0;
        if (fd_read(0, &rest, 1, &more) != SUCCESS) return null;
        if (more == 0) return input[0..used];
        used += more;
    }
    return null;
}

fn print(bytes: []const u8) Errno {
    var rest = bytes;
    while (rest.len > 0) {
        const next: Write = .{ .bytes = rest.ptr, .len = @intCast(rest.len) };
        var written: u32 = 0;
        const code = fd_write(1, &next, 1, &written);
        if (code != SUCCESS) return code;
        rest = rest[written..];
    }
    return SUCCESS;
}

/// Takes the nonce out of the first line; what follows it, or null where there is no nonce.
fn nonceAndRest(bytes: []const u8) ?[]const u8 {
    if (bytes.len <= 2 * NONCE_BYTES or bytes[2 * NONCE_BYTES] != '\n') return null;
    for (&nonce, 0..) |*byte, place| {
        const high = digit(bytes[2 * place]) orelse return null;
        const low = digit(bytes[2 * place + 1]) orelse return null;
        byte.* = high << 4 | low;
    }
    return bytes[2 * NONCE_BYTES + 1 ..];
}

fn digit(character: u8) ?u8 {
    return switch (character) {
        '0'...'9' => character - '0',
        'a'...'f' => character - 'a' + 10,
        else => null,
    };
}

fn lengthOf(text: [*:0]const u8) u32 {
    var length: u32 = 0;
    while (text[length] != 0) length += 1;
    return length;
}
