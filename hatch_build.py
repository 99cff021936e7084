"""Compiles the three Zig programs of the package. The only place that holds the compile commands.

It is hatchling's build hook (so `pip install .` compiles) and a program (`python hatch_build.py`,
which is `make build`). Needs the pinned `ziglang` wheel and nothing else of the system.

- `core/`  -> `src/avow/_native/broker.wasm`: the measured module. The same sources give the same
  bytes on every machine and in every folder: sources are named by relative paths, the target is
  explicit, symbols are stripped, and Zig's version is checked.
- `pump/`  -> `src/avow/_native/libavow_pump.so`: the native data plane.
- `vault/` -> `src/avow/_native/libavow_vault.so`: sealed storage, and WASI over it.

Work is skipped when neither sources, nor command, nor compiler, nor result have changed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ZIG_VERSION = "0.17.0"

# What the pump is compiled for, by machine. It uses epoll, so it is for Linux, and no C library, so
# any libc of the machine will do; the processor is the oldest that is of use today.
TARGETS = {
    "x86_64": ("-target", "x86_64-linux-gnu", "-mcpu", "x86_64_v2"),
    "aarch64": ("-target", "aarch64-linux-gnu", "-mcpu", "baseline"),
}

NATIVE_FOLDER = Path("src/avow/_native")
BUILD_FOLDER = Path("build/native")


class BuildError(Exception):
    """The artefacts cannot be built; the message says what to do."""


class Artefact(NamedTuple):
    """One compiled file. (No dataclass: hatchling runs this file without making it a module.)

    `sources` is the folder whose files are the inputs, `command` the arguments for `zig`, run in
    the root of the checkout; the name of the output file is added to it.
    """

    name: str
    sources: Path
    command: tuple[str, ...]


def machine() -> str:
    """The machine's name as Zig and wheel tags spell it."""
    name = platform.machine()
    if sys.platform != "linux" or name not in TARGETS:
        raise BuildError(
            f"avow is built for Linux on {' or '.join(TARGETS)}; this is {sys.platform} on {name}."
        )
    return name


def core() -> Artefact:
    """The measured module. Every argument is part of what the measurement says."""
    return Artefact(
        name="broker.wasm",
        sources=Path("core"),
        command=(
            "build-exe",
            "core/src/main.zig",
            "-target",
            "wasm32-freestanding",
            "-mcpu",
            "generic+bulk_memory+sign_ext+nontrapping_fptoint+simd128",
            "-O",
            "ReleaseSafe",
            "-fno-entry",
            "-rdynamic",
            "-fstrip",
        ),
    )


def pump() -> Artefact:
    """The native data plane, for this machine's architecture but not for its exact processor."""
    return Artefact(
        name="libavow_pump.so",
        sources=Path("pump"),
        command=(
            "build-lib",
            "pump/src/main.zig",
            "-dynamic",
            *TARGETS[machine()],
            "-O",
            "ReleaseSafe",
            "-fstrip",
        ),
    )


# Zig's standard library uses the processor's AES and carry-less multiplication when it is told at
# compile time that they are there, and then wants AVX too. Every x86 processor with a TEE has them;
# without them AES-GCM is a tenth as fast. On ARM they are optional, so there they are not used.
VAULT_TARGETS = {
    "x86_64": ("-target", "x86_64-linux-gnu", "-mcpu", "x86_64_v2+avx+aes+pclmul"),
    "aarch64": TARGETS["aarch64"],
}


def vault() -> Artefact:
    """Sealed storage and WASI: native, since a file read has to cost less than a microsecond."""
    return Artefact(
        name="libavow_vault.so",
        sources=Path("vault"),
        command=(
            "build-lib",
            "vault/src/main.zig",
            "-dynamic",
            *VAULT_TARGETS[machine()],
            "-O",
            "ReleaseSafe",
            "-fstrip",
        ),
    )


def artefacts() -> tuple[Artefact, ...]:
    """All that is compiled, in the order in which it is."""
    return core(), pump(), vault()


def wheel_tag() -> str:
    """The pump depends on the machine; nothing depends on Python's ABI or on a certain libc."""
    return f"py3-none-manylinux_2_17_{machine()}"


def source_files(root: Path, sources: Path) -> list[Path]:
    """The inputs of an artefact relative to `root`, in one order on every machine."""
    folder = root / sources
    files = sorted(
        path.relative_to(root)
        for path in folder.rglob("*.zig")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise BuildError(f"no Zig sources below {folder}; is this a complete checkout or sdist?")
    return files


def source_digest(root: Path, artefact: Artefact) -> str:
    """SHA-256 over the compiler's version, the command and every source with its name."""
    digest = hashlib.sha256()
    for part in (ZIG_VERSION, *artefact.command):
        digest.update(part.encode() + b"\0")
    for path in source_files(root, artefact.sources):
        content = (root / path).read_bytes()
        digest.update(f"{path.as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _exclusive(root: Path) -> Iterator[None]:
    """Two builds in one checkout take turns, so that neither sees half of the other's files."""
    folder = root / BUILD_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _zig(root: Path, arguments: Sequence[str]) -> str:
    """Runs the pinned compiler in `root` and returns what it printed."""
    # Zig writes its caches below the home folder unless it is told otherwise; a build machine may
    # have none that can be written to.
    cache = (root / BUILD_FOLDER / "zig-cache").resolve()
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(cache / "global"),
        "ZIG_LOCAL_CACHE_DIR": str(cache / "local"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", *arguments],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"`zig {' '.join(arguments)}` failed:\n{done.stdout}")
    return done.stdout.strip()


def _check_compiler(root: Path) -> None:
    version = _zig(root, ["version"])
    if version != ZIG_VERSION:
        raise BuildError(
            f"the measurement is defined for Zig {ZIG_VERSION}, found {version}: "
            f"pip install ziglang=={ZIG_VERSION}"
        )


def _is_current(root: Path, artefact: Artefact, digest: str) -> bool:
    stamp = root / BUILD_FOLDER / f"{artefact.name}.stamp"
    result = root / NATIVE_FOLDER / artefact.name
    return (
        stamp.is_file()
        and result.is_file()
        and stamp.read_text() == f"{digest} {sha256_of(result)}\n"
    )


def build(root: Path, artefact: Artefact, *, force: bool = False) -> Path:
    """Compiles one artefact unless it is current; returns its path. Raises `BuildError`."""
    with _exclusive(root):
        result = root / NATIVE_FOLDER / artefact.name
        digest = source_digest(root, artefact)
        if not force and _is_current(root, artefact, digest):
            return result
        _check_compiler(root)
        # Compiled beside its place and then renamed: a running broker keeps its old file.
        fresh = BUILD_FOLDER / artefact.name
        _zig(root, [*artefact.command, f"-femit-bin={fresh.as_posix()}"])
        result.parent.mkdir(parents=True, exist_ok=True)
        os.replace(root / fresh, result)
        stamp = root / BUILD_FOLDER / f"{artefact.name}.stamp"
        stamp.write_text(f"{digest} {sha256_of(result)}\n")
        return result


class NativeBuildHook(BuildHookInterface[BuilderConfig]):
    """Compiles before a wheel is packed, for editable installs too."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        for artefact in artefacts():
            self.app.display_info(f"compiling {artefact.name}")
            build(root, artefact)
            # The folder is ignored by git, so hatchling has to be told that its files belong here.
            build_data["artifacts"].append((NATIVE_FOLDER / artefact.name).as_posix())
        build_data["pure_python"] = False
        build_data["tag"] = wheel_tag()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python hatch_build.py [--force]`: compiles and prints what came out, one line a file."""
    parser = argparse.ArgumentParser(description="Compile the core, the pump and the vault.")
    parser.add_argument("--force", action="store_true", help="compile even what is current")
    options = parser.parse_args(arguments)
    root = Path(__file__).resolve().parent
    for artefact in artefacts():
        started = time.monotonic()
        try:
            result = build(root, artefact, force=options.force)
        except BuildError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        seconds = time.monotonic() - started
        print(f"{sha256_of(result)}  {result.relative_to(root)}  ({seconds:.1f} s)", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
