"""Real programs for WASI: tests/programs/*.zig, compiled once and kept below build/programs."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from wasmtime import Func, Linker, Module, Store, Trap

from avow.sandbox.wasi import Wasi
from tests.unit.sandbox.wasi_guest import engine

ROOT = Path(__file__).resolve().parents[3]
KEPT = ROOT / "build" / "programs"
COMMAND = ("build-exe", "-target", "wasm32-wasi", "-lc", "-O", "ReleaseSmall")


@functools.cache
def program(name: str) -> Module:
    """The compiled program of that name."""
    source = ROOT / "tests" / "programs" / f"{name}.zig"
    digest = hashlib.sha256(" ".join(COMMAND).encode() + source.read_bytes()).hexdigest()
    compiled = KEPT / f"{name}-{digest[:16]}.wasm"
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        # Tests in several processes compile it once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not compiled.is_file():
            _compile(source, compiled)
    return Module.from_file(engine(), os.fspath(compiled))


def _compile(source: Path, compiled: Path) -> None:
    cache = KEPT / "zig-cache"
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(cache / "global"),
        "ZIG_LOCAL_CACHE_DIR": str(cache / "local"),
    }
    command = [sys.executable, "-m", "ziglang", COMMAND[0], str(source), *COMMAND[1:]]
    fresh = compiled.with_suffix(".new")
    done = subprocess.run(
        [*command, f"-femit-bin={fresh}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    fresh.rename(compiled)


class Ended(NamedTuple):
    """How a program ended: its exit code, or what stopped it."""

    code: int | None
    trap: str = ""


def run(wasi: Wasi, module: Module) -> Ended:
    """Runs a program to its end."""
    store, linker = Store(engine()), Linker(engine())
    wasi.define(linker)
    start = linker.instantiate(store, module).exports(store)["_start"]
    assert isinstance(start, Func)
    try:
        start(store)
    except Trap as trap:
        if wasi.exit_code is None:
            return Ended(None, trap.message)
    return Ended(wasi.exit_code or 0)
