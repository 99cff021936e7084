//! The two halves of AES-256-GCM on 16 blocks at a time, for x86 processors with VAES, VPCLMULQDQ and
//! AVX-512, which is asked at run time. They compute what the standard library computes, from the same
//! round keys and powers; without those instructions nothing here is called.
//!
//! Counter mode: NIST SP 800-38D, 6.5. GHASH: 6.4, with one reduction for the sum of 16 products (Gueron,
//! Kounavis: Intel Carry-Less Multiplication Instruction and its Usage for Computing the GCM Mode).

const builtin = @import("builtin");
const std = @import("std");

const present = builtin.cpu.arch == .x86_64;

pub const CHUNK_BYTES = 256;

/// Round keys of AES-256; and the 16th to the first power of the hash's subkey, as the standard library
/// keeps them.
pub const Keys = extern struct {
    rounds: [15][16]u8,
    powers: [16]u128,

    pub fn of(aes: anytype, ghash: *const std.crypto.onetimeauth.Ghash) Keys {
        var keys: Keys = undefined;
        for (&keys.rounds, aes.key_schedule.round_keys) |*to, from| to.* = from.toBytes();
        for (&keys.powers, 0..) |*to, index| to.* = ghash.hx[15 - index];
        return keys;
    }
};

/// Asked once: in a virtual machine the question costs more than sealing a block.
var answer: std.atomic.Value(u8) = .init(UNASKED);
const UNASKED = 2;

/// Whether what is here is used.
pub fn used() bool {
    const known = answer.load(.monotonic);
    return if (known == UNASKED) use(true) else known != 0;
}

/// Use it, where it can be, or do not; whether it is used from now on.
pub fn use(wanted: bool) bool {
    const now = wanted and available();
    answer.store(@intFromBool(now), .monotonic);
    return now;
}

/// For tests, which try both ways on one machine.
export fn avow_vault_use_wide(wanted: bool) callconv(.c) bool {
    return use(wanted);
}

/// Whether processor and system have what is needed here.
fn available() bool {
    if (!present) return false;
    if (cpuid(0).eax < 7) return false;
    const first, const features = .{ cpuid(1), cpuid(7) };
    // Intel SDM, volume 2, CPUID. AVX512F, DQ, BW and VL; VAES and VPCLMULQDQ; OSXSAVE.
    const vectors: u32 = 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31;
    const ciphers: u32 = 1 << 9 | 1 << 10;
    if (features.ebx & vectors != vectors or features.ecx & ciphers != ciphers) return false;
    if (first.ecx & 1 << 27 == 0) return false;
    // Volume 1, 13.3: the system keeps the registers of SSE, of AVX and the three parts of AVX-512.
    return xcr0() & 0xE6 == 0xE6;
}

/// What the code below takes from and leaves in memory; it gets one pointer to it.
const Work = extern struct {
    swap: [16]u8,
    step: [16]u8,
    counters: [16][16]u8,
    accumulator: u128,
    from: [*]const u8,
    into: [*]u8,
    chunks: usize,
    keys: *const Keys,
};

/// The reverse order of the bytes of a block, and of the last four.
const REVERSED = [16]u8{ 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0 };
const COUNTER_REVERSED = [16]u8{ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 14, 13, 12 };
/// Added to a counter for the next chunk; and the polynomial's upper half (bits 127, 126 and 121).
const SIXTEEN = [16]u8{ 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0 };
const POLYNOMIAL = [16]u8{ 0, 0, 0, 0, 0, 0, 0, 0xC2, 0, 0, 0, 0, 0, 0, 0, 0 };

/// `into` = `from` XOR the key stream that begins with the block `counter`: for whole chunks. How many
/// bytes that were. Both may be the same.
pub fn xorStream(keys: *const Keys, into: []u8, from: []const u8, counter: *const [16]u8) usize {
    if (!present) unreachable;
    const chunks = from.len / CHUNK_BYTES;
    std.debug.assert(into.len >= from.len);
    if (chunks == 0) return 0;
    var work: Work = .{
        .swap = COUNTER_REVERSED,
        .step = SIXTEEN,
        .counters = @splat(counter.*),
        .accumulator = 0,
        .from = from.ptr,
        .into = into.ptr,
        .chunks = chunks,
        .keys = keys,
    };
    // The last four bytes little-endian, so that one instruction adds to 16 of them.
    const start = std.mem.readInt(u32, counter[12..16], .big);
    for (&work.counters, 0..) |*each, index| {
        std.mem.writeInt(u32, each[12..16], start +% @as(u32, @intCast(index)), .little);
    }
    asm volatile (CTR
        :
        : [work] "{r9}" (&work),
        : CLOBBERS);
    return chunks * CHUNK_BYTES;
}

/// The hash goes on over the whole chunks of `data`. How many bytes those were.
pub fn hash(keys: *const Keys, accumulator: *u128, data: []const u8) usize {
    if (!present) unreachable;
    const chunks = data.len / CHUNK_BYTES;
    if (chunks == 0) return 0;
    var work: Work = .{
        .swap = REVERSED,
        .step = POLYNOMIAL,
        .counters = undefined,
        .accumulator = accumulator.*,
        .from = data.ptr,
        .into = undefined,
        .chunks = chunks,
        .keys = keys,
    };
    asm volatile (GHASH
        :
        : [work] "{r9}" (&work),
        : CLOBBERS);
    accumulator.* = work.accumulator;
    return chunks * CHUNK_BYTES;
}

const CLOBBERS: std.lang.assembly.Clobbers = .{
    .rax = true,
    .rcx = true,
    .rsi = true,
    .rdi = true,
    .memory = true,
    .cc = true,
    .xmm0 = true,
    .xmm1 = true,
    .xmm2 = true,
    .xmm3 = true,
    .xmm4 = true,
    .xmm5 = true,
    .xmm6 = true,
    .xmm7 = true,
    .xmm8 = true,
    .xmm9 = true,
    .xmm10 = true,
    .xmm11 = true,
    .xmm12 = true,
    .xmm13 = true,
    .xmm14 = true,
    .xmm15 = true,
};

/// `text` once for each number from `first` to `last`, in the place of every `#`; then a line's end.
fn forEach(comptime text: []const u8, comptime first: usize, comptime last: usize) []const u8 {
    @setEvalBranchQuota(100_000);
    comptime var all: []const u8 = "";
    inline for (first..last + 1) |number| {
        inline for (text) |byte| {
            all = all ++ if (byte == '#') std.fmt.comptimePrint("{d}", .{number}) else &[1]u8{byte};
        }
        all = all ++ "\n";
    }
    return all;
}

fn load(comptime field: []const u8, comptime register: []const u8) []const u8 {
    return std.fmt.comptimePrint("mov {d}(%[work]), %%{s}\n", .{ @offsetOf(Work, field), register });
}

fn broadcast(comptime field: []const u8, comptime register: []const u8) []const u8 {
    return std.fmt.comptimePrint("vbroadcasti32x4 {d}(%[work]), %%{s}\n", .{ @offsetOf(Work, field), register });
}

/// Nothing that was secret stays in registers that the compiler does not use; the others are overwritten
/// soon, and by a system that is not trusted they could be read at any moment anyway.
const WIPE = forEach("vpxorq %%zmm#, %%zmm#, %%zmm#", 16, 31) ++ "vzeroall\n";

/// zmm0 to 3: blocks. zmm8: step. zmm9 to 12: counters. zmm16 to 30: round keys. zmm31: order of bytes.
const CTR = load("from", "rsi") ++ load("into", "rdi") ++ load("chunks", "rcx") ++ load("keys", "rax") ++
    broadcast("swap", "zmm31") ++ broadcast("step", "zmm8") ++
    rounds("vbroadcasti32x4 @(%%rax), %%zmm#", 16) ++ counters() ++
    "1:\n" ++
    "vpshufb %%zmm31, %%zmm9, %%zmm0\n" ++
    "vpshufb %%zmm31, %%zmm10, %%zmm1\n" ++
    "vpshufb %%zmm31, %%zmm11, %%zmm2\n" ++
    "vpshufb %%zmm31, %%zmm12, %%zmm3\n" ++
    forEach("vpaddd %%zmm8, %%zmm#, %%zmm#", 9, 12) ++
    forEach("vpxorq %%zmm16, %%zmm#, %%zmm#", 0, 3) ++
    middle() ++
    forEach("vaesenclast %%zmm30, %%zmm#, %%zmm#", 0, 3) ++
    quarters("vpxorq @(%%rsi), %%zmm#, %%zmm#") ++
    quarters("vmovdqu64 %%zmm#, @(%%rdi)") ++
    "add $256, %%rsi\n" ++
    "add $256, %%rdi\n" ++
    "dec %%rcx\n" ++
    "jnz 1b\n" ++ WIPE;

/// zmm0 to 3: blocks. zmm4: low, zmm5: high, zmm6 and 7: middle parts of products. zmm8 to 11: scratch.
/// xmm14: the polynomial. xmm15: the accumulator. zmm16 to 19: powers. zmm31: order of bytes.
const GHASH = load("from", "rsi") ++ load("chunks", "rcx") ++ load("keys", "rax") ++
    broadcast("swap", "zmm31") ++
    std.fmt.comptimePrint("vmovdqu {d}(%[work]), %%xmm14\n", .{@offsetOf(Work, "step")}) ++
    std.fmt.comptimePrint("vmovdqu {d}(%[work]), %%xmm15\n", .{@offsetOf(Work, "accumulator")}) ++
    powers() ++
    "1:\n" ++
    quarters("vmovdqu64 @(%%rsi), %%zmm#") ++
    forEach("vpshufb %%zmm31, %%zmm#, %%zmm#", 0, 3) ++
    // xmm15's register is zero above its first 128 bits: whatever writes it here makes it so.
    "vpxorq %%zmm15, %%zmm0, %%zmm0\n" ++
    "vpclmulqdq $0x00, %%zmm16, %%zmm0, %%zmm4\n" ++
    "vpclmulqdq $0x11, %%zmm16, %%zmm0, %%zmm5\n" ++
    "vpclmulqdq $0x01, %%zmm16, %%zmm0, %%zmm6\n" ++
    "vpclmulqdq $0x10, %%zmm16, %%zmm0, %%zmm7\n" ++
    product(1) ++ product(2) ++ product(3) ++
    "vpxorq %%zmm7, %%zmm6, %%zmm6\n" ++
    forEach(
        \\vextracti64x4 $1, %%zmm#, %%ymm8
        \\vpxor %%ymm8, %%ymm#, %%ymm#
        \\vextracti128 $1, %%ymm#, %%xmm8
        \\vpxor %%xmm8, %%xmm#, %%xmm#
    , 4, 6) ++
    \\vpslldq $8, %%xmm6, %%xmm8
    \\vpsrldq $8, %%xmm6, %%xmm6
    \\vpxor %%xmm8, %%xmm4, %%xmm4
    \\vpxor %%xmm6, %%xmm5, %%xmm5
    \\vpclmulqdq $0x00, %%xmm14, %%xmm4, %%xmm8
    \\vpshufd $0x4e, %%xmm4, %%xmm4
    \\vpxor %%xmm8, %%xmm4, %%xmm4
    \\vpclmulqdq $0x00, %%xmm14, %%xmm4, %%xmm8
    \\vpshufd $0x4e, %%xmm4, %%xmm4
    \\vpxor %%xmm8, %%xmm4, %%xmm4
    \\vpxor %%xmm5, %%xmm4, %%xmm15
    \\add $256, %%rsi
    \\dec %%rcx
    \\jnz 1b
    \\
++ std.fmt.comptimePrint("vmovdqu %%xmm15, {d}(%[work])\n", .{@offsetOf(Work, "accumulator")}) ++ WIPE;

/// Rounds 1 to 13, each for four registers.
fn middle() []const u8 {
    comptime var all: []const u8 = "";
    inline for (17..30) |round| {
        const key = std.fmt.comptimePrint("%%zmm{d}", .{round});
        all = all ++ forEach("vaesenc " ++ key ++ ", %%zmm#, %%zmm#", 0, 3);
    }
    return all;
}

fn product(comptime number: usize) []const u8 {
    comptime var all: []const u8 = "";
    inline for (.{ "0x00", "0x11", "0x01", "0x10" }, 4..) |which, sum| {
        all = all ++ std.fmt.comptimePrint(
            "vpclmulqdq ${s}, %%zmm{d}, %%zmm{d}, %%zmm8\nvpxorq %%zmm8, %%zmm{d}, %%zmm{d}\n",
            .{ which, 16 + number, number, sum, sum },
        );
    }
    return all;
}

/// `text` with 16 times the number at `@`, for 15 round keys in registers from `register` on.
fn rounds(comptime text: []const u8, comptime register: usize) []const u8 {
    return numbered(text, 15, 16, @offsetOf(Keys, "rounds"), register);
}

fn quarters(comptime text: []const u8) []const u8 {
    return numbered(text, 4, 64, 0, 0);
}

fn powers() []const u8 {
    return numbered("vmovdqu64 @(%%rax), %%zmm#", 4, 64, @offsetOf(Keys, "powers"), 16);
}

fn counters() []const u8 {
    return numbered("vmovdqu64 @(%[work]), %%zmm#", 4, 64, @offsetOf(Work, "counters"), 9);
}

/// `text` with a growing offset for each `@` and a growing register for each `#`.
fn numbered(comptime text: []const u8, comptime count: usize, comptime stride: usize, comptime offset: usize, comptime register: usize) []const u8 {
    @setEvalBranchQuota(100_000);
    comptime var all: []const u8 = "";
    inline for (0..count) |index| {
        inline for (text) |byte| {
            all = all ++ switch (byte) {
                '@' => std.fmt.comptimePrint("{d}", .{offset + index * stride}),
                '#' => std.fmt.comptimePrint("{d}", .{register + index}),
                else => &[1]u8{byte},
            };
        }
        all = all ++ "\n";
    }
    return all;
}

const Registers = struct { eax: u32, ebx: u32, ecx: u32 };

fn cpuid(leaf: u32) Registers {
    var eax: u32 = undefined;
    var ebx: u32 = undefined;
    var ecx: u32 = undefined;
    var edx: u32 = undefined;
    asm volatile ("cpuid"
        : [_] "={eax}" (eax),
          [_] "={ebx}" (ebx),
          [_] "={ecx}" (ecx),
          [_] "={edx}" (edx),
        : [_] "{eax}" (leaf),
          [_] "{ecx}" (@as(u32, 0)),
    );
    return .{ .eax = eax, .ebx = ebx, .ecx = ecx };
}

fn xcr0() u32 {
    return asm volatile ("xgetbv"
        : [_] "={eax}" (-> u32),
        : [_] "{ecx}" (@as(u32, 0)),
        : .{ .edx = true });
}
