"""Takes one defence after the other out of the vault's WASI, and sees that a test fails without it.

    python -m tests.adversary.wasi_defences [NUMBER ...]

The vault is compiled anew for each, so this takes minutes and is no test; that the table below fits
the sources is one (test_wasi_defences.py). Prints a line for each; the exit code is 1 when a
defence is not missed, or when the tests fail with all defences in place.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import hatch_build

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "vault" / "src" / "wasi"
# A test that waits for what never comes has failed as well.
TIMEOUT_S = 120


class Defence(NamedTuple):
    """`statement` in `file`, what is put in its place, and the test file that has to fail then."""

    file: str
    statement: str
    instead: str
    missed_by: str


PATHS, FILES = "unit/sandbox/test_wasi_paths.py", "unit/sandbox/test_wasi_files.py"
SYSTEM, STREAMS = "unit/sandbox/test_wasi_system.py", "unit/sandbox/test_wasi_streams.py"
ESCAPES, LIES = "adversary/test_wasi_escapes.py", "adversary/test_wasi_lying_host.py"
NONSENSE = "adversary/test_wasi_nonsense.py"

DEFENCES = (
    # A path leads out of its directory.
    Defence("paths.zig", "if (directory == base) return error.NOTCAPABLE;", "", ESCAPES),
    Defence("paths.zig", "if (path[0] == '/') return error.NOTCAPABLE;", "", ESCAPES),
    Defence("paths.zig", "if (into[0] == '/') return error.NOTCAPABLE;", "", ESCAPES),
    Defence("host.zig", "RESOLVE_BENEATH |", "", ESCAPES),
    Defence("host.zig", "O_PATH | O_DIRECTORY | O_NOFOLLOW |", "O_PATH | O_DIRECTORY |", ESCAPES),
    Defence("host.zig", "openFlags(flags) | O_NOFOLLOW |", "openFlags(flags) |", ESCAPES),
    Defence(
        "host.zig",
        "if (depth == 0) return -@as(i64, @backingInt(linux.E.XDEV));",
        "if (depth == 0) continue;",
        ESCAPES,
    ),
    Defence("descriptors.zig", "if (self.isGranted(own.inode)) own.inode else", "", ESCAPES),
    # A path is no path.
    Defence("paths.zig", "const LINKS_MAX = 40;", "const LINKS_MAX = 41;", PATHS),
    Defence(
        "paths.zig", "if (name.len > stored.NAME_MAX_BYTES) return error.NAMETOOLONG;", "", PATHS
    ),
    Defence(
        "paths.zig",
        "if (link.size > wasi.PATH_MAX_BYTES - behind.len) return error.NAMETOOLONG;",
        "",
        PATHS,
    ),
    Defence(
        "paths.zig",
        "if (std.mem.findScalar(u8, path, 0) != null) return error.INVAL;",
        "",
        PATHS,
    ),
    Defence("paths.zig", "if (!std.unicode.utf8ValidateSlice(path)) return error.ILSEQ;", "", LIES),
    Defence("paths.zig", "if (found.kind != .directory) return error.NOTDIR;", "", PATHS),
    # An address or a length is none.
    Defence("memory.zig", "if (count > VECTORS_MAX) return error.INVAL;", "", FILES),
    Defence("memory.zig", "if (total > TRANSFER_MAX_BYTES) return error.INVAL;", "", FILES),
    Defence(
        "memory.zig",
        "try self.check(std.mem.readInt(u32, table[index * 8 ..][0..4], .little), length);",
        "",
        FILES,
    ),
    Defence("memory.zig", ", self.total - self.yielded);", ", self.total);", NONSENSE),
    Defence(
        "files.zig",
        "if (to < 0 or to > std.math.maxInt(i64))",
        "if (to > std.math.maxInt(i64))",
        FILES,
    ),
    Defence("polling.zig", "or nsubscriptions > SUBSCRIPTIONS_MAX", "", SYSTEM),
    # The host lies.
    Defence("errno.zig", "if (value > max) error.IO else value;", "value | (max & 0);", LIES),
    Defence("plain.zig", "if (facts.size < 0) return error.IO;", "", LIES),
    Defence(
        "plain.zig",
        "if (std.mem.findScalar(u8, name, '/') != null) return error.IO;",
        "",
        LIES,
    ),
    Defence("plain.zig", "if (length < 20 or length >", "if (length >", LIES),
    Defence("plain.zig", "if (all.items.len > LISTING_MAX_BYTES)", "if (false)", LIES),
    Defence("files.zig", "if (sent == 0) {", "if (false) {", LIES),
    Defence(
        "wasi.zig",
        "if (interruptions > INTERRUPTIONS_MAX) return error.INTR;",
        "if (interruptions == 0) continue;",
        LIES,
    ),
    Defence(
        "wasi.zig",
        "self.last_time[id] = @max(self.last_time[id], now);",
        "self.last_time[id] = now;",
        SYSTEM,
    ),
    Defence("wasi.zig", "or time.nanoseconds >= std.time.ns_per_s", "", SYSTEM),
    Defence("wasi.zig", "if (time.seconds < 0 or", "if (", SYSTEM),
    Defence("network.zig", "host_fd > linux.STDERR_FILENO", "host_fd >= 0", LIES),
    # More than was granted.
    Defence("host.zig", " and found[0] != PROC_SUPER_MAGIC", "", ESCAPES),
    Defence("network.zig", "& rights.SOCKET & directory.inheriting,", "& rights.SOCKET,", STREAMS),
    Defence(
        "network.zig", "again.inheriting = inheriting;", "again.inheriting |= inheriting;", STREAMS
    ),
    Defence(
        "open.zig",
        "if ((base | inheriting) & ~directory.inheriting != 0) return error.NOTCAPABLE;",
        "",
        FILES,
    ),
    Defence(
        "wasi.zig",
        """if (descriptor.base & needed != needed) return error.NOTCAPABLE;
        return descriptor;
    }

    /// A descriptor that names""",
        """if (descriptor.base & needed > descriptor.base) return error.NOTCAPABLE;
        return descriptor;
    }

    /// A descriptor that names""",
        FILES,
    ),
    Defence("descriptors.zig", "base & ~descriptor.base != 0 or", "", FILES),
    Defence("open.zig", "if (directory.read_only) return error.ROFS;", "_ = directory;", FILES),
    Defence(
        "open.zig",
        "if ((request.writes() or request.has(TRUNC)) and directory.read_only) return error.ROFS;",
        "_ = directory;",
        FILES,
    ),
    Defence(
        "open.zig",
        "    if (request.writes() or request.has(TRUNC)) return",
        "    if (false) return",
        STREAMS,
    ),
    Defence("names.zig", "or from.read_only or to.read_only", "or from.read_only", FILES),
    Defence("names.zig", "or from.read_only or to.read_only", "or to.read_only", FILES),
    Defence(
        "names.zig",
        ".sealed_directory => if (directory.read_only) error.ROFS else directory,",
        ".sealed_directory => directory,",
        FILES,
    ),
    Defence("plain.zig", "if (found.filetype == .DIRECTORY or found", "if (true or found", ESCAPES),
    Defence(
        "plain.zig",
        "else => return if (wants_directory) error.NOTDIR else error.ACCES,",
        "else => {},",
        ESCAPES,
    ),
    Defence("system.zig", "    return error.NOTCAPABLE;\n", "", SYSTEM),
    Defence("polling.zig", "try system.allowClock(self, id);", "", SYSTEM),
    Defence(
        "wasi.zig", "if (self.clocks & CLOCK_REALTIME == 0) return self.started_ns;", "", SYSTEM
    ),
    Defence(
        "network.zig",
        "if (!granted(self, endpoint)) return refuseEndpoint(self, endpoint);",
        "_ = granted(self, endpoint);",
        STREAMS,
    ),
    Defence(
        "network.zig",
        "std.mem.eql(u8, known, endpoint)",
        "std.mem.startsWith(u8, endpoint, known)",
        STREAMS,
    ),
    Defence(
        "sockets.zig",
        "if (listener.base & rights.SOCK_ACCEPT == 0) return error.NOTCAPABLE;",
        "",
        STREAMS,
    ),
    # What a program relies on.
    Defence("open.zig", "store.retain(inode) catch |err| return self.failed(err);", "", FILES),
    Defence("wasi.zig", ".{ .fd = self.waker, .events", ".{ .fd = -1, .events", STREAMS),
    Defence("wasi.zig", "if (known == digest) return;", "_ = known;", SYSTEM),
    Defence("plain.zig", "catch std.math.maxInt(i64);", "catch error.IO;", STREAMS),
    Defence("network.zig", "    errdefer plain.close(self, host_fd);\n", "", STREAMS),
)


def without(defence: Defence) -> str:
    """The text of the file without it."""
    text = (SOURCES / defence.file).read_text()
    assert defence.statement in text, f"{defence.file} has no {defence.statement!r}"
    return text.replace(defence.statement, defence.instead, 1)


def is_missed(defence: Defence, folder: Path) -> bool:
    """Whether the tests fail when it is gone."""
    shutil.copytree(ROOT / "vault", folder / "vault")
    (folder / "vault" / "src" / "wasi" / defence.file).write_text(without(defence))
    package = folder / "src" / "avow"
    shutil.copytree(ROOT / "src" / "avow", package)
    library = package / "_native" / hatch_build.vault().name
    library.unlink(missing_ok=True)
    cache = ROOT / "build" / "native" / "zig-cache"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(folder / "src"), str(ROOT))),
        "ZIG_GLOBAL_CACHE_DIR": str(cache / "global"),
        "ZIG_LOCAL_CACHE_DIR": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "ziglang", *hatch_build.vault().command]
    subprocess.run([*command, f"-femit-bin={library}"], cwd=folder, env=environment, check=True)
    test = [sys.executable, "-m", "pytest", "-q", "-x", f"tests/{defence.missed_by}"]
    try:
        done = subprocess.run(
            test, cwd=ROOT, env=environment, capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def main() -> int:
    """All of them, or those whose numbers are given."""
    chosen = [int(number) for number in sys.argv[1:]] or list(range(len(DEFENCES)))
    kept = 0
    for test in sorted({DEFENCES[number].missed_by for number in chosen}):
        with tempfile.TemporaryDirectory() as folder:
            if is_missed(Defence("paths.zig", "const", "const", test), Path(folder)):
                print(f"tests/{test} fails as it is")
                return 1
    for number in chosen:
        with tempfile.TemporaryDirectory() as folder:
            missed = is_missed(DEFENCES[number], Path(folder))
        defence = DEFENCES[number]
        print(f"{number:>3} {'missed' if missed else 'NOT MISSED'}: {defence.file}: ", end="")
        print(defence.statement.strip().splitlines()[0], flush=True)
        kept += not missed
    return 1 if kept else 0


if __name__ == "__main__":
    raise SystemExit(main())
