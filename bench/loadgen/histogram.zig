//! Log-linear latency histogram: 64 steps to each power of two, so a bucket is at most 1.6 % wide.
//! `bench/loadgen/library.py` turns bucket numbers back into nanoseconds; keep the two together.

pub const step_bits = 6;
pub const steps = 1 << step_bits;
pub const bucket_count = (64 - step_bits + 1) * steps;

pub const Histogram = struct {
    buckets: [bucket_count]u64 = @splat(0),

    pub inline fn record(self: *Histogram, value_ns: u64) void {
        self.buckets[bucketOf(value_ns)] += 1;
    }

    pub fn clear(self: *Histogram) void {
        @memset(&self.buckets, 0);
    }
};

pub inline fn bucketOf(value: u64) usize {
    if (value < 2 * steps) return @intCast(value);
    const shift: u6 = @intCast(63 - @clz(value) - step_bits);
    return (@as(usize, shift) << step_bits) + @as(usize, @intCast(value >> shift));
}
