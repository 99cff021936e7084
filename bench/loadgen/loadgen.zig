//! The C interface of the load generator, for `library.py`. Every call comes from one thread.

const std = @import("std");
const accounting = @import("accounting.zig");
const connection = @import("connection.zig");
const generator = @import("generator.zig");
const histogram = @import("histogram.zig");
const pacing = @import("pacing.zig");
const reflector = @import("reflector.zig");
const tls = @import("tls.zig");
const Generator = generator.Generator;

export fn loadgen_create(config: *const generator.Config) ?*Generator {
    return Generator.create(config) catch null;
}

export fn loadgen_destroy(self: *Generator) void {
    self.destroy();
}

/// A connection that the generator opens itself. 0 = done.
export fn loadgen_open(self: *Generator, role: u32, group: u32) i32 {
    _ = self.add(@fromBackingInt(role), group) catch |failure| return outcome(self, failure);
    return 0;
}

/// A connection whose TLS handshake is done; takes over the non-blocking socket. `ssl` and its two
/// memory BIOs stay the caller's and must outlive the generator. 0 = done.
export fn loadgen_adopt(
    self: *Generator,
    role: u32,
    group: u32,
    fd: i32,
    ssl: *anyopaque,
    incoming: *anyopaque,
    outgoing: *anyopaque,
) i32 {
    const adopted = self.add(@fromBackingInt(role), group) catch |failure| return outcome(self, failure);
    adopted.fd = fd;
    adopted.session = .{
        .functions = &self.config.functions,
        .ssl = ssl,
        .incoming = incoming,
        .outgoing = outgoing,
    };
    return 0;
}

export fn loadgen_establish(self: *Generator, timeout_ns: u64) i32 {
    self.establish(timeout_ns) catch |failure| return outcome(self, failure);
    return 0;
}

export fn loadgen_run(self: *Generator, duration_ns: u64) i32 {
    pacing.run(self, duration_ns) catch |failure| return outcome(self, failure);
    return 0;
}

export fn loadgen_drain(self: *Generator, quiet_ns: u64) i32 {
    pacing.drain(self, quiet_ns) catch |failure| return outcome(self, failure);
    return 0;
}

export fn loadgen_report(self: *Generator, into: *generator.Result) void {
    self.report(into);
}

export fn loadgen_histogram(self: *Generator) [*]const u64 {
    return &self.histogram.buckets;
}

export fn loadgen_histogram_buckets() u32 {
    return histogram.bucket_count;
}

export fn loadgen_error(self: *Generator) [*]const u8 {
    return &self.message;
}

fn outcome(self: *Generator, failure: anyerror) i32 {
    if (failure != error.Failed) self.describe("{s}", .{@errorName(failure)});
    return -1;
}

/// Serves a listening non-blocking socket and the TLS connections of a pipe as a minimal broker;
/// comes back only when that fails.
export fn loadgen_reflect(listener: i32, pipe: i32, functions: *const tls.Functions) i32 {
    reflector.reflect(listener, pipe, functions) catch return -1;
    return 0;
}

/// For the tests: runs `count` numbers through the accounting of one subscriber.
/// `totals`: received, duplicates, disordered, missing.
export fn loadgen_account(numbers: [*]const u64, count: usize, published: u64, totals: *[4]u64) i32 {
    var arena = std.heap.ArenaAllocator.init(std.heap.page_allocator);
    defer arena.deinit();
    var sequence: accounting.Sequence = .{};
    for (numbers[0..count]) |number| {
        _ = sequence.observe(arena.allocator(), number) catch return -1;
    }
    totals.* = .{ sequence.received, sequence.duplicates, sequence.disordered, sequence.missing(published) };
    return 0;
}

export fn loadgen_bucket(value_ns: u64) u64 {
    return histogram.bucketOf(value_ns);
}
