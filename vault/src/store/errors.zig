//! What can go wrong in a store, and the numbers by which it crosses the C interface.

pub const Error = error{
    NotFound,
    Exists,
    NotDirectory,
    IsDirectory,
    NotEmpty,
    /// Not UTF-8, empty, longer than 255 bytes, `.` or `..`, or with a slash or a zero byte.
    NameInvalid,
    /// Larger than the format holds: a file, the links of a file, the keys of a store.
    TooLarge,
    NoSpace,
    DiskFailed,
    /// What was read is not what was committed. `Store.damage` says where.
    Damaged,
    WrongKey,
    /// Not a store, or one of another version, or one without its root records.
    Malformed,
    /// An earlier failure left it unknown what the disk holds: nothing more is done.
    Broken,
    ReadOnly,
    OutOfMemory,
    Invalid,
};

/// The negative result of a C function. 0 and above are success.
pub fn code(err: Error) i64 {
    return switch (err) {
        error.NotFound => -1,
        error.Exists => -2,
        error.NotDirectory => -3,
        error.IsDirectory => -4,
        error.NotEmpty => -5,
        error.NameInvalid => -6,
        error.TooLarge => -7,
        error.NoSpace => -8,
        error.DiskFailed => -9,
        error.Damaged => -10,
        error.WrongKey => -11,
        error.Malformed => -12,
        error.Broken => -13,
        error.ReadOnly => -14,
        error.OutOfMemory => -15,
        error.Invalid => -16,
    };
}

/// Where the first damage was found. Level 255: not a block but what `index` says (see check.zig).
pub const Damage = extern struct {
    inode: u64 = 0,
    index: u64 = 0,
    level: u32 = 0,
    kind: u32 = 0,
};
