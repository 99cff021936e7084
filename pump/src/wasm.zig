//! The core as the pump sees it: its exports called through wasmtime's C API, and its linear memory
//! read and written with every address checked. The contract is docs/spec/core-abi.md.

const std = @import("std");

const MAGIC: u32 = 0x574F5641;
const LAYOUT_VERSION: u32 = 3;
const STATS_COUNT_MAX = 1024;

/// wasmtime_func_t.
const Function = extern struct { store: u64, private: usize };
/// wasmtime_val_raw_t: as wide as its widest member, a v128.
const Value = extern union { i32: u32, i64: u64, v128: [16]u8 };
/// wasm_byte_vec_t.
const Bytes = extern struct { size: usize = 0, data: ?[*]const u8 = null };

const Context = opaque {};
const Memory = opaque {};
const Failure = opaque {};
const Trap = opaque {};

comptime {
    std.debug.assert(@sizeOf(Function) == 16);
    std.debug.assert(@sizeOf(Value) == 16);
}

/// Addresses from the wasmtime that Python has loaded, and the handles of this one instance.
pub const Api = extern struct {
    context: *Context,
    memory: *const Memory,
    step: *const Function,
    commit: *const Function,
    snapshot: *const Function,
    call: *const fn (*Context, *const Function, [*]Value, usize, *?*Trap) callconv(.c) ?*Failure,
    memory_data: *const fn (*Context, *const Memory) callconv(.c) [*]u8,
    memory_data_size: *const fn (*Context, *const Memory) callconv(.c) usize,
    failure_message: *const fn (*const Failure, *Bytes) callconv(.c) void,
    failure_delete: *const fn (*Failure) callconv(.c) void,
    trap_message: *const fn (*const Trap, *Bytes) callconv(.c) void,
    trap_delete: *const fn (*Trap) callconv(.c) void,
    bytes_delete: *const fn (*Bytes) callconv(.c) void,
    layout_address: u64,
};

pub const InputKind = enum(u16) { open = 1, data = 2, closed = 3, writable = 4, command = 5 };

pub const Input = extern struct {
    connection: u32,
    kind: u16,
    flags: u16 = 0,
    address: u32 = 0,
    length: u32 = 0,
};

pub const Output = extern struct {
    connection: u32,
    reserved: u16,
    flags: u16,
    address: u32,
    length: u32,

    pub const CLOSE: u16 = 1;
    pub const PAUSE: u16 = 2;
    pub const RESUME: u16 = 4;
    pub const HOLD: u16 = 16;
    pub const ABORT: u16 = 8;
    pub const BLOCKED: u16 = 0x100;
    pub const FAILED: u16 = 0x200;
};

pub const Result = extern struct {
    journal_sequence: u64,
    journal_address: u32,
    journal_bytes: u32,
    output_count: u32,
    flags: u32,
    next_deadline_ms: u64,
    events_address: u32,
    events_bytes: u32,
    heap_bytes: u64,
    reserved: [2]u64,

    pub const MORE: u32 = 1;
};

const Layout = extern struct {
    magic: u32,
    layout_version: u32,
    layout_bytes: u32,
    input_address: u32,
    input_capacity: u32,
    input_record_bytes: u32,
    arena_address: u32,
    arena_bytes: u32,
    output_address: u32,
    output_capacity: u32,
    output_record_bytes: u32,
    result_address: u32,
    result_bytes: u32,
    stats_address: u32,
    stats_count: u32,
};

comptime {
    std.debug.assert(@sizeOf(Input) == 16);
    std.debug.assert(@sizeOf(Output) == 16);
    std.debug.assert(@sizeOf(Result) == 64);
    std.debug.assert(@sizeOf(Layout) == 60);
}

/// The core trapped or broke its contract: nothing more may be asked of it.
pub const Error = error{CoreBroken};

pub const Core = struct {
    api: Api,
    layout: Layout,
    base: [*]u8 = undefined,
    size: usize = 0,
    message: [1024]u8 = undefined,
    message_bytes: usize = 0,

    /// Fails, with the reason in `message`, when the layout is not the one this file was built for.
    pub fn init(self: *Core, api: Api) Error!void {
        self.* = .{ .api = api, .layout = undefined };
        self.takeMemory();
        if (api.layout_address > std.math.maxInt(u32)) return self.broke("the layout table lies outside of memory");
        const bytes = try self.slice(@intCast(api.layout_address), @sizeOf(Layout));
        self.layout = std.mem.bytesToValue(Layout, bytes[0..@sizeOf(Layout)]);
        const layout = self.layout;
        if (layout.magic != MAGIC) return self.broke("the layout table has no magic");
        if (layout.layout_version != LAYOUT_VERSION) return self.broke("the layout version is not 3");
        if (layout.layout_bytes < @sizeOf(Layout) or layout.input_record_bytes != @sizeOf(Input) or
            layout.output_record_bytes != @sizeOf(Output) or layout.result_bytes != @sizeOf(Result))
            return self.broke("a record size of the layout table is not the one of layout version 3");
        if (layout.input_capacity == 0 or layout.output_capacity == 0 or layout.arena_bytes == 0)
            return self.broke("a table of the layout has no room");
        if (layout.stats_count > STATS_COUNT_MAX) return self.broke("the layout has too many counters");
        if (layout.input_address % 4 != 0 or layout.output_address % 4 != 0 or
            layout.result_address % 8 != 0 or layout.stats_address % 8 != 0)
            return self.broke("a table of the layout is not aligned");
        _ = try self.table(layout.input_address, layout.input_capacity, @sizeOf(Input));
        _ = try self.table(layout.output_address, layout.output_capacity, @sizeOf(Output));
        _ = try self.table(layout.stats_address, layout.stats_count, @sizeOf(u64));
        _ = try self.slice(layout.arena_address, layout.arena_bytes);
        _ = try self.slice(layout.result_address, layout.result_bytes);
    }

    pub fn step(self: *Core, now_ms: u64, input_count: u32) Error!u32 {
        var values: [2]Value = .{ .{ .i64 = now_ms }, .{ .i32 = input_count } };
        return self.call(self.api.step, &values);
    }

    pub fn commit(self: *Core, journal_sequence: u64) Error!u32 {
        var values: [1]Value = .{.{ .i64 = journal_sequence }};
        return self.call(self.api.commit, &values);
    }

    pub fn snapshot(self: *Core, restart: bool) Error!u32 {
        var values: [1]Value = .{.{ .i32 = @intFromBool(restart) }};
        return self.call(self.api.snapshot, &values);
    }

    /// A copy: what follows must not change when the core is called again.
    pub fn result(self: *Core) Error!Result {
        const bytes = try self.slice(self.layout.result_address, @sizeOf(Result));
        return std.mem.bytesToValue(Result, bytes[0..@sizeOf(Result)]);
    }

    /// Valid until the next call into the core, like every slice from here.
    pub fn inputs(self: *Core) []Input {
        const start: [*]Input = @ptrCast(@alignCast(self.base + self.layout.input_address));
        return start[0..self.layout.input_capacity];
    }

    pub fn outputs(self: *Core, count: u32) Error![]Output {
        if (count > self.layout.output_capacity) return self.broke("more outputs than the table holds");
        const start: [*]Output = @ptrCast(@alignCast(self.base + self.layout.output_address));
        return start[0..count];
    }

    pub fn arena(self: *Core) []u8 {
        return (self.base + self.layout.arena_address)[0..self.layout.arena_bytes];
    }

    pub fn counters(self: *Core) []const u64 {
        const start: [*]const u64 = @ptrCast(@alignCast(self.base + self.layout.stats_address));
        return start[0..self.layout.stats_count];
    }

    /// Checked: an address from inside the sandbox is only ever an offset into its memory.
    pub fn slice(self: *Core, address: u32, length: u32) Error![]u8 {
        if (@as(u64, address) + length > self.size) return self.broke("an address lies outside of memory");
        return (self.base + address)[0..length];
    }

    fn table(self: *Core, address: u32, count: u32, record_bytes: u64) Error!void {
        if (address + count * record_bytes > self.size) return self.broke("a table lies outside of memory");
    }

    fn takeMemory(self: *Core) void {
        self.base = self.api.memory_data(self.api.context, self.api.memory);
        self.size = self.api.memory_data_size(self.api.context, self.api.memory);
    }

    fn call(self: *Core, function: *const Function, values: []Value) Error!u32 {
        var trap: ?*Trap = null;
        const failure = self.api.call(self.api.context, function, values.ptr, values.len, &trap);
        if (failure) |reason| {
            var text: Bytes = .{};
            self.api.failure_message(reason, &text);
            self.keep(&text);
            self.api.failure_delete(reason);
            return error.CoreBroken;
        }
        if (trap) |reason| {
            var text: Bytes = .{};
            self.api.trap_message(reason, &text);
            self.keep(&text);
            self.api.trap_delete(reason);
            return error.CoreBroken;
        }
        // Any call may have grown the memory, and where the reservation is small that moves it.
        self.takeMemory();
        return values[0].i32;
    }

    fn keep(self: *Core, text: *Bytes) void {
        if (text.data) |data| {
            const whole = std.mem.trimEnd(u8, data[0..text.size], "\x00");
            self.message_bytes = @min(whole.len, self.message.len);
            @memcpy(self.message[0..self.message_bytes], whole[0..self.message_bytes]);
        }
        self.api.bytes_delete(text);
    }

    /// Remembers what was wrong, in words for the operator.
    pub fn broke(self: *Core, comptime what: []const u8) Error {
        @branchHint(.cold);
        const text = "the core broke its contract: " ++ what;
        @memcpy(self.message[0..text.len], text);
        self.message_bytes = text.len;
        return error.CoreBroken;
    }
};
