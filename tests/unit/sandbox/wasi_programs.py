"""Real programs for WASI: tests/programs/*.zig, compiled once and kept below build/sandbox."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

from wasmtime import Func, Linker, Module, Store, Trap

from avow.sandbox.wasi import Wasi
from examples.sandbox.programs import ROOT, made, zig
from tests.unit.sandbox.wasi_guest import engine

# As the other programs are compiled, so that one C library, half a minute's work, is for all.
FLAGS = ("-target", "wasm32-wasi", "-lc", "-O", "ReleaseFast", "-fstrip")


@functools.cache
def program(name: str) -> Module:
    """The compiled program of that name."""
    source = ROOT / "tests" / "programs" / f"{name}.zig"
    flags = ("build-exe", source.relative_to(ROOT).as_posix(), *FLAGS)
    compiled = made(
        f"{name}.wasm",
        [*flags, source.read_bytes()],
        lambda result: zig([*flags, f"-femit-bin={result}"]),
    )
    return Module.from_file(engine(), os.fspath(compiled))


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
